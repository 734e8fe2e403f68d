//! The shell around the core: the only code of Lockstep that talks to the kernel.
//!
//! A shard is a thread with a ring and with resources that are on no other one; no lock is taken on the data path. The
//! thread turns completions into events, feeds them to the cores, and executes the actions that come back. Invariants:
//! every operation submitted completes exactly once; a buffer is kept until the kernel is done with it; every
//! table has a bound, and whoever fills it waits while everyone else goes on. No decision about replication
//! is made here.
//!
//! `unsafe` lives in `ring` and `slots` only, each block with its proof.
#![deny(unsafe_code)]

mod access;
mod attach;
mod config;
mod congestion;
mod disk;
mod error;
mod fleet;
mod handle;
mod link;
mod memory;
mod meta;
mod nbd;
mod places;
mod report;
mod ring;
mod shard;
mod slab;
mod slots;
mod stock;
mod stream;
mod system;
mod tls;
mod token;

pub use access::{Access, NamePattern, Origin};
pub use config::{EngineConfig, Limits, Listener, NbdListener, PeerAddress, ResourceConfig};
pub use disk::{DeviceFacts, device_facts};
pub use error::{AttachError, StartError};
pub use handle::{CommandReply, Engine, EngineHandle, StatusReply, UnknownResource, UpReply};
pub use link::hello;
pub use lockstep_nbd::TlsPolicy;
pub use memory::MemoryBudget;
pub use meta::{create_metadata, read_metadata};
pub use report::{ClientInfo, MemoryReport, ResourceReport};
pub use tls::{Established, TlsConnection, TlsSession, TlsTerminator};
