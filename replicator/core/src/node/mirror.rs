//! Begin and end of replication: what a verdict asks each side to record, the start of mirroring, the loss of a link,
//! and the rotation that must follow it.
//!
//! Orderings kept here: 4 (rotation), 7 (what the peer may lack becomes bits when the link is lost), 10 (a target is
//! durably Inconsistent before its first write), 13 (who gets a suspended write again).

use super::Node;
use super::handshake::Phase;
use super::meta::Effect;
use super::resync::Resync;
use super::task::{Stage, Task, Work};
use crate::action::{CloseReason, Notice};
use crate::event::{LinkLoss, PeerHello};
use crate::frame::Frame;
use crate::ids::LinkId;
use crate::status::{DiskState, Role};
use crate::verdict::{Standstill, Verdict, may_carry};
use lockstep_bitmap::canary::{Bug, is_planted};
use lockstep_bitmap::marks::{Mark, mark};
use lockstep_bitmap::{Base, Becoming, Generation, GenerationId, NodeId, Origin, PeerCopy};

impl Node {
    /// Both ends computed this verdict (ordering 9): record what it asks of this side.
    pub(super) fn apply_verdict(&mut self, verdict: Verdict, session: u64) {
        let Some((link, theirs)) =
            self.link.as_ref().and_then(|link| Some((link.id, link.got_snapshot.clone()?)))
        else {
            return;
        };
        if let Verdict::Refuse(standstill) = verdict {
            return self.stand_still(standstill);
        }
        if self.without_disk() {
            // Nothing to record.
            self.set_phase(Phase::Committing);
            return self.on_committed(link);
        }
        let me = self.cfg.node;
        let Some(store) = self.store.as_mut() else { return };
        let sb = &mut store.superblock;
        let ours_now = sb.log.current().map(|generation| generation.id);
        sb.term = sb.term.max(theirs.term);
        let theirs_now = theirs.log.current().map(|generation| generation.id);
        let Some(peer) = sb.peers.first_mut() else { return };
        if !matches!(verdict, Verdict::Serve { .. }) {
            // Promised by both: each verdict was said after its promise was durable.
            (peer.session_offered, peer.session_used) = (session, session);
        }
        match verdict {
            Verdict::Serve { server, generation } => self.record_serving(server, generation),
            Verdict::Sync { source, full, .. } if source == me => {
                peer.copy = PeerCopy::SyncTarget;
                let base = theirs_now.map_or(Base::NoGeneration, Base::Generation);
                let goes_on_full = peer.base == Base::NoGeneration && theirs.disk == DiskState::Inconsistent;
                if full {
                    // A full slot begins at nothing: an interrupted sync goes on over the bits that are left.
                    peer.base = Base::NoGeneration;
                } else if peer.base == Base::Unset || theirs_now == ours_now && !goes_on_full {
                    // What its snapshot proves; an older base would hide that it stands where we do (ordering 4).
                    // A mixture stands nowhere: writes that were acknowledged without it stay so.
                    peer.base = base;
                }
                sb.outdated = false;
                if full {
                    self.refill(true);
                }
            }
            Verdict::Sync { source, full, .. } => {
                peer.copy = PeerCopy::MayHold;
                if let Some(generation) = theirs_now {
                    sb.inconsistent = Some(Becoming { generation, node: source });
                }
                sb.outdated = false;
                if full {
                    self.refill(true);
                }
            }
            Verdict::NoSync | Verdict::Adopt { .. } => {
                peer.copy = PeerCopy::MayHold;
                peer.base = Base::Unset;
                (sb.outdated, sb.unclean_in) = (false, None);
                if let Verdict::Adopt { generation } = verdict {
                    sb.declared_clean = false;
                    let origin = Origin::Agreed;
                    // The lower node id proposed it; both logs say so.
                    self.begin_generation(generation, origin, me.min(theirs.node));
                    // It is used up: offered again, to serve alone, it would be no new generation (ordering 5).
                    self.proposal = self.rng.generation_id();
                }
            }
            Verdict::Refuse(_) => {}
        }
        let is_target = matches!(verdict, Verdict::Sync { source, .. } if source != me);
        if self.role == Role::Secondary || is_target {
            self.uncover_checkpoints();
        }
        self.note_may_be_written();
        self.set_phase(Phase::Committing);
        if is_planted(Bug::MirrorBeforeInconsistent) {
            self.commit(Effect::Confirmed);
            return self.on_committed(link);
        }
        self.commit(Effect::Committed(link));
    }

    fn stand_still(&mut self, standstill: Standstill) {
        self.set_phase(Phase::Standstill(standstill));
        self.connected_well();
        match standstill {
            Standstill::SplitBrain | Standstill::BothDiscard => self.notice(Notice::SplitBrain),
            Standstill::Unrelated => self.notice(Notice::UnrelatedData),
            Standstill::TargetIsPrimary => self.notice(Notice::TargetIsPrimary),
            _ => {}
        }
        if self.role == Role::Primary && self.without_disk() {
            // Not the copy that these clients wrote through (ordering 13).
            self.fail_suspended();
        }
        // Both named a loser: neither word counts.
        if standstill == Standstill::BothDiscard {
            self.discard = None;
        }
    }

