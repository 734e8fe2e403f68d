//! `tidy`: the house rules that no compiler checks.
//!
//! Sizes of files, functions and lines; a `//!` at the head of each Rust file; no leftovers; no dead link
//! from a document, no citation of code that is gone (`cited.rs`). It reads the working tree, not git: what
//! is on the disk must be in order. The length of a function is measured by indentation, which formatted
//! code allows.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::{cited, shell};

const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 100;
const LINE_COLUMNS_MAX: usize = 120;

/// Kinds of files that are looked at.
const EXTENSIONS: &[&str] = &["md", "rs", "service", "sh", "toml"];

/// Directories at any depth that hold no source.
const SKIPPED: &[&str] = &[".git", "target", "corpus", "artifacts"];

/// Put together here, so that this file does not hold them.
const LEFTOVERS_RUST: &[&str] =
    &[concat!("to", "do!("), concat!("unimple", "mented!("), concat!("#[", "ignore")];
const LEFTOVERS_ALL: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];

/// Checks every file of the working tree; the error lists all that is wrong.
pub(crate) fn tidy() -> Result<()> {
    let root = shell::root();
    let mut files = Vec::new();
    walk(root, &mut files)?;
    files.sort();
    let mut sources = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        sources.push((path, text));
    }
    let mut problems = Vec::new();
    for (path, text) in &sources {
        let shown = path.strip_prefix(root).unwrap_or(path).display().to_string();
        problems.extend(check(path, text).into_iter().map(|problem| format!("{shown}{problem}")));
    }
    problems.extend(cited::check(root, &sources));
    if !root.join("README.md").exists() {
        problems.push("README.md: missing".to_string());
    }
    ensure!(problems.is_empty(), "{} problems\n{}", problems.len(), problems.join("\n"));
    println!("tidy: {} files are in order", sources.len());
    Ok(())
}

fn walk(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            if !SKIPPED.iter().any(|skipped| entry.file_name() == *skipped) {
                walk(&path, files)?;
            }
        } else if EXTENSIONS.contains(&extension(&path)) {
            files.push(path);
        }
    }
    Ok(())
}

fn extension(path: &Path) -> &str {
    path.extension().and_then(|extension| extension.to_str()).unwrap_or("")
}

/// What is wrong in one file, each as `:line: what` or `: what`.
fn check(path: &Path, text: &str) -> Vec<String> {
    let mut problems = leftovers(text, LEFTOVERS_ALL);
    match extension(path) {
        "rs" => {
            problems.extend(leftovers(text, LEFTOVERS_RUST));
            problems.extend(rust_shape(text));
        }
        "md" => problems.extend(dead_links(path, text)),
        _ => {}
    }
    problems
}

fn leftovers(text: &str, words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        for word in words.iter().filter(|word| line.contains(**word)) {
            found.push(format!(":{number}: leftover {word}"));
        }
    }
    found
}

fn rust_shape(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut problems = Vec::new();
    if !text.starts_with("//!") {
        problems.push(": does not open with //! (what it is for, invariants, failures)".to_string());
    }
    if lines.len() > FILE_LINES_MAX {
        problems.push(format!(": {} lines, at most {FILE_LINES_MAX}", lines.len()));
    }
    for (number, line) in (1..).zip(&lines) {
        let columns = line.chars().count();
        if columns > LINE_COLUMNS_MAX {
            problems.push(format!(":{number}: {columns} columns, at most {LINE_COLUMNS_MAX}"));
        }
    }
    for (index, length) in functions(&lines) {
        if length > FUNCTION_LINES_MAX {
            let number = index + 1;
            problems.push(format!(":{number}: function of {length} lines, at most {FUNCTION_LINES_MAX}"));
        }
    }
    problems
}

