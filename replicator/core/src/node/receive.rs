//! The receiving side: writes of the Primary's stream, and reads on behalf of the peer.
//!
//! Overlapping writes are applied in stream order, each after the earlier one completed (ordering 20: the overlap lock
//! grants in order of arrival). *written* is said after completion only, *durable* after an fdatasync that began
//! after every write up to that position had completed (ordering 6).

use super::Node;
use super::failure::failed_part;
use super::task::{FlushFor, OpKind, Stage, Task, Work, Zero};
use crate::action::{Action, CloseReason, Failed};
use crate::event::DiskError;
use crate::frame::Frame;
use crate::ids::{LinkId, Position, SlotId};
use crate::overlap::Mode;
use crate::status::{DiskState, Role};
use alloc::collections::VecDeque;
use lockstep_bitmap::ByteRange;
use lockstep_bitmap::canary::{Bug, is_planted};
use lockstep_bitmap::marks::{Mark, mark};

/// The stream as received on one link.
#[derive(Debug, Default)]
pub(super) struct Receiver {
    /// Completed or not, from the oldest that is not.
    window: VecDeque<bool>,
    /// Position before the window's first.
    done_upto: u64,
    /// Position of the last write received (0: none).
    last: u64,
    flush_wanted: u64,
    durable: u64,
    flushing: bool,
}

/// The peer may have so many operations without a payload queued here (those with one are bounded by the shell's
/// slots, and stop its socket). It has fewer of its own: `writes_max` zeroes, what its clients read at a time, its
/// window of resync pieces. More is no protocol of ours.
pub const PEER_TASKS_MAX: usize = 4096;
/// Positions from the oldest write that is not complete here to the newest. The sender's table of undurable writes is
/// far smaller.
pub(super) const WINDOW_MAX: usize = 1 << 16;

impl Receiver {
    /// Nothing received, with room for so many positions before it takes more memory.
    pub(super) fn with_capacity(positions: usize) -> Self {
        Receiver { window: VecDeque::with_capacity(positions), ..Receiver::default() }
    }
}

impl Node {
    /// Checks a range that the peer named against our volume and block size.
    pub(super) fn peer_range(&self, offset: u64, len: u32) -> Option<ByteRange> {
        let size = self.geometry()?.size_bytes();
        let range = ByteRange::new(offset, u64::from(len));
        let granule = u64::from(self.granule_bytes());
        let whole =
            range.start.is_multiple_of(granule) && (range.end.is_multiple_of(granule) || range.end == size);
        // An UpToDate copy fills the edges itself where the Primary does not have the rest of the block.
        let whole = whole || self.disk == DiskState::UpToDate;
        (range.end <= size && whole).then_some(range)
    }

    pub(super) fn on_peer_write(
        &mut self,
        link: LinkId,
        (pos, offset, len, fua): (Position, u64, u32, bool),
        slot: Option<SlotId>,
        zero: Option<Zero>,
    ) {
        let in_order = self.receiver.last == 0 || pos.0 == self.receiver.last + 1;
        let range = self.peer_range(offset, len);
        let mirrored = self.role == Role::Secondary && self.in_link() == Some(link);
        let bounded = self.peer_tasks < PEER_TASKS_MAX
            && self.receiver.window.len() < WINDOW_MAX
            && !self.serving.is_full(self.cfg.undurable_max);
        let (Some(range), true, true) = (range, in_order && pos.0 > 0, mirrored && bounded) else {
            if let Some(slot) = slot {
                self.act(Action::ReleaseSlot { slot });
            }
            return self.close_link(CloseReason::PeerMisbehaved);
        };
        if self.receiver.last == 0 {
            self.receiver.done_upto = pos.0 - 1;
        }
        self.receiver.last = pos.0;
        self.receiver.window.push_back(false);
        let task = Task::new(Work::PeerWrite { pos, zero, fua }, range, slot, Some(link));
        self.peer_tasks += usize::from(task.is_counted_for_peer());
        let id = self.tasks.insert(task);
        if is_planted(Bug::PeerWritesUnordered) {
            return self.granted.push_back(id);
        }
        self.ask_lock(id, Mode::Exclusive);
    }

