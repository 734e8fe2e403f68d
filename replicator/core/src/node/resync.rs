//! Bringing the target's dirty blocks into line with the source, under application writes: what both sides
//! keep, batches, and the end. What is asked for and applied is in `pieces` (target) and `serve` (source), the
//! exchange of bitmaps before it in `exchange`.
//!
//! The target walks the union of both bitmaps and asks for pieces; the source reads each under its overlap
//! lock and queues the answer in the stream before the lock is free, so that it follows every write that the
//! target has already applied there (ordering 12).
//!
//! Bits are cleared batch by batch, after an fdatasync on both sides that began after the batch's last write,
//! read or hash (ordering 7); until then a piece counts as dirty. While one batch is made durable the next one
//! is fetched. The end: no bits left, the source withdraws its proof durably, the target records itself as
//! UpToDate durably, the source forgets (orderings 10, 11, 18). A block that the source cannot read keeps its
//! bit: if only such are left the resync is incomplete, the target stays Inconsistent, and after a while they
//! are tried again.

use super::Node;
use super::handshake::Phase;
use super::meta::Effect;
use super::pieces::{Next, Piece};
use super::progress::Unreadable;
use super::task::{FlushFor, OpKind, Stage};
use crate::action::{Action, CloseReason, Notice};
use crate::frame::Frame;
use crate::guess::Guess;
use crate::ids::{Instant, LinkId};
use crate::pace::Bucket;
use crate::slab::Slab;
use crate::status::{DiskState, Moved, ReplicationState, Role};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;
use lockstep_bitmap::canary::{Bug, is_planted};
use lockstep_bitmap::marks::{Mark, mark};
use lockstep_bitmap::{Base, BlockRange, ByteRange, PeerCopy};

#[derive(Debug)]
pub(super) struct Resync {
    is_target: bool,
    hash_first: bool,
    pub(super) guess: Guess,
    whole_copy: bool,
    /// Target: what is being fetched.
    pub(super) batch: Batch,
    /// Target: the batch before it, on its way to both disks.
    closing: Option<Closing>,
    /// Target: next block to look at.
    pub(super) cursor: u64,
    /// Target: something was asked for since the cursor began at the first block.
    asked_in_walk: bool,
    /// Target: what clients wait for.
    pub(super) urgent: VecDeque<ByteRange>,
    /// Target: single blocks of pieces that could not be read.
    pub(super) again: VecDeque<ByteRange>,
    /// Target: asked for and not yet written here.
    pub(super) pieces: Slab<Piece>,
    /// Target: equal here, not yet cleared. Source: read for the target. With the batch.
    pub(super) copied: Vec<(u64, BlockRange)>,
    /// Source: where writes failed here that the target may apply after it took its digests.
    doubtful: Vec<BlockRange>,
    /// Source: digests of the target for pieces that are being read, by task.
    pub(super) asked: Vec<(u32, Vec<u8>)>,
    /// Blocks that the source cannot read, as far as this side knows.
    pub(super) unreadable: Unreadable,
    /// Target: only unreadable blocks are left, since then.
    pub(super) incomplete: Option<Instant>,
    /// Source: a checkpoint is under way.
    checkpoint: bool,
    finishing: bool,
    /// A role change waits until nothing is in flight.
    pub(super) paused: bool,
    /// Target: keeps to the limits.
    pub(super) bucket: Bucket,
    /// The peer's operator has paused it.
    pub(super) peer_paused: bool,
    /// The peer's limit in bytes per second.
    pub(super) peer_rate: Option<u64>,
    /// Bytes per second that the peer's operator wants at least.
    pub(super) peer_least: u64,
    pub(super) moved: Moved,
    /// Blocks whose bits were cleared.
    pub(super) done_blocks: u64,
    pub(super) started: Instant,
    /// Blocks done at earlier moments, for rate and ETA.
    pub(super) samples: VecDeque<(Instant, u64)>,
}

