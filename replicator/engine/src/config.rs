//! What an engine is told at start: plain data, checked by whoever reads the configuration file.
//!
//! Everything that has a size is decided here, once; nothing grows afterwards.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lockstep_bitmap::NodeId;
use lockstep_core::Timing;
use lockstep_nbd::TlsPolicy;

use crate::access::Access;
use crate::tls::TlsTerminator;

/// One daemon.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Name of the cluster; equal on all nodes.
    pub cluster: String,
    /// Key that proves membership to peers; equal on all nodes.
    pub secret: [u8; 32],
    /// This node's id.
    pub node: NodeId,
    /// This node's name.
    pub node_name: String,
    /// Where peers connect to; one port for all resources.
    pub listen: SocketAddr,
    /// Where NBD clients connect to.
    pub nbd_listeners: Vec<NbdListener>,
    /// Who does TLS, for the listeners that have it.
    pub terminator: Option<Arc<dyn TlsTerminator>>,
    /// The resources.
    pub resources: Vec<ResourceConfig>,
    /// Bounds of clients and buffers.
    pub limits: Limits,
    /// Memory that everything together may take, in bytes: see [`crate::MemoryBudget`].
    pub memory_max_bytes: u64,
    /// Longest busy wait before the thread sleeps, in microseconds; 0 never spins.
    pub spin_us: u32,
    /// Congestion control of TCP, for peers and for clients; `None`: cubic, or the host's where there is none.
    pub congestion_control: Option<String>,
    /// How long a client is kept waiting while a promotion is under way, or nobody is known to be Primary.
    pub hold_greeting: Duration,
    /// How long an attach waits for the locks of a predecessor whose last requests are still ending.
    pub lock_wait: Duration,
    /// How long `stop` waits for resources to leave cleanly.
    pub stop_wait: Duration,
}

/// Where NBD clients connect to, and what they need for it.
#[derive(Clone, Debug)]
pub struct NbdListener {
    /// The place.
    pub place: Listener,
    /// Anything but `Off` needs [`EngineConfig::terminator`].
    pub tls: TlsPolicy,
}

/// One address for NBD clients.
#[derive(Clone, Debug)]
pub enum Listener {
    /// A unix socket.
    Unix {
        /// Where; a stale socket there is replaced.
        path: PathBuf,
        /// Permission bits of the socket.
        mode: u32,
        /// Id of the group that it is given to.
        group: Option<u32>,
    },
    /// A TCP port.
    Tcp(SocketAddr),
    /// A listening socket that somebody else opened, and keeps: connections wait there while no daemon runs.
    Inherited {
        /// The socket.
        socket: Arc<OwnedFd>,
        /// Where it listens, if that is known; its name is left alone.
        place: Option<Box<Listener>>,
    },
}

/// One resource as this node sees it.
#[derive(Clone, Debug)]
pub struct ResourceConfig {
    /// Its name; also the name of its export.
    pub name: String,
    /// Block device or file that holds the data.
    pub disk: PathBuf,
    /// The metadata file.
    pub meta: PathBuf,
    /// Where a failure of the disk is recorded when the metadata cannot take it: on another device, and best in
    /// memory.
    pub failed_record: PathBuf,
    /// The other node.
    pub peer: Option<PeerAddress>,
    /// Clients may only read, and the disk is opened so.
    pub read_only: bool,
    /// Clients that may open it.
    pub access: Access,
    /// Regions that may be hot at once: bounds the resync after a crash.
    pub max_hot_regions: u32,
    /// Memory for payloads in bytes; [`Limits::BUFFER_BYTES_MIN`] at least.
    pub buffer_bytes: u64,
    /// Durations.
    pub timing: Timing,
}

/// The other node of a resource.
#[derive(Clone, Debug)]
pub struct PeerAddress {
    /// Its id.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Its replication port.
    pub address: SocketAddr,
}

/// Bounds. Whoever exceeds one waits, or is turned away; nobody else notices.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// NBD clients in the transmission phase.
    pub clients_max: usize,
    /// Threads that resources are dealt out to; more than there are resources are as many as there are.
    pub shards: usize,
    /// NBD clients in the handshake, on each shard: one that named an export of another shard is there.
    pub handshakes_max: usize,
    /// NBD clients that wait until there is a Primary.
    pub held_max: usize,
    /// Peers in the hello exchange, on each shard.
    pub hellos_max: usize,
    /// Requests of all clients of one resource in flight.
    pub requests_max: usize,
    /// Requests of one client in flight.
    pub client_requests_max: u32,
    /// Bytes of one client's requests in flight. A single larger request is admitted alone.
    pub client_bytes_max: u64,
    /// How long an NBD handshake may take.
    pub handshake_timeout: Duration,
    /// Memory that the terminator takes for one connection, in bytes; 0 without TLS.
    pub tls_connection_bytes: u64,
    /// How long a hello exchange may take.
    pub hello_timeout: Duration,
    /// How long one message to a client, or one piece of a payload from it, may take while other clients wait
    /// for the memory it occupies; a TCP client that is silent as long is gone.
    pub progress_timeout: Duration,
}

impl Limits {
    /// Default of [`ResourceConfig::buffer_bytes`].
    pub const BUFFER_BYTES: u64 = 160 << 20;
    /// A resource needs this much: buffers for reads take 40 MiB of it.
    pub const BUFFER_BYTES_MIN: u64 = 64 << 20;
    /// Default of [`Limits::clients_max`].
    pub const CLIENTS_MAX: usize = 128;

    /// Connections of NBD clients in whatever state. What a client that is gone had asked for stays until it is
    /// done, and counts.
    pub fn connections_max(&self) -> usize {
        2 * self.clients_max + self.shards * self.handshakes_max + self.held_max
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            clients_max: Self::CLIENTS_MAX,
            shards: 1,
            handshakes_max: 64,
            held_max: 128,
            hellos_max: 32,
            requests_max: 4096,
            client_requests_max: 128,
            client_bytes_max: 64 << 20,
            handshake_timeout: Duration::from_secs(10),
            tls_connection_bytes: 0,
            hello_timeout: Duration::from_secs(5),
            progress_timeout: Duration::from_secs(30),
        }
    }
}
