//! Replies of the transmission phase, encoded without allocation.
//!
//! A reply is a [`ReplyHeader`], followed on the wire by payload bytes only for a successful read. With
//! structured replies a read is always answered in chunks, also when it fails; every other command gets a
//! simple reply, which the specification allows and which is the shortest.

use crate::errors::NbdError;
use crate::request::{Command, Request};
use crate::wire::{FixedBytes, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk, prefix_of};

/// Size of a simple reply.
pub const SIMPLE_REPLY_BYTES: usize = 16;

/// Size of the header of a data chunk, its offset field included.
pub const DATA_CHUNK_HEADER_BYTES: usize = 28;

/// Longest text in an error chunk; the rest is cut off.
pub const MESSAGE_BYTES_MAX: usize = HEADER_BYTES_MAX - 20 - 4 - 2 - 8;

const HEADER_BYTES_MAX: usize = 96;

/// The bytes of a reply up to its payload, if it has one.
#[derive(Clone, Copy)]
pub struct ReplyHeader(FixedBytes<HEADER_BYTES_MAX>);

impl ReplyHeader {
    /// The bytes to send.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_slice()
    }
}

impl core::fmt::Debug for ReplyHeader {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("ReplyHeader").field(&self.as_bytes()).finish()
    }
}

impl PartialEq for ReplyHeader {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for ReplyHeader {}

/// Header of a successful read; `length` bytes of data follow it as the only chunk.
pub fn read_reply(structured: bool, cookie: u64, offset: u64, length: u32) -> ReplyHeader {
    if structured { data_chunk(cookie, offset, length, true) } else { simple(cookie, None) }
}

/// The whole answer to a request that is not a successful read. `message` is for humans and travels only in
/// chunks.
///
/// Not for `Disconnect`, which has no reply.
pub fn request_reply(
    structured: bool,
    request: &Request,
    result: Result<(), NbdError>,
    message: &str,
) -> ReplyHeader {
    debug_assert!(request.command != Command::Disconnect, "a disconnect has no reply");
    match result {
        Ok(()) => {
            debug_assert!(request.command != Command::Read, "a successful read is answered with data");
            simple(request.cookie, None)
        }
        Err(error) => failure(structured && request.command == Command::Read, request.cookie, error, message),
    }
}

/// A simple reply; 16 bytes.
pub fn simple_reply(cookie: u64, error: Option<NbdError>) -> [u8; SIMPLE_REPLY_BYTES] {
    FixedBytes::new()
        .put(&SIMPLE_REPLY_MAGIC.to_be_bytes())
        .put(&error.map_or(0, NbdError::to_wire).to_be_bytes())
        .put(&cookie.to_be_bytes())
        .into_full()
}

/// Header of one chunk of read data; `length` bytes of payload, which belong at `offset` of the export,
/// follow it.
pub fn data_chunk(cookie: u64, offset: u64, length: u32, done: bool) -> ReplyHeader {
    debug_assert!(length > 0 && length <= u32::MAX - 8, "length of a data chunk");
    let header = chunk_header(cookie, chunk::OFFSET_DATA, length.saturating_add(8), done);
    ReplyHeader(header.put(&offset.to_be_bytes()))
}

/// A chunk that says: `length` bytes from `offset` read as zeroes.
pub fn hole_chunk(cookie: u64, offset: u64, length: u32, done: bool) -> ReplyHeader {
    debug_assert!(length > 0, "length of a hole chunk");
    let header = chunk_header(cookie, chunk::OFFSET_HOLE, 12, done);
    ReplyHeader(header.put(&offset.to_be_bytes()).put(&length.to_be_bytes()))
}

/// The empty last chunk of a reply.
pub fn none_chunk(cookie: u64) -> ReplyHeader {
    ReplyHeader(chunk_header(cookie, chunk::NONE, 0, true))
}

/// A chunk that fails the request as a whole.
pub fn error_chunk(cookie: u64, error: NbdError, message: &str, done: bool) -> ReplyHeader {
    let message = prefix_of(message, MESSAGE_BYTES_MAX);
    let header = chunk_header(cookie, chunk::ERROR, 6 + wire_length(message), done);
    ReplyHeader(put_error(header, error, message))
}

/// A chunk that fails the request at `offset`, an absolute offset inside its range.
pub fn error_offset_chunk(
    cookie: u64,
    error: NbdError,
    message: &str,
    offset: u64,
    done: bool,
) -> ReplyHeader {
    let message = prefix_of(message, MESSAGE_BYTES_MAX);
    let header = chunk_header(cookie, chunk::ERROR_OFFSET, 14 + wire_length(message), done);
    ReplyHeader(put_error(header, error, message).put(&offset.to_be_bytes()))
}

/// A refusal, as a chunk or as a simple reply.
pub(crate) fn failure(in_chunks: bool, cookie: u64, error: NbdError, message: &str) -> ReplyHeader {
    if in_chunks { error_chunk(cookie, error, message, true) } else { simple(cookie, Some(error)) }
}

fn simple(cookie: u64, error: Option<NbdError>) -> ReplyHeader {
    ReplyHeader(FixedBytes::new().put(&simple_reply(cookie, error)))
}

fn put_error(
    header: FixedBytes<HEADER_BYTES_MAX>,
    error: NbdError,
    message: &str,
) -> FixedBytes<HEADER_BYTES_MAX> {
    header
        .put(&error.to_wire().to_be_bytes())
        .put(&(message.len() as u16).to_be_bytes())
        .put(message.as_bytes())
}

fn wire_length(message: &str) -> u32 {
    message.len() as u32
}

fn chunk_header(cookie: u64, kind: u16, length: u32, done: bool) -> FixedBytes<HEADER_BYTES_MAX> {
    let flags = if done { chunk::FLAG_DONE } else { 0 };
    FixedBytes::new()
        .put(&STRUCTURED_REPLY_MAGIC.to_be_bytes())
        .put(&flags.to_be_bytes())
        .put(&kind.to_be_bytes())
        .put(&cookie.to_be_bytes())
        .put(&length.to_be_bytes())
}

const _: () = assert!(MESSAGE_BYTES_MAX < 1 << 16);

#[cfg(test)]
mod tests;
