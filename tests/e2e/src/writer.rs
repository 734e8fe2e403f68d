//! One writer of the ledger: its blocks, what was promised of each, and the loop that writes them.
//!
//! A writer has the stripes of blocks that are its own, and never two writes of one block in flight, so that
//! for each block the possible values are: the last acknowledged one, or any that was sent after it and not
//! acknowledged.

use crate::client::Connection;
use crate::diary::{Note, What};
use crate::ledger::Shared;
use crate::rng::Rng;
use lockstep_nbd::Command;
use std::collections::HashMap;
use std::io;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

pub(crate) const BLOCK_BYTES: usize = 4096;
const SECTOR_BYTES: usize = 512;
/// Blocks next to each other that belong to one writer.
const STRIPE_BLOCKS: u64 = 64;
/// A writer works in so many stripes for a while, then moves on: like a file system, not like noise.
const WINDOW_STRIPES: u64 = 8;
const WINDOW_WRITES: u64 = 1000;
const RUN_BLOCKS_MAX: u64 = 16;
const RECONNECT: Duration = Duration::from_millis(10);
/// Every so many sequence numbers the write is a zeroing instead.
const ZERO_EVERY: u64 = 61;
const FLUSH_EVERY: u64 = 97;
const FUA_EVERY: u64 = 31;

/// What was promised of one block. Sequence number 0 is the zeroes of a new volume.
#[derive(Clone, Debug, Default)]
pub(crate) struct Promise {
    pub(crate) acked: u64,
    pub(crate) acked_at: Option<Instant>,
    /// Sent after `acked`, and not acknowledged.
    pub(crate) maybe: Vec<u64>,
}

/// A writer between two loads.
#[derive(Clone, Debug)]
pub(crate) struct Writer {
    index: u64,
    writers: u64,
    size_blocks: u64,
    seed: u64,
    rng: Rng,
    sequence: u64,
    window: u64,
    pub(crate) promises: HashMap<u64, Promise>,
    /// When each request was sent and answered, if that is kept.
    pub(crate) diary: Option<Vec<Note>>,
    /// Some writes are sent with FUA.
    pub(crate) uses_fua: bool,
    /// What it opens.
    pub(crate) export: &'static str,
    /// Where several values of a block are possible, each of its sectors may have another of them.
    pub(crate) may_be_torn: bool,
}

/// A write on its way.
#[derive(Debug)]
struct InFlight {
    first_block: u64,
    blocks: u64,
    sequence: u64,
    flush: bool,
    sent_at: Instant,
}

impl Writer {
    pub(crate) fn new(index: u64, writers: u64, size_blocks: u64, seed: u64) -> Writer {
        let rng = Rng::new(seed ^ (index + 1).wrapping_mul(0x517c_c1b7_2722_0a95));
        Writer {
            index,
            writers,
            size_blocks,
            seed,
            rng,
            sequence: 0,
            window: 0,
            promises: HashMap::new(),
            diary: None,
            uses_fua: true,
            export: crate::cluster::RESOURCE,
            may_be_torn: false,
        }
    }

    /// Writes until told to stop; connects again whenever the connection is lost.
    pub(crate) fn work(mut self, shared: &Shared) -> Writer {
        while !shared.stop.load(SeqCst) {
            let target = shared.target.lock().expect("lock of the target").clone();
            let ended = match Connection::open(target, self.export) {
                Ok(connection) => self.session(connection, shared),
                Err(error) => Err(error),
            };
            if let Err(error) = ended {
                *shared.last_error.lock().expect("lock of the error") = error.to_string();
                shared.interruptions.fetch_add(1, SeqCst);
                std::thread::sleep(RECONNECT);
            }
        }
        self
    }

    fn session(&mut self, mut connection: Connection, shared: &Shared) -> io::Result<()> {
        assert_eq!(connection.size_bytes(), self.size_blocks * BLOCK_BYTES as u64, "size of the volume");
        let mut in_flight: HashMap<u64, InFlight> = HashMap::new();
        let mut payload = Vec::new();
        loop {
            let stopping = shared.stop.load(SeqCst);
            if stopping && in_flight.is_empty() {
                return connection.close();
            }
            if !stopping && in_flight.len() < shared.depth {
                self.send_one(&mut connection, &mut in_flight, &mut payload, shared)?;
                continue;
            }
            let answer = connection.receive()?;
            let write = in_flight.remove(&answer.cookie).ok_or(io::ErrorKind::InvalidData)?;
            if let Some(error) = answer.error {
                return Err(io::Error::other(format!("write of block {}: {error}", write.first_block)));
            }
            if write.flush {
                self.note(What::Flushed { sent_at: write.sent_at });
            } else {
                self.acknowledged(&write, shared);
            }
        }
    }

