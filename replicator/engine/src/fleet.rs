//! What the shards of one engine have in common: who has which resource, the ways into their queues, and the bounds
//! that hold for all of them together.
//!
//! Resources are dealt out in the order of the configuration, one to each shard in turn; each keeps its shard for good.
//! Nothing here is touched per request: a shard looks at it when a connection comes or a disk is attached.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::config::{EngineConfig, ResourceConfig};
use crate::error::StartError;
use crate::handle::{Message, Queue};
use crate::link::Local;
use crate::memory::MemoryBudget;
use crate::places::Places;
use crate::system::{self, Clock};

/// One shard; the first has the listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShardId(pub(crate) usize);

impl ShardId {
    /// The one that takes every connection first.
    pub(crate) const FIRST: Self = Self(0);
}

/// Where a resource is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Home {
    pub(crate) shard: ShardId,
    /// Its index on that shard.
    pub(crate) index: usize,
}

/// All shards, as each of them knows them.
pub(crate) struct Fleet {
    /// Of the whole engine.
    pub(crate) config: EngineConfig,
    pub(crate) local: Local,
    /// One for all: times are told from shard to shard.
    pub(crate) clock: Clock,
    pub(crate) memory: Memory,
    /// NBD connections in whatever state.
    pub(crate) connections: Places,
    /// NBD clients that wait until there is a Primary.
    pub(crate) held: Places,
    /// NBD clients in the transmission phase.
    pub(crate) served: Places,
    /// Peers in the hello exchange that wait in a queue for their shard.
    pub(crate) moving_peers: Places,
    /// Shards that were told to stop and have nothing up any more, or never ran.
    stopped: AtomicUsize,
    queues: Vec<Queue>,
}

impl Fleet {
    /// Of shards with these queues. Fails if the configuration asks for more memory than it allows.
    pub(crate) fn new(config: EngineConfig, queues: Vec<Queue>) -> Result<Self, StartError> {
        let system = |what| move |error| StartError::System { what, error };
        let run_id = u128::from_le_bytes(system::random().map_err(system("reading /dev/urandom"))?);
        let boot_id = system::boot_id().map_err(system("reading the boot id"))?;
        let local = Local {
            cluster: config.cluster.clone(),
            secret: config.secret,
            node: config.node,
            node_name: config.node_name.clone(),
            run_id,
            boot_id,
        };
        let budget = MemoryBudget::new(&config.limits, config.resources.iter().map(|r| r.buffer_bytes));
        let memory = Memory::new(budget, config.memory_max_bytes).map_err(StartError::Config)?;
        let limits = &config.limits;
        Ok(Self {
            local,
            clock: Clock::new(),
            memory,
            connections: Places::new(limits.connections_max()),
            held: Places::new(limits.held_max),
            served: Places::new(limits.clients_max),
            moving_peers: Places::new(limits.hellos_max),
            stopped: AtomicUsize::new(0),
            queues,
            config,
        })
    }

    /// The shards, in their order.
    pub(crate) fn shards(&self) -> impl Iterator<Item = ShardId> {
        (0..self.queues.len()).map(ShardId)
    }

    /// The way to a shard.
    pub(crate) fn queue(&self, shard: ShardId) -> &Queue {
        &self.queues[shard.0]
    }

    /// Puts something into the queue of a shard.
    pub(crate) fn send(&self, shard: ShardId, message: Message) {
        self.queue(shard).send(message);
    }

    /// Said once of each shard, of one that runs by itself: nothing is up there, and nothing will be.
    pub(crate) fn has_stopped(&self) {
        let before = self.stopped.fetch_add(1, Ordering::AcqRel);
        if before + 1 == self.queues.len() {
            self.queues.iter().for_each(Queue::wake_up);
        }
    }

    /// Whether that was said of all. A shard stays until then, and tells clients that come to it why they cannot be
    /// served.
    pub(crate) fn have_all_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire) == self.queues.len()
    }

    /// Where the resource of this name is.
    pub(crate) fn home(&self, name: &str) -> Option<Home> {
        let number = self.config.resources.iter().position(|resource| resource.name == name)?;
        Some(self.home_of(number))
    }

    /// Where the resource with this number in the configuration is.
    pub(crate) fn home_of(&self, number: usize) -> Home {
        deal(number, self.queues.len())
    }

    /// The number of a resource in the configuration.
    pub(crate) fn number(&self, home: Home) -> usize {
        number(home, self.queues.len())
    }

    /// The configuration with no resources but those of one shard.
    pub(crate) fn config_of(&self, shard: ShardId) -> EngineConfig {
        let is_own = |number: usize| self.home_of(number).shard == shard;
        let resources = self.config.resources.iter().enumerate();
        let own = resources.filter(|(number, _)| is_own(*number)).map(|(_, resource)| resource.clone());
        EngineConfig { resources: own.collect::<Vec<ResourceConfig>>(), ..self.config.clone() }
    }
}

fn deal(number: usize, shards: usize) -> Home {
    Home { shard: ShardId(number % shards), index: number / shards }
}

fn number(home: Home, shards: usize) -> usize {
    home.index * shards + home.shard.0
}

/// The memory that all shards together may take, and what volumes have of it.
pub(crate) struct Memory {
    /// Without bitmaps.
    budget: MemoryBudget,
    max_bytes: u64,
    bitmaps_bytes: Mutex<u64>,
}

impl Memory {
    /// Fails, in words, if it is not enough even without bitmaps.
    fn new(budget: MemoryBudget, max_bytes: u64) -> Result<Self, String> {
        match budget.excess(max_bytes) {
            Some(excess) => Err(excess),
            None => Ok(Self { budget, max_bytes, bitmaps_bytes: Mutex::new(0) }),
        }
    }

    /// Takes this much for the bitmaps of a volume; an error in words if that is too much.
    pub(crate) fn take(&self, bytes: u64) -> Result<(), String> {
        let mut bitmaps_bytes = self.bitmaps_bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let budget = MemoryBudget { bitmaps_bytes: *bitmaps_bytes + bytes, ..self.budget };
        match budget.excess(self.max_bytes) {
            Some(excess) => Err(excess),
            None => {
                *bitmaps_bytes += bytes;
                Ok(())
            }
        }
    }

    /// Gives back what was taken for the bitmaps of a volume.
    pub(crate) fn give_back(&self, bytes: u64) {
        *self.bitmaps_bytes.lock().unwrap_or_else(PoisonError::into_inner) -= bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_dealt_out_in_turn() {
        let homes: Vec<Home> = (0..5).map(|number| deal(number, 2)).collect();
        let on = |shard| homes.iter().filter(move |home| home.shard == ShardId(shard)).map(|home| home.index);
        assert_eq!(on(0).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(on(1).collect::<Vec<_>>(), [0, 1]);
        assert!(homes.iter().enumerate().all(|(at, home)| number(*home, 2) == at));
        assert!((0..5).all(|at| deal(at, 1) == Home { shard: ShardId::FIRST, index: at }));
    }

    #[test]
    fn bitmaps_share_what_the_rest_leaves() {
        let budget = MemoryBudget { program_bytes: 100, ..MemoryBudget::default() };
        assert!(Memory::new(budget, 99).is_err());
        let memory = Memory::new(budget, 150).unwrap();
        memory.take(30).unwrap();
        assert!(memory.take(21).unwrap_err().contains("memory-max"));
        memory.take(20).unwrap();
        memory.give_back(30);
        memory.take(30).unwrap();
    }
}
