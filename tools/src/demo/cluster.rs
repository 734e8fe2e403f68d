//! Two nodes on this machine: directories, configuration, daemons, and the commands that an operator would
//! type.
//!
//! Invariants: every daemon started here is ended here, by its process id, also when the demo is
//! interrupted ([`Pids`]); every wait has a deadline. Each node has its own configuration file: alpha's
//! names the proxy as the address of beta (the lower node dials), so that the cable between them can be
//! pulled.

use super::proxy::Proxy;
use crate::config::Config;
use crate::control::Client;
use crate::failure::Failure;
use crate::status::ResourceDoc;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Name of the resource.
pub(crate) const RESOURCE: &str = "r0";
/// A lost peer is given up after this time; shorter than the product's default, so that the demo is short.
pub(crate) const PEER_TIMEOUT: Duration = Duration::from_secs(2);

/// Writes become durable by themselves after this time, and regions cool after five of it without new ones.
const EPOCH: Duration = Duration::from_millis(500);
const SIZE_BYTES_MIN: u64 = 64 << 20;
/// Longer than any step needs on a slow and busy machine.
const WAIT_MAX: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// Which node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The lower node id.
    Alpha,
    /// The higher.
    Beta,
}

impl Side {
    /// Its name in the configuration.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Side::Alpha => "alpha",
            Side::Beta => "beta",
        }
    }
}

/// Daemons that run. Shared with whoever must end them when the demo is interrupted.
#[derive(Clone, Default)]
pub(crate) struct Pids {
    running: Arc<Mutex<Vec<Pid>>>,
    terminated: Arc<AtomicBool>,
}

impl Pids {
    /// Asks all to stop: the story is over, and what fails from now on is nobody's fault.
    pub(crate) fn terminate(&self) {
        self.terminated.store(true, Ordering::SeqCst);
        for pid in self.running.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    fn add(&self, child: &Child) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).push(Pid::from_child(child));
    }

    /// Must be called before the child is reaped: after that its number may be another process's.
    fn remove(&self, child: &Child) {
        let pid = Pid::from_child(child);
        self.running.lock().unwrap_or_else(PoisonError::into_inner).retain(|&other| other != pid);
    }
}

/// A command that ended.
pub(crate) struct Typed {
    /// Exit code; -1 if a signal ended it.
    pub(crate) code: i32,
    /// What it said, on stdout and stderr.
    pub(crate) said: String,
}

/// The nodes and the cable.
pub(crate) struct Cluster {
    /// The cable between them.
    pub(crate) proxy: Proxy,
    /// Commands typed since they were last taken, as shown.
    pub(crate) typed: Vec<String>,
    /// Size of the volume.
    pub(crate) size_bytes: u64,
    dir: PathBuf,
    program: PathBuf,
    daemons: [Option<Child>; 2],
    pids: Pids,
}

impl Cluster {
    /// Writes everything that two daemons need into an empty directory. `size` as in a configuration.
    pub(crate) fn create(dir: &Path, size: &str, pids: Pids) -> Result<Self, Failure> {
        let program = std::env::current_exe().map_err(|error| failed("this program", &error))?;
        let reserved = [free_port()?, free_port()?];
        let [alpha, beta] = reserved
            .each_ref()
            .map(|listener| listener.local_addr().map_err(|error| failed("a free port", &error)));
        let (alpha, beta) = (alpha?, beta?);
        let proxy = Proxy::start(beta).map_err(|error| failed("the proxy", &error))?;
        write_new(&dir.join("secret"), &crate::secret::generate()?)?;
        let mut size_bytes = 0;
        for (side, beta) in [(Side::Alpha, proxy.address()), (Side::Beta, beta)] {
            let home = dir.join(side.name());
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(home.join("state"));
            made.map_err(|error| failed(&home.display().to_string(), &error))?;
            let text = config(dir, size, &alpha.to_string(), &beta.to_string());
            write_new(&home.join("lockstep.toml"), &text)?;
            let config = Config::load(&home.join("lockstep.toml"))?;
            size_bytes = config.resource(RESOURCE).and_then(|resource| resource.size_bytes).unwrap_or(0);
        }
        if size_bytes < SIZE_BYTES_MIN {
            let min = crate::text::bytes(SIZE_BYTES_MIN);
            return Err(Failure::usage(format!("--size {size}: the demo needs {min} at least")));
        }
        let (dir, daemons) = (dir.to_owned(), [None, None]);
        Ok(Cluster { proxy, typed: Vec::new(), size_bytes, dir, program, daemons, pids })
    }

