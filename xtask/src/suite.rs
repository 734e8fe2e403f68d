//! `test` and `nightly`: all stages one after the other, and the table of their times.
//!
//! A stage that fails does not stop the later ones: one run shows everything that is wrong. The command
//! fails if any stage failed. Binaries and tests are all built in one profile: each crate is compiled once.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::shell::{self, PROFILE, Run, cargo};
use crate::{bans, count, e2e, fuzz, memory, setup, tidy, vm};

/// How much of the suite to run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// At the desk: no kernels, one round of each.
    Quick,
    /// In CI.
    Test,
    /// Over night: the same stages, many rounds.
    Nightly,
}

impl Extent {
    /// Rounds, and minutes, by the variable that the tests read; what the caller has set wins.
    fn rounds(self) -> [(&'static str, &'static str); 11] {
        let [cut, database, death, freeze, kill, relocate, neighbours, power, session, torture, seeds] =
            match self {
                Extent::Quick => ["1", "1", "100", "1", "1", "1", "100", "1", "100", "0", "50"],
                Extent::Test => ["1", "2", "400", "2", "3", "2", "400", "1", "400", "0.6", "1000"],
                Extent::Nightly => {
                    ["50", "30", "20000", "20", "100", "50", "20000", "60", "20000", "120", "20000"]
                }
            };
        [
            ("LOCKSTEP_ROUNDS_CUT", cut),
            ("LOCKSTEP_ROUNDS_DATABASE", database),
            ("LOCKSTEP_ROUNDS_DEATH", death),
            ("LOCKSTEP_ROUNDS_FREEZE", freeze),
            ("LOCKSTEP_ROUNDS_KILL", kill),
            ("LOCKSTEP_ROUNDS_MOVE", relocate),
            ("LOCKSTEP_ROUNDS_NEIGHBOURS", neighbours),
            ("LOCKSTEP_ROUNDS_POWER", power),
            ("LOCKSTEP_ROUNDS_SESSION", session),
            ("LOCKSTEP_TORTURE_MINUTES", torture),
            (SIM_SEEDS, seeds),
        ]
    }

    fn with_rounds(self, command: Run) -> Run {
        self.rounds().into_iter().fold(command, |command, (name, value)| command.env_default(name, value))
    }

    /// Power cuts under a kernel: the recording takes a minute, so that CI has it under the newest one only.
    fn cuts(self, kernel: &str) -> u32 {
        match self {
            Extent::Nightly => 20,
            _ if vm::KERNELS.last() == Some(&kernel) => 2,
            _ => 0,
        }
    }

    fn seeds(self) -> String {
        let [.., (name, value)] = self.rounds();
        std::env::var(name).unwrap_or_else(|_| value.to_string())
    }
}

const SIM_SEEDS: &str = "LOCKSTEP_SIM_SEEDS";

/// Runs every stage of `extent` and prints how long each took.
pub(crate) fn run(extent: Extent) -> Result<()> {
    let mut stages = Stages::default();
    stages.run("setup", setup::setup);
    stages.run("format", || cargo().args(["fmt", "--all", "--check"]).status());
    stages.run("tidy", tidy::tidy);
    stages.run("bans", bans::bans);
    stages.run("clippy", clippy);
    stages.run("unit", unit);
    stages.run("count", || count::count(false));
    stages.run("simulator", || sim(&["seeds", &extent.seeds()]));
    stages.run("small scope", || sim(&["small"]));
    stages.run("canaries", || sim(&["canary"]).and_then(|()| sim(&["canary", "--small"])));
    if extent == Extent::Nightly {
        // Other seeds than above.
        stages.run("marks", || sim(&["seeds", "10000", "--start", "5000000", "--marks"]));
    }
    stages.run("end to end", || end_to_end(extent));
    if extent != Extent::Quick {
        for kernel in vm::KERNELS {
            stages.run(&format!("kernel {kernel}"), || {
                vm::vm(&[kernel], vm::Job::Test { cuts: extent.cuts(kernel) })
            });
        }
    }
    if extent == Extent::Nightly {
        for kernel in vm::KERNELS {
            stages.run(&format!("matrix {kernel}"), || vm::vm(&[kernel], vm::Job::Matrix));
        }
        stages.run("fuzz", || fuzz::fuzz(&[]));
        stages.run("sanitizer", memory::sanitized);
        stages.run("valgrind", memory::valgrind);
    }
    stages.finish()
}

fn clippy() -> Result<()> {
    cargo()
        .args(["clippy", "--profile", PROFILE, "--workspace", "--all-targets"])
        .args(["--", "-D", "warnings"])
        .status()
}

fn unit() -> Result<()> {
    let tests = cargo().args(["test", "--profile", PROFILE, "--workspace", "--exclude", "lockstep-e2e"]);
    tests.args(["--no-fail-fast"]).status()
}

/// The end-to-end tests, in the rounds of `extent`.
pub(crate) fn end_to_end(extent: Extent) -> Result<()> {
    let binary = shell::build_lockstep(PROFILE)?;
    e2e::run(|test| extent.with_rounds(test.env("LOCKSTEP_BIN", &binary)))
}

/// The simulator with these arguments.
pub(crate) fn sim(arguments: &[&str]) -> Result<()> {
    let features: &[&str] = if arguments.first() == Some(&"canary") || arguments.contains(&"--planted") {
        &["--features", "canary"]
    } else {
        &[]
    };
    let run = cargo().args(["run", "--profile", PROFILE, "--package", "lockstep-sim"]).args(features);
    run.args(["--"]).args(arguments).status()
}

/// The benchmarks with these arguments, on a binary without assertions.
pub(crate) fn bench(arguments: &[&str]) -> Result<()> {
    let binary = shell::build_lockstep("release")?;
    cargo()
        .args(["run", "--release", "--package", "lockstep-e2e", "--bin", "bench", "--"])
        .args(arguments)
        .env("LOCKSTEP_BIN", binary)
        .status()
}

#[derive(Default)]
struct Stages {
    done: Vec<Stage>,
}

struct Stage {
    name: String,
    passed: bool,
    took: Duration,
}

impl Stages {
    fn run(&mut self, name: &str, stage: impl FnOnce() -> Result<()>) {
        println!("\n== {name}");
        let start = Instant::now();
        let result = stage();
        if let Err(error) = &result {
            println!("{name} failed: {error:#}");
        }
        self.done.push(Stage { name: name.to_string(), passed: result.is_ok(), took: start.elapsed() });
    }

    fn finish(self) -> Result<()> {
        println!("\n== stages");
        for stage in &self.done {
            let verdict = if stage.passed { "ok" } else { "FAILED" };
            println!("{:<12} {:>7.1} s  {verdict}", stage.name, stage.took.as_secs_f64());
        }
        let total: Duration = self.done.iter().map(|stage| stage.took).sum();
        println!("{:<12} {:>7.1} s", "total", total.as_secs_f64());
        let failed = self.failed();
        ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
        Ok(())
    }

    fn failed(&self) -> Vec<&str> {
        self.done.iter().filter(|stage| !stage.passed).map(|stage| stage.name.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_stage_does_not_stop_the_next_and_fails_the_run() {
        let mut stages = Stages::default();
        stages.run("first", || anyhow::bail!("broken"));
        let mut reached = false;
        stages.run("second", || {
            reached = true;
            Ok(())
        });
        assert!(reached);
        assert_eq!(stages.failed(), ["first"]);
        assert!(stages.finish().unwrap_err().to_string().contains("first"));
    }
}
