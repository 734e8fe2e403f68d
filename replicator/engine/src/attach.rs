//! Opening the disks of a resource: what may take long, done on a thread of its own before the shard hears of
//! it.

use std::os::fd::OwnedFd;

use lockstep_bitmap::Store;

use crate::config::{EngineConfig, ResourceConfig};
use crate::disk::{self, DeviceFacts, OpenDisk};
use crate::error::AttachError;
use crate::meta::{self, read_metadata};

/// Everything a resource needs to run with a disk.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) disk: OpenDisk,
    pub(crate) meta: OwnedFd,
    /// The metadata file lives in memory.
    pub(crate) meta_in_memory: bool,
    pub(crate) store: Store,
    /// Over some of the disk's blocks, if the copy was declared equal to the other one.
    pub(crate) sample: u128,
}

/// Opens, locks, reads and checks metadata and disk of a resource. `moved`: the operator says that a disk which is not
/// known holds this resource's data.
pub(crate) fn attach(config: &EngineConfig, index: usize, moved: bool) -> Result<Attached, AttachError> {
    let resource = &config.resources[index];
    let (file, mut store, findings) =
        meta::open(&resource.meta, &resource.name, resource.max_hot_regions, config.lock_wait)?;
    check_owner(config, index, &store)?;
    disk::failed::apply(&resource.failed_record, &mut store.superblock)
        .map_err(|error| AttachError::io(&resource.failed_record, error))?;
    let facts = disk::device_facts(&resource.disk).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => AttachError::NoDisk(resource.disk.clone()),
        _ => AttachError::io(&resource.disk, error),
    })?;
    if facts.is_ambiguous {
        tracing::warn!(
            "{}: {} has no serial number or UUID: a mix-up with another such disk would go unnoticed",
            resource.name,
            resource.disk.display()
        );
    }
    check_disk(config, index, &mut store, &facts, moved)?;
    let disk = disk::open(&resource.disk, resource.read_only, config.lock_wait)?;
    if disk.size_bytes < store.superblock.size_bytes {
        return Err(AttachError::Size {
            resource: resource.name.clone(),
            path: resource.disk.clone(),
            actual_bytes: disk.size_bytes,
            recorded_bytes: store.superblock.size_bytes,
        });
    }
    let name = &resource.name;
    if findings.damaged_pages > 0 {
        tracing::warn!("{name}: damaged metadata pages, taken at their worst: {findings:?}");
    }
    tracing::info!("{name}: attached {}, {} hot regions", resource.disk.display(), findings.hot_regions);
    let meta_in_memory = disk::is_in_memory(&resource.meta);
    let sample = match store.superblock.declared_clean {
        true => disk::sample(&disk, store.superblock.size_bytes)
            .map_err(|error| AttachError::io(&resource.disk, error))?,
        false => 0,
    };
    Ok(Attached { disk, meta: file.into(), meta_in_memory, store, sample })
}

/// Is it the disk that the metadata was made for? One that was moved is believed to hold this data, and none of its
/// blocks is: it is recorded as wrong, together with what it is known by from now on, before it can take part.
fn check_disk(
    config: &EngineConfig,
    index: usize,
    store: &mut Store,
    facts: &DeviceFacts,
    moved: bool,
) -> Result<(), AttachError> {
    let resource = &config.resources[index];
    let recorded = store.superblock.identity.device;
    if facts.identity == recorded {
        return Ok(());
    }
    let is_disk_of = |other: &&ResourceConfig| {
        let known = read_metadata(&other.meta);
        other.name != resource.name
            && known.is_ok_and(|(store, _)| store.superblock.identity.device == facts.identity)
    };
    if let Some(other) = config.resources.iter().find(is_disk_of) {
        return Err(AttachError::Swapped {
            path: resource.disk.clone(),
            resource: resource.name.clone(),
            other: other.name.clone(),
        });
    }
    let expected = disk::identity_text(&recorded);
    let Some(peer) = resource.peer.as_ref().filter(|_| moved) else {
        return Err(AttachError::OtherDisk {
            path: resource.disk.clone(),
            meta: resource.meta.clone(),
            resource: resource.name.clone(),
            expected,
            found: facts.text.clone(),
        });
    };
    tracing::warn!(
        "{}: the disk was \"{expected}...\" and is \"{}\" now, by the operator's word: all of it will be compared",
        resource.name,
        facts.text
    );
    store.superblock.identity.device = facts.identity;
    lockstep_core::declare_wrong(store, peer.node);
    Ok(())
}

fn check_owner(config: &EngineConfig, index: usize, store: &Store) -> Result<(), AttachError> {
    let resource = &config.resources[index];
    let identity = &store.superblock.identity;
    let peers: Vec<u8> = store.superblock.peers.iter().map(|peer| peer.node.0).collect();
    let ours: Vec<u8> = resource.peer.iter().map(|peer| peer.node.0).collect();
    let same = identity.resource == resource.name
        && identity.node == config.node
        && identity.node_name == config.node_name
        // Where nobody is configured, nobody can be the wrong one.
        && (ours.is_empty() || peers == ours);
    if same {
        return Ok(());
    }
    let tell = |resource: &str, node: u8, name: &str, peers: &[u8]| {
        format!("resource {resource} on node {node} ({name}) with peers {peers:?}")
    };
    Err(AttachError::Foreign {
        path: resource.meta.clone(),
        resource: resource.name.clone(),
        theirs: tell(&identity.resource, identity.node.0, &identity.node_name, &peers),
        ours: tell(&resource.name, config.node.0, &config.node_name, &ours),
    })
}
