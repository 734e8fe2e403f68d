//! The simulated world: virtual time, the heap of events, two machines, the network, clients, the operator.
//!
//! Single thread, no hash maps, every decision from a named stream of the seed: a run is a function of its
//! seed. Each event and each frame is folded into a trace hash that two runs of one seed must share.

use crate::client::Client;
use crate::decision::{Aim, Decision, Line};
use crate::disk::{DataDisk, MetaFile};
use crate::ghost::{Failures, Ghost, Seq};
use crate::host::{Host, Input, Stop};
use crate::net::Conn;
use crate::operator::Operator;
use crate::points::Points;
use crate::prng::Prng;
use crate::script::Scenario;
use crate::setup::{MS, Setup};
use crate::small::Watch;
use crate::survivors::Alone;
use lockstep_bitmap as meta;
use lockstep_bitmap::{Base, GenerationId, NodeId, PeerCopy};
use std::collections::{BTreeMap, BTreeSet};

/// Something that will happen.
#[derive(Debug)]
pub(crate) enum Ev {
    /// An input for a process (machine, process).
    Input(usize, u32, Input),
    /// A disk operation completes.
    DiskDone(usize, u32, u32),
    /// A metadata write completes.
    MetaDone(usize, u32, u32),
    /// A core's deadline.
    Tick(usize, u32),
    /// Bytes arrive from a client, or something changed for it (machine, process, connection, bytes).
    Serve(usize, u32, u32, usize),
    /// The same at a client (client, connection, bytes).
    AtClient(usize, u32, usize),
    /// A frame has left (connection, sender).
    Sent(usize, usize),
    /// A piece arrives (connection, sender).
    Arrive(usize, usize),
    /// A machine looks again at a connection that it did not read.
    Read(usize),
    /// An end learns of the loss of its connection.
    Lost(usize, usize),
    /// An end that its core closed is closed.
    Closed(usize, usize),
    /// An end's handshake is done.
    Up(usize, usize),
    /// A dial ends (machine, process).
    Dialled(usize, u32),
    /// A client draws what it does next.
    Client(usize),
    /// The operator looks what there is to do.
    Operator,
    /// A fault is drawn.
    Fault,
    /// Somebody makes backups.
    Checkpoint,
    /// Something that was decided takes effect.
    Decision(Decision),
    /// A machine's process ends.
    Stop(usize, u32, Stop),
    /// A machine starts its process, and finds its disk or not.
    Boot(usize, bool),
    /// A disk that is being closed may have come to rest (machine, process, operation).
    DiskClosed(usize, u32, u32),
    /// A machine's disks are well again.
    Heal(usize),
    /// Disks that hung go on (machine, process).
    Unhang(usize, u32),
    /// A paused process goes on.
    Resume(usize, u32),
    /// The disks' caches write back something; the cover is checked.
    Idle,
    /// The faults end.
    Calm,
    /// Has the healed cluster come to rest?
    Rest,
}

/// Whose turn it is within a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    Usual,
    Last,
}

/// A broken promise.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Which check.
    pub check: &'static str,
    /// When, ns of virtual time.
    pub at_ns: u64,
    /// What.
    pub what: String,
}

/// Random streams.
pub(crate) struct Streams {
    /// What clients ask.
    pub(crate) work: Prng,
    /// Network, between the nodes and to clients.
    pub(crate) net: Prng,
    /// Each machine's disks.
    pub(crate) disk: [Prng; 2],
    /// Faults.
    pub(crate) fault: Prng,
    /// Operator.
    pub(crate) operator: Prng,
    /// Clocks and identities.
    pub(crate) clock: Prng,
    /// Checkpoints.
    pub(crate) checkpoint: Prng,
}

impl Streams {
    fn new(seed: u64, calm_latency: bool) -> Self {
        let stream = |name| Prng::new(seed, name);
        let calm = |name| Prng::new(seed, name).calm(calm_latency);
        Streams {
            work: stream("workload"),
            net: calm("net"),
            disk: [calm("disk-0"), calm("disk-1")],
            fault: stream("fault"),
            operator: stream("operator"),
            clock: stream("clock"),
            checkpoint: stream("checkpoint"),
        }
    }

    fn moment(&mut self, now_ns: u64) {
        let Streams { work, net, disk: [a, b], fault, operator, clock, checkpoint } = self;
        for stream in [work, net, a, b, fault, operator, clock, checkpoint] {
            stream.moment(now_ns);
        }
    }
}