    pub(super) fn start_peer_write(&mut self, id: u32) {
        let Some(task) = self.tasks.get(id).copied() else { return };
        let Work::PeerWrite { zero, fua, .. } = task.work else { return };
        if !self.is_current(task.link) || self.without_disk() {
            // Never acknowledged: the sender's table of undurable writes covers it.
            return self.drop_peer_task(id);
        }
        if self.serves_link() == task.link {
            return self.take_region(id);
        }
        if self.needs_fill(&task) {
            return self.write_served(id);
        }
        self.set_running(id, true, false, task.link);
        self.write_locally(id, &task, zero, fua);
        if let (Some(link), Work::PeerWrite { pos, .. }, true) =
            (task.link, task.work, is_planted(Bug::WrittenBeforeDone))
        {
            self.send(link, Frame::Written { pos }, None);
        }
    }

    /// Ends a task made for the peer: lock and slot are free again.
    pub(super) fn drop_peer_task(&mut self, id: u32) {
        self.unlock(id);
        let Some(task) = self.tasks.remove(id) else { return };
        self.peer_tasks -= usize::from(task.is_counted_for_peer());
        if let Some(slot) = task.slot {
            self.act(Action::ReleaseSlot { slot });
        }
        if let Some(region) = task.region {
            self.keep_until_flushed(region);
        }
    }

    pub(super) fn on_peer_write_done(&mut self, id: u32, result: Result<(), DiskError>) {
        let Some(task) = self.tasks.get(id).copied() else { return };
        self.drop_peer_task(id);
        let Work::PeerWrite { pos, .. } = task.work else { return };
        let link = task.link.filter(|link| self.is_current(Some(*link)));
        match (result, link) {
            (Ok(()), Some(link)) => {
                self.note_received(pos);
                self.send(link, Frame::Written { pos }, None);
            }
            (Err(error), _) if self.without_disk() || self.on_peer_write_error(task.range, error) => return,
            (Err(error), Some(link)) => {
                self.note_received(pos);
                self.refuse_served(link, pos, task.range, error);
            }
            (_, None) => {}
        }
        self.flush_received();
    }

    /// True if the copy is lost. The only UpToDate copy stays where it can: its clients' node is told.
    fn on_peer_write_error(&mut self, range: ByteRange, error: DiskError) -> bool {
        let peer = self.link.as_ref().map(|link| link.peer_disk);
        let only = error != DiskError::Sync
            && self.disk == DiskState::UpToDate
            && match self.in_link() {
                Some(_) => peer != Some(DiskState::UpToDate),
                None => self.peer_proven_behind(),
            };
        self.note_failed(failed_part(error), range.start, error);
        if only && is_planted(Bug::RefuseWithoutBits) {
            return false;
        }
        if only {
            self.set_dirty(range);
        } else {
            self.lose_disk();
        }
        !only
    }

    /// The write at this position is done with.
    pub(super) fn note_received(&mut self, pos: Position) {
        let receiver = &mut self.receiver;
        let index = usize::try_from(pos.0 - receiver.done_upto - 1).unwrap_or(usize::MAX);
        if let Some(done) = receiver.window.get_mut(index) {
            *done = true;
        }
        while receiver.window.front() == Some(&true) {
            receiver.window.pop_front();
            receiver.done_upto += 1;
        }
    }

    pub(super) fn on_peer_flush(&mut self, upto: Position) {
        if upto.0 > self.receiver.last {
            return self.close_link(CloseReason::PeerMisbehaved);
        }
        self.receiver.flush_wanted = self.receiver.flush_wanted.max(upto.0);
        self.flush_received();
    }

    /// One fdatasync at a time; it begins when every write that it must cover has completed (ordering 6).
    pub(super) fn flush_received(&mut self) {
        let press = self.served_marks_press();
        let receiver = &mut self.receiver;
        let wanted =
            press || receiver.flush_wanted > receiver.durable && receiver.flush_wanted <= receiver.done_upto;
        if press {
            mark(Mark::ServedPress);
        }
        let Some(link) = self.link.as_ref().map(|link| link.id) else { return };
        if receiver.flushing || !wanted || matches!(self.disk, DiskState::Diskless | DiskState::Failed) {
            return;
        }
        receiver.flushing = true;
        let covers = Position(receiver.done_upto);
        if is_planted(Bug::DurableBeforeFlush) && !press {
            return self.on_received_flushed(covers, link);
        }
        let op =
            self.new_op(OpKind::Flush(FlushFor::Received { covers, link, served: self.serving.completed() }));
        self.act(Action::DiskFlush { op });
    }

