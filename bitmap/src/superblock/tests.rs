//! Round trips of arbitrary superblocks and logs, and refusal of everything else.

use std::string::ToString;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::checkpoint::{Checkpoint, CheckpointId, CheckpointRecord, CheckpointState, Incomplete, Invalid};
use crate::meta::{Layout, PAGE_BYTES, PageHeader, PageKind, SUPERBLOCK_BYTES, decode_page, encode_page};

fn origin() -> impl Strategy<Value = Origin> {
    prop_oneof![
        Just(Origin::Created),
        Just(Origin::Agreed),
        Just(Origin::PeerLost),
        Just(Origin::Promoted),
        Just(Origin::PeerIsDown),
        Just(Origin::DataLoss { from: CopyRank::Inconsistent }),
        Just(Origin::DataLoss { from: CopyRank::Outdated }),
        Just(Origin::DataLoss { from: CopyRank::Unclean }),
        Just(Origin::DataLoss { from: CopyRank::Clean }),
    ]
}

fn log() -> impl Strategy<Value = GenerationLog> {
    let entry = (any::<u64>(), any::<bool>(), any::<u8>(), any::<u64>(), origin(), 1..5_u64);
    prop::collection::vec(entry, 0..=MAX_GENERATIONS).prop_map(|rows| {
        let mut entries: Vec<Generation> = Vec::new();
        for (index, (noise, has_parent, node, began_unix_ms, origin, step)) in (0_u128..).zip(rows) {
            entries.push(Generation {
                id: GenerationId(u128::from(noise) << 64 | index),
                ordinal: entries.last().map_or(0, |last| last.ordinal) + step,
                parent: entries.last().filter(|_| has_parent).map(|last| last.id),
                node: NodeId(node),
                began_unix_ms,
                origin,
            });
        }
        GenerationLog::from_entries(entries).unwrap()
    })
}

fn peer() -> impl Strategy<Value = PeerRecord> {
    let base = prop_oneof![
        Just(Base::Unset),
        Just(Base::NoGeneration),
        any::<u128>().prop_map(|id| Base::Generation(GenerationId(id))),
    ];
    let copies = [
        PeerCopy::MayHold,
        PeerCopy::NoGeneration,
        PeerCopy::LeftOutdated,
        PeerCopy::SyncTarget,
        PeerCopy::ToldToFinish,
        PeerCopy::RotatedWithout,
    ];
    (base, prop::sample::select(copies.to_vec()), any::<[u64; 2]>(), any::<[bool; 2]>(), any::<u32>())
        .prop_map(
            |(base, copy, [session_offered, session_used], [may_be_primary, slot_filled], slot_epoch)| {
                PeerRecord {
                    node: NodeId(0),
                    base,
                    copy,
                    session_offered,
                    session_used,
                    may_be_primary,
                    slot_epoch,
                    slot_filled,
                }
            },
        )
}

fn checkpoint() -> impl Strategy<Value = CheckpointRecord> {
    let states = [
        CheckpointState::Complete,
        CheckpointState::Incomplete(Incomplete::UncleanStop),
        CheckpointState::Incomplete(Incomplete::Receiving),
        CheckpointState::Invalid(Invalid::NobodyComplete),
        CheckpointState::Invalid(Invalid::DataLoss),
        CheckpointState::Invalid(Invalid::Metadata),
    ];
    let held = (any::<[u64; 2]>(), 1..=64_usize, any::<[u64; 2]>(), prop::sample::select(states.to_vec()));
    let held = held.prop_map(|([id, generation], name_len, [created_unix_ms, _], state)| Checkpoint {
        id: CheckpointId(u128::from(id)),
        name: "n".repeat(name_len),
        created_unix_ms,
        generation: GenerationId(u128::from(generation) << 7),
        state,
    });
    (prop::option::of(held), any::<bool>(), any::<u32>())
        .prop_map(|(held, covered, slot_epoch)| CheckpointRecord { held, covered, slot_epoch })
}