/// Where in its life the run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Faults.
    Stormy,
    /// Healed; clients go on for a while.
    Calm,
    /// Clients have stopped.
    Quiet,
    /// Converged.
    Done,
}

/// Lines of history: which ghost a node's clients see.
pub(crate) struct Lines {
    /// All.
    pub(crate) all: Vec<Ghost>,
    /// The line of each node's clients.
    pub(crate) of: [usize; 2],
    /// The line that a generation belongs to.
    pub(crate) of_generation: BTreeMap<GenerationId, usize>,
}

/// Everything.
pub(crate) struct World {
    /// Virtual time in nanoseconds.
    pub(crate) now: u64,
    /// Logical time of the ghosts.
    pub(crate) seq: Seq,
    events: u64,
    /// By time; decisions after everything else of their moment; in the order in which they were scheduled.
    heap: BTreeMap<(u64, Turn, u64), Ev>,
    /// Decisions so far.
    pub(crate) script: Vec<Line>,
    /// Decisions come from a file.
    is_replay: bool,
    /// The run ends here at the latest.
    pub(crate) until_ns: u64,
    /// What the seed decided.
    pub(crate) setup: Setup,
    /// Random numbers.
    pub(crate) rng: Streams,
    /// The machines.
    pub(crate) hosts: [Host; 2],
    /// All connections so far.
    pub(crate) conns: Vec<Conn>,
    /// Silence in the direction from each node, until then.
    pub(crate) silent_until: [u64; 2],
    /// Dialling fails until then.
    pub(crate) refuse_until: u64,
    /// Somebody else answers until then.
    pub(crate) stranger_until: u64,
    /// Clients.
    pub(crate) clients: Vec<Client>,
    /// Writes so far.
    pub(crate) writes: u64,
    /// What clients may see.
    pub(crate) lines: Lines,
    /// What happened to the machines.
    pub(crate) failures: Failures,
    /// What the volume held at each checkpoint.
    pub(crate) points: Points,
    /// A promotion by a flag made split brain possible.
    pub(crate) split_allowed: bool,
    /// The operator.
    pub(crate) operator: Operator,
    /// A fault that waits for an action of the core.
    pub(crate) aimed: Option<Aim>,
    /// The process that executes actions dies after this one.
    pub(crate) dying: Option<Stop>,
    /// The one that is left at the end, if only one is.
    pub(crate) alone: Alone,
    /// Phase.
    pub(crate) phase: Phase,
    /// Verdicts and refusals so far.
    pub(crate) seen: BTreeSet<String>,
    /// First broken promise; the run ends there.
    pub(crate) violation: Option<Violation>,
    /// Trace hash.
    pub(crate) trace: u64,
    /// Print what happens.
    pub(crate) log: bool,
    /// A crash that is aimed at one step, with outcomes that are listed instead of drawn.
    pub(crate) watch: Option<Watch>,
}

impl World {
    /// A fresh pair: one copy with data and a generation, one with garbage.
    fn new(setup: Setup, is_replay: bool, log: bool) -> Self {
        let mut rng = Streams::new(setup.seed, setup.calm_latency);
        let file_ids = [rng.clock.word(), rng.clock.word()];
        let first = GenerationId(rng.clock.wide() | 1);
        let content = |node: usize| -> Vec<u64> {
            let garbage = |s: usize| (1 << 63) | ((node as u64 + 1) << 40) | s as u64;
            (0..setup.sectors).map(|s| if s % 3 == node { 0 } else { garbage(s) }).collect()
        };
        let hosts = [0, 1].map(|n| {
            let meta = create_meta(&setup, n, file_ids[n], first, setup.source == n);
            Host::new(DataDisk::new(content(n)), meta)
        });
        let line = Ghost::new(&content(setup.source), setup.source);
        let clients = (0..setup.clients).map(|_| Client::default()).collect();
        World {
            now: 0,
            seq: 1,
            events: 0,
            heap: BTreeMap::new(),
            script: Vec::new(),
            is_replay,
            until_ns: u64::MAX,
            hosts,
            conns: Vec::new(),
            silent_until: [0; 2],
            refuse_until: 0,
            stranger_until: 0,
            clients,
            writes: 0,
            lines: Lines { all: vec![line], of: [0; 2], of_generation: BTreeMap::from([(first, 0)]) },
            failures: Failures { power: [0; 2], unclean: [0; 2] },
            points: Points::new(),
            split_allowed: false,
            operator: Operator::default(),
            aimed: None,
            dying: None,
            alone: Alone::default(),
            phase: Phase::Stormy,
            seen: BTreeSet::new(),
            violation: None,
            trace: 0xcbf2_9ce4_8422_2325,
            log,
            watch: None,
            rng,
            setup,
        }
    }

