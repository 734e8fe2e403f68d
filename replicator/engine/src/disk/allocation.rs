//! Where a disk holds data and where holes, as far as its file system says so at once.
//!
//! Only a hole that the kernel names is told as one; whatever is not known holds data. A block device, and a file
//! system that may wait for somebody else, are not asked.

use lockstep_nbd::{ALLOCATION_HOLE, ALLOCATION_ZERO, Extents};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::Disk;

/// Changes between data and hole that are looked for in one answer.
const STEPS_MAX: usize = 256;

impl Disk {
    /// Describes the range from `offset` on, until the extents are full or enough was looked at.
    pub(crate) fn describe_allocation(&self, offset: u64, extents: &mut Extents) {
        if self.is_block || self.may_block {
            return extents.push(u64::MAX, 0);
        }
        let (mut at, mut steps) = (offset, 0);
        while at < self.size_bytes && !extents.is_full() && steps < STEPS_MAX {
            let (end, flags) = match seek(&*self.fd, SeekFrom::Data(at)) {
                Ok(data) if data > at => (data, ALLOCATION_HOLE | ALLOCATION_ZERO),
                Ok(_) => (seek(&*self.fd, SeekFrom::Hole(at)).unwrap_or(self.size_bytes), 0),
                // No data behind it.
                Err(Errno::NXIO) => (self.size_bytes, ALLOCATION_HOLE | ALLOCATION_ZERO),
                Err(_) => (self.size_bytes, 0),
            };
            let end = end.clamp(at + 1, self.size_bytes);
            extents.push(end - at, flags);
            (at, steps) = (end, steps + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::open;
    use super::*;
    use std::os::unix::fs::FileExt;
    use std::time::Duration;

    const SIZE_BYTES: u64 = 1 << 20;

    fn described(folder: &std::path::Path, offset: u64, length: u64) -> Vec<(u64, u32)> {
        let path = folder.join("disk");
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(SIZE_BYTES).unwrap();
        file.write_all_at(&[1; 65536], 65536).unwrap();
        file.sync_all().unwrap();
        let disk = Disk::from(open(&path, false, Duration::ZERO).unwrap());
        let mut extents = Extents::new(length, false);
        disk.describe_allocation(offset, &mut extents);
        extents.as_slice().iter().map(|extent| (extent.length, extent.flags)).collect()
    }

    #[test]
    fn holes_are_told_and_nothing_else_is() {
        for folder in ["/dev/shm", env!("CARGO_MANIFEST_DIR")] {
            let folder = tempfile::tempdir_in(folder).unwrap();
            let all = described(folder.path(), 0, SIZE_BYTES);
            assert_eq!(all, [(65536, 3), (65536, 0), (SIZE_BYTES - 131_072, 3)]);
            let part = described(folder.path(), 65536 + 1000, 65536);
            assert_eq!(part, [(64536, 0), (1000, 3)]);
            assert_eq!(described(folder.path(), SIZE_BYTES - 10, 10), [(10, 3)]);
        }
    }

    #[test]
    fn a_disk_that_cannot_be_asked_holds_data() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = folder.path().join("disk");
        std::fs::File::create(&path).unwrap().set_len(SIZE_BYTES).unwrap();
        let mut disk = Disk::from(open(&path, false, Duration::ZERO).unwrap());
        disk.may_block = true;
        let mut extents = Extents::new(SIZE_BYTES, false);
        disk.describe_allocation(0, &mut extents);
        assert_eq!(extents.as_slice().len(), 1);
        assert_eq!((extents.as_slice()[0].length, extents.as_slice()[0].flags), (SIZE_BYTES, 0));
    }
}
