//! Two hosts and a client in network namespaces of their own, with a cable between each two of them, and what happens
//! to cables: one is pulled, packets vanish, all or some, one way or both.
//!
//! The namespaces are gone with their handle. It needs root, `ip` and `nft`.

use crate::dial::Target;
use crate::foreign::require;
use crate::process::Process;
use crate::run::run;
use crate::wait::wait_until;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const START_LIMIT: Duration = Duration::from_secs(20);

/// The cables, and the hosts at their ends: two nodes and a client.
#[derive(Debug)]
pub struct Wires {
    holders: [Process; 3],
}

const CLIENT: usize = 2;
/// Between a node and the client, at either end.
const CLIENT_CABLES: [&str; 2] = ["client0", "client1"];

impl Wires {
    /// Addresses of the nodes for each other.
    pub const ADDRESSES: [&str; 2] = ["10.0.0.1", "10.0.0.2"];
    /// Addresses of the nodes for the client.
    pub const NBD: [&str; 2] = ["10.0.1.1:10809", "10.0.2.1:10809"];

    /// Hosts that reach each other. What their holders say goes into a file in `dir`.
    pub fn new(dir: &Path) -> Wires {
        let hold = || {
            let arguments = ["--net", "sleep", "infinity"].map(str::to_string);
            Process::start(Path::new("unshare"), &arguments, &dir.join("hosts.log"), None)
        };
        let wires = Wires { holders: [hold(), hold(), hold()] };
        let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).ok();
        for pid in wires.holders.iter().map(Process::pid) {
            wait_until("a namespace", START_LIMIT, || namespace(&pid.to_string()) != namespace("self"));
        }
        wires.lay("eth0", [0, 1], Wires::ADDRESSES);
        wires.lay(CLIENT_CABLES[0], [0, CLIENT], ["10.0.1.1", "10.0.1.2"]);
        wires.lay(CLIENT_CABLES[1], [1, CLIENT], ["10.0.2.1", "10.0.2.2"]);
        wires.heal();
        wires
    }

    fn lay(&self, name: &str, ends: [usize; 2], addresses: [&str; 2]) {
        let [from, to] = ends.map(|host| self.holders[host].pid().to_string());
        let pair = ["link", "add", "name", name, "netns", &from, "type", "veth", "peer", "name", name];
        run(Command::new(require("ip")).args(pair).args(["netns", &to])).ok();
        for (host, address) in ends.into_iter().zip(addresses) {
            self.types(host, "ip", &["addr", "add", &format!("{address}/24"), "dev", name]);
            self.types(host, "ip", &["link", "set", "lo", "up"]);
        }
    }

    /// The export of a node as the client reaches it.
    pub fn export_of(&self, node: usize) -> Target {
        let address = Wires::NBD[node].parse().expect("an address with a port");
        Target::Tcp { address, host: self.holders[CLIENT].pid() }
    }

    /// Puts in the client's cable to a node, or pulls it.
    pub fn plug_client(&self, node: usize, in_place: bool) {
        let state = if in_place { "up" } else { "down" };
        for host in [node, CLIENT] {
            self.types(host, "ip", &["link", "set", CLIENT_CABLES[node], state]);
        }
    }

    /// Processes whose network namespaces are the nodes.
    pub fn pids(&self) -> [u32; 2] {
        [self.holders[0].pid(), self.holders[1].pid()]
    }

    /// Puts the cable between the nodes in, or pulls it.
    pub fn plug(&self, in_place: bool) {
        for host in 0..2 {
            self.types(host, "ip", &["link", "set", "eth0", if in_place { "up" } else { "down" }]);
        }
    }

    /// So many of a hundred packets from the other node to this one vanish, until [`Self::heal`].
    pub fn lose(&self, to: usize, percent: u64) {
        let which = if percent < 100 { format!("numgen random mod 100 < {percent}") } else { String::new() };
        let rules = format!(
            "table inet faults {{ chain in {{ type filter hook input priority 0; iifname eth0 {which} drop; }}; }}"
        );
        self.types(to, "nft", &[&rules]);
    }

    /// Nothing vanishes any more, and all cables are in.
    pub fn heal(&self) {
        for host in 0..2 {
            self.types(host, "nft", &["flush ruleset"]);
        }
        self.plug(true);
        (0..2).for_each(|node| self.plug_client(node, true));
    }

    fn types(&self, host: usize, program: &str, arguments: &[&str]) {
        let target = self.holders[host].pid().to_string();
        let mut command = Command::new("nsenter");
        command.args(["--target", &target, "--net", "--"]).arg(require(program)).args(arguments);
        run(&mut command).ok();
    }
}
