//! The metadata file: a real one, after a life that the input chooses, is damaged and recovered.
//!
//! Asserted: recovery ends with a store or a refusal, in memory bounded by the file. Where a page is damaged and its
//! checksum does not fit, no block that was dirty or hot is lost and the superblock is the newest one, unless both
//! copies of that were hurt: then an older one, or a refusal. Where the checksum was made to fit, which chance does not
//! do, what is recovered is at least usable: it can be written and read again.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use lockstep_bitmap::{
    Base, BlockRange, CreateParams, DeviceIdentity, DirtyBitmap, Findings, Generation, GenerationId,
    GenerationLog, Geometry, Identity, MetaPage, NodeId, Origin, PAGE_BYTES, PeerCopy, PeerRecord,
    RecoverError, RegionIndex, SUPERBLOCK_BYTES, Store, crc32c, create, initial_pages, recover,
};
use lockstep_counting::measure;

use crate::input::Input;

const MAX_HOT: u32 = 20;
/// Three Bits pages in each of two slots.
const SIZE_BYTES: u64 = 300 << 20;
const BLOCKS: u64 = SIZE_BYTES >> 12;
const REGIONS: u32 = 300;
/// Where the checksum of a page lies.
const CHECKSUM: std::ops::Range<usize> = 32..36;

fn generation(id: u128, ordinal: u64, parent: Option<GenerationId>) -> Generation {
    let origin = if parent.is_none() { Origin::Created } else { Origin::Promoted };
    Generation { id: GenerationId(id), ordinal, parent, node: NodeId(1), began_unix_ms: ordinal, origin }
}

/// A file as create-md leaves it, and the store that goes with it.
fn created() -> &'static (Vec<u8>, Store) {
    static CREATED: OnceLock<(Vec<u8>, Store)> = OnceLock::new();
    CREATED.get_or_init(|| {
        let mut log = GenerationLog::new();
        log.push(generation(0xa1 << 96, 1, None), &[]);
        let peer = |slot: u8| PeerRecord {
            node: NodeId(slot + 2),
            base: Base::NoGeneration,
            copy: PeerCopy::NoGeneration,
            session_offered: 4,
            session_used: 3,
            may_be_primary: false,
            slot_epoch: 1,
            slot_filled: slot == 1,
        };
        let (superblock, layout) = create(CreateParams {
            file_id: 0x1122_3344_5566_7788,
            identity: Identity {
                resource: "r0".into(),
                volume: 0,
                node: NodeId(1),
                node_name: "alpha".into(),
                device: DeviceIdentity([7; 64]),
            },
            geometry: Geometry::new(SIZE_BYTES, 12, 20).expect("a good geometry"),
            log,
            peers: vec![peer(0), peer(1)],
            checkpoints: 2,
        });
        let mut file = vec![0; layout.file_bytes() as usize];
        for (offset, bytes) in initial_pages(&superblock, &layout) {
            put(&mut file, offset, &bytes);
        }
        (file, Store::new(superblock, layout, MAX_HOT))
    })
}

fn put(file: &mut [u8], offset: u64, bytes: &[u8]) {
    file[offset as usize..][..bytes.len()].copy_from_slice(bytes);
}

fn write(store: &mut Store, file: &mut [u8], page: MetaPage) {
    let mut bytes = Vec::new();
    let places = store.render(page, &mut bytes);
    places.iter().for_each(|offset| put(file, offset, &bytes));
    store.written(page);
}

