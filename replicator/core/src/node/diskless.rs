//! One copy has no disk: its node's clients are served through the other one.
//!
//! The *server* has rotated without the lost copy (ordering 5), marks its own activity map before each write that it
//! takes for the other node's clients (ordering 1), and sets dirty bits toward that node at once; a region's use ends
//! when its writes are durable here, since the bits hold the rest (ordering 3). A server that is Primary itself just
//! writes alone. The other end sends its clients' writes, flushes and reads, and keeps nothing.

use super::Node;
use super::handshake::Phase;
use super::task::{Stage, Task, Work};
use crate::event::DiskError;
use crate::frame::Frame;
use crate::ids::{LinkId, Position};
use crate::snapshot::Snapshot;
use crate::status::DiskState;
use alloc::collections::VecDeque;
use lockstep_bitmap::canary::{Bug, is_planted};
use lockstep_bitmap::marks::{Mark, mark};
use lockstep_bitmap::{
    Base, ByteRange, GenerationId, GenerationLog, Geometry, NodeId, Origin, PeerCopy, RegionIndex,
};

/// Regions that hold writes for the other node's clients, not yet known to be durable here. That node asks for a flush
/// before its table of undurable writes is full; one that does not is left.
#[derive(Debug, Default)]
pub(super) struct Serving {
    /// In the order in which the writes completed.
    unflushed: VecDeque<RegionIndex>,
    /// Taken out so far.
    flushed: u64,
}

impl Serving {
    pub(super) fn clear(&mut self) {
        self.flushed += self.unflushed.len() as u64;
        self.unflushed.clear();
    }

    /// Memory of one of these writes.
    pub(super) const BYTES_EACH: usize = size_of::<RegionIndex>();

    /// So many of them are kept, for a peer whose table has the size of ours.
    pub(super) fn len_max(undurable_max: usize) -> usize {
        2 * undurable_max
    }

    pub(super) fn is_full(&self, undurable_max: usize) -> bool {
        self.unflushed.len() >= Self::len_max(undurable_max)
    }

    /// What an fdatasync submitted now makes durable.
    pub(super) fn completed(&self) -> u64 {
        self.flushed + self.unflushed.len() as u64
    }
}

impl Node {
    fn serving_link(&self) -> Option<LinkId> {
        self.link.as_ref().filter(|link| link.phase == Phase::Serving).map(|link| link.id)
    }

    /// The link on which this copy serves the clients of a node without disk.
    pub(super) fn serves_link(&self) -> Option<LinkId> {
        self.serving_link().filter(|_| !self.without_disk())
    }

    /// The link through which this node, without disk, serves its clients. Not the one over which it served the peer
    /// until its own disk failed: nothing counts there before that is recorded (ordering 5).
    pub(super) fn served_link(&self) -> Option<LinkId> {
        let failing = self.is_failing() && !is_planted(Bug::ServeOverOwnLink);
        self.serving_link().filter(|_| self.without_disk() && !failing)
    }

    /// Where writes and stale reads of our clients go.
    pub(super) fn out_link(&self) -> Option<LinkId> {
        self.mirror_link().or(self.served_link())
    }

    /// Where the peer's writes and reads come from.
    pub(super) fn in_link(&self) -> Option<LinkId> {
        self.mirror_link().or(self.serves_link())
    }

    /// Where roles are agreed on.
    pub(super) fn control_link(&self) -> Option<LinkId> {
        self.mirror_link().or(self.serving_link())
    }

    /// Highest term known.
    pub(super) fn term(&self) -> u64 {
        self.store.as_ref().map_or(0, |store| store.superblock.term).max(self.term_seen)
    }

    /// All that a node without disk has to say.
    pub(super) fn diskless_snapshot(&self) -> Snapshot {
        let served = self.served.as_ref();
        Snapshot {
            node: self.cfg.node,
            size_bytes: served.map_or(0, Geometry::size_bytes),
            granule_bytes: self.cfg.granule_bytes,
            block_shift: served.map_or(12, Geometry::block_shift),
            role: self.role,
            disk: self.disk,
            term: self.term(),
            log: GenerationLog::new(),
            becoming: None,
            unclean: false,
            marked: false,
            base: Base::Unset,
            peer_copy: PeerCopy::MayHold,
            slot_empty: true,
            dirty_bytes: 0,
            session_offered: 0,
            session_used: 0,
            discard: self.discard,
            declared_clean: false,
            sample: 0,
            proposal: self.proposal,
            wrote_through: self.wrote_through(),
            continues: self.continues(),
            began_unix_ms: 0,
        }
    }

    /// Both ends agreed that `server` serves alone: what its record has to say before it does.
    pub(super) fn record_serving(&mut self, server: NodeId, generation: GenerationId) {
        if server != self.cfg.node {
            return;
        }
        if self.current_generation() != Some(generation) {
            mark(Mark::ServedRotates);
            self.rotate_to(generation, Origin::PeerLost);
            self.proposal = self.rng.generation_id();
        }
        if let Some(store) = self.store.as_mut() {
            store.superblock.outdated = false;
        }
    }

    /// The server is durably ahead of the lost copy.
    pub(super) fn start_serving(&mut self, server: NodeId, generation: GenerationId) {
        let theirs = self.link.as_ref().and_then(|link| link.got_snapshot.as_ref());
        if let Some(theirs) = theirs.filter(|_| server != self.cfg.node) {
            let term = self.term().max(theirs.term);
            let geometry = Geometry::new(theirs.size_bytes, theirs.block_shift, SERVED_REGION_SHIFT);
            self.served = geometry.ok().or(self.served.take());
            (self.term_seen, self.through) = (term, Some((generation, term)));
            if let Some(link) = self.link.as_mut() {
                link.peer_disk = DiskState::UpToDate;
            }
        } else {
            self.notice_generation();
        }
        self.set_phase(Phase::Serving);
    }

