//! Resync beside `nbdcopy` of the same bytes, the rate at which equal copies are compared, and what application
//! writes feel of it.

use crate::contender::{self, Contender};
use crate::report::{Section, Table};
use crate::{Options, Sample, fio};
use lockstep_e2e::{Cluster, Plan, RESOURCE, Rng, qemu_uri, tool};
use serde_json::json;
use std::io::Write;
use std::time::Instant;

const SIZE_BYTES: u64 = 512 << 20;

/// The figures.
struct Resync {
    copy_mib_per_s: f64,
    nbdcopy_mib_per_s: f64,
    compare_mib_per_s: f64,
    alone: Sample,
    beside: Sample,
    /// The resync was still going on when the load ended.
    is_beside: bool,
}

impl Resync {
    fn to_table(&self) -> Table {
        let mut table = Table::new("Resync of 512 MiB", &["", "figure"]);
        let mut row = |name: &str, figure: String| table.row([name.to_string(), figure]);
        let ratio = self.copy_mib_per_s / self.nbdcopy_mib_per_s;
        row("whole copy", format!("{:.0} MiB/s, {ratio:.2} x nbdcopy", self.copy_mib_per_s));
        row("comparison of equal copies", format!("{:.0} MiB/s", self.compare_mib_per_s));
        let load = |load: Sample| format!("{:.0}/s, p99 {:.0} us", load.iops, load.p99_us);
        row("4k writes, depth 8", load(self.alone));
        let until = if self.is_beside { "all the time" } else { "not to the end" };
        row(&format!("the same beside a resync ({until})"), load(self.beside));
        table.data = json!({ "copy_mib_per_s": self.copy_mib_per_s,
            "nbdcopy_mib_per_s": self.nbdcopy_mib_per_s,
            "compare_mib_per_s": self.compare_mib_per_s, "p99_alone_us": self.alone.p99_us,
            "p99_beside_us": self.beside.p99_us, "beside_until_the_end": self.is_beside });
        table
    }
}

pub(crate) fn measure(options: &Options) -> Section {
    Section { tables: vec![figures(options.runtime_s).to_table()], ..Section::default() }
}

fn figures(runtime_s: u32) -> Resync {
    let mut cluster = Cluster::new(&Plan {
        size_bytes: SIZE_BYTES,
        max_hot_bytes: SIZE_BYTES,
        timeout_ms: 6000,
        direct: true,
        ..Plan::default()
    });
    fill(&cluster);
    let nbdcopy_mib_per_s = nbdcopy(&cluster);
    cluster.alpha.lockstep(&["create-md", RESOURCE, "--source"]).ok();
    cluster.beta.lockstep(&["create-md", RESOURCE]).ok();
    cluster.alpha.start();
    cluster.alpha.promote().ok();
    let begin = Instant::now();
    cluster.beta.start();
    let copy_mib_per_s = rate_until_synced(&cluster, begin);
    let begin = Instant::now();
    cluster.alpha.lockstep(&["invalidate", RESOURCE, "--peer"]).ok();
    let compare_mib_per_s = rate_until_synced(&cluster, begin);
    let uri = qemu_uri(cluster.alpha.nbd(), RESOURCE);
    let load = || fio(&uri, &["--rw=randwrite", "--bs=4k", "--iodepth=8"], Some(runtime_s));
    let alone = load();
    // Beta's disk is new: every block is copied.
    cluster.beta.stop();
    cluster.beta.lockstep(&["create-md", RESOURCE, "--overwrite"]).ok();
    let file = std::fs::OpenOptions::new().write(true).open(cluster.beta.disk()).expect("beta's disk");
    file.set_len(0).and_then(|()| file.set_len(SIZE_BYTES)).expect("an empty disk");
    cluster.beta.start();
    cluster.alpha.wait_replication("SyncSource");
    let beside = load();
    let is_beside = cluster.alpha.peer()["replication"] == "SyncSource";
    cluster.wait_synced();
    Resync { copy_mib_per_s, nbdcopy_mib_per_s, compare_mib_per_s, alone, beside, is_beside }
}

/// Data that no two blocks share.
fn fill(cluster: &Cluster) {
    let mut rng = Rng::new(7);
    let mut file = std::fs::File::create(cluster.alpha.disk()).expect("alpha's disk");
    for _ in 0..SIZE_BYTES >> 20 {
        let bytes: Vec<u8> = (0..(1 << 20) / 8).flat_map(|_| rng.draw().to_le_bytes()).collect();
        file.write_all(&bytes).expect("fill alpha's disk");
    }
}

fn mib_per_s(begin: Instant) -> f64 {
    (SIZE_BYTES >> 20) as f64 / begin.elapsed().as_secs_f64()
}

fn rate_until_synced(cluster: &Cluster, begin: Instant) -> f64 {
    cluster.wait_synced();
    mib_per_s(begin)
}

/// From one nbdkit to another.
fn nbdcopy(cluster: &Cluster) -> f64 {
    let [source, target]: [Contender; 2] = [(); 2].map(|()| contender::nbdkit(SIZE_BYTES));
    tool("nbdcopy").arg(cluster.alpha.disk()).arg(&source.uri).run().ok();
    let begin = Instant::now();
    tool("nbdcopy").arg(&source.uri).arg(&target.uri).run().ok();
    mib_per_s(begin)
}
