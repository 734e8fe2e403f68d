//! What application writes feel of a resync, and the resync of them.

use crate::report::Table;
use crate::resync::{pair, replace_disk, wait_synced};
use crate::timed::{Client, Timed, micros, percentile};
use crate::{LOAD_BYTES, Options, fio};
use lockstep_e2e::{RESOURCE, qemu_uri};
use serde_json::json;
use std::time::{Duration, Instant};

const DEPTH: usize = 8;

/// Writes that begin within a stretch of time.
struct Load {
    per_s: f64,
    p50_us: f64,
    p99_us: f64,
}

impl Load {
    fn within(writes: &[Timed], from: Instant, to: Instant) -> Load {
        let inside = writes.iter().filter(|write| (from..to).contains(&write.began));
        let times: Vec<Duration> = inside.map(|write| write.took).collect();
        Load {
            per_s: times.len() as f64 / to.duration_since(from).as_secs_f64(),
            p50_us: micros(percentile(&times, 50.0)),
            p99_us: micros(percentile(&times, 99.0)),
        }
    }
}

/// The same client before a whole copy to a new disk and all along it, until it ends: it must.
pub(crate) fn measure(options: &Options) -> Table {
    let size_bytes: u64 = if options.quick { 512 << 20 } else { 1 << 30 };
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
    let client = Client::writes(cluster.alpha.nbd(), LOAD_BYTES, DEPTH);
    let from = Instant::now();
    std::thread::sleep(Duration::from_secs(2 * u64::from(options.runtime_s)));
    let begin = Instant::now();
    cluster.alpha.lockstep(&["sync", RESOURCE, "--resume"]).ok();
    wait_synced(&cluster);
    let end = Instant::now();
    let writes = client.end();
    let (alone, beside) = (Load::within(&writes, from, begin), Load::within(&writes, begin, end));
    let s = (end - begin).as_secs_f64();
    to_table(size_bytes, [alone, beside], s)
}

fn to_table(size_bytes: u64, [alone, beside]: [Load; 2], resync_s: f64) -> Table {
    let title =
        format!("4k writes, depth {DEPTH}, beside a resync of {} MiB to a new disk", size_bytes >> 20);
    let mut table = Table::new(&title, &["", "per second", "p50 us", "p99 us"]);
    for (name, load) in [("no resync", &alone), ("until the resync ended", &beside)] {
        let figures = [load.per_s, load.p50_us, load.p99_us];
        table.row([name.to_string()].into_iter().chain(figures.map(|figure| format!("{figure:.0}"))));
    }
    let mib_per_s = (size_bytes >> 20) as f64 / resync_s;
    let ratio = beside.p99_us / alone.p99_us;
    table.note(format!(
        "p99 is {ratio:.2} x that without a resync (target: 2.0 at most). The resync ended after {resync_s:.1} s, \
         {mib_per_s:.0} MiB/s, with the client writing all the time."
    ));
    table.data = json!({ "alone_per_s": alone.per_s, "alone_p99_us": alone.p99_us, "beside_per_s": beside.per_s,
                         "beside_p99_us": beside.p99_us, "p99_ratio": ratio, "resync_s": resync_s,
                         "resync_mib_per_s": mib_per_s });
    table
}
