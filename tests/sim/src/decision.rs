//! Decisions: everything that happens to the two nodes from outside, as data.
//!
//! In a random run the generators (clients, operator, faults) draw a decision and propose it; in a replay the lines
//! of a file propose it. Either way it takes effect in [`World::decide`], which records it, and nowhere else, so that
//! a recorded run and its replay are the same run. A decision that makes no sense any more, because others before it
//! were removed, has no effect; one that the guarantees do not speak of has none either.
//!
//! What follows from a decision (which bytes a reset leaves, which sectors survive a power loss) is drawn from streams
//! that depend on the moment and on nothing else, see `prng.rs`.

use crate::host::{Host, Stop};
use crate::setup::Setup;
use crate::world::{Ev, Phase, World, node_id};
use lockstep_core::{Command, RequestKind};

/// Something that somebody outside the nodes does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// A machine starts its process, and finds its disk or not.
    Boot {
        /// Machine.
        n: usize,
        /// The disk is there.
        disk: bool,
    },
    /// A client acts.
    Client(usize, ClientAct),
    /// The operator types a command at a node.
    Command(usize, Command),
    /// The operator gives a running node a disk: the one it had, or an empty one.
    Attach {
        /// Machine.
        n: usize,
        /// A new disk.
        empty: bool,
    },
    /// A fault strikes.
    Fault(Fault),
}

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientAct {
    /// Connects to a node.
    Join {
        /// Which.
        n: usize,
        /// It asks for structured replies.
        structured: bool,
    },
    /// Goes away, whatever is in flight.
    Leave,
    /// Takes its leave by the protocol: what it asked is answered first.
    Goodbye,
    /// Sends nothing for so long, in the middle of a request or not.
    Mute(u64),
    /// Reads nothing for so long.
    Deaf(u64),
    /// Sends a request that has to be refused.
    Wrong(Wrong),
    /// Sends a request for sectors: first, number.
    Request {
        /// What it asks.
        kind: RequestKind,
        /// First sector and number.
        range: (usize, usize),
        /// Durable before it is answered.
        fua: bool,
    },
}

/// What is wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// A write that reaches past the end.
    PastTheEnd,
    /// A write of half a sector.
    Misaligned,
    /// A read of nothing.
    Empty,
    /// A read with a flag that was not offered for it.
    Flag,
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A process is killed, or its machine loses power.
    Strike(usize, Stop),
    /// The same, when the core next does something.
    Aim(Aim),
    /// A process stands still.
    Pause {
        /// Machine.
        n: usize,
        /// For so long.
        ns: u64,
    },
    /// The connection is reset.
    Reset,
    /// The network carries nothing from these machines.
    Silence {
        /// Per machine.
        from: [bool; 2],
        /// For so long.
        ns: u64,
    },
    /// Dialling fails.
    Refuse {
        /// For so long.
        ns: u64,
    },
    /// An image of a machine is taken.
    TakeImage(usize),
    /// The image of a machine is put back.
    RestoreImage(usize),
    /// A resync cannot read these sectors until they are written: machine, first, number.
    Unreadable(usize, (usize, usize)),
    /// Operations on the disks of a machine fail.
    Trouble {
        /// Machine.
        n: usize,
        /// Which.
        what: Ailment,
        /// How many of a thousand.
        per_mille: u64,
        /// For so long.
        ns: u64,
    },
    /// The disks of a machine complete nothing.
    Hang {
        /// Machine.
        n: usize,
        /// For so long.
        ns: u64,
    },
    /// A bit on the wire turns over.
    Flip,
    /// Somebody else answers where the peer is dialled.
    Stranger {
        /// For so long.
        ns: u64,
    },
    /// A machine's wall clock jumps.
    WallClock {
        /// Machine.
        n: usize,
        /// Or back.
        forward: bool,
        /// By so much.
        ms: u64,
    },
    /// A bit of a stopped machine's metadata turns over, once in a run: one page has one copy left, or none if it has
    /// only one.
    Rot {
        /// Machine.
        n: usize,
        /// Which bit of the file, modulo its size.
        bit: u64,
    },
}

