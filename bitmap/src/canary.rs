//! Planted bugs: each turns one rule of the design off, at the place where it is kept, so that the simulator can show
//! that it would notice (`lockstep-sim canary`).
//!
//! Invariants: without the feature `canary` no bug is ever planted and [`is_planted`] is a constant, so that nothing
//! of this is left in the product; with it at most one bug is planted at a time, for the whole process. A site is one
//! short condition and does nothing while its bug is not planted.

/// Defines [`Bug`] and what is told of each.
macro_rules! bugs {
    ($($bug:ident, $rule:literal, $breaks:literal;)*) => {
        /// A rule that can be turned off.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Bug {
            $(#[doc = $breaks] $bug,)*
        }

        #[cfg(feature = "canary")]
        impl Bug {
            /// All of them.
            pub const ALL: &[Bug] = &[$(Bug::$bug,)*];

            /// The ordering (by its number) or guarantee that it breaks.
            pub fn rule(self) -> &'static str {
                match self {
                    $(Bug::$bug => $rule,)*
                }
            }

            /// What it does.
            pub fn breaks(self) -> &'static str {
                match self {
                    $(Bug::$bug => $breaks,)*
                }
            }
        }
    };
}

bugs! {
    AckBeforePeer, "6", "A write is acknowledged when it is on the local disk, whatever the peer says.";
    SkipActivityMark, "1", "A write goes on before the mark of its region is on disk.";
    CoolBeforeBits, "2", "A mark is removed before the bits of its region are on disk.";
    RetireMarkTooEarly, "3",
        "The use of a mark ends with the acknowledgement, not when the write is durable on each copy.";
    NoRotation, "4", "A Primary that loses its peer goes on in the generation that the peer may carry.";
    AckDuringRotation, "4", "Writes are acknowledged before the generation that follows a loss is durable.";
    FlushDuringRotation, "4", "A FLUSH is acknowledged before the generation that follows a loss is durable.";
    PromoteWithoutRotation, "4", "A promotion without the peer begins no generation.";
    AckDuringFarewell, "4", "A write is acknowledged that only a leaving copy has on its disk.";
    LeaveFailureUnrecorded, "5", "A copy that failed takes its leave before that is on record.";
    KeepUnusedGeneration, "5", "A generation counts that a failed copy began in a record that was never complete.";
    ForgetUnrecordedFailure, "5", "A failure that nobody could record is forgotten by its own process.";
    ServeOverOwnLink, "5", "A failing copy is served over the link on which it served.";
    WrittenBeforeDone, "6", "The peer says written when it begins to write.";
    DurableBeforeFlush, "6", "The peer says durable without an fdatasync.";
    FlushHereOnly, "6", "A FLUSH is acknowledged when the local disk has made everything durable.";
    IgnoreFlushError, "6", "A failed fdatasync counts as one that ended well.";
    TrustLaterFlush, "6", "An fdatasync that ends after another one failed counts.";
    ForgetWhatPeerLacks, "7", "What a lost peer has not confirmed as durable does not become dirty bits.";
    WriteAloneWithoutBits, "7", "A write without the peer sets no bits.";
    ServeWithoutBits, "7", "A write served for a node without disk sets no bits.";
    RefuseWithoutBits, "7", "A write that failed on the only good copy sets no bits on either side.";
    ClearBeforeTheTargetsFlush, "7", "Bits are cleared when the target has written the blocks, before its fdatasync.";
    ClearBeforeTheSourcesFlush, "7", "Bits are cleared before the fdatasync of the source.";
    ClearDespiteNewWrite, "7", "A block that was dirtied again while it was copied is cleared with its batch.";
    IgnoreThePeersBits, "7", "A resync goes over the own bits only, not over the union.";
    TakeChangedSnapshot, "8",
        "A snapshot is told while it changes, and a verdict is acted on although it has changed since.";
    ActBeforeThePeersVerdict, "9", "A verdict is acted on before the peer has said its own.";
    MirrorBeforeInconsistent, "10", "A target takes writes before it is durably Inconsistent.";
    UpToDateBeforeRecorded, "10", "A target says that it is UpToDate before that is durable.";
    FinishBeforeWithdrawal, "11",
        "A target is told to finish before the proof that it is behind is durably withdrawn.";
    ForgetBeforeConfirmed, "11", "A source forgets that the target is behind before the target has confirmed.";
    ResyncReadsStale, "12", "A resync piece is read without the lock of its range.";
    TargetPrimaryWithoutLock, "12", "A Primary that is the target asks for a piece without holding its lock.";
    GoOnAfterPowerLoss, "13", "A Primary that is the target goes on through a source that lost power since.";
    ExportBeforeRecord, "15", "The export opens before the promotion is durable.";
    GrantBeforeRecord, "15", "A promotion is agreed to before that is durable.";
    PromoteOverPieces, "15", "A target is promoted while resync pieces are under way that hold no lock.";
    DemoteBeforeFlush, "15", "The peer hears of a demotion before everything is flushed on both copies.";
    WriteWithoutFlag, "16", "No record says that the copy may be written.";
    CleanWithoutFlush, "16", "A copy counts as clean without an fdatasync.";
    ForgetUnclean, "16", "An unclean stop is forgotten at the next start.";
    FinishWithBitsLeft, "18", "A resync ends although bits are left at the source.";
    HandshakeBeforeOldWrites, "19",
        "A snapshot is taken while writes of an old link run, and nothing waits for them.";
    TakeFramesOfAnOldLink, "19", "Frames of a link that is gone count for the one that is up.";
    PeerWritesUnordered, "20", "A receiver applies overlapping writes at the same time.";
    OverlapUnordered, "20", "The overlap lock grants everything at once.";
    PromoteOutdated, "D3", "A copy that is known to be behind is promoted without a flag.";
    PromoteUnproven, "D3", "A copy that may be behind is promoted without a flag.";
    ForgetUnmetVerdict, "D3", "A copy forgets a verdict that it is behind when the link is lost before both met it.";
    PromoteUnclean, "D3", "A copy that stopped uncleanly is promoted without a flag.";
    ReadStaleBlocks, "D1", "Reads of a target's stale blocks are answered from its own disk.";
    ReadPastTheLock, "D1", "A read does not wait for an overlapping write.";
    AnswerFromAFailedDisk, "D1", "A read that ended after its disk had failed is answered with what the disk gave.";
    RepairWithoutLock, "D4", "A block is repaired while clients write to it.";
    DropMarksAtAttach, "D5", "The regions that were hot at a crash do not become dirty bits.";
    SettleSplitBrain, "D6", "Parted histories are settled without the operator.";
    ClaimSplitBrain, "D6", "A copy that is only behind is reported as split brain.";
    SyncFromBehind, "D7", "The copy that is behind becomes the source.";
    CopyInFull, "D7", "Everything is copied where the bitmap suffices.";
    TrustOldImage, "D5", "A copy restored from an older image is not recognised.";
    NoTimerForRetry, "D7", "Blocks that could not be read are never asked for again.";
    TakeOlderRecord, "D8", "Recovery takes the older one of two superblocks.";
    IgnoreMetadataError, "D8", "A metadata write that failed counts as durable.";
    SecondaryStandsBehind, "D7", "A Secondary whose disk is given up records itself as behind.";
    FarewellWithoutFlush, "D1", "The copy that stays agrees to a farewell without an fdatasync.";
    HalfAWriteIsDone, "D1", "A write whose client stops in the middle of it is answered as if it were done.";
    WriteElsewhereAtTheEnd, "10",
        "A target whose record says that it is complete lets a write go to the peer alone.";
    InvalidateInACheckpoint, "7", "A copy is declared wrong while a batch is made durable, which then clears bits.";
    TrustDoubtfulDigest, "D4", "An equal digest counts where a write has failed at the source.";
    ForgetDoubtsAtDemotion, "D1", "A target may be promoted that has a write which failed at its source.";
    SecondarySkipsCheckpoints, "checkpoint", "A Secondary's writes set no bits in its checkpoints.";
    EqualSkipsCheckpoints, "checkpoint", "A resync piece that is equal already sets no bits in checkpoints.";
    CoolBehindEndedCheckpoint, "2",
        "A mark is removed whose bits only an ended checkpoint needs, before it is on record that it ended.";
    CoolBeforeCheckpoints, "2", "A mark is removed before the bits of its region are on disk in each checkpoint.";
    CoverSurvivesDemotion, "checkpoint", "A checkpoint counts as covered by marks after its Primary was demoted.";
    TrustUncoveredCheckpoint, "checkpoint", "A checkpoint that no mark covered is complete after an unclean stop.";
    DurableOvertakes, "D7", "Durable overtakes the word that a write has failed.";
}

/// Is this bug planted?
#[cfg(not(feature = "canary"))]
#[inline(always)]
pub const fn is_planted(_bug: Bug) -> bool {
    false
}

#[cfg(feature = "canary")]
mod planted {
    use super::Bug;
    use core::sync::atomic::{AtomicU8, Ordering};

    const NONE: u8 = u8::MAX;
    static PLANTED: AtomicU8 = AtomicU8::new(NONE);

    /// Plants a bug in the whole process in place of the one before; `None`: all rules hold.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.store(bug.map_or(NONE, |bug| bug as u8), Ordering::SeqCst);
    }

    /// Is this bug planted?
    pub fn is_planted(bug: Bug) -> bool {
        PLANTED.load(Ordering::Relaxed) == bug as u8
    }
}

#[cfg(feature = "canary")]
pub use planted::{is_planted, plant};
