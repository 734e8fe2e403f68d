//! What the documents cite of the code exists: part of `tidy`.
//!
//! Promises are worth what their tests are worth, so a test that a promise names must be there and be a test:
//! each name behind "Held by:" in `GUARANTEES.md`, and each in the last column of the table of orderings in
//! `ARCHITECTURE.md`, of the table in `SCENARIOS.md` and of those in `CONFORMANCE.md`. A rule that is said to hold, in
//! the column before, needs one. In these documents each function and each Rust file that is named anywhere must exist.
//! Renaming a test without its promise fails here.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The documents that are held to this.
const DOCUMENTS: &[&str] =
    &["docs/ARCHITECTURE.md", "docs/CONFORMANCE.md", "docs/GUARANTEES.md", "docs/SCENARIOS.md"];
/// What a paragraph of citations begins with.
const HELD_BY: &str = "Held by:";
/// What the result of a rule begins with that has tests.
const HOLDS: &str = "holds";
/// Attributes and comments between `#[test]` and its function.
const ATTRIBUTE_LINES_MAX: usize = 8;

/// Names of the whole source tree.
#[derive(Default)]
struct Names {
    functions: BTreeSet<String>,
    tests: BTreeSet<String>,
    files: Vec<String>,
}

/// What is cited and does not exist, as `document:line: what`. `sources` are all files, with their text.
pub(crate) fn check(root: &Path, sources: &[(PathBuf, String)]) -> Vec<String> {
    let mut names = Names::default();
    for (path, text) in sources.iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "rs")) {
        names.add(&path.strip_prefix(root).unwrap_or(path).display().to_string(), text);
    }
    let mut problems = Vec::new();
    for document in DOCUMENTS {
        match sources.iter().find(|(path, _)| *path == root.join(document)) {
            Some((_, text)) => {
                let found = names.missing_in(text);
                problems.extend(found.into_iter().map(|problem| format!("{document}{problem}")));
            }
            None => problems.push(format!("{document}: missing")),
        }
    }
    problems
}

impl Names {
    fn add(&mut self, file: &str, text: &str) {
        self.files.push(format!("/{file}"));
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (index, line) in lines.iter().enumerate() {
            let Some((before, rest)) = line.split_once("fn ") else { continue };
            if !before.is_empty() && !before.ends_with(' ') {
                continue;
            }
            let name: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            let above = &lines[index.saturating_sub(ATTRIBUTE_LINES_MAX)..index];
            let own = above.iter().rev().take_while(|line| line.starts_with('#') || line.starts_with("//"));
            if own.into_iter().any(|line| *line == "#[test]") {
                self.tests.insert(name.clone());
            }
            self.functions.insert(name);
        }
    }

    fn missing_in(&self, document: &str) -> Vec<String> {
        let mut problems = Vec::new();
        let mut holds = false;
        for (number, line) in (1..).zip(document.lines()) {
            holds = line.starts_with(HELD_BY) || holds && !line.trim().is_empty();
            let ordering = line.starts_with("| ") && line[2..].starts_with(|c: char| c.is_ascii_digit());
            let columns = line.matches(" | ").count();
            if ordering && line.rsplit(" | ").nth(1).is_some_and(|result| result.starts_with(HOLDS)) {
                let tests = line.rsplit(" | ").next().unwrap_or_default();
                if !tests.contains('`') {
                    problems.push(format!(":{number}: no test for what is said to hold"));
                }
            }
            for (column, part) in line.split(" | ").enumerate() {
                let test_wanted = holds || ordering && column == columns;
                for name in part.split('`').skip(1).step_by(2) {
                    if let Some(what) = self.missing(name, test_wanted) {
                        problems.push(format!(":{number}: {what}"));
                    }
                }
            }
        }
        problems
    }

    fn missing(&self, name: &str, test_wanted: bool) -> Option<String> {
        if name.ends_with(".rs") && !name.contains(' ') {
            let known = self.files.iter().any(|file| file.ends_with(&format!("/{name}")));
            return (!known).then(|| format!("no file {name}"));
        }
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let is_function = name.contains('_') && name.chars().all(plain);
        match (is_function, test_wanted) {
            (true, true) if !self.tests.contains(name) => Some(format!("no test {name}")),
            (true, false) if !self.functions.contains(name) => Some(format!("no function {name}")),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        let mut names = Names::default();
        let text = "fn plain_one() {}\n#[test]\n// why\n#[cfg(unix)]\nfn a_test() {}\n    pub(crate) fn other_one() {}";
        names.add("core/src/io.rs", text);
        names
    }

    #[test]
    fn tests_are_told_from_functions() {
        assert_eq!(names().tests, BTreeSet::from(["a_test".to_string()]));
        assert_eq!(names().functions.len(), 3);
    }

    #[test]
    fn a_promise_needs_a_test_and_other_names_a_function() {
        let names = names();
        assert_eq!(
            names.missing_in("See `plain_one`, `io.rs`, `core/src/io.rs`, `a b_c`, `D1`."),
            Vec::<String>::new()
        );
        assert_eq!(
            names.missing_in("Held by: C2;\n`a_test`,\n`plain_one`\n\n`plain_one`"),
            [":3: no test plain_one"]
        );
        assert_eq!(
            names.missing_in("x\n`gone_one` in `no.rs`"),
            [":2: no function gone_one", ":2: no file no.rs"]
        );
        let row = "| 3 | `plain_one` | `io.rs` `other_one` | `a_test`, `other_one`, C4 |";
        assert_eq!(names.missing_in(row), [":1: no test other_one"]);
        let rules = "| 1 | MUST | holds | `a_test` |\n| 2 | MUST | holds | - |\n| 3 | MUST | deviation | - |";
        assert_eq!(names.missing_in(rules), [":2: no test for what is said to hold"]);
    }
}
