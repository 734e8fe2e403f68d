//! Pages of the metadata file and where they are.
//!
//! Every page is 4 KiB with a 64-byte header: magic, version, kind, slot, index, epoch, sequence, file id,
//! CRC32C. Invariants: `decode_page` accepts a page only at the place it was written for; a layout never has
//! overlapping areas.
//!
//! Superblock: two copies, written in parallel, 64 KiB apart. Each copy has two places used in turn
//! (`sequence % 2`): a power cut may tear both parallel writes, and then the previous superblock must still
//! exist, untouched, in both copies. Overwriting in place would leave none. Activity and slot-map pages need
//! no second place: they are bitmaps whose torn page reads as "everything", which is safe. Bits pages have
//! one copy for the same reason.
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use alloc::vec::Vec;

use crate::checkpoint::{CHECKPOINTS_MAX, checkpoint_slot, position_of};
use crate::dirty::PageBits;
use crate::geometry::Geometry;

/// Size of a metadata page.
pub const PAGE_BYTES: usize = 4096;
/// Size of the header of a page.
pub const PAGE_HEADER_BYTES: usize = 64;
/// Bytes of a page after the header.
pub const PAGE_PAYLOAD_BYTES: usize = PAGE_BYTES - PAGE_HEADER_BYTES;
/// Bits of a bitmap that fit in a page.
pub const BITS_PER_PAGE: u64 = PAGE_PAYLOAD_BYTES as u64 * 8;
/// Size of a superblock: two pages.
pub const SUPERBLOCK_BYTES: usize = 2 * PAGE_BYTES;
/// Most peers of a node.
pub const MAX_PEERS: usize = 7;
/// Version of the format written.
pub const FORMAT_VERSION: u16 = 1;

pub(crate) const WORDS_PER_PAGE: usize = PAGE_PAYLOAD_BYTES / 8;
/// Bytes at the start of the file with fixed places: the superblocks, and room around them.
const FIXED_BYTES: u64 = 128 * 1024;
/// Distance of the second superblock copy from the first.
const SUPERBLOCK_COPY_BYTES: u64 = 64 * 1024;
const MAGIC: u32 = u32::from_le_bytes(*b"LkSM");
const CRC_TABLE: crc::Crc<u32, crc::Table<16>> = crc::Crc::<u32, crc::Table<16>>::new(&crc::CRC_32_ISCSI);

/// CRC32C (Castagnoli) of some bytes.
pub fn crc32c(bytes: &[u8]) -> u32 {
    CRC_TABLE.checksum(bytes)
}

/// What a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PageKind {
    /// One of the two pages of a superblock.
    Superblock = 1,
    /// Activity map: one bit per region.
    Activity = 2,
    /// Slot map: one bit per Bits page of the slot.
    SlotMap = 3,
    /// Dirty bits of a slot: one bit per block.
    Bits = 4,
}

/// Header of a page without the checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageHeader {
    /// What the page holds.
    pub kind: PageKind,
    /// Slot it belongs to; 0 for superblock and activity map.
    pub slot: u8,
    /// Position among the pages of its kind and slot.
    pub index: u32,
    /// Epoch of the slot; 0 for superblock and activity map.
    pub epoch: u32,
    /// Superblock: its sequence number. Others: a number that rises with each write, for people.
    pub sequence: u64,
    /// Of the file.
    pub file_id: u64,
}

/// Why a page was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// It does not begin with the magic number.
    #[error("no Lockstep metadata page")]
    Magic,
    /// Its checksum does not match.
    #[error("checksum mismatch")]
    Checksum,
    /// It is intact and of a newer format.
    #[error("format version {0} is newer than this program")]
    NewerVersion(u16),
    /// It is intact, and its header makes no sense.
    #[error("impossible page header")]
    Header,
}

/// A page that the core may ask to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MetaPage {
    /// The superblock.
    Superblock,
    /// A page of the activity map.
    Activity(u32),
    /// A page of a slot's map of written pages.
    SlotMap {
        /// Which slot.
        slot: u8,
        /// Which page of it.
        page: u32,
    },
    /// A page of a slot's dirty bits.
    Bits {
        /// Which slot.
        slot: u8,
        /// Which page of it.
        page: u32,
    },
}

/// Where a page goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Locations {
    /// Byte offsets in the file; only the first `copies` count.
    pub offsets: [u64; 2],
    /// 1 or 2. The page is durable when all copies are.
    pub copies: u8,
    /// Bytes of each copy.
    pub len: u32,
}

