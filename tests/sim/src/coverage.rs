//! What the runs have reached: decisions of each kind, verdicts, refusals, and the marks of rare branches.
//!
//! A simulator that never comes to a place proves nothing of it. What it must reach is listed here (marks list
//! themselves, see `bitmap/src/marks.rs`); over many seeds, whatever was not reached is a defect of the simulator.

use crate::{Outcome, words};
use lockstep_bitmap::marks::Mark;
use std::collections::{BTreeMap, BTreeSet};

/// How many runs had each thing, and how often each mark was hit.
#[derive(Debug, Default)]
pub struct Coverage {
    runs: BTreeMap<String, u64>,
}

impl Coverage {
    /// A run has ended.
    pub fn add(&mut self, outcome: &Outcome) {
        let kinds = outcome.scenario.lines.iter().map(|line| words::kind(&line.what));
        let all: BTreeSet<String> = kinds.chain(outcome.seen.iter().cloned()).collect();
        for what in all {
            *self.runs.entry(what).or_default() += 1;
        }
    }

    /// Prints everything with its number, a few to a line, and gives what was never reached.
    pub fn report(&self) -> Vec<String> {
        let expected = EXPECTED.iter().map(|name| (name.to_string(), 0));
        let mut runs: BTreeMap<String, u64> = expected.collect();
        runs.extend(self.runs.clone());
        print("runs with", runs.iter().map(|(name, runs)| (name.clone(), *runs)));
        let marks = || Mark::ALL.iter().map(|&mark| (format!("{mark:?}"), mark.hits()));
        print("marks", marks());
        let never = runs.into_iter().chain(marks()).filter(|(_, hits)| *hits == 0).map(|(name, _)| name);
        never.filter(|name| !BEYOND.contains(&name.as_str())).collect()
    }
}

fn print(title: &str, counts: impl Iterator<Item = (String, u64)>) {
    let cells: Vec<String> = counts.map(|(name, count)| format!("{count:>9} {name:<28}")).collect();
    println!("{title}:");
    for line in cells.chunks(3) {
        println!("{}", line.concat().trim_end());
    }
}

/// First word of a value as it is printed for debugging: the name of its variant.
pub(crate) fn variant(value: &impl std::fmt::Debug) -> String {
    let text = format!("{value:?}");
    text.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default().to_string()
}

/// A verdict by its code, see [`lockstep_core::Verdict::code`].
pub(crate) fn verdict(code: u8) -> String {
    const SYNCS: [&str; 6] = ["SameGeneration", "Ahead", "Fresh", "Resolved", "Restored", "Unfinished"];
    const REFUSALS: [&str; 7] =
        ["SplitBrain", "Unrelated", "NoSource", "TargetIsPrimary", "BothDiscard", "SizeMismatch", "Diskless"];
    let name = match code {
        1 => Some(&"no-sync"),
        2 => Some(&"adopt"),
        3 => Some(&"serve"),
        16..32 => SYNCS.get(usize::from(code) - 16),
        _ => REFUSALS.get(usize::from(code).wrapping_sub(32)),
    };
    name.map_or_else(|| format!("verdict {code}"), |name| format!("verdict {name}"))
}

/// Marks that may stay at zero. Two superblocks of one number need two failures in a row that land on one side each
/// (`bitmap/tests/disk/damage.rs` has that); the others need a link that ends, or another verb that begins, within the
/// write of one record, and none of some four thousand seeds had it.
const BEYOND: [&str; 3] = ["SuperblocksDisagree", "RotatedAfterAgreement", "LeaveRefused"];

/// Not listed, since no run can have them: `adopt` (nobody declares two copies clean), `Unrelated` (that would be a
/// defect), `SizeMismatch` (disks do not grow).
///
/// Kinds of decisions, verdicts and refusals that some run must have had.
const EXPECTED: [&str; 89] = [
    "boot",
    "boot no-disk",
    "client deaf",
    "client flush",
    "client goodbye",
    "client join",
    "client join structured",
    "client leave",
    "client mute",
    "client read",
    "client trim",
    "client write",
    "client wrong empty",
    "client wrong flag",
    "client wrong misaligned",
    "client wrong past-the-end",
    "client zero",
    "client zero-allocate",
    "fault aim kill",
    "fault aim power",
    "fault flip",
    "fault hang",
    "fault kill",
    "fault pause",
    "fault power",
    "fault refuse",
    "fault reset",
    "fault restore-image",
    "fault rot",
    "fault silence",
    "fault silence both",
    "fault stranger",
    "fault take-image",
    "fault trouble all",
    "fault trouble flush",
    "fault trouble full",
    "fault trouble meta",
    "fault trouble read",
    "fault trouble sectors",
    "fault trouble write",
    "fault trouble write-and-flush",
    "fault unreadable",
    "fault wall-clock back",
    "fault wall-clock forward",
    "operator attach",
    "operator attach empty",
    "operator connect",
    "operator demote",
    "operator demote force",
    "operator detach",
    "operator disconnect",
    "operator invalidate",
    "operator invalidate-remote",
    "operator leave",
    "operator promote",
    "operator promote accept-data-loss",
    "operator promote peer-is-down",
    "operator resolve",
    "operator sync",
    "operator sync pause",
    "operator sync resume",
    "refusal Busy",
    "refusal DataLoss",
    "refusal DiskFailed",
    "refusal InUse",
    "refusal LastCopy",
    "refusal LinkLost",
    "refusal MayBeStale",
    "refusal NoData",
    "refusal NoDisk",
    "refusal NoOtherCopy",
    "refusal NotConnected",
    "refusal PeerAnswers",
    "refusal PeerIsPrimary",
    "refusal PeerWon",
    "refusal SplitBrain",
    "refusal Unanswered",
    "verdict Ahead",
    "verdict Diskless",
    "verdict Fresh",
    "verdict NoSource",
    "verdict Resolved",
    "verdict Restored",
    "verdict SameGeneration",
    "verdict SplitBrain",
    "verdict TargetIsPrimary",
    "verdict Unfinished",
    "verdict no-sync",
    "verdict serve",
];
