//! A deterministic simulator of two Lockstep nodes.
//!
//! The real cores (`lockstep-core`) and the real metadata format run on simulated disks with a volatile
//! cache and on simulated byte pipes, in virtual time, while processes are killed, machines lose power and
//! connections break. Clients check what they read against everything that the guarantees D1 to D8 allow. A
//! run is a function of its seed:
//!
//! ```text
//! cargo run -r -p lockstep-sim -- seeds 1000           # violations with the command that reproduces each
//! cargo run -r -p lockstep-sim -- run --seed 42 --log  # one run, line by line
//! cargo run -r -p lockstep-sim -- replay FILE.scn       # a recorded run again
//! ```

#[cfg(feature = "canary")]
mod aims;
mod bounds;
#[cfg(feature = "canary")]
mod canary;
mod check;
mod client;
mod coverage;
mod decision;
mod disk;
mod execute;
mod fault;
mod fields;
mod ghost;
mod host;
mod image;
mod inspect;
mod kept;
mod net;
mod operator;
mod points;
mod prng;
mod process;
mod replies;
mod rules;
mod script;
mod serving;
mod session;
mod setup;
mod shrink;
pub mod small;
mod socket;
mod survivors;
mod trouble;
mod wire;
mod words;
mod world;

#[cfg(feature = "canary")]
pub use canary::{canary, canary_seed, plant_named};
pub use coverage::Coverage;
pub use kept::{ENVIRONMENTS, kept};
pub use script::Scenario;
pub use shrink::shrink;
pub use world::Violation;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError, mpsc};

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// Everything that was decided, for a replay.
    pub scenario: Scenario,
    /// The first broken promise.
    pub violation: Option<Violation>,
    /// Hash of everything that happened.
    pub trace: u64,
    /// Events.
    pub events: u64,
    /// Virtual time in nanoseconds.
    pub virtual_ns: u64,
    /// Writes that clients sent.
    pub writes: u64,
    /// Verdicts and refusals.
    pub(crate) seen: BTreeSet<String>,
}

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Panics of a run are findings: keep their message and place instead of printing them. Call once.
pub fn catch_panics() {
    std::panic::set_hook(Box::new(|info| {
        PANIC.with(|cell| *cell.borrow_mut() = Some(info.to_string().replace('\n', " ")));
    }));
}

/// Runs one seed to its end.
pub fn run(seed: u64, log: bool) -> Outcome {
    run_setup(setup::Setup::of(seed), log)
}

/// Runs with a setup of the caller's, drawing the decisions.
fn run_setup(setup: setup::Setup, log: bool) -> Outcome {
    run_world(world::World::drawn(setup, log))
}

/// Runs a scenario to its end, or until a moment.
pub fn replay(scenario: &Scenario, log: bool, until_ns: u64) -> Outcome {
    let mut world = world::World::replayed(scenario, log);
    world.until_ns = until_ns;
    let mut outcome = run_world(world);
    outcome.scenario.comment.clone_from(&scenario.comment);
    outcome.scenario.canary.clone_from(&scenario.canary);
    outcome
}

fn run_world(mut world: world::World) -> Outcome {
    if world.log {
        println!("{:#?}", world.setup);
    }
    let events = guarded(&mut world, |world| world, |world| world.run()).unwrap_or(0);
    let lines = std::mem::take(&mut world.script);
    Outcome {
        seed: world.setup.seed,
        scenario: Scenario { setup: world.setup.clone(), lines, canary: None, comment: String::new() },
        violation: world.violation.take(),
        trace: world.trace,
        events,
        virtual_ns: world.now,
        writes: world.writes,
        seen: std::mem::take(&mut world.seen),
    }
}

/// Does something with a run; a panic in it becomes a violation of its world.
fn guarded<T, R>(
    of: &mut T,
    world: impl Fn(&mut T) -> &mut world::World,
    act: impl FnOnce(&mut T) -> R,
) -> Option<R> {
    let ended = catch_unwind(AssertUnwindSafe(|| act(of)));
    if ended.is_err() {
        let message = PANIC.with(|cell| cell.borrow_mut().take());
        world(of).fail("panic", message.unwrap_or_else(|| "see above".into()));
    }
    ended.ok()
}

/// Runs a range of seeds on all processors, every hundredth twice; gives each outcome to `seen`, as they come.
/// Returns how many failed.
pub fn run_seeds(seeds: impl Iterator<Item = u64> + Send, mut seen: impl FnMut(&Outcome)) -> u64 {
    let mut failed = 0;
    run_tasks(seeds, run_checked, |outcome| {
        seen(&outcome);
        failed += u64::from(outcome.violation.is_some());
    });
    failed
}

/// Does `task` for each item on all processors; gives each result to `seen`, as they come.
fn run_tasks<I: Send, R: Send>(
    items: impl Iterator<Item = I> + Send,
    task: impl Fn(I) -> R + Sync,
    seen: impl FnMut(R),
) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let items = Mutex::new(items);
    let (results, outcomes) = mpsc::sync_channel(threads);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (items, results, task) = (&items, results.clone(), &task);
            scope.spawn(move || {
                while let Some(item) = next_of(items) {
                    if results.send(task(item)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(results);
        outcomes.iter().for_each(seen);
    });
}

fn next_of<I>(items: &Mutex<impl Iterator<Item = I>>) -> Option<I> {
    items.lock().unwrap_or_else(PoisonError::into_inner).next()
}

/// Every hundredth seed has to give the same history twice.
fn run_checked(seed: u64) -> Outcome {
    let mut outcome = run(seed, false);
    if seed.is_multiple_of(100) && outcome.violation.is_none() {
        let again = run(seed, false);
        if again.trace != outcome.trace {
            let what = format!("two runs differ: {:x} and {:x}", outcome.trace, again.trace);
            outcome.violation = Some(Violation { check: "determinism", at_ns: 0, what });
        }
    }
    outcome
}
