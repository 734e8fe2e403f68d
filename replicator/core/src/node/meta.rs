//! What is made durable, and when: superblock, activity pages, dirty bitmap pages.
//!
//! A change of the superblock is made in memory and written with whatever else changed meanwhile; the effect that
//! relies on it runs from the completion, never before. One superblock write is in flight at a time. Activity marks
//! are written at once, in groups (ordering 1); removals and bitmap pages lazily, and a mark is only removed after the
//! region's bits are durable (ordering 2).

use super::Node;
use super::task::OpKind;
use crate::action::{Action, Failed};
use crate::event::DiskError;
use crate::frame::Frame;
use crate::ids::{Instant, LinkId, OpId};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use lockstep_bitmap::canary::{Bug, is_planted};
use lockstep_bitmap::{CheckpointId, Locations, MetaPage, Store, Superblock};

/// What goes on when the superblock that was changed for it is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// The session number is promised: the verdict may be said.
    Promised(LinkId),
    /// The verdict's demands are met here.
    Committed(LinkId),
    /// A new generation began without the peer.
    Rotated,
    /// This node may serve clients.
    Promoted,
    /// The peer may be Primary.
    Granted(LinkId, u64),
    /// This node is Secondary.
    Demoted,
    /// The proof that the target is behind is withdrawn.
    Withdrawn(LinkId),
    /// The target's copy is complete.
    Synced(LinkId),
    /// The source knows.
    Confirmed,
    /// This copy is Outdated.
    Outdated(LinkId),
    /// The peer's copy is.
    PeerLeft(LinkId),
    /// The copy is clean.
    Settled,
    /// The copy is Inconsistent by an operator's word.
    Invalidated,
    /// The copy that is given up is Outdated.
    Detached,
    /// The operator's checkpoint was begun, or ended.
    CheckpointRecorded,
    /// The Primary's was, here.
    CheckpointTaken(LinkId, CheckpointId),
    /// The checkpoints are those of the peer's list.
    CheckpointsListed(LinkId),
}

/// The files of a disk that the core is done with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OpenDisk {
    /// There are none.
    Not,
    /// The shell is closing them.
    Closing,
}

#[derive(Debug, Default)]
pub(super) struct MetaState {
    /// Version of the superblock in memory, in flight, and durable.
    wanted: u64,
    in_flight: Option<u64>,
    durable: u64,
    effects: VecDeque<(u64, Effect)>,
    /// No page of a slot is written, and no mark goes, before this version is durable: a slot has begun a new epoch, or
    /// a checkpoint has ended that the durable record has.
    slot_ready: u64,
    /// The record whose effects have run, and the one in flight: a copy that fails falls back to the former.
    settled: Option<Superblock>,
    offered: Option<Superblock>,
    /// Bitmap pages in flight.
    pages_in_flight: u32,
    /// A round over all stale pages is under way.
    round: bool,
    /// Where the round is: a slot, and the next page of it.
    round_slot: u8,
    cursor: u32,
    pub(super) round_at: Instant,
    /// Last time a region came into use.
    pub(super) used_at: Instant,
}

/// Bitmap pages written at the same time: one, since a page begins to be written only when its bytes are taken.
const PAGES_IN_FLIGHT_MAX: u32 = 1;

impl MetaState {
    pub(super) fn new(store: Option<&Store>) -> Self {
        MetaState { settled: store.map(|store| store.superblock.clone()), ..MetaState::default() }
    }

    /// The last durable record of which everything that relies on it was done.
    pub(super) fn settled(&self) -> Option<&Superblock> {
        self.settled.as_ref()
    }

    /// A page of a bitmap is being written.
    pub(super) fn writes_bits(&self) -> bool {
        self.pages_in_flight > 0
    }

    pub(super) fn superblock_is_free(&self) -> bool {
        self.in_flight.is_none()
    }

    pub(super) fn superblock_ended(&mut self) {
        self.in_flight = None;
    }
}

impl Node {
    /// Writes the superblock as it is now; `effect` runs when it is durable.
    pub(super) fn commit(&mut self, effect: Effect) {
        self.meta.wanted += 1;
        self.meta.effects.push_back((self.meta.wanted, effect));
    }

    /// Begins a new epoch of the slot: all set or all clear. Durable with the superblock's next write.
    pub(super) fn refill(&mut self, filled: bool) {
        if let Some(store) = self.store.as_mut() {
            store.refill_slot(0, filled);
            self.hold_slot_pages();
        }
    }

