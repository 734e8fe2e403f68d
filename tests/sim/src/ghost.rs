//! What clients may see: per sector, every version that was ever written and whether it may still be read.
//!
//! Values are unique (except zeroes), so a register's linearizability is a local check: a version is dead
//! for reads that begin after a write that began after its end was acknowledged, or after a read saw another
//! version once it had ended. A version that was never answered is *maybe* until somebody reads it. A
//! promotion may lose exactly what the guarantees D1 to D3 allow, given the failures so far: then its
//! victims become *maybe* and what they had killed lives again.

use crate::disk::ZERO;

/// Logical time: a counter, so that two things at one instant still have an order.
pub(crate) type Seq = u64;
const NEVER: Seq = Seq::MAX;

#[derive(Clone, Debug)]
struct Version {
    tag: u64,
    write: u64,
    start: Seq,
    end: Seq,
    /// Acknowledged, or read by a client.
    certain: bool,
    fua: bool,
    /// Bit per node: the copies that hold it by promise.
    held: u8,
    dead_at: Seq,
    /// The write that a read saw when this version was found overtaken, when, and by which copies it was
    /// served.
    overtaken_by: Option<(u64, Seq, u8)>,
}

/// The failures that a promotion has to reckon with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failures {
    /// Last power loss of each node; 0 if none.
    pub(crate) power: [Seq; 2],
    /// Last unclean stop (power loss, or a death of the process that its disk does not survive).
    pub(crate) unclean: [Seq; 2],
}

/// How a node was promoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Force {
    /// Without a flag.
    None,
    /// `--peer-is-down`.
    PeerIsDown,
    /// `--accept-data-loss`.
    DataLoss,
}

/// One line of history; a promotion by a flag begins another one.
#[derive(Clone, Debug)]
pub(crate) struct Ghost {
    sectors: Vec<Vec<Version>>,
    marks: Marks,
}

/// What holds for everything that ended until a moment.
#[derive(Clone, Copy, Debug, Default)]
struct Marks {
    /// It is on both copies.
    mirrored: Seq,
    /// Per node: it is on stable media there.
    flushed: [Seq; 2],
    /// Per node: when it last began a generation without its peer.
    rotated: [Seq; 2],
}

/// A write as the ghost wants it described.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WriteId {
    /// Number of the write, unique in the run, not zero.
    pub(crate) id: u64,
    /// First sector.
    pub(crate) first: usize,
    /// Sectors.
    pub(crate) count: usize,
    /// Zeroes instead of tags of its own.
    pub(crate) zeroes: bool,
}

impl WriteId {
    /// Content of one sector of this write.
    pub(crate) fn tag(&self, sector: usize) -> u64 {
        if self.zeroes { ZERO } else { (self.id << 20) | sector as u64 }
    }

    fn sectors(&self) -> std::ops::Range<usize> {
        self.first..self.first + self.count
    }
}

impl Ghost {
    /// A volume with these contents, acknowledged before time began.
    pub(crate) fn new(tags: &[u64], holder: usize) -> Self {
        let version = |&tag: &u64| {
            let held = 1 << holder;
            let v = Version {
                tag,
                write: 0,
                start: 0,
                end: 0,
                certain: true,
                fua: true,
                held,
                dead_at: NEVER,
                overtaken_by: None,
            };
            vec![v]
        };
        Ghost { sectors: tags.iter().map(version).collect(), marks: Marks::default() }
    }

    /// A client sent a write.
    pub(crate) fn begin(&mut self, write: WriteId, now: Seq, fua: bool) {
        for sector in write.sectors() {
            self.sectors[sector].push(Version {
                tag: write.tag(sector),
                write: write.id,
                start: now,
                end: NEVER,
                certain: false,
                fua,
                held: 0,
                dead_at: NEVER,
                overtaken_by: None,
            });
        }
    }

