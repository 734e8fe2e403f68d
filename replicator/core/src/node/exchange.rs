//! Exchange of the dirty bitmaps at the begin of a resync: each side sends the parts of its own that have bits and takes
//! the union.
//!
//! A few frames are under way at a time, each is acknowledged: memory is bounded however large the volume. A part is
//! read when it is sent, after the core step that started mirroring (ordering 8); until both ends have sent and taken
//! everything no piece is asked for, so that no bit arrives after its block was copied. After a verdict for a whole copy
//! all bits are set on both sides, and nothing travels.

use super::Node;
use super::handshake::Phase;
use crate::action::CloseReason;
use crate::frame::Frame;
use crate::ids::LinkId;
use alloc::vec::Vec;

/// One link's exchange.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    /// Next block to look at.
    cursor: u64,
    /// Frames sent and not acknowledged.
    unacknowledged: u32,
    /// BitsEnd was sent.
    sent: bool,
    /// BitsEnd was received.
    got: bool,
}

/// Bits frames under way.
const FRAMES_MAX: u32 = 8;

impl Node {
    /// Sends the next parts of our bitmap, as far as the peer keeps up.
    pub(super) fn pump_exchange(&mut self) -> bool {
        let Some(link) = self.link.as_ref().filter(|link| link.phase == Phase::Exchanging) else {
            return false;
        };
        let id = link.id;
        let mut moved = false;
        while self.link.as_ref().is_some_and(|link| !link.bits.sent && link.bits.unacknowledged < FRAMES_MAX)
        {
            moved = true;
            self.send_next_bits(id);
        }
        moved
    }

    fn send_next_bits(&mut self, id: LinkId) {
        let per_frame = self.cfg.bits_frame_bytes as u64 * 8;
        let whole = self.resync.as_ref().is_some_and(|resync| resync.is_whole_copy());
        let (Some(link), Some(store)) = (self.link.as_mut(), self.store.as_ref()) else { return };
        let run = if whole { None } else { store.slots[0].bits.next_run(link.bits.cursor, 1) };
        match run {
            Some(run) => {
                let first_block = run.start - run.start % per_frame;
                link.bits.cursor = first_block + per_frame;
                link.bits.unacknowledged += 1;
                self.send(id, Frame::Bits { first_block }, None);
            }
            None => {
                link.bits.sent = true;
                self.send(id, Frame::BitsEnd, None);
                self.end_exchange();
            }
        }
    }

    pub(super) fn render_bits(&self, first_block: u64, out: &mut Vec<u8>) {
        let Some(store) = &self.store else { return };
        let frame_bits = self.cfg.bits_frame_bytes as u64 * 8;
        let blocks = store.geometry().blocks().saturating_sub(first_block).min(frame_bits);
        let bytes = usize::try_from(blocks.div_ceil(8)).unwrap_or(0);
        let start = out.len();
        out.resize(start + bytes, 0);
        if let Some(body) = out.get_mut(start..) {
            store.slots[0].bits.read_bits(first_block, body);
        }
    }

    pub(super) fn on_bits(&mut self, id: LinkId, first_block: u64, body: &[u8]) {
        let exchanging = self.link.as_ref().is_some_and(|link| !link.bits.got);
        let blocks = self.geometry().map_or(0, |geometry| geometry.blocks());
        if !exchanging || self.resync.is_none() || first_block >= blocks {
            return self.close_link(CloseReason::PeerMisbehaved);
        }
        if let Some(store) = self.store.as_mut() {
            store.slots[0].bits.or_bits(first_block, body);
        }
        self.send(id, Frame::BitsAck, None);
    }

    pub(super) fn on_bits_ack(&mut self) {
        match self.link.as_mut().map(|link| &mut link.bits.unacknowledged) {
            Some(count) if *count > 0 => *count -= 1,
            _ => self.close_link(CloseReason::PeerMisbehaved),
        }
    }

    pub(super) fn on_bits_end(&mut self) {
        match self.link.as_mut().filter(|link| !link.bits.got) {
            Some(link) if self.resync.is_some() => link.bits.got = true,
            _ => return self.close_link(CloseReason::PeerMisbehaved),
        }
        self.end_exchange();
    }

    /// Both ends have the union: the copying begins.
    fn end_exchange(&mut self) {
        if self.link.as_ref().is_some_and(|link| link.bits.sent && link.bits.got) {
            self.set_phase(Phase::Replicating);
        }
    }
}
