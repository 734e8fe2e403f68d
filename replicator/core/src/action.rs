//! Outputs of the core. The shell executes each in order, at once, and reports completions later.

use crate::event::{DiskError, LinkLoss};
use crate::frame::Frame;
use crate::ids::{CommandId, LinkId, OpId, ReqId, SlotId};
use crate::refusal::{Done, IoError, Refusal};
use crate::status::{ConnectionState, DiskState, ReplicationState, Role};
use lockstep_bitmap::{FailureRecord, GenerationId, MetaPage};

/// May clients be served?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportState {
    /// Refuse the export: this node is Secondary.
    Closed,
    /// A role change is under way: accept, hold the greeting.
    Hold,
    /// Serve it.
    Open,
}

/// Why the core closes a link; the peer is told in a Goodbye frame, the operator in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// Nothing was heard for the configured timeout.
    Silent,
    /// The peer broke the protocol.
    PeerMisbehaved,
    /// The two verdicts were not mirror images, or the copies cannot belong together.
    VerdictMismatch,
    /// Something of the snapshot changed during the handshake: it starts again at once.
    SnapshotChanged,
    /// The operator disconnected.
    Disconnected,
    /// This node leaves.
    Leaving,
    /// Our disk failed.
    DiskFailed,
    /// The operator resolved a split brain: the handshake starts again.
    Resolving,
    /// A copy was declared wrong: the handshake starts again.
    Invalidated,
    /// Our disk is being replaced, or given up: the handshake starts again.
    DiskChanged,
}

/// What failed on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// A read.
    Read,
    /// A write, trim or zero.
    Write,
    /// An fdatasync: the copy is lost.
    Flush,
    /// A metadata write: the copy is lost.
    Metadata,
    /// An operation did not complete within `disk-timeout`: the copy is lost.
    Hung,
    /// Neither the metadata nor the shell could record that the copy is lost.
    Record,
}

/// A change worth a line in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Role changed.
    Role {
        /// Before.
        old: Role,
        /// After.
        new: Role,
    },
    /// Disk state changed.
    Disk {
        /// Before.
        old: DiskState,
        /// After.
        new: DiskState,
    },
    /// Connection state changed.
    Connection {
        /// Before.
        old: ConnectionState,
        /// After.
        new: ConnectionState,
    },
    /// Replication state changed.
    Replication {
        /// Before.
        old: ReplicationState,
        /// After.
        new: ReplicationState,
    },
    /// A link ended.
    LinkLost {
        /// How the shell saw it.
        loss: LinkLoss,
    },
    /// A link is being closed by us.
    Closing {
        /// Why.
        reason: CloseReason,
    },
    /// A new generation is durable.
    Generation {
        /// Its id.
        id: GenerationId,
        /// Its number for people.
        ordinal: u64,
    },
    /// Both copies were written since their last common generation.
    SplitBrain,
    /// The peer's data has nothing in common with ours.
    UnrelatedData,
    /// Synchronisation is needed and refused, since the target would be a Primary whose copy is UpToDate.
    TargetIsPrimary,
    /// A disk operation failed.
    DiskFailed {
        /// What was tried.
        what: Failed,
        /// Where, for what has a place.
        offset: u64,
        /// How.
        error: DiskError,
    },
    /// This copy was declared wrong, durably.
    Invalidated,
    /// A resync has done everything but the blocks that the source cannot read.
    ResyncIncomplete,
    /// Client I/O waits because no UpToDate copy can be reached.
    Suspended,
    /// Client I/O goes on.
    Resumed,
}

