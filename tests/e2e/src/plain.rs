//! `lockstep nbd FILE`: one served file, for tests of the server alone.

use crate::cluster::temp_dir;
use crate::foreign::qemu_uri;
use crate::process::Process;
use crate::run::binary;
use crate::wait::wait_until;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(20);
const LOG_LINES_SHOWN: usize = 80;

/// A served file, in a directory of its own. Dropping it ends the server; if a test is failing, its log is printed.
#[derive(Debug)]
pub struct Plain {
    process: Process,
    dir: TempDir,
    /// Its command line.
    words: Vec<String>,
}

impl Plain {
    /// Serves an empty sparse file, with these options beside those that say where.
    pub fn start(size_bytes: u64, options: &[&str]) -> Plain {
        let dir = temp_dir(true);
        let file = std::fs::File::create(dir.path().join("disk.img"));
        file.and_then(|file| file.set_len(size_bytes)).expect("a sparse file");
        Plain::serve(dir, options)
    }

    /// As [`Self::start`], with a limit of open files as low as a login shell's, which the server may raise.
    pub fn with_few_files(size_bytes: u64, options: &[&str]) -> Plain {
        const LIMITS: &str = "--nofile=256:20000";
        let dir = temp_dir(true);
        let file = std::fs::File::create(dir.path().join("disk.img"));
        file.and_then(|file| file.set_len(size_bytes)).expect("a sparse file");
        Plain::launch(dir, &["prlimit", LIMITS], options)
    }

    /// Serves a file with this content.
    pub fn holding(bytes: &[u8], options: &[&str]) -> Plain {
        let dir = temp_dir(true);
        std::fs::write(dir.path().join("disk.img"), bytes).expect("a file");
        Plain::serve(dir, options)
    }

    /// Serves `disk.img` of this directory, whatever that is.
    pub fn serve(dir: TempDir, options: &[&str]) -> Plain {
        Plain::launch(dir, &[], options)
    }

    /// `before` is the begin of the command line: a program that becomes the server.
    fn launch(dir: TempDir, before: &[&str], options: &[&str]) -> Plain {
        let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        let words = ["nbd", &path("disk.img"), "--unix", &path("nbd.sock"), "--pid-file", &path("pid")];
        let server = binary().display().to_string();
        let words = [before, &[server.as_str()], &words, options].concat();
        let words: Vec<String> = words.into_iter().map(str::to_string).collect();
        let process = Plain::begin(&dir, &words);
        Plain { process, dir, words }
    }

    /// Serves the file again, as before, after [`Self::stop`].
    pub fn serve_again(&mut self) {
        self.process = Plain::begin(&self.dir, &self.words);
    }

    fn begin(dir: &TempDir, words: &[String]) -> Process {
        let mut process = Process::start(Path::new(&words[0]), &words[1..], &dir.path().join("log"), None);
        wait_until("the pid file", LIMIT, || {
            let log = std::fs::read_to_string(dir.path().join("log")).unwrap_or_default();
            assert!(process.is_running(), "it ended:\n{log}");
            dir.path().join("pid").exists()
        });
        process
    }

    /// A path in its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The served file.
    pub fn disk(&self) -> PathBuf {
        self.path("disk.img")
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.path("nbd.sock")
    }

    /// The address of its only export, by the empty name.
    pub fn uri(&self) -> String {
        qemu_uri(&self.socket(), "")
    }

    /// What it printed so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Tells it to stop.
    pub fn terminate(&self) {
        self.process.terminate();
    }

    /// Tells it to stop, and waits until it has.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.process.terminate();
        self.process.wait_end(LIMIT)
    }

    /// A file of its directory with this content.
    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).expect("write a file");
        path
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            println!("---- log of the server (the end of {} lines)", lines.len());
            lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].iter().for_each(|line| println!("{line}"));
        }
    }
}
