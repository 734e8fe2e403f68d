//! The orderings that can be seen at a single step: what has to be on record, or flushed, when a node says a word to
//! its peer, opens its export, writes, or answers a client.
//!
//! Each check compares an action with the durable bytes of the moment and with a small shadow book, so that an
//! inverted ordering is found when it happens, not when a crash happens to show it. Books live here, never in the core.

use crate::host::{DiskOp, Input};
use crate::world::World;
use lockstep_bitmap::{Base, GenerationId, Origin, PeerCopy, Superblock};
use lockstep_core::{
    Action, CloseReason, Command, DiskState, ExportState, Frame, LinkId, Node, Role, Snapshot, Status,
};
use std::collections::{BTreeMap, BTreeSet};

/// What one machine's process has said, heard and flushed.
#[derive(Debug, Default)]
pub(crate) struct Book {
    /// Our snapshot on this link: role and generation.
    offered: Option<(LinkId, Role, Option<GenerationId>)>,
    /// It said that the copy is whole.
    whole: bool,
    /// Our verdict on this link.
    said: Option<(LinkId, u8)>,
    /// The peer's verdict came on this link.
    heard: Option<LinkId>,
    /// Flushes begun so far; each one under way, by operation; the newest one that ended well.
    flushes: u64,
    flushing: BTreeMap<u32, u64>,
    flushed: u64,
    /// Flushes begun when the peer's Checkpoint, and its LeaveRequest, came.
    at_checkpoint: u64,
    at_farewell: u64,
    /// On this link the peer was told that it may leave.
    agreed: Option<LinkId>,
    /// Dirty bytes when the target asked to finish.
    left_at_finish: u64,
    /// The base of our slot in the snapshot.
    base: Option<Base>,
    /// The kernel of the machine that this one was last the target of.
    mirrored_with: Option<u128>,
    /// Reads of clients that failed here: request, first sector and number; and whether that was written since.
    repairs: Vec<(u32, (usize, usize), bool)>,
    /// What a disk returned after it had failed: request, first sector.
    late: Vec<(u32, usize)>,
    /// The input is a frame of a link that is gone.
    pub(crate) hears_old_link: bool,
    /// Operations that are not in the machine's own books: the record of a failure, and the end of a disk.
    pending: BTreeSet<u32>,
}

impl Book {
    /// An input for the core.
    pub(crate) fn hear(&mut self, node: &Node, input: &Input, current: Option<LinkId>) {
        if let Input::MetaDone { op, .. } = input {
            self.pending.remove(op);
        }
        let Input::Frame { link, arrived } = input else { return };
        if current.is_some_and(|current| current != *link) {
            // Of a link that is gone: it counts for nothing. Where there is none any more the core may not know yet.
            return;
        }
        match arrived.frame {
            Frame::FinishRequest => self.left_at_finish = node.status().peers[0].out_of_sync_bytes,
            Frame::Verdict { .. } => self.heard = Some(*link),
            Frame::Checkpoint { .. } => self.at_checkpoint = self.flushes,
            Frame::LeaveRequest { .. } => self.at_farewell = self.flushes,
            _ => {}
        }
    }

    /// An fdatasync ended well.
    pub(crate) fn flushed(&mut self, op: u32) {
        self.flushed = self.flushed.max(self.flushing.remove(&op).unwrap_or(0));
    }

    /// Ordering 4: who has agreed to a farewell acknowledges no write before the link has ended.
    pub(crate) fn is_left(&self) -> bool {
        self.agreed.is_some()
    }

    /// The link is gone.
    pub(crate) fn parted(&mut self) {
        self.agreed = None;
    }

    /// A client's read failed here.
    pub(crate) fn read_failed(&mut self, req: u32, range: (usize, usize)) {
        self.repairs.push((req, range, false));
    }

    /// The shell records a failure, or closes a disk.
    pub(crate) fn is_ending_a_disk(&self) -> bool {
        !self.pending.is_empty()
    }

    /// A read ended here although the disk had failed.
    pub(crate) fn ended_late(&mut self, req: u32, first: usize) {
        self.late.push((req, first));
    }

    /// Such bytes were not replaced by those of the other copy.
    pub(crate) fn read_late(&self, req: u32) -> bool {
        self.late.iter().any(|(of, _)| *of == req)
    }

    /// A client's read was answered.
    pub(crate) fn forget_read(&mut self, req: u32) {
        self.repairs.retain(|(of, ..)| *of != req);
        self.late.retain(|(of, _)| *of != req);
    }
}

/// Numbers of verdicts, as in [`lockstep_core::Verdict::code`].
const ADOPT: u8 = 2;
const SERVE: u8 = 3;
const AHEAD: u8 = 16 + lockstep_core::SyncWhy::Ahead as u8;
const RESOLVED: u8 = 16 + lockstep_core::SyncWhy::Resolved as u8;