    /// A pair to which nothing happens but what the caller does, with this crash ahead of it.
    pub(crate) fn still(setup: Setup, watch: Watch, log: bool) -> Self {
        World { watch: Some(watch), ..Self::new(setup, false, log) }
    }

    /// A run whose decisions are drawn from a seed.
    pub(crate) fn drawn(setup: Setup, log: bool) -> Self {
        let mut world = Self::new(setup, false, log);
        for n in 0..2 {
            let at = world.rng.fault.below(100 * MS);
            world.hosts[n].booting = true;
            let disk = !(world.setup.faults.disk && world.rng.fault.chance(100));
            world.propose(at, Decision::Boot { n, disk });
        }
        for client in 0..world.clients.len() {
            world.after(world.setup.think_ns, Ev::Client(client));
        }
        world.after(world.setup.fault_gap_ns, Ev::Fault);
        if world.setup.checkpoints > 0 {
            world.after(100 * MS, Ev::Checkpoint);
        }
        world.schedule_first();
        world
    }

    /// A run whose decisions are given.
    pub(crate) fn replayed(scenario: &Scenario, log: bool) -> Self {
        let mut setup = scenario.setup.clone();
        // Where disks fail somebody looks after them.
        setup.faults.disk |= scenario.lines.iter().any(|line| line.what.is_of_disks());
        let mut world = Self::new(setup, true, log);
        for line in &scenario.lines {
            world.propose(line.at_ns, line.what.clone());
        }
        world.schedule_first();
        world
    }

    fn schedule_first(&mut self) {
        self.after(10 * MS, Ev::Operator);
        self.after(50 * MS, Ev::Idle);
        self.after(self.setup.stormy_ns, Ev::Calm);
    }

    /// Something will happen `delay_ns` from now.
    pub(crate) fn after(&mut self, delay_ns: u64, ev: Ev) {
        self.schedule(delay_ns, Turn::Usual, ev);
    }

    /// Something will happen `delay_ns` from now, after everything else of its moment.
    pub(crate) fn last(&mut self, delay_ns: u64, ev: Ev) {
        self.schedule(delay_ns, Turn::Last, ev);
    }

    fn schedule(&mut self, delay_ns: u64, turn: Turn, ev: Ev) {
        self.events += 1;
        self.heap.insert((self.now + delay_ns, turn, self.events), ev);
    }

    /// Decisions come from a file, and nobody draws any before the storm is over.
    pub(crate) fn is_scripted(&self) -> bool {
        self.is_replay && self.phase == Phase::Stormy
    }

    /// Next moment of logical time.
    pub(crate) fn next_seq(&mut self) -> Seq {
        self.seq += 1;
        self.seq
    }

    /// A promise is broken: the run ends.
    pub(crate) fn fail(&mut self, check: &'static str, what: String) {
        if self.violation.is_none() {
            self.say(format_args!("VIOLATION {check}: {what}"));
            self.violation = Some(Violation { check, at_ns: self.now, what });
        }
    }

    /// A line of the log.
    pub(crate) fn say(&self, what: std::fmt::Arguments<'_>) {
        if self.log {
            println!("{:>12.6} {what}", self.now as f64 / 1e9);
        }
    }

