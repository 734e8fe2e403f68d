//! All pairs of small snapshots: each shape of two histories, times the states of both copies, times what
//! operators, sessions and terms may say. Every promise of the verdict is checked on every pair, written down
//! a second time and without looking at the rules.

use super::*;
use alloc::collections::BTreeSet;

/// What was seen, so that no promise holds for want of a case.
struct Seen {
    pairs: u64,
    codes: BTreeSet<u8>,
}

#[test]
fn every_promise_holds_for_all_pairs() {
    let mut seen = Seen { pairs: 0, codes: BTreeSet::new() };
    for (low_log, high_log) in histories() {
        let lows = states(A, &low_log);
        let mut highs = states(B, &high_log);
        for low in &lows {
            for high in &mut highs {
                with_words(low, high, &mut seen);
            }
        }
    }
    assert!(seen.pairs > 1_000_000, "{} pairs", seen.pairs);
    let seldom = [Standstill::SizeMismatch, Standstill::Diskless]; // Not varied here.
    let mut expected: BTreeSet<u8> = WHYS.map(|why| bitmap(A, why).code()).into();
    expected.extend([Verdict::NoSync.code(), Verdict::Adopt { generation: id(1) }.code()]);
    expected
        .extend(STANDSTILLS.into_iter().filter(|s| !seldom.contains(s)).map(|s| Verdict::Refuse(s).code()));
    assert_eq!(seen.codes, expected);
}

/// Every way in which two histories can lie to each other.
fn histories() -> Vec<(GenerationLog, GenerationLog)> {
    let lossy = |from| chain_from(&[1, 2], Origin::DataLoss { from });
    let mut pairs = Vec::from([
        (chain(&[]), chain(&[])),
        (chain(&[]), chain(&[1])),
        (chain(&[1]), chain(&[1])),
        (chain(&[1, 2]), chain(&[1, 2])),
        (chain(&[1]), chain(&[1, 2])),
        (chain(&[1]), chain(&[1, 2, 3])),
        (chain(&[1, 2]), chain(&[1, 3])),
        (chain(&[1, 2, 3]), chain(&[1, 3, 2])),
        (chain(&[1]), chain(&[2])),
        (chain(&[1]), lossy(CopyRank::Inconsistent)),
        (chain(&[1]), lossy(CopyRank::Outdated)),
        (chain(&[1]), lossy(CopyRank::Unclean)),
        (chain(&[1]), lossy(CopyRank::Clean)),
    ]);
    let mirrored: Vec<_> = pairs
        .iter()
        .filter(|(low, high)| low != high)
        .map(|(low, high)| (high.clone(), low.clone()))
        .collect();
    pairs.extend(mirrored);
    pairs
}

/// Every state of one copy with this history.
fn states(node: NodeId, log: &GenerationLog) -> Vec<Snapshot> {
    let mut states = Vec::new();
    let source = if node == A { B } else { A };
    let becoming = |name| Some(Becoming { generation: id(name), node: source });
    let plain = Snapshot { log: log.clone(), ..copy(node, &[]) };
    let disks = [DiskState::Inconsistent, DiskState::Outdated, DiskState::Consistent, DiskState::UpToDate];
    for disk in disks {
        if log.current().is_none() && disk != DiskState::Inconsistent {
            continue;
        }
        let ends = if disk == DiskState::Inconsistent { [None, becoming(1), becoming(2)] } else { [None; 3] };
        let distinct = if disk == DiskState::Inconsistent { 3 } else { 1 };
        for becoming in ends.into_iter().take(distinct) {
            for role in [Role::Secondary, Role::Primary] {
                for unclean in [false, true] {
                    for (base, slot_empty) in slots() {
                        states.push(Snapshot {
                            disk,
                            becoming,
                            role,
                            unclean,
                            base,
                            slot_empty,
                            ..plain.clone()
                        });
                    }
                }
            }
        }
    }
    states
}

fn slots() -> [(Base, bool); 5] {
    [(Base::Unset, true), (Base::NoGeneration, false), (base(1), false), (base(1), true), (base(2), false)]
}

