//! Checkpoints: who creates and deletes them, what the volume held at each, and whether their bits are complete (C13).
//!
//! The content at a point is that of the Primary's disk in the very step of the core in which the checkpoint appears;
//! where a write is in flight to that disk it may be the content before or after it, since nobody was told of either
//! and whoever reads waits for the write.
//! Whatever a node calls complete and lets be read has to name each block in which its disk differs from that, at
//! every instant. In a healed cluster both nodes have the same checkpoints, and none that waits for bits.

use crate::decision::Decision;
use crate::setup::MS;
use crate::world::{Ev, Phase, World};
use lockstep_bitmap::{BlockIndex, CheckpointId, CheckpointState};
use lockstep_core::{CheckpointName, CheckpointStatus, Command, Node, Role, Status};
use std::collections::BTreeMap;

/// What the volume held at each checkpoint.
pub(crate) type Points = BTreeMap<CheckpointId, Point>;

/// What it held at one.
pub(crate) struct Point {
    then: Vec<u64>,
    /// What was in flight, by sector.
    or: BTreeMap<usize, u64>,
}

impl Point {
    fn is(&self, sector: usize, tag: u64) -> bool {
        self.then[sector] == tag || self.or.get(&sector) == Some(&tag)
    }
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

impl World {
    /// Somebody who makes backups creates or deletes a checkpoint.
    pub(crate) fn checkpoint_step(&mut self) {
        let gap = self.rng.checkpoint.spread(30 * MS);
        self.after(gap, Ev::Checkpoint);
        if self.phase != Phase::Stormy || self.is_scripted() {
            return;
        }
        let is_primary = |n: &usize| self.look(*n).is_some_and(|status| status.role == Role::Primary);
        let primary = (0..2).find(is_primary);
        let rng = &mut self.rng.checkpoint;
        let n = match primary {
            Some(primary) if !rng.chance(50) => primary,
            _ => rng.below(2) as usize,
        };
        let Some(name) = CheckpointName::new(rng.pick(&NAMES)) else { return };
        let command = if rng.chance(650) {
            Command::CreateCheckpoint { name }
        } else {
            Command::DeleteCheckpoint { name }
        };
        self.propose(0, Decision::Command(n, command));
    }

    /// After a step of a core: a checkpoint that nobody had before begins here.
    pub(crate) fn learn_points(&mut self, n: usize, node: &Node) {
        for found in node.checkpoints() {
            if !self.points.contains_key(&found.id) {
                let disk = &self.hosts[n].disk;
                let point = Point { then: disk.visible().to_vec(), or: disk.flying_tags().collect() };
                self.points.insert(found.id, point);
            }
        }
    }

    /// What this node lets be read is complete.
    pub(crate) fn check_points(&mut self, n: usize, node: &Node) {
        let block_sectors = 1_usize << (self.setup.block_shift - 9);
        let visible = self.hosts[n].disk.visible();
        for held in node.checkpoints() {
            let (Some(bits), Some(then)) = (node.checkpoint_bits(held.id), self.points.get(&held.id)) else {
                continue;
            };
            let lacking = (0..visible.len()).find(|&sector| {
                !then.is(sector, visible[sector])
                    && !bits.is_dirty(BlockIndex((sector / block_sectors) as u64))
            });
            if let Some(sector) = lacking {
                let what = format!(
                    "node {n} ({}): checkpoint {} lacks sector {sector} (block {}): {} now, {} then",
                    node.status().role,
                    held.name,
                    sector / block_sectors,
                    crate::ghost::name(visible[sector]),
                    crate::ghost::name(then.then[sector])
                );
                return self.fail("C13 checkpoint", what);
            }
        }
    }

    /// The same on both, whatever they do.
    pub(crate) fn check_points_everywhere(&mut self) {
        for n in 0..2 {
            if let Some(node) = self.hosts[n].node.take() {
                self.check_points(n, &node);
                self.hosts[n].node = Some(node);
            }
        }
    }
}

/// What the nodes of a healed cluster still owe each other.
pub(crate) fn points_unrest(a: &Status, b: &Status) -> Option<String> {
    let sorted = |status: &Status| {
        let mut list = status.checkpoints.clone();
        list.sort_by_key(|held| held.id);
        list
    };
    let same = |(a, b): (&CheckpointStatus, &CheckpointStatus)| {
        let waits = matches!(a.state, CheckpointState::Incomplete(_));
        // Each may have its own reason for what is invalid.
        let worth = |held: &CheckpointStatus| held.state == CheckpointState::Complete;
        (a.id, &a.name, worth(a)) == (b.id, &b.name, worth(b)) && !waits
    };
    let (a, b) = (sorted(a), sorted(b));
    let equal = a.len() == b.len() && a.iter().zip(&b).all(same);
    (!equal).then(|| format!("the nodes' checkpoints differ: {a:?} / {b:?}"))
}
