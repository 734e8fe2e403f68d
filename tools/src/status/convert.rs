//! From the engine's report to the JSON document. Pure: the wall clock is an input.

use super::model::{
    CheckpointDoc, ClientDoc, GenerationDoc, MemoryDoc, PeerDoc, RangeDoc, ResourceDoc, ResyncDoc,
    SplitBrainDoc,
};
use crate::refusal::node_name;
use crate::text::rfc3339;
use lockstep_bitmap::CheckpointState;
use lockstep_core::{
    CheckpointStatus, ConnectionState, DiskState, PeerStatus, ReplicationState, Role, Status,
};
use lockstep_engine::ResourceReport;

/// Who looks, and what the configuration says of the nodes.
pub(crate) struct Place {
    /// Node names by id.
    pub(crate) names: Vec<String>,
    /// Id of this node.
    pub(crate) node: u8,
    /// Replication addresses by id.
    pub(crate) addresses: Vec<String>,
    /// Addresses for clients of a resource, by node id; `{}` stands for the resource's name.
    pub(crate) uris: Vec<Vec<String>>,
}

impl Place {
    fn uris_of(&self, node: usize, resource: &str) -> Vec<String> {
        let patterns = self.uris.get(node).map(Vec::as_slice).unwrap_or_default();
        patterns.iter().map(|pattern| pattern.replace("{}", resource)).collect()
    }
}

/// The document of one resource.
pub(crate) fn resource_doc(report: &ResourceReport, place: &Place, now_unix_ms: u64) -> ResourceDoc {
    let own = node_name(&place.names, lockstep_bitmap::NodeId(place.node));
    let status = report.status.as_ref();
    let clients = report
        .clients
        .iter()
        .map(|client| ClientDoc { address: client.addr.clone(), since: rfc3339(unix_ms(client.since)) });
    let reason = status.map_or(Some("the resource is down on this node".to_owned()), |status| {
        not_protected_reason(status, &place.names)
    });
    ResourceDoc {
        name: report.name.clone(),
        node: own,
        up: status.is_some(),
        error: report.error.clone(),
        role: status.map_or(Role::Secondary, |status| status.role).to_string(),
        disk: status.map_or(DiskState::Diskless, |status| status.disk).to_string(),
        generation: status.and_then(|status| status.generation.as_ref()).map(|generation| GenerationDoc {
            id: format!("{:032x}", generation.id.0),
            ordinal: generation.ordinal,
            began: rfc3339(generation.began_unix_ms),
            node: node_name(&place.names, generation.node),
        }),
        term: status.map_or(0, |status| status.term),
        protected: reason.is_none(),
        not_protected_reason: reason,
        suspended: status.is_some_and(|status| status.suspended),
        unclean: status.is_some_and(|status| status.unclean),
        changing_role: status.is_some_and(|status| status.changing_role),
        sync_paused: status.is_some_and(|status| status.sync_paused),
        sync_rate: status.and_then(|status| status.sync_rate),
        sync_min_rate: status.and_then(|status| status.sync_least),
        size_bytes: status.map_or(0, |status| status.size_bytes),
        clients: clients.collect(),
        requests: status.map_or(0, |status| status.requests),
        undurable_writes: status.map_or(0, |status| status.undurable_writes),
        hot_regions: status.map_or(0, |status| status.hot_regions),
        hot_regions_max: status.map_or(0, |status| status.hot_regions_max),
        region_bytes: crate::config::REGION_BYTES,
        uris: place.uris_of(usize::from(place.node), &report.name),
        disk_path: report.disk.display().to_string(),
        disk_mode: report.disk_mode.clone(),
        meta_path: report.meta.display().to_string(),
        memory: MemoryDoc {
            reserved_bytes: report.memory.reserved_bytes,
            bitmaps_bytes: report.memory.bitmaps_bytes,
            slots_in_use: report.memory.slots_in_use,
            slots: report.memory.slots,
        },
        next_deadline: status.and_then(|status| status.next_deadline).map(str::to_owned),
        peers: status.map_or(Vec::new(), |status| {
            status.peers.iter().map(|peer| peer_doc(report, peer, place, now_unix_ms)).collect()
        }),
        checkpoints: status
            .map_or(Vec::new(), |status| status.checkpoints.iter().map(checkpoint_doc).collect()),
    }
}

fn checkpoint_doc(checkpoint: &CheckpointStatus) -> CheckpointDoc {
    let (state, reason) = match checkpoint.state {
        CheckpointState::Complete => ("complete", None),
        CheckpointState::Incomplete(why) => ("incomplete", Some(why.to_string())),
        CheckpointState::Invalid(why) => ("invalid", Some(why.to_string())),
    };
    CheckpointDoc {
        name: checkpoint.name.clone(),
        id: format!("{:032x}", checkpoint.id.0),
        created: rfc3339(checkpoint.created_unix_ms),
        changed_bytes: checkpoint.changed_bytes,
        state: state.to_owned(),
        reason,
        on_peer: checkpoint.is_at_peer,
    }
}

