//! Checkpoints: named bitmaps of what was written since a point in the stream, for backup tools.
//!
//! What the superblock says of them; their bits are kept like those of a peer ([`crate::Slot`]), in slots of their own
//! ([`checkpoint_slot`]). Invariants of a record, on the node that holds it: *complete* means that its bits and the
//! dirty bits toward the peer, where this copy is Inconsistent, name every block of this copy that differs from the
//! volume at the point. *Covered* means, besides, that each such bit which is not on disk lies in a region whose
//! activity mark is: such a record survives an unclean stop, any other one does not. Whatever is not complete says why.

use alloc::borrow::ToOwned;
use alloc::string::String;
use core::fmt;

use crate::meta::{MAX_PEERS, Reader};
use crate::superblock::{GenerationId, NAME_BYTES_MAX};

/// Most checkpoints of a volume.
pub const CHECKPOINTS_MAX: usize = 8;
/// Room for so many is laid out unless told otherwise.
pub const DEFAULT_CHECKPOINTS: u8 = 4;
/// Bytes of a checkpoint without its place in the file: in a list between nodes.
pub const CHECKPOINT_BYTES: usize = 108;

/// Slots below belong to peers.
const FIRST_SLOT: u8 = MAX_PEERS as u8 + 1;

/// The slot in which the checkpoint at this position of the superblock keeps its bits.
pub const fn checkpoint_slot(position: u8) -> u8 {
    FIRST_SLOT + position
}

/// The position of a checkpoint's slot; `None` for a peer's.
pub(crate) fn position_of(slot: u8) -> Option<usize> {
    slot.checked_sub(FIRST_SLOT).map(usize::from)
}

/// Random name of a checkpoint, the same on both nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CheckpointId(pub u128);

/// Why a checkpoint is not complete here; another node may have it complete, and give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incomplete {
    /// The node stopped uncleanly, and bits may have been lost with its memory.
    UncleanStop,
    /// Its bits have not all come from the peer yet.
    Receiving,
}

/// Why a checkpoint will never be complete again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// Neither node had it complete when they compared.
    NobodyComplete,
    /// An Inconsistent copy was promoted.
    DataLoss,
    /// Its record in the metadata is older than its bits.
    Metadata,
}

/// What a checkpoint is worth on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointState {
    /// Nothing is missing.
    Complete,
    /// Bits may be missing.
    Incomplete(Incomplete),
    /// Bits are missing, and nobody has them.
    Invalid(Invalid),
}

impl fmt::Display for Incomplete {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Incomplete::UncleanStop => "this node stopped uncleanly and may have lost a part of it",
            Incomplete::Receiving => "the peer's part has not all arrived",
        })
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Invalid::NobodyComplete => "each node lost a part of it in an unclean stop",
            Invalid::DataLoss => "an Inconsistent copy was promoted with --accept-data-loss",
            Invalid::Metadata => "the metadata was set back to an older state",
        })
    }
}

/// One checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Its random name.
    pub id: CheckpointId,
    /// Its name: 1 to 64 bytes.
    pub name: String,
    /// When it was created, by that node's clock. Milliseconds since 1970.
    pub created_unix_ms: u64,
    /// The generation in which it was created.
    pub generation: GenerationId,
    /// What it is worth here.
    pub state: CheckpointState,
}

/// Room for one checkpoint, as the superblock keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckpointRecord {
    /// The one that it holds.
    pub held: Option<Checkpoint>,
    /// What is not on disk of it is covered by activity marks.
    pub covered: bool,
    /// Life of its slot; pages of an older one do not count.
    pub slot_epoch: u32,
}

impl CheckpointRecord {
    /// Writes set bits in it: it is complete, or may become so.
    pub fn is_live(&self) -> bool {
        self.held.as_ref().is_some_and(|held| !matches!(held.state, CheckpointState::Invalid(_)))
    }
}

impl Checkpoint {
    /// Appends its bytes: on disk and between nodes.
    ///
    /// Panics if the name is empty or too long.
    pub fn encode(&self, out: &mut alloc::vec::Vec<u8>) {
        assert!(!self.name.is_empty() && self.name.len() <= NAME_BYTES_MAX, "a name has 1 to 64 bytes");
        let (state, reason) = match self.state {
            CheckpointState::Complete => (1, 0),
            CheckpointState::Incomplete(Incomplete::UncleanStop) => (2, 1),
            CheckpointState::Incomplete(Incomplete::Receiving) => (2, 2),
            CheckpointState::Invalid(Invalid::NobodyComplete) => (3, 1),
            CheckpointState::Invalid(Invalid::DataLoss) => (3, 2),
            CheckpointState::Invalid(Invalid::Metadata) => (3, 3),
        };
        out.extend(self.id.0.to_le_bytes());
        out.extend(self.generation.0.to_le_bytes());
        out.extend(self.created_unix_ms.to_le_bytes());
        out.extend([state, reason, self.name.len() as u8, 0]);
        out.extend(self.name.bytes());
        out.resize(out.len() + NAME_BYTES_MAX - self.name.len(), 0);
    }

    /// Reads one from [`CHECKPOINT_BYTES`] bytes, which may come from a peer.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader::new(bytes);
        let (id, generation, created_unix_ms) = (from.u128()?, from.u128()?, from.u64()?);
        let [state, reason, name_len, _] = from.bytes()?;
        let name = from.bytes::<NAME_BYTES_MAX>()?;
        let name = name.get(..usize::from(name_len)).filter(|name| !name.is_empty())?;
        let found = Self {
            id: CheckpointId(id),
            name: core::str::from_utf8(name).ok()?.to_owned(),
            created_unix_ms,
            generation: GenerationId(generation),
            state: match (state, reason) {
                (1, 0) => CheckpointState::Complete,
                (2, 1) => CheckpointState::Incomplete(Incomplete::UncleanStop),
                (2, 2) => CheckpointState::Incomplete(Incomplete::Receiving),
                (3, 1) => CheckpointState::Invalid(Invalid::NobodyComplete),
                (3, 2) => CheckpointState::Invalid(Invalid::DataLoss),
                (3, 3) => CheckpointState::Invalid(Invalid::Metadata),
                _ => return None,
            },
        };
        // One encoding for each: whatever was skipped must be zero.
        let mut again = alloc::vec::Vec::with_capacity(CHECKPOINT_BYTES);
        found.encode(&mut again);
        (again == bytes).then_some(found)
    }
}
