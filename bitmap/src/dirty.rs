//! The dirty bitmap of one slot: one bit per block that a peer may miss.
//!
//! Two levels: the words, and one summary bit per page of 4 KiB metadata, so that a search skips clean pages.
//! The same pages are the unit of persistence. A page is *stale* from the change of one of its bits until a
//! write that began after the change is durable.
//!
//! Invariants: bits past the end are zero; the summary, the per-page counts and the total agree with the
//! words; a page that is not stale has on disk what it has here.

use alloc::vec;
use alloc::vec::Vec;

use bitvec::order::Lsb0;
use bitvec::vec::BitVec;

use crate::geometry::{BlockIndex, BlockRange, Geometry};
use crate::meta::{BITS_PER_PAGE, PAGE_PAYLOAD_BYTES};

const WORD_BITS: u64 = 64;
const WORD_BYTES: usize = 8;

/// The bits of one metadata page: bit `n` is bit `n % 8` of byte `n / 8`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageBits(pub [u8; PAGE_PAYLOAD_BYTES]);

impl Default for PageBits {
    fn default() -> Self {
        Self([0; PAGE_PAYLOAD_BYTES])
    }
}

impl PageBits {
    /// Bit `index` of the page; false past its end.
    pub fn get(&self, index: u64) -> bool {
        self.0.get((index / 8) as usize).is_some_and(|byte| byte & (1 << (index % 8)) != 0)
    }
}

/// State of one metadata page of the bitmap.
#[derive(Clone, Copy, Debug, Default)]
struct PageState {
    dirty_bits: u32,
    /// A write of this page is in flight.
    writing: bool,
    /// The page changed after that write began.
    changed: bool,
    /// The whole bitmap was replaced after that write began: what reaches the disk belongs to an older life.
    overtaken: bool,
}

/// One bit per block, with tracking of what is on disk.
#[derive(Clone, Debug)]
pub struct DirtyBitmap {
    words: BitVec<u64, Lsb0>,
    pages: Vec<PageState>,
    /// One bit per page: it has a dirty bit.
    summary: BitVec<u64, Lsb0>,
    /// One bit per page: the disk does not have its present content for sure.
    stale: BitVec<u64, Lsb0>,
    stale_pages: u32,
    dirty_blocks: u64,
}

impl DirtyBitmap {
    /// A bitmap for all blocks of the volume, all dirty or all clean, with no stale page: the caller records
    /// the value elsewhere. A clean one does not touch its memory.
    pub fn new(geometry: &Geometry, filled: bool) -> Self {
        Self::with_bits(geometry.blocks(), filled)
    }

    /// The same for any number of bits.
    pub(crate) fn with_bits(bits: u64, filled: bool) -> Self {
        assert!(bits > 0, "a bitmap has at least one bit");
        let page_count = bits.div_ceil(BITS_PER_PAGE) as usize;
        // `vec![0; n]` asks for zeroed memory, which the system provides lazily; `BitVec::repeat` would touch
        // it.
        let mut words = BitVec::from_vec(vec![0_u64; bits.div_ceil(WORD_BITS) as usize]);
        words.truncate(bits as usize);
        let mut bitmap = Self {
            words,
            pages: vec![PageState::default(); page_count],
            summary: BitVec::repeat(false, page_count),
            stale: BitVec::repeat(false, page_count),
            stale_pages: 0,
            dirty_blocks: 0,
        };
        if filled {
            bitmap.reset(true);
        }
        bitmap
    }

    /// Memory that a bitmap of so many bits takes.
    pub(crate) fn memory_bytes(bits: u64) -> u64 {
        let pages = bits.div_ceil(BITS_PER_PAGE);
        let per_page = size_of::<PageState>() as u64;
        let summary_and_stale = 2 * pages.div_ceil(WORD_BITS) * WORD_BYTES as u64;
        bits.div_ceil(WORD_BITS) * WORD_BYTES as u64 + pages * per_page + summary_and_stale
    }

    /// Number of blocks.
    pub fn blocks(&self) -> u64 {
        self.words.len() as u64
    }

    /// Number of metadata pages.
    pub fn pages(&self) -> u32 {
        self.pages.len() as u32
    }

