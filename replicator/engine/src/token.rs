//! What a completion belongs to.
//!
//! Tables keep an entry until the last operation that names it has completed, so an index in a token never
//! means something newer than what it was made for.

/// Owner of an operation in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// The queue of the control plane has something.
    Wake,
    /// A listener took a connection.
    Accept(u16),
    /// A client sent something.
    ClientReceived(u32),
    /// A message to a client is out.
    ClientSent(u32),
    /// A link's socket is connected.
    LinkConnected(u32),
    /// A peer sent something.
    LinkReceived(u32),
    /// A message to a peer is out.
    LinkSent(u32),
    /// A part of a disk or metadata job ended.
    Storage {
        /// Index of the resource.
        resource: u16,
        /// Index of its job.
        job: u32,
    },
    /// The ring is being closed.
    Close,
}

/// The ring of a shard.
pub(crate) type Io = crate::ring::Ring<Token>;