/// Index of the first line and number of lines of each function with a body of its own lines.
fn functions(lines: &[&str]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate().filter(|(_, line)| opens_function(line)) {
        let code = |line: &&str| line.split(" //").next().unwrap_or("").trim_end().to_string();
        let ends_signature = |line: &&str| code(line).ends_with(['{', '}', ';']);
        let Some(signature) = lines[start..].iter().position(ends_signature) else {
            continue;
        };
        if !code(&lines[start + signature]).ends_with('{') {
            continue; // no body, or all of it on one line
        }
        let indent = &line[..line.len() - line.trim_start().len()];
        let end = format!("{indent}}}");
        if let Some(length) = lines[start..].iter().position(|line| *line == end) {
            found.push((start, length + 1));
        }
    }
    found
}

fn opens_function(line: &str) -> bool {
    const QUALIFIERS: &[&str] = &["pub", "const", "async", "unsafe", "extern"];
    for word in line.split_whitespace() {
        if word == "fn" {
            return true;
        }
        let is_qualifier = QUALIFIERS.contains(&word) || word.starts_with("pub(") || word.starts_with('"');
        if !is_qualifier {
            return false;
        }
    }
    false
}

/// Links of a document to files that do not exist. Fragments and other sites are not followed.
fn dead_links(path: &Path, text: &str) -> Vec<String> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut problems = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        for rest in line.split("](").skip(1) {
            let Some((link, _)) = rest.split_once(')') else {
                continue;
            };
            let file = link.split(['#', ' ']).next().unwrap_or("");
            let elsewhere = file.is_empty() || file.contains("://") || file.starts_with("mailto:");
            if !elsewhere && !folder.join(file).exists() {
                problems.push(format!(":{number}: dead link {link}"));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(text: &str) -> Vec<String> {
        check(Path::new("a.rs"), text)
    }

    #[test]
    fn a_file_in_order_has_no_problem() {
        assert_eq!(shape("//! Head.\n\nfn main() {}\n"), Vec::<String>::new());
    }

    #[test]
    fn head_length_and_width_are_checked() {
        assert_eq!(shape("fn main() {}\n").len(), 1);
        let limit = format!("//! Head.\n{}", "\n".repeat(FILE_LINES_MAX - 1));
        assert_eq!(shape(&limit).len(), 0);
        assert_eq!(shape(&format!("{limit}\n")).len(), 1);
        let wide = |columns: usize| format!("//! Head.\n{}\n", "é".repeat(columns));
        assert_eq!(shape(&wide(LINE_COLUMNS_MAX)).len(), 0);
        assert_eq!(shape(&wide(LINE_COLUMNS_MAX + 1)), [":2: 121 columns, at most 120"]);
    }

    #[test]
    fn a_long_function_is_found_at_its_line() {
        let body = |lines: usize| {
            let statements = "        step();\n".repeat(lines);
            let signature = "    pub(crate) const fn a(\n        b: u8,\n    ) -> u8 { // why\n";
            format!("//! Head.\nimpl A {{\n{signature}{statements}    }}\n}}\n")
        };
        assert_eq!(shape(&body(FUNCTION_LINES_MAX - 4)).len(), 0);
        assert_eq!(shape(&body(FUNCTION_LINES_MAX - 3)), [":3: function of 101 lines, at most 100"]);
    }

    #[test]
    fn functions_without_a_body_end_at_once() {
        let lines =
            ["trait A {", "    fn a(&self);", "    fn b(", "        c: u8,", "    );", "}", "fn d() {", "}"];
        assert_eq!(functions(&lines), [(6, 2)]);
    }

    #[test]
    fn leftovers_are_found_in_every_kind_of_file() {
        assert_eq!(check(Path::new("a.sh"), &format!("# {}: later\n", LEFTOVERS_ALL[0])).len(), 1);
        for word in LEFTOVERS_RUST {
            assert_eq!(shape(&format!("//! Head.\n{word}")).len(), 1);
        }
    }

    #[test]
    fn links_are_followed_from_the_file_that_holds_them() {
        let readme = shell::root().join("xtask/README.md");
        let text = "[a](Cargo.toml) [b](https://x.org/y) [c](#d) [e](src/tidy.rs#f)\n[g](../none.md#h)\n";
        assert_eq!(check(&readme, text), [":2: dead link ../none.md#h"]);
    }
}