/// What an area of the file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum AreaKind {
    /// A copy of the activity map.
    Activity = 1,
    /// A copy of a slot's map of written pages.
    SlotMap = 2,
    /// A slot's dirty bits.
    Bits = 3,
    /// A checkpoint's bits after a copy of its map (copy 0), and the other copy of the map (copy 1).
    NamedBitmap = 4,
    /// Reserved: checksums of blocks.
    BlockChecksums = 5,
}

/// One row of the area table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// What it holds.
    pub kind: AreaKind,
    /// Slot it belongs to; 0 if to none.
    pub slot: u8,
    /// 0 or 1.
    pub copy: u8,
    /// Where it begins in the file.
    pub offset: u64,
    /// Its length in bytes, a multiple of 4096.
    pub len: u64,
}

/// Why an area table was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// An area is missing or listed twice.
    #[error("an area is missing or listed twice")]
    Missing,
    /// An area is too short for its content, overlaps another, or is not aligned.
    #[error("an area is too short, misaligned, or overlaps another")]
    Extent,
    /// An area of a kind this version cannot keep up to date.
    #[error("an area of a kind that this program does not support")]
    Unsupported,
}

/// Where everything is in the metadata file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    areas: Vec<Area>,
    activity_pages: u32,
    map_pages: u32,
    bits_pages: u32,
    checkpoints: u8,
}

impl Layout {
    /// The layout of a new file.
    ///
    /// Panics if there are more than [`MAX_PEERS`] peers.
    pub fn new(geometry: &Geometry, peers: usize) -> Self {
        assert!(peers <= MAX_PEERS, "{peers} peers, more than {MAX_PEERS}");
        let mut layout = Self::empty(geometry);
        let slots = 0..peers as u8;
        for copy in 0..2 {
            layout.append(AreaKind::Activity, 0, copy);
            slots.clone().for_each(|slot| layout.append(AreaKind::SlotMap, slot, copy));
        }
        slots.for_each(|slot| layout.append(AreaKind::Bits, slot, 0));
        layout
    }

    /// The same with room for so many checkpoints.
    ///
    /// Panics if the table of areas has no room for them.
    pub fn with_checkpoints(geometry: &Geometry, peers: usize, checkpoints: u8) -> Self {
        let mut layout = Self::new(geometry, peers);
        assert!(usize::from(checkpoints) <= CHECKPOINTS_MAX, "{checkpoints} checkpoints");
        for slot in (0..checkpoints).map(checkpoint_slot) {
            layout.append(AreaKind::NamedBitmap, slot, 0);
            layout.append(AreaKind::NamedBitmap, slot, 1);
        }
        layout.checkpoints = checkpoints;
        layout
    }

    /// The layout that an area table read from disk describes. Areas may be longer than needed, and in any
    /// order.
    pub fn from_areas(geometry: &Geometry, peers: usize, areas: &[Area]) -> Result<Self, LayoutError> {
        let room = checkpoint_areas(areas);
        if areas.iter().any(|area| area.kind == AreaKind::BlockChecksums) {
            return Err(LayoutError::Unsupported);
        }
        if usize::from(room) > CHECKPOINTS_MAX {
            return Err(LayoutError::Missing);
        }
        let expected = Self::with_checkpoints(geometry, peers.min(MAX_PEERS), room);
        if areas.len() != expected.areas.len() {
            return Err(LayoutError::Missing);
        }
        for wanted in &expected.areas {
            let found = areas.iter().find(|area| area.is_for(wanted.kind, wanted.slot, wanted.copy));
            if found.ok_or(LayoutError::Missing)?.len < wanted.len {
                return Err(LayoutError::Extent);
            }
        }
        let mut by_offset = areas.to_vec();
        by_offset.sort_by_key(|area| area.offset);
        let mut free_from = FIXED_BYTES;
        for area in &by_offset {
            let aligned = area.offset % PAGE_BYTES as u64 == 0 && area.len % PAGE_BYTES as u64 == 0;
            if !aligned || area.offset < free_from {
                return Err(LayoutError::Extent);
            }
            free_from = area.offset.checked_add(area.len).ok_or(LayoutError::Extent)?;
        }
        Ok(Self { areas: areas.to_vec(), ..expected })
    }

    /// The area table, as the superblock keeps it.
    pub fn areas(&self) -> &[Area] {
        &self.areas
    }

