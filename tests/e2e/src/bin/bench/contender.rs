//! The servers that are compared. Each has its own files, in memory or on a disk, and ends with its handle.

use crate::fio::{self, nbd_job};
use crate::qemu;
use lockstep_e2e::{Cluster, Plan, Port, Process, Qmp, RESOURCE, Target, qemu_uri, temp_dir, wait_for};
use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

const START_LIMIT: Duration = Duration::from_secs(20);

/// Where the data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Medium {
    /// tmpfs, through the page cache.
    Memory,
    /// A file system on a disk, with O_DIRECT: nobody's writes are a page cache's.
    Disk,
}

/// How two processes reach each other on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    Unix,
    Tcp,
}

/// Starts one, with fresh files of a size.
type Start = fn(u64, Medium) -> Contender;

/// A server under load.
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    pub(crate) uri: String,
    pub(crate) export: &'static str,
    pub(crate) way: Way,
    /// Process ids by what they do.
    pub(crate) processes: Vec<(&'static str, u32)>,
    /// What keeps it running.
    _parts: Parts,
}

/// How a client gets at the data.
pub(crate) enum Way {
    Nbd(Target),
    /// No server: the client writes these files itself, all of them at the same time.
    Files(Vec<PathBuf>),
}

/// Dropped in the order of the fields: processes before their files.
#[derive(Default)]
pub(crate) struct Parts {
    pub(crate) _cluster: Option<Cluster>,
    pub(crate) _qmp: Option<Qmp>,
    pub(crate) _processes: Vec<Process>,
    pub(crate) _ports: Vec<Port>,
    pub(crate) _dir: Option<TempDir>,
}

/// All of them with new files, each byte of which was written once. Lockstep is first; the others are compared with it.
pub(crate) fn deal(medium: Medium, size_bytes: u64) -> Vec<Contender> {
    let start = |start: Start| {
        let contender = start(size_bytes, medium);
        fio::run(&contender.jobs(), size_bytes, &["--rw=write", "--bs=1M", "--iodepth=8"], None);
        contender
    };
    starts(medium).into_iter().map(start).collect()
}

fn starts(medium: Medium) -> Vec<Start> {
    let both: [Start; 7] = [
        |size, medium| lockstep(size, medium, Wire::Unix),
        |size, medium| lockstep(size, medium, Wire::Tcp),
        qemu::nbd,
        |size, medium| qemu::mirror(size, medium, Wire::Unix),
        |size, medium| qemu::mirror(size, medium, Wire::Tcp),
        |size, medium| qemu::quorum(size, medium, Wire::Unix),
        |size, medium| qemu::quorum(size, medium, Wire::Tcp),
    ];
    let mut starts = both.to_vec();
    // nbdkit has no way to open its file with O_DIRECT.
    let own: Start = if medium == Medium::Memory { |size, _| nbdkit(size) } else { |size, _| raw(size) };
    starts.insert(2, own);
    starts
}