/// Pieces whose bits are cleared together.
#[derive(Debug)]
pub(super) struct Batch {
    number: u64,
    pieces: usize,
    bytes: u64,
    began: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Closing {
    batch: u64,
    /// The fdatasync was begun.
    flushing: bool,
}

impl Batch {
    pub(super) fn is_full(&self) -> bool {
        self.pieces >= BATCH_RANGES_MAX || self.bytes >= BATCH_BYTES_MAX
    }

    /// One more piece; gives the batch's number.
    pub(super) fn take(&mut self, bytes: u64, now: Instant) -> u64 {
        if self.pieces == 0 {
            self.began = now;
        }
        self.pieces += 1;
        self.bytes += bytes;
        self.number
    }
}

impl Resync {
    pub(super) fn new(is_target: bool, hash_first: bool, whole_copy: bool, now: Instant) -> Self {
        Resync {
            is_target,
            hash_first,
            guess: Guess::default(),
            whole_copy,
            batch: Batch { number: 1, pieces: 0, bytes: 0, began: now },
            closing: None,
            cursor: 0,
            asked_in_walk: false,
            urgent: VecDeque::new(),
            again: VecDeque::new(),
            pieces: Slab::with_capacity(0),
            copied: Vec::new(),
            doubtful: Vec::new(),
            asked: Vec::new(),
            unreadable: Unreadable::default(),
            incomplete: None,
            checkpoint: false,
            finishing: false,
            paused: false,
            bucket: Bucket::new(now),
            peer_paused: false,
            peer_rate: None,
            peer_least: 0,
            moved: Moved::default(),
            done_blocks: 0,
            started: now,
            samples: VecDeque::new(),
        }
    }

    pub(super) fn is_target(&self) -> bool {
        self.is_target
    }

    /// Whether the target hashes the next piece before it asks for it.
    pub(super) fn compares_next(&mut self) -> bool {
        self.hash_first && self.guess.compares_next()
    }

    /// All bits are set on both sides to begin with.
    pub(super) fn is_whole_copy(&self) -> bool {
        self.whole_copy
    }

    /// No piece is asked for, under way or being written.
    pub(super) fn is_drained(&self) -> bool {
        self.pieces.len() == 0
    }

    /// Nothing is to be asked for now.
    pub(super) fn waits(&self) -> bool {
        self.incomplete.is_some()
    }

    /// Digests that came with the request which this task serves.
    pub(super) fn take_asked(&mut self, task: u32) -> Option<Vec<u8>> {
        let index = self.asked.iter().position(|(of, _)| *of == task)?;
        Some(self.asked.swap_remove(index).1)
    }

    /// A write failed on the copy that stays the only good one: it may stand at the target all the same.
    pub(super) fn doubt(&mut self, blocks: BlockRange) {
        mark(Mark::Doubt);
        if self.doubtful.len() < DOUBTFUL_MAX {
            self.doubtful.push(blocks);
        } else {
            self.hash_first = false;
        }
    }

    /// A write failed here that the target may have.
    pub(super) fn has_doubts(&self) -> bool {
        !self.doubtful.is_empty()
    }

    /// An equal digest of these blocks says that the copies are equal.
    pub(super) fn may_be_equal(&self, blocks: BlockRange) -> bool {
        let overlaps = |doubtful: &BlockRange| doubtful.start < blocks.end && blocks.start < doubtful.end;
        let doubtful = self.doubtful.iter().any(overlaps) && !is_planted(Bug::TrustDoubtfulDigest);
        if doubtful {
            mark(Mark::DoubtDecides);
        }
        self.hash_first && !doubtful
    }

    /// These blocks differ again, as far as we know: a batch that has them must not clear their bits (ordering 7).
    pub(super) fn forget_copied(&mut self, blocks: BlockRange) {
        if is_planted(Bug::ClearDespiteNewWrite) {
            return;
        }
        let before = self.copied.len();
        self.copied.retain(|(_, copied)| copied.end <= blocks.start || blocks.end <= copied.start);
        if self.copied.len() < before {
            mark(Mark::CopiedForgotten);
        }
    }

