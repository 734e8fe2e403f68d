//! Writers that load a volume over NBD and keep the ledger.
//!
//! Each writer has a connection and a contiguous part of the ledger of its own, picks blocks at random
//! there, and never has two writes of one block in flight. A connection that breaks ends its writer; what
//! was in flight stays uncertain in the ledger.

use super::ledger::{BLOCK_BYTES, Entry, Ledger, fill};
use super::nbd::Client;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// What to write.
#[derive(Clone, Copy)]
pub(crate) struct Load<'a> {
    /// NBD socket.
    pub(crate) socket: &'a Path,
    /// Name of the export.
    pub(crate) export: &'a str,
    /// Connections, each with a writer.
    pub(crate) writers: usize,
    /// Writes in flight per writer.
    pub(crate) depth: usize,
    /// Blocks of one write, which is aligned to its size.
    pub(crate) blocks_per_write: usize,
    /// How much of its part each writer uses, in per cent.
    pub(crate) part_percent: usize,
    /// Chooses the blocks; the same seed, the same blocks.
    pub(crate) seed: u64,
    /// Writes of each writer, unless it is stopped before.
    pub(crate) writes_max: u64,
    /// Stops the writers, which then wait for what is in flight.
    pub(crate) stop: &'a AtomicBool,
    /// Counts acknowledged writes while it goes on.
    pub(crate) acknowledged: &'a AtomicU64,
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Acknowledged writes.
    pub(crate) writes: u64,
    /// Acknowledged block writes.
    pub(crate) block_writes: u64,
    /// Acknowledged bytes.
    pub(crate) bytes: u64,
    /// Writes in flight when the connections broke.
    pub(crate) in_flight: u64,
    /// From first to last.
    pub(crate) elapsed: Duration,
    /// Time of the last acknowledgement.
    pub(crate) last_acknowledged: Option<Instant>,
    /// Time of the first acknowledgement.
    pub(crate) first_acknowledged: Option<Instant>,
    /// Latencies in microseconds, ascending.
    pub(crate) latencies_us: Vec<u32>,
    /// Why writers ended before their time.
    pub(crate) broken: Vec<String>,
}

/// Runs all writers to their end.
pub(crate) fn run(ledger: &mut Ledger, load: &Load<'_>) -> Tally {
    assert!(load.depth > 0 && load.blocks_per_write > 0, "a load writes something");
    let begun = Instant::now();
    let part = ledger.entries.len() / load.writers / load.blocks_per_write * load.blocks_per_write;
    assert!(
        part * load.part_percent / 100 / load.blocks_per_write > load.depth,
        "too few blocks for the depth"
    );
    let tallies = thread::scope(|scope| {
        let parts = ledger.entries.chunks_mut(part).take(load.writers).enumerate();
        let spawn = |(index, entries): (usize, _)| {
            let first_block = index * part;
            scope.spawn(move || Writer::new(load, first_block, entries).run())
        };
        let threads: Vec<_> = parts.map(spawn).collect();
        threads.into_iter().map(|thread| thread.join().expect("a writer does not panic")).collect::<Vec<_>>()
    });
    let mut total = tallies.into_iter().fold(Tally::default(), Tally::plus);
    total.elapsed = begun.elapsed();
    total.bytes = total.block_writes * BLOCK_BYTES as u64;
    total.latencies_us.sort_unstable();
    total
}

impl Tally {
    /// A quantile of the latencies, in microseconds.
    pub(crate) fn latency_us(&self, per_mille: usize) -> u32 {
        let last = self.latencies_us.len().saturating_sub(1);
        self.latencies_us.get(last * per_mille / 1000).copied().unwrap_or(0)
    }

    /// Acknowledged writes per second.
    pub(crate) fn writes_per_s(&self) -> u64 {
        per_second(self.writes, self.elapsed)
    }

    fn plus(mut self, other: Tally) -> Tally {
        self.writes += other.writes;
        self.block_writes += other.block_writes;
        self.in_flight += other.in_flight;
        self.last_acknowledged = self.last_acknowledged.max(other.last_acknowledged);
        self.first_acknowledged =
            [self.first_acknowledged, other.first_acknowledged].into_iter().flatten().min();
        self.latencies_us.extend(other.latencies_us);
        self.broken.extend(other.broken);
        self
    }
}

