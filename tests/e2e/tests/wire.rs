//! The NBD specification, byte by byte over a socket: a test for every rule that binds a server.
//! `docs/CONFORMANCE.md` says which rule each of them holds.
//!
//! The bytes are written down from the specification, and the product's own encoding has no part in them. All of it is
//! one program, so that the test that waits for the end of a handshake waits beside the others.

#[path = "wire/contexts.rs"]
mod contexts;
#[path = "wire/disk.rs"]
mod disk;
#[path = "wire/extended.rs"]
mod extended;
#[path = "wire/handshake.rs"]
mod handshake;
#[path = "wire/limits.rs"]
mod limits;
#[path = "wire/refusals.rs"]
mod refusals;
#[path = "wire/shared.rs"]
mod shared;
#[path = "wire/transmission.rs"]
mod transmission;
