//! The life of a link: dialling, one snapshot each, the same verdict on both ends, a durable commitment, replication.
//!
//! Orderings kept here: 8 (one atomic snapshot; any change of it restarts the handshake), 9 (nothing is changed before
//! both ends computed the same verdict), 19 (writes of an earlier link have completed before the snapshot). Frames
//! and completions of an old link carry its number and are ignored.

use super::Node;
use super::pieces::Answer;
use super::task::{Work, Zero};
use crate::action::{Action, CloseReason, Notice};
use crate::config::NodeConfig;
use crate::event::{LinkLoss, PeerHello};
use crate::frame::Frame;
use crate::ids::{Instant, LinkId, SlotId};
use crate::snapshot::Snapshot;
use crate::status::{ConnectionState, DiskState, ReplicationState, Role};
use crate::verdict::{Standstill, SyncWhy, Verdict, verdict};
use core::time::Duration;
use lockstep_bitmap::ByteRange;
use lockstep_bitmap::canary::{Bug, is_planted};

/// How far a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Waits for what belongs to an earlier link, and for changes of role.
    Draining,
    /// Snapshots are exchanged.
    Comparing,
    /// The session number is being recorded here, then verdicts are exchanged.
    Agreeing,
    /// What the verdict asks for is being recorded, here or there.
    Committing,
    /// Mirroring; bitmaps are exchanged.
    Exchanging,
    /// Mirroring.
    Replicating,
    /// Connected; one copy has no disk, the other serves (see `serve`).
    Serving,
    /// Connected for control only.
    Standstill(Standstill),
}

#[derive(Debug)]
pub(super) struct Link {
    pub(super) id: LinkId,
    pub(super) hello: PeerHello,
    pub(super) phase: Phase,
    pub(super) heard: Instant,
    /// The shell does not read it now: silence is no sign.
    pub(super) unread: bool,
    pub(super) sent: Instant,
    sent_snapshot: Option<Snapshot>,
    pub(super) got_snapshot: Option<Snapshot>,
    pub(super) verdict: Option<Verdict>,
    session: u64,
    /// The session number is durable here, the verdict was sent.
    verdict_sent: bool,
    got_verdict: Option<(u8, u64, u64)>,
    pub(super) commit_sent: bool,
    pub(super) commit_got: bool,
    pub(super) bits: super::exchange::Exchange,
    pub(super) checkpoints: super::checkpoint_exchange::CheckpointExchange,
    pub(super) peer_role: Role,
    pub(super) peer_disk: DiskState,
    /// The peer asked to leave and we agreed.
    pub(super) peer_leaves: bool,
}

/// When to dial.
#[derive(Debug)]
pub(super) struct Dialer {
    /// False: the operator disconnected, or there is no peer.
    pub(super) wanted: bool,
    /// The lower node id dials, the higher one listens: two ends never dial past each other.
    dials: bool,
    dialing: bool,
    backoff: Duration,
    pub(super) next: Instant,
}

impl Dialer {
    pub(super) fn new(cfg: &NodeConfig) -> Self {
        Dialer {
            wanted: cfg.peer.is_some(),
            dials: cfg.peer.is_some_and(|peer| cfg.node < peer.node),
            dialing: false,
            backoff: cfg.timing.redial_min,
            next: Instant(0),
        }
    }

    /// When the next dial is due, if one is.
    pub(super) fn due(&self) -> Option<Instant> {
        (self.wanted && self.dials && !self.dialing).then_some(self.next)
    }
}

impl Node {
    pub(super) fn is_current(&self, link: Option<LinkId>) -> bool {
        link.is_some() && self.link.as_ref().map(|l| l.id) == link
    }

    /// The link on which writes are mirrored, in either direction.
    pub(super) fn mirror_link(&self) -> Option<LinkId> {
        let link = self.link.as_ref()?;
        matches!(link.phase, Phase::Exchanging | Phase::Replicating).then_some(link.id)
    }

