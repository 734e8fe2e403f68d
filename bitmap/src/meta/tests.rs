//! Pages and layout.

use super::*;
use crate::checkpoint::checkpoint_slot;

fn header() -> PageHeader {
    PageHeader { kind: PageKind::Bits, slot: 3, index: 7, epoch: 9, sequence: 11, file_id: 13 }
}

#[test]
fn checksum_is_the_one_of_the_standard() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}

#[test]
fn every_flipped_bit_of_a_page_is_noticed() {
    let mut page = [0; PAGE_BYTES];
    let payload: [u8; PAGE_PAYLOAD_BYTES] = core::array::from_fn(|index| index as u8);
    encode_page(&header(), &payload, &mut page);
    assert_eq!(decode_page(&page), Ok((header(), &payload)));
    for bit in 0..PAGE_BYTES * 8 {
        page[bit / 8] ^= 1 << (bit % 8);
        assert!(matches!(decode_page(&page), Err(PageError::Magic | PageError::Checksum)), "bit {bit}");
        page[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn an_intact_page_of_a_newer_version_is_told_apart() {
    let mut page = [0; PAGE_BYTES];
    encode_page(&header(), &[], &mut page);
    page[4] = 2;
    assert_eq!(decode_page(&page), Err(PageError::Checksum));
    let checksum = page_checksum(&page);
    page[CRC_OFFSET..CRC_OFFSET + 4].copy_from_slice(&checksum.to_le_bytes());
    assert_eq!(decode_page(&page), Err(PageError::NewerVersion(2)));
}

#[test]
fn areas_never_overlap_and_pages_stay_inside() {
    for (size_bytes, peers) in [(512, 0), (8 << 20, 1), (3 << 40, 7), (15 << 40, 2), (1 << 50, 7)] {
        let geometry = Geometry::new(size_bytes, 12, 22).unwrap();
        let layout = Layout::new(&geometry, peers);
        assert_eq!(Layout::from_areas(&geometry, peers, layout.areas()), Ok(layout.clone()));
        for slot in 0..peers as u8 {
            let last = MetaPage::Bits { slot, page: layout.bits_pages() - 1 };
            let found = layout.locations(last, 0);
            assert_eq!(found.copies, 1);
            assert!(found.offsets[0] + u64::from(found.len) <= layout.file_bytes());
        }
        let superblock = layout.locations(MetaPage::Superblock, 7);
        assert!(superblock.iter().all(|offset| offset + SUPERBLOCK_BYTES as u64 <= FIXED_BYTES));
    }
}

#[test]
fn checkpoints_have_areas_of_their_own() {
    let geometry = Geometry::new(300 << 30, 12, 22).unwrap();
    let layout = Layout::with_checkpoints(&geometry, 1, 8);
    let read = Layout::from_areas(&geometry, 1, layout.areas()).unwrap();
    assert_eq!((&read, read.checkpoints()), (&layout, 8));
    assert!(layout.areas().starts_with(Layout::new(&geometry, 1).areas()), "the rest stays where it was");
    let mut taken: Vec<(u64, u64)> = Vec::new();
    for slot in [0].into_iter().chain((0..8).map(checkpoint_slot)) {
        let maps = (0..layout.map_pages()).map(|page| MetaPage::SlotMap { slot, page });
        let bits = (0..layout.bits_pages()).map(|page| MetaPage::Bits { slot, page });
        for (page, copies) in maps.map(|page| (page, 2)).chain(bits.map(|page| (page, 1))) {
            let found = layout.locations(page, 0);
            assert_eq!(found.copies, copies, "{page:?}");
            taken.extend(found.iter().map(|offset| (offset, offset + u64::from(found.len))));
        }
    }
    taken.sort();
    assert!(taken.windows(2).all(|two| two[0].1 <= two[1].0), "no page has two places, no place two pages");
    assert!(taken.last().unwrap().1 <= layout.file_bytes());
}

#[test]
fn impossible_area_tables_are_refused() {
    let geometry = Geometry::new(1 << 40, 12, 22).unwrap();
    let good = Layout::new(&geometry, 2).areas().to_vec();
    let refuse = |change: &dyn Fn(&mut Vec<Area>)| {
        let mut areas = good.clone();
        change(&mut areas);
        Layout::from_areas(&geometry, 2, &areas).unwrap_err()
    };
    assert_eq!(refuse(&|areas| areas.truncate(3)), LayoutError::Missing);
    assert_eq!(refuse(&|areas| areas[1] = areas[0]), LayoutError::Missing);
    assert_eq!(refuse(&|areas| areas[0].offset = 0), LayoutError::Extent);
    assert_eq!(refuse(&|areas| areas[0].offset += 512), LayoutError::Extent);
    assert_eq!(refuse(&|areas| areas[1].offset = areas[0].offset), LayoutError::Extent);
    assert_eq!(refuse(&|areas| areas[0].len -= 4096), LayoutError::Extent);
    assert_eq!(refuse(&|areas| areas[7].len = u64::MAX - 4095), LayoutError::Extent);
    assert_eq!(refuse(&|areas| areas[0].kind = AreaKind::BlockChecksums), LayoutError::Unsupported);
    let named = |slot, copy| Area { kind: AreaKind::NamedBitmap, slot, copy, ..good[0] };
    assert_eq!(
        refuse(&|areas| areas.push(named(8, 0))),
        LayoutError::Missing,
        "a map without its other copy"
    );
    let many = (0..9).flat_map(|n| [named(8 + n, 0), named(8 + n, 1)]);
    assert_eq!(refuse(&|areas| areas.extend(many.clone())), LayoutError::Missing);
}
