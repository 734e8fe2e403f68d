//! What an operator sees of a resource: states in the field's words, and the snapshot that `status` shows.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use lockstep_bitmap::{CheckpointId, CheckpointState, Generation, NodeId};

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $($name::$variant => stringify!($variant)),+ })
            }
        }
        impl $name {
            /// From its number in [`Self::code`].
            pub fn from_code(code: u8) -> Option<Self> {
                [$($name::$variant),+].into_iter().find(|v| v.code() == code)
            }
            /// Its number on the wire.
            pub fn code(self) -> u8 {
                self as u8
            }
        }
    };
}

words!(
    /// Who may write.
    Role {
        /// Serves no clients.
        Secondary,
        /// Serves clients.
        Primary,
    }
);
words!(
    /// State of a copy, from worst to best.
    DiskState {
        /// No disk or no metadata.
        Diskless,
        /// The disk failed; nothing is written to it any more.
        Failed,
        /// A mixture: target of a resync, or fresh.
        Inconsistent,
        /// A consistent copy of an older moment.
        Outdated,
        /// Consistent; whether it is the newest is not known.
        Consistent,
        /// Holds every acknowledged write.
        UpToDate,
    }
);
words!(
    /// State of the connection.
    ConnectionState {
        /// The operator disconnected, or no peer is configured.
        StandAlone,
        /// Trying.
        Connecting,
        /// A link is up and authenticated; snapshots and verdicts are exchanged.
        Negotiating,
        /// The handshake ended with a verdict.
        Connected,
    }
);
words!(
    /// What the link is used for.
    ReplicationState {
        /// Nothing is replicated.
        Off,
        /// Writes are mirrored, both copies are equal.
        Established,
        /// Bitmaps are being exchanged.
        Exchanging,
        /// Writes are mirrored and this node's dirty blocks are copied to the peer.
        SyncSource,
        /// Writes are mirrored and dirty blocks are copied from the peer.
        SyncTarget,
        /// As SyncSource, paused by an operator of either side.
        PausedSource,
        /// As SyncTarget, paused by an operator of either side.
        PausedTarget,
        /// Both sides wrote alone: the operator must choose.
        SplitBrain,
        /// The copies have nothing in common.
        Unrelated,
        /// The target would be a Primary whose copy is UpToDate: demote it first.
        TargetIsPrimary,
        /// Neither copy can be the source: the operator must name one.
        NoSource,
    }
);

/// What a resync did with the bytes that it looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Travelled.
    pub copied_bytes: u64,
    /// Were zero at the source: a hole was punched at the target.
    pub zero_bytes: u64,
    /// Were equal on both sides.
    pub equal_bytes: u64,
}

impl Moved {
    /// All of them.
    pub fn total_bytes(&self) -> u64 {
        self.copied_bytes + self.zero_bytes + self.equal_bytes
    }
}

/// A resync's progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResyncStatus {
    /// Bytes done and left.
    pub total_bytes: u64,
    /// Bytes still dirty.
    pub left_bytes: u64,
    /// Bytes per second over the last seconds, whatever was done with them.
    pub rate_bytes_per_s: u64,
    /// Seconds left at that rate, if it moves.
    pub eta_s: Option<u64>,
    /// Milliseconds since it began.
    pub running_ms: u64,
    /// Bytes per second that it may reach: what the operators of both sides say, and the latency of clients' writes.
    pub limit_bytes_per_s: Option<u64>,
    /// The peer's operator has paused it.
    pub paused_by_peer: bool,
    /// What was done with the bytes.
    pub moved: Moved,
    /// Bytes that the source could not read.
    pub unreadable_bytes: u64,
    /// Where the first of them are: offset and length in bytes.
    pub unreadable: Vec<(u64, u64)>,
    /// Only what cannot be read is left: it is tried again after a while.
    pub incomplete: bool,
}

/// What is known of the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its id.
    pub node: NodeId,
    /// State of the connection to it.
    pub connection: ConnectionState,
    /// What the link is used for.
    pub replication: ReplicationState,
    /// Its role, while connected.
    pub role: Option<Role>,
    /// Its disk state; the durable record's word for it while not connected, if it has one.
    pub disk: Option<DiskState>,
    /// Bytes of blocks marked dirty toward it.
    pub out_of_sync_bytes: u64,
    /// Resync, while one runs.
    pub resync: Option<ResyncStatus>,
    /// Bytes that resync brought into line over this daemon's life, copied or not.
    pub resynced_bytes_total: u64,
    /// Begin of the first generation that only this side has, if the histories parted.
    pub alone_since_unix_ms: Option<u64>,
    /// The peer's own begin and its dirty bytes, as its snapshot told, if the histories parted.
    pub peer_alone_since_unix_ms: Option<u64>,
    /// Bytes that the peer wrote alone, as its snapshot told.
    pub peer_out_of_sync_bytes: Option<u64>,
    /// Milliseconds since the connection was lost or made.
    pub since_ms: u64,
}

/// A checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointStatus {
    /// Its random name, the same on both nodes.
    pub id: CheckpointId,
    /// Its name.
    pub name: String,
    /// When it was created, milliseconds since 1970.
    pub created_unix_ms: u64,
    /// What it is worth here.
    pub state: CheckpointState,
    /// Bytes of the blocks that may have been written since.
    pub changed_bytes: u64,
    /// The peer has it, too, as far as was heard of it since this daemon started.
    pub is_at_peer: bool,
}

/// A resource as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// This node.
    pub node: NodeId,
    /// Its role.
    pub role: Role,
    /// Its disk state.
    pub disk: DiskState,
    /// Current generation.
    pub generation: Option<Generation>,
    /// Current term.
    pub term: u64,
    /// The copy stopped uncleanly and no verdict has settled it yet.
    pub unclean: bool,
    /// A role change is under way.
    pub changing_role: bool,
    /// Client I/O waits because no UpToDate copy is reachable.
    pub suspended: bool,
    /// Both copies are UpToDate and mirrored.
    pub protected: bool,
    /// The operator has paused resync here.
    pub sync_paused: bool,
    /// The operator's limit for resync here, in bytes per second.
    pub sync_rate: Option<u64>,
    /// What the operator wants for resync here at least, in bytes per second.
    pub sync_least: Option<u64>,
    /// Open clients.
    pub clients: u32,
    /// Requests not yet answered.
    pub requests: u32,
    /// Hot regions of the activity map, and the bound.
    pub hot_regions: u32,
    /// Bound of hot regions.
    pub hot_regions_max: u32,
    /// Size of the volume in bytes (0 while Diskless).
    pub size_bytes: u64,
    /// Writes replied to and not yet durable on both copies.
    pub undurable_writes: u32,
    /// The peers.
    pub peers: Vec<PeerStatus>,
    /// The checkpoints.
    pub checkpoints: Vec<CheckpointStatus>,
    /// Why the core will wake next, for debugging.
    pub next_deadline: Option<&'static str>,
}
