//! Two nodes on this machine: their directory, configuration and the wire between them.
//!
//! Each node has a configuration file of its own, since alpha must find the proxy where beta is.

use crate::image::assert_equal;
use crate::node::Node;
use crate::port::Port;
use crate::proxy::Proxy;
use crate::wait::wait_for;
use crate::wires::Wires;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// Name of the resource that nearly every test has alone.
pub const RESOURCE: &str = "r0";
/// Name of the other one, where a plan wants two.
pub const SECOND: &str = "r1";
/// Names of all that a plan may want, with the names of their data files.
const RESOURCES: [(&str, &str); 3] = [(RESOURCE, "disk"), (SECOND, "disk2"), ("r2", "disk3")];
/// Names of the nodes, by node id.
pub const NODES: [&str; 2] = ["alpha", "beta"];

/// What a cluster looks like.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Size of the volume.
    pub size_bytes: u64,
    /// Bound of hot regions, in bytes.
    pub max_hot_bytes: u64,
    /// Silence after which a peer is dropped.
    pub timeout_ms: u64,
    /// Held client I/O fails after this time.
    pub io_timeout_s: u64,
    /// A disk that does not answer for so long has failed; without it, it is waited for.
    pub disk_timeout_s: Option<u64>,
    /// Data on a disk's file system, where it is opened with O_DIRECT; otherwise in memory, if there is
    /// /dev/shm.
    pub on_disk: bool,
    /// Name of the cluster.
    pub cluster: &'static str,
    /// The shared secret.
    pub secret: &'static str,
    /// Beta's replication port, if another cluster's beta is to be dialled.
    pub beta_port: Option<u16>,
    /// So many resources like the first, up to three.
    pub resources: usize,
    /// Threads that they are dealt out to; without it as many as a daemon has by default.
    pub shards: Option<usize>,
    /// Memory for payloads of each resource, in MiB.
    pub buffer_mib: u64,
    /// Clients that a node serves at the same time.
    pub max_clients: usize,
    /// Alpha dials beta itself, not the proxy: for measurements.
    pub direct: bool,
    /// Metadata is in a folder of its own, where a file system may be mounted.
    pub own_metadata: bool,
    /// Each node is in the network namespace of one of these processes, and has an address there.
    pub hosts: Option<[u32; 2]>,
    /// Alpha serves its clients on this port of loopback too.
    pub client_port: Option<u16>,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan {
            size_bytes: 256 << 20,
            max_hot_bytes: 64 << 20,
            timeout_ms: 2000,
            io_timeout_s: 30,
            disk_timeout_s: None,
            on_disk: false,
            cluster: "e2e",
            secret: "a secret of the end-to-end tests",
            beta_port: None,
            resources: 1,
            shards: None,
            buffer_mib: 160,
            max_clients: 128,
            direct: false,
            own_metadata: false,
            hosts: None,
            client_port: None,
        }
    }
}

impl Plan {
    /// Names of the resources.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        RESOURCES.into_iter().map(|(name, _)| name).take(self.resources)
    }
}

/// Two nodes. Dropping it ends them; if a test is failing, their logs are printed first.
#[derive(Debug)]
pub struct Cluster {
    /// The node with the lower id; it dials.
    pub alpha: Node,
    /// The other one.
    pub beta: Node,
    /// The wire.
    pub proxy: Proxy,
    beta_port: u16,
    _reserved: [Port; 2],
    dir: TempDir,
}

impl Cluster {
    /// Files only: no metadata, no daemon.
    pub fn new(plan: &Plan) -> Cluster {
        let dir = temp_dir(plan.on_disk);
        let reserved = [Port::reserve(), Port::reserve()];
        let ports = [reserved[0].number(), plan.beta_port.unwrap_or(reserved[1].number())];
        let proxy = Proxy::start(ports[1]);
        let secret = dir.path().join("secret");
        fs::write(&secret, plan.secret).expect("write the secret");
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("mode of the secret");
        let nodes = NODES.map(|name| {
            let own = dir.path().join(name);
            fs::create_dir(&own).expect("directory of a node");
            let ports = if name == NODES[0] && !plan.direct { [ports[0], proxy.port()] } else { ports };
            let addresses = match plan.hosts {
                Some(_) => Wires::ADDRESSES.map(|address| format!("{address}:7800")),
                None => ports.map(|port| format!("127.0.0.1:{port}")),
            };
            fs::write(own.join("lockstep.toml"), config(plan, dir.path(), &addresses))
                .expect("write a config");
            let mut node = Node::new(name, &own);
            if plan.own_metadata {
                node.keep_metadata_apart();
            }
            node
        });
        let [mut alpha, mut beta] = nodes;
        if let Some([host_of_alpha, host_of_beta]) = plan.hosts {
            alpha.move_into(host_of_alpha);
            beta.move_into(host_of_beta);
        }
        Cluster { alpha, beta, proxy, beta_port: ports[1], _reserved: reserved, dir }
    }

    /// Running, connected, both copies UpToDate from the start without a first sync, nobody Primary.
    pub fn connected(plan: &Plan) -> Cluster {
        let mut cluster = Cluster::new(plan);
        for node in cluster.nodes_in_order_of_start() {
            for name in plan.names() {
                node.lockstep(&["create-md", name, "--clean"]).ok();
            }
            node.start();
        }
        cluster.wait_synced();
        for name in plan.names().skip(1) {
            cluster.alpha.lockstep(&["wait", name, "--for", "synced"]).ok();
        }
        cluster
    }

