//! Scenarios that are kept: each found a defect once, or finds a planted bug, and runs for ever.
//!
//! One that would not fail if its defect came back is worth nothing, so each names the planted bug under which it
//! fails; `lockstep-sim canary` sees to that, and `cargo test` to it that it passes otherwise.

use crate::Scenario;
use std::path::PathBuf;

/// A kept scenario is run with so many draws of latencies and damage.
pub const ENVIRONMENTS: usize = 8;

/// All of them with the names of their files. Says which cannot be read, or lacks its comment or its bug.
pub fn kept() -> Result<Vec<(String, Scenario)>, String> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let entries = std::fs::read_dir(&folder).map_err(|why| format!("{}: {why}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "scn"));
    files.into_iter().map(read).collect()
}

fn read(file: PathBuf) -> Result<(String, Scenario), String> {
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let text = std::fs::read_to_string(&file).map_err(|why| format!("{name}: {why}"))?;
    let scenario = Scenario::parse(&text).map_err(|why| format!("{name}: {why}"))?;
    match scenario {
        Scenario { canary: None, .. } => Err(format!("{name}: a line `canary = NAME` is missing")),
        Scenario { ref comment, .. } if comment.is_empty() => {
            Err(format!("{name}: a comment that says what it found is missing"))
        }
        scenario => Ok((name, scenario)),
    }
}

/// It is the planted bug that a scenario fails for, and nothing that has been made of it since.
#[cfg(feature = "canary")]
pub(crate) fn passes_without_its_bug(scenario: &Scenario) -> bool {
    let Some(bug) = scenario.canary() else { return true };
    lockstep_bitmap::canary::plant(None);
    let passes = crate::replay(scenario, false, u64::MAX).violation.is_none();
    passes & crate::canary::plant_named(bug).is_ok()
}

/// No bug is planted in this build.
#[cfg(not(feature = "canary"))]
pub(crate) fn passes_without_its_bug(_scenario: &Scenario) -> bool {
    true
}

/// Runs each under its bug and says which find nothing. Returns how many.
#[cfg(feature = "canary")]
pub(crate) fn missed() -> Result<u64, String> {
    let all = kept()?;
    let mut missed = 0;
    for (name, scenario) in &all {
        crate::canary::plant_named(scenario.canary().unwrap_or_default())?;
        // A change elsewhere may draw another latency; the decisions must still be those that matter.
        let fails = |scenario: Scenario| crate::replay(&scenario, false, u64::MAX).violation.is_some();
        let found = scenario.environments().take(ENVIRONMENTS).any(fails);
        lockstep_bitmap::canary::plant(None);
        if !found {
            missed += 1;
            println!("{name} finds nothing any more with {} planted", scenario.canary().unwrap_or_default());
        }
    }
    println!("{} of {} kept scenarios find their bug", all.len() as u64 - missed, all.len());
    Ok(missed)
}
