//! `count`: instructions of the data path against a stored baseline, so that code that becomes slower is seen where
//! clocks are too noisy to tell.
//!
//! callgrind runs each workload of `tests/count`, and collects inside of `measure` only. A workload that takes more
//! than 5 % above `tests/count/baseline.json` fails, and so does one that has no baseline. `--update` writes the
//! baseline anew. Allocations are the program's own matter: it fails where there are more than there may be.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::shell::{self, Run, cargo};

const BASELINE: &str = "tests/count/baseline.json";
/// What callgrind collects in. The compiler makes one of it for each use.
const COLLECTED: &str = "lockstep_counting::measure*";
const PERCENT_MAX: u64 = 5;

/// What was counted of one workload.
#[derive(Clone, Debug)]
struct Counted {
    name: String,
    /// Each time.
    instructions: u64,
    /// Each time.
    allocations: f64,
}

#[derive(Debug, PartialEq, Eq)]
struct Baseline {
    rustc: String,
    instructions: BTreeMap<String, u64>,
}

/// Counts, and compares or writes the baseline.
pub(crate) fn count(update: bool) -> Result<()> {
    let rustc = Run::new("rustc").args(["--version"]).stdout()?.trim().to_string();
    let counted = counted()?;
    let path = shell::root().join(BASELINE);
    if update {
        let text = written(&rustc, &counted)?;
        fs::write(&path, text).with_context(|| format!("write {BASELINE}"))?;
    }
    let text = fs::read_to_string(&path).with_context(|| format!("read {BASELINE}"))?;
    let baseline = read(&text).with_context(|| format!("read {BASELINE}"))?;
    println!("{}", table(&baseline, &counted));
    if baseline.rustc != rustc {
        println!("The baseline is {}'s, this is {rustc}: a change may be the compiler's.", baseline.rustc);
    }
    let Verdict { worse, better } = judge(&baseline, &counted);
    if !better.is_empty() {
        println!("Fewer than before; keep it by `cargo xtask count --update`: {}", better.join(", "));
    }
    ensure!(
        worse.is_empty(),
        "more than {PERCENT_MAX} % above the baseline: {}\nWhere: callgrind_annotate {}\nIf it is worth that: \
         cargo xtask count --update",
        worse.join(", "),
        report_path("WORKLOAD").display()
    );
    Ok(())
}

fn report_path(workload: &str) -> PathBuf {
    shell::target_dir().join("count").join(format!("{workload}.out"))
}

/// Every workload, all at once: what one does is the same beside others.
fn counted() -> Result<Vec<Counted>> {
    cargo().args(["build", "--release", "--package", "lockstep-count"]).status()?;
    let program = shell::target_dir().join("release/lockstep-count");
    let list = Run::new(&program).args(["list"]).stdout()?;
    let folder = shell::target_dir().join("count");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    std::thread::scope(|scope| {
        let start = |line| {
            let program = &program;
            scope.spawn(move || count_one(program, line))
        };
        let running: Vec<_> = list.lines().map(start).collect();
        running.into_iter().map(|one| one.join().expect("it returns its errors")).collect()
    })
}

/// One workload; `line` is its name and how often it is done.
fn count_one(program: &Path, line: &str) -> Result<Counted> {
    let (name, times) = line.split_once(' ').with_context(|| format!("a workload: `{line}`"))?;
    let times: u64 = times.parse().with_context(|| format!("a workload: `{line}`"))?;
    let report = report_path(name);
    let allocations = Run::new("valgrind")
        .args(["--quiet", "--tool=callgrind"])
        .args([format!("--toggle-collect={COLLECTED}")])
        .args([format!("--callgrind-out-file={}", report.display())])
        .args([program.as_os_str(), name.as_ref()])
        .stdout()?;
    let allocations: u64 = allocations.trim().parse().with_context(|| format!("allocations of {name}"))?;
    let text = fs::read_to_string(&report).with_context(|| format!("read {}", report.display()))?;
    let total = total(&text).with_context(|| format!("no total in {}", report.display()))?;
    ensure!(total > 0, "{name}: nothing was collected; is `{COLLECTED}` still there?");
    let instructions = (total + times / 2) / times;
    Ok(Counted { name: name.to_string(), instructions, allocations: allocations as f64 / times as f64 })
}

