//! A file that processes serve: QEMU's storage daemon serves an image, and keeps a log of what was written to it and
//! flushed, if it is told to; nbdfuse makes a file of it again. (The daemon's own FUSE export mixes up the data of
//! writes that are under way at the same time.)
//!
//! A file system of the machine, unmounted with its handle; the handle must outlive the daemon that uses the file.

use crate::client::Connection;
use crate::foreign::require;
use crate::process::Process;
use crate::run::run;
use crate::wait::wait_until;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const START_LIMIT: Duration = Duration::from_secs(20);
const EXPORT: &str = "image";

/// A served image.
#[derive(Debug)]
pub struct Served {
    file: PathBuf,
    /// Ended before the server.
    _fuse: Process,
    server: Process,
}

impl Served {
    /// Serves `image` as `file`, which is there already. With `log`, each write, discard and flush is in that log
    /// before it is answered.
    pub fn start(image: &Path, file: &Path, log: Option<&Path>) -> Served {
        let mut nodes = vec![image_node("image", image)];
        if let Some(log) = log {
            std::fs::File::create(log).expect("create a log");
            nodes.push(image_node("log", log));
            nodes.push(json!({
                "driver": "blklogwrites", "node-name": "logged", "file": "image", "log": "log",
                "log-super-update-interval": 1, "discard": "unmap",
            }));
        }
        let arguments = nodes.into_iter().flat_map(|node| ["--blockdev".to_string(), node.to_string()]);
        Served::with(arguments.collect(), if log.is_some() { "logged" } else { "image" }, image, file)
    }

    /// Serves the node `top` of a storage daemon with these arguments, which is as large as `image`.
    pub(crate) fn with(mut arguments: Vec<String>, top: &str, image: &Path, file: &Path) -> Served {
        let bytes = image.metadata().expect("an image").len();
        let socket = image.with_extension("served");
        // One that is left of an earlier server is no sign of this one.
        drop(std::fs::remove_file(&socket));
        arguments
            .extend(["--nbd-server".to_string(), format!("addr.type=unix,addr.path={}", socket.display())]);
        let export = format!("type=nbd,id=export,node-name={top},name={EXPORT},writable=on");
        arguments.extend(["--export".to_string(), export]);
        let said = image.with_extension("served.log");
        let mut server = Process::start(&require("qemu-storage-daemon"), &arguments, &said, None);
        wait_until("a server behind a file", START_LIMIT, || {
            assert!(server.is_running(), "the storage daemon ended:\n{}", words(&said));
            Connection::open(socket.as_path(), EXPORT).is_ok()
        });
        let uri = format!("nbd+unix:///{EXPORT}?socket={}", socket.display());
        let mut fuse = Process::start(&require("nbdfuse"), &[file.display().to_string(), uri], &said, None);
        wait_until(&format!("{} through FUSE", file.display()), START_LIMIT, || {
            assert!(fuse.is_running(), "nbdfuse ended:\n{}", words(&said));
            is_mounted(file) && file.metadata().is_ok_and(|facts| facts.len() == bytes)
        });
        Served { file: file.to_path_buf(), _fuse: fuse, server }
    }

    /// The storage daemon.
    pub(crate) fn server(&self) -> &Process {
        &self.server
    }
}

/// A file as a node of the storage daemon. Without `unmap` a discard is answered, and nothing of it done.
pub(crate) fn image_node(name: &str, path: &Path) -> Value {
    json!({ "driver": "file", "node-name": name, "filename": path, "discard": "unmap" })
}

fn words(said: &Path) -> String {
    std::fs::read_to_string(said).unwrap_or_default()
}

fn is_mounted(file: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(1).is_some_and(|place| Path::new(place) == file))
}

impl Drop for Served {
    /// Lazily: a daemon that is about to be killed may have the file open.
    fn drop(&mut self) {
        let ran = run(Command::new("umount").arg("--lazy").arg(&self.file));
        assert!(ran.code == 0 || std::thread::panicking(), "{ran}");
    }
}