/// A rate; 0 if no time passed.
pub(crate) fn per_second(amount: u64, elapsed: Duration) -> u64 {
    let elapsed_us = elapsed.as_micros().max(1);
    u64::try_from(u128::from(amount) * 1_000_000 / elapsed_us).unwrap_or(u64::MAX)
}

struct Flight {
    /// Index of the first entry within the part.
    index: usize,
    sent: Instant,
}

struct Writer<'a> {
    load: &'a Load<'a>,
    first_block: usize,
    entries: &'a mut [Entry],
    /// By cookie.
    flights: Vec<Option<Flight>>,
    sent: u64,
    random: u64,
    tally: Tally,
}

impl<'a> Writer<'a> {
    fn new(load: &'a Load<'a>, first_block: usize, entries: &'a mut [Entry]) -> Self {
        let flights = (0..load.depth).map(|_| None).collect();
        // Any start but zero will do.
        let random = (first_block as u64 ^ load.seed << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Writer { load, first_block, entries, flights, sent: 0, random, tally: Tally::default() }
    }

    fn run(mut self) -> Tally {
        if let Err(error) = self.write() {
            self.tally.broken.push(error.to_string());
        }
        self.tally.in_flight = self.flights.iter().flatten().count() as u64;
        self.tally
    }

    fn write(&mut self) -> io::Result<()> {
        let mut client = Client::connect(self.load.socket, self.load.export)?;
        let mut data = vec![0; self.load.blocks_per_write * BLOCK_BYTES];
        loop {
            while self.sent < self.load.writes_max
                && !self.load.stop.load(Ordering::Relaxed)
                && let Some(free) = self.flights.iter().position(Option::is_none)
            {
                self.send(&mut client, free, &mut data)?;
            }
            if self.flights.iter().all(Option::is_none) {
                return client.disconnect();
            }
            let done = client.next_done()?;
            let slot = usize::try_from(done.cookie).ok().and_then(|cookie| self.flights.get_mut(cookie));
            let flight = slot.and_then(Option::take);
            let flight = flight.ok_or_else(|| io::Error::other("a reply to a request that was not sent"))?;
            if let Some(error) = done.error {
                return Err(io::Error::other(format!("a write failed: {error}")));
            }
            self.acknowledged(&flight);
        }
    }

    fn send(&mut self, client: &mut Client, cookie: usize, data: &mut [u8]) -> io::Result<()> {
        let index = self.pick();
        let blocks = self.load.blocks_per_write;
        for (nth, content) in data.chunks_mut(BLOCK_BYTES).enumerate() {
            let sequence = self.entries[index + nth].issue();
            fill((self.first_block + index + nth) as u64, sequence, content);
        }
        assert_eq!(data.len(), blocks * BLOCK_BYTES, "one record per block");
        self.sent += 1;
        self.flights[cookie] = Some(Flight { index, sent: Instant::now() });
        client.send_write(cookie as u64, ((self.first_block + index) * BLOCK_BYTES) as u64, data)
    }

    /// Entries that no write in flight covers.
    fn pick(&mut self) -> usize {
        let places = self.entries.len() * self.load.part_percent / 100 / self.load.blocks_per_write;
        loop {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let index = (self.random % places as u64) as usize * self.load.blocks_per_write;
            if self.flights.iter().flatten().all(|flight| flight.index != index) {
                return index;
            }
        }
    }

    fn acknowledged(&mut self, flight: &Flight) {
        let now = Instant::now();
        for entry in &mut self.entries[flight.index..flight.index + self.load.blocks_per_write] {
            entry.acknowledge();
        }
        self.tally.writes += 1;
        self.tally.block_writes += self.load.blocks_per_write as u64;
        self.tally.first_acknowledged.get_or_insert(now);
        self.tally.last_acknowledged = Some(now);
        self.tally.latencies_us.push((now - flight.sent).as_micros().try_into().unwrap_or(u32::MAX));
        self.load.acknowledged.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
