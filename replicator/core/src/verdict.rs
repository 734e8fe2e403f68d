//! The verdict of the handshake: what two copies that meet must do, a pure function of two snapshots.
//!
//! Invariants: the value names nodes absolutely, so both ends compute the *same* value and compare its
//! [`Verdict::fingerprint`] before either changes anything (ordering 9). A copy without generation or
//! Inconsistent is never source. A Primary whose own copy is UpToDate is never target. Nothing is declared in
//! sync while generations differ or any bit is set. Whatever cannot be decided without losing somebody's
//! acknowledged writes is refused. Tolerates any snapshot that decodes: contradictions end in a refusal. The
//! table is in `docs/verdict.md`.
#![deny(clippy::indexing_slicing)]

use crate::snapshot::Snapshot;
use core::fmt;
use lockstep_bitmap::{Base, GenerationId, NodeId, PeerCopy};

mod decide;

/// What both ends must do, said in absolute node ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Same generation, no bits, nobody unclean: both are UpToDate.
    NoSync,
    /// Two fresh copies that both operators declared equal: both take this generation and are UpToDate.
    Adopt {
        /// The proposal of the lower node id.
        generation: GenerationId,
    },
    /// Resync over the union of both bitmaps and hot regions; the source is UpToDate.
    Sync {
        /// The node whose data wins; the other one is the target.
        source: NodeId,
        /// The bitmaps do not reach back far enough: the source first sets every bit, and in the same durable
        /// write its base to `NoGeneration` (a full slot begins at nothing), so that an interruption goes on
        /// over the bits that are left.
        full: bool,
        /// Compare hashes of dirty runs before copying.
        hash_first: bool,
        /// Which rule decided.
        why: SyncWhy,
    },
    /// One copy has no disk: nothing is copied, and its node serves its clients through the other copy, which is
    /// UpToDate.
    Serve {
        /// The node with the copy.
        server: NodeId,
        /// Its generation from now on: a new one (its proposal), where the lost copy may carry the current one
        /// (ordering 5).
        generation: GenerationId,
    },
    /// Nothing is replicated; the link stays up for control.
    Refuse(Standstill),
}

/// Which rule made a resync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncWhy {
    /// Same generation, and bits or an unclean stop on either side.
    SameGeneration,
    /// The target's generation is behind the source's.
    Ahead,
    /// The target has no data yet.
    Fresh,
    /// The operator named the target as loser of a split brain.
    Resolved,
    /// The target was restored from an older image.
    Restored,
    /// An earlier resync into the target had not ended.
    Unfinished,
}

/// Why nothing is replicated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standstill {
    /// The histories parted, and no loser is named.
    SplitBrain,
    /// The copies have nothing in common.
    Unrelated,
    /// Neither copy can be the source.
    NoSource,
    /// The target would be a Primary, under whose clients the data would change; or both are Primary.
    TargetIsPrimary,
    /// Both copies are named as losers.
    BothDiscard,
    /// The volumes differ in size.
    SizeMismatch,
    /// A copy has no disk.
    Diskless,
}

/// Decides about two copies. Both ends compute the same value from the same two snapshots.
pub fn verdict(mine: &Snapshot, theirs: &Snapshot) -> Verdict {
    let (low, high) = if mine.node < theirs.node { (mine, theirs) } else { (theirs, mine) };
    decide::decide(low, high).unwrap_or_else(Verdict::Refuse)
}

/// The other copy's generation is, or may have become, the current one, `now`, as far as its record tells (ordering 4).
pub(crate) fn may_carry(copy: PeerCopy, base: Base, now: Option<GenerationId>) -> bool {
    match copy {
        PeerCopy::MayHold | PeerCopy::LeftOutdated | PeerCopy::ToldToFinish => true,
        // Within one generation. A full resync has a target that was proven useless.
        PeerCopy::SyncTarget => now.is_some_and(|now| base == Base::Generation(now)),
        PeerCopy::NoGeneration | PeerCopy::RotatedWithout => false,
    }
}

impl Verdict {
    /// Number of the kind of verdict, for messages and a first comparison.
    pub fn code(&self) -> u8 {
        match self {
            Verdict::NoSync => 1,
            Verdict::Adopt { .. } => 2,
            Verdict::Serve { .. } => 3,
            Verdict::Sync { why, .. } => 16 + *why as u8,
            Verdict::Refuse(standstill) => 32 + *standstill as u8,
        }
    }

    /// A hash (FNV-1a) of the whole value. It detects disagreement of two honest ends; it is no signature.
    pub fn fingerprint(&self) -> u64 {
        let (node, flags, generation) = match *self {
            Verdict::NoSync | Verdict::Refuse(_) => (0, 0, 0),
            Verdict::Adopt { generation } => (0, 0, generation.0),
            Verdict::Serve { server, generation } => (server.0, 0, generation.0),
            Verdict::Sync { source, full, hash_first, why: _ } => {
                (source.0, u8::from(full) | u8::from(hash_first) << 1, 0)
            }
        };
        let bytes = [self.code(), node, flags].into_iter().chain(generation.to_le_bytes());
        bytes
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }
}

impl fmt::Display for SyncWhy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SyncWhy::SameGeneration => "same generation, dirty blocks or an unclean stop",
            SyncWhy::Ahead => "the target is an older generation",
            SyncWhy::Fresh => "the target has no data yet",
            SyncWhy::Resolved => "the operator discarded the target's changes",
            SyncWhy::Restored => "the target was restored from an older image",
            SyncWhy::Unfinished => "an earlier resync into the target had not ended",
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::NoSync => f.write_str("no resync needed: both copies are UpToDate"),
            Verdict::Adopt { generation } => {
                write!(f, "copies declared equal: both take the new generation {generation}")
            }
            Verdict::Sync { source, full, hash_first, why } => {
                let extent = if *full { "full" } else { "bitmap" };
                let hash = if *hash_first { ", hash first" } else { "" };
                write!(f, "resync from node {} ({extent}{hash}): {why}", source.0)
            }
            Verdict::Serve { server, generation } => {
                write!(f, "one copy without disk: node {} serves alone, generation {generation}", server.0)
            }
            Verdict::Refuse(standstill) => write!(f, "nothing is replicated: {standstill}"),
        }
    }
}

impl fmt::Display for Standstill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Standstill::SplitBrain => {
                "split brain: both copies may hold writes that the other lacks. Choose the loser: \
                 lockstep resolve R --discard NODE"
            }
            Standstill::Unrelated => {
                "the copies have no generation in common. If one of them shall be overwritten, type there: \
                 lockstep create-md R --overwrite"
            }
            Standstill::NoSource => {
                "neither copy can be the source. On the node with the good copy, type: lockstep promote R \
                 --accept-data-loss; for two empty volumes: lockstep create-md R --source on one of them"
            }
            Standstill::TargetIsPrimary => {
                "the copy that must be overwritten belongs to a Primary, or a Primary's own copy may be behind \
                 what its clients have seen, or both nodes are Primary. On the node whose copy is older, \
                 type: lockstep demote R; the resync then starts by itself"
            }
            Standstill::BothDiscard => {
                "both copies are named as losers of the split brain. Choose one: \
                 lockstep resolve R --discard NODE"
            }
            Standstill::SizeMismatch => {
                "the volumes differ in size. Give both disks the same size, then: lockstep connect R"
            }
            Standstill::Diskless => {
                "one copy has no disk, and the other is not known to be UpToDate. Give the first a disk: lockstep \
                 attach R; or promote the other"
            }
        })
    }
}

#[cfg(test)]
mod tests;
