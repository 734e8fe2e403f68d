//! The metadata of one volume in memory, and the bytes of each page to write.
//!
//! Thin: the core decides what is written when, and waits for what the orderings ask. Invariants: slot `n`
//! belongs to `superblock.peers[n]`, checkpoint slot `n` to `superblock.checkpoints[n]`; a Bits page counts as on
//! disk only when its bit in the slot map is on disk too.

use alloc::vec;
use alloc::vec::Vec;

use crate::activity::ActivityMap;
use crate::canary::{Bug, is_planted};
use crate::checkpoint::{
    Checkpoint, CheckpointId, CheckpointRecord, CheckpointState, Invalid, checkpoint_slot, position_of,
};
use crate::dirty::{DirtyBitmap, PageBits};
use crate::geometry::{BlockRange, Geometry};
use crate::meta::{
    BITS_PER_PAGE, Layout, Locations, MetaPage, PAGE_BYTES, PageHeader, PageKind, SUPERBLOCK_BYTES,
    encode_bits_page,
};
use crate::superblock::{GenerationLog, Identity, PeerRecord, Superblock};

/// The dirty bitmap of one peer, and which of its pages the disk has.
#[derive(Clone, Debug)]
pub struct Slot {
    /// What the peer may miss.
    pub bits: DirtyBitmap,
    /// One bit per Bits page: it was written in this epoch. Persisted like the bits, in two copies.
    pub map: DirtyBitmap,
    /// Life of the slot.
    pub epoch: u32,
    /// Epoch in the superblock write given out last.
    rendered_epoch: u32,
    /// Epoch in the superblock on disk.
    durable_epoch: u32,
    /// One bit per Bits page that was stale when `begin_covering` was called and has not begun to be written since.
    uncovered: DirtyBitmap,
}

impl Slot {
    /// A slot of which no page was written.
    pub(crate) fn new(geometry: &Geometry, layout: &Layout, epoch: u32, filled: bool) -> Self {
        Self {
            bits: DirtyBitmap::new(geometry, filled),
            map: DirtyBitmap::with_bits(u64::from(layout.bits_pages()), false),
            epoch,
            rendered_epoch: epoch,
            durable_epoch: epoch,
            uncovered: DirtyBitmap::with_bits(u64::from(layout.bits_pages()), false),
        }
    }

    /// True if the superblock on disk knows the present epoch: until then no page of it may be written.
    pub fn epoch_durable(&self) -> bool {
        self.epoch == self.durable_epoch
    }

    /// True if the bits of these blocks are on disk: the superblock knows the epoch, and neither a Bits page
    /// nor the map bit that makes it count is stale.
    pub fn range_durable(&self, blocks: BlockRange) -> bool {
        let pages =
            BlockRange { start: blocks.start / BITS_PER_PAGE, end: blocks.end.div_ceil(BITS_PER_PAGE) };
        let on_disk = self.bits.range_durable(blocks) && self.map.range_durable(pages);
        self.epoch_durable() && (blocks.is_empty() || on_disk)
    }

    /// True if everything in memory is on disk.
    pub fn is_durable(&self) -> bool {
        self.epoch_durable() && self.bits.stale_pages() == 0 && self.map.stale_pages() == 0
    }

    /// Remembers which bits are not on disk now, for `is_covered`.
    pub fn begin_covering(&mut self) {
        self.uncovered.reset(false);
        for page in 0..self.bits.pages() {
            if self.bits.is_stale(page) {
                self.uncovered.set(BlockRange::new(u64::from(page), 1));
            }
        }
    }

    /// True if all that was not on disk when `begin_covering` was called is now. Ask while no page is being written.
    pub fn is_covered(&self) -> bool {
        self.epoch_durable() && self.uncovered.is_empty() && self.map.stale_pages() == 0
    }
}

/// All metadata of one volume.
#[derive(Clone, Debug)]
pub struct Store {
    /// What the next superblock write records.
    pub superblock: Superblock,
    /// Hot regions.
    pub activity: ActivityMap,
    /// One per peer record, in the same order.
    pub slots: Vec<Slot>,
    /// One per checkpoint record, in the same order.
    checkpoints: Vec<Slot>,
    geometry: Geometry,
    layout: Layout,
    page_sequence: u64,
}

