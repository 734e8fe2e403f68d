//! Lists of operations against naive models: dirty bitmap, activity map, overlap lock, generation log.
//!
//! The models are written for plainness: a vector of booleans, sets of numbers, a list in the order of arrival. They
//! also play the disk: what is durable there, and what a write in flight may have changed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lockstep_bitmap::{
    Acquire, ActivityMap, BITS_PER_PAGE, BlockRange, ByteRange, CopyRank, DirtyBitmap, Generation,
    GenerationId, GenerationLog, Geometry, MAX_GENERATIONS, NodeId, Origin, PAGE_PAYLOAD_BYTES, PageBits,
    RegionIndex,
};
use lockstep_core::{Mode, Overlap};

use crate::input::Input;

/// Operations of one run at most: the models compare everything after each.
const STEPS_MAX: usize = 200;

/// The bitmap is compared block by block.
const BITMAP_STEPS_MAX: usize = 40;
/// Three pages, the last one short.
const BLOCKS: u64 = BITS_PER_PAGE * 2 + 77;
const BITS_PAGES: u32 = 3;

struct Bits {
    now: Vec<bool>,
    disk: Vec<Vec<bool>>,
    in_flight: BTreeMap<u32, Vec<bool>>,
}

impl Bits {
    fn page(&self, page: u32) -> Vec<bool> {
        self.now.chunks(BITS_PER_PAGE as usize).nth(page as usize).expect("a page that exists").to_vec()
    }

    fn put(&mut self, range: BlockRange, value: bool) -> u64 {
        let part = &mut self.now[range.start as usize..range.end as usize];
        let changed = part.iter().filter(|bit| **bit != value).count();
        part.fill(value);
        changed as u64
    }
}

/// A place near a border, where mistakes live, or anywhere.
fn any_block(input: &mut Input<'_>) -> u64 {
    let (page, near) = (u64::from(input.u8()), u64::from(input.u16()));
    if page & 0x80 != 0 { near % (BLOCKS + 1) } else { (page % 4 * BITS_PER_PAGE + near % 80).min(BLOCKS) }
}

fn any_range(input: &mut Input<'_>) -> BlockRange {
    let start = any_block(input);
    let length = match input.u8() {
        long if long >= 240 => u64::from(long - 240) * (BITS_PER_PAGE / 8),
        short => u64::from(short),
    };
    BlockRange::new(start, length).intersect(BlockRange { start: 0, end: BLOCKS })
}

/// The dirty bitmap.
pub(crate) fn dirty_bitmap(data: &[u8]) {
    let mut input = Input::new(data);
    let filled = input.flag();
    let geometry = Geometry::new(BLOCKS << 12, 12, 22).expect("a good geometry");
    let mut bitmap = DirtyBitmap::new(&geometry, filled);
    let now = vec![filled; BLOCKS as usize];
    let disk = now.chunks(BITS_PER_PAGE as usize).map(<[bool]>::to_vec).collect();
    let mut model = Bits { now, disk, in_flight: BTreeMap::new() };
    for _ in 0..BITMAP_STEPS_MAX {
        if input.is_empty() {
            break;
        }
        change_bits(&mut input, &mut bitmap, &mut model);
        compare_bits(&bitmap, &model, any_block(&mut input), u64::from(input.u8()) + 1);
    }
}