    /// A link exists whose handshake has not ended.
    pub(super) fn in_handshake(&self) -> bool {
        self.link.as_ref().is_some_and(|link| {
            !matches!(link.phase, Phase::Replicating | Phase::Serving | Phase::Standstill(_))
        })
    }

    pub(super) fn connection(&self) -> ConnectionState {
        match &self.link {
            None if self.dialer.wanted => ConnectionState::Connecting,
            None => ConnectionState::StandAlone,
            Some(link) => match link.phase {
                Phase::Exchanging | Phase::Replicating | Phase::Serving | Phase::Standstill(_) => {
                    ConnectionState::Connected
                }
                _ => ConnectionState::Negotiating,
            },
        }
    }

    /// Runs `change` and logs what it did to connection and replication.
    pub(super) fn with_states(&mut self, change: impl FnOnce(&mut Self)) {
        let (old, old_replication) = (self.connection(), self.replication());
        change(self);
        let (new, new_replication) = (self.connection(), self.replication());
        if old != new {
            self.contact_since = self.now;
            self.notice(Notice::Connection { old, new });
        }
        if old_replication != new_replication {
            self.notice(Notice::Replication { old: old_replication, new: new_replication });
        }
    }

    pub(super) fn replication(&self) -> ReplicationState {
        match self.link.as_ref().map(|link| link.phase) {
            Some(Phase::Exchanging) => ReplicationState::Exchanging,
            Some(Phase::Replicating) => self.resync_state(),
            Some(Phase::Standstill(standstill)) => match standstill {
                Standstill::SplitBrain | Standstill::BothDiscard => ReplicationState::SplitBrain,
                Standstill::TargetIsPrimary => ReplicationState::TargetIsPrimary,
                Standstill::NoSource => ReplicationState::NoSource,
                Standstill::Diskless => ReplicationState::Off,
                _ => ReplicationState::Unrelated,
            },
            _ => ReplicationState::Off,
        }
    }

    pub(super) fn set_phase(&mut self, phase: Phase) {
        self.with_states(|node| {
            if let Some(link) = node.link.as_mut() {
                link.phase = phase;
            }
        });
    }

    pub(super) fn dial_if_due(&mut self) {
        let due = self.dialer.due().is_some_and(|at| at <= self.now);
        if due && self.link.is_none() && self.attached {
            self.dialer.dialing = true;
            self.act(Action::Dial);
        }
    }

    /// Next dial after the back-off, with up to half of it as jitter.
    pub(super) fn schedule_dial(&mut self, soon: bool) {
        self.dialer.dialing = false;
        let min = self.cfg.timing.redial_min;
        let wait = if soon { min / 4 } else { self.dialer.backoff };
        self.dialer.backoff = (wait * 2).clamp(min, self.cfg.timing.redial_max);
        let jitter = self.rng.below(u64::try_from(wait.as_nanos() / 2).unwrap_or(0));
        self.dialer.next = self.now + wait + Duration::from_nanos(jitter);
    }

    pub(super) fn on_link_up(&mut self, id: LinkId, hello: PeerHello) {
        self.dialer.dialing = false;
        if self.link.is_some() {
            self.link_lost(LinkLoss::Superseded);
        }
        if !self.dialer.wanted
            || self.is_failing()
            || self.cfg.peer.is_none_or(|peer| peer.node != hello.node)
        {
            self.schedule_dial(false);
            return self.act(Action::CloseLink { link: id, reason: CloseReason::Disconnected });
        }
        let link = Link {
            id,
            hello,
            phase: Phase::Draining,
            heard: self.now,
            unread: false,
            sent: self.now,
            sent_snapshot: None,
            got_snapshot: None,
            verdict: None,
            session: 0,
            verdict_sent: false,
            got_verdict: None,
            commit_sent: false,
            commit_got: false,
            bits: super::exchange::Exchange::default(),
            checkpoints: super::checkpoint_exchange::CheckpointExchange::default(),
            peer_role: Role::Secondary,
            peer_disk: DiskState::Diskless,
            peer_leaves: false,
        };
        self.with_states(|node| node.link = Some(link));
    }

