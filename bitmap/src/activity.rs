//! The activity map: which regions may hold writes that are not yet accounted for in the dirty bitmaps.
//!
//! A region is *hot* when its mark is durable in both copies of its page; only then may a write in it begin.
//! Marks are requested by `acquire`, reach the disk page by page, and are removed lazily, in groups, by
//! `cool`.
//!
//! Invariants: `acquire` says `Hot` and `is_hot` says true only while the mark is on disk and no write that
//! removes it has begun. The number of regions whose mark is or may be on disk, or is wanted there, is
//! bounded by `max_hot` (recovery may load more; then nothing is added until enough were cooled). At most one
//! write of a page is in flight.

use crate::marks::{Mark, mark};
use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;

use crate::dirty::PageBits;
use crate::geometry::{Geometry, RegionIndex};
use crate::meta::{BITS_PER_PAGE, PAGE_PAYLOAD_BYTES, WORDS_PER_PAGE};

const WORD_BITS: u32 = 64;
const WORD_BYTES: usize = 8;

/// Answer of [`ActivityMap::acquire`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acquire {
    /// The mark is on disk. A use was taken.
    Hot,
    /// The mark will be in the next write of its page. A use was taken; wait until `take_hot` names the
    /// region.
    Pending,
    /// The bound is reached. Nothing was taken; wait until regions were cooled.
    Full,
}

/// Counters of one page.
#[derive(Clone, Copy, Debug, Default)]
struct PageState {
    /// Regions counted against the bound.
    counted: u32,
    /// Regions wanted, not on disk, and not in the write in flight.
    marks: u32,
    /// Regions on disk and chosen for removal, the removal not begun.
    removals: u32,
    writing: bool,
}

/// One bit per region, with use counts.
///
/// Life of a region by its bits (wanted, on disk): cold (0,0) -> pending (1,0) -> hot (1,1) -> chosen for
/// removal (0,1) -> leaving (0,0 and `leaving`) -> cold.
#[derive(Clone, Debug)]
pub struct ActivityMap {
    region_count: u32,
    max_hot: u32,
    uses: Vec<u32>,
    /// The mark shall be in the next write of its page.
    wanted: Vec<u64>,
    /// The mark is on disk, and no write that removes it has begun.
    on_disk: Vec<u64>,
    /// Its removal is in flight.
    leaving: Vec<u64>,
    /// What the write in flight of each page carries.
    image: Vec<u64>,
    pages: Vec<PageState>,
    counted: u32,
    durable: u32,
    candidates: u32,
    newly_hot: VecDeque<RegionIndex>,
    /// Where the next `cool` begins, so that all regions have their turn.
    cool_cursor: u32,
}

impl ActivityMap {
    /// All regions cold. `max_hot` is at least 1.
    pub fn new(geometry: &Geometry, max_hot: u32) -> Self {
        assert!(max_hot > 0, "at least one region must be allowed to be hot");
        let region_count = geometry.regions();
        let page_count = u64::from(region_count).div_ceil(BITS_PER_PAGE) as usize;
        let word_count = page_count * WORDS_PER_PAGE;
        Self {
            region_count,
            max_hot,
            uses: vec![0; region_count as usize],
            wanted: vec![0; word_count],
            on_disk: vec![0; word_count],
            leaving: vec![0; word_count],
            image: vec![0; word_count],
            pages: vec![PageState::default(); page_count],
            counted: 0,
            durable: 0,
            candidates: 0,
            newly_hot: VecDeque::new(),
            cool_cursor: 0,
        }
    }

    /// Memory that the map of a volume takes.
    pub(crate) fn memory_bytes(geometry: &Geometry, max_hot: u32) -> u64 {
        let regions = u64::from(geometry.regions());
        let pages = regions.div_ceil(BITS_PER_PAGE);
        let maps = 4 * pages * PAGE_PAYLOAD_BYTES as u64;
        let newly_hot = u64::from(max_hot).min(regions).next_power_of_two() * size_of::<RegionIndex>() as u64;
        regions * size_of::<u32>() as u64 + maps + pages * size_of::<PageState>() as u64 + newly_hot
    }

    /// Number of regions.
    pub fn regions(&self) -> u32 {
        self.region_count
    }

    /// Number of metadata pages.
    pub fn pages(&self) -> u32 {
        self.pages.len() as u32
    }

