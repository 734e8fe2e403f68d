//! A random walk through everything that can happen to a pair, under load, by a seed: cables, those to the clients'
//! host too, and packets, frozen and killed daemons, disks that fail, fill up, hang and crawl, and operators who move,
//! part, rejoin, invalidate and pause.
//!
//! The walk is a row of episodes. An episode is some steps drawn from the seed and its number, so that a printed seed
//! repeats it (but for the moments at which things happen); then everything is mended, and the pair must come to
//! rest: both copies UpToDate and mirrored, equal byte for byte, every acknowledged write in them, no daemon ended, no
//! panic and no error in the logs that nothing caused, no split brain that nobody made. `LOCKSTEP_TORTURE_MINUTES`
//! says for how long.
//!
//! The operator of the walk is honest: a promotion is forced only with the flag that the refusal names, and only while
//! the other daemon is dead. So nothing may be lost. One kind of episode is dishonest: it makes a split brain, and
//! resolves it.

#[path = "torture/walk.rs"]
mod walk;

use lockstep_e2e::seed;
use std::time::{Duration, Instant};
use walk::Walk;

/// Minutes without `LOCKSTEP_TORTURE_MINUTES`.
const MINUTES: f64 = 0.6;

#[test]
fn a_walk_through_every_fault_loses_nothing() {
    let number = seed("torture");
    let minutes = std::env::var("LOCKSTEP_TORTURE_MINUTES")
        .map_or(MINUTES, |text| text.parse().expect("LOCKSTEP_TORTURE_MINUTES is a number"));
    let end = Instant::now() + Duration::from_secs_f64(minutes * 60.0);
    let mut walk = Walk::new(number);
    let mut episodes = 0;
    while episodes == 0 || Instant::now() < end {
        walk.episode(number.wrapping_add(episodes));
        episodes += 1;
    }
    println!("{episodes} episodes, {} steps", walk.steps());
}