impl World {
    /// Holds an action against what is durable at this moment.
    pub(crate) fn check_action(&mut self, n: usize, node: &mut Node, action: &Action) {
        let acts = matches!(
            action,
            Action::DiskWrite { .. }
                | Action::DiskZero { .. }
                | Action::CloseLink { reason: CloseReason::PeerMisbehaved, .. }
        );
        if acts && self.hosts[n].book.hears_old_link {
            return self
                .fail("O19 late frame", format!("node {n}: a frame of an old link leads to {action:?}"));
        }
        let broken = match *action {
            Action::Send { link, frame, .. } => self.check_word(n, node, link, &frame),
            Action::Export { state: ExportState::Open } => self.check_export(n, &node.status()),
            Action::CloseLink { reason: CloseReason::DiskFailed, .. } => self.check_failure(n),
            Action::DiskWrite { offset, len, .. } | Action::DiskZero { offset, len, .. } => {
                self.note_repair(
                    n,
                    (offset / 512) as usize,
                    (offset + u64::from(len)).div_ceil(512) as usize,
                );
                self.check_flag(n)
            }
            Action::Supply { req, offset, .. } => {
                self.hosts[n].book.late.retain(|late| *late != (req.0, (offset / 512) as usize));
                self.check_repaired(n, req.0, (offset / 512) as usize, &node.status())
            }
            Action::CloseDisk { op } | Action::RecordFailure { op, .. } => {
                self.hosts[n].book.pending.insert(op.0);
                Ok(())
            }
            Action::DiskFlush { op } => {
                let book = &mut self.hosts[n].book;
                book.flushes += 1;
                book.flushing.insert(op.0, book.flushes);
                Ok(())
            }
            _ => Ok(()),
        };
        if let Err((check, what)) = broken {
            self.fail(check, format!("node {n}: {what}"));
        }
    }

    fn durable(&self, n: usize) -> Result<Superblock, Broken> {
        self.record(n).map(|store| store.superblock.clone()).map_err(|why| ("recover", why))
    }

    fn check_word(&mut self, n: usize, node: &mut Node, link: LinkId, frame: &Frame) -> Result<(), Broken> {
        let book = &mut self.hosts[n].book;
        match *frame {
            Frame::Snapshot => {
                let mut body = Vec::new();
                node.render_body(frame, &mut body);
                let snapshot = Snapshot::decode(&body).map_err(|e| ("O8 snapshot", e.to_string()))?;
                let generation = snapshot.log.current().map(|generation| generation.id);
                book.offered = Some((link, snapshot.role, generation));
                book.whole = snapshot.disk > DiskState::Inconsistent;
                book.base = Some(snapshot.base);
                // A Primary alone writes all the time; a Secondary's writes are all of an earlier link.
                let writes = |op: &DiskOp| matches!(op, DiskOp::Write { .. });
                let old = snapshot.role == Role::Secondary && self.hosts[n].ops.values().any(writes);
                or_broken(!old || self.hosts[n].has_hung, "O19 snapshot", || {
                    "offers a snapshot while writes run".into()
                })
            }
            Frame::Verdict { code, .. } => {
                book.said = Some((link, code));
                Ok(())
            }
            Frame::Commit => self.check_commit(n, &node.status(), link),
            Frame::Durable { .. } | Frame::Checkpoint { .. } => {
                let failed = node.status().disk <= DiskState::Failed;
                or_broken(!failed, "O6 durable", || "says durable after its disk has failed".into())
            }
            Frame::CheckpointDone { .. } => {
                let flushed = book.flushed > book.at_checkpoint;
                or_broken(flushed, "O7 source", || {
                    "clears bits without an fdatasync since it was asked".into()
                })
            }
            Frame::LeaveReply { agreed: true } => {
                let flushed = book.flushed > book.at_farewell;
                book.agreed = Some(link);
                or_broken(flushed, "D1 farewell", || "agrees to a farewell without an fdatasync".into())
            }
            Frame::Finish if book.left_at_finish > 0 => {
                let left = book.left_at_finish;
                or_broken(false, "O18 finish", || format!("ends a resync with {left} dirty bytes of its own"))
            }
            Frame::Finish => {
                let copy = self.durable(n)?.peers[0].copy;
                let what = || format!("tells the target to finish, and has {copy:?} on record");
                or_broken(copy == PeerCopy::ToldToFinish, "O11 finish", what)
            }
            Frame::Finished => {
                let record = self.durable(n)?.inconsistent;
                let what = || format!("says that it is complete, and is {record:?} on record");
                or_broken(record.is_none(), "O10 finished", what)
            }
            Frame::PromoteReply { granted: true, term } if node.status().disk > DiskState::Failed => {
                let record = self.durable(n)?;
                let known = record.peers[0].may_be_primary && record.term >= term;
                or_broken(known, "O15 agreement", || format!("agrees to term {term}, which is not on record"))
            }
            Frame::Role { primary: false, .. } => self.check_demoted(n, &node.status()),
            _ => Ok(()),
        }
    }

