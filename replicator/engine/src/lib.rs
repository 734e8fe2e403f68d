#![deny(unsafe_code)]
#![allow(dead_code, unused_imports, missing_docs, unreachable_pub)]
mod attach;
mod config;
mod disk;
mod error;
mod meta;
mod report;
mod ring;
mod slab;
mod slots;
mod system;
mod token;
mod link;
pub use config::{EngineConfig, Limits, Listener, PeerAddress, ResourceConfig};
pub use disk::{DeviceFacts, device_facts};
pub use error::{AttachError, StartError};
pub use meta::{create_metadata, read_metadata};
pub use report::{ClientInfo, MemoryReport, ResourceReport};