    /// Whether the peer is silent is known again from the moment on in which its frames are read again.
    pub(super) fn on_reading(&mut self, id: LinkId, is_reading: bool) {
        let now = self.now;
        if let Some(link) = self.link.as_mut().filter(|link| link.id == id) {
            (link.unread, link.heard) = (!is_reading, now);
        }
    }

    pub(super) fn on_link_down(&mut self, link: Option<LinkId>, loss: LinkLoss) {
        match link {
            None => {
                self.contact_tried = true;
                self.schedule_dial(false);
            }
            Some(_) if self.is_current(link) => self.link_lost(loss),
            // A link that we closed ourselves, or that was superseded.
            Some(_) => {}
        }
    }

    /// Says goodbye, closes the current link, and takes the consequences at once.
    pub(super) fn close_link(&mut self, reason: CloseReason) {
        let Some(id) = self.link.as_ref().map(|link| link.id) else { return };
        self.notice(Notice::Closing { reason });
        self.send(id, Frame::Goodbye { reason: reason as u8 }, None);
        self.act(Action::CloseLink { link: id, reason });
        self.link_lost(LinkLoss::Closed);
        if matches!(
            reason,
            CloseReason::SnapshotChanged
                | CloseReason::Resolving
                | CloseReason::Invalidated
                | CloseReason::DiskFailed
                | CloseReason::DiskChanged
        ) {
            self.schedule_dial(true);
        }
    }

    pub(super) fn send(&mut self, link: LinkId, frame: Frame, slot: Option<SlotId>) {
        if let Some(current) = self.link.as_mut().filter(|current| current.id == link) {
            current.sent = self.now;
        }
        self.act(Action::Send { link, frame, slot });
    }

    pub(super) fn pump_handshake(&mut self) -> bool {
        let Some((id, phase)) = self.link.as_ref().map(|link| (link.id, link.phase)) else { return false };
        match phase {
            Phase::Draining if self.may_offer(id) => self.send_snapshot(id),
            Phase::Comparing => return self.compare(id),
            Phase::Agreeing => return self.agree(),
            Phase::Committing => {
                let both = self.link.as_ref().is_some_and(|link| link.commit_sent && link.commit_got);
                if !both {
                    return false;
                }
                self.start_mirror();
            }
            _ => return false,
        }
        true
    }

    /// Ordering 19, and nothing else under way that would change the snapshot.
    fn may_offer(&self, id: LinkId) -> bool {
        let old = |work: &Work, local_pending: bool| match work {
            Work::Write { .. } => local_pending,
            Work::Read { .. } => false,
            _ => true,
        };
        let drained = !self.tasks.iter().any(|(_, task)| {
            task.link.is_some() && task.link != Some(id) && old(&task.work, task.local_pending)
        });
        let drained = drained || is_planted(Bug::HandshakeBeforeOldWrites);
        let settled = !self.rotating && self.is_settled() || is_planted(Bug::TakeChangedSnapshot);
        drained && self.attached && settled && self.change_allows_handshake()
    }

    pub(super) fn take_snapshot(&self) -> Option<Snapshot> {
        let Some(store) = self.store.as_ref() else { return Some(self.diskless_snapshot()) };
        let sb = &store.superblock;
        let peer = sb.peers.first()?;
        let dirty = store.slots[0].bits.count();
        Some(Snapshot {
            node: self.cfg.node,
            size_bytes: store.geometry().size_bytes(),
            granule_bytes: self.cfg.granule_bytes,
            block_shift: store.geometry().block_shift(),
            role: self.role,
            disk: self.disk,
            term: sb.term,
            log: sb.log.clone(),
            becoming: sb.inconsistent,
            unclean: self.is_unclean(),
            marked: self.marked,
            base: peer.base,
            peer_copy: peer.copy,
            slot_empty: dirty == 0,
            dirty_bytes: dirty * store.geometry().block_bytes(),
            session_offered: peer.session_offered,
            session_used: peer.session_used,
            discard: self.discard,
            declared_clean: sb.declared_clean,
            sample: self.cfg.sample,
            proposal: self.proposal,
            wrote_through: self.wrote_through(),
            continues: self.continues(),
            began_unix_ms: self.alone_since(),
        })
    }

