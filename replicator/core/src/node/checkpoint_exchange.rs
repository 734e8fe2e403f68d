//! Exchange of checkpoints: the peer gets the list of the node whose list counts, and each completes the other's.
//!
//! The list that counts is that of the source, where there is a resync, once the bitmaps are exchanged; else that of
//! the Primary, when mirroring begins or when it is promoted. The other node drops what is not in it, takes what is new
//! as incomplete, records that, and answers with its own list. Then each sends the bits of every checkpoint that it has
//! complete and the other has not, and an end mark; whoever has received that of the other records what is complete.
//!
//! Why it holds. Let D be the blocks that a resync will copy: both copies are equal outside of it, or will be. The
//! target becomes what the source is, so that the source's bits are enough for it, with D until the resync has ended.
//! The source is what the target will be: the target's bits and D are enough for it, and D was added when the bitmaps
//! had been exchanged. Writes meanwhile set bits on both. A checkpoint that neither has complete can never be: invalid.

use super::Node;
use super::handshake::Phase;
use super::meta::Effect;
use crate::action::CloseReason;
use crate::frame::Frame;
use crate::ids::LinkId;
use crate::status::Role;
use alloc::vec::Vec;
use lockstep_bitmap::{
    CHECKPOINT_BYTES, CHECKPOINTS_MAX, Checkpoint, CheckpointId, CheckpointState, Incomplete, Invalid,
    checkpoint_slot,
};

/// One link's exchange.
#[derive(Debug, Default)]
pub(super) struct CheckpointExchange {
    stage: Stage,
    /// Another one is to follow.
    again: bool,
    /// The list that was told, and the one that was heard.
    told: Vec<CheckpointId>,
    heard: Vec<Checkpoint>,
    /// Positions in `told` whose bits go to the peer, the first one being under way.
    to_send: Vec<u8>,
    /// Next block of it to look at.
    cursor: u64,
    unacknowledged: u32,
    end_sent: bool,
    end_got: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Idle,
    /// Our list counts and was told.
    Asking,
    /// The peer's list counts and is being recorded.
    Recording,
    /// Both lists are known.
    Moving,
}

/// Frames of bits under way.
const FRAMES_MAX: u32 = 8;

impl Node {
    /// The link over which the peer keeps checkpoints, too.
    pub(super) fn checkpoint_link(&self) -> Option<LinkId> {
        let link = self.link.as_ref().filter(|link| link.hello.keeps_checkpoints)?;
        self.mirror_link().filter(|id| *id == link.id)
    }

