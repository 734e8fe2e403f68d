//! Refusals in words: the rule that refused, what could be lost, and the whole command to type next, with
//! the names of this cluster in place of node numbers. Pure.

use crate::text::clock;
use lockstep_bitmap::NodeId;
use lockstep_core::{DiskState, Refusal, Role};

/// The message for a refused command. `verb` is what was typed, `names` are the node names by id.
pub(crate) fn render_refusal(refusal: &Refusal, verb: &str, resource: &str, names: &[String]) -> String {
    let name = |node: &NodeId| node_name(names, *node);
    match refusal {
        Refusal::Busy => "another role change or a handshake is under way; try again".to_owned(),
        Refusal::PeerIsPrimary(node) => format!(
            "{0} is Primary, and only one node can be; demote it first, there: lockstep demote {resource}",
            name(node)
        ),
        Refusal::PeerWon(node) => {
            format!(
                "{} asked to be promoted at the same moment and won; only one node can be Primary",
                name(node)
            )
        }
        Refusal::LinkLost => format!(
            "the connection was lost before the peer agreed, and nothing changed. If the peer is \
             certainly down: lockstep promote {resource} --peer-is-down"
        ),
        Refusal::MayBeStale { disk, since_ms } => format!(
            "this copy is {disk} and the peer has been out of contact for {}: it may be Primary, and may \
             have acknowledged writes that are missing here. Wait for it, or, if it is certainly down \
             (what it acknowledged alone is given up): lockstep promote {resource} --peer-is-down",
            clock(since_ms / 1000)
        ),
        Refusal::DataLoss { disk, unclean } => {
            let lost = if *unclean {
                "stopped uncleanly: writes that were acknowledged and not flushed may be missing here"
            } else {
                "is behind: acknowledged writes are missing here"
            };
            format!(
                "this copy is {disk} and {lost}. Bring the other node back, or, to take this copy as it \
                 is: lockstep promote {resource} --accept-data-loss"
            )
        }
        Refusal::NoData => format!(
            "this copy was never synchronised and holds no data. Connect the node that has the data, or, \
             if what this disk holds is the data: lockstep down {resource}; lockstep create-md {resource} \
             --source --overwrite; lockstep up {resource}"
        ),
        Refusal::PeerAnswers { peer, disk } => format!(
            "{} answers and its copy is {disk}: a flag that asserts the opposite is refused. Type \
             lockstep promote {resource} without it, or lockstep disconnect {resource} first",
            name(peer)
        ),
        Refusal::SplitBrain => format!(
            "split brain: both copies were written since they parted. Name the one whose changes are \
             given up: lockstep resolve {resource} --discard {}",
            names.join("|")
        ),
        Refusal::InUse { clients } => format!(
            "{clients} client{} attached to the export (lockstep status {resource} lists them). Detach, \
             or close them by: lockstep {verb} {resource} --force",
            if *clients == 1 { " is" } else { "s are" }
        ),
        Refusal::DiskFailed => format!(
            "the local disk failed; the log has the error. Replace it, then: lockstep down {resource}; \
             lockstep create-md {resource} --overwrite; lockstep up {resource}"
        ),
        Refusal::NoDisk => format!(
            "no disk is attached here, and without one a node can only serve clients through an UpToDate peer that \
             is connected. Attach the disk: lockstep attach {resource}"
        ),
        Refusal::NoOtherCopy { disk } => format!(
            "this copy is {disk}, and no other UpToDate copy is within reach: without this disk there would \
             be none. Let the peer connect and its resync end, or close everything here: lockstep down \
             {resource}"
        ),
        Refusal::HasDisk => format!("{resource} has a disk already; first: lockstep detach {resource}"),
        Refusal::OtherSize { served, new } => format!(
            "the volume has {served} bytes, the new disk's {new}: give its metadata the same size, lockstep \
             create-md {resource} --overwrite on a disk that is large enough"
        ),
        Refusal::NothingToResolve => "there is no split brain to resolve".to_owned(),
        Refusal::LoserIsPrimary(node) => format!(
            "{0} is Primary, and its data would be given up under its clients; demote it first, \
             there: lockstep demote {resource}",
            name(node)
        ),
        Refusal::UnknownNode(node) => {
            format!("{} does not hold {resource}; its nodes are {}", name(node), names.join(", "))
        }
        Refusal::Leaving => {
            format!("down on this node, or on its way; type: lockstep up {resource}")
        }
        Refusal::LastCopy(_)
        | Refusal::NotConnected(_)
        | Refusal::PeerRefused(_)
        | Refusal::Unanswered(_) => invalidate_refusal(refusal, resource, name),
        Refusal::WrongRole(Role::Primary) => {
            format!("not possible while this node is Primary; first: lockstep demote {resource}")
        }
        Refusal::WrongRole(Role::Secondary) => {
            format!("not possible while this node is Secondary; first: lockstep promote {resource}")
        }
        _ => checkpoint_refusal(refusal, resource),
    }
}

/// Why a copy was not declared wrong.
fn invalidate_refusal(refusal: &Refusal, resource: &str, name: impl Fn(&NodeId) -> String) -> String {
    match refusal {
        Refusal::LastCopy(node) => format!(
            "the copy of {0} is, or may be, the only one that is UpToDate, and is not given up. Wait until \
             the other one is UpToDate (lockstep status {resource}), or, if this data is to be given up for \
             good, on {0}: lockstep down {resource}; lockstep create-md {resource} --overwrite; lockstep up \
             {resource}",
            name(node)
        ),
        Refusal::NotConnected(node) => format!(
            "nothing is replicated with {} (lockstep status {resource} says why). Connect it, or type the \
             command there without --peer",
            name(node)
        ),
        Refusal::PeerRefused(node) => format!(
            "{} refused: another change is under way there, or its copy may not be given up. Try again, or \
             type there: lockstep invalidate {resource}",
            name(node)
        ),
        Refusal::Unanswered(node) => format!(
            "the connection was lost before {} answered: it may have done it. Look at lockstep status \
             {resource} there, then try again",
            name(node)
        ),
        _ => refusal.to_string(),
    }
}