    /// Nor is a batch being made durable, here or there, or the end agreed on: no bit is about to be cleared.
    pub(super) fn is_quiet(&self) -> bool {
        let closes = self.closing.is_some_and(|closing| closing.flushing);
        let closes = closes && !is_planted(Bug::InvalidateInACheckpoint);
        self.is_drained() && !self.checkpoint && !closes && !self.finishing
    }
}

/// Ranges and bytes of one batch, and how long it may stay open: what is cut off is copied again.
pub(super) const BATCH_RANGES_MAX: usize = 1024;
/// Beyond so many failed writes no digest is trusted any more.
const DOUBTFUL_MAX: usize = 1024;
const BATCH_BYTES_MAX: u64 = 64 << 20;
const BATCH_AGE: Duration = Duration::from_millis(500);

impl Node {
    pub(super) fn resync_is_target(&self) -> bool {
        self.resync.as_ref().is_some_and(|resync| resync.is_target)
    }

    pub(super) fn resync_state(&self) -> ReplicationState {
        match (self.resync.as_ref().map(|resync| resync.is_target), self.resync_held()) {
            (Some(true), false) => ReplicationState::SyncTarget,
            (Some(false), false) => ReplicationState::SyncSource,
            (Some(true), true) => ReplicationState::PausedTarget,
            (Some(false), true) => ReplicationState::PausedSource,
            (None, _) => ReplicationState::Established,
        }
    }

    pub(super) fn dirty_blocks(&self) -> u64 {
        self.store.as_ref().map_or(0, |store| store.slots[0].bits.count())
    }

    pub(super) fn pump_resync(&mut self) -> bool {
        let mut moved = self.pump_exchange();
        let replicating = self.link.as_ref().is_some_and(|link| link.phase == Phase::Replicating);
        let Some(link) = self.mirror_link().filter(|_| replicating) else { return moved };
        let idle = |resync: &Resync| !resync.is_target || resync.finishing;
        if self.resync.as_ref().is_none_or(idle) || self.without_disk() {
            return moved;
        }
        let at_end = loop {
            match self.next_piece() {
                Next::Piece(range) => {
                    moved = true;
                    self.ask_piece(link, range);
                }
                Next::Wait => break false,
                Next::End => break true,
            }
        };
        moved |= self.turn_batch(at_end || self.resync_held());
        moved |= self.flush_batch(link);
        moved | (at_end && self.end_walk(link))
    }

    /// A batch that is full or old enough, or after which nothing comes for now, is closed; the next one begins.
    fn turn_batch(&mut self, nothing_comes: bool) -> bool {
        let now = self.now;
        let Some(resync) = self.resync.as_mut() else { return false };
        let batch = &mut resync.batch;
        let over = batch.is_full() || now.since(batch.began) >= BATCH_AGE || nothing_comes;
        if batch.pieces == 0 || !over || resync.closing.is_some() || resync.paused {
            return false;
        }
        resync.asked_in_walk = true;
        resync.closing = Some(Closing { batch: batch.number, flushing: false });
        *batch = Batch { number: batch.number + 1, pieces: 0, bytes: 0, began: now };
        true
    }

    /// Everything of the batch is written: make it durable here, then there (ordering 7).
    fn flush_batch(&mut self, link: LinkId) -> bool {
        let Some(resync) = self.resync.as_mut() else { return false };
        let Some(Closing { batch, flushing: false }) = resync.closing else { return false };
        if resync.paused || resync.pieces.iter().any(|(_, piece)| piece.batch == batch) {
            return false;
        }
        if resync.copied.iter().any(|(of, _)| *of == batch) {
            resync.closing = Some(Closing { batch, flushing: true });
            if is_planted(Bug::ClearBeforeTheTargetsFlush) {
                self.on_target_batch_flushed(link, batch);
                return true;
            }
            let op = self.new_op(OpKind::Flush(FlushFor::TargetBatch { link, batch }));
            self.act(Action::DiskFlush { op });
        } else {
            // Nothing of it could be read.
            resync.closing = None;
        }
        true
    }