    /// The slot has begun a new epoch: its pages, and marks, wait for the superblock that says so. It has to be written
    /// soon: [`Self::commit`] in the same step.
    pub(super) fn hold_slot_pages(&mut self) {
        self.meta.slot_ready = self.meta.wanted + 1;
    }

    /// The bytes of a metadata page, and where its copies go. Call it once for each MetaWrite, when executing it.
    ///
    /// # Panics
    /// If the node is Diskless, or the page was not asked for.
    pub fn render_meta(&mut self, page: MetaPage, out: &mut Vec<u8>) -> Locations {
        match self.store.as_mut() {
            Some(store) => store.render(page, out),
            None => unreachable!("a Diskless node writes no metadata"),
        }
    }

    /// The body of a frame with [`Frame::has_control_body`]. Call it once for each such Send, when executing it.
    pub fn render_body(&mut self, frame: &Frame, out: &mut Vec<u8>) {
        match *frame {
            Frame::Snapshot => self.render_snapshot(out),
            Frame::Bits { first_block } => self.render_bits(first_block, out),
            Frame::HashRequest { .. } => self.render_digests(out),
            Frame::CheckpointCreate { id } => self.render_checkpoint(id, out),
            Frame::CheckpointList { .. } => self.render_checkpoint_list(out),
            Frame::CheckpointBits { index, first_block } => {
                self.render_checkpoint_bits(index, first_block, out);
            }
            _ => {}
        }
    }

    fn write_page(&mut self, page: MetaPage) {
        let op = self.new_op(OpKind::Meta(page));
        self.act(Action::MetaWrite { op, page });
    }

    pub(super) fn pump_meta(&mut self) -> bool {
        if self.store.is_none() {
            return false;
        }
        if self.without_disk() {
            return self.pump_failure();
        }
        self.write_superblock() | self.write_activity() | self.write_bits()
    }

    fn write_superblock(&mut self) -> bool {
        if self.meta.in_flight.is_some() || self.meta.wanted == self.meta.durable {
            return false;
        }
        self.meta.offered = self.store.as_ref().map(|store| store.superblock.clone());
        self.write_superblock_now();
        true
    }

    pub(super) fn write_superblock_now(&mut self) {
        self.meta.in_flight = Some(self.meta.wanted);
        self.write_page(MetaPage::Superblock);
    }

    fn write_activity(&mut self) -> bool {
        self.cool_under_pressure();
        let mut moved = false;
        while let Some(page) = self.store.as_mut().and_then(|store| store.activity.begin_write()) {
            moved = true;
            self.meta.used_at = self.now;
            self.write_page(MetaPage::Activity(page));
        }
        moved
    }

    /// Pieces found the bound of hot regions reached: make room, a group at a time.
    fn cool_under_pressure(&mut self) {
        let Some(store) = self.store.as_ref() else { return };
        if self.stream.crowded.is_empty() || store.activity.candidates() == 0 {
            return;
        }
        let group = (store.activity.max_hot() / 8).max(1);
        if self.cool(group) == 0 {
            // Their bits are not durable yet.
            self.meta.round = true;
        }
    }

    /// Chooses unused regions whose bits are durable for removal (orderings 2 and 3: unused means that every write
    /// in it is durable on each copy, or has its bits).
    pub(super) fn cool(&mut self, limit: u32) -> u32 {
        if self.meta.durable < self.meta.slot_ready {
            return 0;
        }
        self.store.as_mut().map_or(0, |store| store.cool(limit))
    }

    /// Everything in every slot is on disk.
    pub(super) fn bits_are_durable(&self) -> bool {
        self.meta.durable >= self.meta.slot_ready && self.store.as_ref().is_none_or(Store::bits_durable)
    }

    /// Writes all stale pages of every slot.
    pub(super) fn write_stale_bits(&mut self) {
        self.meta.round = true;
        self.meta.round_at = self.now;
    }

    fn write_bits(&mut self) -> bool {
        let mut moved = false;
        while self.meta.round
            && self.meta.pages_in_flight < PAGES_IN_FLIGHT_MAX
            && self.meta.durable >= self.meta.slot_ready
        {
            let Some(page) = self.next_bits_page() else {
                self.meta.round = false;
                break;
            };
            self.meta.pages_in_flight += 1;
            self.write_page(page);
            moved = true;
        }
        moved
    }

