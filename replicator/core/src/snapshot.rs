//! The one atomic snapshot that each end sends in the handshake (ordering 8), and its encoding.
//!
//! Little-endian, fixed fields first, then the generation log. Input from the peer is untrusted: every enum is
//! checked, nothing is allocated beyond what arrived, trailing bytes are refused.
#![deny(clippy::indexing_slicing)]

use crate::frame::NUMBER_MAX;
use crate::status::{DiskState, Role};
use alloc::vec::Vec;
use core::fmt;
use lockstep_bitmap::{Base, Becoming, GenerationId, GenerationLog, NodeId, PeerCopy};

/// Everything that a verdict depends on, from one side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Who speaks.
    pub node: NodeId,
    /// Size of the volume in bytes; 0 while Diskless.
    pub size_bytes: u64,
    /// Logical block size of the disk in bytes.
    pub granule_bytes: u32,
    /// log2 of the bitmap's block size.
    pub block_shift: u8,
    /// Role.
    pub role: Role,
    /// Disk state.
    pub disk: DiskState,
    /// Term.
    pub term: u64,
    /// Generations.
    pub log: GenerationLog,
    /// What an Inconsistent copy was becoming.
    pub becoming: Option<Becoming>,
    /// The copy stopped uncleanly in its current generation.
    pub unclean: bool,
    /// Bits of the sender's slot come from regions that were hot when it stopped: most of these blocks are equal.
    pub marked: bool,
    /// The receiver's generation when the sender's slot for it became non-empty.
    pub base: Base,
    /// The sender's durable record of the receiver's copy.
    pub peer_copy: PeerCopy,
    /// The sender has no dirty bits toward the receiver.
    pub slot_empty: bool,
    /// Bytes that are dirty toward the receiver (for messages; no part of the verdict).
    pub dirty_bytes: u64,
    /// Highest session number that the sender promised to the receiver, durable. The one of this link is promised
    /// after both snapshots, before the verdict is said.
    pub session_offered: u64,
    /// Highest session number that was used with the receiver.
    pub session_used: u64,
    /// The node whose changes the sender's operator gives up.
    pub discard: Option<NodeId>,
    /// The operator declared the fresh copies equal.
    pub declared_clean: bool,
    /// Hash over a sample of the disk's blocks, if the copy is declared equal.
    pub sample: u128,
    /// Generation that the sender proposes for two copies declared equal.
    pub proposal: GenerationId,
    /// Generation and term that a Primary without an UpToDate copy of its own last wrote through.
    pub wrote_through: Option<(GenerationId, u64)>,
    /// The receiver is the very process, or at least runs on the very kernel, through which that Primary last wrote
    /// (ordering 13).
    pub continues: bool,
    /// Begin of the first generation after the last common one, as far as the sender knows (for messages).
    pub began_unix_ms: u64,
}

/// A snapshot that could not be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotError;

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the peer's snapshot is malformed")
    }
}

impl core::error::Error for SnapshotError {}

