//! Payload buffers: one page-aligned arena, cut into slots of two sizes, in pools that cannot starve each
//! other.
//!
//! The byte of volume offset `o` lies at slot offset `o % 4096` plus its distance from the first byte, so
//! that a slot can go to a disk opened with O_DIRECT as it is. A piece never crosses a multiple of 128 KiB of
//! the volume, hence it fits a large slot even when it is rounded out to 4096 bytes.
//!
//! Invariants: a slot has one owner per reference; it is free again when the last one lets go; bytes that the
//! kernel may be writing cannot be read here, and bytes that it may be reading cannot be changed (both are
//! asserted).
#![allow(unsafe_code)]

use std::io;
use std::ptr::NonNull;

use lockstep_core::SlotId;

/// Size of a small slot.
pub(crate) const SMALL_BYTES: usize = 8 * 1024;
/// Size of a large slot.
pub(crate) const LARGE_BYTES: usize = 128 * 1024;
/// Alignment of every slot.
pub(crate) const ALIGN_BYTES: u64 = 4096;

/// The arena is registered with the kernel in chunks of at least this size, that of a huge page. It is a multiple of
/// both sizes of slots, so that no slot lies in two.
const CHUNK_BYTES_MIN: usize = 2 << 20;
/// The most fixed buffers a ring has.
const CHUNKS_MAX: usize = 1 << 14;

/// A run of bytes inside one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// Which slot.
    pub(crate) slot: SlotId,
    /// First byte inside it.
    pub(crate) start: u32,
    /// Bytes.
    pub(crate) len: u32,
}

impl Span {
    /// Where the bytes `[offset, offset + len)` of the volume lie in a slot that holds them.
    pub(crate) fn of_volume(slot: SlotId, offset: u64, len: u32) -> Self {
        Self { slot, start: (offset % ALIGN_BYTES) as u32, len }
    }

    /// Where the bytes `[offset, offset + len)` of the volume lie in a slot that was made for bytes from
    /// `first` on.
    pub(crate) fn of_volume_from(slot: SlotId, first: u64, offset: u64, len: u32) -> Self {
        let base = first - first % ALIGN_BYTES;
        assert!(
            offset >= base && offset - base < LARGE_BYTES as u64,
            "{offset} is not in a slot for {first}"
        );
        Self { slot, start: (offset - base) as u32, len }
    }

    /// The same without the first `bytes`.
    pub(crate) fn skip(self, bytes: u32) -> Self {
        assert!(bytes <= self.len, "skipping past a span");
        Self { start: self.start + bytes, len: self.len - bytes, ..self }
    }

    /// The first `bytes` of it.
    pub(crate) fn first(self, bytes: u32) -> Self {
        assert!(bytes <= self.len, "a span cannot grow");
        Self { len: bytes, ..self }
    }
}

/// Whether a piece fits a small slot, rounded out. Every piece fits a large one.
pub(crate) fn fits_small(offset: u64, len: u32) -> bool {
    let needed = ((offset % ALIGN_BYTES) + u64::from(len)).next_multiple_of(ALIGN_BYTES);
    assert!(len > 0 && needed <= LARGE_BYTES as u64, "{len} bytes at {offset} are no piece");
    needed <= SMALL_BYTES as u64
}

/// How many slots of each size a pool has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PoolSize {
    /// Of 8 KiB.
    pub(crate) small: u32,
    /// Of 128 KiB.
    pub(crate) large: u32,
}

impl PoolSize {
    /// Memory of a pool.
    pub(crate) const fn bytes(self) -> usize {
        self.small as usize * SMALL_BYTES + self.large as usize * LARGE_BYTES
    }
}

/// Number of a pool, in the order given to [`Arena::new`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PoolId(pub(crate) u16);

#[derive(Debug)]
struct Slot {
    start: usize,
    pool: PoolId,
    large: bool,
    /// Volume offset of its first byte, for payloads.
    base: u64,
    /// Owners; 0 is free.
    references: u32,
    /// One of the references is the core's.
    with_core: bool,
    /// Operations of the kernel that read it.
    kernel_reads: u32,
    /// Operations of the kernel that write it.
    kernel_writes: u32,
}

