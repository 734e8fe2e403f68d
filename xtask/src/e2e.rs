//! The end-to-end tests, two at a time: each test is a process of its own, whatever file it is in, and its time is
//! printed.
//!
//! Cargo runs one file of tests after the other, so that one processor waits for the longest test of each. Two and not
//! more: each test runs several daemons, and their timers must not starve. A test that fails stops no other one.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::shell::{PROFILE, Run, cargo};

const AT_ONCE: usize = 2;
/// Files that have the longest tests: begun first, they are not what everything else waits for at the end.
const LONG: &[&str] = &["cut", "verbs", "databases", "power", "torture", "kill"];
const SLOWEST_SHOWN: usize = 15;

/// One test of one file.
struct Test {
    file: String,
    executable: PathBuf,
    name: String,
}

/// What became of it.
struct Outcome {
    title: String,
    took: Duration,
    passed: bool,
}

/// Runs all of them; `prepare` completes the command line of each.
pub(crate) fn run(prepare: impl Fn(Run) -> Run + Sync) -> Result<()> {
    let waiting = Mutex::new(list()?);
    let count = waiting.lock().expect("nobody else has it").len();
    println!("{count} tests, {AT_ONCE} at a time");
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(test) = next(&waiting) {
                    let outcome = run_one(&test, &prepare);
                    done.lock().expect("no worker panics with it").push(outcome);
                }
            });
        }
    });
    let done = done.into_inner().expect("no worker panicked with it");
    ensure!(done.len() == count, "{} of {count} tests were run", done.len());
    summary(done)
}

fn next(waiting: &Mutex<VecDeque<Test>>) -> Option<Test> {
    waiting.lock().expect("no worker panics with it").pop_front()
}

fn run_one(test: &Test, prepare: &impl Fn(Run) -> Run) -> Outcome {
    let title = format!("{}::{}", test.file, test.name);
    let start = Instant::now();
    let ran = prepare(Run::new(&test.executable)).args(["--exact", &test.name]).captured();
    let took = start.elapsed();
    let (passed, text) = ran.unwrap_or_else(|error| (false, format!("{error:#}")));
    let verdict = if passed { "ok" } else { "FAILED" };
    println!("{:>7.1} s  {verdict:<6}  {title}", took.as_secs_f64());
    if !passed {
        println!("---- {title}\n{text}\n----");
    }
    Outcome { title, took, passed }
}

fn summary(mut done: Vec<Outcome>) -> Result<()> {
    done.sort_by_key(|outcome| std::cmp::Reverse(outcome.took));
    let total: Duration = done.iter().map(|outcome| outcome.took).sum();
    println!("\n{:.0} s in all; the longest:", total.as_secs_f64());
    for outcome in done.iter().take(SLOWEST_SHOWN) {
        println!("{:>7.1} s  {}", outcome.took.as_secs_f64(), outcome.title);
    }
    let failed: Vec<&str> = done.iter().filter(|outcome| !outcome.passed).map(|o| o.title.as_str()).collect();
    ensure!(failed.is_empty(), "{} of {} tests failed: {}", failed.len(), done.len(), failed.join(", "));
    Ok(())
}

/// Builds the tests; those of the long files first.
fn list() -> Result<VecDeque<Test>> {
    let command = ["test", "--profile", PROFILE, "--package", "lockstep-e2e", "--no-run"];
    let report = cargo().args(command).args(["--message-format", "json-render-diagnostics"]).stdout()?;
    let mut tests = Vec::new();
    for (file, executable) in executables(&report) {
        let names = Run::new(&executable).args(["--list", "--format", "terse"]).stdout()?;
        let names = names.lines().filter_map(|line| line.strip_suffix(": test"));
        tests.extend(names.map(|name| Test {
            file: file.clone(),
            executable: executable.clone(),
            name: name.to_string(),
        }));
    }
    ensure!(!tests.is_empty(), "cargo named no end-to-end test");
    tests.sort_by_key(|test| !LONG.contains(&test.file.as_str()));
    for file in LONG {
        tests.iter().find(|test| test.file == *file).with_context(|| format!("no tests in {file}.rs"))?;
    }
    Ok(tests.into())
}

/// Names and paths of the test executables in cargo's report.
pub(crate) fn executables(report: &str) -> Vec<(String, PathBuf)> {
    let messages = report.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let tests = messages.filter(|message| message["profile"]["test"] == true);
    let executable = |message: Value| {
        let path = message["executable"].as_str().map(Path::new)?;
        Some((message["target"]["name"].as_str()?.to_string(), path.to_path_buf()))
    };
    tests.filter_map(executable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn test_executables_are_read_from_the_report() {
        let artifact = |name: &str, is_test: bool, executable: Option<&str>| {
            let target = json!({ "name": name });
            json!({ "target": target, "profile": { "test": is_test }, "executable": executable }).to_string()
        };
        let lines = [
            artifact("cut", true, Some("/t/cut-1")),
            artifact("bench", false, Some("/t/bench")),
            artifact("lib", true, None),
            json!({ "reason": "build-finished", "success": true }).to_string(),
        ];
        let report = lines.join("\n");
        assert_eq!(executables(&report), [("cut".to_string(), PathBuf::from("/t/cut-1"))]);
    }

    #[test]
    fn one_failed_test_is_named() {
        let outcome =
            |title: &str, passed| Outcome { title: title.to_string(), took: Duration::ZERO, passed };
        assert!(summary(vec![outcome("a", true)]).is_ok());
        let error = summary(vec![outcome("a", true), outcome("b", false)]).unwrap_err().to_string();
        assert_eq!(error, "1 of 2 tests failed: b");
    }
}
