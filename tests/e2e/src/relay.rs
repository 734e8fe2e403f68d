//! Clients of others between the ledger and the daemons: each serves the volume on a unix socket, is itself a client of
//! an address that moves with the Primary, and has its own way of coming back when its connection ends.
//!
//! The address is a symbolic link to the socket of whichever node it points to: a client looks it up anew each time it
//! connects, as it would with an IP address that moves.

use crate::client::Connection;
use crate::cluster::RESOURCE;
use crate::foreign::{qemu_uri, require};
use crate::node::Node;
use crate::process::Process;
use crate::wait::wait_until;
use serde_json::json;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

const START_LIMIT: Duration = Duration::from_secs(20);

/// An address that moves.
#[derive(Debug)]
pub struct Address(PathBuf);

impl Address {
    /// At `path`; it points to this node first.
    pub fn new(path: &Path, node: &Node) -> Address {
        let address = Address(path.to_path_buf());
        address.move_to(node);
        address
    }

    /// From now on whoever connects gets this node; there is no moment in between.
    pub fn move_to(&self, node: &Node) {
        let next = self.0.with_extension("next");
        symlink(node.nbd(), &next).expect("make a link");
        std::fs::rename(&next, &self.0).expect("put the link into place");
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// A client that serves what it gets.
#[derive(Debug)]
pub struct Relay {
    socket: PathBuf,
    process: Process,
}

impl Relay {
    /// QEMU's storage daemon. It tries again for `reconnect_delay_s` after it lost its connection, and sends again what
    /// was not answered; 0 is QEMU's default, requests fail then.
    pub fn qemu(address: &Address, dir: &Path, reconnect_delay_s: u32) -> Relay {
        let socket = dir.join(format!("qemu-{reconnect_delay_s}.sock"));
        let volume = json!({
            "driver": "nbd", "node-name": "volume", "export": RESOURCE, "reconnect-delay": reconnect_delay_s,
            "server": { "type": "unix", "path": address.path() }, "discard": "unmap",
        });
        let server = format!("addr.type=unix,addr.path={}", socket.display());
        let export = format!("type=nbd,id=export,node-name=volume,name={RESOURCE},writable=on");
        let arguments = ["--blockdev", &volume.to_string(), "--nbd-server", &server, "--export", &export];
        Relay::start("qemu-storage-daemon", &arguments, socket)
    }

    /// nbdkit's client plugin, which is libnbd; a request that failed is tried again by its filter.
    pub fn nbdkit(address: &Address, dir: &Path) -> Relay {
        let socket = dir.join("nbdkit.sock");
        let (listen, uri) = (socket.display().to_string(), qemu_uri(address.path(), RESOURCE));
        let filter = ["--filter=retry", "retries=60", "retry-delay=1", "retry-exponential=no"];
        let begin = ["--foreground", "--unix", &listen, filter[0], "nbd", &uri];
        Relay::start("nbdkit", &[&begin[..], &filter[1..]].concat(), socket)
    }

    fn start(program: &str, arguments: &[&str], socket: PathBuf) -> Relay {
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        let said = socket.with_extension("log");
        let mut process = Process::start(&require(program), &arguments, &said, None);
        wait_until(&format!("{program} between"), START_LIMIT, || {
            let words = || std::fs::read_to_string(&said).unwrap_or_default();
            assert!(process.is_running(), "{program} ended:\n{}", words());
            Connection::open(socket.as_path(), RESOURCE).is_ok()
        });
        Relay { socket, process }
    }

    /// Where it serves.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Whether it goes on.
    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }
}
