//! Checkpoints in a store used as a Primary uses it, on a disk that may lose or tear what is in flight; and the file
//! that has room for them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use proptest::prelude::*;

use crate::file::*;
use lockstep_bitmap::*;

const ROOM: u8 = 2;

fn checkpoint(id: u128) -> Checkpoint {
    Checkpoint {
        id: CheckpointId(id),
        name: format!("c{id}"),
        created_unix_ms: 1_700_000_000_000 + id as u64,
        generation: GenerationId(0xa1 << 96 | 1),
        state: CheckpointState::Complete,
    }
}

fn with_room() -> CreateParams {
    CreateParams { checkpoints: ROOM, ..params(1) }
}

#[derive(Clone, Debug)]
enum Op {
    /// A write: its region is marked, then every checkpoint is told.
    Write(u32, u64),
    Release(u32),
    Create,
    Remove(usize),
    WriteActivity,
    WriteSlot(usize, u32),
    WriteSuperblock,
    Finish(usize),
    Cool(u32),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        9 => (0..8_u32, 0..256_u64).prop_map(|(region, block)| Op::Write(region * 42, block)),
        6 => (0..8_u32).prop_map(|region| Op::Release(region * 42)),
        2 => Just(Op::Create),
        1 => (0..ROOM as usize).prop_map(Op::Remove),
        6 => Just(Op::WriteActivity),
        8 => (0..3_usize, 0..3_u32).prop_map(|(slot, from)| Op::WriteSlot(slot, from)),
        5 => Just(Op::WriteSuperblock),
        14 => (0..8_usize).prop_map(Op::Finish),
        4 => (1..4_u32).prop_map(Op::Cool),
    ]
}

struct World {
    file: Vec<u8>,
    store: Store,
    in_flight: Vec<Write>,
    /// What was written since each checkpoint was created.
    written: BTreeMap<u128, BTreeSet<u64>>,
    held: BTreeSet<u32>,
    next_id: u128,
}

impl World {
    fn new() -> Self {
        let (file, store) = created(with_room());
        let (in_flight, written) = (Vec::new(), BTreeMap::new());
        Self { file, store, in_flight, written, held: BTreeSet::new(), next_id: 1 }
    }

    fn begin(&mut self, page: MetaPage) {
        let write = begin(&mut self.store, page);
        self.in_flight.push(write);
    }

