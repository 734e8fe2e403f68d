//! What one write of 4 KiB costs each side: processor time, system calls, context switches and, where the machine
//! counts them, instructions.
//!
//! Time is measured in runs of its own, by the clock that the kernel keeps for each process: `perf` counts the rest and
//! slows down what it counts. A contender's processes have only this client, and what they do besides is in the figure.

use crate::contender::{Contender, Medium, deal};
use crate::fio::{self, Sample};
use crate::report::{Section, Table};
use crate::{Options, fio::words};
use lockstep_e2e::tool;
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::path::Path;

const DEPTHS: [u32; 2] = [1, 32];
const EVENTS: [&str; 3] = ["raw_syscalls:sys_enter", "context-switches", "instructions"];
const PERF: &str = "/usr/bin/perf";

/// Of one process, for one write.
#[derive(Clone, Copy)]
struct Cost {
    cpu_us: f64,
    /// In the order of [`EVENTS`]; `None` where the machine or the kernel does not count them.
    events: [Option<f64>; EVENTS.len()],
}

/// By contender and by process, the client last: one per round.
type Costs = Vec<Vec<Vec<Cost>>>;

pub(crate) fn measure(options: &Options) -> Section {
    let mut costs = vec![Costs::new(); DEPTHS.len()];
    let mut sides = Vec::new();
    for _ in 0..rounds(options) {
        let contenders = deal(Medium::Memory, options.working_set_bytes);
        sides = contenders.iter().map(sides_of).collect();
        for (depth, costs) in DEPTHS.iter().zip(&mut costs) {
            costs.resize_with(contenders.len(), Vec::new);
            for (contender, costs) in contenders.iter().zip(costs) {
                costs.push(of(contender, *depth, options));
            }
        }
    }
    let tables = DEPTHS.iter().zip(&costs).map(|(depth, costs)| table(*depth, &sides, costs));
    Section { tables: tables.collect(), ..Section::default() }
}

/// Counts vary less than speeds.
fn rounds(options: &Options) -> usize {
    if options.quick { 1 } else { options.rounds.div_ceil(2) }
}

fn sides_of(contender: &Contender) -> Vec<[String; 2]> {
    let sides = contender.processes.iter().map(|(side, _)| *side).chain(["client"]);
    sides.map(|side| [contender.name.to_string(), side.to_string()]).collect()
}

fn arguments(depth: u32) -> [String; 3] {
    ["--rw=randwrite".to_string(), "--bs=4k".to_string(), format!("--iodepth={depth}")]
}

/// Two runs: one for the time, one for the events.
fn of(contender: &Contender, depth: u32, options: &Options) -> Vec<Cost> {
    let arguments = arguments(depth);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let line = words(&contender.jobs(), options.working_set_bytes, &arguments, Some(options.short_runtime));
    let cpu = || contender.processes.iter().map(|(_, pid)| cpu_us(*pid)).collect::<Vec<f64>>();
    let before = cpu();
    let sample = fio::parse(&tool("fio").args(&line[1..]).run().ok());
    let used = cpu().into_iter().zip(before).map(|(after, before)| after - before);
    let used: Vec<f64> = used.chain([sample.client_cpu_us]).collect();
    let events = counted(contender, line);
    used.into_iter()
        .zip(events)
        .map(|(cpu_us, events)| Cost { cpu_us: cpu_us / sample.requests, events })
        .collect()
}

/// Processor time of all threads of a process, those included that ended.
fn cpu_us(pid: u32) -> f64 {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a process id"));
    let time = clock_getcpuclockid(pid).and_then(|clock| clock.now()).expect("the clock of a process");
    time.tv_sec() as f64 * 1e6 + time.tv_nsec() as f64 / 1e3
}

/// Events of each process and of the client for one request, while `line` runs.
fn counted(contender: &Contender, line: Vec<String>) -> Vec<[Option<f64>; EVENTS.len()]> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = |which: usize| dir.path().join(which.to_string());
    let count = contender.processes.len();
    if !Path::new(PERF).exists() {
        return vec![[None; EVENTS.len()]; count + 1];
    }
    // One inside the other: each watches a process for as long as its command runs, the innermost the client.
    let mut line = [watch(&file(count)), vec!["--".to_string()], line].concat();
    for (which, (_, pid)) in contender.processes.iter().enumerate() {
        line =
            [watch(&file(which)), vec!["-p".to_string(), pid.to_string(), "--".to_string()], line].concat();
    }
    let sample = fio::parse(&tool("perf").args(&line[1..]).run().ok());
    (0..=count).map(|which| events(&file(which), &sample)).collect()
}

fn watch(file: &Path) -> Vec<String> {
    let file = file.to_str().expect("a path in UTF-8");
    [PERF, "stat", "-x,", "-o", file, "-e", &EVENTS.join(",")].map(String::from).to_vec()
}

/// Lines of `perf stat -x,` are a count, its unit and the name of the event.
fn events(file: &Path, sample: &Sample) -> [Option<f64>; EVENTS.len()] {
    let text = std::fs::read_to_string(file).expect("what perf counted");
    EVENTS.map(|event| {
        let line =
            text.lines().find(|line| line.split(',').nth(2).is_some_and(|name| name.starts_with(event)))?;
        let count: f64 = line.split(',').next()?.parse().ok()?;
        Some(count / sample.requests)
    })
}

fn table(depth: u32, sides: &[Vec<[String; 2]>], costs: &Costs) -> Table {
    let title = format!("Cost of one 4k random write in memory, depth {depth}");
    let columns = ["server", "side", "CPU us", "system calls", "context switches", "instructions"];
    let mut table = Table::new(&title, &columns);
    let mut data = Vec::new();
    for (sides, rounds) in sides.iter().zip(costs) {
        for (which, [server, side]) in sides.iter().enumerate() {
            let cpu_us = median(rounds.iter().map(|costs| costs[which].cpu_us)).unwrap_or(f64::NAN);
            let [calls, switches, instructions] =
                [0, 1, 2].map(|event| median(rounds.iter().filter_map(|costs| costs[which].events[event])));
            let cell = |figure: Option<f64>| figure.map_or("-".to_string(), |figure| format!("{figure:.2}"));
            let cells = [Some(cpu_us), calls, switches, instructions].map(cell);
            table.row([server.clone(), side.clone()].into_iter().chain(cells));
            data.push(json!({ "name": server, "side": side, "cpu_us": cpu_us, "system_calls": calls,
                              "context_switches": switches, "instructions": instructions }));
        }
    }
    table.data = Value::Array(data);
    notes(&mut table, costs);
    table
}

fn notes(table: &mut Table, costs: &Costs) {
    let is_counted = |event: usize| costs.iter().flatten().flatten().any(|cost| cost.events[event].is_some());
    for (event, name) in EVENTS.iter().enumerate() {
        if !is_counted(event) {
            table.note(format!("perf does not count {name} on this machine."));
        }
    }
    table.note(format!(
        "Medians of {} rounds. The client is fio, and its events include those of its start.",
        costs[0].len()
    ));
    table.note(
        "Heap allocations of the engine for a request are none, which is not measured here: \
         replicator/engine/tests/allocations.rs asserts it for thousands of requests of all kinds.",
    );
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
