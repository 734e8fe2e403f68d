//! The network between the two machines: ordered byte pipes.
//!
//! A connection is two pipes. Bytes wait in a send queue (acknowledgements may overtake there, nowhere
//! else), travel with a latency, arrive in pieces of any size, and are lost from any byte on when the
//! connection is reset. Each end learns the end of a connection at its own time. A data frame carries eight
//! bytes per sector (its tag) instead of the sector.

use crc_fast::crc32_iscsi as crc32c;
use lockstep_core::{FRAME_BYTES, Frame, LinkId};
use std::collections::VecDeque;

/// One end of a connection, as its machine's kernel and shell see it.
#[derive(Debug)]
pub(crate) struct End {
    /// The number that its core knows.
    pub(crate) link: LinkId,
    /// The process that owns it.
    pub(crate) process: u32,
    /// LinkUp was given to the core.
    pub(crate) up: bool,
    /// LinkDown was given, or the process died.
    pub(crate) down: bool,
    /// The core asked to close it.
    pub(crate) closing: bool,
}

/// Bytes in one direction.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    /// Frames that may overtake.
    pub(crate) urgent: VecDeque<Vec<u8>>,
    /// All others.
    pub(crate) ordered: VecDeque<Vec<u8>>,
    /// The wire is taken by a frame.
    pub(crate) sending: bool,
    /// After what is queued comes the end.
    pub(crate) fin: bool,
    /// Nothing more enters.
    pub(crate) dead: bool,
    /// Pieces on the way, each with an arrival scheduled; `None` is the end of the stream.
    pub(crate) flight: VecDeque<Option<Vec<u8>>>,
    /// When the last piece arrives.
    pub(crate) last_arrival: u64,
    /// Arrived and not parsed.
    pub(crate) arrived: Vec<u8>,
    /// A bit of it turned over: it has to be found.
    pub(crate) is_damaged: bool,
}

impl Pipe {
    /// Cuts what is under way at a byte of the caller's choice; later bytes are gone. Pieces keep their
    /// arrivals.
    pub(crate) fn truncate(&mut self, at: usize) {
        self.urgent.clear();
        self.ordered.clear();
        self.dead = true;
        self.fin = false;
        let mut left = at;
        for piece in &mut self.flight {
            // An arrival is scheduled for each piece, so that an emptied one stays.
            let piece = piece.get_or_insert_default();
            let keep = left.min(piece.len());
            piece.truncate(keep);
            left -= keep;
        }
    }

    /// A bit of what is on the way turns over; which one, the caller draws. False if there is nothing.
    pub(crate) fn flip(&mut self, drawn: u64) -> bool {
        let bits = self.in_flight_bytes() as u64 * 8;
        let Some(mut bit) = drawn.checked_rem(bits) else { return false };
        for piece in self.flight.iter_mut().flatten() {
            if bit < piece.len() as u64 * 8 {
                piece[(bit / 8) as usize] ^= 1 << (bit % 8);
                self.is_damaged = true;
                return true;
            }
            bit -= piece.len() as u64 * 8;
        }
        false
    }

    /// Bytes on the way.
    pub(crate) fn in_flight_bytes(&self) -> usize {
        self.flight.iter().flatten().map(Vec::len).sum()
    }
}

/// A connection; index 0 and 1 are the nodes.
#[derive(Debug)]
pub(crate) struct Conn {
    /// Its ends.
    pub(crate) ends: [End; 2],
    /// `pipes[n]` carries what node `n` sends.
    pub(crate) pipes: [Pipe; 2],
}

/// A frame that came out of a pipe.
#[derive(Debug)]
pub(crate) struct Arrived {
    /// Header.
    pub(crate) frame: Frame,
    /// Body of a control frame.
    pub(crate) body: Vec<u8>,
    /// Tags of a data frame.
    pub(crate) tags: Vec<u64>,
}

/// The bytes of a frame on the simulated wire.
pub(crate) fn encode(frame: &Frame, body: &[u8], tags: &[u64]) -> Vec<u8> {
    let (len, wire): (u32, Vec<u8>) = match frame.payload() {
        Some((_, len)) => (len, tags.iter().flat_map(|tag| tag.to_le_bytes()).collect()),
        None => (body.len() as u32, body.to_vec()),
    };
    let mut out = frame.encode(len, crc32c(&wire), crc32c).to_vec();
    out.extend(wire);
    out
}

/// Takes one frame from the front of `bytes`, if it is there in full.
pub(crate) fn decode(bytes: &mut Vec<u8>) -> Result<Option<Arrived>, String> {
    let Some(head) = bytes.first_chunk::<FRAME_BYTES>() else { return Ok(None) };
    let (frame, len, crc) = Frame::decode(head, crc32c).map_err(|e| format!("frame refused: {e}"))?;
    let is_data = frame.payload().is_some();
    let wire_len = if is_data { len as usize / 512 * 8 } else { len as usize };
    if bytes.len() < FRAME_BYTES + wire_len {
        return Ok(None);
    }
    let wire = &bytes[FRAME_BYTES..FRAME_BYTES + wire_len];
    if crc32c(wire) != crc {
        return Err(format!("body of {frame:?} damaged"));
    }
    let (mut body, mut tags) = (Vec::new(), Vec::new());
    if is_data {
        tags = wire.as_chunks::<8>().0.iter().map(|tag| u64::from_le_bytes(*tag)).collect();
    } else {
        body = wire.to_vec();
    }
    bytes.drain(..FRAME_BYTES + wire_len);
    Ok(Some(Arrived { frame, body, tags }))
}
