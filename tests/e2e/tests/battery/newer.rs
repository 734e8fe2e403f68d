//! The same kinds of clients as Debian 13 has them: libnbd 1.22, nbdkit 1.42, QEMU 10, fio 3.39. They ask for more.

use crate::libnbd::{ASYNC, SESSION};
use crate::sample::{SIZE_BYTES, assert_holds, sample};
use lockstep_e2e::{Newer, Plain, assert_equal};
use serde_json::Value;
use std::os::unix::fs::MetadataExt;

/// The export as they see it.
const URI: &str = "nbd+unix:///?socket=/mnt/nbd.sock";

#[test]
fn nbdinfo_of_debian_13() {
    let served = Plain::start(SIZE_BYTES, &["--name", "disk"]);
    let clients = Newer::clients();
    let ask = |words: &[&str]| clients.tool(served.dir(), "nbdinfo").args(words).arg(URI).run();
    let version = ask(&["--version"]).ok();
    assert!(version.contains("libnbd 1.2"), "it is another one: {version}");
    let info: Value = serde_json::from_str(&ask(&["--json"]).ok()).expect("JSON");
    assert_eq!(info["exports"][0]["export-size"], SIZE_BYTES, "{info}");
    assert!(ask(&[]).ok().contains("using extended packets"), "{info}");
    let listed: Value = serde_json::from_str(&ask(&["--list", "--json"]).ok()).expect("JSON");
    assert_eq!(listed["exports"][0]["export-name"], "disk");
    for word in ["cache", "df", "flush", "fua", "multi-conn", "structured-reply", "trim", "write", "zero"] {
        assert_eq!(ask(&["--can", word]).code, 0, "--can {word}");
    }
}

#[test]
fn libnbd_of_debian_13_copies_and_runs_the_scripts() {
    let (bytes, clients) = (sample(31), Newer::clients());
    let served = Plain::start(SIZE_BYTES, &["--name", "disk"]);
    let image = served.file("sample.img", &bytes);
    let copy = || clients.tool(served.dir(), "nbdcopy").args(["--connections=4", "--requests=64"]);
    copy().args(["--flush", "/mnt/sample.img", URI]).run().ok();
    assert_holds(&served, &bytes);
    copy().args([URI, "/mnt/back.img"]).run().ok();
    assert_equal(&image, &served.path("back.img"));
    clients.tool(served.dir(), "python3").args(["-c", ASYNC, URI]).run().ok();
    let fresh = Plain::start(SIZE_BYTES, &["--name", "disk"]);
    let session = clients.tool(fresh.dir(), "python3").args(["-c", SESSION, "/mnt/nbd.sock"]);
    session.arg(SIZE_BYTES.to_string()).run().ok();
}

const GIB: u64 = 1 << 30;

/// With extended headers a request may be longer than 4 GiB, and name the contexts that it asks for.
const LONG: &str = r#"
import nbd, sys
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.connect_uri(sys.argv[1])
size = h.get_size()
assert h.get_extended_headers_negotiated() and h.can_block_status_payload()
assert size > 1 << 32

def extents(call, *more):
    found = []
    def add(context, offset, entries, error):
        assert context == "base:allocation"
        found.extend((length, flags) for length, flags in entries)
        return 0
    call(size, 0, *more, add)
    return found

h.pwrite(b"1" * 65536, 1 << 20)
h.pwrite(b"2" * 65536, size - 65536)
filtered = lambda count, offset, add: h.block_status_filter(count, offset, ["base:allocation"], add)
for found in (extents(h.block_status_64), extents(filtered)):
    assert found == [(1 << 20, 3), (65536, 0), (size - (1 << 20) - 131072, 3), (65536, 0)], found
h.zero(size, 0, nbd.CMD_FLAG_FUA)
assert extents(h.block_status_64) == [(size, 3)]
h.pwrite(b"3" * 65536, 5 << 30)
h.zero(size, 0, nbd.CMD_FLAG_FAST_ZERO)
assert extents(h.block_status_64) == [(size, 3)]
h.pwrite(b"4" * 65536, 5 << 30)
h.trim(size, 0)
h.cache(size, 0)
assert h.pread(1 << 20, (5 << 30) - 4096) == bytes(1 << 20)
h.shutdown()
"#;

