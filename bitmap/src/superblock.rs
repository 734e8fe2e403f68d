//! What a copy knows about itself: identity, generations, flags and the record of each peer.
//!
//! Plain data. The bytes are made and checked in `codec`. Invariants: a generation log holds at most 64
//! entries, oldest first, with distinct ids, rising ordinals, and no entry before its parent; decoding
//! refuses anything else.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::checkpoint::CheckpointRecord;
use crate::geometry::{Geometry, GeometryError, NodeId};
use crate::meta::Area;

mod codec;

/// Longest resource or node name, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Most entries of a generation log.
pub const MAX_GENERATIONS: usize = 64;

/// Random name of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GenerationId(pub u128);

impl fmt::Display for GenerationId {
    /// The first eight hexadecimal digits: enough for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0 >> 96)
    }
}

/// Why a generation began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `create-md --source`.
    Created,
    /// Two fresh copies agreed that they are equal (`--clean`).
    Agreed,
    /// A peer was lost while writes went on.
    PeerLost,
    /// Promotion.
    Promoted,
    /// Promotion with `--peer-is-down`.
    PeerIsDown,
    /// Promotion with `--accept-data-loss`.
    DataLoss {
        /// What the copy was before.
        from: CopyRank,
    },
}

/// How good a copy was, worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CopyRank {
    /// A resync into it had not ended.
    Inconsistent,
    /// Known to lack writes.
    Outdated,
    /// Stopped uncleanly.
    Unclean,
    /// Nothing against it.
    Clean,
}

/// One entry of the generation log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// Its name.
    pub id: GenerationId,
    /// Position in the history, for people; rises within a log.
    pub ordinal: u64,
    /// The generation it grew from.
    pub parent: Option<GenerationId>,
    /// Where it began.
    pub node: NodeId,
    /// When it began, by that node's clock. Milliseconds since 1970.
    pub began_unix_ms: u64,
    /// Why it began.
    pub origin: Origin,
}

/// The generations a copy went through, oldest first, the last one current.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GenerationLog {
    entries: Vec<Generation>,
}

impl GenerationLog {
    /// An empty log: a copy without generation.
    pub const fn new() -> Self {
        Self { entries: Vec::new() }
    }

    /// Builds a log from entries, oldest first.
    pub fn from_entries(entries: Vec<Generation>) -> Result<Self, SuperblockError> {
        if entries.len() > MAX_GENERATIONS {
            return Err(SuperblockError::GenerationCount(entries.len()));
        }
        for (position, entry) in entries.iter().enumerate() {
            let (before, from_here) = entries.split_at(position);
            if before.last().is_some_and(|last| last.ordinal >= entry.ordinal) {
                return Err(SuperblockError::GenerationOrder);
            }
            if before.iter().any(|earlier| earlier.id == entry.id) {
                return Err(SuperblockError::GenerationTwice(entry.id));
            }
            if from_here.iter().any(|later| Some(later.id) == entry.parent) {
                return Err(SuperblockError::GenerationOrder);
            }
        }
        Ok(Self { entries })
    }

    /// The current generation.
    pub fn current(&self) -> Option<&Generation> {
        self.entries.last()
    }

    /// Makes `generation` the current one. When the log is full the oldest entry whose id is not in `keep`
    /// (the peers' bases) is dropped; a gap is allowed.
    ///
    /// Panics if the id is known, the ordinal does not rise, or `keep` names every entry.
    pub fn push(&mut self, generation: Generation, keep: &[GenerationId]) {
        assert!(!self.contains(generation.id), "generation {} is in the log", generation.id);
        let ordinal_rises = self.current().is_none_or(|current| current.ordinal < generation.ordinal);
        assert!(ordinal_rises, "ordinal {} does not rise", generation.ordinal);
        if self.entries.len() == MAX_GENERATIONS {
            let evicted = self.entries.iter().position(|entry| !keep.contains(&entry.id));
            assert!(evicted.is_some(), "every generation of a full log is some peer's base");
            evicted.map(|position| self.entries.remove(position));
        }
        self.entries.push(generation);
    }