    /// Marks blocks dirty; returns how many were clean.
    ///
    /// Panics if the range reaches past the end.
    pub fn set(&mut self, range: BlockRange) -> u64 {
        self.change(range, true)
    }

    /// Marks blocks clean; returns how many were dirty.
    ///
    /// Panics if the range reaches past the end.
    pub fn clear(&mut self, range: BlockRange) -> u64 {
        self.change(range, false)
    }

    /// True if the block is dirty. Panics past the end.
    pub fn is_dirty(&self, block: BlockIndex) -> bool {
        self.words[block.0 as usize]
    }

    /// True if a block of the range is dirty. Panics past the end.
    pub fn any(&self, range: BlockRange) -> bool {
        if self.dirty_blocks == 0 || range.is_empty() {
            return false;
        }
        self.words[bounds(range)].any()
    }

    /// True if all blocks of the range are dirty (an empty range is). Panics past the end.
    pub fn all(&self, range: BlockRange) -> bool {
        range.is_empty() || self.dirty_blocks == self.blocks() || self.words[bounds(range)].all()
    }

    /// The first run of dirty blocks at or after `from`, cut to `max_blocks`. Does not wrap.
    pub fn next_run(&self, from: u64, max_blocks: u64) -> Option<BlockRange> {
        let start = self.next_dirty(from)?;
        let end = start.saturating_add(max_blocks).min(self.blocks());
        let found = BlockRange { start, end };
        if found.is_empty() {
            return None;
        }
        let run_blocks = self.words[bounds(found)].first_zero().map_or(found.len(), |clean| clean as u64);
        Some(BlockRange::new(start, run_blocks))
    }

