//! The same loads for every contender, in turn: in memory (`load`) and on a disk (`disk`).
//!
//! A round starts every contender anew, with new files: where the host puts a file's pages decides how fast it is, and
//! a contender must not keep a good or a bad place for the whole run. Within a round a load runs on one contender after
//! the other before the next load, so that what else the machine does hits all of them; who begins moves on with the
//! rounds.

use crate::compare::{Compared, plots, summary};
use crate::contender::{self, Contender, Medium, Way};
use crate::fio::{self, Sample};
use crate::report::Section;
use crate::{Options, durable};

/// One kind of load.
pub(crate) struct Load {
    pub(crate) block: &'static str,
    pub(crate) pattern: Pattern,
    pub(crate) depth: u32,
    pub(crate) clients: u32,
    is_quick: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    RandomWrite,
    RandomRead,
    Write,
    Read,
    /// Seven reads for three writes.
    Mixed,
    /// Random writes, and after so many a flush.
    Flushed,
    /// Random writes, each with FUA.
    Durable,
}

/// Writes between two flushes.
const FLUSH_EVERY: u32 = 32;

impl Load {
    const fn new(block: &'static str, pattern: Pattern, depth: u32) -> Load {
        Load { block, pattern, depth, clients: 1, is_quick: false }
    }

    /// Part of a short run as well.
    const fn quick(self) -> Load {
        Load { is_quick: true, ..self }
    }

    pub(crate) fn title(&self) -> String {
        let what = match self.pattern {
            Pattern::RandomWrite => "random write",
            Pattern::RandomRead => "random read",
            Pattern::Write => "sequential write",
            Pattern::Read => "sequential read",
            Pattern::Mixed => "random, 70 % reads",
            Pattern::Flushed => "random write, a flush every 32",
            Pattern::Durable => "random write with FUA",
        };
        let clients =
            if self.clients > 1 { format!(", {} connections", self.clients) } else { String::new() };
        format!("{} {what}, depth {}{clients}", self.block, self.depth)
    }

    /// Whether it only writes: what two raw writers can be compared with.
    fn only_writes(&self) -> bool {
        !matches!(self.pattern, Pattern::RandomRead | Pattern::Read | Pattern::Mixed)
    }

    fn arguments(&self) -> Vec<String> {
        let pattern: &[&str] = match self.pattern {
            Pattern::RandomWrite | Pattern::Durable => &["--rw=randwrite"],
            Pattern::RandomRead => &["--rw=randread"],
            Pattern::Write => &["--rw=write"],
            Pattern::Read => &["--rw=read"],
            Pattern::Mixed => &["--rw=randrw", "--rwmixread=70"],
            Pattern::Flushed => &["--rw=randwrite"],
        };
        let mut words: Vec<String> = pattern.iter().map(ToString::to_string).collect();
        if self.pattern == Pattern::Flushed {
            words.push(format!("--fsync={FLUSH_EVERY}"));
        }
        words.extend([format!("--bs={}", self.block), format!("--iodepth={}", self.depth)]);
        words.push(format!("--numjobs={}", self.clients));
        words
    }

    /// `None`: this contender cannot do that.
    fn run(&self, contender: &Contender, options: &Options) -> Option<Sample> {
        let runtime = options.short_runtime;
        let bytes = options.working_set_bytes;
        if matches!(contender.way, Way::Files(_)) && !self.only_writes() {
            return None;
        }
        let mut sample = if self.pattern == Pattern::Durable {
            durable::writes(contender, bytes, runtime)
        } else {
            let arguments = self.arguments();
            let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
            fio::run(&contender.jobs(), bytes, &words, Some(runtime))
        };
        if let Way::Files(files) = &contender.way {
            // A write is one when both copies have it.
            sample.iops /= files.len() as f64;
        }
        Some(sample)
    }
}

const IN_MEMORY: [Load; 18] = [
    Load::new("4k", Pattern::RandomWrite, 1).quick(),
    Load::new("4k", Pattern::RandomWrite, 8),
    Load::new("4k", Pattern::RandomWrite, 32).quick(),
    Load::new("4k", Pattern::RandomWrite, 128),
    Load::new("4k", Pattern::RandomRead, 1).quick(),
    Load::new("4k", Pattern::RandomRead, 8),
    Load::new("4k", Pattern::RandomRead, 32),
    Load::new("4k", Pattern::RandomRead, 128),
    Load::new("128k", Pattern::Write, 8),
    Load::new("128k", Pattern::Read, 8),
    Load::new("1m", Pattern::Write, 8),
    Load::new("1m", Pattern::Read, 8),
    Load::new("128k", Pattern::RandomWrite, 8).quick(),
    Load::new("1m", Pattern::RandomWrite, 4),
    Load::new("4k", Pattern::Mixed, 32),
    Load::new("4k", Pattern::Flushed, 32),
    Load::new("4k", Pattern::Durable, 1).quick(),
    Load { clients: 4, ..Load::new("4k", Pattern::RandomWrite, 8) },
];

/// Fewer: a disk hides what differs between those that are left out.
const ON_DISK: [Load; 9] = [
    Load::new("4k", Pattern::RandomWrite, 1).quick(),
    Load::new("4k", Pattern::RandomWrite, 32).quick(),
    Load::new("4k", Pattern::RandomWrite, 128),
    Load::new("4k", Pattern::RandomRead, 1),
    Load::new("4k", Pattern::RandomRead, 32),
    Load::new("128k", Pattern::Write, 8),
    Load::new("1m", Pattern::RandomWrite, 4),
    Load::new("4k", Pattern::Flushed, 32),
    Load::new("4k", Pattern::Durable, 1).quick(),
];

/// Files in memory.
pub(crate) fn measure(options: &Options) -> Section {
    on(Medium::Memory, &IN_MEMORY, options)
}

/// Files on a disk.
pub(crate) fn measure_disk(options: &Options) -> Section {
    on(Medium::Disk, &ON_DISK, options)
}

fn on(medium: Medium, loads: &'static [Load], options: &Options) -> Section {
    let mut all: Vec<Compared> = Vec::new();
    for round in 0..options.rounds {
        println!("{medium:?}, round {} of {}", round + 1, options.rounds);
        let mut contenders = contender::deal(medium, options.working_set_bytes);
        if all.is_empty() {
            let names: Vec<&str> = contenders.iter().map(|contender| contender.name).collect();
            let wanted = loads.iter().filter(|load| load.is_quick || !options.quick);
            all.extend(wanted.map(|load| Compared::new(load, &names)));
        }
        let count = contenders.len();
        for compared in &mut all {
            for turn in 0..count {
                let which = (round + turn) % count;
                let sample = compared.load.run(&contenders[which], options);
                compared.samples[which].extend(sample);
            }
        }
        // One after the other: a pair that loses its peer first would have much to say about it.
        contenders.drain(..).for_each(drop);
    }
    let mut tables = vec![summary(medium, &all, options)];
    tables.extend(all.iter().map(|compared| compared.to_table(medium)));
    Section { tables, plots: plots(medium, &all) }
}
