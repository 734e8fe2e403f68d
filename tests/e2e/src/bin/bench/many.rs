//! Many volumes in one daemon, on one shard and on two, beside one; `crowd.rs` has many connections to that one.

use crate::report::Table;
use crate::{Options, Sample, crowd, fio};
use lockstep_e2e::{Cluster, Plan, RESOURCE, qemu_uri};
use serde_json::{Value, json};

/// As many as a configuration may have.
const VOLUMES: usize = 64;
/// Shards of the daemons with many volumes.
const SHARDS: [usize; 2] = [1, 2];
/// A quick run has one in so many.
const QUICK_PART: usize = 8;
/// Of all volumes together; of the one.
const TOTAL_BYTES: u64 = 1 << 30;
/// The least that a resource can do with.
const BUFFER_MIB: u64 = 64;

/// One row: a number of jobs at so many volumes.
struct Load<'a> {
    name: String,
    uris: &'a [String],
    connections_each: usize,
    depth: usize,
}

impl Load<'_> {
    fn requests(&self) -> usize {
        self.uris.len() * self.connections_each * self.depth
    }

    fn run(&self, runtime_s: u32) -> Sample {
        let runtime = format!("--runtime={runtime_s}");
        let random =
            ["--rw=randwrite", "--bs=4k", "--time_based", "--randrepeat=0", "--norandommap", &runtime];
        self.run_with(&random)
    }

    /// Blocks that exist, so that no measurement makes them.
    fn fill(&self) {
        self.run_with(&["--rw=write", "--bs=128k"]);
    }

    /// All jobs in one run of fio, reported as one.
    fn run_with(&self, pattern: &[&str]) -> Sample {
        let [jobs, depth, size] = [
            ("numjobs", self.connections_each as u64),
            ("iodepth", self.depth as u64),
            ("size", TOTAL_BYTES / self.uris.len() as u64),
        ]
        .map(|(key, value)| format!("--{key}={value}"));
        let fixed = ["--thread", "--group_reporting", "--ioengine=nbd", &jobs, &depth, &size];
        // The first one has its name from the helper; options belong to the last name before them.
        let mut arguments: Vec<String> = Vec::new();
        for (number, uri) in self.uris.iter().enumerate() {
            arguments.extend((number > 0).then(|| format!("--name=volume{number}")));
            arguments.extend(fixed.iter().chain(pattern).map(ToString::to_string));
            arguments.push(format!("--uri={uri}"));
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        fio(&self.uris[0], &arguments, None)
    }
}

pub(crate) fn measure(options: &Options) -> [Table; 2] {
    let volumes = if options.quick { VOLUMES / QUICK_PART } else { VOLUMES };
    let one = Cluster::primary(&Plan {
        size_bytes: TOTAL_BYTES,
        max_hot_bytes: TOTAL_BYTES,
        max_clients: crowd::CLIENTS_MAX,
        timeout_ms: 6000,
        direct: true,
        ..Plan::default()
    });
    let one_uri = [qemu_uri(one.alpha.nbd(), RESOURCE)];
    let many = SHARDS.map(|shards| pair_of(volumes, shards));
    let many_uris = many.each_ref().map(|pair| {
        names(volumes).iter().map(|name| qemu_uri(pair.alpha.nbd(), name)).collect::<Vec<String>>()
    });
    let of_one = |connections_each: usize, depth: usize| Load {
        name: format!("1 volume, {connections_each} connections, depth {depth}"),
        uris: &one_uri,
        connections_each,
        depth,
    };
    let of_many = |nth: usize| Load {
        name: format!("{volumes} volumes, 1 connection each, depth 1, shards = {}", SHARDS[nth]),
        uris: &many_uris[nth],
        connections_each: 1,
        depth: 1,
    };
    let loads = [of_one(1, volumes), of_one(volumes, 1), of_many(0), of_many(1)];
    [&of_one(1, 8), &loads[2], &loads[3]].into_iter().for_each(Load::fill);
    let rounds = options.rounds.div_ceil(3);
    let mut samples = loads.each_ref().map(|_| Vec::new());
    for _ in 0..rounds {
        loads.iter().zip(&mut samples).for_each(|(load, samples)| samples.push(load.run(options.runtime_s)));
    }
    for samples in &mut samples {
        samples.sort_by(|a, b| a.iops.total_cmp(&b.iops));
    }
    let medians: Vec<Sample> = samples.iter().map(|samples| samples[rounds / 2]).collect();
    let table = to_table(&loads, &medians, options, many[0].alpha.rss_bytes());
    [table, crowd::measure(&one, TOTAL_BYTES, options)]
}

