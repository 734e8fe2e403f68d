//! What a job does in the shard's thread, and the blocks around an unaligned payload.
//!
//! Calls here block for as long as the file system takes: for files in memory, and for the page cache.

use std::io;

use lockstep_core::SlotId;

use super::{SCRATCH_TAIL, allocate_mode};
use crate::disk::Disk;
use crate::ring::Fd;
use crate::slots::Span;
use crate::token::Io;

/// Blocks at the edges of a payload that it covers partially, and where they are read to: the first to the
/// beginning of the scratch slot, the last to its second half. Clipped to the disk.
pub(super) fn edges(
    disk: &Disk,
    offset: u64,
    len: u32,
    granule_bytes: u32,
    scratch: SlotId,
) -> impl Iterator<Item = (Span, u64)> + use<> {
    let granule = u64::from(granule_bytes);
    let end = offset + u64::from(len);
    let size_bytes = disk.size_bytes;
    let first = (!offset.is_multiple_of(granule)).then_some((0, offset - offset % granule));
    let last = (!end.is_multiple_of(granule)).then_some((SCRATCH_TAIL, end - end % granule));
    first.into_iter().chain(last).filter_map(move |(start, from)| {
        let len = granule.min(size_bytes.saturating_sub(from)) as u32;
        (len > 0).then_some((Span { slot: scratch, start, len }, from))
    })
}

pub(super) fn put_edges(
    io: &mut Io,
    disk: &Disk,
    (slot, offset, len): (SlotId, u64, u32),
    granule_bytes: u32,
    scratch: SlotId,
) {
    let end = offset + u64::from(len);
    for (span, from) in edges(disk, offset, len, granule_bytes, scratch) {
        // Bytes of the block that the payload does not cover.
        let block_end = from + u64::from(span.len);
        let (start, stop) = if span.start == 0 { (from, offset) } else { (end, block_end) };
        if start >= stop {
            continue;
        }
        let bytes = (stop - start) as u32;
        let source = span.skip((start - from) as u32).first(bytes);
        io.arena().copy(source, Span::of_volume_from(slot, offset, start, bytes));
    }
}

pub(super) fn zero_inline(io: &mut Io, disk: &Disk, offset: u64, len: u32, punch: bool) -> io::Result<()> {
    if punch {
        match rustix::fs::fallocate(&*disk.fd, allocate_mode(true), offset, u64::from(len)) {
            Err(rustix::io::Errno::OPNOTSUPP) => {}
            other => return Ok(other?),
        }
    }
    let span = io.arena().zeroes(len);
    write_all(&disk.fd, io.arena().bytes(span), offset)
}

pub(super) fn read_all(fd: &Fd, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pread(&**fd, &mut *bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                bytes = &mut bytes[count..];
                offset += count as u64;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

pub(super) fn write_all(fd: &Fd, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(&**fd, bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                bytes = &bytes[count..];
                offset += count as u64;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
