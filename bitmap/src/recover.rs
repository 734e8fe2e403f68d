//! Reads a metadata file and rebuilds what was durable.
//!
//! Tolerates: torn writes of anything in flight at a power cut; one damaged page of a pair; any damaged Bits
//! page; unreadable pages, which count as damaged. Invariants: what it returns has every block dirty or hot
//! that was so on disk; the superblock is the newest durable one; where that cannot be had, it refuses.
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use crate::marks::{Mark, mark};
use alloc::vec;
use alloc::vec::Vec;

use crate::canary::{Bug, is_planted};
use crate::dirty::PageBits;
use crate::geometry::RegionIndex;
use crate::meta::{
    BITS_PER_PAGE, Layout, MetaPage, PAGE_BYTES, PageError, PageHeader, PageKind, SUPERBLOCK_BYTES,
    decode_page, has_magic, superblock_place,
};
use crate::store::Store;
use crate::superblock::{Superblock, SuperblockError};

/// Bits pages read at once.
const PAGES_PER_READ: u64 = 64;

/// What recovery met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Copies that hold the superblock taken. If fewer than 2, write the superblock before
    /// relying on it; 0 means that recovery had to change it.
    pub superblock_copies: u8,
    /// Pages read that were damaged, torn, misplaced, of another epoch, or unreadable, superblock places
    /// included.
    pub damaged_pages: u32,
    /// Of these, pages that could not be read at all.
    pub unreadable_pages: u32,
    /// Regions that were hot, or may have been.
    pub hot_regions: u32,
    /// Bits pages that count as all dirty since their content is lost.
    pub pages_taken_as_dirty: u32,
}

/// Why a file was refused. `E` is the caller's read error.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError<E> {
    /// No place could be read; one of the errors.
    #[error("the metadata cannot be read")]
    Read(E),
    /// Nothing here was written by Lockstep.
    #[error("not a Lockstep metadata file")]
    NotLockstep,
    /// This is, or was, a Lockstep file; it has no intact superblock.
    #[error("no intact superblock: the metadata is damaged")]
    NoSuperblock,
    /// Written by a newer program.
    #[error("metadata format version {0} is newer than this program")]
    NewerVersion(u16),
    /// Intact superblocks contradict each other: a create-md was interrupted, or two files were mixed.
    #[error("the superblocks contradict each other: create-md was interrupted, or two files were mixed")]
    Contradiction,
    /// An intact superblock has impossible content.
    #[error("impossible superblock: {0}")]
    Superblock(SuperblockError),
    /// The file is shorter than its superblock says.
    #[error("the file has {file_bytes} bytes, its superblock asks for {needed_bytes}")]
    Truncated {
        /// Length found.
        file_bytes: u64,
        /// Length needed.
        needed_bytes: u64,
    },
}

/// How the caller reads: fills the buffer from the offset on, or fails.
pub type ReadFn<'a, E> = dyn FnMut(u64, &mut [u8]) -> Result<(), E> + 'a;

/// Recovers the metadata of a volume. `read` fills the buffer from the offset on, or fails. `max_hot` bounds
/// the regions that are hot later; those found on disk may be more.
///
/// Hot regions are not yet merged into the slots: `Store::merge_hot` does that. Bits pages that were never
/// written are not read.
pub fn recover<E>(
    file_len: u64,
    read: &mut ReadFn<'_, E>,
    max_hot: u32,
) -> Result<(Store, Findings), RecoverError<E>> {
    let mut findings = Findings::default();
    let superblock = newest_superblock(file_len, read, &mut findings)?;
    // `decode` checked both, so neither fails here.
    let geometry = superblock.geometry().map_err(|error| RecoverError::Superblock(error.into()))?;
    let layout = Layout::from_areas(&geometry, superblock.peers.len(), &superblock.areas)
        .map_err(|error| RecoverError::Superblock(error.into()))?;
    let needed_bytes = layout.file_bytes();
    if file_len < needed_bytes {
        return Err(RecoverError::Truncated { file_bytes: file_len, needed_bytes });
    }
    let file_id = superblock.file_id;
    let store = Store::new(superblock, layout, max_hot);
    let mut recovery = Recovery { store, findings, read, file_id };
    (0..recovery.store.layout().activity_pages()).for_each(|page| recovery.load_activity(page));
    recovery.findings.hot_regions = recovery.store.activity.hot_count();
    for slot in recovery.store.slot_numbers() {
        recovery.load_slot(slot)?;
    }
    Ok((recovery.store, recovery.findings))
}

