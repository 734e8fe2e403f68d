//! A resource as an NBD client may see it at the moment it asks.

use super::resource::Resource;
use crate::access::Guest;
use crate::config::ResourceConfig;
use crate::disk::Disk;
use crate::nbd::{Export, context_names};

impl Resource {
    /// Its export, for this client.
    pub(super) fn export(&self, config: &ResourceConfig, guest: Guest<'_>) -> Export {
        let (node, disk) = (self.node.as_ref(), self.storage.disk.as_ref());
        let status = node.map(|node| (node.export(), node.status()));
        Export {
            name: self.name.clone(),
            other_shard: None,
            is_elsewhere: status.as_ref().is_some_and(|(_, status)| self.is_elsewhere(status)),
            state: status.map(|(export, status)| (export, status.role)),
            size_bytes: node.and_then(|node| node.geometry()).map_or(0, |geometry| geometry.size_bytes()),
            read_only: config.read_only,
            admission: config.access.admit(guest),
            peer: config.peer.as_ref().map(|peer| peer.name.clone()),
            fast_zero: disk.is_some_and(Disk::zeroes_fast),
            is_rotational: disk.is_some_and(|disk| disk.is_rotational),
            condition: config.peer.as_ref().map_or(String::new(), |peer| self.condition(&peer.name)),
            contexts: context_names(config.peer.is_some(), node),
        }
    }

    /// How its copies are, in a few words.
    fn condition(&self, peer_name: &str) -> String {
        let Some(status) = self.node.as_ref().map(|node| node.status()) else { return String::new() };
        let own = format!(": {}, {}", status.role, status.disk);
        match status.peers.first() {
            Some(peer) => format!("{own}; {peer_name}: {}, {}", peer.connection, peer.replication),
            None => own,
        }
    }
}