    fn send_one(
        &mut self,
        connection: &mut Connection,
        in_flight: &mut HashMap<u64, InFlight>,
        payload: &mut Vec<u8>,
        shared: &Shared,
    ) -> io::Result<()> {
        self.sequence += 1;
        let sequence = self.sequence;
        payload.clear();
        if sequence.is_multiple_of(FLUSH_EVERY) {
            let sent_at = Instant::now();
            let cookie = connection.send(Command::Flush, false, 0, 0, &[])?;
            in_flight.insert(cookie, InFlight { first_block: 0, blocks: 0, sequence, flush: true, sent_at });
            return Ok(());
        }
        let (first_block, blocks) = loop {
            let (first, blocks) = self.choose();
            let overlaps = |other: &InFlight| {
                first < other.first_block + other.blocks && other.first_block < first + blocks
            };
            if !in_flight.values().any(overlaps) {
                break (first, blocks);
            }
        };
        let length = blocks as u32 * BLOCK_BYTES as u32;
        let zero = is_zero(sequence);
        for block in first_block..first_block + blocks {
            self.promises.entry(block).or_default().maybe.push(sequence);
            if !zero {
                content(self.seed, block, sequence, payload);
            }
        }
        let command = if zero { Command::WriteZeroes } else { Command::Write };
        shared.count_sent(u64::from(length));
        let fua = self.is_fua(sequence);
        self.note(What::Sent { first_block, blocks, sequence });
        let sent_at = Instant::now();
        let offset = first_block * BLOCK_BYTES as u64;
        let cookie = connection.send(command, fua, offset, length, payload)?;
        in_flight.insert(cookie, InFlight { first_block, blocks, sequence, flush: false, sent_at });
        Ok(())
    }

    /// A run of blocks within one stripe of this writer.
    fn choose(&mut self) -> (u64, u64) {
        let stripes = self.size_blocks / STRIPE_BLOCKS / self.writers;
        assert!(stripes >= WINDOW_STRIPES, "the volume is too small for {} writers", self.writers);
        if self.sequence.is_multiple_of(WINDOW_WRITES) {
            self.window = self.rng.below(stripes - WINDOW_STRIPES + 1);
        }
        let stripe = (self.window + self.rng.below(WINDOW_STRIPES)) * self.writers + self.index;
        let blocks = if self.rng.below(16) == 0 { 1 + self.rng.below(RUN_BLOCKS_MAX) } else { 1 };
        let within = self.rng.below(STRIPE_BLOCKS - blocks + 1);
        (stripe * STRIPE_BLOCKS + within, blocks)
    }

    fn is_fua(&self, sequence: u64) -> bool {
        self.uses_fua && sequence.is_multiple_of(FUA_EVERY)
    }

    fn note(&mut self, what: What) {
        if let Some(diary) = &mut self.diary {
            diary.push(Note { at: Instant::now(), what });
        }
    }

    fn acknowledged(&mut self, write: &InFlight, shared: &Shared) {
        let InFlight { first_block, blocks, sequence, .. } = *write;
        self.note(What::Answered { first_block, blocks, sequence, fua: self.is_fua(sequence) });
        let now = Instant::now();
        for block in write.first_block..write.first_block + write.blocks {
            let promise = self.promises.get_mut(&block).expect("it was sent");
            promise.acked = write.sequence;
            promise.acked_at = Some(now);
            promise.maybe.clear();
        }
        shared.count_acked(write.blocks * BLOCK_BYTES as u64);
    }

    /// Judges what a copy holds of `block`. A value that is possible becomes the only possible one: once it
    /// was seen, it may not change any more.
    pub(crate) fn judge(&mut self, block: u64, found: &[u8]) -> Result<(), String> {
        let seed = self.seed;
        let Some(promise) = self.promises.get_mut(&block) else {
            let zeroes = found.iter().all(|byte| *byte == 0);
            return if zeroes {
                Ok(())
            } else {
                Err(format!("block {block} was never written and is not zero"))
            };
        };
        let mut possible = promise.maybe.iter().rev().copied().chain([promise.acked]);
        if let Some(sequence) = possible.find(|sequence| is_content(seed, block, *sequence, found)) {
            promise.acked = sequence;
            promise.maybe.clear();
            return Ok(());
        }
        if self.may_be_torn && is_mixture(seed, block, promise, found) {
            return Ok(());
        }
        let age = promise.acked_at.map_or("never".to_string(), |at| format!("{:?} ago", at.elapsed()));
        Err(format!(
            "block {block}: acknowledged {} ({age}), possible also {:?}; holds {}",
            promise.acked,
            promise.maybe,
            describe(found)
        ))
    }