/// Which operations fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ailment {
    /// All.
    All,
    /// Writes of data.
    Write,
    /// Reads of data.
    Read,
    /// Flushes of data.
    Flush,
    /// Writes and flushes of data.
    WriteAndFlush,
    /// Writes of metadata.
    Meta,
    /// Writes of data, for want of space.
    Full,
    /// Reads of these sectors until they are written.
    Sectors(Vec<usize>),
}

/// A strike at the next action of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Aim {
    /// Machine.
    pub(crate) n: usize,
    /// Which action, as [`crate::execute::action_code`] numbers them.
    pub(crate) code: u64,
    /// How the process ends.
    pub(crate) how: Stop,
    /// When.
    pub(crate) when: When,
}

/// When an aimed strike falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// Before the action is executed.
    Before,
    /// As soon as it has been.
    AtOnce,
    /// So many nanoseconds later.
    After(u64),
}

impl Decision {
    /// It takes a node's disk away, or makes it fail.
    pub(crate) fn is_of_disks(&self) -> bool {
        matches!(
            self,
            Decision::Boot { disk: false, .. }
                | Decision::Command(_, Command::Detach)
                | Decision::Attach { .. }
                | Decision::Fault(Fault::Trouble { .. } | Fault::Hang { .. })
        )
    }
}

/// A decision and when it takes effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// Virtual time.
    pub(crate) at_ns: u64,
    /// What.
    pub(crate) what: Decision,
}

impl World {
    /// Something will be decided. Takes effect after everything else of its moment, in the order of proposals: a
    /// replay finds the same order.
    pub(crate) fn propose(&mut self, delay_ns: u64, what: Decision) {
        self.last(delay_ns, Ev::Decision(what));
    }

    /// The operator types something: in the storm that is a decision, afterwards it follows from what is seen.
    pub(crate) fn type_in(&mut self, n: usize, command: Command) {
        match self.phase {
            Phase::Stormy => {
                self.propose(0, Decision::Command(n, command));
                if command == Command::Leave && self.setup.faults.reset && self.rng.fault.chance(300) {
                    // While it asks, flushes, records that it left, or says so.
                    let Setup { wire_ns, flush_ns, meta_ns, .. } = self.setup;
                    let delay = self.rng.fault.below(4 * wire_ns + 2 * flush_ns + 2 * meta_ns);
                    self.propose(delay, Decision::Fault(Fault::Reset));
                }
            }
            _ => self.command(n, command),
        }
    }

    /// A decision takes effect, and is recorded.
    pub(crate) fn decide(&mut self, what: Decision) {
        let in_time = match what {
            Decision::Client(..) => matches!(self.phase, Phase::Stormy | Phase::Calm),
            _ => self.phase == Phase::Stormy,
        };
        if !in_time {
            return;
        }
        self.fold(self.now);
        self.script.push(Line { at_ns: self.now, what: what.clone() });
        match what {
            Decision::Boot { n, disk } => self.boot(n, disk),
            Decision::Client(client, act) => self.client_act(client, act),
            Decision::Command(n, command) => self.command(n, command),
            Decision::Attach { n, empty } => self.attach_disk(n, empty),
            Decision::Fault(fault) => self.befall(fault),
        }
    }

    /// An operator who does this asks for nothing that the guarantees do not speak of.
    pub(crate) fn may_type(&self, n: usize, command: Command) -> bool {
        match command {
            // Whoever declared a copy wrong does not take it as it is.
            Command::Promote { accept_data_loss: true, .. } if self.hosts[n].declared_wrong => false,
            Command::Promote { .. } => !self.may_serve_old_image(n),
            // Nor does anybody declare both copies wrong.
            Command::Invalidate { peer } => {
                let kept = if peer { n } else { 1 - n };
                let asked = |host: &Host| {
                    host.commands.values().any(|c| matches!(c.command, Command::Invalidate { .. }))
                };
                !self.hosts[kept].declared_wrong && !self.hosts.iter().any(asked)
            }
            Command::Resolve { discard } => !(0..2).any(|m| self.hosts[m].restored && node_id(m) != discard),
            _ => true,
        }
    }

    /// One without a disk would serve what the other one holds, which may be an old image; and its disk may fail
    /// while the command waits.
    pub(crate) fn may_serve_old_image(&self, n: usize) -> bool {
        self.hosts[n].restored || self.setup.faults.disk && self.hosts[1 - n].restored
    }
}
