//! Running a command to its end, and where the binary under test is.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    /// The command line, for messages.
    pub typed: String,
    /// Exit code; -1 if a signal ended it.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Ran {
    /// Panics unless it succeeded; gives its standard output.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "failed: {self}");
        self.stdout
    }

    /// Panics unless it ended with this code and said all of these words on standard error.
    #[track_caller]
    pub fn refused(self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "expected exit code {code}: {self}");
        for word in words {
            assert!(self.stderr.contains(word), "\"{word}\" was not said: {self}");
        }
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "`{}` ended with {}\nstdout: {}\nstderr: {}",
            self.typed,
            self.code,
            self.stdout.trim(),
            self.stderr.trim()
        )
    }
}

/// Runs a command that ends by itself.
pub fn run(command: &mut Command) -> Ran {
    let typed = shown(command);
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{typed}: {error}"));
    Ran {
        typed,
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// The binary under test: `LOCKSTEP_BIN`, or built now in the profile of the tests.
pub fn binary() -> PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| std::env::var_os("LOCKSTEP_BIN").map_or_else(build, PathBuf::from)).clone()
}

/// Cargo's own report says where it put the binary, whatever the target directory is.
fn build() -> PathBuf {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--quiet", "--profile", "checked", "--package", "lockstep"]);
    command.args(["--message-format", "json"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    let report = run(&mut command).ok();
    let messages = report.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut executables = messages.filter_map(|message| message["executable"].as_str().map(PathBuf::from));
    executables.next_back().expect("cargo names the executable that it built")
}
