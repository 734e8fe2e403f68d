//! The configuration file: one TOML file, the same on all nodes, checked completely before anything starts.
//!
//! Invariants: a [`Config`] that exists is usable: names are safe as file names, exactly two nodes, ranges
//! checked, no two resources share a disk or a metadata file. Unknown keys and wrong values are errors which
//! name file, line, key and what is allowed. Node ids follow from the sorted names, so that both nodes
//! compute the same ones. Nothing here opens a disk or a socket.

mod address;
#[cfg(test)]
mod bad_input;
mod init;
mod nbd;
mod quantity;
mod reader;
#[cfg(test)]
mod tests;

pub(crate) use address::HostPort;
pub(crate) use init::{InitPlan, init};
pub(crate) use nbd::{NbdEntry, NbdListener, NbdPlace, TlsEntry};
pub(crate) use quantity::{parse_duration, parse_size};

use lockstep_engine::{Access, Limits};
use quantity::{SizeRange, duration_between, size_between};
use reader::{Document, Span, Table};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the file is looked for.
pub(crate) const DEFAULT_CONFIG: &str = "/etc/lockstep/lockstep.toml";
/// Where metadata files are kept.
pub(crate) const DEFAULT_STATE_DIR: &str = "/var/lib/lockstep";
/// The control socket.
pub(crate) const DEFAULT_SOCKET: &str = "/run/lockstep/control.sock";
/// The NBD socket of a node that configures no listener.
pub(crate) const DEFAULT_NBD_SOCKET: &str = "/run/lockstep/nbd.sock";
/// Bytes of one region of the activity map, the unit in which `max-hot` counts.
pub(crate) const REGION_BYTES: u64 = 4 << 20;

/// Every key that the file may have, by where it belongs.
const TOP_KEYS: &[&str] = &[
    "cluster",
    "secret-file",
    "hold-greeting",
    "max-clients",
    "memory-max",
    "shards",
    "congestion-control",
    "tls",
    "node",
    "resource",
];
const NODE_KEYS: &[&str] = &["address", "nbd", "nbd-mode", "nbd-group", "tls"];
const RESOURCE_KEYS: &[&str] = &[
    "name",
    "disk",
    "size",
    "meta",
    "max-hot",
    "buffer-memory",
    "timeout",
    "heartbeat",
    "io-timeout",
    "disk-timeout",
    "epoch",
    "allow",
    "allow-names",
];
const PLACES: &[(&str, &[&str])] = &[
    ("the top of the file", TOP_KEYS),
    ("[tls]", nbd::TLS_KEYS),
    ("[node.NAME]", NODE_KEYS),
    ("[[resource]]", RESOURCE_KEYS),
];

const NODES: usize = 2;
const NAME_BYTES_MAX: usize = 64;
const RESOURCES_MAX: usize = 64;
const MAX_HOT_DEFAULT_REGIONS: u32 = 2048;
pub(crate) const CLIENTS_MAX: usize = 4096;
const SHARDS_DEFAULT: usize = 1;
const SHARDS_MAX: usize = RESOURCES_MAX;

/// A configuration error: where, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigError {
    /// The file.
    pub(crate) file: PathBuf,
    /// Line, counted from 1, if the error has a place.
    pub(crate) line: Option<usize>,
    /// What is wrong and what is allowed.
    pub(crate) message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file.display(), self.message),
            None => write!(f, "{}: {}", self.file.display(), self.message),
        }
    }
}

impl std::error::Error for ConfigError {}

/// One machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeEntry {
    /// As `uname -n` says it, or as `--node` is given.
    pub(crate) name: String,
    /// Where its peer reaches it: one replication port for all resources.
    pub(crate) address: HostPort,
    /// Its NBD listeners.
    pub(crate) nbd: NbdEntry,
}

