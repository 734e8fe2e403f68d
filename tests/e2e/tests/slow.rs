//! Slow peers, slow disks and clients that take no answers slow their own writers down, and nobody and nothing
//! else: memory stays below what the daemon said at its start, other resources and other clients go on, no
//! link is dropped.

use lockstep_e2e::{
    Cluster, Connection, Direction, Node, Plan, Process, RESOURCE, SECOND, wait_for, wait_until,
};
use lockstep_nbd::Command;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(120);
const WRITERS: u64 = 6;
const WRITE_BYTES: u32 = 1 << 20;

/// The largest memory seen of a daemon, and what it promised.
struct Watched<'a> {
    node: &'a Node,
    peak_bytes: u64,
}

impl<'a> Watched<'a> {
    fn new(node: &'a Node) -> Self {
        Watched { node, peak_bytes: 0 }
    }

    fn look(&mut self) {
        self.peak_bytes = self.peak_bytes.max(self.node.rss_bytes());
    }

    fn check(&self, what: &str) {
        let (peak, budget) = (self.peak_bytes / MIB, self.node.budget_bytes() / MIB);
        println!("{what}: {} held {peak} MiB at most, {budget} MiB were announced", self.node.name());
        assert!(self.peak_bytes <= self.node.budget_bytes(), "{peak} MiB of {budget} MiB");
    }
}

/// Sends writes without waiting for answers, then takes all answers; counts the bytes answered.
fn flood(node: &Node, writer: u64, writes: u64, answered_bytes: &AtomicU64) {
    let mut connection = Connection::open(node.nbd(), RESOURCE).expect("connect");
    let payload = vec![writer as u8 + 1; WRITE_BYTES as usize];
    let mut open = 0;
    for nth in 0..writes {
        let offset = (nth * WRITERS + writer) % 200 * MIB;
        connection.send(Command::Write, false, offset, WRITE_BYTES, &payload).expect("send a write");
        open += 1;
        if open == 32 {
            take_answer(&mut connection, answered_bytes);
            open -= 1;
        }
    }
    for _ in 0..open {
        take_answer(&mut connection, answered_bytes);
    }
    connection.close().expect("say goodbye");
}

fn take_answer(connection: &mut Connection, answered_bytes: &AtomicU64) {
    let answer = connection.receive().expect("an answer");
    assert_eq!(answer.error, None);
    answered_bytes.fetch_add(u64::from(WRITE_BYTES), SeqCst);
}

/// Reads, writes and flushes of the other resource, one after the other.
fn use_other(node: &Node) {
    let mut connection = Connection::open(node.nbd(), SECOND).expect("connect");
    for nth in 0..100_u64 {
        let bytes = vec![nth as u8; 4096];
        connection.write(nth * 8192, &bytes).expect("write");
        assert_eq!(connection.read(nth * 8192, 4096).expect("read"), bytes);
    }
    connection.flush().expect("flush");
    connection.close().expect("say goodbye");
}

fn lost_links(node: &Node) -> usize {
    node.log().lines().filter(|line| line.contains(RESOURCE) && line.contains("link lost")).count()
}

#[test]
fn a_slow_peer_slows_its_writers_and_nobody_else() {
    let plan = Plan { resources: 2, timeout_ms: 6000, ..Plan::default() };
    let cluster = Cluster::primary(&plan);
    // The other resource has no peer then: the wire is slow for every link.
    cluster.alpha.lockstep(&["promote", SECOND]).ok();
    cluster.alpha.lockstep(&["disconnect", SECOND]).ok();
    let lost = lost_links(&cluster.alpha);
    let (proxy, answered_bytes) = (&cluster.proxy, AtomicU64::new(0));
    let (mut alpha, mut beta) = (Watched::new(&cluster.alpha), Watched::new(&cluster.beta));
    proxy.slow_down(MIB);
    proxy.delay(Duration::from_millis(200));
    std::thread::scope(|scope| {
        let before = proxy.passed_bytes(Direction::ToBeta);
        let passed = || proxy.passed_bytes(Direction::ToBeta) - before;
        let node = &cluster.alpha;
        for writer in 0..WRITERS {
            let answered_bytes = &answered_bytes;
            scope.spawn(move || flood(node, writer, 64, answered_bytes));
        }
        let other = scope.spawn(|| use_other(node));
        wait_until("some megabytes on the slow wire", LIMIT, || {
            alpha.look();
            beta.look();
            // Read first: nothing is acknowledged that the peer has not.
            let answered = answered_bytes.load(SeqCst);
            assert!(answered <= passed(), "{answered} bytes answered, {} sent", passed());
            passed() > 6 * MIB
        });
        wait_until("the other resource", LIMIT, || other.is_finished());
        let status = cluster.alpha.status();
        println!("while slow: {} requests open, {}", status["requests"], status["memory"]);
        proxy.slow_down(0);
        proxy.delay(Duration::ZERO);
        wait_until("all answers", LIMIT, || {
            alpha.look();
            beta.look();
            answered_bytes.load(SeqCst) == WRITERS * 64 * u64::from(WRITE_BYTES)
        });
    });
    alpha.check("slow peer");
    beta.check("slow peer");
    assert_eq!(lost_links(&cluster.alpha), lost, "a slow peer is not a dead one");
    cluster.assert_replicas_equal();
}

/// A file whose writes take long, by nbdfuse over nbdkit's delay filter.
struct SlowDisk {
    _process: Process,
    dir: PathBuf,
}

