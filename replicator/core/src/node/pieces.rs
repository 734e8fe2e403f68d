//! The target of a resync: asks for pieces and applies the answers.
//!
//! If the verdict says hash-first, a piece is first read and hashed here, and its digests go with the request.
//! A target that is Primary holds the piece's lock from before its own reading until the last part is written;
//! one that is Secondary holds it while it reads, and takes it again for each part when that arrives, in
//! stream order (orderings 12, 20). A piece counts as copied when all of it was answered and written; its bits
//! go with its batch (`resync`).

use super::Node;
use super::task::{OpKind, Stage, Task, Work, Zero};
use crate::action::{Action, CloseReason, Failed};
use crate::config::PIECE_BYTES_MAX;
use crate::event::DiskError;
use crate::frame::Frame;
use crate::ids::{LinkId, SlotId};
use crate::overlap::Mode;
use crate::status::Role;
use alloc::vec::Vec;
use lockstep_bitmap::canary::{Bug, is_planted};
use lockstep_bitmap::{BlockRange, ByteRange};

/// A piece that is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    range: ByteRange,
    pub(super) batch: u64,
    /// The request was sent.
    asked: bool,
    /// Answered up to here.
    answered: u64,
    /// Parts that are not yet written.
    writing: u32,
    failed: bool,
    /// Compared before it is asked for, and what was found equal.
    compared: bool,
    equal_bytes: u64,
    /// The task that holds the lock of the whole piece.
    lock: Option<u32>,
}

/// The source's word on a part of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Data(SlotId),
    Zero,
    Same,
    Failed,
}

/// What the walk over the dirty blocks finds next.
pub(super) enum Next {
    Piece(ByteRange),
    /// Something must happen first.
    Wait,
    /// Nothing is left to ask for.
    End,
}

impl Node {
    /// A client's piece waits for a block that is stale here: that block is asked for next, whatever the limits. True
    /// if the source cannot read it, so that the wait would have no end.
    pub(super) fn waits_in_vain(&mut self, task: &Task) -> bool {
        let (Some(store), Some(resync)) = (self.store.as_ref(), self.resync.as_mut()) else { return false };
        let geometry = store.geometry();
        let blocks = geometry.blocks_touched(task.range);
        if !resync.is_target() || !store.slots[0].bits.any(blocks) {
            return false;
        }
        if resync.unreadable.first_in(blocks).is_some() {
            return true;
        }
        let range = geometry.bytes_of(blocks);
        let asked = resync.pieces.iter().any(|(_, piece)| piece.range.overlaps(range));
        let copied = resync.copied.iter().any(|(_, done)| done.start < blocks.end && blocks.start < done.end);
        if !asked && !copied && !resync.urgent.contains(&range) {
            resync.urgent.push_back(range);
        }
        false
    }

    /// The next dirty run within one piece, if one may be asked for now.
    pub(super) fn next_piece(&mut self) -> Next {
        let (window, now) = (self.cfg.resync_window, self.now);
        if let Some(resync) =
            self.resync.as_mut().filter(|resync| !resync.paused && resync.pieces.len() < window)
            && let Some(range) = resync.urgent.pop_front()
        {
            return Next::Piece(range);
        }
        if self.resync_held() {
            return if self.dirty_blocks() == 0 { Next::End } else { Next::Wait };
        }
        let limit = self.resync_limit();
        let (Some(store), Some(resync)) = (self.store.as_ref(), self.resync.as_mut()) else {
            return Next::Wait;
        };
        if resync.paused || resync.pieces.len() >= window || resync.batch.is_full() || resync.waits() {
            return Next::Wait;
        }
        if !resync.bucket.allows(now, limit) {
            return Next::Wait;
        }
        if resync.unreadable.is_full() {
            // Hopeless for now: what is under way ends, then it waits for better times.
            resync.again.clear();
            return Next::End;
        }
        if let Some(range) = resync.again.pop_front() {
            return Next::Piece(range);
        }
        let geometry = store.geometry();
        let per_piece = (PIECE_BYTES_MAX / geometry.block_bytes()).max(1);
        while let Some(run) = store.slots[0].bits.next_run(resync.cursor, per_piece) {
            let mut end = run.end.min((run.start / per_piece + 1) * per_piece);
            match resync.unreadable.first_in(BlockRange { start: run.start, end }) {
                Some(gap) if gap.start <= run.start => {
                    resync.cursor = gap.end;
                    continue;
                }
                Some(gap) => end = gap.start,
                None => {}
            }
            resync.cursor = end;
            return Next::Piece(geometry.bytes_of(BlockRange { start: run.start, end }));
        }
        Next::End
    }

