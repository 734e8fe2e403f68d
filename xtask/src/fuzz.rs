//! `fuzz`: every target of `tests/fuzz` under libFuzzer, for some seconds each.
//!
//! It builds for itself, beside the other builds, and begins with the corpus that is kept. What it finds worth keeping
//! goes into a folder below the build, never into the source tree. An input that fails is an error that names its file.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::shell::{self, Run, cargo};

const FOLDER: &str = "tests/fuzz/targets";
const CORPUS: &str = "tests/fuzz/corpus";
const SECONDS: &str = "60";
/// Of a run that failed.
const LINES_SHOWN: usize = 40;

/// Runs the named targets; all when none is named.
pub(crate) fn fuzz(names: &[&str]) -> Result<()> {
    install()?;
    let known = fuzzer("list").stdout()?;
    let known: Vec<&str> = known.lines().map(str::trim).filter(|name| !name.is_empty()).collect();
    let unknown: Vec<&str> = names.iter().filter(|name| !known.contains(name)).copied().collect();
    ensure!(unknown.is_empty(), "no target {}; there are: {}", unknown.join(", "), known.join(", "));
    fuzzer("build").args(["--sanitizer", "none"]).status()?;
    let seconds = std::env::var("LOCKSTEP_FUZZ_SECONDS").unwrap_or_else(|_| SECONDS.to_string());
    let mut failed = Vec::new();
    for name in known.into_iter().filter(|name| names.is_empty() || names.contains(name)) {
        let (passed, text) = run(name, &seconds)?;
        println!("{name:<18} {}", summary(&text)?);
        if !passed {
            let lines: Vec<&str> = text.lines().collect();
            println!("{}", lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n"));
            failed.push(name);
        }
    }
    ensure!(failed.is_empty(), "failing inputs are in {FOLDER}/artifacts: {}", failed.join(", "));
    Ok(())
}

fn run(name: &str, seconds: &str) -> Result<(bool, String)> {
    let found = build_dir().join("corpus").join(name);
    std::fs::create_dir_all(&found).with_context(|| format!("create {}", found.display()))?;
    let kept = shell::root().join(CORPUS).join(name);
    let command = fuzzer("run").args(["--sanitizer", "none", name]).args([found, kept]);
    command
        .args(["--", "-print_final_stats=1", "-timeout=20"])
        .args([format!("-max_total_time={seconds}")])
        .captured()
}

/// Executions and coverage, from what libFuzzer prints.
fn summary(text: &str) -> Result<String> {
    let after = |mark: &str| {
        let (_, rest) = text.rsplit_once(mark)?;
        rest.split_whitespace().next().map(str::to_string)
    };
    let executions = after("stat::number_of_executed_units:");
    let executions = executions.with_context(|| format!("no statistics in:\n{text}"))?;
    let edges = after(" cov: ").unwrap_or_else(|| "?".to_string());
    Ok(format!("{executions:>12} executions, {edges:>5} edges"))
}

fn build_dir() -> PathBuf {
    shell::target_dir().join("fuzz")
}

fn fuzzer(verb: &str) -> Run {
    cargo().args(["fuzz", verb, "--fuzz-dir", FOLDER]).env("CARGO_TARGET_DIR", build_dir())
}

fn install() -> Result<()> {
    if cargo().args(["fuzz", "--version"]).stdout().is_err() {
        println!("fuzz: cargo fuzz is missing");
        cargo().args(["install", "--locked", "cargo-fuzz"]).status().context("install cargo-fuzz")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executions_and_edges_are_read_from_the_report() {
        let text = "#2 INITED cov: 3 ft: 4\n#9 DONE   cov: 12 ft: 70\nstat::number_of_executed_units: 900\n";
        assert_eq!(
            summary(text).unwrap().split_whitespace().collect::<Vec<_>>().join(" "),
            "900 executions, 12 edges"
        );
        assert!(summary("error: no such target").is_err());
    }
}
