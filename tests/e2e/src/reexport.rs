//! QEMU's storage daemon as a client of a server, and as a server of what it finds there.

use crate::client::Connection;
use crate::foreign::{qemu_uri, require};
use crate::process::Process;
use crate::wait::wait_until;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Duration;

const START_LIMIT: Duration = Duration::from_secs(20);
const EXPORT: &str = "again";

/// A storage daemon between a server and its clients.
#[derive(Debug)]
pub struct Reexport {
    socket: PathBuf,
    _process: Process,
}

impl Reexport {
    /// Serves the export of the server at `socket`; its own socket and log are in `dir`.
    pub fn start(dir: &Path, socket: &Path, export: &str) -> Reexport {
        let server = json!({ "type": "unix", "path": socket });
        let node = json!({
            "driver": "nbd", "node-name": "far", "server": server, "export": export, "discard": "unmap",
            "detect-zeroes": "unmap",
        });
        let (own, log) = (dir.join("again.sock"), dir.join("again.log"));
        let arguments = [
            "--blockdev".to_string(),
            node.to_string(),
            "--nbd-server".to_string(),
            format!("addr.type=unix,addr.path={}", own.display()),
            "--export".to_string(),
            format!("type=nbd,id=export,node-name=far,name={EXPORT},writable=on"),
        ];
        let mut process = Process::start(&require("qemu-storage-daemon"), &arguments, &log, None);
        wait_until("the storage daemon", START_LIMIT, || {
            let said = || std::fs::read_to_string(&log).unwrap_or_default();
            assert!(process.is_running(), "the storage daemon ended:\n{}", said());
            Connection::open(own.as_path(), EXPORT).is_ok()
        });
        Reexport { socket: own, _process: process }
    }

    /// The address of its export.
    pub fn uri(&self) -> String {
        qemu_uri(&self.socket, EXPORT)
    }
}