/// One replicated volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResourceEntry {
    /// Its name, exported under it.
    pub(crate) name: String,
    /// Device or file on each node, by node id.
    pub(crate) disk: Vec<PathBuf>,
    /// Metadata file on each node, by node id; `None` is the default below the state directory.
    pub(crate) meta: Vec<Option<PathBuf>>,
    /// Size in bytes of files that `create-md` shall create.
    pub(crate) size_bytes: Option<u64>,
    /// Bound of hot regions: what a resync after a crash compares at most.
    pub(crate) max_hot_regions: u32,
    /// Memory for data buffers, in bytes.
    pub(crate) buffer_memory_bytes: u64,
    /// Durations.
    pub(crate) timing: TimingEntry,
    /// Clients that may open it.
    pub(crate) access: Access,
}

/// Durations of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TimingEntry {
    /// A peer that was not heard for this long is dropped.
    pub(crate) timeout: Duration,
    /// Interval of heartbeats.
    pub(crate) heartbeat: Duration,
    /// Held client I/O fails after this time.
    pub(crate) io_timeout: Duration,
    /// A disk that does not complete an operation for this long has failed; `None`: it is waited for.
    pub(crate) disk_timeout: Option<Duration>,
    /// Replied writes become durable after this time by themselves.
    pub(crate) epoch: Duration,
}

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// The file it was read from.
    pub(crate) file: PathBuf,
    /// Name of the cluster; peers of another one are rejected.
    pub(crate) cluster: String,
    /// File with the shared secret.
    pub(crate) secret_file: PathBuf,
    /// What is shown to NBD clients in TLS; `None`: there is no TLS.
    pub(crate) tls: Option<TlsEntry>,
    /// Nodes, sorted by name; the index is the node id.
    pub(crate) nodes: Vec<NodeEntry>,
    /// Resources, in the order of the file.
    pub(crate) resources: Vec<ResourceEntry>,
    /// How long a client's greeting is held while a role change is under way.
    pub(crate) hold_greeting: Duration,
    /// NBD clients that are served at the same time.
    pub(crate) clients_max: usize,
    /// Memory of the daemon at most, in bytes; `None`: half of what the machine has.
    pub(crate) memory_max_bytes: Option<u64>,
    /// Threads that the resources are dealt out to.
    pub(crate) shards: usize,
    /// Congestion control of TCP; `None`: the engine's default.
    pub(crate) congestion_control: Option<String>,
}

impl Config {
    /// Read and check a file.
    pub(crate) fn load(file: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|error| ConfigError {
            file: file.to_owned(),
            line: None,
            message: match error.kind() {
                std::io::ErrorKind::NotFound => {
                    "no such file; `lockstep config init` writes a first one, --config names another"
                        .to_owned()
                }
                _ => format!("cannot be read: {error}"),
            },
        })?;
        Self::parse(file, &text)
    }

    /// Check a text. `file` is for messages.
    pub(crate) fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let document = Document::new(file, text);
        let mut top = document.parse(TOP_KEYS)?;
        let (cluster, span) = top.required_string("cluster")?;
        check_name(&document, "cluster", &cluster, span)?;
        let (secret_file, span) = top.required_string("secret-file")?;
        let secret_file = absolute(&document, "secret-file", secret_file, span)?;
        let hold_greeting =
            top.duration("hold-greeting", Duration::from_secs(10), Duration::ZERO, Duration::from_secs(300))?;
        let clients_max = read_count(&document, &mut top, "max-clients", "clients", CLIENTS_MAX)?;
        let shards = read_count(&document, &mut top, "shards", "threads", SHARDS_MAX)?;
        let congestion_control = read_congestion_control(&document, &mut top)?;
        let range = SizeRange { min_bytes: 64 << 20, max_bytes: 1 << 44, multiple_bytes: 1 << 20 };
        let memory_max_bytes = top.size("memory-max", &range)?;
        let tls = nbd::read_tls(&document, &mut top)?;
        let nodes = read_nodes(&document, &mut top, tls.is_some())?;
        let resources = read_resources(&document, &mut top, &nodes, tls.as_ref())?;
        check_shared_paths(&document, &nodes, &resources)?;
        let resources = resources.into_iter().map(|(entry, _)| entry).collect();
        let file = file.to_owned();
        Ok(Config {
            file,
            cluster,
            secret_file,
            tls,
            nodes,
            resources,
            hold_greeting,
            clients_max: clients_max.unwrap_or(Limits::CLIENTS_MAX),
            memory_max_bytes,
            shards: shards.unwrap_or(SHARDS_DEFAULT),
            congestion_control,
        })
    }

    /// The id of a node.
    pub(crate) fn node_id(&self, name: &str) -> Option<u8> {
        self.nodes.iter().position(|node| node.name == name).and_then(|index| u8::try_from(index).ok())
    }

    /// A resource by name.
    pub(crate) fn resource(&self, name: &str) -> Option<&ResourceEntry> {
        self.resources.iter().find(|resource| resource.name == name)
    }

    /// A resource that must be there.
    pub(crate) fn known_resource(&self, name: &str) -> Result<&ResourceEntry, ConfigError> {
        self.resource(name).ok_or_else(|| {
            let known: Vec<&str> = self.resources.iter().map(|resource| resource.name.as_str()).collect();
            let message = format!("no resource \"{name}\"; it has: {}", known.join(", "));
            ConfigError { file: self.file.clone(), line: None, message }
        })
    }

    /// "alpha, beta".
    pub(crate) fn node_names(&self) -> String {
        self.nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>().join(", ")
    }
}

