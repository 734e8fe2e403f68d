//! Inputs of the core.

use crate::checkpoint::CheckpointName;
use crate::frame::Frame;
use crate::ids::{CommandId, LinkId, OpId, ReqId, SlotId};
use lockstep_bitmap::NodeId;

/// What a client asks for. Ranges were checked against the volume's size by the NBD server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// Read; the shell has reserved slots for the whole range.
    Read,
    /// Write; the bytes follow in [`Event::Payload`].
    Write,
    /// Punch a hole; reads as zeroes afterwards, on every copy.
    Trim,
    /// Write zeroes; a hole may be punched unless `no_hole`.
    Zero {
        /// Keep the blocks allocated.
        no_hole: bool,
    },
    /// Make every write that was replied to durable on every copy.
    Flush,
}

/// Why a disk operation failed, as far as the core decides on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskError {
    /// The device or file system reported an error.
    Io,
    /// No space is left on the file system under a sparse file.
    NoSpace,
    /// What was written was not made durable. A write with FUA is an fdatasync, too: where that half of it fails the
    /// kernel may have dropped what other writes left in its cache, and tells nobody else.
    Sync,
}

/// Why a link ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkLoss {
    /// Closed or reset by the network or by the peer's end without a word.
    Lost,
    /// Dialling failed.
    Unreachable,
    /// Authentication, cluster, resource or version did not match.
    Rejected,
    /// A frame was malformed.
    Malformed,
    /// A newer connection of the same peer took its place.
    Superseded,
    /// Closed by our own [`crate::Action::CloseLink`].
    Closed,
}

/// What the shell learnt and proved about the peer before the link came up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerHello {
    /// The authenticated node.
    pub node: NodeId,
    /// Random number of the peer's daemon process.
    pub run_id: u128,
    /// Boot id of the peer's kernel.
    pub boot_id: u128,
    /// It knows the frames about checkpoints.
    pub keeps_checkpoints: bool,
    /// It knows the least rate in a Pace frame.
    pub takes_least: bool,
}

/// What an operator asks of resync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncOrder {
    /// Ask for nothing more; what is under way ends.
    Pause,
    /// Go on, and ask again for what could not be read.
    Resume,
    /// At most so many bytes per second; `None`: as fast as clients' writes allow.
    Rate(Option<u64>),
    /// At least so many bytes per second, however long clients wait, where no limit of an operator is lower (DRBD:
    /// c-min-rate); `None`: what clients leave.
    AtLeast(Option<u64>),
}

/// What an operator asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Make this node Primary.
    Promote {
        /// The operator asserts that the peer is down.
        peer_is_down: bool,
        /// The operator takes a copy that may lack writes; includes `peer_is_down`.
        accept_data_loss: bool,
    },
    /// Make this node Secondary.
    Demote {
        /// Close clients, answer suspended I/O with EIO.
        force: bool,
    },
    /// Connect to the peer (undoes `Disconnect`).
    Connect,
    /// Close the link and stay StandAlone.
    Disconnect,
    /// End split brain: this node's data loses.
    Resolve {
        /// The node whose changes are given up.
        discard: NodeId,
    },
    /// Declare a copy wrong: all of it is synchronised from the other one.
    Invalidate {
        /// The peer's copy, not this one.
        peer: bool,
    },
    /// Steer resync on this link and later ones, until the daemon ends.
    Sync(SyncOrder),
    /// Give up the local disk: its copy is recorded as Outdated and closed; a Primary goes on through its peer.
    Detach,
    /// Begin to remember under this name what is written from now on.
    CreateCheckpoint {
        /// Its name.
        name: CheckpointName,
    },
    /// Forget it.
    DeleteCheckpoint {
        /// Its name.
        name: CheckpointName,
    },
    /// Leave cleanly: demote by force, ask the peer, record, close; nothing runs afterwards.
    Leave,
}

