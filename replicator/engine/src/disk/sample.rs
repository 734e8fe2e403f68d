//! A hash over some blocks of a disk, for two copies whose operator said that they are equal.
//!
//! It catches a wrong disk or a forgotten copy, not a single differing block: the whole point of `--clean` is
//! that nobody reads everything. Blocks are spread evenly, the first and the last among them.

use std::io;

use super::OpenDisk;

const BLOCK_BYTES: u64 = 4096;
const BLOCKS: u64 = 256;

/// Reads up to 256 blocks of the volume, which may be smaller than the disk. Not for the shard's thread.
pub(crate) fn sample(disk: &OpenDisk, volume_bytes: u64) -> io::Result<u128> {
    let last = (volume_bytes / BLOCK_BYTES).saturating_sub(1);
    let mut hasher = blake3::Hasher::new();
    // O_DIRECT wants an aligned buffer: the part of a double one that begins at a multiple of the block.
    let mut buffer = vec![0u8; 2 * BLOCK_BYTES as usize];
    let skip = buffer.as_ptr().align_offset(BLOCK_BYTES as usize).min(BLOCK_BYTES as usize);
    let block = &mut buffer[skip..skip + BLOCK_BYTES as usize];
    for nth in 0..BLOCKS {
        let offset = last * nth / (BLOCKS - 1) * BLOCK_BYTES;
        let bytes = rustix::io::pread(&disk.fd, &mut *block, offset)?;
        hasher.update(&offset.to_le_bytes()).update(&block[..bytes]);
    }
    let hash = hasher.finalize();
    Ok(hash.as_bytes().first_chunk().map_or(1, |bytes| u128::from_le_bytes(*bytes)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    #[test]
    fn equal_disks_agree_and_other_ones_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let of = |name: &str, blocks: usize, fill: u8| {
            let path = dir.path().join(name);
            fs::write(&path, vec![fill; blocks * 4096]).unwrap();
            sample(&super::super::open(&path, false, Duration::from_secs(1)).unwrap(), 1000 * 4096).unwrap()
        };
        assert_eq!(of("a", 1000, 1), of("b", 1000, 1));
        assert_ne!(of("a", 1000, 1), of("c", 1000, 2));
        assert_eq!(of("a", 1000, 1), of("d", 1500, 1), "a disk that has grown");
    }
}
