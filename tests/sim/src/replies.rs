//! Answers to clients, held against what the disks and the records hold at that moment: the rule of acknowledgement
//! (C3), that of a Primary without disk (C5), one writer in a generation (C7), where reads come from (C10).
//!
//! Guarantees: D1 (an acknowledged write is on every copy that the promise speaks of), D2 (flushed or FUA: on stable
//! media there), D3 (a copy that lacks it is on record as behind), I1 and I2.

use crate::disk::ZERO;
use crate::host::Request;
use crate::rules::{Broken, or_broken};
use crate::world::World;
use lockstep_bitmap::{Base, PeerCopy};
use lockstep_core::{ConnectionState, DiskState, IoError, PIECE_BYTES_MAX, RequestKind, Role, Status};

impl World {
    /// An answer is given while `held` copies (a bit each) are promised to have what was written.
    pub(crate) fn check_reply(
        &mut self,
        n: usize,
        status: &Status,
        (req, result): (u32, Result<(), IoError>),
        held: u8,
    ) {
        let Some(request) = self.hosts[n].requests.get(&req) else { return };
        let checked = match (request.kind, result) {
            (RequestKind::Read, Ok(())) => self.check_reader(n, req, status),
            (RequestKind::Read, Err(IoError::Io)) => self.check_helpless(n, status, request),
            (_, Err(_)) => Ok(()),
            (RequestKind::Flush, Ok(())) => self
                .check_alone(n, status, request)
                .and_then(|()| self.check_flush(request, self.lines.of[n], held)),
            (_, Ok(())) => self
                .check_alone(n, status, request)
                .and_then(|()| self.check_farewell(n, request, status))
                .and_then(|()| self.check_copies(n, request, held))
                .and_then(|()| self.check_one_writer(n, status)),
        };
        self.hosts[n].book.forget_read(req);
        if let Err((check, what)) = checked {
            self.fail(check, format!("node {n}: answer to {req}: {what}"));
        }
    }

    /// C3: what only this machine has is acknowledged only when its durable record says that the other copy is behind
    /// (ordering 4): no copy that may carry the current generation lacks it.
    ///
    /// C5: likewise for a Primary without disk, and the record of the machine that serves it (ordering 5).
    fn check_alone(&self, n: usize, status: &Status, request: &Request) -> Result<(), Broken> {
        // A trim of less than two units may contain no whole one: it writes nothing.
        if request.kind == RequestKind::Trim && request.range.1 < 16 {
            return Ok(());
        }
        let peer = &status.peers[0];
        let without = peer.disk.is_some_and(|disk| disk <= DiskState::Failed);
        let alone = peer.connection != ConnectionState::Connected || without;
        // A link that ended in this very step may have confirmed the write before.
        let keeper = match status.disk <= DiskState::Failed {
            true => 1 - n,
            false if alone && peer.since_ms > 0 => n,
            false => return Ok(()),
        };
        let superblock = &self.record(keeper).map_err(|why| ("recover", why))?.superblock;
        let (copy, base) = (superblock.peers[0].copy, superblock.peers[0].base);
        let current = superblock.log.current().map(|generation| Base::Generation(generation.id));
        let behind = match copy {
            PeerCopy::NoGeneration | PeerCopy::RotatedWithout => true,
            PeerCopy::SyncTarget => Some(base) != current,
            PeerCopy::MayHold | PeerCopy::LeftOutdated | PeerCopy::ToldToFinish => false,
        };
        let check = if keeper == n { "C3 acknowledgement" } else { "C5 acknowledgement" };
        or_broken(behind, check, || {
            format!("given alone, while the record of node {keeper} says {copy:?} with base {base:?}")
        })
    }

    /// C3: once a farewell was agreed to, the leaver's copy may count for nothing at any moment (ordering 4).
    fn check_farewell(&self, n: usize, request: &Request, status: &Status) -> Result<(), Broken> {
        let small_trim = request.kind == RequestKind::Trim && request.range.1 < 16;
        let late = self.hosts[n].book.is_left() && status.disk == DiskState::UpToDate && !small_trim;
        or_broken(!late, "C3 farewell", || "a write that only a leaving copy may have".into())
    }