/// One input. Bodies and payloads were checked against their checksums by the shell.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// The first event after construction.
    Start {
        /// Wall clock, for records and messages only.
        unix_ms: u64,
    },
    /// A deadline passed (or any time).
    Tick {
        /// Wall clock, for records and messages only.
        unix_ms: u64,
    },
    /// A client's request; answered by exactly one [`crate::Action::Reply`].
    Request {
        /// The shell's number.
        req: ReqId,
        /// What to do.
        kind: RequestKind,
        /// First byte.
        offset: u64,
        /// Bytes; zero for Flush. For Read and Write at most 32 MiB.
        len: u64,
        /// Durable everywhere before the reply.
        fua: bool,
    },
    /// A piece of a Write's bytes arrived: cut at multiples of [`crate::PIECE_BYTES_MAX`] of the volume, in order.
    ///
    /// A Zero whose range does not begin or end at a multiple of 4096 has up to two pieces as well: the shell sends its
    /// edges (the part outside the whole 4096-byte units, or all of it if there is no whole unit) as payload of
    /// zeroes; the core cuts the rest itself. A Trim has none: its edges are left alone.
    Payload {
        /// The request.
        req: ReqId,
        /// First byte on the volume.
        offset: u64,
        /// Bytes.
        len: u32,
        /// Where they are; the core's until [`crate::Action::ReleaseSlot`].
        slot: SlotId,
    },
    /// The rest of a Write's bytes will never arrive (the client is gone).
    Abandoned {
        /// The request; still answered once.
        req: ReqId,
    },
    /// The number of clients attached to the export changed.
    Clients {
        /// Open connections in the transmission phase.
        open: u32,
    },
    /// A disk operation ended.
    DiskDone {
        /// Which.
        op: OpId,
        /// How.
        result: Result<(), DiskError>,
        /// The bytes of a successful read that was not made for a request; the core's until released.
        slot: Option<SlotId>,
    },
    /// A [`crate::Action::DiskInspect`] ended.
    DiskInspected {
        /// Which.
        op: OpId,
        /// How.
        result: Result<(), DiskError>,
        /// The bytes, if it did not fail; the core's until released.
        slot: Option<SlotId>,
        /// Bit `n`: unit `n` of the range ([`crate::UNIT_BYTES`] from its begin) is all zero.
        zeroes: u32,
        /// Digest of each unit, [`crate::DIGEST_BYTES`] each, if they were asked for; empty otherwise.
        digests: &'a [u8],
    },
    /// A metadata write ended: every copy of the page is durable, or it failed. Answers
    /// [`crate::Action::RecordFailure`] and [`crate::Action::CloseDisk`], too.
    MetaDone {
        /// Which.
        op: OpId,
        /// How.
        result: Result<(), DiskError>,
    },
    /// An authenticated connection to the peer exists. An older one of the same peer has been reported down before.
    LinkUp {
        /// Its number.
        link: LinkId,
        /// Who is there.
        peer: PeerHello,
    },
    /// A frame arrived on a link.
    Frame {
        /// Which link; frames of an old one are ignored.
        link: LinkId,
        /// The decoded header.
        frame: Frame,
        /// Bytes of a control frame's body (untrusted; empty for data frames).
        body: &'a [u8],
        /// Payload of a data frame; the core's until released.
        slot: Option<SlotId>,
    },
    /// The shell stopped reading a link, because no buffer is free for what comes next; or it goes on. Heartbeats and
    /// acknowledgements wait in the socket meanwhile: the silence is ours, not the peer's.
    Reading {
        /// Which.
        link: LinkId,
        /// It goes on.
        is_reading: bool,
    },
    /// A link ended, or a dial failed (then `link` is `None`).
    LinkDown {
        /// Which.
        link: Option<LinkId>,
        /// Why.
        loss: LinkLoss,
    },
    /// An operator's command; answered by exactly one [`crate::Action::CommandDone`].
    Command {
        /// The shell's number.
        id: CommandId,
        /// What to do.
        command: Command,
    },
}