#[derive(Debug)]
struct Pool {
    /// Last in, first out: the most recently used slot is the warmest.
    small: Vec<SlotId>,
    large: Vec<SlotId>,
}

/// All slots of a shard.
#[derive(Debug)]
pub(crate) struct Arena {
    base: NonNull<u8>,
    bytes: usize,
    chunk_bytes: usize,
    slots: Vec<Slot>,
    pools: Vec<Pool>,
    zeroes: SlotId,
    in_use: u32,
    frees: u64,
}

impl Arena {
    /// Memory of a slot's entry.
    pub(crate) const SLOT_MEMORY_BYTES: usize = size_of::<Slot>() + size_of::<SlotId>();

    /// Reserves the memory of all pools, and one large slot of zeroes.
    pub(crate) fn new(sizes: &[PoolSize]) -> io::Result<Self> {
        let bytes = sizes.iter().map(|size| size.bytes()).sum::<usize>() + LARGE_BYTES;
        let mut slots = Vec::new();
        let mut pools = Vec::new();
        // Large slots of all pools come first, so that they stay aligned to their size.
        let mut start = LARGE_BYTES;
        slots.push(Slot::new(0, PoolId(u16::MAX), true));
        slots[0].references = 1;
        for _ in sizes {
            pools.push(Pool { small: Vec::new(), large: Vec::new() });
        }
        for large in [true, false] {
            for (index, size) in sizes.iter().enumerate() {
                let count = if large { size.large } else { size.small };
                let list = if large { &mut pools[index].large } else { &mut pools[index].small };
                for _ in 0..count {
                    list.push(SlotId(slots.len() as u32));
                    slots.push(Slot::new(start, PoolId(index as u16), large));
                    start += if large { LARGE_BYTES } else { SMALL_BYTES };
                }
            }
        }
        assert_eq!(start, bytes, "the slots do not fill the arena");
        let base = map(bytes)?;
        let chunk_bytes = CHUNK_BYTES_MIN.max(bytes.div_ceil(CHUNKS_MAX).next_power_of_two());
        Ok(Self { base, bytes, chunk_bytes, slots, pools, zeroes: SlotId(0), in_use: 0, frees: 0 })
    }

    /// Takes a slot that can hold `len` bytes of the volume from `offset` on, with one reference.
    pub(crate) fn take(&mut self, pool: PoolId, offset: u64, len: u32) -> Option<SlotId> {
        let fits_small = fits_small(offset, len);
        let pool = &mut self.pools[usize::from(pool.0)];
        let small = if fits_small { pool.small.pop() } else { None };
        let id = small.or_else(|| pool.large.pop())?;
        let slot = &mut self.slots[id.0 as usize];
        assert_eq!(slot.references, 0, "slot {id} was free and owned");
        slot.references = 1;
        slot.base = offset - offset % ALIGN_BYTES;
        self.in_use += 1;
        Some(id)
    }

    /// Whether a pool has slots for so many pieces that fit a small one and so many that do not.
    pub(crate) fn has_free(&self, pool: PoolId, small: u32, large: u32) -> bool {
        let pool = &self.pools[usize::from(pool.0)];
        let in_large = (small as usize).saturating_sub(pool.small.len());
        large as usize + in_large <= pool.large.len()
    }

    /// Where the bytes `[offset, offset + len)` of the volume lie in a slot that was taken for a range with them.
    pub(crate) fn span(&self, id: SlotId, offset: u64, len: u32) -> Span {
        Span::of_volume_from(id, self.slots[id.0 as usize].base, offset, len)
    }

    /// Memory of a slot.
    pub(crate) fn slot_bytes(&self, id: SlotId) -> u64 {
        let slot = &self.slots[id.0 as usize];
        if slot.large { LARGE_BYTES as u64 } else { SMALL_BYTES as u64 }
    }

    /// One more owner.
    pub(crate) fn retain(&mut self, id: SlotId) {
        let slot = &mut self.slots[id.0 as usize];
        assert!(slot.references > 0, "slot {id} is free");
        slot.references += 1;
    }

