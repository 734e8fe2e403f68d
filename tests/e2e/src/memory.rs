//! What a daemon takes of its machine, and what it said that it would take at most.

use crate::node::Node;
use crate::plain::Plain;
use crate::wait::wait_for;
use std::fs::read_dir;
use std::time::Duration;

impl Node {
    /// Resident memory of the daemon.
    #[track_caller]
    pub fn rss_bytes(&self) -> u64 {
        resident_bytes(self.pid(), "VmRSS:")
    }

    /// What the daemon said at its last start.
    #[track_caller]
    pub fn budget_bytes(&self) -> u64 {
        announced_bytes(&self.log())
    }
}

impl Plain {
    /// What the server said at its start.
    #[track_caller]
    pub fn budget_bytes(&self) -> u64 {
        announced_bytes(&self.log())
    }
}

/// Most memory that a process ever had resident.
#[track_caller]
pub fn peak_bytes(pid: u32) -> u64 {
    resident_bytes(pid, "VmHWM:")
}

/// Resident memory of a process now.
#[track_caller]
pub fn rss_bytes(pid: u32) -> u64 {
    resident_bytes(pid, "VmRSS:")
}

/// Descriptors that a process has open.
#[track_caller]
pub fn open_descriptors(pid: u32) -> usize {
    read_dir(format!("/proc/{pid}/fd")).expect("descriptors of a process").count()
}

/// The same, once the number stays for a while.
#[track_caller]
pub fn settled_descriptors(pid: u32) -> usize {
    const LOOKS: usize = 10;
    const LIMIT: Duration = Duration::from_secs(60);
    let mut seen = Vec::new();
    wait_for("a number of descriptors that stays", LIMIT, || {
        seen.push(open_descriptors(pid));
        let last = &seen[seen.len().saturating_sub(LOOKS)..];
        let stays = last.len() == LOOKS && last.iter().all(|open| open == &last[0]);
        stays.then_some(last[0]).ok_or_else(|| format!("{last:?}"))
    })
}

#[track_caller]
fn resident_bytes(pid: u32, key: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("read from /proc");
    let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("a resident size");
    let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse().expect("a number");
    kib << 10
}

#[track_caller]
fn announced_bytes(log: &str) -> u64 {
    let said = log.rsplit_once("memory: ").and_then(|(_, said)| said.split_once(" MiB at most"));
    let (mib, _) = said.unwrap_or_else(|| panic!("no budget in the log:\n{log}"));
    mib.parse::<u64>().expect("a number") << 20
}
