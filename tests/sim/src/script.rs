//! Scenarios as text: what a run was made of, and what a replay is made from.
//!
//! ```text
//! # Comments. First the setup, as far as it is not plain; then decisions, each with its moment in seconds.
//! seed = 42
//! canary = ack-before-peer
//! sectors = 4096
//! 0.000000000 boot 0
//! 0.001000000 boot 1 no-disk
//! 0.050000000 operator 0 promote
//! 0.060000000 client 0 join 0
//! 0.070000000 client 0 write 128 +8 fua
//! 0.080000000 fault power 1
//! ```
//!
//! `canary` names the planted bug that it must find, see `bitmap/src/canary.rs`.
//!
//! The words of each kind of decision are in `words.rs`.

use crate::decision::Line;
use crate::setup::Setup;
use crate::words;
use std::fmt::Write;

/// A run as data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// Setup.
    pub(crate) setup: Setup,
    /// Decisions, by time.
    pub(crate) lines: Vec<Line>,
    /// The planted bug that it must find.
    pub(crate) canary: Option<String>,
    /// The comment at the top, for people; kept as it is.
    pub(crate) comment: String,
}

impl Scenario {
    /// Reads a file; says which line is wrong and what was expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut scenario =
            Scenario { setup: Setup::plain(), lines: Vec::new(), canary: None, comment: String::new() };
        for (number, line) in (1..).zip(text.lines()) {
            scenario.take(line).map_err(|why| format!("line {number}: {why}: `{line}`"))?;
        }
        Ok(scenario)
    }

    fn take(&mut self, line: &str) -> Result<(), String> {
        let words: Vec<&str> = line.split('#').next().unwrap_or("").split_whitespace().collect();
        match words.as_slice() {
            [] => {
                if self.lines.is_empty() && line.starts_with('#') {
                    writeln!(self.comment, "{line}").map_err(|e| e.to_string())?;
                }
                Ok(())
            }
            [name, "=", value @ ..] => self.set(name, &value.join(" ")),
            [moment, rest @ ..] => {
                let at_ns = parse_seconds(moment)
                    .ok_or("expected `NAME = VALUE`, or a moment in seconds like `0.0125` and a decision")?;
                let what = words::parse(rest, &self.setup)?;
                if self.lines.last().is_some_and(|last| last.at_ns > at_ns) {
                    return Err("earlier than the line before it".into());
                }
                self.lines.push(Line { at_ns, what });
                Ok(())
            }
        }
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        if !self.lines.is_empty() {
            return Err("the setup comes before the decisions".into());
        }
        if name == "canary" {
            self.canary = Some(value.to_string());
            return Ok(());
        }
        let mut fields = self.setup.fields();
        let Some((_, field)) = fields.iter_mut().find(|(known, _)| *known == name) else {
            let known: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
            return Err(format!("unknown name; known are {}", known.join(", ")));
        };
        field.read(value).map_err(|expected| format!("expected {expected}"))
    }

    /// As text that [`Self::parse`] reads.
    pub fn show(&self) -> String {
        let mut out = self.comment.clone();
        if let Some(bug) = &self.canary {
            out += &format!("canary = {bug}\n");
        }
        let (mut plain, mut setup) = (Setup::plain(), self.setup.clone());
        for ((name, plain), (_, value)) in plain.fields().into_iter().zip(setup.fields()) {
            if plain.show() != value.show() {
                out += &format!("{name} = {}\n", value.show());
            }
        }
        for line in &self.lines {
            let (seconds, ns) = (line.at_ns / 1_000_000_000, line.at_ns % 1_000_000_000);
            out += &format!("{seconds}.{ns:09} {}\n", words::show(&line.what));
        }
        out
    }

    /// The planted bug that it must find, if there is one.
    pub fn canary(&self) -> Option<&str> {
        self.canary.as_deref()
    }

    /// The same decisions with other draws of latencies and damage, of which the first is this one.
    pub fn environments(&self) -> impl Iterator<Item = Scenario> {
        (0..).map(|salt| {
            let mut other = self.clone();
            other.setup.seed = other.setup.seed.wrapping_add(salt);
            other
        })
    }

    /// How many decisions it has.
    pub fn decisions(&self) -> usize {
        self.lines.len()
    }
}

/// Nanoseconds of a decimal number of seconds.
pub(crate) fn parse_seconds(text: &str) -> Option<u64> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if fraction.len() > 9 || !digits(seconds) || !digits(fraction) {
        return None;
    }
    let fraction: u64 = format!("{fraction:0<9}").parse().ok()?;
    seconds.parse::<u64>().ok()?.checked_mul(1_000_000_000)?.checked_add(fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_lines_are_named_with_what_was_expected() {
        let error = |text: &str| Scenario::parse(text).expect_err("this is no scenario");
        assert!(error("sectors = many").contains("line 1: expected a number"));
        assert!(error("# a\n\nsector = 1").contains("line 3: unknown name; known are seed, "));
        assert!(error("granule-bytes = 512").contains("two values, one for each node"));
        assert!(error("timeout = 5").contains("a duration like `100ms`"));
        assert!(error("x boot 0").contains("a moment in seconds"));
        assert!(error("0.1 boot 2").contains("a node, 0 or 1"));
        assert!(error("0.2 boot 0\n0.1 boot 1").contains("line 2: earlier"));
        assert!(error("0.1 boot 0\nsectors = 1").contains("the setup comes before"));
        assert!(error("0.1 client 1 leave").contains("this setup has 1"));
        assert!(error("0.1 client 0 write 2047 +2").contains("outside the volume"));
        assert!(error("0.1 fault sneeze").contains("expected one of kill, "));
        assert!(error("0.1 operator 0 promote --please").contains("nothing more was expected"));
    }

    #[test]
    fn seconds_are_read_to_the_nanosecond() {
        assert_eq!(parse_seconds("0.000000001"), Some(1));
        assert_eq!(parse_seconds("12.5"), Some(12_500_000_000));
        assert_eq!(parse_seconds("3"), Some(3_000_000_000));
        assert_eq!(parse_seconds("-1"), None);
        assert_eq!(parse_seconds("1.0000000001"), None);
    }
}
