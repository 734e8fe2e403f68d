//! Bytes of the superblock and of the generation log.
//!
//! Invariants: everything has one encoding (absent values and reserved bytes are zero), and decoding refuses
//! any other; a decoded superblock has a valid geometry and an area table that fits it.
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;

use super::{
    Base, Becoming, CopyRank, DeviceIdentity, Generation, GenerationId, GenerationLog, Identity,
    MAX_GENERATIONS, NAME_BYTES_MAX, Origin, PeerCopy, PeerRecord, Superblock, SuperblockError,
};
use crate::checkpoint::{CHECKPOINT_BYTES, CHECKPOINTS_MAX, Checkpoint, CheckpointRecord};
use crate::geometry::NodeId;
use crate::meta::{
    Area, AreaKind, Layout, MAX_PEERS, PAGE_BYTES, PAGE_PAYLOAD_BYTES, PageError, PageHeader, PageKind,
    Reader, checkpoint_areas, decode_page, encode_page,
};

const MAX_AREAS: usize = 32;
const PEER_BYTES: usize = 48;
const AREA_BYTES: usize = 24;
const GENERATION_BYTES: usize = 56;
const CHECKPOINT_RECORD_BYTES: usize = 128;
const STATE_BYTES: usize =
    272 + MAX_PEERS * PEER_BYTES + MAX_AREAS * AREA_BYTES + CHECKPOINTS_MAX * CHECKPOINT_RECORD_BYTES;
const _: () = assert!(STATE_BYTES <= PAGE_PAYLOAD_BYTES);
const _: () = assert!(4 + MAX_GENERATIONS * GENERATION_BYTES <= PAGE_PAYLOAD_BYTES);

const FLAG_OUTDATED: u32 = 1 << 0;
const FLAG_MAY_BE_WRITTEN: u32 = 1 << 1;
const FLAG_WAS_PRIMARY: u32 = 1 << 2;
const FLAG_INCONSISTENT: u32 = 1 << 3;
const FLAG_UNCLEAN: u32 = 1 << 4;
const FLAG_DECLARED_CLEAN: u32 = 1 << 5;

const PEER_FLAG_MAY_BE_PRIMARY: u8 = 1 << 0;
const PEER_FLAG_SLOT_FILLED: u8 = 1 << 1;

const CHECKPOINT_FLAG_HELD: u8 = 1 << 0;
const CHECKPOINT_FLAG_COVERED: u8 = 1 << 1;

pub(super) fn encode_superblock(superblock: &Superblock, out: &mut Vec<u8>) {
    let mut log = Vec::new();
    encode_log(&superblock.log, &mut log);
    for (index, payload) in (0_u32..).zip([encode_state(superblock), log]) {
        let (sequence, file_id) = (superblock.sequence, superblock.file_id);
        let header = PageHeader { kind: PageKind::Superblock, slot: 0, index, epoch: 0, sequence, file_id };
        let mut page = [0; PAGE_BYTES];
        encode_page(&header, &payload, &mut page);
        out.extend_from_slice(&page);
    }
}

pub(super) fn decode_superblock(bytes: &[u8]) -> Result<Superblock, SuperblockError> {
    let mut rest = Reader::new(bytes);
    let (Some(first), Some(second), []) =
        (rest.bytes::<PAGE_BYTES>(), rest.bytes::<PAGE_BYTES>(), rest.rest())
    else {
        return Err(SuperblockError::Length);
    };
    let (header, state) = decode_part(&first, 0)?;
    let (second_header, log) = decode_part(&second, 1)?;
    if (header.sequence, header.file_id) != (second_header.sequence, second_header.file_id) {
        return Err(SuperblockError::Torn);
    }
    let mut superblock = decode_state(&mut Reader::new(state))?;
    superblock.sequence = header.sequence;
    superblock.file_id = header.file_id;
    superblock.log = decode_log_prefix(log)?;
    check(&superblock)?;
    // One encoding for each value: whatever decoding skipped must be zero.
    let mut again = Vec::with_capacity(bytes.len());
    encode_superblock(&superblock, &mut again);
    if again != bytes {
        return Err(SuperblockError::Field("reserved"));
    }
    Ok(superblock)
}

