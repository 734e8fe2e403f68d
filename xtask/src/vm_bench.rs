//! `bench vm`: Lockstep beside the kernel's DRBD, both used as block devices of one emulated machine.
//!
//! The guest (`tests/vm/bench.sh`) measures in turn and prints a line of JSON per sample. Here they become
//! medians, ratios within a round, and where the processor's time went. Only the ratios say anything, and on a
//! busy host little: emulated processors wait for real ones, and computing checksums is slow beyond proportion.

use std::fmt::Write;
use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use crate::{shell, vm};

const KERNEL: &str = "6.12";
const LOCKSTEP: &str = "lockstep";
/// By the names that the guest uses, and what they are.
const CONTENDERS: &[(&str, &str)] = &[
    (LOCKSTEP, "Lockstep"),
    ("drbd", "DRBD 8.4, protocol C"),
    ("drbd-crc32c", "DRBD with CRC32C"),
    ("qemu-nbd", "qemu-nbd, one copy"),
];
/// A tick of the guest's kernel.
const TICK_US: f64 = 10_000.0;

struct Load {
    title: &'static str,
    /// As fio takes it: direction, block, depth.
    fio: &'static str,
    /// The ratio of the prototype to DRBD, where it was measured.
    prototype: &'static str,
}

const LOADS: &[Load] = &[
    Load { title: "4k random write, depth 1", fio: "randwrite|4k|1", prototype: "0.48" },
    Load { title: "4k random write, depth 32", fio: "randwrite|4k|32", prototype: "0.46 - 0.77" },
    Load { title: "128k random write, depth 8", fio: "randwrite|128k|8", prototype: "0.23" },
    Load { title: "4k random read, depth 1", fio: "randread|4k|1", prototype: "-" },
    Load { title: "4k random read, depth 32", fio: "randread|4k|32", prototype: "0.25" },
];

/// What the guest is to do: rounds, seconds of a run, loads.
pub(crate) fn plan(quick: bool) -> String {
    let (rounds, runtime_s) = if quick { (1, 3) } else { (3, 5) };
    let mut text = format!("{rounds}\n{runtime_s}\n");
    LOADS.iter().for_each(|load| text += &format!("{}|{}\n", load.title, load.fio));
    text
}

/// Measures, prints the tables, and leaves them in `target/bench` as Markdown and JSON.
pub(crate) fn bench(quick: bool) -> Result<()> {
    let console = vm::console(KERNEL, vm::Job::Bench { quick })?;
    let samples = lines(&console, "SAMPLE ")?;
    let calls = lines(&console, "CALLS ")?;
    let mut markdown = "# Against DRBD, in the virtual machine\n\n".to_string();
    markdown += "The last two columns are from the first round only.\n";
    let mut results = Vec::new();
    let mut times = Vec::new();
    for load in LOADS {
        let result = Comparison::of(load, &samples)?;
        times.extend(result.times());
        results.push(result);
    }
    let heads = [
        "load",
        "Lockstep /s",
        "DRBD /s",
        "Lockstep / DRBD",
        "prototype",
        "/ DRBD with CRC32C",
        "/ qemu-nbd",
    ];
    table(&mut markdown, &heads, results.iter().map(Comparison::cells));
    markdown += "\nProcessor time per request in us, and context switches:\n";
    let heads = [
        "load",
        "server",
        "latency us",
        "client",
        "Primary",
        "Secondary",
        "workers",
        "interrupts",
        "switches",
    ];
    table(&mut markdown, &heads, times.into_iter());
    markdown += "\nSystem calls per request of the two daemons:\n";
    let per_load = LOADS.iter().map(|load| {
        [load.title.to_string(), per_request(load, &calls, "alpha"), per_request(load, &calls, "beta")]
    });
    table(&mut markdown, &["load", "Primary", "Secondary"], per_load);
    let notes: Vec<&str> = console.lines().filter_map(|line| line.strip_prefix("NOTE ")).collect();
    notes.iter().for_each(|note| markdown += &format!("\n{note}\n"));
    println!("\n{markdown}");
    let data: Vec<Value> = results.iter().map(Comparison::to_json).collect();
    let document = json!({ "schema": 1, "kernel": KERNEL, "loads": data, "notes": notes,
                           "samples": samples, "calls": calls });
    write("vm.md", &markdown)?;
    write("vm.json", &format!("{document:#}\n"))
}