    /// Something that a verdict depends on changed while the link stood still: ask again.
    pub(super) fn reconsider(&mut self) {
        let stands = self.link.as_ref().is_some_and(|link| matches!(link.phase, Phase::Standstill(_)));
        if stands {
            self.close_link(CloseReason::SnapshotChanged);
        }
    }

    pub(super) fn on_committed(&mut self, id: LinkId) {
        let Some(verdict) = self.link.as_ref().and_then(|link| link.verdict) else { return };
        self.discard = None;
        let new = match verdict {
            Verdict::Sync { source, .. } if source != self.cfg.node => DiskState::Inconsistent,
            Verdict::Serve { server, .. } if server != self.cfg.node => self.disk,
            // Its clients go on when both sides mirror, not before (ordering 4).
            Verdict::NoSync if self.role == Role::Primary => self.disk,
            _ => DiskState::UpToDate,
        };
        self.set_disk(new);
        if let Some(link) = self.link.as_mut() {
            link.commit_sent = true;
        }
        self.send(id, Frame::Commit, None);
    }

    /// The link is gone meanwhile. A copy that adopted a generation is whole by its record, as it is after a restart.
    pub(super) fn on_committed_late(&mut self) {
        let recorded = self.store.as_ref().map(|store| &store.superblock);
        let whole = recorded.is_some_and(|sb| sb.inconsistent.is_none() && sb.log.current().is_some());
        if whole && self.disk == DiskState::Inconsistent {
            self.set_disk(DiskState::Consistent);
        }
    }

    /// Both sides are durably committed: from this step on every write is mirrored.
    pub(super) fn start_mirror(&mut self) {
        let Some(verdict) = self.link.as_ref().and_then(|link| link.verdict) else {
            return;
        };
        self.forget_peer_flush();
        self.connected_well();
        let empty = self.store.as_ref().is_none_or(|store| store.slots[0].bits.is_empty());
        match verdict {
            Verdict::Sync { source, full, hash_first, .. } => {
                let is_source = source == self.cfg.node;
                if let Some(link) = self.link.as_mut() {
                    link.peer_disk = if is_source { DiskState::Inconsistent } else { DiskState::UpToDate };
                }
                if !is_source {
                    self.through = None;
                }
                self.resync = Some(Resync::new(!is_source, hash_first, full, self.now));
                self.begin_pace();
                self.set_phase(Phase::Exchanging);
            }
            Verdict::Serve { server, generation } => self.start_serving(server, generation),
            _ if empty => {
                self.set_disk(DiskState::UpToDate);
                if let Some(link) = self.link.as_mut() {
                    link.peer_disk = DiskState::UpToDate;
                }
                self.set_phase(Phase::Replicating);
                self.tell_checkpoints_as_primary();
            }
            // Written alone since the snapshot: not the verdict for that.
            _ => return self.close_link(CloseReason::SnapshotChanged),
        }
        self.settle_suspended();
    }

    /// Ordering 13: the verdict has checked generation and term; the process or its kernel must be the same.
    fn settle_suspended(&mut self) {
        let suspended = |task: &Task| task.stage == Stage::Suspended;
        if self.tasks_where(suspended).is_empty() {
            return;
        }
        let same = self.continues();
        mark(if same { Mark::SuspendedResent } else { Mark::SuspendedFailed });
        if same { self.resend_suspended() } else { self.fail_suspended() }
    }

    /// The connected peer is the process, or at least runs on the kernel, that this node last wrote through.
    pub(super) fn continues(&self) -> bool {
        let same = |old: PeerHello, new: PeerHello| old.run_id == new.run_id || old.boot_id == new.boot_id;
        let hello = self.link.as_ref().map(|link| link.hello);
        self.suspended_peer.zip(hello).is_some_and(|(old, new)| same(old, new))
    }

    /// The other copy's recorded generation is, or may have become, the current one (ordering 4).
    pub(super) fn peer_may_carry_current(&self) -> bool {
        self.peer().is_some_and(|peer| may_carry(peer.copy, peer.base, self.current_generation()))
    }

    pub(super) fn current_generation(&self) -> Option<GenerationId> {
        Some(self.store.as_ref()?.superblock.log.current()?.id)
    }

