//! `compare`: reads two images or devices in parallel and lists what differs.
//!
//! Invariants: chunks are read ahead in any order and judged in ascending order, so that ranges come out
//! merged and sorted; memory is bounded whatever the difference looks like. Reads only.

use crate::cli::Compare;
use crate::failure::{Failure, GENERIC};
use crate::output::Output;
use crate::status::SCHEMA;
use crate::text;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{self, Seek, SeekFrom};
use std::path::Path;
use std::rc::Rc;
use tokio_uring::fs::File;

const CHUNK_BYTES: u64 = 1 << 20;
const CHUNKS_AHEAD: usize = 16;
/// Differences are reported in units of this many bytes.
const UNIT_BYTES: usize = 4096;
const RANGES_MAX: usize = 1 << 16;

/// A range that differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct Differing {
    offset: u64,
    bytes: u64,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Comparison {
    schema: u32,
    equal: bool,
    size_a_bytes: u64,
    size_b_bytes: u64,
    differing_bytes: u64,
    ranges: Vec<Differing>,
    /// More ranges differ than are listed.
    truncated: bool,
}

/// Execute it. Exit code 1 if they differ.
pub(crate) fn compare(args: &Compare, output: &Output) -> Result<(), Failure> {
    let comparison = run(&args.a, &args.b, output.shows_progress())?;
    output.data(&comparison, || render(&comparison))?;
    if comparison.equal {
        output.message(&format!("equal: {}", text::bytes(comparison.size_a_bytes)));
        return Ok(());
    }
    output.message(&format!("{} differ", text::bytes(comparison.differing_bytes)));
    if comparison.size_a_bytes != comparison.size_b_bytes {
        output.message(&format!("sizes: {} and {} bytes", comparison.size_a_bytes, comparison.size_b_bytes));
    }
    Err(Failure::new(GENERIC, ""))
}

fn render(comparison: &Comparison) -> String {
    let mut out = String::new();
    for range in &comparison.ranges {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "differs at {} for {} bytes", range.offset, range.bytes);
    }
    if comparison.truncated {
        let _ = writeln!(out, "... and more");
    }
    out
}

fn run(a: &Path, b: &Path, progress: bool) -> Result<Comparison, Failure> {
    let (file_a, size_a_bytes) = open(a)?;
    let (file_b, size_b_bytes) = open(b)?;
    let runtime = tokio_uring::Runtime::new(&tokio_uring::builder()).map_err(|error| {
        Failure::generic(format!("io_uring is needed ({error}); check sysctl kernel.io_uring_disabled"))
    })?;
    let common_bytes = size_a_bytes.min(size_b_bytes);
    let bar = progress_bar(common_bytes, progress);
    let mut comparison = Comparison {
        schema: SCHEMA,
        equal: true,
        size_a_bytes,
        size_b_bytes,
        differing_bytes: 0,
        ranges: Vec::new(),
        truncated: false,
    };
    runtime.block_on(async {
        let files = Rc::new((File::from_std(file_a), File::from_std(file_b)));
        let mut ahead = VecDeque::new();
        let mut next = 0;
        while next < common_bytes || !ahead.is_empty() {
            while next < common_bytes && ahead.len() < CHUNKS_AHEAD {
                let bytes = CHUNK_BYTES.min(common_bytes - next);
                ahead.push_back(tokio_uring::spawn(compare_chunk(Rc::clone(&files), next, bytes)));
                next += bytes;
            }
            let Some(oldest) = ahead.pop_front() else { break };
            let chunk = oldest.await.map_err(|error| Failure::generic(error.to_string()))?;
            let (bytes, ranges) = chunk.map_err(|(which, offset, error)| {
                let path = if which == 0 { a } else { b };
                Failure::generic(format!("{}: reading at {offset}: {error}", path.display()))
            })?;
            ranges.into_iter().for_each(|range| comparison.add(range));
            bar.inc(bytes);
        }
        Ok::<(), Failure>(())
    })?;
    bar.finish_and_clear();
    if size_a_bytes != size_b_bytes {
        comparison
            .add(Differing { offset: common_bytes, bytes: size_a_bytes.max(size_b_bytes) - common_bytes });
    }
    Ok(comparison)
}

impl Comparison {
    /// Ranges arrive in ascending order.
    fn add(&mut self, range: Differing) {
        self.equal = false;
        self.differing_bytes += range.bytes;
        let is_full = self.ranges.len() == RANGES_MAX;
        match self.ranges.last_mut() {
            Some(last) if last.offset + last.bytes == range.offset => last.bytes += range.bytes,
            _ if is_full => self.truncated = true,
            _ => self.ranges.push(range),
        }
    }
}