    /// One owner less; the last one frees the slot.
    pub(crate) fn release(&mut self, id: SlotId) {
        let slot = &mut self.slots[id.0 as usize];
        assert!(slot.references > 0, "slot {id} was released too often");
        slot.references -= 1;
        if slot.references > 0 {
            return;
        }
        assert!(slot.kernel_reads + slot.kernel_writes == 0, "slot {id} is with the kernel and has no owner");
        self.in_use -= 1;
        self.frees += 1;
        let pool = &mut self.pools[usize::from(slot.pool.0)];
        if slot.large { pool.large.push(id) } else { pool.small.push(id) }
    }

    /// One reference becomes the core's.
    pub(crate) fn give_to_core(&mut self, id: SlotId) {
        let slot = &mut self.slots[id.0 as usize];
        assert!(slot.references > 0 && !slot.with_core, "slot {id} is free or the core's already");
        slot.with_core = true;
    }

    /// The core gave its reference back: it is the caller's.
    pub(crate) fn take_from_core(&mut self, id: SlotId) {
        let slot = &mut self.slots[id.0 as usize];
        assert!(slot.with_core, "slot {id} is not the core's");
        slot.with_core = false;
    }

    /// Releases every slot of these pools that the core has; it is gone.
    pub(crate) fn reclaim_from_core(&mut self, pools: &[PoolId]) {
        for index in 0..self.slots.len() {
            if self.slots[index].with_core && pools.contains(&self.slots[index].pool) {
                self.slots[index].with_core = false;
                self.release(SlotId(index as u32));
            }
        }
    }

    /// `len` zero bytes; the slot is nobody's and is never changed.
    pub(crate) fn zeroes(&self, len: u32) -> Span {
        Span { slot: self.zeroes, start: 0, len: len.min(LARGE_BYTES as u32) }
    }

    /// The bytes of a span.
    pub(crate) fn bytes(&self, span: Span) -> &[u8] {
        let slot = self.check(span);
        assert_eq!(slot.kernel_writes, 0, "the kernel may be writing slot {}", span.slot);
        // SAFETY: `check` proved that the span lies inside its slot and so inside the mapping, which lives as
        // long as `self`. Slots do not overlap. Nobody writes: the kernel does not (asserted), and safe code
        // needs `&mut self`, both for `bytes_mut` and for handing the slot to the kernel.
        unsafe { std::slice::from_raw_parts(self.pointer(slot, span), span.len as usize) }
    }

    /// The bytes of a span, to change them.
    pub(crate) fn bytes_mut(&mut self, span: Span) -> &mut [u8] {
        let slot = self.check(span);
        assert!(span.slot != self.zeroes, "the zeroes stay zeroes");
        assert!(slot.kernel_reads + slot.kernel_writes == 0, "slot {} is with the kernel", span.slot);
        // SAFETY: as in `bytes`; `&mut self` excludes every other reference into the arena, and the assertion
        // excludes the kernel.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(slot, span), span.len as usize) }
    }

    /// Copies bytes from one slot to another.
    pub(crate) fn copy(&mut self, from: Span, to: Span) {
        assert!(from.len == to.len && from.slot != to.slot, "a copy goes to another slot of equal length");
        let (source, target) = (self.check(from), self.check(to));
        assert_eq!(source.kernel_writes, 0, "the kernel may be writing slot {}", from.slot);
        assert!(target.kernel_reads + target.kernel_writes == 0, "slot {} is with the kernel", to.slot);
        assert!(to.slot != self.zeroes, "the zeroes stay zeroes");
        // SAFETY: both ranges lie in the mapping (`check`); they belong to different slots, which do not
        // overlap; `&mut self` excludes other references, and the assertions exclude the kernel.
        unsafe {
            let (source, target) = (self.pointer(source, from), self.pointer(target, to));
            std::ptr::copy_nonoverlapping(source, target, from.len as usize);
        }
    }

    /// Notes that the kernel got the span, to write it or to read it; returns the address. The ring calls
    /// [`Arena::kernel_done`] when the operation has completed.
    pub(crate) fn kernel_begins(&mut self, span: Span, writes: bool) -> *mut u8 {
        let pointer = self.pointer(self.check(span), span);
        assert!(!(writes && span.slot == self.zeroes), "the zeroes stay zeroes");
        let slot = &mut self.slots[span.slot.0 as usize];
        assert!(slot.references > 0, "slot {} is free", span.slot);
        if writes {
            slot.kernel_writes += 1
        } else {
            slot.kernel_reads += 1
        }
        pointer
    }