    /// Makes `id` the current generation, in memory.
    fn begin_generation(&mut self, id: GenerationId, origin: Origin, node: NodeId) {
        let began_unix_ms = self.unix_ms();
        let Some(store) = self.store.as_mut() else { return };
        let sb = &mut store.superblock;
        let (parent, ordinal) = match sb.log.current() {
            Some(current) => (Some(current.id), current.ordinal + 1),
            None => (None, 1),
        };
        // Kept for ever: where a peer stands, and what began right after it (how it began decides a verdict).
        let mut keep = alloc::vec::Vec::new();
        for peer in &sb.peers {
            if let Base::Generation(base) = peer.base {
                keep.push(base);
                let next = sb.log.position(base).map_or(usize::MAX, |position| position + 1);
                keep.extend(sb.log.entries().get(next).map(|entry| entry.id));
            }
        }
        sb.log.push(Generation { id, ordinal, parent, node, began_unix_ms, origin }, &keep);
    }

    /// A new generation that the peer does not have, in memory: the caller commits it.
    pub(super) fn rotate_without_peer(&mut self, origin: Origin) {
        let id = self.rng.generation_id();
        self.rotate_to(id, origin);
    }

    pub(super) fn rotate_to(&mut self, id: GenerationId, origin: Origin) {
        let old = self.current_generation();
        if let (Some(peer), Some(old)) = (self.peer_mut(), old) {
            if peer.base == Base::Unset {
                peer.base = Base::Generation(old);
            }
            peer.copy = PeerCopy::RotatedWithout;
        }
        self.begin_generation(id, origin, self.cfg.node);
    }

    /// Ordering 4: nothing is acknowledged from here until the new generation is durable.
    pub(super) fn rotate(&mut self) {
        self.rotate_without_peer(Origin::PeerLost);
        self.rotating = true;
        self.commit(Effect::Rotated);
    }

    pub(super) fn on_rotated(&mut self) {
        self.rotating = false;
        self.notice_generation();
        self.release_held();
    }

    pub(super) fn notice_generation(&mut self) {
        let current = self.store.as_ref().and_then(|store| store.superblock.log.current());
        if let Some((id, ordinal)) = current.map(|generation| (generation.id, generation.ordinal)) {
            self.notice(Notice::Generation { id, ordinal });
        }
    }

    /// Everything that follows from the loss of the link, in one step.
    pub(super) fn link_lost(&mut self, loss: LinkLoss) {
        let Some(hello) = self.link.as_ref().map(|link| link.hello) else { return };
        self.notice(Notice::LinkLost { loss });
        let mirrored = self.out_link().is_some();
        self.contact_tried = true;
        self.with_states(|node| {
            node.link = None;
            node.resync = None;
        });
        self.schedule_dial(false);
        // Ordering 7: the ranges become bits before anything of them is forgotten.
        let mut lacking = core::mem::take(&mut self.lacking);
        self.undurable.unmirror(|range| lacking.push(range));
        if !lacking.is_empty() {
            mark(Mark::PeerLacked);
        }
        for range in lacking.drain(..).filter(|_| !is_planted(Bug::ForgetWhatPeerLacks)) {
            self.set_dirty(range);
        }
        self.lacking = lacking;
        self.forget_peer_flush();
        self.drop_received();
        // What the verdict said of this copy is in the record, or on its way there: it is behind, and no flag for a
        // copy that may be behind makes it a Primary (D3).
        let agreed = self.store.as_ref().is_some_and(|store| store.superblock.inconsistent.is_some());
        if agreed && self.disk > DiskState::Inconsistent && !is_planted(Bug::ForgetUnmetVerdict) {
            self.set_disk(DiskState::Inconsistent);
        }
        let own = self.disk == DiskState::UpToDate;
        if self.role == Role::Primary {
            if own && self.peer_may_carry_current() && !is_planted(Bug::NoRotation) {
                self.rotate();
            }
            if mirrored {
                self.suspended_peer = Some(hello);
            }
            self.unmirror_tasks(own);
        } else if !self.records_promotion() {
            // A promotion that is being recorded goes on as one without the peer.
            if own && !self.peer_proven_behind() {
                self.set_disk(DiskState::Consistent);
            }
            self.begin_settle();
        }
        self.role_lost_link();
        self.checkpoints_lost_link();
    }

    /// What waited for the peer waits no longer, or until an UpToDate copy is within reach again.
    fn unmirror_tasks(&mut self, own_is_up_to_date: bool) {
        for id in self.tasks_where(|task| task.is_client() && task.peer_pending) {
            let Some(task) = self.tasks.get_mut(id) else { continue };
            match task.work {
                Work::Read { .. } => self.regate(id),
                _ if own_is_up_to_date => {
                    task.peer_pending = false;
                    self.complete_write(id);
                }
                _ => {
                    task.peer_pending = false;
                    task.stage = Stage::Suspended;
                }
            }
        }
    }

    /// Generation and term through which a Primary without an UpToDate copy writes.
    pub(super) fn wrote_through(&self) -> Option<(GenerationId, u64)> {
        if self.role != Role::Primary || self.disk == DiskState::UpToDate {
            return None;
        }
        let target = || {
            let sb = &self.store.as_ref().filter(|_| self.disk == DiskState::Inconsistent)?.superblock;
            Some((sb.inconsistent?.generation, sb.term))
        };
        self.through.or_else(target)
    }
}
