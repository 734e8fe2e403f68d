//! Fixed seeds of the simulator: `LOCKSTEP_SIM_SEEDS` says how many (200 unless told otherwise).

use lockstep_sim::{catch_panics, run_seeds};

#[test]
fn no_seed_breaks_a_promise() {
    let count = std::env::var("LOCKSTEP_SIM_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
    let mut found = Vec::new();
    catch_panics();
    run_seeds(0..count, |outcome| {
        if let Some(v) = &outcome.violation {
            found.push(format!("seed {}: {} at {} ns: {}", outcome.seed, v.check, v.at_ns, v.what));
        }
    });
    // The hook of `catch_panics` keeps messages to itself.
    let _ = std::panic::take_hook();
    assert!(found.is_empty(), "{} of {count} seeds failed:\n{}", found.len(), found.join("\n"));
}
