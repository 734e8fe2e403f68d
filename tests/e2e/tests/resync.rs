//! Resync as an operator sees it: only what is dirty is looked at, only what differs travels, what is zero stays a
//! hole, and it can be paused, limited and let go on from either node. With and without load the copies are equal.

use lockstep_e2e::{Cluster, Direction, Ledger, Plan, RESOURCE, seed};
use lockstep_nbd::Command;
use serde_json::Value;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const SIZE_BYTES: u64 = 256 * MIB;
/// Written before the peer left and perhaps not durable there: one epoch and its flush.
const UNDURABLE: Duration = Duration::from_millis(1500);

fn plan() -> Plan {
    Plan { size_bytes: SIZE_BYTES, ..Plan::default() }
}

fn pattern(fill: u8) -> Vec<u8> {
    (0..MIB as usize).map(|at| fill ^ (at / 4096) as u8 ^ at as u8 | 1).collect()
}

/// Writes so many MiB, spread evenly over the volume.
fn write_spread(cluster: &Cluster, mib: u64, fill: u8) {
    let mut client = cluster.alpha.connect().expect("a client");
    let bytes = pattern(fill);
    for index in 0..mib {
        let offset = index * SIZE_BYTES / mib / MIB * MIB;
        client.write(offset, &bytes).expect("a write");
    }
}

fn allocated_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).expect("a data file").blocks() * 512
}

fn resync_of(status: &Value) -> &Value {
    &status["peers"][0]["resync"]
}

/// Beta away, so much of the volume written, beta back: exactly that is brought into line.
fn away_and_back(mib: u64) {
    let mut cluster = Cluster::primary(&plan());
    cluster.beta.stop();
    write_spread(&cluster, mib, 7);
    let (before, missing) =
        (cluster.alpha.resynced_bytes(), cluster.alpha.peer()["out_of_sync_bytes"].clone());
    assert_eq!(missing, mib * MIB);
    cluster.beta.start();
    cluster.assert_replicas_equal();
    assert_eq!(cluster.alpha.resynced_bytes() - before, mib * MIB);
    assert_eq!(cluster.beta.resynced_bytes(), mib * MIB);
}

#[test]
fn one_percent_is_dirty() {
    away_and_back(SIZE_BYTES / MIB / 100);
}

#[test]
fn a_tenth_is_dirty() {
    away_and_back(SIZE_BYTES / MIB / 10);
}

#[test]
fn everything_is_dirty() {
    away_and_back(SIZE_BYTES / MIB);
}

#[test]
fn under_load_what_is_dirty_is_copied_and_nothing_is_lost() {
    let mut cluster = Cluster::primary(&plan());
    let load = Ledger::new(SIZE_BYTES, 2, seed("resync under load")).start(cluster.alpha.nbd(), 4);
    load.wait_acked(500);
    let began = Instant::now();
    cluster.beta.stop();
    load.wait_acked(load.acked() + 2000);
    let before = cluster.alpha.resynced_bytes();
    cluster.beta.start();
    cluster.wait_synced();
    let copied = cluster.alpha.resynced_bytes() - before;
    let sent = load.sent_bytes(began - UNDURABLE, Instant::now());
    load.wait_acked(load.acked() + 500);
    let mut ledger = load.stop();
    cluster.assert_replicas_equal();
    ledger.assert_kept(cluster.beta.disk());
    assert!(copied > 0 && copied <= sent, "{copied} bytes, while {sent} were written");
}

#[test]
fn a_sparse_source_stays_sparse_at_the_target() {
    let mut cluster = Cluster::new(&plan());
    cluster.alpha.lockstep(&["create-md", RESOURCE, "--source"]).ok();
    cluster.beta.lockstep(&["create-md", RESOURCE]).ok();
    for node in cluster.nodes() {
        node.start();
    }
    cluster.alpha.promote().ok();
    cluster.assert_replicas_equal();
    assert!(allocated_bytes(cluster.beta.disk()) <= 4 * MIB, "the first sync of holes allocates nothing");
    write_spread(&cluster, 16, 3);
    // What is trimmed while the peer is away is a hole there afterwards.
    cluster.beta.stop();
    let mut client = cluster.alpha.connect().expect("a client");
    client.send(Command::Trim, false, 0, 128 * MIB as u32, &[]).expect("a trim");
    assert!(client.receive().expect("its answer").error.is_none());
    drop(client);
    let before = cluster.alpha.resynced_bytes();
    cluster.beta.start();
    cluster.assert_replicas_equal();
    assert!(cluster.alpha.resynced_bytes() - before >= 128 * MIB);
    let held = allocated_bytes(cluster.beta.disk());
    assert!((8 * MIB..=12 * MIB).contains(&held), "{held} bytes are allocated for 8 MiB of data");
}

