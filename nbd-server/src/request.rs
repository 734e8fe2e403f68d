//! Requests of the transmission phase: a header of 28 bytes, or of 32 with extended headers, checked once, against
//! one export.
//!
//! Invariant: a [`Request`] that came out of the parser lies inside the export, is not empty (where the
//! command has a range), is aligned to the minimum block, and asks nothing that was not offered. Inner code
//! need not check again. The parser keeps no state between calls: the payload of a write is taken by the caller,
//! who is told its length.

use crate::errors::{NbdError, ProtocolError};
use crate::negotiate::Transmission;
use crate::reply::{Framing, ReplyHeader, ReplyTo};
use crate::status::{CONTEXTS_MAX, ContextSet};
use crate::wire::{EXTENDED_REQUEST_MAGIC, FixedBytes, REQUEST_MAGIC, Reader, command, command_flag};

/// Size of a request header without extended headers.
pub const REQUEST_HEADER_BYTES: usize = 28;
const EXTENDED_HEADER_BYTES: usize = 32;

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
    /// Describe the range, as the contexts that were agreed define.
    BlockStatus,
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
            command::BLOCK_STATUS => Some(Self::BlockStatus),
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
            Self::BlockStatus => command::BLOCK_STATUS,
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
    /// `WriteZeroes` only: fail, with nothing changed, rather than be as slow as a write.
    pub fast: bool,
    /// `Read` only: one chunk of data, not several.
    pub df: bool,
    /// `BlockStatus` only: one extent, not several.
    pub req_one: bool,
    /// `BlockStatus` only: what of it.
    pub contexts: ContextSet,
    /// The client's name for this request; opaque.
    pub cookie: u64,
    /// Start, in bytes; 0 for `Flush` and `Disconnect`.
    pub offset: u64,
    /// Length in bytes; 0 for `Flush` and `Disconnect`.
    pub length: u64,
}

impl Request {
    /// A request without flags.
    pub const fn new(command: Command, cookie: u64, offset: u64, length: u64) -> Self {
        Self {
            command,
            fua: false,
            no_hole: false,
            fast: false,
            df: false,
            req_one: false,
            contexts: ContextSet::first(0),
            cookie,
            offset,
            length,
        }
    }

