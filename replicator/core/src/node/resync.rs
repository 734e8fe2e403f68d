//! Copying dirty blocks from the source to the target, under application writes.
//!
//! The target walks the union of both bitmaps and asks for pieces; the source reads each under its overlap lock and
//! queues it in the stream before the lock is free, so that it follows every write that the target has already
//! applied there (ordering 12). A target that is Primary holds its own lock from before the request until its write
//! completed; one that is Secondary takes it when the piece arrives, in stream order (ordering 20).
//!
//! Bits are cleared batch by batch, after an fdatasync on both sides that began after the batch's last write and read
//! (ordering 7); until then a piece counts as dirty. The end: no bits left, the source withdraws its proof durably, the
//! target records itself as UpToDate durably, the source forgets (orderings 10, 11, 18).

use super::Node;
use super::handshake::Phase;
use super::meta::Effect;
use super::task::{FlushFor, OpKind, Stage, Task, Work};
use crate::action::{Action, CloseReason};
use crate::config::PIECE_BYTES_MAX;
use crate::event::DiskError;
use crate::frame::Frame;
use crate::ids::{Instant, LinkId, SlotId};
use crate::overlap::Mode;
use crate::status::{DiskState, ReplicationState, ResyncStatus, Role};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use lockstep_bitmap::{Base, BlockRange, ByteRange, PeerCopy};

#[derive(Debug)]
pub(super) struct Resync {
    is_target: bool,
    /// Target: number of the batch that is being fetched. Source: of the last one confirmed.
    batch: u64,
    /// Target: next block to look at.
    cursor: u64,
    /// Target: asked for and not yet written here.
    outstanding: Vec<ByteRange>,
    writing: usize,
    /// Target: written, not yet cleared. Source: read for the target, with the batch.
    copied: Vec<(u64, BlockRange)>,
    copied_bytes: u64,
    checkpoint: bool,
    finishing: bool,
    /// A role change waits until nothing is in flight.
    pub(super) paused: bool,
    total_blocks: u64,
    started: Instant,
    /// Blocks left at earlier moments, for rate and ETA.
    samples: VecDeque<(Instant, u64)>,
}

impl Resync {
    pub(super) fn new(is_target: bool, now: Instant) -> Self {
        Resync {
            is_target,
            batch: 1,
            cursor: 0,
            outstanding: Vec::new(),
            writing: 0,
            copied: Vec::new(),
            copied_bytes: 0,
            checkpoint: false,
            finishing: false,
            paused: false,
            total_blocks: 0,
            started: now,
            samples: VecDeque::new(),
        }
    }

    /// No piece is asked for, under way or being written.
    pub(super) fn is_drained(&self) -> bool {
        self.outstanding.is_empty() && self.writing == 0
    }

    /// Nor is a batch being made durable, or the end agreed on.
    pub(super) fn is_quiet(&self) -> bool {
        self.is_drained() && !self.checkpoint && !self.finishing
    }
}

/// Ranges and bytes of one batch.
const BATCH_RANGES_MAX: usize = 1024;
const BATCH_BYTES_MAX: u64 = 64 << 20;
/// Bytes of bitmap in one Bits frame.
const BITS_BODY_BYTES: u64 = 32 * 1024;
/// Rate and ETA look back over so many samples, taken by the tick.
const SAMPLES_MAX: usize = 10;

impl Node {
    pub(super) fn resync_is_target(&self) -> bool {
        self.resync.as_ref().is_some_and(|resync| resync.is_target)
    }

    pub(super) fn resync_state(&self) -> ReplicationState {
        match self.resync.as_ref().map(|resync| resync.is_target) {
            Some(true) => ReplicationState::SyncTarget,
            Some(false) => ReplicationState::SyncSource,
            None => ReplicationState::Established,
        }
    }

    fn dirty_blocks(&self) -> u64 {
        self.store.as_ref().map_or(0, |store| store.slots[0].bits.count())
    }

