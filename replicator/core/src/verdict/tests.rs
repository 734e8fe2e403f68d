//! The table of the verdict, row by row, and the promises that hold for all pairs of snapshots.

use super::{Standstill, SyncWhy, Verdict, verdict};
use crate::snapshot::Snapshot;
use crate::status::{DiskState, Role};
use alloc::string::ToString;
use alloc::vec::Vec;
use lockstep_bitmap::{
    Base, Becoming, CopyRank, Generation, GenerationId, GenerationLog, NodeId, Origin, PeerCopy,
};

mod product;
mod serve;

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);

fn id(name: u128) -> GenerationId {
    GenerationId(name << 96)
}

fn base(name: u128) -> Base {
    Base::Generation(id(name))
}

/// A chain of generations, all begun by a plain promotion.
fn chain(names: &[u128]) -> GenerationLog {
    chain_from(names, Origin::Promoted)
}

/// A chain of which every generation but the first began with `origin`.
fn chain_from(names: &[u128], origin: Origin) -> GenerationLog {
    let mut parent = None;
    let entries: Vec<_> = (1u64..)
        .zip(names)
        .map(|(ordinal, name)| {
            let origin = if parent.is_none() { Origin::Created } else { origin };
            let before = parent.replace(id(*name));
            Generation { id: id(*name), ordinal, parent: before, node: A, began_unix_ms: 0, origin }
        })
        .collect();
    GenerationLog::from_entries(entries).unwrap()
}

/// A clean, UpToDate Secondary without dirty bits.
fn copy(node: NodeId, names: &[u128]) -> Snapshot {
    Snapshot {
        node,
        size_bytes: 1 << 20,
        granule_bytes: 512,
        block_shift: 12,
        role: Role::Secondary,
        disk: DiskState::UpToDate,
        term: 1,
        log: chain(names),
        becoming: None,
        unclean: false,
        marked: false,
        base: Base::Unset,
        peer_copy: PeerCopy::MayHold,
        slot_empty: true,
        dirty_bytes: 0,
        session_offered: 7,
        session_used: 7,
        discard: None,
        declared_clean: false,
        sample: 5,
        proposal: GenerationId(u128::from(node.0)),
        wrote_through: None,
        continues: false,
        began_unix_ms: 0,
    }
}

fn fresh(node: NodeId) -> Snapshot {
    Snapshot { disk: DiskState::Inconsistent, ..copy(node, &[]) }
}

/// A copy that remembers what the peer misses since `since`.
fn degraded(node: NodeId, names: &[u128], since: u128) -> Snapshot {
    Snapshot { base: base(since), slot_empty: false, ..copy(node, names) }
}

/// A copy into which a resync from the peer did not end.
fn halfway(node: NodeId, names: &[u128], becoming: u128) -> Snapshot {
    let source = if node == A { B } else { A };
    let becoming = Some(Becoming { generation: id(becoming), node: source });
    Snapshot { disk: DiskState::Inconsistent, becoming, ..copy(node, names) }
}

fn bitmap(source: NodeId, why: SyncWhy) -> Verdict {
    Verdict::Sync { source, full: false, hash_first: false, why }
}

fn bitmap_hashed(source: NodeId, why: SyncWhy) -> Verdict {
    Verdict::Sync { source, full: false, hash_first: true, why }
}

fn full(source: NodeId, why: SyncWhy) -> Verdict {
    Verdict::Sync { source, full: true, hash_first: true, why }
}

/// Both ends agree, and it is this.
#[track_caller]
fn expect(one: &Snapshot, other: &Snapshot, expected: Verdict) {
    assert_eq!(verdict(one, other), expected);
    assert_eq!(verdict(other, one), expected);
}

#[track_caller]
fn refused(one: &Snapshot, other: &Snapshot, expected: Standstill) {
    expect(one, other, Verdict::Refuse(expected));
}

#[test]
fn same_generation_and_nothing_dirty_needs_no_sync() {
    for disk in [DiskState::Outdated, DiskState::Consistent, DiskState::UpToDate] {
        let a = Snapshot { disk, role: Role::Primary, ..copy(A, &[1, 2]) };
        expect(&a, &copy(B, &[1, 2]), Verdict::NoSync);
    }
}

