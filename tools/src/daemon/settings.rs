//! From the configuration file and the options to what the engine and the control API are told. No effects
//! but reading files and resolving names.

use crate::cli::Global;
use crate::config::{Config, HostPort, NbdPlace, NodeEntry, ResourceEntry, TimingEntry};
use crate::failure::Failure;
use crate::secret;
use crate::status::Place;
use crate::tls::{self, Terminator};
use lockstep_bitmap::NodeId;
use lockstep_core::Timing;
use lockstep_engine::{
    EngineConfig, Limits, Listener, NbdListener, PeerAddress, ResourceConfig, TlsPolicy, TlsTerminator,
};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Longest time that a shard looks for work before it sleeps.
pub(crate) const SPIN_US: u32 = 100;
const LOCK_WAIT: Duration = Duration::from_secs(10);
const STOP_WAIT: Duration = Duration::from_secs(20);

/// Everything a daemon needs.
pub(crate) struct Settings {
    /// For the engine.
    pub(crate) engine: EngineConfig,
    /// For the control API.
    pub(crate) place: Place,
    /// Name of the cluster.
    pub(crate) cluster: String,
    /// Does TLS for the engine.
    pub(crate) terminator: Option<Arc<Terminator>>,
}

impl Settings {
    /// Read the configuration, the secret, and the files of TLS.
    pub(crate) fn load(global: &Global) -> Result<Self, Failure> {
        let config = Config::load(&global.config)?;
        let node = this_node(global, &config)?;
        let secret = secret::load(&config.secret_file)?;
        let mut settings = Self::new(&config, node, secret, dirs(global))?;
        if let Some(entry) = &config.tls {
            let server = tls::Files::of(entry).load()?;
            let terminator = Terminator::start(server, settings.engine.limits.connections_max());
            let terminator =
                terminator.map_err(|error| Failure::generic(format!("threads for TLS: {error}")))?;
            let terminator = Arc::new(terminator);
            settings.engine.terminator = Some(Arc::clone(&terminator) as Arc<dyn TlsTerminator>);
            settings.terminator = Some(terminator);
        }
        Ok(settings)
    }

    /// What would keep the daemon from starting, without starting anything. What is one node's own is looked at if this
    /// machine is a node.
    pub(crate) fn check(global: &Global, config: &Config) -> Result<(), Failure> {
        let secret = secret::load(&config.secret_file)?;
        if let Ok(node) = this_node(global, config) {
            Self::new(config, node, secret, dirs(global))?;
        }
        config.tls.as_ref().map_or(Ok(()), |entry| tls::Files::of(entry).load().map(drop))
    }

    fn new(
        config: &Config,
        node: u8,
        secret: [u8; 32],
        (state_dir, run_dir): (&Path, &Path),
    ) -> Result<Self, Failure> {
        let own = &config.nodes[usize::from(node)];
        let resources = config
            .resources
            .iter()
            .map(|resource| resource_config(config, resource, node, (state_dir, run_dir)));
        let engine = EngineConfig {
            cluster: config.cluster.clone(),
            secret,
            node: NodeId(node),
            node_name: own.name.clone(),
            listen: resolve("address", own, &own.address)?,
            nbd_listeners: nbd_listeners(own)?,
            terminator: None,
            resources: resources.collect::<Result<_, _>>()?,
            limits: limits(config),
            memory_max_bytes: memory_max_bytes(config.memory_max_bytes),
            spin_us: SPIN_US,
            congestion_control: config.congestion_control.clone(),
            hold_greeting: config.hold_greeting,
            lock_wait: LOCK_WAIT,
            stop_wait: STOP_WAIT,
        };
        let place = Place {
            names: config.nodes.iter().map(|node| node.name.clone()).collect(),
            node,
            addresses: config.nodes.iter().map(|node| node.address.to_string()).collect(),
            uris: config.nodes.iter().map(uri_patterns).collect(),
        };
        Ok(Settings { engine, place, cluster: config.cluster.clone(), terminator: None })
    }
}

/// Where metadata are by default, and what must not outlive a reboot, which is beside the control socket.
fn dirs(global: &Global) -> (&Path, &Path) {
    (&global.state_dir, global.socket.parent().unwrap_or(Path::new("/")))
}

/// The id of this node: `--node`, else what `uname -n` says.
pub(crate) fn this_node(global: &Global, config: &Config) -> Result<u8, Failure> {
    let machine = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let (name, origin) = match &global.node {
        Some(name) => (name.clone(), "--node"),
        None => (machine, "uname -n"),
    };
    config.node_id(&name).ok_or_else(|| {
        Failure::config(format!(
            "{}: no [node.{name}] (the name by {origin}); the configuration has: {}. Name this node with \
            --node",
            config.file.display(),
            config.node_names()
        ))
    })
}

/// Bounds of the engine's tables.
pub(crate) fn limits(config: &Config) -> Limits {
    let tls_connection_bytes = if config.tls.is_some() { tls::CONNECTION_BYTES } else { 0 };
    // More would have nothing to do.
    let shards = config.shards.min(config.resources.len());
    Limits { clients_max: config.clients_max, shards, tls_connection_bytes, ..Limits::default() }
}

/// `memory-max`, or half of what the machine has.
pub(crate) fn memory_max_bytes(configured: Option<u64>) -> u64 {
    configured.unwrap_or_else(|| {
        let system = rustix::system::sysinfo();
        system.totalram.saturating_mul(u64::from(system.mem_unit)) / 2
    })
}

