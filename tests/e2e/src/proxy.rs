//! The wire from alpha to beta, with faults on demand: refuse, cut, stall, slow down, swallow one way,
//! truncate, half-open.
//!
//! Alpha dials, so one listener in front of beta's replication port sees the whole traffic. Each connection
//! has two pump threads, which look at the faults between two reads; no fault needs more than a poll's time
//! to take hold.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Which way bytes go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// From the dialling node.
    ToBeta,
    /// Back.
    ToAlpha,
}

const PASS: u8 = 0;
/// Nothing is read: the sender's buffers fill.
const STALL: u8 = 1;
/// What is read vanishes.
const SWALLOW: u8 = 2;
const POLL: Duration = Duration::from_millis(10);
const NO_LIMIT: i64 = i64::MAX;

/// A listener and the connections through it. Ends with its handle.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    port: u16,
    listener: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    stop: AtomicBool,
    refusing: AtomicBool,
    modes: [AtomicU8; 2],
    /// Bytes that still pass before the connection is cut in the middle of something.
    limits: [AtomicI64; 2],
    /// Bytes per second each way; 0 is as fast as it goes.
    rate: AtomicU64,
    /// Milliseconds that each byte takes on its way.
    delay_ms: AtomicU64,
    passed: [AtomicU64; 2],
    links: Mutex<Vec<Arc<Link>>>,
}

#[derive(Debug)]
struct Link {
    alpha: TcpStream,
    beta: TcpStream,
    /// One end was closed on purpose; the other one must not notice.
    half_open: AtomicBool,
}

impl Link {
    fn cut(&self) {
        // An end that is closed already is as good.
        drop(self.alpha.shutdown(Shutdown::Both));
        drop(self.beta.shutdown(Shutdown::Both));
    }
}

