//! The disks of a simulated machine: a data disk with a volatile cache, and a metadata file that is durable
//! at completion.
//!
//! The data disk stores one 64-bit tag per 512-byte sector instead of the bytes. A write is visible when it
//! completes and durable when a flush that was submitted later completes, when the cache evicts it, or at
//! once with FUA. A process crash lets each write in flight land fully, not at all, or in any subset of its
//! sectors; a power loss also lets each sector that is not durable fall back to any version since the
//! durable one.

mod listed;

use crate::prng::Prng;
use lockstep_bitmap::{Findings, Store, recover};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Bytes of a sector.
pub(crate) const SECTOR: u64 = 512;
/// Tag of a sector of zeroes.
pub(crate) const ZERO: u64 = 0;
/// Content of a slot that nobody put there; writing it is an error.
pub(crate) const UNDEFINED: u64 = u64::MAX;

struct Flying {
    first: usize,
    tags: Vec<u64>,
    fua: bool,
}

/// A data disk.
pub(crate) struct DataDisk {
    visible: Vec<u64>,
    durable: Vec<u64>,
    /// Versions newer than the durable one, oldest first, with the number of the completion that made them.
    volatile: BTreeMap<usize, Vec<(u64, u64)>>,
    flying: BTreeMap<u32, Flying>,
    completions: u64,
}

impl DataDisk {
    /// A disk that holds `tags`, durably.
    pub(crate) fn new(tags: Vec<u64>) -> Self {
        DataDisk {
            visible: tags.clone(),
            durable: tags,
            volatile: BTreeMap::new(),
            flying: BTreeMap::new(),
            completions: 0,
        }
    }

    /// What a read would return now.
    pub(crate) fn visible(&self) -> &[u64] {
        &self.visible
    }

    /// Takes a write; refuses one that overlaps a write in flight (ordering 20).
    pub(crate) fn submit(&mut self, op: u32, first: usize, tags: Vec<u64>, fua: bool) -> Result<(), String> {
        let end = first + tags.len();
        if end > self.visible.len() {
            return Err(format!("write of sectors {first}..{end} is outside the volume"));
        }
        if tags.contains(&UNDEFINED) {
            return Err(format!(
                "write of sectors {first}..{end} takes bytes that were never put in the slot"
            ));
        }
        for (other, f) in &self.flying {
            if f.first < end && first < f.first + f.tags.len() {
                return Err(format!(
                    "write {op} of sectors {first}..{end} overlaps write {other} in flight at {}..{}",
                    f.first,
                    f.first + f.tags.len()
                ));
            }
        }
        self.flying.insert(op, Flying { first, tags, fua });
        Ok(())
    }

    /// A write completes; gives its first sector and their number.
    pub(crate) fn complete(&mut self, op: u32) -> (usize, usize) {
        let f = self.flying.remove(&op).expect("completions are scheduled once per submission");
        self.completions += 1;
        for (i, &tag) in f.tags.iter().enumerate() {
            self.land(f.first + i, tag);
            if f.fua {
                self.volatile.remove(&(f.first + i));
                self.durable[f.first + i] = tag;
            }
        }
        (f.first, f.tags.len())
    }

    /// A write with FUA is visible, and not durable: its flush is to fail.
    pub(crate) fn complete_unsynced(&mut self, op: u32) {
        if let Some(f) = self.flying.get_mut(&op) {
            f.fua = false;
        }
        self.complete(op);
    }

    /// A write fails: any of its sectors may have been written all the same.
    pub(crate) fn fail(&mut self, op: u32, rng: &mut Prng) {
        let f = self.flying.remove(&op).expect("completions are scheduled once per submission");
        self.completions += 1;
        let fate = rng.below(3);
        for (i, &tag) in f.tags.iter().enumerate() {
            if fate == 1 || (fate == 2 && rng.coin()) {
                self.land(f.first + i, tag);
            }
        }
    }

    /// A flush fails: the cache drops what it could not write, now or later.
    pub(crate) fn fail_flush(&mut self, rng: &mut Prng) {
        for (sector, versions) in std::mem::take(&mut self.volatile) {
            let kept = rng.below(versions.len() as u64 + 1) as usize;
            if kept > 0 {
                self.durable[sector] = versions[kept - 1].1;
            }
            self.visible[sector] = self.durable[sector];
        }
    }

    /// The sectors that a write in flight touches.
    pub(crate) fn flying_sectors(&self, op: u32) -> std::ops::Range<usize> {
        self.flying.get(&op).map_or(0..0, |f| f.first..f.first + f.tags.len())
    }

    /// The sectors that writes in flight touch.
    pub(crate) fn all_flying_sectors(&self) -> Vec<usize> {
        self.flying.values().flat_map(|f| f.first..f.first + f.tags.len()).collect()
    }

    /// The sectors that writes in flight touch, and what will be there.
    pub(crate) fn flying_tags(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        self.flying.values().flat_map(|f| f.tags.iter().enumerate().map(|(i, &tag)| (f.first + i, tag)))
    }

