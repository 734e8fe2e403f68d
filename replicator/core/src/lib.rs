//! The replication state machine of one resource on one node, as a pure function of its inputs.
//!
//! [`Node`] takes one [`Event`] at a time and answers with [`Action`]s; it owns every decision about replication
//! and performs no input or output. Time, randomness and identity are inputs, payload bytes stay in the shell's
//! slots, and each completion is reported exactly once, in any order. The shell (the engine, or the simulator):
//!
//! ```text
//! loop {
//!     node.handle(now, event);                        // exactly one input...
//!     while let Some(action) = node.poll_action() {   // ...then drain to None, executing as it goes:
//!         execute(action);                            // bytes of MetaWrite and Send are rendered at this moment
//!     }
//!     sleep until node.next_deadline(), then send Event::Tick
//! }
//! ```
//!
//! Orderings cited as "ordering N" are those of `docs/ARCHITECTURE.md`.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

extern crate alloc;

mod action;
mod checkpoint;
mod config;
mod event;
mod frame;
mod guess;
mod ids;
mod node;
mod overlap;
mod pace;
mod refusal;
mod rng;
mod slab;
mod snapshot;
mod status;
mod tail;
mod undurable;
mod verdict;

pub use action::{Action, CloseReason, ExportState, Failed, Notice};
pub use checkpoint::{CheckpointName, CheckpointView};
pub use config::{DIGEST_BYTES, NodeConfig, PIECE_BYTES_MAX, PeerConfig, Timing, UNIT_BYTES};
pub use event::{Command, DiskError, Event, LinkLoss, PeerHello, RequestKind, SyncOrder};
pub use frame::{FRAME_BYTES, Frame, FrameError};
pub use ids::{CommandId, Instant, LinkId, OpId, Position, ReqId, SlotId};
pub use node::{Deadline, NewDisk, Node, PEER_TASKS_MAX, TableBounds, declare_wrong};
pub use overlap::{Mode, Overlap};
pub use refusal::{Done, IoError, Refusal};
pub use snapshot::{Snapshot, SnapshotError};
pub use status::{
    CheckpointStatus, ConnectionState, DiskState, Moved, PeerStatus, ReplicationState, ResyncStatus, Role,
    Status,
};
pub use verdict::{Standstill, SyncWhy, Verdict, verdict};
