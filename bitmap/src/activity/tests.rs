//! The activity map against a naive model that follows what both copies on disk hold.

use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

const REGIONS: u32 = BITS_PER_PAGE as u32 + 40;
const MAX_HOT: u32 = 6;

#[derive(Clone, Debug)]
enum Op {
    Acquire(u32),
    Release(u32),
    Begin,
    End(u32),
    Cool(u32, u32),
}

fn region() -> impl Strategy<Value = u32> {
    prop_oneof![0..8_u32, REGIONS - 44..REGIONS - 36]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => region().prop_map(Op::Acquire),
        5 => region().prop_map(Op::Release),
        4 => Just(Op::Begin),
        4 => (0..2_u32).prop_map(Op::End),
        3 => (0..5_u32, 0..4_u32).prop_map(|(limit, refused)| Op::Cool(limit, refused)),
    ]
}

/// Marks surely on disk: those of the last durable page, less those that a write in flight removes.
#[derive(Default)]
struct Model {
    uses: BTreeMap<u32, u32>,
    durable: BTreeSet<u32>,
    in_flight: BTreeMap<u32, BTreeSet<u32>>,
    promised: BTreeSet<u32>,
}

impl Model {
    fn surely_on_disk(&self, region: u32) -> bool {
        let page = region / BITS_PER_PAGE as u32;
        self.durable.contains(&region)
            && self.in_flight.get(&page).is_none_or(|image| image.contains(&region))
    }

    fn maybe_on_disk(&self) -> BTreeSet<u32> {
        self.durable.iter().chain(self.in_flight.values().flatten()).copied().collect()
    }
}

fn apply(op: Op, map: &mut ActivityMap, model: &mut Model) {
    match op {
        Op::Acquire(region) => {
            let counted = map.hot_regions().any(|hot| hot.0 == region);
            let before = map.hot_count();
            match map.acquire(RegionIndex(region)) {
                Acquire::Hot => assert!(model.surely_on_disk(region), "{region} is not on disk"),
                Acquire::Pending => assert!(!model.surely_on_disk(region) && (counted || before < MAX_HOT)),
                Acquire::Full => {
                    assert!(!counted && before >= MAX_HOT);
                    return;
                }
            }
            *model.uses.entry(region).or_default() += 1;
            model.promised.insert(region);
        }
        Op::Release(region) => {
            if let Some(uses) = model.uses.get_mut(&region).filter(|uses| **uses > 0) {
                *uses -= 1;
                map.release(RegionIndex(region));
            }
        }
        Op::Begin => {
            let wanted = map.want_write();
            let page = map.begin_write();
            assert_eq!(wanted, page.is_some());
            if let Some(page) = page {
                assert!(!model.in_flight.contains_key(&page));
                let mut bits = PageBits::default();
                map.page_bits(page, &mut bits);
                let marks = (0..BITS_PER_PAGE).filter(|index| bits.get(*index));
                let image = marks.map(|index| page * BITS_PER_PAGE as u32 + index as u32).collect();
                model.in_flight.insert(page, image);
            }
        }
        Op::End(page) => {
            if let Some(image) = model.in_flight.remove(&page) {
                let before: BTreeSet<u32> = model.durable.iter().copied().collect();
                model.durable.retain(|region| region / BITS_PER_PAGE as u32 != page);
                model.durable.extend(&image);
                map.end_write(page);
                while let Some(region) = map.take_hot() {
                    assert!(image.contains(&region.0) && map.is_hot(region));
                    assert!(!before.contains(&region.0) || model.promised.contains(&region.0));
                }
            }
        }
        Op::Cool(limit, refused) => {
            let chosen = map.cool(limit, |region| region.0 % 4 != refused);
            assert!(chosen <= limit);
        }
    }
}

fn compare(map: &ActivityMap, model: &Model) {
    let hot: Vec<u32> = map.hot_regions().map(|region| region.0).collect();
    assert_eq!(hot.len() as u32, map.hot_count());
    assert!(map.hot_count() <= MAX_HOT);
    assert!(model.maybe_on_disk().iter().all(|region| hot.contains(region)), "a mark on disk is not counted");
    let mut durable = 0;
    for region in (0..8).chain(REGIONS - 44..REGIONS - 36) {
        assert_eq!(map.is_hot(RegionIndex(region)), model.surely_on_disk(region), "region {region}");
        durable += u32::from(model.surely_on_disk(region));
        let uses = model.uses.get(&region).copied().unwrap_or(0);
        assert_eq!(map.uses(RegionIndex(region)), uses);
        let used_and_cold = uses > 0 && !hot.contains(&region);
        assert!(!used_and_cold, "region {region} is in use and not marked");
    }
    assert_eq!(map.durable_count(), durable);
    assert!(map.candidates() <= map.durable_count());
    // The candidates are those that one more `cool` would choose.
    assert_eq!(map.clone().cool(u32::MAX, |_| true), map.candidates());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn never_says_hot_without_a_mark_on_disk(ops in prop::collection::vec(op(), 1..120)) {
        let geometry = Geometry::new(u64::from(REGIONS) << 12, 12, 12).unwrap();
        let mut map = ActivityMap::new(&geometry, MAX_HOT);
        let mut model = Model::default();
        for op in ops {
            apply(op, &mut map, &mut model);
            compare(&map, &model);
        }
        // Every wait ends: without new uses, a few writes leave nothing to write, and all can be cooled.
        for (region, uses) in &model.uses {
            (0..*uses).for_each(|_| map.release(RegionIndex(*region)));
        }
        for _ in 0..4 {
            (0..2).filter(|page| model.in_flight.remove(page).is_some()).for_each(|page| map.end_write(page));
            map.cool(u32::MAX, |_| true);
            while let Some(page) = map.begin_write() {
                map.end_write(page);
            }
        }
        prop_assert_eq!(map.hot_count(), 0);
    }
}

#[test]
fn a_region_whose_removal_is_in_flight_needs_a_new_mark() {
    let geometry = Geometry::new(1 << 30, 12, 22).unwrap();
    let mut map = ActivityMap::new(&geometry, 2);
    map.load([RegionIndex(3)]);
    assert_eq!(map.cool(1, |_| true), 1);
    assert_eq!(map.acquire(RegionIndex(3)), Acquire::Hot, "taken back");
    map.release(RegionIndex(3));
    assert_eq!(map.cool(1, |_| true), 1);
    assert_eq!(map.begin_write(), Some(0));
    assert_eq!(map.acquire(RegionIndex(3)), Acquire::Pending);
    map.end_write(0);
    assert_eq!(map.take_hot(), None);
    assert_eq!(map.begin_write(), Some(0));
    map.end_write(0);
    assert_eq!(map.take_hot(), Some(RegionIndex(3)));
}

#[test]
fn more_regions_than_the_bound_can_be_loaded_and_cooled() {
    let geometry = Geometry::new(1 << 30, 12, 22).unwrap();
    let mut map = ActivityMap::new(&geometry, 2);
    map.load((0..5).map(RegionIndex));
    map.load_unsure((4..7).map(RegionIndex));
    assert_eq!((map.hot_count(), map.candidates()), (7, 5));
    assert_eq!(map.acquire(RegionIndex(100)), Acquire::Full);
    assert_eq!(map.acquire(RegionIndex(6)), Acquire::Pending, "one copy is not enough");
    assert_eq!(map.begin_write(), Some(0));
    map.end_write(0);
    assert!(map.is_hot(RegionIndex(6)));
    assert_eq!(map.cool(u32::MAX, |_| true), 6);
}
