//! The log of a disk's writes, as dm-log-writes of the kernel and blklogwrites of QEMU write it, and the disk that a
//! power cut at some point of it leaves behind.
//!
//! All numbers are little-endian. Sector 0 of the log: magic (8), version (8), number of entries (8), bytes of a sector
//! (4). Then one entry after the other: sector (8), number of sectors (8), flags (8), length of a mark (8), padded to a
//! sector; behind it the data, unless it is a discard, of which there is none. A mark's text is in the entry's own
//! sector. Entries are in the order in which the disk was asked.
//!
//! What a flush in the log covers is on the disk: every entry before it. Of the later ones each may be there, or
//! not, or in part, whatever became of the others; only a write with FUA is there in any case.

use crate::rng::Rng;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const FLUSH: u64 = 1;
const FUA: u64 = 1 << 1;
const DISCARD: u64 = 1 << 2;
const MARK: u64 = 1 << 3;
const METADATA: u64 = 1 << 4;
const KNOWN: u64 = FLUSH | FUA | DISCARD | MARK | METADATA;
/// Of an entry; the text of a mark is behind it.
const HEAD_BYTES: u64 = 32;
/// What a disk writes as a whole, whatever its logical blocks are.
const ATOM_BYTES: usize = 512;

/// One thing that the disk was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it begins on the disk, and how long it is: 0 where nothing is written.
    pub offset_bytes: u64,
    /// Length of what is written or discarded.
    pub length_bytes: u64,
    flags: u64,
    /// Where its data is in the log.
    data_at: usize,
    /// Where its mark is in the log, and how long.
    mark: (usize, usize),
    /// Length of the log with it.
    end: u64,
}

impl Entry {
    /// All before it is durable.
    pub fn is_flush(&self) -> bool {
        self.flags & FLUSH != 0
    }

    /// Durable by itself.
    pub fn is_fua(&self) -> bool {
        self.flags & FUA != 0
    }

    /// Gives the range back: it holds zeroes then.
    pub fn is_discard(&self) -> bool {
        self.flags & DISCARD != 0
    }
}

/// A log that was read.
#[derive(Debug)]
pub struct WriteLog {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

/// What of the writes that no flush covers is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Nothing: the process was killed, not the machine.
    Nothing,
    /// Each write may be, by itself.
    Writes,
    /// Each sector may be, by itself.
    Sectors,
    /// All of it.
    Everything,
}

impl Loss {
    /// What a power cut loses this time.
    pub fn draw(rng: &mut Rng) -> Loss {
        match rng.below(10) {
            0 => Loss::Nothing,
            1..4 => Loss::Everything,
            4..7 => Loss::Sectors,
            _ => Loss::Writes,
        }
    }

    fn takes(self, rng: &mut Rng) -> bool {
        match self {
            Loss::Nothing => false,
            Loss::Writes | Loss::Sectors => rng.below(2) == 0,
            Loss::Everything => true,
        }
    }
}

impl WriteLog {
    /// Reads a log, or the device that it is on.
    pub fn read(path: &Path) -> io::Result<WriteLog> {
        let bytes = std::fs::read(path)?;
        WriteLog::parse(bytes).map_err(|why| io::Error::other(format!("{}: {why}", path.display())))
    }

    fn parse(bytes: Vec<u8>) -> Result<WriteLog, String> {
        let (magic, version) = (word(&bytes, 0)?, word(&bytes, 8)?);
        if (magic, version) != (MAGIC, VERSION) {
            return Err(format!("no log of writes: magic {magic:x}, version {version}"));
        }
        let sector_bytes = word(&bytes, 24)? & u64::from(u32::MAX);
        if !(512..=4096).contains(&sector_bytes) || !sector_bytes.is_power_of_two() {
            return Err(format!("sectors of {sector_bytes} bytes"));
        }
        let mut entries = Vec::new();
        let mut at = sector_bytes;
        for number in 0..word(&bytes, 16)? {
            let entry = parse_entry(&bytes, at, sector_bytes)
                .map_err(|why| format!("entry {number} at byte {at}: {why}"))?;
            at = entry.end;
            entries.push(entry);
        }
        Ok(WriteLog { bytes, entries })
    }

    /// What the disk was asked for, in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// What is in the log as long as it is no longer than this.
    pub fn entries_within(&self, log_bytes: u64) -> &[Entry] {
        &self.entries[..self.entries.partition_point(|entry| entry.end <= log_bytes)]
    }

