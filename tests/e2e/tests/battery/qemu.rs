//! QEMU: qemu-img, qemu-io, and its storage daemon between the server and another client.

use crate::sample::{MIB, SIZE_BYTES, assert_holds, sample};
use lockstep_e2e::{Plain, Reexport, assert_equal, tool};
use serde_json::Value;

#[test]
fn qemu_img_converts_out_of_order_and_compares() {
    let bytes = sample(11);
    let served = Plain::start(SIZE_BYTES, &[]);
    let image = served.file("sample.img", &bytes);
    let back = served.path("back.img");
    let convert = || tool("qemu-img").args(["convert", "-f", "raw", "-O", "raw", "-W", "-m", "16"]);
    convert().args(["-n", "-t", "none"]).arg(&image).arg(served.uri()).run().ok();
    assert_holds(&served, &bytes);
    convert().args(["-T", "none"]).arg(served.uri()).arg(&back).run().ok();
    assert_equal(&image, &back);
    let compare = |other: &std::path::Path| {
        tool("qemu-img").args(["compare", "-f", "raw", "-F", "raw"]).arg(served.uri()).arg(other).run()
    };
    compare(&image).ok();
    let mut changed = bytes;
    changed[5 << 20] ^= 1;
    let other = served.file("other.img", &changed);
    assert_eq!(compare(&other).code, 1, "images that differ");
}

/// An image format of its own inside the export: many small writes with dependencies, and its own check.
#[test]
fn a_qcow2_image_inside_the_export_is_sound() {
    let served = Plain::start(SIZE_BYTES, &[]);
    let inside = |command: &str| tool("qemu-img").args([command, "-f", "qcow2"]);
    inside("create")
        .args(["-o", "cluster_size=4096,lazy_refcounts=off"])
        .arg(served.uri())
        .arg("16M")
        .run()
        .ok();
    let write = |at: u64| format!("write -P {} {}k 48k", at % 250 + 1, at * 96);
    let commands: Vec<String> = (0..80).map(write).chain(["discard 1M 2M".into(), "flush".into()]).collect();
    let words = commands.iter().flat_map(|command| ["-c", command]);
    tool("qemu-io").args(["-f", "qcow2", "-t", "writeback"]).args(words).arg(served.uri()).run().ok();
    let said = inside("check").arg("--output=json").arg(served.uri()).run().ok();
    let check: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!((&check["check-errors"], &check["corruptions"]), (&Value::from(0), &Value::Null), "{said}");
    let read = |at: u64| format!("read -P {} {}k 48k", at % 250 + 1, at * 96);
    let commands: Vec<String> = (40..80).map(read).collect();
    let words = commands.iter().flat_map(|command| ["-c", command]);
    let said = tool("qemu-io").args(["-f", "qcow2", "-r"]).args(words).arg(served.uri()).run();
    assert!(!said.stdout.contains("failed"), "{said}");
    said.ok();
}

#[test]
fn qemu_img_bench_writes_flushes_and_reads() {
    let served = Plain::start(SIZE_BYTES, &[]);
    let bench = || {
        tool("qemu-img").args(["bench", "-f", "raw", "-t", "none", "-c", "2000", "-d", "32", "-s", "4096"])
    };
    bench().args(["-w", "--pattern=93", "--flush-interval=50"]).arg(served.uri()).run().ok();
    bench()
        .args(["-w", "--pattern=57", "--flush-interval=32", "--no-drain", "-o", "8M"])
        .arg(served.uri())
        .run()
        .ok();
    bench().arg(served.uri()).run().ok();
    let bytes = std::fs::read(served.disk()).expect("the file");
    let written = 2000 * 4096;
    assert!(bytes[..written].iter().all(|byte| *byte == 93));
    assert!(bytes[8 << 20..][..written].iter().all(|byte| *byte == 57));
}

#[test]
fn qemu_img_measures_and_maps() {
    let served = Plain::holding(&sample(12), &[]);
    let ask = |words: &[&str]| {
        let said = tool("qemu-img").args(words).arg(served.uri()).run().ok();
        serde_json::from_str::<Value>(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
    };
    let measured = ask(&["measure", "-f", "raw", "-O", "qcow2", "--output=json"]);
    assert!(measured["fully-allocated"].as_u64() > Some(SIZE_BYTES), "{measured}");
    let map = ask(&["map", "-f", "raw", "--output=json"]);
    let lengths =
        map.as_array().expect("extents").iter().map(|extent| extent["length"].as_u64().expect("a length"));
    assert_eq!(lengths.sum::<u64>(), SIZE_BYTES, "{map}");
}

#[test]
fn a_storage_daemon_exports_it_again() {
    let bytes = sample(13);
    let served = Plain::start(SIZE_BYTES, &[]);
    let image = served.file("sample.img", &bytes);
    let back = served.path("back.img");
    let again = Reexport::start(served.dir(), &served.socket(), "disk.img");
    let copy = || tool("nbdcopy").args(["--connections=4", "--requests=32"]);
    copy().arg("--flush").arg(&image).arg(again.uri()).run().ok();
    assert_holds(&served, &bytes);
    copy().arg(again.uri()).arg(&back).run().ok();
    assert_equal(&image, &back);
    let commands = ["write -z -u 1M 2M", "write -P 3 1234567 7654", "discard 5M 1M", "flush"];
    let words = commands.iter().flat_map(|command| ["-c", command]);
    tool("qemu-io").args(["-f", "raw", "-t", "none"]).args(words).arg(again.uri()).run().ok();
    let mut expected = bytes;
    expected[MIB as usize..3 << 20].fill(0);
    expected[1_234_567..1_234_567 + 7654].fill(3);
    let bytes = std::fs::read(served.disk()).expect("the file");
    assert!(bytes[..5 << 20] == expected[..5 << 20] && bytes[6 << 20..] == expected[6 << 20..]);
}
