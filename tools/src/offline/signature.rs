//! Recognises what a disk holds, so that `create-md` does not prepare data for overwriting that somebody
//! wants.
//!
//! A small table of magic numbers at fixed places. Not complete: an unknown format is not recognised; the
//! operator who types `create-md` without `--source` says that the disk may be filled from the peer.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes at a place mean this.
struct Magic {
    offset: u64,
    bytes: &'static [u8],
    what: &'static str,
}

const fn magic(offset: u64, bytes: &'static [u8], what: &'static str) -> Magic {
    Magic { offset, bytes, what }
}

/// More particular formats first: a partition table's mark also ends the boot sector of a FAT.
const TABLE: &[Magic] = &[
    magic(1080, &[0x53, 0xef], "an ext2, ext3 or ext4 file system"),
    magic(0, b"XFSB", "an XFS file system"),
    magic(0x1_0040, b"_BHRfS_M", "a btrfs file system"),
    magic(1024, &[0x10, 0x20, 0xf5, 0xf2], "an F2FS file system"),
    magic(1024, &[0xe2, 0xe1, 0xf5, 0xe0], "an EROFS file system"),
    magic(3, b"NTFS    ", "an NTFS file system"),
    magic(54, b"FAT1", "a FAT file system"),
    magic(82, b"FAT32", "a FAT file system"),
    magic(0, b"hsqs", "a squashfs file system"),
    magic(0x8001, b"CD001", "an ISO 9660 file system"),
    magic(0x2_0000, &[0x0c, 0xb1, 0xba, 0x00], "a ZFS pool member"),
    magic(0, b"LUKS\xba\xbe", "a LUKS volume"),
    magic(0x4000, b"SKUL\xba\xbe", "a LUKS volume"),
    magic(0, b"LABELONE", "an LVM physical volume"),
    magic(512, b"LABELONE", "an LVM physical volume"),
    magic(1024, b"LABELONE", "an LVM physical volume"),
    magic(1536, b"LABELONE", "an LVM physical volume"),
    magic(4086, b"SWAPSPACE2", "swap space"),
    magic(4086, b"SWAP-SPACE", "swap space"),
    magic(0, &[0xfc, 0x4e, 0x2b, 0xa9], "a member of an md RAID"),
    magic(4096, &[0xfc, 0x4e, 0x2b, 0xa9], "a member of an md RAID"),
    magic(0, b"QFI\xfb", "a qcow2 image"),
    magic(512, b"EFI PART", "a GPT partition table"),
    magic(4096, b"EFI PART", "a GPT partition table"),
    magic(510, &[0x55, 0xaa], "a partition table or boot sector"),
];

const MAGIC_BYTES_MAX: usize = 10;

/// What the disk holds, if it is recognised.
pub(crate) fn recognise(disk: &File) -> io::Result<Option<&'static str>> {
    for entry in TABLE {
        let mut found = [0; MAGIC_BYTES_MAX];
        let found = &mut found[..entry.bytes.len()];
        match disk.read_exact_at(found, entry.offset) {
            Ok(()) if found == entry.bytes => return Ok(Some(entry.what)),
            Ok(()) => {}
            // The disk ends before that place.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_entry_is_found_and_zeroes_are_nothing() {
        for entry in TABLE {
            let file = tempfile::tempfile().unwrap();
            file.set_len(1 << 20).unwrap();
            assert_eq!(recognise(&file).unwrap(), None);
            file.write_all_at(entry.bytes, entry.offset).unwrap();
            assert_eq!(recognise(&file).unwrap(), Some(entry.what));
        }
    }

    #[test]
    fn short_disks_are_nothing() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(recognise(&file).unwrap(), None);
    }
}
