//! The ledger: several writers with reconnecting clients, and the judgement over what a copy holds
//! afterwards.
//!
//! A ledger outlives its loads: [`Ledger::start`] begins one, [`Load::stop`] ends it, the promises stay. A
//! clone is the history up to now, for the two sides of a split brain.

use crate::dial::Target;
use crate::wait::wait_for;
use crate::writer::{BLOCK_BYTES, Writer};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Resolution and length of the record of bytes sent: 10 minutes.
const BUCKET_MS: u64 = 50;
const BUCKETS: usize = 12_000;
const SHOWN_MAX: usize = 5;

/// All promises made to a set of writers.
#[derive(Clone, Debug)]
pub struct Ledger {
    pub(crate) writers: Vec<Writer>,
    size_bytes: u64,
}

/// Writers at work.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Writer>>,
    size_bytes: u64,
}

/// What the threads of a load share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) stop: AtomicBool,
    pub(crate) target: Mutex<Target>,
    pub(crate) depth: usize,
    pub(crate) last_error: Mutex<String>,
    pub(crate) interruptions: AtomicU64,
    acked_writes: AtomicU64,
    acked_bytes: AtomicU64,
    /// Bytes sent, by time since the start.
    sent: Vec<AtomicU64>,
    start: Instant,
}

impl Shared {
    pub(crate) fn count_sent(&self, bytes: u64) {
        let bucket = self.bucket(Instant::now());
        self.sent[bucket].fetch_add(bytes, SeqCst);
    }

    pub(crate) fn count_acked(&self, bytes: u64) {
        self.acked_bytes.fetch_add(bytes, SeqCst);
        self.acked_writes.fetch_add(1, SeqCst);
    }

    fn bucket(&self, at: Instant) -> usize {
        let ms = at.saturating_duration_since(self.start).as_millis() as u64;
        usize::try_from(ms / BUCKET_MS).unwrap_or(BUCKETS).min(BUCKETS - 1)
    }
}

impl Ledger {
    /// Nothing promised yet: the volume holds zeroes.
    pub fn new(size_bytes: u64, writers: u64, seed: u64) -> Ledger {
        let size_blocks = size_bytes / BLOCK_BYTES as u64;
        let writers = (0..writers).map(|index| Writer::new(index, writers, size_blocks, seed)).collect();
        Ledger { writers, size_bytes }
    }

    /// With a diary from now on, so that it can be asked what it knew [`at`](Ledger::at) some moment.
    pub fn with_diary(mut self) -> Ledger {
        for writer in &mut self.writers {
            writer.diary = Some(Vec::new());
        }
        self
    }

    /// From now on nothing is sent with FUA.
    pub fn without_fua(mut self) -> Ledger {
        for writer in &mut self.writers {
            writer.uses_fua = false;
        }
        self
    }

    /// Of another export than the first one.
    pub fn of(mut self, export: &'static str) -> Ledger {
        for writer in &mut self.writers {
            writer.export = export;
        }
        self
    }

    /// Sets the writers to work on the export at `target`, each with so many requests in flight.
    pub fn start(self, target: impl Into<Target>, depth: usize) -> Load {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            target: Mutex::new(target.into()),
            depth,
            last_error: Mutex::new("none".to_string()),
            interruptions: AtomicU64::new(0),
            acked_writes: AtomicU64::new(0),
            acked_bytes: AtomicU64::new(0),
            sent: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(),
            start: Instant::now(),
        });
        let threads = self.writers.into_iter().map(|writer| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || writer.work(&shared))
        });
        Load { threads: threads.collect(), shared, size_bytes: self.size_bytes }
    }

    /// Writes for as long as it takes to have `writes` acknowledged by the export at `socket`.
    #[track_caller]
    pub fn write_some(self, socket: &Path, writes: u64) -> Ledger {
        let load = self.start(socket, 8);
        load.wait_acked(writes);
        load.stop()
    }

    /// Blocks of which anything was promised or tried.
    pub fn blocks(&self) -> u64 {
        self.writers.iter().map(|writer| writer.promises.len() as u64).sum()
    }

    /// Judges every block of a data file, those that were never written too. Panics with the first lost ones.
    #[track_caller]
    pub fn assert_kept(&mut self, image: &Path) {
        let mut file = File::open(image).unwrap_or_else(|error| panic!("{}: {error}", image.display()));
        let mut chunk = vec![0; 1 << 20];
        let mut wrong = Vec::new();
        let mut block = 0;
        while block * (BLOCK_BYTES as u64) < self.size_bytes {
            file.read_exact(&mut chunk).expect("read an image");
            for found in chunk.chunks(BLOCK_BYTES) {
                let owner = self.writers.iter_mut().find(|writer| writer.owns(block));
                if let Err(reason) = owner.expect("every block has an owner").judge(block, found) {
                    wrong.push(reason);
                }
                block += 1;
            }
        }
        let shown = wrong[..wrong.len().min(SHOWN_MAX)].join("\n");
        assert!(wrong.is_empty(), "{}: {} blocks are wrong:\n{shown}", image.display(), wrong.len());
    }
}