/// One output.
#[derive(Clone, Copy, Debug)]
pub enum Action {
    /// Read from the local disk: into the request's own slot (`req`), or into a slot of the shell's choice that the
    /// completion hands over.
    DiskRead {
        /// Completion id.
        op: OpId,
        /// The request that is served, if any.
        req: Option<ReqId>,
        /// First byte; any alignment (the shell rounds out to logical blocks and keeps the wanted part).
        offset: u64,
        /// Bytes; the range never crosses a multiple of [`crate::PIECE_BYTES_MAX`].
        len: u32,
    },
    /// Read a piece into a slot of the shell's choice, which the completion hands over, and look at it unit by unit:
    /// answered by [`crate::Event::DiskInspected`]. Digests are keyed with a secret of the link that both ends know
    /// and nobody else, the same on both.
    DiskInspect {
        /// Completion id.
        op: OpId,
        /// First byte; a multiple of [`crate::UNIT_BYTES`].
        offset: u64,
        /// Bytes; as for a read.
        len: u32,
        /// Digests are wanted.
        digests: bool,
    },
    /// Complete a slot whose payload covers its edge blocks partially: read these blocks, put their bytes around it.
    DiskFill {
        /// Completion id.
        op: OpId,
        /// The slot.
        slot: SlotId,
        /// First byte of the payload.
        offset: u64,
        /// Bytes of payload.
        len: u32,
        /// Block size in bytes to round out to (512..=4096).
        granule_bytes: u32,
    },
    /// Write whole logical blocks.
    DiskWrite {
        /// Completion id.
        op: OpId,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
        /// Where the bytes are.
        slot: SlotId,
        /// Durable at completion.
        fua: bool,
    },
    /// Make a range read as zeroes.
    DiskZero {
        /// Completion id.
        op: OpId,
        /// First byte.
        offset: u64,
        /// Bytes; never crosses a multiple of [`crate::PIECE_BYTES_MAX`].
        len: u32,
        /// A hole may be punched.
        punch: bool,
        /// Durable at completion.
        fua: bool,
    },
    /// fdatasync: covers every write whose completion was reported before this action.
    DiskFlush {
        /// Completion id.
        op: OpId,
    },
    /// Write a metadata page (all its copies, durably). The bytes: [`crate::Node::render_meta`], at execution.
    MetaWrite {
        /// Completion id.
        op: OpId,
        /// Which page.
        page: MetaPage,
    },
    /// Metadata cannot say any more that this copy failed: remember it elsewhere, durably, until metadata with this
    /// id and a higher sequence number exist ([`lockstep_bitmap::Superblock::apply_failure`] at the next attach).
    RecordFailure {
        /// Completion id.
        op: OpId,
        /// What to remember.
        record: FailureRecord,
    },
    /// Close data and metadata once every operation on them has ended.
    CloseDisk {
        /// Completion id.
        op: OpId,
    },
    /// Open a connection to the peer; answered by LinkUp or LinkDown.
    Dial,
    /// Send a frame. The body: [`crate::Node::render_body`], at execution. A slot is kept by the shell until it was
    /// sent, whatever the core does with it meanwhile.
    Send {
        /// Which link.
        link: LinkId,
        /// The frame.
        frame: Frame,
        /// Payload of a data frame; the frame's range may be a part of what the slot holds.
        slot: Option<SlotId>,
    },
    /// Close a link after what is queued; LinkDown follows.
    CloseLink {
        /// Which.
        link: LinkId,
        /// Why.
        reason: CloseReason,
    },
    /// Hand a slot to a read request as the bytes of this part of its range.
    Supply {
        /// The request.
        req: ReqId,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
        /// The bytes; the shell's from now on.
        slot: SlotId,
    },
    /// Answer a request.
    Reply {
        /// Which.
        req: ReqId,
        /// How.
        result: Result<(), IoError>,
        /// Where it failed, if that is known: the begin of the first piece that did.
        at: Option<u64>,
    },
    /// The core is done with a slot. The shell keeps it for a disk operation that still uses it.
    ReleaseSlot {
        /// Which.
        slot: SlotId,
    },
    /// The export's state changed. When it leaves Open, the shell closes client connections.
    Export {
        /// The new state.
        state: ExportState,
    },
    /// Answer a command.
    CommandDone {
        /// Which.
        id: CommandId,
        /// How.
        result: Result<Done, Refusal>,
    },
    /// Something to log.
    Notice(Notice),
}
