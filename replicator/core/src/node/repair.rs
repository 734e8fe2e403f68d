//! A client's read that fails here: served from the peer, and put back.
//!
//! The peer's bytes are taken only from a copy that is UpToDate, or Inconsistent with that block clean, and written
//! back under the exclusive lock that was held when they were asked for, so that no write comes between. A repair that
//! cannot be written is a write error; the client has its bytes all the same.

use super::Node;
use super::handshake::Phase;
use super::task::{OpKind, Task, Work};
use crate::action::{Action, Failed};
use crate::event::DiskError;
use crate::frame::Frame;
use crate::ids::{LinkId, ReqId, SlotId};
use crate::overlap::Mode;
use crate::status::DiskState;
use lockstep_bitmap::ByteRange;
use lockstep_bitmap::canary::{Bug, is_planted};
use lockstep_bitmap::marks::{Mark, mark};

impl Node {
    pub(super) fn on_read_done(&mut self, id: u32, req: ReqId, result: Result<(), DiskError>) {
        let Some(task) = self.tasks.get(id).copied() else { return };
        if task.repair {
            return self.on_repaired(id, req, result);
        }
        if self.without_disk() && !is_planted(Bug::AnswerFromAFailedDisk) {
            mark(Mark::ReadAfterFailure);
            // What a copy returns that has failed meanwhile counts no more: from the other copy, if there is one.
            return self.regate(id);
        }
        let Err(error) = result else {
            self.pace.feedback.observe_read(self.now, self.now.0.saturating_sub(task.began.0));
            return self.finish_client_task(id, None);
        };
        self.note_failed(Failed::Read, task.range.start, error);
        if self.peer_has(task.range).is_none() {
            return self.finish_client_task(id, Some(error.into()));
        }
        self.unlock(id);
        if let Some(task) = self.tasks.get_mut(id) {
            (task.repair, task.local_pending) = (true, false);
        }
        let shared = is_planted(Bug::RepairWithoutLock);
        self.ask_lock(id, if shared { Mode::Shared } else { Mode::Exclusive });
    }

    /// The peer's copy of this range is as good as an UpToDate one.
    fn peer_has(&self, range: ByteRange) -> Option<LinkId> {
        let link = self.mirror_link()?;
        let replicating = self.link.as_ref().is_some_and(|link| link.phase == Phase::Replicating);
        let clean = self.store.as_ref().is_some_and(|store| {
            !store.slots[0].bits.any(store.geometry().blocks_touched(self.whole_granules(range)))
        });
        let good = clean && replicating && self.disk == DiskState::UpToDate;
        (self.peer_is_up_to_date() && clean || good).then_some(link)
    }

    /// The exclusive lock is held.
    pub(super) fn read_for_repair(&mut self, id: u32) {
        let Some(task) = self.tasks.get(id).copied() else { return };
        let Some(link) = self.peer_has(task.range) else {
            mark(Mark::RepairImpossible);
            return self.regate(id);
        };
        self.set_running(id, false, true, Some(link));
        let wanted = self.whole_granules(task.range);
        let len = u32::try_from(wanted.len()).unwrap_or(0);
        self.send(link, Frame::Read { id, offset: wanted.start, len }, None);
    }

    pub(super) fn is_repair_data(&self, task: &Task, link: LinkId, range: ByteRange) -> bool {
        let read = matches!(task.work, Work::Read { .. }) && task.repair && task.peer_pending;
        read && task.link == Some(link) && range == self.whole_granules(task.range)
    }

    pub(super) fn repair(&mut self, id: u32, range: ByteRange, slot: SlotId) {
        if let Some(task) = self.tasks.get_mut(id) {
            task.slot = Some(slot);
        }
        self.set_running(id, true, false, None);
        let op = self.new_op(OpKind::Task(id));
        let len = u32::try_from(range.len()).unwrap_or(0);
        self.act(Action::DiskWrite { op, offset: range.start, len, slot, fua: false });
    }

    fn on_repaired(&mut self, id: u32, req: ReqId, result: Result<(), DiskError>) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        let (slot, range) = (task.slot.take(), task.range);
        let (offset, len) = (task.offset(), task.len());
        mark(if result.is_ok() { Mark::Repaired } else { Mark::RepairFailed });
        if let Err(error) = result {
            self.on_write_error(self.whole_granules(range), error);
        }
        if let Some(slot) = slot {
            self.act(Action::Supply { req, offset, len, slot });
        }
        self.finish_client_task(id, None);
    }
}
