//! Invalidate: an operator declares a copy wrong, this node's or the peer's.
//!
//! The copy becomes Inconsistent, with every bit of its slot set, in one durable superblock write; only then is anybody
//! told, and the link closed so that the next handshake makes it the target (ordering 10: nothing is written to it for
//! a resync before). The bits are the target's own, so that a resync that is cut goes on over what is left of them. The
//! only copy that is known to be UpToDate is not given up. A node that fails before the write is durable has
//! invalidated nothing, and has said so to nobody.

use super::Node;
use super::handshake::Phase;
use super::meta::Effect;
use super::role::Change;
use crate::action::{CloseReason, Notice};
use crate::frame::Frame;
use crate::ids::{CommandId, Instant, LinkId};
use crate::refusal::{Done, Refusal};
use crate::status::{DiskState, Role};
use crate::verdict::Standstill;
use lockstep_bitmap::{Base, Becoming, NodeId, PeerCopy, Store};

/// An invalidation that is under way, here or at the peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Invalidating {
    by: Asker,
    stage: Stage,
    since: Instant,
}

/// Who is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asker {
    Operator(CommandId),
    Peer(LinkId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// A handshake, an attach or a checkpoint of a resync is under way.
    Waiting,
    Recording,
    /// The peer invalidates its copy.
    Asking(LinkId),
}

impl Invalidating {
    /// Since when it waits for something that may never come.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        (self.stage != Stage::Recording).then_some(self.since)
    }
}

/// Makes the copy that `store` describes one of which nothing counts: every block dirty, Inconsistent on the way to
/// what it was becoming or to its own generation. Durable with the next superblock write. A copy without generation
/// is that already.
pub fn declare_wrong(store: &mut Store, source: NodeId) {
    let current = store.superblock.log.current().map(|generation| generation.id);
    let becoming = current.map(|generation| Becoming { generation, node: source });
    store.superblock.inconsistent = store.superblock.inconsistent.or(becoming);
    if let Some(peer) = store.superblock.peers.first_mut() {
        // A full slot begins at nothing. Whatever was proven of the peer was proven by a copy that counts no more.
        (peer.base, peer.copy) = (Base::NoGeneration, PeerCopy::MayHold);
        store.refill_slot(0, true);
    }
}

impl Node {
    pub(super) fn begin_invalidate(&mut self, id: CommandId, peer: bool) {
        let refusal = match &self.change {
            Some(_) => Some(Refusal::Busy),
            None if peer => self.peer_invalidation_refusal(),
            None => None,
        };
        match (refusal, self.mirror_link()) {
            (Some(refusal), _) => self.finish_command(id, Err(refusal)),
            (None, Some(link)) if peer => {
                self.set_invalidating(Asker::Operator(id), Stage::Asking(link));
                self.send(link, Frame::Invalidate, None);
            }
            (None, _) => self.set_invalidating(Asker::Operator(id), Stage::Waiting),
        }
    }

    /// The peer's operator declares this copy wrong.
    pub(super) fn on_invalidate_request(&mut self, link: LinkId) {
        if self.change.is_some() {
            return self.send(link, Frame::InvalidateReply { done: false }, None);
        }
        self.set_invalidating(Asker::Peer(link), Stage::Waiting);
    }

    pub(super) fn on_invalidate_reply(&mut self, link: LinkId, done: bool) {
        match self.change {
            Some(Change::Invalidating(Invalidating { stage: Stage::Asking(asked), by, .. }))
                if asked == link =>
            {
                let refused = Refusal::PeerRefused(self.peer_id());
                self.end_invalidate(by, if done { Ok(Done::Changed) } else { Err(refused) });
            }
            _ => self.close_link(CloseReason::PeerMisbehaved),
        }
    }

    fn set_invalidating(&mut self, by: Asker, stage: Stage) {
        self.change = Some(Change::Invalidating(Invalidating { by, stage, since: self.now }));
    }

    fn peer_id(&self) -> NodeId {
        self.cfg.peer.map_or(NodeId(0), |peer| peer.node)
    }

    fn stands_split(&self) -> bool {
        let split = [Phase::Standstill(Standstill::SplitBrain), Phase::Standstill(Standstill::BothDiscard)];
        self.link.as_ref().is_some_and(|link| split.contains(&link.phase))
    }

    /// Why the peer's copy may not be given up.
    fn peer_invalidation_refusal(&self) -> Option<Refusal> {
        if self.stands_split() {
            return Some(Refusal::SplitBrain);
        }
        let Some(link) = self.link.as_ref().filter(|_| self.mirror_link().is_some()) else {
            return Some(Refusal::NotConnected(self.peer_id()));
        };
        match link.peer_role {
            Role::Primary => Some(Refusal::LoserIsPrimary(self.peer_id())),
            _ if self.disk != DiskState::UpToDate => Some(Refusal::LastCopy(self.peer_id())),
            Role::Secondary => None,
        }
    }