#[test]
fn same_generation_with_bits_on_either_side_is_a_bitmap_resync() {
    let (clean, dirty) = (copy(A, &[1]), degraded(B, &[1], 1));
    expect(&clean, &dirty, bitmap(A, SyncWhy::SameGeneration));
    let dirty = degraded(A, &[1], 1);
    expect(&dirty, &copy(B, &[1]), bitmap(A, SyncWhy::SameGeneration));
}

#[test]
fn same_generation_source_follows_the_total_order() {
    let worst = Snapshot { disk: DiskState::Outdated, ..degraded(A, &[1], 1) };
    let unclean = Snapshot { unclean: true, disk: DiskState::Consistent, ..copy(B, &[1]) };
    expect(&worst, &unclean, bitmap_hashed(B, SyncWhy::SameGeneration));

    let primary = Snapshot { role: Role::Primary, unclean: true, term: 0, ..copy(B, &[1]) };
    expect(&copy(A, &[1]), &primary, bitmap_hashed(B, SyncWhy::SameGeneration));

    let unclean = Snapshot { unclean: true, term: 9, ..copy(A, &[1]) };
    expect(&unclean, &copy(B, &[1]), bitmap_hashed(B, SyncWhy::SameGeneration));

    let marked = Snapshot { marked: true, ..degraded(B, &[1], 1) };
    expect(&copy(A, &[1]), &marked, bitmap_hashed(A, SyncWhy::SameGeneration));
    expect(
        &Snapshot { marked: true, ..copy(A, &[1]) },
        &degraded(B, &[1], 1),
        bitmap_hashed(A, SyncWhy::SameGeneration),
    );

    let crashed = |node, term| Snapshot { unclean: true, term, ..copy(node, &[1]) };
    expect(&crashed(A, 1), &crashed(B, 2), bitmap_hashed(B, SyncWhy::SameGeneration));
    expect(&crashed(A, 2), &crashed(B, 2), bitmap_hashed(A, SyncWhy::SameGeneration));
}

#[test]
fn same_generation_source_is_the_better_disk_even_of_a_secondary() {
    let stale = Snapshot { disk: DiskState::Outdated, role: Role::Primary, ..copy(A, &[1]) };
    let better = degraded(B, &[1], 1);
    refused(&stale, &better, Standstill::TargetIsPrimary);
    let through = Snapshot { wrote_through: Some((id(1), 1)), ..stale };
    expect(&through, &better, bitmap(B, SyncWhy::SameGeneration));
}

#[test]
fn ahead_is_a_bitmap_resync_when_the_slot_reaches_back() {
    expect(&degraded(A, &[1, 2], 1), &copy(B, &[1]), bitmap(A, SyncWhy::Ahead));
    // The target finished one resync, which was not confirmed, before it was lost again: older base, same
    // slot.
    expect(&copy(A, &[1, 2]), &degraded(B, &[1, 2, 3], 1), bitmap(B, SyncWhy::Ahead));
    let since_nothing = Snapshot { base: Base::NoGeneration, ..degraded(A, &[1, 2], 1) };
    expect(&since_nothing, &copy(B, &[1]), bitmap(A, SyncWhy::Ahead));
    let crashed = Snapshot { unclean: true, disk: DiskState::Consistent, ..copy(B, &[1]) };
    expect(&degraded(A, &[1, 2], 1), &crashed, bitmap_hashed(A, SyncWhy::Ahead));
}

#[test]
fn a_copy_declared_wrong_is_compared_over_its_own_full_slot() {
    let becoming = Some(Becoming { generation: id(1), node: A });
    let wrong = Snapshot {
        disk: DiskState::Inconsistent,
        becoming,
        base: Base::NoGeneration,
        slot_empty: false,
        ..copy(B, &[1])
    };
    expect(&copy(A, &[1]), &wrong, bitmap_hashed(A, SyncWhy::Unfinished));
    expect(&degraded(A, &[1, 2], 1), &wrong, bitmap_hashed(A, SyncWhy::Unfinished));
    refused(&copy(A, &[3, 4]), &wrong, Standstill::Unrelated);
}

#[test]
fn ahead_is_full_when_the_slot_does_not_reach_back() {
    expect(&copy(A, &[1, 2]), &copy(B, &[1]), full(A, SyncWhy::Ahead));
    expect(&degraded(A, &[1, 2, 3], 2), &copy(B, &[1]), full(A, SyncWhy::Ahead));
}