impl ResourceEntry {
    /// The metadata file on a node.
    pub(crate) fn meta_path(&self, node: u8, state_dir: &Path) -> PathBuf {
        let configured = self.meta.get(usize::from(node)).cloned().flatten();
        configured.unwrap_or_else(|| state_dir.join(format!("{}.0.meta", self.name)))
    }

    /// The disk on a node. Every node of the configuration has one.
    pub(crate) fn disk_path(&self, node: u8) -> &Path {
        &self.disk[usize::from(node)]
    }
}

/// Resources with the place of their name, for errors that concern two of them.
type Placed = (ResourceEntry, Span);

fn read_nodes(
    document: &Document<'_>,
    top: &mut Table<'_, '_>,
    has_tls: bool,
) -> Result<Vec<NodeEntry>, ConfigError> {
    let (tables, span) = top.required_named_tables("node", "[node.NAME]", NODE_KEYS)?;
    let mut nodes = Vec::new();
    for (name, name_span, mut table) in tables {
        check_name(document, "node", &name, name_span)?;
        let (address, address_span) = table.required_string("address")?;
        let address = HostPort::parse(&address).ok_or_else(|| {
            let message = format!("\"{address}\" is not HOST:PORT, for example \"10.0.0.1:7800\"");
            document.value_error("address", &message, address_span)
        })?;
        let nbd = nbd::read_listeners(document, &mut table, &name, has_tls)?;
        nodes.push(NodeEntry { name, address, nbd });
    }
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    if nodes.len() != NODES {
        let message = format!(
            "{} nodes are configured. This version keeps a volume on exactly two nodes: one [node.NAME] \
             for this machine and one for its peer; the configuration refuses more than one peer",
            nodes.len()
        );
        return Err(document.error(span, message));
    }
    Ok(nodes)
}