type ChunkResult = Result<(u64, Vec<Differing>), (usize, u64, io::Error)>;

async fn compare_chunk(files: Rc<(File, File)>, offset: u64, bytes: u64) -> ChunkResult {
    let length = usize::try_from(bytes).expect("a chunk fits in memory");
    let (a, b) = tokio::join!(read_full(&files.0, offset, length), read_full(&files.1, offset, length));
    let a = a.map_err(|error| (0, offset, error))?;
    let b = b.map_err(|error| (1, offset, error))?;
    let mut ranges: Vec<Differing> = Vec::new();
    if a != b {
        let mut at = offset;
        for (unit_a, unit_b) in a.chunks(UNIT_BYTES).zip(b.chunks(UNIT_BYTES)) {
            let unit_bytes = unit_a.len() as u64;
            if unit_a != unit_b {
                match ranges.last_mut() {
                    Some(last) if last.offset + last.bytes == at => last.bytes += unit_bytes,
                    _ => ranges.push(Differing { offset: at, bytes: unit_bytes }),
                }
            }
            at += unit_bytes;
        }
    }
    Ok((bytes, ranges))
}

async fn read_full(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut whole = Vec::new();
    let mut buffer = Vec::with_capacity(length);
    while whole.len() < length {
        let (result, mut read) = file.read_at(buffer, offset + whole.len() as u64).await;
        if result? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter meanwhile"));
        }
        // The usual case is one read that fills everything: no copy.
        if whole.is_empty() && read.len() == length {
            return Ok(read);
        }
        whole.append(&mut read);
        buffer = Vec::with_capacity(length - whole.len());
    }
    Ok(whole)
}

fn open(path: &Path) -> Result<(std::fs::File, u64), Failure> {
    let open = || {
        let mut file = std::fs::File::open(path)?;
        // Works for files and block devices alike.
        let bytes = file.seek(SeekFrom::End(0))?;
        Ok((file, bytes))
    };
    open().map_err(|error: io::Error| Failure::generic(format!("{}: {error}", path.display())))
}

fn progress_bar(bytes: u64, shown: bool) -> ProgressBar {
    // indicatif draws on a terminal only.
    let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(bytes), target);
    let template =
        "[{bar:30}] {percent} %  {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  ETA {eta}";
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style.progress_chars("##.")),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(a: &[u8], b: &[u8]) -> Comparison {
        let dir = tempfile::tempdir().unwrap();
        let (path_a, path_b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&path_a, a).unwrap();
        std::fs::write(&path_b, b).unwrap();
        run(&path_a, &path_b, false).unwrap()
    }

    #[test]
    fn equal_images() {
        let image = vec![7; 5_000_001];
        let comparison = images(&image, &image);
        assert!(comparison.equal && comparison.ranges.is_empty());
        assert!(images(&[], &[]).equal);
    }

    #[test]
    fn ranges_are_whole_units_merged_across_chunks() {
        let a = vec![0; 40 << 20];
        let mut b = a.clone();
        b[4096] = 1;
        for byte in [(1 << 20) - 1, 1 << 20, (33 << 20) + 5, (40 << 20) - 1] {
            b[byte] = 1;
        }
        let comparison = images(&a, &b);
        let range = |offset, bytes| Differing { offset, bytes };
        assert_eq!(
            comparison.ranges,
            [
                range(4096, 4096),
                range((1 << 20) - 4096, 8192),
                range(33 << 20, 4096),
                range((40 << 20) - 4096, 4096)
            ]
        );
        assert_eq!((comparison.equal, comparison.differing_bytes), (false, 5 * 4096));
    }

    #[test]
    fn other_sizes_differ_in_the_rest() {
        let comparison = images(&[0; 5000], &[0; 9000]);
        assert_eq!(comparison.ranges, [Differing { offset: 5000, bytes: 4000 }]);
        assert!(!comparison.equal);
    }

    #[test]
    fn lists_are_bounded() {
        let mut comparison = images(&[], &[]);
        for index in 0..RANGES_MAX as u64 + 10 {
            comparison.add(Differing { offset: index * 8192, bytes: 4096 });
        }
        assert_eq!((comparison.ranges.len(), comparison.truncated), (RANGES_MAX, true));
        assert_eq!(comparison.differing_bytes, (RANGES_MAX as u64 + 10) * 4096);
    }
}
