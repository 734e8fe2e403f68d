//! Requests of the transmission phase: 28 bytes of header, checked once, against one export.
//!
//! Invariant: a [`Request`] that came out of the parser lies inside the export, is not empty (where the
//! command has a range), is aligned to the minimum block, and asks nothing that was not offered. Inner code
//! need not check again. The parser keeps no state between calls: a payload is taken by the caller, who is
//! told its length.

use crate::errors::{NbdError, ProtocolError};
use crate::export::ExportInfo;
use crate::reply::{self, ReplyHeader};
use crate::wire::{FixedBytes, REQUEST_MAGIC, Reader, command, command_flag};

/// Size of a request header.
pub const REQUEST_HEADER_BYTES: usize = 28;

/// Largest payload that is read and thrown away when its write is refused; a longer one ends the connection.
pub const PAYLOAD_BYTES_MAX: u32 = 64 << 20;

/// What a request asks for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Command {
    /// Reply with `length` bytes from `offset`.
    Read,
    /// `length` bytes of payload follow the header.
    Write,
    /// Finish what is in flight, then close; it has no reply.
    Disconnect,
    /// Make every write durable that was answered before.
    Flush,
    /// The range is no longer needed.
    Trim,
    /// The range will be read soon.
    Cache,
    /// Leave zeroes in the range.
    WriteZeroes,
}

impl Command {
    const fn from_wire(value: u16) -> Option<Self> {
        match value {
            command::READ => Some(Self::Read),
            command::WRITE => Some(Self::Write),
            command::DISCONNECT => Some(Self::Disconnect),
            command::FLUSH => Some(Self::Flush),
            command::TRIM => Some(Self::Trim),
            command::CACHE => Some(Self::Cache),
            command::WRITE_ZEROES => Some(Self::WriteZeroes),
            _ => None,
        }
    }

    const fn to_wire(self) -> u16 {
        match self {
            Self::Read => command::READ,
            Self::Write => command::WRITE,
            Self::Disconnect => command::DISCONNECT,
            Self::Flush => command::FLUSH,
            Self::Trim => command::TRIM,
            Self::Cache => command::CACHE,
            Self::WriteZeroes => command::WRITE_ZEROES,
        }
    }

    /// Whether it changes data, and so is refused on a read-only export.
    pub const fn modifies(self) -> bool {
        matches!(self, Self::Write | Self::Trim | Self::WriteZeroes)
    }
}

/// One request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Request {
    /// What is asked.
    pub command: Command,
    /// Durable before the reply. Clients set it on any command; it means something where
    /// `command.modifies()`.
    pub fua: bool,
    /// `WriteZeroes` only: keep the range allocated.
    pub no_hole: bool,
    /// `Read` only: one chunk of data, not several.
    pub df: bool,
    /// The client's name for this request; opaque.
    pub cookie: u64,
    /// Start, in bytes; 0 for `Flush` and `Disconnect`.
    pub offset: u64,
    /// Length in bytes; 0 for `Flush` and `Disconnect`.
    pub length: u32,
}

impl Request {
    /// The header on the wire; a client sends it, followed by `length` bytes for a `Write`.
    pub fn encode(&self) -> [u8; REQUEST_HEADER_BYTES] {
        let mut flags = 0;
        for (set, bit) in [
            (self.fua, command_flag::FUA),
            (self.no_hole, command_flag::NO_HOLE),
            (self.df, command_flag::DF),
        ] {
            if set {
                flags |= bit;
            }
        }
        FixedBytes::new()
            .put(&REQUEST_MAGIC.to_be_bytes())
            .put(&flags.to_be_bytes())
            .put(&self.command.to_wire().to_be_bytes())
            .put(&self.cookie.to_be_bytes())
            .put(&self.offset.to_be_bytes())
            .put(&self.length.to_be_bytes())
            .into_full()
    }

    /// Bytes of payload that follow the header on the wire.
    pub const fn payload_bytes(&self) -> u32 {
        match self.command {
            Command::Write => self.length,
            _ => 0,
        }
    }
}

/// Result of one look at the received bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Parsed {
    /// Not yet a whole header; nothing was consumed.
    NeedMore,
    /// A good request. A `Write` is followed by `request.length` bytes of payload, not included in
    /// `consumed`.
    Request {
        /// Bytes of input that the header took.
        consumed: usize,
        /// The request.
        request: Request,
    },
    /// A request to refuse: throw the payload away, *then* send the reply, and go on. A client that gets the
    /// reply while it still sends the payload may take the connection for broken (libnbd does).
    Invalid {
        /// Bytes of input that the header took.
        consumed: usize,
        /// Its cookie.
        cookie: u64,
        /// The error in `reply`.
        error: NbdError,
        /// Bytes of payload that follow the header and must be thrown away before the next request.
        payload_to_skip: u64,
        /// The whole answer, in the form that this connection negotiated.
        reply: ReplyHeader,
    },
    /// The stream cannot be followed: close.
    Fatal(ProtocolError),
}

