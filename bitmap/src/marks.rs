//! Coverage marks: rare branches say that they were taken, so that the simulator can tell what it never reaches.
//!
//! Invariants: without the feature `marks`, which only the simulator asks for, [`mark`] is empty. With it, it counts
//! for the whole process and changes nothing else.

/// Defines [`Mark`] and what each means.
macro_rules! marks {
    ($($mark:ident, $means:literal;)*) => {
        /// A branch that is rarely taken.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Mark {
            $(#[doc = $means] $mark,)*
        }

        #[cfg(feature = "marks")]
        impl Mark {
            /// All of them.
            pub const ALL: &[Mark] = &[$(Mark::$mark,)*];

            /// What it means that it was hit.
            pub fn means(self) -> &'static str {
                match self {
                    $(Mark::$mark => $means,)*
                }
            }
        }
    };
}

marks! {
    HotBound, "A write waits because as many regions are marked as may be.";
    CoolingTakenBack, "A region that was to be cooled is written to again.";
    UncoveredWhileCooling, "A region is written to while the removal of its mark is on its way to the disk.";
    TornSuperblock, "A copy of the superblock is torn.";
    SuperblocksDisagree, "Two superblocks with one number differed: both were of writes that failed.";
    TableFull, "A write waits because the table of undurable writes is full.";
    LostBeforeSubmit, "A write waited for its mark while the last UpToDate copy went out of reach.";
    HeldByRotation, "A complete write waits for the record of a rotation (ordering 4).";
    HeldByFarewell, "A complete write waits because the peer takes leave.";
    HeldOutOfReach, "A complete write waits because the copy that counts is out of reach.";
    SuspendedResent, "Suspended writes were sent again to the copy that they had gone to (ordering 13).";
    SuspendedFailed, "Suspended writes failed: the copy that came back is not the one that they had gone to.";
    PeerLacked, "A lost peer had not confirmed writes as durable: they became bits (ordering 7).";
    RotatedAfterAgreement, "The peer agreed to a promotion and was lost before it was recorded.";
    AgreedAndUseless, "A target was promoted by agreement, and its source was lost before it was recorded.";
    BothAsked, "Both nodes asked to be promoted at once.";
    AskedWhileBusy, "The peer asked to be promoted while a role change was under way here.";
    LastCopyWriteError, "A write failed on the only UpToDate copy, which stays.";
    CopyLostByWrite, "A write failed on one of two copies: it is given up.";
    FuaSyncFailed, "The flush in a write with FUA failed.";
    FlushFailed, "An fdatasync failed: the copy is given up for good.";
    FlushAfterFailure, "An fdatasync succeeded after its disk had been given up (ordering 6).";
    RecordedBeside, "The metadata could not take the record of its disk's failure.";
    RecordLost, "Nothing could take the record of a disk's failure.";
    SuperblockHung, "A superblock is under way that may land at any time.";
    DiskOverdue, "A disk was given up because it completed nothing.";
    LateCompletion, "A disk completed what nobody waited for any more.";
    ReadAfterFailure, "A read ended on a disk that had failed meanwhile: it counts for nothing.";
    Repaired, "A read error was mended from the other copy.";
    RepairImpossible, "The other copy went while a read error was to be mended from it.";
    RepairFailed, "What was read from the other copy could not be written here.";
    ServedWrite, "A write for the other node's clients was taken.";
    ServedRefused, "A write for the other node's clients failed on the only UpToDate copy.";
    ServedRotates, "A copy rotated to serve a node without disk (ordering 5).";
    ServedPress, "The bound of hot regions was reached by writes for the other node's clients alone.";
    WriteFailedElsewhere, "The copy that counts could not take a write.";
    StaleEdge, "A write to a part of a block that is stale here went to the other copy alone.";
    ReadStale, "A Primary that is a target read from its source.";
    CopiedForgotten, "A block was written to after it was copied and before its bit was cleared (ordering 7).";
    WalkedAgain, "Blocks became dirty behind a resync.";
    ResyncIncomplete, "A resync ended with blocks that could not be read.";
    Doubt, "A write failed at a source that its target may have.";
    DoubtDecides, "Equal digests were not trusted.";
    HashingGivenUp, "A piece was copied without a comparison, since those before it differed.";
    FinishRefused, "The target wanted to finish while bits were set at the source (ordering 18).";
    FinishedWithBits, "A write failed at the source while its target finished.";
    SyncedLate, "A resync ended over a link that was lost meanwhile.";
    SyncedLatePrimary, "The same, and the target was Primary.";
    LeaversMet, "A node wants to leave while its peer leaves or is demoted.";
    LeaveRefused, "A node that wanted to leave was not let go as Outdated.";
    OutdatedLate, "A node recorded itself as Outdated after the link was lost.";
}

/// This branch was taken.
#[cfg(not(feature = "marks"))]
#[inline(always)]
pub const fn mark(_mark: Mark) {}

#[cfg(feature = "marks")]
mod counted {
    use super::Mark;
    use core::sync::atomic::{AtomicU64, Ordering};

    static HITS: [AtomicU64; Mark::ALL.len()] = [const { AtomicU64::new(0) }; Mark::ALL.len()];

    /// This branch was taken.
    pub fn mark(mark: Mark) {
        if let Some(hits) = HITS.get(mark as usize) {
            hits.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Mark {
        /// How often it was hit in this process.
        pub fn hits(self) -> u64 {
            HITS.get(self as usize).map_or(0, |hits| hits.load(Ordering::Relaxed))
        }
    }
}

#[cfg(feature = "marks")]
pub use counted::mark;