fn to_table(loads: &[Load], medians: &[Sample], options: &Options, rss_bytes: u64) -> Table {
    let title = format!("Many volumes in one daemon (4k random writes, {} s each)", options.runtime_s);
    let mut table =
        Table::new(&title, &["", "requests", "per second", "mean us", "p99 us", "beside the first"]);
    let mut data = Vec::new();
    for (load, sample) in loads.iter().zip(medians) {
        let ratio = sample.iops / medians[0].iops;
        table.row([
            load.name.clone(),
            load.requests().to_string(),
            format!("{:.0}", sample.iops),
            format!("{:.0}", sample.latency_us),
            format!("{:.0}", sample.p99_us),
            format!("{ratio:.2}"),
        ]);
        data.push(json!({ "name": load.name, "requests": load.requests(), "iops": sample.iops,
                          "latency_us": sample.latency_us, "p99_us": sample.p99_us, "ratio": ratio }));
    }
    table.note(format!(
        "{} MiB in all in each row. The daemon with many volumes and buffer-memory = {BUFFER_MIB} MiB had {} MiB \
         resident.",
        TOTAL_BYTES >> 20,
        rss_bytes >> 20
    ));
    table.data = json!({ "rows": Value::Array(data), "rss_of_many_bytes": rss_bytes });
    table
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("r{number}")).collect()
}

/// The first volume is that of every cluster; the others are added to both configurations.
fn pair_of(volumes: usize, shards: usize) -> Cluster {
    let volume_bytes = TOTAL_BYTES / volumes as u64;
    let mut cluster = Cluster::new(&Plan {
        size_bytes: volume_bytes,
        max_hot_bytes: volume_bytes,
        buffer_mib: BUFFER_MIB,
        timeout_ms: 6000,
        direct: true,
        shards: Some(shards),
        ..Plan::default()
    });
    let (names, dir) = (names(volumes), cluster.dir().display().to_string());
    let mut others = String::new();
    for name in &names[1..] {
        others += &format!("[[resource]]\nname = \"{name}\"\nsize = {volume_bytes}\n");
        others += &format!("max-hot = \"{}MiB\"\nbuffer-memory = \"{BUFFER_MIB}MiB\"\n", volume_bytes >> 20);
        others += &format!("disk.alpha = \"{dir}/alpha/{name}.disk\"\n");
        others += &format!("disk.beta = \"{dir}/beta/{name}.disk\"\n");
    }
    // Buffers, and as much again for tables and clients.
    let memory_max_mib = 2 * BUFFER_MIB * volumes as u64;
    for node in cluster.nodes() {
        let one = std::fs::read_to_string(node.config()).expect("a configuration");
        let all = format!("memory-max = \"{memory_max_mib}MiB\"\n{one}{others}");
        std::fs::write(node.config(), all).expect("write a configuration");
        names.iter().for_each(|name| drop(node.lockstep(&["create-md", name, "--clean"]).ok()));
    }
    cluster.beta.start();
    cluster.alpha.start();
    for name in &names {
        cluster.alpha.lockstep(&["wait", name, "--for", "synced"]).ok();
        cluster.alpha.lockstep(&["promote", name]).ok();
    }
    cluster
}
