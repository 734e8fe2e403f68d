//! Resync beside `nbdcopy` of the same blocks, the rate at which equal copies are compared, and what application
//! writes feel of it (`beside.rs`).
//!
//! A short resync would drown in the time between two looks at the status; the daemon's log has the moments at which
//! it began and ended.

use crate::contender;
use crate::footprint::cpu_s;
use crate::report::{Section, Table};
use crate::{Options, beside, fio};
use lockstep_e2e::{Cluster, Plan, RESOURCE, Rng, qemu_uri, tool, wait_for};
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::time::{Duration, Instant};

const BLOCK_BYTES: u64 = 4096;
/// A resync may take so long, whatever else goes on.
const LIMIT: Duration = Duration::from_secs(300);

/// Which blocks are dirty.
struct Dirt {
    percent: u64,
    /// Single blocks at random places; otherwise from the begin of the volume on.
    scattered: bool,
}

const DIRTS: [Dirt; 5] = [
    Dirt { percent: 1, scattered: false },
    Dirt { percent: 1, scattered: true },
    Dirt { percent: 10, scattered: false },
    Dirt { percent: 10, scattered: true },
    Dirt { percent: 100, scattered: false },
];

impl Dirt {
    fn bytes(&self, size_bytes: u64) -> u64 {
        size_bytes / 100 * self.percent / BLOCK_BYTES * BLOCK_BYTES
    }

    /// Writes these blocks, each once; the same ones each time.
    fn write(&self, uri: &str, size_bytes: u64) {
        let bytes = self.bytes(size_bytes);
        let io_size = format!("--io_size={bytes}");
        let (size, pattern) = if self.scattered {
            (size_bytes, ["--rw=randwrite", "--bs=4k", "--iodepth=32"])
        } else {
            (bytes, ["--rw=write", "--bs=128k", "--iodepth=8"])
        };
        fio(uri, &[&pattern[..], &[&io_size, &format!("--size={size}")]].concat(), None);
    }
}

pub(crate) fn measure(options: &Options) -> Section {
    let size_bytes = if options.quick { 1 << 30 } else { 2 << 30 };
    let mut cluster = equal_copies(size_bytes);
    let dirty = dirty(&mut cluster, size_bytes, options);
    let whole = whole(&mut cluster, size_bytes);
    drop(cluster);
    Section { tables: vec![dirty, whole, beside::measure(options)], ..Section::default() }
}

/// A pair with the same data on both sides, no two blocks of which are alike; alpha is Primary.
fn equal_copies(size_bytes: u64) -> Cluster {
    let mut cluster = pair(size_bytes);
    let mut rng = Rng::new(7);
    let mut file = File::create(cluster.alpha.disk()).expect("alpha's disk");
    for _ in 0..size_bytes >> 20 {
        let bytes: Vec<u8> = (0..(1 << 20) / 8).flat_map(|_| rng.draw().to_le_bytes()).collect();
        file.write_all(&bytes).expect("fill alpha's disk");
    }
    std::fs::copy(cluster.alpha.disk(), cluster.beta.disk()).expect("the same data for beta");
    cluster.begin();
    cluster
}

pub(crate) fn pair(size_bytes: u64) -> Cluster {
    let plan =
        Plan { size_bytes, max_hot_bytes: size_bytes, timeout_ms: 6000, direct: true, ..Plan::default() };
    Cluster::new(&plan)
}

/// Beta comes back and misses some blocks.
fn dirty(cluster: &mut Cluster, size_bytes: u64, options: &Options) -> Table {
    let rounds = options.rounds.div_ceil(4);
    let title = format!("Resync of dirty blocks of {} MiB (median of {rounds})", size_bytes >> 20);
    let columns = ["dirty", "MiB", "MiB/s", "blocks/s", "nbdcopy, MiB/s", "ratio"];
    let mut table = Table::new(&title, &columns);
    let mut data = Vec::new();
    let uri = qemu_uri(cluster.alpha.nbd(), RESOURCE);
    for dirt in &DIRTS {
        let (mut ours, mut copies) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            cluster.beta.stop();
            dirt.write(&uri, size_bytes);
            cluster.beta.start();
            wait_synced(cluster);
            ours.push(logged(&cluster.beta.log()));
            copies.push(nbdcopy(dirt, size_bytes));
        }
        let (ours, copy) = (median(ours), median(copies));
        let mib = dirt.bytes(size_bytes) as f64 / f64::from(1 << 20);
        let blocks_per_s = (dirt.bytes(size_bytes) / BLOCK_BYTES) as f64 / ours;
        let where_ = if dirt.scattered { "single blocks of 4k, scattered" } else { "in one range" };
        table.row([
            format!("{} %, {where_}", dirt.percent),
            format!("{mib:.0}"),
            format!("{:.0}", mib / ours),
            format!("{blocks_per_s:.0}"),
            format!("{:.0}", mib / copy),
            format!("{:.2}", copy / ours),
        ]);
        data.push(json!({ "percent": dirt.percent, "scattered": dirt.scattered, "mib_per_s": mib / ours,
                          "blocks_per_s": blocks_per_s, "nbdcopy_mib_per_s": mib / copy,
                          "ratio": copy / ours }));
    }
    table.note(
        "Ours from the exchange of bitmaps to the end that both recorded; nbdcopy of the same blocks from one nbdkit \
         to another, which is empty, with the start of its process. Targets: 0.8 x nbdcopy, 50,000 scattered \
         blocks/s.",
    );
    table.data = Value::Array(data);
    table
}

