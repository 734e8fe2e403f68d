//! The command to type next, where a state does not end by itself. Pure.

use super::model::{PeerDoc, ResourceDoc};

/// Lines for people; empty if nothing is to be done.
pub(crate) fn advice(resource: &ResourceDoc) -> Vec<String> {
    let name = &resource.name;
    let mut lines = Vec::new();
    if !resource.up {
        lines.push(format!("bring it up: lockstep up {name}"));
        return lines;
    }
    let Some(peer) = resource.peers.first() else { return lines };
    if let Some(line) = link_advice(resource, peer) {
        lines.push(line);
    }
    if lines.is_empty() && resource.error.is_none() {
        lines.extend(role_advice(resource, peer));
    }
    lines
}

fn link_advice(resource: &ResourceDoc, peer: &PeerDoc) -> Option<String> {
    let (name, own, other) = (&resource.name, &resource.node, &peer.name);
    match peer.replication.as_str() {
        "SplitBrain" => {
            let both = resource.role == "Primary" && peer.role.as_deref() == Some("Primary");
            let first = if both { format!(" (first, there: lockstep demote {name})") } else { String::new() };
            Some(format!(
                "choose whose changes are given up{first}: lockstep resolve {name} --discard {own}|{other}"
            ))
        }
        "Unrelated" => Some(format!(
            "on the node whose disk may be overwritten: lockstep down {name}; lockstep create-md {name} \
             --overwrite; lockstep up {name}"
        )),
        "TargetIsPrimary" => {
            let target = if resource.role == "Primary" { own } else { other };
            Some(format!("demote the target, on {target}: lockstep demote {name}"))
        }
        "NoSource" if resource.generation.is_none() => Some(format!(
            "name the source, on the node whose disk is to be kept: lockstep down {name}; lockstep \
             create-md {name} --source --overwrite; lockstep up {name}"
        )),
        "NoSource" => Some(format!(
            "name the source, on the node whose copy is to be kept: lockstep promote {name} \
            --accept-data-loss"
        )),
        "PausedSource" | "PausedTarget" => {
            let by_peer = peer.resync.as_ref().is_some_and(|resync| resync.paused_by_peer);
            let on = match (resource.sync_paused, by_peer) {
                (true, true) => "on both nodes".to_owned(),
                (true, false) => format!("on {own}"),
                (false, _) => format!("on {other}"),
            };
            Some(format!("let the resync go on, {on}: lockstep sync {name} --resume"))
        }
        _ if peer.resync.as_ref().is_some_and(|resync| resync.incomplete) => Some(format!(
            "look at the disk of the source; its blocks are tried again every minute, and at once by: lockstep \
             sync {name} --resume"
        )),
        _ if peer.connection == "StandAlone" => Some(format!("connect again: lockstep connect {name}")),
        _ => None,
    }
}

fn role_advice(resource: &ResourceDoc, peer: &PeerDoc) -> Option<String> {
    let (name, other) = (&resource.name, &peer.name);
    let away = peer.connection == "Connecting";
    let no_primary = resource.role != "Primary" && peer.role.as_deref() != Some("Primary");
    match resource.disk.as_str() {
        _ if resource.suspended => {
            Some(format!("I/O of clients is held until {other} returns, or fails after io-timeout"))
        }
        _ if resource.changing_role => None,
        "UpToDate" if no_primary => {
            Some(format!("no node is Primary; to serve clients here: lockstep promote {name}"))
        }
        "Consistent" if away && resource.unclean => Some(format!(
            "wait for {other}; or, if it does not come back, to take this copy as it is: lockstep promote \
             {name} --accept-data-loss"
        )),
        "Consistent" if away => Some(format!(
            "wait for {other}; or, if it is certainly down: lockstep promote {name} --peer-is-down"
        )),
        "Outdated" | "Inconsistent" if away => Some(format!("this copy is behind: bring {other} back")),
        _ => None,
    }
}