fn change_bits(input: &mut Input<'_>, bitmap: &mut DirtyBitmap, model: &mut Bits) {
    let (operation, page) = (input.below(12), input.below(BITS_PAGES as usize) as u32);
    let in_flight = model.in_flight.contains_key(&page);
    match operation {
        0..=2 => {
            let range = any_range(input);
            assert_eq!(bitmap.set(range), model.put(range, true));
        }
        3 | 4 => {
            let range = any_range(input);
            assert_eq!(bitmap.clear(range), model.put(range, false));
        }
        5 => {
            let (first, bits) = (any_block(input), input.bytes(20));
            let mut added = 0;
            for (index, byte) in (0..).zip(bits) {
                for bit in (0..8).filter(|bit| byte >> bit & 1 == 1) {
                    let block = first + index * 8 + bit;
                    added += if block < BLOCKS { model.put(BlockRange::new(block, 1), true) } else { 0 };
                }
            }
            assert_eq!(bitmap.or_bits(first, bits), added);
        }
        6 | 7 if !in_flight => {
            let mut out = PageBits::default();
            bitmap.begin_write(page, &mut out);
            let expected = model.page(page);
            assert!((0..).zip(&expected).all(|(index, bit)| out.get(index) == *bit), "page {page}");
            model.in_flight.insert(page, expected);
        }
        6..=8 => {
            if let Some(bits) = model.in_flight.remove(&page)
                && bitmap.end_write(page)
            {
                model.disk[page as usize] = bits;
            }
        }
        9 if !in_flight => {
            let mut bits = PageBits([input.u8(); PAGE_PAYLOAD_BYTES]);
            bits.0[7] = input.u8();
            bitmap.load_page(page, &bits);
            let range = bitmap.page_range(page);
            for block in range.start..range.end {
                model.now[block as usize] = bits.get(block - range.start);
            }
            model.disk[page as usize] = model.page(page);
        }
        9 | 10 => {
            bitmap.mark_page_all_dirty(page);
            model.put(bitmap.page_range(page), true);
        }
        _ => {
            let filled = input.flag();
            bitmap.reset(filled);
            model.now.fill(filled);
            (0..BITS_PAGES).for_each(|page| model.disk[page as usize] = model.page(page));
        }
    }
}

fn compare_bits(bitmap: &DirtyBitmap, model: &Bits, from: u64, most: u64) {
    assert_eq!(bitmap.count(), model.now.iter().filter(|bit| **bit).count() as u64);
    let start = (from..BLOCKS).find(|block| model.now[*block as usize]);
    let run = start.map(|start| {
        let limit = (start + most).min(BLOCKS);
        let end = (start..limit).find(|block| !model.now[*block as usize]).unwrap_or(limit);
        BlockRange { start, end }
    });
    assert_eq!(bitmap.next_run(from, most), run);
    let range = BlockRange::new(from, most).intersect(BlockRange { start: 0, end: BLOCKS });
    let part = &model.now[range.start as usize..range.end as usize];
    assert_eq!((bitmap.any(range), bitmap.all(range)), (part.contains(&true), !part.contains(&false)));
    let mut raw = [0xee; 9];
    bitmap.read_bits(from, &mut raw);
    for (index, byte) in (0..).zip(raw) {
        for bit in 0..8 {
            let expected = model.now.get((from + index * 8 + bit) as usize).copied().unwrap_or(false);
            assert_eq!(byte >> bit & 1 == 1, expected);
        }
    }
    for page in 0..bitmap.pages() {
        let in_flight = model.in_flight.contains_key(&page);
        let durable = bitmap.range_durable(bitmap.page_range(page));
        let on_disk = model.disk[page as usize] == model.page(page);
        assert!(!durable || on_disk && !in_flight, "page {page} is not on disk");
        assert_eq!(bitmap.next_stale(page) == Some(page), !durable && !in_flight);
    }
}

const REGIONS: u32 = BITS_PER_PAGE as u32 + 40;
const MAX_HOT: u32 = 6;
/// Regions that the operations touch: the begin of the first page, and both sides of the border.
const TOUCHED: [u32; 12] =
    [0, 1, 2, 63, 64, 65, REGIONS - 42, REGIONS - 41, REGIONS - 40, REGIONS - 39, REGIONS - 38, REGIONS - 1];

/// What both copies on disk hold, and what a write in flight may make of it.
#[derive(Default)]
struct Marks {
    uses: BTreeMap<u32, u32>,
    durable: BTreeSet<u32>,
    in_flight: BTreeMap<u32, BTreeSet<u32>>,
}

impl Marks {
    fn surely_on_disk(&self, region: u32) -> bool {
        let image = self.in_flight.get(&(region / BITS_PER_PAGE as u32));
        self.durable.contains(&region) && image.is_none_or(|image| image.contains(&region))
    }

    fn maybe_on_disk(&self) -> impl Iterator<Item = &u32> {
        self.durable.iter().chain(self.in_flight.values().flatten())
    }
}