    fn send_snapshot(&mut self, id: LinkId) {
        let Some(snapshot) = self.take_snapshot() else { return };
        self.set_phase(Phase::Comparing);
        if let Some(link) = self.link.as_mut() {
            link.sent_snapshot = Some(snapshot);
        }
        self.send(id, Frame::Snapshot, None);
    }

    /// Bytes of the snapshot that was taken for this link.
    pub(super) fn render_snapshot(&self, out: &mut alloc::vec::Vec<u8>) {
        if let Some(snapshot) = self.link.as_ref().and_then(|link| link.sent_snapshot.as_ref()) {
            snapshot.encode(out);
        }
    }

    /// Both snapshots are here: compute the verdict, and promise a session number above all that were promised.
    ///
    /// The promise is durable before the verdict is said, and recorded as used only after the peer's verdict has shown
    /// that it is durable there: so an honest copy has always promised what its peer used. A restored copy promises
    /// nothing before the source has durably set all bits, or it would no longer be recognised as restored.
    fn compare(&mut self, id: LinkId) -> bool {
        let Some(link) = self.link.as_mut() else { return false };
        let (Some(mine), Some(theirs)) = (&link.sent_snapshot, &link.got_snapshot) else { return false };
        let own = verdict(mine, theirs);
        let session = mine.session_offered.max(theirs.session_offered) + 1;
        (link.verdict, link.session) = (Some(own), session);
        self.set_phase(Phase::Agreeing);
        let no_session = matches!(own, Verdict::Refuse(_) | Verdict::Serve { .. });
        if no_session || self.is_restored_target() {
            self.send_verdict(id);
        } else {
            if let Some(peer) = self.peer_mut() {
                peer.session_offered = session;
            }
            self.commit(super::meta::Effect::Promised(id));
        }
        true
    }

    fn is_restored_target(&self) -> bool {
        let restored = |verdict: Verdict| match verdict {
            Verdict::Sync { source, why: SyncWhy::Restored, .. } => source != self.cfg.node,
            _ => false,
        };
        self.link.as_ref().and_then(|link| link.verdict).is_some_and(restored)
    }

    pub(super) fn send_verdict(&mut self, id: LinkId) {
        let Some(link) = self.link.as_mut() else { return };
        let Some(own) = link.verdict else { return };
        link.verdict_sent = true;
        let (code, session, fingerprint) = (own.code(), link.session, own.fingerprint());
        self.send(id, Frame::Verdict { code, session, fingerprint }, None);
    }

    /// Both verdicts are here: they must be equal (ordering 9), and nothing may have changed (ordering 8).
    fn agree(&mut self) -> bool {
        let Some(link) = self.link.as_ref().filter(|link| link.verdict_sent) else { return false };
        let alone = link.verdict.filter(|_| is_planted(Bug::ActBeforeThePeersVerdict));
        let alone = alone.map(|own| (own.code(), link.session, own.fingerprint()));
        let (Some(own), Some(got), session) = (link.verdict, link.got_verdict.or(alone), link.session) else {
            return false;
        };
        if got != (own.code(), session, own.fingerprint()) {
            self.close_link(CloseReason::VerdictMismatch);
            return true;
        }
        if self.is_restored_target() && !link.commit_got {
            return false;
        }
        let sent = link.sent_snapshot.as_ref();
        let unchanged =
            self.take_snapshot().is_some_and(|now| sent.is_some_and(|sent| sent.same_verdict_inputs(&now)));
        if unchanged || is_planted(Bug::TakeChangedSnapshot) {
            self.apply_verdict(own, session);
        } else {
            self.close_link(CloseReason::SnapshotChanged);
        }
        true
    }

