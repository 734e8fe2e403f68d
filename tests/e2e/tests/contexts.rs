//! Block status as programs that others wrote see it: holes where the copy that serves reads has some, and what the
//! peer misses, while it is away and while it is brought up to date.

use lockstep_e2e::{Cluster, Plan, RESOURCE, qemu_uri, tool, wait_for};
use lockstep_nbd::Command;
use serde_json::Value;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const SIZE_BYTES: u64 = 64 * MIB;
const OUT_OF_SYNC: &str = "x-lockstep:out-of-sync";
const LIMIT: Duration = Duration::from_secs(30);

fn cluster() -> Cluster {
    Cluster::primary(&Plan { size_bytes: SIZE_BYTES, ..Plan::default() })
}

/// Offset, length and flags of each extent, as nbdinfo prints them.
fn map(cluster: &Cluster, context: &str) -> Vec<(u64, u64, u64)> {
    let uri = qemu_uri(cluster.alpha.nbd(), RESOURCE);
    let text = tool("nbdinfo").arg(format!("--map={context}")).args(["--json"]).arg(uri).run().ok();
    let extents: Value = serde_json::from_str(&text).expect("nbdinfo prints JSON");
    let number = |extent: &Value, field: &str| extent[field].as_u64().expect("a number");
    let extents = extents.as_array().expect("a list of extents");
    extents.iter().map(|e| (number(e, "offset"), number(e, "length"), number(e, "type"))).collect()
}

fn write(cluster: &Cluster, offset: u64, mib: u64) {
    let mut client = cluster.alpha.connect().expect("a client");
    (0..mib).for_each(|n| client.write(offset + n * MIB, &vec![7; MIB as usize]).expect("a write"));
    client.flush().expect("a flush");
}

#[test]
fn what_the_peer_misses_is_shown_until_it_has_it() {
    let mut cluster = cluster();
    write(&cluster, 40 * MIB, 1);
    let in_sync = [(0, SIZE_BYTES, 0)];
    assert_eq!(map(&cluster, OUT_OF_SYNC), in_sync, "on both copies, and flushed");
    cluster.beta.stop();
    write(&cluster, 10 * MIB, 48);
    let (first, last) = (10 * MIB, 58 * MIB);
    let missing = [(0, first, 0), (first, last - first, 1), (last, SIZE_BYTES - last, 0)];
    assert_eq!(map(&cluster, OUT_OF_SYNC), missing);
    cluster.alpha.lockstep(&["sync", RESOURCE, "--pause"]).ok();
    cluster.beta.start();
    // What was asked for before the pause was heard is copied; the rest waits.
    wait_for("a resync that waits", LIMIT, || {
        let map = map(&cluster, OUT_OF_SYNC);
        let left: u64 = map.iter().filter(|(.., flags)| *flags == 3).map(|(_, length, _)| length).sum();
        let is_within =
            map.iter().all(|(at, length, flags)| *flags == 0 || (first <= *at && at + length <= last));
        if left > 0 && is_within { Ok(()) } else { Err(format!("{map:?}")) }
    });
    cluster.alpha.lockstep(&["sync", RESOURCE, "--resume"]).ok();
    cluster.wait_synced();
    assert_eq!(map(&cluster, OUT_OF_SYNC), in_sync);
}

#[test]
fn holes_are_told_of_the_copy_that_is_read() {
    let cluster = cluster();
    write(&cluster, 16 * MIB, 2);
    let mut client = cluster.alpha.connect().expect("a client");
    client.send(Command::Trim, false, 17 * MIB, MIB as u32, &[]).expect("a trim");
    assert_eq!(client.receive().expect("an answer").error, None);
    client.write(SIZE_BYTES - 1, b"e").expect("a write");
    drop(client);
    let last = SIZE_BYTES - 4096;
    let holes = [(0, 16 * MIB, 3), (16 * MIB, MIB, 0), (17 * MIB, last - 17 * MIB, 3), (last, 4096, 0)];
    assert_eq!(map(&cluster, "base:allocation"), holes);
    // A Primary whose own copy is to be written anew says nothing of it.
    for words in [&["demote", RESOURCE][..], &["sync", RESOURCE, "--pause"], &["invalidate", RESOURCE]] {
        cluster.alpha.lockstep(words).ok();
    }
    cluster.alpha.lockstep(&["wait", RESOURCE, "--for", "connected"]).ok();
    cluster.alpha.lockstep(&["promote", RESOURCE]).ok();
    assert_eq!(map(&cluster, "base:allocation"), [(0, SIZE_BYTES, 0)]);
    cluster.alpha.lockstep(&["sync", RESOURCE, "--resume"]).ok();
    cluster.assert_replicas_equal();
    assert_eq!(map(&cluster, "base:allocation"), holes);
}

#[test]
fn contexts_are_listed_and_the_copies_described() {
    let cluster = cluster();
    let uri = qemu_uri(cluster.alpha.nbd(), RESOURCE);
    let text = tool("nbdinfo").arg("--json").arg(uri).run().ok();
    let info: Value = serde_json::from_str(&text).expect("nbdinfo prints JSON");
    let export = &info["exports"][0];
    assert_eq!(export["contexts"], serde_json::json!(["base:allocation", OUT_OF_SYNC]));
    assert_eq!(export["description"], "r0 on alpha: Primary, UpToDate; beta: Connected, Established");
}