    /// Length of the file in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.areas.iter().map(|area| area.offset + area.len).max().unwrap_or(FIXED_BYTES)
    }

    /// Number of pages of the activity map.
    pub fn activity_pages(&self) -> u32 {
        self.activity_pages
    }

    /// Number of map pages of each slot.
    pub fn map_pages(&self) -> u32 {
        self.map_pages
    }

    /// Number of Bits pages of each slot.
    pub fn bits_pages(&self) -> u32 {
        self.bits_pages
    }

    /// Number of checkpoints that there is room for.
    pub fn checkpoints(&self) -> u8 {
        self.checkpoints
    }

    /// Where a page goes. `sequence` is that of the superblock; other pages have one place.
    ///
    /// Panics if there is no such page.
    pub fn locations(&self, page: MetaPage, sequence: u64) -> Locations {
        let page_len = PAGE_BYTES as u32;
        // The bits of a checkpoint follow a copy of its map.
        let mut before = 0;
        let (kind, slot, index, pages) = match page {
            MetaPage::Superblock => {
                let place = superblock_place(0, sequence);
                let offsets = [place, superblock_place(1, sequence)];
                return Locations { offsets, copies: 2, len: SUPERBLOCK_BYTES as u32 };
            }
            MetaPage::Activity(index) => (AreaKind::Activity, 0, index, self.activity_pages),
            MetaPage::SlotMap { slot, page } if position_of(slot).is_some() => {
                (AreaKind::NamedBitmap, slot, page, self.map_pages)
            }
            MetaPage::Bits { slot, page } if position_of(slot).is_some() => {
                before = self.map_pages;
                (AreaKind::NamedBitmap, slot, page, self.bits_pages)
            }
            MetaPage::SlotMap { slot, page } => (AreaKind::SlotMap, slot, page, self.map_pages),
            MetaPage::Bits { slot, page } => (AreaKind::Bits, slot, page, self.bits_pages),
        };
        assert!(index < pages, "page {index} of {pages}");
        let offset_of = |copy| {
            let single = copy == 1 && matches!(page, MetaPage::Bits { .. });
            let area = self.areas.iter().find(|area| !single && area.is_for(kind, slot, copy));
            area.map(|area| area.offset + u64::from(before + index) * u64::from(page_len))
        };
        let first = offset_of(0);
        assert!(first.is_some(), "slot {slot} has no area");
        let first = first.unwrap_or_default();
        match offset_of(1) {
            Some(second) => Locations { offsets: [first, second], copies: 2, len: page_len },
            None => Locations { offsets: [first, first], copies: 1, len: page_len },
        }
    }

    fn empty(geometry: &Geometry) -> Self {
        // The largest volume has 2^44 blocks, which make fewer than 2^32 pages.
        let bits_pages = geometry.blocks().div_ceil(BITS_PER_PAGE);
        Self {
            areas: Vec::new(),
            activity_pages: u64::from(geometry.regions()).div_ceil(BITS_PER_PAGE) as u32,
            map_pages: bits_pages.div_ceil(BITS_PER_PAGE) as u32,
            bits_pages: bits_pages as u32,
            checkpoints: 0,
        }
    }

    fn append(&mut self, kind: AreaKind, slot: u8, copy: u8) {
        let pages = match kind {
            AreaKind::Activity => self.activity_pages,
            AreaKind::SlotMap => self.map_pages,
            AreaKind::Bits => self.bits_pages,
            AreaKind::NamedBitmap if copy == 1 => self.map_pages,
            AreaKind::NamedBitmap => self.map_pages + self.bits_pages,
            AreaKind::BlockChecksums => 0,
        };
        let offset = self.file_bytes();
        self.areas.push(Area { kind, slot, copy, offset, len: u64::from(pages) * PAGE_BYTES as u64 });
    }
}

impl Locations {
    /// The byte offsets to write to, all in parallel.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        self.offsets.into_iter().take(usize::from(self.copies))
    }
}

impl Area {
    fn is_for(&self, kind: AreaKind, slot: u8, copy: u8) -> bool {
        self.kind == kind && self.slot == slot && self.copy == copy
    }
}

/// Number of checkpoints that a table of areas has room for.
pub(crate) fn checkpoint_areas(areas: &[Area]) -> u8 {
    let bits = areas.iter().filter(|area| area.kind == AreaKind::NamedBitmap && area.copy == 0);
    bits.count().min(usize::from(u8::MAX)) as u8
}

