//! One direction of a client's connection: bytes in order, with as many under way as two kernels buffer.
//!
//! A sector's bytes are its tag, here as on the wire between the nodes: eight bytes instead of 512. Headers are real.

use lockstep_nbd::{Command, Request};

/// Bytes of a sector in a pipe.
pub(crate) const SECTOR_BYTES: usize = 8;

/// Bytes of payload that follow a request's header; a length that is no multiple of a sector counts as the next one.
pub(crate) fn payload_bytes(request: &Request) -> usize {
    match request.command {
        Command::Write => sector_bytes(request.length),
        _ => 0,
    }
}

/// Bytes that stand for so many of the volume.
pub(crate) fn sector_bytes(len: u64) -> usize {
    len.div_ceil(512) as usize * SECTOR_BYTES
}

/// Tags as bytes.
pub(crate) fn bytes_of(tags: &[u64]) -> impl Iterator<Item = u8> {
    tags.iter().flat_map(|tag| tag.to_le_bytes())
}

/// Bytes as tags.
pub(crate) fn tags_of(bytes: &[u8]) -> Vec<u64> {
    bytes.as_chunks::<SECTOR_BYTES>().0.iter().map(|tag| u64::from_le_bytes(*tag)).collect()
}

/// The receiving end of a direction, with what is under way to it.
#[derive(Debug)]
pub(crate) struct Socket {
    /// Taken by the sender's kernel, not by the receiver.
    bytes: Vec<u8>,
    /// So many of them have arrived.
    arrived: usize,
    /// Of both kernels.
    capacity: usize,
    /// The sender has closed; behind the bytes comes the end.
    is_closed: bool,
    /// When the last of them arrive.
    last_arrival_ns: u64,
}

impl Socket {
    /// Nothing was sent.
    pub(crate) fn new(capacity: usize) -> Self {
        Socket { bytes: Vec::new(), arrived: 0, capacity, is_closed: false, last_arrival_ns: 0 }
    }

    /// Takes as many bytes from the front of `out` as there is room for. Returns their number.
    pub(crate) fn push(&mut self, out: &mut Vec<u8>) -> usize {
        let taken = out.len().min(self.capacity.saturating_sub(self.bytes.len()));
        self.bytes.extend(out.drain(..taken));
        taken
    }

    /// What was just pushed arrives then: not before what was sent earlier.
    pub(crate) fn arrival_ns(&mut self, now_ns: u64, latency_ns: u64) -> u64 {
        self.last_arrival_ns = self.last_arrival_ns.max(now_ns + latency_ns);
        self.last_arrival_ns
    }

    /// So many more bytes are there.
    pub(crate) fn arrive(&mut self, bytes: usize) {
        self.arrived += bytes;
    }

    /// Nothing more is sent.
    pub(crate) fn close(&mut self) {
        self.is_closed = true;
    }

    /// Nothing more comes than has arrived.
    pub(crate) fn is_at_end(&self) -> bool {
        self.is_closed && self.arrived == self.bytes.len()
    }

    /// What has arrived.
    pub(crate) fn data(&self) -> &[u8] {
        &self.bytes[..self.arrived]
    }

    /// Takes bytes from the front.
    pub(crate) fn consume(&mut self, bytes: usize) {
        self.bytes.drain(..bytes);
        self.arrived -= bytes;
    }
}
