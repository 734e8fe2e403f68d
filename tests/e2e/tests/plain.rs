//! `lockstep nbd`: one file served without replication, so that programs which others wrote meet the server alone.

use lockstep_e2e::{Process, binary, qemu_uri, tool, wait_until};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const SIZE_BYTES: u64 = 24 << 20;
const LIMIT: Duration = Duration::from_secs(20);

/// A served file.
struct Served {
    dir: tempfile::TempDir,
    process: Process,
}

impl Served {
    fn start(more: &[&str]) -> Served {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("disk.img");
        std::fs::File::create(&file).and_then(|file| file.set_len(SIZE_BYTES)).expect("a file");
        let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        let words = ["nbd", &path("disk.img"), "--unix", &path("nbd.sock"), "--pid-file", &path("pid")];
        let words: Vec<String> = words.iter().chain(more).map(|word| (*word).to_owned()).collect();
        let process = Process::start(&binary(), &words, &dir.path().join("log"), None);
        let served = Served { dir, process };
        wait_until("the pid file", LIMIT, || served.path("pid").exists());
        served
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn uri(&self) -> String {
        qemu_uri(&self.path("nbd.sock"), "")
    }
}

fn lockstep(words: &[&str]) -> lockstep_e2e::Ran {
    lockstep_e2e::run(Command::new(binary()).args(words).env_remove("LISTEN_FDS"))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

#[test]
fn what_was_written_is_in_the_file_and_the_stop_is_clean() {
    let mut served = Served::start(&["--name", "disk"]);
    let commands = ["write -P 7 1M 3M", "write -P 9 511 1026", "write -z 2M 64k", "discard 3M 64k", "flush"];
    let words = commands.iter().flat_map(|command| ["-c", command]);
    tool("qemu-io").args(["-f", "raw", "-t", "none"]).args(words).arg(served.uri()).run().ok();
    let compare = tool("qemu-img").args(["compare", "-f", "raw", "-F", "raw"]);
    compare.arg(served.path("disk.img")).arg(qemu_uri(&served.path("nbd.sock"), "disk")).run().ok();
    let bytes = std::fs::read(served.path("disk.img")).expect("the file");
    let expected = |at: usize| match at {
        511..1537 => 9,
        0x20_0000..0x21_0000 | 0x30_0000..0x31_0000 => 0,
        0x10_0000..0x40_0000 => 7,
        _ => 0,
    };
    let wrong = (0..bytes.len()).find(|&at| bytes[at] != expected(at));
    assert_eq!((wrong, bytes.len() as u64), (None, SIZE_BYTES));
    let pid = std::fs::read_to_string(served.path("pid")).expect("the pid file");
    assert_eq!(pid.trim(), served.process.pid().to_string());
    served.process.terminate();
    assert!(served.process.wait_end(LIMIT).success());
    assert!(!served.path("pid").exists() && !served.path("nbd.sock").exists());
}

#[test]
fn a_read_only_export_takes_no_write() {
    let served = Served::start(&["--read-only"]);
    let info = tool("nbdinfo").arg("--json").arg(served.uri()).run().ok();
    let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
    assert_eq!(info["exports"][0]["is_read_only"], true);
    assert_eq!(info["exports"][0]["export-name"], "disk.img");
    let script = "import nbd,sys\nh=nbd.NBD()\nh.set_strict_mode(0)\nh.connect_uri(sys.argv[1])\n\
                  try:\n  h.pwrite(b'x'*512,0)\nexcept nbd.Error as e:\n  print(e.errnum)\n";
    let said = tool("python3").args(["-c", script]).arg(served.uri()).run().ok();
    assert_eq!(said.trim(), "1", "EPERM is the answer to a write");
}

#[test]
fn an_inherited_socket_is_served() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("disk.img");
    std::fs::write(&file, vec![3; 1 << 20]).expect("a file");
    let back = dir.path().join("back.img");
    // libnbd's tools start the server with the socket that they opened.
    let started = |command| tool(command).arg("--").args(["[", text(&binary()), "nbd", text(&file), "]"]);
    let info = tool("nbdinfo").arg("--size").args(["[", text(&binary()), "nbd", text(&file), "]"]).run().ok();
    assert_eq!(info.trim(), (1 << 20).to_string());
    started("nbdcopy").arg(&back).run().ok();
    assert_eq!(std::fs::read(&back).expect("the copy"), vec![3; 1 << 20]);
}

#[test]
fn what_cannot_be_served_is_refused_in_words() {
    let served = Served::start(&[]);
    let [file, socket] = ["disk.img", "other.sock"].map(|name| served.path(name));
    let (file, socket, dir) = (text(&file), text(&socket), text(served.dir.path()));
    let odd = served.path("odd.img");
    std::fs::write(&odd, [1; 1000]).expect("a file");
    lockstep(&["nbd", file]).refused(2, &["--unix", "--tcp"]);
    lockstep(&["nbd", file, "--tcp", "0.0.0.0:10809"]).refused(2, &["TLS", "loopback"]);
    lockstep(&["nbd", file, "--unix", socket]).refused(1, &["disk.img", "in use"]);
    lockstep(&["nbd", "/nonexistent", "--unix", socket]).refused(1, &["/nonexistent", "No such file"]);
    lockstep(&["nbd", dir, "--unix", socket]).refused(1, &[dir]);
    lockstep(&["nbd", text(&odd), "--unix", socket]).refused(1, &["odd.img", "1000"]);
    let taken = served.path("nbd.sock");
    let free = served.path("free.img");
    std::fs::write(&free, [1; 1024]).expect("a file");
    lockstep(&["nbd", text(&free), "--unix", text(&taken)]).refused(11, &["nbd.sock", "in use"]);
}
