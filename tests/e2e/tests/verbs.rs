//! `docs/VERBS.md` is true: each verb, typed in each state, ends with the exit code and the words of the table.
//!
//! The document is the expectation. A section per state; a row per verb: what is typed after `lockstep`, exit
//! code, what is said, where `...` stands for anything. A verb that does something gets a pair of its own; those
//! that are refused or only look share one, which also shows that they change nothing. When the program says
//! something else, the rows as they should be are printed.

#[path = "verbs/states.rs"]
mod states;

use lockstep_e2e::{Cluster, Plan, RESOURCE, Ran, binary, run};
use states::{STATES, Scene};
use std::fmt::Write as _;
use std::process::Command;

const DOCUMENT: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/VERBS.md"));
/// Verbs that do not depend on the state of a pair, or run until they are stopped.
const STATELESS: &[&str] = &["compare", "config", "demo", "nbd", "version"];

/// A row of the document.
#[derive(Debug, PartialEq)]
struct Row {
    typed: &'static str,
    code: &'static str,
    says: &'static str,
}

/// The section of a state.
fn rows(state: &str) -> Vec<Row> {
    let heading = format!("\n### {state}\n");
    let (_, rest) = DOCUMENT.split_once(&heading).unwrap_or_else(|| panic!("no section \"{state}\""));
    let section = rest.split("\n#").next().unwrap_or("");
    let lines = section.lines().filter(|line| line.starts_with("| `"));
    lines
        .map(|line| {
            let mut cells = line.trim_matches('|').splitn(3, " | ").map(str::trim);
            let mut cell = || cells.next().unwrap_or_else(|| panic!("a row of three cells: {line}"));
            Row { typed: cell().trim_matches('`'), code: cell(), says: cell() }
        })
        .collect()
}

impl Row {
    /// It may change the state, so that no other row may be typed after it.
    fn acts(&self) -> bool {
        const LOOKS: &[&str] = &["status", "wait", "uri", "dump-md"];
        let verb = self.typed.split(' ').next().unwrap_or("");
        let looks = LOOKS.contains(&verb) || self.typed.starts_with("checkpoint list");
        self.code == "0" && !looks && !self.says.contains("already")
    }

    /// Types it, and gives the row as it should be if it is not as it is written.
    fn check(&self, scene: &Scene) -> Option<String> {
        let words: Vec<&str> = self.typed.split(' ').collect();
        let ran = scene.node().lockstep(&words);
        let says = said(&ran, &scene.dir());
        let right = ran.code.to_string() == self.code && matches(self.says, &says);
        (!right).then(|| format!("| `{}` | {} | {says} |", self.typed, ran.code))
    }
}

/// Messages in one line, without what differs from run to run; data that takes more than a line is left out.
fn said(ran: &Ran, dir: &str) -> String {
    let text = match (ran.stderr.trim(), ran.stdout.trim()) {
        ("", data) if data.lines().count() > 1 => "(data)",
        ("", data) => data,
        (message, _) => message,
    };
    let text = text.strip_prefix("lockstep: ").unwrap_or(text).replace(dir, "...");
    text.lines().map(str::trim).collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

/// Whether the text is that of the pattern, in which `...` stands for anything.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split("...");
    let first = parts.next().unwrap_or("");
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut last = None;
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        last = Some(part);
        rest = &rest[at + part.len()..];
    }
    rest.is_empty() || last.is_some_and(|part| part.is_empty() || text.ends_with(part))
}

/// Checks the states whose place in the list has this remainder.
fn check(part: usize, parts: usize) {
    let mut wrong = String::new();
    for (name, make) in STATES.iter().skip(part).step_by(parts) {
        let rows = rows(name);
        let (acting, others): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|row| row.acts());
        // Side by side: much of the time is that of verbs which wait for something that does not come.
        let found = std::thread::scope(|scope| {
            let looking = scope.spawn(|| {
                let shared = make();
                others.iter().filter_map(|row| row.check(&shared)).collect::<Vec<_>>()
            });
            let acted: Vec<String> = acting.iter().filter_map(|row| row.check(&make())).collect();
            [looking.join().expect("verbs that are refused or only look"), acted].concat()
        });
        if !found.is_empty() {
            // Writing to a String cannot fail.
            let _ = writeln!(wrong, "### {name}\n{}", found.join("\n"));
        }
    }
    assert!(wrong.is_empty(), "docs/VERBS.md says something else; the rows as they are:\n{wrong}");
}