    /// Whether this block belongs to this writer.
    pub(crate) fn owns(&self, block: u64) -> bool {
        block / STRIPE_BLOCKS % self.writers == self.index
    }
}

/// The content of a block after the write with this sequence number; also what a lost block is recognised by.
fn content(seed: u64, block: u64, sequence: u64, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&block.to_le_bytes());
    out.extend_from_slice(&sequence.to_le_bytes());
    let mut rng = Rng::new(seed ^ block.rotate_left(32) ^ sequence.wrapping_mul(0x2545_f491_4f6c_dd1d));
    while out.len() < start + BLOCK_BYTES {
        out.extend_from_slice(&rng.draw().to_le_bytes());
    }
}

fn is_zero(sequence: u64) -> bool {
    sequence.is_multiple_of(ZERO_EVERY)
}

fn is_content(seed: u64, block: u64, sequence: u64, found: &[u8]) -> bool {
    if is_zero(sequence) {
        return found.iter().all(|byte| *byte == 0);
    }
    let mut expected = Vec::with_capacity(BLOCK_BYTES);
    content(seed, block, sequence, &mut expected);
    found == expected
}

/// Whether each sector is of some possible value.
fn is_mixture(seed: u64, block: u64, promise: &Promise, found: &[u8]) -> bool {
    let whole = |sequence: u64| match is_zero(sequence) {
        true => vec![0; BLOCK_BYTES],
        false => {
            let mut bytes = Vec::with_capacity(BLOCK_BYTES);
            content(seed, block, sequence, &mut bytes);
            bytes
        }
    };
    let possible: Vec<Vec<u8>> = promise.maybe.iter().copied().chain([promise.acked]).map(whole).collect();
    let sectors = (0..BLOCK_BYTES).step_by(SECTOR_BYTES).map(|at| at..at + SECTOR_BYTES);
    sectors
        .into_iter()
        .all(|sector| possible.iter().any(|whole| whole[sector.clone()] == found[sector.clone()]))
}

fn describe(found: &[u8]) -> String {
    let word = |at: usize| u64::from_le_bytes(found[at..at + 8].try_into().expect("eight bytes"));
    match found.iter().all(|byte| *byte == 0) {
        true => "zeroes".to_string(),
        false => format!("what calls itself block {} of write {}", word(0), word(8)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(writer: &Writer, block: u64, sequence: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        content(writer.seed, block, sequence, &mut bytes);
        bytes
    }

    #[test]
    fn only_the_possible_values_pass_and_a_seen_one_stays() {
        let mut writer = Writer::new(0, 1, 1 << 20, 9);
        writer.promises.insert(5, Promise { acked: 3, acked_at: None, maybe: vec![4, 7] });
        let (old, acked, seen, last) =
            (filled(&writer, 5, 2), filled(&writer, 5, 3), filled(&writer, 5, 4), filled(&writer, 5, 7));
        assert!(writer.clone().judge(5, &acked).is_ok());
        assert!(writer.clone().judge(5, &last).is_ok());
        assert!(writer.judge(5, &old).unwrap_err().contains("write 2"));
        assert!(writer.judge(5, &seen).is_ok());
        assert!(writer.judge(5, &acked).is_err(), "a value that was seen went back");
        assert!(writer.judge(5, &last).is_err(), "a value that was seen changed");
    }

    #[test]
    fn half_a_block_and_an_invented_one_are_refused() {
        let mut writer = Writer::new(0, 1, 1 << 20, 9);
        writer.promises.insert(5, Promise { acked: 3, acked_at: None, maybe: vec![4] });
        let mut torn = filled(&writer, 5, 3);
        torn[2048..].copy_from_slice(&filled(&writer, 5, 4)[2048..]);
        assert!(writer.judge(5, &torn).is_err());
        assert!(writer.judge(6, &torn).is_err());
        writer.may_be_torn = true;
        assert!(
            writer.judge(5, &torn).is_ok(),
            "after a power cut each sector is one of the possible values"
        );
        torn[1024..1536].copy_from_slice(&filled(&writer, 5, 2)[1024..1536]);
        assert!(writer.judge(5, &torn).is_err(), "a sector is older than what was promised");
        assert!(writer.judge(6, &[0; BLOCK_BYTES]).is_ok());
    }
}
