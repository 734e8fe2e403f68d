//! What the server offers: one export's description, and the directory that finds exports by name.
//!
//! The directory belongs to the engine. Its answers are taken at the moment a client asks, so that a role
//! change or a grown volume is seen by the next handshake; a running connection keeps what it was told.

use alloc::string::String;
use alloc::vec::Vec;

use crate::reply::Framing;
use crate::wire::transmission_flag;

/// Request sizes of an export, in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BlockSizes {
    /// Offsets and lengths are multiples of it: a power of two from 1 to 64 KiB.
    pub min: u32,
    /// What is fast: a power of two, at least 512 and at least `min`.
    pub preferred: u32,
    /// Largest read or write: a multiple of `min`, at least `preferred`. Trim, zero and cache are not bound
    /// by it.
    pub max: u32,
}

impl Default for BlockSizes {
    /// Byte granularity, 4 KiB preferred, 32 MiB at most: what clients assume when nothing is negotiated.
    fn default() -> Self {
        Self { min: 1, preferred: 4096, max: 32 << 20 }
    }
}

impl BlockSizes {
    /// Whether the three sizes keep the rules that the specification sets, with a `max` that a client may
    /// exceed without being cut off.
    pub const fn is_valid(&self) -> bool {
        self.min.is_power_of_two()
            && self.min <= 64 << 10
            && self.preferred.is_power_of_two()
            && self.preferred >= 512
            && self.preferred >= self.min
            && self.max >= self.preferred
            && self.max <= crate::PAYLOAD_BYTES_MAX
            && self.max.is_multiple_of(self.min)
    }
}

/// One export as a client may see it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ExportInfo {
    /// Canonical name; at most 4096 bytes.
    pub name: String,
    /// For humans; cut at 4096 bytes on the wire.
    pub description: String,
    /// Size in bytes, a multiple of `block.min`.
    pub size_bytes: u64,
    /// Whether writes are answered with `NotPermitted`.
    pub read_only: bool,
    /// Request sizes.
    pub block: BlockSizes,
    /// Whether the backing device has seek times.
    pub rotational: bool,
    /// Whether a flush on one connection covers the writes answered on all.
    pub multi_conn: bool,
    /// Whether a client may ask for zeroes on condition that they are faster than a write of them.
    pub fast_zero: bool,
    /// Names of the metadata contexts that can be asked for, `namespace:leaf`; at most
    /// [`CONTEXTS_MAX`](crate::CONTEXTS_MAX) of them are used.
    pub contexts: Vec<String>,
}

impl ExportInfo {
    /// The transmission flags of this export on a connection that negotiated such replies, and metadata
    /// contexts or not.
    pub(crate) fn transmission_flags(&self, framing: Framing, has_contexts: bool) -> u16 {
        use transmission_flag as flag;
        let mut flags = flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA | flag::SEND_CACHE;
        if self.read_only {
            flags |= flag::READ_ONLY;
        } else {
            flags |= flag::SEND_TRIM | flag::SEND_WRITE_ZEROES;
            if self.fast_zero {
                flags |= flag::SEND_FAST_ZERO;
            }
        }
        if self.rotational {
            flags |= flag::ROTATIONAL;
        }
        if self.multi_conn {
            flags |= flag::CAN_MULTI_CONN;
        }
        if framing != Framing::Simple {
            flags |= flag::SEND_DF;
        }
        if framing == Framing::Extended && has_contexts {
            flags |= flag::BLOCK_STATUS_PAYLOAD;
        }
        flags
    }
}

/// Answer of the directory.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Lookup {
    /// Serve this.
    Found(ExportInfo),
    /// No export of this name, as far as this client may know.
    Unknown,
    /// This client may open it inside of TLS only, and is not.
    TlsRequired,
    /// It exists, but not for this client or not on this node now; the reason is shown to the client.
    Refused {
        /// For humans.
        reason: String,
    },
    /// A role change is under way: keep the client waiting and ask again later.
    NotReady,
}

/// Finds exports by name, for one client.
pub trait ExportDirectory {
    /// Names shown to a client that asks for the list: of what it may open as it is, with or without TLS.
    fn list(&self) -> Vec<String>;

    /// Looks up a name. The empty name means the only export, where there is exactly one.
    fn find(&self, name: &str) -> Lookup;

    /// Whether the server is going down: clients are told so, and nothing else.
    fn is_stopping(&self) -> bool {
        false
    }
}
