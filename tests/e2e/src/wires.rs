//! Two hosts in network namespaces of their own with a cable between them, and what happens to cables: it is pulled,
//! packets vanish, all or some, one way or both.
//!
//! The namespaces are gone with their handle. It needs root, `ip` and `nft`.

use crate::foreign::require;
use crate::process::Process;
use crate::run::run;
use crate::wait::wait_until;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const START_LIMIT: Duration = Duration::from_secs(20);

/// The cable, and the hosts at its ends.
#[derive(Debug)]
pub struct Wires {
    holders: [Process; 2],
}

impl Wires {
    /// Addresses of the hosts.
    pub const ADDRESSES: [&str; 2] = ["10.0.0.1", "10.0.0.2"];

    /// Two hosts that reach each other. What their holders say goes into a file in `dir`.
    pub fn new(dir: &Path) -> Wires {
        let hold = || {
            let arguments = ["--net", "sleep", "infinity"].map(str::to_string);
            Process::start(Path::new("unshare"), &arguments, &dir.join("hosts.log"), None)
        };
        let wires = Wires { holders: [hold(), hold()] };
        let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).ok();
        for pid in wires.pids() {
            wait_until("a namespace", START_LIMIT, || namespace(&pid.to_string()) != namespace("self"));
        }
        let [from, to] = wires.pids().map(|pid| pid.to_string());
        let pair = ["link", "add", "name", "eth0", "netns", &from, "type", "veth", "peer", "name", "eth0"];
        run(Command::new(require("ip")).args(pair).args(["netns", &to])).ok();
        for (host, address) in Wires::ADDRESSES.iter().enumerate() {
            wires.types(host, "ip", &["addr", "add", &format!("{address}/24"), "dev", "eth0"]);
            wires.types(host, "ip", &["link", "set", "lo", "up"]);
        }
        wires.plug(true);
        wires
    }

    /// Processes whose network namespaces are the hosts.
    pub fn pids(&self) -> [u32; 2] {
        [self.holders[0].pid(), self.holders[1].pid()]
    }

    /// Puts the cable in, or pulls it.
    pub fn plug(&self, in_place: bool) {
        for host in 0..2 {
            self.types(host, "ip", &["link", "set", "eth0", if in_place { "up" } else { "down" }]);
        }
    }

    /// So many of a hundred packets to this host vanish, until [`Self::heal`].
    pub fn lose(&self, to: usize, percent: u64) {
        let which = if percent < 100 { format!("numgen random mod 100 < {percent}") } else { String::new() };
        let rules = format!(
            "table inet faults {{ chain in {{ type filter hook input priority 0; iifname eth0 {which} drop; }}; }}"
        );
        self.types(to, "nft", &[&rules]);
    }

    /// Nothing vanishes any more, and the cable is in.
    pub fn heal(&self) {
        for host in 0..2 {
            self.types(host, "nft", &["flush ruleset"]);
        }
        self.plug(true);
    }

    fn types(&self, host: usize, program: &str, arguments: &[&str]) {
        let target = self.pids()[host].to_string();
        let mut command = Command::new("nsenter");
        command.args(["--target", &target, "--net", "--"]).arg(require(program)).args(arguments);
        run(&mut command).ok();
    }
}
