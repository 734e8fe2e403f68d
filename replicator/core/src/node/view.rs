//! The status snapshot.

use super::Node;
use super::role::Change;
use crate::status::{DiskState, PeerStatus, ReplicationState, Status};
use lockstep_bitmap::PeerCopy;

impl Node {
    /// Everything that an operator may want to know, at this instant.
    pub fn status(&self) -> Status {
        let store = self.store.as_ref();
        let sb = store.map(|store| &store.superblock);
        let established = self.replication() == ReplicationState::Established;
        let changing = matches!(self.change, Some(Change::Promoting(_) | Change::Demoting(_)));
        Status {
            node: self.cfg.node,
            role: self.role,
            disk: self.disk,
            generation: sb.and_then(|sb| sb.log.current()).cloned(),
            term: self.term(),
            unclean: self.is_unclean(),
            changing_role: changing,
            suspended: self.suspended_since.is_some(),
            protected: established && self.disk == DiskState::UpToDate,
            sync_paused: self.pace.paused,
            sync_rate: self.pace.rate,
            sync_least: self.pace.least,
            clients: self.clients,
            requests: self.requests.open,
            hot_regions: store.map_or(0, |store| store.activity.hot_count()),
            hot_regions_max: store.map_or(0, |store| store.activity.max_hot()),
            size_bytes: self.geometry().map_or(0, |geometry| geometry.size_bytes()),
            undurable_writes: u32::try_from(self.undurable.len()).unwrap_or(u32::MAX),
            peers: self.peer_status().into_iter().collect(),
            checkpoints: self.checkpoints().map(|held| held.to_status()).collect(),
            next_deadline: self.next_deadline().map(|deadline| deadline.why),
        }
    }

    fn peer_status(&self) -> Option<PeerStatus> {
        let node = self.cfg.peer?.node;
        let dirty = self.store.as_ref().map_or(0, |store| store.slots[0].bits.count());
        let block_bytes = self.geometry().map_or(0, |geometry| geometry.block_bytes());
        let known = self.link.as_ref().filter(|link| link.got_snapshot.is_some());
        let recorded = match self.peer_copy() {
            PeerCopy::NoGeneration | PeerCopy::SyncTarget => Some(DiskState::Inconsistent),
            PeerCopy::LeftOutdated | PeerCopy::RotatedWithout => Some(DiskState::Outdated),
            PeerCopy::MayHold | PeerCopy::ToldToFinish => None,
        };
        let split = self.replication() == ReplicationState::SplitBrain;
        let theirs = self.last_peer.as_ref().filter(|_| split);
        Some(PeerStatus {
            node,
            connection: self.connection(),
            replication: self.replication(),
            role: known.map(|link| link.peer_role),
            disk: known.map(|link| link.peer_disk).or(recorded),
            out_of_sync_bytes: dirty * block_bytes,
            resync: self.resync_status(),
            resynced_bytes_total: self.resynced_bytes_total,
            alone_since_unix_ms: split.then(|| self.alone_since()),
            peer_alone_since_unix_ms: theirs.map(|theirs| theirs.began_unix_ms),
            peer_out_of_sync_bytes: theirs.map(|theirs| theirs.dirty_bytes),
            since_ms: u64::try_from(self.now.since(self.contact_since).as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// When the first generation began that the peer's recorded one does not include.
    pub(super) fn alone_since(&self) -> u64 {
        let Some(sb) = self.store.as_ref().map(|store| &store.superblock) else { return 0 };
        let base = match sb.peers.first().map(|peer| peer.base) {
            Some(lockstep_bitmap::Base::Generation(id)) => sb.log.position(id),
            _ => None,
        };
        let first_own = base.map_or(0, |position| position + 1);
        sb.log.entries().get(first_own).map_or(0, |generation| generation.began_unix_ms)
    }

    /// Logical block size for both copies: the larger of the two.
    pub(super) fn granule_bytes(&self) -> u32 {
        let theirs = self.last_peer.as_ref().map_or(0, |theirs| theirs.granule_bytes);
        self.cfg.granule_bytes.max(theirs)
    }
}
