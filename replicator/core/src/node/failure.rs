//! A copy that fails: what is recorded of it, and what its node's clients go on with.
//!
//! A write, flush or metadata error ends a copy for good; a write error does not where no other UpToDate copy is within
//! reach (the client gets the error, bits remember the range). The failed copy records that it may lack what it
//! confirmed: with a last superblock, or, if that cannot be written, with the shell. Only then does its node leave the
//! link (ordering 5), so that the other side rotates and goes on, and only then does it offer itself again, without
//! disk. The marks of a failed copy are never cooled: they cover what it may have lost.

use super::Node;
use super::attach::Settle;
use super::meta::OpenDisk;
use super::task::{OpKind, Stage, Work};
use crate::action::{Action, CloseReason, Failed, Notice};
use crate::event::DiskError;
use crate::status::{DiskState, Role};
use lockstep_bitmap::canary::{Bug, is_planted};
use lockstep_bitmap::marks::{Mark, mark};
use lockstep_bitmap::{ByteRange, FailureRecord, GenerationId, MetaPage};

/// How far the record of a failure is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Failure {
    /// There is none, or it is recorded.
    #[default]
    None,
    /// A last superblock is to be written, after the one in flight.
    Due,
    /// It is being written.
    Superblock,
    /// The shell is recording it.
    Beside,
}

/// What a write was doing when it failed.
pub(super) fn failed_part(error: DiskError) -> Failed {
    match error {
        DiskError::Io | DiskError::NoSpace => Failed::Write,
        DiskError::Sync => Failed::Flush,
    }
}

impl Node {
    /// No disk: nothing is read from it or written to it.
    pub(super) fn without_disk(&self) -> bool {
        matches!(self.disk, DiskState::Diskless | DiskState::Failed)
    }

    /// The failure is not recorded yet: the node takes no part in anything until it is (ordering 5).
    pub(super) fn is_failing(&self) -> bool {
        self.disk == DiskState::Failed && self.store.is_some()
    }

    /// No disk, and no copy elsewhere that is known to have every acknowledged write: clients get errors at once.
    pub(super) fn io_is_lost(&self) -> bool {
        self.without_disk() && self.through.is_none()
    }

    /// The peer's copy is UpToDate and gets every write.
    pub(super) fn peer_is_up_to_date(&self) -> bool {
        let peer = self.link.as_ref().map(|link| link.peer_disk);
        self.mirror_link().is_some() && peer == Some(DiskState::UpToDate)
    }

    pub(super) fn note_failed(&mut self, what: Failed, offset: u64, error: DiskError) {
        self.notice(Notice::DiskFailed { what, offset, error });
    }

    /// A write failed here. The last UpToDate copy stays: its client gets the error, bits remember the range; not so
    /// if it is the durability that failed. True if the copy is lost and the write goes on without it.
    pub(super) fn on_write_error(&mut self, range: ByteRange, error: DiskError) -> bool {
        if self.without_disk() {
            return true;
        }
        self.note_failed(failed_part(error), range.start, error);
        let is_final = error == DiskError::Sync;
        if is_final {
            mark(Mark::FuaSyncFailed);
        }
        let other = self.peer_is_up_to_date() && !self.peer_leaves();
        let lost = is_final || self.disk != DiskState::UpToDate || other;
        mark(if lost { Mark::CopyLostByWrite } else { Mark::LastCopyWriteError });
        if lost {
            self.lose_disk();
        } else {
            self.set_dirty(range);
            let blocks = self.geometry().map(|geometry| geometry.blocks_touched(range));
            if let (Some(blocks), Some(resync)) = (blocks, self.resync.as_mut()) {
                resync.doubt(blocks);
            }
        }
        lost
    }

    /// Generation and term that the peer's UpToDate copy has, as the last record whose effects have run tells.
    pub(super) fn writes_through(&self) -> Option<(GenerationId, u64)> {
        let record = self.meta.settled().filter(|_| self.peer_is_up_to_date())?;
        let generation = match self.disk {
            DiskState::UpToDate => record.log.current()?.id,
            _ => record.inconsistent?.generation,
        };
        Some((generation, record.term))
    }

    /// The copy failed: nothing is read from it or written to it any more.
    pub(super) fn lose_disk(&mut self) {
        if self.without_disk() {
            return;
        }
        self.through = self.writes_through();
        self.set_disk(DiskState::Failed);
        (self.rotating, self.attached, self.settle) = (false, true, Settle::Idle);
        self.forget_effects();
        self.forget_disk_work();
        // What was never relied on is not recorded; the failure is.
        if let (Some(store), Some(record)) = (self.store.as_mut(), self.meta.settled()) {
            let sequence = store.superblock.sequence;
            store.superblock = record.clone();
            store.superblock.sequence = sequence;
            store.superblock.mark_failed();
        }
        self.failure = Failure::Due;
        self.end_recording();
        self.checkpoints_lost_disk();
        if let Some(id) = self.attaching.take() {
            self.finish_command(id, Err(crate::refusal::Refusal::DiskFailed));
        }
    }

