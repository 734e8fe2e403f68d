//! Running other programs, and where the workspace and its binaries are.
//!
//! Every command runs in the workspace's root. A command that fails is an error that shows the command line.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// The profile of every binary under test: optimised, with assertions and overflow checks.
pub(crate) const PROFILE: &str = "checked";

/// One command line.
pub(crate) struct Run {
    command: Command,
    shown: String,
}

impl Run {
    pub(crate) fn new(program: impl Into<OsString>) -> Run {
        let program = program.into();
        let mut command = Command::new(&program);
        // Children that call cargo must find the same binaries, whatever directory the path was relative to.
        command.current_dir(root()).env("CARGO_TARGET_DIR", target_dir());
        let shown = program.to_string_lossy().into_owned();
        Run { command, shown }
    }

    pub(crate) fn args<I, A>(mut self, arguments: I) -> Run
    where
        I: IntoIterator<Item = A>,
        A: Into<OsString>,
    {
        for argument in arguments {
            let argument = argument.into();
            self.shown.push(' ');
            self.shown.push_str(&argument.to_string_lossy());
            self.command.arg(argument);
        }
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl Into<OsString>) -> Run {
        self.command.env(name, value.into());
        self
    }

    /// Sets a variable unless the caller of xtask has set it.
    pub(crate) fn env_default(self, name: &str, value: &str) -> Run {
        match std::env::var_os(name) {
            Some(_) => self,
            None => self.env(name, value),
        }
    }

    /// Runs it with its output shown; an error unless it ends with success.
    pub(crate) fn status(mut self) -> Result<()> {
        println!("+ {}", self.shown);
        let status = self.command.status().with_context(|| format!("start `{}`", self.shown))?;
        ensure!(status.success(), "`{}`: {status}", self.shown);
        Ok(())
    }

    /// Runs it with its output shown, and returns what it printed; an error unless it ends with success.
    pub(crate) fn shown(mut self) -> Result<String> {
        println!("+ {}", self.shown);
        let failed = || format!("`{}`", self.shown);
        let mut child = self.command.stdout(Stdio::piped()).spawn().with_context(failed)?;
        let mut printed = Vec::new();
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped"));
        // What a machine says while it boots need not be text.
        let mut start = 0;
        while lines.read_until(b'\n', &mut printed).with_context(failed)? > 0 {
            print!("{}", String::from_utf8_lossy(&printed[start..]));
            start = printed.len();
        }
        let status = child.wait().with_context(failed)?;
        ensure!(status.success(), "`{}`: {status}", self.shown);
        Ok(String::from_utf8_lossy(&printed).into_owned())
    }

    /// Runs it and returns what it printed; an error unless it ends with success.
    pub(crate) fn stdout(mut self) -> Result<String> {
        let output = self.command.output().with_context(|| format!("start `{}`", self.shown))?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`{}`: {}\n{stderr}", self.shown, output.status);
        String::from_utf8(output.stdout).with_context(|| format!("output of `{}`", self.shown))
    }

    /// Runs it; whether it ended with success, and what it printed.
    pub(crate) fn captured(mut self) -> Result<(bool, String)> {
        let output = self.command.output().with_context(|| format!("start `{}`", self.shown))?;
        let [stdout, stderr] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        Ok((output.status.success(), format!("{stdout}{stderr}")))
    }

    /// Runs it and returns what it printed, whatever its exit status.
    pub(crate) fn stdout_even_if_failed(mut self) -> Result<String> {
        let output = self.command.stderr(Stdio::null()).output();
        let output = output.with_context(|| format!("start `{}`", self.shown))?;
        String::from_utf8(output.stdout).with_context(|| format!("output of `{}`", self.shown))
    }
}

/// The cargo that runs xtask.
pub(crate) fn cargo() -> Run {
    Run::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// The workspace's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

/// Where cargo puts what it builds, as an absolute path.
pub(crate) fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => std::path::absolute(&dir).unwrap_or_else(|_| dir.into()),
        None => root().join("target"),
    }
}

/// Builds the daemon's binary in `profile` and returns its path.
pub(crate) fn build_lockstep(profile: &str) -> Result<PathBuf> {
    cargo().args(["build", "--profile", profile, "--package", "lockstep"]).status()?;
    Ok(target_dir().join(profile).join("lockstep"))
}