#[test]
fn a_base_outside_the_own_log_does_not_make_one_ahead() {
    // A met B at generation 3 while a resync was refused, and went on alone: two histories.
    refused(&degraded(A, &[1, 2], 3), &copy(B, &[1, 3]), Standstill::SplitBrain);
}

#[test]
fn data_loss_accepted_from_a_worse_copy_is_split_brain() {
    let ranks = [CopyRank::Inconsistent, CopyRank::Outdated, CopyRank::Unclean, CopyRank::Clean];
    let behind = [
        Snapshot { disk: DiskState::Outdated, ..copy(B, &[1]) },
        Snapshot { disk: DiskState::Consistent, unclean: true, ..copy(B, &[1]) },
        Snapshot { disk: DiskState::Consistent, ..copy(B, &[1]) },
    ];
    for (better_than, from) in ranks.into_iter().enumerate() {
        for (rank, target) in (1..).zip(&behind) {
            let log = chain_from(&[1, 2], Origin::DataLoss { from });
            let source = Snapshot { log, ..degraded(A, &[1], 1) };
            let decided = verdict(&source, target);
            if better_than < rank {
                assert_eq!(decided, Verdict::Refuse(Standstill::SplitBrain));
                // Nothing was lost track of: the operator's word makes it a bitmap resync.
                let told = Snapshot { discard: Some(B), ..target.clone() };
                assert!(matches!(verdict(&source, &told), Verdict::Sync { source: A, full: false, .. }));
            } else {
                assert!(matches!(decided, Verdict::Sync { source: A, why: SyncWhy::Ahead, .. }));
            }
        }
    }
}

#[test]
fn only_the_first_generation_after_the_peers_can_have_given_it_up() {
    let mut log = chain(&[1, 2]);
    let origin = Origin::DataLoss { from: CopyRank::Inconsistent };
    let loss = Generation { id: id(3), ordinal: 9, parent: Some(id(2)), node: A, began_unix_ms: 0, origin };
    log.push(loss, &[]);
    expect(&Snapshot { log, ..degraded(A, &[1], 1) }, &copy(B, &[1]), bitmap(A, SyncWhy::Ahead));
}

#[test]
fn a_gap_after_the_peers_generation_is_split_brain() {
    let log = chain(&[1, 2, 3]);
    let entries = log.entries().iter().filter(|entry| entry.id != id(2)).cloned().collect();
    let log = GenerationLog::from_entries(entries).unwrap();
    refused(&Snapshot { log, ..degraded(A, &[1], 1) }, &copy(B, &[1]), Standstill::SplitBrain);
}

#[test]
fn parted_histories_are_split_brain_until_one_loser_is_named() {
    let (a, b) = (degraded(A, &[1, 2], 1), degraded(B, &[1, 3], 1));
    refused(&a, &b, Standstill::SplitBrain);
    let told = |s: &Snapshot, loser| Snapshot { discard: Some(loser), ..s.clone() };
    expect(&told(&a, B), &b, bitmap(A, SyncWhy::Resolved));
    expect(&a, &told(&b, B), bitmap(A, SyncWhy::Resolved));
    expect(&told(&a, A), &told(&b, A), bitmap(B, SyncWhy::Resolved));
    refused(&told(&a, A), &told(&b, B), Standstill::BothDiscard);
    refused(&told(&a, NodeId(9)), &b, Standstill::SplitBrain);
}

#[test]
fn a_resolved_split_brain_is_full_unless_both_slots_begin_at_the_common_ancestor() {
    let told = Snapshot { discard: Some(B), ..degraded(A, &[1, 2, 3], 2) };
    expect(&told, &degraded(B, &[1, 4], 1), full(A, SyncWhy::Resolved));
    let told = Snapshot { discard: Some(B), ..degraded(A, &[1, 2, 3], 1) };
    expect(&told, &copy(B, &[1, 4]), full(A, SyncWhy::Resolved));
    let since_nothing = Snapshot { base: Base::NoGeneration, ..degraded(B, &[1, 4], 1) };
    expect(&told, &since_nothing, full(A, SyncWhy::Resolved));
}

#[test]
fn the_loser_of_a_split_brain_must_not_be_primary() {
    let loser = Snapshot { role: Role::Primary, ..degraded(B, &[1, 3], 1) };
    refused(&Snapshot { discard: Some(B), ..degraded(A, &[1, 2], 1) }, &loser, Standstill::TargetIsPrimary);
    let both = Snapshot { role: Role::Primary, ..degraded(A, &[1, 2], 1) };
    refused(&both, &loser, Standstill::SplitBrain);
}

