//! The errors of the protocol: those with a value on the wire, and those that end a connection.
//!
//! Wire values are fixed by the specification and independent of the host's errno numbers.

use thiserror::Error;

/// An error that a request can be answered with.
#[derive(Clone, Copy, Debug, Eq, Error, Hash, PartialEq)]
pub enum NbdError {
    /// Write, trim or zero on a read-only export.
    #[error("operation not permitted")]
    NotPermitted,
    /// The copies could not do it.
    #[error("input/output error")]
    Io,
    /// Out of memory; the server side has fixed pools and does not use it.
    #[error("cannot allocate memory")]
    NoMemory,
    /// Unknown command or flag, zero length, misaligned, or a range that ends past the export.
    #[error("invalid argument")]
    Invalid,
    /// Write or zero past the end of the export.
    #[error("no space left on device")]
    NoSpace,
    /// A reply that would be larger than allowed.
    #[error("value too large")]
    Overflow,
    /// A fast zero that would not be fast.
    #[error("operation not supported")]
    NotSupported,
    /// The server is stopping; the client must disconnect.
    #[error("server is shutting down")]
    Shutdown,
}

impl NbdError {
    /// The value in the error field of a reply; never 0.
    pub const fn to_wire(self) -> u32 {
        match self {
            Self::NotPermitted => 1,
            Self::Io => 5,
            Self::NoMemory => 12,
            Self::Invalid => 22,
            Self::NoSpace => 28,
            Self::Overflow => 75,
            Self::NotSupported => 95,
            Self::Shutdown => 108,
        }
    }

    /// Reads an error field; `None` is success. A value that the specification does not name counts as
    /// `Invalid`, as it asks of clients.
    pub const fn from_wire(value: u32) -> Option<Self> {
        match value {
            0 => None,
            1 => Some(Self::NotPermitted),
            5 => Some(Self::Io),
            12 => Some(Self::NoMemory),
            28 => Some(Self::NoSpace),
            75 => Some(Self::Overflow),
            95 => Some(Self::NotSupported),
            108 => Some(Self::Shutdown),
            _ => Some(Self::Invalid),
        }
    }
}

/// Why a handshake cannot go on: the client broke the protocol or a limit. The connection must be closed.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum HandshakeError {
    /// The client set flags that no specification gives a meaning.
    #[error("unknown client flags {0:#010x}")]
    UnknownClientFlags(u32),
    /// An option did not begin with the option magic.
    #[error("bad option magic {0:#018x}")]
    BadOptionMagic(u64),
    /// An option announced more data than the limit.
    #[error("option {option} announces {length_bytes} bytes of data")]
    OptionTooLong {
        /// Option number.
        option: u32,
        /// Announced length of its data.
        length_bytes: u32,
    },
    /// More options than the limit.
    #[error("more than {0} options in one handshake")]
    TooManyOptions(u32),
    /// A client without fixed newstyle may send only EXPORT_NAME: it could not parse an option reply.
    #[error("option {0} from a client without fixed newstyle")]
    OptionNeedsFixedNewstyle(u32),
}

/// Why a stream of requests cannot be followed any further. The connection must be closed.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum ProtocolError {
    /// A request did not begin with the request magic.
    #[error("bad request magic {0:#010x}")]
    BadRequestMagic(u32),
    /// A request announced more payload than the server is willing to read and throw away.
    #[error("payload of {0} bytes")]
    PayloadTooLong(u64),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_values_are_those_of_the_specification() {
        let table = [
            (NbdError::NotPermitted, 1),
            (NbdError::Io, 5),
            (NbdError::NoMemory, 12),
            (NbdError::Invalid, 22),
            (NbdError::NoSpace, 28),
            (NbdError::Overflow, 75),
            (NbdError::NotSupported, 95),
            (NbdError::Shutdown, 108),
        ];
        for (error, value) in table {
            assert_eq!(error.to_wire(), value);
            assert_eq!(NbdError::from_wire(value), Some(error));
        }
        assert_eq!(NbdError::from_wire(0), None);
        assert_eq!(NbdError::from_wire(4242), Some(NbdError::Invalid));
    }
}
