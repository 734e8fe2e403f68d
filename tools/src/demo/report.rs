//! What the demo tells: a numbered line per step, the commands that were typed, and the summary in JSON.
//!
//! Data goes to stdout; the spinner and the progress bars go to stderr, and only to a terminal.

use crate::status::ResyncDoc;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::{Map, Value};
use std::io::Write;
use std::time::{Duration, Instant};

/// What a step found.
#[derive(Debug, Default)]
pub(crate) struct Finding {
    /// One line with the measured figures.
    pub(crate) line: String,
    /// Further lines: a picture, the words of a refusal.
    pub(crate) details: Vec<String>,
    /// The figures, by name.
    pub(crate) figures: Map<String, Value>,
}

impl Finding {
    /// A finding of one line.
    pub(crate) fn new(line: String) -> Self {
        Finding { line, ..Finding::default() }
    }

    /// Adds a figure; its unit is the end of its name.
    pub(crate) fn figure(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.figures.insert(name.to_owned(), value.into());
        self
    }

    /// Adds a line.
    pub(crate) fn detail(mut self, line: String) -> Self {
        self.details.push(line);
        self
    }
}

/// A step that ended.
#[derive(Debug, Serialize)]
pub(crate) struct Step {
    number: usize,
    title: &'static str,
    passed: bool,
    seconds: f64,
    text: String,
    details: Vec<String>,
    commands: Vec<String>,
    figures: Map<String, Value>,
}

/// Collects steps, and prints them unless the answer is to be JSON.
pub(crate) struct Report {
    json: bool,
    begun: Instant,
    steps: Vec<Step>,
    bar: ProgressBar,
}

impl Report {
    /// Nothing happened yet.
    pub(crate) fn new(json: bool) -> Self {
        Report { json, begun: Instant::now(), steps: Vec::new(), bar: ProgressBar::hidden() }
    }

    /// Time since the beginning.
    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Steps that ended.
    pub(crate) fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// A line for people.
    pub(crate) fn say(&self, line: &str) {
        if !self.json {
            // A reader who went away does not stop the demo, whose exit code still counts.
            let _ = writeln!(std::io::stdout(), "{line}");
        }
    }

    /// A step begins: a spinner, until something better is to be shown.
    pub(crate) fn begin(&mut self, title: &'static str) {
        let target = if self.json { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        self.bar = ProgressBar::with_draw_target(None, target);
        self.bar.set_message(format!("{}  {title} ...", self.steps.len() + 1));
        self.bar.enable_steady_tick(Duration::from_millis(100));
    }

    /// A resync goes on.
    pub(crate) fn progress(&self, resync: &ResyncDoc) {
        if self.bar.length().is_none() {
            let template = "   resync {wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
            // The template is constant; a wrong one shows in the first run, as the plain bar.
            self.bar.set_style(
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
        }
        self.bar.set_length(resync.total_bytes);
        self.bar.set_position(resync.done_bytes);
    }

    /// A step ended, well or with a message.
    pub(crate) fn end(
        &mut self,
        title: &'static str,
        begun: Instant,
        commands: Vec<String>,
        result: Result<Finding, String>,
    ) {
        self.bar.finish_and_clear();
        let passed = result.is_ok();
        let finding = result.unwrap_or_else(|message| Finding::new(format!("MISMATCH: {message}")));
        let number = self.steps.len() + 1;
        let seconds = (begun.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
        self.say(&format!("{number}  {title}: {} [{seconds:.1} s]", finding.line));
        commands.iter().for_each(|command| self.say(&format!("     {command}")));
        finding.details.iter().for_each(|line| self.say(&format!("     {line}")));
        let Finding { line: text, details, figures } = finding;
        self.steps.push(Step { number, title, passed, seconds, text, details, commands, figures });
    }
}