#[test]
fn histories_that_contradict_each_other_are_split_brain() {
    refused(&degraded(A, &[1, 2, 3], 3), &degraded(B, &[1, 3, 2], 2), Standstill::SplitBrain);
}

#[test]
fn a_fresh_copy_is_the_target_of_a_full_resync() {
    let source = Snapshot { base: Base::NoGeneration, slot_empty: false, ..copy(A, &[1]) };
    expect(&source, &fresh(B), full(A, SyncWhy::Fresh));
    expect(&fresh(A), &copy(B, &[1, 2]), full(B, SyncWhy::Fresh));
    // Its metadata was made anew, with small session numbers: still only a fresh copy.
    expect(&copy(A, &[1]), &Snapshot { session_offered: 1, ..fresh(B) }, full(A, SyncWhy::Fresh));
}

#[test]
fn a_fresh_copy_takes_data_only_from_an_uptodate_one() {
    for disk in [DiskState::Outdated, DiskState::Consistent] {
        refused(&Snapshot { disk, ..copy(A, &[1]) }, &fresh(B), Standstill::NoSource);
    }
}

#[test]
fn an_interrupted_first_sync_goes_on_over_the_bits_left() {
    let source = Snapshot { base: Base::NoGeneration, slot_empty: false, ..copy(A, &[1, 2]) };
    let crashed = Snapshot { disk: DiskState::Consistent, unclean: true, ..source.clone() };
    expect(&source, &halfway(B, &[], 1), bitmap_hashed(A, SyncWhy::Unfinished));
    expect(&crashed, &halfway(B, &[], 1), bitmap_hashed(A, SyncWhy::Unfinished));
    // A new disk in the middle: the slot is not full any more, this life of the copy has taken nothing.
    expect(&source, &fresh(B), full(A, SyncWhy::Fresh));
    // Its source is gone for good; what it holds is of no use to anyone.
    expect(&source, &halfway(B, &[], 7), full(A, SyncWhy::Fresh));
}

#[test]
fn a_first_sync_from_another_node_tells_nothing_about_this_slot() {
    let source = Snapshot { base: Base::NoGeneration, slot_empty: false, ..copy(A, &[1, 2]) };
    let becoming = Some(Becoming { generation: id(1), node: NodeId(3) });
    expect(&source, &Snapshot { becoming, ..halfway(B, &[], 1) }, full(A, SyncWhy::Unfinished));
}

#[test]
fn a_copy_that_claims_data_without_a_generation_is_fresh() {
    let claims = Snapshot { disk: DiskState::UpToDate, ..fresh(B) };
    expect(&copy(A, &[1]), &claims, full(A, SyncWhy::Fresh));
    refused(&fresh(A), &claims, Standstill::NoSource);
}

#[test]
fn two_fresh_copies_wait_for_the_operator() {
    let clean = |node| Snapshot { declared_clean: true, ..fresh(node) };
    refused(&fresh(A), &fresh(B), Standstill::NoSource);
    refused(&clean(A), &fresh(B), Standstill::NoSource);
    expect(&clean(A), &clean(B), Verdict::Adopt { generation: GenerationId(1) });
    let touched = Snapshot { becoming: halfway(B, &[], 1).becoming, ..clean(B) };
    refused(&clean(A), &touched, Standstill::NoSource);
    // The samples of their blocks tell that they are not equal.
    refused(&clean(A), &Snapshot { sample: 6, ..clean(B) }, Standstill::NoSource);
}

#[test]
fn an_inconsistent_copy_is_completed_from_what_it_was_becoming_or_a_descendant() {
    expect(&degraded(A, &[1, 2], 1), &halfway(B, &[1], 2), bitmap(A, SyncWhy::Unfinished));
    expect(&degraded(A, &[1, 2, 3], 1), &halfway(B, &[1], 2), bitmap(A, SyncWhy::Unfinished));
    let returned = Snapshot { disk: DiskState::Consistent, ..degraded(A, &[1, 2], 1) };
    expect(&returned, &halfway(B, &[1], 2), bitmap(A, SyncWhy::Unfinished));
    // The source was cut before it had set its bits.
    expect(&copy(A, &[1, 2]), &halfway(B, &[1], 2), full(A, SyncWhy::Unfinished));
    // Within one generation the target still has all the bits.
    let target = Snapshot { slot_empty: false, ..halfway(B, &[1], 1) };
    expect(&copy(A, &[1]), &target, bitmap(A, SyncWhy::Unfinished));
    // The loser of a resolved split brain needs no second question.
    expect(&degraded(A, &[1, 2], 1), &halfway(B, &[1, 3], 2), bitmap(A, SyncWhy::Unfinished));
}