    /// Like [`Self::connected`], and alpha is Primary.
    pub fn primary(plan: &Plan) -> Cluster {
        let cluster = Cluster::connected(plan);
        cluster.alpha.promote().ok();
        cluster
    }

    /// For a pair with special disks: metadata for two equal copies, both daemons, alpha Primary.
    pub fn begin(&mut self) {
        for node in self.nodes_in_order_of_start() {
            node.lockstep(&["create-md", RESOURCE, "--clean"]).ok();
            node.start();
        }
        self.wait_synced();
        self.alpha.promote().ok();
    }

    /// Beta first: alpha dials, and would have to try again after a while.
    fn nodes_in_order_of_start(&mut self) -> [&mut Node; 2] {
        [&mut self.beta, &mut self.alpha]
    }

    /// Both nodes.
    pub fn nodes(&mut self) -> [&mut Node; 2] {
        [&mut self.alpha, &mut self.beta]
    }

    /// Both nodes lose power at the same moment: neither may notice that the other one is gone, and record that.
    pub fn lose_power(&mut self) {
        self.alpha.pause();
        self.beta.pause();
        self.nodes().into_iter().for_each(Node::lose_power);
    }

    /// The replication port of beta itself, behind the proxy.
    pub fn beta_port(&self) -> u16 {
        self.beta_port
    }

    /// A directory for the test's own files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Until both nodes say that both copies are UpToDate and mirrored.
    #[track_caller]
    pub fn wait_synced(&self) {
        for node in [&self.alpha, &self.beta] {
            node.wait_protected();
        }
    }

    /// Waits until the pair is in sync and has nothing in flight, then compares the data files byte by byte.
    #[track_caller]
    pub fn assert_replicas_equal(&self) {
        self.wait_quiet();
        assert_equal(self.alpha.disk(), self.beta.disk());
    }

    /// Waits until the pair is in sync and has nothing in flight.
    #[track_caller]
    pub fn wait_quiet(&self) {
        self.wait_synced();
        for node in [&self.alpha, &self.beta] {
            wait_for(&format!("quiet {}", node.name()), Duration::from_secs(20), || {
                let status = node.status();
                let quiet = status["requests"] == 0 && status["peers"][0]["out_of_sync_bytes"] == 0;
                quiet.then_some(()).ok_or_else(|| status.to_string())
            });
        }
    }

    /// Bytes copied by resync, as both daemons count them; the larger of the two counts.
    pub fn resynced_bytes(&self) -> u64 {
        self.alpha.resynced_bytes().max(self.beta.resynced_bytes())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in [&self.alpha, &self.beta] {
                node.print_log();
            }
        }
    }
}

/// A directory that vanishes with its handle: in memory, or on a disk's file system.
pub fn temp_dir(on_disk: bool) -> TempDir {
    let memory = PathBuf::from("/dev/shm");
    let parent = if on_disk || !memory.is_dir() { std::env::temp_dir() } else { memory };
    tempfile::Builder::new().prefix("lockstep-e2e-").tempdir_in(parent).expect("a temporary directory")
}

fn config(plan: &Plan, dir: &Path, addresses: &[String; 2]) -> String {
    let dir = dir.display();
    let mut text = format!("cluster = \"{}\"\nsecret-file = \"{dir}/secret\"\n", plan.cluster);
    text += &format!("max-clients = {}\n", plan.max_clients);
    if let Some(shards) = plan.shards {
        text += &format!("shards = {shards}\n");
    }
    for (which, (name, address)) in NODES.iter().zip(addresses).enumerate() {
        text += &format!("[node.{name}]\naddress = \"{address}\"\n");
        let socket = format!("unix:{dir}/{name}/nbd.sock");
        text += &match (plan.hosts, plan.client_port) {
            (Some(_), _) => format!("nbd = [\"{socket}\", \"{}\"]\ntls = \"off\"\n", Wires::NBD[which]),
            (None, Some(port)) if which == 0 => format!("nbd = [\"{socket}\", \"127.0.0.1:{port}\"]\n"),
            (None, _) => format!("nbd = [\"{socket}\"]\n"),
        };
    }
    let heartbeat_ms = plan.timeout_ms / 10;
    for (name, disk) in RESOURCES.into_iter().take(plan.resources) {
        text += &format!(
            "[[resource]]\nname = \"{name}\"\ndisk.alpha = \"{dir}/alpha/{disk}\"\n\
             disk.beta = \"{dir}/beta/{disk}\"\n\
             size = {}\nmax-hot = \"{}MiB\"\ntimeout = \"{}ms\"\nheartbeat = \"{heartbeat_ms}ms\"\n\
             io-timeout = \"{}s\"\nbuffer-memory = \"{}MiB\"\n",
            plan.size_bytes,
            plan.max_hot_bytes >> 20,
            plan.timeout_ms,
            plan.io_timeout_s,
            plan.buffer_mib,
        );
        if plan.own_metadata {
            for node in NODES {
                text += &format!("meta.{node} = \"{dir}/{node}/metadata/{name}.0.meta\"\n");
            }
        }
        if let Some(seconds) = plan.disk_timeout_s {
            text += &format!("disk-timeout = \"{seconds}s\"\n");
        }
    }
    text
}
