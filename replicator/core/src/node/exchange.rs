//! Exchange of the dirty bitmaps at the begin of a resync: each side sends the parts of its own that have bits
//! and takes the union.
//!
//! A few frames are under way at a time, each is acknowledged: memory is bounded however large the volume. A
//! part is read when it is sent, after the core step that started mirroring (ordering 8); until both ends have
//! sent and taken everything no piece is asked for, so that no bit arrives after its block was copied. After a
//! verdict for a whole copy all bits are set on both sides, and nothing travels.

use super::Node;
use super::handshake::Phase;
use crate::action::CloseReason;
use crate::frame::Frame;
use crate::ids::LinkId;
use alloc::vec::Vec;
use lockstep_bitmap::DirtyBitmap;
use lockstep_bitmap::canary::{Bug, is_planted};

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
        if let Some(store) = &self.store {
            self.read_bits_of(&store.slots[0].bits, first_block, out);
        }
    }

    /// The body of a frame of bits.
    pub(super) fn read_bits_of(&self, bits: &DirtyBitmap, first_block: u64, out: &mut Vec<u8>) {
        let frame_bits = self.cfg.bits_frame_bytes as u64 * 8;
        let blocks = bits.blocks().saturating_sub(first_block).min(frame_bits);
        let bytes = usize::try_from(blocks.div_ceil(8)).unwrap_or(0);
        let start = out.len();
        out.resize(start + bytes, 0);
        if let Some(body) = out.get_mut(start..) {
            bits.read_bits(first_block, body);
        }
    }

    pub(super) fn on_bits(&mut self, id: LinkId, first_block: u64, body: &[u8]) {
        let exchanging = self.link.as_ref().is_some_and(|link| !link.bits.got);
        let blocks = self.geometry().map_or(0, |geometry| geometry.blocks());
        if !exchanging || self.resync.is_none() || first_block >= blocks {
            return self.close_link(CloseReason::PeerMisbehaved);
        }
        if let Some(store) = self.store.as_mut().filter(|_| !is_planted(Bug::IgnoreThePeersBits)) {
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
            if !self.resync_is_target() {
                self.add_difference_to_incomplete();
                self.tell_checkpoints();
            }
            // Before the first piece: an operator may have paused it here.
            self.pump_pace();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::Action;
    use crate::config::{NodeConfig, PeerConfig};
    use crate::event::{Event, PeerHello};
    use crate::ids::Instant;
    use crate::node::resync::Resync;
    use lockstep_bitmap::{
        Base, CreateParams, DeviceIdentity, GenerationLog, Geometry, Identity, NodeId, PeerCopy, PeerRecord,
        create, initial_pages, recover,
    };

    const PEER: PeerHello =
        PeerHello { node: NodeId(1), run_id: 2, boot_id: 2, keeps_checkpoints: false, takes_least: false };
    const LINK: LinkId = LinkId(1);
    const FRAME_BYTES: u64 = 32 * 1024;

    /// A node whose volume is all dirty.
    fn node(size_bytes: u64) -> Node {
        let peer = PeerRecord {
            node: NodeId(1),
            base: Base::Unset,
            copy: PeerCopy::MayHold,
            session_offered: 0,
            session_used: 0,
            may_be_primary: false,
            slot_epoch: 1,
            slot_filled: true,
        };
        let identity = Identity {
            resource: "r0".into(),
            volume: 0,
            node: NodeId(0),
            node_name: "n0".into(),
            device: DeviceIdentity::default(),
        };
        let geometry = Geometry::new(size_bytes, 12, 22).unwrap();
        let log = GenerationLog::new();
        let (superblock, layout) = create(CreateParams {
            file_id: 1,
            identity,
            geometry,
            log,
            peers: [peer].into(),
            checkpoints: 0,
        });
        let mut file = alloc::vec![0; usize::try_from(layout.file_bytes()).unwrap()];
        for (offset, bytes) in initial_pages(&superblock, &layout) {
            let at = usize::try_from(offset).unwrap();
            file.get_mut(at..at + bytes.len()).unwrap().copy_from_slice(&bytes);
        }
        let mut read = |offset: u64, out: &mut [u8]| {
            let at = usize::try_from(offset).map_err(|_| ())?;
            out.copy_from_slice(file.get(at..at + out.len()).ok_or(())?);
            Ok::<(), ()>(())
        };
        let store = recover(layout.file_bytes(), &mut read, 4).unwrap().0;
        let cfg = NodeConfig::of_a_test(Some(PeerConfig { node: NodeId(1) }), FRAME_BYTES as usize);
        Node::new(cfg, Some(store))
    }

    /// Bits frames and BitsEnd that an event brings about.
    fn sent(node: &mut Node, event: Event<'_>) -> (Vec<u64>, bool) {
        let (mut bits, mut end, mut done) = (Vec::new(), false, Vec::new());
        node.handle(Instant(1), event);
        loop {
            while let Some(action) = node.poll_action() {
                match action {
                    Action::Send { frame: Frame::Bits { first_block }, .. } => bits.push(first_block),
                    Action::Send { frame: Frame::BitsEnd, .. } => end = true,
                    Action::MetaWrite { op, page } => {
                        node.render_meta(page, &mut Vec::new());
                        done.push(Event::MetaDone { op, result: Ok(()) });
                    }
                    Action::DiskFlush { op } => done.push(Event::DiskDone { op, result: Ok(()), slot: None }),
                    _ => {}
                }
            }
            let Some(event) = done.pop() else { return (bits, end) };
            node.handle(Instant(1), event);
        }
    }

    fn begin(node: &mut Node) {
        node.set_phase(Phase::Exchanging);
        while node.poll_action().is_some() {}
    }

    fn frame(frame: Frame) -> Event<'static> {
        Event::Frame { link: LINK, frame, body: &[], slot: None }
    }

    #[test]
    fn a_large_bitmap_crosses_a_few_frames_at_a_time() {
        let mut node = node(64 << 30);
        sent(&mut node, Event::Start { unix_ms: 1 });
        sent(&mut node, Event::LinkUp { link: LINK, peer: PEER });
        node.resync = Some(Resync::new(true, false, false, Instant(1)));
        begin(&mut node);
        let (mut frames, mut end) = sent(&mut node, Event::Tick { unix_ms: 1 });
        assert_eq!(frames.len(), FRAMES_MAX as usize, "no more without an answer");
        for _ in 0..frames.len() {
            let (more, is_end) = sent(&mut node, frame(Frame::BitsAck));
            assert!(more.len() <= 1);
            frames.extend(more);
            end |= is_end;
        }
        assert!(!end && frames.len() == 2 * FRAMES_MAX as usize);
        while !end {
            let (more, is_end) = sent(&mut node, frame(Frame::BitsAck));
            frames.extend(more);
            end = is_end;
        }
        let expected: Vec<u64> = (0..64).map(|n| n * FRAME_BYTES * 8).collect();
        assert_eq!(frames, expected);
        assert_eq!(node.link.as_ref().unwrap().phase, Phase::Exchanging, "the peer's bits are still to come");
        sent(&mut node, frame(Frame::BitsEnd));
        assert_eq!(node.link.as_ref().unwrap().phase, Phase::Replicating);
    }

    #[test]
    fn a_whole_copy_sends_no_bits() {
        let mut node = node(64 << 30);
        sent(&mut node, Event::Start { unix_ms: 1 });
        sent(&mut node, Event::LinkUp { link: LINK, peer: PEER });
        node.resync = Some(Resync::new(false, true, true, Instant(1)));
        begin(&mut node);
        assert_eq!(sent(&mut node, Event::Tick { unix_ms: 1 }), (Vec::new(), true));
    }
}
