//! The operator: sees to it that some node is Primary, moves it around, and cleans up after split brain.
//!
//! An honest operator uses a flag only while the other node is really down, and only the flag that the
//! refusal named. A dishonest one says that a running node is down: then split brain is expected, and has to
//! be reported.

use crate::decision::Decision;
use crate::setup::{Focus, MS};
use crate::world::{Ev, Phase, World, node_id};
use lockstep_core::{Command, ConnectionState, Refusal, ReplicationState, Role, Status, SyncOrder};

/// What the operator remembers.
#[derive(Default)]
pub(crate) struct Operator {
    /// Commands typed so far.
    pub(crate) commands: u32,
    /// Whose changes are given up in the present split brain.
    pub(crate) loser: Option<usize>,
    /// Who was named in the last order to resolve that was taken.
    pub(crate) named: Option<usize>,
}

const PROMOTE: Command = Command::Promote { peer_is_down: false, accept_data_loss: false };

impl World {
    /// Looks at both nodes and types what seems right.
    pub(crate) fn operator_step(&mut self) {
        let gap = self.rng.operator.spread(40 * MS);
        self.after(gap, Ev::Operator);
        if self.is_scripted() {
            return;
        }
        if let Some(n) = self.survivor() {
            return self.promote_alone(n);
        }
        let seen = [0, 1].map(|n| self.look(n));
        let Some(free) = self.free_nodes() else { return };
        let tended = self.end_split_brain(&seen) || self.unblock(&seen) || self.let_sync_go_on(&seen);
        if tended || self.tend_disks(&seen) {
            return;
        }
        let primary = (0..2).find(|&n| seen[n].as_ref().is_some_and(|s| s.role == Role::Primary));
        match primary {
            None => self.promote_somebody(&free),
            Some(p) if self.phase == Phase::Stormy => self.meddle(p, &seen),
            Some(_) => self.reconnect(&seen),
        }
    }

    /// Status of a node that answers.
    pub(crate) fn look(&self, n: usize) -> Option<Status> {
        let host = &self.hosts[n];
        if host.is_paused(self.now) { None } else { host.node.as_ref().map(|node| node.status()) }
    }

    /// Nodes that answer; `None` while a command is under way (mostly: some operators are impatient).
    fn free_nodes(&mut self) -> Option<Vec<usize>> {
        let waiting = self.hosts.iter().any(|host| !host.commands.is_empty());
        if waiting && !(self.phase == Phase::Stormy && self.rng.operator.chance(50)) {
            return None;
        }
        Some((0..2).filter(|&n| self.look(n).is_some() && !self.may_serve_old_image(n)).collect())
    }

    fn replicates_as(seen: &[Option<Status>; 2], what: ReplicationState) -> bool {
        seen.iter().flatten().any(|s| s.peers.iter().any(|p| p.replication == what))
    }

    fn end_split_brain(&mut self, seen: &[Option<Status>; 2]) -> bool {
        if !Self::replicates_as(seen, ReplicationState::SplitBrain) {
            self.operator.loser = None;
            return false;
        }
        if self.phase == Phase::Stormy && !self.rng.operator.chance(100) {
            return false;
        }
        let restored = self.hosts.iter().position(|host| host.restored);
        let drawn = restored.unwrap_or(self.rng.operator.below(2) as usize);
        let loser = *self.operator.loser.get_or_insert(drawn);
        match &seen[loser] {
            Some(s) if s.role == Role::Primary => self.type_in(loser, Command::Demote { force: true }),
            _ => {
                let at = self.rng.operator.below(2) as usize;
                self.type_in(at, Command::Resolve { discard: node_id(loser) });
            }
        }
        true
    }

    /// A Primary that should be the target is demoted.
    fn unblock(&mut self, seen: &[Option<Status>; 2]) -> bool {
        if !Self::replicates_as(seen, ReplicationState::TargetIsPrimary) {
            return false;
        }
        let primaries: Vec<usize> =
            (0..2).filter(|&n| seen[n].as_ref().is_some_and(|s| s.role == Role::Primary)).collect();
        if primaries.is_empty() {
            return false;
        }
        let n = self.rng.operator.pick(&primaries);
        self.type_in(n, Command::Demote { force: true });
        true
    }

    fn promote_somebody(&mut self, free: &[usize]) {
        if free.is_empty() {
            // Nobody may be promoted before the copies have met.
            return self.reconnect(&[0, 1].map(|n| self.look(n)));
        }
        if self.phase == Phase::Stormy && self.rng.operator.chance(30) {
            // Two operators at once.
            return free.iter().for_each(|&n| self.type_in(n, PROMOTE));
        }
        let n = self.rng.operator.pick(free);
        let other = &self.hosts[1 - n];
        let other_is_down = other.node.is_none() && other.stopped_at_ns + 50 * MS < self.now;
        let (refusal, times) = self.hosts[n].refused.unwrap_or((Refusal::Busy, 0));
        // The only data there is was on a disk that failed.
        let failed = self.setup.faults.disk && times >= 20;
        let may_flag = (self.phase == Phase::Stormy && other_is_down && times >= 2) || failed;
        match refusal {
            Refusal::MayBeStale { .. } if may_flag => self.promote_by_flag(n, false),
            // Whoever declared a copy wrong does not take it as it is.
            Refusal::DataLoss { .. }
                if may_flag && !self.hosts[n].declared_wrong && self.rng.operator.chance(300) =>
            {
                self.promote_by_flag(n, true)
            }
            _ => self.type_in(n, PROMOTE),
        }
        self.reconnect(&[0, 1].map(|n| self.look(n)));
    }

    fn promote_by_flag(&mut self, n: usize, accept_data_loss: bool) {
        self.type_in(n, Command::Promote { peer_is_down: true, accept_data_loss });
    }