    /// The walk came to the last block: begin another one, finish, or wait for better times.
    fn end_walk(&mut self, link: LinkId) -> bool {
        let (left, now) = (self.dirty_blocks(), self.now);
        let Some(resync) = self.resync.as_mut() else { return false };
        if !resync.is_drained() || resync.closing.is_some() || resync.batch.pieces > 0 || resync.paused {
            return false;
        }
        if left == 0 {
            resync.finishing = true;
            self.send(link, Frame::FinishRequest, None);
        } else if left > resync.unreadable.blocks() && resync.asked_in_walk && !resync.unreadable.is_full() {
            mark(Mark::WalkedAgain);
            // What was dirty behind the cursor comes now.
            (resync.cursor, resync.asked_in_walk) = (0, false);
        } else {
            mark(Mark::ResyncIncomplete);
            resync.incomplete = Some(now);
            self.notice(Notice::ResyncIncomplete);
        }
        true
    }

    /// Asks again for what could not be read.
    pub(super) fn retry_unreadable(&mut self) {
        if let Some(resync) = self.resync.as_mut().filter(|resync| resync.incomplete.is_some()) {
            (resync.incomplete, resync.cursor, resync.asked_in_walk) = (None, 0, false);
            resync.unreadable = Unreadable::default();
        }
    }

    /// When what could not be read is asked for again.
    pub(super) fn retry_due(&self) -> Option<Instant> {
        Some(self.resync.as_ref()?.incomplete? + self.cfg.timing.resync_retry)
    }

    pub(super) fn on_target_batch_flushed(&mut self, link: LinkId, batch: u64) {
        if self.is_current(Some(link)) {
            self.send(link, Frame::Checkpoint { batch }, None);
        }
    }

    pub(super) fn on_checkpoint(&mut self, link: LinkId, batch: u64) {
        if self.resync.as_ref().is_none_or(|resync| resync.is_target || resync.checkpoint) {
            return self.close_link(CloseReason::PeerMisbehaved);
        }
        if let Some(resync) = self.resync.as_mut() {
            resync.checkpoint = true;
        }
        if is_planted(Bug::ClearBeforeTheSourcesFlush) {
            return self.on_source_batch_flushed(link, batch);
        }
        let op = self.new_op(OpKind::Flush(FlushFor::SourceBatch { link, batch }));
        self.act(Action::DiskFlush { op });
    }

    pub(super) fn on_source_batch_flushed(&mut self, link: LinkId, batch: u64) {
        if !self.is_current(Some(link)) {
            return;
        }
        if let Some(resync) = self.resync.as_mut() {
            resync.checkpoint = false;
        }
        self.clear_batch(batch);
        self.send(link, Frame::CheckpointDone { batch }, None);
    }

    pub(super) fn on_checkpoint_done(&mut self, batch: u64) {
        let expected = |closing: Closing| closing.flushing && closing.batch == batch;
        if !self.resync.as_ref().and_then(|resync| resync.closing).is_some_and(expected) {
            return self.close_link(CloseReason::PeerMisbehaved);
        }
        self.clear_batch(batch);
        if let Some(resync) = self.resync.as_mut() {
            resync.closing = None;
        }
    }

    pub(super) fn pause_resync(&mut self, paused: bool) {
        if let Some(resync) = self.resync.as_mut() {
            resync.paused = paused;
        }
    }

    /// Ordering 7: durable on both sides. Application writes that overlap have their regions durably marked.
    fn clear_batch(&mut self, batch: u64) {
        let (Some(resync), Some(store)) = (self.resync.as_mut(), self.store.as_mut()) else { return };
        let mut cleared = 0;
        resync.copied.retain(|(of, blocks)| {
            if *of == batch {
                cleared += store.slots[0].bits.clear(*blocks);
            }
            *of != batch
        });
        resync.done_blocks += cleared;
        self.resynced_bytes_total += cleared * store.geometry().block_bytes();
    }

