//! Exhaustive small scope: two blocks, three writes, every step at which a node may crash, every outcome of what was
//! under way, and several ways to go on.
//!
//! Nothing is drawn: latencies come from one fixed seed, the crash comes before or after each step of either core
//! ([`watch`]), what was in flight or in a disk's cache ends in each way that it can ([`odometer`], `disk/listed.rs`),
//! and frames on the way arrive up to each frame. The checkers are those of the random runs: C1 to C12.
//!
//! What is bounded: the writes are blocks of 4 KiB that are old or new as a whole; a metadata page is torn in its
//! middle; a crash follows no other crash but in [`case::Then::Stale`]; [`OUTCOMES_MAX`] outcomes of one step.

mod case;
mod odometer;
#[cfg(feature = "canary")]
mod planted;
mod play;
mod watch;

#[cfg(feature = "canary")]
pub use planted::canary;
pub(crate) use watch::Watch;

use case::{Case, Machines, Work};
use odometer::Odometer;
use play::Play;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Outcomes of one step that are played; a step with more is reported.
const OUTCOMES_MAX: u64 = 4096;
/// After so many broken promises the other outcomes of a step say nothing new.
const VIOLATIONS_MAX: usize = 3;

/// What was played.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Steps of the cores at which a node was made to crash, over all works and machines.
    pub steps: u64,
    /// Steps times crashes times outcomes times continuations.
    pub states: u64,
    /// Of these, states from which nothing new can come: the same was left by another step.
    pub equal: u64,
    /// Steps with more outcomes than are played.
    pub cut_short: u64,
    /// Broken promises, with the argument that plays each again.
    pub violations: Vec<String>,
}

/// One step of one case.
struct Task {
    case: Case,
    at: u64,
}

/// What came of it.
#[derive(Default)]
struct Played {
    states: u64,
    equal: u64,
    is_cut_short: bool,
    violations: Vec<String>,
}

/// What crashes of both have left, per case.
type Left = Mutex<BTreeSet<(String, u64)>>;

/// Plays everything, or what begins with `filter`, on all processors.
pub fn run(filter: &str) -> Report {
    play_all(filter, u64::MAX)
}

/// Ends soon after so many violations.
fn play_all(filter: &str, violations_max: u64) -> Report {
    let mut tasks = Vec::new();
    let mut report = Report::default();
    let violations = AtomicU64::new(0);
    for &work in Work::ALL {
        for &machines in Machines::ALL {
            let cases: Vec<Case> =
                Case::all_of(work, machines).filter(|case| case.to_string().starts_with(filter)).collect();
            let steps = cases.first().map_or(0, |&case| count_steps(case));
            report.steps += steps;
            tasks.extend(cases.iter().flat_map(|&case| (0..steps).map(move |at| Task { case, at })));
        }
    }
    let left = Mutex::new(BTreeSet::new());
    crate::run_tasks(
        tasks.into_iter().take_while(|_| violations.load(Ordering::Relaxed) < violations_max),
        |task| task.play(&left),
        |played| {
            violations.fetch_add(played.violations.len() as u64, Ordering::Relaxed);
            report.states += played.states;
            report.equal += played.equal;
            report.cut_short += u64::from(played.is_cut_short);
            report.violations.extend(played.violations);
        },
    );
    report.violations.sort();
    report
}

/// Plays one state again, by the argument that a report names; `None` if there is no such state.
pub fn play_again(argument: &str) -> Option<Option<String>> {
    let words: Vec<&str> = argument.split('/').collect();
    let [work, machines, crash, then, at, row] = words.as_slice() else { return None };
    let case = Case {
        work: work.parse().ok()?,
        machines: machines.parse().ok()?,
        crash: crash.parse().ok()?,
        then: then.parse().ok()?,
    };
    let row: Result<Vec<usize>, _> = row.split(',').filter(|word| !word.is_empty()).map(str::parse).collect();
    let mut play = Play::new(case, at.parse().ok()?, Odometer::at(&row.ok()?), true);
    crate::guarded(
        &mut play,
        |play| &mut play.world,
        |play| {
            if play.crash() {
                play.go_on();
            }
        },
    );
    Some(play.world.violation.take().map(|v| format!("{}: {}", v.check, v.what)))
}

fn count_steps(case: Case) -> u64 {
    let mut play = Play::new(case, u64::MAX - 1, Odometer::default(), false);
    crate::guarded(
        &mut play,
        |play| &mut play.world,
        |play| {
            play.crash();
        },
    );
    play.world.watch.map_or(0, |watch| watch.steps)
}

impl Task {
    /// Every outcome of this step.
    fn play(&self, left: &Left) -> Played {
        let mut played = Played::default();
        let mut outcomes = Odometer::default();
        loop {
            let mut play = Play::new(self.case, self.at, outcomes, false);
            let is_equal = crate::guarded(&mut play, |play| &mut play.world, |play| self.judge(play, left));
            played.states += 1;
            played.equal += u64::from(is_equal == Some(true));
            outcomes = play.world.watch.take().map(|watch| watch.outcomes).unwrap_or_default();
            if let Some(v) = play.world.violation {
                let row: Vec<String> = outcomes.row().map(|chosen| chosen.to_string()).collect();
                let argument = format!("{}/{}/{}", self.case, self.at, row.join(","));
                played.violations.push(format!("{argument} violates {}: {}", v.check, v.what));
            }
            played.is_cut_short = played.states == OUTCOMES_MAX;
            if !outcomes.turn() || played.is_cut_short || played.violations.len() == VIOLATIONS_MAX {
                return played;
            }
        }
    }

    /// One of them. True if another one has left the same, so that nothing new can come: a node that lives makes each
    /// one of its own.
    fn judge(&self, play: &mut Play, left: &Left) -> bool {
        if !play.crash() {
            return false;
        }
        let is_new = play.left.is_none_or(|state| {
            left.lock().unwrap_or_else(PoisonError::into_inner).insert((self.case.to_string(), state))
        });
        if is_new {
            play.go_on();
        }
        !is_new
    }
}
