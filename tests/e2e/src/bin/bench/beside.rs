//! What application writes feel of a resync, and the resync of them.

use crate::report::Table;
use crate::resync::{pair, replace_disk, wait_synced};
use crate::timed::{Client, Timed, micros, percentile};
use crate::{LOAD_BYTES, Options, fio};
use lockstep_e2e::{RESOURCE, qemu_uri};
use serde_json::json;
use std::ops::Range;
use std::time::{Duration, Instant};

const DEPTH: usize = 8;
const SETTLE: Duration = Duration::from_secs(1);

/// Writes of some time.
struct Load {
    per_s: f64,
    p50_us: f64,
    p99_us: f64,
}

impl Load {
    /// What began in any of these stretches.
    fn within(writes: &[Timed], stretches: &[Range<Instant>]) -> Load {
        let inside =
            writes.iter().filter(|write| stretches.iter().any(|stretch| stretch.contains(&write.began)));
        let times: Vec<Duration> = inside.map(|write| write.took).collect();
        let s: f64 = stretches.iter().map(|stretch| (stretch.end - stretch.start).as_secs_f64()).sum();
        Load {
            per_s: times.len() as f64 / s,
            p50_us: micros(percentile(&times, 50.0)),
            p99_us: micros(percentile(&times, 99.0)),
        }
    }
}

/// One resync with a client beside it.
struct Round {
    alone: Load,
    beside: Load,
    resync_s: f64,
}

impl Round {
    fn ratio(&self) -> f64 {
        self.beside.p99_us / self.alone.p99_us
    }
}

pub(crate) fn measure(options: &Options) -> Table {
    let size_bytes: u64 = if options.quick { 512 << 20 } else { 1 << 30 };
    let mut rounds: Vec<Round> = (0..options.rounds).map(|_| round(options, size_bytes)).collect();
    rounds.sort_by(|a, b| a.ratio().total_cmp(&b.ratio()));
    to_table(size_bytes, &rounds)
}

/// The same client before a whole copy to a new disk, all along it until it ends, which it must, and after it: the
/// machine may become faster or slower meanwhile.
fn round(options: &Options, size_bytes: u64) -> Round {
    let mut cluster = pair(size_bytes);
    cluster.begin();
    fio(
        &qemu_uri(cluster.alpha.nbd(), RESOURCE),
        &["--rw=write", "--bs=1M", "--iodepth=8", &format!("--size={size_bytes}"), "--refill_buffers"],
        None,
    );
    replace_disk(&mut cluster, size_bytes);
    // The resync must not begin before the client has shown how fast it is alone; with the peer, as later.
    cluster.alpha.lockstep(&["sync", RESOURCE, "--pause"]).ok();
    cluster.beta.start();
    cluster.alpha.wait_replication("PausedSource");
    let alone = Duration::from_secs(2 * u64::from(options.runtime_s));
    let client = Client::writes(cluster.alpha.nbd(), LOAD_BYTES, DEPTH);
    // The first writes take memory for the file at the target.
    std::thread::sleep(SETTLE);
    let from = Instant::now();
    std::thread::sleep(alone);
    let begin = Instant::now();
    cluster.alpha.lockstep(&["sync", RESOURCE, "--resume"]).ok();
    wait_synced(&cluster);
    let end = Instant::now();
    std::thread::sleep(alone);
    let to = Instant::now();
    let writes = client.end();
    Round {
        alone: Load::within(&writes, &[from..begin, end..to]),
        beside: Load::within(&writes, std::slice::from_ref(&(begin..end))),
        resync_s: (end - begin).as_secs_f64(),
    }
}

/// The round of the median ratio; `rounds` are sorted by it.
fn to_table(size_bytes: u64, rounds: &[Round]) -> Table {
    let title = format!(
        "4k writes, depth {DEPTH}, beside a resync of {} MiB to a new disk (median of {})",
        size_bytes >> 20,
        rounds.len()
    );
    let mut table = Table::new(&title, &["", "per second", "p50 us", "p99 us"]);
    let Round { alone, beside, resync_s } = &rounds[rounds.len() / 2];
    for (name, load) in [("no resync, before and after", alone), ("until the resync ended", beside)] {
        let figures = [load.per_s, load.p50_us, load.p99_us];
        table.row([name.to_string()].into_iter().chain(figures.map(|figure| format!("{figure:.0}"))));
    }
    let mib_per_s = (size_bytes >> 20) as f64 / resync_s;
    let ratios: Vec<f64> = rounds.iter().map(Round::ratio).collect();
    let (ratio, least, most) = (ratios[ratios.len() / 2], ratios[0], ratios[ratios.len() - 1]);
    table.note(format!(
        "p99 is {ratio:.2} x that without a resync, {least:.2} to {most:.2} in all rounds (target: 2.0 at most). The \
         resync ended after {resync_s:.1} s, {mib_per_s:.0} MiB/s, with the client writing all the time."
    ));
    table.data = json!({ "alone_per_s": alone.per_s, "alone_p99_us": alone.p99_us, "beside_per_s": beside.per_s,
                         "beside_p99_us": beside.p99_us, "p99_ratio": ratio, "p99_ratios": ratios,
                         "resync_s": resync_s, "resync_mib_per_s": mib_per_s });
    table
}