fn decode_part(
    page: &[u8; PAGE_BYTES],
    index: u32,
) -> Result<(PageHeader, &[u8; PAGE_PAYLOAD_BYTES]), SuperblockError> {
    let (header, payload) = decode_page(page)?;
    let expected = PageHeader { kind: PageKind::Superblock, slot: 0, index, epoch: 0, ..header };
    if header != expected {
        return Err(PageError::Header.into());
    }
    Ok((header, payload))
}

fn encode_state(superblock: &Superblock) -> Vec<u8> {
    let identity = &superblock.identity;
    assert!(
        superblock.peers.len() <= MAX_PEERS
            && superblock.areas.len() <= MAX_AREAS
            && superblock.checkpoints.len() <= CHECKPOINTS_MAX,
        "a table is too long"
    );
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    let flags = flag(superblock.outdated, FLAG_OUTDATED)
        | flag(superblock.may_be_written, FLAG_MAY_BE_WRITTEN)
        | flag(superblock.was_primary, FLAG_WAS_PRIMARY)
        | flag(superblock.inconsistent.is_some(), FLAG_INCONSISTENT)
        | flag(superblock.unclean_in.is_some(), FLAG_UNCLEAN)
        | flag(superblock.declared_clean, FLAG_DECLARED_CLEAN);
    let mut out = Vec::with_capacity(STATE_BYTES);
    out.extend(superblock.size_bytes.to_le_bytes());
    out.extend(superblock.term.to_le_bytes());
    out.extend(flags.to_le_bytes());
    out.extend([superblock.block_shift, superblock.region_shift, identity.node.0]);
    out.push(superblock.inconsistent.map_or(0, |becoming| becoming.node.0));
    out.extend(identity.volume.to_le_bytes());
    out.extend([superblock.peers.len() as u8, superblock.areas.len() as u8]);
    out.extend([identity.resource.len() as u8, identity.node_name.len() as u8, 0, 0]);
    out.extend(superblock.boot_id);
    out.extend(superblock.inconsistent.map_or(0, |becoming| becoming.generation.0).to_le_bytes());
    out.extend(superblock.unclean_in.map_or(0, |id| id.0).to_le_bytes());
    push_name(&mut out, &identity.resource);
    push_name(&mut out, &identity.node_name);
    out.extend(identity.device.0);
    superblock.peers.iter().for_each(|peer| push_peer(&mut out, peer));
    out.resize(out.len() + (MAX_PEERS - superblock.peers.len()) * PEER_BYTES, 0);
    superblock.areas.iter().for_each(|area| push_area(&mut out, area));
    out.resize(out.len() + (MAX_AREAS - superblock.areas.len()) * AREA_BYTES, 0);
    superblock.checkpoints.iter().for_each(|record| push_checkpoint(&mut out, record));
    out.resize(STATE_BYTES, 0);
    out
}

