//! What a daemon takes of memory at most, computed from its configuration before it takes any.
//!
//! Every queue and table has a bound (docs/ARCHITECTURE.md, "Queues and their bounds"); this adds them up. A
//! table is counted as full and as large as it may have grown, so a daemon stays below the figure whatever its
//! clients and its peer do. What the kernel keeps for sockets and rings is not counted.

use std::fmt;

use lockstep_bitmap::{Geometry, Store};
use lockstep_core::TableBounds;

use crate::config::Limits;
use crate::disk::Storage;
use crate::link;
use crate::nbd;
use crate::ring::MESSAGE_MEMORY_BYTES;
use crate::shard::{Pools, RESYNC_WINDOW, STATUS_MEMORY_BYTES, UNDURABLE_MAX, WRITES_MAX};
use crate::slots::{Arena, PoolSize};
use crate::stock::MESSAGES_KEPT;

/// Code, stacks, the control plane, and what the allocator keeps for itself.
const PROGRAM_BYTES: u64 = 32 << 20;
/// What each shard but the first has beside its share of the rest: a stack, tables of operations, lists.
const SHARD_BYTES: usize = 4 << 20;
/// A connection in a shard's table.
const ENTRY_BYTES: usize = 1024;
/// Messages of one connection that carry no more slots than are counted elsewhere: the one that is being filled, the
/// one in flight.
const MESSAGES_EACH: usize = 2;
/// A connection in the handshake: an option, our answer to it, and two small messages.
const EARLY_BYTES: usize = 48 << 10;
/// Links of one resource: the one that is up, and one that ends.
const LINKS_EACH: usize = 2;

/// Memory at most, in bytes, by what it is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryBudget {
    /// Payloads: `buffer-memory` of each resource.
    pub buffers_bytes: u64,
    /// Dirty bitmaps and activity maps; they depend on the sizes of the volumes.
    pub bitmaps_bytes: u64,
    /// Connections of NBD clients.
    pub clients_bytes: u64,
    /// Connections to peers.
    pub links_bytes: u64,
    /// Requests, pieces, operations.
    pub tables_bytes: u64,
    /// Everything else.
    pub program_bytes: u64,
}

impl MemoryBudget {
    /// Of resources with so much memory for payloads each, without their bitmaps.
    pub fn new(limits: &Limits, buffer_bytes: impl IntoIterator<Item = u64>) -> Self {
        let stock = MESSAGES_KEPT * MESSAGE_MEMORY_BYTES;
        let hellos = limits.shards * limits.hellos_max * (link::HELLO_BUFFER_BYTES + EARLY_BYTES);
        // The others may each have had all connections in their tables.
        let others =
            limits.shards.saturating_sub(1) * (SHARD_BYTES + stock + limits.connections_max() * ENTRY_BYTES);
        let mut budget = Self {
            clients_bytes: clients_bytes(limits),
            links_bytes: hellos as u64,
            program_bytes: PROGRAM_BYTES + (stock + others) as u64,
            ..Self::default()
        };
        for buffer_bytes in buffer_bytes {
            let sizes = Pools::sizes(buffer_bytes);
            budget.buffers_bytes += sizes.iter().map(|size| size.bytes() as u64).sum::<u64>();
            budget.links_bytes += link_bytes();
            budget.tables_bytes += tables_bytes(&sizes, limits);
        }
        budget
    }

    /// With the bitmaps of one more volume, of which so many regions may be hot, and whose metadata has room for so
    /// many checkpoints.
    pub fn with_volume(mut self, geometry: &Geometry, max_hot_regions: u32, checkpoints: u8) -> Self {
        self.bitmaps_bytes += bitmaps_bytes(geometry, max_hot_regions, checkpoints);
        self
    }

    /// All of it.
    pub fn total_bytes(&self) -> u64 {
        self.buffers_bytes
            + self.bitmaps_bytes
            + self.clients_bytes
            + self.links_bytes
            + self.tables_bytes
            + self.program_bytes
    }

    /// What to do if this is more than `max_bytes`; `None` if it is not.
    pub fn excess(&self, max_bytes: u64) -> Option<String> {
        (self.total_bytes() > max_bytes).then(|| {
            format!(
                "{self}, which is more than memory-max = {} MiB; lower buffer-memory or max-clients, or raise \
                 memory-max",
                max_bytes >> 20
            )
        })
    }
}

impl fmt::Display for MemoryBudget {
    /// One line, in MiB, each part rounded up.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        write!(f, "memory: {} MiB at most (", mib(self.total_bytes()))?;
        write!(f, "buffers {}, bitmaps {}, ", mib(self.buffers_bytes), mib(self.bitmaps_bytes))?;
        write!(f, "clients {}, links {}, ", mib(self.clients_bytes), mib(self.links_bytes))?;
        write!(f, "tables {}, program {})", mib(self.tables_bytes), mib(self.program_bytes))
    }
}

/// Memory of the bitmaps of a volume whose metadata has room for so many checkpoints.
pub(crate) fn bitmaps_bytes(geometry: &Geometry, max_hot_regions: u32, checkpoints: u8) -> u64 {
    Store::memory_bytes(geometry, max_hot_regions, 1, checkpoints)
}

/// One connection without its receive buffer.
fn connection_bytes() -> usize {
    MESSAGES_EACH * MESSAGE_MEMORY_BYTES + ENTRY_BYTES
}

fn clients_bytes(limits: &Limits) -> u64 {
    let early = (limits.shards * limits.handshakes_max + limits.held_max)
        * (nbd::HANDSHAKE_BUFFER_BYTES + EARLY_BYTES);
    let served = limits.clients_max * (nbd::BUFFER_BYTES + STATUS_MEMORY_BYTES + connection_bytes());
    let tls = limits.connections_max() as u64 * limits.tls_connection_bytes;
    // As many again may be ending: they have no receive buffer any more.
    (early + served + limits.clients_max * connection_bytes()) as u64 + tls
}

fn link_bytes() -> u64 {
    (LINKS_EACH * (link::BUFFER_BYTES + link::BACKLOG_BYTES_MAX + connection_bytes())) as u64
}

fn tables_bytes(pools: &[PoolSize], limits: &Limits) -> u64 {
    let slots = pools.iter().map(|size| (size.small + size.large) as usize).sum();
    let requests = limits.requests_max;
    let core = TableBounds {
        writes_max: WRITES_MAX,
        undurable_max: UNDURABLE_MAX,
        resync_window: RESYNC_WINDOW,
        slots,
        requests,
    };
    // Grown by doubling, as the core's. A list of slots has as many as the largest read needs.
    let (jobs, lists) =
        (core.pieces() * Storage::JOB_MEMORY_BYTES, requests.min(slots) * nbd::LIST_MEMORY_BYTES);
    let engine = 2 * (requests * nbd::REQUEST_MEMORY_BYTES + jobs + lists) + slots * Arena::SLOT_MEMORY_BYTES;
    (core.memory_bytes() + engine) as u64
}