prop_compose! {
    fn superblock()(
        log in log(),
        mut peers in prop::collection::vec(peer(), 0..=7),
        names in ("[a-zä]{1,32}", "[a-z0-9.-]{1,64}"),
        size_sectors in 1..1_u64 << 40,
        flags: [bool; 6],
        numbers: (u64, u64, u64, u16, u8),
        ids: (u128, u128),
        boot_id: [u8; 16],
        mut checkpoints in prop::collection::vec(checkpoint(), 0..=4),
    ) -> Superblock {
        let (node, size_bytes) = (NodeId(200), size_sectors * 512);
        (0_u8..).zip(&mut peers).for_each(|(slot, peer)| peer.node = NodeId(slot * 3));
        for (position, held) in checkpoints.iter_mut().enumerate().filter_map(|(n, r)| Some((n, r.held.as_mut()?))) {
            held.id = CheckpointId(held.id.0 << 8 | position as u128);
            held.name.replace_range(0..1, &position.to_string());
        }
        let geometry = Geometry::new(size_bytes, 12, 22).unwrap();
        let layout = Layout::with_checkpoints(&geometry, peers.len(), checkpoints.len() as u8);
        let device = DeviceIdentity([numbers.4; 64]);
        let becoming = Becoming { generation: GenerationId(ids.0), node: NodeId(numbers.4) };
        Superblock {
            sequence: numbers.0,
            file_id: numbers.1,
            identity: Identity { resource: names.0, volume: numbers.3, node, node_name: names.1, device },
            size_bytes,
            block_shift: 12,
            region_shift: 22,
            term: numbers.2,
            log,
            inconsistent: flags[0].then_some(becoming),
            outdated: flags[1],
            may_be_written: flags[2],
            boot_id,
            unclean_in: flags[3].then_some(GenerationId(ids.1)),
            was_primary: flags[4],
            declared_clean: flags[5],
            peers,
            checkpoints,
            areas: layout.areas().to_vec(),
        }
    }
}

/// Rebuilds the checksum of a page after a change, as a malicious or buggy writer would.
fn resign(page: &mut [u8]) {
    let mut header =
        PageHeader { kind: PageKind::Superblock, slot: 0, index: 0, epoch: 0, sequence: 0, file_id: 0 };
    let payload: Vec<u8> = page[64..].to_vec();
    header.index = u32::from_le_bytes(page[8..12].try_into().unwrap());
    header.sequence = u64::from_le_bytes(page[16..24].try_into().unwrap());
    header.file_id = u64::from_le_bytes(page[24..32].try_into().unwrap());
    encode_page(&header, &payload, page.first_chunk_mut::<PAGE_BYTES>().unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn superblocks_survive(superblock in superblock()) {
        let mut bytes = Vec::new();
        superblock.encode(&mut bytes);
        prop_assert_eq!(bytes.len(), SUPERBLOCK_BYTES);
        prop_assert_eq!(Superblock::decode(&bytes), Ok(superblock));
        prop_assert!(Superblock::decode(&bytes[..SUPERBLOCK_BYTES - 1]).is_err());
    }

    #[test]
    fn logs_survive(log in log()) {
        let mut bytes = Vec::new();
        log.encode(&mut bytes);
        prop_assert_eq!(GenerationLog::decode(&bytes), Ok(log));
        bytes.push(0);
        prop_assert_eq!(GenerationLog::decode(&bytes), Err(SuperblockError::Length));
    }

    #[test]
    fn a_log_of_noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(log) = GenerationLog::decode(&bytes) {
            let mut again = Vec::new();
            log.encode(&mut again);
            prop_assert_eq!(again, bytes);
        }
    }

    /// A generation goes that this node began after the one that counts.
    #[test]
    fn a_record_of_a_failure_takes_back_what_was_never_acknowledged_in_and_nothing_else(
        mut superblock in superblock(),
        origin in origin(),
        own: bool,
        is_behind: bool,
        counts in prop::option::of(1..=2_u128),
        other_file: bool,
        is_half: bool,
    ) {
        superblock.sequence %= 1 << 60;
        let node = if own { superblock.identity.node } else { NodeId(1) };
        let last = Generation { parent: Some(GenerationId(1)), node, origin, ..generation(2, 2) };
        superblock.log = GenerationLog::from_entries(vec![generation(1, 1), last]).unwrap();
        let before = superblock.clone();
        let record = FailureRecord {
            file_id: superblock.file_id ^ u64::from(other_file),
            sequence: (superblock.sequence + 4).saturating_sub(if is_behind { 5 } else { 0 }),
            generation: counts.map(GenerationId),
            becoming: is_half.then_some(Becoming { generation: GenerationId(9), node: NodeId(9) }),
        };
        superblock.apply_failure(&record);
        if other_file || record.sequence < before.sequence {
            prop_assert_eq!(superblock, before);
            return Ok(());
        }
        prop_assert!(superblock.outdated && superblock.may_be_written && superblock.boot_id == [0; 16]);
        prop_assert!(superblock.sequence >= record.sequence);
        let goes = own && counts == Some(1);
        prop_assert_eq!(superblock.log.entries().len(), if goes { 1 } else { 2 });
        prop_assert!(!goes || superblock.peers.iter().all(|peer| peer.copy == PeerCopy::MayHold));
        prop_assert!(goes || superblock.peers == before.peers);
        prop_assert_eq!(superblock.inconsistent, if goes { record.becoming } else { before.inconsistent });
    }

    /// Intact checksums do not make a byte trusted: what is accepted says the same when written again.
    #[test]
    fn changed_bytes_with_a_right_checksum_are_refused_or_mean_themselves(
        superblock in superblock(),
        page in 0..2_usize,
        at in prop_oneof![0..400_usize, 0..PAGE_BYTES - 64],
        value: u8,
    ) {
        let mut bytes = Vec::new();
        superblock.encode(&mut bytes);
        bytes[page * PAGE_BYTES + 64 + at] = value;
        resign(&mut bytes[page * PAGE_BYTES..][..PAGE_BYTES]);
        if let Ok(decoded) = Superblock::decode(&bytes) {
            let mut again = Vec::new();
            decoded.encode(&mut again);
            prop_assert_eq!(again, bytes);
        }
    }
}