/// Parses and checks requests for one connection.
#[derive(Clone, Debug)]
pub struct RequestParser {
    size_bytes: u64,
    block_min_bytes: u32,
    block_max_bytes: u32,
    read_only: bool,
    structured: bool,
}

impl RequestParser {
    /// A parser for a connection to `export`, with or without structured replies.
    pub fn new(export: &ExportInfo, structured: bool) -> Self {
        assert!(export.block.is_valid(), "block sizes of the export break the specification");
        Self {
            size_bytes: export.size_bytes,
            block_min_bytes: export.block.min,
            block_max_bytes: export.block.max,
            read_only: export.read_only,
            structured,
        }
    }

    /// Looks at the front of `input`, which must begin where the last request (and its payload) ended.
    pub fn next(&self, input: &[u8]) -> Parsed {
        let Some(header) = RawRequest::read(input) else {
            return Parsed::NeedMore;
        };
        if header.magic != REQUEST_MAGIC {
            return Parsed::Fatal(ProtocolError::BadRequestMagic(header.magic));
        }
        let is_write = header.command == command::WRITE;
        if is_write && header.length > PAYLOAD_BYTES_MAX {
            return Parsed::Fatal(ProtocolError::WriteTooLong(header.length));
        }
        match self.check(&header) {
            Ok(request) => Parsed::Request { consumed: REQUEST_HEADER_BYTES, request },
            Err(Refusal { error, why }) => {
                let in_chunks = self.structured && header.command == command::READ;
                Parsed::Invalid {
                    consumed: REQUEST_HEADER_BYTES,
                    cookie: header.cookie,
                    error,
                    payload_to_skip: if is_write { u64::from(header.length) } else { 0 },
                    reply: reply::failure(in_chunks, header.cookie, error, why),
                }
            }
        }
    }

    fn check(&self, header: &RawRequest) -> Result<Request, Refusal> {
        use command_flag::{DF, FUA, NO_HOLE};
        let command = Command::from_wire(header.command)
            .ok_or(Refusal { error: NbdError::Invalid, why: "unknown command" })?;
        let mut request = Request {
            command,
            fua: header.flags & FUA != 0,
            no_hole: header.flags & NO_HOLE != 0,
            df: header.flags & DF != 0,
            cookie: header.cookie,
            offset: header.offset,
            length: header.length,
        };
        if command == Command::Disconnect {
            // The client is leaving and reads no answer: whatever else it filled in does not matter.
            (request.fua, request.no_hole, request.df) = (false, false, false);
            (request.offset, request.length) = (0, 0);
            return Ok(request);
        }
        // FUA is harmless where it means nothing, and common clients send it there.
        let allowed = FUA
            | match command {
                Command::Read if self.structured => DF,
                Command::WriteZeroes => NO_HOLE,
                _ => 0,
            };
        if header.flags & !allowed != 0 {
            return Err(Refusal { error: NbdError::Invalid, why: "unknown flag for this command" });
        }
        if self.read_only && command.modifies() {
            return Err(Refusal { error: NbdError::NotPermitted, why: "the export is read-only" });
        }
        if command == Command::Flush {
            if (header.offset, header.length) != (0, 0) {
                return Err(Refusal { error: NbdError::Invalid, why: "flush takes no range" });
            }
            return Ok(request);
        }
        self.check_range(&request)?;
        Ok(request)
    }

    fn check_range(&self, request: &Request) -> Result<(), Refusal> {
        let Request { command, offset, length, .. } = *request;
        if length == 0 {
            return Err(Refusal { error: NbdError::Invalid, why: "length is zero" });
        }
        // Powers of two: one test covers offset and length.
        if (offset | u64::from(length)) & (u64::from(self.block_min_bytes) - 1) != 0 {
            return Err(Refusal { error: NbdError::Invalid, why: "not aligned to the minimum block" });
        }
        let inside = offset.checked_add(u64::from(length)).is_some_and(|end| end <= self.size_bytes);
        if !inside {
            let error = match command {
                Command::Write | Command::WriteZeroes => NbdError::NoSpace,
                _ => NbdError::Invalid,
            };
            return Err(Refusal { error, why: "range ends past the export" });
        }
        let too_long = match command {
            Command::Read => Some(NbdError::Overflow),
            Command::Write => Some(NbdError::Invalid),
            _ => None,
        };
        match too_long {
            Some(error) if length > self.block_max_bytes => {
                Err(Refusal { error, why: "longer than the maximum block" })
            }
            _ => Ok(()),
        }
    }
}

struct Refusal {
    error: NbdError,
    why: &'static str,
}

struct RawRequest {
    magic: u32,
    flags: u16,
    command: u16,
    cookie: u64,
    offset: u64,
    length: u32,
}

impl RawRequest {
    fn read(input: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(input);
        Some(Self {
            magic: reader.u32()?,
            flags: reader.u16()?,
            command: reader.u16()?,
            cookie: reader.u64()?,
            offset: reader.u64()?,
            length: reader.u32()?,
        })
    }
}

#[cfg(test)]
mod tests;