    /// All parts of our bitmap that have bits. Each frame's body is read when it is sent, after this core step, the one
    /// that starts mirroring (ordering 8).
    pub(super) fn send_bits(&mut self, link: LinkId) {
        let mut parts = Vec::new();
        if let Some(store) = &self.store {
            let per_frame = BITS_BODY_BYTES * 8;
            let mut from = 0;
            while let Some(run) = store.slots[0].bits.next_run(from, 1) {
                let first = run.start - run.start % per_frame;
                parts.push(first);
                from = first + per_frame;
            }
        }
        for first_block in parts {
            self.send(link, Frame::Bits { first_block }, None);
        }
        self.send(link, Frame::BitsEnd, None);
    }

    pub(super) fn render_bits(&self, first_block: u64, out: &mut Vec<u8>) {
        let Some(store) = &self.store else { return };
        let blocks = store.geometry().blocks().saturating_sub(first_block).min(BITS_BODY_BYTES * 8);
        let bytes = usize::try_from(blocks.div_ceil(8)).unwrap_or(0);
        let start = out.len();
        out.resize(start + bytes, 0);
        if let Some(body) = out.get_mut(start..) {
            store.slots[0].bits.read_bits(first_block, body);
        }
    }

    pub(super) fn on_bits(&mut self, first_block: u64, body: &[u8]) {
        let exchanging = self.link.as_ref().is_some_and(|link| !link.bits_got);
        let blocks = self.geometry().map_or(0, |geometry| geometry.blocks());
        if !exchanging || self.resync.is_none() || first_block >= blocks {
            return self.close_link(CloseReason::PeerMisbehaved);
        }
        if let Some(store) = self.store.as_mut() {
            store.slots[0].bits.or_bits(first_block, body);
        }
    }

    pub(super) fn on_bits_end(&mut self) {
        let left = self.dirty_blocks();
        let (Some(link), Some(resync)) = (self.link.as_mut(), self.resync.as_mut()) else {
            return self.close_link(CloseReason::PeerMisbehaved);
        };
        link.bits_got = true;
        resync.total_blocks = left;
        self.set_phase(Phase::Replicating);
    }

    pub(super) fn pump_resync(&mut self) -> bool {
        let replicating = self.link.as_ref().is_some_and(|link| link.phase == Phase::Replicating);
        let Some(link) = self.mirror_link().filter(|_| replicating) else { return false };
        let idle = |resync: &Resync| !resync.is_target || resync.checkpoint || resync.finishing;
        if self.resync.as_ref().is_none_or(idle) || self.disk_is_lost() {
            return false;
        }
        let mut moved = false;
        while let Some(piece) = self.next_piece() {
            moved = true;
            self.ask_piece(link, piece);
        }
        moved | self.end_batch(link)
    }

    /// The next dirty run within one piece, if one may be asked for now.
    fn next_piece(&mut self) -> Option<ByteRange> {
        let window = self.cfg.resync_window;
        let store = self.store.as_ref()?;
        let resync = self.resync.as_mut()?;
        let full = resync.copied.len() + resync.outstanding.len() + resync.writing >= BATCH_RANGES_MAX
            || resync.copied_bytes >= BATCH_BYTES_MAX;
        if resync.paused || full || resync.outstanding.len() + resync.writing >= window {
            return None;
        }
        let geometry = store.geometry();
        let per_piece = (PIECE_BYTES_MAX / geometry.block_bytes()).max(1);
        let run = store.slots[0].bits.next_run(resync.cursor, per_piece)?;
        let end = run.end.min((run.start / per_piece + 1) * per_piece);
        resync.cursor = end;
        Some(geometry.bytes_of(BlockRange { start: run.start, end }))
    }

    fn ask_piece(&mut self, link: LinkId, piece: ByteRange) {
        if let Some(resync) = self.resync.as_mut() {
            resync.outstanding.push(piece);
        }
        if self.role == Role::Primary {
            let id = self.tasks.insert(Task::new(Work::Fetch, piece, None, Some(link)));
            self.ask_lock(id, Mode::Exclusive);
        } else {
            self.send_resync_request(link, piece);
        }
    }

    fn send_resync_request(&mut self, link: LinkId, piece: ByteRange) {
        let batch = self.resync.as_ref().map_or(0, |resync| resync.batch);
        let len = u32::try_from(piece.len()).unwrap_or(0);
        self.send(link, Frame::ResyncRequest { batch, offset: piece.start, len }, None);
    }

