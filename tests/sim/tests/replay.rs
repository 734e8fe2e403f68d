//! A recorded run and its replay are one run.

use lockstep_sim::{Scenario, catch_panics, replay, run};

#[test]
fn a_recorded_run_is_the_same_run_again() {
    catch_panics();
    let differ: Vec<String> = (0..50)
        .filter_map(|seed| {
            let first = run(seed, false);
            let text = first.scenario.show();
            let scenario = Scenario::parse(&text).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
            let again = replay(&scenario, false, u64::MAX);
            let same = first.trace == again.trace && text == again.scenario.show();
            (!same).then(|| format!("seed {seed}: {:016x} and {:016x}", first.trace, again.trace))
        })
        .collect();
    let _ = std::panic::take_hook();
    assert!(differ.is_empty(), "{differ:#?}");
}
