//! The rules of the verdict, first match wins: disk, size, sessions, disk state, generations.
//!
//! Every function takes the two snapshots in an order that both ends agree on: by node id, or source before
//! target. An error is a refusal. A resync can only be made in [`sync`], which keeps a Primary from being
//! overwritten.
#![deny(clippy::indexing_slicing)]

use super::{Standstill, SyncWhy, Verdict, may_carry};
use crate::snapshot::Snapshot;
use crate::status::{DiskState, Role};
use core::cmp::Reverse;
use lockstep_bitmap::canary::{Bug, is_planted};
use lockstep_bitmap::{Base, CopyRank, GenerationId, Origin};

type Decision = Result<Verdict, Standstill>;

/// Decides about two copies, the lower node id first.
pub(super) fn decide(low: &Snapshot, high: &Snapshot) -> Decision {
    if low.node == high.node {
        return Err(Standstill::Unrelated);
    }
    match (without_disk(low), without_disk(high)) {
        (true, true) => return Err(Standstill::Diskless),
        (true, false) => return serve(high, low),
        (false, true) => return serve(low, high),
        (false, false) => {}
    }
    // Bits mean the same blocks only at the same block size.
    if (low.size_bytes, low.block_shift) != (high.size_bytes, high.block_shift) {
        return Err(Standstill::SizeMismatch);
    }
    if low.log.current().is_none() && high.log.current().is_none() {
        return both_fresh(low, high);
    }
    match (restored(low, high), restored(high, low)) {
        // Honest ends offer more than they used, so that this is a contradiction, or both images are old.
        (true, true) => Err(Standstill::NoSource),
        (true, false) => resync_restored(high, low),
        (false, true) => resync_restored(low, high),
        (false, false) => by_disk_state(low, high),
    }
}

/// The table of the design, for two copies of which neither was restored.
fn by_disk_state(low: &Snapshot, high: &Snapshot) -> Decision {
    match (cannot_give(low), cannot_give(high)) {
        (true, true) => Err(Standstill::NoSource),
        (true, false) => resync_incomplete(high, low),
        (false, true) => resync_incomplete(low, high),
        (false, false) => by_generation(low, high),
    }
}

/// Two copies of which each is whole in some generation.
///
/// Only the log says who is ahead. A base that is in the log adds nothing; one that is not names a generation
/// which the peer began alone (it was met while a resync was refused), and to call that "behind" would drop
/// its writes.
fn by_generation(low: &Snapshot, high: &Snapshot) -> Decision {
    let (Some(of_low), Some(of_high)) = (current(low), current(high)) else {
        return Err(Standstill::NoSource);
    };
    if of_low == of_high {
        return same_generation(low, high);
    }
    match (low.log.contains(of_high), high.log.contains(of_low)) {
        (true, false) | (false, true) if is_planted(Bug::ClaimSplitBrain) => parted(low, high),
        (true, false) if is_planted(Bug::SyncFromBehind) => ahead(high, low),
        (true, false) if !gave_up_better(low, high) => ahead(low, high),
        (false, true) if !gave_up_better(high, low) => ahead(high, low),
        // Each knowing the other's is a contradiction: neither is only behind, so the operator decides.
        _ if is_planted(Bug::SettleSplitBrain) => ahead(low, high),
        _ => parted(low, high),
    }
}

fn both_fresh(low: &Snapshot, high: &Snapshot) -> Decision {
    let untouched = |s: &Snapshot| {
        s.declared_clean && s.slot_empty && s.becoming.is_none() && !s.unclean && s.role == Role::Secondary
    };
    if untouched(low) && untouched(high) && low.sample == high.sample {
        return Ok(Verdict::Adopt { generation: low.proposal });
    }
    Err(Standstill::NoSource)
}

fn same_generation(low: &Snapshot, high: &Snapshot) -> Decision {
    if low.role == Role::Primary && high.role == Role::Primary {
        return Err(Standstill::TargetIsPrimary);
    }
    let unclean = low.unclean || high.unclean;
    if !unclean && low.slot_empty && high.slot_empty {
        return Ok(Verdict::NoSync);
    }
    // Both hold every write that the other may rely on (I1, I2); the union of bits and hot regions holds
    // every block that differs (D5). So either may be source, and the order only says whose last writes live
    // on.
    let merit = |s: &Snapshot| (s.disk, s.role == Role::Primary, !s.unclean, s.term, Reverse(s.node));
    let (source, target) = if merit(low) > merit(high) { (low, high) } else { (high, low) };
    sync(source, target, false, SyncWhy::SameGeneration)
}

fn ahead(source: &Snapshot, target: &Snapshot) -> Decision {
    let full = !reaches_back(source, target) || is_planted(Bug::CopyInFull);
    sync(source, target, full, SyncWhy::Ahead)
}