    fn write(&mut self, region: u32, block: u64) {
        let index = RegionIndex(region);
        if !self.held.contains(&region) && self.store.activity.acquire(index) != Acquire::Full {
            self.held.insert(region);
        }
        if self.held.contains(&region) && self.store.activity.is_hot(index) {
            let block = self.store.geometry().blocks_of_region(index).start + block;
            self.store.note_written(BlockRange::new(block, 1));
            self.written.values_mut().for_each(|blocks| {
                blocks.insert(block);
            });
        }
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Write(region, block) => self.write(region, block),
            Op::Release(region) => {
                if self.held.remove(&region) {
                    self.store.activity.release(RegionIndex(region));
                }
            }
            Op::Create => {
                if self.store.add_checkpoint(checkpoint(self.next_id)).is_some() {
                    self.written.insert(self.next_id, BTreeSet::new());
                    self.next_id += 1;
                }
            }
            Op::Remove(nth) => {
                let found = self.store.checkpoints().nth(nth).map(|(position, held)| (position, held.id));
                if let Some((position, id)) = found {
                    self.store.remove_checkpoint(position);
                    self.written.remove(&id.0);
                }
            }
            Op::WriteActivity => {
                if let Some(page) = self.store.activity.begin_write() {
                    self.begin(MetaPage::Activity(page));
                }
            }
            Op::WriteSlot(nth, from) => {
                let slot = self.store.slot_numbers().nth(nth).unwrap();
                if let Some(page) = self.store.next_stale(slot, from) {
                    self.begin(page);
                }
            }
            Op::WriteSuperblock => {
                if !self.in_flight.iter().any(|write| write.page == MetaPage::Superblock) {
                    self.begin(MetaPage::Superblock);
                }
            }
            Op::Finish(index) => {
                if !self.in_flight.is_empty() {
                    let write = self.in_flight.remove(index % self.in_flight.len());
                    finish(&mut self.store, &mut self.file, &write);
                    while self.store.activity.take_hot().is_some() {}
                }
            }
            Op::Cool(limit) => {
                self.store.cool(limit);
            }
        }
    }

    fn crash(mut self, fates: &[u8]) {
        let mut fates = fates.iter().cycle();
        for write in &self.in_flight {
            for offset in write.at.iter() {
                let sectors = usize::from(*fates.next().unwrap()) % (write.bytes.len() / 512 + 1);
                put(&mut self.file, offset, &write.bytes[..sectors * 512]);
            }
        }
        let (mut store, _) = recover_file(&self.file).expect("a crash leaves a file that opens");
        store.merge_hot();
        for (position, found) in
            store.checkpoints().filter(|(_, found)| found.state == CheckpointState::Complete)
        {
            // One that was removed, and whose removal was lost, is of no interest.
            for block in self.written.get(&found.id.0).into_iter().flatten() {
                let bits = store.checkpoint_bits(position);
                assert!(bits.is_dirty(BlockIndex(*block)), "{} lost block {block}", found.name);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn nothing_written_since_a_checkpoint_is_forgotten(
        ops in prop::collection::vec(op(), 1..150),
        fates in prop::collection::vec(any::<u8>(), 8),
    ) {
        let mut world = World::new();
        ops.into_iter().for_each(|op| world.step(op));
        world.crash(&fates);
    }
}

/// A file with two checkpoints that were written to, one of which is gone again, and what is durable of it.
fn used() -> (Vec<u8>, Store) {
    let (mut file, mut store) = created(with_room());
    for id in [1, 2] {
        store.add_checkpoint(checkpoint(id));
    }
    write(&mut store, &mut file, MetaPage::Superblock);
    store.note_written(BlockRange::new(40_000, 900));
    store.note_written(BlockRange::new(3, 1));
    write_all(&mut store, &mut file);
    store.remove_checkpoint(0);
    let unclean = CheckpointState::Incomplete(Incomplete::UncleanStop);
    store.add_checkpoint(Checkpoint { state: unclean, ..checkpoint(3) });
    store.superblock.checkpoints[1].covered = true;
    write(&mut store, &mut file, MetaPage::Superblock);
    write_all(&mut store, &mut file);
    write(&mut store, &mut file, MetaPage::Superblock);
    (file, store)
}

fn fixture() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1-checkpoints.meta")
}

#[test]
fn today_writes_the_bytes_of_version_1_with_checkpoints() {
    let (file, _) = used();
    if std::env::var_os("LOCKSTEP_WRITE_GOLDEN").is_some() {
        std::fs::write(fixture(), &file).expect("the fixture is written");
    }
    let golden = std::fs::read(fixture()).expect("the fixture exists");
    assert_eq!(golden.len(), file.len());
    let first = golden.iter().zip(&file).position(|(golden, today)| golden != today);
    assert_eq!(first, None, "first byte that differs");
}

#[test]
fn a_file_of_version_1_with_checkpoints_opens() {
    let store = truth(&std::fs::read(fixture()).expect("the fixture exists"));
    let names: Vec<&str> = store.checkpoints().map(|(_, held)| held.name.as_str()).collect();
    assert_eq!(names, ["c3", "c2"]);
    assert!(store.superblock.checkpoints[1].covered);
    assert!(store.checkpoint_bits(0).is_empty(), "the place of the one before is empty");
    let all = store.geometry().all_blocks();
    let runs: Vec<BlockRange> = store.checkpoint_bits(1).runs(all).collect();
    assert_eq!(runs, [BlockRange::new(3, 1), BlockRange::new(40_000, 900)]);
    assert_eq!(store.checkpoint_bits(1).runs(BlockRange::new(40_100, 10)).count(), 1);
}

#[test]
fn a_file_without_room_takes_no_checkpoint() {
    let (file, _) = created(params(1));
    let mut store = truth(&file);
    assert_eq!(store.add_checkpoint(checkpoint(1)), None);
}

#[test]
fn damage_makes_more_blocks_of_a_checkpoint_dirty_and_an_older_record_makes_it_invalid() {
    let (mut file, mut store) = used();
    let slot = checkpoint_slot(1);
    let at = |page| store.layout().locations(page, 0).offsets[0] as usize;
    let mut damaged = file.clone();
    damaged[at(MetaPage::Bits { slot, page: 1 }) + 99] ^= 1;
    let (recovered, _) = recover_file(&damaged).unwrap();
    let page = recovered.checkpoint_bits(1).page_range(1);
    assert!(recovered.checkpoint_bits(1).all(page));
    assert_eq!(recovered.checkpoint_bits(1).count(), 1 + page.len());
    // A superblock of before the second life of place 0, which has written a page.
    store.note_written(BlockRange::new(5, 1));
    write_all(&mut store, &mut file);
    let mut older = file.clone();
    let (early, mut early_store) = created(with_room());
    older[..128 * 1024].copy_from_slice(&early[..128 * 1024]);
    assert!(recover_file(&older).unwrap().0.checkpoints().next().is_none());
    let mut early = early;
    early_store.add_checkpoint(checkpoint(7));
    write(&mut early_store, &mut early, MetaPage::Superblock);
    older[..128 * 1024].copy_from_slice(&early[..128 * 1024]);
    let (recovered, findings) = recover_file(&older).unwrap();
    let (_, held) = recovered.checkpoints().next().unwrap();
    assert_eq!(held.state, CheckpointState::Invalid(Invalid::Metadata));
    assert_eq!(findings.superblock_copies, 0, "the superblock must be written first");
}

#[test]
fn covered_means_that_what_was_stale_then_is_on_disk_now() {
    let (mut file, mut store) = created(with_room());
    store.add_checkpoint(checkpoint(1));
    write(&mut store, &mut file, MetaPage::Superblock);
    let slot = checkpoint_slot(0);
    store.note_written(BlockRange::new(5, 1));
    let stale = store.next_stale(slot, 0).unwrap();
    let early = begin(&mut store, stale);
    store.note_written(BlockRange::new(6, 1));
    store.slot_mut(slot).begin_covering();
    finish(&mut store, &mut file, &early);
    assert!(!store.slot(slot).is_covered(), "block 6 came after that write had begun");
    while let Some(page) = store.next_stale(slot, 0) {
        let write = begin(&mut store, page);
        // What comes from now on is not asked for.
        store.note_written(BlockRange::new(7, 1));
        finish(&mut store, &mut file, &write);
        if store.slot(slot).is_covered() {
            break;
        }
    }
    let (recovered, _) = recover_file(&file).unwrap();
    assert!(recovered.checkpoint_bits(0).all(BlockRange::new(5, 2)));
}
