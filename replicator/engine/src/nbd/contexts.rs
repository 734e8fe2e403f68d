//! The kinds of block status that an export offers, and what each says about a range.
//!
//! | context | flag | meaning |
//! |---|---|---|
//! | `base:allocation` | 1, 2 | a hole; reads as zeroes: proven on the copy that serves reads, else 0 |
//! | `x-lockstep:out-of-sync` | 1 | differs from the peer's copy, or is not confirmed by it |
//! | | 2 | such a block, and a resync is under way |
//! | `x-lockstep:checkpoint:NAME` | 1 | may have been written since the checkpoint |
//!
//! A checkpoint is offered while it is complete here. One that is not any more, or is gone, when it is asked about is
//! an error: nothing may pass for unwritten. An answer is taken at one instant, between two steps of the core.

use lockstep_bitmap::{CheckpointId, DirtyBitmap, Geometry};
use lockstep_core::Node;
use lockstep_nbd::{ALLOCATION_CONTEXT, Extents};

use crate::disk::Disk;

/// Where the copies differ.
const OUT_OF_SYNC_CONTEXT: &str = "x-lockstep:out-of-sync";
const CHECKPOINT_PREFIX: &str = "x-lockstep:checkpoint:";
const DIFFERS: u32 = 1;
const WRITTEN: u32 = 1;
const BEING_RESYNCED: u32 = 2;

/// One kind of block status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Context {
    /// Holes.
    Allocation,
    /// Differences between the copies.
    OutOfSync,
    /// What was written since a checkpoint.
    Checkpoint(CheckpointId),
}

/// The checkpoint that was asked about says nothing any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotComplete;

impl Context {
    /// By the name under which the node's export offers it.
    pub(crate) fn named(name: &str, node: Option<&Node>) -> Option<Self> {
        match name {
            ALLOCATION_CONTEXT => Some(Self::Allocation),
            OUT_OF_SYNC_CONTEXT => Some(Self::OutOfSync),
            _ => {
                let checkpoint = name.strip_prefix(CHECKPOINT_PREFIX)?;
                let held = node?.checkpoints().find(|held| held.name == checkpoint)?;
                Some(Self::Checkpoint(held.id))
            }
        }
    }

    /// Describes the range from `offset` on.
    pub(crate) fn describe(
        self,
        node: &Node,
        disk: Option<&Disk>,
        offset: u64,
        extents: &mut Extents,
    ) -> Result<(), NotComplete> {
        match self {
            Self::Checkpoint(id) => {
                let (bits, geometry) = node.checkpoint_bits(id).zip(node.geometry()).ok_or(NotComplete)?;
                describe_bits(bits, geometry, WRITTEN, offset, extents);
            }
            Self::Allocation => match disk.filter(|_| node.reads_own_copy()) {
                Some(disk) => disk.describe_allocation(offset, extents),
                None => extents.push(u64::MAX, 0),
            },
            Self::OutOfSync => {
                let flags = DIFFERS | if node.is_resyncing() { BEING_RESYNCED } else { 0 };
                match (node.out_of_sync(), node.geometry()) {
                    (Some(bits), Some(geometry)) => describe_bits(bits, geometry, flags, offset, extents),
                    // There is one copy, and it is the peer's.
                    _ => extents.push(u64::MAX, flags),
                }
            }
        }
        Ok(())
    }
}

/// Names of the contexts of a resource with or without a peer, as its node is now.
pub(crate) fn names(has_peer: bool, node: Option<&Node>) -> Vec<String> {
    let own = has_peer.then_some(OUT_OF_SYNC_CONTEXT);
    let fixed = [ALLOCATION_CONTEXT].into_iter().chain(own).map(String::from);
    let complete = node
        .into_iter()
        .flat_map(|node| node.checkpoints().filter(|held| node.checkpoint_bits(held.id).is_some()));
    fixed.chain(complete.map(|held| format!("{CHECKPOINT_PREFIX}{}", held.name))).collect()
}

/// Blocks whose bit is set have these flags, the others none.
fn describe_bits(bits: &DirtyBitmap, geometry: &Geometry, flags: u32, offset: u64, extents: &mut Extents) {
    let mut at = offset;
    while !extents.is_full() && at < geometry.size_bytes() {
        let block = at / geometry.block_bytes();
        let Some(run) = bits.next_run(block, bits.blocks()) else {
            return extents.push(u64::MAX, 0);
        };
        let bytes = geometry.bytes_of(run);
        if bytes.start > at {
            extents.push(bytes.start - at, 0);
            at = bytes.start;
        }
        extents.push(bytes.end - at, flags);
        at = bytes.end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_bitmap::{BlockRange, DEFAULT_REGION_SHIFT};

    #[test]
    fn bits_become_extents_from_any_byte_on() {
        let geometry = Geometry::new(10 * 4096 + 512, 12, DEFAULT_REGION_SHIFT).unwrap();
        let mut bits = DirtyBitmap::new(&geometry, false);
        bits.set(BlockRange::new(1, 2));
        bits.set(BlockRange::new(10, 1));
        let described = |offset: u64, length: u64| {
            let mut extents = Extents::new(length, false);
            describe_bits(&bits, &geometry, 3, offset, &mut extents);
            extents.as_slice().iter().map(|extent| (extent.length, extent.flags)).collect::<Vec<_>>()
        };
        assert_eq!(described(0, geometry.size_bytes()), [(4096, 0), (8192, 3), (7 * 4096, 0), (512, 3)]);
        assert_eq!(described(5000, 1), [(1, 3)]);
        assert_eq!(described(5000, 7289), [(7288, 3), (1, 0)]);
        assert_eq!(described(3 * 4096, 4096), [(4096, 0)]);
        bits.reset(true);
        let mut extents = Extents::new(geometry.size_bytes(), false);
        describe_bits(&bits, &geometry, 1, 0, &mut extents);
        assert_eq!(extents.as_slice().len(), 1);
    }

    #[test]
    fn what_is_offered_has_a_meaning() {
        assert_eq!(names(false, None), ["base:allocation"]);
        for name in names(true, None) {
            assert!(Context::named(&name, None).is_some(), "{name}");
        }
        for name in ["base:other", "x-lockstep:checkpoint:none"] {
            assert_eq!(Context::named(name, None), None);
        }
    }
}