    /// Why this copy may not be given up.
    fn own_invalidation_refusal(&self) -> Option<Refusal> {
        let known = self.link.as_ref().filter(|link| link.got_snapshot.is_some());
        if self.without_disk() {
            return Some(self.diskless_refusal());
        }
        if self.stands_split() {
            return Some(Refusal::SplitBrain);
        }
        if self.role == Role::Primary {
            return Some(Refusal::LoserIsPrimary(self.cfg.node));
        }
        let keeps_one = match known {
            _ if self.disk == DiskState::Inconsistent => true,
            Some(link) => link.peer_disk == DiskState::UpToDate && !self.peer_leaves(),
            // Nothing says that the peer's copy is worse, or that it may be unfinished.
            None => self.disk != DiskState::UpToDate && self.peer_copy() == PeerCopy::MayHold,
        };
        (!keeps_one).then_some(Refusal::LastCopy(self.cfg.node))
    }

    pub(super) fn pump_invalidate(&mut self, invalidating: Invalidating) -> bool {
        if invalidating.stage != Stage::Waiting {
            return false;
        }
        let by = invalidating.by;
        if self.without_disk() {
            self.end_invalidate(by, Err(self.diskless_refusal()));
            return true;
        }
        if let Some(resync) = self.resync.as_mut() {
            resync.paused = true;
        }
        if !self.may_record_invalidation() {
            return false;
        }
        if let Some(refusal) = self.own_invalidation_refusal() {
            self.end_invalidate(by, Err(refusal));
            return true;
        }
        let sb = self.store.as_ref().map(|store| &store.superblock);
        if sb.is_some_and(|sb| sb.log.current().is_none() && sb.inconsistent.is_none()) {
            self.end_invalidate(by, Ok(Done::Already));
            return true;
        }
        let source = self.peer_id();
        if let Some(store) = self.store.as_mut() {
            declare_wrong(store, source);
        }
        self.hold_slot_pages();
        self.change = Some(Change::Invalidating(Invalidating { stage: Stage::Recording, ..invalidating }));
        self.commit(Effect::Invalidated);
        true
    }

    /// Nothing is under way that reads or changes what will be recorded.
    fn may_record_invalidation(&self) -> bool {
        let rests = match self.link.as_ref().map(|link| link.phase) {
            // Whoever serves has the only copy: that will be refused.
            None | Some(Phase::Draining | Phase::Standstill(_) | Phase::Serving) => self.is_settled(),
            Some(Phase::Replicating) => self.resync.as_ref().is_none_or(|resync| resync.is_quiet()),
            Some(_) => false,
        };
        rests && self.attached && !self.rotating
    }

    /// Durable: the next handshake makes this copy the target.
    pub(super) fn on_invalidated(&mut self) {
        let Some(Change::Invalidating(Invalidating { by, .. })) = self.change else { return };
        self.set_disk(DiskState::Inconsistent);
        self.notice(Notice::Invalidated);
        self.end_invalidate(by, Ok(Done::Changed));
        let offered = self.link.as_ref().is_some_and(|link| link.phase != Phase::Draining);
        if offered {
            self.close_link(CloseReason::Invalidated);
        }
    }

    fn end_invalidate(&mut self, by: Asker, result: Result<Done, Refusal>) {
        self.change = None;
        if let Some(resync) = self.resync.as_mut() {
            resync.paused = false;
        }
        match by {
            Asker::Operator(id) => self.finish_command(id, result),
            Asker::Peer(link) if self.is_current(Some(link)) => {
                self.send(link, Frame::InvalidateReply { done: result.is_ok() }, None);
            }
            Asker::Peer(_) => {}
        }
    }

    /// The link is gone: what was asked of the peer is not known to have happened.
    pub(super) fn invalidate_lost_link(&mut self, invalidating: Invalidating) {
        match (invalidating.stage, invalidating.by) {
            (Stage::Asking(_), by) => {
                self.end_invalidate(by, Err(Refusal::Unanswered(self.peer_id())));
            }
            // Whoever asked is gone, and nothing was begun.
            (Stage::Waiting, by @ Asker::Peer(_)) => self.end_invalidate(by, Err(Refusal::LinkLost)),
            _ => {}
        }
    }

    /// The disk is lost: what was being recorded never will be.
    pub(super) fn end_recorded_invalidate(&mut self, invalidating: Invalidating) {
        if invalidating.stage == Stage::Recording {
            self.end_invalidate(invalidating.by, Err(Refusal::DiskFailed));
        }
    }

    pub(super) fn invalidate_timed_out(&mut self, invalidating: Invalidating) {
        let refusal = match invalidating.stage {
            Stage::Asking(_) => Refusal::Unanswered(self.peer_id()),
            _ => Refusal::Busy,
        };
        self.end_invalidate(invalidating.by, Err(refusal));
    }
}