#[test]
fn an_inconsistent_copy_without_a_known_reason_is_copied_whole() {
    let broken = Snapshot { disk: DiskState::Inconsistent, ..copy(B, &[1]) };
    expect(&copy(A, &[1]), &broken, full(A, SyncWhy::Unfinished));
    expect(&degraded(A, &[1, 2], 1), &broken, bitmap(A, SyncWhy::Unfinished));
}

#[test]
fn an_inconsistent_copy_is_not_completed_from_something_older() {
    refused(&copy(A, &[1]), &halfway(B, &[1], 2), Standstill::SplitBrain);
    let told = Snapshot { discard: Some(B), ..copy(A, &[1]) };
    expect(&told, &halfway(B, &[1], 2), full(A, SyncWhy::Resolved));
    // Naming the whole copy as loser would make the mixture a source.
    refused(&Snapshot { discard: Some(A), ..copy(A, &[1]) }, &halfway(B, &[1], 2), Standstill::NoSource);
    refused(&copy(A, &[5]), &halfway(B, &[1], 2), Standstill::Unrelated);
}

#[test]
fn two_inconsistent_copies_have_no_source() {
    refused(&halfway(A, &[1], 2), &halfway(B, &[1], 2), Standstill::NoSource);
    refused(&halfway(A, &[1], 2), &fresh(B), Standstill::NoSource);
}

#[test]
fn nothing_common_is_refused() {
    refused(&copy(A, &[1, 2]), &copy(B, &[3, 4]), Standstill::Unrelated);
    refused(&Snapshot { discard: Some(B), ..copy(A, &[1]) }, &copy(B, &[3]), Standstill::Unrelated);
    refused(&copy(A, &[1]), &copy(A, &[1]), Standstill::Unrelated);
}

#[test]
fn a_copy_without_disk_is_not_synchronised() {
    for disk in [DiskState::Diskless, DiskState::Failed] {
        let without = |node| Snapshot { disk, size_bytes: 0, ..copy(node, &[]) };
        let unsure = |node| Snapshot { disk: DiskState::Consistent, ..copy(node, &[1]) };
        refused(&without(A), &unsure(B), Standstill::Diskless);
        refused(&unsure(A), &without(B), Standstill::Diskless);
        refused(&without(A), &without(B), Standstill::Diskless);
    }
}

#[test]
fn different_sizes_are_refused() {
    refused(&Snapshot { size_bytes: 512, ..copy(A, &[1]) }, &copy(B, &[1]), Standstill::SizeMismatch);
}

#[test]
fn a_primary_with_an_uptodate_copy_is_never_overwritten() {
    let primary = Snapshot { role: Role::Primary, ..copy(B, &[1]) };
    refused(&degraded(A, &[1, 2], 1), &primary, Standstill::TargetIsPrimary);
    let other = Snapshot { role: Role::Primary, ..degraded(A, &[1, 2], 1) };
    refused(&other, &primary, Standstill::TargetIsPrimary);
    refused(&Snapshot { role: Role::Primary, ..copy(A, &[1]) }, &primary, Standstill::TargetIsPrimary);
}

#[test]
fn an_inconsistent_primary_goes_on_with_the_copy_it_wrote_through() {
    let source = Snapshot { term: 5, ..degraded(A, &[1, 2], 1) };
    let through = |name, term| Snapshot {
        role: Role::Primary,
        wrote_through: Some((id(name), term)),
        ..halfway(B, &[1], 2)
    };
    expect(&source, &through(2, 5), bitmap(A, SyncWhy::Unfinished));
    refused(&source, &through(1, 5), Standstill::TargetIsPrimary);
    refused(&source, &through(2, 4), Standstill::TargetIsPrimary);
    let unknown = Snapshot { wrote_through: None, ..through(2, 5) };
    refused(&source, &unknown, Standstill::TargetIsPrimary);
}

