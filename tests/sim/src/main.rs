//! Command line of the simulator.

use lockstep_sim::{Outcome, catch_panics, run, run_seeds};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const USAGE: &str = "usage: lockstep-sim run --seed S [--log]
       lockstep-sim seeds N [--start S]
       lockstep-sim swarm --minutes N [--start S]
       lockstep-sim canary [NAME [--seed S]] [--seeds N]    (a build with the feature `canary`)";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    catch_panics();
    let number = |name: &str| {
        let at = args.iter().position(|arg| arg == name)?;
        args.get(at + 1)?.parse::<u64>().ok()
    };
    let failed = match args.first().map(String::as_str) {
        Some("run") => number("--seed").map(|seed| one(seed, args.iter().any(|arg| arg == "--log"))),
        Some("seeds") => number("seeds").map(|count| {
            let start = number("--start").unwrap_or(0);
            run_seeds(start..start + count, report)
        }),
        Some("swarm") => {
            number("--minutes").map(|minutes| swarm(minutes, number("--start").unwrap_or(1_000_000)))
        }
        Some("canary") => {
            canary(args.get(1).filter(|arg| !arg.starts_with("--")), number("--seed"), number("--seeds"))
        }
        _ => None,
    };
    match failed {
        None => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
        Some(0) => ExitCode::SUCCESS,
        Some(_) => ExitCode::FAILURE,
    }
}

fn one(seed: u64, log: bool) -> u64 {
    let outcome = run(seed, log);
    report(&outcome);
    println!(
        "seed {seed}: {} events, {} writes, {:.3} s of virtual time, trace {:016x}",
        outcome.events,
        outcome.writes,
        outcome.virtual_ns as f64 / 1e9,
        outcome.trace
    );
    u64::from(outcome.violation.is_some())
}

fn report(outcome: &Outcome) {
    if let Some(v) = &outcome.violation {
        println!("seed {} violates {} at {:.6} s: {}", outcome.seed, v.check, v.at_ns as f64 / 1e9, v.what);
        println!("    cargo run -r -p lockstep-sim -- run --seed {} --log", outcome.seed);
    }
}

fn swarm(minutes: u64, start: u64) -> u64 {
    let began = Instant::now();
    let end = began + Duration::from_secs(minutes * 60);
    let mut runs = 0_u64;
    let failed = run_seeds((start..).take_while(|_| Instant::now() < end), |outcome| {
        runs += 1;
        report(outcome);
    });
    let per_minute = runs as f64 / (began.elapsed().as_secs_f64() / 60.0);
    println!("{runs} runs, {failed} violations, {per_minute:.0} runs per minute");
    failed
}

#[cfg(feature = "canary")]
fn canary(name: Option<&String>, seed: Option<u64>, seeds: Option<u64>) -> Option<u64> {
    let name = name.map(String::as_str);
    let done = match (name, seed) {
        (Some(name), Some(seed)) => lockstep_sim::canary_seed(name, seed).map(|outcome| {
            report(&outcome);
            u64::from(outcome.violation.is_none())
        }),
        _ => lockstep_sim::canary(name, seeds),
    };
    done.inspect_err(|why| eprintln!("lockstep-sim: {why}")).ok()
}

#[cfg(not(feature = "canary"))]
fn canary(_name: Option<&String>, _seed: Option<u64>, _seeds: Option<u64>) -> Option<u64> {
    eprintln!("lockstep-sim: no bug can be planted in this build; use `cargo xtask sim canary`");
    None
}