    /// A promotion that may give up what the other node holds: if it does, split brain is no defect.
    pub(crate) fn learn_forced(&mut self, n: usize, accept_data_loss: bool) {
        let parted = match (self.recovered(n), self.recovered(1 - n)) {
            (Ok((mine, _)), Ok((theirs, _))) => {
                let (mine, theirs) = (&mine.superblock.log, &theirs.superblock.log);
                theirs.current().is_some_and(|g| !mine.contains(g.id))
            }
            _ => true,
        };
        self.split_allowed |= parted || accept_data_loss || self.hosts[1 - n].node.is_some();
    }

    fn meddle(&mut self, primary: usize, seen: &[Option<Status>; 2]) {
        let other = 1 - primary;
        let faults = self.setup.faults;
        if faults.dishonest && !self.hosts[other].restored && self.rng.operator.chance(100) {
            let apart = seen[other].as_ref().is_some_and(|s| {
                s.role == Role::Secondary
                    && s.peers.iter().all(|p| p.connection != ConnectionState::Connected)
            });
            if apart {
                return self.promote_by_flag(other, false);
            }
        }
        if !faults.operator || !self.rng.operator.chance(self.setup.focus.chance(200)) {
            return self.reconnect(seen);
        }
        let either = self.rng.operator.below(2) as usize;
        match Focus::pick(self.setup.focus.verbs, 13, &mut self.rng.operator) {
            0 | 1 => self.type_in(primary, Command::Demote { force: true }),
            2 => self.type_in(primary, Command::Demote { force: false }),
            3 => self.type_in(either, Command::Disconnect),
            4 => self.type_in(either, Command::Leave),
            5 if !self.hosts[other].restored => self.type_in(other, PROMOTE),
            6 => self.type_in(other, Command::Leave),
            7 => self.type_in(other, Command::Invalidate { peer: false }),
            8 => self.type_in(primary, Command::Invalidate { peer: true }),
            9..=11 => {
                let rate = self.rng.operator.between(1, 64) << 16;
                let orders =
                    [SyncOrder::Pause, SyncOrder::Pause, SyncOrder::Resume, SyncOrder::Rate(Some(rate))];
                let order = at_most_or_least(self.rng.operator.pick(&orders));
                self.type_in(either, Command::Sync(order));
            }
            _ => self.reconnect(seen),
        }
    }

    /// Somebody types whatever comes to mind, at any node, several commands at once.
    pub(crate) fn draw_commands(&mut self) {
        if self.rng.operator.chance(250) {
            // Two operators have the same thought.
            let shared =
                [PROMOTE, PROMOTE, Command::Leave, Command::Disconnect, Command::Demote { force: true }];
            let command = self.rng.operator.pick(&shared);
            return (0..2).for_each(|n| self.propose(0, Decision::Command(n, command)));
        }
        for _ in 0..self.rng.operator.between(1, 4) {
            let rng = &mut self.rng.operator;
            let (n, delay) = (rng.below(2) as usize, rng.below(8 * self.setup.meta_ns));
            let rate = rng.between(1, 64) << 16;
            let command = match rng.below(16) {
                0 => PROMOTE,
                1 => Command::Promote { peer_is_down: true, accept_data_loss: false },
                2 => Command::Promote { peer_is_down: true, accept_data_loss: true },
                3 => Command::Demote { force: false },
                4 => Command::Demote { force: true },
                5 => Command::Connect,
                6 => Command::Disconnect,
                7 => Command::Resolve { discard: node_id(rng.below(2) as usize) },
                8 => Command::Invalidate { peer: false },
                9 => Command::Invalidate { peer: true },
                10 => Command::Sync(SyncOrder::Pause),
                11 => Command::Sync(SyncOrder::Resume),
                12 => Command::Sync(at_most_or_least(SyncOrder::Rate(Some(rate)))),
                13 => Command::Leave,
                // Whoever gives up a disk has to see to it.
                14 if self.setup.faults.disk => Command::Detach,
                _ if self.setup.faults.disk => {
                    self.propose(delay, Decision::Attach { n, empty: false });
                    continue;
                }
                _ => Command::Sync(SyncOrder::Rate(None)),
            };
            self.propose(delay, Decision::Command(n, command));
        }
    }

    /// After the faults nothing keeps a resync from ending.
    fn let_sync_go_on(&mut self, seen: &[Option<Status>; 2]) -> bool {
        let restrained =
            |n: &usize| seen[*n].as_ref().is_some_and(|s| s.sync_paused || s.sync_rate.is_some());
        let Some(n) = (0..2).find(restrained).filter(|_| self.phase != Phase::Stormy) else { return false };
        let paused = seen[n].as_ref().is_some_and(|s| s.sync_paused);
        let order = if paused { SyncOrder::Resume } else { SyncOrder::Rate(None) };
        self.type_in(n, Command::Sync(order));
        true
    }

    fn reconnect(&mut self, seen: &[Option<Status>; 2]) {
        for (n, status) in seen.iter().enumerate() {
            let alone =
                status.iter().any(|s| s.peers.iter().any(|p| p.connection == ConnectionState::StandAlone));
            if alone && self.rng.operator.chance(if self.phase == Phase::Stormy { 200 } else { 1000 }) {
                self.type_in(n, Command::Connect);
            }
        }
    }
}

/// Every other rate is meant as the least. It draws nothing, so that what older seeds drew stays.
fn at_most_or_least(order: SyncOrder) -> SyncOrder {
    match order {
        SyncOrder::Rate(Some(rate)) if rate & (1 << 16) != 0 => SyncOrder::AtLeast(Some(rate)),
        order => order,
    }
}
