//! Writes in the resource's stream at the Primary: marks, positions, both copies, durability.
//!
//! Orderings kept here: 1 (mark, then submit and send), 3 (a region is released only when its write is durable on
//! each copy or has dirty bits), 4 (nothing is acknowledged while a rotation is pending), 7 (bits are set when a
//! write that is not mirrored is submitted, long before it is forgotten).

use super::Node;
use super::task::{FlushFor, OpKind, Stage, Task, Work, Zero};
use crate::action::{Action, Failed};
use crate::event::DiskError;
use crate::frame::Frame;
use crate::ids::{LinkId, Position};
use crate::refusal::IoError;
use alloc::collections::VecDeque;
use lockstep_bitmap::canary::{Bug, is_planted};
use lockstep_bitmap::marks::{Mark, mark};
use lockstep_bitmap::{Acquire, ByteRange, RegionIndex};

#[derive(Debug, Default)]
pub(super) struct Stream {
    /// Highest position that was replied to.
    pub(super) replied: Position,
    /// The Primary wants everything up to here durable, by itself.
    background: Position,
    flushing: bool,
    /// Last position that the peer was asked to make durable.
    peer_asked: Position,
    /// Pieces that wait for room in the table.
    room: VecDeque<u32>,
    /// Pieces whose region is being marked.
    marking: VecDeque<u32>,
    /// Pieces that found the bound of hot regions reached.
    pub(super) crowded: VecDeque<u32>,
}

impl Stream {
    /// With room for so many in each list, before it takes more memory.
    pub(super) fn with_capacity(pieces: usize) -> Self {
        Stream {
            room: VecDeque::with_capacity(pieces),
            marking: VecDeque::with_capacity(pieces),
            crowded: VecDeque::with_capacity(pieces),
            ..Stream::default()
        }
    }

    /// What waited for the local disk waits no longer.
    pub(super) fn forget_disk(&mut self) {
        self.room.clear();
        self.marking.clear();
        self.crowded.clear();
        self.flushing = false;
    }

    /// A task is gone that may have waited for a mark.
    pub(super) fn forget_task(&mut self, id: u32) {
        self.marking.retain(|waiting| *waiting != id);
        self.crowded.retain(|waiting| *waiting != id);
    }

    pub(super) fn is_crowded(&self) -> bool {
        !self.crowded.is_empty()
    }
}

/// The Primary closes an epoch by itself after so many bytes.
const EPOCH_BYTES: u64 = 64 << 20;

impl Node {
    /// Ordering 1: no piece passes here before its region's mark is durable.
    pub(super) fn take_region(&mut self, id: u32) {
        if self.without_disk() || !self.attached {
            // Nothing to mark: it goes to the other copy, or waits for one.
            return self.take_room(id);
        }
        let (Some(task), Some(store)) = (self.tasks.get_mut(id), self.store.as_mut()) else { return };
        task.stage = Stage::Region;
        let region = store.geometry().region_of_byte(task.range.start);
        match store.activity.acquire(region) {
            Acquire::Pending if is_planted(Bug::SkipActivityMark) => {
                task.region = Some(region);
                self.after_region(id);
            }
            Acquire::Hot => {
                task.region = Some(region);
                self.after_region(id);
            }
            Acquire::Pending => {
                task.region = Some(region);
                self.stream.marking.push_back(id);
            }
            Acquire::Full => {
                self.stream.crowded.push_back(id);
                self.flush_received();
            }
        }
    }

    /// Marks became durable: their pieces go on.
    pub(super) fn on_regions_marked(&mut self) {
        for _ in 0..self.stream.marking.len() {
            let Some(id) = self.stream.marking.pop_front() else { break };
            let region = self.tasks.get(id).and_then(|task| task.region);
            let hot = match (region, &self.store) {
                (Some(region), Some(store)) => store.activity.is_hot(region),
                _ => false,
            };
            if hot {
                self.after_region(id);
            } else {
                self.stream.marking.push_back(id);
            }
        }
    }

    /// Regions were cooled: pieces that found the bound reached try again.
    pub(super) fn retry_crowded(&mut self) {
        for _ in 0..self.stream.crowded.len() {
            let Some(id) = self.stream.crowded.pop_front() else { break };
            self.take_region(id);
        }
    }

    pub(super) fn needs_fill(&self, task: &Task) -> bool {
        let granule = u64::from(self.granule_bytes());
        task.slot.is_some()
            && !self.without_disk()
            && !(task.range.start.is_multiple_of(granule) && task.range.end.is_multiple_of(granule))
    }

    fn after_region(&mut self, id: u32) {
        if !self.fill_edges(id) {
            self.after_fill(id);
        }
    }