    /// What a flush submitted now covers; give it to [`Self::complete_flush`].
    pub(crate) fn submit_flush(&self) -> u64 {
        self.completions
    }

    /// A flush completes.
    pub(crate) fn complete_flush(&mut self, covered: u64) {
        let durable = &mut self.durable;
        self.volatile.retain(|&sector, versions| {
            while versions.first().is_some_and(|(done, _)| *done <= covered) {
                durable[sector] = versions.remove(0).1;
            }
            !versions.is_empty()
        });
    }

    /// The cache writes back a few sectors of its own choice.
    pub(crate) fn evict(&mut self, rng: &mut Prng) {
        let dirty: Vec<usize> = self.volatile.keys().copied().collect();
        for sector in dirty {
            if rng.chance(100) {
                let versions = self.volatile.get_mut(&sector).expect("listed above");
                let upto = rng.below(versions.len() as u64) as usize;
                self.durable[sector] = versions[upto].1;
                versions.drain(..=upto);
                if versions.is_empty() {
                    self.volatile.remove(&sector);
                }
            }
        }
    }

    /// Tags of a range; a sector with a write in flight reads as either version.
    pub(crate) fn read(&self, first: usize, count: usize, rng: &mut Prng) -> Vec<u64> {
        let mut out = self.visible[first..first + count].to_vec();
        for f in self.flying.values() {
            for (i, &tag) in f.tags.iter().enumerate() {
                let sector = f.first + i;
                if sector >= first && sector < first + count && rng.coin() {
                    out[sector - first] = tag;
                }
            }
        }
        out
    }

    /// The process that submitted the writes in flight is gone.
    pub(crate) fn process_crash(&mut self, rng: &mut Prng) {
        for (_, f) in std::mem::take(&mut self.flying) {
            self.completions += 1;
            let fate = rng.below(3);
            for (i, &tag) in f.tags.iter().enumerate() {
                if fate == 1 || (fate == 2 && rng.coin()) {
                    self.land(f.first + i, tag);
                }
            }
        }
    }

    /// The machine loses power.
    pub(crate) fn power_loss(&mut self, rng: &mut Prng) {
        self.process_crash(rng);
        let sectors = self.visible.len() as u64;
        let keeps = match rng.below(10) {
            0 => Keeps::Nothing,
            1 => Keeps::All,
            2 | 3 => {
                let first = rng.below(sectors) as usize;
                Keeps::AllBut(first..first + rng.between(1, sectors) as usize)
            }
            4 => Keeps::Parts { split: rng.between(1, 7) as usize, front: rng.coin() },
            5 => Keeps::Until(rng.below(self.completions + 1)),
            _ => Keeps::Some,
        };
        for (sector, versions) in std::mem::take(&mut self.volatile) {
            let kept = keeps.of(sector, &versions, rng);
            if kept > 0 {
                self.durable[sector] = versions[kept - 1].1;
            }
            self.visible[sector] = self.durable[sector];
        }
    }

    /// The whole disk is replaced by this, durably; nothing is in flight.
    pub(crate) fn put(&mut self, tags: Vec<u64>) {
        self.volatile.clear();
        self.durable.clone_from(&tags);
        self.visible = tags;
    }

    /// Somebody else writes to the disk: a few sectors change, durably.
    pub(crate) fn scribble(&mut self, tag: impl Fn(usize) -> u64, rng: &mut Prng) {
        for sector in 0..self.visible.len() {
            if rng.chance(20) {
                self.volatile.remove(&sector);
                (self.visible[sector], self.durable[sector]) = (tag(sector), tag(sector));
            }
        }
    }

    /// True if the sector might hold anything but `tag` now or after a power loss.
    pub(crate) fn may_differ(&self, sector: usize, tag: u64) -> bool {
        self.visible[sector] != tag
            || self.durable[sector] != tag
            || self.volatile.get(&sector).is_some_and(|v| v.iter().any(|(_, t)| *t != tag))
    }

    /// Sectors with a version that a power loss would take, and that is not the durable one.
    pub(crate) fn unflushed(&self) -> impl Iterator<Item = (usize, u64)> {
        let volatile =
            self.volatile.iter().flat_map(|(&sector, v)| v.iter().map(move |&(_, tag)| (sector, tag)));
        volatile.filter(|&(sector, tag)| self.durable[sector] != tag)
    }

    /// A power loss leaves this sector as it is.
    pub(crate) fn is_stable(&self, sector: usize) -> bool {
        let same = |&(_, tag): &(u64, u64)| tag == self.durable[sector];
        self.visible[sector] == self.durable[sector]
            && self.volatile.get(&sector).is_none_or(|v| v.iter().all(same))
    }

    /// A sector in words.
    pub(crate) fn describe(&self, sector: usize) -> String {
        use crate::ghost::name;
        let volatile = self.volatile.get(&sector).map_or(0, Vec::len);
        format!(
            "{} (durable {}, {volatile} volatile)",
            name(self.visible[sector]),
            name(self.durable[sector])
        )
    }