    /// The lock is held: ask (target is Primary), or write what arrived.
    pub(super) fn start_fetch(&mut self, id: u32) {
        let Some(task) = self.tasks.get(id).copied() else { return };
        let Some(link) = task.link.filter(|link| self.is_current(Some(*link))) else {
            return self.drop_peer_task(id);
        };
        match task.slot {
            None => {
                self.set_running(id, false, true, Some(link));
                self.send_resync_request(link, task.range);
            }
            Some(slot) => {
                self.set_running(id, true, false, Some(link));
                let op = self.new_op(OpKind::Task(id));
                let (offset, len) = (task.offset(), task.len());
                self.act(Action::DiskWrite { op, offset, len, slot, fua: false });
            }
        }
    }

    pub(super) fn on_resync_data(&mut self, link: LinkId, batch: u64, offset: u64, len: u32, slot: SlotId) {
        let range = ByteRange::new(offset, u64::from(len));
        let expected = self.resync.as_mut().filter(|resync| resync.is_target && resync.batch == batch);
        let index = expected.and_then(|r| Some((r.outstanding.iter().position(|o| *o == range)?, r)));
        let Some((index, resync)) = index else {
            self.act(Action::ReleaseSlot { slot });
            return self.close_link(CloseReason::PeerMisbehaved);
        };
        resync.outstanding.swap_remove(index);
        resync.writing += 1;
        let asked = |task: &Task| task.work == Work::Fetch && task.range == range && task.peer_pending;
        match self.tasks_where(asked).first().copied() {
            Some(id) => {
                if let Some(task) = self.tasks.get_mut(id) {
                    task.slot = Some(slot);
                }
                self.start_fetch(id);
            }
            None => {
                let id = self.tasks.insert(Task::new(Work::Fetch, range, Some(slot), Some(link)));
                self.ask_lock(id, Mode::Exclusive);
            }
        }
    }

    pub(super) fn on_fetch_written(&mut self, id: u32, result: Result<(), DiskError>) {
        let Some(task) = self.tasks.get(id).copied() else { return };
        debug_assert!(task.stage == Stage::Running);
        self.drop_peer_task(id);
        if result.is_err() {
            return self.lose_disk();
        }
        if !self.is_current(task.link) {
            return;
        }
        let blocks = self.geometry().map(|geometry| geometry.blocks_covered(task.range));
        if let (Some(blocks), Some(resync)) = (blocks, self.resync.as_mut()) {
            resync.writing -= 1;
            resync.copied.push((resync.batch, blocks));
            resync.copied_bytes += task.range.len();
        }
    }

    /// When nothing more can be asked for and all is written: make the batch durable, begin another pass, or finish.
    fn end_batch(&mut self, link: LinkId) -> bool {
        let left = self.dirty_blocks();
        let Some(resync) = self.resync.as_mut() else { return false };
        if !resync.is_drained() || resync.paused {
            return false;
        }
        if !resync.copied.is_empty() {
            resync.checkpoint = true;
            let op = self.new_op(OpKind::Flush(FlushFor::TargetBatch { link }));
            self.act(Action::DiskFlush { op });
        } else if left > 0 {
            // The walk ended; what was dirty behind the cursor comes now.
            resync.cursor = 0;
        } else {
            resync.finishing = true;
            self.send(link, Frame::FinishRequest, None);
        }
        true
    }

    pub(super) fn on_target_batch_flushed(&mut self, link: LinkId) {
        if let (true, Some(resync)) = (self.is_current(Some(link)), self.resync.as_ref()) {
            let batch = resync.batch;
            self.send(link, Frame::Checkpoint { batch }, None);
        }
    }

    pub(super) fn on_resync_request(&mut self, link: LinkId, batch: u64, offset: u64, len: u32) {
        if self.resync.as_ref().is_none_or(|resync| resync.is_target) {
            return self.close_link(CloseReason::PeerMisbehaved);
        }
        self.on_peer_wants(link, Work::Serve { batch }, offset, len);
    }

