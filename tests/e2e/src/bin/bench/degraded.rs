//! A pair that loses its peer: how fast it is without, how long a client waits at the moment itself, and what a write
//! feels of a flush.

use crate::report::{Section, Table};
use crate::timed::{Client, Timed, micros, millis, percentile};
use crate::{LOAD_BYTES, Options, Sample, fio};
use lockstep_e2e::{Cluster, Plan, RESOURCE, qemu_uri};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Of the pair that loses its peer: short, since a silent one is waited for as long.
const TIMEOUT: Duration = Duration::from_millis(1000);
/// Before and after the moment that is looked at.
const AROUND: Duration = Duration::from_millis(700);
const STALL_MAX_MS: f64 = 100.0;
/// Between two flushes: most writes meet none.
const FLUSH_PAUSE: Duration = Duration::from_millis(20);
/// Upper bounds of the histogram's buckets; what is above the last one is in one more.
const BUCKETS_US: [u64; 10] = [50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000];
/// Where the files are.
const PLACES: [(&str, bool); 2] = [("in memory", false), ("on a disk", true)];

pub(crate) fn measure(options: &Options) -> Section {
    Section { tables: vec![throughput(options), stalls(options), flushes(options)], ..Section::default() }
}

fn pair(on_disk: bool, timeout: Duration) -> Cluster {
    let timeout_ms = timeout.as_millis() as u64;
    // All that the load writes may be hot: what a bound costs is looked at elsewhere.
    let max_hot_bytes = LOAD_BYTES;
    Cluster::primary(&Plan { timeout_ms, max_hot_bytes, on_disk, direct: true, ..Plan::default() })
}

/// The same loads with the peer and without it, in turn.
fn throughput(options: &Options) -> Table {
    const LOADS: [(&str, [&str; 3]); 3] = [
        ("4k random write, depth 1", ["--rw=randwrite", "--bs=4k", "--iodepth=1"]),
        ("4k random write, depth 32", ["--rw=randwrite", "--bs=4k", "--iodepth=32"]),
        ("128k random write, depth 8", ["--rw=randwrite", "--bs=128k", "--iodepth=8"]),
    ];
    let mut cluster = pair(false, Duration::from_secs(6));
    let uri = qemu_uri(cluster.alpha.nbd(), RESOURCE);
    fio(&uri, &["--rw=write", "--bs=1M", "--iodepth=8"], None);
    let all = || LOADS.map(|(_, load)| fio(&uri, &load, Some(options.runtime_s)));
    let (mut connected, mut away) = (Vec::new(), Vec::new());
    let rounds = options.rounds.div_ceil(2);
    for _ in 0..rounds {
        connected.push(all());
        cluster.beta.stop();
        away.push(all());
        cluster.beta.start();
        cluster.wait_synced();
    }
    let median = |rounds: &[[Sample; LOADS.len()]], load: usize| {
        let mut iops: Vec<f64> = rounds.iter().map(|samples| samples[load].iops).collect();
        iops.sort_by(f64::total_cmp);
        iops[iops.len() / 2]
    };
    let title = format!("Without the peer (median of {rounds} x {} s)", options.runtime_s);
    let mut table = Table::new(&title, &["load", "connected, per second", "peer away, per second", "ratio"]);
    let mut data = Vec::new();
    for (load, (name, _)) in LOADS.iter().enumerate() {
        let (with, without) = (median(&connected, load), median(&away, load));
        let ratio = without / with;
        table.row([name.to_string(), format!("{with:.0}"), format!("{without:.0}"), format!("{ratio:.2}")]);
        data.push(json!({ "name": name, "connected_iops": with, "away_iops": without, "ratio": ratio }));
    }
    table.note(format!("The load works on {} MiB. Target: 1.0 or more.", LOAD_BYTES >> 20));
    table.data = Value::Array(data);
    table
}

/// What happens to the peer.
#[derive(Clone, Copy)]
enum Event {
    Nothing,
    Killed,
    Silent,
}

const EVENTS: [(&str, Event); 3] =
    [("nothing", Event::Nothing), ("kill -9", Event::Killed), ("silent (SIGSTOP)", Event::Silent)];

fn stalls(options: &Options) -> Table {
    let rounds = options.rounds.div_ceil(3);
    let title = format!("Longest write when the peer is lost (4k, depth 1, {rounds} rounds)");
    let mut table = Table::new(&title, &["files", "peer", "median ms", "longest ms"]);
    let mut data = Vec::new();
    for (place, on_disk) in PLACES {
        let mut cluster = pair(on_disk, TIMEOUT);
        for (name, event) in EVENTS {
            let stalls: Vec<Duration> = (0..rounds).map(|_| stall(&mut cluster, event)).collect();
            let (median, longest) = (percentile(&stalls, 50.0), percentile(&stalls, 100.0));
            let cells = [median, longest].map(|time| format!("{:.1}", millis(time)));
            table.row([place.to_string(), name.to_string()].into_iter().chain(cells));
            data.push(json!({ "files": place, "peer": name, "median_ms": millis(median),
                              "longest_ms": millis(longest) }));
        }
    }
    table.note(format!(
        "Targets: kill -9 {STALL_MAX_MS:.0} ms, silence `timeout`, which is {} ms here.",
        TIMEOUT.as_millis()
    ));
    table.data = Value::Array(data);
    table
}

