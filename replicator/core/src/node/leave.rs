//! Leaving: a copy asks, the one that stays flushes and agrees, the leaver records itself as
//! Outdated, the other records that, and only then closes the link. Without agreement it leaves as it is. From the
//! flush on the one that stays acknowledges no write before it has rotated: everything that was acknowledged with both
//! copies survives its power loss, and what comes later is a degraded node's.

use super::Node;
use super::meta::Effect;
use super::role::Change;
use super::task::{FlushFor, OpKind};
use crate::action::{Action, CloseReason};
use crate::frame::Frame;
use crate::ids::{CommandId, Instant, LinkId};
use crate::refusal::{Done, Refusal};
use crate::status::{DiskState, ReplicationState, Role};
use lockstep_bitmap::PeerCopy;
use lockstep_bitmap::canary::{Bug, is_planted};
use lockstep_bitmap::marks::{Mark, mark};

#[derive(Clone, Copy, Debug)]
pub(super) struct Leaving {
    id: CommandId,
    was_primary: bool,
    stage: LeaveStage,
    since: Instant,
    recorded: bool,
}

impl Leaving {
    /// Since when it waits for the peer.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        let waits = matches!(self.stage, LeaveStage::Asking | LeaveStage::Telling | LeaveStage::PeerFirst);
        waits.then_some(self.since)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LeaveStage {
    /// A handshake or settling is under way.
    Waiting,
    Asking,
    /// Outdated is being recorded here.
    Recording,
    /// The peer records it, then closes.
    Telling,
    /// Both leave and this one stays longer: the peer's farewell is awaited.
    PeerFirst,
    /// The copy is made clean.
    Settling,
}

impl Node {
    pub(super) fn begin_leave(&mut self, id: CommandId) {
        match self.change {
            Some(Change::Promoting(_)) if !self.records_promotion() => self.promotion_timed_out(),
            None => {}
            Some(_) if self.pending_leave.is_some() => {
                return self.finish_command(id, Err(Refusal::Leaving));
            }
            Some(_) => {
                // After what is under way.
                self.pending_leave = Some(id);
                return;
            }
        }
        if self.role == Role::Primary {
            self.start_demote(None, Some(id), true);
        } else {
            self.leave_as_secondary(id, false);
        }
    }

    pub(super) fn leave_as_secondary(&mut self, id: CommandId, was_primary: bool) {
        let stage = LeaveStage::Waiting;
        let since = self.now;
        self.change = Some(Change::Leaving(Leaving { id, was_primary, stage, since, recorded: false }));
    }

    /// A departure that waited for another change.
    pub(super) fn pump_pending_leave(&mut self) -> bool {
        match self.pending_leave.take_if(|_| self.change.is_none()) {
            Some(id) => {
                self.begin_leave(id);
                true
            }
            None => false,
        }
    }

    pub(super) fn end_recorded_leave(&mut self, leaving: Leaving) {
        if leaving.stage == LeaveStage::Recording {
            self.leave_as_is();
        }
    }

    fn set_leave_stage(&mut self, stage: LeaveStage) {
        if let Some(Change::Leaving(leaving)) = self.change.as_mut() {
            leaving.stage = stage;
            leaving.since = self.now;
        }
    }

    pub(super) fn pump_leave(&mut self, leaving: Leaving) -> bool {
        match leaving.stage {
            LeaveStage::Waiting => {
                let link = self.mirror_link();
                let peer_stays = self
                    .link
                    .as_ref()
                    .is_some_and(|link| link.peer_disk == DiskState::UpToDate && link.commit_got);
                let established = self.replication() == ReplicationState::Established;
                if self.peer_leaves() {
                    // Promised to stay until the peer has left.
                    self.set_leave_stage(LeaveStage::PeerFirst);
                    return true;
                }
                match link.filter(|_| peer_stays && established && self.disk == DiskState::UpToDate) {
                    Some(link) => {
                        self.set_leave_stage(LeaveStage::Asking);
                        let was_primary = leaving.was_primary;
                        self.send(link, Frame::LeaveRequest { was_primary }, None);
                    }
                    None => self.leave_as_is(),
                }
            }
            // A copy that failed on the way is not made clean, but what it was given still lands.
            LeaveStage::Settling if self.is_settled() && !self.uses_disk() => {
                self.change = None;
                let done = if leaving.recorded { Done::LeftAsOutdated } else { Done::LeftAsIs };
                self.finish_command(leaving.id, Ok(done));
            }
            _ => return false,
        }
        true
    }

    /// Closes the link, if there is one, and makes the copy clean.
    fn leave_as_is(&mut self) {
        self.dialer.wanted = false;
        self.set_leave_stage(LeaveStage::Settling);
        self.close_link(CloseReason::Leaving);
        // A copy that had lost its peer before is clean already, or on its way.
        if self.attached {
            self.begin_settle();
        }
    }