    /// The next page of the round. What was dirtied again behind the walk is the next round's.
    fn next_bits_page(&mut self) -> Option<MetaPage> {
        let store = self.store.as_ref()?;
        loop {
            match store.next_stale(self.meta.round_slot, self.meta.cursor) {
                Some(MetaPage::Bits { page, .. }) if page < self.meta.cursor => {}
                Some(MetaPage::Bits { slot, page }) => {
                    self.meta.cursor = page + 1;
                    return Some(MetaPage::Bits { slot, page });
                }
                Some(page) => return Some(page),
                None => {}
            }
            let next = store.slot_numbers().find(|slot| *slot > self.meta.round_slot);
            (self.meta.round_slot, self.meta.cursor) = (next.unwrap_or(0), 0);
            next?;
        }
    }

    pub(super) fn on_meta_done(&mut self, op: OpId, result: Result<(), DiskError>) {
        match self.ops.remove(op) {
            Some(OpKind::Meta(page)) => self.on_page_written(page, result),
            Some(OpKind::FailureRecord) => self.on_failure_recorded(result.is_ok()),
            Some(OpKind::CloseDisk) => self.on_disk_closed(),
            Some(OpKind::Abandoned) => {}
            _ => debug_assert!(false, "unknown metadata operation"),
        }
    }

    pub(super) fn on_page_written(&mut self, page: MetaPage, result: Result<(), DiskError>) {
        if self.without_disk() {
            return self.on_last_meta_done(page, result.is_ok());
        }
        if let Err(error) = result
            && !is_planted(Bug::IgnoreMetadataError)
        {
            // Without its record the copy can promise nothing: as final as a failed fdatasync.
            self.note_failed(Failed::Metadata, 0, error);
            if page == MetaPage::Superblock {
                self.superblock_failed();
            }
            return self.lose_disk();
        }
        if let Some(store) = self.store.as_mut() {
            store.written(page);
        }
        match page {
            MetaPage::Superblock => {
                self.meta.durable = self.meta.in_flight.take().unwrap_or(self.meta.durable);
                self.meta.settled = self.meta.offered.take();
                self.run_effects();
            }
            MetaPage::Activity(_) => {
                // Pieces look for their region's mark themselves.
                while self.store.as_mut().and_then(|store| store.activity.take_hot()).is_some() {}
                self.on_regions_marked();
                self.retry_crowded();
            }
            MetaPage::SlotMap { .. } | MetaPage::Bits { .. } => self.meta.pages_in_flight -= 1,
        }
    }

    /// The disk is lost: nothing that waits for a record will be told that it is durable.
    pub(super) fn forget_effects(&mut self) {
        self.meta.effects.clear();
    }

    fn run_effects(&mut self) {
        while let Some((version, effect)) = self.meta.effects.front().copied() {
            if version > self.meta.durable {
                break;
            }
            self.meta.effects.pop_front();
            match effect {
                Effect::Promised(link) if self.is_current(Some(link)) => self.send_verdict(link),
                Effect::Committed(link) if self.is_current(Some(link)) => self.on_committed(link),
                Effect::Rotated => self.on_rotated(),
                Effect::Promoted => self.on_promoted(),
                Effect::Granted(link, term) if self.is_current(Some(link)) => self.on_granted(link, term),
                Effect::Demoted => self.on_demoted(),
                Effect::Withdrawn(link) if self.is_current(Some(link)) => {
                    self.send(link, Frame::Finish, None);
                }
                Effect::Synced(link) => self.on_synced(link),
                Effect::Outdated(link) => self.on_outdated(link),
                Effect::PeerLeft(link) if self.is_current(Some(link)) => self.on_peer_left(),
                Effect::Settled => self.on_settled(),
                Effect::Invalidated => self.on_invalidated(),
                Effect::Detached => self.on_detached(),
                Effect::CheckpointRecorded => self.on_checkpoint_recorded(),
                Effect::CheckpointTaken(link, id) if self.is_current(Some(link)) => {
                    self.on_checkpoint_taken(link, id);
                }
                Effect::CheckpointsListed(link) if self.is_current(Some(link)) => {
                    self.on_checkpoints_listed(link);
                }
                Effect::Committed(_) => self.on_committed_late(),
                // Meant for a link that is gone; what was recorded stays true.
                Effect::Promised(_)
                | Effect::Granted(..)
                | Effect::Withdrawn(_)
                | Effect::PeerLeft(_)
                | Effect::CheckpointTaken(..)
                | Effect::CheckpointsListed(_)
                | Effect::Confirmed => {}
            }
        }
    }
}