fn resource_config(
    config: &Config,
    resource: &ResourceEntry,
    node: u8,
    (state_dir, run_dir): (&Path, &Path),
) -> Result<ResourceConfig, Failure> {
    let peer = (0_u8..).zip(&config.nodes).find(|(id, _)| *id != node);
    let peer = peer.map(|(id, entry)| {
        let address = resolve("address", entry, &entry.address)?;
        Ok::<_, Failure>(PeerAddress { node: NodeId(id), name: entry.name.clone(), address })
    });
    Ok(ResourceConfig {
        name: resource.name.clone(),
        disk: resource.disk_path(node).to_owned(),
        meta: resource.meta_path(node, state_dir),
        failed_record: run_dir.join(format!("{}.failed", resource.name)),
        peer: peer.transpose()?,
        read_only: false,
        access: resource.access.clone(),
        max_hot_regions: resource.max_hot_regions,
        buffer_bytes: resource.buffer_memory_bytes,
        timing: timing(&resource.timing),
    })
}

fn timing(entry: &TimingEntry) -> Timing {
    Timing {
        timeout: entry.timeout,
        heartbeat: entry.heartbeat,
        io_timeout: entry.io_timeout,
        disk_timeout: entry.disk_timeout,
        epoch: entry.epoch,
        ..Timing::default()
    }
}

fn nbd_listeners(node: &NodeEntry) -> Result<Vec<NbdListener>, Failure> {
    let (mode, group) = (node.nbd.socket_mode, socket_group(node)?);
    let listeners = node.nbd.listeners.iter().map(|listener| {
        let place = match &listener.place {
            NbdPlace::Unix(path) => Listener::Unix { path: path.clone(), mode, group },
            NbdPlace::Tcp(address) => Listener::Tcp(resolve("nbd", node, address)?),
        };
        Ok(NbdListener { place, tls: listener.tls })
    });
    listeners.collect()
}

/// The id of the group that unix sockets are given to.
fn socket_group(node: &NodeEntry) -> Result<Option<u32>, Failure> {
    let Some(name) = &node.nbd.socket_group else { return Ok(None) };
    let wrong = |why: String| Failure::config(format!("[node.{}] nbd-group \"{name}\": {why}", node.name));
    match nix::unistd::Group::from_name(name) {
        Ok(Some(group)) => Ok(Some(group.gid.as_raw())),
        Ok(None) => Err(wrong(format!("there is no such group; create it: groupadd {name}"))),
        Err(error) => Err(wrong(error.to_string())),
    }
}

fn resolve(key: &str, node: &NodeEntry, address: &HostPort) -> Result<SocketAddr, Failure> {
    address
        .resolve()
        .map_err(|error| Failure::config(format!("[node.{}] {key} {address}: {error}", node.name)))
}

/// Addresses of a node's listeners for NBD clients, with `{}` for the export's name.
fn uri_patterns(node: &NodeEntry) -> Vec<String> {
    let pattern = |listener: &crate::config::NbdListener| {
        let scheme = if listener.tls == TlsPolicy::Required { "nbds" } else { "nbd" };
        match &listener.place {
            NbdPlace::Unix(path) => {
                format!("{scheme}+unix:///{{}}?socket={}", percent_encoded(&path.to_string_lossy()))
            }
            NbdPlace::Tcp(address) if address.is_wildcard() => {
                let host = node.address.host.clone();
                format!("{scheme}://{}/{{}}", HostPort { host, port: address.port })
            }
            NbdPlace::Tcp(address) => format!("{scheme}://{address}/{{}}"),
        }
    };
    node.nbd.listeners.iter().map(pattern).collect()
}

/// For the query of a URI.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                encoded.push(char::from(byte));
            }
            // Writing to a String cannot fail.
            _ => drop(write!(encoded, "%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let text = r#"
cluster = "c1"
secret-file = "/s"
[node.alpha]
address = "127.0.0.1:7800"
nbd = ["unix:/run/lock step/nbd.sock", "0.0.0.0:10809", "[::1]:10810"]
tls = "off"
[node.beta]
address = "127.0.0.2:7801"
[[resource]]
name = "r0"
disk.alpha = "/a"
disk.beta = "/b"
timeout = "3s"
"#;
        Config::parse(Path::new("/x.toml"), text).unwrap()
    }

    #[test]
    fn engine_of_each_node() {
        let settings =
            Settings::new(&config(), 1, [7; 32], (Path::new("/state"), Path::new("/run"))).unwrap();
        let engine = &settings.engine;
        assert_eq!((engine.node, engine.node_name.as_str()), (NodeId(1), "beta"));
        assert_eq!(engine.listen.to_string(), "127.0.0.2:7801");
        let r0 = &engine.resources[0];
        assert_eq!((r0.disk.as_path(), r0.meta.as_path()), (Path::new("/b"), Path::new("/state/r0.0.meta")));
        let peer = r0.peer.as_ref().unwrap();
        assert_eq!((peer.node, peer.name.as_str(), peer.address.port()), (NodeId(0), "alpha", 7800));
        assert_eq!(r0.timing.timeout, Duration::from_secs(3));
        assert_eq!(
            Settings::new(&config(), 0, [7; 32], (Path::new("/"), Path::new("/"))).unwrap().engine.resources
                [0]
            .disk,
            Path::new("/a")
        );
    }

    #[test]
    fn uris_can_be_used_by_clients() {
        let settings =
            Settings::new(&config(), 0, [7; 32], (Path::new("/state"), Path::new("/run"))).unwrap();
        assert_eq!(
            settings.place.uris[0],
            [
                "nbd+unix:///{}?socket=/run/lock%20step/nbd.sock",
                "nbd://127.0.0.1:10809/{}",
                "nbd://[::1]:10810/{}"
            ]
        );
        assert_eq!(settings.place.uris[1], ["nbd+unix:///{}?socket=/run/lockstep/nbd.sock"]);
    }
}