/// Some steps of a life, each durable.
fn live(input: &mut Input<'_>, file: &mut [u8], store: &mut Store) {
    for _ in 0..input.below(24) {
        let slot = input.below(2);
        let range = BlockRange::new(u64::from(input.u32()) % BLOCKS, u64::from(input.u16()) + 1);
        let range = range.intersect(BlockRange { start: 0, end: BLOCKS });
        match input.below(8) {
            0 => {
                let region = RegionIndex(u32::from(input.u16()) % REGIONS);
                store.activity.acquire(region);
                store.activity.release(region);
            }
            1 => _ = store.activity.cool(3, |_| true),
            2 | 3 => _ = store.slots[slot].bits.set(range),
            4 => _ = store.slots[slot].bits.clear(range),
            5 => {
                store.refill_slot(slot as u8, input.flag());
                write(store, file, MetaPage::Superblock);
            }
            6 => {
                let current = store.superblock.log.current().cloned().expect("it has one");
                let next = generation(current.id.0 + 1, current.ordinal + 1, Some(current.id));
                store.superblock.log.push(next, &[]);
                write(store, file, MetaPage::Superblock);
            }
            _ => {
                (store.superblock.term, store.superblock.outdated) = (u64::from(input.u8()), input.flag());
                write(store, file, MetaPage::Superblock);
            }
        }
        while let Some(page) = store.activity.begin_write() {
            write(store, file, MetaPage::Activity(page));
        }
        for slot in 0..2 {
            while let Some(page) = store.next_stale(slot, 0) {
                write(store, file, page);
            }
        }
    }
}

/// What was done to a file.
#[derive(Default)]
struct Damage {
    /// Pages whose content no longer fits their checksum.
    hurt: BTreeSet<u64>,
    unreadable: BTreeSet<u64>,
    /// A page has content that nobody wrote, and a checksum that fits.
    forged: bool,
    truncated: bool,
}

/// Pages that mean something; between the superblocks there is unused room.
fn used_pages(store: &Store) -> Vec<u64> {
    let places = [0, 8192, 65_536, 65_536 + 8192].map(|offset| offset / PAGE_BYTES as u64);
    let superblocks = places.into_iter().flat_map(|first| [first, first + 1]);
    let mut others = vec![MetaPage::Activity(0)];
    for slot in 0..2 {
        others.push(MetaPage::SlotMap { slot, page: 0 });
        others.extend((0..store.layout().bits_pages()).map(|page| MetaPage::Bits { slot, page }));
    }
    let offsets =
        others.into_iter().flat_map(|page| store.layout().locations(page, 0).iter().collect::<Vec<_>>());
    superblocks.chain(offsets.map(|offset| offset / PAGE_BYTES as u64)).collect()
}

fn damage(input: &mut Input<'_>, file: &mut Vec<u8>, store: &Store) -> Damage {
    let mut done = Damage::default();
    let pages = used_pages(store);
    let forging = input.below(4) == 3;
    for _ in 0..=input.below(6) {
        let (number, at) = (pages[input.below(pages.len())], usize::from(input.u16()) % PAGE_BYTES);
        let start = number as usize * PAGE_BYTES;
        let Some(page) = file.get_mut(start..start + PAGE_BYTES) else { continue };
        let before = page.to_vec();
        match input.below(8) {
            0 => page.fill(input.u8()),
            1 => {
                done.unreadable.insert(number);
                continue;
            }
            2 => {
                let new_bytes = usize::from(input.u16()) * PAGE_BYTES;
                done.truncated |= new_bytes < file.len();
                file.truncate(new_bytes.max(PAGE_BYTES));
                continue;
            }
            3 => {
                let bytes = input.bytes(32);
                let end = (at + bytes.len()).min(PAGE_BYTES);
                page[at..end].copy_from_slice(&bytes[..end - at]);
            }
            // Small fields lie in the first bytes: most of what is forged goes there.
            4 => page[at % 160] = input.u8(),
            _ => page[at] ^= 1 << input.below(8),
        }
        if *page == before {
            continue;
        }
        if forging {
            let sum = crc32c(&[&page[..CHECKSUM.start], &page[CHECKSUM.end..]].concat());
            page[CHECKSUM].copy_from_slice(&sum.to_le_bytes());
            done.forged = true;
        } else {
            done.hurt.insert(number);
        }
    }
    done
}

fn recovered(file: &[u8], unreadable: &BTreeSet<u64>) -> Result<(Store, Findings), RecoverError<()>> {
    let mut read = |offset: u64, out: &mut [u8]| {
        let page_bytes = PAGE_BYTES as u64;
        let mut pages = offset / page_bytes..(offset + out.len() as u64).div_ceil(page_bytes);
        let bytes = file.get(offset as usize..).and_then(|rest| rest.get(..out.len())).ok_or(())?;
        out.copy_from_slice(bytes);
        if pages.any(|page| unreadable.contains(&page)) { Err(()) } else { Ok(()) }
    };
    recover(file.len() as u64, &mut read, MAX_HOT)
}