    /// Asks for a use of the region. Panics past the end.
    pub fn acquire(&mut self, region: RegionIndex) -> Acquire {
        let (word, bit) = self.position(region);
        let (wanted, on_disk) = (self.wanted[word] & bit != 0, self.on_disk[word] & bit != 0);
        let page = word / WORDS_PER_PAGE;
        if !wanted && !on_disk {
            if self.leaving[word] & bit == 0 {
                if self.counted >= self.max_hot {
                    mark(Mark::HotBound);
                    return Acquire::Full;
                }
                self.counted += 1;
                self.pages[page].counted += 1;
            } else {
                mark(Mark::UncoveredWhileCooling);
            }
            self.pages[page].marks += 1;
        } else if !wanted {
            // Chosen for removal, which has not begun: taken back.
            mark(Mark::CoolingTakenBack);
            self.pages[page].removals -= 1;
        } else if on_disk && self.uses[region.0 as usize] == 0 {
            self.candidates -= 1;
        }
        self.wanted[word] |= bit;
        self.uses[region.0 as usize] += 1;
        if on_disk { Acquire::Hot } else { Acquire::Pending }
    }

    /// Gives one use back. At zero uses the region may be cooled.
    ///
    /// Panics if the region has no use.
    pub fn release(&mut self, region: RegionIndex) {
        let (word, bit) = self.position(region);
        let uses = &mut self.uses[region.0 as usize];
        assert!(*uses > 0, "region {} is released more often than acquired", region.0);
        *uses -= 1;
        if *uses == 0 && self.on_disk[word] & bit != 0 {
            self.candidates += 1;
        }
    }

    /// Uses of the region at present.
    pub fn uses(&self, region: RegionIndex) -> u32 {
        self.uses[region.0 as usize]
    }

    /// True if a page waits for a write: it has new marks or chosen removals, and no write in flight.
    pub fn want_write(&self) -> bool {
        self.pages.iter().any(PageState::wants_write)
    }

    /// Picks a page that waits for a write, pages with new marks first, and freezes what `page_bits` returns
    /// for it until `end_write`.
    pub fn begin_write(&mut self) -> Option<u32> {
        let with_marks = self.pages.iter().position(|page| page.wants_write() && page.marks > 0);
        let page = with_marks.or_else(|| self.pages.iter().position(PageState::wants_write))?;
        for word in words_of(page) {
            let removals = self.on_disk[word] & !self.wanted[word];
            if removals != 0 {
                self.durable -= removals.count_ones();
                self.on_disk[word] &= self.wanted[word];
            }
            self.leaving[word] = removals;
            self.image[word] = self.wanted[word];
        }
        let state = &mut self.pages[page];
        state.marks = 0;
        state.removals = 0;
        state.writing = true;
        Some(page as u32)
    }

