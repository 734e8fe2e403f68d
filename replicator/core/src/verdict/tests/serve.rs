//! One copy without disk: all small pairs, and the promises on each.

use super::*;
use crate::verdict::may_carry;
use alloc::format;

const COPIES: [PeerCopy; 6] = [
    PeerCopy::MayHold,
    PeerCopy::NoGeneration,
    PeerCopy::LeftOutdated,
    PeerCopy::SyncTarget,
    PeerCopy::ToldToFinish,
    PeerCopy::RotatedWithout,
];
const DISKS: [DiskState; 6] = [
    DiskState::Diskless,
    DiskState::Failed,
    DiskState::Inconsistent,
    DiskState::Outdated,
    DiskState::Consistent,
    DiskState::UpToDate,
];
const ROLES: [Role; 2] = [Role::Secondary, Role::Primary];

/// Every state of the copy that there is.
fn servers() -> Vec<Snapshot> {
    let mut all = Vec::new();
    for disk in DISKS {
        for role in ROLES {
            for unclean in [false, true] {
                for peer_copy in COPIES {
                    for base in [Base::Unset, base(1), base(2)] {
                        for term in [1, 2] {
                            let plain = copy(A, &[1, 2]);
                            all.push(Snapshot { disk, role, unclean, peer_copy, base, term, ..plain });
                        }
                    }
                }
            }
        }
    }
    all.push(Snapshot { disk: DiskState::Inconsistent, ..copy(A, &[]) });
    all
}

/// Every state of the node without disk.
fn lost() -> Vec<Snapshot> {
    let mut all = Vec::new();
    for disk in [DiskState::Diskless, DiskState::Failed] {
        for role in ROLES {
            for continues in [false, true] {
                for through in [None, Some((id(1), 1)), Some((id(2), 1)), Some((id(2), 2))] {
                    let wrote_through = through.filter(|_| role == Role::Primary);
                    let plain = Snapshot { size_bytes: 0, ..copy(B, &[]) };
                    all.push(Snapshot { disk, role, continues, wrote_through, ..plain });
                }
            }
        }
    }
    all
}

#[test]
fn a_node_without_disk_is_served_by_a_copy_that_counts_and_by_no_other() {
    let (mut served, mut refused) = (0, 0);
    for server in servers() {
        for lost in lost() {
            let decided = verdict(&server, &lost);
            assert_eq!(decided, verdict(&lost, &server));
            let Verdict::Serve { server: by, generation } = decided else {
                assert!(matches!(
                    decided,
                    Verdict::Refuse(Standstill::Diskless | Standstill::TargetIsPrimary)
                ));
                refused += 1;
                continue;
            };
            served += 1;
            let seen = format!("{server:?}\n{lost:?}");
            assert_eq!(by, A);
            assert!(server.disk >= DiskState::Consistent, "{seen}");
            // Ordering 5: either the lost copy is behind already, or it will be.
            let carried = may_carry(server.peer_copy, server.base, Some(id(2)));
            assert_eq!(generation, if carried { server.proposal } else { id(2) }, "{seen}");
            // Ordering 13: clients go on only where everything is that they have seen.
            let same = lost.wrote_through == Some((id(2), server.term));
            let may = lost.role == Role::Secondary || (server.role == Role::Secondary && same);
            assert!(may, "{seen}");
            assert!(lost.role == Role::Secondary || !server.unclean || lost.continues, "{seen}");
            let alone = lost.role == Role::Primary && lost.continues;
            assert!(server.disk == DiskState::UpToDate || alone, "{seen}");
        }
    }
    assert!(served > 100 && refused > 100, "{served} served, {refused} refused");
}

#[test]
fn a_primary_that_took_back_an_older_disk_is_no_source() {
    let old = Snapshot { role: Role::Primary, disk: DiskState::Outdated, ..degraded(A, &[1, 2], 1) };
    let decided = verdict(&old, &copy(B, &[1]));
    assert_eq!(decided, Verdict::Refuse(Standstill::TargetIsPrimary));
}
