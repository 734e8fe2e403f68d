//! The two copies as they lie on disk: where they differ, and what the metadata file says of that.
//!
//! Reads only, behind the daemons' backs: an independent witness. Meaningful only while nothing is being
//! written; holes of sparse files are skipped, so that the size of a volume costs nothing.

use super::ledger::BLOCK_BYTES;
use lockstep_bitmap::{BlockIndex, recover};
use rustix::fs::SeekFrom;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const CHUNK_BYTES: usize = 1 << 20;

/// Blocks that differ between two files. Files of different length are an error.
pub(crate) fn differing_blocks(a: &Path, b: &Path) -> io::Result<BTreeSet<u64>> {
    let (a, b) = (File::open(a)?, File::open(b)?);
    let size_bytes = a.metadata()?.len();
    if b.metadata()?.len() != size_bytes {
        return Err(io::Error::other("the copies have different sizes"));
    }
    let mut differing = BTreeSet::new();
    let (mut of_a, mut of_b) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let mut at = 0;
    while let Some(data_at) = next_data(&a, at)?.into_iter().chain(next_data(&b, at)?).min() {
        at = data_at / CHUNK_BYTES as u64 * CHUNK_BYTES as u64;
        let length_bytes = (size_bytes - at).min(CHUNK_BYTES as u64) as usize;
        let (of_a, of_b) = (&mut of_a[..length_bytes], &mut of_b[..length_bytes]);
        a.read_exact_at(of_a, at)?;
        b.read_exact_at(of_b, at)?;
        if of_a != of_b {
            let blocks =
                of_a.chunks(BLOCK_BYTES).zip(of_b.chunks(BLOCK_BYTES)).zip(at / BLOCK_BYTES as u64..);
            differing.extend(blocks.filter(|((a, b), _)| a != b).map(|(_, block)| block));
        }
        at += length_bytes as u64;
    }
    Ok(differing)
}

/// The next byte at or after `at` that is not in a hole.
fn next_data(file: &File, at: u64) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(data_at) => Ok(Some(data_at)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What a metadata file records of one peer.
pub(crate) struct Marks {
    /// Blocks of the volume.
    pub(crate) blocks: u64,
    /// Blocks whose bit is set toward the peer.
    pub(crate) dirty: BTreeSet<u64>,
    /// Blocks of regions that the activity map has as hot.
    pub(crate) hot: BTreeSet<u64>,
}

impl Marks {
    /// Reads a metadata file, which its daemon may be writing.
    pub(crate) fn read(meta: &Path) -> io::Result<Self> {
        const TRIES: usize = 5;
        let mut result = Err(io::Error::other("not read"));
        // A page caught half written counts as damaged; only superblocks so caught make it unreadable.
        for _ in 0..TRIES {
            result = Self::try_read(meta);
            if result.is_ok() {
                break;
            }
        }
        result
    }

    fn try_read(meta: &Path) -> io::Result<Self> {
        let file = File::open(meta)?;
        let mut read = |offset, buffer: &mut [u8]| file.read_exact_at(buffer, offset);
        let (store, _) = recover(file.metadata()?.len(), &mut read, 1).map_err(io::Error::other)?;
        let geometry = *store.geometry();
        if geometry.block_bytes() != BLOCK_BYTES as u64 {
            return Err(io::Error::other("the bitmap has blocks of another size"));
        }
        let slot = store.slots.first().ok_or_else(|| io::Error::other("no peer has a bitmap here"))?;
        let hot = store.activity.hot_regions().map(|region| geometry.blocks_of_region(region));
        Ok(Marks {
            blocks: geometry.blocks(),
            dirty: (0..geometry.blocks()).filter(|&block| slot.bits.is_dirty(BlockIndex(block))).collect(),
            hot: hot.flat_map(|range| range.start..range.end).collect(),
        })
    }

    /// Blocks of `differing` that neither a bit nor a hot region covers: there must be none, ever.
    pub(crate) fn uncovered(&self, differing: &BTreeSet<u64>) -> usize {
        differing.iter().filter(|block| !self.dirty.contains(block) && !self.hot.contains(block)).count()
    }

    /// The bitmap as a line of `cells` characters, denser where more is dirty.
    pub(crate) fn picture(&self, cells: u64) -> String {
        const SHADES: &[u8] = b".:-=+*#%@";
        let cell = |index: u64| {
            let range = self.blocks * index / cells..self.blocks * (index + 1) / cells;
            let dirty = self.dirty.range(range.clone()).count() as u64;
            match dirty {
                0 => ' ',
                _ => char::from(SHADES[((dirty * 8).div_ceil(range.end - range.start) as usize).min(8)]),
            }
        };
        (0..cells).map(cell).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_each_differing_block_around_holes() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
        for path in [&a, &b] {
            File::create(path).unwrap().set_len(5 << 20).unwrap();
        }
        assert!(differing_blocks(&a, &b).unwrap().is_empty());
        let write = |path: &Path, at: u64| {
            File::options().write(true).open(path).unwrap().write_all_at(b"x", at).unwrap();
        };
        write(&a, 4095);
        write(&b, (5 << 20) - 1);
        write(&a, 3 << 20);
        write(&b, 3 << 20);
        assert_eq!(differing_blocks(&a, &b).unwrap(), BTreeSet::from([0, 1279]));
        File::options().write(true).open(&b).unwrap().set_len(4096).unwrap();
        assert!(differing_blocks(&a, &b).is_err());
    }

    #[test]
    fn picture_and_cover() {
        let marks = Marks { blocks: 64, dirty: (16..32).chain([40]).collect(), hot: BTreeSet::from([3]) };
        assert_eq!(marks.picture(4), " @: ");
        assert_eq!(marks.uncovered(&BTreeSet::from([3, 20, 50])), 1);
    }
}
