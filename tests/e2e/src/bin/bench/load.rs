//! The same loads of fio for every contender, in turn.

use crate::contender::{self, Contender};
use crate::report::{Section, Table};
use crate::{LOAD_BYTES, Options, Sample, fio};
use serde_json::{Value, json};

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

pub(crate) fn measure(options: &Options) -> Section {
    let contenders = contender::all(LOAD_BYTES);
    for contender in &contenders {
        fio(&contender.uri, &["--rw=write", "--bs=1M", "--iodepth=8"], None);
    }
    let tables = LOADS.iter().map(|load| one(load, &contenders, options)).collect();
    Section { tables, ..Section::default() }
}

/// All contenders under one load, in turn, so that what else the machine does hits all of them.
fn one(load: &Load, contenders: &[Contender], options: &Options) -> Table {
    let depth = format!("--iodepth={}", load.depth);
    let block = format!("--bs={}", load.block);
    let mut samples = vec![Vec::new(); contenders.len()];
    for _ in 0..options.rounds {
        for (contender, samples) in contenders.iter().zip(&mut samples) {
            samples.push(fio(&contender.uri, &["--rw=randwrite", &block, &depth], Some(options.runtime_s)));
        }
    }
    let medians: Vec<Sample> = samples.iter().map(|samples| median(samples)).collect();
    let title = format!("{} (median of {} x {} s)", load.name, options.rounds, options.runtime_s);
    let mut table = Table::new(&title, &["server", "per second", "latency us", "Lockstep is x times"]);
    for (contender, sample) in contenders.iter().zip(&medians) {
        let ratio = medians[0].iops / sample.iops;
        let figures =
            [format!("{:.0}", sample.iops), format!("{:.1}", sample.latency_us), format!("{ratio:.2}")];
        table.row([contender.name.to_string()].into_iter().chain(figures));
    }
    let rows = contenders.iter().zip(&medians).map(|(contender, sample)| {
        json!({ "name": contender.name, "iops": sample.iops, "latency_us": sample.latency_us,
                "p99_us": sample.p99_us, "lockstep_ratio": medians[0].iops / sample.iops })
    });
    table.data = Value::Array(rows.collect());
    table
}

/// By the number of requests per second.
fn median(samples: &[Sample]) -> Sample {
    let mut sorted = samples.to_vec();
    sorted.sort_by(|a, b| a.iops.total_cmp(&b.iops));
    sorted[sorted.len() / 2]
}
