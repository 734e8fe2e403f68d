//! A store used as the core uses it, a disk that may lose or tear whatever is in flight, and a crash at the
//! end.

use std::collections::BTreeSet;

use proptest::prelude::*;

use crate::file::*;
use lockstep_bitmap::*;

const SLOTS: u8 = 2;

#[derive(Clone, Debug)]
enum Op {
    /// An application write that the peers miss: acquire, and set the bits if the region is hot.
    Miss(u32, u64),
    Release(u32),
    Clear(u8, u64, u64),
    WriteActivity,
    WriteSlot(u8, u32),
    WriteSuperblock,
    Finish(usize),
    Cool(u32),
    Refill(u8, bool),
}

fn op() -> impl Strategy<Value = Op> {
    let slot = || 0..SLOTS;
    prop_oneof![
        8 => (0..300_u32, 0..256_u64).prop_map(|(region, block)| Op::Miss(region / 40 * 42, block)),
        6 => (0..300_u32).prop_map(|region| Op::Release(region / 40 * 42)),
        3 => (slot(), 0..76_000_u64, 0..40_000_u64)
            .prop_map(|(slot, start, len)| Op::Clear(slot, start, len)),
        6 => Just(Op::WriteActivity),
        8 => (slot(), 0..3_u32).prop_map(|(slot, from)| Op::WriteSlot(slot, from)),
        3 => Just(Op::WriteSuperblock),
        14 => (0..8_usize).prop_map(Op::Finish),
        4 => (1..4_u32).prop_map(Op::Cool),
        1 => (slot(), any::<bool>()).prop_map(|(slot, filled)| Op::Refill(slot, filled)),
    ]
}

struct World {
    file: Vec<u8>,
    store: Store,
    in_flight: Vec<Write>,
    /// Blocks that the peer of a slot misses for sure.
    missed: [BTreeSet<u64>; SLOTS as usize],
    /// Slots whose fill is durable and was not changed since.
    held: BTreeSet<u32>,
    newest_durable: Superblock,
}

impl World {
    fn new() -> Self {
        let mut params = params(SLOTS);
        params.peers[1].slot_filled = false;
        let (file, store) = created(params);
        let newest_durable = store.superblock.clone();
        Self {
            file,
            store,
            in_flight: Vec::new(),
            missed: Default::default(),
            held: BTreeSet::new(),
            newest_durable,
        }
    }

    fn begin(&mut self, page: MetaPage) {
        let write = begin(&mut self.store, page);
        self.in_flight.push(write);
    }

    fn step(&mut self, op: Op) {
        let geometry = *self.store.geometry();
        match op {
            Op::Miss(region, block) => {
                let index = RegionIndex(region);
                if !self.held.contains(&region) {
                    match self.store.activity.acquire(index) {
                        Acquire::Full => return,
                        Acquire::Hot | Acquire::Pending => self.held.insert(region),
                    };
                }
                if self.store.activity.is_hot(index) {
                    let block = geometry.blocks_of_region(index).start + block;
                    for slot in 0..usize::from(SLOTS) {
                        self.store.slots[slot].bits.set(BlockRange::new(block, 1));
                        self.missed[slot].insert(block);
                    }
                }
            }
            Op::Release(region) => {
                if self.held.remove(&region) {
                    self.store.activity.release(RegionIndex(region));
                }
            }
            Op::Clear(slot, start, len) => {
                let range = BlockRange::new(start, len).intersect(geometry.all_blocks());
                self.store.slots[usize::from(slot)].bits.clear(range);
                self.missed[usize::from(slot)].retain(|block| !range.contains(BlockRange::new(*block, 1)));
            }
            Op::WriteActivity => {
                if let Some(page) = self.store.activity.begin_write() {
                    self.begin(MetaPage::Activity(page));
                }
            }
            Op::WriteSlot(slot, from) => {
                if let Some(page) = self.store.next_stale(slot, from) {
                    self.begin(page);
                }
            }
            Op::WriteSuperblock => {
                if !self.in_flight.iter().any(|write| write.page == MetaPage::Superblock) {
                    self.store.superblock.term += 1;
                    self.begin(MetaPage::Superblock);
                }
            }
            Op::Finish(index) => self.finish(index),
            Op::Cool(limit) => {
                let slots = &self.store.slots;
                let bits_durable = |region| {
                    let blocks = geometry.blocks_of_region(region);
                    slots.iter().all(|slot| slot.range_durable(blocks))
                };
                self.store.activity.cool(limit, bits_durable);
            }
            Op::Refill(slot, filled) => {
                self.store.refill_slot(slot, filled);
                if !filled {
                    self.missed[usize::from(slot)].clear();
                }
            }
        }
    }

    fn finish(&mut self, index: usize) {
        if self.in_flight.is_empty() {
            return;
        }
        let write = self.in_flight.remove(index % self.in_flight.len());
        finish(&mut self.store, &mut self.file, &write);
        while self.store.activity.take_hot().is_some() {}
        if write.page == MetaPage::Superblock {
            self.newest_durable = Superblock::decode(&write.bytes).expect("own superblock");
        }
    }

    /// A crash: each copy in flight is lost, complete, or torn between two sectors.
    fn crash(mut self, fates: &[u8]) {
        let mut fates = fates.iter().cycle();
        let mut newest_possible = self.newest_durable.clone();
        for write in &self.in_flight {
            for offset in write.at.iter() {
                let sectors = usize::from(*fates.next().unwrap()) % (write.bytes.len() / 512 + 1);
                put(&mut self.file, offset, &write.bytes[..sectors * 512]);
            }
            if write.page == MetaPage::Superblock {
                newest_possible = Superblock::decode(&write.bytes).expect("own superblock");
            }
        }
        let (mut store, _) = recover_file(&self.file).expect("a crash leaves a file that opens");
        assert!(store.superblock == self.newest_durable || store.superblock == newest_possible);
        store.merge_hot();
        for (slot, missed) in self.missed.iter().enumerate() {
            for block in missed {
                assert!(
                    store.slots[slot].bits.is_dirty(BlockIndex(*block)),
                    "slot {slot} lost block {block}"
                );
            }
        }
        // After a second recovery of what it writes now, nothing is lost either.
        write(&mut store, &mut self.file, MetaPage::Superblock);
        write_all(&mut store, &mut self.file);
        let (mut again, _) = recover_file(&self.file).expect("what recovery writes opens");
        again.merge_hot();
        assert!(covers(&again, &store));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn nothing_missed_is_forgotten(
        ops in prop::collection::vec(op(), 1..150),
        fates in prop::collection::vec(any::<u8>(), 8),
    ) {
        let mut world = World::new();
        ops.into_iter().for_each(|op| world.step(op));
        world.crash(&fates);
    }
}
