//! The end of a run in which one machine never comes back: what the other one owes its operator and its clients.
//!
//! D3 and D7: a copy that is UpToDate is promoted without a flag. Any other is refused, in words that name the
//! flag, and promoted with it. Once it is Primary, every request is answered, and none with an error. Only two
//! copies stay down: one without data, and one that its operator has declared wrong.

use crate::host::Stop;
use crate::setup::MS;
use crate::world::{Phase, World};
use lockstep_core::{Command, ConnectionState, DiskState, Done, ExportState, Refusal, Role, Status};

/// The survivor has this long to serve its clients, or to refuse for good.
const ALONE_NS_MAX: u64 = 60_000 * MS;
/// Clients go on for so long when it serves them.
const SERVED_NS: u64 = 300 * MS;

/// What is known of the survivor.
#[derive(Default)]
pub(crate) struct Alone {
    /// Since when clients are served.
    served_since_ns: Option<u64>,
    /// State of the copy for which a promotion was asked without a flag.
    asked_as: Option<DiskState>,
    /// No flag is left that its operator would type.
    is_given_up: bool,
}

impl World {
    /// The only machine that is left, once the faults have ended.
    pub(crate) fn survivor(&self) -> Option<usize> {
        match self.setup.survivors {
            _ if self.phase == Phase::Stormy => None,
            [true, false] => Some(0),
            [false, true] => Some(1),
            _ => None,
        }
    }

    /// Whoever does not survive is down for good.
    pub(crate) fn break_for_good(&mut self) {
        let Some(gone) = self.survivor().map(|n| 1 - n) else { return };
        self.say(format_args!("n{gone} IS GONE"));
        self.hosts[gone].is_gone = true;
        // What was refused in the storm is no word on what is true now.
        self.hosts[1 - gone].refused = None;
        if self.rng.clock.coin() {
            self.power_off(gone);
        } else {
            self.stop(gone, Stop::Kill);
        }
    }

    /// The operator of the survivor types what the last refusal named.
    pub(crate) fn promote_alone(&mut self, n: usize) {
        let Some(status) = self.look(n) else { return };
        if !self.hosts[n].commands.is_empty() {
            return;
        }
        if self.hosts[n].diskless {
            return self.attach_disk(n, false);
        }
        if status.role == Role::Primary {
            let is_stuck = status.disk != DiskState::UpToDate && !is_connected(&status);
            if is_stuck {
                self.command(n, Command::Demote { force: true });
            }
            return;
        }
        if is_connected(&status) || self.alone.is_given_up {
            return;
        }
        let refusal = self.hosts[n].refused.map(|(refusal, _)| refusal);
        let flag = match refusal {
            Some(Refusal::MayBeStale { .. }) => Some(false),
            Some(Refusal::DataLoss { .. }) => Some(true),
            Some(Refusal::NoData) => {
                self.alone.is_given_up = true;
                return;
            }
            _ => None,
        };
        let with_flag =
            flag.map(|accept_data_loss| Command::Promote { peer_is_down: true, accept_data_loss });
        let plain = Command::Promote { peer_is_down: false, accept_data_loss: false };
        let command = with_flag.unwrap_or(plain);
        self.alone.asked_as = with_flag.is_none().then_some(status.disk);
        self.alone.is_given_up = !self.may_type(n, command);
        self.command(n, command);
    }

    /// A promotion of the survivor was answered.
    pub(crate) fn answered_alone(&mut self, n: usize, result: Result<Done, Refusal>) {
        let Some(asked_as) = self.alone.asked_as.take().filter(|_| self.survivor() == Some(n)) else {
            return;
        };
        match result {
            Ok(_) if asked_as < DiskState::UpToDate => {
                self.fail("D3 alone", format!("node {n}: {asked_as} was promoted without a flag"));
            }
            // One that stopped uncleanly may lack what was not flushed, even where it was named source.
            Err(Refusal::DataLoss { unclean: true, .. }) => {}
            Err(why @ (Refusal::MayBeStale { .. } | Refusal::DataLoss { .. } | Refusal::NoData))
                if asked_as == DiskState::UpToDate =>
            {
                self.fail("D7 alone", format!("node {n} was UpToDate and is refused: {why}"));
            }
            _ => {}
        }
    }

    /// A request failed: none may that was sent when the survivor served.
    pub(crate) fn failed_alone(&mut self, n: usize, began_ns: u64, what: &str) {
        let is_late = self.alone.served_since_ns.is_some_and(|since| began_ns >= since);
        if is_late && self.phase == Phase::Calm && !self.hosts[n].has_hung {
            self.fail("D7 alone", format!("node {n} is the survivor and Primary, and fails {what}"));
        }
    }

    /// Polls whether the survivor has done what it owes.
    pub(crate) fn rest_alone(&mut self, n: usize) -> Option<String> {
        let seen = self.look(n);
        let Some(status) = &seen else { return Some("the survivor is down".into()) };
        let serves = status.role == Role::Primary
            && status.disk == DiskState::UpToDate
            && self.hosts[n].export == ExportState::Open;
        if self.alone.is_given_up && status.role == Role::Secondary && self.hosts[n].commands.is_empty() {
            self.phase = Phase::Done;
            return None;
        }
        if !serves {
            self.alone.served_since_ns = None;
            return Some("the survivor does not serve".into());
        }
        let since = *self.alone.served_since_ns.get_or_insert(self.now);
        if self.now < since + SERVED_NS {
            return Some("clients go on".into());
        }
        if self.phase == Phase::Calm {
            self.phase = Phase::Quiet;
            (0..self.clients.len()).for_each(|client| self.client_ends(client));
        }
        let host = &self.hosts[n];
        let left = [
            (!host.requests.is_empty(), "requests"),
            (!host.commands.is_empty(), "commands"),
            (!host.sessions.is_empty(), "sessions"),
            (!host.ops.is_empty() || !host.meta_ops.is_empty(), "operations"),
            (!host.slots.is_empty(), "slots"),
            (status.undurable_writes != 0, "writes that are not durable"),
        ];
        if let Some((_, what)) = left.iter().find(|(is_left, _)| *is_left) {
            return Some(format!("the survivor has {what} left"));
        }
        self.check_survivor(n);
        self.phase = Phase::Done;
        None
    }

    /// D1 to D3 for what the survivor holds; D5 for the day on which the other one is found again.
    fn check_survivor(&mut self, n: usize) {
        let (line, seq) = (self.lines.of[n], self.next_seq());
        for sector in 0..self.setup.sectors {
            let tag = self.hosts[n].disk.visible()[sector];
            if let Err(why) = self.lines.all[line].check(sector, tag, seq) {
                return self.fail("C2", format!("at the end, alone (line {line}): {why}"));
            }
        }
        self.check_cover();
    }

    /// The run has lasted too long for a survivor.
    pub(crate) fn is_late_alone(&self) -> bool {
        self.now > self.setup.stormy_ns + ALONE_NS_MAX
    }
}

fn is_connected(status: &Status) -> bool {
    status.peers.iter().any(|peer| peer.connection == ConnectionState::Connected)
}
