//! Holes: who asks for the status of blocks is told the truth, and copies stay as sparse as what they are made of.

use crate::sample::{MIB, assert_holds};
use lockstep_e2e::{Newer, Plain, Tool, assert_equal, tool};
use serde_json::Value;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const SIZE_BYTES: u64 = 64 * MIB;
/// Offset and length of what is written.
const DATA: [(u64, u64); 3] = [(0, 64 << 10), (20 * MIB, MIB), (SIZE_BYTES - (64 << 10), 64 << 10)];
const DATA_BYTES: u64 = MIB + (128 << 10);
/// A file system may allocate a little more around what is written.
const SLACK_BYTES: u64 = 512 << 10;

/// Three pieces of data, and a piece that was data and was zeroed.
fn sparse() -> Plain {
    let served = Plain::start(SIZE_BYTES, &[]);
    let writes = DATA.map(|(offset, length)| format!("write -P 7 {offset} {length}"));
    let zeroed = ["write -P 9 40M 1M", "flush", "write -z -u 40M 1M", "flush"].map(str::to_string);
    let words = writes.iter().chain(&zeroed).flat_map(|command| ["-c", command]);
    tool("qemu-io").args(["-f", "raw", "-t", "none", "-d", "unmap"]).args(words).arg(served.uri()).run().ok();
    served
}

fn expected() -> Vec<u8> {
    let mut bytes = vec![0; SIZE_BYTES as usize];
    DATA.iter().for_each(|(offset, length)| bytes[*offset as usize..][..*length as usize].fill(7));
    bytes
}

fn allocated_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).expect("a file").blocks() * 512
}

#[track_caller]
fn assert_sparse(path: &Path) {
    let allocated = allocated_bytes(path);
    assert!(allocated <= DATA_BYTES + SLACK_BYTES, "{allocated} bytes are allocated in {}", path.display());
}

/// Extents as offset, length, and whether there is data; they cover the export without a gap.
#[track_caller]
fn assert_true(extents: &[(u64, u64, bool)]) {
    let mut end = 0;
    for (offset, length, _) in extents {
        assert_eq!(*offset, end, "{extents:?}");
        end += length;
    }
    assert_eq!(end, SIZE_BYTES);
    let is_data = |at: u64| {
        extents.iter().any(|(offset, length, data)| *data && (*offset..offset + length).contains(&at))
    };
    for (offset, length) in DATA {
        let shown = (offset..offset + length).step_by(512).all(is_data);
        assert!(shown, "data at {offset} is called a hole: {extents:?}");
    }
    let data: u64 = extents.iter().filter(|(.., data)| *data).map(|(_, length, _)| length).sum();
    assert!(data <= DATA_BYTES + SLACK_BYTES, "holes are called data: {extents:?}");
}

fn json(asked: Tool) -> Vec<Value> {
    let said = asked.run().ok();
    let list: Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
    list.as_array().expect("a list").clone()
}

#[test]
fn maps_show_data_and_holes() {
    let served = sparse();
    let number = |extent: &Value, key: &str| extent[key].as_u64().expect("a number");
    let clients = Newer::clients();
    let inside = "nbd+unix:///?socket=/mnt/nbd.sock";
    let asked = [
        tool("nbdinfo").args(["--map", "--json"]).arg(served.uri()),
        clients.tool(served.dir(), "nbdinfo").args(["--map", "--json", inside]),
    ];
    for asked in asked {
        let extents = json(asked);
        let shown =
            extents.iter().map(|e| (number(e, "offset"), number(e, "length"), number(e, "type") != 3));
        assert_true(&shown.collect::<Vec<_>>());
    }
    let asked = [
        tool("qemu-img").args(["map", "-f", "raw", "--output=json"]).arg(served.uri()),
        clients.tool(served.dir(), "qemu-img").args(["map", "-f", "raw", "--output=json", inside]),
    ];
    for asked in asked {
        let extents = json(asked);
        let shown = extents.iter().map(|e| (number(e, "start"), number(e, "length"), e["data"] == true));
        assert_true(&shown.collect::<Vec<_>>());
    }
    let totals = json(tool("nbdinfo").args(["--map", "--totals", "--json"]).arg(served.uri()));
    let holes: u64 =
        totals.iter().filter(|total| total["type"] == 3).map(|total| number(total, "size")).sum();
    assert!(holes >= SIZE_BYTES - DATA_BYTES - SLACK_BYTES, "{totals:?}");
}

#[test]
fn copies_stay_sparse() {
    let served = sparse();
    assert_holds(&served, &expected());
    assert_sparse(&served.disk());
    let image = served.file("expected.img", &expected());
    let back = served.path("back.img");
    let convert = ["convert", "-f", "raw", "-O", "raw"];
    let ways = [
        tool("nbdcopy").arg(served.uri()).arg(&back),
        // Holes are believed, not looked for.
        tool("nbdcopy").arg("--sparse=0").arg(served.uri()).arg(&back),
        tool("qemu-img").args(convert).args(["-S", "0"]).arg(served.uri()).arg(&back),
        tool("qemu-img").args(convert).arg(served.uri()).arg(&back),
    ];
    for (way, copy) in ways.into_iter().enumerate() {
        drop(std::fs::remove_file(&back));
        copy.run().ok();
        assert_equal(&image, &back);
        // `-S 0` means a full image.
        if way != 2 {
            assert_sparse(&back);
        }
    }
    for options in [&["--destination-is-zero"][..], &[]] {
        let target = Plain::start(SIZE_BYTES, &[]);
        tool("nbdcopy").args(options).arg(served.uri()).arg(target.uri()).run().ok();
        assert_holds(&target, &expected());
        assert_sparse(&target.disk());
    }
    let target = Plain::start(SIZE_BYTES, &[]);
    let convert = tool("qemu-img").args(convert).args(["-n", "-W", "-m", "16"]);
    convert.arg(served.uri()).arg(target.uri()).run().ok();
    assert_holds(&target, &expected());
    assert_sparse(&target.disk());
}