    pub(super) fn connected_well(&mut self) {
        self.dialer.backoff = self.cfg.timing.redial_min;
    }

    pub(super) fn on_frame(&mut self, id: LinkId, frame: Frame, body: &[u8], slot: Option<SlotId>) {
        let any = is_planted(Bug::TakeFramesOfAnOldLink);
        let Some(link) = self.link.as_mut().filter(|link| any || link.id == id) else {
            if let Some(slot) = slot {
                self.act(Action::ReleaseSlot { slot });
            }
            return;
        };
        link.heard = self.now;
        let id = link.id;
        if self.is_failing() && !matches!(frame, Frame::Goodbye { .. }) {
            // Nothing is answered before the failure is recorded, and then the link is closed.
            return slot.into_iter().for_each(|slot| self.act(Action::ReleaseSlot { slot }));
        }
        let Some(link) = self.link.as_ref() else { return };
        let replicates = matches!(link.phase, Phase::Exchanging | Phase::Replicating | Phase::Serving);
        if let Some(slot) = slot {
            return self.on_data_frame(id, frame, slot);
        }
        match frame {
            Frame::Heartbeat => {}
            Frame::Goodbye { .. } => self.link_lost_by_peer(id),
            Frame::Snapshot | Frame::Verdict { .. } | Frame::Commit => self.on_handshake_frame(frame, body),
            _ if replicates => self.on_mirror_frame(id, frame, body),
            Frame::PromoteRequest { term } => self.on_promote_request(id, term),
            Frame::PromoteReply { term, granted } => self.on_promote_reply(term, granted),
            Frame::Role { primary, term } => self.on_peer_role(primary, term),
            _ => self.close_link(CloseReason::PeerMisbehaved),
        }
    }

    fn link_lost_by_peer(&mut self, id: LinkId) {
        self.act(Action::CloseLink { link: id, reason: CloseReason::Disconnected });
        self.link_lost(LinkLoss::Lost);
    }

    fn on_handshake_frame(&mut self, frame: Frame, body: &[u8]) {
        let Some(link) = self.link.as_mut() else { return };
        let early = matches!(link.phase, Phase::Draining | Phase::Comparing);
        match frame {
            Frame::Snapshot if early && link.got_snapshot.is_none() => match Snapshot::decode(body) {
                Ok(snapshot) if snapshot.node == link.hello.node => {
                    link.peer_role = snapshot.role;
                    link.peer_disk = snapshot.disk;
                    self.last_peer = Some(snapshot.clone());
                    link.got_snapshot = Some(snapshot);
                }
                _ => self.close_link(CloseReason::PeerMisbehaved),
            },
            Frame::Verdict { code, session, fingerprint }
                if (matches!(link.phase, Phase::Comparing | Phase::Agreeing)
                    || is_planted(Bug::ActBeforeThePeersVerdict))
                    && link.got_snapshot.is_some() =>
            {
                link.got_verdict = Some((code, session, fingerprint));
            }
            Frame::Commit if link.got_verdict.is_some() && !link.commit_got => link.commit_got = true,
            _ => self.close_link(CloseReason::PeerMisbehaved),
        }
    }

    fn on_data_frame(&mut self, id: LinkId, frame: Frame, slot: SlotId) {
        match frame {
            Frame::Write { pos, offset, len, fua } => {
                self.on_peer_write(id, (pos, offset, len, fua), Some(slot), None);
            }
            Frame::ReadData { id: read, offset, len } => {
                self.on_read_data(id, read, ByteRange::new(offset, u64::from(len)), slot);
            }
            Frame::ResyncData { batch, offset, len } => {
                self.on_answer(id, batch, ByteRange::new(offset, u64::from(len)), Answer::Data(slot));
            }
            _ => {
                self.act(Action::ReleaseSlot { slot });
                self.close_link(CloseReason::PeerMisbehaved);
            }
        }
    }