/// The target is Inconsistent or has no generation; the source is whole.
fn resync_incomplete(source: &Snapshot, target: &Snapshot) -> Decision {
    let fresh = target.log.current().is_none();
    let awaited = awaited(target);
    if awaited.is_some_and(|generation| source.log.contains(generation)) {
        return sync(source, target, !goes_on(source, target), SyncWhy::Unfinished);
    }
    if fresh {
        return first_sync(source, target);
    }
    // It holds, or was becoming, something that this source never had.
    parted(source, target)
}

/// The target has no data at all, or a mixture that no living copy can complete.
fn first_sync(source: &Snapshot, target: &Snapshot) -> Decision {
    // The target proves nothing, so the source must know by itself that it is the newest.
    if source.disk != DiskState::UpToDate {
        return Err(Standstill::NoSource);
    }
    sync(source, target, true, SyncWhy::Fresh)
}

/// The target was restored from an older image: no bitmap tells what it lost.
fn resync_restored(source: &Snapshot, target: &Snapshot) -> Decision {
    if cannot_give(source) {
        return Err(Standstill::NoSource);
    }
    match awaited(target) {
        Some(generation) if source.log.contains(generation) => {}
        _ if target.log.current().is_none() => return first_sync(source, target),
        // It rotated since it was restored: it may hold acknowledged writes of its own.
        _ => return parted(source, target),
    }
    if target.role == Role::Primary {
        return Err(Standstill::TargetIsPrimary);
    }
    sync(source, target, true, SyncWhy::Restored)
}

/// Neither copy's history contains the other: only the operator may choose.
fn parted(one: &Snapshot, other: &Snapshot) -> Decision {
    let common = one.log.common_ancestor(&other.log).ok_or(Standstill::Unrelated)?;
    let loses = |s: &Snapshot| one.discard == Some(s.node) || other.discard == Some(s.node);
    let (source, target) = match (loses(one), loses(other)) {
        (false, false) => return Err(Standstill::SplitBrain),
        (true, true) => return Err(Standstill::BothDiscard),
        (true, false) => (other, one),
        (false, true) => (one, other),
    };
    if cannot_give(source) {
        return Err(Standstill::NoSource);
    }
    // Two slots that both begin at the common ancestor hold all that either side changed since. A side that
    // is still at the common ancestor has changed nothing that its hot regions do not hold.
    let since_common = |s: &Snapshot| match s.base {
        Base::Generation(base) => base == common,
        Base::Unset => current(s) == Some(common),
        Base::NoGeneration => false,
    };
    let unambiguous = other.log.common_ancestor(&one.log) == Some(common);
    let bitmap = unambiguous
        && since_common(one)
        && since_common(other)
        && !cannot_give(target)
        && !restored(one, other)
        && !restored(other, one);
    sync(source, target, !bitmap, SyncWhy::Resolved)
}

/// The only place that makes a resync.
fn sync(source: &Snapshot, target: &Snapshot, full: bool, why: SyncWhy) -> Decision {
    debug_assert!(!cannot_give(source), "an incomplete copy as source");
    if target.role == Role::Primary && !reads_through(source, target) {
        return Err(Standstill::TargetIsPrimary);
    }
    if source.role == Role::Primary && source.disk != DiskState::UpToDate {
        // It took back a disk that may lack what its clients have seen: they must not see older blocks in silence.
        return Err(Standstill::TargetIsPrimary);
    }
    // After a crash most blocks of a hot region are equal; of a whole copy, whatever is there may be equal. A target
    // whose own slot begins at nothing was declared wrong as a whole.
    let whole_copy = full || target.log.current().is_none() || target.base == Base::NoGeneration;
    let hash_first = whole_copy || [source, target].iter().any(|copy| copy.unclean || copy.marked);
    Ok(Verdict::Sync { source: source.node, full, hash_first, why })
}

/// `lost` has no disk. Its clients go on through the other copy if that is UpToDate, or becomes so because it is the
/// very copy that the Primary last wrote through (ordering 13).
fn serve(server: &Snapshot, lost: &Snapshot) -> Decision {
    let Some(now) = current(server).filter(|_| server.disk >= DiskState::Consistent) else {
        return Err(Standstill::Diskless);
    };
    match (lost.role, server.role) {
        (Role::Primary, Role::Primary) => return Err(Standstill::TargetIsPrimary),
        (Role::Primary, Role::Secondary) if !reads_through(server, lost) => return Err(Standstill::Diskless),
        _ => {}
    }
    let same_copy = lost.role == Role::Primary && lost.continues;
    if server.disk != DiskState::UpToDate && !same_copy {
        return Err(Standstill::Diskless);
    }
    // Ordering 5: nothing is acknowledged by one copy while the lost one may carry its generation.
    let generation = if may_carry(server.peer_copy, server.base, Some(now)) { server.proposal } else { now };
    Ok(Verdict::Serve { server: server.node, generation })
}