fn generation(id: u128, ordinal: u64) -> Generation {
    let origin = Origin::Promoted;
    Generation { id: GenerationId(id), ordinal, parent: None, node: NodeId(1), began_unix_ms: 0, origin }
}

#[test]
fn a_full_log_drops_the_oldest_that_is_nobodys_base() {
    let mut log = GenerationLog::new();
    (1..=64).for_each(|n| log.push(generation(n, n as u64), &[]));
    log.push(generation(65, 65), &[GenerationId(1), GenerationId(2)]);
    assert_eq!(log.entries().len(), MAX_GENERATIONS);
    assert!(log.contains(GenerationId(1)) && log.contains(GenerationId(2)) && !log.contains(GenerationId(3)));
    assert_eq!(log.current().unwrap().id, GenerationId(65));
}

#[test]
fn the_newest_common_generation_is_the_ancestor() {
    let log_of = |ids: &[u128]| {
        let entries = ids.iter().zip(1..).map(|(id, ordinal)| generation(*id, ordinal)).collect();
        GenerationLog::from_entries(entries).unwrap()
    };
    let (mine, theirs) = (log_of(&[1, 2, 3, 10]), log_of(&[1, 2, 3, 20, 21]));
    assert_eq!(mine.common_ancestor(&theirs), Some(GenerationId(3)));
    assert_eq!(theirs.common_ancestor(&mine), Some(GenerationId(3)));
    assert_eq!(mine.common_ancestor(&log_of(&[7])), None);
}

#[test]
fn disordered_logs_are_refused() {
    let twice = vec![generation(1, 1), generation(1, 2)];
    assert_eq!(GenerationLog::from_entries(twice), Err(SuperblockError::GenerationTwice(GenerationId(1))));
    let backwards = vec![generation(1, 2), generation(2, 1)];
    assert_eq!(GenerationLog::from_entries(backwards), Err(SuperblockError::GenerationOrder));
    let own_parent = vec![Generation { parent: Some(GenerationId(1)), ..generation(1, 1) }];
    assert_eq!(GenerationLog::from_entries(own_parent), Err(SuperblockError::GenerationOrder));
    assert_eq!(GenerationId(0xdead_beef << 96 | 5).to_string(), "deadbeef");
}

#[test]
fn the_header_of_a_part_is_where_the_tables_say() {
    let mut page = [0; PAGE_BYTES];
    let header = PageHeader {
        kind: PageKind::Superblock,
        slot: 0,
        index: 1,
        epoch: 0,
        sequence: 0x1122,
        file_id: 0x3344,
    };
    encode_page(&header, &[], &mut page);
    resign(&mut page);
    assert_eq!(decode_page(&page).unwrap().0, header);
}
