//! What the contenders did under one load: a table of it, a table of all ratios, and curves.
//!
//! A ratio is one of the same round: what the machine did meanwhile, it did to both. Its spread over the rounds says
//! what a median is worth.

use crate::Options;
use crate::contender::Medium;
use crate::fio::{PERCENTILES, Sample};
use crate::load::{Load, Pattern};
use crate::report::{Axis, Curve, Plot, Table};
use serde_json::{Value, json};

/// One load on all contenders.
pub(crate) struct Compared {
    pub(crate) load: &'static Load,
    names: Vec<String>,
    /// By contender, one per round; empty where a contender cannot do it.
    pub(crate) samples: Vec<Vec<Sample>>,
}

/// Median, smallest and largest.
struct Spread {
    median: f64,
    low: f64,
    high: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Spread {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        Spread { median: values[values.len() / 2], low: values[0], high: values[values.len() - 1] }
    }
}

impl Compared {
    pub(crate) fn new(load: &'static Load, names: &[&str]) -> Compared {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        Compared { load, samples: vec![Vec::new(); names.len()], names }
    }

    fn median(&self, which: usize, figure: impl Fn(&Sample) -> f64) -> f64 {
        Spread::of(self.samples[which].iter().map(figure)).median
    }

    /// Requests of Lockstep for one of this contender.
    fn ratio(&self, which: usize) -> Spread {
        let pairs = self.samples[0].iter().zip(&self.samples[which]);
        Spread::of(pairs.map(|(lockstep, other)| lockstep.iops / other.iops))
    }

    /// Contenders that did it.
    fn ran(&self) -> impl Iterator<Item = usize> {
        (0..self.names.len()).filter(|which| !self.samples[*which].is_empty())
    }

    pub(crate) fn to_table(&self, medium: Medium) -> Table {
        let title = format!("{}: {}", heading(medium), self.load.title());
        let columns =
            ["server", "per second", "p50 us", "p99 us", "p99.9 us", "Lockstep is x times", "least .. most"];
        let mut table = Table::new(&title, &columns);
        let mut data = Vec::new();
        for which in self.ran() {
            let iops = self.median(which, |sample| sample.iops);
            let [p50, p99, p999] =
                [50.0, 99.0, 99.9].map(|percent| self.median(which, |sample| percentile(sample, percent)));
            let ratio = self.ratio(which);
            let whole = [iops, p50, p99, p999].map(|figure| format!("{figure:.0}"));
            let ratios = [format!("{:.2}", ratio.median), format!("{:.2} .. {:.2}", ratio.low, ratio.high)];
            table.row([self.names[which].clone()].into_iter().chain(whole).chain(ratios));
            let rounds: Vec<f64> = self.samples[which].iter().map(|sample| sample.iops).collect();
            data.push(json!({
                "name": self.names[which], "iops": iops, "iops_of_rounds": rounds,
                "latency_us": self.median(which, |sample| sample.latency_us),
                "p50_us": p50, "p99_us": p99, "p999_us": p999, "lockstep_ratio": ratio.median,
                "lockstep_ratio_least": ratio.low, "lockstep_ratio_most": ratio.high,
            }));
        }
        table.data = Value::Array(data);
        if self.load.pattern == Pattern::Durable {
            table.note("Sent by a client of our own, as fio's engine for NBD cannot set FUA.");
        }
        table
    }
}

fn percentile(sample: &Sample, percent: f64) -> f64 {
    let at = PERCENTILES.iter().position(|known| *known == percent).expect("a percentile that is measured");
    sample.percentiles_us[at]
}

fn heading(medium: Medium) -> &'static str {
    match medium {
        Medium::Memory => "In memory",
        Medium::Disk => "On a disk with O_DIRECT",
    }
}