#[test]
fn every_verb_in_the_first_third_of_the_states() {
    check(0, 3);
}

#[test]
fn every_verb_in_the_second_third_of_the_states() {
    check(1, 3);
}

#[test]
fn every_verb_in_the_last_third_of_the_states() {
    check(2, 3);
}

#[test]
fn no_verb_and_no_state_is_missing_in_the_document() {
    let help = run(Command::new(binary()).arg("--help")).ok();
    let (_, verbs) = help.split_once("Commands:\n").expect("a list of commands");
    // Descriptions may go on in lines that are indented further.
    let verbs = verbs.lines().take_while(|line| !line.is_empty()).filter(|line| !line.starts_with("   "));
    let verbs: Vec<&str> = verbs.filter_map(|line| line.split_whitespace().next()).collect();
    assert!(verbs.contains(&"promote") && verbs.len() > 10, "{verbs:?}");
    let headings: Vec<&str> = DOCUMENT.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let states: Vec<&str> = STATES.iter().map(|(name, _)| *name).collect();
    assert_eq!(headings, states, "sections of the document, and states of the test");
    for state in states {
        let rows = rows(state);
        for verb in verbs.iter().filter(|verb| !STATELESS.contains(verb)) {
            let typed = rows.iter().any(|row| row.typed.split(' ').next() == Some(verb));
            // Without a daemon it starts one.
            assert!(typed || (*verb, state) == ("daemon", "No daemon"), "{verb} is missing in \"{state}\"");
        }
    }
}

#[test]
fn a_flag_typed_at_a_terminal_asks_for_the_name_of_the_resource() {
    let mut cluster = Cluster::primary(&Plan::default());
    cluster.alpha.kill();
    cluster.beta.wait_connection("Connecting");
    let typed = |flags: &str, answer: &str| {
        let socket = cluster.beta.control().display().to_string();
        let command = format!("{} --socket {socket} promote {RESOURCE} {flags}", binary().display());
        // util-linux's script gives the command a terminal.
        let script =
            format!("printf '{answer}\\n' | script --quiet --return --command '{command}' /dev/null");
        run(Command::new("sh").args(["-c", &script]))
    };
    for answer in ["", "y", "r1"] {
        let ran = typed("--peer-is-down", answer);
        assert_eq!(ran.code, 11, "{ran}");
        assert!(ran.stdout.contains("Type the name of the resource"), "{ran}");
        assert_eq!(cluster.beta.status()["role"], "Secondary", "{ran}");
    }
    assert_eq!(typed("--accept-data-loss", "no").code, 11);
    typed("--peer-is-down", RESOURCE).ok();
    assert_eq!(cluster.beta.status()["role"], "Primary");
    cluster.beta.demote_idle();
    cluster.beta.promote().ok();
    cluster.beta.demote_idle();
    let ran = typed("--peer-is-down --yes", "");
    assert!(ran.code == 0 && !ran.stdout.contains("Type the name"), "{ran}");
}

#[test]
fn dots_stand_for_anything() {
    for (pattern, text) in [("a", "a"), ("a...", "abc"), ("...c", "abc"), ("a...c...e", "abcde"), ("...", "")]
    {
        assert!(matches(pattern, text), "{pattern} {text}");
    }
    for (pattern, text) in [("a", "ab"), ("a...c", "abcd"), ("a...x", "abc"), ("b...", "abc"), ("", "a")] {
        assert!(!matches(pattern, text), "{pattern} {text}");
    }
}