    /// Orderings 8, 9, 10 and 13, and the direction of a resync (C9), when a node says that it is committed.
    fn check_commit(&mut self, n: usize, status: &Status, link: LinkId) -> Result<(), Broken> {
        let book = &self.hosts[n].book;
        let code = book.said.filter(|(on, _)| *on == link).map_or(0, |(_, code)| code);
        or_broken(book.heard == Some(link), "O9 verdict", || {
            "acts on a verdict before the peer has said its own".into()
        })?;
        let now = (link, status.role, status.generation.as_ref().map(|generation| generation.id));
        let begins_one = matches!(code, ADOPT | SERVE);
        or_broken(book.offered == Some(now) || begins_one, "O8 snapshot", || {
            format!("acts on snapshot {:?}, and is {now:?}", book.offered)
        })?;
        let record = self.durable(n)?;
        // Whatever it is to this node: from here on it goes on with what that machine has now.
        let boot_id = self.hosts[1 - n].boot_id;
        let before = self.hosts[n].book.mirrored_with.replace(boot_id);
        if status.disk != DiskState::Inconsistent {
            return self.check_extent(n, code, &record);
        }
        or_broken(record.inconsistent.is_some(), "O10 target", || {
            "is a target, and not Inconsistent on record".into()
        })?;
        let source = self.durable(1 - n)?;
        let unclean = source.unclean_in.is_some() && source.unclean_in == source.log.current().map(|g| g.id);
        let lost = unclean && before.is_some_and(|before| before != boot_id);
        or_broken(status.role == Role::Secondary || !lost, "O13 resend", || {
            "goes on as Primary through a copy that lost power since".into()
        })?;
        self.check_direction(n, code)
    }

    /// C9 (D7): no whole copy is made of a copy that is only behind, where the bitmap reaches back to it.
    fn check_extent(&self, n: usize, code: u8, record: &Superblock) -> Result<(), Broken> {
        let whole = code == AHEAD && record.peers[0].base == Base::NoGeneration;
        let Some(Base::Generation(base)) = self.hosts[n].book.base.filter(|_| whole) else { return Ok(()) };
        let reached = self.durable(1 - n)?.log.contains(base);
        or_broken(!reached, "C9 extent", || "copies in full what the bitmap remembers".into())
    }

    /// D3, when a record has become durable: without a flag a generation is begun alone only by a copy whose record
    /// before that proved that no other one has what it lacks. Ordering 16: an unclean stop is on record first of all.
    pub(crate) fn check_record(&mut self, n: usize, before: &Superblock) {
        let Ok(after) = self.durable(n) else { return };
        let expected = self.hosts[n].unclean_expected.take_if(|_| after.sequence > before.sequence);
        // A copy that failed on the way says so instead, and counts for less.
        let failed = after.boot_id == [0; 16];
        if expected.is_some() && after.unclean_in != expected && !failed {
            return self.fail("O16 unclean", format!("node {n}: forgets that it stopped uncleanly"));
        }
        if before.may_be_written && !after.may_be_written && self.hosts[n].disk.unflushed().next().is_some() {
            return self.fail("O16 clean", format!("node {n}: says that it is clean, and is not flushed"));
        }
        // The end of a resync brings the source's generations, to a restored machine also its own: nobody else has one
        // that it begins.
        let begun = |id| !self.durable(1 - n).is_ok_and(|theirs| theirs.log.contains(id));
        let own = after.log.current().filter(|new| new.node == after.identity.node);
        let changed = own.filter(|new| Some(new.id) != before.log.current().map(|old| old.id));
        let new = changed.filter(|new| begun(new.id));
        let alone = new.is_some_and(|new| new.origin == Origin::Promoted && after.term > before.term);
        let copy = before.peers[0].copy;
        let carries = matches!(copy, PeerCopy::MayHold | PeerCopy::LeftOutdated | PeerCopy::ToldToFinish);
        let unproven = matches!(copy, PeerCopy::MayHold | PeerCopy::ToldToFinish);
        let unclean = before.unclean_in.is_some() && before.unclean_in == before.log.current().map(|g| g.id);
        let down = new.is_some_and(|new| new.origin == Origin::PeerIsDown);
        let worse = before.outdated || before.inconsistent.is_some() || unclean && carries;
        if alone && (worse || unproven) || down && worse {
            let (outdated, becoming) = (before.outdated, before.inconsistent);
            let what =
                format!("outdated {outdated}, unclean {unclean}, becoming {becoming:?}, peer {copy:?}");
            let origin = new.map(|new| new.origin);
            let what = format!("node {n}: promoted as {origin:?} without the flag for it, and was {what}");
            self.fail("D3 promotion", what);
        }
        // A Secondary whose disk is given up may be the better copy: it leaves in the state that it has.
        let host = &self.hosts[n];
        let detaches = host.commands.values().any(|pending| pending.command == Command::Detach);
        let secondary = host.node.as_ref().is_some_and(|node| node.status().role == Role::Secondary);
        if detaches && secondary && after.outdated && !before.outdated && !failed {
            self.fail(
                "D7 detach",
                format!("node {n}: a Secondary's copy that is given up is recorded as behind"),
            );
        }
    }