/// Reads all but sequence, file id and log, which are elsewhere.
fn decode_state(from: &mut Reader<'_>) -> Result<Superblock, SuperblockError> {
    let short = SuperblockError::Length;
    let mut fixed = || {
        let (size_bytes, term, flags) = (from.u64()?, from.u64()?, from.u32()?);
        let [block_shift, region_shift, node, becoming_node] = from.bytes()?;
        let volume = from.u16()?;
        let [peer_count, area_count, resource_len, name_len, _, _] = from.bytes()?;
        let (boot_id, becoming, unclean) = (from.bytes::<16>()?, from.u128()?, from.u128()?);
        let names = (from.bytes::<NAME_BYTES_MAX>()?, from.bytes::<NAME_BYTES_MAX>()?);
        let device = DeviceIdentity(from.bytes()?);
        let becoming = Becoming { generation: GenerationId(becoming), node: NodeId(becoming_node) };
        let counts = (peer_count, area_count, resource_len, name_len);
        let identity = (NodeId(node), volume, names, device);
        Some((
            size_bytes,
            term,
            flags,
            block_shift,
            region_shift,
            counts,
            boot_id,
            becoming,
            unclean,
            identity,
        ))
    };
    let (size_bytes, term, flags, block_shift, region_shift, counts, boot_id, becoming, unclean, identity) =
        fixed().ok_or(short)?;
    let (node, volume, (resource, node_name), device) = identity;
    let (peer_count, area_count, resource_len, name_len) = counts;
    let identity = Identity {
        resource: name_of(&resource, resource_len).ok_or(SuperblockError::Field("resource"))?,
        volume,
        node,
        node_name: name_of(&node_name, name_len).ok_or(SuperblockError::Field("node name"))?,
        device,
    };
    let peers = read_table(from, peer_count, MAX_PEERS, PEER_BYTES, read_peer, "peer")?;
    let areas = read_table(from, area_count, MAX_AREAS, AREA_BYTES, read_area, "area")?;
    let room = checkpoint_areas(&areas);
    let (bytes, field) = (CHECKPOINT_RECORD_BYTES, "checkpoint");
    let checkpoints = read_table(from, room, CHECKPOINTS_MAX, bytes, read_checkpoint, field)?;
    Ok(Superblock {
        sequence: 0,
        file_id: 0,
        identity,
        size_bytes,
        block_shift,
        region_shift,
        term,
        log: GenerationLog::new(),
        inconsistent: (flags & FLAG_INCONSISTENT != 0).then_some(becoming),
        outdated: flags & FLAG_OUTDATED != 0,
        may_be_written: flags & FLAG_MAY_BE_WRITTEN != 0,
        boot_id,
        unclean_in: (flags & FLAG_UNCLEAN != 0).then_some(GenerationId(unclean)),
        was_primary: flags & FLAG_WAS_PRIMARY != 0,
        declared_clean: flags & FLAG_DECLARED_CLEAN != 0,
        peers,
        checkpoints,
        areas,
    })
}

/// What one field alone cannot tell.
fn check(superblock: &Superblock) -> Result<(), SuperblockError> {
    for (position, peer) in superblock.peers.iter().enumerate() {
        let twice = superblock.peers.iter().skip(position + 1).any(|other| other.node == peer.node);
        if twice || peer.node == superblock.identity.node {
            return Err(SuperblockError::Field("peer node"));
        }
    }
    let held = |record: &CheckpointRecord| record.held.as_ref().map(|held| (held.id, held.name.clone()));
    let held: Vec<_> = superblock.checkpoints.iter().filter_map(held).collect();
    for (position, (id, name)) in held.iter().enumerate() {
        if held.iter().skip(position + 1).any(|other| other.0 == *id || other.1 == *name) {
            return Err(SuperblockError::Field("checkpoint"));
        }
    }
    let geometry = superblock.geometry()?;
    Layout::from_areas(&geometry, superblock.peers.len(), &superblock.areas)?;
    Ok(())
}