    pub(super) fn note_served(&mut self, batch: u64, range: ByteRange) {
        let blocks = self.geometry().map(|geometry| geometry.blocks_covered(range));
        if let (Some(blocks), Some(resync)) = (blocks, self.resync.as_mut()) {
            resync.copied.push((batch, blocks));
        }
        if self.resync.as_ref().is_some_and(|resync| resync.copied.len() > 2 * BATCH_RANGES_MAX) {
            self.close_link(CloseReason::PeerMisbehaved);
        }
    }

    pub(super) fn on_checkpoint(&mut self, link: LinkId, batch: u64) {
        if self.resync.as_ref().is_none_or(|resync| resync.is_target || resync.checkpoint) {
            return self.close_link(CloseReason::PeerMisbehaved);
        }
        if let Some(resync) = self.resync.as_mut() {
            resync.checkpoint = true;
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
        let expected = |resync: &Resync| resync.is_target && resync.checkpoint && resync.batch == batch;
        if !self.resync.as_ref().is_some_and(expected) {
            return self.close_link(CloseReason::PeerMisbehaved);
        }
        self.clear_batch(batch);
        if let Some(resync) = self.resync.as_mut() {
            (resync.checkpoint, resync.batch, resync.copied_bytes) = (false, batch + 1, 0);
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
        self.resynced_bytes_total += cleared * store.geometry().block_bytes();
    }

    /// Ordering 18: a bit left here (a failed write, say) means that the target's count is not the whole truth.
    pub(super) fn on_finish_request(&mut self, link: LinkId) {
        let source = self.resync.as_ref().is_some_and(|resync| !resync.is_target);
        if !source || self.dirty_blocks() > 0 || self.peer_copy() == PeerCopy::ToldToFinish {
            return self.close_link(CloseReason::VerdictMismatch);
        }
        if let Some(peer) = self.peer_mut() {
            peer.copy = PeerCopy::ToldToFinish;
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
        self.commit(Effect::Synced(link));
    }

    /// Both copies are equal as far as bits tell: the slot begins a new, empty life.
    fn forget_peer_lag(&mut self) {
        if let Some(peer) = self.peer_mut() {
            (peer.copy, peer.base) = (PeerCopy::MayHold, Base::Unset);
        }
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
            // It wrote everything here too, and the source never learnt that this copy is complete.
            self.set_disk(DiskState::UpToDate);
            self.rotate();
            for id in self.tasks_where(|task| task.stage == Stage::Suspended) {
                self.hold_back(id);
            }
        } else if self.disk == DiskState::Inconsistent {
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
        let told = self.peer_copy() == PeerCopy::ToldToFinish;
        if !told || self.resync.as_ref().is_none_or(|resync| resync.is_target) {
            return self.close_link(CloseReason::PeerMisbehaved);
        }
        if self.dirty_blocks() > 0 {
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

    /// Called by the tick: remembers how much is left.
    pub(super) fn sample_resync(&mut self) {
        let left = self.dirty_blocks();
        let now = self.now;
        if let Some(resync) = self.resync.as_mut() {
            let due = resync.samples.back().is_none_or(|(at, _)| now.since(*at).as_millis() >= 500);
            if due {
                if resync.samples.len() == SAMPLES_MAX {
                    resync.samples.pop_front();
                }
                resync.samples.push_back((now, left));
            }
        }
    }

    pub(super) fn resync_status(&self) -> Option<ResyncStatus> {
        let resync = self.resync.as_ref()?;
        let block_bytes = self.geometry()?.block_bytes();
        let left = self.dirty_blocks();
        let (since, then) = resync.samples.front().copied().unwrap_or((resync.started, resync.total_blocks));
        let passed_ms = u64::try_from(self.now.since(since).as_millis()).unwrap_or(u64::MAX).max(1);
        let rate = then.saturating_sub(left) * block_bytes * 1000 / passed_ms;
        Some(ResyncStatus {
            total_bytes: resync.total_blocks.max(left) * block_bytes,
            left_bytes: left * block_bytes,
            rate_bytes_per_s: rate,
            eta_s: (left * block_bytes).checked_div(rate),
            running_ms: u64::try_from(self.now.since(resync.started).as_millis()).unwrap_or(u64::MAX),
        })
    }
}
