//! What grows with the size of a volume, with the part of it that is written, and with the number of volumes and
//! clients: times and memory of large volumes here, the others in `spread.rs` and `many.rs`.
//!
//! The volumes are sparse files in memory, so that each block that is written takes memory twice: writes are counted.

use crate::report::{Section, Table};
use crate::timed::millis;
use crate::{Options, fio, many, spread};
use lockstep_e2e::{Cluster, Plan, RESOURCE, qemu_uri};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

pub(crate) const TIB: u64 = 1 << 40;
pub(crate) const GIB: u64 = 1 << 30;
const SIZES: [u64; 2] = [TIB, 15 * TIB];
/// The default.
const MAX_HOT_BYTES: u64 = 8 * GIB;
/// Random places that are written before the crash; most of them make a region hot.
const WRITES_BEFORE_CRASH: u32 = 1500;
const STEP_MAX_MS: f64 = 1000.0;

pub(crate) fn measure(options: &Options) -> Section {
    let (spread, plot) = spread::measure(options);
    let tables = [large(), spread].into_iter().chain(many::measure(options)).collect();
    Section { tables, plots: vec![plot] }
}

/// What an operator waits for, and what it takes.
struct Large {
    /// By what was done.
    steps: Vec<(&'static str, Duration)>,
    hot_regions: u64,
    rss_bytes: u64,
    /// As the log says it: the dirty bitmaps and the activity map at most.
    bitmaps_mib: u64,
}

fn large() -> Table {
    let volumes = SIZES.map(of_size);
    let names = SIZES.map(|size_bytes| format!("{} TiB", size_bytes / TIB));
    let mut table = Table::new("Large volumes", &["", &names[0], &names[1]]);
    let mut row = |name: &str, cell: &dyn Fn(usize) -> String| {
        table.row([name.to_string()].into_iter().chain((0..SIZES.len()).map(cell)));
    };
    for (step, (name, _)) in volumes[0].steps.iter().enumerate() {
        row(name, &|volume| format!("{:.0} ms", millis(volumes[volume].steps[step].1)));
    }
    row("hot regions at the crash", &|volume| volumes[volume].hot_regions.to_string());
    row("resident, Primary", &|volume| format!("{} MiB", volumes[volume].rss_bytes >> 20));
    row("bitmaps at most, by the log", &|volume| format!("{} MiB", volumes[volume].bitmaps_mib));
    let per_tib = |volume: usize| volumes[volume].bitmaps_mib as f64 / (SIZES[volume] / TIB) as f64;
    row("the same per TiB", &|volume| format!("{:.0} MiB", per_tib(volume)));
    table.note(format!(
        "A pair, both copies UpToDate, of which alpha is looked at. The crash is kill -9, and the node comes back as \
         after a loss of power. Target: each step but create-md below {STEP_MAX_MS:.0} ms."
    ));
    let rows = SIZES.iter().zip(&volumes).map(|(size_bytes, volume)| {
        let steps = volume.steps.iter().map(|(name, time)| (name.to_string(), json!(millis(*time))));
        json!({ "size_bytes": size_bytes, "steps_ms": steps.collect::<serde_json::Map<_, _>>(),
                "hot_regions": volume.hot_regions, "rss_bytes": volume.rss_bytes,
                "bitmaps_mib": volume.bitmaps_mib })
    });
    table.data = Value::Array(rows.collect());
    table
}

fn of_size(size_bytes: u64) -> Large {
    let plan =
        Plan { size_bytes, max_hot_bytes: MAX_HOT_BYTES, timeout_ms: 6000, direct: true, ..Plan::default() };
    let mut cluster = Cluster::new(&plan);
    let mut steps = Vec::new();
    let mut timed = |name, step: &mut dyn FnMut()| {
        let begin = Instant::now();
        step();
        steps.push((name, begin.elapsed()));
    };
    cluster.beta.lockstep(&["create-md", RESOURCE, "--clean"]).ok();
    cluster.beta.start();
    timed("create-md", &mut || drop(cluster.alpha.lockstep(&["create-md", RESOURCE, "--clean"]).ok()));
    timed("start", &mut || cluster.alpha.start());
    cluster.wait_synced();
    timed("status", &mut || drop(cluster.alpha.status()));
    timed("promote", &mut || drop(cluster.alpha.promote().ok()));
    fio(
        &qemu_uri(cluster.alpha.nbd(), RESOURCE),
        &[
            "--rw=randwrite",
            "--bs=4k",
            "--iodepth=8",
            "--norandommap",
            &format!("--size={size_bytes}"),
            &format!("--number_ios={WRITES_BEFORE_CRASH}"),
        ],
        None,
    );
    let hot_regions = cluster.alpha.status()["hot_regions"].as_u64().expect("a number of regions");
    cluster.alpha.lose_power();
    timed("start after a crash", &mut || cluster.alpha.start());
    timed("from then on until connected", &mut || cluster.alpha.wait_connection("Connected"));
    timed("status after a crash", &mut || drop(cluster.alpha.status()));
    timed("promote after a crash", &mut || drop(cluster.alpha.promote().ok()));
    let (rss_bytes, bitmaps_mib) = (cluster.alpha.rss_bytes(), bitmaps_mib(&cluster.alpha.log()));
    Large { steps, hot_regions, rss_bytes, bitmaps_mib }
}

fn bitmaps_mib(log: &str) -> u64 {
    let (_, said) = log.rsplit_once(" bitmaps ").expect("the log says what memory is for");
    let digits: String = said.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().expect("a number of MiB")
}