/// Reads `count` rows of a table that has room for `capacity`.
fn read_table<T>(
    from: &mut Reader<'_>,
    count: u8,
    capacity: usize,
    row_bytes: usize,
    read_row: impl Fn(&mut Reader<'_>) -> Option<T>,
    field: &'static str,
) -> Result<Vec<T>, SuperblockError> {
    let table = from.slice(capacity * row_bytes).ok_or(SuperblockError::Length)?;
    if usize::from(count) > capacity {
        return Err(SuperblockError::Field(field));
    }
    let rows = table.chunks_exact(row_bytes).take(usize::from(count));
    rows.map(|row| read_row(&mut Reader::new(row)).ok_or(SuperblockError::Field(field))).collect()
}

fn push_name(out: &mut Vec<u8>, name: &str) {
    assert!(!name.is_empty() && name.len() <= NAME_BYTES_MAX, "a name has 1 to 64 bytes");
    out.extend(name.bytes());
    out.resize(out.len() + NAME_BYTES_MAX - name.len(), 0);
}

fn name_of(bytes: &[u8; NAME_BYTES_MAX], len: u8) -> Option<String> {
    let name = bytes.get(..usize::from(len)).filter(|name| !name.is_empty())?;
    core::str::from_utf8(name).ok().map(ToOwned::to_owned)
}

fn push_peer(out: &mut Vec<u8>, peer: &PeerRecord) {
    let (base_kind, base) = match peer.base {
        Base::Unset => (0, 0),
        Base::NoGeneration => (1, 0),
        Base::Generation(id) => (2, id.0),
    };
    let copy = match peer.copy {
        PeerCopy::MayHold => 0,
        PeerCopy::NoGeneration => 1,
        PeerCopy::LeftOutdated => 2,
        PeerCopy::SyncTarget => 3,
        PeerCopy::ToldToFinish => 4,
        PeerCopy::RotatedWithout => 5,
    };
    let flags = if peer.may_be_primary { PEER_FLAG_MAY_BE_PRIMARY } else { 0 }
        | if peer.slot_filled { PEER_FLAG_SLOT_FILLED } else { 0 };
    out.extend(base.to_le_bytes());
    out.extend(peer.session_offered.to_le_bytes());
    out.extend(peer.session_used.to_le_bytes());
    out.extend(peer.slot_epoch.to_le_bytes());
    out.extend([peer.node.0, base_kind, copy, flags]);
    out.extend([0; 8]);
}

fn read_peer(from: &mut Reader<'_>) -> Option<PeerRecord> {
    let base = GenerationId(from.u128()?);
    let (session_offered, session_used, slot_epoch) = (from.u64()?, from.u64()?, from.u32()?);
    let [node, base_kind, copy, flags] = from.bytes()?;
    Some(PeerRecord {
        node: NodeId(node),
        base: match base_kind {
            0 => Base::Unset,
            1 => Base::NoGeneration,
            2 => Base::Generation(base),
            _ => return None,
        },
        copy: match copy {
            0 => PeerCopy::MayHold,
            1 => PeerCopy::NoGeneration,
            2 => PeerCopy::LeftOutdated,
            3 => PeerCopy::SyncTarget,
            4 => PeerCopy::ToldToFinish,
            5 => PeerCopy::RotatedWithout,
            _ => return None,
        },
        session_offered,
        session_used,
        may_be_primary: flags & PEER_FLAG_MAY_BE_PRIMARY != 0,
        slot_epoch,
        slot_filled: flags & PEER_FLAG_SLOT_FILLED != 0,
    })
}

fn push_checkpoint(out: &mut Vec<u8>, record: &CheckpointRecord) {
    let end = out.len() + CHECKPOINT_RECORD_BYTES;
    match &record.held {
        Some(held) => held.encode(out),
        None => out.resize(out.len() + CHECKPOINT_BYTES, 0),
    }
    let flags = if record.held.is_some() { CHECKPOINT_FLAG_HELD } else { 0 }
        | if record.covered { CHECKPOINT_FLAG_COVERED } else { 0 };
    out.extend(record.slot_epoch.to_le_bytes());
    out.push(flags);
    out.resize(end, 0);
}

fn read_checkpoint(from: &mut Reader<'_>) -> Option<CheckpointRecord> {
    let held = from.slice(CHECKPOINT_BYTES)?;
    let (slot_epoch, flags) = (from.u32()?, from.u8()?);
    let held = match flags & CHECKPOINT_FLAG_HELD {
        0 => None,
        _ => Some(Checkpoint::decode(held)?),
    };
    Some(CheckpointRecord { held, covered: flags & CHECKPOINT_FLAG_COVERED != 0, slot_epoch })
}

fn push_area(out: &mut Vec<u8>, area: &Area) {
    out.extend(area.offset.to_le_bytes());
    out.extend(area.len.to_le_bytes());
    out.extend([area.kind as u8, area.slot, area.copy, 0, 0, 0, 0, 0]);
}

fn read_area(from: &mut Reader<'_>) -> Option<Area> {
    let (offset, len) = (from.u64()?, from.u64()?);
    let [kind, slot, copy] = from.bytes()?;
    let kind = match kind {
        1 => AreaKind::Activity,
        2 => AreaKind::SlotMap,
        3 => AreaKind::Bits,
        4 => AreaKind::NamedBitmap,
        5 => AreaKind::BlockChecksums,
        _ => return None,
    };
    Some(Area { kind, slot, copy, offset, len })
}

pub(super) fn encode_log(log: &GenerationLog, out: &mut Vec<u8>) {
    out.extend((log.entries().len() as u32).to_le_bytes());
    for entry in log.entries() {
        let (origin, rank) = match entry.origin {
            Origin::Created => (0, 0),
            Origin::Agreed => (1, 0),
            Origin::PeerLost => (2, 0),
            Origin::Promoted => (3, 0),
            Origin::PeerIsDown => (4, 0),
            Origin::DataLoss { from: CopyRank::Inconsistent } => (5, 0),
            Origin::DataLoss { from: CopyRank::Outdated } => (5, 1),
            Origin::DataLoss { from: CopyRank::Unclean } => (5, 2),
            Origin::DataLoss { from: CopyRank::Clean } => (5, 3),
        };
        out.extend(entry.id.0.to_le_bytes());
        out.extend(entry.parent.map_or(0, |parent| parent.0).to_le_bytes());
        out.extend(entry.ordinal.to_le_bytes());
        out.extend(entry.began_unix_ms.to_le_bytes());
        out.extend([entry.node.0, origin, rank, u8::from(entry.parent.is_some())]);
        out.extend([0; 4]);
    }
}

pub(super) fn decode_log(bytes: &[u8]) -> Result<GenerationLog, SuperblockError> {
    let log = decode_log_prefix(bytes)?;
    let mut again = Vec::with_capacity(bytes.len());
    encode_log(&log, &mut again);
    match again.len() == bytes.len() {
        false => Err(SuperblockError::Length),
        true if again != bytes => Err(SuperblockError::Field("reserved")),
        true => Ok(log),
    }
}

/// Reads a log that other bytes may follow.
fn decode_log_prefix(bytes: &[u8]) -> Result<GenerationLog, SuperblockError> {
    let mut from = Reader::new(bytes);
    let count = from.u32().ok_or(SuperblockError::Length)? as usize;
    if count > MAX_GENERATIONS {
        return Err(SuperblockError::GenerationCount(count));
    }
    let rows = from.slice(count * GENERATION_BYTES).ok_or(SuperblockError::Length)?;
    let entries = rows.chunks_exact(GENERATION_BYTES).map(|row| read_generation(&mut Reader::new(row)));
    let entries = entries.collect::<Option<Vec<_>>>().ok_or(SuperblockError::Field("generation"))?;
    GenerationLog::from_entries(entries)
}

fn read_generation(from: &mut Reader<'_>) -> Option<Generation> {
    let (id, parent) = (GenerationId(from.u128()?), GenerationId(from.u128()?));
    let (ordinal, began_unix_ms) = (from.u64()?, from.u64()?);
    let [node, origin, rank, has_parent] = from.bytes()?;
    let origin = match (origin, rank) {
        (0, 0) => Origin::Created,
        (1, 0) => Origin::Agreed,
        (2, 0) => Origin::PeerLost,
        (3, 0) => Origin::Promoted,
        (4, 0) => Origin::PeerIsDown,
        (5, 0) => Origin::DataLoss { from: CopyRank::Inconsistent },
        (5, 1) => Origin::DataLoss { from: CopyRank::Outdated },
        (5, 2) => Origin::DataLoss { from: CopyRank::Unclean },
        (5, 3) => Origin::DataLoss { from: CopyRank::Clean },
        _ => return None,
    };
    let parent = match has_parent {
        0 => None,
        1 => Some(parent),
        _ => return None,
    };
    Some(Generation { id, ordinal, parent, node: NodeId(node), began_unix_ms, origin })
}
