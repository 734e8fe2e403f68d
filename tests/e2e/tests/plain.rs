//! `lockstep nbd`: one file served without replication, so that programs which others wrote meet the server alone.

use lockstep_e2e::{Plain, binary, qemu_uri, tool};
use std::path::Path;
use std::process::Command;

const SIZE_BYTES: u64 = 24 << 20;

fn lockstep(words: &[&str]) -> lockstep_e2e::Ran {
    lockstep_e2e::run(Command::new(binary()).args(words).env_remove("LISTEN_FDS"))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

#[test]
fn what_was_written_is_in_the_file_and_the_stop_is_clean() {
    let mut served = Plain::start(SIZE_BYTES, &["--name", "disk"]);
    let commands = ["write -P 7 1M 3M", "write -P 9 511 1026", "write -z 2M 64k", "discard 3M 64k", "flush"];
    let words = commands.iter().flat_map(|command| ["-c", command]);
    tool("qemu-io").args(["-f", "raw", "-t", "none"]).args(words).arg(served.uri()).run().ok();
    let compare = tool("qemu-img").args(["compare", "-f", "raw", "-F", "raw"]);
    compare.arg(served.disk()).arg(qemu_uri(&served.socket(), "disk")).run().ok();
    let bytes = std::fs::read(served.disk()).expect("the file");
    let expected = |at: usize| match at {
        511..1537 => 9,
        0x20_0000..0x21_0000 | 0x30_0000..0x31_0000 => 0,
        0x10_0000..0x40_0000 => 7,
        _ => 0,
    };
    let wrong = (0..bytes.len()).find(|&at| bytes[at] != expected(at));
    assert_eq!((wrong, bytes.len() as u64), (None, SIZE_BYTES));
    let pid = std::fs::read_to_string(served.path("pid")).expect("the pid file");
    assert_eq!(pid.trim(), served.pid().to_string());
    assert!(served.stop().success());
    assert!(!served.path("pid").exists() && !served.socket().exists());
}

#[test]
fn a_read_only_export_takes_no_write() {
    let served = Plain::start(SIZE_BYTES, &["--read-only"]);
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
    let served = Plain::start(SIZE_BYTES, &[]);
    let [file, socket] = ["disk.img", "other.sock"].map(|name| served.path(name));
    let (file, socket, dir) = (text(&file), text(&socket), text(served.dir()));
    let odd = served.path("odd.img");
    std::fs::write(&odd, [1; 1000]).expect("a file");
    lockstep(&["nbd", file]).refused(2, &["--unix", "--tcp"]);
    lockstep(&["nbd", file, "--tcp", "0.0.0.0:10809"]).refused(2, &["TLS", "loopback"]);
    lockstep(&["nbd", file, "--unix", socket]).refused(1, &["disk.img", "in use"]);
    let long = served.path(&"x".repeat(65));
    lockstep(&["nbd", text(&long), "--unix", socket]).refused(2, &["65 bytes", "--name"]);
    lockstep(&["nbd", file, "--unix", socket, "--name", ""]).refused(2, &["0 bytes", "--name"]);
    lockstep(&["nbd", "/nonexistent", "--unix", socket]).refused(1, &["/nonexistent", "No such file"]);
    lockstep(&["nbd", dir, "--unix", socket]).refused(1, &[dir]);
    lockstep(&["nbd", text(&odd), "--unix", socket]).refused(1, &["odd.img", "1000"]);
    let taken = served.socket();
    let free = served.path("free.img");
    std::fs::write(&free, [1; 1024]).expect("a file");
    lockstep(&["nbd", text(&free), "--unix", text(&taken)]).refused(11, &["nbd.sock", "in use"]);
}

/// Starts the server on its standard streams, twice: a client that takes its leave, and one that just goes.
const ON_STANDARD_STREAMS: &str = r#"
import nbd, sys
for leaves in (True, False):
    h = nbd.NBD()
    h.connect_command(sys.argv[1:])
    big = bytes([3 + leaves]) * (5 << 20)
    h.pwrite(big, 1 << 20)
    h.flush()
    assert h.pread(len(big), 1 << 20) == big
    if leaves:
        h.shutdown()
    del h
"#;

#[test]
fn one_client_is_served_on_the_standard_streams() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("disk.img");
    std::fs::File::create(&file).and_then(|file| file.set_len(SIZE_BYTES)).expect("a file");
    let words = [text(&binary()), "nbd", text(&file), "--stdio"].map(String::from);
    tool("python3").args(["-c", ON_STANDARD_STREAMS]).args(&words).run().ok();
    let bytes = std::fs::read(&file).expect("the file");
    assert!(bytes[1 << 20..6 << 20].iter().all(|byte| *byte == 3));
    // Input that ends at once: the greeting, and an end that is none of ours to complain about.
    let input = std::process::Stdio::null();
    let ran = Command::new(binary()).args(&words[1..]).stdin(input).output().expect("it runs");
    assert!(ran.status.success(), "{ran:?}");
    assert!(ran.stdout.starts_with(b"NBDMAGICIHAVEOPT"), "{ran:?}");
    lockstep(&["nbd", text(&file), "--stdio", "--unix", "/nonexistent"]).refused(2, &["--stdio", "--unix"]);
}

/// One client zeroes everything in a single request with extended headers, written by hand; another one goes on
/// meanwhile, and says how many of its requests were answered before that one.
const ALL_AT_ONCE: &str = r#"
import nbd, socket, struct, sys
path, size = sys.argv[1], int(sys.argv[2])
s = socket.socket(socket.AF_UNIX)
s.connect(path)
def receive(count):
    data = b""
    while len(data) < count:
        part = s.recv(count - len(data))
        assert part, "closed"
        data += part
    return data
def option(number, data):
    s.sendall(b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data)
    kind = 0
    while kind != 1:
        _, _, kind, length = struct.unpack(">QIII", receive(20))
        receive(length)
        assert kind < 1 << 31, hex(kind)
receive(18)
s.sendall(struct.pack(">I", 3))
option(11, b"")
option(7, struct.pack(">IH", 0, 0))
other = nbd.NBD()
other.connect_unix(path)
s.sendall(struct.pack(">IHHQQQ", 0x21e41c71, 0, 6, 7, 0, size))
s.setblocking(False)
answered = 0
while True:
    try:
        s.recv(1, socket.MSG_PEEK)
        break
    except BlockingIOError:
        other.pwrite(b"x" * 4096, size - 4096)
        other.pread(4096, 0)
        answered += 2
s.setblocking(True)
magic, flags, kind, cookie, offset, length = struct.unpack(">IHHQQQ", receive(32))
assert (magic, flags, kind, cookie, length) == (0x6e8a278c, 1, 0, 7, 0)
print(answered)
"#;

#[test]
fn a_request_for_everything_disturbs_nobody() {
    const LARGE_BYTES: u64 = 64 << 30;
    let served = Plain::start(LARGE_BYTES, &[]);
    let size = LARGE_BYTES.to_string();
    let said = tool("python3").args(["-c", ALL_AT_ONCE]).arg(served.socket()).arg(size).run().ok();
    let answered: u64 = said.trim().parse().expect("a number");
    assert!(answered >= 100, "only {answered} requests were answered beside one of {LARGE_BYTES} bytes");
}
