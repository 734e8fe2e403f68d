//! Checkpoints: created and deleted by an operator, kept complete by every write, never silently incomplete.
//!
//! Every write of this copy's data sets its bits in memory before it is submitted ([`Node::note_written`]), whoever
//! asked for it; a resync piece that turns out equal does, too, since a block may owe its bit to it. What happens to
//! bits that are in memory only decides what a checkpoint is worth after an unclean stop:
//!
//! - On a Primary with an UpToDate copy each such bit lies in a region that is durably marked (ordering 1), and the
//!   mark goes only after the bit is on disk (ordering 2): the checkpoint is *covered*.
//! - Nothing is marked for what a Secondary or a target writes. So the cover is taken back durably before the first
//!   such write (with the record of the demotion, or of the verdict), and found missing after an unclean stop it makes
//!   the checkpoint incomplete. The same boot id is no excuse: the bits were in the memory of the process.
//! - After a promotion the cover is recorded again when all that was in memory then is on disk.
//!
//! An Inconsistent copy's claim is weaker: its bits and its dirty bits toward the source together name what differs.

use super::Node;
use super::meta::Effect;
use super::task::Work;
use crate::checkpoint::{CheckpointName, CheckpointView};
use crate::frame::Frame;
use crate::ids::{CommandId, LinkId};
use crate::refusal::{Done, Refusal};
use crate::status::{DiskState, Role};
use alloc::borrow::ToOwned;
use alloc::vec::Vec;
use lockstep_bitmap::canary::{Bug, is_planted};
use lockstep_bitmap::{
    ByteRange, Checkpoint, CheckpointId, CheckpointRecord, CheckpointState, DirtyBitmap, GenerationId,
    Incomplete, Invalid, Store, checkpoint_slot,
};

/// What a node keeps of its checkpoints beside the metadata.
#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    /// What was not on disk when the cover was wanted is being written.
    covering: bool,
    /// A command that waits for the end of an exchange, or of the one before it.
    waiting: Option<(CommandId, CheckpointOrder)>,
    pending: Option<Pending>,
    /// Those that the peer has durably.
    pub(super) at_peer: Vec<CheckpointId>,
}

/// What an operator wants.
#[derive(Clone, Copy, Debug)]
pub(super) enum CheckpointOrder {
    Create(CheckpointName),
    Delete(CheckpointName),
}

/// A command that is being recorded.
#[derive(Clone, Copy, Debug)]
struct Pending {
    command: CommandId,
    checkpoint: CheckpointId,
    is_recorded: bool,
    /// The peer's word is awaited.
    link: Option<LinkId>,
}

