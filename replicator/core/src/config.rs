//! What the core is told once, at construction.

use core::time::Duration;
use lockstep_bitmap::NodeId;

/// Pieces of requests and of resync never cross a multiple of this many bytes of the volume.
pub const PIECE_BYTES_MAX: u64 = 128 * 1024;
/// A resync piece is looked at in units of this many bytes from its begin: equal, zero, or to be copied.
pub const UNIT_BYTES: u64 = 4096;
/// Bytes of the digest of one unit.
pub const DIGEST_BYTES: usize = 16;

/// The peer of a resource.
#[derive(Clone, Copy, Debug)]
pub struct PeerConfig {
    /// Its id; equal on both nodes.
    pub node: NodeId,
}

/// Durations; the defaults are the product's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// A peer that was not heard for this long is dropped.
    pub timeout: Duration,
    /// Interval of heartbeats.
    pub heartbeat: Duration,
    /// Smallest wait before dialling again; doubles up to `redial_max`, with jitter.
    pub redial_min: Duration,
    /// Largest wait before dialling again.
    pub redial_max: Duration,
    /// The Primary makes replied writes durable after this time by itself.
    pub epoch: Duration,
    /// Suspended client I/O fails after this time.
    pub io_timeout: Duration,
    /// A disk that does not complete an operation for this long has failed; `None`: it is waited for.
    pub disk_timeout: Option<Duration>,
    /// Dirty bitmap pages and activity removals are written at most this often.
    pub lazy_write: Duration,
    /// Blocks that the source could not read are asked for again after this time.
    pub resync_retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            timeout: Duration::from_secs(6),
            heartbeat: Duration::from_secs(1),
            redial_min: Duration::from_millis(200),
            redial_max: Duration::from_secs(5),
            epoch: Duration::from_secs(1),
            io_timeout: Duration::from_secs(60),
            disk_timeout: None,
            lazy_write: Duration::from_millis(500),
            resync_retry: Duration::from_secs(60),
        }
    }
}

/// Identity, limits and durations of one resource on this node.
#[derive(Clone, Copy, Debug)]
pub struct NodeConfig {
    /// This node.
    pub node: NodeId,
    /// The peer, if one is configured.
    pub peer: Option<PeerConfig>,
    /// Random number of this daemon process.
    pub run_id: u128,
    /// Boot id of this kernel.
    pub boot_id: u128,
    /// Seed of the generation ids and of jitter; from the system's randomness in production.
    pub seed: [u64; 4],
    /// Logical block size of the local disk in bytes (512..=4096).
    pub granule_bytes: u32,
    /// "May be written" of a previous run with the same boot id does not make the copy unclean (O_DIRECT, tmpfs).
    pub survives_process_death: bool,
    /// Hash over a sample of the disk's blocks: two copies declared equal must agree on it (0: not taken).
    pub sample: u128,
    /// Pieces of trims and zeroes that may be in flight; pieces with a payload are bounded by the shell's slots.
    pub writes_max: usize,
    /// Replied writes that need not be durable yet; the Primary flushes before it is full.
    pub undurable_max: usize,
    /// Resync pieces in flight.
    pub resync_window: usize,
    /// Bytes of bitmap in one Bits frame (at most 64 KiB).
    pub bits_frame_bytes: usize,
    /// Durations.
    pub timing: Timing,
}

#[cfg(test)]
impl NodeConfig {
    /// Node 0 with small limits, for unit tests of a node by itself.
    pub(crate) fn of_a_test(peer: Option<PeerConfig>, bits_frame_bytes: usize) -> Self {
        NodeConfig {
            node: NodeId(0),
            peer,
            run_id: 1,
            boot_id: 1,
            seed: [1, 2, 3, 4],
            granule_bytes: 512,
            survives_process_death: true,
            sample: 0,
            writes_max: 8,
            undurable_max: 8,
            resync_window: 4,
            bits_frame_bytes,
            timing: Timing::default(),
        }
    }
}