    /// Folds a number into the trace hash.
    pub(crate) fn fold(&mut self, word: u64) {
        self.trace = (self.trace ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(17);
    }

    /// Runs to the end. Returns the number of events.
    pub(crate) fn run(&mut self) -> u64 {
        let mut steps = 0;
        while self.violation.is_none() && self.phase != Phase::Done {
            let Some(counts) = self.step(self.until_ns) else { break };
            steps += u64::from(counts);
        }
        steps
    }

    /// Runs until a moment, a broken promise, or the crash that is watched for.
    pub(crate) fn run_until(&mut self, at: u64) {
        let crashes = |world: &Self| world.watch.as_ref().is_some_and(Watch::is_crash);
        while self.violation.is_none() && !crashes(self) && self.step(at).is_some() {}
        if !crashes(self) {
            self.now = self.now.max(at);
        }
    }

    /// The next event, if it is not after `until`. Says if it is part of what happens.
    fn step(&mut self, until: u64) -> Option<bool> {
        let next = self.heap.first_entry().filter(|next| next.key().0 <= until)?;
        let ((at, ..), ev) = next.remove_entry();
        if at > self.now {
            self.now = at;
            self.rng.moment(at);
            self.hosts.iter_mut().for_each(|host| host.ticks_here = 0);
        }
        // Whoever draws decisions is no part of what happens: in a replay nobody does. A decision is, if it comes
        // in time.
        let counts =
            !matches!(ev, Ev::Client(_) | Ev::Operator | Ev::Fault | Ev::Checkpoint | Ev::Decision(_));
        if counts {
            self.fold(at);
        }
        self.dispatch(ev);
        Some(counts)
    }

    fn dispatch(&mut self, ev: Ev) {
        match ev {
            Ev::Input(n, process, input) => {
                if self.hosts[n].process == process {
                    self.deliver(n, input);
                }
            }
            Ev::DiskDone(n, process, op) => self.disk_done(n, process, op),
            Ev::MetaDone(n, process, op) => self.meta_done(n, process, op),
            Ev::Tick(n, process) => self.tick(n, process),
            Ev::Serve(n, process, number, bytes) => self.serve(n, process, number, bytes),
            Ev::AtClient(client, number, bytes) => self.at_client(client, number, bytes),
            Ev::Sent(conn, from) => self.sent(conn, from),
            Ev::Arrive(conn, from) => self.arrive(conn, from),
            Ev::Read(n) => self.read(n),
            Ev::Lost(conn, end) => self.lost(conn, end),
            Ev::Closed(conn, end) => self.closed(conn, end),
            Ev::Up(conn, end) => self.up(conn, end),
            Ev::Dialled(n, process) => self.dialled(n, process),
            Ev::Client(client) => self.client_step(client),
            Ev::Operator => self.operator_step(),
            Ev::Fault => self.fault_step(),
            Ev::Checkpoint => self.checkpoint_step(),
            Ev::Stop(n, process, how) => {
                if self.hosts[n].process == process && self.hosts[n].node.is_some() {
                    self.stop(n, how);
                }
            }
            Ev::Decision(what) => self.decide(what),
            Ev::Boot(n, disk) => self.boot(n, disk),
            Ev::Resume(n, process) => self.resume(n, process),
            Ev::DiskClosed(n, process, op) => self.disk_closed(n, process, op),
            Ev::Heal(n) => self.heal(n),
            Ev::Unhang(n, process) => self.unhang(n, process),
            Ev::Idle => self.idle(),
            Ev::Calm => self.calm(),
            Ev::Rest => self.rest(),
        }
    }
}

/// The node id of a machine.
pub(crate) fn node_id(n: usize) -> NodeId {
    NodeId(n as u8 + 1)
}

pub(crate) fn create_meta(
    setup: &Setup,
    n: usize,
    file_id: u64,
    first: GenerationId,
    is_source: bool,
) -> MetaFile {
    let geometry = meta::Geometry::new(setup.sectors as u64 * 512, setup.block_shift, setup.region_shift)
        .expect("the setup draws valid sizes");
    let generation = meta::Generation {
        id: first,
        ordinal: 1,
        parent: None,
        node: node_id(n),
        began_unix_ms: 0,
        origin: meta::Origin::Created,
    };
    let mut log = meta::GenerationLog::new();
    if is_source {
        log.push(generation, &[]);
    }
    let peer = meta::PeerRecord {
        node: node_id(1 - n),
        base: if is_source { Base::NoGeneration } else { Base::Unset },
        copy: if is_source { PeerCopy::NoGeneration } else { PeerCopy::MayHold },
        session_offered: 0,
        session_used: 0,
        may_be_primary: false,
        slot_epoch: 1,
        slot_filled: is_source,
    };
    let identity = meta::Identity {
        resource: "r0".into(),
        volume: 0,
        node: node_id(n),
        node_name: format!("n{n}"),
        device: meta::DeviceIdentity::default(),
    };
    let params = meta::CreateParams {
        file_id,
        identity,
        geometry,
        log,
        peers: vec![peer],
        checkpoints: setup.checkpoints,
    };
    let (superblock, layout) = meta::create(params);
    let mut file = MetaFile::new(layout.file_bytes());
    for (offset, bytes) in meta::initial_pages(&superblock, &layout) {
        file.put(offset, &bytes);
    }
    file
}
