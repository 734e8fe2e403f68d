//! A node whose peer sends it anything, at any moment of a link's life.
//!
//! Two real nodes work with each other, so that a script reaches every state; on the way their frames are changed,
//! dropped, doubled, put in another order, and frames that nobody sent are put between them. Beside what `tests/pair`
//! holds each node to, asserted: whatever was received, when the link is gone and the node was told to leave it comes
//! to rest, with every request and command answered and no slot, piece or operation left.

use crc_fast::crc32_iscsi as crc32c;
use lockstep_bitmap::{ByteRange, NodeId};
use lockstep_core::{Command, DiskError, FRAME_BYTES, Frame, RequestKind, SyncOrder};
use lockstep_pair::{Packet, Pair, Shape, Start};

use crate::frames::sealed;
use crate::input::Input;

const SHAPE: Shape = Shape::SMALL;
/// Steps of one script at most.
const STEPS_MAX: usize = 300;
/// Deadlines that may pass until a node which was told to leave has come to rest.
const DEADLINES_MAX: usize = 400;

/// A script.
pub(crate) fn node(data: &[u8]) {
    let mut input = Input::new(data);
    let mut pair = begin(&mut input);
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        step(&mut input, &mut pair);
    }
    end(&mut pair);
}

fn begin(input: &mut Input<'_>) -> Pair {
    let starts = input.one_of(&[
        [Start::Source, Start::Fresh],
        [Start::Clean, Start::Clean],
        [Start::Source, Start::Diskless],
        [Start::Source, Start::Source],
        [Start::Fresh, Start::Source],
    ]);
    let mut pair = Pair::new(SHAPE, starts);
    (pair.differing, pair.zero) = (input.u64(), input.u64());
    let prelude = input.below(4);
    if prelude >= 1 {
        pair.until(4, |_| false);
    }
    if prelude >= 2 {
        pair.command(0, Command::Promote { peer_is_down: false, accept_data_loss: false });
        pair.until(4, |_| false);
    }
    if prelude == 3 {
        pair.lose_link([true, true]);
        pair.cut = true;
        pair.settle(1000);
        pair.request(0, RequestKind::Write, ByteRange::new(4096, 300_000), false);
        pair.settle(1000);
        pair.cut = false;
    }
    pair
}

fn step(input: &mut Input<'_>, pair: &mut Pair) {
    let (operation, node) = (input.below(24), input.below(2));
    match operation {
        0..=3 => pair.settle(1 << input.below(8)),
        4 | 5 => complete(input, pair, node),
        6 | 7 => _ = pair.receive(node),
        8..=15 => meddle(input, pair, node),
        16..=18 => request(input, pair, node),
        19 | 20 => command(input, pair, node),
        21 => pair.pass_deadline(),
        22 => pair.pass(u64::from(input.u16()) * 1_000_000),
        _ => {
            let notices = input.one_of(&[[true, true], [true, false], [false, true]]);
            pair.lose_link(notices);
            pair.cut = input.below(3) == 0;
        }
    }
}

fn complete(input: &mut Input<'_>, pair: &mut Pair, node: usize) {
    let place = input.below(8);
    let result = match input.below(32) {
        0 => Err(DiskError::Io),
        1 => Err(DiskError::NoSpace),
        2 => Err(DiskError::Sync),
        _ => Ok(()),
    };
    pair.complete(node, place, result);
}

/// What a bad network or a bad peer does to the frames that `node` sent.
fn meddle(input: &mut Input<'_>, pair: &mut Pair, node: usize) {
    let (operation, place) = (input.below(8), input.below(4));
    let sent = &mut pair.shells[node].sent;
    let link = sent.front().map(|packet| packet.link);
    let place = place.min(sent.len().saturating_sub(1));
    match (operation, sent.get_mut(place)) {
        (0, Some(_)) => _ = sent.remove(place),
        (1, Some(packet)) => {
            let packet = packet.clone();
            sent.push_front(packet);
        }
        (2, Some(_)) => sent.swap(0, place),
        (3 | 4, Some(packet)) => change(input, packet),
        (5, Some(packet)) => {
            let at = usize::from(input.u16()) % packet.body.len().max(1);
            match packet.body.get_mut(at) {
                Some(byte) => *byte = input.u8(),
                None => packet.body = input.bytes(16).to_vec(),
            }
        }
        _ => {
            if let (Some(frame), Some(link)) = (any_frame(input), link.or(pair.link(node))) {
                let body = if frame.has_control_body() { input.bytes(64).to_vec() } else { Vec::new() };
                pair.shells[node].sent.push_front(Packet { link, frame, body });
            }
        }
    }
}