/// The activity map.
pub(crate) fn activity_map(data: &[u8]) {
    let mut input = Input::new(data);
    let geometry = Geometry::new(u64::from(REGIONS) << 12, 12, 12).expect("a good geometry");
    let mut map = ActivityMap::new(&geometry, MAX_HOT);
    let mut model = Marks::default();
    for step in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        change_marks(&mut input, &mut map, &mut model);
        compare_marks(&map, &model);
        if step % 16 == 15 {
            // The candidates are those that one more `cool` would choose.
            assert_eq!(map.clone().cool(u32::MAX, |_| true), map.candidates());
        }
    }
    // Every wait ends: without uses, a few writes leave nothing to write, and all can be cooled.
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
    assert_eq!(map.hot_count(), 0, "regions that cannot be cooled");
}

fn change_marks(input: &mut Input<'_>, map: &mut ActivityMap, model: &mut Marks) {
    let (operation, region) = (input.below(8), input.one_of(&TOUCHED));
    match operation {
        0..=2 => {
            let counted = map.hot_regions().any(|hot| hot.0 == region);
            let before = map.hot_count();
            match map.acquire(RegionIndex(region)) {
                Acquire::Hot => assert!(model.surely_on_disk(region), "{region} is not on disk"),
                Acquire::Pending => assert!(!model.surely_on_disk(region) && (counted || before < MAX_HOT)),
                Acquire::Full => return assert!(!counted && before >= MAX_HOT),
            }
            *model.uses.entry(region).or_default() += 1;
        }
        3 => {
            if let Some(uses) = model.uses.get_mut(&region).filter(|uses| **uses > 0) {
                *uses -= 1;
                map.release(RegionIndex(region));
            }
        }
        4 => {
            let wanted = map.want_write();
            let page = map.begin_write();
            assert_eq!(wanted, page.is_some());
            let Some(page) = page else { return };
            let mut bits = PageBits::default();
            map.page_bits(page, &mut bits);
            let marks = (0..BITS_PER_PAGE).filter(|index| bits.get(*index));
            let image = marks.map(|index| page * BITS_PER_PAGE as u32 + index as u32).collect();
            assert!(model.in_flight.insert(page, image).is_none(), "two writes of page {page}");
        }
        5 | 6 => {
            let page = region / BITS_PER_PAGE as u32;
            let Some(image) = model.in_flight.remove(&page) else { return };
            model.durable.retain(|region| region / BITS_PER_PAGE as u32 != page);
            model.durable.extend(&image);
            map.end_write(page);
            while let Some(region) = map.take_hot() {
                assert!(image.contains(&region.0) && map.is_hot(region));
            }
        }
        _ => {
            let (limit, refused) = (input.below(5) as u32, input.below(4) as u32);
            assert!(map.cool(limit, |region| region.0 % 4 != refused) <= limit);
        }
    }
}

fn compare_marks(map: &ActivityMap, model: &Marks) {
    let hot: BTreeSet<u32> = map.hot_regions().map(|region| region.0).collect();
    assert_eq!(hot.len() as u32, map.hot_count());
    assert!(map.hot_count() <= MAX_HOT);
    assert!(model.maybe_on_disk().all(|region| hot.contains(region)), "a mark on disk is not counted");
    for region in TOUCHED {
        assert_eq!(map.is_hot(RegionIndex(region)), model.surely_on_disk(region), "region {region}");
        let uses = model.uses.get(&region).copied().unwrap_or(0);
        assert_eq!(map.uses(RegionIndex(region)), uses);
        assert!(uses == 0 || hot.contains(&region), "region {region} is in use and not marked");
    }
    assert_eq!(map.durable_count(), TOUCHED.into_iter().filter(|r| model.surely_on_disk(*r)).count() as u32);
}

/// A claim in the order of arrival.
struct Claim {
    owner: u32,
    units: std::ops::Range<u64>,
    exclusive: bool,
    held: bool,
}

impl Claim {
    fn conflicts(&self, other: &Claim) -> bool {
        let apart = self.units.end <= other.units.start || other.units.end <= self.units.start;
        (self.exclusive || other.exclusive) && !apart
    }
}