    /// True if the log knows this generation.
    pub fn contains(&self, id: GenerationId) -> bool {
        self.position(id).is_some()
    }

    /// Position in `entries`.
    pub fn position(&self, id: GenerationId) -> Option<usize> {
        self.entries.iter().position(|entry| entry.id == id)
    }

    /// All entries, oldest first.
    pub fn entries(&self) -> &[Generation] {
        &self.entries
    }

    /// The newest generation that both logs know.
    pub fn common_ancestor(&self, other: &Self) -> Option<GenerationId> {
        self.entries.iter().rev().map(|entry| entry.id).find(|id| other.contains(*id))
    }

    /// Appends the bytes of the log: on disk and between nodes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        codec::encode_log(self, out);
    }

    /// Reads exactly one log, nothing before or after it. The bytes may come from a peer.
    pub fn decode(bytes: &[u8]) -> Result<Self, SuperblockError> {
        codec::decode_log(bytes)
    }
}

/// The generation a peer had when this copy began to remember what it misses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// Nothing is remembered.
    Unset,
    /// The peer had none.
    NoGeneration,
    /// This one.
    Generation(GenerationId),
}

/// What is known about a peer's copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerCopy {
    /// It may hold the current generation.
    MayHold,
    /// It has no generation.
    NoGeneration,
    /// It left, recorded as Outdated.
    LeftOutdated,
    /// It is the target of a resync from here.
    SyncTarget,
    /// It was told that the resync ended, and has not confirmed.
    ToldToFinish,
    /// This copy rotated without it.
    RotatedWithout,
}

/// What is remembered about one peer. Its position in `Superblock::peers` is its slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRecord {
    /// Which node.
    pub node: NodeId,
    /// Where its slot begins.
    pub base: Base,
    /// What is known about its copy.
    pub copy: PeerCopy,
    /// Session number offered last.
    pub session_offered: u64,
    /// Session number used last.
    pub session_used: u64,
    /// The peer was allowed to become Primary.
    pub may_be_primary: bool,
    /// Life of the slot; pages of an older one do not count.
    pub slot_epoch: u32,
    /// What a page means that was not written in this epoch: all dirty, or all clean.
    pub slot_filled: bool,
}

/// The generation that an Inconsistent copy is becoming, and of which node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Becoming {
    /// Of the source, when the resync began.
    pub generation: GenerationId,
    /// The source.
    pub node: NodeId,
}

/// Whose metadata this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name of the resource: 1 to 64 bytes.
    pub resource: String,
    /// Volume of the resource.
    pub volume: u16,
    /// This node.
    pub node: NodeId,
    /// Its name: 1 to 64 bytes.
    pub node_name: String,
    /// The disk that holds the data.
    pub device: DeviceIdentity,
}

/// Opaque identity of a data device, compared for equality.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceIdentity(pub [u8; 64]);

impl Default for DeviceIdentity {
    fn default() -> Self {
        Self([0; 64])
    }
}

/// The superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Rises with each write. Its lowest bit chooses the place.
    pub sequence: u64,
    /// Random, made by create-md; every page carries it, so that pages of an older file are never taken.
    pub file_id: u64,
    /// Whose metadata this is.
    pub identity: Identity,
    /// Size of the volume.
    pub size_bytes: u64,
    /// Block size as a power of two.
    pub block_shift: u8,
    /// Region size as a power of two.
    pub region_shift: u8,
    /// Raised at each promotion.
    pub term: u64,
    /// The generations of this copy.
    pub log: GenerationLog,
    /// Set while a resync into this copy has not ended.
    pub inconsistent: Option<Becoming>,
    /// This copy is known to lack writes.
    pub outdated: bool,
    /// The data may be written to: set before the first write, cleared by a clean stop.
    pub may_be_written: bool,
    /// Boot during which `may_be_written` was set.
    pub boot_id: [u8; 16],
    /// This copy stopped uncleanly in this generation, and no resync ended since.
    pub unclean_in: Option<GenerationId>,
    /// This node was Primary.
    pub was_primary: bool,
    /// The operator declared this copy, still without generation, equal to the others (`create-md --clean`).
    pub declared_clean: bool,
    /// One record per slot; at most 7.
    pub peers: Vec<PeerRecord>,
    /// Room for checkpoints: one record for each that the area table has areas for; at most 8.
    pub checkpoints: Vec<CheckpointRecord>,
    /// Where everything is in the file.
    pub areas: Vec<Area>,
}