#[test]
fn one_request_of_libnbd_of_debian_13_is_longer_than_four_gibibytes() {
    let served = Plain::start(6 * GIB, &[]);
    let script = Newer::clients().tool(served.dir(), "python3").args(["-c", LONG, URI]);
    script.run().ok();
    let blocks = std::fs::metadata(served.disk()).expect("the file").blocks();
    assert!(blocks < 2048, "{blocks} sectors are allocated");
}

#[test]
fn nbdkit_of_debian_13_is_a_client_with_filters() {
    let (bytes, clients) = (sample(32), Newer::clients());
    let served = Plain::start(SIZE_BYTES, &[]);
    let image = served.file("sample.img", &bytes);
    let ways: [(&[&str], &[&str]); 5] = [
        (&[], &["shared=true"]),
        (&["blocksize"], &["minblock=4096", "maxdata=65536", "maxlen=1M"]),
        (&["cache"], &["cache=writeback"]),
        (&["retry", "readahead"], &["retries=3", "retry-delay=1"]),
        (&["evil"], &["evil=cosmic-rays", "evil-probability=0"]),
    ];
    for (filters, settings) in ways {
        let back = served.path("back.img");
        drop(std::fs::remove_file(&back));
        let words = filters.iter().map(|filter| format!("--filter={filter}"));
        let script = "set -e; nbdcopy --flush /mnt/sample.img $uri; nbdcopy $uri /mnt/back.img";
        let proxy = clients.tool(served.dir(), "nbdkit").args(["-U", "-"]).args(words).arg("nbd");
        proxy.arg(format!("uri={URI}")).args(settings).args(["--run", script]).run().ok();
        assert_holds(&served, &bytes);
        assert_equal(&image, &back);
    }
}

#[test]
fn qemu_of_debian_13_converts_compares_and_benches() {
    let (bytes, clients) = (sample(33), Newer::clients());
    let served = Plain::start(SIZE_BYTES, &[]);
    let image = served.file("sample.img", &bytes);
    let img = |words: &[&str]| clients.tool(served.dir(), "qemu-img").args(words).run();
    img(&["convert", "-n", "-f", "raw", "-O", "raw", "-W", "-m", "16", "/mnt/sample.img", URI]).ok();
    assert_holds(&served, &bytes);
    img(&["convert", "-f", "raw", "-O", "raw", "-W", "-m", "16", URI, "/mnt/back.img"]).ok();
    assert_equal(&image, &served.path("back.img"));
    img(&["compare", "-f", "raw", "-F", "raw", URI, "/mnt/sample.img"]).ok();
    let commands =
        ["write -P 7 1M 3M", "write -z 2M 64k", "discard 3M 64k", "write -f -P 9 511 1026", "flush"];
    let words = commands.iter().flat_map(|command| ["-c", command]);
    clients.tool(served.dir(), "qemu-io").args(["-f", "raw", "-t", "none"]).args(words).arg(URI).run().ok();
    let mut expected = bytes;
    expected[1 << 20..4 << 20].fill(7);
    expected[2 << 20..(2 << 20) + (64 << 10)].fill(0);
    expected[3 << 20..(3 << 20) + (64 << 10)].fill(0);
    expected[511..1537].fill(9);
    assert_holds(&served, &expected);
    img(&["bench", "-f", "raw", "-c", "1000", "-d", "16", "-w", "--flush-interval=32", URI]).ok();
    let map = img(&["map", "-f", "raw", "--output=json", URI]).ok();
    serde_json::from_str::<Value>(&map).expect("JSON");
}

#[test]
fn fio_of_debian_13_verifies_on_four_connections() {
    let (served, clients) = (Plain::start(SIZE_BYTES, &[]), Newer::clients());
    let uri = format!("--uri={URI}");
    let job =
        ["--aux-path=/mnt", "--name=job", "--output-format=terse", "--ioengine=nbd", &uri, "--iodepth=16"];
    let own = ["--randseed=3", "--numjobs=4", "--size=6M", "--offset_increment=6M"];
    let verify = ["--rw=randtrimwrite", "--bs=8k", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1"];
    clients.tool(served.dir(), "fio").args(job).args(own).args(verify).run().ok();
}