    /// A write was acknowledged by a Primary while `held` copies (a bit each) received it.
    pub(crate) fn acknowledge(&mut self, write: WriteId, now: Seq, held: u8) {
        for sector in write.sectors() {
            let versions = &mut self.sectors[sector];
            let Some(own) = versions.iter_mut().find(|v| v.write == write.id) else { continue };
            own.end = own.end.min(now);
            own.certain = true;
            own.held |= held;
            let start = own.start;
            for v in versions.iter_mut().filter(|v| v.end < start) {
                v.dead_at = v.dead_at.min(now);
            }
        }
    }

    /// A write failed or will never be answered; nothing of it happens from now on.
    pub(crate) fn give_up(&mut self, write: WriteId, now: Seq) {
        for sector in write.sectors() {
            if let Some(own) = self.sectors[sector].iter_mut().find(|v| v.write == write.id) {
                own.end = own.end.min(now);
            }
        }
    }

    /// Both copies are UpToDate and mirrored at this moment.
    pub(crate) fn mirrored_at(&mut self, now: Seq) {
        self.marks.mirrored = now;
    }

    /// A copy that was Inconsistent was taken as it is: every version of `other`, too, may be there, and
    /// none has to be.
    pub(crate) fn mix(&mut self, other: &Ghost) {
        for (versions, theirs) in self.sectors.iter_mut().zip(&other.sectors) {
            for v in theirs {
                if !versions.iter().any(|own| own.write == v.write && own.tag == v.tag) {
                    versions.push(v.clone());
                }
            }
            for v in versions {
                v.certain = false;
                v.dead_at = NEVER;
            }
        }
    }

    /// A node began a generation without its peer.
    pub(crate) fn rotated(&mut self, node: usize, now: Seq) {
        self.marks.rotated[node] = now;
    }

    /// A flush that began at `began` was acknowledged by copies `held`.
    pub(crate) fn flushed(&mut self, began: Seq, held: u8) {
        for (node, upto) in self.marks.flushed.iter_mut().enumerate() {
            if held & (1 << node) != 0 {
                *upto = (*upto).max(began);
            }
        }
    }

    /// Was this write sent with FUA?
    pub(crate) fn is_fua(&self, write: WriteId) -> bool {
        self.sectors[write.first].iter().any(|v| v.write == write.id && v.fua)
    }

    /// When the write that left this tag began and was acknowledged, if it was.
    pub(crate) fn acknowledged_at(&self, sector: usize, tag: u64) -> Option<(Seq, Seq)> {
        let version = self.sectors[sector].iter().find(|v| v.tag == tag && v.certain && v.end != NEVER)?;
        Some((version.start, version.end))
    }

    /// May a read from `began` to `now` return this? Says why not.
    pub(crate) fn check(&self, sector: usize, tag: u64, began: Seq) -> Result<(), String> {
        let allowed = |v: &&Version| v.tag == tag && v.dead_at >= began;
        if self.sectors[sector].iter().any(|v| allowed(&v)) {
            return Ok(());
        }
        let known = self.sectors[sector].iter().any(|v| v.tag == tag);
        let word = if known { "is stale" } else { "was never written there" };
        let recent: Vec<String> = self.sectors[sector].iter().rev().take(6).map(Version::short).collect();
        Err(format!("sector {sector}: {} {word}; versions, newest first: {}", name(tag), recent.join(", ")))
    }

    /// A client saw this in a read from `began` to `now`, served by `held` copies.
    pub(crate) fn observe(&mut self, sector: usize, tag: u64, began: Seq, now: Seq, held: u8) {
        let versions = &mut self.sectors[sector];
        let mut seen = versions.iter_mut().filter(|v| v.tag == tag && v.dead_at >= began);
        let (Some(own), None) = (seen.next(), seen.next()) else { return };
        if !own.certain && own.end != NEVER {
            own.certain = true;
            // It was answered with an error: nobody promised that it is durable.
            own.fua = false;
            own.end = now;
            own.held |= held;
        }
        let write = own.write;
        for v in versions.iter_mut().filter(|v| v.write != write && v.end <= began) {
            v.dead_at = v.dead_at.min(now);
            v.overtaken_by = v.overtaken_by.or(Some((write, now, held)));
        }
    }

