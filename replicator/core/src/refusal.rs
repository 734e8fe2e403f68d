//! Answers to commands and requests. Each refusal names the rule, what could be lost, and what to type next.

use crate::status::{DiskState, Role};
use core::fmt;
use lockstep_bitmap::NodeId;

/// Result of a client's request, mapped to NBD errors by the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoError {
    /// EIO.
    Io,
    /// ENOSPC.
    NoSpace,
    /// ESHUTDOWN: the export is closed.
    Shutdown,
}

/// A command that did what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// The state was changed.
    Changed,
    /// Nothing was to be done.
    Already,
    /// Left, and the peer recorded it.
    LeftAsOutdated,
    /// Left in the state it had: the peer was away, or did not agree.
    LeftAsIs,
}

/// Why a command was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Another role change is under way.
    Busy,
    /// The peer is Primary.
    PeerIsPrimary(NodeId),
    /// The peer asked at the same time and won.
    PeerWon(NodeId),
    /// The link was lost before the peer agreed.
    LinkLost,
    /// No UpToDate copy, and the peer cannot be reached.
    MayBeStale {
        /// Our state.
        disk: DiskState,
        /// Since when the peer has been out of contact, milliseconds.
        since_ms: u64,
    },
    /// This copy may lack acknowledged writes.
    DataLoss {
        /// Our state.
        disk: DiskState,
        /// It stopped uncleanly.
        unclean: bool,
    },
    /// No data at all: the copy was never synchronised.
    NoData,
    /// A flag was given while the peer answers with a usable copy.
    PeerAnswers {
        /// The peer.
        peer: NodeId,
        /// Its disk state.
        disk: DiskState,
    },
    /// The histories parted: choose first.
    SplitBrain,
    /// Clients are connected.
    InUse {
        /// How many.
        clients: u32,
    },
    /// The disk failed.
    DiskFailed,
    /// No disk is attached, and what was asked for cannot go on through the peer.
    NoDisk,
    /// This is the only usable copy within reach.
    NoOtherCopy {
        /// Our state.
        disk: DiskState,
    },
    /// There is a disk already.
    HasDisk,
    /// The new disk's volume has another size than the one that is served.
    OtherSize {
        /// Bytes of the volume that is served.
        served: u64,
        /// Bytes of the new one.
        new: u64,
    },
    /// There is no split brain to resolve.
    NothingToResolve,
    /// The loser is Primary.
    LoserIsPrimary(NodeId),
    /// The node is not part of the resource.
    UnknownNode(NodeId),
    /// The node leaves or left.
    Leaving,
    /// Not possible in this role.
    WrongRole(Role),
    /// This node's copy is the only one that is known to be UpToDate, or may be.
    LastCopy(NodeId),
    /// The peer is not connected, or nothing is replicated.
    NotConnected(NodeId),
    /// The peer was asked and refused.
    PeerRefused(NodeId),
    /// The peer was asked, and the link was lost before it answered.
    Unanswered(NodeId),
    /// Checkpoints are created and deleted on the Primary.
    CheckpointNotPrimary,
    /// This node's own copy is not UpToDate.
    CheckpointDisk {
        /// Our state.
        disk: DiskState,
    },
    /// There is one of this name.
    CheckpointExists,
    /// The metadata has no room for another one.
    CheckpointRoom {
        /// There is room for so many in all.
        room: u8,
    },
}

