//! A machine in namespaces, where an operator types what the documents say, letter by letter: it has a name, an
//! address, a disk at /dev/vdb, and folders of its own over those of this system.
//!
//! `ssh`, `scp` and `cargo` are stand-ins that reach the other machine, or fetch the program under test. Everything
//! that runs there is a child of the test. It needs root.

use crate::process::Process;
use crate::run::{Ran, binary, run};
use crate::wait::wait_until;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const SCRIPT: &str = include_str!("machine.sh");
const START_LIMIT: Duration = Duration::from_secs(20);
/// Where Debian's programs are; cargo's own folder is not among them.
const PATH: &str = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";

/// A machine; it is gone with its handle.
#[derive(Debug)]
pub struct Machine {
    name: String,
    folder: PathBuf,
    /// Whose namespaces are the machine.
    holder: Process,
    started: Vec<Process>,
}

impl Machine {
    /// One with a disk of this size, below `dir`; without a network.
    pub fn new(dir: &Path, name: &str, disk_bytes: u64) -> Machine {
        let folder = dir.join(name);
        std::fs::create_dir(&folder).expect("folder of a machine");
        let script = dir.join("machine.sh");
        std::fs::write(&script, SCRIPT).expect("write a script");
        let shown = |path: &Path| path.display().to_string();
        let program = dir.join("program");
        std::fs::copy(binary(), &program).expect("copy the program under test");
        let mut arguments: Vec<String> =
            ["--mount", "--uts", "--net", "--propagation", "private", "sh"].map(str::to_string).into();
        arguments.extend([shown(&script), name.to_string(), shown(&folder), shown(&program)]);
        arguments.push(disk_bytes.to_string());
        let log = dir.join(format!("{name}.log"));
        let mut holder = Process::start(Path::new("unshare"), &arguments, &log, None);
        wait_until("a machine", START_LIMIT, || {
            let said = || std::fs::read_to_string(&log).unwrap_or_default();
            assert!(holder.is_running(), "{name} ended:\n{}", said());
            dir.join(format!("{name}.pid")).exists()
        });
        Machine { name: name.to_string(), folder, holder, started: Vec::new() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A cable between two machines.
    pub fn connect(ends: [(&Machine, &str); 2]) {
        let [from, to] = ends.map(|(machine, _)| machine.holder.pid().to_string());
        let pair = ["link", "add", "name", "eth0", "netns", &from, "type", "veth", "peer", "name", "eth0"];
        run(Command::new("ip").args(pair).args(["netns", &to])).ok();
        for (machine, address) in ends {
            machine.types(&format!("ip addr add {address} dev eth0")).ok();
            machine.plug(true);
        }
    }

    /// Puts the cable in, or pulls it.
    pub fn plug(&self, in_place: bool) {
        let state = if in_place { "up" } else { "down" };
        self.types(&format!("ip link set eth0 {state}")).ok();
    }

    fn enter(&self) -> Vec<String> {
        let home = self.folder.join("home").display().to_string();
        // What the test's own environment says of cargo and sockets is of no concern there.
        let target = self.holder.pid().to_string();
        let words = ["--target", &target, "--mount", "--uts", "--net", "env", "-i", PATH, "sh", "-c"];
        let begin = format!("cd {home} && eval \"$0\"");
        words.iter().map(ToString::to_string).chain([begin]).collect()
    }

    /// Types a line, and waits for its end.
    pub fn types(&self, line: &str) -> Ran {
        let mut ran = run(Command::new("nsenter").args(self.enter()).arg(line));
        ran.typed = format!("{}: {line}", self.name);
        ran
    }

    /// Types a line that goes on by itself.
    pub fn starts(&mut self, line: &str) {
        let mut arguments = self.enter();
        arguments.push(format!("exec {line}"));
        let log = self.folder.with_extension("log");
        self.started.push(Process::start(Path::new("nsenter"), &arguments, &log, None));
    }

    /// What its programs printed that went on by themselves.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.with_extension("log")).unwrap_or_default()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("---- log of {}\n{}", self.name, self.log());
        }
    }
}
