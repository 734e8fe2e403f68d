//! What the runs of each planted bug are set up for: small volumes, short storms, and the faults after which its rule
//! matters. A run is still drawn from its seed; an aim only moves the odds.

use crate::setup::{Faults, Focus, MS, Setup, US};
use lockstep_bitmap::canary::Bug;
use std::time::Duration;

/// Verbs of the operator, as `operator.rs` numbers them.
const MOVES: &[u64] = &[0, 1, 5, 2];
const LEAVES: &[u64] = &[4, 6, 4, 6, 0];
const REBUILDS: &[u64] = &[7, 8, 7, 0, 5];
const SLOW_COPIES: &[u64] = &[0, 0, 9, 5];
/// Ailments of disks, as `fault.rs` numbers them.
const WRITES_FAIL: &[u64] = &[1, 5];
const READS_FAIL: &[u64] = &[2, 6];
const FLUSHES_FAIL: &[u64] = &[3, 7];
const METADATA_FAILS: &[u64] = &[4, 0];

/// The run of this seed, set up for the moment at which the rule of `bug` matters.
pub(crate) fn aimed(bug: Bug, seed: u64) -> Setup {
    let mut s = small(seed);
    match bug {
        Bug::FlushDuringRotation | Bug::AckDuringRotation => {
            (s.meta_ns, s.flush_ns) = (3000 * US, 50 * US);
            s.faults = Faults { reset: true, ..Faults::default() };
        }
        Bug::PromoteWithoutRotation | Bug::AckDuringFarewell | Bug::FarewellWithoutFlush => {
            operator(&mut s, LEAVES);
            s.meta_ns = 1000 * US;
        }
        Bug::DemoteBeforeFlush => {
            operator(&mut s, MOVES);
            s.flush_ns = 5000 * US;
        }
        Bug::GrantBeforeRecord | Bug::ExportBeforeRecord => operator(&mut s, MOVES),
        Bug::PromoteOutdated | Bug::PromoteUnproven | Bug::PromoteUnclean | Bug::ForgetUnclean => {
            operator(&mut s, LEAVES);
            (s.faults.crash, s.faults.power) = (true, true);
            s.survives = [false; 2];
        }
        Bug::TrustLaterFlush => {
            disks(&mut s, FLUSHES_FAIL);
            operator(&mut s, REBUILDS);
            (s.meta_ns, s.flush_ns) = (8000 * US, 5000 * US);
        }
        Bug::LeaveFailureUnrecorded | Bug::IgnoreFlushError | Bug::AnswerFromAFailedDisk => {
            disks(&mut s, FLUSHES_FAIL);
            (s.faults.reset, s.faults.crash) = (true, true);
        }
        Bug::ForgetUnrecordedFailure | Bug::IgnoreMetadataError => disks(&mut s, METADATA_FAILS),
        Bug::ServeOverOwnLink => disks(&mut s, &[1, 3, 4, 7]),
        Bug::SecondaryStandsBehind => disks(&mut s, &[6]),
        Bug::RepairWithoutLock => disks(&mut s, READS_FAIL),
        Bug::ClearDespiteNewWrite | Bug::FinishWithBitsLeft => {
            disks(&mut s, WRITES_FAIL);
            operator(&mut s, REBUILDS);
            s.faults.crash = true;
        }
        Bug::RefuseWithoutBits => {
            disks(&mut s, WRITES_FAIL);
            operator(&mut s, SLOW_COPIES);
            slow_copies(&mut s);
            s.faults.reset = true;
            s.granule_bytes = [4096; 2];
        }
        Bug::ServeWithoutBits => disks(&mut s, FLUSHES_FAIL),
        Bug::TargetPrimaryWithoutLock | Bug::ReadStaleBlocks | Bug::PromoteOverPieces => {
            operator(&mut s, SLOW_COPIES);
            slow_copies(&mut s);
            s.faults.reset = true;
        }
        Bug::ResyncReadsStale | Bug::PeerWritesUnordered | Bug::CopyInFull => {
            operator(&mut s, REBUILDS);
            slow_copies(&mut s);
            (s.faults.reset, s.faults.crash) = (true, true);
        }
        Bug::HandshakeBeforeOldWrites | Bug::TakeFramesOfAnOldLink => {
            s.faults = Faults { reset: true, ..Faults::default() };
            (s.disk_ns, s.think_ns) = ([5000 * US; 2], 500 * US);
            s.timing.redial_min = Duration::from_micros(100);
            s.timing.redial_max = s.timing.redial_min;
            if bug == Bug::TakeFramesOfAnOldLink {
                s.wire_ns = 5000 * US;
            }
        }
        Bug::TakeChangedSnapshot => {
            // The rotation takes longer than the next link.
            s.faults = Faults { reset: true, ..Faults::default() };
            (s.meta_ns, s.wire_ns) = (8000 * US, 200 * US);
            s.timing.redial_min = Duration::from_micros(100);
            s.timing.redial_max = s.timing.redial_min;
        }
        Bug::SecondarySkipsCheckpoints | Bug::CoverSurvivesDemotion => checkpoints(&mut s),
        Bug::TrustUncoveredCheckpoint | Bug::CoolBeforeCheckpoints => checkpoints(&mut s),
        Bug::TrustOldImage => s.faults = Faults { image: true, reset: true, ..Faults::default() },
        Bug::NoTimerForRetry => {
            operator(&mut s, &[7]);
            s.faults.unreadable = true;
        }
        Bug::SettleSplitBrain => {
            s.faults =
                Faults { dishonest: true, stall: true, reset: true, refuse: true, ..Faults::default() };
        }
        Bug::TakeOlderRecord => {
            s.faults = Faults { crash: true, power: true, aimed: true, ..Faults::default() };
            s.meta_ns = 1000 * US;
            s.focus.codes = &[6];
        }
        _ => {
            s.faults = Faults { crash: true, power: true, reset: true, aimed: true, ..Faults::default() };
        }
    }
    s
}

