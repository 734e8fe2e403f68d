//! Frames between peers: a fixed header of 40 bytes, then a body.
//!
//! | bytes | field |
//! |---|---|
//! | 0 | kind |
//! | 1 | flags |
//! | 2..4 | volume number |
//! | 4..8 | length of the body |
//! | 8..32 | three fields `a`, `b`, `c`, by kind |
//! | 32..36 | CRC32C of the body |
//! | 36..40 | CRC32C of bytes 0..36 |
//!
//! All little-endian. Fields that a kind does not use are zero and are checked, so that a later version can give
//! them a meaning. The decoder trusts nothing; lengths and ranges are bounded here, before a byte of the body is read.
#![deny(clippy::indexing_slicing)]

use crate::config::PIECE_BYTES_MAX;
use crate::ids::Position;
use core::fmt;
use lockstep_bitmap::CheckpointId;
use lockstep_bitmap::canary::{Bug, is_planted};

/// Bytes of a frame's header.
pub const FRAME_BYTES: usize = 40;
/// Longest body of a control frame in bytes.
pub(crate) const CONTROL_BODY_BYTES_MAX: u32 = 64 * 1024;

/// A frame's header, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The sender's state, one atomic snapshot (body: [`crate::Snapshot`]).
    Snapshot,
    /// The verdict that the sender computed from both snapshots, as seen from its side.
    Verdict {
        /// Code of the verdict.
        code: u8,
        /// Session number that both will record as used.
        session: u64,
        /// Fingerprint of the whole verdict.
        fingerprint: u64,
    },
    /// Everything that the verdict asks of the sender is durable; mirroring may start.
    Commit,
    /// Part of the sender's dirty bitmap toward the receiver (body: bits, least significant first).
    Bits {
        /// Block of the first bit.
        first_block: u64,
    },
    /// No more Bits follow.
    BitsEnd,
    /// Write this payload.
    Write {
        /// Place in the stream.
        pos: Position,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
        /// Durable before Written.
        fua: bool,
    },
    /// Make a range read as zeroes.
    Zero {
        /// Place in the stream.
        pos: Position,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
        /// A hole may be punched.
        punch: bool,
        /// Durable before Written.
        fua: bool,
    },
    /// The write at this position completed (and is durable, if it was FUA).
    Written {
        /// Which.
        pos: Position,
    },
    /// Make all writes up to this position durable.
    Flush {
        /// Up to here, included.
        upto: Position,
    },
    /// All writes up to this position are durable at the sender.
    Durable {
        /// Up to here, included.
        upto: Position,
    },
    /// Read for a client of the sender.
    Read {
        /// The sender's number.
        id: u32,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// The bytes of a Read (payload).
    ReadData {
        /// Number of the Read.
        id: u32,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// A Read failed.
    ReadFailed {
        /// Number of the Read.
        id: u32,
    },
    /// The target asks for a piece.
    ResyncRequest {
        /// Number of the target's checkpoint interval.
        batch: u64,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// A piece of the source (payload); keeps its place in the stream.
    ResyncData {
        /// As in the request.
        batch: u64,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// As ResyncRequest, with the target's digests of the piece's units (body): what is equal need not travel.
    HashRequest {
        /// Number of the target's checkpoint interval.
        batch: u64,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// A part of the piece asked for is equal at the source; keeps its place in the stream.
    ResyncSame {
        /// As in the request.
        batch: u64,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// A part of the piece asked for is zero at the source; keeps its place in the stream.
    ResyncZero {
        /// As in the request.
        batch: u64,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// The source cannot read the piece asked for.
    ResyncFailed {
        /// As in the request.
        batch: u64,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// A Bits frame was taken: another may be sent.
    BitsAck,
    /// The sender's word on how fast the resync may go.
    Pace {
        /// Its operator has paused it.
        paused: bool,
        /// Its operator wants the blocks that could not be read to be tried again.
        again: bool,
        /// Bytes per second; 0: no limit.
        rate: u64,
        /// Bytes per second that its operator wants at least; 0: what clients leave.
        least: u64,
    },
    /// All pieces of a batch are durable at the target; the source makes its side durable and clears their bits.
    Checkpoint {
        /// Which batch.
        batch: u64,
    },
    /// The source did; the target clears its bits of the batch.
    CheckpointDone {
        /// Which batch.
        batch: u64,
    },
    /// The target has no dirty blocks left.
    FinishRequest,
    /// The source has withdrawn its proof that the target is behind: take my generation, become UpToDate.
    Finish,
    /// The target is durably UpToDate.
    Finished,
    /// May I be Primary with this term?
    PromoteRequest {
        /// The new term.
        term: u64,
    },
    /// Answer to PromoteRequest.
    PromoteReply {
        /// The term asked for.
        term: u64,
        /// Yes: it is recorded durably. No: a request of the other node won, or it is Primary.
        granted: bool,
    },
    /// The sender's role changed.
    Role {
        /// New role.
        primary: bool,
        /// Current term.
        term: u64,
    },
    /// The sender, demoted and flushed, wants to leave as Outdated.
    LeaveRequest {
        /// It was Primary when its operator told it to leave: it stays if both leave at once.
        was_primary: bool,
    },
    /// Answer to LeaveRequest.
    LeaveReply {
        /// The sender is UpToDate, flushed, and stays.
        agreed: bool,
    },
    /// The sender has recorded itself as Outdated.
    Left,
    /// The sender's operator declares the receiver's copy wrong.
    Invalidate,
    /// Answer to Invalidate.
    InvalidateReply {
        /// The sender is durably Inconsistent, with every bit set. No: it is Primary, or busy.
        done: bool,
    },
    /// The Primary begins a checkpoint at this place of the stream (body: the checkpoint).
    CheckpointCreate {
        /// Which.
        id: CheckpointId,
    },
    /// The Primary forgets a checkpoint.
    CheckpointDelete {
        /// Which.
        id: CheckpointId,
    },
    /// Answer to both.
    CheckpointAnswer {
        /// Which.
        id: CheckpointId,
        /// It is recorded durably. No: there is no room.
        done: bool,
    },
    /// The checkpoints of the sender (body: their number, then each).
    CheckpointList {
        /// The answer to the list of the other side, whose list counts.
        answer: bool,
    },
    /// Part of a checkpoint's bits (body: as in Bits).
    CheckpointBits {
        /// Its position in the list that the sender has told.
        index: u8,
        /// Block of the first bit.
        first_block: u64,
    },
    /// A CheckpointBits frame was taken: another may be sent.
    CheckpointBitsAck,
    /// No more CheckpointBits follow.
    CheckpointEnd,
    /// Nothing; shows life.
    Heartbeat,
    /// The write at this position failed on the only UpToDate copy, the sender's: the client gets the error.
    WriteFailed {
        /// Which.
        pos: Position,
        /// For want of space.
        no_space: bool,
    },
    /// The sender closes the link.
    Goodbye {
        /// Code of the reason (see [`crate::CloseReason`]).
        reason: u8,
    },
}

/// Why a header was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// Header checksum.
    Checksum,
    /// Unknown kind, flag or volume, or a field that must be zero is not.
    Unknown,
    /// The length of the body does not fit the kind, or a range is not a piece.
    Length,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FrameError::Checksum => "the header's checksum is wrong",
            FrameError::Unknown => "unknown kind, flag, volume or field",
            FrameError::Length => "the length does not fit the kind of frame",
        })
    }
}

impl core::error::Error for FrameError {}

/// Positions, terms, sessions and the like never come near this; what is counted up from here cannot overflow.
pub(crate) const NUMBER_MAX: u64 = 1 << 62;

const FLAG_FUA: u8 = 1;
const FLAG_PUNCH: u8 = 2;
const FLAG_YES: u8 = 4;
const FLAG_AGAIN: u8 = 8;

/// (kind, flags, a, b, c): what varies between kinds.
type Raw = (u8, u8, u64, u64, u64);

impl Frame {
    /// The header's bytes. `crc32c` is the shell's (hardware) checksum; `body_crc` is that of the body.
    pub fn encode(&self, body_bytes: u32, body_crc: u32, crc32c: fn(&[u8]) -> u32) -> [u8; FRAME_BYTES] {
        let (kind, flags, a, b, c) = self.to_raw();
        let mut head = [0u8; FRAME_BYTES];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            for (to, from) in head.iter_mut().skip(at).zip(bytes) {
                *to = *from;
            }
            at += bytes.len();
        };
        put(&[kind, flags, 0, 0]);
        put(&body_bytes.to_le_bytes());
        put(&a.to_le_bytes());
        put(&b.to_le_bytes());
        put(&c.to_le_bytes());
        put(&body_crc.to_le_bytes());
        let (covered, _) = head.split_at(FRAME_BYTES - 4);
        let crc = crc32c(covered);
        if let Some(last) = head.last_chunk_mut::<4>() {
            *last = crc.to_le_bytes();
        }
        head
    }

    /// The frame, the length of its body in bytes, and the body's checksum.
    pub fn decode(
        head: &[u8; FRAME_BYTES],
        crc32c: fn(&[u8]) -> u32,
    ) -> Result<(Frame, u32, u32), FrameError> {
        let (covered, _) = head.split_at(FRAME_BYTES - 4);
        if crc32c(covered) != u32_at(head, 36) {
            return Err(FrameError::Checksum);
        }
        let (kind, flags) = (head.first().copied(), head.get(1).copied());
        if u32_at(head, 0) >> 16 != 0 {
            return Err(FrameError::Unknown);
        }
        let raw =
            (kind.unwrap_or(0), flags.unwrap_or(0), u64_at(head, 8), u64_at(head, 16), u64_at(head, 24));
        let frame = Frame::from_raw(raw)?;
        let body_bytes = u32_at(head, 4);
        frame.check_body(body_bytes)?;
        Ok((frame, body_bytes, u32_at(head, 32)))
    }

    /// Range and length of the payload of a data frame: such a body goes into a slot.
    pub fn payload(&self) -> Option<(u64, u32)> {
        match *self {
            Frame::Write { offset, len, .. }
            | Frame::ReadData { offset, len, .. }
            | Frame::ResyncData { offset, len, .. } => Some((offset, len)),
            _ => None,
        }
    }

    /// Frames that carry a body made by [`crate::Node::render_body`].
    pub fn has_control_body(&self) -> bool {
        matches!(
            self,
            Frame::Snapshot
                | Frame::Bits { .. }
                | Frame::HashRequest { .. }
                | Frame::CheckpointCreate { .. }
                | Frame::CheckpointList { .. }
                | Frame::CheckpointBits { .. }
        )
    }

    /// Acknowledgements and heartbeats may overtake what is queued; everything else keeps its place in the stream.
    /// Both words on a write do, since Durable ends what is remembered of it.
    pub fn overtakes(&self) -> bool {
        if matches!(self, Frame::WriteFailed { .. }) && is_planted(Bug::DurableOvertakes) {
            return false;
        }
        matches!(
            self,
            Frame::Written { .. }
                | Frame::WriteFailed { .. }
                | Frame::Durable { .. }
                | Frame::CheckpointDone { .. }
                | Frame::BitsAck
                | Frame::CheckpointBitsAck
                | Frame::Heartbeat
        )
    }

    fn check_body(&self, body_bytes: u32) -> Result<(), FrameError> {
        let ok = match self.payload() {
            Some((_, len)) => body_bytes == len,
            None if self.has_control_body() => body_bytes > 0 && body_bytes <= CONTROL_BODY_BYTES_MAX,
            None => body_bytes == 0,
        };
        if ok { Ok(()) } else { Err(FrameError::Length) }
    }

    fn to_raw(self) -> Raw {
        let yes = |flag: bool, bit: u8| if flag { bit } else { 0 };
        let halves = |id: CheckpointId| ((id.0 >> 64) as u64, id.0 as u64);
        match self {
            Frame::Snapshot => (1, 0, 0, 0, 0),
            Frame::Verdict { code, session, fingerprint } => (2, 0, session, u64::from(code), fingerprint),
            Frame::Commit => (3, 0, 0, 0, 0),
            Frame::Bits { first_block } => (4, 0, first_block, 0, 0),
            Frame::BitsEnd => (5, 0, 0, 0, 0),
            Frame::Write { pos, offset, len, fua } => (6, yes(fua, FLAG_FUA), pos.0, offset, u64::from(len)),
            Frame::Zero { pos, offset, len, punch, fua } => {
                (7, yes(fua, FLAG_FUA) | yes(punch, FLAG_PUNCH), pos.0, offset, u64::from(len))
            }
            Frame::Written { pos } => (8, 0, pos.0, 0, 0),
            Frame::Flush { upto } => (9, 0, upto.0, 0, 0),
            Frame::Durable { upto } => (10, 0, upto.0, 0, 0),
            Frame::Read { id, offset, len } => (11, 0, u64::from(id), offset, u64::from(len)),
            Frame::ReadData { id, offset, len } => (12, 0, u64::from(id), offset, u64::from(len)),
            Frame::ReadFailed { id } => (13, 0, u64::from(id), 0, 0),
            Frame::ResyncRequest { batch, offset, len } => (14, 0, batch, offset, u64::from(len)),
            Frame::ResyncData { batch, offset, len } => (15, 0, batch, offset, u64::from(len)),
            Frame::Checkpoint { batch } => (16, 0, batch, 0, 0),
            Frame::CheckpointDone { batch } => (17, 0, batch, 0, 0),
            Frame::FinishRequest => (18, 0, 0, 0, 0),
            Frame::Finish => (19, 0, 0, 0, 0),
            Frame::Finished => (20, 0, 0, 0, 0),
            Frame::PromoteRequest { term } => (21, 0, term, 0, 0),
            Frame::PromoteReply { term, granted } => (22, yes(granted, FLAG_YES), term, 0, 0),
            Frame::Role { primary, term } => (23, yes(primary, FLAG_YES), term, 0, 0),
            Frame::LeaveRequest { was_primary } => (24, yes(was_primary, FLAG_YES), 0, 0, 0),
            Frame::LeaveReply { agreed } => (25, yes(agreed, FLAG_YES), 0, 0, 0),
            Frame::Left => (26, 0, 0, 0, 0),
            Frame::Heartbeat => (27, 0, 0, 0, 0),
            Frame::WriteFailed { pos, no_space } => (29, yes(no_space, FLAG_YES), pos.0, 0, 0),
            Frame::Goodbye { reason } => (28, 0, u64::from(reason), 0, 0),
            Frame::Invalidate => (42, 0, 0, 0, 0),
            Frame::InvalidateReply { done } => (43, yes(done, FLAG_YES), 0, 0, 0),
            Frame::CheckpointCreate { id } => (44, 0, 0, halves(id).0, halves(id).1),
            Frame::CheckpointDelete { id } => (45, 0, 0, halves(id).0, halves(id).1),
            Frame::CheckpointAnswer { id, done } => (46, yes(done, FLAG_YES), 0, halves(id).0, halves(id).1),
            Frame::CheckpointList { answer } => (47, yes(answer, FLAG_YES), 0, 0, 0),
            Frame::CheckpointBits { index, first_block } => (48, 0, first_block, u64::from(index), 0),
            Frame::CheckpointBitsAck => (49, 0, 0, 0, 0),
            Frame::CheckpointEnd => (50, 0, 0, 0, 0),
            Frame::HashRequest { batch, offset, len } => (34, 0, batch, offset, u64::from(len)),
            Frame::ResyncSame { batch, offset, len } => (35, 0, batch, offset, u64::from(len)),
            Frame::ResyncZero { batch, offset, len } => (36, 0, batch, offset, u64::from(len)),
            Frame::ResyncFailed { batch, offset, len } => (37, 0, batch, offset, u64::from(len)),
            Frame::BitsAck => (38, 0, 0, 0, 0),
            Frame::Pace { paused, again, rate, least } => {
                (39, yes(paused, FLAG_YES) | yes(again, FLAG_AGAIN), rate, least, 0)
            }
        }
    }

    /// Decodes, then encodes again: what does not come out the same had a bit set that its kind does not know.
    fn from_raw(raw: Raw) -> Result<Frame, FrameError> {
        let (kind, flags, a, b, c) = raw;
        if a > NUMBER_MAX {
            return Err(FrameError::Unknown);
        }
        let pos = Position(a);
        let (fua, punch, yes) = (flags & FLAG_FUA != 0, flags & FLAG_PUNCH != 0, flags & FLAG_YES != 0);
        let byte = |v: u64| u8::try_from(v).map_err(|_| FrameError::Unknown);
        let id = || u32::try_from(a).map_err(|_| FrameError::Unknown);
        let piece = || piece(b, c);
        let checkpoint = CheckpointId(u128::from(b) << 64 | u128::from(c));
        let frame = match kind {
            1 => Frame::Snapshot,
            2 => Frame::Verdict { code: byte(b)?, session: a, fingerprint: c },
            3 => Frame::Commit,
            4 => Frame::Bits { first_block: a },
            5 => Frame::BitsEnd,
            6 => Frame::Write { pos, offset: b, len: piece()?, fua },
            7 => Frame::Zero { pos, offset: b, len: piece()?, punch, fua },
            8 => Frame::Written { pos },
            9 => Frame::Flush { upto: pos },
            10 => Frame::Durable { upto: pos },
            11 => Frame::Read { id: id()?, offset: b, len: piece()? },
            12 => Frame::ReadData { id: id()?, offset: b, len: piece()? },
            13 => Frame::ReadFailed { id: id()? },
            14 => Frame::ResyncRequest { batch: a, offset: b, len: piece()? },
            15 => Frame::ResyncData { batch: a, offset: b, len: piece()? },
            16 => Frame::Checkpoint { batch: a },
            17 => Frame::CheckpointDone { batch: a },
            18 => Frame::FinishRequest,
            19 => Frame::Finish,
            20 => Frame::Finished,
            21 => Frame::PromoteRequest { term: a },
            22 => Frame::PromoteReply { term: a, granted: yes },
            23 => Frame::Role { primary: yes, term: a },
            24 => Frame::LeaveRequest { was_primary: yes },
            25 => Frame::LeaveReply { agreed: yes },
            26 => Frame::Left,
            27 => Frame::Heartbeat,
            28 => Frame::Goodbye { reason: byte(a)? },
            42 => Frame::Invalidate,
            43 => Frame::InvalidateReply { done: yes },
            44 => Frame::CheckpointCreate { id: checkpoint },
            45 => Frame::CheckpointDelete { id: checkpoint },
            46 => Frame::CheckpointAnswer { id: checkpoint, done: yes },
            47 => Frame::CheckpointList { answer: yes },
            48 => Frame::CheckpointBits { index: byte(b)?, first_block: a },
            49 => Frame::CheckpointBitsAck,
            50 => Frame::CheckpointEnd,
            34 => Frame::HashRequest { batch: a, offset: b, len: piece()? },
            35 => Frame::ResyncSame { batch: a, offset: b, len: piece()? },
            36 => Frame::ResyncZero { batch: a, offset: b, len: piece()? },
            37 => Frame::ResyncFailed { batch: a, offset: b, len: piece()? },
            38 => Frame::BitsAck,
            39 => Frame::Pace { paused: yes, again: flags & FLAG_AGAIN != 0, rate: a, least: b },
            29 => Frame::WriteFailed { pos, no_space: yes },
            _ => return Err(FrameError::Unknown),
        };
        if frame.to_raw() == raw { Ok(frame) } else { Err(FrameError::Unknown) }
    }
}

/// The length of a range that is not empty and lies within one piece.
fn piece(offset: u64, len: u64) -> Result<u32, FrameError> {
    let end = offset.checked_add(len).ok_or(FrameError::Length)?;
    if len == 0 || offset / PIECE_BYTES_MAX != (end - 1) / PIECE_BYTES_MAX {
        return Err(FrameError::Length);
    }
    u32::try_from(len).map_err(|_| FrameError::Length)
}

fn u32_at(head: &[u8; FRAME_BYTES], at: usize) -> u32 {
    head.get(at..).and_then(|rest| rest.first_chunk::<4>()).map_or(0, |b| u32::from_le_bytes(*b))
}

fn u64_at(head: &[u8; FRAME_BYTES], at: usize) -> u64 {
    head.get(at..).and_then(|rest| rest.first_chunk::<8>()).map_or(0, |b| u64::from_le_bytes(*b))
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;
    use lockstep_bitmap::crc32c;
    use proptest::prelude::*;

    fn samples() -> impl Iterator<Item = Frame> {
        (0..=63u8).flat_map(|kind| {
            (0..16u8).filter_map(move |flags| {
                [(7, 4096, 512), (7, 4096, 0), (7, 0, 0), (0, 0, 0), (1, 3, 0)]
                    .into_iter()
                    .find_map(|(a, b, c)| Frame::from_raw((kind, flags, a, b, c)).ok())
            })
        })
    }

    #[test]
    fn every_kind_survives_the_round_trip() {
        let mut kinds = alloc::collections::BTreeSet::new();
        for frame in samples() {
            kinds.insert(frame.to_raw().0);
            let body = match frame.payload() {
                Some((_, len)) => len,
                None if frame.has_control_body() => 8,
                None => 0,
            };
            let head = frame.encode(body, 0xABCD, crc32c);
            assert_eq!(Frame::decode(&head, crc32c), Ok((frame, body, 0xABCD)));
        }
        assert_eq!(kinds.len(), 44);
    }

    #[test]
    fn golden_bytes_of_a_write() {
        let frame = Frame::Write { pos: Position(0x0102), offset: 0x20000, len: 4096, fua: true };
        let head = frame.encode(4096, 0xDEAD_BEEF, crc32c);
        let expect = [
            6, 1, 0, 0, 0, 16, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0,
            0xEF, 0xBE, 0xAD, 0xDE,
        ];
        assert_eq!(head[..36], expect);
        assert_eq!(head[36..], crc32c(&expect).to_le_bytes());
    }

    #[test]
    fn ranges_that_are_not_pieces_are_refused() {
        for (b, c) in [(0, 0), (0, PIECE_BYTES_MAX + 1), (PIECE_BYTES_MAX - 1, 2), (u64::MAX, 2)] {
            assert_eq!(Frame::from_raw((6, 0, 1, b, c)), Err(FrameError::Length));
        }
    }

    proptest! {
        #[test]
        fn arbitrary_headers_never_panic_and_bit_flips_are_found(bytes: [u8; 40], bit in 0usize..320) {
            let _ = Frame::decode(&bytes, crc32c);
            let good = Frame::Durable { upto: Position(u64::from(bytes[0])) }.encode(0, 0, crc32c);
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Frame::decode(&bad, crc32c).is_err());
        }
    }
}
