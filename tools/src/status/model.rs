//! The JSON document of `status`, schema 1.
//!
//! Rules of the schema: fields are added, never renamed or removed; bytes are integers; times are RFC 3339
//! in UTC; states are the words that the log uses; what is not known is null.

use serde::{Deserialize, Serialize};

/// Version of the schema of every JSON answer.
pub(crate) const SCHEMA: u32 = 1;

/// Answer of `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StatusDoc {
    /// [`SCHEMA`].
    pub(crate) schema: u32,
    /// Version of the daemon.
    pub(crate) version: String,
    /// Name of the cluster.
    pub(crate) cluster: String,
    /// The node that answers.
    pub(crate) node: String,
    /// Resources in the order of the configuration.
    pub(crate) resources: Vec<ResourceDoc>,
}

/// One resource as this node sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ResourceDoc {
    /// Its name.
    pub(crate) name: String,
    /// The node that answers.
    pub(crate) node: String,
    /// False after `down`: the fields of the running state have no meaning then.
    pub(crate) up: bool,
    /// Why the disk is not attached, if it should be.
    pub(crate) error: Option<String>,
    /// `Primary` or `Secondary`.
    pub(crate) role: String,
    /// State of this node's copy.
    pub(crate) disk: String,
    /// Current generation.
    pub(crate) generation: Option<GenerationDoc>,
    /// Raised at each promotion.
    pub(crate) term: u64,
    /// Both copies are UpToDate and mirrored.
    pub(crate) protected: bool,
    /// Why it is not protected; null if it is.
    pub(crate) not_protected_reason: Option<String>,
    /// Client I/O is held because no UpToDate copy can be reached.
    pub(crate) suspended: bool,
    /// The copy stopped uncleanly, and no verdict has settled that yet.
    pub(crate) unclean: bool,
    /// A role change is under way.
    pub(crate) changing_role: bool,
    /// An operator has paused resync on this node.
    pub(crate) sync_paused: bool,
    /// An operator's limit for resync on this node, bytes per second.
    pub(crate) sync_rate: Option<u64>,
    /// What an operator wants for resync on this node at least, bytes per second.
    pub(crate) sync_min_rate: Option<u64>,
    /// Size of the volume.
    pub(crate) size_bytes: u64,
    /// Clients of the export.
    pub(crate) clients: Vec<ClientDoc>,
    /// Requests not yet answered.
    pub(crate) requests: u32,
    /// Writes answered and not yet durable on both copies.
    pub(crate) undurable_writes: u32,
    /// Hot regions of the activity map.
    pub(crate) hot_regions: u32,
    /// Their bound.
    pub(crate) hot_regions_max: u32,
    /// Bytes of one region.
    pub(crate) region_bytes: u64,
    /// Where clients of this node connect, one address per listener.
    pub(crate) uris: Vec<String>,
    /// Device or file of this node.
    pub(crate) disk_path: String,
    /// How it is used, in words.
    pub(crate) disk_mode: Option<String>,
    /// Metadata file of this node.
    pub(crate) meta_path: String,
    /// What it takes.
    pub(crate) memory: MemoryDoc,
    /// Why the core wakes next, for debugging.
    pub(crate) next_deadline: Option<String>,
    /// The peers.
    pub(crate) peers: Vec<PeerDoc>,
    /// Checkpoints for incremental backups.
    #[serde(default)]
    pub(crate) checkpoints: Vec<CheckpointDoc>,
}

/// A checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct CheckpointDoc {
    /// Its name.
    pub(crate) name: String,
    /// 32 hexadecimal digits, the same on both nodes.
    pub(crate) id: String,
    /// When it was created.
    pub(crate) created: String,
    /// Bytes of the blocks that may have been written since.
    pub(crate) changed_bytes: u64,
    /// `complete`, `incomplete`, `invalid`: only the first can be read.
    pub(crate) state: String,
    /// Why it is not complete.
    pub(crate) reason: Option<String>,
    /// The peer has it, too, as far as is known.
    pub(crate) on_peer: bool,
}