/// Offset of a superblock copy (0 or 1) in the place that this sequence number uses.
pub(crate) const fn superblock_place(copy: u64, sequence: u64) -> u64 {
    copy * SUPERBLOCK_COPY_BYTES + (sequence % 2) * SUPERBLOCK_BYTES as u64
}

/// Builds a page. A payload shorter than the page is followed by zeroes.
///
/// Panics if the payload is longer than [`PAGE_PAYLOAD_BYTES`].
pub fn encode_page(header: &PageHeader, payload: &[u8], out: &mut [u8; PAGE_BYTES]) {
    assert!(payload.len() <= PAGE_PAYLOAD_BYTES, "payload of {} bytes", payload.len());
    out.fill(0);
    let fields: [&[u8]; 8] = [
        &MAGIC.to_le_bytes(),
        &FORMAT_VERSION.to_le_bytes(),
        &[header.kind as u8],
        &[header.slot],
        &header.index.to_le_bytes(),
        &header.epoch.to_le_bytes(),
        &header.sequence.to_le_bytes(),
        &header.file_id.to_le_bytes(),
    ];
    let (head, body) = out.split_at_mut(PAGE_HEADER_BYTES);
    for (to, from) in head.iter_mut().zip(fields.into_iter().flatten()) {
        *to = *from;
    }
    for (to, from) in body.iter_mut().zip(payload) {
        *to = *from;
    }
    let checksum = page_checksum(out).to_le_bytes();
    for (to, from) in out.iter_mut().skip(CRC_OFFSET).zip(checksum) {
        *to = from;
    }
}

/// Checks a page and gives its header and payload. What the header should say is for the caller to compare.
pub fn decode_page(page: &[u8; PAGE_BYTES]) -> Result<(PageHeader, &[u8; PAGE_PAYLOAD_BYTES]), PageError> {
    let mut fields = Reader::new(page);
    if fields.u32() != Some(MAGIC) {
        return Err(PageError::Magic);
    }
    let stored = Reader::new(page.get(CRC_OFFSET..).unwrap_or_default()).u32();
    if stored != Some(page_checksum(page)) {
        return Err(PageError::Checksum);
    }
    let version = fields.u16().ok_or(PageError::Header)?;
    if version > FORMAT_VERSION {
        return Err(PageError::NewerVersion(version));
    }
    let header = read_header(&mut fields).ok_or(PageError::Header)?;
    let reserved = page.get(CRC_OFFSET + 4..PAGE_HEADER_BYTES).unwrap_or_default();
    if version != FORMAT_VERSION || reserved.iter().any(|byte| *byte != 0) {
        return Err(PageError::Header);
    }
    let payload = page.last_chunk::<PAGE_PAYLOAD_BYTES>().ok_or(PageError::Header)?;
    Ok((header, payload))
}

/// True if these bytes begin with our magic number.
pub(crate) fn has_magic(bytes: &[u8]) -> bool {
    Reader::new(bytes).u32() == Some(MAGIC)
}

/// Builds a page of bits.
pub(crate) fn encode_bits_page(header: &PageHeader, bits: &PageBits, out: &mut Vec<u8>) {
    let mut page = [0; PAGE_BYTES];
    encode_page(header, &bits.0, &mut page);
    out.extend_from_slice(&page);
}

/// Offset of the checksum in the header; it covers everything but itself.
const CRC_OFFSET: usize = 32;

fn page_checksum(page: &[u8; PAGE_BYTES]) -> u32 {
    let mut digest = CRC_TABLE.digest();
    digest.update(page.get(..CRC_OFFSET).unwrap_or_default());
    digest.update(page.get(CRC_OFFSET + 4..).unwrap_or_default());
    digest.finalize()
}

fn read_header(fields: &mut Reader<'_>) -> Option<PageHeader> {
    let kind = match fields.u8()? {
        1 => PageKind::Superblock,
        2 => PageKind::Activity,
        3 => PageKind::SlotMap,
        4 => PageKind::Bits,
        _ => return None,
    };
    Some(PageHeader {
        kind,
        slot: fields.u8()?,
        index: fields.u32()?,
        epoch: fields.u32()?,
        sequence: fields.u64()?,
        file_id: fields.u64()?,
    })
}

/// Takes little-endian fields off the front of untrusted bytes; `None` when they end.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*taken)
    }

    pub(crate) fn slice(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(taken)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.bytes().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.bytes().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    pub(crate) fn u128(&mut self) -> Option<u128> {
        self.bytes().map(u128::from_le_bytes)
    }
}

#[cfg(test)]
mod tests;