/// One pair, with everything that operators, sessions and terms can add.
fn with_words(low: &Snapshot, high: &mut Snapshot, seen: &mut Seen) {
    let mut low = low.clone();
    for (discard_low, discard_high) in [(None, None), (Some(A), None), (None, Some(A)), (Some(A), Some(B))] {
        (low.discard, high.discard) = (discard_low, discard_high);
        for (session_low, session_high) in [(7, 7), (6, 7), (7, 6)] {
            (low.session_offered, high.session_offered) = (session_low, session_high);
            for (told, term) in [(false, 1), (true, 1), (true, 2)] {
                high.term = term;
                (low.declared_clean, high.declared_clean) = (told, told);
                low.marked = told;
                low.wrote_through = high.log.current().filter(|_| told).map(|g| (g.id, 1));
                high.wrote_through = low.log.current().filter(|_| told).map(|g| (g.id, 1));
                check(&low, high, seen);
            }
        }
    }
    low.discard = None;
}

fn check(low: &Snapshot, high: &Snapshot, seen: &mut Seen) {
    let decided = verdict(low, high);
    seen.pairs += 1;
    seen.codes.insert(decided.code());
    assert_eq!(decided, verdict(high, low), "{low:?}\n{high:?}");
    let promise = match decided {
        Verdict::NoSync => promise_of_no_sync(low, high),
        Verdict::Adopt { generation } => {
            assert_eq!(generation, low.proposal);
            promise_of_adopt(low) && promise_of_adopt(high)
        }
        Verdict::Sync { source, full, hash_first, why } => {
            let (source, target) = if source == low.node { (low, high) } else { (high, low) };
            assert!(hash_first || !(full || low.unclean || high.unclean || low.marked || high.marked));
            promise_of_direction(source, target, why)
                && promise_of_history(source, target, why)
                && promise_of_sessions(source, target, full)
                && (full || promise_of_bitmap(source, target, why))
                && promise_of_progress(source, target, full)
        }
        // No copy without disk here: see `serve`.
        Verdict::Serve { .. } => false,
        Verdict::Refuse(standstill) => promise_of_refusal(low, high, standstill),
    };
    assert!(promise, "{decided:?}\n{low:?}\n{high:?}");
    // The names of the nodes matter only where two copies are equally good.
    if seen.pairs.is_multiple_of(11) && !matches!(decided, Verdict::Adopt { .. }) && !equal_merit(low, high) {
        assert_eq!(renamed_verdict(decided), verdict(&renamed(low), &renamed(high)), "{low:?}\n{high:?}");
    }
}

fn now(s: &Snapshot) -> Option<GenerationId> {
    s.log.entries().last().map(|g| g.id)
}

fn whole(s: &Snapshot) -> bool {
    s.disk > DiskState::Inconsistent && now(s).is_some()
}

fn holds(s: &Snapshot, generation: Option<GenerationId>) -> bool {
    s.log.entries().iter().any(|g| Some(g.id) == generation)
}

fn promise_of_no_sync(low: &Snapshot, high: &Snapshot) -> bool {
    let quiet = |s: &Snapshot| whole(s) && s.slot_empty && !s.unclean && s.session_offered >= 7;
    quiet(low)
        && quiet(high)
        && now(low) == now(high)
        && (low.role, high.role) != (Role::Primary, Role::Primary)
}

fn promise_of_adopt(s: &Snapshot) -> bool {
    now(s).is_none() && s.slot_empty && s.declared_clean && s.becoming.is_none() && s.role == Role::Secondary
}

fn promise_of_direction(source: &Snapshot, target: &Snapshot, why: SyncWhy) -> bool {
    let safe = match (target.role, source.role) {
        (Role::Secondary, _) => true,
        (Role::Primary, Role::Primary) => false,
        (Role::Primary, Role::Secondary) => {
            let through =
                target.wrote_through.is_some_and(|(g, term)| Some(g) == now(source) && term == source.term);
            target.disk != DiskState::UpToDate && through && why != SyncWhy::Restored
        }
    };
    let own = source.role == Role::Secondary || source.disk == DiskState::UpToDate;
    safe && own && whole(source)
}

/// No acknowledged write is given up without a word: either the target's history is part of the source's, or
/// it holds nothing of its own, or the operator named it.
fn promise_of_history(source: &Snapshot, target: &Snapshot, why: SyncWhy) -> bool {
    let named = |node| source.discard == Some(node) || target.discard == Some(node);
    let resolved = named(target.node) && !named(source.node);
    let gave_up = source.log.entries().iter().any(|g| {
        let better = match (target.disk, target.unclean) {
            (DiskState::Inconsistent, _) => CopyRank::Inconsistent,
            (DiskState::Outdated, _) => CopyRank::Outdated,
            (_, true) => CopyRank::Unclean,
            (_, false) => CopyRank::Clean,
        };
        g.parent == now(target) && matches!(g.origin, Origin::DataLoss { from } if from < better)
    });
    match why {
        SyncWhy::SameGeneration => now(source) == now(target) && whole(target),
        SyncWhy::Ahead => {
            whole(target) && holds(source, now(target)) && !holds(target, now(source)) && !gave_up
        }
        SyncWhy::Fresh => now(target).is_none() && source.disk == DiskState::UpToDate,
        SyncWhy::Resolved => resolved,
        SyncWhy::Restored | SyncWhy::Unfinished => {
            let becoming = target.becoming.map(|b| b.generation);
            becoming.map_or(holds(source, now(target)), |g| holds(source, Some(g)))
        }
    }
}

