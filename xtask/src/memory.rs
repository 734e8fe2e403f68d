//! `memory`: what the compiler does not check of memory, looked at while the tests run.
//!
//! `sanitized`: the daemon with the address sanitizer, under end-to-end tests that reach all of its unsafe code: the
//! ring, slots, foreign clients, processes killed in the middle. What the sanitizer says of a daemon stands in a file
//! of its own, since a test may expect that a daemon dies. `valgrind`: the tests of the pure crates and of the code
//! that they depend on, where reading what was never written is found too.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::e2e;
use crate::shell::{self, PROFILE, Run, cargo};

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Files of end-to-end tests that run against the sanitized daemon.
const SANITIZED: &[&str] = &["clients", "kill"];
const PURE: &[&str] = &["lockstep-bitmap", "lockstep-core", "lockstep-nbd"];
/// Tests that walk through all of something: hours at a thirtieth of the speed, over code that others reach too.
const EXHAUSTIVE: &[&str] = &[
    "a_page_lost_overwritten_misplaced_or_unreadable",
    "every_promise_holds_for_all_pairs",
    "every_single_bit_of_every_page_is_covered_by_its_checksum",
    "every_tear_of_every_write",
    "flipped_bits_at_every_step_of_a_life",
    "one_flipped_bit_in_any_byte",
];
const REPORT_LINES_SHOWN: usize = 60;

/// End-to-end tests against a daemon that is built with the address sanitizer.
pub(crate) fn sanitized() -> Result<()> {
    let folder = shell::target_dir().join("asan");
    cargo()
        .args(["build", "--profile", PROFILE, "--target", TARGET, "--package", "lockstep"])
        .env("CARGO_TARGET_DIR", &folder)
        // The sanitizer is there in every compiler, the flag in none that is called stable.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", "-Zsanitizer=address")
        .status()?;
    let reports = folder.join("reports");
    if reports.exists() {
        fs::remove_dir_all(&reports).with_context(|| format!("empty {}", reports.display()))?;
    }
    fs::create_dir_all(&reports).with_context(|| format!("create {}", reports.display()))?;
    let options = format!("log_path={}:detect_leaks=0", reports.join("report").display());
    let tests = SANITIZED.iter().flat_map(|file| ["--test", file]);
    let ran = cargo()
        .args(["test", "--profile", PROFILE, "--package", "lockstep-e2e"])
        .args(tests)
        .env("LOCKSTEP_BIN", folder.join(TARGET).join(PROFILE).join("lockstep"))
        .env("ASAN_OPTIONS", options)
        .env_default("LOCKSTEP_ROUNDS_KILL", "2")
        .status();
    show(&reports)?;
    ran
}

/// Fails if there is a report, and shows its beginning.
fn show(reports: &Path) -> Result<()> {
    let mut count = 0;
    for entry in fs::read_dir(reports).with_context(|| format!("list {}", reports.display()))? {
        let path = entry?.path();
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        println!("---- {}", path.display());
        text.lines().take(REPORT_LINES_SHOWN).for_each(|line| println!("{line}"));
        count += 1;
    }
    ensure!(count == 0, "the address sanitizer wrote {count} reports into {}", reports.display());
    Ok(())
}

/// Tests of the pure crates under valgrind.
pub(crate) fn valgrind() -> Result<()> {
    let packages = PURE.iter().flat_map(|name| ["--package", name]);
    let report = cargo()
        .args(["test", "--profile", PROFILE, "--no-run", "--message-format", "json-render-diagnostics"])
        .args(packages)
        .stdout()?;
    let executables = e2e::executables(&report);
    ensure!(executables.len() >= PURE.len(), "cargo named {} test programs", executables.len());
    for (name, path) in executables {
        println!("valgrind: {name}");
        Run::new("valgrind")
            .args(["--quiet", "--error-exitcode=9", "--leak-check=full", "--show-leak-kinds=definite"])
            .args(["--errors-for-leak-kinds=definite"])
            .args([path])
            .args(["--quiet", "--test-threads=1"])
            .args(EXHAUSTIVE.iter().flat_map(|name| ["--skip", name]))
            .env("PROPTEST_CASES", "16")
            .status()?;
    }
    Ok(())
}