/// A generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct GenerationDoc {
    /// 32 hexadecimal digits.
    pub(crate) id: String,
    /// Number for people.
    pub(crate) ordinal: u64,
    /// When it began.
    pub(crate) began: String,
    /// The node on which it began.
    pub(crate) node: String,
}

/// A client of the export.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ClientDoc {
    /// Address, or socket path and process.
    pub(crate) address: String,
    /// Since when.
    pub(crate) since: String,
}

/// Memory of a resource.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct MemoryDoc {
    /// Of payloads, at most; it is taken as it comes into use.
    pub(crate) reserved_bytes: u64,
    /// Of bitmaps and the activity map, at most; 0 without a disk.
    #[serde(default)]
    pub(crate) bitmaps_bytes: u64,
    /// Buffers in use.
    pub(crate) slots_in_use: u32,
    /// Buffers in all.
    pub(crate) slots: u32,
}

/// A peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PeerDoc {
    /// Its name.
    pub(crate) name: String,
    /// Its node id.
    pub(crate) id: u8,
    /// Its replication address.
    pub(crate) address: String,
    /// `StandAlone`, `Connecting`, `Negotiating`, `Connected`.
    pub(crate) connection: String,
    /// What the link is used for.
    pub(crate) replication: String,
    /// Its role, while connected.
    pub(crate) role: Option<String>,
    /// Its disk state, as far as known.
    pub(crate) disk: Option<String>,
    /// Bytes marked dirty toward it.
    pub(crate) out_of_sync_bytes: u64,
    /// Since when the connection is up or away.
    pub(crate) since: String,
    /// Why the last link ended, or could not be made.
    pub(crate) link_error: Option<String>,
    /// A resync that runs.
    pub(crate) resync: Option<ResyncDoc>,
    /// Bytes that resync brought into line in this daemon's life, copied or not.
    pub(crate) resynced_bytes_total: u64,
    /// Where histories parted.
    pub(crate) split_brain: Option<SplitBrainDoc>,
    /// Where clients of that node connect, by the configuration.
    pub(crate) uris: Vec<String>,
}

/// A resync.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ResyncDoc {
    /// Name of the source.
    pub(crate) source: String,
    /// Name of the target.
    pub(crate) target: String,
    /// Bytes done.
    pub(crate) done_bytes: u64,
    /// Bytes done and left.
    pub(crate) total_bytes: u64,
    /// Bytes per second.
    pub(crate) rate: u64,
    /// Seconds left at that rate, if it moves.
    pub(crate) eta_s: Option<u64>,
    /// Since when it runs.
    pub(crate) since: String,
    /// Bytes per second that it may reach now: orders of operators, and the latency of clients' writes.
    pub(crate) limit: Option<u64>,
    /// An operator of the peer has paused it.
    pub(crate) paused_by_peer: bool,
    /// Bytes that travelled.
    pub(crate) copied_bytes: u64,
    /// Bytes that were equal on both sides.
    pub(crate) equal_bytes: u64,
    /// Bytes that are zero at the source; holes at the target.
    pub(crate) zero_bytes: u64,
    /// Bytes that the source cannot read.
    pub(crate) unreadable_bytes: u64,
    /// Where the first of them are.
    pub(crate) unreadable: Vec<RangeDoc>,
    /// Only those are left; they are tried again after a while.
    pub(crate) incomplete: bool,
}

/// A range of the volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RangeDoc {
    /// First byte.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) length: u64,
}

/// Two histories.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SplitBrainDoc {
    /// Since when this node has been writing alone.
    pub(crate) since: Option<String>,
    /// What it wrote since, rounded out to blocks.
    pub(crate) bytes: u64,
    /// Since when the peer has.
    pub(crate) peer_since: Option<String>,
    /// What the peer wrote.
    pub(crate) peer_bytes: Option<u64>,
}
