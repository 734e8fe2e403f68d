//! The project's one runner: `cargo xtask test` is the test of everything, in CI and at the desk.
//!
//! Each subcommand is one function; this file only reads the command line. It never changes a source file.
//! `setup` is the only part that changes the machine, and says what it installs.

mod bans;
mod cited;
mod count;
mod e2e;
mod fuzz;
mod memory;
mod setup;
mod shell;
mod suite;
mod tidy;
mod vm;
mod vm_bench;

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::suite::Extent;

const USAGE: &str = "\
usage: cargo xtask COMMAND
  test [--quick]      everything: setup, style, bans, unit tests, simulator, end to end, real kernels
                      (--quick: no kernels, one round of each)
  nightly             the same with many rounds
  setup               install the Debian packages that the tests need, or say which are missing
  tidy                sizes, headers, leftovers, links, cited tests
  bans                dependencies of the pure crates
  e2e                 the end-to-end tests, in as many rounds as in CI
  sim ARGS            the simulator: run --seed S | replay FILE | swarm --minutes N | seeds N | small | canary
  fuzz [TARGETS]      the fuzz targets, each for LOCKSTEP_FUZZ_SECONDS (60); all when none is named
  memory              end-to-end tests under the address sanitizer, the pure crates' tests under valgrind
  vm [6.1|6.12]       the test inside a real kernel; both when none is named
                      (--matrix: every way to attach the kernel's client against restart and failover, as a table)
  bench ARGS          the benchmarks; `bench vm [--quick]`: beside the kernel's DRBD, in a real kernel
  count [--update]    instructions of the data path against tests/count/baseline.json (--update: write it)
Rounds are set by LOCKSTEP_ROUNDS_CUT, _DATABASE, _FREEZE, _KILL, _MOVE and _POWER, by
LOCKSTEP_TORTURE_MINUTES and by LOCKSTEP_SIM_SEEDS.";

const BENCH_VM: &str = "\
usage: cargo xtask bench vm [--quick]
Lockstep beside the kernel's DRBD, through the kernel's own NBD client, in an emulated machine: some six minutes,
with --quick one short round. The tables are printed, and written to target/bench/vm.md and vm.json.";

const TEST: vm::Job = vm::Job::Test { cuts: 2 };

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: &[String]) -> Result<()> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["test"] => suite::run(Extent::Test),
        ["test", "--quick"] => suite::run(Extent::Quick),
        ["nightly"] => suite::run(Extent::Nightly),
        ["setup"] => setup::setup(),
        ["tidy"] => tidy::tidy(),
        ["bans"] => bans::bans(),
        ["e2e"] => suite::end_to_end(Extent::Test),
        ["sim", rest @ ..] => suite::sim(rest),
        ["fuzz", rest @ ..] => fuzz::fuzz(rest),
        ["memory"] => memory::sanitized().and(memory::valgrind()),
        ["vm"] => vm::vm(vm::KERNELS, TEST),
        ["vm", "--matrix"] => vm::vm(vm::KERNELS, vm::Job::Matrix),
        ["vm", kernel] if vm::KERNELS.contains(kernel) => vm::vm(&[kernel], TEST),
        ["vm", kernel, "--matrix"] if vm::KERNELS.contains(kernel) => vm::vm(&[kernel], vm::Job::Matrix),
        ["count"] => count::count(false),
        ["count", "--update"] => count::count(true),
        ["bench", "vm"] => vm_bench::bench(false),
        ["bench", "vm", "--quick"] => vm_bench::bench(true),
        ["bench", "vm", "--help" | "-h"] => {
            println!("{BENCH_VM}");
            Ok(())
        }
        ["bench", "vm", rest @ ..] => bail!("unknown option `{}`\n{BENCH_VM}", rest.join(" ")),
        ["bench", rest @ ..] => suite::bench(rest),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        _ => bail!("unknown command `{}`\n{USAGE}", words.join(" ")),
    }
}