fn peer_doc(report: &ResourceReport, peer: &PeerStatus, place: &Place, now_unix_ms: u64) -> PeerDoc {
    let index = usize::from(peer.node.0);
    let name = node_name(&place.names, peer.node);
    let own = node_name(&place.names, lockstep_bitmap::NodeId(place.node));
    let ago = |ms: u64| rfc3339(now_unix_ms.saturating_sub(ms));
    let resync = peer.resync.as_ref().map(|resync| {
        let from_here =
            matches!(peer.replication, ReplicationState::SyncSource | ReplicationState::PausedSource);
        let (source, target) = if from_here { (&own, &name) } else { (&name, &own) };
        ResyncDoc {
            source: source.clone(),
            target: target.clone(),
            done_bytes: resync.total_bytes.saturating_sub(resync.left_bytes),
            total_bytes: resync.total_bytes,
            rate: resync.rate_bytes_per_s,
            eta_s: resync.eta_s,
            since: ago(resync.running_ms),
            limit: resync.limit_bytes_per_s,
            paused_by_peer: resync.paused_by_peer,
            copied_bytes: resync.moved.copied_bytes,
            equal_bytes: resync.moved.equal_bytes,
            zero_bytes: resync.moved.zero_bytes,
            unreadable_bytes: resync.unreadable_bytes,
            unreadable: resync
                .unreadable
                .iter()
                .map(|&(offset, length)| RangeDoc { offset, length })
                .collect(),
            incomplete: resync.incomplete,
        }
    });
    let split_brain = (peer.replication == ReplicationState::SplitBrain).then(|| SplitBrainDoc {
        since: peer.alone_since_unix_ms.map(rfc3339),
        bytes: peer.out_of_sync_bytes,
        peer_since: peer.peer_alone_since_unix_ms.map(rfc3339),
        peer_bytes: peer.peer_out_of_sync_bytes,
    });
    PeerDoc {
        name,
        id: peer.node.0,
        address: place.addresses.get(index).cloned().unwrap_or_default(),
        connection: peer.connection.to_string(),
        replication: peer.replication.to_string(),
        role: peer.role.map(|role| role.to_string()),
        disk: peer.disk.map(|disk| disk.to_string()),
        out_of_sync_bytes: peer.out_of_sync_bytes,
        since: ago(peer.since_ms),
        link_error: report.link_error.clone().filter(|_| peer.connection != ConnectionState::Connected),
        resync,
        resynced_bytes_total: peer.resynced_bytes_total,
        split_brain,
        uris: place.uris_of(index, &report.name),
    }
}

/// The first thing that stands between this resource and two equal copies.
fn not_protected_reason(status: &Status, names: &[String]) -> Option<String> {
    if status.protected {
        return None;
    }
    let Some(peer) = status.peers.first() else { return Some("no peer is configured".to_owned()) };
    let name = node_name(names, peer.node);
    let own = node_name(names, status.node);
    let reason = match (peer.connection, peer.replication) {
        (_, ReplicationState::SplitBrain) => format!("split brain with {name}"),
        (_, ReplicationState::Unrelated) => format!("the copy of {name} has nothing in common with this one"),
        (_, ReplicationState::TargetIsPrimary) => format!("{name} needs a resync that a Primary cannot take"),
        (_, ReplicationState::NoSource) => "neither copy can be the source of a resync".to_owned(),
        (_, ReplicationState::SyncSource | ReplicationState::Exchanging) => {
            format!("{name} is resynchronising")
        }
        (_, ReplicationState::PausedSource) => format!("the resync of {name} is paused"),
        (_, ReplicationState::PausedTarget) => format!("the resync of {own} is paused"),
        (_, ReplicationState::SyncTarget) => format!("{own} is resynchronising"),
        (ConnectionState::StandAlone, _) => format!("disconnected from {name} by command"),
        (ConnectionState::Connecting, _) => format!("{name} is away"),
        (ConnectionState::Negotiating, _) => format!("the handshake with {name} is under way"),
        (ConnectionState::Connected, _) if status.disk != DiskState::UpToDate => {
            format!("the copy of {own} is {}", status.disk)
        }
        (ConnectionState::Connected, _) => match peer.disk {
            Some(disk) => format!("the copy of {name} is {disk}"),
            None => format!("the copy of {name} is not known"),
        },
    };
    Some(reason)
}

fn unix_ms(time: std::time::SystemTime) -> u64 {
    let since = time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