impl Store {
    /// Everything clean and cold, every slot as its peer record says. `max_hot` as for [`ActivityMap::new`].
    ///
    /// Panics if superblock, geometry and layout do not belong together.
    pub fn new(superblock: Superblock, layout: Layout, max_hot: u32) -> Self {
        let geometry = superblock.geometry();
        assert!(geometry.is_ok(), "the superblock has no valid geometry");
        let Ok(geometry) = geometry else { unreachable!() };
        assert!(superblock.areas == layout.areas(), "superblock and layout differ");
        let slot_of = |peer: &PeerRecord| Slot::new(&geometry, &layout, peer.slot_epoch, peer.slot_filled);
        let slots = superblock.peers.iter().map(slot_of).collect();
        let checkpoint_of =
            |record: &CheckpointRecord| Slot::new(&geometry, &layout, record.slot_epoch, false);
        let checkpoints = superblock.checkpoints.iter().map(checkpoint_of).collect();
        let activity = ActivityMap::new(&geometry, max_hot);
        Self { superblock, activity, slots, checkpoints, geometry, layout, page_sequence: 0 }
    }

    /// Memory that the metadata of a volume take at most, with room for so many checkpoints.
    pub fn memory_bytes(geometry: &Geometry, max_hot: u32, peers: usize, checkpoints: u8) -> u64 {
        let layout = Layout::new(geometry, peers);
        let bits = DirtyBitmap::memory_bytes(geometry.blocks());
        // The slot's map, and what `begin_covering` remembers.
        let maps = 2 * DirtyBitmap::memory_bytes(u64::from(layout.bits_pages()).max(1));
        let slots = peers as u64 + u64::from(checkpoints);
        (bits + maps) * slots + ActivityMap::memory_bytes(geometry, max_hot) + SUPERBLOCK_BYTES as u64
    }

    /// Size of the volume, its blocks and regions.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Where pages go.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Begins the write of a page: appends its bytes to `out` and says where all of them go. Call `written`
    /// when every copy is durable. Activity pages are chosen by `activity.begin_write` first. A superblock
    /// write takes the next sequence number; it must not begin while another is in flight, since it would use
    /// the place of the last durable.
    ///
    /// Panics if there is no such page or it is being written.
    pub fn render(&mut self, page: MetaPage, out: &mut Vec<u8>) -> Locations {
        let mut bits = PageBits::default();
        let (kind, slot, index, epoch) = match page {
            MetaPage::Superblock => {
                self.superblock.sequence += 1;
                self.superblock.encode(out);
                self.every_slot().for_each(|slot| slot.rendered_epoch = slot.epoch);
                return self.layout.locations(page, self.superblock.sequence);
            }
            MetaPage::Activity(index) => {
                self.activity.page_bits(index, &mut bits);
                (PageKind::Activity, 0, index, 0)
            }
            MetaPage::SlotMap { slot, page } => {
                let state = self.slot_mut(slot);
                state.map.begin_write(page, &mut bits);
                (PageKind::SlotMap, slot, page, state.epoch)
            }
            MetaPage::Bits { slot, page } => {
                let state = self.slot_mut(slot);
                state.bits.begin_write(page, &mut bits);
                state.uncovered.clear(BlockRange::new(u64::from(page), 1));
                (PageKind::Bits, slot, page, state.epoch)
            }
        };
        self.page_sequence += 1;
        let (sequence, file_id) = (self.page_sequence, self.superblock.file_id);
        encode_bits_page(&PageHeader { kind, slot, index, epoch, sequence, file_id }, &bits, out);
        self.layout.locations(page, 0)
    }