    /// The header on the wire without extended headers; a client sends it, followed by `length` bytes for a
    /// `Write`. The length is cut at what such a header can hold.
    pub fn encode(&self) -> [u8; REQUEST_HEADER_BYTES] {
        let mut flags = 0;
        for (set, bit) in [
            (self.fua, command_flag::FUA),
            (self.no_hole, command_flag::NO_HOLE),
            (self.df, command_flag::DF),
            (self.req_one, command_flag::REQ_ONE),
            (self.fast, command_flag::FAST_ZERO),
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
            .put(&u32::try_from(self.length).unwrap_or(u32::MAX).to_be_bytes())
            .into_full()
    }

    /// Bytes of payload that follow the header on the wire and are not consumed with it.
    pub const fn payload_bytes(&self) -> u64 {
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
        /// Bytes of input that the header took, and the list of contexts behind it.
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
    fast_zero: bool,
    framing: Framing,
    contexts: ContextSet,
}

impl RequestParser {
    /// A parser for a connection on which this was agreed.
    pub fn new(agreed: &Transmission) -> Self {
        let export = &agreed.export;
        assert!(export.block.is_valid(), "block sizes of the export break the specification");
        Self {
            size_bytes: export.size_bytes,
            block_min_bytes: export.block.min,
            block_max_bytes: export.block.max,
            read_only: export.read_only,
            fast_zero: export.fast_zero,
            framing: agreed.framing,
            contexts: ContextSet::first(agreed.contexts.len()),
        }
    }

    /// Looks at the front of `input`, which must begin where the last request (and its payload) ended.
    pub fn next(&self, input: &[u8]) -> Parsed {
        let Some((header, behind)) = RawRequest::read(input, self.is_extended()) else {
            return Parsed::NeedMore;
        };
        let magic = if self.is_extended() { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
        if header.magic != magic {
            return Parsed::Fatal(ProtocolError::BadRequestMagic(header.magic));
        }
        let payload_bytes = self.payload_bytes(&header);
        if payload_bytes > u64::from(self.payload_bytes_max()) {
            return Parsed::Fatal(ProtocolError::PayloadTooLong(payload_bytes));
        }
        let consumed = input.len() - behind.len();
        let filter = match self.filter(&header, behind) {
            Ok(filter) => filter,
            Err(FilterError::NeedMore) => return Parsed::NeedMore,
            Err(FilterError::Refused(refusal)) => {
                return self.refused(&header, consumed, payload_bytes, refusal);
            }
        };
        match self.check(&header, filter) {
            Ok(request) => {
                let filter_bytes = if filter.is_some() { payload_bytes as usize } else { 0 };
                Parsed::Request { consumed: consumed + filter_bytes, request }
            }
            Err(refusal) => self.refused(&header, consumed, payload_bytes, refusal),
        }
    }

    fn is_extended(&self) -> bool {
        self.framing == Framing::Extended
    }

    /// What follows the header, whether the request is good or not.
    fn payload_bytes(&self, header: &RawRequest) -> u64 {
        // A write that forgets to announce its payload has one all the same.
        let announces = self.is_extended() && header.flags & command_flag::PAYLOAD_LEN != 0;
        if header.command == command::WRITE || announces { header.length } else { 0 }
    }

    /// What is read, and thrown away if it has to be. A client that announces its payloads knows how large they may
    /// be; others have lived without that knowledge.
    fn payload_bytes_max(&self) -> u32 {
        if self.is_extended() { self.block_max_bytes } else { PAYLOAD_BYTES_MAX }
    }

    fn refused(
        &self,
        header: &RawRequest,
        consumed: usize,
        payload_to_skip: u64,
        refusal: Refusal,
    ) -> Parsed {
        let Refusal { error, why } = refusal;
        let to = ReplyTo { framing: self.framing, cookie: header.cookie, offset: header.offset };
        let reply = to.failure(error, why);
        Parsed::Invalid { consumed, cookie: header.cookie, error, payload_to_skip, reply }
    }

    /// The list of contexts behind a question for block status, where there is one.
    fn filter(&self, header: &RawRequest, behind: &[u8]) -> Result<Option<Filter>, FilterError> {
        const BYTES_MAX: u64 = 8 + 4 * CONTEXTS_MAX as u64;
        if header.command != command::BLOCK_STATUS || self.payload_bytes(header) == 0 {
            return Ok(None);
        }
        let refused = |why| FilterError::Refused(Refusal { error: NbdError::Invalid, why });
        if header.length > BYTES_MAX || header.length < 12 || !header.length.is_multiple_of(4) {
            return Err(refused("length of the list of contexts"));
        }
        let payload = behind.get(..header.length as usize).ok_or(FilterError::NeedMore)?;
        let mut reader = Reader::new(payload);
        let mut filter = Filter { length: reader.u64().unwrap_or(0), contexts: ContextSet::default() };
        while let Some(id) = reader.u32() {
            filter.contexts = filter.contexts.with(id).ok_or(refused("number of a context"))?;
        }
        match filter.contexts.is_within(self.contexts) {
            true => Ok(Some(filter)),
            false => Err(refused("a context that was not selected")),
        }
    }

    fn check(&self, header: &RawRequest, filter: Option<Filter>) -> Result<Request, Refusal> {
        let command = Command::from_wire(header.command)
            .ok_or(Refusal { error: NbdError::Invalid, why: "unknown command" })?;
        let is_set = |flag: u16| header.flags & flag != 0;
        let request = Request {
            command,
            fua: is_set(command_flag::FUA),
            no_hole: is_set(command_flag::NO_HOLE),
            fast: is_set(command_flag::FAST_ZERO),
            df: is_set(command_flag::DF),
            req_one: is_set(command_flag::REQ_ONE),
            contexts: filter.map_or(self.contexts, |filter| filter.contexts),
            cookie: header.cookie,
            offset: header.offset,
            length: filter.map_or(header.length, |filter| filter.length),
        };
        if command == Command::Disconnect {
            // The client is leaving and reads no answer: whatever else it filled in does not matter.
            return Ok(Request::new(command, header.cookie, 0, 0));
        }
        if header.flags & !self.allowed_flags(command, filter.is_some()) != 0 {
            return Err(Refusal { error: NbdError::Invalid, why: "unknown flag for this command" });
        }
        if self.read_only && command.modifies() {
            return Err(Refusal { error: NbdError::NotPermitted, why: "the export is read-only" });
        }
        if command == Command::BlockStatus && self.contexts.is_empty() {
            return Err(Refusal { error: NbdError::Invalid, why: "no metadata context was selected" });
        }
        let request = match command {
            Command::BlockStatus => request,
            _ => Request { contexts: ContextSet::default(), ..request },
        };
        if command == Command::Flush {
            if (header.offset, header.length) != (0, 0) {
                return Err(Refusal { error: NbdError::Invalid, why: "flush takes no range" });
            }
            return Ok(request);
        }
        self.check_range(&request)?;
        Ok(request)
    }

    fn allowed_flags(&self, command: Command, is_filtered: bool) -> u16 {
        use command_flag::{DF, FAST_ZERO, FUA, NO_HOLE, PAYLOAD_LEN, REQ_ONE};
        // FUA is harmless where it means nothing, and common clients send it there.
        FUA | match command {
            Command::Read if self.framing != Framing::Simple => DF,
            Command::WriteZeroes if self.fast_zero => NO_HOLE | FAST_ZERO,
            Command::WriteZeroes => NO_HOLE,
            Command::Write if self.is_extended() => PAYLOAD_LEN,
            Command::BlockStatus if is_filtered => REQ_ONE | PAYLOAD_LEN,
            Command::BlockStatus => REQ_ONE,
            _ => 0,
        }
    }

    fn check_range(&self, request: &Request) -> Result<(), Refusal> {
        let Request { command, offset, length, .. } = *request;
        if length == 0 {
            return Err(Refusal { error: NbdError::Invalid, why: "length is zero" });
        }
        // Powers of two: one test covers offset and length.
        if (offset | length) & (u64::from(self.block_min_bytes) - 1) != 0 {
            return Err(Refusal { error: NbdError::Invalid, why: "not aligned to the minimum block" });
        }
        let inside = offset.checked_add(length).is_some_and(|end| end <= self.size_bytes);
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
            Some(error) if length > u64::from(self.block_max_bytes) => {
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

/// Which contexts of which length a question for block status is about.
#[derive(Clone, Copy)]
struct Filter {
    length: u64,
    contexts: ContextSet,
}

enum FilterError {
    NeedMore,
    Refused(Refusal),
}

struct RawRequest {
    magic: u32,
    flags: u16,
    command: u16,
    cookie: u64,
    offset: u64,
    length: u64,
}

impl RawRequest {
    /// A header, and what follows it.
    fn read(input: &[u8], is_extended: bool) -> Option<(Self, &[u8])> {
        let header_bytes = if is_extended { EXTENDED_HEADER_BYTES } else { REQUEST_HEADER_BYTES };
        let (header, behind) = input.split_at_checked(header_bytes)?;
        let mut reader = Reader::new(header);
        let request = Self {
            magic: reader.u32()?,
            flags: reader.u16()?,
            command: reader.u16()?,
            cookie: reader.u64()?,
            offset: reader.u64()?,
            length: if is_extended { reader.u64()? } else { u64::from(reader.u32()?) },
        };
        Some((request, behind))
    }
}

#[cfg(test)]
mod tests;