impl SlowDisk {
    fn mount(dir: &Path, write_delay: &str) -> SlowDisk {
        std::fs::create_dir(dir).expect("a mount point");
        let file = dir.join("nbd").display().to_string();
        let server = ["--command", "nbdkit", "-s", "--exit-with-parent", "--filter=delay", "memory", "256M"];
        let words = [&file[..]].into_iter().chain(server).chain([write_delay]);
        let arguments: Vec<String> = words.map(str::to_string).collect();
        let process =
            Process::start(Path::new("/usr/bin/nbdfuse"), &arguments, &dir.with_extension("log"), None);
        wait_for("the slow disk", LIMIT, || std::fs::metadata(dir.join("nbd")).map_err(|e| e.to_string()));
        SlowDisk { _process: process, dir: dir.to_path_buf() }
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        // A test that fails must not leave a mount behind; one that is gone is as good.
        drop(std::process::Command::new("fusermount3").arg("-uz").arg(&self.dir).status());
    }
}

#[test]
fn a_slow_disk_slows_its_writers_and_drops_no_link() {
    let dir = lockstep_e2e::temp_dir(true);
    // One write takes longer than the silence after which a peer is dropped.
    let disk = SlowDisk::mount(&dir.path().join("slow"), "wdelay=1500ms");
    let plan = Plan { resources: 2, timeout_ms: 1000, io_timeout_s: 60, ..Plan::default() };
    let mut cluster = Cluster::new(&plan);
    let text = std::fs::read_to_string(cluster.beta.config()).expect("a configuration");
    let own = cluster.beta.disk().display().to_string();
    let slow = disk.dir.join("nbd").display().to_string();
    // Beta has less room for what it receives than alpha for what it sends: it must stop reading at times.
    let text = text.replacen(&format!("\"{own}\""), &format!("\"{slow}\""), 1);
    let text = text.replacen("buffer-memory = \"160MiB\"", "buffer-memory = \"64MiB\"", 1);
    std::fs::write(cluster.beta.config(), text).expect("write a configuration");
    for node in cluster.nodes() {
        for resource in [RESOURCE, SECOND] {
            node.lockstep(&["create-md", resource, "--clean"]).ok();
        }
        node.start();
    }
    cluster.wait_synced();
    for resource in [RESOURCE, SECOND] {
        cluster.alpha.lockstep(&["wait", resource, "--for", "synced"]).ok();
        cluster.alpha.lockstep(&["promote", resource]).ok();
    }
    let (lost, answered_bytes) = (lost_links(&cluster.beta), AtomicU64::new(0));
    let (mut alpha, mut beta) = (Watched::new(&cluster.alpha), Watched::new(&cluster.beta));
    std::thread::scope(|scope| {
        let node = &cluster.alpha;
        for writer in 0..WRITERS {
            let answered_bytes = &answered_bytes;
            scope.spawn(move || flood(node, writer, 2, answered_bytes));
        }
        let other = scope.spawn(|| use_other(node));
        wait_until("all answers", LIMIT, || {
            alpha.look();
            beta.look();
            answered_bytes.load(SeqCst) == WRITERS * 2 * u64::from(WRITE_BYTES)
        });
        wait_until("the other resource", LIMIT, || other.is_finished());
    });
    println!("slow disk: {}, {}", cluster.beta.status()["disk_path"], cluster.beta.status()["disk_mode"]);
    alpha.check("slow disk");
    beta.check("slow disk");
    assert_eq!(lost_links(&cluster.beta), lost, "a peer that waits for its disk is not dropped");
}

#[test]
fn the_announced_memory_is_not_exceeded_by_the_worst_clients() {
    let cluster = Cluster::primary(&Plan { timeout_ms: 20_000, ..Plan::default() });
    let node = &cluster.alpha;
    let mut alpha = Watched::new(node);
    cluster.proxy.stall();
    let mut kept = Vec::new();
    // All places are taken: by clients that read large and take nothing, by writers, by trimmers.
    for nth in 0..120_u64 {
        let mut connection = Connection::open(node.nbd(), RESOURCE).expect("connect");
        let payload = vec![7; 256 << 10];
        let (command, length, payload) = match nth % 3 {
            0 => (Command::Read, 32 << 20, &[][..]),
            1 => (Command::Trim, 16 << 20, &[][..]),
            _ => (Command::Write, 256 << 10, &payload[..]),
        };
        // Until it is not read any more.
        let sent = |connection: &mut Connection| {
            connection.try_send(command, nth * MIB % (64 * MIB), length, payload)
        };
        (0..64).take_while(|_| sent(&mut connection)).for_each(drop);
        kept.push(connection);
        alpha.look();
    }
    // Others come, ask, and go before they are answered; the connections of most of them are refused at last.
    for _ in 0..2000 {
        let Ok(mut connection) = Connection::open(node.nbd(), RESOURCE) else { break };
        for _ in 0..20 {
            connection.try_send(Command::Flush, 0, 0, &[]);
        }
    }
    for _ in 0..20 {
        alpha.look();
        std::thread::yield_now();
    }
    drop(kept);
    cluster.proxy.heal();
    node.wait_status("nothing is left", |status| {
        status["requests"] == 0 && status["clients"] == serde_json::json!([])
    });
    alpha.check("worst clients");
    cluster.wait_synced();
    Connection::open(node.nbd(), RESOURCE).expect("connect").write(0, &[1; 4096]).expect("write");
}
