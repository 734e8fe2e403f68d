//! A disk that answers with errors when it is told to: a file behind a server that others wrote, which nbdfuse
//! makes a file again. Writes fail by nbdkit's error filter, flushes by QEMU's blkdebug.
//!
//! It is a file system of the machine, unmounted with its handle; the handle must outlive the daemon that uses it.

use crate::foreign::require;
use crate::process::Process;
use crate::qmp::Qmp;
use crate::run::run;
use crate::wait::wait_until;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const START_LIMIT: Duration = Duration::from_secs(20);
const EXPORT: &str = "disk";

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Every write, with EIO; flushes succeed.
    Writes,
    /// Every flush, with EIO; writes succeed.
    Flushes,
}

/// A disk and the servers behind it.
#[derive(Debug)]
pub struct FaultyDisk {
    dir: PathBuf,
    /// Ended in this order.
    _servers: [Process; 2],
    qmp: Option<Qmp>,
}

impl FaultyDisk {
    /// Makes one of this size in a new directory, sound for now, reached by `name` from outside.
    pub fn new(dir: &Path, name: &Path, bytes: u64, fault: Fault) -> FaultyDisk {
        std::fs::create_dir_all(dir.join("fuse")).expect("directory of a disk");
        std::fs::File::create(dir.join("image")).and_then(|file| file.set_len(bytes)).expect("a sparse file");
        let server = match fault {
            Fault::Writes => failing_writes(dir),
            Fault::Flushes => failing_flushes(dir),
        };
        let socket = dir.join("nbd.sock");
        wait_until("a server behind a disk", START_LIMIT, || socket.exists());
        let qmp = (fault == Fault::Flushes).then(|| Qmp::open(&dir.join("qmp.sock")));
        let file = dir.join("fuse/disk");
        let uri = format!("nbd+unix:///{EXPORT}?socket={}", socket.display());
        let arguments = [file.display().to_string(), uri];
        let fuse = Process::start(&require("nbdfuse"), &arguments, &dir.join("nbdfuse.log"), None);
        wait_until("nbdfuse", START_LIMIT, || file.metadata().is_ok_and(|facts| facts.len() == bytes));
        std::os::unix::fs::symlink(&file, name).expect("a link");
        FaultyDisk { dir: dir.to_path_buf(), _servers: [fuse, server], qmp }
    }

    /// From now on.
    pub fn fail(&mut self) {
        match &mut self.qmp {
            None => std::fs::write(self.dir.join("fail"), "").expect("create a file"),
            Some(qmp) => {
                let reopened = json!({ "driver": "raw", "node-name": "top", "file": "failing" });
                qmp.call("blockdev-reopen", &json!({ "options": [reopened] }));
            }
        }
    }
}

impl Drop for FaultyDisk {
    /// Lazily: a daemon that is about to be killed may have the file open.
    fn drop(&mut self) {
        let ran = run(Command::new("umount").arg("--lazy").arg(self.dir.join("fuse")));
        assert!(ran.code == 0 || std::thread::panicking(), "{ran}");
    }
}

fn failing_writes(dir: &Path) -> Process {
    let path = |name: &str| dir.join(name).display().to_string();
    let arguments = [
        "--foreground".to_string(),
        "--unix".to_string(),
        path("nbd.sock"),
        "--filter=error".to_string(),
        "file".to_string(),
        path("image"),
        "error=EIO".to_string(),
        "error-pwrite-rate=100%".to_string(),
        format!("error-pwrite-file={}", path("fail")),
        "error-zero-rate=100%".to_string(),
        format!("error-zero-file={}", path("fail")),
        "error-trim-rate=100%".to_string(),
        format!("error-trim-file={}", path("fail")),
    ];
    Process::start(&require("nbdkit"), &arguments, &dir.join("server.log"), None)
}

fn failing_flushes(dir: &Path) -> Process {
    let path = |name: &str| dir.join(name).display().to_string();
    let error = json!({ "event": "none", "iotype": "flush", "errno": 5, "once": false });
    let arguments = [
        "--blockdev".to_string(),
        json!({ "driver": "file", "node-name": "sound", "filename": path("image") }).to_string(),
        "--blockdev".to_string(),
        json!({ "driver": "blkdebug", "node-name": "failing", "image": "sound", "inject-error": [error] })
            .to_string(),
        "--blockdev".to_string(),
        json!({ "driver": "raw", "node-name": "top", "file": "sound" }).to_string(),
        "--nbd-server".to_string(),
        format!("addr.type=unix,addr.path={}", path("nbd.sock")),
        "--export".to_string(),
        format!("type=nbd,id=export,node-name=top,name={EXPORT},writable=on"),
        "--chardev".to_string(),
        format!("socket,id=qmp,path={},server=on,wait=off", path("qmp.sock")),
        "--monitor".to_string(),
        "chardev=qmp".to_string(),
    ];
    Process::start(&require("qemu-storage-daemon"), &arguments, &dir.join("server.log"), None)
}
