//! A child process that ends with its handle, by its own pid.
//!
//! It is started through `setpriv --pdeathsig`, so that it also dies if the test is killed before its handle
//! is dropped. A node that "lost power" is started in a mount namespace of its own with another boot id.

use crate::wait::wait_for;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// A running child.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Starts `program`; what it prints is appended to `log`. With `boot_id`, it sees that file's content as
    /// the kernel's boot id.
    pub fn start(program: &Path, arguments: &[String], log: &Path, boot_id: Option<&Path>) -> Process {
        Process::start_with(program, arguments, log, boot_id, None)
    }

    /// The same; with `listener`, it gets that socket as a service manager hands it over.
    pub(crate) fn start_with(
        program: &Path,
        arguments: &[String],
        log: &Path,
        boot_id: Option<&Path>,
        listener: Option<&OwnedFd>,
    ) -> Process {
        let open = || OpenOptions::new().create(true).append(true).open(log);
        let out: File = open().unwrap_or_else(|error| panic!("{}: {error}", log.display()));
        let err = out.try_clone().expect("duplicate the log's descriptor");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]);
        if let Some(file) = boot_id {
            // The mount is private to the child; `exec` keeps one pid for all of it.
            let script = "mount --bind \"$0\" /proc/sys/kernel/random/boot_id && exec \"$@\"";
            command.args(["unshare", "--mount", "--propagation", "private", "sh", "-c", script]).arg(file);
        }
        let mut input = Stdio::null();
        if let Some(listener) = listener {
            input = listener.try_clone().expect("duplicate a socket").into();
            let script = "exec 3<&0 0</dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$@\"";
            command.args(["sh", "-c", script, "sh"]);
        }
        command.arg(program).args(arguments).stdin(input).stdout(out).stderr(err);
        let child = command.spawn().unwrap_or_else(|error| panic!("setpriv (package util-linux): {error}"));
        Process { child, name: format!("{} {}", program.display(), arguments.join(" ")) }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("wait for the child").is_none()
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        // A child that ended before is no error here.
        drop(self.child.kill());
        self.child.wait().expect("wait for the child");
    }

    /// SIGTERM without waiting.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Waits until it has ended by itself.
    #[track_caller]
    pub fn wait_end(&mut self, limit: Duration) -> ExitStatus {
        let name = self.name.clone();
        wait_for(&format!("the end of {name}"), limit, || {
            self.child.try_wait().expect("wait for the child").ok_or_else(|| "it runs".to_string())
        })
    }

    /// Stops it from running (SIGSTOP).
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it run again (SIGCONT).
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, signal).unwrap_or_else(|error| panic!("signal {}: {error}", self.name));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
