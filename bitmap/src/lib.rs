//! Which blocks of a volume may differ between its copies, and how that is kept on disk.
//!
//! Pure: no clock, no I/O, no threads. Bytes come in and go out through the caller.
//!
//! Invariants: a block that may differ is in the dirty bitmap of a slot or in the activity map, on disk, at
//! every instant at which the orderings of the design promise it. Damage in the metadata makes more blocks
//! dirty or is refused; it never makes fewer blocks dirty. Every byte read from disk or from a peer is
//! checked before use.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

extern crate alloc;

#[cfg(test)]
extern crate std;

mod activity;
pub mod canary;
mod checkpoint;
mod dirty;
mod geometry;
pub mod marks;
mod meta;
mod recover;
mod store;
mod superblock;

pub use activity::{Acquire, ActivityMap};
pub use checkpoint::{
    CHECKPOINT_BYTES, CHECKPOINTS_MAX, Checkpoint, CheckpointId, CheckpointRecord, CheckpointState,
    DEFAULT_CHECKPOINTS, Incomplete, Invalid, checkpoint_slot,
};
pub use dirty::{DirtyBitmap, PageBits};
pub use geometry::{
    BlockIndex, BlockRange, ByteRange, DEFAULT_REGION_SHIFT, Geometry, GeometryError, NodeId, RegionIndex,
};
pub use meta::{
    Area, AreaKind, BITS_PER_PAGE, FORMAT_VERSION, Layout, LayoutError, Locations, MAX_PEERS, MetaPage,
    PAGE_BYTES, PAGE_HEADER_BYTES, PAGE_PAYLOAD_BYTES, PageError, PageHeader, PageKind, SUPERBLOCK_BYTES,
    crc32c, decode_page, encode_page,
};
pub use recover::{Findings, ReadFn, RecoverError, recover};
pub use store::{CreateParams, Slot, Store, create, initial_pages};
pub use superblock::{
    Base, Becoming, CopyRank, DeviceIdentity, FailureRecord, Generation, GenerationId, GenerationLog,
    Identity, MAX_GENERATIONS, NAME_BYTES_MAX, Origin, PeerCopy, PeerRecord, Superblock, SuperblockError,
};