impl Snapshot {
    /// True if nothing changed that a verdict depends on.
    pub(crate) fn same_verdict_inputs(&self, other: &Snapshot) -> bool {
        let strip =
            |s: &Snapshot| Snapshot { dirty_bytes: 0, began_unix_ms: 0, session_offered: 0, ..s.clone() };
        strip(self) == strip(other)
    }

    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend([self.node.0, self.block_shift, self.role.code(), self.disk.code()]);
        out.extend(self.granule_bytes.to_le_bytes());
        out.extend(self.size_bytes.to_le_bytes());
        out.extend(self.term.to_le_bytes());
        out.push(
            u8::from(self.unclean)
                | (u8::from(self.slot_empty) << 1)
                | (u8::from(self.declared_clean) << 2)
                | (u8::from(self.continues) << 3)
                | (u8::from(self.marked) << 4),
        );
        let (base_kind, base_id) = match self.base {
            Base::Unset => (0, 0),
            Base::NoGeneration => (1, 0),
            Base::Generation(id) => (2, id.0),
        };
        out.extend([base_kind, peer_copy_code(self.peer_copy)]);
        out.push(self.discard.map_or(255, |node| node.0));
        out.push(self.becoming.map_or(255, |b| b.node.0));
        out.extend(base_id.to_le_bytes());
        out.extend(self.becoming.map_or(0, |b| b.generation.0).to_le_bytes());
        out.extend(self.dirty_bytes.to_le_bytes());
        out.extend(self.session_offered.to_le_bytes());
        out.extend(self.session_used.to_le_bytes());
        out.extend(self.sample.to_le_bytes());
        out.extend(self.proposal.0.to_le_bytes());
        out.extend(self.wrote_through.map_or(0, |(id, _)| id.0).to_le_bytes());
        out.extend(self.wrote_through.map_or(0, |(_, term)| term).to_le_bytes());
        out.extend(self.began_unix_ms.to_le_bytes());
        self.log.encode(out);
    }

    /// Reads an encoding that must fill `bytes`. What does not encode to the very same bytes has a field set that its
    /// kind does not use: a later version may give it a meaning.
    pub fn decode(bytes: &[u8]) -> Result<Snapshot, SnapshotError> {
        let snapshot = Self::read(bytes)?;
        let mut again = Vec::with_capacity(bytes.len());
        snapshot.encode(&mut again);
        if again == bytes { Ok(snapshot) } else { Err(SnapshotError) }
    }

    fn read(bytes: &[u8]) -> Result<Snapshot, SnapshotError> {
        let mut r = Reader(bytes);
        let [node, block_shift, role, disk] = r.take::<4>()?;
        let granule_bytes = u32::from_le_bytes(r.take()?);
        let (size_bytes, term) = (r.u64()?, r.u64()?);
        let [flags, base_kind, peer_copy, discard, becoming_node] = r.take::<5>()?;
        let base_id = GenerationId(r.u128()?);
        let becoming_id = GenerationId(r.u128()?);
        let (dirty_bytes, session_offered, session_used) = (r.u64()?, r.u64()?, r.u64()?);
        let (sample, proposal) = (r.u128()?, GenerationId(r.u128()?));
        let (through_id, through_term) = (GenerationId(r.u128()?), r.u64()?);
        let began_unix_ms = r.u64()?;
        let log = GenerationLog::decode(r.0).map_err(|_| SnapshotError)?;
        let ordinal = log.current().map_or(0, |generation| generation.ordinal);
        if [term, through_term, session_offered, session_used, ordinal].into_iter().any(|n| n > NUMBER_MAX) {
            return Err(SnapshotError);
        }
        if flags > 31 || !matches!(granule_bytes, 512 | 1024 | 2048 | 4096) {
            return Err(SnapshotError);
        }
        Ok(Snapshot {
            node: NodeId(node),
            size_bytes,
            granule_bytes,
            block_shift,
            role: Role::from_code(role).ok_or(SnapshotError)?,
            disk: DiskState::from_code(disk).ok_or(SnapshotError)?,
            term,
            log,
            becoming: (becoming_node != 255)
                .then_some(Becoming { generation: becoming_id, node: NodeId(becoming_node) }),
            unclean: flags & 1 != 0,
            base: match base_kind {
                0 => Base::Unset,
                1 => Base::NoGeneration,
                2 => Base::Generation(base_id),
                _ => return Err(SnapshotError),
            },
            peer_copy: peer_copy_from(peer_copy)?,
            slot_empty: flags & 2 != 0,
            dirty_bytes,
            session_offered,
            session_used,
            discard: (discard != 255).then_some(NodeId(discard)),
            declared_clean: flags & 4 != 0,
            sample,
            proposal,
            wrote_through: (through_id.0 != 0).then_some((through_id, through_term)),
            continues: flags & 8 != 0,
            marked: flags & 16 != 0,
            began_unix_ms,
        })
    }
}

const PEER_COPIES: [PeerCopy; 6] = [
    PeerCopy::MayHold,
    PeerCopy::NoGeneration,
    PeerCopy::LeftOutdated,
    PeerCopy::SyncTarget,
    PeerCopy::ToldToFinish,
    PeerCopy::RotatedWithout,
];

fn peer_copy_code(copy: PeerCopy) -> u8 {
    (0u8..).zip(PEER_COPIES).find(|(_, c)| *c == copy).map_or(0, |(code, _)| code)
}

fn peer_copy_from(code: u8) -> Result<PeerCopy, SnapshotError> {
    PEER_COPIES.get(usize::from(code)).copied().ok_or(SnapshotError)
}

/// Takes fixed-size values from the front of a slice.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], SnapshotError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(SnapshotError)?;
        self.0 = rest;
        Ok(*head)
    }

    fn u64(&mut self) -> Result<u64, SnapshotError> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    fn u128(&mut self) -> Result<u128, SnapshotError> {
        Ok(u128::from_le_bytes(self.take()?))
    }
}