    /// True if the daemons were ended from outside.
    pub(crate) fn interrupted(&self) -> bool {
        self.pids.terminated.load(Ordering::SeqCst)
    }

    /// Directory of a node.
    pub(crate) fn home(&self, side: Side) -> PathBuf {
        self.dir.join(side.name())
    }

    /// The file that holds a node's copy.
    pub(crate) fn image(&self, side: Side) -> PathBuf {
        self.home(side).join("r0.img")
    }

    /// A node's metadata file.
    pub(crate) fn meta(&self, side: Side) -> PathBuf {
        self.home(side).join("state").join(format!("{RESOURCE}.0.meta"))
    }

    /// Where a node serves NBD.
    pub(crate) fn nbd_socket(&self, side: Side) -> PathBuf {
        self.home(side).join("nbd.sock")
    }

    /// Where a node takes commands.
    pub(crate) fn control_socket(&self, side: Side) -> PathBuf {
        self.home(side).join("control.sock")
    }

    /// Types a command on a node.
    pub(crate) fn command(&mut self, side: Side, words: &[&str]) -> Result<Typed, Failure> {
        self.typed.push(format!("{}$ lockstep {}", side.name(), words.join(" ")));
        let mut command = self.program(side, words);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| failed("lockstep", &error))?;
        let deadline = Instant::now() + WAIT_MAX;
        // What a command says fits into its pipes, so it cannot hang for want of a reader.
        while child.try_wait().map_err(|error| failed("lockstep", &error))?.is_none() {
            if Instant::now() > deadline {
                let _ = child.kill();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let output = child.wait_with_output().map_err(|error| failed("lockstep", &error))?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        Ok(Typed { code: output.status.code().unwrap_or(-1), said })
    }

    /// Types a command that must succeed.
    pub(crate) fn command_ok(&mut self, side: Side, words: &[&str]) -> Result<String, Failure> {
        let typed = self.command(side, words)?;
        match typed.code {
            0 => Ok(typed.said),
            code => {
                let words = words.join(" ");
                let message = format!("{}$ lockstep {words}: exit code {code}: {}", side.name(), typed.said);
                Err(Failure::generic(message))
            }
        }
    }

    /// Starts a daemon and waits until it answers.
    pub(crate) fn start(&mut self, side: Side) -> Result<(), Failure> {
        self.typed.push(format!("{}$ lockstep daemon &", side.name()));
        let log = self.home(side).join("daemon.log");
        let open = || OpenOptions::new().create(true).append(true).open(&log);
        let named = |error| failed(&log.display().to_string(), &error);
        let (out, err) = (open().map_err(named)?, open().map_err(named)?);
        let mut command = self.program(side, &["daemon"]);
        // Not in the foreground group: Ctrl-C is for the demo, which then ends both in order.
        command.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0).env_remove("NOTIFY_SOCKET");
        let child = command.spawn().map_err(|error| failed("lockstep daemon", &error))?;
        self.pids.add(&child);
        self.daemons[side as usize] = Some(child);
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            let Err(failure) = self.status(side) else { return Ok(()) };
            let child = self.daemons[side as usize].as_mut().expect("it was started above");
            let ended = child.try_wait().map_err(|error| failed("lockstep daemon", &error))?;
            if ended.is_some() || Instant::now() > deadline {
                let message = format!(
                    "the daemon of {} does not run: {failure}; its log is {}",
                    side.name(),
                    log.display()
                );
                return Err(Failure::generic(message));
            }
            std::thread::sleep(POLL);
        }
    }

    /// SIGKILL: no goodbye, nothing is written any more.
    pub(crate) fn kill(&mut self, side: Side) -> Result<(), Failure> {
        let Some(mut child) = self.daemons[side as usize].take() else { return Ok(()) };
        self.typed.push(format!("{}$ kill -9 {}", side.name(), child.id()));
        self.pids.remove(&child);
        child.kill().and_then(|()| child.wait()).map_err(|error| failed("kill", &error))?;
        Ok(())
    }

    /// Stops both daemons cleanly, and kills one that does not stop.
    pub(crate) fn stop(&mut self) {
        const STOP_MAX: Duration = Duration::from_secs(10);
        let mut running: Vec<Child> = self.daemons.iter_mut().filter_map(Option::take).collect();
        for child in &running {
            let _ = kill_process(Pid::from_child(child), Signal::TERM);
        }
        let deadline = Instant::now() + STOP_MAX;
        for child in &mut running {
            self.pids.remove(child);
            while matches!(child.try_wait(), Ok(None)) {
                if Instant::now() > deadline {
                    let _ = child.kill();
                }
                std::thread::sleep(POLL);
            }
        }
    }

    /// What a node says of the resource.
    pub(crate) fn status(&self, side: Side) -> Result<ResourceDoc, Failure> {
        let document = Client::new(self.control_socket(side))?.status(Some(RESOURCE))?;
        document.resources.into_iter().next().ok_or_else(|| Failure::generic("the daemon does not know r0"))
    }

    /// Asks a node until it is as it shall be, or nothing moves any more; `what` says that in
    /// words. `seen` gets every answer.
    pub(crate) fn wait(
        &self,
        side: Side,
        what: &str,
        mut seen: impl FnMut(&ResourceDoc),
        reached: impl Fn(&ResourceDoc) -> bool,
    ) -> Result<ResourceDoc, Failure> {
        let mut deadline = Instant::now() + WAIT_MAX;
        let mut left_bytes = u64::MAX;
        loop {
            let resource = self.status(side)?;
            seen(&resource);
            // The first sync of a large volume may take long, as long as it moves.
            let still_left_bytes = resource.peers.first().map_or(0, |peer| peer.out_of_sync_bytes);
            if still_left_bytes < left_bytes {
                (left_bytes, deadline) = (still_left_bytes, Instant::now() + WAIT_MAX);
            }
            if reached(&resource) {
                return Ok(resource);
            }
            if Instant::now() > deadline {
                let state = serde_json::to_string(&resource).unwrap_or_default();
                let message = format!("{}: not {what} within {WAIT_MAX:?}: {state}", side.name());
                return Err(Failure::generic(message));
            }
            std::thread::sleep(POLL);
        }
    }

    /// The program with the options that make it the one of this node.
    fn program(&self, side: Side, words: &[&str]) -> Command {
        let home = self.home(side);
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(home.join("lockstep.toml")).args(["--node", side.name()]);
        command.arg("--state-dir").arg(home.join("state")).arg("--socket").arg(self.control_socket(side));
        command.args(words);
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
    }
}