    /// C3: an acknowledged write is on each copy that is promised to have it; one with FUA on its stable media.
    fn check_copies(&self, n: usize, request: &Request, held: u8) -> Result<(), Broken> {
        let Some(write) = request.write.filter(|write| write.count > 0) else { return Ok(()) };
        let piece_sectors = PIECE_BYTES_MAX as usize / 512;
        let has_edges = matches!(request.kind, RequestKind::Zero { .. })
            && !(request.range.0.is_multiple_of(8) && request.range.1.is_multiple_of(8));
        if has_edges || write.first / piece_sectors != (write.first + write.count - 1) / piece_sectors {
            // Its pieces end one by one, and others may have written over the first ones.
            return Ok(());
        }
        let fua = self.lines.all[self.lines.of[n]].is_fua(write);
        for k in self.copies(held, request.began) {
            let disk = &self.hosts[k].disk;
            for sector in write.first..write.first + write.count {
                let tag = write.tag(sector);
                let there = disk.visible()[sector] == tag;
                or_broken(there && (!fua || disk.is_stable(sector)), "C3 written", || {
                    let stable = if there { "stable " } else { "" };
                    format!("sector {sector} is not {stable}there on node {k}: {}", disk.describe(sector))
                })?;
            }
        }
        Ok(())
    }

    /// D2: what was acknowledged before a FLUSH began is on stable media of each copy that is promised to have it.
    fn check_flush(&self, request: &Request, line: usize, held: u8) -> Result<(), Broken> {
        for k in self.copies(held, 0) {
            let disk = &self.hosts[k].disk;
            let lost = disk.unflushed().find(|&(sector, tag)| {
                let acknowledged = self.lines.all[line].acknowledged_at(sector, tag);
                tag != ZERO
                    && acknowledged
                        .is_some_and(|(start, end)| end <= request.began && !self.failed_since(k, start))
            });
            or_broken(lost.is_none(), "C3 flushed", || {
                let sector = lost.map_or(0, |(sector, _)| sector);
                format!("sector {sector} is not stable on node {k}: {}", disk.describe(sector))
            })?;
        }
        Ok(())
    }

    /// The machines of `held`, without those that have lost something since: their word may be older than the loss.
    fn copies(&self, held: u8, since: u64) -> impl Iterator<Item = usize> {
        (0..2).filter(move |&k| held & (1 << k) != 0 && (since == 0 || !self.failed_since(k, since)))
    }

    fn failed_since(&self, k: usize, since: u64) -> bool {
        self.failures.power[k] > since || self.failures.unclean[k] > since || self.hosts[k].replaced > since
    }

    /// C7: no two Primaries acknowledge in one generation. Without fencing both may go on, each in its own.
    fn check_one_writer(&self, n: usize, status: &Status) -> Result<(), Broken> {
        let Some(other) = self.hosts[1 - n].node.as_ref().map(|node| node.status()) else { return Ok(()) };
        let own = |s: &Status| s.generation.as_ref().filter(|_| s.disk == DiskState::UpToDate).map(|g| g.id);
        let both = own(status).is_some() && own(status) == own(&other) && other.role == Role::Primary;
        or_broken(!both, "C7 writers", || "both nodes are Primary in one generation".into())
    }

    /// C10: a read is served by a node whose copy is UpToDate, or that reaches one; nothing counts that a disk returned
    /// after it had failed.
    fn check_reader(&self, n: usize, req: u32, status: &Status) -> Result<(), Broken> {
        let behind = matches!(status.disk, DiskState::Outdated | DiskState::Consistent);
        or_broken(!behind, "C10 reader", || format!("a read is served from a copy that is {}", status.disk))?;
        or_broken(!self.hosts[n].book.read_late(req), "C10 failed disk", || {
            "a read is answered with what a disk gave that had failed".into()
        })
    }

    /// C10: what one copy cannot read, the other one serves.
    fn check_helpless(&self, n: usize, status: &Status, request: &Request) -> Result<(), Broken> {
        let other = &self.hosts[1 - n];
        let able = status.protected && other.node.is_some() && !self.hosts[n].has_hung && !other.has_hung;
        let able = able && other.trouble.is_none() && other.afflicted < request.began;
        or_broken(!able, "C10 error", || "an error for a read that the other copy could serve".into())
    }
}
