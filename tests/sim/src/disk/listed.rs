//! Crashes of which every outcome is wanted, not one that is drawn: what was under way is decided atom by atom.
//!
//! An atom is a block of 4 KiB of data, or one copy of a metadata page. A block in flight, or not durable where the
//! power is lost, keeps any version from the durable one to the newest; a page in flight is old, new, or torn.

use super::{DataDisk, MetaFile, SECTOR};
use std::collections::{BTreeMap, BTreeSet};

const ATOM_SECTORS: usize = 8;

impl DataDisk {
    /// The process is gone, and the power too if `power` says so; `choose` picks one of so many outcomes.
    pub(crate) fn crash_listed(&mut self, power: bool, choose: &mut dyn FnMut(usize) -> usize) {
        for (_, f) in std::mem::take(&mut self.flying) {
            self.completions += 1;
            // Without power its version is one of those that are picked from below.
            if power || choose(2) == 1 {
                for (i, &tag) in f.tags.iter().enumerate() {
                    self.land(f.first + i, tag);
                }
            }
        }
        if power {
            self.lose_cache(choose);
        }
    }

    fn lose_cache(&mut self, choose: &mut dyn FnMut(usize) -> usize) {
        let mut atoms: BTreeMap<usize, BTreeSet<u64>> = BTreeMap::new();
        for (sector, versions) in &self.volatile {
            atoms.entry(sector / ATOM_SECTORS).or_default().extend(versions.iter().map(|(done, _)| done));
        }
        for (atom, versions) in atoms {
            let kept = choose(versions.len() + 1);
            let newest = versions.into_iter().take(kept).max().unwrap_or(0);
            for sector in atom * ATOM_SECTORS..(atom + 1) * ATOM_SECTORS {
                let of_sector = self.volatile.remove(&sector).unwrap_or_default();
                if let Some((_, tag)) = of_sector.into_iter().rev().find(|(done, _)| *done <= newest) {
                    self.durable[sector] = tag;
                }
            }
        }
        self.visible.clone_from(&self.durable);
    }

    /// What is on it, for comparison.
    pub(crate) fn content(&self) -> impl std::fmt::Debug {
        (&self.visible, &self.durable, &self.volatile)
    }
}

impl MetaFile {
    /// Process or machine die: each copy of a page in flight is old, new, or torn: of the sectors that differ, the
    /// first is new and the others are old, or the other way round.
    pub(crate) fn crash_listed(&mut self, choose: &mut dyn FnMut(usize) -> usize) {
        const SECTOR_BYTES: usize = SECTOR as usize;
        for (_, (offsets, new)) in std::mem::take(&mut self.flying) {
            for at in offsets {
                let old = self.bytes[at as usize..][..new.len()].to_vec();
                let mut pairs = old.chunks(SECTOR_BYTES).zip(new.chunks(SECTOR_BYTES));
                let end_of_first =
                    pairs.position(|(old, new)| old != new).map_or(0, |n| (n + 1) * SECTOR_BYTES);
                let (old_head, old_tail) = old.split_at(end_of_first.min(old.len()));
                let (new_head, new_tail) = new.split_at(end_of_first.min(new.len()));
                let torn = [[new_head, old_tail].concat(), [old_head, new_tail].concat()];
                let mut outcomes = vec![old.clone(), new.clone()];
                outcomes.extend(torn);
                outcomes.sort();
                outcomes.dedup();
                let chosen = choose(outcomes.len());
                self.put(at, &outcomes[chosen]);
            }
        }
    }
}
