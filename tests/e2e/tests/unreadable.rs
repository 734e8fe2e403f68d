//! The source of a resync cannot read some of its blocks: everything else is copied, both nodes name the blocks, nobody
//! says that the copies are equal, and when the disk can read again the rest follows.

use lockstep_e2e::{Cluster, Fault, FaultyDisk, Node, Plan, RESOURCE, UNREADABLE, run};
use lockstep_nbd::NbdError;
use serde_json::{Value, json};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

const MIB: u64 = 1 << 20;
const SIZE_BYTES: u64 = 64 * MIB;
const WRITTEN_BYTES: u64 = 16 * MIB;
const BLOCK_BYTES: u64 = 4096;

fn resync(status: &Value) -> &Value {
    &status["peers"][0]["resync"]
}

fn wait_incomplete(node: &Node) {
    let status = node.wait_status("an incomplete resync", |status| resync(status)["incomplete"] == true);
    let named = UNREADABLE.map(|offset| json!({ "offset": offset, "length": BLOCK_BYTES }));
    assert_eq!(resync(&status)["unreadable"], json!(named), "{status:#}");
    assert_eq!(resync(&status)["unreadable_bytes"], 2 * BLOCK_BYTES);
    assert_eq!(status["peers"][0]["out_of_sync_bytes"], 2 * BLOCK_BYTES);
    assert_eq!(status["protected"], false);
}

/// What an operator or a script sees on either node.
fn assert_told(cluster: &Cluster) {
    for node in [&cluster.alpha, &cluster.beta] {
        wait_incomplete(node);
        let text = node.lockstep(&["status", RESOURCE]).ok();
        assert!(text.contains("INCOMPLETE: alpha cannot read 8 KiB of its disk, at "), "{text}");
        for offset in UNREADABLE {
            assert!(text.contains(&format!("{offset}+{BLOCK_BYTES}")), "{text}");
        }
        assert!(
            text.contains("-> look at the disk of the source") && text.contains("sync r0 --resume"),
            "{text}"
        );
        node.lockstep(&["wait", RESOURCE, "--for", "synced", "-t", "200ms"]).refused(20, &["is not synced"]);
        node.lockstep(&["wait", RESOURCE, "--for", "connected", "-t", "5s"]).ok();
    }
    cluster
        .beta
        .lockstep(&["wait", RESOURCE, "--for", "uptodate", "-t", "200ms"])
        .refused(20, &["Inconsistent"]);
    cluster.alpha.lockstep(&["wait", RESOURCE, "--for", "uptodate", "-t", "5s"]).ok();
}

/// All blocks but those are equal.
fn assert_rest_is_equal(source: &Path, target: &Path) {
    let [source, target] = [source, target].map(|path| File::open(path).expect("a data file"));
    for offset in (0..SIZE_BYTES).step_by(BLOCK_BYTES as usize) {
        let mut blocks = [[0; BLOCK_BYTES as usize]; 2];
        source.read_exact_at(&mut blocks[0], offset).expect("read the source");
        target.read_exact_at(&mut blocks[1], offset).expect("read the target");
        assert_eq!(blocks[0] != blocks[1], UNREADABLE.contains(&offset), "the block at {offset}");
    }
}

#[test]
fn blocks_that_the_source_cannot_read_are_named_and_follow_when_it_can() {
    let plan = Plan { size_bytes: SIZE_BYTES, max_hot_bytes: 32 * MIB, ..Plan::default() };
    let mut cluster = Cluster::new(&plan);
    let dir = cluster.dir().join("faulty");
    let mut disk = FaultyDisk::new(&dir, cluster.alpha.disk(), SIZE_BYTES, Fault::Reads);
    cluster.begin();
    cluster.beta.stop();
    let mut client = cluster.alpha.connect().expect("a client");
    for at in (0..WRITTEN_BYTES).step_by(MIB as usize) {
        client.write(at, &vec![(at / MIB) as u8 + 1; MIB as usize]).expect("a write");
    }
    disk.fail();
    cluster.beta.start();
    assert_told(&cluster);
    assert_rest_is_equal(&disk.image(), cluster.beta.disk());
    // Clients of the source go on; what no copy can read is an error, and nothing else is.
    for offset in UNREADABLE {
        let asked = client.send(lockstep_nbd::Command::Read, false, offset, 512, &[]).expect("send a read");
        let answer = client.receive().expect("an answer");
        assert_eq!((answer.cookie, answer.error), (asked, Some(NbdError::Io)));
        assert_eq!(client.read(offset + BLOCK_BYTES, 4096).expect("the next block").len(), 4096);
    }
    client.write(40 * MIB, &[9; 8192]).expect("a write");
    // As unreadable as before.
    cluster.beta.lockstep(&["sync", RESOURCE, "--resume"]).ok();
    assert_told(&cluster);
    assert_rest_is_equal(&disk.image(), cluster.beta.disk());
    disk.mend();
    cluster.alpha.lockstep(&["sync", RESOURCE, "--resume"]).ok();
    cluster.assert_replicas_equal();
    for node in [&cluster.alpha, &cluster.beta] {
        node.lockstep(&["wait", RESOURCE, "--for", "synced"]).ok();
        assert!(!node.lockstep(&["status", RESOURCE]).ok().contains("INCOMPLETE"));
    }
    run(Command::new("cmp").arg(disk.image()).arg(cluster.beta.disk())).ok();
    assert_eq!(client.read(UNREADABLE[0], 1).expect("a read"), [2]);
}
