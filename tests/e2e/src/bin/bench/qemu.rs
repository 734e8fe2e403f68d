//! QEMU as a contender: one copy behind `qemu-nbd`, and the two ways in which it keeps two copies equal, a mirror that
//! blocks writes and a quorum. Their second copy is behind a server of its own, as Lockstep's is.

use crate::contender::{Address, Contender, Medium, Parts, Wire, serve, sparse, text};
use lockstep_e2e::{Process, Qmp, temp_dir};
use serde_json::{Value, json};
use std::path::Path;
use tempfile::TempDir;

const EXPORT: &str = "disk";
const DAEMON: &str = "qemu-storage-daemon";

/// One copy.
pub(crate) fn nbd(size_bytes: u64, medium: Medium) -> Contender {
    let dir = temp_dir(medium == Medium::Disk);
    let (image, socket) = (sparse(dir.path(), "disk", size_bytes), dir.path().join("nbd.sock"));
    let cache: &[&str] = match medium {
        Medium::Memory => &["--cache=writeback"],
        Medium::Disk => &["--cache=none", "--aio=native"],
    };
    let words = [&["-f", "raw", "-t", "--shared=0", "-k", text(&socket), text(&image)], cache].concat();
    let arguments: Vec<String> = words.iter().map(ToString::to_string).collect();
    let address = Address::Unix(socket);
    let process = serve("qemu-nbd", &arguments, dir.path(), &address);
    let processes = vec![("Primary", process.pid())];
    let parts = Parts { _processes: vec![process], _dir: Some(dir), ..Parts::default() };
    Contender::served("qemu-nbd (1 copy)", ("", address), processes, parts)
}

/// A daemon with the second copy, and what another one needs to use it.
struct Behind {
    dir: TempDir,
    process: Process,
    address: Address,
    ports: Vec<lockstep_e2e::Port>,
}

impl Behind {
    fn start(size_bytes: u64, medium: Medium, wire: Wire) -> Behind {
        let dir = temp_dir(medium == Medium::Disk);
        let mut ports = Vec::new();
        let address = Address::new(wire, dir.path(), "copy.sock", &mut ports);
        let image = sparse(dir.path(), "copy", size_bytes);
        let words = daemon(&[file(EXPORT, &image, medium)], &address);
        let process = serve(DAEMON, &words, dir.path(), &address);
        Behind { dir, process, address, ports }
    }

    /// The node of a client of it.
    fn node(&self) -> Value {
        let server = match &self.address {
            Address::Unix(socket) => json!({ "type": "unix", "path": text(socket) }),
            Address::Tcp(port) => json!({ "type": "inet", "host": "127.0.0.1", "port": port.to_string() }),
        };
        json!({ "driver": "nbd", "node-name": "copy", "export": EXPORT, "server": server })
    }

    fn into_contender(
        self,
        name: &'static str,
        socket: Address,
        front: Process,
        qmp: Option<Qmp>,
    ) -> Contender {
        let processes = vec![("Primary", front.pid()), ("peer", self.process.pid())];
        let parts = Parts {
            _qmp: qmp,
            _processes: vec![front, self.process],
            _ports: self.ports,
            _dir: Some(self.dir),
            ..Parts::default()
        };
        Contender::served(name, (EXPORT, socket), processes, parts)
    }
}

/// A storage daemon that mirrors, with each write blocked until the copy has it, to a second one.
pub(crate) fn mirror(size_bytes: u64, medium: Medium, wire: Wire) -> Contender {
    let behind = Behind::start(size_bytes, medium, wire);
    let dir = behind.dir.path();
    let (control, socket) = (dir.join("qmp.sock"), Address::Unix(dir.join("nbd.sock")));
    let source = sparse(dir, "source", size_bytes);
    let mut words = daemon(&[file(EXPORT, &source, medium)], &socket);
    words.extend(["--chardev".into(), format!("socket,id=qmp,path={},server=on,wait=off", text(&control))]);
    words.extend(["--monitor".into(), "chardev=qmp".into()]);
    let front = serve(DAEMON, &words, dir, &socket);
    let mut qmp = Qmp::open(&control);
    qmp.call("blockdev-add", &behind.node());
    qmp.call(
        "blockdev-mirror",
        &json!({ "job-id": "mirror", "device": EXPORT, "target": "copy", "sync": "full",
                 "copy-mode": "write-blocking" }),
    );
    qmp.wait_event("BLOCK_JOB_READY");
    let name = match wire {
        Wire::Unix => "QEMU mirror, unix (2 copies)",
        Wire::Tcp => "QEMU mirror, TCP (2 copies)",
    };
    behind.into_contender(name, socket, front, Some(qmp))
}

/// A storage daemon that writes to both copies and answers when both have it. It reads from the first, which is the
/// faster of its two ways to read and the one that the others have.
pub(crate) fn quorum(size_bytes: u64, medium: Medium, wire: Wire) -> Contender {
    let behind = Behind::start(size_bytes, medium, wire);
    let dir = behind.dir.path();
    let socket = Address::Unix(dir.join("nbd.sock"));
    let first = sparse(dir, "first", size_bytes);
    let quorum = json!({ "driver": "quorum", "node-name": EXPORT, "vote-threshold": 2,
                         "read-pattern": "fifo", "children": ["first", "copy"] });
    let words = daemon(&[file("first", &first, medium), behind.node(), quorum], &socket);
    let front = serve(DAEMON, &words, dir, &socket);
    let name = match wire {
        Wire::Unix => "QEMU quorum, unix (2 copies)",
        Wire::Tcp => "QEMU quorum, TCP (2 copies)",
    };
    behind.into_contender(name, socket, front, None)
}

fn file(node: &str, image: &Path, medium: Medium) -> Value {
    let mut block = json!({ "driver": "file", "node-name": node, "filename": text(image) });
    if medium == Medium::Disk {
        block["cache"] = json!({ "direct": true });
        block["aio"] = json!("native");
    }
    block
}

/// Arguments of a storage daemon that has these nodes and exports the one of the name [`EXPORT`].
fn daemon(nodes: &[Value], address: &Address) -> Vec<String> {
    let server = match address {
        Address::Unix(socket) => format!("addr.type=unix,addr.path={}", text(socket)),
        Address::Tcp(port) => format!("addr.type=inet,addr.host=127.0.0.1,addr.port={port}"),
    };
    let nodes = nodes.iter().flat_map(|node| ["--blockdev".to_string(), node.to_string()]);
    let export = format!("type=nbd,id=export,node-name={EXPORT},name={EXPORT},writable=on");
    let rest = ["--nbd-server".to_string(), server, "--export".to_string(), export];
    nodes.chain(rest).collect()
}