    /// Node `node` was promoted: what the guarantees allow to be lost may be gone now. Says if anything may.
    pub(crate) fn promoted(&mut self, node: usize, force: Force, failures: Failures, now: Seq) -> bool {
        for v in self.sectors.iter_mut().flatten() {
            v.end = v.end.min(now);
        }
        self.reckon(node, force, failures, now)
    }

    /// What the failures so far may have destroyed becomes uncertain, and what it had killed lives again.
    pub(crate) fn reckon(&mut self, node: usize, force: Force, failures: Failures, now: Seq) -> bool {
        let marks = self.marks;
        let mut any = false;
        for versions in &mut self.sectors {
            if versions.len() == 1 {
                continue;
            }
            let safe: Vec<bool> =
                versions.iter().map(|v| v.certain && !v.may_be_lost(node, force, failures, marks)).collect();
            let safe_start =
                versions.iter().zip(&safe).filter(|(_, s)| **s).map(|(v, _)| v.start).max().unwrap_or(0);
            let safe_writes: Vec<u64> =
                versions.iter().zip(&safe).filter(|(_, s)| **s).map(|(v, _)| v.write).collect();
            for (v, safe) in versions.iter_mut().zip(safe) {
                any |= v.certain && !safe;
                v.certain = safe;
                // What was read from the other copy alone says nothing about this one.
                v.overtaken_by.take_if(|(_, at, held)| {
                    force != Force::None && *held & (1 << node) == 0 && *at > marks.mirrored
                });
                let overtaken = v.overtaken_by.is_some_and(|(write, ..)| safe_writes.contains(&write));
                let dead = v.end < safe_start || overtaken;
                v.dead_at = if dead { v.dead_at.min(now) } else { NEVER };
            }
        }
        any
    }
}

impl Version {
    fn may_be_lost(&self, node: usize, force: Force, f: Failures, line: Marks) -> bool {
        let Marks { mirrored, flushed, rotated } = line;
        let other = 1 - node;
        let held = if self.end <= mirrored { 3 } else { self.held };
        let stable = |n: usize| (self.fua && held & (1 << n) != 0) || self.end <= flushed[n];
        // Compared with the start: a copy's word may arrive after the copy has lost what it speaks of.
        let power = |n: usize| f.power[n] > self.start;
        let unclean = |n: usize| f.unclean[n] > self.start;
        if stable(node) && held & (1 << node) != 0 {
            return false;
        }
        // The only copy of its generation lost power: what it had not flushed is nowhere else by promise.
        let gone_with = |n: usize| {
            let alone = held == 1 << n || self.end <= rotated[n];
            let since = if held == 3 { self.start.max(rotated[n]) } else { self.start };
            alone && f.power[n] > since && !stable(n)
        };
        if gone_with(0) || gone_with(1) {
            return true;
        }
        if held & (1 << node) != 0 {
            if force == Force::None && stable(other) {
                return false;
            }
            (power(node) || power(other)) && (force == Force::DataLoss || (unclean(node) && unclean(other)))
        } else {
            force != Force::None || (!stable(other) && power(other))
        }
    }

    fn short(&self) -> String {
        let end = if self.end == NEVER { "open".into() } else { self.end.to_string() };
        let dead = if self.dead_at == NEVER { String::new() } else { format!(" dead {}", self.dead_at) };
        let sure = if self.certain { "acked" } else { "maybe" };
        format!("{} [{}..{end} {sure} held {:02b}{dead}]", name(self.tag), self.start, self.held)
    }
}

/// A tag for people: the write it comes from.
pub(crate) fn name(tag: u64) -> String {
    match tag {
        ZERO => "zeroes".into(),
        t if t >> 63 == 1 => format!("garbage of node {}", (t >> 40) & 0xff),
        t => format!("write {}", t >> 20),
    }
}