fn write(name: &str, text: &str) -> Result<()> {
    let folder = shell::target_dir().join("bench");
    let file = folder.join(name);
    fs::create_dir_all(&folder)
        .and_then(|()| fs::write(&file, text))
        .with_context(|| format!("write {}", file.display()))?;
    println!("wrote {}", file.display());
    Ok(())
}

/// What the guest said in lines with this head.
fn lines(console: &str, head: &str) -> Result<Vec<Value>> {
    let found = console.lines().filter_map(|line| line.strip_prefix(head));
    found
        .map(|text| serde_json::from_str(text).with_context(|| format!("the guest printed {text}")))
        .collect()
}

fn table<const N: usize>(text: &mut String, heads: &[&str; N], rows: impl Iterator<Item = [String; N]>) {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    *text += "\n";
    *text += &line(&heads.map(str::to_string));
    *text += &format!("|{}\n", "---|".repeat(N));
    rows.for_each(|row| *text += &line(&row));
}

fn number(sample: &Value, key: &str) -> f64 {
    // A figure that the guest left out shows as one, not as a zero.
    sample[key].as_f64().unwrap_or(f64::NAN)
}

/// All contenders under one load.
struct Comparison<'a> {
    load: &'static Load,
    /// Of each contender, in the order of the rounds.
    samples: Vec<Vec<&'a Value>>,
}

impl<'a> Comparison<'a> {
    fn of(load: &'static Load, samples: &'a [Value]) -> Result<Comparison<'a>> {
        let of = |name: &str| {
            samples.iter().filter(|it| it["contender"] == name && it["load"] == load.title).collect()
        };
        let samples: Vec<Vec<&Value>> = CONTENDERS.iter().map(|(name, _)| of(name)).collect();
        // The references run in the first round only.
        let rounds: Vec<usize> = samples.iter().map(Vec::len).collect();
        let is_whole = rounds[0] == rounds[1] && rounds.iter().all(|count| *count > 0);
        ensure!(is_whole, "{}: runs are missing, of each: {rounds:?}", load.title);
        Ok(Comparison { load, samples })
    }

    fn iops(&self, contender: usize) -> f64 {
        Spread::of(self.samples[contender].iter().map(|sample| number(sample, "iops"))).median
    }

    /// Of Lockstep to a contender, round by round.
    fn ratio(&self, contender: usize) -> Spread {
        let pairs = self.samples[0].iter().zip(&self.samples[contender]);
        Spread::of(pairs.map(|(lockstep, other)| number(lockstep, "iops") / number(other, "iops")))
    }

    fn cells(&self) -> [String; 7] {
        [
            self.load.title.to_string(),
            format!("{:.0}", self.iops(0)),
            format!("{:.0}", self.iops(1)),
            self.ratio(1).to_string(),
            self.load.prototype.to_string(),
            self.ratio(2).to_string(),
            self.ratio(3).to_string(),
        ]
    }

    fn times(&self) -> Vec<[String; 9]> {
        let row = |((_, name), samples): (&(&str, &str), &Vec<&Value>)| {
            let median = |figure: &dyn Fn(&Value) -> f64| {
                format!("{:.0}", Spread::of(samples.iter().map(|sample| figure(sample))).median)
            };
            let ticks = |key: &str| median(&|sample| number(sample, key) * TICK_US / requests(sample));
            let client_us = |sample: &Value| {
                number(sample, "client_percent") * number(sample, "runtime_ms") * 10.0 / requests(sample)
            };
            let switches = Spread::of(samples.iter().map(|it| number(it, "switches") / requests(it))).median;
            [
                self.load.title.to_string(),
                name.to_string(),
                median(&|sample| number(sample, "latency_us")),
                median(&client_us),
                ticks("primary"),
                ticks("secondary"),
                ticks("workers"),
                ticks("interrupts"),
                format!("{switches:.1}"),
            ]
        };
        CONTENDERS.iter().zip(&self.samples).map(row).collect()
    }

    fn to_json(&self) -> Value {
        let mut servers = Map::new();
        for (index, (name, _)) in CONTENDERS.iter().enumerate() {
            let ratio = self.ratio(index);
            let entry = json!({ "iops": self.iops(index), "lockstep_ratio": ratio.median,
                                "lockstep_ratio_min": ratio.min, "lockstep_ratio_max": ratio.max });
            servers.insert(name.to_string(), entry);
        }
        json!({ "load": self.load.title, "prototype_ratio": self.load.prototype, "servers": servers })
    }
}

