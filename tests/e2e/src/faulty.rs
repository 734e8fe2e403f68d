//! A disk that answers with errors, or not at all, when it is told to: a file behind a server that others wrote,
//! which nbdfuse makes a file again. Writes fail by nbdkit's error filter, flushes by QEMU's blkdebug, reads by a
//! script in nbdkit; a disk hangs while nbdkit is stopped.
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
    /// Reads of the blocks at [`UNREADABLE`], with EIO; everything else succeeds.
    Reads,
    /// Nothing is answered; what was asked for meanwhile is done when it is mended.
    Hangs,
}

/// Offsets of the blocks of 4 KiB that a disk with [`Fault::Reads`] cannot read.
pub const UNREADABLE: [u64; 2] = [(1 << 20) + 8192, (5 << 20) + 126_976];

/// A disk and the servers behind it.
#[derive(Debug)]
pub struct FaultyDisk {
    dir: PathBuf,
    fault: Fault,
    /// Ended before the server.
    _fuse: Process,
    server: Process,
    qmp: Option<Qmp>,
}

impl FaultyDisk {
    /// Makes one of this size in a new directory, sound for now, reached by `name` from outside.
    pub fn new(dir: &Path, name: &Path, bytes: u64, fault: Fault) -> FaultyDisk {
        std::fs::create_dir_all(dir.join("fuse")).expect("directory of a disk");
        std::fs::File::create(dir.join("image")).and_then(|file| file.set_len(bytes)).expect("a sparse file");
        let server = match fault {
            Fault::Writes | Fault::Hangs => failing_writes(dir),
            Fault::Flushes => failing_flushes(dir),
            Fault::Reads => failing_reads(dir, bytes),
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
        FaultyDisk { dir: dir.to_path_buf(), fault, _fuse: fuse, server, qmp }
    }

    /// From now on.
    pub fn fail(&mut self) {
        match self.fault {
            Fault::Writes | Fault::Reads => {
                std::fs::write(self.dir.join("fail"), "").expect("create a file");
            }
            Fault::Flushes => self.reopen("failing"),
            Fault::Hangs => self.server.pause(),
        }
    }

    /// Sound again.
    pub fn mend(&mut self) {
        match self.fault {
            Fault::Writes | Fault::Reads => {
                std::fs::remove_file(self.dir.join("fail")).expect("remove a file");
            }
            Fault::Flushes => self.reopen("sound"),
            Fault::Hangs => self.server.resume(),
        }
    }

    /// The bytes themselves, past the fault.
    pub fn image(&self) -> PathBuf {
        self.dir.join("image")
    }

    fn reopen(&mut self, file: &str) {
        let top = json!({ "driver": "raw", "node-name": "top", "file": file });
        self.qmp.as_mut().expect("a server of QEMU").call("blockdev-reopen", &json!({ "options": [top] }));
    }
}

impl Drop for FaultyDisk {
    /// Lazily: a daemon that is about to be killed may have the file open.
    fn drop(&mut self) {
        if std::thread::panicking() {
            for log in ["server.log", "nbdfuse.log"] {
                let said = std::fs::read_to_string(self.dir.join(log)).unwrap_or_default();
                println!("---- {log} of a faulty disk\n{said}");
            }
        }
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

/// QEMU's blkdebug is no choice: its server drops a client whose read fails.
fn failing_reads(dir: &Path, bytes: u64) -> Process {
    let path = |name: &str| dir.join(name).display().to_string();
    let image = path("image");
    // What nbdkit calls: the name of the operation, a handle, the count and the offset.
    let hits = |bad: u64| format!("{{ [ $4 -lt {} ] && [ $(($4 + $3)) -gt {bad} ]; }}", bad + 4096);
    let refuse = format!(
        "if [ -e {} ] && {{ {} || {}; }}; then echo 'EIO bad block' >&2; exit 1; fi",
        path("fail"),
        hits(UNREADABLE[0]),
        hits(UNREADABLE[1]),
    );
    let arguments = [
        "--foreground".to_string(),
        "--unix".to_string(),
        path("nbd.sock"),
        "eval".to_string(),
        format!("get_size=echo {bytes}"),
        format!(
            "pread={refuse}; dd if={image} iflag=skip_bytes,count_bytes skip=$4 count=$3 bs=1M status=none"
        ),
        format!("pwrite=dd of={image} oflag=seek_bytes seek=$4 bs=1M conv=notrunc status=none"),
        "can_flush=exit 0".to_string(),
        format!("flush=sync --data {image}"),
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
