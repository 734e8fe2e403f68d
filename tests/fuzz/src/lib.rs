//! Bodies of the fuzz targets: each takes any bytes, and panics where something does not hold.
//!
//! A body is a plain function, so that the same code runs under the fuzzer (`targets/`), and under `cargo test` over
//! the corpus that is kept and over inputs made here (`tests/corpora.rs`). What each asserts stands at the head of its
//! file; "no panic" is always among it, with debug assertions and overflow checks on.
#![forbid(unsafe_code)]

mod frames;
mod hello;
mod input;
mod metadata;
mod models;
pub mod mutate;
mod nbd;
mod peer;
mod written;

pub use nbd::session::stream as nbd_stream;

/// One thing that is fuzzed.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// Looks at one input.
    pub run: fn(&[u8]),
}

macro_rules! targets {
    ($($(#[$doc:meta])* $name:ident => $body:path),+ $(,)?) => {
        $($(#[$doc])* pub fn $name(data: &[u8]) { $body(data) })+

        /// All of them.
        pub const TARGETS: &[Target] = &[$(Target { name: stringify!($name), run: $name }),+];
    };
}

targets! {
    /// The server's side of the NBD handshake.
    nbd_negotiation => nbd::negotiation,
    /// Requests of NBD clients.
    nbd_transmission => nbd::transmission,
    /// Whole sessions of NBD clients, well-formed and changed.
    nbd_session => nbd::session::session,
    /// The client's side of NBD.
    nbd_client => nbd::client,
    /// Headers of frames between peers.
    peer_frames => frames::headers,
    /// Snapshots of peers, and the verdict over two of them.
    peer_snapshots => frames::snapshots,
    /// The first exchange between nodes.
    peer_hello => hello::exchange,
    /// A node whose peer sends it anything.
    peer_node => peer::node,
    /// The configuration file.
    config => written::config,
    /// Verbs and bodies of the control API.
    control => written::control,
    /// Recovery of a damaged metadata file.
    metadata => metadata::metadata,
    /// The dirty bitmap against a model.
    dirty_bitmap => models::dirty_bitmap,
    /// The activity map against a model.
    activity_map => models::activity_map,
    /// The overlap lock against a model.
    overlap_lock => models::overlap_lock,
    /// The generation log against a model.
    generation_log => models::generation_log,
}