/// The newest intact superblock of the four places.
fn newest_superblock<E>(
    file_len: u64,
    read: &mut ReadFn<'_, E>,
    findings: &mut Findings,
) -> Result<Superblock, RecoverError<E>> {
    let mut found: Vec<Superblock> = Vec::new();
    let mut magic_seen = false;
    let mut read_error = None;
    for (copy, place) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let offset = superblock_place(copy, place);
        let mut bytes = [0; SUPERBLOCK_BYTES];
        if offset + SUPERBLOCK_BYTES as u64 > file_len {
            findings.damaged_pages += 1;
            continue;
        }
        if let Err(error) = read(offset, &mut bytes) {
            findings.damaged_pages += 1;
            findings.unreadable_pages += 1;
            read_error = Some(error);
            continue;
        }
        magic_seen |= bytes.chunks(PAGE_BYTES).any(has_magic);
        match Superblock::decode(&bytes) {
            Ok(superblock) if superblock.sequence % 2 == place => found.push(superblock),
            // A newer program wrote here last; what an older one left beside it is history.
            Err(SuperblockError::Page(PageError::NewerVersion(version))) => {
                return Err(RecoverError::NewerVersion(version));
            }
            Ok(_) | Err(SuperblockError::Page(_) | SuperblockError::Torn) => {
                mark(Mark::TornSuperblock);
                findings.damaged_pages += 1;
            }
            // Intact, so that taking the one before would go back in time.
            Err(error) => return Err(RecoverError::Superblock(error)),
        }
    }
    let age = |superblock: &&Superblock| {
        let number = superblock.sequence;
        if is_planted(Bug::TakeOlderRecord) { u64::MAX - number } else { number }
    };
    let Some(newest) = found.iter().max_by_key(age) else {
        return Err(match read_error {
            Some(error) => RecoverError::Read(error),
            None if magic_seen => RecoverError::NoSuperblock,
            None => RecoverError::NotLockstep,
        });
    };
    if found.iter().any(|other| other.file_id != newest.file_id) {
        return Err(RecoverError::Contradiction);
    }
    let (number, mut newest) = (newest.sequence, newest.clone());
    if found.iter().any(|other| other.sequence == number && *other != newest) {
        // Left by writes that failed, and by an attach that could not know of them: neither was ever complete, so
        // nothing relied on them. What was before them counts, as that of a copy that failed.
        mark(Mark::SuperblocksDisagree);
        let before = found.iter().filter(|other| other.sequence < number);
        newest = before.max_by_key(|other| other.sequence).cloned().unwrap_or(newest);
        newest.mark_failed_upto(number);
    }
    let copies = found.iter().filter(|other| other.sequence == number).count();
    findings.superblock_copies = copies as u8;
    Ok(newest)
}

/// State while the pages are read.
struct Recovery<'a, 'f, E> {
    store: Store,
    findings: Findings,
    read: &'a mut ReadFn<'f, E>,
    file_id: u64,
}

/// A page that is intact and where it belongs.
struct FoundPage {
    epoch: u32,
    bits: PageBits,
}

impl<E> Recovery<'_, '_, E> {
    fn load_activity(&mut self, page: u32) {
        let copies = self.read_copies(MetaPage::Activity(page), PageKind::Activity, 0, page);
        let first_region = u64::from(page) * BITS_PER_PAGE;
        let end_region = u64::from(self.store.activity.regions()).min(first_region + BITS_PER_PAGE);
        let regions = (first_region..end_region).map(|region| RegionIndex(region as u32));
        let marked =
            |copy: &FoundPage, region: RegionIndex| copy.bits.get(u64::from(region.0) - first_region);
        match copies {
            [Some(first), Some(second)] => {
                let in_both = |region: &RegionIndex| marked(&first, *region) && marked(&second, *region);
                let in_one = |region: &RegionIndex| marked(&first, *region) != marked(&second, *region);
                self.store.activity.load(regions.clone().filter(in_both));
                self.store.activity.load_unsure(regions.filter(in_one));
            }
            [Some(only), None] | [None, Some(only)] => {
                self.store.activity.load_unsure(regions.filter(|region| marked(&only, *region)));
            }
            [None, None] => self.store.activity.load_unsure(regions),
        }
    }

    fn load_slot(&mut self, slot: u8) -> Result<(), RecoverError<E>> {
        let mut lost_maps = Vec::new();
        let mut newest_epoch = self.epoch(slot);
        for page in 0..self.store.layout().map_pages() {
            let copies = self.read_copies(MetaPage::SlotMap { slot, page }, PageKind::SlotMap, slot, page);
            let epochs = copies.iter().flatten().map(|copy| copy.epoch);
            newest_epoch = epochs.fold(newest_epoch, u32::max);
            if copies.iter().all(Option::is_none) {
                lost_maps.push(page);
            } else {
                self.load_map_page(slot, page, &copies);
            }
        }
        newest_epoch = newest_epoch.max(self.load_bits(slot));
        if newest_epoch > self.epoch(slot) {
            return self.pass_epoch(slot, newest_epoch);
        }
        for page in lost_maps {
            let state = self.store.slot_mut(slot);
            state.map.mark_page_all_dirty(page);
            let unknown = state.map.page_range(page);
            (unknown.start..unknown.end)
                .for_each(|bits_page| state.bits.mark_page_all_dirty(bits_page as u32));
            self.findings.pages_taken_as_dirty += unknown.len() as u32;
        }
        Ok(())
    }