/// Seconds, from one nbdkit to another.
fn nbdcopy(dirt: &Dirt, size_bytes: u64) -> f64 {
    let [source, target] = [(); 2].map(|()| contender::nbdkit(size_bytes));
    dirt.write(&source.uri, size_bytes);
    let begin = Instant::now();
    tool("nbdcopy").arg("--destination-is-zero").arg(&source.uri).arg(&target.uri).run().ok();
    begin.elapsed().as_secs_f64()
}

/// Whole copies: equal ones, which are compared, and a new disk, which gets all.
fn whole(cluster: &mut Cluster, size_bytes: u64) -> Table {
    let title = format!("Resync of whole copies of {} MiB", size_bytes >> 20);
    let columns = ["copies", "MiB/s", "MiB per CPU second, source", "the same, target"];
    let mut table = Table::new(&title, &columns);
    let mib = size_bytes as f64 / f64::from(1 << 20);
    let mut data = Vec::new();
    let mut row = |name: &str, s: f64, [source_s, target_s]: [f64; 2]| {
        let rates = [mib / s, mib / source_s, mib / target_s];
        table.row([name.to_string()].into_iter().chain(rates.map(|rate| format!("{rate:.0}"))));
        data.push(json!({ "copies": name, "mib_per_s": rates[0], "mib_per_source_cpu_s": rates[1],
                          "mib_per_target_cpu_s": rates[2] }));
    };
    let used = |cluster: &Cluster| [cpu_s(&cluster.alpha), cpu_s(&cluster.beta)];
    let before = used(cluster);
    cluster.alpha.lockstep(&["invalidate", RESOURCE, "--peer"]).ok();
    wait_synced(cluster);
    let [alpha, beta] = used(cluster);
    row("equal: read, hashed, compared", logged(&cluster.beta.log()), [alpha - before[0], beta - before[1]]);
    let before = cpu_s(&cluster.alpha);
    let s = {
        replace_disk(cluster, size_bytes);
        cluster.beta.start();
        wait_synced(cluster);
        logged(&cluster.beta.log())
    };
    row("the target's disk is new", s, [cpu_s(&cluster.alpha) - before, cpu_s(&cluster.beta)]);
    table.data = Value::Array(data);
    table
}

/// Beta stops and gets an empty disk.
pub(crate) fn replace_disk(cluster: &mut Cluster, size_bytes: u64) {
    cluster.beta.stop();
    cluster.beta.lockstep(&["create-md", RESOURCE, "--overwrite"]).ok();
    let file = OpenOptions::new().write(true).open(cluster.beta.disk()).expect("beta's disk");
    file.set_len(0).and_then(|()| file.set_len(size_bytes)).expect("an empty disk");
}

/// As the cluster's own, with time for a resync that clients slow down.
pub(crate) fn wait_synced(cluster: &Cluster) {
    wait_for("the end of the resync", LIMIT, || {
        let status = cluster.alpha.status();
        if status["protected"] == true { Ok(()) } else { Err(status.to_string()) }
    });
    cluster.wait_synced();
}

/// Seconds that the last resync took, by the log of its target.
fn logged(log: &str) -> f64 {
    const DAY_S: f64 = 86400.0;
    let last = |words: &str| {
        let line = log.lines().rev().find(|line| line.contains(words));
        second_of_day(line.unwrap_or_else(|| panic!("\"{words}\" is not in the log:\n{log}")))
    };
    let (began, ended) = (last("-> Exchanging"), last("replication SyncTarget -> Established"));
    (ended - began).rem_euclid(DAY_S)
}

/// Of a line that begins with a time like 2026-11-30T09:39:01.800431Z.
fn second_of_day(line: &str) -> f64 {
    let (_, time) = line.split_once('T').expect("a line with a time");
    let (time, _) = time.split_once('Z').expect("a time in UTC");
    time.split(':').fold(0.0, |sum, part| sum * 60.0 + part.parse::<f64>().expect("a part of a time"))
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
