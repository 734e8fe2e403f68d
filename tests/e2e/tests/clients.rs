//! Programs that others wrote use the volume, and both copies are compared byte by byte afterwards.
//!
//! The data files are on a disk's file system here, where they are opened with O_DIRECT and need whole
//! blocks.

use lockstep_e2e::{Cluster, Plan, RESOURCE, Rng, Tool, assert_equal, qemu_uri, tool};
use lockstep_nbd::Command;
use std::path::{Path, PathBuf};

const MIB: u64 = 1 << 20;
const SIZE_BYTES: u64 = 96 * MIB;

fn cluster() -> Cluster {
    Cluster::primary(&Plan { size_bytes: SIZE_BYTES, on_disk: true, ..Plan::default() })
}

fn uri(cluster: &Cluster) -> String {
    qemu_uri(cluster.alpha.nbd(), RESOURCE)
}

/// An image with data, zeroes and a ragged mixture.
fn sample_image(cluster: &Cluster) -> PathBuf {
    let mut rng = Rng::new(4);
    let mut bytes = vec![0; SIZE_BYTES as usize];
    for start in (0..bytes.len()).step_by(3 << 20) {
        let end = bytes.len().min(start + 300_000 + rng.below(1 << 20) as usize);
        bytes[start..end].fill_with(|| rng.draw() as u8);
    }
    let path = cluster.dir().join("sample.img");
    std::fs::write(&path, bytes).expect("write the sample");
    path
}

fn compare_with_lockstep(cluster: &Cluster, a: &Path, b: &Path) {
    let paths = [a, b].map(|path| path.to_str().expect("a path in UTF-8"));
    cluster.alpha.lockstep(&["compare", paths[0], paths[1]]).ok();
}

#[test]
fn qemu_io_reads_back_its_patterns() {
    let cluster = cluster();
    let commands = [
        "write -P 0x5a 0 1M",
        "write -P 0x11 1000k 3M",
        "write -P 0x22 512 512",
        "write -P 0x33 70001 4097",
        "write -f -P 0x44 20M 64k",
        "write -z 2M 1M",
        "write -z -u 21M 100k",
        "discard 3M 64k",
        "aio_write -P 0x55 30M 1M",
        "aio_write -P 0x66 31M 1M",
        "aio_flush",
        "flush",
        "read -P 0x5a 1024 60k",
        "read -P 0x22 512 512",
        "read -P 0x33 70001 4097",
        "read -P 0x44 20M 64k",
        "read -P 0 2M 1M",
        "read -P 0 21M 100k",
        "read -P 0x55 30M 1M",
        "read -P 0x66 31M 1M",
    ];
    let words = commands.iter().flat_map(|command| ["-c", command]);
    let ran = tool("qemu-io").args(["-f", "raw", "-t", "none"]).args(words).arg(uri(&cluster)).run();
    let said = format!("{}{}", ran.stdout, ran.stderr);
    for trouble in ["failed", "rror"] {
        assert!(!said.contains(trouble), "{ran}");
    }
    ran.ok();
    cluster.assert_replicas_equal();
}

#[test]
fn qemu_img_converts_in_and_out() {
    let cluster = cluster();
    let sample = sample_image(&cluster);
    let back = cluster.dir().join("back.img");
    let convert = || tool("qemu-img").args(["convert", "-f", "raw", "-O", "raw"]);
    convert().arg("-n").arg(&sample).arg(uri(&cluster)).run().ok();
    cluster.assert_replicas_equal();
    compare_with_lockstep(&cluster, cluster.alpha.disk(), cluster.beta.disk());
    assert_equal(&sample, cluster.beta.disk());
    convert().arg(uri(&cluster)).arg(&back).run().ok();
    assert_equal(&sample, &back);
    let other = cluster.dir().join("other.img");
    std::fs::copy(&sample, &other).expect("copy the sample");
    let changed = std::fs::OpenOptions::new().write(true).open(&other).expect("open the copy");
    std::os::unix::fs::FileExt::write_at(&changed, b"x", 5 * MIB + 17).expect("change the copy");
    let paths = [&sample, &other].map(|path| path.to_str().expect("a path in UTF-8"));
    let ran = cluster.alpha.lockstep(&["compare", paths[0], paths[1], "--json"]);
    assert_eq!(ran.code, 1, "images that differ: {ran}");
    serde_json::from_str::<serde_json::Value>(&ran.stdout).expect("compare --json prints JSON");
}

#[test]
fn nbdcopy_uses_four_connections() {
    let cluster = cluster();
    let sample = sample_image(&cluster);
    let back = cluster.dir().join("back.img");
    let copy = || tool("nbdcopy").args(["--connections=4", "--requests=16"]);
    copy().arg("--flush").arg(&sample).arg(uri(&cluster)).run().ok();
    cluster.assert_replicas_equal();
    assert_equal(&sample, cluster.beta.disk());
    copy().arg(uri(&cluster)).arg(&back).run().ok();
    assert_equal(&sample, &back);
}