    /// A write of our clients to the server alone.
    pub(super) fn submit_served(&mut self, id: u32, mut task: Task, link: LinkId) {
        let pos = self.undurable.push(task.range, None, id, true, self.now);
        self.undurable.local_done(pos);
        self.undurable.set_local_durable(pos);
        (task.region, task.pos, task.stage) = (None, Some(pos), Stage::Running);
        (task.local_pending, task.peer_pending, task.link) = (false, true, Some(link));
        self.put_task(id, task);
        self.send_write(link, &task, pos);
    }

    /// The rest of the block is stale here: the other copy alone takes the write and fills it, and the block stays
    /// stale.
    pub(super) fn submit_elsewhere(&mut self, id: u32, mut task: Task) {
        let Some(link) = self.mirror_link() else {
            task.stage = Stage::Suspended;
            return self.put_task(id, task);
        };
        mark(Mark::StaleEdge);
        // Whatever was copied of it before counts no longer (ordering 7).
        self.set_dirty(task.range);
        let pos = self.undurable.push(task.range, task.region.take(), id, true, self.now);
        self.undurable.local_done(pos);
        (task.pos, task.stage, task.link) = (Some(pos), Stage::Running, Some(link));
        (task.local_pending, task.peer_pending) = (false, true);
        self.put_task(id, task);
        self.send_write(link, &task, pos);
    }

    /// A target whose record says already that its copy is complete: it counts as UpToDate once that is durable, with
    /// or without its link, so that it has to take every write itself from here on (ordering 10).
    pub(super) fn is_complete_on_record(&self) -> bool {
        let complete = self.store.as_ref().is_some_and(|store| {
            store.superblock.inconsistent.is_none() && store.superblock.log.current().is_some()
        });
        self.disk == DiskState::Inconsistent && complete
    }

    /// Back to the gate until the copy counts.
    pub(super) fn wait_for_own_copy(&mut self, id: u32) {
        if let Some(region) = self.tasks.get_mut(id).and_then(|task| task.region.take()) {
            self.release_region(region);
        }
        self.regate(id);
    }

    pub(super) fn put_task(&mut self, id: u32, task: Task) {
        if let Some(entry) = self.tasks.get_mut(id) {
            *entry = task;
        }
    }

    /// The region of a served write is marked, its edges are read: write it.
    pub(super) fn write_served(&mut self, id: u32) {
        let Some(mut task) = self.tasks.get(id).copied() else { return };
        let Work::PeerWrite { zero, fua, .. } = task.work else { return };
        if !self.is_current(task.link) || self.without_disk() {
            return self.drop_peer_task(id);
        }
        if self.fill_edges(id) {
            return;
        }
        if task.slot.is_some() {
            task.range = self.whole_granules(task.range);
        }
        mark(Mark::ServedWrite);
        // Before anything can be said of it, and whatever was copied before (ordering 7).
        if !is_planted(Bug::ServeWithoutBits) {
            self.set_dirty(task.range);
        }
        (task.stage, task.local_pending) = (Stage::Running, true);
        self.put_task(id, task);
        self.write_locally(id, &task, zero, fua);
    }

    /// A served write ended, one way or the other: its region is in use until an fdatasync has covered it.
    pub(super) fn keep_until_flushed(&mut self, region: RegionIndex) {
        self.serving.unflushed.push_back(region);
    }

    /// An fdatasync ended that was submitted when so many served writes had completed.
    pub(super) fn on_served_flushed(&mut self, completed: u64) {
        while self.serving.flushed < completed {
            let Some(region) = self.serving.unflushed.pop_front() else { break };
            self.serving.flushed += 1;
            self.release_region(region);
        }
    }

    /// Marks are wanted, and what holds the bound could be made durable: nobody else asks for it here.
    pub(super) fn served_marks_press(&self) -> bool {
        self.stream.is_crowded() && !self.serving.unflushed.is_empty()
    }

    /// The only UpToDate copy could not take it: the client gets the error, the bits remember the range.
    pub(super) fn on_write_failed(&mut self, link: LinkId, pos: Position, no_space: bool) {
        let Some(id) = self.undurable.task_at(pos) else { return };
        let Some(task) = self.tasks.get_mut(id) else { return };
        if task.pos != Some(pos) || task.link != Some(link) {
            return;
        }
        mark(Mark::WriteFailedElsewhere);
        let error = if no_space { DiskError::NoSpace } else { DiskError::Io };
        (task.failed, task.peer_pending) = (Some(error.into()), false);
        let range = task.range;
        if !is_planted(Bug::RefuseWithoutBits) {
            self.set_dirty(range);
        }
        self.complete_write(id);
    }

    /// This copy is the only UpToDate one, and the peer's clients wait for a word on their write.
    pub(super) fn refuse_served(&mut self, link: LinkId, pos: Position, range: ByteRange, error: DiskError) {
        mark(Mark::ServedRefused);
        if !is_planted(Bug::RefuseWithoutBits) {
            self.set_dirty(range);
        }
        let no_space = error == DiskError::NoSpace;
        self.send(link, Frame::WriteFailed { pos, no_space }, None);
    }
}

/// Nothing is marked by a node without disk; its geometry needs some region size.
const SERVED_REGION_SHIFT: u8 = 22;