impl Contender {
    pub(crate) fn served(
        name: &'static str,
        (export, address): (&'static str, Address),
        processes: Vec<(&'static str, u32)>,
        parts: Parts,
    ) -> Contender {
        let uri = address.uri(export);
        Contender { name, uri, export, way: Way::Nbd(address.target()), processes, _parts: parts }
    }

    /// What fio has to do to put it under load: as many jobs as the client itself has to write.
    pub(crate) fn jobs(&self) -> Vec<Vec<String>> {
        match &self.way {
            Way::Nbd(_) => vec![nbd_job(&self.uri)],
            Way::Files(files) => {
                let job = |file: &PathBuf| {
                    let file = format!("--filename={}", file.display());
                    ["--ioengine=io_uring", "--direct=1", &file].map(String::from).to_vec()
                };
                files.iter().map(job).collect()
            }
        }
    }
}

/// Of a server.
#[derive(Clone, Debug)]
pub(crate) enum Address {
    Unix(PathBuf),
    Tcp(u16),
}

impl Address {
    /// In `dir`, or on a port that is kept in `ports`.
    pub(crate) fn new(wire: Wire, dir: &Path, name: &str, ports: &mut Vec<Port>) -> Address {
        match wire {
            Wire::Unix => Address::Unix(dir.join(name)),
            Wire::Tcp => {
                ports.push(Port::reserve());
                Address::Tcp(ports[ports.len() - 1].number())
            }
        }
    }

    fn uri(&self, export: &str) -> String {
        match self {
            Address::Unix(socket) => qemu_uri(socket, export),
            Address::Tcp(port) => format!("nbd://127.0.0.1:{port}/{export}"),
        }
    }

    fn target(&self) -> Target {
        match self {
            Address::Unix(socket) => socket.clone().into(),
            Address::Tcp(port) => loopback(*port).into(),
        }
    }

    fn connect(&self) -> std::io::Result<()> {
        match self {
            Address::Unix(socket) => UnixStream::connect(socket).map(drop),
            Address::Tcp(port) => TcpStream::connect(loopback(*port)).map(drop),
        }
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// The pair's own connection is TCP in any case; `wire` is the client's.
fn lockstep(size_bytes: u64, medium: Medium, wire: Wire) -> Contender {
    let port = (wire == Wire::Tcp).then(Port::reserve);
    let client_port = port.as_ref().map(Port::number);
    let plan = Plan {
        size_bytes,
        max_hot_bytes: size_bytes,
        timeout_ms: 6000,
        on_disk: medium == Medium::Disk,
        direct: true,
        client_port,
        ..Plan::default()
    };
    let cluster = Cluster::primary(&plan);
    if medium == Medium::Disk {
        cluster.alpha.assert_direct();
        cluster.beta.assert_direct();
    }
    let (name, address) = match client_port {
        Some(port) => ("Lockstep, client on TCP (2 copies)", Address::Tcp(port)),
        None => ("Lockstep (2 copies)", Address::Unix(cluster.alpha.nbd().to_path_buf())),
    };
    let processes = vec![("Primary", cluster.alpha.pid()), ("peer", cluster.beta.pid())];
    let parts = Parts { _cluster: Some(cluster), _ports: port.into_iter().collect(), ..Parts::default() };
    Contender::served(name, (RESOURCE, address), processes, parts)
}

/// In memory.
pub(crate) fn nbdkit(size_bytes: u64) -> Contender {
    let dir = temp_dir(false);
    let (image, socket) = (sparse(dir.path(), "disk", size_bytes), dir.path().join("nbd.sock"));
    let arguments = ["--foreground", "--unix", text(&socket), "file", text(&image)].map(String::from);
    let address = Address::Unix(socket);
    let process = serve("nbdkit", &arguments, dir.path(), &address);
    let processes = vec![("Primary", process.pid())];
    let parts = Parts { _processes: vec![process], _dir: Some(dir), ..Parts::default() };
    Contender::served("nbdkit file (1 copy)", ("", address), processes, parts)
}

/// What a mirror cannot beat: its two files, and nothing between them and the client.
fn raw(size_bytes: u64) -> Contender {
    let dir = temp_dir(true);
    let files = ["first", "second"].map(|name| sparse(dir.path(), name, size_bytes)).to_vec();
    Contender {
        name: "two raw O_DIRECT writers (2 copies)",
        uri: String::new(),
        export: "",
        way: Way::Files(files),
        processes: Vec::new(),
        _parts: Parts { _dir: Some(dir), ..Parts::default() },
    }
}

/// A server that listens when this returns.
pub(crate) fn serve(program: &str, arguments: &[String], dir: &Path, address: &Address) -> Process {
    let path = PathBuf::from("/usr/bin").join(program);
    assert!(path.exists(), "{program} is missing: cargo xtask setup");
    let log = dir.join(format!("{program}.log"));
    let process = Process::start(&path, arguments, &log, None);
    wait_for(&format!("{program} to listen"), START_LIMIT, || {
        let said = || std::fs::read_to_string(&log).unwrap_or_default();
        address.connect().map_err(|error| format!("{error}; log: {}", said()))
    });
    process
}

pub(crate) fn sparse(dir: &Path, name: &str, size_bytes: u64) -> PathBuf {
    let path = dir.join(name);
    File::create(&path).and_then(|file| file.set_len(size_bytes)).expect("create an image");
    path
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}