    /// The kernel is done with the span.
    pub(crate) fn kernel_done(&mut self, span: Span, writes: bool) {
        let slot = &mut self.slots[span.slot.0 as usize];
        let count = if writes { &mut slot.kernel_writes } else { &mut slot.kernel_reads };
        assert!(*count > 0, "the kernel was not using slot {}", span.slot);
        *count -= 1;
    }

    /// How many chunks there are, to register as fixed buffers.
    pub(crate) fn chunk_count(&self) -> u32 {
        self.bytes.div_ceil(self.chunk_bytes) as u32
    }

    /// Address and size of a chunk.
    pub(crate) fn chunk(&self, chunk: u16) -> (*mut u8, usize) {
        let start = usize::from(chunk) * self.chunk_bytes;
        assert!(start < self.bytes, "there is no chunk {chunk}");
        // SAFETY: `start` lies inside the mapping.
        let address = unsafe { self.base.as_ptr().add(start) };
        (address, self.chunk_bytes.min(self.bytes - start))
    }

    /// Number of the chunk that holds a slot.
    pub(crate) fn chunk_of(&self, id: SlotId) -> u16 {
        (self.slots[id.0 as usize].start / self.chunk_bytes) as u16
    }

    /// Slots that are not free.
    #[cfg(test)]
    pub(crate) fn in_use(&self) -> u32 {
        self.in_use
    }

    /// How often a slot became free: who waits for one looks again when this has changed.
    pub(crate) fn frees(&self) -> u64 {
        self.frees
    }

    /// Free slots of a pool.
    pub(crate) fn free_in(&self, pool: PoolId) -> u32 {
        let free = &self.pools[usize::from(pool.0)];
        (free.small.len() + free.large.len()) as u32
    }

    /// Bytes of the free slots of a pool.
    pub(crate) fn free_bytes_in(&self, pool: PoolId) -> u64 {
        let free = &self.pools[usize::from(pool.0)];
        (free.small.len() * SMALL_BYTES + free.large.len() * LARGE_BYTES) as u64
    }

    fn check(&self, span: Span) -> &Slot {
        let slot = &self.slots[span.slot.0 as usize];
        let capacity = if slot.large { LARGE_BYTES } else { SMALL_BYTES };
        assert!(
            span.start as usize + span.len as usize <= capacity && slot.references > 0,
            "span {span:?} is not in an owned slot"
        );
        slot
    }

    fn pointer(&self, slot: &Slot, span: Span) -> *mut u8 {
        // SAFETY: slots were laid out inside the mapping by `new`, and every caller has checked the span.
        unsafe { self.base.as_ptr().add(slot.start + span.start as usize) }
    }
}