    /// All copies of the page given by `render` are durable. The first write of a Bits page makes its map
    /// page stale.
    ///
    /// Panics if no write of the page is in flight.
    pub fn written(&mut self, page: MetaPage) {
        match page {
            MetaPage::Superblock => {
                self.every_slot().for_each(|slot| slot.durable_epoch = slot.rendered_epoch)
            }
            MetaPage::Activity(index) => self.activity.end_write(index),
            MetaPage::SlotMap { slot, page } => {
                self.slot_mut(slot).map.end_write(page);
            }
            MetaPage::Bits { slot, page } => {
                let state = self.slot_mut(slot);
                // A page of an older epoch does not count, so the map must not name it.
                if state.bits.end_write(page) {
                    state.map.set(BlockRange::new(u64::from(page), 1));
                }
            }
        }
    }

    /// The next page of this slot that should be written, map pages first, since they make Bits pages count.
    /// `from` is where the search of Bits pages begins, for a walk that wraps. None while the slot's epoch is
    /// not durable.
    pub fn next_stale(&self, slot: u8, from: u32) -> Option<MetaPage> {
        let state = self.slot(slot);
        if !state.epoch_durable() {
            return None;
        }
        if let Some(page) = state.map.next_stale(0) {
            return Some(MetaPage::SlotMap { slot, page });
        }
        let page = state.bits.next_stale(from).or_else(|| state.bits.next_stale(0))?;
        Some(MetaPage::Bits { slot, page })
    }

    /// Sets or clears all bits of a slot by beginning a new epoch of it. Durable when the next superblock
    /// write is; `next_stale` names no page of the slot before that.
    pub fn refill_slot(&mut self, slot: u8, filled: bool) {
        let epoch = self.slot(slot).epoch;
        assert!(epoch < u32::MAX, "the slot has no epoch left");
        self.begin_epoch(slot, epoch + 1, filled);
    }

    /// Makes every block of a hot region dirty in every slot and checkpoint, in memory; returns how many were clean,
    /// over the slots of all peers.
    pub fn merge_hot(&mut self) -> u64 {
        let mut added = 0;
        for region in self.activity.hot_regions() {
            let blocks = self.geometry.blocks_of_region(region);
            added += self.slots.iter_mut().map(|slot| slot.bits.set(blocks)).sum::<u64>();
            for (record, slot) in self.superblock.checkpoints.iter().zip(&mut self.checkpoints) {
                if record.is_live() {
                    slot.bits.set(blocks);
                }
            }
        }
        added
    }

    /// Every slot: of peers, and of checkpoints.
    pub fn slot_numbers(&self) -> impl Iterator<Item = u8> + use<> {
        let checkpoints = 0..self.checkpoints.len() as u8;
        (0..self.slots.len() as u8).chain(checkpoints.map(checkpoint_slot))
    }

    /// One of `slot_numbers`. Panics if there is none.
    pub fn slot(&self, slot: u8) -> &Slot {
        match position_of(slot) {
            Some(position) => &self.checkpoints[position],
            None => &self.slots[usize::from(slot)],
        }
    }

    /// Chooses up to `limit` regions without a use for removal, of those whose bits are on disk in every slot and
    /// checkpoint that counts (ordering 2); returns how many.
    pub fn cool(&mut self, limit: u32) -> u32 {
        let Self { superblock, activity, slots, checkpoints, geometry, .. } = self;
        activity.cool(limit, |region| {
            let blocks = geometry.blocks_of_region(region);
            let records = superblock.checkpoints.iter().zip(checkpoints.iter());
            let mut live = records.filter(|(record, _)| record.is_live()).map(|(_, slot)| slot);
            let bits = slots.iter().all(|slot| slot.range_durable(blocks)) || is_planted(Bug::CoolBeforeBits);
            let named = live.all(|slot| slot.range_durable(blocks)) || is_planted(Bug::CoolBeforeCheckpoints);
            bits && named
        })
    }

    /// True if everything in every slot and checkpoint is on disk.
    pub fn bits_durable(&self) -> bool {
        self.slots.iter().chain(&self.checkpoints).all(Slot::is_durable)
    }

    /// These blocks are about to be written: sets their bits in every checkpoint.
    pub fn note_written(&mut self, blocks: BlockRange) {
        for (record, slot) in self.superblock.checkpoints.iter().zip(&mut self.checkpoints) {
            if record.is_live() {
                slot.bits.set(blocks);
            }
        }
    }

