//! The bitmap against a vector of booleans and a model of the disk.

use std::collections::BTreeMap;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

const BITS: u64 = BITS_PER_PAGE * 3 + 77;

#[derive(Clone, Debug)]
enum Op {
    Set(u64, u64),
    Clear(u64, u64),
    Or(u64, Vec<u8>),
    Begin(u32),
    End(u32),
    LoadBack(u32),
    Lost(u32),
    Fill,
    Reset(bool),
}

fn near_borders() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (0..5_u64, 0..300_u64)
            .prop_map(|(page, offset)| (page * BITS_PER_PAGE + offset).saturating_sub(150).min(BITS)),
        1 => 0..=BITS,
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (near_borders(), 0..200_u64).prop_map(|(start, len)| Op::Set(start, len)),
        1 => (near_borders(), 0..=BITS).prop_map(|(start, len)| Op::Set(start, len)),
        4 => (near_borders(), 0..200_u64).prop_map(|(start, len)| Op::Clear(start, len)),
        1 => (near_borders(), 0..=BITS).prop_map(|(start, len)| Op::Clear(start, len)),
        2 => (near_borders(), prop::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(at, bits)| Op::Or(at, bits)),
        4 => (0..4_u32).prop_map(Op::Begin),
        4 => (0..4_u32).prop_map(Op::End),
        1 => (0..4_u32).prop_map(Op::LoadBack),
        1 => (0..4_u32).prop_map(Op::Lost),
        1 => Just(Op::Fill),
        1 => any::<bool>().prop_map(Op::Reset),
    ]
}

/// What the bitmap should hold, and what the disk does.
struct Model {
    bits: Vec<bool>,
    disk: Vec<Vec<bool>>,
    in_flight: BTreeMap<u32, Vec<bool>>,
}

impl Model {
    fn page(&self, page: u32) -> Vec<bool> {
        self.bits.chunks(BITS_PER_PAGE as usize).nth(page as usize).unwrap().to_vec()
    }

    fn put(&mut self, range: BlockRange, value: bool) -> u64 {
        let slice = &mut self.bits[range.start as usize..range.end as usize];
        let changed = slice.iter().filter(|bit| **bit != value).count() as u64;
        slice.fill(value);
        changed
    }
}

fn apply(op: Op, bitmap: &mut DirtyBitmap, model: &mut Model) {
    let clip =
        |start: u64, len: u64| BlockRange::new(start, len).intersect(BlockRange { start: 0, end: BITS });
    match op {
        Op::Set(start, len) => {
            let range = clip(start, len);
            assert_eq!(bitmap.set(range), model.put(range, true));
        }
        Op::Clear(start, len) => {
            let range = clip(start, len);
            assert_eq!(bitmap.clear(range), model.put(range, false));
        }
        Op::Or(first, bits) => {
            let mut added = 0;
            for (index, bit) in (0_u64..).zip(bits.iter().flat_map(|b| (0..8).map(move |n| b >> n & 1 == 1)))
            {
                if bit && first + index < BITS {
                    added += model.put(BlockRange::new(first + index, 1), true);
                }
            }
            assert_eq!(bitmap.or_bits(first, &bits), added);
        }
        Op::Begin(page) if !model.in_flight.contains_key(&page) => {
            let mut out = PageBits::default();
            bitmap.begin_write(page, &mut out);
            let expected = model.page(page);
            let got: Vec<bool> = (0..expected.len() as u64).map(|index| out.get(index)).collect();
            assert_eq!(got, expected);
            model.in_flight.insert(page, expected);
        }
        Op::End(page) => {
            if let Some(bits) = model.in_flight.remove(&page)
                && bitmap.end_write(page)
            {
                model.disk[page as usize] = bits;
            }
        }
        Op::LoadBack(page) if !model.in_flight.contains_key(&page) => {
            let mut bits = PageBits([0xff; PAGE_PAYLOAD_BYTES]);
            bits.0[7] = 0x5a;
            bitmap.load_page(page, &bits);
            let range = bitmap.page_range(page);
            (range.start..range.end)
                .for_each(|block| model.bits[block as usize] = bits.get(block - range.start));
            model.disk[page as usize] = model.page(page);
        }
        Op::Lost(page) => {
            bitmap.mark_page_all_dirty(page);
            model.put(bitmap.page_range(page), true);
        }
        Op::Fill => {
            bitmap.fill();
            model.bits.fill(true);
        }
        Op::Reset(filled) => {
            bitmap.reset(filled);
            model.bits.fill(filled);
            (0..4).for_each(|page| model.disk[page as usize] = model.page(page));
        }
        Op::Begin(_) | Op::LoadBack(_) => {}
    }
}