impl Slot {
    fn new(start: usize, pool: PoolId, large: bool) -> Self {
        Self {
            start,
            pool,
            large,
            base: 0,
            references: 0,
            with_core: false,
            kernel_reads: 0,
            kernel_writes: 0,
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let with_kernel = self.slots.iter().any(|slot| slot.kernel_reads + slot.kernel_writes > 0);
        if with_kernel {
            // The kernel may still write here: the memory must never be used for anything else.
            return;
        }
        // SAFETY: `map` made exactly this mapping, nobody unmapped it before, and no reference into it
        // outlives `self`.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "unmapping the arena");
    }
}

fn map(bytes: usize) -> io::Result<NonNull<u8>> {
    use rustix::mm::{Advice, MapFlags, ProtFlags};
    // SAFETY: a new private anonymous mapping at an address of the kernel's choice touches no existing
    // memory.
    let base = unsafe {
        rustix::mm::mmap_anonymous(
            std::ptr::null_mut(),
            bytes,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE | MapFlags::NORESERVE,
        )?
    };
    // SAFETY: the range is the mapping just made; this advice changes no content. Without it the arena works
    // too.
    let _ = unsafe { rustix::mm::madvise(base, bytes, Advice::LinuxHugepage) };
    NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap gave no address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena() -> Arena {
        Arena::new(&[PoolSize { small: 2, large: 1 }, PoolSize { small: 0, large: 1 }]).unwrap()
    }

    #[test]
    fn pieces_get_the_smallest_slot_that_holds_them_rounded_out() {
        let mut arena = arena();
        let small = arena.take(PoolId(0), 4095, 2).unwrap();
        let large = arena.take(PoolId(0), 4095, 4098).unwrap();
        assert!(!arena.slots[small.0 as usize].large);
        assert!(arena.slots[large.0 as usize].large, "three blocks are touched");
        assert!(arena.take(PoolId(0), 0, 128 << 10).is_none(), "the other pool is not touched");
        assert!(arena.take(PoolId(1), 0, 512).is_some(), "a large slot serves where no small one is");
        assert_eq!(arena.in_use(), 3);
    }

    #[test]
    fn a_large_arena_is_registered_in_chunks_that_hold_whole_slots() {
        // The memory is reserved, not touched.
        let arena = Arena::new(&[PoolSize { small: 5, large: 3 * 8192 + 7 }]).unwrap();
        assert_eq!(arena.chunk_count() as usize, arena.bytes.div_ceil(2 << 20));
        let chunks: Vec<(usize, usize)> = (0..arena.chunk_count() as u16)
            .map(|chunk| arena.chunk(chunk))
            .map(|(address, bytes)| (address as usize, bytes))
            .collect();
        assert_eq!(chunks.iter().map(|(_, bytes)| bytes).sum::<usize>(), arena.bytes);
        for (index, slot) in (0..).zip(&arena.slots) {
            let (address, bytes) = chunks[usize::from(arena.chunk_of(SlotId(index)))];
            let start = arena.base.as_ptr() as usize + slot.start;
            let slot_bytes = arena.slot_bytes(SlotId(index)) as usize;
            assert!(start >= address && start + slot_bytes <= address + bytes, "slot {index}");
        }
    }

    #[test]
    fn the_largest_arena_fits_the_table_of_fixed_buffers() {
        let arena = Arena::new(&[PoolSize { small: 0, large: 300_000 }]).unwrap();
        assert_eq!((arena.chunk_bytes, arena.chunk_count()), (4 << 20, 9376));
    }

    #[test]
    fn a_slot_is_free_after_its_last_reference() {
        let mut arena = arena();
        let id = arena.take(PoolId(1), 0, 4096).unwrap();
        arena.retain(id);
        arena.release(id);
        assert!(arena.take(PoolId(1), 0, 4096).is_none());
        arena.release(id);
        assert_eq!(arena.take(PoolId(1), 0, 4096), Some(id));
    }

    #[test]
    fn bytes_are_aligned_and_slots_do_not_overlap() {
        let mut arena = arena();
        let (a, b) = (arena.take(PoolId(0), 0, 8192).unwrap(), arena.take(PoolId(0), 0, 8192).unwrap());
        let (a, b) = (Span::of_volume(a, 0, 8192), Span::of_volume(b, 0, 8192));
        arena.bytes_mut(a).fill(1);
        arena.bytes_mut(b).fill(2);
        assert!(arena.bytes(a).iter().all(|byte| *byte == 1));
        assert_eq!(arena.bytes(a).as_ptr() as usize % 4096, 0);
        arena.copy(b.first(10), a.skip(100).first(10));
        assert_eq!(arena.bytes(a)[99..111], [1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1]);
    }

    #[test]
    #[should_panic(expected = "with the kernel")]
    fn bytes_that_the_kernel_reads_cannot_be_changed() {
        let mut arena = arena();
        let id = arena.take(PoolId(0), 0, 4096).unwrap();
        let span = Span::of_volume(id, 0, 4096);
        arena.kernel_begins(span, false);
        assert_eq!(arena.bytes(span).len(), 4096);
        arena.bytes_mut(span);
    }

    #[test]
    #[should_panic(expected = "too often")]
    fn a_double_release_is_found() {
        let mut arena = arena();
        let id = arena.take(PoolId(0), 0, 4096).unwrap();
        arena.release(id);
        arena.release(id);
    }
}