/// Why a checkpoint was not created or deleted.
fn checkpoint_refusal(refusal: &Refusal, resource: &str) -> String {
    match refusal {
        Refusal::CheckpointNotPrimary => format!(
            "checkpoints are created and deleted on the Primary, and reach the other node from there; this node is \
             Secondary. Type it on the Primary, or first: lockstep promote {resource}"
        ),
        Refusal::CheckpointDisk { disk: DiskState::Diskless | DiskState::Failed } => format!(
            "this node has no disk, and a checkpoint begins on an UpToDate one. Attach it: lockstep attach {resource}"
        ),
        Refusal::CheckpointDisk { disk } => format!(
            "this node's copy is {disk}, and a checkpoint begins on an UpToDate one. Wait until it is: lockstep wait \
             {resource} --for uptodate"
        ),
        Refusal::CheckpointExists => format!(
            "there is a checkpoint of this name. Take another, or first: lockstep checkpoint delete {resource} NAME"
        ),
        Refusal::CheckpointRoom { room: 0 } => format!(
            "the metadata of this node has no room for checkpoints. To have it, while the peer is UpToDate: lockstep \
             detach {resource}; lockstep create-md {resource} --overwrite --checkpoints 4; lockstep attach {resource} \
             (the peer fills the copy again)"
        ),
        Refusal::CheckpointRoom { room } => format!(
            "the metadata has room for {room} checkpoint{}, all in use (lockstep checkpoint list {resource}). First: \
             lockstep checkpoint delete {resource} NAME",
            if *room == 1 { "" } else { "s" }
        ),
        _ => refusal.to_string(),
    }
}

/// The name of a node, or its number if it has none.
pub(crate) fn node_name(names: &[String], node: NodeId) -> String {
    names.get(usize::from(node.0)).cloned().unwrap_or_else(|| format!("node {}", node.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(refusal: Refusal) -> String {
        render_refusal(&refusal, "demote", "r0", &["alpha".to_owned(), "beta".to_owned()])
    }

    #[test]
    fn messages_have_names_and_whole_commands() {
        let beta = NodeId(1);
        for (refusal, words) in [
            (Refusal::PeerIsPrimary(beta), &["beta is Primary", "lockstep demote r0"][..]),
            (Refusal::PeerWon(beta), &["beta asked"]),
            (Refusal::LinkLost, &["lockstep promote r0 --peer-is-down"]),
            (
                Refusal::MayBeStale { disk: DiskState::Consistent, since_ms: 65_000 },
                &["Consistent", "1:05", "lockstep promote r0 --peer-is-down"],
            ),
            (
                Refusal::DataLoss { disk: DiskState::Consistent, unclean: true },
                &["uncleanly", "lockstep promote r0 --accept-data-loss"],
            ),
            (Refusal::DataLoss { disk: DiskState::Outdated, unclean: false }, &["Outdated", "is behind"]),
            (Refusal::NoData, &["lockstep create-md r0 --source"]),
            (
                Refusal::PeerAnswers { peer: beta, disk: DiskState::UpToDate },
                &["beta answers", "UpToDate", "lockstep disconnect r0"],
            ),
            (Refusal::SplitBrain, &["lockstep resolve r0 --discard alpha|beta"]),
            (Refusal::InUse { clients: 1 }, &["1 client is attached", "lockstep demote r0 --force"]),
            (Refusal::InUse { clients: 2 }, &["2 clients are attached"]),
            (Refusal::LoserIsPrimary(beta), &["beta is Primary", "lockstep demote r0"]),
            (Refusal::UnknownNode(NodeId(7)), &["node 7", "alpha, beta"]),
            (Refusal::LastCopy(beta), &["the copy of beta", "lockstep create-md r0 --overwrite"]),
            (Refusal::NotConnected(beta), &["with beta", "without --peer"]),
            (Refusal::PeerRefused(beta), &["beta refused", "lockstep invalidate r0"]),
            (Refusal::Unanswered(beta), &["beta answered", "lockstep status r0"]),
            (Refusal::Leaving, &["lockstep up r0"]),
            (Refusal::NoOtherCopy { disk: DiskState::UpToDate }, &["UpToDate", "lockstep down r0"]),
            (Refusal::HasDisk, &["lockstep detach r0"]),
            (Refusal::OtherSize { served: 8, new: 4 }, &["has 8 bytes", "lockstep create-md r0"]),
            (Refusal::WrongRole(Role::Primary), &["lockstep demote r0"]),
            (Refusal::CheckpointNotPrimary, &["on the Primary", "lockstep promote r0"]),
            (
                Refusal::CheckpointDisk { disk: DiskState::Inconsistent },
                &["Inconsistent", "lockstep wait r0"],
            ),
            (Refusal::CheckpointDisk { disk: DiskState::Failed }, &["no disk", "lockstep attach r0"]),
            (Refusal::CheckpointExists, &["lockstep checkpoint delete r0 NAME"]),
            (Refusal::CheckpointRoom { room: 0 }, &["no room", "create-md r0 --overwrite --checkpoints 4"]),
            (Refusal::CheckpointRoom { room: 4 }, &["4 checkpoints", "lockstep checkpoint delete r0 NAME"]),
        ] {
            let text = render(refusal);
            for word in words {
                assert!(text.contains(word), "{text}: lacks {word}");
            }
            assert!(!text.contains("  "), "{text}");
        }
    }
}
