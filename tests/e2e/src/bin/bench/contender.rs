//! The servers that are compared. Each has its data in memory, serves a unix socket and ends with its handle.

use lockstep_e2e::{Cluster, Plan, Process, Qmp, RESOURCE, qemu_uri, temp_dir, wait_for};
use serde_json::json;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

const START_LIMIT: Duration = Duration::from_secs(20);

/// A server under load.
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    pub(crate) uri: String,
    /// What keeps it running.
    _parts: Parts,
}

/// Dropped in the order of the fields: processes before their files.
#[derive(Default)]
struct Parts {
    _cluster: Option<Cluster>,
    _qmp: Option<Qmp>,
    _processes: Vec<Process>,
    _dir: Option<TempDir>,
}

/// Lockstep first; the others are compared with it.
pub(crate) fn all(size_bytes: u64) -> Vec<Contender> {
    vec![lockstep(size_bytes), nbdkit(size_bytes), qemu_mirror(size_bytes)]
}

fn lockstep(size_bytes: u64) -> Contender {
    let plan =
        Plan { size_bytes, max_hot_bytes: size_bytes, timeout_ms: 6000, direct: true, ..Plan::default() };
    let cluster = Cluster::primary(&plan);
    let uri = qemu_uri(cluster.alpha.nbd(), RESOURCE);
    Contender {
        name: "lockstep (2 copies)",
        uri,
        _parts: Parts { _cluster: Some(cluster), ..Parts::default() },
    }
}

pub(crate) fn nbdkit(size_bytes: u64) -> Contender {
    let dir = temp_dir(false);
    let (image, socket) = (sparse(dir.path(), "disk", size_bytes), dir.path().join("nbd.sock"));
    let arguments = ["--foreground", "--unix", text(&socket), "file", text(&image)].map(String::from);
    let process = serve("nbdkit", &arguments, dir.path(), &socket);
    let uri = qemu_uri(&socket, "");
    let parts = Parts { _processes: vec![process], _dir: Some(dir), ..Parts::default() };
    Contender { name: "nbdkit file (1 copy)", uri, _parts: parts }
}

/// A storage daemon that mirrors, with each write blocked until the copy has it, to a second one behind a
/// socket.
fn qemu_mirror(size_bytes: u64) -> Contender {
    let dir = temp_dir(false);
    let path = |name: &str| dir.path().join(name);
    let (source, copy) = (sparse(dir.path(), "source", size_bytes), sparse(dir.path(), "copy", size_bytes));
    let (nbd, copy_nbd, control) = (path("nbd.sock"), path("copy.sock"), path("qmp.sock"));
    let block = |image: &Path| format!("driver=file,node-name=disk,filename={}", image.display());
    let server = |socket: &Path| format!("addr.type=unix,addr.path={}", socket.display());
    let export = "type=nbd,id=export,node-name=disk,name=disk,writable=on".to_string();
    let words = |image: &Path, socket: &Path| {
        [
            "--blockdev".into(),
            block(image),
            "--nbd-server".into(),
            server(socket),
            "--export".into(),
            export.clone(),
        ]
    };
    let behind = serve("qemu-storage-daemon", &words(&copy, &copy_nbd), dir.path(), &copy_nbd);
    let mut arguments = words(&source, &nbd).to_vec();
    arguments
        .extend(["--chardev".into(), format!("socket,id=qmp,path={},server=on,wait=off", control.display())]);
    arguments.extend(["--monitor".into(), "chardev=qmp".into()]);
    let front = serve("qemu-storage-daemon", &arguments, dir.path(), &nbd);
    let mut qmp = Qmp::open(&control);
    qmp.call(
        "blockdev-add",
        &json!({ "driver": "nbd", "node-name": "copy", "export": "disk",
                 "server": { "type": "unix", "path": text(&copy_nbd) } }),
    );
    qmp.call(
        "blockdev-mirror",
        &json!({ "job-id": "mirror", "device": "disk", "target": "copy", "sync": "full",
                 "copy-mode": "write-blocking" }),
    );
    qmp.wait_event("BLOCK_JOB_READY");
    let uri = qemu_uri(&nbd, "disk");
    let parts =
        Parts { _qmp: Some(qmp), _processes: vec![front, behind], _dir: Some(dir), ..Parts::default() };
    Contender { name: "QEMU mirror (2 copies)", uri, _parts: parts }
}

fn serve(program: &str, arguments: &[String], dir: &Path, socket: &Path) -> Process {
    let path = PathBuf::from("/usr/bin").join(program);
    assert!(path.exists(), "{program} is missing: cargo xtask setup");
    let log = dir.join(format!("{program}.log"));
    let process = Process::start(&path, arguments, &log, None);
    wait_for(&format!("{program} to listen"), START_LIMIT, || {
        let said = || std::fs::read_to_string(&log).unwrap_or_default();
        UnixStream::connect(socket).map(drop).map_err(|error| format!("{error}; log: {}", said()))
    });
    process
}

fn sparse(dir: &Path, name: &str, size_bytes: u64) -> PathBuf {
    let path = dir.join(name);
    File::create(&path).and_then(|file| file.set_len(size_bytes)).expect("create an image");
    path
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}