    /// Its region is marked, its edges are filled.
    pub(super) fn after_fill(&mut self, id: u32) {
        match self.tasks.get(id).map(|task| task.work) {
            Some(Work::PeerWrite { .. }) => self.write_served(id),
            _ => self.take_room(id),
        }
    }

    pub(super) fn on_filled(&mut self, id: u32, result: Result<(), DiskError>) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        let (range, work, link) = (task.range, task.work, task.link);
        let Err(error) = result else { return self.after_fill(id) };
        task.filled_bytes = 0;
        // What cannot be read cannot be written in part: a write error, but for the bits, since nothing was written.
        let lost = self.without_disk() || self.on_write_error(range, error);
        match (work, link) {
            _ if lost => self.after_fill(id),
            (Work::PeerWrite { pos, .. }, Some(link)) => {
                self.drop_peer_task(id);
                if self.is_current(Some(link)) {
                    self.note_received(pos);
                    self.refuse_served(link, pos, range, error);
                }
            }
            _ => self.finish_client_task(id, Some(error.into())),
        }
    }

    /// Reads the edge blocks that the payload covers partially. False: there are none, or they were read.
    pub(super) fn fill_edges(&mut self, id: u32) -> bool {
        let granule_bytes = self.granule_bytes();
        let Some(task) = self.tasks.get(id).copied() else { return false };
        let lacks = task.filled_bytes < granule_bytes && self.needs_fill(&task) && !self.is_stale(task.range);
        let Some(slot) = task.slot.filter(|_| lacks) else { return false };
        if let Some(task) = self.tasks.get_mut(id) {
            (task.stage, task.filled_bytes) = (Stage::Fill, granule_bytes);
        }
        let op = self.new_op(OpKind::Fill(id));
        let (offset, len) = (task.offset(), task.len());
        self.act(Action::DiskFill { op, slot, offset, len, granule_bytes });
        true
    }

    pub(super) fn take_room(&mut self, id: u32) {
        if self.io_is_lost() {
            return self.finish_client_task(id, Some(IoError::Io));
        }
        if self.undurable.is_full() || !self.stream.room.is_empty() {
            mark(Mark::TableFull);
            if let Some(task) = self.tasks.get_mut(id) {
                task.stage = Stage::Room;
            }
            self.stream.room.push_back(id);
        } else {
            self.submit(id);
        }
    }

    /// Gives the piece its position, sends it, writes it.
    fn submit(&mut self, id: u32) {
        let Some(mut task) = self.tasks.get(id).copied() else { return };
        let Work::Write { zero, fua, .. } = task.work else { return };
        if !self.reaches_up_to_date_copy() {
            mark(Mark::LostBeforeSubmit);
            // Lost while it waited for its mark: it may not be written where nobody UpToDate would have it.
            if let Some(entry) = self.tasks.get_mut(id) {
                entry.stage = Stage::Suspended;
            }
            return;
        }
        if let Some(link) = self.served_link() {
            return self.submit_served(id, task, link);
        }
        // A peer with larger blocks may have come since the edges were looked at.
        if self.fill_edges(id) {
            return;
        }
        if task.filled_bytes < self.granule_bytes() && self.needs_fill(&task) {
            if self.is_complete_on_record() && !is_planted(Bug::WriteElsewhereAtTheEnd) {
                return self.wait_for_own_copy(id);
            }
            return self.submit_elsewhere(id, task);
        }
        let Some(region) = task.region else { return };
        if task.slot.is_some() {
            task.range = self.whole_granules(task.range);
        }
        let link = self.mirror_link();
        if link.is_none() && !is_planted(Bug::WriteAloneWithoutBits) {
            self.set_dirty(task.range);
        }
        // From here the region's use belongs to the entry of the table.
        let (kept, passed) =
            if is_planted(Bug::RetireMarkTooEarly) { (Some(region), None) } else { (None, Some(region)) };
        let pos = self.undurable.push(task.range, passed, id, link.is_some(), self.now);
        (task.region, task.pos, task.stage) = (kept, Some(pos), Stage::Running);
        (task.local_pending, task.peer_pending, task.link) = (true, link.is_some(), link);
        task.began = self.now;
        self.put_task(id, task);
        if let Some(link) = link {
            self.send_write(link, &task, pos);
        }
        self.write_locally(id, &task, zero, fua);
    }

    /// To the local disk: the task's payload, or zeroes where it has none.
    pub(super) fn write_locally(&mut self, id: u32, task: &Task, zero: Option<Zero>, fua: bool) {
        if !(matches!(task.work, Work::PeerWrite { .. }) && is_planted(Bug::SecondarySkipsCheckpoints)) {
            self.note_written(task.range);
        }
        let op = self.new_op(OpKind::Task(id));
        let (offset, len) = (task.offset(), task.len());
        self.act(match task.slot {
            Some(slot) => Action::DiskWrite { op, offset, len, slot, fua },
            None => {
                let punch = zero.is_some_and(|zero| zero.punch);
                Action::DiskZero { op, offset, len, punch, fua }
            }
        });
    }

    pub(super) fn send_write(&mut self, link: LinkId, task: &Task, pos: Position) {
        let Work::Write { zero, fua, .. } = task.work else { return };
        let (offset, len) = (task.offset(), task.len());
        let frame = match zero {
            None => Frame::Write { pos, offset, len, fua },
            Some(zero) => Frame::Zero { pos, offset, len, punch: zero.punch, fua },
        };
        self.send(link, frame, task.slot);
    }

    /// Sends again what the lost link left unconfirmed (ordering 13 was checked), at new positions, in the old order.
    pub(super) fn resend_suspended(&mut self) {
        let mut ids = self.tasks_where(|task| task.stage == Stage::Suspended);
        ids.sort_by_key(|id| self.tasks.get(*id).and_then(|task| task.pos));
        for id in ids {
            match self.tasks.get(id).and_then(|task| task.region) {
                Some(_) => self.take_room(id),
                None => self.take_region(id),
            }
        }
    }

    pub(super) fn whole_granules(&self, range: ByteRange) -> ByteRange {
        let granule = u64::from(self.granule_bytes());
        let size = self.geometry().map_or(0, |geometry| geometry.size_bytes());
        let end = range.end.next_multiple_of(granule).min(size);
        ByteRange { start: range.start - range.start % granule, end }
    }

    /// Bits toward the peer, rounded outward; what was copied of it before counts no longer (ordering 7).
    pub(super) fn set_dirty(&mut self, range: ByteRange) {
        if let Some(store) = self.store.as_mut() {
            let blocks = store.geometry().blocks_touched(range);
            store.slots[0].bits.set(blocks);
            if let Some(resync) = self.resync.as_mut() {
                resync.forget_copied(blocks);
            }
        }
    }

    pub(super) fn on_local_write_done(&mut self, id: u32, result: Result<(), DiskError>) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        task.local_pending = false;
        let (pos, range) = (task.pos, task.range);
        if let Err(error) = result
            && !self.on_write_error(range, error)
            && let Some(task) = self.tasks.get_mut(id)
        {
            task.failed = Some(error.into());
        }
        if let Some(pos) = pos {
            self.undurable.local_done(pos);
        }
        self.complete_write(id);
    }

    pub(super) fn on_written(&mut self, link: LinkId, pos: Position) {
        let Some(id) = self.undurable.task_at(pos) else { return };
        let Some(task) = self.tasks.get_mut(id) else { return };
        if task.pos == Some(pos) && task.link == Some(link) {
            task.peer_pending = false;
            self.complete_write(id);
        }
    }

    /// Done when the local write completed and the peer said written.
    pub(super) fn complete_write(&mut self, id: u32) {
        let Some(task) = self.tasks.get(id) else { return };
        let waits_for_peer = task.peer_pending && !is_planted(Bug::AckBeforePeer);
        if task.stage != Stage::Running || task.local_pending || waits_for_peer {
            return;
        }
        let rotates = self.rotating && !is_planted(Bug::AckDuringRotation);
        if rotates || self.peer_takes_leave() && !is_planted(Bug::AckDuringFarewell) {
            mark(if self.rotating { Mark::HeldByRotation } else { Mark::HeldByFarewell });
            self.hold_reply(id);
            return;
        }
        if task.failed.is_none() && !self.reaches_up_to_date_copy() {
            mark(Mark::HeldOutOfReach);
            // Written on both, but the one that counts is out of reach: only it can say that it still counts.
            if let Some(task) = self.tasks.get_mut(id) {
                task.stage = Stage::Suspended;
            }
            return;
        }
        let Some(task) = self.tasks.get(id) else { return };
        let (pos, failed) = (task.pos, task.failed);
        self.pace.feedback.observe_write(self.now, self.now.0.saturating_sub(task.began.0));
        self.stream.replied = self.stream.replied.max(pos.unwrap_or_default());
        self.finish_client_task(id, failed);
    }

    fn hold_reply(&mut self, id: u32) {
        if let Some(task) = self.tasks.get_mut(id) {
            task.stage = Stage::Held;
        }
    }

    /// A rotation is durable: what was complete is acknowledged (ordering 4).
    pub(super) fn release_held(&mut self) {
        for id in self.tasks_where(|task| task.stage == Stage::Held) {
            if let Some(task) = self.tasks.get_mut(id) {
                task.stage = Stage::Running;
            }
            self.complete_write(id);
        }
    }

    /// Everything up to now has to become durable on both copies, nobody waiting for an answer.
    pub(super) fn flush_stream(&mut self) {
        self.stream.background = self.undurable.last();
    }

    pub(super) fn pump_stream(&mut self) -> bool {
        self.close_epoch();
        let mut moved = false;
        while let Some(entry) = self.undurable.pop_retired() {
            moved = true;
            if let Some(region) = entry.region {
                self.release_region(region);
            }
        }
        while !self.undurable.is_full() {
            let Some(id) = self.stream.room.pop_front() else { break };
            moved = true;
            self.submit(id);
        }
        moved | self.flush_local() | self.flush_peer()
    }

    /// By time, bytes or entries: the Primary closes an epoch by itself, nobody waits.
    fn close_epoch(&mut self) {
        let old = self.undurable.oldest().is_some_and(|at| self.now.since(at) >= self.cfg.timing.epoch);
        let many = self.undurable.len() * 4 >= self.cfg.undurable_max * 3;
        let crowded = !self.stream.crowded.is_empty() || !self.stream.room.is_empty();
        let large = self.undurable.bytes() >= EPOCH_BYTES;
        if (old || many || crowded || large) && self.stream.background <= self.undurable.retired() {
            self.flush_stream();
        }
    }

    /// Positions that somebody wants durable.
    fn wanted(&self) -> impl Iterator<Item = Position> {
        let flushes = self.requests.flushes.iter().map(|(_, upto)| *upto);
        flushes.chain([self.stream.background])
    }

    fn flush_local(&mut self) -> bool {
        let prefix = self.undurable.local_prefix();
        let durable = self.undurable.local_durable();
        let wanted = self.wanted().any(|upto| upto > durable && upto <= prefix);
        if self.stream.flushing || !wanted || self.without_disk() {
            return false;
        }
        self.stream.flushing = true;
        let op = self.new_op(OpKind::Flush(FlushFor::Stream { covers: prefix }));
        self.act(Action::DiskFlush { op });
        true
    }

    fn flush_peer(&mut self) -> bool {
        let Some(link) = self.out_link() else { return false };
        let upto = self.wanted().max().unwrap_or_default();
        let asked = self.stream.peer_asked;
        if asked > self.undurable.peer_durable() || !self.undurable.peer_lacks(upto) {
            return false;
        }
        let upto = upto.min(self.undurable.last());
        self.stream.peer_asked = upto;
        self.send(link, Frame::Flush { upto }, None);
        true
    }

    pub(super) fn on_durable(&mut self, upto: Position) {
        if upto <= self.undurable.last() {
            self.undurable.set_peer_durable(upto);
        }
    }

    pub(super) fn forget_peer_flush(&mut self) {
        self.stream.peer_asked = Position(0);
    }

    pub(super) fn on_flushed(&mut self, purpose: FlushFor, result: Result<(), DiskError>) {
        if let Err(error) = result
            && !is_planted(Bug::IgnoreFlushError)
        {
            mark(Mark::FlushFailed);
            // The kernel may have dropped the dirty pages: the copy is failed for good, never flushed again.
            if !self.without_disk() {
                self.note_failed(Failed::Flush, 0, error);
            }
            return self.lose_disk();
        }
        if self.without_disk() && !is_planted(Bug::TrustLaterFlush) {
            // Two may be under way, and the kernel tells one of them only of what both lost: what ends after the copy
            // has failed says nothing of it any more (ordering 6).
            mark(Mark::FlushAfterFailure);
            return;
        }
        match purpose {
            FlushFor::Stream { covers } => {
                self.stream.flushing = false;
                self.undurable.set_local_durable(covers);
            }
            FlushFor::Received { covers, link, served } => {
                self.on_served_flushed(served);
                self.on_received_flushed(covers, link);
            }
            FlushFor::TargetBatch { link, batch } => self.on_target_batch_flushed(link, batch),
            FlushFor::SourceBatch { link, batch } => self.on_source_batch_flushed(link, batch),
            FlushFor::Settle { served } => {
                self.on_served_flushed(served);
                self.on_settle_flushed();
            }
            FlushFor::Farewell { link } => self.on_farewell_flushed(link),
        }
    }

    pub(super) fn release_region(&mut self, region: RegionIndex) {
        if let Some(store) = self.store.as_mut() {
            store.activity.release(region);
        }
    }
}