    /// Content of a page: that of the write in flight, else every mark that is or may be on disk or is wanted
    /// there.
    pub fn page_bits(&self, page: u32, out: &mut PageBits) {
        let writing = self.pages[page as usize].writing;
        for (bytes, word) in out.0.chunks_exact_mut(WORD_BYTES).zip(words_of(page as usize)) {
            let value = if writing { self.image[word] } else { self.counted_word(word) };
            bytes.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// Both copies of the page are durable: its marks are hot, its removals done.
    ///
    /// Panics if no write of the page is in flight.
    pub fn end_write(&mut self, page: u32) {
        let page = page as usize;
        assert!(self.pages[page].writing, "activity page {page} is not being written");
        self.pages[page].writing = false;
        for word in words_of(page) {
            let hot = self.image[word] & !self.on_disk[word];
            if hot | self.leaving[word] == 0 {
                // Nearly all words: a write is for a region or two.
                continue;
            }
            let removed = (self.leaving[word] & !self.wanted[word]).count_ones();
            self.counted -= removed;
            self.pages[page].counted -= removed;
            self.leaving[word] = 0;
            self.on_disk[word] |= hot;
            self.durable += hot.count_ones();
            for bit in ones(hot) {
                let region = RegionIndex(word as u32 * WORD_BITS + bit);
                if self.uses[region.0 as usize] == 0 {
                    self.candidates += 1;
                }
                self.newly_hot.push_back(region);
            }
        }
    }

    /// True if the mark of the region is on disk. Panics past the end.
    pub fn is_hot(&self, region: RegionIndex) -> bool {
        let (word, bit) = self.position(region);
        self.on_disk[word] & bit != 0
    }

    /// The next region that became hot by `end_write`. Drain it after each `end_write`.
    pub fn take_hot(&mut self) -> Option<RegionIndex> {
        self.newly_hot.pop_front()
    }

    /// Chooses up to `limit` hot regions without a use, of those for which `may_cool` says true, for removal;
    /// returns how many. `may_cool` vouches for orderings 2 and 3 of each region it accepts. The removal is
    /// part of the next write of the page.
    pub fn cool(&mut self, limit: u32, mut may_cool: impl FnMut(RegionIndex) -> bool) -> u32 {
        let page_count = self.pages();
        let first_page = self.cool_cursor;
        let mut chosen = 0;
        for step in 0..page_count {
            let page = (first_page + step) % page_count;
            if chosen == limit || self.candidates == 0 {
                break;
            }
            self.cool_cursor = page;
            if self.pages[page as usize].counted > 0 {
                chosen += self.cool_page(page as usize, limit - chosen, &mut may_cool);
            }
        }
        chosen
    }

    /// Number of regions whose mark is or may be on disk, or is wanted there: what a crash now costs, and
    /// what `max_hot` bounds.
    pub fn hot_count(&self) -> u32 {
        self.counted
    }

    /// Number of regions whose mark is on disk for sure.
    pub fn durable_count(&self) -> u32 {
        self.durable
    }

    /// Number of hot regions without a use that are not yet chosen for removal.
    pub fn candidates(&self) -> u32 {
        self.candidates
    }

    /// The bound given to `new`.
    pub fn max_hot(&self) -> u32 {
        self.max_hot
    }

    /// The regions counted by `hot_count`, ascending.
    pub fn hot_regions(&self) -> impl Iterator<Item = RegionIndex> + '_ {
        let pages = self.pages.iter().enumerate().filter(|(_, state)| state.counted > 0);
        let words = pages.flat_map(|(page, _)| words_of(page));
        words.flat_map(|word| {
            ones(self.counted_word(word)).map(move |bit| RegionIndex(word as u32 * WORD_BITS + bit))
        })
    }

    /// Takes regions found on disk, in both copies of their page, as hot. For recovery only.
    pub fn load(&mut self, regions: impl IntoIterator<Item = RegionIndex>) {
        for region in regions {
            let (word, bit) = self.position(region);
            if self.counted_word(word) & bit == 0 {
                self.count_loaded(word, bit);
                self.on_disk[word] |= bit;
                self.durable += 1;
                self.candidates += 1;
            }
        }
    }

    /// Takes regions as hot of which not both copies of the page are known to have the mark: they are pending
    /// until the page was written. For recovery only.
    pub fn load_unsure(&mut self, regions: impl IntoIterator<Item = RegionIndex>) {
        for region in regions {
            let (word, bit) = self.position(region);
            if self.counted_word(word) & bit == 0 {
                self.count_loaded(word, bit);
                self.pages[word / WORDS_PER_PAGE].marks += 1;
            }
        }
    }

    fn count_loaded(&mut self, word: usize, bit: u64) {
        self.wanted[word] |= bit;
        self.counted += 1;
        self.pages[word / WORDS_PER_PAGE].counted += 1;
    }

    fn cool_page(&mut self, page: usize, limit: u32, may_cool: &mut impl FnMut(RegionIndex) -> bool) -> u32 {
        let mut chosen = 0;
        for word in words_of(page) {
            for bit in ones(self.wanted[word] & self.on_disk[word]) {
                if chosen == limit {
                    return chosen;
                }
                let region = RegionIndex(word as u32 * WORD_BITS + bit);
                if self.uses[region.0 as usize] == 0 && may_cool(region) {
                    self.wanted[word] &= !(1 << bit);
                    self.pages[page].removals += 1;
                    self.candidates -= 1;
                    chosen += 1;
                }
            }
        }
        chosen
    }

    fn counted_word(&self, word: usize) -> u64 {
        self.wanted[word] | self.on_disk[word] | self.leaving[word]
    }

    fn position(&self, region: RegionIndex) -> (usize, u64) {
        assert!(region.0 < self.region_count, "region {} is past the end", region.0);
        ((region.0 / WORD_BITS) as usize, 1 << (region.0 % WORD_BITS))
    }
}

impl PageState {
    fn wants_write(&self) -> bool {
        !self.writing && (self.marks > 0 || self.removals > 0)
    }
}

fn words_of(page: usize) -> core::ops::Range<usize> {
    page * WORDS_PER_PAGE..(page + 1) * WORDS_PER_PAGE
}

fn ones(mut word: u64) -> impl Iterator<Item = u32> {
    core::iter::from_fn(move || {
        if word == 0 {
            return None;
        }
        let bit = word.trailing_zeros();
        word &= word - 1;
        Some(bit)
    })
}

#[cfg(test)]
mod tests;
