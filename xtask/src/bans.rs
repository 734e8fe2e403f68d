//! `bans`: the pure crates stay pure.
//!
//! A pure crate has no clock, socket, thread or random state. Three checks: its `lib.rs` says `no_std` and
//! forbids unsafe code; nothing in its dependency tree talks to an operating system, and crates depend in
//! one direction only; and, where a target without std is installed, it builds for that target.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::shell::{self, Run};

struct Pure {
    name: &'static str,
    lib: &'static str,
    /// Crates of this workspace that it may use.
    workspace: &'static [&'static str],
}

const PURE: &[Pure] = &[
    Pure { name: "lockstep-bitmap", lib: "bitmap/src/lib.rs", workspace: &[] },
    Pure { name: "lockstep-core", lib: "replicator/core/src/lib.rs", workspace: &["lockstep-bitmap"] },
    Pure { name: "lockstep-nbd", lib: "nbd-server/src/lib.rs", workspace: &[] },
];

/// Crates that need an operating system, or that decide by chance or by the clock.
const BANNED: &[&str] = &[
    "anyhow",
    "async-std",
    "chrono",
    "crossbeam",
    "crossbeam-channel",
    "fastrand",
    "getrandom",
    "io-uring",
    "libc",
    "linux-raw-sys",
    "mio",
    "nix",
    "parking_lot",
    "polling",
    "rand",
    "rand_core",
    "rayon",
    "rustix",
    "smol",
    "socket2",
    "tempfile",
    "time",
    "tokio",
    "tokio-uring",
    "tracing-subscriber",
    "uuid",
];

const REQUIRED: &[&str] = &["#![no_std]", "#![forbid(unsafe_code)]"];

const TARGET_WITHOUT_STD: &str = "x86_64-unknown-none";

/// Checks every pure crate, and that the simulator sees only pure crates of this workspace.
pub(crate) fn bans() -> Result<()> {
    let mut problems = Vec::new();
    for pure in PURE {
        let lib = fs::read_to_string(shell::root().join(pure.lib)).with_context(|| pure.lib.to_string())?;
        problems.extend(missing_attributes(pure.lib, &lib));
        problems.extend(forbidden(pure.name, &tree(pure.name)?, pure.workspace, BANNED));
    }
    let pure_names: Vec<&str> = PURE.iter().map(|pure| pure.name).collect();
    problems.extend(forbidden("lockstep-sim", &tree("lockstep-sim")?, &pure_names, &[]));
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    build_without_std()?;
    println!("bans: {} hold no banned dependency", pure_names.join(", "));
    Ok(())
}

fn tree(package: &str) -> Result<String> {
    shell::cargo()
        .args(["tree", "--edges", "normal", "--prefix", "none", "--format", "{p}", "--package", package])
        .stdout()
}

fn missing_attributes(path: &str, lib: &str) -> Vec<String> {
    let missing = REQUIRED.iter().filter(|wanted| !lib.lines().any(|line| line.trim() == **wanted));
    missing.map(|wanted| format!("{path}: {wanted} is missing")).collect()
}

/// What `tree` (one `name version` a line, the package itself among them) holds and must not.
fn forbidden(package: &str, tree: &str, workspace: &[&str], banned: &[&str]) -> Vec<String> {
    let mut found: Vec<&str> = tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
    found.sort_unstable();
    found.dedup();
    let is_foreign =
        |name: &str| name.starts_with("lockstep") && name != package && !workspace.contains(&name);
    found.retain(|name| banned.contains(name) || is_foreign(name));
    found.iter().map(|name| format!("{package}: depends on {name}, which a pure crate must not")).collect()
}

fn build_without_std() -> Result<()> {
    let libraries = Run::new("rustc")
        .args(["--print", "target-libdir", "--target", TARGET_WITHOUT_STD])
        .stdout_even_if_failed()?;
    if !Path::new(libraries.trim()).is_dir() {
        println!("bans: {TARGET_WITHOUT_STD} is not installed; its build is left out");
        return Ok(());
    }
    let packages = PURE.iter().flat_map(|pure| ["--package", pure.name]);
    shell::cargo().args(["check", "--target", TARGET_WITHOUT_STD]).args(packages).status()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_banned_or_foreign_crate_is_named() {
        let tree = "lockstep-core v0.1.0 (/p)\nlockstep-bitmap v0.1.0 (/p)\nbitvec v1.0.1\nlibc v0.2.1\n";
        let problems = forbidden("lockstep-core", tree, &["lockstep-bitmap"], BANNED);
        assert_eq!(problems.len(), 1);
        assert!(problems[0].contains("libc"), "{problems:?}");
        let problems = forbidden("lockstep-core", tree, &[], &[]);
        assert_eq!(problems.len(), 1);
        assert!(problems[0].contains("lockstep-bitmap"), "{problems:?}");
    }

    #[test]
    fn attributes_must_stand_on_a_line_of_their_own() {
        assert_eq!(missing_attributes("lib.rs", "//! Doc.\n#![no_std]\n#![forbid(unsafe_code)]\n").len(), 0);
        assert_eq!(missing_attributes("lib.rs", "//! #![no_std]\n#![forbid(unsafe_code)]\n").len(), 1);
    }
}
