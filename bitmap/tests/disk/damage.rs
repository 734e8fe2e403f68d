//! Every way to damage one page of the file, and every way to tear a write: nothing dirty may be lost, and
//! the current generation may not go back.

use crate::file::*;
use lockstep_bitmap::*;

const PAGE: usize = PAGE_BYTES;
const SECTOR: usize = 512;

/// One damaged page: the superblock is the newest, and everything dirty is still dirty; or it is refused.
fn check_one_damage(
    result: Result<(Store, Findings), RecoverError<()>>,
    truth: &Store,
    what: &dyn Fn() -> String,
) {
    // One damaged page never costs both superblock copies.
    let (mut store, findings) = result.unwrap_or_else(|error| panic!("{}: {error:?}", what()));
    store.merge_hot();
    assert_eq!(store.superblock, truth.superblock, "{}", what());
    assert!(covers(&store, truth), "{}: blocks lost", what());
    assert!(
        findings.damaged_pages > 0 || store.activity.hot_count() == truth.activity.hot_count(),
        "{}",
        what()
    );
}

/// The pages that mean something; between the superblocks there is unused room.
fn used_pages(file: &[u8]) -> Vec<usize> {
    let pages = file.len() / PAGE;
    (0..pages).filter(|page| file[page * PAGE..][..PAGE].iter().any(|byte| *byte != 0)).collect()
}

fn flip_bytes(file: &mut [u8], stride: usize) {
    let truth = truth(file);
    for page in used_pages(file) {
        for byte in (0..PAGE).filter(|byte| byte % stride == 0 || *byte < PAGE_HEADER_BYTES) {
            let (at, bit) = (page * PAGE + byte, (byte * 5 + byte / 8) % 8);
            file[at] ^= 1 << bit;
            check_one_damage(recover_file(file), &truth, &|| format!("page {page} byte {byte} bit {bit}"));
            file[at] ^= 1 << bit;
        }
    }
}

#[test]
fn one_flipped_bit_in_any_byte() {
    let (mut file, last) = life().pop().unwrap();
    last.at.iter().for_each(|offset| put(&mut file, offset, &last.bytes));
    flip_bytes(&mut file, 1);
}

#[test]
fn flipped_bits_at_every_step_of_a_life() {
    life().into_iter().for_each(|(mut file, _)| flip_bytes(&mut file, 97));
}