/// The clients of this Primary have seen nothing but what the source has: its own copy is not what they read,
/// nobody was promoted, nothing rotated, since it last wrote through the source. A source that stopped uncleanly since
/// may lack writes that were acknowledged and not flushed: these clients must not see older blocks in silence; unless
/// its kernel is the same, which has every write that completed. One that failed says Outdated, and never qualifies.
fn reads_through(source: &Snapshot, target: &Snapshot) -> bool {
    source.role == Role::Secondary
        && source.disk >= DiskState::Consistent
        && (!source.unclean || target.continues || is_planted(Bug::GoOnAfterPowerLoss))
        && target.disk != DiskState::UpToDate
        && current(source).is_some_and(|generation| target.wrote_through == Some((generation, source.term)))
}

/// True if the slot of `source`, with the slot and the hot regions of `target`, covers every block that
/// differs.
///
/// The base is what the target was when the slot began to remember. At that instant the slot held every
/// differing block that the target's own slot did not; since then each write of the source that was not made
/// durable at the target set a bit, each write of the target that was not made durable at the source set one
/// there, and a bit is cleared only when its block is durable on both (ordering 7). Later losses add bits and
/// do not move the base. So the slot is good for any copy that *descends* from the base: one whose log
/// contains it, newer or not, as long as nobody put an older image back (the session numbers tell).
/// `NoGeneration` is a slot that was set full for a target that had nothing yet; a target that has a
/// generation since got it over this slot.
fn reaches_back(source: &Snapshot, target: &Snapshot) -> bool {
    match source.base {
        Base::Generation(base) => target.log.contains(base),
        Base::NoGeneration => target.log.current().is_some(),
        Base::Unset => false,
    }
}

/// True if an interrupted resync goes on over the bits that are left.
fn goes_on(source: &Snapshot, target: &Snapshot) -> bool {
    let from_here = target.becoming.is_some_and(|becoming| becoming.node == source.node);
    // It began within one generation, and that is still the source's: what differs is in the bits and hot
    // regions of both (D5), even if it was cut before the source took over the bits that only the target has.
    let within_one = current(target).is_some_and(|generation| {
        from_here && awaited(target) == Some(generation) && current(source) == Some(generation)
    });
    // A fresh copy that began to take data from here met a full slot; bits were cleared only as it took them.
    let since_nothing = from_here && source.base == Base::NoGeneration;
    within_one || since_nothing || reaches_back(source, target)
}

/// The generation after the target's in the source's chain was begun from a copy that was worse than the
/// target: the source lacks writes that the target has.
fn gave_up_better(source: &Snapshot, target: &Snapshot) -> bool {
    let Some(generation) = current(target) else { return false };
    let Some(position) = source.log.position(generation) else { return false };
    source.log.entries().get(position + 1).is_some_and(|next| {
        // A gap in the log hides how the next one began: let the operator look.
        next.parent != Some(generation)
            || matches!(next.origin, Origin::DataLoss { from } if from < rank(target))
    })
}

fn rank(copy: &Snapshot) -> CopyRank {
    match copy.disk {
        DiskState::Diskless | DiskState::Failed | DiskState::Inconsistent => CopyRank::Inconsistent,
        DiskState::Outdated => CopyRank::Outdated,
        DiskState::Consistent | DiskState::UpToDate if copy.unclean => CopyRank::Unclean,
        DiskState::Consistent | DiskState::UpToDate => CopyRank::Clean,
    }
}

/// The generation that a source must know to complete the target.
fn awaited(target: &Snapshot) -> Option<GenerationId> {
    let becoming = target.becoming.filter(|_| target.disk == DiskState::Inconsistent);
    becoming.map(|becoming| becoming.generation).or(current(target))
}

/// The offered number was used before: this copy's metadata is older than what the peer did with it.
fn restored(copy: &Snapshot, peer: &Snapshot) -> bool {
    copy.session_offered < peer.session_used && !is_planted(Bug::TrustOldImage)
}

fn cannot_give(copy: &Snapshot) -> bool {
    copy.disk == DiskState::Inconsistent || copy.log.current().is_none()
}

fn without_disk(copy: &Snapshot) -> bool {
    matches!(copy.disk, DiskState::Diskless | DiskState::Failed)
}

fn current(copy: &Snapshot) -> Option<GenerationId> {
    copy.log.current().map(|generation| generation.id)
}
