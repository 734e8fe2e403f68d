//! Command line of the simulator.

use lockstep_sim::{Coverage, Outcome, Scenario, catch_panics, replay, run, run_seeds, shrink, small};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const USAGE: &str = "\
usage: lockstep-sim run --seed S [--log] [-o FILE.scn]
       lockstep-sim replay FILE.scn [--log] [--until SECONDS] [--planted]
       lockstep-sim shrink FILE.scn|--seed S -o FILE.scn [--planted]
       lockstep-sim seeds N [--start S] [--marks]
       lockstep-sim swarm --minutes N [--start S]
       lockstep-sim small [BEGIN | STATE]                   every crash in three writes, or those whose names begin so
       lockstep-sim canary [NAME [--seed S [--clean]]] [--seeds N]    (a build with the feature `canary`)
       lockstep-sim canary --small                          (the same)
--marks fails where something that is listed was never reached.
--planted plants the bug that the file names, in a build with the feature `canary`.
A run that breaks a promise is written to target/sim/SEED.scn.";

/// First seed of a swarm, away from those of the tests.
const SWARM_START: u64 = 1_000_000;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    catch_panics();
    match dispatch(&Args(args.iter().map(String::as_str).collect())) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("lockstep-sim: {why}");
            ExitCode::from(2)
        }
    }
}

struct Args<'a>(Vec<&'a str>);

impl<'a> Args<'a> {
    /// What follows a name, if it is there.
    fn value(&self, name: &str) -> Result<Option<&'a str>, String> {
        let Some(at) = self.0.iter().position(|arg| *arg == name) else { return Ok(None) };
        self.0.get(at + 1).map(|value| Some(*value)).ok_or(format!("{name} needs a value\n{USAGE}"))
    }

    fn number(&self, name: &str) -> Result<Option<u64>, String> {
        let value = self.value(name)?;
        value.map(|text| text.parse().map_err(|_| format!("{name}: `{text}` is no number"))).transpose()
    }

    fn needed(&self, name: &str) -> Result<u64, String> {
        self.number(name)?.ok_or(format!("{name} and a number are needed\n{USAGE}"))
    }

    fn has(&self, name: &str) -> bool {
        self.0.contains(&name)
    }
}

/// Returns how many runs failed.
fn dispatch(args: &Args) -> Result<u64, String> {
    let log = args.has("--log");
    match args.0.first() {
        Some(&"run") => {
            let outcome = run(args.needed("--seed")?, log);
            if let Some(file) = args.value("-o")? {
                write(Path::new(file), &outcome.scenario)?;
            }
            Ok(one(&outcome))
        }
        Some(&"replay") => {
            let scenario = read(args.value("replay")?.ok_or(USAGE)?, args.has("--planted"))?;
            let until_ns = match args.value("--until")? {
                Some(text) => seconds(text).ok_or(format!("--until: `{text}` is no number of seconds"))?,
                None => u64::MAX,
            };
            Ok(one(&replay(&scenario, log, until_ns)))
        }
        Some(&"shrink") => {
            let outcome = match args.number("--seed")? {
                Some(seed) => run(seed, false),
                None => {
                    let file = args.value("shrink")?.ok_or(USAGE)?;
                    replay(&read(file, args.has("--planted"))?, false, u64::MAX)
                }
            };
            let file = args.value("-o")?.ok_or("-o FILE.scn is needed")?;
            write(Path::new(file), &shrink(&outcome, |step| eprintln!("{step}"))?)?;
            Ok(0)
        }
        Some(&"seeds") => {
            let (count, start) = (args.needed("seeds")?, args.number("--start")?.unwrap_or(0));
            let mut coverage = Coverage::default();
            let failed = run_seeds(start..start + count, |outcome| {
                coverage.add(outcome);
                report(outcome);
            });
            Ok(failed + unreached(&coverage, args.has("--marks")))
        }
        Some(&"swarm") => {
            Ok(swarm(args.needed("--minutes")?, args.number("--start")?.unwrap_or(SWARM_START)))
        }
        Some(&"small") => every_crash(args.0.get(1).copied().unwrap_or("")),
        Some(&"canary") if args.has("--small") => small_canary(),
        Some(&"canary") => {
            let name = args.0.get(1).copied().filter(|arg| !arg.starts_with("--"));
            let clean = args.0.contains(&"--clean");
            canary(name, args.number("--seed")?.map(|seed| (seed, clean)), args.number("--seeds")?)
        }
        _ => Err(USAGE.into()),
    }
}

/// One state, if it is named in full; else all whose names begin so.
fn every_crash(name: &str) -> Result<u64, String> {
    if let Some(violation) = small::play_again(name) {
        println!("{name}: {}", violation.as_deref().unwrap_or("no violation"));
        return Ok(u64::from(violation.is_some()));
    }
    let began = Instant::now();
    let report = small::run(name);
    if report.states == 0 {
        return Err(format!("no case of the small scope begins with {name}"));
    }
    for violation in &report.violations {
        println!("{violation}");
    }
    println!(
        "{} steps, {} states, {} of them equal to another, {} steps cut short, {} violations, {:.0} s",
        report.steps,
        report.states,
        report.equal,
        report.cut_short,
        report.violations.len(),
        began.elapsed().as_secs_f64()
    );
    Ok(report.violations.len() as u64 + report.cut_short)
}