/// Recovery sees a page only through `decode_page`, so that a page refused is the same page whichever bit it
/// was.
#[test]
fn every_single_bit_of_every_page_is_covered_by_its_checksum() {
    let (mut file, _) = life().pop().unwrap();
    for page in used_pages(&file) {
        let page: &mut [u8; PAGE] = file[page * PAGE..].first_chunk_mut().unwrap();
        for bit in 0..PAGE * 8 {
            page[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_page(page).is_err(), "bit {bit}");
            page[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn a_page_lost_overwritten_misplaced_or_unreadable() {
    for (step, (file, _)) in life().into_iter().enumerate() {
        let truth = truth(&file);
        let pages = used_pages(&file);
        for &page in &pages {
            let failing = recover_with(&file, |index| index as usize != page);
            check_one_damage(failing, &truth, &|| format!("step {step}: page {page} unreadable"));
            let mut strangers: Vec<Vec<u8>> = vec![vec![0; PAGE], vec![0xff; PAGE], vec![0x5a; PAGE]];
            strangers.extend(pages.iter().map(|other| file[other * PAGE..][..PAGE].to_vec()));
            for (stranger, bytes) in strangers.iter().enumerate() {
                let mut damaged = file.clone();
                put(&mut damaged, (page * PAGE) as u64, bytes);
                // The other place of the superblock holds an intact older one, and copies of a pair are
                // equal.
                check_one_damage(recover_file(&damaged), &truth, &|| {
                    format!("step {step}: {page} <- {stranger}")
                });
            }
        }
    }
}

#[test]
fn unused_room_is_never_read() {
    let (mut file, _) = life().pop().unwrap();
    let expected = truth(&file);
    let used = used_pages(&file);
    let unused = (0..file.len() / PAGE).filter(|page| !used.contains(page));
    let unused: Vec<usize> = unused.filter(|page| page * PAGE < 128 * 1024).collect();
    unused.iter().for_each(|page| file[page * PAGE..][..PAGE].fill(0xee));
    assert_eq!(truth(&file).superblock, expected.superblock);
}

/// All prefixes and suffixes of a write, in sectors: what a power cut leaves of it.
fn tears(old: &[u8], new: &[u8]) -> Vec<Vec<u8>> {
    let mut tears = Vec::new();
    for cut in (0..=old.len()).step_by(SECTOR) {
        tears.push([&new[..cut], &old[cut..]].concat());
        tears.push([&old[..cut], &new[cut..]].concat());
    }
    tears.sort();
    tears.dedup();
    tears
}

#[test]
fn every_tear_of_every_write() {
    for (step, (old_file, write)) in life().into_iter().enumerate() {
        let mut new_file = old_file.clone();
        write.at.iter().for_each(|offset| put(&mut new_file, offset, &write.bytes));
        let (old, new) = (truth(&old_file), truth(&new_file));
        let tears_at = |offset: u64| tears(&old_file[offset as usize..][..write.bytes.len()], &write.bytes);
        let second_tears = match write.at.copies {
            2 => tears_at(write.at.offsets[1]),
            _ => vec![Vec::new()],
        };
        let mut torn = old_file.clone();
        for (first_index, first) in tears_at(write.at.offsets[0]).iter().enumerate() {
            for (second_index, second) in second_tears.iter().enumerate() {
                put(&mut torn, write.at.offsets[0], first);
                put(&mut torn, write.at.offsets[1], if write.at.copies == 2 { second } else { first });
                let what = || format!("step {step} {:?}: tear {first_index}, {second_index}", write.page);
                let (mut store, _) =
                    recover_file(&torn).unwrap_or_else(|error| panic!("{}: {error:?}", what()));
                store.merge_hot();
                check_torn(&store, &old, &new, &what);
                let both_new = *first == write.bytes && (write.at.copies == 1 || *second == write.bytes);
                assert!(
                    !both_new || store.superblock == new.superblock,
                    "{}: a durable write is lost",
                    what()
                );
            }
        }
    }
}

/// Either state is right while a write is in flight; what both have must be there.
fn check_torn(store: &Store, old: &Store, new: &Store, what: &dyn Fn() -> String) {
    assert!(store.superblock == old.superblock || store.superblock == new.superblock, "{}", what());
    if old.superblock != new.superblock {
        let taken = if store.superblock == new.superblock { new } else { old };
        assert!(covers(store, taken), "{}: blocks lost", what());
        return;
    }
    for (slot, bits) in store.slots.iter().map(|slot| &slot.bits).enumerate() {
        for run in runs(&old.slots[slot].bits) {
            let mut block = run.start;
            while block < run.end {
                let both =
                    new.slots[slot].bits.next_run(block, run.end - block).map(|both| both.intersect(run));
                let Some(both) = both.filter(|both| !both.is_empty()) else { break };
                assert!(bits.all(both), "{}: slot {slot} lost {both:?}", what());
                block = both.end;
            }
        }
    }
}

#[test]
fn files_that_are_not_ours_damaged_or_mixed_are_refused() {
    let error_of = |file: &[u8]| recover_file(file).expect_err("must be refused");
    assert_eq!(error_of(&[]), RecoverError::NotLockstep);
    assert_eq!(error_of(&vec![0x42; 1 << 20]), RecoverError::NotLockstep);
    let (file, store) = created(params(1));
    let places = [0, 8192, 65_536, 65_536 + 8192];
    let mut damaged = file.clone();
    places.iter().for_each(|offset| damaged[offset + 100] ^= 1);
    assert_eq!(error_of(&damaged), RecoverError::NoSuperblock);
    assert_eq!(recover_with(&file, |_| false).expect_err("must fail"), RecoverError::Read(()));
    let needed_bytes = store.layout().file_bytes();
    let file_bytes = needed_bytes - 1;
    assert_eq!(error_of(&file[..file_bytes as usize]), RecoverError::Truncated { file_bytes, needed_bytes });
    let (other, _) = created(CreateParams { file_id: 99, ..params(1) });
    let mut mixed = file.clone();
    put(&mut mixed, 65_536, &other[65_536..65_536 + 8192]);
    assert_eq!(error_of(&mixed), RecoverError::Contradiction);
}

/// A write that failed reached one copy; an attach that could not know of it gave its number out again, and failed too.
#[test]
fn of_two_superblocks_with_one_number_neither_counts() {
    let (file, store) = created(params(1));
    let with_term = |term: u64| {
        let (mut file, mut store) = (file.clone(), store.clone());
        store.superblock.term = term;
        write(&mut store, &mut file, MetaPage::Superblock);
        (file, store.superblock.sequence)
    };
    let ((mut mixed, number), (other, _)) = (with_term(7), with_term(8));
    mixed[65_536..65_536 + 16_384].copy_from_slice(&other[65_536..65_536 + 16_384]);
    let (recovered, _) = recover_file(&mixed).unwrap();
    let superblock = &recovered.superblock;
    assert_eq!(superblock.term, store.superblock.term, "as before both");
    assert!(superblock.outdated && superblock.may_be_written, "the copy failed");
    assert!(superblock.sequence >= number, "no number is given out a third time");
    assert_eq!(superblock.sequence % 2, store.superblock.sequence % 2, "the last good one stays");
}

/// Nothing of an older file on the same device counts.
#[test]
fn pages_of_an_older_file_do_not_count() {
    let (mut file, mut store) = created(params(1));
    store.slots[0].bits.set(BlockRange::new(9, 1));
    write_all(&mut store, &mut file);
    let bits = store.layout().locations(MetaPage::Bits { slot: 0, page: 0 }, 0).offsets[0] as usize;
    let (mut other, mut other_store) = created(CreateParams { file_id: 99, ..params(1) });
    other_store.slots[0].bits.set(BlockRange::new(70, 1));
    write_all(&mut other_store, &mut other);
    other[bits..bits + PAGE].copy_from_slice(&file[bits..bits + PAGE]);
    let (recovered, findings) = recover_file(&other).unwrap();
    assert!(recovered.slots[0].bits.all(recovered.slots[0].bits.page_range(0)));
    assert_eq!((findings.damaged_pages, findings.pages_taken_as_dirty), (1, 1));
}

/// A superblock that was set back does not make pages of the epoch it lost count again.
#[test]
fn pages_of_an_epoch_that_the_superblock_lost_make_the_slot_dirty() {
    let (mut file, mut store) = created(params(1));
    let before = file.clone();
    store.refill_slot(0, true);
    write(&mut store, &mut file, MetaPage::Superblock);
    store.slots[0].bits.clear(BlockRange::new(0, 10));
    write_all(&mut store, &mut file);
    file[..128 * 1024].copy_from_slice(&before[..128 * 1024]);
    let (recovered, findings) = recover_file(&file).unwrap();
    assert_eq!(recovered.slots[0].bits.count(), SIZE_BYTES >> 12);
    assert_eq!((recovered.slots[0].epoch, findings.superblock_copies), (3, 0));
    assert!(!recovered.slots[0].range_durable(BlockRange::new(0, 1)));
}

#[test]
fn a_huge_empty_volume_is_recovered_without_reading_its_bits() {
    let geometry = Geometry::new(15 << 40, 12, 22).unwrap();
    let (superblock, layout) = create(CreateParams { geometry, ..params(1) });
    let pages: std::collections::BTreeMap<u64, Vec<u8>> = initial_pages(&superblock, &layout).collect();
    let bytes_read = std::cell::Cell::new(0);
    let mut read = |offset: u64, out: &mut [u8]| {
        bytes_read.set(bytes_read.get() + out.len());
        pages.get(&offset).map(|page| out.copy_from_slice(page)).ok_or(())
    };
    let (store, findings) = recover(layout.file_bytes(), &mut read, 100).unwrap();
    assert!(store.slots[0].bits.is_empty() && findings.damaged_pages == 0);
    assert!(bytes_read.get() < 2 << 20, "{} bytes read", bytes_read.get());
}

/// Offsets of both copies of a page.
fn copies_of(store: &Store, page: MetaPage) -> [usize; 2] {
    store.layout().locations(page, 0).offsets.map(|offset| offset as usize)
}

/// A file with a hot region and a dirty block in slot 0, all durable.
fn used_file() -> (Vec<u8>, Store) {
    let (mut file, mut store) = created(params(1));
    store.activity.acquire(RegionIndex(3));
    store.slots[0].bits.set(BlockRange::new(9, 1));
    write_all(&mut store, &mut file);
    (file, store)
}

#[test]
fn an_activity_page_without_intact_copy_is_all_hot() {
    let (mut file, store) = used_file();
    copies_of(&store, MetaPage::Activity(0)).iter().for_each(|offset| file[offset + 500] ^= 4);
    let (mut recovered, findings) = recover_file(&file).unwrap();
    assert_eq!((findings.hot_regions, findings.damaged_pages), (300, 2));
    recovered.merge_hot();
    assert_eq!(recovered.slots[0].bits.count(), SIZE_BYTES >> 12);
}

#[test]
fn a_mark_in_one_copy_counts_and_is_written_again() {
    let (fresh, _) = created(params(1));
    for copy in 0..2 {
        let (mut file, store) = used_file();
        let offset = copies_of(&store, MetaPage::Activity(0))[copy];
        file[offset..offset + PAGE].copy_from_slice(&fresh[offset..offset + PAGE]);
        let (mut recovered, findings) = recover_file(&file).unwrap();
        assert_eq!(findings.hot_regions, 1);
        assert_eq!(recovered.activity.hot_regions().next(), Some(RegionIndex(3)));
        assert!(!recovered.activity.is_hot(RegionIndex(3)), "one copy is not durable");
        assert_eq!(recovered.activity.begin_write(), Some(0));
    }
}

#[test]
fn a_slot_map_without_intact_copy_makes_the_slot_dirty() {
    let (mut file, store) = used_file();
    let map = MetaPage::SlotMap { slot: 0, page: 0 };
    copies_of(&store, map).iter().for_each(|offset| file[offset + 500] ^= 4);
    let (recovered, findings) = recover_file(&file).unwrap();
    assert_eq!(recovered.slots[0].bits.count(), SIZE_BYTES >> 12);
    assert_eq!((findings.damaged_pages, findings.pages_taken_as_dirty), (2, 3));
    assert_eq!(recovered.slots[0].bits.stale_pages(), 3);
}

#[test]
fn a_slot_map_with_one_intact_copy_counts_and_is_written_again() {
    for copy in 0..2 {
        let (mut file, store) = used_file();
        let map = MetaPage::SlotMap { slot: 0, page: 0 };
        file[copies_of(&store, map)[copy] + 500] ^= 4;
        let (recovered, _) = recover_file(&file).unwrap();
        assert_eq!(recovered.slots[0].bits.count(), 1);
        assert!(!recovered.slots[0].range_durable(BlockRange::new(9, 1)), "one copy is not durable");
        assert_eq!(recovered.next_stale(0, 0), Some(map));
    }
}

/// The disk lost a write that it had called durable.
#[test]
fn a_bits_page_of_an_older_epoch_that_the_map_names_is_all_dirty() {
    let (mut file, mut store) = used_file();
    let offset = copies_of(&store, MetaPage::Bits { slot: 0, page: 0 })[0];
    let older = file[offset..offset + PAGE].to_vec();
    store.refill_slot(0, false);
    write(&mut store, &mut file, MetaPage::Superblock);
    store.slots[0].bits.set(BlockRange::new(700, 1));
    write_all(&mut store, &mut file);
    put(&mut file, offset as u64, &older);
    let (recovered, findings) = recover_file(&file).unwrap();
    assert!(recovered.slots[0].bits.all(recovered.slots[0].bits.page_range(0)));
    assert_eq!((findings.damaged_pages, findings.pages_taken_as_dirty), (1, 1));
}

/// Its content belongs to the epoch before: it must not become part of the new one.
#[test]
fn a_bits_page_overtaken_by_a_refill_does_not_count() {
    let (mut file, mut store) = used_file();
    store.slots[0].bits.set(BlockRange::new(700, 1));
    let overtaken = begin(&mut store, MetaPage::Bits { slot: 0, page: 0 });
    store.refill_slot(0, false);
    assert_eq!(store.next_stale(0, 0), None, "the epoch is not durable");
    write(&mut store, &mut file, MetaPage::Superblock);
    finish(&mut store, &mut file, &overtaken);
    assert!(store.slots[0].map.is_empty());
    let (recovered, findings) = recover_file(&file).unwrap();
    assert!(recovered.slots[0].bits.is_empty());
    assert_eq!(findings.damaged_pages, 0);
}

/// An older program must not fall back to what a newer one left beside its own superblock.
#[test]
fn a_superblock_of_a_newer_version_is_never_passed_over() {
    let (mut file, _) = created(params(1));
    file[4] = FORMAT_VERSION as u8 + 1;
    let checksum = crc32c(&[&file[..32], &file[36..PAGE]].concat());
    file[32..36].copy_from_slice(&checksum.to_le_bytes());
    assert_eq!(
        recover_file(&file).expect_err("must be refused"),
        RecoverError::NewerVersion(FORMAT_VERSION + 1)
    );
}
