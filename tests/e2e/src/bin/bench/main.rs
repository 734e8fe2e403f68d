//! `bench [--quick] [--json FILE] [SECTION...]`: Lockstep beside what people compare it with, in one run, as
//! ratios.
//!
//! Figures of two machines, or of two runs on a busy one, are not comparable; the ratios within a run are. So
//! whatever is compared runs in turn, several rounds, and a figure is the median of its rounds. The report goes
//! to `target/bench` as Markdown, with a table per measurement.

mod beside;
mod contender;
mod degraded;
mod distance;
mod footprint;
mod load;
mod many;
mod network;
mod report;
mod resync;
mod scale;
mod spread;
mod timed;

use lockstep_e2e::{binary, tool};
use report::Section;
use serde_json::{Value, json};
use std::path::Path;

/// Bytes that a load works on.
pub(crate) const LOAD_BYTES: u64 = 256 << 20;

/// A section of the report.
type Measure = fn(&Options) -> Section;

/// Every section by its name, in the order of the report.
const SECTIONS: &[(&str, Measure)] = &[
    ("load", load::measure),
    ("idle", footprint::measure),
    ("resync", resync::measure),
    ("degraded", degraded::measure),
    ("network", network::measure),
    ("scale", scale::measure),
];

/// What one run of fio measured.
#[derive(Clone, Copy)]
struct Sample {
    iops: f64,
    latency_us: f64,
    p99_us: f64,
}

/// How much to measure.
pub(crate) struct Options {
    /// Runs of each contender under each load.
    pub(crate) rounds: usize,
    /// Of each run.
    pub(crate) runtime_s: u32,
    /// A short run, to see that everything works.
    pub(crate) quick: bool,
    json: Option<String>,
    /// Empty: all.
    sections: Vec<String>,
}

fn main() {
    let options = options();
    println!("binary: {}", binary().display());
    let mut markdown = "# Benchmarks\n\n".to_string();
    let mut sections = serde_json::Map::new();
    for (name, measure) in SECTIONS {
        if !options.sections.is_empty() && !options.sections.iter().any(|wanted| wanted == name) {
            continue;
        }
        let section = measure(&options);
        for table in &section.tables {
            println!("{table}");
            markdown += &format!("{}\n", table.to_markdown());
        }
        let tables: Vec<Value> = section.tables.iter().map(report::Table::to_json).collect();
        sections.insert(name.to_string(), Value::Array(tables));
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/bench");
    std::fs::create_dir_all(&folder).expect("the folder of the report");
    write(&folder.join("report.md"), &markdown);
    let document = json!({ "schema": 2, "sections": sections });
    let file = options.json.map_or(folder.join("report.json"), Into::into);
    write(&file, &format!("{document:#}\n"));
}

fn write(file: &Path, text: &str) {
    std::fs::write(file, text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    println!("wrote {}", file.display());
}

fn options() -> Options {
    let mut options = Options { rounds: 11, runtime_s: 2, quick: false, json: None, sections: Vec::new() };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => (options.rounds, options.runtime_s, options.quick) = (3, 1, true),
            "--json" => options.json = arguments.next(),
            name if SECTIONS.iter().any(|(known, _)| *known == name) => options.sections.push(argument),
            _ => {
                let names: Vec<&str> = SECTIONS.iter().map(|(name, _)| *name).collect();
                eprintln!("usage: bench [--quick] [--json FILE] [SECTION...]");
                eprintln!("sections: {}", names.join(", "));
                std::process::exit(2);
            }
        }
    }
    options
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