fn compare(bitmap: &DirtyBitmap, model: &Model, from: u64, max_blocks: u64) {
    assert_eq!(bitmap.count(), model.bits.iter().filter(|bit| **bit).count() as u64);
    assert_eq!(bitmap.is_empty(), bitmap.count() == 0);
    let start = (from..BITS).find(|block| model.bits[*block as usize]);
    let run = start.map(|start| {
        let limit = (start + max_blocks).min(BITS);
        let end = (start..limit).find(|block| !model.bits[*block as usize]).unwrap_or(limit);
        BlockRange { start, end }
    });
    assert_eq!(bitmap.next_run(from, max_blocks), run);
    let range = BlockRange::new(from, max_blocks).intersect(BlockRange { start: 0, end: BITS });
    let slice = &model.bits[range.start as usize..range.end as usize];
    assert_eq!(bitmap.any(range), slice.contains(&true));
    assert_eq!(bitmap.all(range), !slice.contains(&false));
    let mut raw = [0xee; 19];
    bitmap.read_bits(from, &mut raw);
    for (index, bit) in (0_u64..).zip(raw.iter().flat_map(|byte| (0..8).map(move |n| byte >> n & 1 == 1))) {
        assert_eq!(bit, model.bits.get((from + index) as usize).copied().unwrap_or(false));
    }
    let mut stale_pages = 0;
    for page in 0..bitmap.pages() {
        let durable = bitmap.range_durable(bitmap.page_range(page));
        stale_pages += u32::from(!durable);
        assert!(!durable || model.disk[page as usize] == model.page(page), "page {page} is not on disk");
        assert!(!durable || !model.in_flight.contains_key(&page), "page {page} is being written");
        let is_next = bitmap.next_stale(page) == Some(page);
        assert_eq!(is_next, !durable && !model.in_flight.contains_key(&page));
    }
    assert_eq!(bitmap.stale_pages(), stale_pages);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn agrees_with_a_vector_of_booleans(
        filled: bool,
        steps in prop::collection::vec((op(), near_borders(), 1..500_u64), 1..40),
    ) {
        let mut bitmap = DirtyBitmap::with_bits(BITS, filled);
        let bits = vec![filled; BITS as usize];
        let disk = bits.chunks(BITS_PER_PAGE as usize).map(<[bool]>::to_vec).collect();
        let mut model = Model { bits, disk, in_flight: BTreeMap::new() };
        for (op, from, max_blocks) in steps {
            apply(op, &mut bitmap, &mut model);
            compare(&bitmap, &model, from, max_blocks);
        }
    }
}

#[test]
fn a_change_during_a_write_keeps_the_page_stale() {
    let mut bitmap = DirtyBitmap::with_bits(BITS, false);
    let mut out = PageBits::default();
    bitmap.set(BlockRange::new(5, 1));
    bitmap.begin_write(0, &mut out);
    bitmap.set(BlockRange::new(6, 1));
    assert!(bitmap.end_write(0));
    assert!(!bitmap.range_durable(BlockRange::new(5, 1)));
    bitmap.begin_write(0, &mut out);
    assert!(!bitmap.range_durable(BlockRange::new(5, 1)));
    assert!(bitmap.end_write(0));
    assert!(bitmap.range_durable(BlockRange::new(5, 1)));
}

#[test]
fn bits_of_a_peer_past_the_end_are_ignored() {
    let mut bitmap = DirtyBitmap::with_bits(70, false);
    assert_eq!(bitmap.or_bits(64, &[0xff; 64]), 6);
    assert_eq!(bitmap.or_bits(u64::MAX - 3, &[0xff; 64]), 0);
    assert_eq!(bitmap.or_bits(70, &[0xff]), 0);
    assert_eq!(bitmap.count(), 6);
}

#[test]
fn the_largest_empty_bitmap_is_made_at_once() {
    let geometry = Geometry::new(15 << 40, 12, 22).unwrap();
    let mut bitmap = DirtyBitmap::new(&geometry, false);
    bitmap.set(BlockRange::new(geometry.blocks() - 1, 1));
    assert_eq!(bitmap.next_run(0, 100), Some(BlockRange::new(geometry.blocks() - 1, 1)));
}