fn promise_of_sessions(source: &Snapshot, target: &Snapshot, full: bool) -> bool {
    if source.session_offered == 6 || target.session_offered == 6 { full } else { true }
}

/// The source's slot began to remember at a generation that the target went through.
fn promise_of_bitmap(source: &Snapshot, target: &Snapshot, why: SyncWhy) -> bool {
    // A resync that began within one generation needs no base: the bits of both hold all (D5).
    let within_one =
        target.becoming.is_some_and(|b| Some(b.generation) == now(target)) && now(source) == now(target);
    match source.base {
        _ if why == SyncWhy::SameGeneration => true,
        Base::Generation(_) if within_one && why == SyncWhy::Unfinished => true,
        Base::Generation(g) => holds(target, Some(g)),
        Base::NoGeneration => now(target).is_some() || target.becoming.is_some(),
        Base::Unset => now(target) == now(source) || (why == SyncWhy::Resolved && holds(target, now(source))),
    }
}

/// Cut at any moment, the resync goes on: from the same source, and over the bits left once the source has
/// them.
fn promise_of_progress(source: &Snapshot, target: &Snapshot, full: bool) -> bool {
    let met = |s: &Snapshot| Snapshot { session_offered: 8, session_used: 8, discard: None, ..s.clone() };
    let generation = now(source).unwrap();
    let becoming = Some(Becoming { generation, node: source.node });
    let target = Snapshot { disk: DiskState::Inconsistent, becoming, ..met(target) };
    let unprepared = Snapshot { disk: DiskState::UpToDate, ..met(source) };
    let base = match (full, source.base) {
        (true, _) => Base::NoGeneration,
        (false, Base::Unset) => now(&target).map_or(Base::NoGeneration, Base::Generation),
        (false, set) => set,
    };
    let prepared = Snapshot { base, slot_empty: false, ..unprepared.clone() };
    let again = verdict(&unprepared, &target);
    let goes_on =
        matches!(again, Verdict::Sync { source: from, why: SyncWhy::Unfinished, .. } if from == source.node);
    let again = verdict(&prepared, &target);
    let over_the_bits =
        matches!(again, Verdict::Sync { source: from, full: false, .. } if from == source.node);
    goes_on && over_the_bits
}

/// Each refusal has its reason.
fn promise_of_refusal(low: &Snapshot, high: &Snapshot, standstill: Standstill) -> bool {
    let related = low.log.entries().iter().any(|g| holds(high, Some(g.id)));
    let named = |node| low.discard == Some(node) || high.discard == Some(node);
    match standstill {
        Standstill::SplitBrain => {
            let unequal = now(low) != now(high) || !whole(low) || !whole(high);
            related && unequal && !named(A) && !named(B)
        }
        Standstill::Unrelated => !related,
        Standstill::BothDiscard => related && named(A) && named(B),
        Standstill::TargetIsPrimary => low.role == Role::Primary || high.role == Role::Primary,
        Standstill::NoSource => !(low.disk == DiskState::UpToDate && high.disk == DiskState::UpToDate),
        Standstill::SizeMismatch | Standstill::Diskless => false,
    }
}

fn equal_merit(low: &Snapshot, high: &Snapshot) -> bool {
    let merit = |s: &Snapshot| (s.disk, s.role, s.unclean, s.term);
    merit(low) == merit(high)
}

fn swapped(node: NodeId) -> NodeId {
    if node == A { B } else { A }
}

fn renamed(s: &Snapshot) -> Snapshot {
    Snapshot {
        node: swapped(s.node),
        discard: s.discard.map(swapped),
        becoming: s.becoming.map(|b| Becoming { node: swapped(b.node), ..b }),
        ..s.clone()
    }
}

fn renamed_verdict(decided: Verdict) -> Verdict {
    match decided {
        Verdict::Sync { source, full, hash_first, why } => {
            Verdict::Sync { source: swapped(source), full, hash_first, why }
        }
        other => other,
    }
}