    fn land(&mut self, sector: usize, tag: u64) {
        self.visible[sector] = tag;
        self.volatile.entry(sector).or_default().push((self.completions, tag));
    }
}

/// What a cache keeps of what it had not written when the power went.
enum Keeps {
    Nothing,
    All,
    /// A run of sectors falls back together.
    AllBut(std::ops::Range<usize>),
    /// Of each 4 KiB the sectors before the split, or those behind it.
    Parts {
        split: usize,
        front: bool,
    },
    /// It wrote in order, up to this completion.
    Until(u64),
    /// Each sector on its own.
    Some,
}

impl Keeps {
    /// So many versions of a sector.
    fn of(&self, sector: usize, versions: &[(u64, u64)], rng: &mut Prng) -> usize {
        let all_if = |keeps: bool| if keeps { versions.len() } else { 0 };
        match self {
            Keeps::Nothing => 0,
            Keeps::All => versions.len(),
            Keeps::AllBut(lost) => all_if(!lost.contains(&sector)),
            Keeps::Parts { split, front } => all_if((sector % 8 < *split) == *front),
            Keeps::Until(completion) => versions.iter().take_while(|(done, _)| done <= completion).count(),
            Keeps::Some => rng.below(versions.len() as u64 + 1) as usize,
        }
    }
}

/// A metadata file: real bytes; writes are durable at completion, every copy of a page on its own at a crash.
pub(crate) struct MetaFile {
    bytes: Vec<u8>,
    /// What was last read from these bytes: the checks ask more often than anything is written.
    read: RefCell<Option<(Rc<Store>, Findings)>>,
    flying: BTreeMap<u32, (Vec<u64>, Vec<u8>)>,
}

impl MetaFile {
    /// A file of zeroes.
    pub(crate) fn new(len: u64) -> Self {
        MetaFile { bytes: vec![0; len as usize], read: RefCell::new(None), flying: BTreeMap::new() }
    }

    /// What a start would find in what is durable.
    pub(crate) fn recovered(&self, max_hot: u32) -> Result<(Rc<Store>, Findings), String> {
        if let Some(read) = &*self.read.borrow() {
            return Ok(read.clone());
        }
        let mut read = |at: u64, out: &mut [u8]| {
            let rest = self.bytes.get(at as usize..).and_then(|rest| rest.get(..out.len()));
            out.copy_from_slice(rest.ok_or("past the end")?);
            Ok::<(), &str>(())
        };
        let found = recover(self.bytes.len() as u64, &mut read, max_hot);
        let (store, findings) = found.map_err(|e| format!("{e:?}"))?;
        let found = (Rc::new(store), findings);
        *self.read.borrow_mut() = Some(found.clone());
        Ok(found)
    }

    /// What is durable.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Writes at once (creation).
    pub(crate) fn put(&mut self, offset: u64, bytes: &[u8]) {
        *self.read.get_mut() = None;
        self.bytes[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    /// A bit turns over.
    pub(crate) fn flip(&mut self, bit: u64) {
        *self.read.get_mut() = None;
        let bit = bit % (self.bytes.len() as u64 * 8);
        self.bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
    }

    /// Takes a page write to all these offsets.
    pub(crate) fn submit(&mut self, op: u32, offsets: Vec<u64>, bytes: Vec<u8>) -> Result<(), String> {
        let len = bytes.len() as u64;
        for &at in &offsets {
            if at + len > self.bytes.len() as u64 || len == 0 {
                return Err(format!("metadata write of {len} bytes at {at} is outside the file"));
            }
            for (others, page) in self.flying.values() {
                if others.iter().any(|&o| o < at + len && at < o + page.len() as u64) {
                    return Err(format!("metadata write of {len} bytes at {at} overlaps one in flight"));
                }
            }
        }
        self.flying.insert(op, (offsets, bytes));
        Ok(())
    }

    /// A page write completes.
    pub(crate) fn complete(&mut self, op: u32) {
        let (offsets, bytes) =
            self.flying.remove(&op).expect("completions are scheduled once per submission");
        for at in offsets {
            self.put(at, &bytes);
        }
    }

    /// A page write fails.
    pub(crate) fn fail(&mut self, op: u32, rng: &mut Prng) {
        if let Some(page) = self.flying.remove(&op) {
            let others = std::mem::replace(&mut self.flying, BTreeMap::from([(op, page)]));
            self.crash(rng);
            self.flying = others;
        }
    }

    /// Process or machine die: each copy in flight lands, does not, or is torn between sectors.
    pub(crate) fn crash(&mut self, rng: &mut Prng) {
        for (_, (offsets, bytes)) in std::mem::take(&mut self.flying) {
            for at in offsets {
                let fate = rng.below(3);
                for (i, sector) in bytes.chunks(SECTOR as usize).enumerate() {
                    if fate == 1 || (fate == 2 && rng.coin()) {
                        self.put(at + i as u64 * SECTOR, sector);
                    }
                }
            }
        }
    }
}
