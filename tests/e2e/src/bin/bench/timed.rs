//! A client that writes all the time and remembers of each write when it began and how long it took.

use lockstep_e2e::{Connection, RESOURCE, Rng};
use lockstep_nbd::Command;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub(crate) const BLOCK_BYTES: usize = 4096;

/// One request.
#[derive(Clone, Copy)]
pub(crate) struct Timed {
    pub(crate) began: Instant,
    pub(crate) took: Duration,
}

impl Timed {
    pub(crate) fn ended(&self) -> Instant {
        self.began + self.took
    }

    /// Both were under way at some moment.
    pub(crate) fn overlaps(&self, other: &Timed) -> bool {
        self.began < other.ended() && other.began < self.ended()
    }
}

/// A thread that sends requests until it is told to end.
pub(crate) struct Client {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Timed>>,
}

impl Client {
    /// 4 KiB at random places of the first `span_bytes`, `depth` at a time.
    pub(crate) fn writes(socket: &Path, span_bytes: u64, depth: usize) -> Client {
        let mut connection = open(socket);
        Client::run(move |stop| write(&mut connection, span_bytes, depth, stop))
    }

    /// One flush after the other, with a pause between them.
    pub(crate) fn flushes(socket: &Path, pause: Duration) -> Client {
        let mut connection = open(socket);
        Client::run(move |stop| {
            let mut done = Vec::new();
            while !stop.load(Relaxed) {
                let began = Instant::now();
                connection.flush().expect("a flush");
                done.push(Timed { began, took: began.elapsed() });
                std::thread::sleep(pause);
            }
            done
        })
    }

    fn run(body: impl FnOnce(&AtomicBool) -> Vec<Timed> + Send + 'static) -> Client {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        Client { stop, thread: std::thread::spawn(move || body(&told)) }
    }

    /// Tells it to end, without waiting.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    /// Ends it; gives what it did, in the order of the answers.
    pub(crate) fn end(self) -> Vec<Timed> {
        self.stop();
        self.thread.join().expect("a client that no request failed")
    }
}

fn open(socket: &Path) -> Connection {
    Connection::open(socket, RESOURCE).expect("the export")
}

fn write(connection: &mut Connection, span_bytes: u64, depth: usize, stop: &AtomicBool) -> Vec<Timed> {
    // No two clients write the same places one after the other: their requests would wait for each other.
    static CLIENTS: AtomicU64 = AtomicU64::new(0);
    let seed = CLIENTS.fetch_add(1, Relaxed);
    let (mut rng, payload) = (Rng::new(seed), [0x5a; BLOCK_BYTES]);
    let (mut done, mut underway) = (Vec::new(), HashMap::new());
    loop {
        while underway.len() < depth && !stop.load(Relaxed) {
            let offset = rng.below(span_bytes / BLOCK_BYTES as u64) * BLOCK_BYTES as u64;
            let began = Instant::now();
            let cookie = connection.send(Command::Write, false, offset, BLOCK_BYTES as u32, &payload);
            underway.insert(cookie.expect("send a write"), began);
        }
        if underway.is_empty() {
            return done;
        }
        let answer = connection.receive().expect("an answer");
        assert!(answer.error.is_none(), "a write failed: {:?}", answer.error);
        let began = underway.remove(&answer.cookie).expect("the cookie of a request");
        done.push(Timed { began, took: began.elapsed() });
    }
}

/// The value that so many percent do not exceed; zero of nothing.
pub(crate) fn percentile(times: &[Duration], percent: f64) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() as f64 * percent / 100.0).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

pub(crate) fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