    /// Takes the union of the copies of this epoch. An older epoch says that nothing was written in this one.
    fn load_map_page(&mut self, slot: u8, page: u32, copies: &[Option<FoundPage>; 2]) {
        let epoch = self.epoch(slot);
        let mut union = PageBits::default();
        for copy in copies.iter().flatten().filter(|copy| copy.epoch == epoch) {
            union.0.iter_mut().zip(copy.bits.0).for_each(|(to, from)| *to |= from);
        }
        let state = self.store.slot_mut(slot);
        state.map.load_page(page, &union);
        let current = |copy: &Option<FoundPage>| {
            copy.as_ref().is_some_and(|copy| copy.epoch == epoch && copy.bits == union)
        };
        if union != PageBits::default() && !copies.iter().all(current) {
            state.map.mark_stale(page);
        }
    }

    /// Loads the Bits pages that the map names; returns the newest epoch seen in them.
    fn load_bits(&mut self, slot: u8) -> u32 {
        let mut newest_epoch = 0;
        let mut next = 0;
        let mut buffer = vec![0; PAGES_PER_READ as usize * PAGE_BYTES];
        while let Some(run) = self.store.slot_mut(slot).map.next_run(next, PAGES_PER_READ) {
            next = run.end;
            let first = MetaPage::Bits { slot, page: run.start as u32 };
            let offset = self.store.layout().locations(first, 0).offsets[0];
            let Some(bytes) = buffer.get_mut(..run.len() as usize * PAGE_BYTES) else { break };
            let whole_run_read = (self.read)(offset, bytes).is_ok();
            for page in run.start..run.end {
                let at = (page - run.start) as usize * PAGE_BYTES;
                let Some(bytes) = buffer.get_mut(at..at + PAGE_BYTES) else { break };
                let readable = whole_run_read || (self.read)(offset + at as u64, bytes).is_ok();
                newest_epoch =
                    newest_epoch.max(self.load_bits_page(slot, page as u32, readable.then_some(bytes)));
            }
        }
        newest_epoch
    }

    fn load_bits_page(&mut self, slot: u8, page: u32, bytes: Option<&mut [u8]>) -> u32 {
        let epoch = self.epoch(slot);
        self.findings.unreadable_pages += u32::from(bytes.is_none());
        let found = bytes.and_then(|bytes| self.check(bytes, PageKind::Bits, slot, page));
        let found_epoch = found.as_ref().map_or(0, |page| page.epoch);
        let bitmap = &mut self.store.slot_mut(slot).bits;
        match found {
            Some(found) if found.epoch == epoch => bitmap.load_page(page, &found.bits),
            _ => {
                bitmap.mark_page_all_dirty(page);
                self.findings.damaged_pages += 1;
                self.findings.pages_taken_as_dirty += 1;
            }
        }
        found_epoch
    }

    /// The file has pages of an epoch that the superblock does not know: it was set back. Nothing of the slot
    /// can be trusted, and those pages must not count when their epoch comes again.
    fn pass_epoch(&mut self, slot: u8, newest_epoch: u32) -> Result<(), RecoverError<E>> {
        let epoch = newest_epoch.checked_add(1).ok_or(RecoverError::Contradiction)?;
        self.store.begin_epoch(slot, epoch, true);
        self.store.invalidate_slot(slot);
        self.findings.superblock_copies = 0;
        self.findings.pages_taken_as_dirty += self.store.layout().bits_pages();
        Ok(())
    }

    fn epoch(&mut self, slot: u8) -> u32 {
        self.store.slot_mut(slot).epoch
    }

    fn read_copies(&mut self, at: MetaPage, kind: PageKind, slot: u8, index: u32) -> [Option<FoundPage>; 2] {
        self.store.layout().locations(at, 0).offsets.map(|offset| {
            let mut bytes = [0; PAGE_BYTES];
            let found = match (self.read)(offset, &mut bytes) {
                Ok(()) => self.check(&bytes, kind, slot, index),
                Err(_) => {
                    self.findings.unreadable_pages += 1;
                    None
                }
            };
            self.findings.damaged_pages += u32::from(found.is_none());
            found
        })
    }

    /// The page, if it is intact and the one that belongs here. The epoch is for the caller to judge.
    fn check(&mut self, bytes: &[u8], kind: PageKind, slot: u8, index: u32) -> Option<FoundPage> {
        let (header, payload) = decode_page(bytes.first_chunk()?).ok()?;
        let expected = PageHeader { kind, slot, index, file_id: self.file_id, ..header };
        if header != expected {
            return None;
        }
        self.store.note_page_sequence(header.sequence);
        Some(FoundPage { epoch: header.epoch, bits: PageBits(*payload) })
    }
}
