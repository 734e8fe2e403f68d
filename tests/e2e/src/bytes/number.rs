//! The numbers of the NBD wire, as the specification gives them: written down once more, so that a wrong number in the
//! product is not repeated in its tests.

/// Handshake: the two magic numbers of the greeting, and that of option replies.
pub mod magic {
    /// `NBDMAGIC`.
    pub const GREETING: u64 = 0x4e42_444d_4147_4943;
    /// `IHAVEOPT`.
    pub const OPTION: u64 = 0x4948_4156_454f_5054;
    /// Of a reply to an option.
    pub const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
    /// Of a request.
    pub const REQUEST: u32 = 0x2560_9513;
    /// Of a request with 64 bits of length.
    pub const EXTENDED_REQUEST: u32 = 0x21e4_1c71;
    /// Of a simple reply.
    pub const SIMPLE_REPLY: u32 = 0x6744_6698;
    /// Of a chunk.
    pub const STRUCTURED_REPLY: u32 = 0x668e_33ef;
    /// Of a chunk on a connection with extended headers.
    pub const EXTENDED_REPLY: u32 = 0x6e8a_278c;
}

/// Flags of the greeting and of the client's answer: the same two bits.
pub mod hello {
    /// Fixed newstyle.
    pub const FIXED: u32 = 1;
    /// No zeroes behind the answer to EXPORT_NAME.
    pub const NO_ZEROES: u32 = 2;
}

/// Options.
pub mod opt {
    /// Choose an export and go on; it cannot be refused but by closing.
    pub const EXPORT_NAME: u32 = 1;
    /// Say goodbye.
    pub const ABORT: u32 = 2;
    /// Names of the exports.
    pub const LIST: u32 = 3;
    /// Withdrawn.
    pub const PEEK_EXPORT: u32 = 4;
    /// Encrypt from here on.
    pub const STARTTLS: u32 = 5;
    /// Facts about an export.
    pub const INFO: u32 = 6;
    /// Choose an export and go on.
    pub const GO: u32 = 7;
    /// Answer reads in chunks.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Which metadata contexts there are.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Select metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
    /// Lengths of 64 bits.
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Types of option replies.
pub mod rep {
    /// Done.
    pub const ACK: u32 = 1;
    /// One export.
    pub const SERVER: u32 = 2;
    /// One fact.
    pub const INFO: u32 = 3;
    /// One metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// All errors have it.
    pub const ERROR: u32 = 1 << 31;
    /// Unknown option.
    pub const ERR_UNSUP: u32 = ERROR + 1;
    /// Not allowed.
    pub const ERR_POLICY: u32 = ERROR + 2;
    /// Malformed.
    pub const ERR_INVALID: u32 = ERROR + 3;
    /// Only with TLS.
    pub const ERR_TLS_REQD: u32 = ERROR + 5;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = ERROR + 6;
    /// Going down.
    pub const ERR_SHUTDOWN: u32 = ERROR + 7;
    /// Too much.
    pub const ERR_TOO_BIG: u32 = ERROR + 9;
    /// Only with, or not with, extended headers.
    pub const ERR_EXT_HEADER_REQD: u32 = ERROR + 10;
}

/// Facts that INFO and GO ask for.
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// Canonical name.
    pub const NAME: u16 = 1;
    /// Words for people.
    pub const DESCRIPTION: u16 = 2;
    /// Sizes of requests.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags.
pub mod flag {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1;
    /// No writes.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH is understood.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// FUA is understood.
    pub const SEND_FUA: u16 = 1 << 3;
    /// TRIM is understood.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// WRITE_ZEROES is understood.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// DF is understood.
    pub const SEND_DF: u16 = 1 << 7;
    /// One cache for all connections.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// CACHE is understood.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// FAST_ZERO is understood.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
    /// BLOCK_STATUS takes a list of contexts.
    pub const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

/// Commands.
pub mod cmd {
    /// Read.
    pub const READ: u16 = 0;
    /// Write; a payload follows.
    pub const WRITE: u16 = 1;
    /// Goodbye.
    pub const DISC: u16 = 2;
    /// Make durable.
    pub const FLUSH: u16 = 3;
    /// Not needed any more.
    pub const TRIM: u16 = 4;
    /// Needed soon.
    pub const CACHE: u16 = 5;
    /// Zeroes.
    pub const WRITE_ZEROES: u16 = 6;
    /// Extents of the selected contexts.
    pub const BLOCK_STATUS: u16 = 7;
    /// Of an extension that is not served.
    pub const RESIZE: u16 = 8;
}

/// Command flags.
pub mod with {
    /// Durable before the reply.
    pub const FUA: u16 = 1;
    /// WRITE_ZEROES: no hole.
    pub const NO_HOLE: u16 = 1 << 1;
    /// READ: one content chunk.
    pub const DF: u16 = 1 << 2;
    /// BLOCK_STATUS: one extent.
    pub const REQ_ONE: u16 = 1 << 3;
    /// WRITE_ZEROES: fast, or not at all.
    pub const FAST_ZERO: u16 = 1 << 4;
    /// The length is that of a payload.
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Types of chunks; and the flag of the last one.
pub mod chunk {
    /// The last chunk of a reply.
    pub const DONE: u16 = 1;
    /// No more.
    pub const NONE: u16 = 0;
    /// Data.
    pub const OFFSET_DATA: u16 = 1;
    /// Zeroes.
    pub const OFFSET_HOLE: u16 = 2;
    /// Extents.
    pub const BLOCK_STATUS: u16 = 5;
    /// Extents with lengths of 64 bits.
    pub const BLOCK_STATUS_EXT: u16 = 6;
    /// A failure.
    pub const ERROR: u16 = (1 << 15) + 1;
    /// A failure at a place.
    pub const ERROR_OFFSET: u16 = (1 << 15) + 2;
}

/// Errors.
pub mod errno {
    /// Not permitted.
    pub const EPERM: u32 = 1;
    /// Input or output failed.
    pub const EIO: u32 = 5;
    /// No memory.
    pub const ENOMEM: u32 = 12;
    /// Wrong.
    pub const EINVAL: u32 = 22;
    /// No room.
    pub const ENOSPC: u32 = 28;
    /// Too large.
    pub const EOVERFLOW: u32 = 75;
    /// Not that way.
    pub const ENOTSUP: u32 = 95;
    /// Going down.
    pub const ESHUTDOWN: u32 = 108;
}