/// A short storm over a small volume under load.
fn small(seed: u64) -> Setup {
    let mut s = Setup { one_device: [false; 2], ..Setup::of(seed) };
    s.sectors = 2048 + s.sectors % 1024 / 8 * 8;
    s.hot_sectors = 64 << (seed % 4);
    (s.clients, s.depth) = (2, s.depth.max(4));
    s.think_ns = s.think_ns.min(1000 * US);
    s.stormy_ns = 400 * MS + s.stormy_ns % (400 * MS);
    // The first copy has to end before anything is worth losing.
    s.fault_gap_ns = 60 * MS;
    (s.max_hot, s.timing.epoch) = (2, Duration::from_millis(20));
    (s.faults, s.survivors) = (Faults::default(), [true; 2]);
    s.focus = Focus { often: true, ..Focus::default() };
    s.checkpoints = 0;
    // A slow disk is no dead one, and there is nobody to replace it.
    s.timing.disk_timeout = None;
    s
}

/// A resync takes long, and clients write all over it.
fn slow_copies(s: &mut Setup) {
    (s.wire_ns_per_kib, s.resync_window, s.disk_ns) = (60_000, 2, [500 * US; 2]);
    s.hot_sectors = 1024;
}

/// Bits stay in memory for long, while the Primary moves and nodes are killed.
fn checkpoints(s: &mut Setup) {
    operator(s, MOVES);
    (s.checkpoints, s.faults.crash, s.faults.reset) = (4, true, true);
    s.timing.lazy_write = Duration::from_millis(500);
}

fn operator(s: &mut Setup, verbs: &'static [u64]) {
    s.faults.operator = true;
    s.focus.verbs = verbs;
}

fn disks(s: &mut Setup, ailments: &'static [u64]) {
    s.fault_gap_ns = 30 * MS;
    s.faults.disk = true;
    s.focus.ailments = ailments;
}