    pub(super) fn ask_piece(&mut self, link: LinkId, range: ByteRange) {
        let now = self.now;
        let holds = self.role == Role::Primary && !is_planted(Bug::TargetPrimaryWithoutLock);
        let Some(resync) = self.resync.as_mut() else { return };
        resync.bucket.take(range.len());
        let batch = resync.batch.take(range.len(), now);
        let compared = resync.compares_next();
        let piece = resync.pieces.insert(Piece {
            range,
            batch,
            asked: false,
            answered: range.start,
            writing: 0,
            failed: false,
            compared,
            equal_bytes: 0,
            lock: None,
        });
        if !holds && !compared {
            return self.request_piece(link, piece, None);
        }
        let id = self.tasks.insert(Task::new(Work::Piece { piece, parts: 0 }, range, None, Some(link)));
        if let Some(entry) = self.resync.as_mut().and_then(|resync| resync.pieces.get_mut(piece)) {
            entry.lock = Some(id);
        }
        self.ask_lock(id, if holds { Mode::Exclusive } else { Mode::Shared });
    }

    /// The lock is held: hash the piece here, or ask for it.
    pub(super) fn start_piece(&mut self, id: u32) {
        let Some(task) = self.tasks.get(id).copied() else { return };
        let (Some(link), Work::Piece { piece, .. }) =
            (task.link.filter(|link| self.is_current(Some(*link))), task.work)
        else {
            return self.drop_peer_task(id);
        };
        let entry = self.resync.as_ref().and_then(|resync| resync.pieces.get(piece));
        if entry.is_some_and(|entry| entry.compared) {
            self.set_running(id, true, false, Some(link));
            let op = self.new_op(OpKind::Task(id));
            return self.act(Action::DiskInspect {
                op,
                offset: task.offset(),
                len: task.len(),
                digests: true,
            });
        }
        self.set_running(id, false, true, Some(link));
        self.request_piece(link, piece, None);
    }

    pub(super) fn on_piece_hashed(
        &mut self,
        id: u32,
        result: Result<(), DiskError>,
        slot: Option<SlotId>,
        digests: &[u8],
    ) {
        if let Some(slot) = slot {
            self.act(Action::ReleaseSlot { slot });
        }
        let Some(task) = self.tasks.get(id).copied() else { return };
        let (Some(link), Work::Piece { piece, .. }) =
            (task.link.filter(|link| self.is_current(Some(*link))), task.work)
        else {
            return self.drop_peer_task(id);
        };
        self.set_running(id, false, true, Some(link));
        if self.role == Role::Secondary {
            // What is written here from now on is written at the source too, before it reads the piece.
            if let Some(entry) = self.resync.as_mut().and_then(|resync| resync.pieces.get_mut(piece)) {
                entry.lock = None;
            }
            self.drop_peer_task(id);
        }
        // What cannot be read here is written anew.
        self.request_piece(link, piece, Some(digests).filter(|_| result.is_ok()));
    }

    fn request_piece(&mut self, link: LinkId, piece: u32, digests: Option<&[u8]>) {
        let Some(entry) = self.resync.as_mut().and_then(|resync| resync.pieces.get_mut(piece)) else {
            return;
        };
        entry.asked = true;
        let (batch, offset) = (entry.batch, entry.range.start);
        let len = u32::try_from(entry.range.len()).unwrap_or(0);
        match digests {
            Some(digests) => {
                self.digests.push_back(digests.to_vec());
                self.send(link, Frame::HashRequest { batch, offset, len }, None);
            }
            None => self.send(link, Frame::ResyncRequest { batch, offset, len }, None),
        }
    }

    pub(super) fn render_digests(&mut self, out: &mut Vec<u8>) {
        out.extend(self.digests.pop_front().unwrap_or_default());
    }

    /// A part of a piece was answered: parts come in order, without gaps.
    pub(super) fn on_answer(&mut self, link: LinkId, batch: u64, part: ByteRange, answer: Answer) {
        let fits = |piece: &Piece| {
            let whole = answer != Answer::Failed || part == piece.range;
            piece.asked
                && piece.batch == batch
                && piece.answered == part.start
                && part.end <= piece.range.end
                && whole
        };
        let found = self.resync.as_ref().and_then(|resync| {
            resync.pieces.iter().find(|(_, piece)| resync.is_target() && fits(piece)).map(|(index, _)| index)
        });
        let (Some(index), Some(resync)) = (found, self.resync.as_mut()) else {
            if let Answer::Data(slot) = answer {
                self.act(Action::ReleaseSlot { slot });
            }
            return self.close_link(CloseReason::PeerMisbehaved);
        };
        let Some(piece) = resync.pieces.get_mut(index) else { return };
        piece.answered = part.end;
        let lock = piece.lock;
        match answer {
            Answer::Data(slot) => {
                piece.writing += 1;
                resync.moved.copied_bytes += part.len();
                self.write_part(link, (index, lock), part, Some(slot));
            }
            Answer::Zero => {
                piece.writing += 1;
                resync.moved.zero_bytes += part.len();
                self.write_part(link, (index, lock), part, None);
            }
            Answer::Same => {
                piece.equal_bytes += part.len();
                resync.moved.equal_bytes += part.len();
                if !is_planted(Bug::EqualSkipsCheckpoints) {
                    self.note_written(part);
                }
                self.end_piece(index);
            }
            Answer::Failed => {
                piece.failed = true;
                self.note_unreadable(part);
                self.end_piece(index);
            }
        }
    }

