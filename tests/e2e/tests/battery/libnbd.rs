//! libnbd: its tools, and its library from Python.

use crate::sample::{MIB, SIZE_BYTES, assert_holds, sample};
use lockstep_e2e::{Plain, assert_equal, qemu_uri, tool};
use serde_json::Value;

#[test]
fn nbdinfo_names_what_is_offered() {
    let served = Plain::start(SIZE_BYTES, &["--name", "disk"]);
    let ask = |words: &[&str]| tool("nbdinfo").args(words).arg(served.uri()).run();
    let info: Value = serde_json::from_str(&ask(&["--json"]).ok()).expect("JSON");
    assert_eq!(info["protocol"], "newstyle-fixed");
    assert_eq!((&info["TLS"], &info["structured"]), (&Value::Bool(false), &Value::Bool(true)));
    let export = &info["exports"][0];
    assert_eq!(export["export-size"], SIZE_BYTES);
    let sizes = ["block_size_minimum", "block_size_preferred", "block_size_maximum"].map(|key| &export[key]);
    assert_eq!(sizes, [1, 4096, 32 * MIB].map(Value::from).each_ref());
    let listed: Value = serde_json::from_str(&ask(&["--list", "--json"]).ok()).expect("JSON");
    assert_eq!(listed["exports"][0]["export-name"], "disk");
    assert_eq!(ask(&["--size"]).ok().trim(), SIZE_BYTES.to_string());
    let can =
        ["cache", "connect", "df", "flush", "fua", "multi-conn", "read", "structured-reply", "trim", "write"];
    for word in can.into_iter().chain(["zero"]) {
        assert_eq!(ask(&["--can", word]).code, 0, "--can {word}");
    }
    for word in ["read-only", "rotational", "tls"] {
        assert_eq!(ask(&["--is", word]).code, 2, "--is {word}");
    }
    let wrong = tool("nbdinfo").arg(qemu_uri(&served.socket(), "nothing")).run();
    assert!(wrong.code == 1 && wrong.stderr.contains("nothing"), "{wrong}");
}

#[test]
fn nbdcopy_in_and_out_in_every_way() {
    let bytes = sample(1);
    let ways: [&[&str]; 4] = [
        &["--connections=4", "--requests=64"],
        &["--synchronous"],
        &["--connections=1", "--requests=1", "--request-size=65536", "--sparse=512"],
        &["--threads=4", "--queue-size=16777216", "--flush", "--allocated"],
    ];
    for way in ways {
        let served = Plain::start(SIZE_BYTES, &[]);
        let image = served.file("sample.img", &bytes);
        let back = served.path("back.img");
        tool("nbdcopy").args(way).arg(&image).arg(served.uri()).run().ok();
        assert_holds(&served, &bytes);
        tool("nbdcopy").args(way).arg(served.uri()).arg(&back).run().ok();
        assert_equal(&image, &back);
    }
}

#[test]
fn nbdcopy_between_two_servers_and_through_pipes() {
    let (from, to) = (Plain::holding(&sample(2), &["--read-only"]), Plain::start(SIZE_BYTES, &[]));
    let copy = tool("nbdcopy").args(["--destination-is-zero", "--connections=3"]);
    copy.arg(from.uri()).arg(to.uri()).run().ok();
    assert_holds(&to, &sample(2));
    let piped = Plain::start(SIZE_BYTES, &[]);
    let script = r#"set -o pipefail; nbdcopy "$1" - | nbdcopy - "$2""#;
    tool("bash").args(["-c", script, "pipe"]).args([to.uri(), piped.uri()]).run().ok();
    assert_holds(&piped, &sample(2));
}

#[test]
fn nbddump_shows_the_bytes() {
    let mut bytes = vec![0; 1 << 20];
    bytes[4096..4112].copy_from_slice(b"sixteen letters.");
    let served = Plain::holding(&bytes, &[]);
    let said = tool("nbddump").arg(served.uri()).run().ok();
    assert!(
        said.lines().any(|line| line.starts_with("0000001000") && line.contains("|sixteen letters.|")),
        "{said}"
    );
}

/// Four connections with hundreds of requests under way, answered in any order; all of it is checked.
const ASYNC: &str = r#"
import nbd, random, sys
uri, random = sys.argv[1], random.Random(5)
handles = [nbd.NBD() for _ in range(4)]
for h in handles:
    h.connect_uri(uri)
    assert h.can_multi_conn()