    /// C9 (D7): a target knows nothing that its source does not; after split brain it is the one that was named.
    fn check_direction(&self, n: usize, code: u8) -> Result<(), Broken> {
        let (own, source) = (self.durable(n)?, self.durable(1 - n)?);
        let named = self.operator.named == Some(n);
        if code == RESOLVED {
            return or_broken(named, "C9 loser", || {
                "discarded, and not the one whom the operator named".into()
            });
        }
        let unknown = own.log.current().filter(|generation| !source.log.contains(generation.id));
        // A mixture holds nothing of its own.
        let own_data = unknown.filter(|_| self.hosts[n].book.whole);
        or_broken(own_data.is_none(), "C9 direction", || {
            format!("overwrites generation {:?}, which the source does not have", own_data.map(|g| g.ordinal))
        })
    }

    /// Ordering 15: what makes a Primary is on record, here or where the data is.
    fn check_export(&self, n: usize, status: &Status) -> Result<(), Broken> {
        let own = status.disk > DiskState::Failed;
        let record = self.durable(if own { n } else { 1 - n })?;
        let known = record.term >= status.term && (record.was_primary || !own);
        or_broken(known, "O15 export", || {
            format!(
                "opens its export in term {}; on record: {}, {}",
                status.term, record.term, record.was_primary
            )
        })
    }

    /// Ordering 15: a node that is no longer Primary has flushed everything on both copies.
    fn check_demoted(&self, n: usize, status: &Status) -> Result<(), Broken> {
        if !status.protected {
            return Ok(());
        }
        let running = (0..2).filter(|&k| self.hosts[k].node.is_some() || k == n);
        let found = running.into_iter().find_map(|k| Some((k, self.hosts[k].disk.unflushed().next()?.0)));
        or_broken(found.is_none(), "O15 demotion", || {
            format!("unflushed at a demotion (node, sector): {found:?}")
        })
    }

    /// Ordering 5: before a failed copy takes its leave, that is on record, or it is known that nothing can record it.
    fn check_failure(&self, n: usize) -> Result<(), Broken> {
        let record = self.record(n).map_err(|why| ("recover", why))?;
        let known = self.as_attached(n, (*record).clone()).superblock;
        let recorded = known.outdated || known.inconsistent.is_some() || known.log.current().is_none();
        or_broken(recorded || self.hosts[n].unrecordable, "O5 failure", || {
            "leaves with a failed disk that nothing has on record".into()
        })
    }

    fn note_repair(&mut self, n: usize, start: usize, end: usize) {
        for (_, (first, count), written) in &mut self.hosts[n].book.repairs {
            *written |= *first < end && start < *first + *count;
        }
    }

    /// C10: what could not be read here, and came from the other copy, was written back before it is handed on.
    fn check_repaired(&self, n: usize, req: u32, first: usize, status: &Status) -> Result<(), Broken> {
        let lacks =
            |(of, range, written): &(u32, (usize, usize), bool)| *of == req && range.0 == first && !written;
        let lacks = self.hosts[n].book.repairs.iter().any(lacks);
        or_broken(!lacks || status.disk != DiskState::UpToDate, "C10 repair", || {
            format!("read {req} failed here, and its block was not written back")
        })
    }

    /// Ordering 16: whoever writes has "may be written" on record, for this boot.
    fn check_flag(&self, n: usize) -> Result<(), Broken> {
        let record = self.durable(n)?;
        let flagged = record.may_be_written && record.boot_id == self.hosts[n].boot_id.to_le_bytes();
        or_broken(flagged, "O16 flag", || "writes, and its record does not say that it may be written".into())
    }
}

pub(crate) type Broken = (&'static str, String);

pub(crate) fn or_broken(
    holds: bool,
    check: &'static str,
    what: impl FnOnce() -> String,
) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err((check, what())) }
}