    fn write_part(
        &mut self,
        link: LinkId,
        (piece, under): (u32, Option<u32>),
        part: ByteRange,
        slot: Option<SlotId>,
    ) {
        let work = Work::Part { piece, under, zero: slot.is_none() };
        let id = self.tasks.insert(Task::new(work, part, slot, Some(link)));
        let Some(holder) = under.and_then(|holder| self.tasks.get_mut(holder)) else {
            return self.ask_lock(id, Mode::Exclusive);
        };
        // The holder stays, and with it the lock, until its parts are written, even if the link is lost.
        holder.local_pending = true;
        if let Work::Piece { parts, .. } = &mut holder.work {
            *parts += 1;
        }
        self.start_part(id);
    }

    pub(super) fn start_part(&mut self, id: u32) {
        let Some(task) = self.tasks.get(id).copied() else { return };
        if !self.is_current(task.link) || self.without_disk() {
            self.drop_peer_task(id);
            if let Work::Part { under, .. } = task.work {
                self.release_holder(under);
            }
            return;
        }
        self.set_running(id, true, false, task.link);
        self.write_locally(id, &task, Some(Zero { punch: true }), false);
    }

    pub(super) fn on_part_written(&mut self, id: u32, result: Result<(), DiskError>) {
        let Some(task) = self.tasks.get(id).copied() else { return };
        debug_assert!(task.stage == Stage::Running);
        self.drop_peer_task(id);
        let Work::Part { piece, under, .. } = task.work else { return };
        self.release_holder(under);
        if let Err(error) = result {
            // The copy that is being made: there is a better one.
            if !self.without_disk() {
                self.note_failed(Failed::Write, task.range.start, error);
                self.lose_disk();
            }
            return;
        }
        if !self.is_current(task.link) {
            return;
        }
        if let Some(entry) = self.resync.as_mut().and_then(|resync| resync.pieces.get_mut(piece)) {
            entry.writing -= 1;
        }
        self.end_piece(piece);
    }

    /// A part is written: the lock of a piece whose link is gone is free after its last one.
    fn release_holder(&mut self, under: Option<u32>) {
        let Some((id, holder)) = under.and_then(|id| Some((id, self.tasks.get_mut(id)?))) else { return };
        let Work::Piece { parts, .. } = &mut holder.work else { return };
        *parts -= 1;
        if *parts == 0 {
            holder.local_pending = false;
            let link = holder.link;
            if !self.is_current(link) {
                self.drop_peer_task(id);
            }
        }
    }

    /// Everything was answered and written: the lock is free, the piece waits for its batch.
    fn end_piece(&mut self, index: u32) {
        let geometry = self.geometry().copied();
        let (Some(resync), Some(geometry)) = (self.resync.as_mut(), geometry) else { return };
        let Some(piece) = resync.pieces.get(index).copied() else { return };
        if piece.answered < piece.range.end || piece.writing > 0 {
            return;
        }
        resync.pieces.remove(index);
        if piece.compared {
            resync.guess.compared(piece.equal_bytes, piece.range.len());
        }
        if !piece.failed {
            let blocks = geometry.blocks_covered(piece.range);
            resync.copied.push((piece.batch, blocks));
            resync.unreadable.remove(blocks);
        }
        if let Some(lock) = piece.lock {
            self.drop_peer_task(lock);
        }
    }

    /// The source could not read it: ask for its blocks one by one, and remember a single one.
    fn note_unreadable(&mut self, range: ByteRange) {
        let geometry = self.geometry().copied();
        let (Some(resync), Some(geometry)) = (self.resync.as_mut(), geometry) else { return };
        let blocks = geometry.blocks_touched(range);
        if blocks.len() == 1 {
            resync.unreadable.insert(blocks);
            return;
        }
        for block in blocks.start..blocks.end {
            resync.again.push_back(geometry.bytes_of(BlockRange { start: block, end: block + 1 }));
        }
    }
}
