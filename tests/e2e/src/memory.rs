//! Memory of a node's daemon: what it takes, and what it said that it would take at most.

use crate::node::Node;

impl Node {
    /// Resident memory of the daemon.
    #[track_caller]
    pub fn rss_bytes(&self) -> u64 {
        let file = format!("/proc/{}/status", self.pid());
        let status = std::fs::read_to_string(&file).expect("read from /proc");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a resident size");
        let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse().expect("a number");
        kib << 10
    }

    /// What the daemon said at its last start.
    #[track_caller]
    pub fn budget_bytes(&self) -> u64 {
        let log = self.log();
        let said = log.rsplit_once("memory: ").and_then(|(_, said)| said.split_once(" MiB at most"));
        let (mib, _) = said.unwrap_or_else(|| panic!("no budget in the log:\n{log}"));
        mib.parse::<u64>().expect("a number") << 20
    }
}