/// A file that is damaged, and recovered.
pub(crate) fn metadata(data: &[u8]) {
    let mut input = Input::new(data);
    let (mut file, mut store) = created().clone();
    live(&mut input, &mut file, &mut store);
    let (mut truth, findings) = recovered(&file, &BTreeSet::new()).expect("an intact file");
    assert_eq!((findings.damaged_pages, findings.superblock_copies), (0, 2), "{findings:?}");
    assert_eq!(truth.superblock, store.superblock, "what is durable is not what is in memory");
    truth.merge_hot();
    let done = damage(&mut input, &mut file, &store);
    let thorough = input.below(4) == 1;
    let (result, usage) = measure(|| recovered(&file, &done.unreadable));
    assert!(usage.peak_bytes <= (1 << 20) + 64 * file.len() as u64, "{usage:?} for {} bytes", file.len());
    let sequence = truth.superblock.sequence;
    let places = store.layout().locations(MetaPage::Superblock, sequence);
    let superblock_pages = SUPERBLOCK_BYTES / PAGE_BYTES;
    let is_hurt = |offset: u64| {
        let first = offset / PAGE_BYTES as u64;
        (first..first + superblock_pages as u64)
            .any(|page| done.hurt.contains(&page) || done.unreadable.contains(&page))
    };
    let newest_lost = places.iter().all(is_hurt);
    match result {
        Ok((mut found, findings)) if !done.forged && !newest_lost => {
            assert_eq!(found.superblock, truth.superblock, "the superblock is not the newest");
            found.merge_hot();
            for (slot, (found, truth)) in found.slots.iter().zip(&truth.slots).enumerate() {
                assert!(covers(&found.bits, &truth.bits), "slot {slot} lost blocks: {findings:?}");
            }
            assert!(!done.truncated, "a file that is too short is opened");
            thorough.then(|| usable(found));
        }
        Ok((found, _)) => {
            assert!(done.forged || found.superblock.sequence < sequence, "a superblock from nowhere");
            thorough.then(|| usable(found));
        }
        Err(error) => {
            assert!(
                newest_lost || done.forged || done.truncated,
                "refused with an intact superblock: {error:?}"
            );
        }
    }
}

fn covers(large: &DirtyBitmap, small: &DirtyBitmap) -> bool {
    let mut next = 0;
    while let Some(run) = small.next_run(next, u64::MAX) {
        if !large.all(run) {
            return false;
        }
        next = run.end;
    }
    true
}

/// Whatever was recovered can be written whole, and is the same when it is read again.
fn usable(mut store: Store) {
    let mut file = vec![0; store.layout().file_bytes() as usize];
    store.merge_hot();
    // Everything anew: an epoch of each slot that the file does not know.
    let filled: Vec<bool> = store.slots.iter().map(|slot| !slot.bits.is_empty()).collect();
    for (slot, filled) in (0..).zip(filled) {
        if store.slots[usize::from(slot)].epoch == u32::MAX {
            return;
        }
        store.refill_slot(slot, filled);
    }
    for _ in 0..2 {
        write(&mut store, &mut file, MetaPage::Superblock);
    }
    let hot: Vec<RegionIndex> = store.activity.hot_regions().collect();
    while let Some(page) = store.activity.begin_write() {
        write(&mut store, &mut file, MetaPage::Activity(page));
    }
    for slot in 0..store.slots.len() as u8 {
        while let Some(page) = store.next_stale(slot, 0) {
            write(&mut store, &mut file, page);
        }
    }
    let (mut again, _) = recovered(&file, &BTreeSet::new()).expect("what was just written");
    assert_eq!(again.superblock, store.superblock);
    again.merge_hot();
    assert!(hot.iter().all(|region| again.activity.hot_regions().any(|found| found == *region)));
    assert!(store.slots.iter().zip(&again.slots).all(|(slot, found)| covers(&found.bits, &slot.bits)));
}