    fn on_mirror_frame(&mut self, id: LinkId, frame: Frame, body: &[u8]) {
        match frame {
            Frame::Zero { pos, offset, len, punch, fua } => {
                self.on_peer_write(id, (pos, offset, len, fua), None, Some(Zero { punch }));
            }
            Frame::Written { pos } => self.on_written(id, pos),
            Frame::WriteFailed { pos, no_space } => self.on_write_failed(id, pos, no_space),
            Frame::Flush { upto } => self.on_peer_flush(upto),
            Frame::Durable { upto } => self.on_durable(upto),
            Frame::Read { id: read, offset, len } => {
                let _ = self.on_peer_wants(id, Work::PeerRead { id: read }, offset, len);
            }
            Frame::ReadFailed { id: read } => self.on_read_failed(id, read),
            Frame::Bits { first_block } => self.on_bits(id, first_block, body),
            Frame::BitsEnd => self.on_bits_end(),
            Frame::BitsAck => self.on_bits_ack(),
            Frame::Pace { paused, again, rate, least } => self.on_pace(paused, again, rate, least),
            Frame::ResyncRequest { batch, offset, len } => {
                self.on_piece_request(id, batch, (offset, len), None);
            }
            Frame::HashRequest { batch, offset, len } => {
                self.on_piece_request(id, batch, (offset, len), Some(body));
            }
            Frame::ResyncSame { batch, offset, len } => {
                self.on_answer(id, batch, ByteRange::new(offset, u64::from(len)), Answer::Same);
            }
            Frame::ResyncZero { batch, offset, len } => {
                self.on_answer(id, batch, ByteRange::new(offset, u64::from(len)), Answer::Zero);
            }
            Frame::ResyncFailed { batch, offset, len } => {
                self.on_answer(id, batch, ByteRange::new(offset, u64::from(len)), Answer::Failed);
            }
            Frame::Checkpoint { batch } => self.on_checkpoint(id, batch),
            Frame::CheckpointDone { batch } => self.on_checkpoint_done(batch),
            Frame::FinishRequest => self.on_finish_request(id),
            Frame::Finish => self.on_finish(id),
            Frame::Finished => self.on_finished(id),
            Frame::PromoteRequest { term } => self.on_promote_request(id, term),
            Frame::PromoteReply { term, granted } => self.on_promote_reply(term, granted),
            Frame::Role { primary, term } => self.on_peer_role(primary, term),
            Frame::LeaveRequest { was_primary } => self.on_leave_request(id, was_primary),
            Frame::LeaveReply { agreed } => self.on_leave_reply(id, agreed),
            Frame::Left => self.on_left(id),
            Frame::CheckpointCreate { id: checkpoint } => self.on_checkpoint_create(id, checkpoint, body),
            Frame::CheckpointDelete { id: checkpoint } => self.on_checkpoint_delete(id, checkpoint),
            Frame::CheckpointAnswer { id: checkpoint, done } => {
                self.on_checkpoint_answer(id, checkpoint, done)
            }
            Frame::CheckpointList { answer } => self.on_checkpoint_list(id, answer, body),
            Frame::CheckpointBits { index, first_block } => {
                self.on_checkpoint_bits(id, index, first_block, body);
            }
            Frame::CheckpointBitsAck => self.on_checkpoint_bits_ack(),
            Frame::CheckpointEnd => self.on_checkpoint_end(),
            Frame::Invalidate => self.on_invalidate_request(id),
            Frame::InvalidateReply { done } => self.on_invalidate_reply(id, done),
            _ => self.close_link(CloseReason::PeerMisbehaved),
        }
    }
}
