//! Units of work on a range of the volume, and what each outstanding operation belongs to.

use crate::event::DiskError;
use crate::ids::{Instant, LinkId, Position, ReqId, SlotId};
use crate::refusal::IoError;
use lockstep_bitmap::{ByteRange, MetaPage, RegionIndex};

/// What a task is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// A client's read.
    Read { req: ReqId },
    /// A client's write, trim or zero.
    Write { req: ReqId, zero: Option<Zero>, fua: bool },
    /// A write of the Primary, received.
    PeerWrite { pos: Position, zero: Option<Zero>, fua: bool },
    /// A read for a client of the peer.
    PeerRead { id: u32 },
    /// A resync piece read at the source; `hashed`: to be compared with the target's digests.
    Serve { batch: u64, hashed: bool },
    /// A resync piece of the target that holds its lock: while it is hashed here, and if this node is Primary until all
    /// of its parts are written. `parts`: those being written.
    Piece { piece: u32, parts: u32 },
    /// A part of a piece written at the target, under the lock of task `under` or its own.
    Part { piece: u32, under: Option<u32>, zero: bool },
}

/// A write without payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Zero {
    pub(super) punch: bool,
}

/// How far a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Not admitted yet: role, suspension, stale blocks.
    Gate,
    /// Waits for its lock.
    Lock,
    /// Waits for its region's mark (ordering 1).
    Region,
    /// Its edge blocks are being read.
    Fill,
    /// Waits for room in the table of undurable writes.
    Room,
    /// Submitted.
    Running,
    /// Complete; waits for a rotation before it may be acknowledged (ordering 4).
    Held,
    /// Complete here, the only UpToDate copy is out of reach: resent or failed when that is settled (ordering 13).
    Suspended,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Task {
    pub(super) work: Work,
    pub(super) range: ByteRange,
    pub(super) slot: Option<SlotId>,
    pub(super) stage: Stage,
    /// Block size in bytes to which the slot's edges were completed (0: not at all).
    pub(super) filled_bytes: u32,
    pub(super) region: Option<RegionIndex>,
    pub(super) pos: Option<Position>,
    pub(super) local_pending: bool,
    pub(super) peer_pending: bool,
    /// The link that it came from or was sent on.
    pub(super) link: Option<LinkId>,
    pub(super) failed: Option<IoError>,
    /// When a client's request was submitted.
    pub(super) began: Instant,
    /// A read that failed here: the peer's bytes are put back, under an exclusive lock.
    pub(super) repair: bool,
}

impl Task {
    pub(super) fn new(work: Work, range: ByteRange, slot: Option<SlotId>, link: Option<LinkId>) -> Self {
        Task {
            work,
            range,
            slot,
            stage: Stage::Gate,
            filled_bytes: 0,
            region: None,
            pos: None,
            local_pending: false,
            peer_pending: false,
            link,
            failed: None,
            began: Instant(0),
            repair: false,
        }
    }

    pub(super) fn offset(&self) -> u64 {
        self.range.start
    }

    /// Bytes; a task never exceeds one piece.
    pub(super) fn len(&self) -> u32 {
        u32::try_from(self.range.len()).unwrap_or(u32::MAX)
    }

    /// Made because the peer asked for it, and bounded by nothing but our count: it has no slot of the shell.
    pub(super) fn is_counted_for_peer(&self) -> bool {
        self.slot.is_none()
            && matches!(self.work, Work::PeerWrite { .. } | Work::PeerRead { .. } | Work::Serve { .. })
    }

    /// Made for a client of this node.
    pub(super) fn is_client(&self) -> bool {
        matches!(self.work, Work::Read { .. } | Work::Write { .. })
    }
}

/// What an fdatasync is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlushFor {
    /// The stream, up to this position.
    Stream { covers: Position },
    /// The received stream, up to this position.
    Received { covers: Position, link: LinkId, served: u64 },
    /// The target's batch.
    TargetBatch { link: LinkId, batch: u64 },
    /// The source's batch.
    SourceBatch { link: LinkId, batch: u64 },
    /// A Secondary that lost its peer, or a copy that is attached.
    Settle { served: u64 },
    /// The peer asked to leave.
    Farewell { link: LinkId },
}

/// What an outstanding operation belongs to.
#[derive(Clone, Copy, Debug)]
pub(super) enum OpKind {
    Task(u32),
    Fill(u32),
    Flush(FlushFor),
    Meta(MetaPage),
    /// The shell's own record of a failure.
    FailureRecord,
    CloseDisk,
    /// Its disk was given up while it was under way; it completes late, or never.
    Abandoned,
}

impl From<DiskError> for IoError {
    fn from(error: DiskError) -> IoError {
        match error {
            DiskError::Io | DiskError::Sync => IoError::Io,
            DiskError::NoSpace => IoError::NoSpace,
        }
    }
}