impl Refusal {
    /// Exit code of the command line (as drbdsetup's).
    pub fn exit_code(&self) -> u8 {
        match self {
            Refusal::MayBeStale { .. }
            | Refusal::DataLoss { .. }
            | Refusal::NoData
            | Refusal::DiskFailed
            | Refusal::NoDisk => 17,
            _ => 11,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Busy => write!(f, "another role change or handshake is under way; try again"),
            Refusal::PeerIsPrimary(n) => {
                write!(f, "node {} is Primary; demote it there first: lockstep demote", n.0)
            }
            Refusal::PeerWon(n) => write!(
                f,
                "node {} asked to be promoted at the same time and won; only one node can be Primary",
                n.0
            ),
            Refusal::LinkLost => write!(
                f,
                "the link was lost before the peer agreed; nothing changed. If the peer is down: \
                 lockstep promote --peer-is-down"
            ),
            Refusal::MayBeStale { disk, since_ms } => write!(
                f,
                "this copy is {disk} and the peer has been out of contact for {} s: the peer may be Primary and may \
                 have acknowledged writes that are missing here. If it is certainly down: lockstep promote \
                 --peer-is-down (gives up what the peer acknowledged alone)",
                since_ms / 1000
            ),
            Refusal::DataLoss { disk, unclean } => {
                write!(f, "this copy is {disk}")?;
                if *unclean {
                    write!(
                        f,
                        " and stopped uncleanly: acknowledged writes that were not flushed may be missing"
                    )?;
                } else {
                    write!(f, ": acknowledged writes are missing here")?;
                }
                write!(
                    f,
                    ". Bring the other node back, or, to take this copy as it is: lockstep promote --accept-data-loss"
                )
            }
            Refusal::NoData => write!(
                f,
                "this copy was never synchronised and holds no generation; name a source with \
                 lockstep create-md --source, or connect the node that has the data"
            ),
            Refusal::PeerAnswers { peer, disk } => write!(
                f,
                "node {} answers and its copy is {disk}: flags that assert the opposite are refused. Type promote \
                 without a flag, or lockstep disconnect first",
                peer.0
            ),
            Refusal::SplitBrain => write!(
                f,
                "split brain: both copies were written since they parted. Choose the loser: lockstep resolve R \
                 --discard NODE"
            ),
            Refusal::InUse { clients } => write!(
                f,
                "{clients} client(s) are connected to the export; detach them, or lockstep demote --force closes them"
            ),
            Refusal::DiskFailed => f.write_str("the local disk failed; see the log, replace it"),
            Refusal::NoDisk => f.write_str("no disk is attached here, and nothing goes on through a peer"),
            Refusal::NoOtherCopy { disk } => write!(
                f,
                "this copy is {disk} and no other UpToDate copy is within reach: without it there would be none. Let \
                 the peer connect and its resync end first; lockstep down R closes the disk all the same"
            ),
            Refusal::HasDisk => write!(f, "a disk is attached already; lockstep detach R first"),
            Refusal::OtherSize { served, new } => write!(
                f,
                "the volume that is served has {served} bytes, the new disk's has {new}: create its metadata with the \
                 same size"
            ),
            Refusal::NothingToResolve => write!(f, "there is no split brain to resolve"),
            Refusal::LoserIsPrimary(n) => write!(
                f,
                "node {} is Primary and its changes would be discarded under its clients; demote it first",
                n.0
            ),
            Refusal::UnknownNode(n) => write!(f, "node {} is not part of this resource", n.0),
            Refusal::Leaving => write!(f, "this node is leaving the resource"),
            Refusal::WrongRole(role) => write!(f, "not possible while this node is {role}"),
            Refusal::LastCopy(n) => write!(
                f,
                "the copy of node {} is, or may be, the only one that is UpToDate: it is not given up. Connect an \
                 UpToDate peer first; if the data is to be given up: lockstep create-md --overwrite",
                n.0
            ),
            Refusal::NotConnected(n) => write!(f, "nothing is replicated with node {}; connect it", n.0),
            Refusal::PeerRefused(n) => write!(
                f,
                "node {} refused: it is Primary, or another change is under way there. Type the command there",
                n.0
            ),
            Refusal::Unanswered(n) => write!(
                f,
                "the connection was lost before node {} answered: look at its status, then try again",
                n.0
            ),
            _ => self.fmt_checkpoint(f),
        }
    }
}

impl Refusal {
    /// Those about checkpoints.
    fn fmt_checkpoint(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::CheckpointDisk { disk } => write!(
                f,
                "this node's copy is {disk}: a checkpoint begins on an UpToDate one. Wait for its resync, or attach \
                 its disk"
            ),
            Refusal::CheckpointExists => {
                f.write_str("there is a checkpoint of this name; delete it, or take another name")
            }
            Refusal::CheckpointRoom { room: 0 } => f.write_str(
                "the metadata of this node was created without room for checkpoints. Create it anew while the disk is \
                 detached, and let the peer fill the copy: lockstep create-md R --overwrite --checkpoints 4",
            ),
            Refusal::CheckpointRoom { room } => {
                write!(f, "there is room for {room} checkpoints, and that many exist; delete one")
            }
            _ => f.write_str(
                "this node is Secondary; checkpoints are created and deleted on the Primary, and reach this node from \
                 there. Type the command there",
            ),
        }
    }
}

impl core::error::Error for Refusal {}