#[test]
fn equal_blocks_do_not_travel() {
    let mut cluster = Cluster::new(&plan());
    for node in [&cluster.alpha, &cluster.beta] {
        let path = node.disk();
        let file = std::fs::File::create(path).expect("a data file");
        file.set_len(SIZE_BYTES).expect("its size");
        std::os::unix::fs::FileExt::write_all_at(&file, &pattern(9).repeat(32), 0).expect("its content");
    }
    let file = std::fs::File::options().write(true).open(cluster.beta.disk()).expect("the target");
    std::os::unix::fs::FileExt::write_all_at(&file, &[1; 8192], 5 * MIB).expect("a difference");
    cluster.alpha.lockstep(&["create-md", RESOURCE, "--source"]).ok();
    cluster.beta.lockstep(&["create-md", RESOURCE, "--overwrite"]).ok();
    for node in cluster.nodes() {
        node.start();
    }
    cluster.assert_replicas_equal();
    // A request with its digests is some hundred bytes for each 128 KiB.
    let passed =
        [Direction::ToBeta, Direction::ToAlpha].map(|direction| cluster.proxy.passed_bytes(direction));
    assert!(passed.iter().sum::<u64>() < 3 * MIB, "{passed:?} bytes on the wire for 8 KiB that differ");
}

#[test]
fn it_is_paused_limited_and_resumed_from_either_node() {
    let mut cluster = Cluster::primary(&plan());
    cluster.beta.stop();
    write_spread(&cluster, SIZE_BYTES / MIB, 5);
    cluster.alpha.lockstep(&["sync", RESOURCE, "--pause"]).ok();
    let again = cluster.alpha.lockstep(&["sync", RESOURCE, "--pause", "--json"]).ok();
    assert!(again.contains("already"), "{again}");
    cluster.beta.start();
    cluster.beta.wait_replication("PausedTarget");
    cluster.alpha.wait_replication("PausedSource");
    let status = cluster.beta.status();
    assert_eq!(resync_of(&status)["eta_s"], Value::Null);
    assert_eq!(resync_of(&status)["paused_by_peer"], true);
    let text = cluster.beta.lockstep(&["status", RESOURCE]).ok();
    assert!(text.contains("on alpha: lockstep sync r0 --resume"), "{text}");
    // Writes go to both copies all the same, and a limit holds from the first byte on.
    cluster.beta.lockstep(&["sync", RESOURCE, "--rate", "4MiB"]).ok();
    write_spread(&cluster, 4, 6);
    cluster.alpha.lockstep(&["sync", RESOURCE, "--resume"]).ok();
    let status = cluster.alpha.wait_status("a rate and an estimate", |status| {
        resync_of(status)["eta_s"].is_u64() && resync_of(status)["rate"].as_u64() > Some(0)
    });
    assert!(resync_of(&status)["limit"].as_u64().is_some_and(|limit| limit <= 4 * MIB), "{status:#}");
    assert!(resync_of(&status)["done_bytes"].as_u64() < Some(SIZE_BYTES / 2), "{status:#}");
    assert!(cluster.beta.lockstep(&["status", RESOURCE]).ok().contains("limited here to 4 MiB/s"));
    // Paused at the target, over a lost link.
    cluster.beta.lockstep(&["sync", RESOURCE, "--pause"]).ok();
    cluster.alpha.wait_replication("PausedSource");
    cluster.proxy.cut();
    cluster.alpha.wait_connection("Connecting");
    cluster.proxy.heal();
    cluster.alpha.wait_replication("PausedSource");
    cluster.beta.lockstep(&["sync", RESOURCE, "--rate", "max"]).ok();
    cluster.beta.lockstep(&["sync", RESOURCE, "--min-rate", "1GiB"]).ok();
    assert_eq!(cluster.beta.status()["sync_min_rate"], 1024 * MIB);
    assert!(cluster.beta.lockstep(&["status", RESOURCE]).ok().contains("resync gets 1 GiB/s at least"));
    cluster.beta.lockstep(&["sync", RESOURCE, "--resume"]).ok();
    cluster.assert_replicas_equal();
    assert_eq!(cluster.alpha.status()["sync_paused"], false);
}
