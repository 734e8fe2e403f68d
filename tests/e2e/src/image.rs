//! Byte comparison of data files, independent of `lockstep compare`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

const CHUNK_BYTES: usize = 1 << 20;
const SHOWN_MAX: usize = 8;

/// Panics unless both files have the same size and the same bytes; names the first blocks that differ.
#[track_caller]
pub fn assert_equal(a: &Path, b: &Path) {
    let different = different_blocks(a, b);
    let shown = &different[..different.len().min(SHOWN_MAX)];
    assert!(
        different.is_empty(),
        "{} and {} differ in {} blocks of 4 KiB, first at {shown:?}",
        a.display(),
        b.display(),
        different.len()
    );
}

fn different_blocks(a: &Path, b: &Path) -> Vec<u64> {
    let open = |path: &Path| File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (mut file_a, mut file_b) = (open(a), open(b));
    let sizes = [&file_a, &file_b].map(|file| file.metadata().expect("size of an image").len());
    assert_eq!(sizes[0], sizes[1], "sizes of {} and {}", a.display(), b.display());
    let (mut left, mut right) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let mut different = Vec::new();
    let mut offset = 0;
    while offset < sizes[0] {
        let length = CHUNK_BYTES.min(usize::try_from(sizes[0] - offset).unwrap_or(CHUNK_BYTES));
        file_a.read_exact(&mut left[..length]).expect("read an image");
        file_b.read_exact(&mut right[..length]).expect("read an image");
        if left[..length] != right[..length] {
            let pairs = left[..length].chunks(4096).zip(right[..length].chunks(4096));
            let blocks = pairs.enumerate().filter(|(_, (l, r))| l != r);
            different.extend(blocks.map(|(index, _)| offset / 4096 + index as u64));
        }
        offset += length as u64;
    }
    different
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_different_byte_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let mut bytes = vec![7; 3 * CHUNK_BYTES + 4096];
        std::fs::write(&a, &bytes).unwrap();
        std::fs::write(&b, &bytes).unwrap();
        assert_equal(&a, &b);
        let last = bytes.len() - 1;
        bytes[last] = 8;
        std::fs::write(&b, &bytes).unwrap();
        assert_eq!(different_blocks(&a, &b), [last as u64 / 4096]);
    }
}