#[test]
fn nbdinfo_sees_what_is_offered() {
    let cluster = cluster();
    let text = tool("nbdinfo").arg("--json").arg(uri(&cluster)).run().ok();
    let info: serde_json::Value = serde_json::from_str(&text).expect("nbdinfo prints JSON");
    let export = &info["exports"][0];
    assert_eq!(export["export-size"], SIZE_BYTES, "{text}");
    for can in ["can_multi_conn", "can_flush", "can_fua", "can_trim", "can_zero"] {
        assert_eq!(export[can], true, "{can} in {text}");
    }
    assert_eq!(export["is_read_only"], false, "{text}");
    let listed = tool("nbdinfo").args(["--list", "--json"]).arg(qemu_uri(cluster.alpha.nbd(), "")).run().ok();
    assert!(listed.contains(&format!("\"{RESOURCE}\"")), "{listed}");
    let refused = tool("nbdinfo").arg(qemu_uri(cluster.beta.nbd(), RESOURCE)).run();
    assert_ne!(refused.code, 0, "a Secondary serves no clients: {refused}");
    assert!(refused.stderr.contains("replied with error"), "{refused}");
}

const PYTHON: &str = r#"
import nbd, os, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
size = h.get_size()
h.pwrite(b"a" * 513, 777)
assert h.pread(513, 777) == b"a" * 513
assert h.pread(1, 776) == b"\0" and h.pread(1, 777 + 513) == b"\0"
big = os.urandom(3 << 20)
h.pwrite(big, 9_000_001, nbd.CMD_FLAG_FUA)
assert h.pread(len(big), 9_000_001) == big
h.zero(100_000, 9_500_000)
assert h.pread(100_000, 9_500_000) == bytes(100_000)
h.zero(4096, 8192, nbd.CMD_FLAG_NO_HOLE)
h.trim(1 << 20, 10 << 20)
h.pwrite(b"end", size - 3)
assert h.pread(3, size - 3) == b"end"
buffer = lambda i: nbd.Buffer.from_bytearray(bytearray([i]) * 65536)
cookies = [h.aio_pwrite(buffer(i), (32 << 20) + i * 40_000) for i in range(64)]
while cookies:
    h.poll(-1)
    cookies = [c for c in cookies if not h.aio_command_completed(c)]
h.flush()
h.set_strict_mode(0)
for offset in (size - 1, size, 1 << 62):
    try:
        h.pwrite(b"xx", offset)
    except nbd.Error as error:
        assert error.errno == "ENOSPC", error
    else:
        raise AssertionError("a write past the end")
assert h.pread(513, 777) == b"a" * 513
h.shutdown()
"#;

#[test]
fn libnbd_from_python_writes_unaligned_and_past_the_end() {
    let cluster = cluster();
    tool("python3").args(["-c", PYTHON]).arg(uri(&cluster)).run().ok();
    cluster.assert_replicas_equal();
}

fn fio(cluster: &Cluster) -> Tool {
    // fio knows an engine's options only behind the engine.
    let job = ["--name=job", "--output-format=terse", "--ioengine=nbd", "--iodepth=16", "--randseed=7"];
    // It also leaves a file with the state of its verification.
    let aux = format!("--aux-path={}", cluster.dir().display());
    tool("fio").arg(aux).args(job).arg(format!("--uri={}", uri(cluster)))
}

#[test]
fn fio_verifies_what_it_wrote_in_all_sizes() {
    let cluster = cluster();
    let sizes = ["--rw=randwrite", "--bsrange=512-1M", "--blockalign=512", "--size=64M"];
    let verify = ["--verify=crc32c", "--verify_fatal=1", "--do_verify=1"];
    fio(&cluster).args(sizes).args(verify).run().ok();
    cluster.assert_replicas_equal();
    let small = ["--rw=randrw", "--bs=4k", "--size=16M", "--offset=64M", "--fsync=64"];
    fio(&cluster).args(small).args(verify).run().ok();
    cluster.assert_replicas_equal();
}

/// Nobody can say which of two concurrent writes wins, only that it must be the same one on both copies.
#[test]
fn overlapping_writers_leave_equal_copies() {
    let cluster = cluster();
    let jobs = ["--numjobs=2", "--rw=randwrite", "--norandommap", "--size=2M", "--io_size=24M"];
    fio(&cluster).args(jobs).args(["--bsrange=512-128k", "--blockalign=512"]).run().ok();
    cluster.assert_replicas_equal();
    let mut clients = [(); 2].map(|()| cluster.alpha.connect().expect("a client"));
    let mut rng = Rng::new(11);
    for round in 0..200 {
        for (index, client) in clients.iter_mut().enumerate() {
            let (offset, length) = (50 * MIB + rng.below(20_000), 1 + rng.below(90_000) as u32);
            let payload = vec![(2 * round + index) as u8; length as usize];
            client.send(Command::Write, false, offset, length, &payload).expect("send");
        }
        for client in &mut clients {
            assert_eq!(client.receive().expect("an answer").error, None);
        }
    }
    cluster.assert_replicas_equal();
}