/// The sum of callgrind's report.
fn total(report: &str) -> Option<u64> {
    let line = report.lines().find_map(|line| line.strip_prefix("totals: "))?;
    line.trim().parse().ok()
}

fn written(rustc: &str, counted: &[Counted]) -> Result<String> {
    let instructions: BTreeMap<&str, u64> =
        counted.iter().map(|one| (one.name.as_str(), one.instructions)).collect();
    let value = json!({ "rustc": rustc, "instructions": instructions });
    Ok(serde_json::to_string_pretty(&value)? + "\n")
}

fn read(text: &str) -> Result<Baseline> {
    let value: Value = serde_json::from_str(text)?;
    let rustc = value["rustc"].as_str().context("no `rustc`")?.to_string();
    let Some(entries) = value["instructions"].as_object() else { bail!("no `instructions`") };
    let entry = |(name, count): (&String, &Value)| Some((name.clone(), count.as_u64().filter(|n| *n > 0)?));
    let instructions = entries.iter().map(entry).collect::<Option<_>>().context("a count is no number")?;
    Ok(Baseline { rustc, instructions })
}

fn table(baseline: &Baseline, counted: &[Counted]) -> String {
    let heads = ["workload", "baseline", "now", "change", "allocations"];
    let row = |[a, b, c, d, e]: [&str; 5]| format!("{a:<18} {b:>10} {c:>10} {d:>9} {e:>12}");
    let mut lines = vec![row(heads)];
    for one in counted {
        let before = baseline.instructions.get(&one.name);
        let change = before.map(|before| (one.instructions as f64 / *before as f64 - 1.0) * 100.0);
        lines.push(row([
            &one.name,
            &before.map_or("-".to_string(), u64::to_string),
            &one.instructions.to_string(),
            &change.map_or("-".to_string(), |change| format!("{change:+.2} %")),
            &format!("{:.1}", one.allocations),
        ]));
    }
    lines.join("\n")
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Verdict {
    worse: Vec<String>,
    better: Vec<String>,
}

fn judge(baseline: &Baseline, counted: &[Counted]) -> Verdict {
    let mut verdict = Verdict::default();
    for Counted { name, instructions, .. } in counted {
        match baseline.instructions.get(name) {
            None => verdict.worse.push(format!("{name} (has none)")),
            Some(before) if instructions * 100 > before * (100 + PERCENT_MAX) => {
                verdict.worse.push(name.clone())
            }
            Some(before) if instructions * 100 < before * (100 - PERCENT_MAX) => {
                verdict.better.push(name.clone())
            }
            Some(_) => {}
        }
    }
    // A workload that is gone guards nothing any more.
    let gone = baseline.instructions.keys().filter(|name| counted.iter().all(|one| one.name != **name));
    verdict.worse.extend(gone.map(|name| format!("{name} (is gone)")));
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(name: &str, instructions: u64) -> Counted {
        Counted { name: name.to_string(), instructions, allocations: 0.0 }
    }

    #[test]
    fn more_than_five_percent_above_fails_and_below_is_told() {
        let names = ["equal", "limit", "above", "low", "below", "gone"];
        let instructions = names.map(|name| (name.to_string(), 1000)).into();
        let baseline = Baseline { rustc: "r".to_string(), instructions };
        let now =
            [("equal", 1000), ("limit", 1050), ("above", 1051), ("low", 950), ("below", 949), ("new", 1)];
        let verdict = judge(&baseline, &now.map(|(name, count)| counted(name, count)));
        assert_eq!(verdict.worse, ["above", "new (has none)", "gone (is gone)"]);
        assert_eq!(verdict.better, ["below"]);
    }

    #[test]
    fn a_baseline_is_read_as_it_was_written() {
        let baseline = read(&written("rustc 1", &[counted("b", 7), counted("a", 5)]).unwrap()).unwrap();
        let instructions = [("a".to_string(), 5), ("b".to_string(), 7)].into();
        assert_eq!(baseline, Baseline { rustc: "rustc 1".to_string(), instructions });
        for bad in ["{}", r#"{"rustc": "r"}"#, r#"{"rustc": "r", "instructions": {"a": 0}}"#] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_total_is_found_in_the_report() {
        assert_eq!(total("events: Ir\nsummary: 12\n\nfn=(1)\n1 2\n\ntotals: 12\n"), Some(12));
        assert_eq!(total("events: Ir\n"), None);
    }
}
