//! Promotion and demotion, and the peer's side of both.
//!
//! Ordering 15: the peer has durably agreed, or the rotation without it is durable, before the export opens; on the way
//! down the export is closed, requests are drained and flushed on every connected copy, resync pieces are drained, and
//! only then is the peer told. A link lost on the way is handled as everywhere: bits first, then the rotation.

use super::Node;
use super::checkpoint::CheckpointOrder;
use super::detach::Detaching;
use super::handshake::Phase;
use super::invalidate::Invalidating;
use super::leave::Leaving;
use super::meta::Effect;
use super::resync::Resync;
use crate::action::{Action, CloseReason, ExportState};
use crate::event::Command;
use crate::frame::Frame;
use crate::ids::{CommandId, Instant, LinkId};
use crate::refusal::{Done, Refusal};
use crate::status::{DiskState, Role};
use crate::verdict::Standstill;
use lockstep_bitmap::canary::{Bug, is_planted};
use lockstep_bitmap::marks::{Mark, mark};
use lockstep_bitmap::{CopyRank, NodeId, Origin};

/// The role change or departure that is under way; one at a time.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    Promoting(Promoting),
    Demoting(Demoting),
    /// The peer's promotion is being recorded.
    Granting,
    /// The disk is being given up.
    Detaching(Detaching),
    Leaving(Leaving),
    /// A copy is being declared wrong.
    Invalidating(Invalidating),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Promoting {
    id: CommandId,
    flags: Flags,
    stage: PromoteStage,
    since: Instant,
}

