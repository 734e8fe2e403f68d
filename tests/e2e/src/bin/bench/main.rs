//! `bench [--quick] [--json FILE] [SECTION...]`: Lockstep beside what people compare it with, in one run, as
//! ratios.
//!
//! Figures of two machines, or of two runs on a busy one, are not comparable; the ratios within a run are. So
//! whatever is compared runs in turn, several rounds, and a figure is the median of its rounds. The report goes
//! to `target/bench` as Markdown, with a table per measurement, as JSON and with plots as SVG.

mod beside;
mod compare;
mod contender;
mod cost;
mod crowd;
mod degraded;
mod distance;
mod durable;
mod fio;
mod footprint;
mod load;
mod many;
mod network;
mod plot;
mod qemu;
mod report;
mod resync;
mod scale;
mod spread;
mod timed;

use clap::Parser;
use clap::builder::PossibleValuesParser;
use fio::{Sample, fio};
use lockstep_e2e::binary;
use report::Section;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes that a load works on, unless the command line says otherwise.
///
/// Few: where the host keeps a page decides how fast it is, and files of any size are unequal in that; but what
/// is often touched is in the caches wherever it lies.
pub(crate) const LOAD_BYTES: u64 = 64 << 20;

/// A section of the report.
type Measure = fn(&Options) -> Section;

/// Every section by its name, in the order of the report.
const SECTIONS: &[(&str, Measure)] = &[
    ("load", load::measure),
    ("disk", load::measure_disk),
    ("cost", cost::measure),
    ("idle", footprint::measure),
    ("resync", resync::measure),
    ("degraded", degraded::measure),
    ("network", network::measure),
    ("scale", scale::measure),
];

const EXAMPLES: &str = "\
Sections:
  load      all contenders under fio, files in memory
  disk      the same on a disk's file system, with O_DIRECT
  cost      processor time, system calls and context switches of a write on each side
  idle      processor and memory of doing nothing
  resync    few blocks and all of them, a comparison, and what writes feel of them
  degraded  a peer that is away, killed or silent; a flush that closes an epoch
  network   round trips of 0.1 to 50 ms
  scale     1 TiB and 15 TiB, spread writes, many volumes, many clients

Examples:
  cargo xtask bench                      everything
  cargo xtask bench --quick              everything, short, to see that it works
  cargo xtask bench --json mine.json load
The report is in target/bench: report.md, report.json and a plot per SVG.";

/// Lockstep beside what people compare it with, as ratios within one run.
#[derive(Parser)]
#[command(bin_name = "cargo xtask bench", after_help = EXAMPLES)]
struct Arguments {
    /// Short runs, to see that everything works
    #[arg(long)]
    quick: bool,
    /// Where the JSON goes
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Runs of each contender under each load [default: 5, and 3 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Bytes that a load works on, in MiB
    #[arg(long, value_name = "MIB", default_value_t = LOAD_BYTES >> 20)]
    #[arg(value_parser = clap::value_parser!(u64).range(4..))]
    working_set: u64,
    /// What to measure; without any, everything
    #[arg(value_name = "SECTION", value_parser = PossibleValuesParser::new(names()))]
    sections: Vec<String>,
}

/// How much to measure.
pub(crate) struct Options {
    /// Runs of each contender under each load.
    pub(crate) rounds: usize,
    /// Of each run.
    pub(crate) runtime_s: u32,
    /// Of each run where there are very many.
    pub(crate) short_runtime: Duration,
    /// Bytes that a load works on.
    pub(crate) working_set_bytes: u64,
    /// A short run, to see that everything works.
    pub(crate) quick: bool,
}

impl Options {
    fn new(arguments: &Arguments) -> Options {
        let (rounds, runtime_s, short_ms) = if arguments.quick { (3, 1, 200) } else { (5, 2, 800) };
        Options {
            rounds: arguments.rounds.map_or(rounds, |rounds| rounds as usize),
            runtime_s,
            short_runtime: Duration::from_millis(short_ms),
            working_set_bytes: arguments.working_set << 20,
            quick: arguments.quick,
        }
    }
}

fn names() -> Vec<&'static str> {
    SECTIONS.iter().map(|(name, _)| *name).collect()
}

fn main() {
    let arguments = Arguments::parse();
    let options = Options::new(&arguments);
    println!("binary: {}", binary().display());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/bench");
    std::fs::create_dir_all(&folder).expect("the folder of the report");
    let mut markdown = "# Benchmarks\n\n".to_string();
    let mut sections = serde_json::Map::new();
    for (name, measure) in SECTIONS {
        if !arguments.sections.is_empty() && !arguments.sections.iter().any(|wanted| wanted == name) {
            continue;
        }
        let section = measure(&options);
        markdown += &shown(&section, &folder);
        let tables: Vec<Value> = section.tables.iter().map(report::Table::to_json).collect();
        sections.insert(name.to_string(), Value::Array(tables));
    }
    write(&folder.join("report.md"), &markdown);
    let document = json!({ "schema": 2, "quick": options.quick, "rounds": options.rounds,
                           "working_set_bytes": options.working_set_bytes, "sections": sections });
    let file = arguments.json.unwrap_or_else(|| folder.join("report.json"));
    write(&file, &format!("{document:#}\n"));
}

/// Prints the tables and writes the plots; gives both as Markdown.
fn shown(section: &Section, folder: &Path) -> String {
    let mut markdown = String::new();
    for table in &section.tables {
        println!("{table}");
        markdown += &format!("{}\n", table.to_markdown());
    }
    for plot in &section.plots {
        let file = format!("{}.svg", plot.name);
        match plot::write(plot, &folder.join(&file)) {
            Ok(()) => markdown += &format!("![{}]({file})\n\n", plot.title),
            // The figures are in the tables as well: a plot that fails is no reason to lose them.
            Err(error) => println!("no plot {file}: {error}"),
        }
    }
    markdown
}

fn write(file: &Path, text: &str) {
    std::fs::write(file, text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    println!("wrote {}", file.display());
}
