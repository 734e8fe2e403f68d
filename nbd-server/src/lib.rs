//! The NBD protocol (fixed newstyle, with extended headers) as state machines without I/O, clock or threads.
//!
//! The caller owns sockets, buffers and timers. A server connection goes through two machines:
//!
//! 1. [`Negotiation`]: send [`Negotiation::greeting`], then alternate `receive` (bytes in) and `poll`
//!    (bytes out) until it says [`Step::Transmission`] or [`Step::Close`]; at [`Step::StartTls`] the caller
//!    begins TLS, and goes on inside of it.
//! 2. [`RequestParser`]: `next` on the received bytes, one request per call; answers come from [`ReplyTo`] and
//!    [`put_status`].
//!
//! [`client`] holds the other side of the same wire, for the demo, the tests and the tools.
//!
//! Invariants: nothing outside is trusted (every length is bounded before it is believed, no input panics),
//! no call consumes more than it was given, and memory grows only with bytes that really arrived. Nothing
//! here decides what a write means or when it may be answered: that is the engine's and the core's job.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod client;
mod errors;
mod export;
mod negotiate;
pub mod reply;
mod request;
mod status;
mod wire;

pub use errors::{HandshakeError, NbdError, ProtocolError};
pub use export::{BlockSizes, ExportDirectory, ExportInfo, Lookup};
pub use negotiate::{Limits, Negotiation, Step, TlsPolicy, Transmission};
pub use reply::{Framing, ReplyHeader, ReplyTo};
pub use request::{Command, PAYLOAD_BYTES_MAX, Parsed, REQUEST_HEADER_BYTES, Request, RequestParser};
pub use status::{
    ALLOCATION_CONTEXT, ALLOCATION_HOLE, ALLOCATION_ZERO, CONTEXTS_MAX, ContextSet, EXTENTS_MAX, Extent,
    Extents, put_status,
};