/// One field of the header, as long as it stays a header.
fn change(input: &mut Input<'_>, packet: &mut Packet) {
    let mut head = encoded(&packet.frame, packet.body.len());
    let at = input.one_of(&[0, 1, 8, 9, 15, 16, 17, 18, 20, 24, 25, 26]);
    head[at] = input.u8();
    if let Some(frame) = decoded(head) {
        packet.frame = frame;
        if frame.payload().is_some() || !frame.has_control_body() {
            packet.body.clear();
        }
    }
}

fn encoded(frame: &Frame, body_bytes: usize) -> [u8; FRAME_BYTES] {
    let body_bytes = frame.payload().map_or(body_bytes as u32, |(_, len)| len);
    frame.encode(body_bytes, 0, crc32c)
}

/// The header, with a length that fits it.
fn decoded(mut head: [u8; FRAME_BYTES]) -> Option<Frame> {
    let len: [u8; 4] = [head[24], head[25], head[26], head[27]];
    [[0; 4], len, [8, 0, 0, 0]].into_iter().find_map(|body_bytes| {
        head[4..8].copy_from_slice(&body_bytes);
        Frame::decode(&sealed(head), crc32c).ok().map(|(frame, ..)| frame)
    })
}

/// Any kind, with fields that are mostly near what is in use.
fn any_frame(input: &mut Input<'_>) -> Option<Frame> {
    let mut head = [0; FRAME_BYTES];
    head[0] = input.below(46) as u8;
    head[1] = input.one_of(&[0, 0, 0, 1, 2, 3, 4, 8, 12]);
    let first = match input.below(4) {
        0 => input.u64() >> 2,
        1 => u64::from(input.u16()),
        _ => u64::from(input.u8()),
    };
    let offset = match input.below(8) {
        0 => input.u64(),
        1 => u64::from(input.u32()),
        _ => u64::from(input.u16()) * 512 % SHAPE.size_bytes,
    };
    let len = match input.below(4) {
        0 => 0,
        1 => u64::from(input.u16()) * 4,
        _ => u64::from(input.u8()) * 512,
    };
    head[8..16].copy_from_slice(&first.to_le_bytes());
    head[16..24].copy_from_slice(&offset.to_le_bytes());
    head[24..32].copy_from_slice(&len.to_le_bytes());
    // Kinds without a range have these fields empty.
    decoded(head).or_else(|| {
        head[16..32].fill(0);
        decoded(head)
    })
}

fn request(input: &mut Input<'_>, pair: &mut Pair, node: usize) {
    let kind = input.one_of(&[
        RequestKind::Write,
        RequestKind::Write,
        RequestKind::Read,
        RequestKind::Flush,
        RequestKind::Trim,
        RequestKind::Zero { no_hole: false },
        RequestKind::Zero { no_hole: true },
    ]);
    let (offset, len, fua) = (u64::from(input.u16()), u64::from(input.u16()), input.below(4) == 0);
    let range = match kind {
        RequestKind::Flush => ByteRange::new(0, 0),
        RequestKind::Write | RequestKind::Read => ByteRange::new(offset * 64, len * 4 + 1),
        // Edges that are no whole units have payloads of their own; the shell makes them.
        _ => ByteRange::new(offset % 1024 * 4096, (len % 64 + 1) * 4096),
    };
    pair.request(node, kind, range, fua);
}

fn command(input: &mut Input<'_>, pair: &mut Pair, node: usize) {
    let (flag, other) = (input.flag(), input.flag());
    let command = match input.below(12) {
        0..=2 => Command::Promote { peer_is_down: flag, accept_data_loss: other },
        3 => Command::Demote { force: flag },
        4 => Command::Connect,
        5 => Command::Disconnect,
        6 => Command::Resolve { discard: NodeId(u8::from(flag)) },
        7 => Command::Invalidate { peer: flag },
        8 => Command::Sync(SyncOrder::Pause),
        9 => Command::Sync(SyncOrder::Resume),
        10 => {
            let rate = flag.then(|| u64::from(input.u16()) << 10);
            Command::Sync(if other { SyncOrder::AtLeast(rate) } else { SyncOrder::Rate(rate) })
        }
        _ => Command::Detach,
    };
    pair.command(node, command);
}

/// The link is gone for good, and both are told to leave.
fn end(pair: &mut Pair) {
    pair.cut = true;
    pair.lose_link([true, true]);
    for node in 0..2 {
        let id = pair.command(node, Command::Leave);
        let rested = pair.until(DEADLINES_MAX, |pair| pair.answer(node, id).is_some() && pair.is_empty(node));
        assert!(rested, "does not come to rest: {}, {:?}", pair.rest(node), pair.answer(node, id));
    }
}