fn read_resources(
    document: &Document<'_>,
    top: &mut Table<'_, '_>,
    nodes: &[NodeEntry],
    tls: Option<&TlsEntry>,
) -> Result<Vec<Placed>, ConfigError> {
    let (tables, span) = top.required_table_array("resource", "[[resource]]", RESOURCE_KEYS)?;
    if tables.is_empty() || tables.len() > RESOURCES_MAX {
        return Err(document.error(span, format!("1 to {RESOURCES_MAX} [[resource]] tables are allowed")));
    }
    let mut resources: Vec<Placed> = Vec::new();
    for mut table in tables {
        let (name, name_span) = table.required_string("name")?;
        check_name(document, "resource", &name, name_span.clone())?;
        if let Some((_, first)) = resources.iter().find(|(entry, _)| entry.name == name) {
            let message =
                format!("resource \"{name}\" exists already on line {}", document.line(first.start));
            return Err(document.error(name_span, message));
        }
        let disk_missing = table.missing("disk", "the device or file that holds the volume");
        let disk = per_node(document, &mut table, "disk", nodes)?.ok_or(disk_missing)?;
        let meta = match per_node(document, &mut table, "meta", nodes)? {
            Some(paths) => paths.into_iter().map(Some).collect(),
            None => vec![None; nodes.len()],
        };
        let sizes = SizeRange { min_bytes: 1 << 20, max_bytes: 1 << 56, multiple_bytes: 4096 };
        let size_bytes = table.size("size", &sizes)?;
        let max_hot_regions = read_max_hot(document, &mut table)?;
        let buffers =
            SizeRange { min_bytes: Limits::BUFFER_BYTES_MIN, max_bytes: 1 << 36, multiple_bytes: 1 << 20 };
        let buffer_memory_bytes = table.size("buffer-memory", &buffers)?.unwrap_or(Limits::BUFFER_BYTES);
        let timing = read_timing(document, &mut table)?;
        let access = nbd::read_access(document, &mut table, tls)?;
        let entry = ResourceEntry {
            name,
            disk,
            meta,
            size_bytes,
            max_hot_regions,
            buffer_memory_bytes,
            timing,
            access,
        };
        resources.push((entry, name_span));
    }
    Ok(resources)
}

/// A path for all nodes, or one for each: `disk = "/dev/vdb"`, or `disk.alpha = ...` and `disk.beta = ...`.
fn per_node(
    document: &Document<'_>,
    table: &mut Table<'_, '_>,
    key: &'static str,
    nodes: &[NodeEntry],
) -> Result<Option<Vec<PathBuf>>, ConfigError> {
    let Some((by_name, span)) = table.string_or_strings_by_name(key)? else { return Ok(None) };
    let by_name = match by_name {
        reader::OneOrNamed::One(text) => {
            let path = absolute(document, key, text, span)?;
            return Ok(Some(vec![path; nodes.len()]));
        }
        reader::OneOrNamed::Named(by_name) => by_name,
    };
    let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    let mut paths = BTreeMap::new();
    for (name, text, span) in by_name {
        if !names.contains(&name.as_str()) {
            return Err(document.error(span, reader::unknown(&name, &format!("{key}.NODE"), &names)));
        }
        paths.insert(name, absolute(document, key, text, span)?);
    }
    let mut list = Vec::new();
    for name in names {
        let path = paths.remove(name).ok_or_else(|| {
            let message = format!("{key}.{name} is missing: give one path for all nodes, or one for each");
            document.error(span.clone(), message)
        })?;
        list.push(path);
    }
    Ok(Some(list))
}

/// A number from 1 to `max` of what the message calls `things`.
fn read_count(
    document: &Document<'_>,
    table: &mut Table<'_, '_>,
    key: &'static str,
    things: &str,
    max: usize,
) -> Result<Option<usize>, ConfigError> {
    let Some((text, span)) = table.quantity(key)? else { return Ok(None) };
    match text.parse::<usize>() {
        Ok(count) if (1..=max).contains(&count) => Ok(Some(count)),
        _ => {
            let message = format!("\"{text}\" is out of range; allowed: 1 to {max} {things}");
            Err(document.value_error(key, &message, span))
        }
    }
}

/// What the kernel has is known to the daemon alone: here it is the form of a name.
fn read_congestion_control(
    document: &Document<'_>,
    table: &mut Table<'_, '_>,
) -> Result<Option<String>, ConfigError> {
    let Some((name, span)) = table.string("congestion-control")? else { return Ok(None) };
    const BYTES_MAX: usize = 15;
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if !name.is_empty() && name.len() <= BYTES_MAX && name.bytes().all(is_part) {
        return Ok(Some(name));
    }
    let message = format!(
        "\"{name}\" is no name; allowed: one of those in sysctl net.ipv4.tcp_available_congestion_control, for \
         example \"cubic\""
    );
    Err(document.value_error("congestion-control", &message, span))
}