    /// Pieces that waited for something of the disk wait for a copy elsewhere.
    pub(super) fn forget_disk_work(&mut self) {
        self.stream.forget_disk();
        self.serving.clear();
        self.undurable.forget_local();
        for id in self.tasks_where(|_| true) {
            let Some(task) = self.tasks.get_mut(id) else { continue };
            task.region = None;
            let waits = matches!(task.stage, Stage::Region | Stage::Room | Stage::Held);
            if waits && matches!(task.work, Work::Write { .. }) {
                task.stage = Stage::Suspended;
            }
        }
    }

    /// Writes the last superblock once no other is in flight.
    pub(super) fn pump_failure(&mut self) -> bool {
        let due = self.failure == Failure::Due && self.meta.superblock_is_free();
        if due && is_planted(Bug::LeaveFailureUnrecorded) {
            self.on_failure_recorded(true);
        } else if due {
            self.failure = Failure::Superblock;
            self.write_superblock_now();
        }
        due
    }

    /// A metadata write ended on a copy that failed.
    pub(super) fn on_last_meta_done(&mut self, page: MetaPage, ok: bool) {
        if page != MetaPage::Superblock {
            return;
        }
        if ok {
            self.meta.superblock_ended();
        } else {
            self.superblock_failed();
        }
        match (self.failure, ok) {
            (Failure::Superblock, true) => self.on_failure_recorded(true),
            (Failure::Superblock, false) => self.record_beside(),
            _ => {}
        }
    }

    /// A superblock is under way that may land at any time: another one, at the same place, could be overwritten by it.
    pub(super) fn on_superblock_hung(&mut self) {
        mark(Mark::SuperblockHung);
        self.superblock_failed();
        if matches!(self.failure, Failure::Due | Failure::Superblock) {
            self.record_beside();
        }
    }

    /// The metadata cannot take the record of the failure: it counts for every superblock up to this one.
    fn record_beside(&mut self) {
        let Some(record) = self.failure_record() else { return };
        mark(Mark::RecordedBeside);
        self.failure = Failure::Beside;
        let op = self.new_op(OpKind::FailureRecord);
        self.act(Action::RecordFailure { op, record });
    }

    /// In memory is the last record that counts ([`Self::lose_disk`]), with the last number that was given out.
    fn failure_record(&self) -> Option<FailureRecord> {
        let superblock = &self.store.as_ref()?.superblock;
        let generation = superblock.log.current().map(|generation| generation.id);
        let generation = generation.filter(|_| !is_planted(Bug::KeepUnusedGeneration));
        let (file_id, sequence, becoming) =
            (superblock.file_id, superblock.sequence, superblock.inconsistent);
        Some(FailureRecord { file_id, sequence, generation, becoming })
    }

    /// A write of the superblock failed: the next one goes to the same place, since the other holds the last good one.
    pub(super) fn superblock_failed(&mut self) {
        self.meta.superblock_ended();
        if let Some(store) = self.store.as_mut() {
            store.superblock.sequence += 1;
        }
    }

    /// Ordering 5: the failure is durable; from here the other side may go on without this copy.
    pub(super) fn on_failure_recorded(&mut self, ok: bool) {
        self.failure = Failure::None;
        if !ok {
            mark(Mark::RecordLost);
            // Nothing would keep the copy from being taken for whole after a restart; until then `take_store` does.
            self.note_failed(Failed::Record, 0, DiskError::Io);
            self.through = None;
            self.unrecorded = self.failure_record().filter(|_| !is_planted(Bug::ForgetUnrecordedFailure));
        }
        self.drop_store();
        self.close_link(CloseReason::DiskFailed);
        self.close_disk();
    }

    /// What a node without disk still has to know.
    pub(super) fn drop_store(&mut self) {
        if let Some(store) = self.store.take() {
            self.term_seen = self.term_seen.max(store.superblock.term);
            self.served = Some(*store.geometry());
        }
    }

    pub(super) fn close_disk(&mut self) {
        let op = self.new_op(OpKind::CloseDisk);
        self.closing = OpenDisk::Closing;
        self.act(Action::CloseDisk { op });
    }

    /// Everything suspended fails at once where nothing can bring it to an end.
    pub(super) fn pump_lost_io(&mut self) {
        if self.io_is_lost() && self.role == Role::Primary {
            self.fail_suspended();
        }
    }
}
