//! Workloads of the data path, the same ones again and again, for a tool that counts instructions.
//!
//! `lockstep-count list` names them; `lockstep-count NAME` runs one, [`Workload::times`] times, and prints the number
//! of allocations; more than a workload may have are a failure. What counts runs inside of
//! `lockstep_counting::measure`: `cargo xtask count` tells callgrind to collect there only, so that neither the start
//! nor the driver is in the numbers.
//!
//! Invariant: nothing here depends on time, chance or addresses, so that two runs execute the same instructions.
#![forbid(unsafe_code)]

mod nbd;
mod replication;

use std::process::ExitCode;

struct Workload {
    name: &'static str,
    /// How often it is done in a run.
    times: u32,
    /// Does it so often; returns the allocations.
    run: fn(u32) -> u64,
    /// Allocations each time, at most.
    allocations_max: u64,
}

impl Workload {
    /// What a client waits for: it takes no memory.
    const fn request(name: &'static str, times: u32, run: fn(u32) -> u64) -> Workload {
        Workload { name, times, run, allocations_max: 0 }
    }

    fn run(&self) -> Result<u64, String> {
        let Workload { name, times, allocations_max, .. } = self;
        let allocations = (self.run)(self.times);
        if allocations > allocations_max * u64::from(*times) {
            return Err(format!(
                "{name}: {allocations} allocations in {times} times, {allocations_max} allowed"
            ));
        }
        Ok(allocations)
    }
}

const WORKLOADS: &[Workload] = &[
    Workload::request("write-4k-primary", 512, replication::write_4k_primary),
    Workload::request("write-4k-peer", 512, replication::write_4k_peer),
    Workload::request("write-4k-deep", 512, replication::write_4k_deep),
    Workload::request("write-4k-alone", 512, replication::write_4k_alone),
    Workload::request("write-128k", 256, replication::write_128k),
    Workload::request("read-4k", 512, replication::read_4k),
    Workload::request("flush", 256, replication::flush),
    Workload::request("epoch", 64, replication::epoch),
    // The parts of a piece, and the digests of an answer, are lists of their own.
    Workload { name: "resync-piece", times: 512, run: replication::resync_piece, allocations_max: 4 },
    Workload::request("nbd-simple", 1024, nbd::simple_write),
    Workload::request("nbd-extended", 1024, nbd::extended_read),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [argument] = arguments.as_slice() else { return usage() };
    if argument == "list" {
        WORKLOADS.iter().for_each(|workload| println!("{} {}", workload.name, workload.times));
        return ExitCode::SUCCESS;
    }
    let Some(workload) = WORKLOADS.iter().find(|workload| workload.name == argument) else { return usage() };
    match workload.run() {
        Ok(allocations) => {
            println!("{allocations}");
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: lockstep-count list | NAME");
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_workload_takes_more_memory_than_it_may() {
        for workload in WORKLOADS {
            workload.run().unwrap();
        }
    }
}
