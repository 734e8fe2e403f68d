//! `canary`: plants one bug after the other and counts the seeds until a checker finds it.
//!
//! This measures the checkers, not the product. Each bug has a fixed number of seeds, and an aim: what a run is set up
//! for, so that the moment at which the rule matters comes often. What found a bug is run again with nothing planted,
//! and must find nothing. Bugs are planted for the whole process: one at a time, its seeds on all processors.

use crate::aims::aimed;
use crate::{Outcome, run_setup, run_tasks};
use lockstep_bitmap::canary::{Bug, plant};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// A bug that needs more seeds than this needs a better aim.
const SEEDS: u64 = 400;

/// Too rare for seeds: the kept scenario of the same name finds it.
const BY_SCENARIO: [Bug; 10] = [
    Bug::KeepUnusedGeneration,
    Bug::CoolBehindEndedCheckpoint,
    Bug::ForgetUnmetVerdict,
    Bug::InvalidateInACheckpoint,
    Bug::TrustDoubtfulDigest,
    Bug::ForgetDoubtsAtDemotion,
    Bug::DurableOvertakes,
    Bug::WriteElsewhereAtTheEnd,
    Bug::GoOnAfterPowerLoss,
    Bug::EqualSkipsCheckpoints,
];

/// What the checkers made of one bug.
struct Found {
    bug: Bug,
    /// The first outcome with a violation.
    outcome: Option<Outcome>,
    runs: u64,
    seconds: f64,
}

/// Runs the bugs called `name`, or all of them, each for at most `seeds` seeds (or its own number), and prints the
/// table. Gives the number of bugs that were not found, and of seeds on which something is found with none planted.
pub fn canary(name: Option<&str>, seeds: Option<u64>) -> Result<u64, String> {
    let bugs = named(name)?;
    println!("{:<28} {:<8} {:>6} {:<20} {:>6} {:>7}", "bug", "rule", "seed", "found by", "runs", "time");
    let began = Instant::now();
    let found: Vec<Found> = bugs.iter().map(|&bug| find(bug, seeds.unwrap_or(SEEDS))).collect();
    let missed = found.iter().filter(|found| found.outcome.is_none()).count() as u64;
    let runs: u64 = found.iter().map(|found| found.runs).sum();
    let false_alarms = false_alarms(&found);
    let missed_by_kept = if name.is_none() { crate::kept::missed()? } else { 0 };
    println!(
        "{} of {} found, {runs} runs, {false_alarms} false alarms, {:.0} s",
        found.len() as u64 - missed,
        found.len(),
        began.elapsed().as_secs_f64()
    );
    Ok(missed + false_alarms + missed_by_kept)
}

/// Runs one seed of a bug with its log; `clean`: set up for the bug, and nothing planted.
pub fn canary_seed(name: &str, seed: u64, clean: bool) -> Result<Outcome, String> {
    let [bug] = named(Some(name))?[..] else { return Err(format!("{name} is not one bug")) };
    plant(Some(bug).filter(|_| !clean));
    let mut outcome = run_setup(aimed(bug, seed), true);
    plant(None);
    outcome.scenario.canary = Some(name.to_string());
    Ok(outcome)
}

/// Plants the bug of this name for the whole process.
pub fn plant_named(name: &str) -> Result<(), String> {
    let [bug] = named(Some(name))?[..] else { return Err(format!("{name} is not one bug")) };
    plant(Some(bug));
    Ok(())
}

fn named(name: Option<&str>) -> Result<Vec<Bug>, String> {
    let Some(name) = name else {
        return Ok(Bug::ALL.iter().copied().filter(|bug| !BY_SCENARIO.contains(bug)).collect());
    };
    match Bug::ALL.iter().find(|&&bug| name_of(bug) == name) {
        Some(&bug) => Ok(vec![bug]),
        None => {
            let all: Vec<String> = Bug::ALL.iter().map(|&bug| name_of(bug)).collect();
            Err(format!("no planted bug is called {name}; there are: {}", all.join(", ")))
        }
    }
}

/// `AckBeforePeer` is called `ack-before-peer`.
fn name_of(bug: Bug) -> String {
    let mut name = String::new();
    for letter in format!("{bug:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('-');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}

/// Goes through the seeds until one breaks a promise: the lowest one, whatever ran beside it.
fn find(bug: Bug, seeds: u64) -> Found {
    let began = Instant::now();
    let stop = AtomicBool::new(false);
    let (mut runs, mut first) = (0, None::<Outcome>);
    plant(Some(bug));
    run_tasks(
        (0..seeds).take_while(|_| !stop.load(Ordering::Relaxed)),
        |seed| run_setup(aimed(bug, seed), false),
        |outcome| {
            runs += 1;
            if outcome.violation.is_some() {
                stop.store(true, Ordering::Relaxed);
                first = first.take().filter(|first| first.seed < outcome.seed).or(Some(outcome));
            }
        },
    );
    plant(None);
    let found = Found { bug, outcome: first, runs, seconds: began.elapsed().as_secs_f64() };
    found.print();
    found
}

/// What found a bug finds nothing when none is planted.
fn false_alarms(found: &[Found]) -> u64 {
    let cases = found.iter().filter_map(|found| Some((found.bug, found.outcome.as_ref()?.seed)));
    let mut alarms = 0;
    run_tasks(
        cases,
        |(bug, seed)| (bug, run_setup(aimed(bug, seed), false)),
        |(bug, outcome)| {
            if let Some(v) = outcome.violation {
                alarms += 1;
                println!(
                    "nothing planted, aim of {}, seed {}: {} {}",
                    name_of(bug),
                    outcome.seed,
                    v.check,
                    v.what
                );
            }
        },
    );
    alarms
}

impl Found {
    fn print(&self) {
        let (name, rule, seconds) = (name_of(self.bug), self.bug.rule(), self.seconds);
        let (seed, by) = match self.outcome.as_ref().and_then(|o| Some((o.seed, o.violation.as_ref()?.check)))
        {
            Some((seed, check)) => (seed.to_string(), check),
            None => ("-".into(), "NOT FOUND"),
        };
        println!("{name:<28} {rule:<8} {seed:>6} {by:<20} {:>6} {seconds:>5.1} s", self.runs);
    }
}