    /// What the log had when it was marked with this text.
    pub fn entries_before_mark(&self, text: &str) -> Option<&[Entry]> {
        let is_it = |entry: &Entry| {
            let (at, length) = entry.mark;
            entry.flags & MARK != 0 && self.bytes[at..at + length] == *text.as_bytes()
        };
        self.entries.iter().position(is_it).map(|index| &self.entries[..index])
    }

    fn data(&self, entry: &Entry) -> &[u8] {
        &self.bytes[entry.data_at..entry.data_at + entry.length_bytes as usize]
    }

    /// Makes of `image`, which holds what the disk held when the log began, the disk after a power cut behind
    /// `entries`. Gives the number of writes that no flush covered.
    pub fn cut(&self, entries: &[Entry], image: &File, loss: Loss, rng: &mut Rng) -> io::Result<usize> {
        let last_flush = entries.iter().rposition(Entry::is_flush);
        let mut uncovered = 0;
        for (index, entry) in entries.iter().enumerate().filter(|(_, entry)| entry.length_bytes > 0) {
            // A flush that carries data covers what was before it, not itself.
            let covered = last_flush.is_some_and(|flush| index < flush) || entry.is_fua();
            uncovered += usize::from(!covered);
            if covered || loss == Loss::Nothing {
                self.apply(entry, 0..entry.length_bytes, image)?;
            } else if loss == Loss::Sectors {
                for from in (0..entry.length_bytes).step_by(ATOM_BYTES) {
                    if !loss.takes(rng) {
                        self.apply(entry, from..from + ATOM_BYTES as u64, image)?;
                    }
                }
            } else if !loss.takes(rng) {
                self.apply(entry, 0..entry.length_bytes, image)?;
            }
        }
        Ok(uncovered)
    }

    fn apply(&self, entry: &Entry, part: std::ops::Range<u64>, image: &File) -> io::Result<()> {
        let (from, to) = (part.start as usize, part.end as usize);
        let at = entry.offset_bytes + part.start;
        match entry.is_discard() {
            true => image.write_all_at(&vec![0; to - from], at),
            false => image.write_all_at(&self.data(entry)[from..to], at),
        }
    }
}

fn parse_entry(bytes: &[u8], at: u64, sector_bytes: u64) -> Result<Entry, String> {
    let start = usize::try_from(at).map_err(|error| error.to_string())?;
    let [sector, sectors, flags] = [word(bytes, start)?, word(bytes, start + 8)?, word(bytes, start + 16)?];
    let mark_bytes = word(bytes, start + 24)?;
    if flags & !KNOWN != 0 {
        return Err(format!("unknown flags {flags:x}"));
    }
    if mark_bytes > sector_bytes - HEAD_BYTES {
        return Err(format!("a mark of {mark_bytes} bytes"));
    }
    let too_far = || format!("{sectors} sectors at {sector}");
    let offset_bytes = sector.checked_mul(sector_bytes).ok_or_else(too_far)?;
    let length_bytes = sectors.checked_mul(sector_bytes).ok_or_else(too_far)?;
    let data_at = at + sector_bytes;
    let end =
        if flags & DISCARD == 0 { data_at.checked_add(length_bytes).ok_or_else(too_far)? } else { data_at };
    if end > bytes.len() as u64 {
        return Err(format!("{} go beyond the end of the log", too_far()));
    }
    let mark = (start + HEAD_BYTES as usize, mark_bytes as usize);
    Ok(Entry { offset_bytes, length_bytes, flags, data_at: data_at as usize, mark, end })
}