    pub(super) fn on_received_flushed(&mut self, covers: Position, link: LinkId) {
        if !self.is_current(Some(link)) {
            return;
        }
        self.receiver.flushing = false;
        self.receiver.durable = covers.0;
        self.send(link, Frame::Durable { upto: covers }, None);
        self.flush_received();
    }

    /// A read for a client of the peer, or a resync piece: after every overlapping write received before (ordering 12).
    /// Gives the task's number.
    pub(super) fn on_peer_wants(&mut self, link: LinkId, work: Work, offset: u64, len: u32) -> Option<u32> {
        let size = self.geometry().map_or(0, |geometry| geometry.size_bytes());
        let range = ByteRange::new(offset, u64::from(len));
        let fits = range.end <= size && self.peer_tasks < PEER_TASKS_MAX;
        if !fits || self.in_link() != Some(link) {
            self.close_link(CloseReason::PeerMisbehaved);
            return None;
        }
        if self.disk != DiskState::UpToDate && (self.is_stale(range) || matches!(work, Work::Serve { .. })) {
            match work {
                Work::PeerRead { id } => self.send(link, Frame::ReadFailed { id }, None),
                _ => self.close_link(CloseReason::PeerMisbehaved),
            }
            return None;
        }
        let task = Task::new(work, range, None, Some(link));
        self.peer_tasks += usize::from(task.is_counted_for_peer());
        let id = self.tasks.insert(task);
        self.ask_lock(id, Mode::Shared);
        Some(id)
    }

    pub(super) fn start_peer_read(&mut self, id: u32) {
        let Some(task) = self.tasks.get(id).copied() else { return };
        if !self.is_current(task.link) || self.without_disk() {
            return self.drop_peer_task(id);
        }
        if matches!(task.work, Work::Serve { .. }) && is_planted(Bug::ResyncReadsStale) {
            self.unlock(id);
        }
        self.set_running(id, true, false, task.link);
        let op = self.new_op(OpKind::Task(id));
        let (offset, len) = (task.offset(), task.len());
        self.act(match task.work {
            Work::Serve { hashed, .. } => Action::DiskInspect { op, offset, len, digests: hashed },
            _ => Action::DiskRead { op, req: None, offset, len },
        });
    }

    pub(super) fn on_peer_read_done(&mut self, id: u32, result: Result<(), DiskError>, slot: Option<SlotId>) {
        let Some(task) = self.tasks.get(id).copied() else { return };
        // What a copy returns that has failed meanwhile counts no more, and the link is about to end.
        let link = task.link.filter(|link| self.is_current(Some(*link)) && !self.without_disk());
        if let (Some(link), Ok(()), Some(slot)) = (link, result, slot) {
            let (offset, len) = (task.offset(), task.len());
            if let Work::PeerRead { id } = task.work {
                self.send(link, Frame::ReadData { id, offset, len }, Some(slot));
            }
        }
        if let Some(slot) = slot {
            self.act(Action::ReleaseSlot { slot });
        }
        // It is queued in the stream: what is written from now on follows it (ordering 12).
        self.drop_peer_task(id);
        if let Err(error) = result {
            self.note_failed(Failed::Read, task.range.start, error);
            if let (Some(link), Work::PeerRead { id }) = (link, task.work) {
                self.send(link, Frame::ReadFailed { id }, None);
            }
        }
    }

    /// The link is gone: what was received and not begun is dropped, what runs will complete in silence.
    pub(super) fn drop_received(&mut self) {
        self.receiver = Receiver::with_capacity(self.cfg.undurable_max);
        let waiting = self.tasks_where(|task| {
            let for_peer = !task.is_client();
            let busy = task.stage == Stage::Fill || task.stage == Stage::Running && task.local_pending;
            for_peer && !busy
        });
        if is_planted(Bug::HandshakeBeforeOldWrites) {
            let running = self.tasks_where(|task| !task.is_client() && task.stage == Stage::Running);
            running.into_iter().for_each(|id| self.unlock(id));
        }
        for id in waiting {
            self.granted.retain(|granted| *granted != id);
            self.stream.forget_task(id);
            self.drop_peer_task(id);
        }
    }
}
