//! A machine that mounts a volume and runs a program on it: nbdfuse, a loop device and a file system, in namespaces of
//! their own.
//!
//! Killing it is what the loss of that machine is to its clients: nothing is unmounted, nothing is flushed, and
//! no mount or loop device is left behind. It needs root, /dev/fuse and /dev/loop-control.

use crate::foreign::{qemu_uri, require};
use crate::process::Process;
use crate::wait::wait_for;
use crate::{Node, RESOURCE};
use std::path::{Path, PathBuf};
use std::time::Duration;

const SCRIPT: &str = include_str!("mounted.sh");
/// A start of a database, its recovery and its check; also the time until it has written so much.
const STEP_LIMIT: Duration = Duration::from_secs(60);

/// What is on the volume before it is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Volume {
    /// Nothing: a file system is made.
    Empty,
    /// A file system, that was let go of in whatever way.
    Kept,
}

/// A machine with the volume mounted at `mnt` in its directory, as the program sees it.
#[derive(Debug)]
pub struct Mounted {
    process: Process,
    log: PathBuf,
}

impl Mounted {
    /// Mounts the volume that `node` serves, with ext4, and runs a program. `dir` is the machine's own.
    pub fn start(dir: &Path, node: &Node, volume: Volume, program: &[&str]) -> Mounted {
        Mounted::with(dir, &qemu_uri(node.nbd(), RESOURCE), "ext4", volume, program)
    }

    /// The same with any export, and with `ext4` or `xfs`.
    pub fn with(dir: &Path, uri: &str, file_system: &str, volume: Volume, program: &[&str]) -> Mounted {
        for tool in ["fusermount3", &format!("mkfs.{file_system}"), "mount", "nbdfuse"] {
            require(tool);
        }
        for device in ["/dev/fuse", "/dev/loop-control"] {
            assert!(Path::new(device).exists(), "{device} is missing: modprobe fuse loop");
        }
        std::fs::create_dir_all(dir).expect("directory of a machine");
        let script = dir.join("mounted.sh");
        std::fs::write(&script, SCRIPT).expect("write a script");
        let log = dir.join("log");
        let how = if volume == Volume::Empty { "make" } else { "keep" };
        let namespaces = ["--mount", "--ipc", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "sh"];
        let (script, dir) = (script.display().to_string(), dir.display().to_string());
        let given = [script.as_str(), &dir, uri, file_system, how];
        let arguments: Vec<String> =
            namespaces.iter().chain(&given).chain(program).map(ToString::to_string).collect();
        Mounted { process: Process::start(Path::new("unshare"), &arguments, &log, None), log }
    }

    /// Until `done` is true, while the program runs. A program that ended before is a failure, with its words.
    #[track_caller]
    pub fn wait_while_running(&mut self, what: &str, mut done: impl FnMut() -> bool) {
        wait_for(what, STEP_LIMIT, || {
            assert!(done() || self.process.is_running(), "it ended before {what}:\n{}", self.said());
            if done() { Ok(()) } else { Err(self.said()) }
        });
    }

    /// Until the program has ended by itself and the volume was let go of; both must succeed.
    #[track_caller]
    pub fn wait_end(&mut self) {
        let status = self.process.wait_end(STEP_LIMIT);
        assert!(status.success(), "it ended with {status}:\n{}", self.said());
    }

    /// The machine is gone.
    pub fn lose_power(mut self) {
        self.process.kill();
    }

    /// What the program and the tools around it printed.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}
