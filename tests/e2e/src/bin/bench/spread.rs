//! Writes at random places of a whole large volume beside a small part of it, by the bound of hot regions: what the
//! activity map costs, and the resync after a crash that is the other side of it.

use crate::report::{Axis, Curve, Plot, Table};
use crate::scale::{GIB, TIB};
use crate::{Options, fio};
use lockstep_e2e::{Cluster, Plan, RESOURCE, qemu_uri};
use serde_json::{Value, json};

const SIZE_BYTES: u64 = TIB;
const WORKING_SET_BYTES: u64 = GIB;
/// The last one: as large as the volume, no bound at all.
const MAX_HOT_BYTES: [u64; 4] = [4 * GIB, 64 * GIB, 256 * GIB, SIZE_BYTES];
const BLOCK_BYTES: u64 = 4096;
/// Time at most for a first write in each region.
const FIRST_S: u32 = 30;
/// Of one run: each is a new page of memory, twice.
const WRITES_MAX: u64 = 100_000;

/// With one bound.
struct Bounded {
    max_hot_bytes: u64,
    working_set_iops: f64,
    /// First writes in one region after the other.
    first_iops: f64,
    whole_iops: f64,
    whole_p99_us: f64,
    hot_bytes: u64,
}

impl Bounded {
    fn ratio(&self) -> f64 {
        self.whole_iops / self.working_set_iops
    }
}

pub(crate) fn measure(options: &Options) -> (Table, Plot) {
    let bounds = MAX_HOT_BYTES.map(|max_hot_bytes| bounded(max_hot_bytes, options));
    (to_table(&bounds, options), to_plot(&bounds))
}

fn bounded(max_hot_bytes: u64, options: &Options) -> Bounded {
    let plan =
        Plan { size_bytes: SIZE_BYTES, max_hot_bytes, timeout_ms: 6000, direct: true, ..Plan::default() };
    let cluster = Cluster::primary(&plan);
    let uri = qemu_uri(cluster.alpha.nbd(), RESOURCE);
    let random = |span_bytes: u64| {
        let [size, writes] =
            [("size", span_bytes), ("number_ios", WRITES_MAX)].map(|(key, value)| format!("--{key}={value}"));
        let runtime = format!("--runtime={}", options.runtime_s);
        let places = ["--rw=randwrite", "--norandommap", "--randrepeat=0", "--bs=4k", "--iodepth=32"];
        fio(&uri, &[&places[..], &[&size, &writes, &runtime]].concat(), None)
    };
    random(WORKING_SET_BYTES);
    let status = cluster.alpha.status();
    let region_bytes = status["region_bytes"].as_u64().expect("a number of bytes");
    // One write in each region, until more would be hot than may be: what the map costs is not seen before that.
    let first = {
        let hole = format!("--rw=write:{}", region_bytes - BLOCK_BYTES);
        let size = format!("--size={}", SIZE_BYTES.min(2 * max_hot_bytes));
        let runtime = format!("--runtime={}", if options.quick { 2 } else { FIRST_S });
        fio(&uri, &[&hole, "--bs=4k", "--iodepth=32", &size, &runtime], None)
    };
    let rounds = options.rounds.div_ceil(4);
    let (mut working_set, mut whole) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        working_set.push(random(WORKING_SET_BYTES));
        whole.push(random(SIZE_BYTES));
    }
    let hot_regions = cluster.alpha.status()["hot_regions"].as_u64().expect("a number of regions");
    for samples in [&mut working_set, &mut whole] {
        samples.sort_by(|a, b| a.iops.total_cmp(&b.iops));
    }
    Bounded {
        max_hot_bytes,
        working_set_iops: working_set[rounds / 2].iops,
        first_iops: first.iops,
        whole_iops: whole[rounds / 2].iops,
        whole_p99_us: whole[rounds / 2].p99_us,
        hot_bytes: hot_regions * region_bytes,
    }
}

fn to_table(bounds: &[Bounded], options: &Options) -> Table {
    let title = format!("4k random writes over 1 TiB, depth 32 (at most {WRITES_MAX} writes a run)");
    let columns = [
        "max-hot",
        "in 1 GiB, per second",
        "first in each region, per second",
        "over 1 TiB, per second",
        "p99 us",
        "ratio",
        "hot at the end",
    ];
    let mut table = Table::new(&title, &columns);
    for bounded in bounds {
        table.row([
            format!("{} GiB", bounded.max_hot_bytes / GIB),
            format!("{:.0}", bounded.working_set_iops),
            format!("{:.0}", bounded.first_iops),
            format!("{:.0}", bounded.whole_iops),
            format!("{:.0}", bounded.whole_p99_us),
            format!("{:.3}", bounded.ratio()),
            format!("{:.1} GiB", bounded.hot_bytes as f64 / GIB as f64),
        ]);
    }
    table.note(
        "What is hot when a Primary crashes is compared afterwards; that is what max-hot bounds. Blocks are new to the \
         files in all columns.",
    );
    if options.quick {
        table.note(
            "A quick run ends before a large bound is reached: regions become hot for the first time in it.",
        );
    }
    let rows = bounds.iter().map(|bounded| {
        json!({ "max_hot_bytes": bounded.max_hot_bytes, "working_set_iops": bounded.working_set_iops,
                "first_iops": bounded.first_iops, "whole_iops": bounded.whole_iops,
                "whole_p99_us": bounded.whole_p99_us, "ratio": bounded.ratio(),
                "hot_bytes": bounded.hot_bytes })
    });
    table.data = Value::Array(rows.collect());
    table
}

fn to_plot(bounds: &[Bounded]) -> Plot {
    let axis = |label: &str| Axis { label: label.to_string(), is_logarithmic: true };
    let point = |bounded: &Bounded| ((bounded.max_hot_bytes / GIB) as f64, bounded.ratio());
    Plot {
        name: "max-hot".to_string(),
        title: "4k random writes over 1 TiB beside the same in 1 GiB".to_string(),
        x: axis("max-hot, GiB"),
        y: axis("ratio"),
        curves: vec![Curve { name: "throughput".to_string(), points: bounds.iter().map(point).collect() }],
    }
}
