//! One node: its files, its daemon, and the commands that an operator types on it.

use crate::client::Connection;
use crate::cluster::RESOURCE;
use crate::process::Process;
use crate::rng::Rng;
use crate::run::{Ran, binary, run};
use crate::wait::wait_for;
use rustix::fs::OFlags;
use serde_json::Value;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A start, a stop, a handshake, a resync of a test's volume.
const STEP_LIMIT: Duration = Duration::from_secs(40);
const LOG_LINES_SHOWN: usize = 80;

/// A node of a cluster.
#[derive(Debug)]
pub struct Node {
    name: String,
    dir: PathBuf,
    disk: PathBuf,
    nbd: PathBuf,
    metadata_dir: PathBuf,
    daemon: Option<Process>,
    /// The daemon runs in the network namespace of this process.
    host: Option<u32>,
    /// How often it lost power; each time it comes back with another boot id.
    power_losses: u64,
    /// A listening socket that each of its daemons gets.
    listener: Option<OwnedFd>,
}

impl Node {
    /// A node whose files are in `dir`, with its configuration there already.
    pub fn new(name: &str, dir: &Path) -> Node {
        Node {
            name: name.to_string(),
            dir: dir.to_path_buf(),
            disk: dir.join("disk"),
            nbd: dir.join("nbd.sock"),
            metadata_dir: dir.to_path_buf(),
            daemon: None,
            host: None,
            power_losses: 0,
            listener: None,
        }
    }

    /// Hands each daemon a listening socket, as a service manager does.
    pub fn inherit(&mut self, listener: OwnedFd) {
        self.listener = Some(listener);
    }