fn requests(sample: &Value) -> f64 {
    number(sample, "iops") * number(sample, "runtime_ms") / 1000.0
}

/// System calls of a node's daemon per request of the client, the frequent ones first.
fn per_request(load: &Load, calls: &[Value], node: &str) -> String {
    let of = calls.iter().filter(|it| it["load"] == load.title && it["node"] == node);
    let mut rates: Vec<(f64, &str)> = of
        .map(|it| (number(it, "count") / number(it, "requests"), it["name"].as_str().unwrap_or("?")))
        .filter(|(rate, _)| *rate >= 0.05)
        .collect();
    rates.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut text = String::new();
    for (rate, name) in rates {
        let comma = if text.is_empty() { "" } else { ", " };
        write!(text, "{comma}{name} {rate:.2}").expect("a string takes everything");
    }
    text
}

/// Median, smallest and largest of some figures.
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    fn of(figures: impl Iterator<Item = f64>) -> Spread {
        let mut sorted: Vec<f64> = figures.collect();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        Spread { median: at(sorted.len() / 2), min: at(0), max: at(sorted.len().saturating_sub(1)) }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Spread { median, min, max } = self;
        match min == max {
            true => write!(f, "{median:.2}"),
            false => write!(f, "{median:.2} ({min:.2} - {max:.2})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(contender: &str, round: u32, iops: f64) -> String {
        let load = LOADS[0].title;
        format!(
            "SAMPLE {{\"round\":{round},\"contender\":\"{contender}\",\"load\":\"{load}\",\"iops\":{iops}}}\n"
        )
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let mut console = "[1.0] boot\n".to_string();
        for (round, speed) in [(1, 1.0), (2, 10.0), (3, 100.0)] {
            console += &sample("drbd", round, speed * 2.0);
            console += &sample(LOCKSTEP, round, speed);
        }
        console += &(sample("qemu-nbd", 1, 4.0) + &sample("drbd-crc32c", 1, 1.0));
        let samples = lines(&console, "SAMPLE ").unwrap();
        let comparison = Comparison::of(&LOADS[0], &samples).unwrap();
        assert_eq!(comparison.ratio(1).to_string(), "0.50");
        assert_eq!(comparison.iops(1), 20.0);
        assert!(Comparison::of(&LOADS[1], &samples).is_err());
    }

    #[test]
    fn calls_are_counted_by_request() {
        let load = LOADS[0].title;
        let call = |name: &str, count: u32| {
            json!({ "load": load, "node": "alpha", "name": name,
                    "requests": 100, "count": count })
        };
        let calls = [call("futex", 1), call("recvmsg", 50), call("io_uring_enter", 210)];
        assert_eq!(per_request(&LOADS[0], &calls, "alpha"), "io_uring_enter 2.10, recvmsg 0.50");
    }
}