impl Proxy {
    /// Listens on a free port of loopback in front of `target_port`.
    pub fn start(target_port: u16) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("listen as proxy");
        let port = listener.local_addr().expect("the proxy's address").port();
        listener.set_nonblocking(true).expect("non-blocking listener");
        let shared = Arc::new(Shared {
            target: SocketAddr::from(([127, 0, 0, 1], target_port)),
            stop: AtomicBool::new(false),
            refusing: AtomicBool::new(false),
            modes: [const { AtomicU8::new(PASS) }; 2],
            limits: [const { AtomicI64::new(NO_LIMIT) }; 2],
            rate: AtomicU64::new(0),
            delay_ms: AtomicU64::new(0),
            passed: [const { AtomicU64::new(0) }; 2],
            links: Mutex::new(Vec::new()),
        });
        let worker = Arc::clone(&shared);
        let listener = std::thread::spawn(move || accept(&listener, &worker));
        Proxy { shared, port, listener: Some(listener) }
    }

    /// The port that alpha dials.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Closes the connections, and every new one at once.
    pub fn cut(&self) {
        self.shared.refusing.store(true, SeqCst);
        self.reset();
    }

    /// Closes the connections; new ones are welcome.
    pub fn reset(&self) {
        for link in self.links().drain(..) {
            link.cut();
        }
    }

    /// Reads nothing any more, in both directions; connections stay open, new ones open and stay silent.
    pub fn stall(&self) {
        for mode in &self.shared.modes {
            mode.store(STALL, SeqCst);
        }
    }

    /// Bytes that go this way vanish, those of the other direction pass.
    pub fn swallow(&self, direction: Direction) {
        self.shared.modes[direction as usize].store(SWALLOW, SeqCst);
    }

    /// Cuts after so many more bytes this way, most likely within a frame; new connections are refused from
    /// then on.
    pub fn truncate(&self, direction: Direction, bytes: u32) {
        self.shared.limits[direction as usize].store(i64::from(bytes), SeqCst);
    }

    /// Lets so many bytes per second pass each way; 0 is as fast as it goes.
    pub fn slow_down(&self, bytes_per_s: u64) {
        self.shared.rate.store(bytes_per_s, SeqCst);
    }

    /// Lets every byte take so long, each way; bytes on their way are taken along.
    pub fn delay(&self, delay: Duration) {
        self.shared.delay_ms.store(delay.as_millis() as u64, SeqCst);
    }

    /// Closes beta's end only: alpha's end stays open, and what it sends vanishes. New connections are
    /// refused.
    pub fn half_open(&self) {
        self.shared.refusing.store(true, SeqCst);
        for link in self.links().iter() {
            link.half_open.store(true, SeqCst);
            drop(link.beta.shutdown(Shutdown::Both));
        }
    }

    /// Ends every fault. Connections that a fault has spoilt are closed, as a network that comes back would.
    pub fn heal(&self) {
        let spoilt = self.shared.modes.iter().any(|mode| mode.load(SeqCst) != PASS);
        for limit in &self.shared.limits {
            limit.store(NO_LIMIT, SeqCst);
        }
        self.shared.rate.store(0, SeqCst);
        self.shared.delay_ms.store(0, SeqCst);
        for mode in &self.shared.modes {
            mode.store(PASS, SeqCst);
        }
        if spoilt || self.links().iter().any(|link| link.half_open.load(SeqCst)) {
            self.reset();
        }
        self.shared.refusing.store(false, SeqCst);
    }

    /// Bytes that passed this way so far.
    pub fn passed_bytes(&self, direction: Direction) -> u64 {
        self.shared.passed[direction as usize].load(SeqCst)
    }

    fn links(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Link>>> {
        self.shared.links.lock().expect("no thread of the proxy panics with the lock")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        self.reset();
        if let Some(listener) = self.listener.take() {
            // A thread that panicked has nothing more to clean up.
            drop(listener.join());
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while !shared.stop.load(SeqCst) {
        let Ok((alpha, _)) = listener.accept() else {
            std::thread::sleep(POLL);
            continue;
        };
        if shared.refusing.load(SeqCst) {
            continue;
        }
        // A beta that does not listen looks to alpha like a closed connection.
        if let Ok(beta) = TcpStream::connect(shared.target) {
            connect(shared, alpha, beta).expect("set up a proxied connection");
        }
    }
}

fn connect(shared: &Arc<Shared>, alpha: TcpStream, beta: TcpStream) -> std::io::Result<()> {
    for stream in [&alpha, &beta] {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(POLL))?;
    }
    let (alpha_in, beta_in) = (alpha.try_clone()?, beta.try_clone()?);
    let (alpha_out, beta_out) = (alpha.try_clone()?, beta.try_clone()?);
    let link = Arc::new(Link { alpha, beta, half_open: AtomicBool::new(false) });
    shared.links.lock().expect("lock of the links").push(Arc::clone(&link));
    let ways = [(Direction::ToBeta, alpha_in, beta_out), (Direction::ToAlpha, beta_in, alpha_out)];
    for (direction, from, to) in ways {
        let (shared, link) = (Arc::clone(shared), Arc::clone(&link));
        std::thread::spawn(move || pump(&shared, &link, direction, from, to));
    }
    Ok(())
}

fn pump(shared: &Shared, link: &Link, direction: Direction, mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; 128 << 10];
    let way = direction as usize;
    let mut underway: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    while !shared.stop.load(SeqCst) {
        while let Some((_, bytes)) = take_due(&mut underway) {
            if to.write_all(&bytes).is_err() {
                return link.cut();
            }
        }
        if shared.modes[way].load(SeqCst) == STALL {
            std::thread::sleep(POLL);
            continue;
        }
        let count = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(_) => break,
        };
        // A stall that began during the read holds these bytes too.
        while shared.modes[way].load(SeqCst) == STALL && !shared.stop.load(SeqCst) {
            std::thread::sleep(POLL);
        }
        if shared.modes[way].load(SeqCst) == SWALLOW || link.half_open.load(SeqCst) {
            continue;
        }
        let rate = shared.rate.load(SeqCst);
        if rate > 0 {
            std::thread::sleep(Duration::from_secs_f64(count as f64 / rate as f64));
        }
        let room = shared.limits[way].fetch_sub(if limited(shared, way) { count as i64 } else { 0 }, SeqCst);
        let passing = count.min(usize::try_from(room.max(0)).unwrap_or(count));
        shared.passed[way].fetch_add(passing as u64, SeqCst);
        let delay = Duration::from_millis(shared.delay_ms.load(SeqCst));
        if !(delay.is_zero() && underway.is_empty()) {
            underway.push_back((Instant::now() + delay, buffer[..passing].to_vec()));
            continue;
        }
        if to.write_all(&buffer[..passing]).is_err() && !link.half_open.load(SeqCst) {
            break;
        }
        if passing < count {
            shared.refusing.store(true, SeqCst);
            return link.cut();
        }
    }
    if !link.half_open.load(SeqCst) {
        link.cut();
    }
}

fn limited(shared: &Shared, way: usize) -> bool {
    shared.limits[way].load(SeqCst) != NO_LIMIT
}

fn take_due(underway: &mut VecDeque<(Instant, Vec<u8>)>) -> Option<(Instant, Vec<u8>)> {
    let is_due = underway.front().is_some_and(|(due, _)| *due <= Instant::now());
    if is_due { underway.pop_front() } else { None }
}