fn read(file: &str, planted: bool) -> Result<Scenario, String> {
    let text = std::fs::read_to_string(file).map_err(|why| format!("cannot read {file}: {why}"))?;
    let scenario = Scenario::parse(&text).map_err(|why| format!("{file}: {why}"))?;
    if planted {
        plant(scenario.canary().ok_or(format!("{file} has no line `canary = NAME`"))?)?;
    }
    Ok(scenario)
}

#[cfg(feature = "canary")]
fn plant(name: &str) -> Result<(), String> {
    lockstep_sim::plant_named(name)
}

#[cfg(not(feature = "canary"))]
fn plant(name: &str) -> Result<(), String> {
    Err(format!("{name} cannot be planted in this build; use `cargo xtask sim`, which builds what it needs"))
}

fn write(file: &Path, scenario: &Scenario) -> Result<(), String> {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent
        .map_or(Ok(()), std::fs::create_dir_all)
        .map_err(|why| format!("cannot create {parent:?}: {why}"))?;
    std::fs::write(file, scenario.show()).map_err(|why| format!("cannot write {}: {why}", file.display()))
}

fn seconds(text: &str) -> Option<u64> {
    let seconds: f64 = text.parse().ok()?;
    (seconds >= 0.0).then_some((seconds * 1e9) as u64)
}

fn one(outcome: &Outcome) -> u64 {
    if let Some(v) = &outcome.violation {
        println!("violates {} at {:.6} s: {}", v.check, v.at_ns as f64 / 1e9, v.what);
    }
    println!(
        "seed {}: {} decisions, {} events, {} writes, {:.3} s of virtual time, trace {:016x}",
        outcome.seed,
        outcome.scenario.decisions(),
        outcome.events,
        outcome.writes,
        outcome.virtual_ns as f64 / 1e9,
        outcome.trace
    );
    u64::from(outcome.violation.is_some())
}

/// Says what went wrong, and keeps it.
fn report(outcome: &Outcome) {
    let Some(v) = &outcome.violation else { return };
    let seed = outcome.seed;
    println!("seed {seed} violates {} at {:.6} s: {}", v.check, v.at_ns as f64 / 1e9, v.what);
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let (name, planted) = match outcome.scenario.canary() {
        Some(bug) => (format!("{bug}-{seed}.scn"), " --planted"),
        None => (format!("{seed}.scn"), ""),
    };
    let file = target.join("sim").join(name);
    match write(&file, &outcome.scenario) {
        Ok(()) => println!("    cargo xtask sim replay {} --log{planted}", file.display()),
        Err(why) => println!("    cargo xtask sim run --seed {seed} --log    # {why}"),
    }
}

/// Prints what was reached; how much was not, if that counts.
fn unreached(coverage: &Coverage, counts: bool) -> u64 {
    let never = coverage.report();
    if !never.is_empty() {
        println!("never reached: {}", never.join(", "));
    }
    if counts { never.len() as u64 } else { 0 }
}

fn swarm(minutes: u64, start: u64) -> u64 {
    let began = Instant::now();
    let end = began + Duration::from_secs(minutes * 60);
    let mut runs = 0_u64;
    let mut coverage = Coverage::default();
    let failed = run_seeds((start..).take_while(|_| Instant::now() < end), |outcome| {
        runs += 1;
        coverage.add(outcome);
        report(outcome);
    });
    unreached(&coverage, false);
    let cores = std::thread::available_parallelism().map_or(1.0, |n| usize::from(n) as f64);
    let per_core_minute = runs as f64 / (began.elapsed().as_secs_f64() / 60.0) / cores;
    println!("{runs} runs, {failed} violations, {per_core_minute:.0} runs per core-minute");
    failed
}

#[cfg(feature = "canary")]
fn canary(name: Option<&str>, seed: Option<(u64, bool)>, seeds: Option<u64>) -> Result<u64, String> {
    match (name, seed) {
        (Some(name), Some((seed, clean))) => lockstep_sim::canary_seed(name, seed, clean).map(|outcome| {
            report(&outcome);
            u64::from(outcome.violation.is_some() == clean)
        }),
        _ => lockstep_sim::canary(name, seeds),
    }
}

#[cfg(feature = "canary")]
fn small_canary() -> Result<u64, String> {
    Ok(small::canary())
}

#[cfg(not(feature = "canary"))]
fn small_canary() -> Result<u64, String> {
    canary(None, None, None)
}

#[cfg(not(feature = "canary"))]
fn canary(_name: Option<&str>, _seed: Option<(u64, bool)>, _seeds: Option<u64>) -> Result<u64, String> {
    Err("no bug can be planted in this build; use `cargo xtask sim canary`".into())
}
