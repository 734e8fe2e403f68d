//! The first seeds of the simulator, for `cargo test`; the runner's simulator stage goes through many more. What found
//! a defect is kept as a scenario, see `scenarios.rs`.

use lockstep_sim::{catch_panics, run_seeds};

const SEEDS: u64 = 100;

#[test]
fn no_seed_breaks_a_promise() {
    let mut found = Vec::new();
    catch_panics();
    run_seeds(0..SEEDS, |outcome| {
        if let Some(v) = &outcome.violation {
            found.push(format!("seed {}: {} at {} ns: {}", outcome.seed, v.check, v.at_ns, v.what));
        }
    });
    // The hook of `catch_panics` keeps messages to itself.
    let _ = std::panic::take_hook();
    assert!(found.is_empty(), "{} seeds failed:\n{}", found.len(), found.join("\n"));
}
