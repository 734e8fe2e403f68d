//! What the control plane is shown of a resource.

use std::path::PathBuf;
use std::time::SystemTime;

use lockstep_core::Status;

/// One resource, at one moment.
#[derive(Clone, Debug)]
pub struct ResourceReport {
    /// Its name.
    pub name: String,
    /// What the core says; `None` while the resource is down.
    pub status: Option<Status>,
    /// Why the disk is not attached, if it should be.
    pub error: Option<String>,
    /// Clients in the transmission phase.
    pub clients: Vec<ClientInfo>,
    /// The data.
    pub disk: PathBuf,
    /// How the disk is used, in words; `None` while there is none.
    pub disk_mode: Option<String>,
    /// The metadata.
    pub meta: PathBuf,
    /// Where clients find the export on this node, one URI per listener.
    pub nbd_uris: Vec<String>,
    /// Name and replication address of the peer.
    pub peer: Option<(String, String)>,
    /// Payload memory.
    pub memory: MemoryReport,
    /// Why the last link ended or could not be made, in words.
    pub link_error: Option<String>,
}

/// Payload memory of a resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryReport {
    /// Reserved at start, in bytes.
    pub reserved_bytes: u64,
    /// Bitmaps of its volume, in bytes, at most; 0 without a disk.
    pub bitmaps_bytes: u64,
    /// Slots in use now.
    pub slots_in_use: u32,
    /// Slots in all.
    pub slots: u32,
}

/// One client.
#[derive(Clone, Debug)]
pub struct ClientInfo {
    /// Its address; for unix sockets the path and the process id.
    pub addr: String,
    /// The export it opened.
    pub export: String,
    /// Since when.
    pub since: SystemTime,
}