fn config(dir: &Path, size: &str, alpha: &str, beta: &str) -> String {
    let quoted = |path: PathBuf| toml::Value::String(path.to_string_lossy().into_owned()).to_string();
    let nbd =
        |node: &str| quoted(PathBuf::from(format!("unix:{}", dir.join(node).join("nbd.sock").display())));
    format!(
        "cluster = \"demo\"\n\
         secret-file = {secret}\n\n\
         [node.alpha]\naddress = \"{alpha}\"\nnbd = [{nbd_alpha}]\n\n\
         [node.beta]\naddress = \"{beta}\"\nnbd = [{nbd_beta}]\n\n\
         [[resource]]\nname = \"{RESOURCE}\"\nsize = \"{size}\"\n\
         disk.alpha = {disk_alpha}\ndisk.beta = {disk_beta}\n\
         timeout = \"{timeout}ms\"\nheartbeat = \"{heartbeat}ms\"\n\
         epoch = \"{epoch}ms\"\n",
        secret = quoted(dir.join("secret")),
        nbd_alpha = nbd("alpha"),
        nbd_beta = nbd("beta"),
        disk_alpha = quoted(dir.join("alpha").join("r0.img")),
        disk_beta = quoted(dir.join("beta").join("r0.img")),
        timeout = PEER_TIMEOUT.as_millis(),
        heartbeat = PEER_TIMEOUT.as_millis() / 4,
        epoch = EPOCH.as_millis(),
    )
}

fn write_new(file: &Path, text: &str) -> Result<(), Failure> {
    let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    let written = created.and_then(|mut handle| handle.write_all(text.as_bytes()));
    written.map_err(|error| failed(&file.display().to_string(), &error))
}

/// Held until both ports are known, so that they are two.
fn free_port() -> Result<TcpListener, Failure> {
    TcpListener::bind(("127.0.0.1", 0)).map_err(|error| failed("a free port on the loopback address", &error))
}

/// A failure of the machinery around the nodes.
pub(crate) fn failed(what: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::generic(format!("{what}: {error}"))
}
