//! The kept scenarios break no promise. That each would if its defect came back, `lockstep-sim canary` shows.

use lockstep_sim::{ENVIRONMENTS, catch_panics, kept, replay};

#[test]
fn no_kept_scenario_breaks_a_promise() {
    let scenarios = kept().unwrap();
    catch_panics();
    let mut found = Vec::new();
    for (name, scenario) in &scenarios {
        for environment in scenario.environments().take(ENVIRONMENTS) {
            let outcome = replay(&environment, false, u64::MAX);
            if let Some(v) = outcome.violation {
                found.push(format!(
                    "{name}, seed {}: {} at {} ns: {}",
                    outcome.seed, v.check, v.at_ns, v.what
                ));
            }
        }
    }
    // The hook of `catch_panics` keeps messages to itself.
    let _ = std::panic::take_hook();
    assert!(!scenarios.is_empty());
    assert!(found.is_empty(), "{} scenarios failed:\n{}", found.len(), found.join("\n"));
}