size, page = handles[0].get_size(), 4096
pages = list(range(size // page))
random.shuffle(pages)
expected, running, done, failed = {}, 0, 0, []

def finish(handle, then):
    def callback(error):
        global running, done
        running, done = running - 1, done + 1
        if error.value: failed.append(error.value)
        then()
        return 1
    return callback

def turn(limit):
    while running > limit:
        for h in handles:
            while h.aio_in_flight() and h.poll(0): pass
        if running > limit:
            busiest = max(handles, key=lambda h: h.aio_in_flight())
            busiest.poll(-1)

def write(n, page_number):
    global running
    running += 1
    bytes = random.randbytes(page)
    expected[page_number] = bytes
    h, flags = handles[n % 4], nbd.CMD_FLAG_FUA if n % 50 == 0 else 0
    buffer = nbd.Buffer.from_bytearray(bytearray(bytes))
    h.aio_pwrite(buffer, page_number * page, completion=finish(h, lambda: buffer), flags=flags)

def read(n, page_number):
    global running
    running += 1
    h, buffer = handles[n % 4], nbd.Buffer(page)
    def check():
        if buffer.to_bytearray() != expected[page_number]: failed.append(page_number)
    h.aio_pread(buffer, page_number * page, completion=finish(h, check))

for n, page_number in enumerate(pages[:3000]):
    write(n, page_number)
    turn(800)
turn(0)
handles[3].flush()
for n, page_number in enumerate(pages[:3000]):
    read(n + 1, page_number)
    turn(800)
turn(0)
assert (done, failed) == (6000, []), (done, failed[:9])
for h in handles:
    h.shutdown()
"#;

#[test]
fn asynchronous_requests_on_four_connections() {
    let served = Plain::start(SIZE_BYTES, &[]);
    tool("python3").args(["-c", ASYNC]).arg(served.uri()).run().ok();
}

/// Everything of the handshake and of each command that the library's checks would not let through.
const SESSION: &str = r#"
import errno, nbd, sys
socket, size = sys.argv[1], int(sys.argv[2])
h = nbd.NBD()
h.set_opt_mode(True)
h.set_full_info(True)
h.connect_unix(socket)
names = []
assert h.opt_list(lambda name, description: names.append(name) or 0) == 1 and names == ["disk"], names
for wrong in ("nothing", "x" * 4000):
    h.set_export_name(wrong)
    try:
        h.opt_info()
    except nbd.Error:
        pass
    else:
        raise AssertionError("an export that is not there")
h.set_export_name("")
h.opt_info()
assert h.get_size() == size and h.get_canonical_export_name() == "disk"
assert "disk" in h.get_export_description()
h.opt_go()
assert h.aio_is_ready() and h.get_structured_replies_negotiated()

def code(call, *arguments, **more):
    try:
        call(*arguments, **more)
    except nbd.Error as error:
        return error.errnum
    return 0

chunks = []
h.pwrite(b"1" * 8192, 4096)
got = h.pread_structured(12288, 0, lambda data, at, status, error: chunks.append((at, len(data), status)) or 0)
assert got == bytes(4096) + b"1" * 8192 and sum(length for _, length, _ in chunks) == 12288, chunks
chunks.clear()
got = h.pread_structured(65536, 1, lambda data, at, status, error: chunks.append((at, len(data))) or 0, nbd.CMD_FLAG_DF)
assert chunks == [(1, 65536)] and got[4095:12287] == b"1" * 8192
h.cache(65536, 4096)
h.zero(4096, 4096, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
h.trim(4096, 8192, nbd.CMD_FLAG_FUA)
assert h.pread(12288, 0) == bytes(12288)
h.set_strict_mode(0)
assert code(h.pread, 512, size) == errno.EINVAL
assert code(h.pwrite, b"x" * 512, size) == errno.ENOSPC
assert code(h.pwrite, b"", 0) == errno.EINVAL
assert code(h.zero, 512, size - 1) == errno.ENOSPC
assert code(h.trim, 1 << 30, 0) == errno.EINVAL
assert code(h.pread, 512, 0, flags=nbd.CMD_FLAG_NO_HOLE) == errno.EINVAL
assert code(h.pwrite, b"x" * 512, 0, flags=nbd.CMD_FLAG_REQ_ONE) == errno.EINVAL
assert code(h.flush, nbd.CMD_FLAG_FUA) == 0
assert h.pread(12288, 0) == bytes(12288), "what was refused did nothing"
h.shutdown()
g = nbd.NBD()
g.set_opt_mode(True)
g.connect_unix(socket)
g.opt_abort()
"#;

#[test]
fn the_handshake_and_each_command_from_python() {
    let served = Plain::start(SIZE_BYTES, &["--name", "disk"]);
    let arguments = [served.socket().display().to_string(), SIZE_BYTES.to_string()];
    tool("python3").args(["-c", SESSION]).args(arguments).run().ok();
}
