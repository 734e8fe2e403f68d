//! The metadata of one volume in memory, and the bytes of each page to write.
//!
//! Thin: the core decides what is written when, and waits for what the orderings ask. Invariants: slot `n`
//! belongs to `superblock.peers[n]`; a Bits page counts as on disk only when its bit in the slot map is on
//! disk too.

use alloc::vec;
use alloc::vec::Vec;

use crate::activity::ActivityMap;
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
        let activity = ActivityMap::new(&geometry, max_hot);
        Self { superblock, activity, slots, geometry, layout, page_sequence: 0 }
    }

    /// Memory that the metadata of a volume take at most.
    pub fn memory_bytes(geometry: &Geometry, max_hot: u32, peers: usize) -> u64 {
        let layout = Layout::new(geometry, peers);
        let bits = DirtyBitmap::memory_bytes(geometry.blocks());
        let map = DirtyBitmap::memory_bytes(u64::from(layout.bits_pages()).max(1));
        (bits + map) * peers as u64 + ActivityMap::memory_bytes(geometry, max_hot) + SUPERBLOCK_BYTES as u64
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
                self.slots.iter_mut().for_each(|slot| slot.rendered_epoch = slot.epoch);
                return self.layout.locations(page, self.superblock.sequence);
            }
            MetaPage::Activity(index) => {
                self.activity.page_bits(index, &mut bits);
                (PageKind::Activity, 0, index, 0)
            }
            MetaPage::SlotMap { slot, page } => {
                let state = &mut self.slots[usize::from(slot)];
                state.map.begin_write(page, &mut bits);
                (PageKind::SlotMap, slot, page, state.epoch)
            }
            MetaPage::Bits { slot, page } => {
                let state = &mut self.slots[usize::from(slot)];
                state.bits.begin_write(page, &mut bits);
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
                self.slots.iter_mut().for_each(|slot| slot.durable_epoch = slot.rendered_epoch)
            }
            MetaPage::Activity(index) => self.activity.end_write(index),
            MetaPage::SlotMap { slot, page } => {
                self.slots[usize::from(slot)].map.end_write(page);
            }
            MetaPage::Bits { slot, page } => {
                let state = &mut self.slots[usize::from(slot)];
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
        let state = &self.slots[usize::from(slot)];
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
        let epoch = self.slots[usize::from(slot)].epoch;
        assert!(epoch < u32::MAX, "the slot has no epoch left");
        self.begin_epoch(slot, epoch + 1, filled);
    }

    /// Makes every block of a hot region dirty in every slot, in memory; returns how many were clean, over
    /// all slots.
    pub fn merge_hot(&mut self) -> u64 {
        let mut added = 0;
        for region in self.activity.hot_regions() {
            let blocks = self.geometry.blocks_of_region(region);
            added += self.slots.iter_mut().map(|slot| slot.bits.set(blocks)).sum::<u64>();
        }
        added
    }

    pub(crate) fn begin_epoch(&mut self, slot: u8, epoch: u32, filled: bool) {
        let state = &mut self.slots[usize::from(slot)];
        state.bits.reset(filled);
        state.map.reset(false);
        state.epoch = epoch;
        let record = &mut self.superblock.peers[usize::from(slot)];
        record.slot_epoch = epoch;
        record.slot_filled = filled;
    }

    pub(crate) fn note_page_sequence(&mut self, sequence: u64) {
        self.page_sequence = self.page_sequence.max(sequence);
    }

    pub(crate) fn slot_mut(&mut self, slot: u8) -> &mut Slot {
        &mut self.slots[usize::from(slot)]
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
}

/// The superblock and the layout of a new file.
///
/// Panics if there are more than seven peers.
pub fn create(params: CreateParams) -> (Superblock, Layout) {
    let layout = Layout::new(&params.geometry, params.peers.len());
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
    for (slot, peer) in (0_u8..).zip(&superblock.peers) {
        for page in 0..layout.map_pages() {
            blank(MetaPage::SlotMap { slot, page }, PageKind::SlotMap, slot, page, peer.slot_epoch);
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
