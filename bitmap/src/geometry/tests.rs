//! Conversions against a count of bytes, on volumes small enough to count.

use proptest::prelude::*;

use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn conversions_agree_with_counting(
        size_sectors in 1..200_u64,
        block_shift in 12..15_u8,
        region_extra in 0..3_u8,
        start in 0..120_000_u64,
        len in 0..120_000_u64,
    ) {
        let size_bytes = size_sectors * 512;
        let geometry = Geometry::new(size_bytes, block_shift, block_shift + region_extra).unwrap();
        let range = ByteRange::new(start, len);
        let end = start + len;
        let inside = |unit: ByteRange| (unit.start..unit.end).filter(|byte| *byte >= start && *byte < end);
        for block in 0..geometry.blocks() {
            let bytes = geometry.bytes_of(BlockRange::new(block, 1));
            prop_assert!(!bytes.is_empty() && bytes.end <= size_bytes);
            let touched = geometry.blocks_touched(range).contains(BlockRange::new(block, 1));
            prop_assert_eq!(touched, inside(bytes).next().is_some(), "block {}", block);
            let covered = geometry.blocks_covered(range).contains(BlockRange::new(block, 1));
            prop_assert_eq!(covered, inside(bytes).count() as u64 == bytes.len(), "block {}", block);
        }
        for region in 0..geometry.regions() {
            let bytes = geometry.bytes_of(geometry.blocks_of_region(RegionIndex(region)));
            prop_assert_eq!(geometry.region_of_byte(bytes.start), RegionIndex(region));
            prop_assert_eq!(geometry.region_of_byte(bytes.end - 1), RegionIndex(region));
            let touched = geometry.regions_touched(range).contains(&region);
            prop_assert_eq!(touched, inside(bytes).next().is_some(), "region {}", region);
        }
    }

    #[test]
    fn range_helpers_agree_with_each_other(a in 0..50_u64, b in 0..50_u64, c in 0..50_u64, d in 0..50_u64) {
        let (x, y) = (BlockRange::new(a, b), BlockRange::new(c, d));
        let common = (a..a + b).filter(|n| (c..c + d).contains(n)).count() as u64;
        prop_assert_eq!(x.intersect(y).len(), common);
        prop_assert_eq!(x.overlaps(y), common > 0);
        prop_assert_eq!(x.contains(y), common == d);
    }
}

#[test]
fn impossible_geometries_are_refused() {
    assert_eq!(Geometry::new(0, 12, 22), Err(GeometryError::Size(0)));
    assert_eq!(Geometry::new(1000, 12, 22), Err(GeometryError::Size(1000)));
    assert_eq!(Geometry::new((1 << 56) + 512, 12, 30), Err(GeometryError::Size((1 << 56) + 512)));
    assert_eq!(Geometry::new(512, 11, 22), Err(GeometryError::BlockShift(11)));
    assert_eq!(Geometry::new(512, 21, 22), Err(GeometryError::BlockShift(21)));
    assert_eq!(Geometry::new(512, 14, 13), Err(GeometryError::RegionShift(13)));
    assert_eq!(Geometry::new(1 << 56, 12, 22), Err(GeometryError::RegionShift(22)));
    assert_eq!(Geometry::new(1 << 56, 20, 25).unwrap().regions(), 1 << 31);
}