impl Load {
    /// Writes acknowledged so far.
    pub fn acked(&self) -> u64 {
        self.shared.acked_writes.load(SeqCst)
    }

    /// Bytes acknowledged so far.
    pub fn acked_bytes(&self) -> u64 {
        self.shared.acked_bytes.load(SeqCst)
    }

    /// How often a writer lost its connection, or did not get one.
    pub fn interruptions(&self) -> u64 {
        self.shared.interruptions.load(SeqCst)
    }

    /// Where writers connect when they connect next.
    pub fn retarget(&self, target: impl Into<Target>) {
        *self.shared.target.lock().expect("lock of the target") = target.into();
    }

    /// Until so many more writes were acknowledged.
    #[track_caller]
    pub fn wait_acked(&self, writes: u64) {
        let goal = self.acked() + writes;
        wait_for(&format!("{writes} more acknowledged writes"), Duration::from_secs(60), || {
            let left = goal.saturating_sub(self.acked());
            let error = || self.shared.last_error.lock().expect("lock of the error").clone();
            if left == 0 { Ok(()) } else { Err(format!("{left} missing; last error: {}", error())) }
        });
    }

    /// Until the load runs at `per_second` acknowledged writes per second or more; gives the rate.
    #[track_caller]
    pub fn wait_rate(&self, per_second: f64) -> f64 {
        const WINDOW: Duration = Duration::from_millis(400);
        let (mut since, mut before) = (Instant::now(), self.acked());
        wait_for(&format!("{per_second} writes per second"), Duration::from_secs(60), || {
            let (took, count) = (since.elapsed(), self.acked() - before);
            let rate = count as f64 / took.as_secs_f64();
            if took < WINDOW {
                return Err("measuring".to_string());
            }
            (since, before) = (Instant::now(), self.acked());
            let error = || self.shared.last_error.lock().expect("lock of the error").clone();
            if rate >= per_second { Ok(rate) } else { Err(format!("{rate:.0}; last error: {}", error())) }
        })
    }

    /// Bytes sent between two moments.
    pub fn sent_bytes(&self, from: Instant, to: Instant) -> u64 {
        let (first, last) = (self.shared.bucket(from), self.shared.bucket(to));
        self.shared.sent[first..=last].iter().map(|bucket| bucket.load(SeqCst)).sum()
    }

    /// The longest time between two moments in which nothing was sent: everything in flight waited for its answer.
    pub fn longest_silence(&self, from: Instant, to: Instant) -> Duration {
        let (first, last) = (self.shared.bucket(from), self.shared.bucket(to));
        let is_silent = |bucket: &AtomicU64| bucket.load(SeqCst) == 0;
        let runs = self.shared.sent[first..=last].chunk_by(|one, two| is_silent(one) == is_silent(two));
        let longest = runs.filter(|run| is_silent(&run[0])).map(|run| run.len() as u64).max();
        Duration::from_millis(longest.unwrap_or(0) * BUCKET_MS)
    }

    /// Lets the writers finish what is in flight, and takes the ledger back.
    pub fn stop(mut self) -> Ledger {
        self.shared.stop.store(true, SeqCst);
        let threads = std::mem::take(&mut self.threads);
        let writers = threads.into_iter().map(|thread| thread.join().expect("a writer"));
        Ledger { writers: writers.collect(), size_bytes: self.size_bytes }
    }
}

impl Drop for Load {
    /// A test that fails must not leave writers behind that fill the log of the next one.
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
    }
}