    pub(super) fn exchanges_checkpoints(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.checkpoints.stage != Stage::Idle || link.checkpoints.again)
    }

    /// Our list counts: tells it, now or when the exchange under way has ended.
    pub(super) fn tell_checkpoints(&mut self) {
        let Some(id) = self.checkpoint_link() else { return };
        let told = self.checkpoints().map(|held| held.id).collect();
        let Some(link) = self.link.as_mut() else { return };
        if link.checkpoints.stage != Stage::Idle {
            link.checkpoints.again = true;
            return;
        }
        let stage = Stage::Asking;
        let unacknowledged = link.checkpoints.unacknowledged;
        link.checkpoints =
            CheckpointExchange { stage, told, unacknowledged, ..CheckpointExchange::default() };
        self.send(id, Frame::CheckpointList { answer: false }, None);
    }

    /// A Primary whose copy is the peer's equal: its list counts.
    pub(super) fn tell_checkpoints_as_primary(&mut self) {
        let replicating = self.link.as_ref().is_some_and(|link| link.phase == Phase::Replicating);
        if replicating && self.resync.is_none() && self.role == Role::Primary {
            self.tell_checkpoints();
        }
    }

    pub(super) fn render_checkpoint_list(&self, out: &mut Vec<u8>) {
        let told = self.link.as_ref().map_or(&[][..], |link| &link.checkpoints.told);
        out.push(u8::try_from(told.len()).unwrap_or(0));
        told.iter().for_each(|id| self.render_checkpoint(*id, out));
    }

    pub(super) fn on_checkpoint_list(&mut self, id: LinkId, answer: bool, body: &[u8]) {
        let stage = self.link.as_ref().map(|link| link.checkpoints.stage);
        let expected = if answer { Stage::Asking } else { Stage::Idle };
        let mirrored = self.mirror_link() == Some(id) && !self.without_disk();
        let Some(list) = decode_list(body).filter(|_| mirrored && stage == Some(expected)) else {
            return self.close_link(CloseReason::PeerMisbehaved);
        };
        self.checkpoints.at_peer = list.iter().map(|held| held.id).collect();
        if answer {
            self.begin_moving(list);
        } else {
            let before = self.store.as_ref().map(|store| store.superblock.checkpoints.clone());
            self.take_list(&list);
            let after = self.store.as_ref().map(|store| &store.superblock.checkpoints);
            let is_news = before.as_ref() != after;
            if let Some(link) = self.link.as_mut() {
                link.checkpoints.heard = list;
                link.checkpoints.stage = Stage::Recording;
            }
            if is_news {
                self.commit(Effect::CheckpointsListed(id));
            } else {
                self.on_checkpoints_listed(id);
            }
        }
    }

    /// The peer's list counts.
    fn take_list(&mut self, list: &[Checkpoint]) {
        let own: Vec<CheckpointId> = self.checkpoints().map(|held| held.id).collect();
        for id in own.iter().filter(|id| !list.iter().any(|held| held.id == **id)) {
            self.drop_checkpoint(*id);
        }
        let receiving = CheckpointState::Incomplete(Incomplete::Receiving);
        for theirs in list {
            let own = self.checkpoints().find(|held| held.id == theirs.id).map(|held| held.state);
            match (own, theirs.state) {
                (None, CheckpointState::Invalid(_)) => self.add_listed(theirs.clone()),
                (None, _) => self.add_listed(Checkpoint { state: receiving, ..theirs.clone() }),
                (Some(_), CheckpointState::Invalid(why)) => {
                    self.set_checkpoint_state(theirs.id, CheckpointState::Invalid(why));
                }
                // What was invalid here is not there: its bits will come.
                (Some(CheckpointState::Invalid(_)), CheckpointState::Complete) => {
                    self.set_checkpoint_state(theirs.id, receiving);
                }
                _ => {}
            }
        }
    }

    fn add_listed(&mut self, checkpoint: Checkpoint) {
        if let Some(store) = self.store.as_mut() {
            // Without room it stays on the peer alone, which the answer says.
            let _ = store.add_checkpoint(checkpoint);
        }
    }

    /// What the peer's list asks for is durable.
    pub(super) fn on_checkpoints_listed(&mut self, id: LinkId) {
        let told = self.checkpoints().map(|held| held.id).collect();
        let Some(link) = self.link.as_mut() else { return };
        link.checkpoints.told = told;
        let heard = core::mem::take(&mut link.checkpoints.heard);
        self.send(id, Frame::CheckpointList { answer: true }, None);
        self.begin_moving(heard);
    }

    fn begin_moving(&mut self, heard: Vec<Checkpoint>) {
        let complete_here = |id: CheckpointId| {
            self.checkpoints().any(|held| held.id == id && held.state == CheckpointState::Complete)
        };
        let lacks = |id: CheckpointId| {
            heard
                .iter()
                .any(|theirs| theirs.id == id && matches!(theirs.state, CheckpointState::Incomplete(_)))
        };
        let told = self.link.as_ref().map_or(&[][..], |link| &link.checkpoints.told);
        let wanted = (0..).zip(told).filter(|(_, id)| complete_here(**id) && lacks(**id));
        let to_send = wanted.map(|(position, _)| position).collect();
        if let Some(link) = self.link.as_mut() {
            let exchange = &mut link.checkpoints;
            (exchange.stage, exchange.heard, exchange.to_send) = (Stage::Moving, heard, to_send);
        }
    }

    /// Sends the next parts, as far as the peer keeps up.
    pub(super) fn pump_checkpoint_exchange(&mut self) -> bool {
        let mut moved = false;
        if self.without_disk() {
            return moved;
        }
        while let Some(id) = self.link.as_ref().filter(|link| link.checkpoints.may_send()).map(|link| link.id)
        {
            moved = true;
            self.send_next_checkpoint_bits(id);
        }
        moved
    }

    fn send_next_checkpoint_bits(&mut self, id: LinkId) {
        let per_frame = self.cfg.bits_frame_bytes as u64 * 8;
        let (Some(link), Some(store)) = (self.link.as_mut(), self.store.as_ref()) else { return };
        let exchange = &mut link.checkpoints;
        let Some(index) = exchange.to_send.first().copied() else {
            exchange.end_sent = true;
            self.send(id, Frame::CheckpointEnd, None);
            return self.end_checkpoint_exchange();
        };
        let position = exchange.told.get(usize::from(index)).and_then(|id| store.find_checkpoint(*id));
        match position.and_then(|position| store.checkpoint_bits(position).next_run(exchange.cursor, 1)) {
            Some(run) => {
                let first_block = run.start - run.start % per_frame;
                exchange.cursor = first_block + per_frame;
                exchange.unacknowledged += 1;
                self.send(id, Frame::CheckpointBits { index, first_block }, None);
            }
            None => {
                exchange.to_send.remove(0);
                exchange.cursor = 0;
            }
        }
    }

    pub(super) fn render_checkpoint_bits(&self, index: u8, first_block: u64, out: &mut Vec<u8>) {
        let (Some(link), Some(store)) = (&self.link, &self.store) else { return };
        let id = link.checkpoints.told.get(usize::from(index));
        if let Some(position) = id.and_then(|id| store.find_checkpoint(*id)) {
            self.read_bits_of(store.checkpoint_bits(position), first_block, out);
        }
    }

    pub(super) fn on_checkpoint_bits(&mut self, id: LinkId, index: u8, first_block: u64, body: &[u8]) {
        let blocks = self.geometry().map_or(0, |geometry| geometry.blocks());
        let moving = |link: &&super::handshake::Link| {
            link.checkpoints.stage == Stage::Moving && !link.checkpoints.end_got && first_block < blocks
        };
        let link = self.link.as_ref().filter(moving);
        let theirs = link.and_then(|link| link.checkpoints.heard.get(usize::from(index))).map(|held| held.id);
        let (Some(theirs), Some(store)) = (theirs, self.store.as_mut()) else {
            return self.close_link(CloseReason::PeerMisbehaved);
        };
        if let Some(position) = store.find_checkpoint(theirs) {
            store.slot_mut(checkpoint_slot(position)).bits.or_bits(first_block, body);
        }
        self.send(id, Frame::CheckpointBitsAck, None);
    }

    pub(super) fn on_checkpoint_bits_ack(&mut self) {
        match self.link.as_mut().map(|link| &mut link.checkpoints.unacknowledged) {
            Some(count) if *count > 0 => *count -= 1,
            _ => self.close_link(CloseReason::PeerMisbehaved),
        }
    }

    pub(super) fn on_checkpoint_end(&mut self) {
        let moving = |exchange: &CheckpointExchange| exchange.stage == Stage::Moving && !exchange.end_got;
        match self.link.as_mut().map(|link| &mut link.checkpoints).filter(|exchange| moving(exchange)) {
            Some(exchange) => exchange.end_got = true,
            None => return self.close_link(CloseReason::PeerMisbehaved),
        }
        let heard = self.link.as_ref().map_or_else(Vec::new, |link| link.checkpoints.heard.clone());
        let incomplete =
            self.checkpoints().filter(|held| matches!(held.state, CheckpointState::Incomplete(_)));
        let incomplete: Vec<CheckpointId> = incomplete.map(|held| held.id).collect();
        for id in &incomplete {
            let theirs = heard.iter().find(|theirs| theirs.id == *id).map(|theirs| theirs.state);
            if theirs == Some(CheckpointState::Complete) {
                self.complete_checkpoint(*id);
            } else {
                self.set_checkpoint_state(*id, CheckpointState::Invalid(Invalid::NobodyComplete));
            }
        }
        if !incomplete.is_empty() {
            self.commit(Effect::Confirmed);
        }
        self.end_checkpoint_exchange();
    }

    fn end_checkpoint_exchange(&mut self) {
        let Some(exchange) = self.link.as_mut().map(|link| &mut link.checkpoints) else { return };
        if !(exchange.end_sent && exchange.end_got) {
            return;
        }
        let again = exchange.again;
        let unacknowledged = exchange.unacknowledged;
        *exchange = CheckpointExchange { unacknowledged, ..CheckpointExchange::default() };
        if again {
            self.tell_checkpoints_as_primary();
        }
    }
}

impl CheckpointExchange {
    fn may_send(&self) -> bool {
        self.stage == Stage::Moving && !self.end_sent && self.unacknowledged < FRAMES_MAX
    }
}

/// A list as the peer sent it: distinct, and no more than there can be.
fn decode_list(body: &[u8]) -> Option<Vec<Checkpoint>> {
    let (count, rest) = body.split_first()?;
    let count = usize::from(*count);
    if count > CHECKPOINTS_MAX || rest.len() != count * CHECKPOINT_BYTES {
        return None;
    }
    let list = rest.chunks_exact(CHECKPOINT_BYTES).map(Checkpoint::decode).collect::<Option<Vec<_>>>()?;
    let twice = |a: &Checkpoint, b: &Checkpoint| a.id == b.id || a.name == b.name;
    let distinct =
        (0..).zip(&list).all(|(at, held)| !list.iter().skip(at + 1).any(|other| twice(held, other)));
    distinct.then_some(list)
}
