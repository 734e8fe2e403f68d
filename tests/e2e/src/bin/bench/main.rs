//! `bench [--quick] [--json FILE]`: Lockstep beside what people compare it with, in one run, as ratios.
//!
//! The same load of fio goes in turn to Lockstep (two copies), nbdkit (one copy) and QEMU's synchronous
//! mirror (two copies), all with data in memory and unix sockets, several rounds; a figure is the median of
//! its rounds. Figures of two machines, or of two runs on a busy one, are not comparable; the ratios within a
//! run are.

mod contender;
mod footprint;
mod resync;

use contender::Contender;
use lockstep_e2e::{binary, tool};
use serde_json::{Value, json};

const LOAD_BYTES: u64 = 256 << 20;

/// One kind of load.
struct Load {
    name: &'static str,
    block: &'static str,
    depth: u32,
}

const LOADS: [Load; 3] = [
    Load { name: "4k random write, depth 1", block: "4k", depth: 1 },
    Load { name: "4k random write, depth 32", block: "4k", depth: 32 },
    Load { name: "128k random write, depth 8", block: "128k", depth: 8 },
];

/// What one run of fio measured.
#[derive(Clone, Copy)]
struct Sample {
    iops: f64,
    latency_us: f64,
    p99_us: f64,
}

struct Options {
    rounds: usize,
    runtime_s: u32,
    json: Option<String>,
}

fn main() {
    let options = options();
    println!("binary: {}", binary().display());
    let contenders = contender::all(LOAD_BYTES);
    for contender in &contenders {
        fio(&contender.uri, &["--rw=write", "--bs=1M", "--iodepth=8"], None);
    }
    let mut results = Vec::new();
    for load in &LOADS {
        results.push(measure(load, &contenders, &options));
    }
    drop(contenders);
    let footprint = footprint::measure();
    println!("\n{footprint}");
    let resync = resync::measure(options.runtime_s);
    println!("\n{resync}");
    if let Some(file) = options.json {
        let document = json!({ "schema": 1, "loads": results, "footprint": footprint.to_json(),
                              "resync": resync.to_json() });
        std::fs::write(&file, format!("{document:#}\n")).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
}

fn options() -> Options {
    let mut options = Options { rounds: 11, runtime_s: 2, json: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => (options.rounds, options.runtime_s) = (3, 1),
            "--json" => options.json = arguments.next(),
            _ => {
                eprintln!("usage: bench [--quick] [--json FILE]");
                std::process::exit(2);
            }
        }
    }
    options
}

/// All contenders under one load, in turn, so that what else the machine does hits all of them.
fn measure(load: &Load, contenders: &[Contender], options: &Options) -> Value {
    let depth = format!("--iodepth={}", load.depth);
    let block = format!("--bs={}", load.block);
    let mut samples = vec![Vec::new(); contenders.len()];
    for _ in 0..options.rounds {
        for (contender, samples) in contenders.iter().zip(&mut samples) {
            samples.push(fio(&contender.uri, &["--rw=randwrite", &block, &depth], Some(options.runtime_s)));
        }
    }
    let medians: Vec<Sample> = samples.iter().map(|samples| median(samples)).collect();
    println!("\n{} (median of {} x {} s)", load.name, options.rounds, options.runtime_s);
    println!("  {:24} {:>10} {:>12} {:>20}", "", "per second", "latency us", "lockstep is x times");
    for (contender, sample) in contenders.iter().zip(&medians) {
        let ratio = medians[0].iops / sample.iops;
        println!("  {:24} {:>10.0} {:>12.1} {:>20.2}", contender.name, sample.iops, sample.latency_us, ratio);
    }
    let rows = contenders.iter().zip(&medians).map(|(contender, sample)| {
        json!({ "name": contender.name, "iops": sample.iops, "latency_us": sample.latency_us,
                "p99_us": sample.p99_us, "lockstep_ratio": medians[0].iops / sample.iops })
    });
    json!({ "load": load.name, "rounds": options.rounds, "results": rows.collect::<Vec<_>>() })
}

/// By the number of requests per second.
fn median(samples: &[Sample]) -> Sample {
    let mut sorted = samples.to_vec();
    sorted.sort_by(|a, b| a.iops.total_cmp(&b.iops));
    sorted[sorted.len() / 2]
}

fn fio(uri: &str, arguments: &[&str], runtime_s: Option<u32>) -> Sample {
    let mut tool = tool("fio").args(["--name=bench", "--ioengine=nbd", "--output-format=json"]);
    tool = tool.arg(format!("--uri={uri}")).arg(format!("--size={LOAD_BYTES}")).args(arguments);
    if let Some(seconds) = runtime_s {
        tool = tool
            .args(["--time_based", "--randrepeat=0", "--norandommap"])
            .arg(format!("--runtime={seconds}"));
    }
    let text = tool.run().ok();
    let json = text.find('{').map_or("", |start| &text[start..]);
    let report: Value = serde_json::from_str(json).expect("fio prints JSON");
    let write = &report["jobs"][0]["write"];
    let number = |value: &Value| value.as_f64().expect("a number of fio");
    let p99_ns = &write["clat_ns"]["percentile"]["99.000000"];
    Sample {
        iops: number(&write["iops"]),
        latency_us: number(&write["lat_ns"]["mean"]) / 1000.0,
        p99_us: number(p99_ns) / 1000.0,
    }
}