#[test]
fn a_restored_copy_is_the_target_of_a_full_resync() {
    let restored = |s: Snapshot| Snapshot { session_offered: 6, session_used: 2, ..s };
    expect(&copy(A, &[1]), &restored(copy(B, &[1])), full(A, SyncWhy::Restored));
    expect(&degraded(A, &[1, 2], 1), &restored(copy(B, &[1])), full(A, SyncWhy::Restored));
    expect(&degraded(A, &[1, 2], 1), &restored(halfway(B, &[1], 2)), full(A, SyncWhy::Restored));
    // Whatever the table says: by generations and bits it would have been the source, or equal.
    let better = Snapshot { slot_empty: false, ..restored(copy(A, &[1])) };
    let worse = Snapshot { disk: DiskState::Outdated, ..copy(B, &[1]) };
    expect(&better, &worse, full(B, SyncWhy::Restored));
}

#[test]
fn a_restored_copy_is_refused_where_it_cannot_be_the_target() {
    let restored = |s: Snapshot| Snapshot { session_offered: 6, session_used: 2, ..s };
    let primary = Snapshot { role: Role::Primary, ..restored(copy(B, &[1])) };
    refused(&copy(A, &[1]), &primary, Standstill::TargetIsPrimary);
    let rotated = restored(degraded(B, &[1, 3], 1));
    refused(&copy(A, &[1]), &rotated, Standstill::SplitBrain);
    let stale_word = Snapshot { becoming: halfway(B, &[], 1).becoming, ..rotated.clone() };
    refused(&copy(A, &[1]), &stale_word, Standstill::SplitBrain);
    let told = Snapshot { discard: Some(A), ..copy(A, &[1]) };
    expect(&told, &rotated, full(B, SyncWhy::Resolved));
    refused(&halfway(A, &[1], 1), &restored(copy(B, &[1])), Standstill::NoSource);
    let again = |node| Snapshot { session_offered: 6, ..copy(node, &[1]) };
    refused(&again(A), &again(B), Standstill::NoSource);
}

#[test]
fn a_copy_restored_during_the_first_sync_begins_anew() {
    let source = Snapshot { base: Base::NoGeneration, slot_empty: false, ..copy(A, &[1]) };
    let restored = Snapshot { session_offered: 6, ..halfway(B, &[], 1) };
    expect(&source, &restored, full(A, SyncWhy::Restored));
}

#[test]
fn every_refusal_says_what_to_type() {
    for standstill in STANDSTILLS {
        assert!(standstill.to_string().contains("lockstep "), "{standstill:?}");
    }
}

const STANDSTILLS: [Standstill; 7] = [
    Standstill::SplitBrain,
    Standstill::Unrelated,
    Standstill::NoSource,
    Standstill::TargetIsPrimary,
    Standstill::BothDiscard,
    Standstill::SizeMismatch,
    Standstill::Diskless,
];

const WHYS: [SyncWhy; 6] = [
    SyncWhy::SameGeneration,
    SyncWhy::Ahead,
    SyncWhy::Fresh,
    SyncWhy::Resolved,
    SyncWhy::Restored,
    SyncWhy::Unfinished,
];

#[test]
fn fingerprints_tell_all_verdicts_apart() {
    let mut verdicts: Vec<_> = STANDSTILLS.into_iter().map(Verdict::Refuse).collect();
    verdicts.push(Verdict::NoSync);
    verdicts.extend((0..300).map(|name| Verdict::Adopt { generation: GenerationId(name << 60) }));
    for why in WHYS {
        for (node, flags) in (0..=255u8).flat_map(|node| (0..4).map(move |flags| (node, flags))) {
            let (full, hash_first) = (flags & 1 != 0, flags & 2 != 0);
            verdicts.push(Verdict::Sync { source: NodeId(node), full, hash_first, why });
        }
    }
    let count = verdicts.len();
    let mut prints: Vec<_> = verdicts.iter().map(Verdict::fingerprint).collect();
    prints.sort_unstable();
    prints.dedup();
    assert_eq!(prints.len(), count);
    // They travel between versions: neither codes nor hashes may change.
    assert_eq!(STANDSTILLS.map(|s| Verdict::Refuse(s).code()), [32, 33, 34, 35, 36, 37, 38]);
    assert_eq!(WHYS.map(|why| bitmap(A, why).code()), [16, 17, 18, 19, 20, 21]);
    assert_eq!(full(A, SyncWhy::Fresh).fingerprint(), 0x644d_21b3_1303_dced);
}