    /// The runs of dirty blocks in `range`, ascending, cut to it.
    pub fn runs(&self, range: BlockRange) -> impl Iterator<Item = BlockRange> + '_ {
        let mut from = range.start;
        core::iter::from_fn(move || {
            let left = range.end.checked_sub(from).filter(|left| *left > 0)?;
            let run = self.next_run(from, left)?.intersect(range);
            from = run.end;
            (!run.is_empty()).then_some(run)
        })
    }

    /// Number of dirty blocks.
    pub fn count(&self) -> u64 {
        self.dirty_blocks
    }

    /// True if no block is dirty.
    pub fn is_empty(&self) -> bool {
        self.dirty_blocks == 0
    }

    /// Marks every block dirty; pages that change become stale.
    pub fn fill(&mut self) {
        self.set(BlockRange { start: 0, end: self.blocks() });
    }

    /// Replaces every bit at once without making pages stale: the caller records the new value elsewhere (a
    /// new epoch in the superblock). Pages whose write is in flight become stale, since that write carries
    /// the old content.
    pub fn reset(&mut self, filled: bool) {
        self.words.fill(filled);
        self.summary.fill(filled);
        self.stale.fill(false);
        self.stale_pages = 0;
        self.dirty_blocks = if filled { self.blocks() } else { 0 };
        for page in 0..self.pages() {
            let bits = self.page_range(page).len() as u32;
            let state = &mut self.pages[page as usize];
            state.dirty_bits = if filled { bits } else { 0 };
            state.overtaken = state.writing;
            if state.writing {
                self.mark_stale(page);
            }
        }
    }

    /// Number of pages whose present content is not on disk for sure, those being written included.
    pub fn stale_pages(&self) -> u32 {
        self.stale_pages
    }

    /// True if the present content of this page is not on disk for sure. Panics past the end.
    pub fn is_stale(&self, page: u32) -> bool {
        self.stale[page as usize]
    }

    /// The first stale page at or after `from` that is not being written.
    pub fn next_stale(&self, from: u32) -> Option<u32> {
        let mut page = from as usize;
        while page < self.pages.len() {
            page += self.stale[page..].first_one()?;
            if !self.pages[page].writing {
                return Some(page as u32);
            }
            page += 1;
        }
        None
    }

    /// Takes the content of a page for a write that begins now. A page that is not stale may be written too.
    ///
    /// Panics if a write of this page is in flight.
    pub fn begin_write(&mut self, page: u32, out: &mut PageBits) {
        let state = &mut self.pages[page as usize];
        assert!(!state.writing, "page {page} is being written");
        state.writing = true;
        state.changed = false;
        state.overtaken = false;
        // A write may fail half way: until its end nothing is known about the page.
        self.mark_stale_only(page);
        self.copy_page(page, out);
    }

    /// The write of this page is durable. Returns false if `reset` overtook it: what is on disk is of an
    /// older life.
    ///
    /// Panics if no write of this page is in flight.
    pub fn end_write(&mut self, page: u32) -> bool {
        let state = &mut self.pages[page as usize];
        assert!(state.writing, "page {page} is not being written");
        state.writing = false;
        if !state.changed && !state.overtaken {
            self.stale.set(page as usize, false);
            self.stale_pages -= 1;
        }
        !state.overtaken
    }

    /// True if the bits of these blocks are on disk as they are here: no page of the range is stale or being
    /// written.
    pub fn range_durable(&self, range: BlockRange) -> bool {
        range.is_empty() || self.stale_pages == 0 || self.stale[pages_of(range)].not_any()
    }

    /// Takes a page read from disk. It is not stale afterwards.
    ///
    /// Panics if the page is being written.
    pub fn load_page(&mut self, page: u32, bits: &PageBits) {
        assert!(!self.pages[page as usize].writing, "page {page} is being written");
        let range = self.page_range(page);
        let first_word = (range.start / WORD_BITS) as usize;
        let word_count = range.len().div_ceil(WORD_BITS) as usize;
        let words = &mut self.words.as_raw_mut_slice()[first_word..first_word + word_count];
        for (word, bytes) in words.iter_mut().zip(bits.0.chunks_exact(WORD_BYTES)) {
            *word = word_of(bytes);
        }
        let spare_bits = range.len() % WORD_BITS;
        if let (Some(last), true) = (words.last_mut(), spare_bits != 0) {
            *last &= (1 << spare_bits) - 1;
        }
        let dirty_bits = words.iter().map(|word| word.count_ones()).sum();
        self.set_page_count(page, dirty_bits);
        if self.stale[page as usize] {
            self.stale.set(page as usize, false);
            self.stale_pages -= 1;
        }
    }

    /// Marks all blocks of a page dirty and the page stale: its content on disk is lost.
    pub fn mark_page_all_dirty(&mut self, page: u32) {
        let range = self.page_range(page);
        self.set(range);
        self.mark_stale(page);
    }

    /// Marks dirty every block whose bit is set in `bits`, the first bit being `first_block`; returns how
    /// many were clean. Bits past the end are ignored: they come from a peer.
    pub fn or_bits(&mut self, first_block: u64, bits: &[u8]) -> u64 {
        let before = self.dirty_blocks;
        let mut block = first_block;
        for bytes in bits.chunks(WORD_BYTES) {
            if block >= self.blocks() {
                break;
            }
            let value = word_of(bytes);
            let (word, shift) = (block / WORD_BITS, block % WORD_BITS);
            self.or_word(word, value << shift);
            if shift != 0 {
                self.or_word(word + 1, value >> (WORD_BITS - shift));
            }
            block = block.saturating_add(WORD_BITS);
        }
        self.dirty_blocks - before
    }

    /// Marks dirty every block that is dirty in `other`, a bitmap of the same volume.
    pub fn or(&mut self, other: &Self) {
        other.runs(BlockRange { start: 0, end: other.blocks() }).for_each(|run| {
            self.set(run);
        });
    }

    /// Copies bits out, the first being that of `first_block`. Bits past the end are zero.
    pub fn read_bits(&self, first_block: u64, out: &mut [u8]) {
        let words = self.words.as_raw_slice();
        let word_at = |index: u64| words.get(index as usize).copied().unwrap_or(0);
        let mut block = first_block;
        for bytes in out.chunks_mut(WORD_BYTES) {
            let (word, shift) = (block / WORD_BITS, block % WORD_BITS);
            let mut value = word_at(word) >> shift;
            if shift != 0 {
                value |= word_at(word + 1) << (WORD_BITS - shift);
            }
            bytes.copy_from_slice(&value.to_le_bytes()[..bytes.len()]);
            block = block.saturating_add(WORD_BITS);
        }
    }

    /// Blocks of a metadata page.
    pub fn page_range(&self, page: u32) -> BlockRange {
        let start = u64::from(page) * BITS_PER_PAGE;
        assert!(start < self.blocks(), "page {page} is past the end");
        BlockRange { start, end: (start + BITS_PER_PAGE).min(self.blocks()) }
    }

    fn next_dirty(&self, from: u64) -> Option<u64> {
        if self.dirty_blocks == 0 || from >= self.blocks() {
            return None;
        }
        let page = (from / BITS_PER_PAGE) as usize;
        let page_end = self.page_range(page as u32).end;
        if self.summary[page]
            && let Some(ahead) = self.words[bounds(BlockRange { start: from, end: page_end })].first_one()
        {
            return Some(from + ahead as u64);
        }
        let page = page + 1 + self.summary[page + 1..].first_one()?;
        let range = self.page_range(page as u32);
        self.words[bounds(range)].first_one().map(|ahead| range.start + ahead as u64)
    }

    fn change(&mut self, range: BlockRange, dirty: bool) -> u64 {
        if range.is_empty() {
            return 0;
        }
        assert!(range.end <= self.blocks(), "blocks up to {} of {}", range.end, self.blocks());
        let mut changed_total = 0;
        for page in pages_of(range) {
            let part = self.page_range(page as u32).intersect(range);
            let bits = &mut self.words[bounds(part)];
            let changed = if dirty { bits.count_zeros() } else { bits.count_ones() };
            if changed == 0 {
                continue;
            }
            bits.fill(dirty);
            let before = self.pages[page].dirty_bits;
            let after = if dirty { before + changed as u32 } else { before - changed as u32 };
            self.set_page_count(page as u32, after);
            self.mark_stale(page as u32);
            changed_total += changed as u64;
        }
        changed_total
    }

    fn or_word(&mut self, word: u64, value: u64) {
        let valid_bits = self.blocks().saturating_sub(word.saturating_mul(WORD_BITS));
        if valid_bits == 0 || value == 0 {
            return;
        }
        let mask = if valid_bits >= WORD_BITS { u64::MAX } else { (1 << valid_bits) - 1 };
        let slot = &mut self.words.as_raw_mut_slice()[word as usize];
        let added = value & mask & !*slot;
        if added == 0 {
            return;
        }
        *slot |= added;
        let page = (word * WORD_BITS / BITS_PER_PAGE) as u32;
        let dirty_bits = self.pages[page as usize].dirty_bits + added.count_ones();
        self.set_page_count(page, dirty_bits);
        self.mark_stale(page);
    }

    fn set_page_count(&mut self, page: u32, dirty_bits: u32) {
        let state = &mut self.pages[page as usize];
        self.dirty_blocks = self.dirty_blocks - u64::from(state.dirty_bits) + u64::from(dirty_bits);
        state.dirty_bits = dirty_bits;
        self.summary.set(page as usize, dirty_bits != 0);
    }

    /// Makes a page stale though its bits did not change: what the disk has of it is not enough.
    pub(crate) fn mark_stale(&mut self, page: u32) {
        self.pages[page as usize].changed = true;
        self.mark_stale_only(page);
    }

    fn mark_stale_only(&mut self, page: u32) {
        if !self.stale.replace(page as usize, true) {
            self.stale_pages += 1;
        }
    }

    fn copy_page(&self, page: u32, out: &mut PageBits) {
        let first_word = (u64::from(page) * BITS_PER_PAGE / WORD_BITS) as usize;
        let words = &self.words.as_raw_slice()[first_word..];
        out.0.fill(0);
        for (bytes, word) in out.0.chunks_exact_mut(WORD_BYTES).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }
}

fn bounds(range: BlockRange) -> core::ops::Range<usize> {
    range.start as usize..range.end as usize
}

fn pages_of(range: BlockRange) -> core::ops::Range<usize> {
    (range.start / BITS_PER_PAGE) as usize..range.end.div_ceil(BITS_PER_PAGE) as usize
}

fn word_of(bytes: &[u8]) -> u64 {
    let mut word = [0; WORD_BYTES];
    for (to, from) in word.iter_mut().zip(bytes) {
        *to = *from;
    }
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests;
