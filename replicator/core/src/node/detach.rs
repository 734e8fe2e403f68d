//! Giving up the disk, and taking another one, while the node runs.
//!
//! `detach`: a Primary holds new requests back until nothing is in flight and all is durable on both copies. Then its
//! copy records itself as Outdated, the link is closed (ordering 5: the record first), the copy is made clean as on any
//! loss of a link, and the shell closes the files. The node goes on without disk. A Secondary's copy stays what it is:
//! a Primary that is alive rotates without it (ordering 4). `attach` is what happens at the start of a daemon, and the
//! handshake begins anew.

use super::Node;
use super::meta::{Effect, MetaState, OpenDisk};
use super::role::Change;
use super::task::Stage;
use crate::action::CloseReason;
use crate::config::PIECE_BYTES_MAX;
use crate::ids::{CommandId, Instant};
use crate::refusal::{Done, Refusal};
use crate::status::{DiskState, ReplicationState, Role};
use lockstep_bitmap::Store;
use lockstep_bitmap::canary::{Bug, is_planted};

/// A disk that the shell has opened, locked and read.
#[derive(Debug)]
pub struct NewDisk {
    /// Its metadata.
    pub store: Store,
    /// As in [`crate::NodeConfig`].
    pub granule_bytes: u32,
    /// As in [`crate::NodeConfig`].
    pub survives_process_death: bool,
    /// As in [`crate::NodeConfig`].
    pub sample: u128,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Detaching {
    id: CommandId,
    stage: DetachStage,
    /// The record said Outdated before.
    was_outdated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DetachStage {
    /// Requests of clients end.
    Draining,
    /// What was acknowledged becomes durable on both copies.
    Flushing,
    /// Outdated is being recorded.
    Recording,
    /// The copy is made clean.
    Settling,
}

impl Node {
    pub(super) fn begin_detach(&mut self, id: CommandId) {
        if self.without_disk() {
            return self.detach_without_disk(id);
        }
        if self.change.is_some() || !self.attached || self.peer_leaves() {
            return self.finish_command(id, Err(Refusal::Busy));
        }
        let equal = self.peer_is_up_to_date() && self.replication() == ReplicationState::Established;
        let allowed = match (self.disk, self.role) {
            (DiskState::UpToDate | DiskState::Consistent, _) => equal,
            (_, Role::Primary) => self.peer_is_up_to_date(),
            (_, Role::Secondary) => true,
        };
        if !allowed {
            return self.finish_command(id, Err(Refusal::NoOtherCopy { disk: self.disk }));
        }
        let was_outdated = self.store.as_ref().is_some_and(|store| store.superblock.outdated);
        let detaching = Detaching { id, stage: DetachStage::Draining, was_outdated };
        self.change = Some(Change::Detaching(detaching));
        self.pause_resync(true);
    }

    fn detach_without_disk(&mut self, id: CommandId) {
        match (self.disk, self.closing) {
            (DiskState::Diskless, OpenDisk::Not) => self.finish_command(id, Ok(Done::Already)),
            (_, OpenDisk::Closing) | (DiskState::Failed, _) if self.detached.is_some() => {
                self.finish_command(id, Err(Refusal::Busy));
            }
            _ => {
                self.detached = Some(id);
                self.finish_detach();
            }
        }
    }

    /// Requests are held back while the Primary's disk is being given up.
    pub(super) fn is_detaching(&self) -> bool {
        matches!(self.change, Some(Change::Detaching(_)))
    }

    pub(super) fn pump_detach(&mut self, mut detaching: Detaching) -> bool {
        match detaching.stage {
            DetachStage::Draining if self.is_drained_for_detach() => {
                self.flush_stream();
                detaching.stage = DetachStage::Flushing;
            }
            DetachStage::Flushing if self.undurable.len() == 0 && !self.rotating => {
                detaching.stage = DetachStage::Recording;
                // A Secondary leaves in the state that it has: its peer may be dead already, and this the better copy.
                if let Some(store) = self
                    .store
                    .as_mut()
                    .filter(|_| self.role == Role::Primary || is_planted(Bug::SecondaryStandsBehind))
                {
                    store.superblock.outdated = true;
                }
                self.commit(Effect::Detached);
            }
            DetachStage::Settling if self.is_settled() => {
                self.change = None;
                self.detached = Some(detaching.id);
                self.set_disk(DiskState::Diskless);
                self.forget_disk_work();
                self.drop_store();
                self.close_disk();
                return true;
            }
            _ => return false,
        }
        self.change = Some(Change::Detaching(detaching));
        true
    }

    fn is_drained_for_detach(&self) -> bool {
        let in_flight = |task: &super::task::Task| task.is_client() && task.stage != Stage::Gate;
        let pieces = self.resync.as_ref().is_none_or(super::resync::Resync::is_drained);
        let client = self.role == Role::Primary && self.tasks.iter().any(|(_, task)| in_flight(task));
        !client && pieces && !self.rotating
    }

    /// Recorded: the other side may go on without this copy (ordering 5).
    pub(super) fn on_detached(&mut self) {
        let Some(Change::Detaching(mut detaching)) = self.change else { return };
        if self.role == Role::Primary {
            self.through = self.writes_through();
        }
        detaching.stage = DetachStage::Settling;
        self.change = Some(Change::Detaching(detaching));
        if self.role == Role::Primary {
            self.set_disk(DiskState::Outdated);
        }
        self.close_link(CloseReason::DiskChanged);
        self.begin_settle();
    }

    /// The peer is gone before the record was relied on: this may be the only copy now.
    pub(super) fn detach_lost_link(&mut self, detaching: Detaching) {
        if detaching.stage == DetachStage::Settling {
            return;
        }
        self.change = None;
        if detaching.stage == DetachStage::Recording
            && let Some(store) = self.store.as_mut()
        {
            store.superblock.outdated = detaching.was_outdated;
            self.commit(Effect::Confirmed);
        }
        self.finish_command(detaching.id, Err(Refusal::NoOtherCopy { disk: self.disk }));
    }

    /// The disk failed while it was being given up: the answer comes when it is closed.
    pub(super) fn detach_failed(&mut self, detaching: Detaching) {
        self.change = None;
        self.detached = Some(detaching.id);
    }

    /// The shell has closed the files.
    pub(super) fn on_disk_closed(&mut self) {
        self.closing = OpenDisk::Not;
        self.finish_detach();
    }

    fn finish_detach(&mut self) {
        if self.closing == OpenDisk::Not
            && !self.is_failing()
            && let Some(id) = self.detached.take()
        {
            self.set_disk(DiskState::Diskless);
            self.finish_command(id, Ok(Done::Changed));
        }
    }

    /// Takes a disk while the node runs without one. The command is answered when the copy may take part again; an
    /// error here means that nothing was changed, and that it is not answered. Drain the actions as after
    /// [`Self::handle`].
    pub fn attach_store(&mut self, now: Instant, id: CommandId, disk: NewDisk) -> Result<(), Refusal> {
        debug_assert!(self.actions.is_empty(), "actions of the previous event were not drained");
        self.now = self.now.max(now);
        if !self.without_disk() {
            return Err(Refusal::HasDisk);
        }
        let busy = self.closing != OpenDisk::Not || self.is_failing() || self.attaching.is_some();
        if busy || self.change.is_some() || self.pending_leave.is_some() {
            return Err(Refusal::Busy);
        }
        let (new, served) = (disk.store.geometry(), self.geometry());
        let (new, served) = (new.size_bytes(), served.map(|served| served.size_bytes()));
        if self.role == Role::Primary && served.is_some_and(|served| served != new) {
            return Err(Refusal::OtherSize { served: served.unwrap_or(0), new });
        }
        self.close_link(CloseReason::DiskChanged);
        self.take_store(disk);
        self.attaching = Some(id);
        self.start();
        self.on_timers();
        self.pump();
        Ok(())
    }

    fn take_store(&mut self, disk: NewDisk) {
        let mut store = disk.store;
        debug_assert!(store.geometry().region_bytes() >= PIECE_BYTES_MAX && !store.slots.is_empty());
        self.cfg.granule_bytes = disk.granule_bytes;
        self.cfg.survives_process_death = disk.survives_process_death;
        self.cfg.sample = disk.sample;
        // What could not be recorded of this disk when it failed (ordering 5).
        if let Some(record) = &self.unrecorded {
            store.superblock.apply_failure(record);
        }
        self.meta = MetaState::new(Some(&store));
        if self.role == Role::Primary {
            // Whatever its record says: these clients have written elsewhere since.
            let sb = &mut store.superblock;
            sb.outdated = true;
            sb.term = sb.term.max(self.term_seen);
            sb.was_primary = true;
        } else {
            self.through = None;
        }
        (self.served, self.attached) = (None, false);
        self.store = Some(store);
    }

    /// The copy may take part: hot regions are bits, the record is durable.
    pub(super) fn on_attached(&mut self) {
        if let Some(id) = self.attaching.take() {
            self.finish_command(id, Ok(Done::Changed));
        }
    }
}