impl Node {
    /// The checkpoints that this node knows.
    pub fn checkpoints(&self) -> impl Iterator<Item = CheckpointView<'_>> {
        self.store.iter().flat_map(|store| {
            store.checkpoints().map(|(position, held)| CheckpointView {
                id: held.id,
                name: &held.name,
                created_unix_ms: held.created_unix_ms,
                state: held.state,
                changed_bytes: store.checkpoint_bits(position).count() * store.geometry().block_bytes(),
                is_at_peer: self.checkpoints.at_peer.contains(&held.id),
            })
        })
    }

    /// The blocks that may have been written since a checkpoint, in the UpToDate copy of this node. `None` if it is
    /// not known, not complete, or the copy is not UpToDate.
    pub fn checkpoint_bits(&self, id: CheckpointId) -> Option<&DirtyBitmap> {
        let store = self.store.as_ref().filter(|_| self.disk == DiskState::UpToDate)?;
        let (position, held) = store.checkpoints().find(|(_, held)| held.id == id)?;
        (held.state == CheckpointState::Complete).then(|| store.checkpoint_bits(position))
    }

    /// This range of the local data is about to be written, or was found to be what it should become.
    pub(super) fn note_written(&mut self, range: ByteRange) {
        if let Some(store) = self.store.as_mut() {
            let blocks = store.geometry().blocks_touched(range);
            store.note_written(blocks);
        }
    }

    pub(super) fn order_checkpoint(&mut self, id: CommandId, order: CheckpointOrder) {
        if self.checkpoints.waiting.is_some() {
            return self.finish_command(id, Err(Refusal::Busy));
        }
        self.checkpoints.waiting = Some((id, order));
    }

    /// While the lists are exchanged nothing is added to them or taken away.
    pub(super) fn pump_checkpoint_order(&mut self) -> bool {
        let free = self.checkpoints.pending.is_none() && !self.exchanges_checkpoints();
        match self.checkpoints.waiting.take_if(|_| free) {
            Some((id, CheckpointOrder::Create(name))) => self.begin_checkpoint(id, name),
            Some((id, CheckpointOrder::Delete(name))) => self.delete_checkpoint(id, name),
            None => return false,
        }
        true
    }

    fn begin_checkpoint(&mut self, id: CommandId, name: CheckpointName) {
        if let Err(refusal) = self.may_change_checkpoints().and_then(|()| self.may_create(name)) {
            return self.finish_command(id, Err(refusal));
        }
        let checkpoint = Checkpoint {
            id: CheckpointId(self.rng.generation_id().0),
            name: name.as_str().to_owned(),
            created_unix_ms: self.unix_ms(),
            generation: self.current_generation().unwrap_or(GenerationId(0)),
            state: CheckpointState::Complete,
        };
        let checkpoint_id = checkpoint.id;
        self.take_checkpoint(checkpoint, true);
        self.announce(id, checkpoint_id, Frame::CheckpointCreate { id: checkpoint_id });
    }

    fn delete_checkpoint(&mut self, id: CommandId, name: CheckpointName) {
        if let Err(refusal) = self.may_change_checkpoints() {
            return self.finish_command(id, Err(refusal));
        }
        let found = self.checkpoints().find(|held| held.name == name.as_str()).map(|held| held.id);
        let Some(checkpoint) = found else { return self.finish_command(id, Ok(Done::Already)) };
        self.drop_checkpoint(checkpoint);
        self.announce(id, checkpoint, Frame::CheckpointDelete { id: checkpoint });
    }

    /// Records a change here, and tells the peer at this place of the stream.
    fn announce(&mut self, command: CommandId, checkpoint: CheckpointId, frame: Frame) {
        let link = self.checkpoint_link();
        self.checkpoints.pending = Some(Pending { command, checkpoint, is_recorded: false, link });
        if let Some(link) = link {
            self.send(link, frame, None);
        }
        self.commit(Effect::CheckpointRecorded);
    }

    fn may_change_checkpoints(&self) -> Result<(), Refusal> {
        if self.role != Role::Primary {
            return Err(Refusal::CheckpointNotPrimary);
        }
        if self.disk != DiskState::UpToDate {
            return Err(Refusal::CheckpointDisk { disk: self.disk });
        }
        let busy =
            self.change.is_some() || self.checkpoints.pending.is_some() || self.exchanges_checkpoints();
        if busy { Err(Refusal::Busy) } else { Ok(()) }
    }

    fn may_create(&self, name: CheckpointName) -> Result<(), Refusal> {
        if self.checkpoints().any(|held| held.name == name.as_str()) {
            return Err(Refusal::CheckpointExists);
        }
        let room = self.store.as_ref().map_or(0, |store| store.layout().checkpoints());
        let free = self.checkpoints().count() < usize::from(room);
        if free { Ok(()) } else { Err(Refusal::CheckpointRoom { room }) }
    }

    /// Begins a checkpoint at this moment. Writes that were admitted and are not complete may be on either side of it:
    /// they count as written since. False: there is no room.
    fn take_checkpoint(&mut self, checkpoint: Checkpoint, covered: bool) -> bool {
        let Some(store) = self.store.as_mut() else { return false };
        let Some(position) = store.add_checkpoint(checkpoint) else { return false };
        if let Some(record) = store.superblock.checkpoints.get_mut(usize::from(position)) {
            record.covered = covered;
        }
        let geometry = *store.geometry();
        for (_, task) in self.tasks.iter() {
            if matches!(task.work, Work::Write { .. } | Work::PeerWrite { .. } | Work::Part { .. }) {
                store.slot_mut(checkpoint_slot(position)).bits.set(geometry.blocks_touched(task.range));
            }
        }
        true
    }

    /// A checkpoint has ended, and the durable record may still call it complete and covered: until that is written
    /// anew no mark goes that stands for one of its bits (ordering 2).
    fn hold_marks(&mut self) {
        if !is_planted(Bug::CoolBehindEndedCheckpoint) {
            self.hold_slot_pages();
        }
    }

    pub(super) fn drop_checkpoint(&mut self, id: CheckpointId) {
        self.checkpoints.at_peer.retain(|at_peer| *at_peer != id);
        if let Some(store) = self.store.as_mut()
            && let Some(position) = store.find_checkpoint(id)
        {
            store.remove_checkpoint(position);
            self.hold_marks();
        }
    }

    /// The change is durable here: the answer waits for the peer alone.
    pub(super) fn on_checkpoint_recorded(&mut self) {
        if let Some(pending) = self.checkpoints.pending.as_mut() {
            pending.is_recorded = true;
        }
        self.answer_checkpoint_command();
    }

    pub(super) fn answer_checkpoint_command(&mut self) {
        let ready = |pending: &mut Pending| pending.is_recorded && pending.link.is_none();
        if let Some(pending) = self.checkpoints.pending.take_if(ready) {
            self.finish_command(pending.command, Ok(Done::Changed));
        }
    }

    /// The peer has recorded the change, or has no room.
    pub(super) fn on_checkpoint_answer(&mut self, link: LinkId, id: CheckpointId, done: bool) {
        let Some(pending) =
            self.checkpoints.pending.as_mut().filter(|p| p.link == Some(link) && p.checkpoint == id)
        else {
            return self.close_link(crate::action::CloseReason::PeerMisbehaved);
        };
        pending.link = None;
        if done && self.checkpoints().any(|held| held.id == id) {
            self.checkpoints.at_peer.push(id);
        }
        self.answer_checkpoint_command();
    }

    /// The Primary has begun a checkpoint at this place of the stream.
    pub(super) fn on_checkpoint_create(&mut self, link: LinkId, id: CheckpointId, body: &[u8]) {
        let complete = |held: &Checkpoint| held.id == id && held.state == CheckpointState::Complete;
        let checkpoint = Checkpoint::decode(body).filter(complete);
        let known = self.checkpoints().any(|held| held.id == id);
        let Some(checkpoint) = checkpoint.filter(|_| !known && self.takes_checkpoints(link)) else {
            return self.close_link(crate::action::CloseReason::PeerMisbehaved);
        };
        // One of the same name was deleted where this node did not hear of it.
        let older = self.checkpoints().find(|held| held.name == checkpoint.name).map(|held| held.id);
        older.into_iter().for_each(|older| self.drop_checkpoint(older));
        if !self.take_checkpoint(checkpoint, false) {
            return self.send(link, Frame::CheckpointAnswer { id, done: false }, None);
        }
        self.checkpoints.at_peer.push(id);
        self.commit(Effect::CheckpointTaken(link, id));
    }

    pub(super) fn on_checkpoint_delete(&mut self, link: LinkId, id: CheckpointId) {
        if !self.takes_checkpoints(link) {
            return self.close_link(crate::action::CloseReason::PeerMisbehaved);
        }
        self.drop_checkpoint(id);
        self.commit(Effect::CheckpointTaken(link, id));
    }

    pub(super) fn on_checkpoint_taken(&mut self, link: LinkId, id: CheckpointId) {
        self.send(link, Frame::CheckpointAnswer { id, done: true }, None);
    }

    fn takes_checkpoints(&self, link: LinkId) -> bool {
        let mirrored = self.mirror_link() == Some(link) && !self.without_disk();
        mirrored && self.role == Role::Secondary && !self.exchanges_checkpoints()
    }

    /// The link is gone: what it would have told will be told by the exchange at the begin of the next one.
    pub(super) fn checkpoints_lost_link(&mut self) {
        if let Some(pending) = self.checkpoints.pending.as_mut() {
            pending.link = None;
        }
        self.answer_checkpoint_command();
    }

    /// The disk is lost, and with it what was being recorded.
    pub(super) fn checkpoints_lost_disk(&mut self) {
        if let Some(pending) = self.checkpoints.pending.take() {
            self.finish_command(pending.command, Err(Refusal::DiskFailed));
        }
    }

    /// From the next superblock write on no mark covers what is written here: before the first such write.
    pub(super) fn uncover_checkpoints(&mut self) {
        self.checkpoints.covering = false;
        if let Some(store) = self.store.as_mut() {
            store.superblock.checkpoints.iter_mut().for_each(|record| record.covered = false);
        }
    }

    /// Records the cover once a Primary's copy has on disk what it had in memory when it became one.
    pub(super) fn pump_checkpoints(&mut self) -> bool {
        let marks = self.role == Role::Primary && self.disk == DiskState::UpToDate && self.attached;
        let may =
            marks && self.change.is_none() && self.resync.as_ref().is_none_or(|resync| !resync.is_target());
        let bare = self.store.as_ref().filter(|_| may).map_or_else(Vec::new, bare_checkpoints);
        if bare.is_empty() {
            self.checkpoints.covering = false;
            return false;
        }
        let Some(store) = self.store.as_mut() else { return false };
        if !self.checkpoints.covering {
            bare.iter().for_each(|position| store.slot_mut(checkpoint_slot(*position)).begin_covering());
            self.checkpoints.covering = true;
            self.write_stale_bits();
            return true;
        }
        let on_disk = |position: &u8| store.slot(checkpoint_slot(*position)).is_covered();
        if self.meta.writes_bits() || !bare.iter().all(on_disk) {
            return false;
        }
        for position in bare {
            if let Some(record) = store.superblock.checkpoints.get_mut(usize::from(position)) {
                record.covered = true;
            }
        }
        self.checkpoints.covering = false;
        self.commit(Effect::Confirmed);
        true
    }

    /// Nothing is missing of it any more; what has come is in memory only.
    pub(super) fn complete_checkpoint(&mut self, id: CheckpointId) {
        self.set_checkpoint_state(id, CheckpointState::Complete);
    }

    pub(super) fn set_checkpoint_state(&mut self, id: CheckpointId, state: CheckpointState) {
        self.checkpoints.covering = false;
        if let Some(store) = self.store.as_mut()
            && let Some(position) = store.find_checkpoint(id)
        {
            let live = |store: &Store| {
                store.superblock.checkpoints.get(usize::from(position)).is_some_and(CheckpointRecord::is_live)
            };
            let was_live = live(store);
            store.set_checkpoint_state(position, state);
            if was_live && !live(store) {
                self.hold_marks();
            }
        }
    }

    /// An Inconsistent copy counts as it is: what its dirty bits would have said is lost.
    pub(super) fn invalidate_checkpoints(&mut self) {
        let ids: Vec<CheckpointId> = self.checkpoints().map(|held| held.id).collect();
        for id in ids {
            self.set_checkpoint_state(id, CheckpointState::Invalid(Invalid::DataLoss));
        }
    }

    /// The source of a resync is as the target will be: what differs between them now is missing in none of its
    /// checkpoints that the target may complete.
    pub(super) fn add_difference_to_incomplete(&mut self) {
        let Some(store) = self.store.as_mut() else { return };
        let incomplete = |held: &Checkpoint| matches!(held.state, CheckpointState::Incomplete(_));
        let found = store.checkpoints().filter(|(_, held)| incomplete(held));
        let positions: Vec<u8> = found.map(|(position, _)| position).collect();
        positions.into_iter().for_each(|position| store.add_difference(position));
    }

    pub(super) fn render_checkpoint(&self, id: CheckpointId, out: &mut Vec<u8>) {
        let found = self.store.as_ref().and_then(|store| store.checkpoints().find(|(_, held)| held.id == id));
        if let Some((_, held)) = found {
            held.encode(out);
        }
    }
}

/// What the record says at attach: a copy that stopped uncleanly while nothing covered its bits may have lost some.
pub(super) fn judge_at_attach(store: &mut Store, stopped_uncleanly: bool) {
    let lost = |store: &Store, position: u8| {
        let record = store.superblock.checkpoints.get(usize::from(position));
        record.is_some_and(|record| !record.covered)
    };
    let complete = store.checkpoints().filter(|(_, held)| held.state == CheckpointState::Complete);
    let positions: Vec<u8> = complete.map(|(position, _)| position).collect();
    for position in positions {
        if stopped_uncleanly && lost(store, position) && !is_planted(Bug::TrustUncoveredCheckpoint) {
            store.set_checkpoint_state(position, CheckpointState::Incomplete(Incomplete::UncleanStop));
        }
    }
}

/// Complete, and not covered.
fn bare_checkpoints(store: &Store) -> Vec<u8> {
    let bare = |position: u8| {
        let record = store.superblock.checkpoints.get(usize::from(position));
        record.is_some_and(|record| !record.covered)
    };
    let complete = store.checkpoints().filter(|(_, held)| held.state == CheckpointState::Complete);
    complete.map(|(position, _)| position).filter(|position| bare(*position)).collect()
}