/// All ratios at a glance.
pub(crate) fn summary(medium: Medium, all: &[Compared], options: &Options) -> Table {
    let names = &all[0].names;
    // How many copies is said in the other tables; this one is wide.
    let heads = names.iter().map(|name| name.split(" (").next().unwrap_or(name));
    let columns: Vec<&str> = ["load"].into_iter().chain(heads).collect();
    let title = format!("{}: requests of Lockstep for one of the other's", heading(medium));
    let mut table = Table::new(&title, &columns);
    for compared in all {
        let cell = |which: usize| match which {
            0 => format!("{:.0}/s", compared.median(0, |sample| sample.iops)),
            _ if compared.samples[which].is_empty() => "-".to_string(),
            _ => format!("{:.2}", compared.ratio(which).median),
        };
        table.row([compared.load.title()].into_iter().chain((0..names.len()).map(cell)));
    }
    table.note(format!(
        "Medians of {} rounds of {} ms on {} MiB; each round with new files and new processes. More than 1 is in \
         favour of Lockstep.",
        options.rounds,
        options.short_runtime.as_millis(),
        options.working_set_bytes >> 20
    ));
    table.note("Unix and TCP in a name of QEMU's is the way to its second copy; Lockstep's is always TCP.");
    match medium {
        Medium::Memory => table.note("No O_DIRECT here: everything goes through the page cache."),
        Medium::Disk => table.note(
            "nbdkit is missing, as it cannot use O_DIRECT. Of the raw writers a request counts when both files \
             have it; they only write. With FUA they use O_DSYNC.",
        ),
    }
    table
}

/// Requests against depth, and latency against the share of requests that are slower.
pub(crate) fn plots(medium: Medium, all: &[Compared]) -> Vec<Plot> {
    let kinds = [(Pattern::RandomWrite, "write"), (Pattern::RandomRead, "read")];
    let depths = kinds.iter().filter_map(|(pattern, word)| against_depth(medium, all, *pattern, word));
    let percentiles = all.iter().filter(|compared| {
        let load = compared.load;
        load.pattern == Pattern::RandomWrite && load.block == "4k" && load.clients == 1
    });
    depths.chain(percentiles.map(|compared| latencies(medium, compared))).collect()
}

fn file_name(medium: Medium, rest: &str) -> String {
    format!("{}-{rest}", if medium == Medium::Memory { "load" } else { "disk" })
}

/// `None`: there is only one depth.
fn against_depth(medium: Medium, all: &[Compared], pattern: Pattern, word: &str) -> Option<Plot> {
    let of_kind: Vec<&Compared> = all
        .iter()
        .filter(|one| one.load.pattern == pattern && one.load.block == "4k" && one.load.clients == 1)
        .collect();
    if of_kind.len() < 2 {
        return None;
    }
    let curve = |which: usize| Curve {
        name: of_kind[0].names[which].clone(),
        points: of_kind
            .iter()
            .filter(|one| !one.samples[which].is_empty())
            .map(|one| (f64::from(one.load.depth), one.median(which, |sample| sample.iops)))
            .collect(),
    };
    Some(Plot {
        name: file_name(medium, &format!("4k-{word}-depth")),
        title: format!("{}: 4k random {word}s", heading(medium)),
        x: Axis { label: "requests on the way".to_string(), is_logarithmic: true },
        y: Axis { label: "requests per second".to_string(), is_logarithmic: true },
        curves: of_kind[0].ran().map(curve).collect(),
    })
}

fn latencies(medium: Medium, compared: &Compared) -> Plot {
    let curve = |which: usize| {
        let point = |percent: f64| {
            (100.0 / (100.0 - percent), compared.median(which, |sample| percentile(sample, percent)))
        };
        Curve { name: compared.names[which].clone(), points: PERCENTILES.map(point).to_vec() }
    };
    Plot {
        name: file_name(medium, &format!("4k-write-latency-{}", compared.load.depth)),
        title: format!("{}: latency, {}", heading(medium), compared.load.title()),
        x: Axis { label: "one request in so many is slower".to_string(), is_logarithmic: true },
        y: Axis { label: "us".to_string(), is_logarithmic: true },
        curves: compared.ran().map(curve).collect(),
    }
}