fn read_max_hot(document: &Document<'_>, table: &mut Table<'_, '_>) -> Result<u32, ConfigError> {
    let Some((text, span)) = table.quantity("max-hot")? else { return Ok(MAX_HOT_DEFAULT_REGIONS) };
    const REGIONS_MIN: u64 = 4;
    const REGIONS_MAX: u64 = 1 << 20;
    let regions = match text.parse::<u64>() {
        Ok(regions) if (REGIONS_MIN..=REGIONS_MAX).contains(&regions) => Ok(regions),
        Ok(_) => Err(format!("{text} is out of range; allowed: {REGIONS_MIN} to {REGIONS_MAX} regions")),
        Err(_) => {
            let range = SizeRange {
                min_bytes: REGIONS_MIN * REGION_BYTES,
                max_bytes: REGIONS_MAX * REGION_BYTES,
                multiple_bytes: REGION_BYTES,
            };
            size_between(&text, &range).map(|bytes| bytes / REGION_BYTES)
        }
    };
    let regions = regions.map_err(|m| document.value_error("max-hot", &m, span))?;
    Ok(u32::try_from(regions).expect("at most 2^20 regions passed the check"))
}

fn read_timing(document: &Document<'_>, table: &mut Table<'_, '_>) -> Result<TimingEntry, ConfigError> {
    let ms = Duration::from_millis;
    let secs = Duration::from_secs;
    let heartbeat_span = table.span_of("heartbeat").or(table.span_of("timeout"));
    let timing = TimingEntry {
        timeout: table.duration("timeout", secs(6), ms(500), secs(600))?,
        heartbeat: table.duration("heartbeat", secs(1), ms(50), secs(60))?,
        io_timeout: table.duration("io-timeout", secs(60), secs(1), secs(86_400))?,
        disk_timeout: Some(table.duration("disk-timeout", Duration::ZERO, secs(1), secs(600))?)
            .filter(|limit| !limit.is_zero()),
        epoch: table.duration("epoch", secs(1), ms(10), secs(60))?,
    };
    if timing.heartbeat * 2 > timing.timeout {
        let message = format!(
            "must be at most half of timeout: a peer is dropped after {:?} of silence, and one lost \
             heartbeat must not do that; now heartbeat = {:?}",
            timing.timeout, timing.heartbeat
        );
        let span = heartbeat_span.unwrap_or(0..0);
        return Err(document.value_error("heartbeat", &message, span));
    }
    Ok(timing)
}

/// On each node, every disk and every configured metadata file has one user.
fn check_shared_paths(
    document: &Document<'_>,
    nodes: &[NodeEntry],
    resources: &[Placed],
) -> Result<(), ConfigError> {
    for (id, node) in nodes.iter().enumerate() {
        let mut used: BTreeMap<&Path, String> = BTreeMap::new();
        for (resource, span) in resources {
            let meta = resource.meta[id].as_deref().map(|path| (path, "metadata"));
            for (path, role) in [(resource.disk[id].as_path(), "disk")].into_iter().chain(meta) {
                let user = format!("{role} of \"{}\"", resource.name);
                if let Some(other) = used.insert(path, user.clone()) {
                    let message = format!("{} is both {other} and {user} on {}", path.display(), node.name);
                    return Err(document.error(span.clone(), message));
                }
            }
        }
    }
    Ok(())
}

fn absolute(
    document: &Document<'_>,
    key: &'static str,
    text: String,
    span: Span,
) -> Result<PathBuf, ConfigError> {
    if text.starts_with('/') && !text.contains('\0') {
        return Ok(PathBuf::from(text));
    }
    let message = format!("\"{text}\" is not an absolute path: a daemon has no useful working directory");
    Err(document.value_error(key, &message, span))
}

fn check_name(document: &Document<'_>, kind: &str, name: &str, span: Span) -> Result<(), ConfigError> {
    if is_name(name) {
        return Ok(());
    }
    let message = format!(
        "\"{name}\" cannot be the name of a {kind}: 1 to {NAME_BYTES_MAX} letters, digits, '-', '_' or \
         '.', the first one a letter or a digit"
    );
    Err(document.error(span, message))
}

/// Usable as a name, and as part of a file name.
pub(crate) fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    name.len() <= NAME_BYTES_MAX
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(plain)
}