impl Promoting {
    /// Since when it waits for something that may never come.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        (self.stage == PromoteStage::Waiting).then_some(self.since)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flags {
    peer_is_down: bool,
    accept_data_loss: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PromoteStage {
    /// A handshake, an attach or a settling is under way.
    Waiting,
    /// Resync pieces asked for without a lock are drained.
    Draining,
    /// The peer was asked.
    Asking {
        term: u64,
    },
    Recording,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Demoting {
    /// None: part of a departure.
    id: Option<CommandId>,
    /// The departure that follows.
    leave: Option<CommandId>,
    /// Suspended I/O is answered with EIO.
    force: bool,
    stage: DemoteStage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DemoteStage {
    Draining,
    Flushing,
    Recording,
    /// Without a peer the copy is made clean before the answer.
    Settling,
}

/// An operator's word on a split brain, until the link shows whether there is one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resolving {
    id: CommandId,
    discard: NodeId,
    since: Instant,
}

/// What the rules say to a promotion.
enum Plan {
    Ask,
    Alone(Origin),
}

impl Node {
    pub(super) fn finish_command(&mut self, id: CommandId, result: Result<Done, Refusal>) {
        self.act(Action::CommandDone { id, result });
    }

    pub(super) fn on_command(&mut self, id: CommandId, command: Command) {
        match command {
            Command::Promote { peer_is_down, accept_data_loss } => {
                let flags = Flags { peer_is_down: peer_is_down || accept_data_loss, accept_data_loss };
                self.begin_promote(id, flags);
            }
            Command::Demote { force } => self.begin_demote(id, force),
            Command::Sync(order) => self.on_sync_order(id, order),
            Command::Connect => {
                let done = if self.dialer.wanted { Done::Already } else { Done::Changed };
                self.with_states(|node| node.dialer.wanted = node.cfg.peer.is_some());
                self.dialer.next = self.now;
                self.finish_command(id, Ok(done));
            }
            Command::Disconnect => {
                let done = if self.dialer.wanted { Done::Changed } else { Done::Already };
                self.with_states(|node| node.dialer.wanted = false);
                self.close_link(CloseReason::Disconnected);
                self.finish_command(id, Ok(done));
            }
            Command::Resolve { discard } => self.resolve(id, discard),
            Command::Detach => self.begin_detach(id),
            Command::Leave => self.begin_leave(id),
            Command::Invalidate { peer } => self.begin_invalidate(id, peer),
            Command::CreateCheckpoint { name } => self.order_checkpoint(id, CheckpointOrder::Create(name)),
            Command::DeleteCheckpoint { name } => self.order_checkpoint(id, CheckpointOrder::Delete(name)),
        }
    }

    fn resolve(&mut self, id: CommandId, discard: NodeId) {
        let peer = self.cfg.peer.map(|peer| peer.node);
        if discard != self.cfg.node && Some(discard) != peer {
            self.finish_command(id, Err(Refusal::UnknownNode(discard)));
        } else if self.resolving.is_some() {
            self.finish_command(id, Err(Refusal::Busy));
        } else {
            // Whoever names another loser has changed his mind: what was said before counts no more, unless it was
            // carried out.
            self.discard = self.discard.filter(|named| *named == discard);
            self.resolving = Some(Resolving { id, discard, since: self.now });
        }
    }

    /// A change of role restarts the handshake: the answer waits for what it finds.
    pub(super) fn pump_resolve(&mut self) -> bool {
        let Some(resolving) = self.resolving else { return false };
        let split = Phase::Standstill(Standstill::SplitBrain);
        let both = Phase::Standstill(Standstill::BothDiscard);
        let result = match self.link.as_ref().map(|link| (link.phase, link.peer_role)) {
            Some((phase, peer_role)) if phase == split || phase == both => {
                let own = resolving.discard == self.cfg.node;
                let loser_role = if own { self.role } else { peer_role };
                if loser_role == Role::Primary {
                    Err(Refusal::LoserIsPrimary(resolving.discard))
                } else {
                    self.discard = Some(resolving.discard);
                    Ok(Done::Changed)
                }
            }
            Some((Phase::Replicating | Phase::Standstill(_), _)) => Err(Refusal::NothingToResolve),
            _ if !self.dialer.wanted || self.now >= self.resolve_deadline(resolving) => {
                Err(Refusal::NothingToResolve)
            }
            _ => return false,
        };
        self.resolving = None;
        if result.is_ok() {
            self.close_link(CloseReason::Resolving);
        }
        self.finish_command(resolving.id, result);
        true
    }

    pub(super) fn resolve_deadline(&self, resolving: Resolving) -> Instant {
        resolving.since + self.cfg.timing.timeout
    }

    fn begin_promote(&mut self, id: CommandId, flags: Flags) {
        if self.change.is_some() {
            return self.finish_command(id, Err(Refusal::Busy));
        }
        if self.role == Role::Primary {
            return self.finish_command(id, Ok(Done::Already));
        }
        self.change =
            Some(Change::Promoting(Promoting { id, flags, stage: PromoteStage::Waiting, since: self.now }));
        self.set_export(ExportState::Hold);
    }

    /// A handshake may go on unless a role change has got past the point where it looked at the link.
    pub(super) fn change_allows_handshake(&self) -> bool {
        match &self.change {
            None => true,
            Some(Change::Promoting(promoting)) => promoting.stage == PromoteStage::Waiting,
            Some(_) => false,
        }
    }

    pub(super) fn pump_change(&mut self) -> bool {
        match self.change {
            None | Some(Change::Granting) => false,
            Some(Change::Promoting(promoting)) => self.pump_promote(promoting),
            Some(Change::Demoting(demoting)) => self.pump_demote(demoting),
            Some(Change::Leaving(leaving)) => self.pump_leave(leaving),
            Some(Change::Invalidating(invalidating)) => self.pump_invalidate(invalidating),
            Some(Change::Detaching(detaching)) => self.pump_detach(detaching),
        }
    }

    fn pump_promote(&mut self, mut promoting: Promoting) -> bool {
        match promoting.stage {
            PromoteStage::Waiting if self.may_decide() => match self.promotion_plan(promoting.flags) {
                Err(refusal) => self.refuse_promotion(refusal),
                Ok(Plan::Alone(origin)) => {
                    promoting.stage = PromoteStage::Recording;
                    self.change = Some(Change::Promoting(promoting));
                    self.promote_alone(origin);
                }
                Ok(Plan::Ask) => {
                    if let Some(resync) = self.resync.as_mut() {
                        resync.paused = true;
                    }
                    promoting.stage = PromoteStage::Draining;
                    self.change = Some(Change::Promoting(promoting));
                }
            },
            PromoteStage::Draining
                if self.resync.as_ref().is_none_or(|resync| resync.is_drained())
                    || is_planted(Bug::PromoteOverPieces) =>
            {
                let Some(link) = self.control_link() else { return false };
                let term = self.term() + 1;
                promoting.stage = PromoteStage::Asking { term };
                self.change = Some(Change::Promoting(promoting));
                self.send(link, Frame::PromoteRequest { term }, None);
            }
            _ => return false,
        }
        true
    }

    /// Attached, no handshake under way, and where the peer's word counts it was looked for.
    fn may_decide(&self) -> bool {
        let looked = self.contact_tried || self.first_contact_due() <= self.now;
        let alone = self.disk == DiskState::UpToDate || !self.dialer.wanted;
        let ready = self.attached && self.is_settled() && !self.in_handshake();
        ready && (self.link.is_some() || alone || looked)
    }

    /// Until then a promotion waits for the first contact after the start.
    pub(super) fn first_contact_due(&self) -> Instant {
        self.started + self.cfg.timing.timeout
    }

    /// Who may be promoted, and how.
    fn promotion_plan(&self, flags: Flags) -> Result<Plan, Refusal> {
        let Some(sb) = self.store.as_ref().filter(|_| !self.without_disk()).map(|store| &store.superblock)
        else {
            return self.plan_without_disk(flags);
        };
        if let Some(link) = &self.link {
            self.plan_with_peer(link, flags)?;
            if self.mirror_link().is_some() {
                return Ok(Plan::Ask);
            }
        }
        if sb.log.current().is_none() {
            return Err(Refusal::NoData);
        }
        let unclean = self.is_unclean() && self.peer_may_carry_current() && !is_planted(Bug::PromoteUnclean);
        let rank = match self.disk {
            DiskState::Inconsistent => CopyRank::Inconsistent,
            DiskState::Outdated => CopyRank::Outdated,
            _ if unclean => CopyRank::Unclean,
            _ => CopyRank::Clean,
        };
        let unproven = self.disk == DiskState::Consistent;
        let since_ms = u64::try_from(self.now.since(self.contact_since).as_millis()).unwrap_or(u64::MAX);
        match rank {
            CopyRank::Outdated if is_planted(Bug::PromoteOutdated) => Ok(Plan::Alone(Origin::Promoted)),
            CopyRank::Clean if !unproven || is_planted(Bug::PromoteUnproven) => {
                Ok(Plan::Alone(Origin::Promoted))
            }
            CopyRank::Clean if flags.accept_data_loss => {
                Ok(Plan::Alone(Origin::DataLoss { from: CopyRank::Clean }))
            }
            CopyRank::Clean if flags.peer_is_down => Ok(Plan::Alone(Origin::PeerIsDown)),
            CopyRank::Clean => Err(Refusal::MayBeStale { disk: self.disk, since_ms }),
            _ if flags.accept_data_loss => Ok(Plan::Alone(Origin::DataLoss { from: rank })),
            _ => Err(Refusal::DataLoss { disk: self.disk, unclean }),
        }
    }

    /// Through the peer's copy, or not at all.
    fn plan_without_disk(&self, flags: Flags) -> Result<Plan, Refusal> {
        match self.link.as_ref().filter(|_| self.served_link().is_some()) {
            Some(link) => self.plan_with_peer(link, flags).map(|()| Plan::Ask),
            None => Err(self.diskless_refusal()),
        }
    }

    /// What needs a disk, or a peer in its place, and has neither.
    pub(super) fn diskless_refusal(&self) -> Refusal {
        if self.disk == DiskState::Diskless { Refusal::NoDisk } else { Refusal::DiskFailed }
    }

    /// What a connected peer has to say before it is even asked.
    fn plan_with_peer(&self, link: &super::handshake::Link, flags: Flags) -> Result<(), Refusal> {
        let peer = link.hello.node;
        // While mirroring the peer is asked: it may have been demoted, and its word may still be on the way.
        if link.peer_role == Role::Primary && self.mirror_link().is_none() {
            return Err(Refusal::PeerIsPrimary(peer));
        }
        let usable =
            matches!(link.peer_disk, DiskState::UpToDate | DiskState::Consistent | DiskState::Outdated);
        if flags.peer_is_down && usable {
            return Err(Refusal::PeerAnswers { peer, disk: link.peer_disk });
        }
        let split = matches!(link.phase, Phase::Standstill(Standstill::SplitBrain | Standstill::BothDiscard));
        if split && self.disk != DiskState::UpToDate {
            return Err(Refusal::SplitBrain);
        }
        Ok(())
    }

    fn refuse_promotion(&mut self, refusal: Refusal) {
        if let Some(Change::Promoting(promoting)) = self.change.take() {
            if let Some(resync) = self.resync.as_mut() {
                resync.paused = false;
            }
            self.set_export(ExportState::Closed);
            self.finish_command(promoting.id, Err(refusal));
        }
    }

    /// One superblock write: the copy's state, the new generation, the term (ordering 4: before the export opens).
    fn promote_alone(&mut self, origin: Origin) {
        let carries = self.peer_may_carry_current() && !is_planted(Bug::PromoteWithoutRotation);
        let rotate = carries || !matches!(origin, Origin::Promoted);
        if rotate {
            self.rotate_without_peer(origin);
        }
        if origin == (Origin::DataLoss { from: CopyRank::Inconsistent }) {
            self.invalidate_checkpoints();
        }
        // Above every term that this node has seen, its own record and what it served or agreed to without a disk.
        let term = self.term() + 1;
        if let Some(store) = self.store.as_mut() {
            let sb = &mut store.superblock;
            sb.term = term;
            (sb.inconsistent, sb.outdated, sb.was_primary) = (None, false, true);
            if rotate {
                sb.unclean_in = None;
            }
        }
        self.note_may_be_written();
        if is_planted(Bug::ExportBeforeRecord) {
            self.commit(Effect::Confirmed);
            return self.on_promoted();
        }
        self.commit(Effect::Promoted);
    }

    pub(super) fn on_promoted(&mut self) {
        let Some(Change::Promoting(promoting)) = self.change else { return };
        self.change = None;
        if let Some(resync) = self.resync.as_mut() {
            resync.paused = false;
        }
        if self.mirror_link().is_none() && self.disk != DiskState::UpToDate && !self.without_disk() {
            if self.store.as_ref().is_some_and(|store| store.superblock.inconsistent.is_some()) {
                mark(Mark::AgreedAndUseless);
                // Agreed to by a peer that is gone: there is nothing to serve from.
                self.set_export(ExportState::Closed);
                self.begin_settle();
                return self.finish_command(promoting.id, Err(Refusal::LinkLost));
            }
            self.set_disk(DiskState::UpToDate);
        }
        // A word on an earlier split brain says nothing about what is written from now on.
        self.discard = None;
        self.set_role(Role::Primary);
        self.notice_generation();
        if self.mirror_link().is_none()
            && self.peer_may_carry_current()
            && !is_planted(Bug::PromoteWithoutRotation)
        {
            mark(Mark::RotatedAfterAgreement);
            // The peer agreed and was lost before the record was durable here.
            self.rotate();
        }
        if let Some(link) = self.control_link() {
            let term = self.term();
            self.send(link, Frame::Role { primary: true, term }, None);
            self.tell_checkpoints_as_primary();
        } else {
            self.reconsider();
        }
        self.set_export(ExportState::Open);
        self.finish_command(promoting.id, Ok(Done::Changed));
    }

    /// The peer wants to be Primary: the agreement is durable before it is given (ordering 15).
    pub(super) fn on_promote_request(&mut self, link: LinkId, term: u64) {
        let me_first = self.cfg.peer.is_some_and(|peer| self.cfg.node < peer.node);
        let own = matches!(
            self.change,
            Some(Change::Promoting(Promoting { stage: PromoteStage::Asking { .. }, .. }))
        );
        let busy = match self.change {
            None => false,
            Some(Change::Promoting(Promoting { stage: PromoteStage::Recording, .. })) => true,
            Some(Change::Promoting(_)) => own && me_first,
            Some(_) => true,
        };
        if own {
            mark(Mark::BothAsked);
        } else if busy {
            mark(Mark::AskedWhileBusy);
        }
        let refused = self.role == Role::Primary || busy || self.in_link() != Some(link);
        if refused || self.without_disk() {
            return self.send(link, Frame::PromoteReply { term, granted: false }, None);
        }
        if self.change.is_some() {
            let peer = self.cfg.peer.map_or(NodeId(0), |peer| peer.node);
            self.refuse_promotion(Refusal::PeerWon(peer));
        }
        self.change = Some(Change::Granting);
        if let Some(store) = self.store.as_mut() {
            store.superblock.term = store.superblock.term.max(term);
            if let Some(peer) = store.superblock.peers.first_mut() {
                peer.may_be_primary = true;
            }
        }
        self.note_may_be_written();
        if is_planted(Bug::GrantBeforeRecord) {
            self.commit(Effect::Confirmed);
            return self.on_granted(link, term);
        }
        self.commit(Effect::Granted(link, term));
    }

    pub(super) fn on_granted(&mut self, link: LinkId, term: u64) {
        if matches!(self.change, Some(Change::Granting)) {
            self.change = None;
        }
        self.discard = None;
        if let Some(link) = self.link.as_mut() {
            link.peer_role = Role::Primary;
        }
        self.send(link, Frame::PromoteReply { term, granted: true }, None);
    }

    pub(super) fn on_promote_reply(&mut self, term: u64, granted: bool) {
        let Some(Change::Promoting(mut promoting)) = self.change else { return };
        if promoting.stage != (PromoteStage::Asking { term }) {
            return;
        }
        if !granted {
            let peer = self.cfg.peer.map_or(NodeId(0), |peer| peer.node);
            let is_primary = self.link.as_ref().is_some_and(|link| link.peer_role == Role::Primary);
            let refusal = if is_primary { Refusal::PeerIsPrimary } else { Refusal::PeerWon };
            return self.refuse_promotion(refusal(peer));
        }
        promoting.stage = PromoteStage::Recording;
        self.change = Some(Change::Promoting(promoting));
        if self.without_disk() {
            // The copy that counts has recorded it.
            self.term_seen = term;
            self.through = self.through.map(|(generation, _)| (generation, term));
            return self.on_promoted();
        }
        if let Some(store) = self.store.as_mut() {
            store.superblock.term = store.superblock.term.max(term);
            store.superblock.was_primary = true;
        }
        self.note_may_be_written();
        self.commit(Effect::Promoted);
    }

    pub(super) fn on_peer_role(&mut self, primary: bool, term: u64) {
        if let Some(link) = self.link.as_mut() {
            link.peer_role = if primary { Role::Primary } else { Role::Secondary };
        }
        if let Some(store) = self.store.as_mut() {
            store.superblock.term = store.superblock.term.max(term);
        } else {
            self.term_seen = self.term_seen.max(term);
        }
    }

    fn begin_demote(&mut self, id: CommandId, force: bool) {
        if self.change.is_some() {
            return self.finish_command(id, Err(Refusal::Busy));
        }
        if self.role == Role::Secondary {
            return self.finish_command(id, Ok(Done::Already));
        }
        match self.in_use() {
            Some(refusal) if !force => self.finish_command(id, Err(refusal)),
            _ => self.start_demote(Some(id), None, force),
        }
    }

    /// Why clients are not closed unless the operator insists: by a demotion, or by a departure, which is asked for
    /// only after a look at this.
    pub fn in_use(&self) -> Option<Refusal> {
        let clients = self.clients;
        (self.role == Role::Primary && clients > 0).then_some(Refusal::InUse { clients })
    }

    pub(super) fn start_demote(&mut self, id: Option<CommandId>, leave: Option<CommandId>, force: bool) {
        self.change = Some(Change::Demoting(Demoting { id, leave, force, stage: DemoteStage::Draining }));
        self.set_export(ExportState::Closed);
    }

    fn pump_demote(&mut self, mut demoting: Demoting) -> bool {
        if demoting.force && demoting.stage == DemoteStage::Draining && self.suspended_since.is_some() {
            // Again and again: what waited for a suspended write is suspended after it.
            self.fail_suspended();
        }
        if demoting.force && demoting.stage == DemoteStage::Draining {
            // What waits for the resync of a block would wait as long as that takes, or is paused.
            self.fail_gate();
        }
        let drained =
            self.requests.open == 0 && !self.tasks.iter().any(|(_, task)| task.is_client()) && !self.rotating;
        match demoting.stage {
            DemoteStage::Draining if drained => {
                if let Some(resync) = self.resync.as_mut() {
                    resync.paused = true;
                }
                self.flush_stream();
                demoting.stage = DemoteStage::Flushing;
            }
            DemoteStage::Flushing
                if (self.undurable.len() == 0
                    || is_planted(Bug::DemoteBeforeFlush)
                    || self.without_disk() && self.served_link().is_none())
                    && !self.rotating
                    && self.resync.as_ref().is_none_or(|resync| resync.is_drained()) =>
            {
                demoting.stage = DemoteStage::Recording;
                if let Some(store) = self.store.as_mut() {
                    store.superblock.was_primary = false;
                }
                if !is_planted(Bug::CoverSurvivesDemotion) {
                    self.uncover_checkpoints();
                }
                if self.without_disk() {
                    self.change = Some(Change::Demoting(demoting));
                    self.on_demoted();
                    return true;
                }
                self.commit(Effect::Demoted);
            }
            DemoteStage::Settling if self.is_settled() => {
                self.change = None;
                self.after_demote(demoting);
                return true;
            }
            _ => return false,
        }
        self.change = Some(Change::Demoting(demoting));
        true
    }

    pub(super) fn on_demoted(&mut self) {
        let Some(Change::Demoting(mut demoting)) = self.change else { return };
        self.set_role(Role::Secondary);
        self.suspended_since = None;
        if let Some(resync) = self.resync.as_mut() {
            resync.paused = false;
        }
        match self.control_link() {
            Some(link) => {
                let term = self.term();
                self.send(link, Frame::Role { primary: false, term }, None);
                self.change = None;
                self.after_demote(demoting);
            }
            None => {
                if self.in_handshake() {
                    // The peer's snapshot says Primary.
                    self.close_link(CloseReason::SnapshotChanged);
                }
                demoting.stage = DemoteStage::Settling;
                self.change = Some(Change::Demoting(demoting));
                self.begin_settle();
            }
        }
    }

    fn after_demote(&mut self, demoting: Demoting) {
        if let Some(id) = demoting.id {
            self.finish_command(id, Ok(Done::Changed));
        }
        match demoting.leave {
            Some(id) => self.leave_as_secondary(id, true),
            // Writes that failed here may stand at the target, whose bits do not say so: before it may be promoted, and
            // serve them, the bits are exchanged again.
            None if self.resync.as_ref().is_some_and(Resync::has_doubts)
                && !is_planted(Bug::ForgetDoubtsAtDemotion) =>
            {
                self.close_link(CloseReason::SnapshotChanged);
            }
            None => self.reconsider(),
        }
    }

    /// The link is gone: changes that needed the peer end, or go on without it.
    pub(super) fn role_lost_link(&mut self) {
        match self.change {
            Some(Change::Promoting(promoting)) => match promoting.stage {
                PromoteStage::Draining | PromoteStage::Asking { .. } => {
                    self.refuse_promotion(Refusal::LinkLost);
                }
                PromoteStage::Waiting | PromoteStage::Recording => {}
            },
            Some(Change::Granting) => self.change = None,
            Some(Change::Leaving(_)) => self.leave_lost_link(),
            Some(Change::Invalidating(invalidating)) => self.invalidate_lost_link(invalidating),
            Some(Change::Detaching(detaching)) => self.detach_lost_link(detaching),
            Some(Change::Demoting(_)) | None => {}
        }
    }

    /// A promotion is being recorded: its outcome must be known before anything else begins.
    pub(super) fn records_promotion(&self) -> bool {
        matches!(self.change, Some(Change::Promoting(Promoting { stage: PromoteStage::Recording, .. })))
    }

    /// The disk is lost: what was being recorded never will be.
    pub(super) fn end_recording(&mut self) {
        match self.change {
            Some(Change::Promoting(_)) if self.records_promotion() => {
                self.refuse_promotion(Refusal::DiskFailed);
            }
            Some(Change::Demoting(demoting)) if demoting.stage == DemoteStage::Recording => self.on_demoted(),
            Some(Change::Granting) => self.change = None,
            Some(Change::Leaving(leaving)) => self.end_recorded_leave(leaving),
            Some(Change::Invalidating(invalidating)) => self.end_recorded_invalidate(invalidating),
            Some(Change::Detaching(detaching)) => self.detach_failed(detaching),
            _ => {}
        }
    }

    /// A promotion that waits for a handshake gives up after a while.
    pub(super) fn promotion_timed_out(&mut self) {
        self.refuse_promotion(Refusal::Busy);
    }
}
