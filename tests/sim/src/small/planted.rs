//! Planted bugs that the small scope has to find: a proof that it can.

use super::play_all;
use lockstep_bitmap::canary::{Bug, plant};
use std::time::Instant;

/// Those that show within two blocks, three writes and one crash.
const BUGS: &[Bug] = &[Bug::AckBeforePeer, Bug::SkipActivityMark, Bug::ForgetWhatPeerLacks];

/// Plants one bug after the other, plays until one state breaks a promise, and prints which. Gives the number of those
/// that none did.
pub fn canary() -> u64 {
    let mut missed = 0;
    for &bug in BUGS {
        let began = Instant::now();
        plant(Some(bug));
        let report = play_all("", 1);
        plant(None);
        let first = report.violations.first().map_or("NOT FOUND", String::as_str);
        missed += u64::from(report.violations.is_empty());
        println!("{bug:?}: {} states, {:.1} s: {first}", report.states, began.elapsed().as_secs_f64());
    }
    println!("{} of {} found in the small scope", BUGS.len() as u64 - missed, BUGS.len());
    missed
}
