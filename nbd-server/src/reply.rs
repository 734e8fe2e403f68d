//! Replies of the transmission phase, encoded without allocation.
//!
//! A reply is a [`ReplyHeader`], followed on the wire by payload bytes only for a successful read; the answer to a
//! question for block status is built by [`crate::status`]. With structured replies a read is always answered in
//! chunks, also when it fails, and so is every other failure, for the sake of its words; success without data is a
//! simple reply, which the specification allows and which is the shortest. With extended headers everything is a
//! chunk.

use crate::errors::NbdError;
use crate::request::{Command, Request};
use crate::wire::{
    EXTENDED_REPLY_MAGIC, FixedBytes, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk, prefix_of,
};

/// Size of a simple reply.
pub const SIMPLE_REPLY_BYTES: usize = 16;

/// Longest text in an error chunk; the rest is cut off.
pub const MESSAGE_BYTES_MAX: usize = HEADER_BYTES_MAX - EXTENDED_HEADER_BYTES - 4 - 2 - 8;

const EXTENDED_HEADER_BYTES: usize = 32;
const HEADER_BYTES_MAX: usize = 108;

/// How the answers of a connection are framed.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Framing {
    /// Simple replies only: nothing was negotiated.
    #[default]
    Simple,
    /// Reads are answered in chunks.
    Structured,
    /// Requests and chunks have 64-bit lengths; every answer is made of chunks.
    Extended,
}

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

/// Where an answer goes: what of a request all parts of its answer repeat.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ReplyTo {
    pub(crate) framing: Framing,
    pub(crate) cookie: u64,
    /// Offset of the request, which extended headers repeat.
    pub(crate) offset: u64,
}

impl ReplyTo {
    /// To a request on a connection with such replies.
    pub const fn new(framing: Framing, request: &Request) -> Self {
        Self { framing, cookie: request.cookie, offset: request.offset }
    }

    /// How it is framed.
    pub const fn framing(&self) -> Framing {
        self.framing
    }

    /// Header of a successful read; `length` bytes of data, from `offset`, follow it and end the answer.
    pub fn data(&self, offset: u64, length: u32) -> ReplyHeader {
        match self.framing {
            Framing::Simple => self.simple(None),
            Framing::Structured | Framing::Extended => self.data_chunk(offset, length, true),
        }
    }

    /// Header of one chunk of read data; `length` bytes of payload, which belong at `offset` of the export,
    /// follow it. Not with simple replies.
    pub fn data_chunk(&self, offset: u64, length: u32, done: bool) -> ReplyHeader {
        debug_assert!(length > 0 && length <= u32::MAX - 8, "length of a data chunk");
        let header = self.chunk_header(chunk::OFFSET_DATA, u64::from(length) + 8, done);
        ReplyHeader(header.put(&offset.to_be_bytes()))
    }

    /// A chunk that says: `length` bytes from `offset` read as zeroes. Not with simple replies.
    pub fn hole_chunk(&self, offset: u64, length: u32, done: bool) -> ReplyHeader {
        debug_assert!(length > 0, "length of a hole chunk");
        let header = self.chunk_header(chunk::OFFSET_HOLE, 12, done);
        ReplyHeader(header.put(&offset.to_be_bytes()).put(&length.to_be_bytes()))
    }

    /// The empty last chunk of a reply. Not with simple replies.
    pub fn none_chunk(&self) -> ReplyHeader {
        ReplyHeader(self.chunk_header(chunk::NONE, 0, true))
    }

    /// A chunk that fails the request as a whole. Not with simple replies.
    pub fn error_chunk(&self, error: NbdError, message: &str, done: bool) -> ReplyHeader {
        let message = prefix_of(message, MESSAGE_BYTES_MAX);
        let header = self.chunk_header(chunk::ERROR, 6 + message.len() as u64, done);
        ReplyHeader(put_error(header, error, message))
    }

    /// A chunk that fails the request at `offset`, an absolute offset inside its range. Not with simple replies.
    pub fn error_offset_chunk(&self, error: NbdError, message: &str, offset: u64, done: bool) -> ReplyHeader {
        let message = prefix_of(message, MESSAGE_BYTES_MAX);
        let header = self.chunk_header(chunk::ERROR_OFFSET, 14 + message.len() as u64, done);
        ReplyHeader(put_error(header, error, message).put(&offset.to_be_bytes()))
    }

    /// The whole answer to a request that is not answered with data. `message` is for humans and travels only in
    /// chunks.
    ///
    /// Not for `Disconnect`, which has no reply.
    pub fn result(&self, command: Command, result: Result<(), NbdError>, message: &str) -> ReplyHeader {
        debug_assert!(command != Command::Disconnect, "a disconnect has no reply");
        match result {
            Ok(()) => {
                let has_data = matches!(command, Command::Read | Command::BlockStatus);
                debug_assert!(!has_data, "success of this command is answered with data");
                if self.framing == Framing::Extended { self.none_chunk() } else { self.simple(None) }
            }
            Err(error) => self.failure(error, message),
        }
    }

    /// A refusal: as a chunk, which has room for words, where the client knows chunks.
    pub(crate) fn failure(&self, error: NbdError, message: &str) -> ReplyHeader {
        match self.framing {
            Framing::Structured | Framing::Extended => self.error_chunk(error, message, true),
            Framing::Simple => self.simple(Some(error)),
        }
    }

    fn simple(&self, error: Option<NbdError>) -> ReplyHeader {
        ReplyHeader(FixedBytes::new().put(&simple_reply(self.cookie, error)))
    }

    /// Header of a chunk with so many bytes behind it.
    pub(crate) fn chunk_header<const N: usize>(
        &self,
        kind: u16,
        length_bytes: u64,
        done: bool,
    ) -> FixedBytes<N> {
        debug_assert!(self.framing != Framing::Simple, "a chunk for a client that knows none");
        let flags = if done { chunk::FLAG_DONE } else { 0 };
        let magic = match self.framing {
            Framing::Extended => EXTENDED_REPLY_MAGIC,
            Framing::Simple | Framing::Structured => STRUCTURED_REPLY_MAGIC,
        };
        let header = FixedBytes::new()
            .put(&magic.to_be_bytes())
            .put(&flags.to_be_bytes())
            .put(&kind.to_be_bytes())
            .put(&self.cookie.to_be_bytes());
        match self.framing {
            Framing::Extended => header.put(&self.offset.to_be_bytes()).put(&length_bytes.to_be_bytes()),
            Framing::Simple | Framing::Structured => header.put(&(length_bytes as u32).to_be_bytes()),
        }
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

const _: () = assert!(MESSAGE_BYTES_MAX < 1 << 16);

#[cfg(test)]
mod tests;
