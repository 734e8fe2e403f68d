//! Incremental backup with programs that know nothing of Lockstep: libnbd reads which blocks were written since a
//! checkpoint and copies those alone, QEMU shows the same map, and the backup equals the volume, after a restart, a
//! crash and a failover in between.

use lockstep_e2e::{Cluster, Node, Plan, RESOURCE, Rng, assert_equal, qemu_uri, seed, tool};
use serde_json::Value;
use std::path::Path;

const MIB: u64 = 1 << 20;
const SIZE_BYTES: u64 = 128 * MIB;
const CHECKPOINT: &str = "monday";
const CONTEXT: &str = "x-lockstep:checkpoint:monday";

/// Copies what is marked in a context from an export into a file, and says how many bytes that were.
const COPY_MARKED: &str = r#"
import nbd, sys
uri, context, backup = sys.argv[1:]
h = nbd.NBD()
h.add_meta_context(context)
h.connect_uri(uri)
assert h.can_meta_context(context), "the context is not offered"
marked = []
def extents(name, offset, entries, error):
    if name != context:
        return
    for length, flags in zip(entries[::2], entries[1::2]):
        if flags & 1:
            marked.append((offset, length))
        offset += length
        seen[0] = offset
size, at, seen = h.get_size(), 0, [0]
while at < size:
    h.block_status(size - at, at, extents)
    assert seen[0] > at, "no progress"
    at = seen[0]
with open(backup, "r+b") as file:
    for offset, length in marked:
        while length > 0:
            part = min(length, 1 << 20)
            file.seek(offset)
            file.write(h.pread(part, offset))
            offset, length = offset + part, length - part
print(sum(length for _, length in marked))
"#;

/// Copies what was written since the checkpoint; returns the number of bytes.
fn copy_changed(node: &Node, backup: &Path) -> u64 {
    let uri = qemu_uri(node.nbd(), RESOURCE);
    let said = tool("python3").args(["-c", COPY_MARKED]).arg(uri).arg(CONTEXT).arg(backup).run().ok();
    said.trim().parse().expect("a number of bytes")
}

/// Writes of any size at any place, all within the first half; flushed at the end.
fn write_somewhere(node: &Node, rng: &mut Rng, count: u64) {
    let mut client = node.connect().expect("a client");
    for _ in 0..count {
        let length = 1 + rng.below(200_000);
        let bytes: Vec<u8> = (0..length).map(|_| rng.draw() as u8).collect();
        client.write(rng.below(SIZE_BYTES / 2 - length), &bytes).expect("a write");
    }
    client.flush().expect("a flush");
}

#[test]
fn only_what_changed_is_copied_and_the_backup_is_the_volume() {
    let mut cluster = Cluster::primary(&Plan { size_bytes: SIZE_BYTES, ..Plan::default() });
    let mut rng = Rng::new(seed("incremental"));
    write_somewhere(&cluster.alpha, &mut rng, 40);
    cluster.alpha.lockstep(&["checkpoint", "create", RESOURCE, CHECKPOINT]).ok();
    let backup = cluster.dir().join("backup.img");
    tool("nbdcopy").arg(qemu_uri(cluster.alpha.nbd(), RESOURCE)).arg(&backup).run().ok();
    assert_eq!(copy_changed(&cluster.alpha, &backup), 0, "nothing was written since");

    write_somewhere(&cluster.alpha, &mut rng, 20);
    let copied = copy_changed(&cluster.alpha, &backup);
    assert!(copied > 0 && copied < SIZE_BYTES / 2, "{copied} bytes");
    assert_equal(&backup, cluster.alpha.disk());

    write_somewhere(&cluster.alpha, &mut rng, 5);
    cluster.alpha.kill();
    cluster.alpha.start();
    cluster.alpha.lockstep(&["promote", RESOURCE]).ok();
    write_somewhere(&cluster.alpha, &mut rng, 5);
    copy_changed(&cluster.alpha, &backup);
    assert_equal(&backup, cluster.alpha.disk());

    cluster.wait_synced();
    write_somewhere(&cluster.alpha, &mut rng, 5);
    cluster.alpha.kill();
    cluster.beta.wait_connection("Connecting");
    cluster.beta.lockstep(&["promote", RESOURCE, "--peer-is-down"]).ok();
    write_somewhere(&cluster.beta, &mut rng, 5);
    let copied = copy_changed(&cluster.beta, &backup);
    assert!(copied < SIZE_BYTES, "{copied} bytes");
    assert_equal(&backup, cluster.beta.disk());
}

#[test]
fn qemu_shows_the_same_blocks() {
    let cluster = Cluster::primary(&Plan { size_bytes: SIZE_BYTES, ..Plan::default() });
    cluster.alpha.lockstep(&["checkpoint", "create", RESOURCE, CHECKPOINT]).ok();
    let mut client = cluster.alpha.connect().expect("a client");
    client.write(5 * MIB + 100, &[1; 5000]).expect("a write");
    let options = format!(
        "driver=nbd,export={RESOURCE},server.type=unix,server.path={},x-dirty-bitmap={CONTEXT}",
        cluster.alpha.nbd().display()
    );
    let text = tool("qemu-img").args(["map", "--output=json", "--image-opts"]).arg(options).run().ok();
    let map: Value = serde_json::from_str(&text).expect("qemu-img prints JSON");
    let extents = map.as_array().expect("a list of extents");
    // QEMU shows what is marked as not being data.
    let marked = extents.iter().filter(|extent| extent["data"] == false);
    let marked: Vec<_> = marked.map(|extent| (extent["start"].as_u64(), extent["length"].as_u64())).collect();
    assert_eq!(marked, [(Some(5 * MIB), Some(8192))], "{text}");
}

#[test]
fn a_checkpoint_that_is_gone_is_no_context() {
    let cluster = Cluster::primary(&Plan { size_bytes: SIZE_BYTES, ..Plan::default() });
    let uri = qemu_uri(cluster.alpha.nbd(), RESOURCE);
    let map = || tool("nbdinfo").arg(format!("--map={CONTEXT}")).arg(&uri).run();
    cluster.alpha.lockstep(&["checkpoint", "create", RESOURCE, CHECKPOINT]).ok();
    map().ok();
    cluster.alpha.lockstep(&["checkpoint", "delete", RESOURCE, CHECKPOINT]).ok();
    let refused = map();
    assert_ne!(refused.code, 0, "{refused}");
    assert!(refused.stderr.contains(CONTEXT), "{refused}");
}