/// What is recorded beside the metadata of a copy that failed, where they cannot say so themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailureRecord {
    /// Which metadata.
    pub file_id: u64,
    /// Last sequence number that they may have.
    pub sequence: u64,
    /// The generation that the copy was in, by the last record that counts.
    pub generation: Option<GenerationId>,
    /// What it was becoming then, if it was Inconsistent.
    pub becoming: Option<Becoming>,
}

impl Superblock {
    /// This copy failed: it may lack writes that it confirmed, stopped uncleanly, and no boot id excuses that.
    pub fn mark_failed(&mut self) {
        (self.outdated, self.may_be_written, self.boot_id) = (true, true, [0; 16]);
    }

    /// As [`Self::mark_failed`], where the highest sequence number that may have been given out is known. The next one
    /// is larger, and goes to the place that does not hold this superblock.
    pub(crate) fn mark_failed_upto(&mut self, sequence: u64) {
        self.mark_failed();
        self.sequence = sequence + (sequence - self.sequence) % 2;
    }

    /// As [`Self::mark_failed`], from a record beside the metadata, if it is about them and nothing was written to them
    /// since. A generation that this node began in a write that failed may be there all the same: nothing was ever
    /// acknowledged in it, and nobody is behind for not having it.
    pub fn apply_failure(&mut self, record: &FailureRecord) {
        if record.file_id != self.file_id || self.sequence > record.sequence {
            return;
        }
        self.mark_failed_upto(record.sequence);
        let node = self.identity.node;
        let unused = |last: &Generation| {
            last.node == node && last.parent.is_some() && last.parent == record.generation
        };
        if self.log.current().is_some_and(unused) {
            self.log.entries.pop();
            self.inconsistent = record.becoming;
            self.peers.iter_mut().for_each(|peer| peer.copy = PeerCopy::MayHold);
        }
    }

    /// The geometry it describes.
    pub fn geometry(&self) -> Result<Geometry, GeometryError> {
        Geometry::new(self.size_bytes, self.block_shift, self.region_shift)
    }

    /// Appends the two pages of the superblock.
    ///
    /// Panics if a field is over its documented limit.
    pub fn encode(&self, out: &mut Vec<u8>) {
        codec::encode_superblock(self, out);
    }

    /// Reads and checks the two pages of a superblock.
    pub fn decode(bytes: &[u8]) -> Result<Self, SuperblockError> {
        codec::decode_superblock(bytes)
    }
}

/// Why a superblock or a generation log was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// A page of it is damaged, of a newer version, or no page of ours.
    #[error("superblock page: {0}")]
    Page(#[from] crate::meta::PageError),
    /// Its two pages are of different writes.
    #[error("the pages of the superblock are of different writes")]
    Torn,
    /// The bytes end early, or there are more than expected.
    #[error("the record has a wrong length")]
    Length,
    /// A field has a value that does not exist.
    #[error("field {0} has an impossible value")]
    Field(&'static str),
    /// Too many generations.
    #[error("{0} generations, more than 64")]
    GenerationCount(usize),
    /// A generation is listed twice.
    #[error("generation {0} is listed twice")]
    GenerationTwice(GenerationId),
    /// The generations are not in order.
    #[error("the generations are not in order")]
    GenerationOrder,
    /// Size or shifts are impossible.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// The area table does not fit the geometry.
    #[error(transparent)]
    Layout(#[from] crate::meta::LayoutError),
}

#[cfg(test)]
mod tests;