fn word(bytes: &[u8], at: usize) -> Result<u64, String> {
    let found = bytes.get(at..at + 8).ok_or_else(|| format!("the log ends at byte {}", bytes.len()))?;
    Ok(u64::from_le_bytes(found.try_into().expect("eight bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECTOR: usize = 512;

    /// A log of entries, each with its sector, number of sectors, flags, and the byte that it writes.
    fn log(entries: &[(u64, u64, u64, u8)]) -> Vec<u8> {
        let sector = |words: &[u64]| {
            let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            bytes.resize(SECTOR, 0);
            bytes
        };
        let mut bytes = sector(&[MAGIC, VERSION, entries.len() as u64, SECTOR as u64]);
        for (at, sectors, flags, byte) in entries {
            bytes.extend(sector(&[*at, *sectors, *flags, 0]));
            if flags & DISCARD == 0 {
                bytes.extend(vec![*byte; *sectors as usize * SECTOR]);
            }
        }
        bytes
    }

    /// First byte of each of the first eight sectors after a cut at the end of the log.
    fn disk_after(entries: &[(u64, u64, u64, u8)], loss: Loss, seed: u64) -> Vec<u8> {
        let log = WriteLog::parse(log(entries)).unwrap();
        let image = tempfile::tempfile().unwrap();
        image.set_len(8 * SECTOR as u64).unwrap();
        log.cut(log.entries(), &image, loss, &mut Rng::new(seed)).unwrap();
        let mut bytes = vec![0; 8 * SECTOR];
        image.read_exact_at(&mut bytes, 0).unwrap();
        bytes.chunks(SECTOR).map(|sector| sector[0]).collect()
    }

    #[test]
    fn entries_are_found_behind_each_other_and_within_a_length() {
        let log = WriteLog::parse(log(&[(3, 2, 0, 7), (0, 0, FLUSH, 0), (8, 4, DISCARD, 0), (1, 1, FUA, 9)]))
            .unwrap();
        let shown: Vec<(u64, u64)> = log.entries().iter().map(|e| (e.offset_bytes, e.length_bytes)).collect();
        assert_eq!(shown, [(1536, 1024), (0, 0), (4096, 2048), (512, 512)]);
        assert!(log.entries()[1].is_flush() && log.entries()[2].is_discard() && log.entries()[3].is_fua());
        let ends = [2048, 2560, 3072, 4096];
        for (count, end) in ends.into_iter().enumerate() {
            assert_eq!(log.entries_within(end - 1).len(), count);
            assert_eq!(log.entries_within(end).len(), count + 1);
        }
    }

    #[test]
    fn a_mark_divides_the_log() {
        let mut bytes = log(&[(0, 1, 0, 1), (0, 0, MARK, 0), (1, 1, 0, 2), (0, 0, MARK, 0)]);
        for (at, text) in [(1536, b"one"), (3072, b"two")] {
            bytes[at + 24] = 3;
            bytes[at + 32..at + 35].copy_from_slice(text);
        }
        let log = WriteLog::parse(bytes.clone()).unwrap();
        let before = |text| log.entries_before_mark(text).map(<[Entry]>::len);
        assert_eq!([before("one"), before("two"), before("o")], [Some(1), Some(3), None]);
        bytes[1536 + 25] = 2;
        assert!(WriteLog::parse(bytes).unwrap_err().contains("entry 1 at byte 1536: a mark of 515 bytes"));
    }

    #[test]
    fn a_log_that_is_damaged_says_where() {
        let why = |bytes: Vec<u8>| WriteLog::parse(bytes).unwrap_err();
        assert!(why(vec![0; 4096]).contains("no log of writes"));
        assert!(why(vec![0; 10]).contains("ends at byte 10"));
        let mut short = log(&[(0, 2, 0, 1), (0, 1, 0, 2)]);
        short.truncate(short.len() - 1);
        assert!(why(short).contains("entry 1 at byte 2048: 1 sectors at 0 go beyond"));
        assert!(why(log(&[(0, 0, 1 << 9, 0)])).contains("unknown flags 200"));
        assert!(why(log(&[(u64::MAX, 0, 0, 0)])).contains("entry 0"));
    }

    #[test]
    fn what_a_flush_covers_is_kept_and_the_rest_may_be_lost() {
        let entries = [(0, 2, 0, 1), (0, 0, FLUSH, 0), (0, 1, 0, 2), (3, 1, FUA, 3), (1, 4, DISCARD, 0)];
        assert_eq!(disk_after(&entries, Loss::Everything, 1)[..5], [1, 1, 0, 3, 0]);
        assert_eq!(disk_after(&entries, Loss::Nothing, 1)[..5], [2, 0, 0, 0, 0]);
        let seen = |loss| {
            let mut found: Vec<Vec<u8>> = (0..64).map(|seed| disk_after(&entries, loss, seed)).collect();
            found.sort();
            found.dedup();
            found.len()
        };
        // The write and the discard: each there or not; by sectors: two of the discard's four make a difference.
        assert_eq!(seen(Loss::Writes), 4);
        assert_eq!(seen(Loss::Sectors), 8);
    }

    #[test]
    fn a_flush_with_data_does_not_cover_itself() {
        assert_eq!(disk_after(&[(0, 1, 0, 1), (1, 1, FLUSH, 2)], Loss::Everything, 1)[..2], [1, 0]);
        assert_eq!(disk_after(&[(0, 1, 0, 1), (1, 1, FLUSH | FUA, 2)], Loss::Everything, 1)[..2], [1, 2]);
    }
}