    pub(super) fn leave_timed_out(&mut self) {
        self.leave_as_is();
    }

    pub(super) fn leave_lost_link(&mut self) {
        let Some(Change::Leaving(leaving)) = self.change else { return };
        if leaving.stage != LeaveStage::Settling && leaving.stage != LeaveStage::Recording {
            self.dialer.wanted = false;
            self.set_leave_stage(LeaveStage::Settling);
        }
    }

    /// May stay if both leave at once: the one that was Primary, else the lower node id.
    fn stays_longer(&self, peer_was_primary: bool) -> bool {
        match self.change {
            Some(Change::Leaving(leaving)) if leaving.was_primary != peer_was_primary => leaving.was_primary,
            Some(Change::Leaving(_)) => self.cfg.peer.is_some_and(|peer| self.cfg.node < peer.node),
            _ => true,
        }
    }

    pub(super) fn on_leave_request(&mut self, link: LinkId, was_primary: bool) {
        let whole = self.replication() == ReplicationState::Established && self.disk == DiskState::UpToDate;
        let free = match self.change {
            None | Some(Change::Promoting(_) | Change::Demoting(_)) => true,
            Some(Change::Leaving(leaving)) => {
                self.stays_longer(was_primary)
                    && matches!(leaving.stage, LeaveStage::Asking | LeaveStage::PeerFirst)
            }
            Some(Change::Granting | Change::Invalidating(_) | Change::Detaching(_)) => false,
        };
        if self.peer_leaves() {
            return self.close_link(CloseReason::PeerMisbehaved);
        }
        if matches!(self.change, Some(Change::Leaving(_) | Change::Demoting(_))) {
            mark(Mark::LeaversMet);
        }
        if !whole || !free {
            mark(Mark::LeaveRefused);
            return self.send(link, Frame::LeaveReply { agreed: false }, None);
        }
        if let Some(link) = self.link.as_mut() {
            link.peer_leaves = true;
        }
        if is_planted(Bug::FarewellWithoutFlush) {
            return self.on_farewell_flushed(link);
        }
        let op = self.new_op(OpKind::Flush(FlushFor::Farewell { link }));
        self.act(Action::DiskFlush { op });
    }

    /// The peer may have recorded that its copy counts for nothing: the one here is the last, whatever it said before.
    pub(super) fn peer_leaves(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.peer_leaves)
    }

    /// Ordering 4: the peer's copy may be recorded as Outdated at any moment, and count for nothing from then on. What
    /// the fdatasync of the farewell does not cover would have been acknowledged on the strength of this copy's cache
    /// alone: it waits for the rotation that follows the end of this link.
    pub(super) fn peer_takes_leave(&self) -> bool {
        self.disk == DiskState::UpToDate && self.peer_leaves()
    }

    pub(super) fn on_farewell_flushed(&mut self, link: LinkId) {
        if self.is_current(Some(link)) {
            self.send(link, Frame::LeaveReply { agreed: true }, None);
        }
    }

    pub(super) fn on_leave_reply(&mut self, link: LinkId, agreed: bool) {
        let Some(Change::Leaving(leaving)) = self.change else { return };
        if leaving.stage != LeaveStage::Asking {
            return;
        }
        if agreed {
            self.set_leave_stage(LeaveStage::Recording);
            if let Some(store) = self.store.as_mut() {
                store.superblock.outdated = true;
            }
            self.commit(Effect::Outdated(link));
        } else if self.peer_leaves() {
            self.set_leave_stage(LeaveStage::PeerFirst);
        } else {
            self.leave_as_is();
        }
    }

    /// Durable: from now on this copy may lack writes.
    pub(super) fn on_outdated(&mut self, link: LinkId) {
        self.set_disk(DiskState::Outdated);
        if let Some(Change::Leaving(leaving)) = self.change.as_mut() {
            leaving.recorded = true;
        }
        if self.is_current(Some(link)) {
            self.set_leave_stage(LeaveStage::Telling);
            self.send(link, Frame::Left, None);
        } else {
            mark(Mark::OutdatedLate);
            self.dialer.wanted = false;
            self.set_leave_stage(LeaveStage::Settling);
            self.begin_settle();
        }
    }

    pub(super) fn on_left(&mut self, link: LinkId) {
        let again = self.peer_copy() == PeerCopy::LeftOutdated;
        if again || !self.peer_leaves() {
            return self.close_link(CloseReason::PeerMisbehaved);
        }
        if let Some(peer) = self.peer_mut() {
            peer.copy = PeerCopy::LeftOutdated;
        }
        self.commit(Effect::PeerLeft(link));
    }

    /// Recorded: the link closes, and a Primary rotates before it acknowledges anything more (ordering 4).
    pub(super) fn on_peer_left(&mut self) {
        self.close_link(CloseReason::Leaving);
    }
}
