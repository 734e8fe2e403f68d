//! The first seeds of the simulator, and some that found a defect, for `cargo test`; the runner's simulator stage goes
//! through many more.

use lockstep_sim::{catch_panics, run_seeds};

const SEEDS: u64 = 100;

/// Each of them fails again when its defect is put back, as long as the simulator draws what it drew then.
const FOUND: [(u64, &str); 11] = [
    (564, "a failing copy took the link on which it served for one on which it is served"),
    (1880, "the same, for a write that had failed"),
    (2834, "a read that ended after its disk had failed was answered with what the disk gave"),
    (1182, "an equal digest was trusted where a write had failed at the source only"),
    (9_000_347, "two superblocks with one number, both of writes that failed, made the metadata unreadable"),
    (9_003_037, "a Secondary that gave up its disk stood behind a copy that had lost more"),
    (13_002_028, "Durable overtook WriteFailed, and the write was never answered"),
    (13_001_565, "a failure that nobody could record was forgotten by its own process"),
    (24_001_780, "a node whose disk failed while it left was gone before its last writes had ended"),
    (20_001_729, "a write that only a leaving copy had on its disk was acknowledged"),
    (13_000_806, "a target was promoted that had a write which had failed at its source"),
];

#[test]
fn no_seed_breaks_a_promise() {
    let mut found = Vec::new();
    catch_panics();
    run_seeds((0..SEEDS).chain(FOUND.map(|(seed, _)| seed)), |outcome| {
        if let Some(v) = &outcome.violation {
            found.push(format!("seed {}: {} at {} ns: {}", outcome.seed, v.check, v.at_ns, v.what));
        }
    });
    // The hook of `catch_panics` keeps messages to itself.
    let _ = std::panic::take_hook();
    assert!(found.is_empty(), "{} seeds failed:\n{}", found.len(), found.join("\n"));
}
