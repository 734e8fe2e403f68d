//! A small metadata file in memory, and the states that the tests damage.

use lockstep_bitmap::*;

/// A page on its way to the file.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) page: MetaPage,
    pub(crate) at: Locations,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) const MAX_HOT: u32 = 20;
/// Three Bits pages per slot.
pub(crate) const SIZE_BYTES: u64 = 300 << 20;

pub(crate) fn generation(id: u128, ordinal: u64, parent: Option<u128>) -> Generation {
    Generation {
        id: GenerationId(id << 96 | ordinal as u128),
        ordinal,
        parent: parent.map(|parent| GenerationId(parent << 96 | (ordinal as u128 - 1))),
        node: NodeId(1),
        began_unix_ms: 1_700_000_000_000 + ordinal,
        origin: Origin::Promoted,
    }
}

pub(crate) fn params(peers: u8) -> CreateParams {
    let mut log = GenerationLog::new();
    log.push(generation(0xa1, 1, None), &[]);
    let device = DeviceIdentity(core::array::from_fn(|index| index as u8));
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
    CreateParams {
        file_id: 0x1122_3344_5566_7788,
        identity: Identity {
            resource: "r0".into(),
            volume: 0,
            node: NodeId(1),
            node_name: "alpha".into(),
            device,
        },
        geometry: Geometry::new(SIZE_BYTES, 12, 20).unwrap(),
        log,
        peers: (0..peers).map(peer).collect(),
        checkpoints: 0,
    }
}

/// A file as create-md leaves it, and the store that goes with it.
pub(crate) fn created(params: CreateParams) -> (Vec<u8>, Store) {
    let (superblock, layout) = create(params);
    let mut file = vec![0; layout.file_bytes() as usize];
    for (offset, bytes) in initial_pages(&superblock, &layout) {
        put(&mut file, offset, &bytes);
    }
    (file, Store::new(superblock, layout, MAX_HOT))
}

pub(crate) fn put(file: &mut [u8], offset: u64, bytes: &[u8]) {
    file[offset as usize..][..bytes.len()].copy_from_slice(bytes);
}

pub(crate) fn begin(store: &mut Store, page: MetaPage) -> Write {
    let mut bytes = Vec::new();
    let at = store.render(page, &mut bytes);
    assert_eq!(bytes.len(), at.len as usize);
    Write { page, at, bytes }
}

pub(crate) fn finish(store: &mut Store, file: &mut [u8], write: &Write) {
    write.at.iter().for_each(|offset| put(file, offset, &write.bytes));
    store.written(write.page);
}

pub(crate) fn write(store: &mut Store, file: &mut [u8], page: MetaPage) {
    let write = begin(store, page);
    finish(store, file, &write);
}

/// Writes everything that waits.
pub(crate) fn write_all(store: &mut Store, file: &mut [u8]) {
    while let Some(page) = store.activity.begin_write() {
        write(store, file, MetaPage::Activity(page));
    }
    for slot in store.slot_numbers() {
        while let Some(page) = store.next_stale(slot, 0) {
            write(store, file, page);
        }
    }
}

pub(crate) fn recover_file(file: &[u8]) -> Result<(Store, Findings), RecoverError<()>> {
    recover_with(file, |_| true)
}

/// Recovers with a disk that fails to read wherever `readable` says false for a page number.
pub(crate) fn recover_with(
    file: &[u8],
    readable: impl Fn(u64) -> bool,
) -> Result<(Store, Findings), RecoverError<()>> {
    let mut read = |offset: u64, out: &mut [u8]| {
        let pages = offset / PAGE_BYTES as u64..(offset + out.len() as u64).div_ceil(PAGE_BYTES as u64);
        out.copy_from_slice(&file[offset as usize..][..out.len()]);
        if pages.into_iter().all(&readable) { Ok(()) } else { Err(()) }
    };
    recover(file.len() as u64, &mut read, MAX_HOT)
}

/// True if every block that is dirty or hot in `small` is so in `large`, slot by slot. Both have merged their
/// hot regions.
pub(crate) fn covers(large: &Store, small: &Store) -> bool {
    large
        .slots
        .iter()
        .zip(&small.slots)
        .all(|(large, small)| runs(&small.bits).all(|run| large.bits.all(run)))
}

pub(crate) fn runs(bits: &DirtyBitmap) -> impl Iterator<Item = BlockRange> + '_ {
    let mut next = 0;
    std::iter::from_fn(move || {
        let run = bits.next_run(next, u64::MAX)?;
        next = run.end;
        Some(run)
    })
}

/// Recovers an intact file and merges the hot regions: the truth that damage must not lose.
pub(crate) fn truth(file: &[u8]) -> Store {
    let (mut store, findings) = recover_file(file).expect("an intact file");
    assert_eq!((findings.damaged_pages, findings.superblock_copies), (0, 2), "{findings:?}");
    store.merge_hot();
    store
}

/// A file through its life, in steps of one page write: what was there before, and the write.
pub(crate) fn life() -> Vec<(Vec<u8>, Write)> {
    let (mut file, mut store) = created(params(2));
    let mut steps = Vec::new();
    let mut step = |store: &mut Store, page| {
        let write = begin(store, page);
        steps.push((file.clone(), write.clone()));
        finish(store, &mut file, &write);
    };
    for region in [0, 7, 100, 299] {
        store.activity.acquire(RegionIndex(region));
        store.activity.release(RegionIndex(region));
    }
    let page = store.activity.begin_write().unwrap();
    step(&mut store, MetaPage::Activity(page));
    for (slot, start, len) in [(0, 0, 3), (0, 40_000, 900), (1, 0, 1), (0, 76_799, 1)] {
        store.slots[slot].bits.set(BlockRange::new(start, len));
    }
    store.slots[1].bits.clear(BlockRange::new(2000, 40_000));
    while let Some(page) = store.next_stale(0, 0).or_else(|| store.next_stale(1, 0)) {
        step(&mut store, page);
    }
    store.activity.cool(2, |_| true);
    let page = store.activity.begin_write().unwrap();
    step(&mut store, MetaPage::Activity(page));
    store.slots[0].bits.clear(BlockRange::new(40_100, 100));
    store.slots[0].bits.set(BlockRange::new(64_600, 5));
    while let Some(page) = store.next_stale(0, 0) {
        step(&mut store, page);
    }
    store.superblock.log.push(generation(0xb2, 2, Some(0xa1)), &[]);
    store.superblock.term = 5;
    step(&mut store, MetaPage::Superblock);
    store.refill_slot(0, true);
    store.superblock.may_be_written = true;
    step(&mut store, MetaPage::Superblock);
    store.slots[0].bits.clear(BlockRange::new(33_000, 7000));
    while let Some(page) = store.next_stale(0, 0) {
        step(&mut store, page);
    }
    store.refill_slot(1, false);
    step(&mut store, MetaPage::Superblock);
    store.slots[1].bits.set(BlockRange::new(5, 5));
    while let Some(page) = store.next_stale(1, 0) {
        step(&mut store, page);
    }
    // The last state, with a write that changes nothing but the sequence.
    step(&mut store, MetaPage::Superblock);
    steps
}