    /// The checkpoints, each with its position.
    pub fn checkpoints(&self) -> impl Iterator<Item = (u8, &Checkpoint)> {
        (0..).zip(&self.superblock.checkpoints).filter_map(|(at, record)| Some((at, record.held.as_ref()?)))
    }

    /// Where a checkpoint is.
    pub fn find_checkpoint(&self, id: CheckpointId) -> Option<u8> {
        self.checkpoints().find(|(_, held)| held.id == id).map(|(position, _)| position)
    }

    /// Takes a checkpoint, with no bit set, in a new epoch of a free place; durable with the next superblock write.
    /// Gives its position, or `None` if there is no room.
    pub fn add_checkpoint(&mut self, checkpoint: Checkpoint) -> Option<u8> {
        let free = self.superblock.checkpoints.iter().position(|record| record.held.is_none())? as u8;
        self.refill_slot(checkpoint_slot(free), false);
        let record = &mut self.superblock.checkpoints[usize::from(free)];
        (record.held, record.covered) = (Some(checkpoint), false);
        Some(free)
    }

    /// Forgets a checkpoint; durable with the next superblock write.
    ///
    /// Panics if there is none at this position.
    pub fn remove_checkpoint(&mut self, position: u8) {
        self.refill_slot(checkpoint_slot(position), false);
        let record = &mut self.superblock.checkpoints[usize::from(position)];
        assert!(record.held.is_some(), "no checkpoint at position {position}");
        (record.held, record.covered) = (None, false);
    }

    /// Says what a checkpoint is worth; durable with the next superblock write. It is not covered afterwards.
    ///
    /// Panics if there is none at this position.
    pub fn set_checkpoint_state(&mut self, position: u8, state: CheckpointState) {
        let record = &mut self.superblock.checkpoints[usize::from(position)];
        assert!(record.held.is_some(), "no checkpoint at position {position}");
        record.covered = false;
        record.held.iter_mut().for_each(|held| held.state = state);
    }

    /// What the superblock says of a checkpoint's slot is older than the slot.
    pub(crate) fn invalidate_slot(&mut self, slot: u8) {
        let Some(position) = position_of(slot) else { return };
        if self.superblock.checkpoints[position].held.is_some() {
            self.set_checkpoint_state(position as u8, CheckpointState::Invalid(Invalid::Metadata));
        }
    }

    /// The bits of the checkpoint at this position, whatever they are worth.
    ///
    /// Panics if there is no room for one there.
    pub fn checkpoint_bits(&self, position: u8) -> &DirtyBitmap {
        &self.checkpoints[usize::from(position)].bits
    }

    fn every_slot(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.slots.iter_mut().chain(&mut self.checkpoints)
    }

    pub(crate) fn begin_epoch(&mut self, slot: u8, epoch: u32, filled: bool) {
        let state = self.slot_mut(slot);
        state.bits.reset(filled);
        state.map.reset(false);
        state.uncovered.reset(false);
        state.epoch = epoch;
        if let Some(position) = position_of(slot) {
            self.superblock.checkpoints[position].slot_epoch = epoch;
            return;
        }
        let record = &mut self.superblock.peers[usize::from(slot)];
        record.slot_epoch = epoch;
        record.slot_filled = filled;
    }

    pub(crate) fn note_page_sequence(&mut self, sequence: u64) {
        self.page_sequence = self.page_sequence.max(sequence);
    }

    /// Marks for a checkpoint, by its position, what differs from the peer. Without copies: a map may have half a GiB.
    pub fn add_difference(&mut self, position: u8) {
        if let Some(peer) = self.slots.first() {
            self.checkpoints[usize::from(position)].bits.or(&peer.bits);
        }
    }

    /// One of `slot_numbers`, to be changed. Panics if there is none.
    pub fn slot_mut(&mut self, slot: u8) -> &mut Slot {
        match position_of(slot) {
            Some(position) => &mut self.checkpoints[position],
            None => &mut self.slots[usize::from(slot)],
        }
    }
}

