//! A part of the exhaustive small scope for `cargo test`; the runner's stage plays all of it.

use lockstep_sim::{catch_panics, small};

#[test]
fn every_crash_around_a_flush_keeps_every_promise() {
    catch_panics();
    let report = small::run("flush/alike");
    // The hook of `catch_panics` keeps messages to itself.
    let _ = std::panic::take_hook();
    assert!(report.violations.is_empty(), "{}", report.violations.join("\n"));
    assert_eq!(report.cut_short, 0);
    assert!(report.steps > 40 && report.states > 2000, "{report:?}");
}