    /// Ordering 18: a bit left here (a failed write, say) means that the target's count is not the whole truth.
    pub(super) fn on_finish_request(&mut self, link: LinkId) {
        let source = self.resync.as_ref().is_some_and(|resync| !resync.is_target);
        let left = self.dirty_blocks() > 0 && !is_planted(Bug::FinishWithBitsLeft);
        if !source || left || self.peer_copy() == PeerCopy::ToldToFinish {
            mark(Mark::FinishRefused);
            return self.close_link(CloseReason::VerdictMismatch);
        }
        if let Some(peer) = self.peer_mut() {
            peer.copy = PeerCopy::ToldToFinish;
        }
        if is_planted(Bug::FinishBeforeWithdrawal) {
            self.send(link, Frame::Finish, None);
            return self.commit(Effect::Confirmed);
        }
        if is_planted(Bug::ForgetBeforeConfirmed) {
            self.forget_peer_lag();
        }
        self.commit(Effect::Withdrawn(link));
    }

    pub(super) fn on_finish(&mut self, link: LinkId) {
        let finishing = self.resync.as_ref().is_some_and(|resync| resync.is_target && resync.finishing);
        let log = self.link.as_ref().and_then(|l| l.got_snapshot.as_ref()).map(|theirs| theirs.log.clone());
        let (true, Some(log)) = (finishing && self.dirty_blocks() == 0, log) else {
            return self.close_link(CloseReason::PeerMisbehaved);
        };
        if let Some(store) = self.store.as_mut() {
            let sb = &mut store.superblock;
            sb.log = log;
            (sb.inconsistent, sb.unclean_in, sb.outdated) = (None, None, false);
        }
        self.forget_peer_lag();
        if is_planted(Bug::UpToDateBeforeRecorded) {
            self.commit(Effect::Confirmed);
            return self.on_synced(link);
        }
        self.commit(Effect::Synced(link));
    }

    /// Both copies are equal as far as bits tell: the slot begins a new, empty life.
    fn forget_peer_lag(&mut self) {
        if let Some(peer) = self.peer_mut() {
            (peer.copy, peer.base) = (PeerCopy::MayHold, Base::Unset);
        }
        self.marked = false;
        self.refill(false);
    }

    /// Durable (ordering 10): say so. If the link is gone, the copy still is what its record says.
    pub(super) fn on_synced(&mut self, link: LinkId) {
        let current = self.is_current(Some(link));
        if current {
            self.set_disk(DiskState::UpToDate);
            self.with_states(|node| node.resync = None);
            self.send(link, Frame::Finished, None);
            self.notice_generation();
        } else if self.role == Role::Primary {
            mark(Mark::SyncedLatePrimary);
            // It wrote everything here too, and the source never learnt that this copy is complete.
            self.set_disk(DiskState::UpToDate);
            self.rotate();
            for id in self.tasks_where(|task| task.stage == Stage::Suspended) {
                self.hold_back(id);
            }
        } else if self.disk == DiskState::Inconsistent {
            mark(Mark::SyncedLate);
            self.set_disk(DiskState::Consistent);
        }
    }

    /// A suspended write waits for the rotation only; one that was never submitted is submitted now.
    fn hold_back(&mut self, id: u32) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        match task.pos {
            Some(_) => {
                task.stage = Stage::Running;
                self.complete_write(id);
            }
            None => self.take_room(id),
        }
    }

    /// Ordering 11: only now does the source forget that the target was behind.
    pub(super) fn on_finished(&mut self, _link: LinkId) {
        let told = self.peer_copy() == PeerCopy::ToldToFinish || is_planted(Bug::ForgetBeforeConfirmed);
        if !told || self.resync.as_ref().is_none_or(|resync| resync.is_target) {
            return self.close_link(CloseReason::PeerMisbehaved);
        }
        if self.dirty_blocks() > 0 && !is_planted(Bug::FinishWithBitsLeft) {
            mark(Mark::FinishedWithBits);
            // A write failed here meanwhile: the bits stay, and so does the record.
            return self.close_link(CloseReason::VerdictMismatch);
        }
        if let Some(store) = self.store.as_mut() {
            store.superblock.unclean_in = None;
        }
        self.forget_peer_lag();
        if let Some(link) = self.link.as_mut() {
            link.peer_disk = DiskState::UpToDate;
        }
        self.with_states(|node| node.resync = None);
        self.commit(Effect::Confirmed);
    }
}