/// What create-md decides.
#[derive(Clone, Debug)]
pub struct CreateParams {
    /// Random; see [`Superblock::file_id`].
    pub file_id: u64,
    /// Whose metadata this is.
    pub identity: Identity,
    /// Size of the volume, its blocks and regions.
    pub geometry: Geometry,
    /// Empty, or with the one generation of `--source`.
    pub log: GenerationLog,
    /// One per slot, at most 7. `slot_epoch` and `slot_filled` say what the slots hold.
    pub peers: Vec<PeerRecord>,
    /// Room for so many checkpoints, at most 8.
    pub checkpoints: u8,
}

/// The superblock and the layout of a new file.
///
/// Panics if there are more than seven peers or eight checkpoints, or too many of both for the table of areas.
pub fn create(params: CreateParams) -> (Superblock, Layout) {
    let layout = Layout::with_checkpoints(&params.geometry, params.peers.len(), params.checkpoints);
    let empty = CheckpointRecord { slot_epoch: 1, ..CheckpointRecord::default() };
    let superblock = Superblock {
        sequence: 1,
        file_id: params.file_id,
        identity: params.identity,
        size_bytes: params.geometry.size_bytes(),
        block_shift: params.geometry.block_shift(),
        region_shift: params.geometry.region_shift(),
        term: 0,
        log: params.log,
        inconsistent: None,
        outdated: false,
        may_be_written: false,
        boot_id: [0; 16],
        unclean_in: None,
        was_primary: false,
        declared_clean: false,
        peers: params.peers,
        checkpoints: vec![empty; usize::from(params.checkpoints)],
        areas: layout.areas().to_vec(),
    };
    (superblock, layout)
}

/// The pages of a new file, as (offset, bytes). Bits pages are not among them: the maps say that none was
/// written.
///
/// Write them in this order. First come blanks over the superblocks, so that an old file is no longer
/// recognised; make them durable before the rest. Last come the superblocks; everything before must be
/// durable before them. Opening the file with O_DSYNC does both.
pub fn initial_pages(superblock: &Superblock, layout: &Layout) -> impl Iterator<Item = (u64, Vec<u8>)> {
    let places = |sequence| layout.locations(MetaPage::Superblock, sequence).iter().collect::<Vec<u64>>();
    let mut pages = Vec::new();
    for offset in places(0).into_iter().chain(places(1)) {
        pages.push((offset, vec![0; crate::meta::SUPERBLOCK_BYTES]));
    }
    let file_id = superblock.file_id;
    let mut blank = |page: MetaPage, kind, slot, index, epoch| {
        let mut bytes = Vec::with_capacity(PAGE_BYTES);
        let header = PageHeader { kind, slot, index, epoch, sequence: 0, file_id };
        encode_bits_page(&header, &PageBits::default(), &mut bytes);
        pages.extend(layout.locations(page, 0).iter().map(|offset| (offset, bytes.clone())));
    };
    for index in 0..layout.activity_pages() {
        blank(MetaPage::Activity(index), PageKind::Activity, 0, index, 0);
    }
    let peers = (0..).zip(superblock.peers.iter().map(|peer| peer.slot_epoch));
    let records = superblock.checkpoints.iter().map(|record| record.slot_epoch);
    let checkpoints = (0..).zip(records).map(|(position, epoch)| (checkpoint_slot(position), epoch));
    for (slot, epoch) in peers.chain(checkpoints) {
        for page in 0..layout.map_pages() {
            blank(MetaPage::SlotMap { slot, page }, PageKind::SlotMap, slot, page, epoch);
        }
    }
    // Both places: the other holds the same state one write earlier.
    for sequence in [superblock.sequence.saturating_sub(1), superblock.sequence] {
        let mut bytes = Vec::new();
        Superblock { sequence, ..superblock.clone() }.encode(&mut bytes);
        pages.extend(places(sequence).into_iter().map(|offset| (offset, bytes.clone())));
    }
    pages.into_iter()
}
