//! Where words go: data to stdout, as text or JSON; messages to stderr.

use crate::cli::Global;
use crate::control::{ErrorBody, ErrorDoc};
use crate::failure::Failure;
use serde::Serialize;
use std::io::{ErrorKind, Write};

/// How this run of the program talks.
pub(crate) struct Output {
    json: bool,
    quiet: bool,
}

impl Output {
    /// As the options say.
    pub(crate) fn new(global: &Global) -> Self {
        Output { json: global.json, quiet: global.quiet }
    }

    /// Data that was asked for.
    pub(crate) fn data(&self, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<(), Failure> {
        let text = if self.json {
            let json = serde_json::to_string(value).map_err(|error| Failure::generic(error.to_string()))?;
            json + "\n"
        } else {
            text()
        };
        let mut stdout = std::io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            // The reader has seen enough.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
            result => result.map_err(|error| Failure::generic(format!("stdout: {error}"))),
        }
    }

    /// The result of a command: a message for people, data in JSON.
    pub(crate) fn done(&self, value: &impl Serialize, message: &str) -> Result<(), Failure> {
        if self.json {
            return self.data(value, String::new);
        }
        if !message.is_empty() {
            self.message(message);
        }
        Ok(())
    }

    /// Something worth knowing, not asked for.
    pub(crate) fn message(&self, message: &str) {
        if !self.quiet {
            // stderr that is closed is no reason to fail.
            let _ = writeln!(std::io::stderr(), "{message}");
        }
    }

    /// Why the program ends with a failure. An empty message was said already.
    pub(crate) fn failure(&self, failure: &Failure) {
        if failure.message.is_empty() {
            return;
        }
        if self.json {
            let error = ErrorBody { code: failure.code, message: failure.message.clone() };
            // There is nobody left to tell if stdout is gone too.
            let _ = self.data(&ErrorDoc { error }, String::new);
        }
        let _ = writeln!(std::io::stderr(), "lockstep: {failure}");
    }

    /// May progress be drawn on stderr, if that is a terminal?
    pub(crate) fn shows_progress(&self) -> bool {
        !self.quiet
    }

    /// May lines be redrawn on stdout?
    pub(crate) fn on_terminal(&self) -> bool {
        !self.json && std::io::IsTerminal::is_terminal(&std::io::stdout())
    }
}