/// Longest write that was under way at the event or began after it. Nothing is awaited here: what the client sees
/// while time passes is what is measured.
fn stall(cluster: &mut Cluster, event: Event) -> Duration {
    let client = Client::writes(cluster.alpha.nbd(), LOAD_BYTES, 1);
    std::thread::sleep(AROUND);
    let moment = Instant::now();
    match event {
        Event::Nothing => {}
        Event::Killed => cluster.beta.kill(),
        Event::Silent => {
            cluster.beta.pause();
            std::thread::sleep(TIMEOUT);
        }
    }
    std::thread::sleep(AROUND);
    let writes = client.end();
    match event {
        Event::Nothing => {}
        Event::Killed => cluster.beta.start(),
        Event::Silent => cluster.beta.resume(),
    }
    cluster.wait_synced();
    writes.iter().filter(|write| write.ended() >= moment).map(|write| write.took).max().unwrap_or_default()
}

/// Latencies of writes that met a flush, and of the others.
struct Latencies {
    beside: Vec<Duration>,
    otherwise: Vec<Duration>,
}

fn flushes(options: &Options) -> Table {
    let mut columns = vec!["latency".to_string()];
    let mut all = Vec::new();
    for (place, on_disk) in PLACES {
        let seen = latencies(on_disk, options);
        columns.extend(["beside a flush", "otherwise"].map(|which| format!("{place}, {which}")));
        all.extend([seen.beside, seen.otherwise]);
    }
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    let mut table = Table::new("Writes beside a flush (4k, depth 1)", &columns);
    let counts: Vec<Vec<usize>> = all.iter().map(|times| histogram(times)).collect();
    for bucket in 0..=BUCKETS_US.len() {
        let share = |(times, counts): (&Vec<Duration>, &Vec<usize>)| {
            format!("{:.2} %", 100.0 * counts[bucket] as f64 / times.len().max(1) as f64)
        };
        table.row([bucket_name(bucket)].into_iter().chain(all.iter().zip(&counts).map(share)));
    }
    table.row(["writes".to_string()].into_iter().chain(all.iter().map(|times| times.len().to_string())));
    for (name, percent) in [("p50, us", 50.0), ("p99, us", 99.0), ("longest, us", 100.0)] {
        let cell = |times: &Vec<Duration>| format!("{:.0}", micros(percentile(times, percent)));
        table.row([name.to_string()].into_iter().chain(all.iter().map(cell)));
    }
    table.note(format!(
        "Another connection flushes, {} ms after the end of its last flush; a write counts as beside a flush if both \
         were under way at some moment.",
        FLUSH_PAUSE.as_millis()
    ));
    let rows = columns[1..].iter().zip(&all).zip(&counts).map(|((name, times), counts)| {
        json!({ "name": name, "bucket_counts": counts, "p50_us": micros(percentile(times, 50.0)),
                "p99_us": micros(percentile(times, 99.0)), "longest_us": micros(percentile(times, 100.0)) })
    });
    table.data = json!({ "bucket_bounds_us": BUCKETS_US, "columns": rows.collect::<Vec<_>>() });
    table
}

fn latencies(on_disk: bool, options: &Options) -> Latencies {
    let cluster = pair(on_disk, Duration::from_secs(6));
    let uri = qemu_uri(cluster.alpha.nbd(), RESOURCE);
    // Blocks that exist: what a file system does to make one is not looked at.
    fio(&uri, &["--rw=write", "--bs=1M", "--iodepth=8"], None);
    let writer = Client::writes(cluster.alpha.nbd(), LOAD_BYTES, 1);
    let flusher = Client::flushes(cluster.alpha.nbd(), FLUSH_PAUSE);
    std::thread::sleep(Duration::from_secs(2 * u64::from(options.runtime_s)));
    let (writes, flushes) = (writer.end(), flusher.end());
    let (mut beside, mut otherwise) = (Vec::new(), Vec::new());
    let mut next = 0;
    // Both are in the order of time, and one ends before the next one begins.
    for write in &writes {
        while flushes.get(next).is_some_and(|flush: &Timed| flush.ended() < write.began) {
            next += 1;
        }
        let meets = flushes.get(next).is_some_and(|flush| flush.overlaps(write));
        if meets { beside.push(write.took) } else { otherwise.push(write.took) }
    }
    Latencies { beside, otherwise }
}

fn histogram(times: &[Duration]) -> Vec<usize> {
    let mut counts = vec![0; BUCKETS_US.len() + 1];
    for time in times {
        counts[BUCKETS_US.partition_point(|bound| Duration::from_micros(*bound) <= *time)] += 1;
    }
    counts
}

fn bucket_name(bucket: usize) -> String {
    match BUCKETS_US.get(bucket) {
        Some(bound) => format!("below {bound} us"),
        None => format!("{} us and more", BUCKETS_US[bucket - 1]),
    }
}