/// The overlap lock: nobody holds what conflicts with another holder, conflicting claims are granted in the order in
/// which they came, and whom nobody is in the way of holds.
pub(crate) fn overlap_lock(data: &[u8]) {
    let mut input = Input::new(data);
    let mut lock = Overlap::default();
    let mut live: Vec<Claim> = Vec::new();
    for owner in 0..STEPS_MAX as u32 {
        if input.is_empty() {
            break;
        }
        let choice = input.u8();
        if choice & 1 == 0 && live.len() < 40 {
            let (start, length) = (u64::from(input.u8()) * 512, u64::from(input.u8()) * 512 + 1);
            let exclusive = choice & 2 == 0;
            let mode = if exclusive { Mode::Exclusive } else { Mode::Shared };
            let held = lock.request(owner, ByteRange::new(start, length), mode);
            let units = start / 4096..(start + length).div_ceil(4096);
            live.push(Claim { owner, units, exclusive, held });
        } else if !live.is_empty() {
            let gone = live.remove(usize::from(choice >> 1) % live.len());
            let mut granted = VecDeque::new();
            lock.release(gone.owner, &mut granted);
            for owner in granted {
                let claim = live.iter_mut().find(|claim| claim.owner == owner).expect("a live owner");
                assert!(!claim.held, "{owner} is granted twice");
                claim.held = true;
            }
        }
        for (place, claim) in live.iter().enumerate() {
            let blocked = live[..place].iter().any(|earlier| earlier.conflicts(claim));
            assert_eq!(claim.held, !blocked, "owner {} at place {place}", claim.owner);
        }
    }
}

/// The generation log: what is pushed is current, order and uniqueness hold, bases are never evicted, and every log
/// that exists survives the round over its bytes.
pub(crate) fn generation_log(data: &[u8]) {
    let mut input = Input::new(data);
    let (mut log, mut other) = (GenerationLog::new(), GenerationLog::new());
    let mut model: Vec<Generation> = Vec::new();
    for step in 0..STEPS_MAX as u64 {
        if input.is_empty() {
            break;
        }
        let choice = input.u8();
        let parent = model.last().map(|last| last.id).filter(|_| choice & 7 != 0);
        let generation = Generation {
            id: GenerationId(u128::from(input.u16()) << 8 | u128::from(step & 0xff)),
            ordinal: model.last().map_or(0, |last| last.ordinal) + 1 + u64::from(choice >> 5),
            parent,
            node: NodeId(input.u8()),
            began_unix_ms: u64::from(input.u32()),
            origin: any_origin(&mut input),
        };
        if model.iter().any(|known| known.id == generation.id) {
            continue;
        }
        let keep: Vec<GenerationId> =
            (0..7).filter_map(|_| model.get(input.below(64)).map(|kept| kept.id)).collect();
        log.push(generation.clone(), &keep);
        if model.len() == MAX_GENERATIONS {
            let oldest = model.iter().position(|entry| !keep.contains(&entry.id));
            model.remove(oldest.expect("seven of 64 are kept"));
        }
        model.push(generation);
        if choice & 8 != 0 {
            other = log.clone();
        }
        compare_log(&log, &other, &model, &keep);
    }
}

fn any_origin(input: &mut Input<'_>) -> Origin {
    let from =
        input.one_of(&[CopyRank::Inconsistent, CopyRank::Outdated, CopyRank::Unclean, CopyRank::Clean]);
    input.one_of(&[
        Origin::Created,
        Origin::Agreed,
        Origin::PeerLost,
        Origin::Promoted,
        Origin::PeerIsDown,
        Origin::DataLoss { from },
    ])
}

fn compare_log(log: &GenerationLog, other: &GenerationLog, model: &[Generation], keep: &[GenerationId]) {
    assert_eq!(log.entries(), model);
    assert_eq!(log.current(), model.last());
    assert!(keep.iter().all(|base| log.contains(*base)), "a base is evicted");
    let common = model.iter().rev().map(|entry| entry.id).find(|id| other.contains(*id));
    assert_eq!(log.common_ancestor(other), common);
    let mut bytes = Vec::new();
    log.encode(&mut bytes);
    assert_eq!(GenerationLog::decode(&bytes).as_ref(), Ok(log));
    assert_eq!(GenerationLog::from_entries(model.to_vec()).as_ref(), Ok(log));
}