    /// Puts it into the network namespace of a process.
    pub fn move_into(&mut self, host: u32) {
        self.host = Some(host);
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its data file.
    pub fn disk(&self) -> &Path {
        &self.disk
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.dir.join("lockstep.toml")
    }

    /// Its NBD socket.
    pub fn nbd(&self) -> &Path {
        &self.nbd
    }

    /// Its control socket.
    pub fn control(&self) -> PathBuf {
        self.dir.join("control.sock")
    }

    /// What the daemon printed so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }

    fn global_arguments(&self) -> Vec<String> {
        let path = |path: PathBuf| path.display().to_string();
        let pairs = [
            ("--config", path(self.config())),
            ("--node", self.name.clone()),
            ("--state-dir", path(self.dir.clone())),
            ("--socket", path(self.control())),
        ];
        pairs.into_iter().flat_map(|(key, value)| [key.to_string(), value]).collect()
    }

    /// `lockstep` with the options of this node and these arguments.
    pub fn lockstep(&self, arguments: &[&str]) -> Ran {
        run(Command::new(binary()).args(self.global_arguments()).args(arguments))
    }

    /// Starts the daemon without waiting.
    pub fn launch(&mut self) {
        assert!(self.daemon.is_none(), "{} runs already", self.name);
        let mut arguments = self.global_arguments();
        arguments.push("daemon".to_string());
        let boot_id = (self.power_losses > 0).then(|| self.write_boot_id());
        let mut program = binary();
        if let Some(host) = self.host {
            let inside = ["--target".to_string(), host.to_string(), "--net".to_string(), "--".to_string()];
            arguments.splice(0..0, inside.into_iter().chain([program.display().to_string()]));
            program = PathBuf::from("nsenter");
        }
        self.daemon = Some(Process::start_with(
            &program,
            &arguments,
            &self.log_path(),
            boot_id.as_deref(),
            self.listener.as_ref(),
        ));
    }

    fn write_boot_id(&self) -> PathBuf {
        let mut rng = Rng::new(self.power_losses);
        let hex = format!("{:016x}{:016x}", rng.draw(), rng.draw());
        let (a, b, c, d, e) = (&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
        let file = self.dir.join("boot-id");
        std::fs::write(&file, format!("{a}-{b}-{c}-{d}-{e}\n")).expect("write a boot id");
        file
    }

    /// Starts the daemon and waits until it answers.
    #[track_caller]
    pub fn start(&mut self) {
        self.launch();
        wait_for(&format!("the daemon of {}", self.name), STEP_LIMIT, || {
            let alive = self.daemon.as_mut().is_some_and(Process::is_running);
            assert!(alive, "the daemon of {} ended:\n{}", self.name, self.log());
            let ran = self.lockstep(&["status", RESOURCE, "--json"]);
            if ran.code == 0 { Ok(()) } else { Err(ran.to_string()) }
        });
    }

    /// Stops the daemon as an init system does, and waits; it must end with success.
    #[track_caller]
    pub fn stop(&mut self) {
        self.terminate();
        self.wait_stopped();
    }

    /// Tells the daemon to stop, without waiting.
    pub fn terminate(&self) {
        self.running().terminate();
    }

    /// Waits for the end of a daemon that was told to stop.
    #[track_caller]
    pub fn wait_stopped(&mut self) {
        let mut daemon = self.daemon.take().expect("a daemon");
        let status = daemon.wait_end(STEP_LIMIT);
        assert!(status.success(), "the daemon of {} ended with {status}:\n{}", self.name, self.log());
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.daemon.take().expect("a daemon").kill();
    }

    /// kill -9, and the node comes back with another boot id. What the kernel had cached is not lost: this is
    /// what the daemon sees of a power loss, not what a disk does.
    pub fn lose_power(&mut self) {
        self.kill();
        self.power_losses += 1;
    }

    /// What the next daemon sees of the time since a past moment: another boot, or the same.
    pub fn returns(&mut self, after_power_loss: bool) {
        assert!(self.daemon.is_none(), "{} runs", self.name);
        self.power_losses = if after_power_loss { self.power_losses + 1 } else { 0 };
    }

    /// Its metadata file.
    pub fn metadata(&self) -> PathBuf {
        self.metadata_dir.join(format!("{RESOURCE}.0.meta"))
    }

    /// As `own_metadata` of a plan says.
    pub(crate) fn keep_metadata_apart(&mut self) {
        self.metadata_dir = self.dir.join("metadata");
        std::fs::create_dir(&self.metadata_dir).expect("folder of the metadata");
    }

    /// Panics unless the daemon's own descriptor of its disk says O_DIRECT.
    #[track_caller]
    pub fn assert_direct(&self) {
        let disk = self.disk.canonicalize().expect("a disk");
        let process = PathBuf::from(format!("/proc/{}", self.pid()));
        let mut open = std::fs::read_dir(process.join("fd")).expect("descriptors of a daemon").flatten();
        let found = open.find(|entry| entry.path().read_link().is_ok_and(|path| path == disk));
        let number = found.expect("the daemon has its disk open").file_name();
        let facts =
            std::fs::read_to_string(process.join("fdinfo").join(number)).expect("facts of a descriptor");
        let flags =
            facts.lines().find_map(|line| line.strip_prefix("flags:")).expect("flags of a descriptor");
        let flags = u32::from_str_radix(flags.trim(), 8).expect("flags in octal digits");
        assert!(flags & OFlags::DIRECT.bits() != 0, "{} has not opened its disk with O_DIRECT", self.name);
    }

    /// Stops the daemon's threads (SIGSTOP) until [`Self::resume`].
    pub fn pause(&self) {
        self.running().pause();
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.running().resume();
    }

    /// Process id of the daemon.
    pub fn pid(&self) -> u32 {
        self.running().pid()
    }

    /// Whether it has a daemon.
    pub fn is_running(&self) -> bool {
        self.daemon.is_some()
    }

    /// Panics if the daemon ended by itself.
    #[track_caller]
    pub fn assert_alive(&mut self) {
        let alive = self.daemon.as_mut().is_none_or(Process::is_running);
        assert!(alive, "the daemon of {} ended by itself:\n{}", self.name, self.log());
    }

    /// Whether the daemon that was launched ended by itself.
    pub fn has_ended(&mut self) -> bool {
        !self.daemon.as_mut().expect("a daemon").is_running()
    }

    fn running(&self) -> &Process {
        self.daemon.as_ref().expect("a daemon")
    }

    /// `promote`, without flags.
    pub fn promote(&self) -> Ran {
        self.lockstep(&["promote", RESOURCE])
    }

    /// `demote`, without flags.
    pub fn demote(&self) -> Ran {
        self.lockstep(&["demote", RESOURCE])
    }

    /// `demote` when the daemon has noticed that its last client went: closing a socket does not wait for that.
    #[track_caller]
    pub fn demote_idle(&self) {
        self.wait_status("no client", |status| status["clients"].as_array().is_some_and(Vec::is_empty));
        self.demote().ok();
    }

    /// What `status` says of the resource.
    #[track_caller]
    pub fn status(&self) -> Value {
        let text = self.lockstep(&["status", RESOURCE, "--json"]).ok();
        let document: Value = serde_json::from_str(&text).expect("status --json prints JSON");
        assert_eq!(document["schema"], 1);
        document["resources"][0].clone()
    }

    /// What `status` says of the peer.
    #[track_caller]
    pub fn peer(&self) -> Value {
        self.status()["peers"][0].clone()
    }

    /// Bytes copied by resync over this daemon's life.
    #[track_caller]
    pub fn resynced_bytes(&self) -> u64 {
        self.peer()["resynced_bytes_total"].as_u64().expect("a number")
    }

    /// Until both copies are UpToDate and mirrored.
    #[track_caller]
    pub fn wait_protected(&self) {
        self.wait_status("protected", |status| status["protected"] == true);
    }

    /// Until the connection is in this state.
    #[track_caller]
    pub fn wait_connection(&self, state: &str) {
        self.wait_status(&format!("connection {state}"), |status| status["peers"][0]["connection"] == state);
    }

    /// Until the link is used for this.
    #[track_caller]
    pub fn wait_replication(&self, state: &str) {
        self.wait_status(&format!("replication {state}"), |status| {
            status["peers"][0]["replication"] == state
        });
    }

    /// Until `status` satisfies a condition.
    #[track_caller]
    pub fn wait_status(&self, what: &str, mut holds: impl FnMut(&Value) -> bool) -> Value {
        wait_for(&format!("{} on {}", what, self.name), STEP_LIMIT, || {
            let status = self.status();
            if holds(&status) { Ok(status) } else { Err(format!("{status:#}")) }
        })
    }

    /// An NBD client of this node.
    pub fn connect(&self) -> std::io::Result<Connection> {
        Connection::open(self.nbd(), RESOURCE)
    }

    /// Prints the end of the daemon's log.
    pub fn print_log(&self) {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let from = lines.len().saturating_sub(LOG_LINES_SHOWN);
        println!("---- log of {} (last {} of {} lines)", self.name, lines.len() - from, lines.len());
        for line in &lines[from..] {
            println!("{line}");
        }
    }
}
