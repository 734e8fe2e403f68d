//! The operator stories of the design, one after the other: what is typed, what is refused with which words,
//! and that nothing is copied where nothing is due. Planned moves and the rest of what two nodes can do to
//! each other are in `moves.rs`.
//!
//! A power loss is a kill -9 and another boot id: the daemon sees a machine that was down, but what the
//! kernel had cached is not lost. What a disk loses is the simulator's part.

use lockstep_e2e::{Cluster, Ledger, Plan, RESOURCE, seed};
use std::os::unix::fs::FileExt;

const MIB: u64 = 1 << 20;
const SIZE_BYTES: u64 = 128 * MIB;
const MAX_HOT_BYTES: u64 = 32 * MIB;
/// Bytes per second of a wire on which a resync can be watched.
const SLOW: u64 = 24 * MIB;

fn plan() -> Plan {
    Plan { size_bytes: SIZE_BYTES, max_hot_bytes: MAX_HOT_BYTES, ..Plan::default() }
}

fn ledger(story: &str) -> Ledger {
    Ledger::new(SIZE_BYTES, 4, seed(story))
}

fn flagged(flag: &str) -> [&str; 3] {
    ["promote", RESOURCE, flag]
}

/// Both copies are equal, and hold what the ledger was promised.
#[track_caller]
fn settle(cluster: &Cluster, ledger: &mut Ledger) {
    cluster.assert_replicas_equal();
    ledger.assert_kept(cluster.alpha.disk());
}

#[test]
fn a_fresh_side_is_promoted_before_the_other_exists() {
    let mut cluster = Cluster::new(&plan());
    cluster.alpha.lockstep(&["create-md", RESOURCE, "--source"]).ok();
    cluster.alpha.start();
    cluster.alpha.promote().ok();
    let mut ledger = ledger("fresh").write_some(cluster.alpha.nbd(), 3000);
    cluster.beta.lockstep(&["create-md", RESOURCE]).ok();
    cluster.beta.start();
    settle(&cluster, &mut ledger);
}

#[test]
fn without_a_source_nobody_is_promoted() {
    let mut cluster = Cluster::new(&plan());
    for node in cluster.nodes() {
        node.lockstep(&["create-md", RESOURCE]).ok();
        node.start();
    }
    cluster.alpha.wait_replication("NoSource");
    for node in cluster.nodes() {
        node.promote().refused(17, &["create-md r0 --source"]);
    }
    cluster.alpha.lockstep(&["down", RESOURCE]).ok();
    cluster.alpha.lockstep(&["create-md", RESOURCE, "--source", "--overwrite"]).ok();
    cluster.alpha.lockstep(&["up", RESOURCE]).ok();
    cluster.assert_replicas_equal();
    cluster.alpha.promote().ok();
}

#[test]
fn two_disks_that_are_declared_equal_and_are_not_stand_still_until_one_is_the_source() {
    let mut cluster = Cluster::new(&plan());
    for node in cluster.nodes() {
        node.lockstep(&["create-md", RESOURCE, "--clean"]).ok();
    }
    // The first block is one of those that are compared.
    let disk = std::fs::File::options().write(true).open(cluster.beta.disk()).expect("open a disk");
    disk.write_all_at(&[7; 512], 0).expect("write to a disk");
    for node in cluster.nodes() {
        node.start();
    }
    for node in cluster.nodes() {
        node.wait_replication("NoSource");
    }
    cluster.alpha.promote().refused(17, &["create-md r0 --source"]);
    cluster.beta.lockstep(&["down", RESOURCE]).ok();
    cluster.beta.lockstep(&["create-md", RESOURCE, "--source", "--overwrite"]).ok();
    cluster.beta.lockstep(&["up", RESOURCE]).ok();
    cluster.assert_replicas_equal();
    cluster.alpha.promote().ok();
    assert_eq!(cluster.alpha.connect().expect("a client").read(0, 512).expect("a read"), [7; 512]);
}

/// Secondary stopped, Primary wrote on and stopped.
fn stopped_one_after_the_other(story: &str) -> (Cluster, Ledger) {
    let mut cluster = Cluster::primary(&plan());
    let ledger = ledger(story).write_some(cluster.alpha.nbd(), 1000);
    cluster.beta.stop();
    let ledger = ledger.write_some(cluster.alpha.nbd(), 1000);
    cluster.alpha.stop();
    (cluster, ledger)
}

#[test]
fn stopped_one_after_the_other_and_both_return() {
    let (mut cluster, mut ledger) = stopped_one_after_the_other("both return");
    cluster.beta.start();
    cluster.alpha.start();
    cluster.wait_synced();
    cluster.alpha.promote().ok();
    settle(&cluster, &mut ledger);
    assert!(cluster.resynced_bytes() < SIZE_BYTES / 2, "bitmap only");
}

#[test]
fn stopped_one_after_the_other_and_the_last_returns() {
    let (mut cluster, ledger) = stopped_one_after_the_other("last returns");
    cluster.alpha.start();
    cluster.alpha.promote().ok();
    let mut ledger = ledger.write_some(cluster.alpha.nbd(), 500);
    cluster.beta.start();
    settle(&cluster, &mut ledger);
}

#[test]
fn stopped_one_after_the_other_and_the_first_leaver_returns_alone() {
    let (mut cluster, _) = stopped_one_after_the_other("first leaver");
    cluster.beta.start();
    cluster.beta.promote().refused(17, &["Outdated", "lockstep promote r0 --accept-data-loss"]);
    cluster.beta.lockstep(&flagged("--peer-is-down")).refused(17, &["--accept-data-loss"]);
    cluster.beta.lockstep(&flagged("--accept-data-loss")).ok();
    let mut client = cluster.beta.connect().expect("a client of the promoted copy");
    client.write(0, &[1; 4096]).expect("a write");
    // The copy that stopped last has what was given up: this is no matter for a machine.
    cluster.alpha.start();
    cluster.alpha.wait_replication("SplitBrain");
    cluster.beta.wait_replication("SplitBrain");
}

/// Stops both nodes at once.
fn stop_both(cluster: &mut Cluster) {
    for node in cluster.nodes() {
        node.terminate();
    }
    for node in cluster.nodes() {
        node.wait_stopped();
    }
}

#[test]
fn stopped_at_once_and_the_one_that_stayed_returns() {
    let mut cluster = Cluster::primary(&plan());
    let mut ledger = ledger("at once").write_some(cluster.alpha.nbd(), 1000);
    stop_both(&mut cluster);
    // One asked to leave and the other agreed; who, depends on which daemon heard its signal first.
    let mut stayed = 0;
    for node in cluster.nodes() {
        node.start();
        if node.status()["disk"] == "UpToDate" {
            node.promote().ok();
            stayed += 1;
            break;
        }
        node.promote().refused(17, &["Outdated", "--accept-data-loss"]);
        node.stop();
    }
    assert_eq!(stayed, 1, "nobody stayed");
    for node in cluster.nodes() {
        if !node.is_running() {
            node.start();
        }
    }
    settle(&cluster, &mut ledger);
}

#[test]
fn stopped_at_once_and_both_return() {
    let mut cluster = Cluster::primary(&plan());
    let mut ledger = ledger("at once, both").write_some(cluster.alpha.nbd(), 1000);
    // What no flush has covered is resynced if both leave before either has heard of the other.
    cluster.alpha.connect().expect("a client").flush().expect("flush");
    stop_both(&mut cluster);
    for node in cluster.nodes() {
        node.start();
    }
    cluster.wait_synced();
    assert_eq!(cluster.resynced_bytes(), 0, "nothing was written since both were equal");
    cluster.beta.promote().ok();
    settle(&cluster, &mut ledger);
}

#[test]
fn a_killed_primary_returns_before_anybody_is_promoted() {
    let mut cluster = Cluster::primary(&plan());
    let load = ledger("killed Primary").start(cluster.alpha.nbd(), 8);
    load.wait_acked(2000);
    let before = cluster.beta.resynced_bytes();
    cluster.alpha.kill();
    cluster.alpha.start();
    cluster.wait_synced();
    cluster.alpha.promote().ok();
    load.wait_acked(1000);
    let mut ledger = load.stop();
    settle(&cluster, &mut ledger);
    let resynced = cluster.beta.resynced_bytes() - before;
    assert!(resynced <= MAX_HOT_BYTES, "{resynced} bytes: more than the hot regions");
}

#[test]
fn a_secondary_restarts_cleanly_as_often_as_it_likes() {
    let mut cluster = Cluster::primary(&plan());
    let load = ledger("restarted Secondary").start(cluster.alpha.nbd(), 4);
    load.wait_acked(1000);
    for _ in 0..2 {
        let (before, sent) = (cluster.alpha.resynced_bytes(), load.acked_bytes());
        cluster.beta.stop();
        load.wait_acked(500);
        cluster.beta.start();
        cluster.wait_synced();
        let resynced = cluster.alpha.resynced_bytes() - before;
        let written = load.acked_bytes() - sent;
        assert!(resynced > 0 && resynced * 10 <= written * 12, "{resynced} bytes for {written} written");
    }
    assert_eq!(load.interruptions(), 0, "clients of the Primary noticed");
    let mut ledger = load.stop();
    settle(&cluster, &mut ledger);
}

#[test]
fn a_secondary_restarts_in_the_middle_of_a_resync() {
    let mut cluster = Cluster::primary(&plan());
    cluster.beta.stop();
    let mut client = cluster.alpha.connect().expect("a client");
    for chunk in 0..96 {
        client.write(chunk * MIB, &vec![chunk as u8 + 1; MIB as usize]).expect("a write");
    }
    let before = cluster.alpha.resynced_bytes();
    cluster.proxy.slow_down(SLOW);
    cluster.beta.start();
    let some = |done: u64| {
        move |status: &serde_json::Value| {
            status["peers"][0]["resynced_bytes_total"].as_u64().is_some_and(|bytes| bytes >= done)
                || status["peers"][0]["resync"]["done_bytes"].as_u64().is_some_and(|bytes| bytes > 0)
        }
    };
    cluster.alpha.wait_status("a resync under way", some(before + 1));
    cluster.beta.stop();
    cluster.alpha.wait_connection("Connecting");
    let between = cluster.alpha.resynced_bytes() - before;
    assert!(between < 96 * MIB, "the resync was over too soon for this test");
    cluster.proxy.heal();
    cluster.beta.start();
    cluster.assert_replicas_equal();
    let resynced = cluster.alpha.resynced_bytes() - before;
    assert!((96 * MIB..=116 * MIB).contains(&resynced), "{resynced} bytes for 96 MiB");
}

#[test]
fn a_node_is_away_for_a_day() {
    let mut cluster = Cluster::primary(&plan());
    let ledger = ledger("a day").write_some(cluster.alpha.nbd(), 1000);
    cluster.alpha.demote_idle();
    cluster.alpha.stop();
    cluster.beta.promote().ok();
    let load = ledger.start(cluster.beta.nbd(), 8);
    load.wait_acked(1000);
    let written = load.acked_bytes();
    let mut ledger = load.stop();
    cluster.alpha.start();
    settle(&cluster, &mut ledger);
    let resynced = cluster.beta.resynced_bytes();
    assert!(resynced > 0 && resynced * 10 <= written * 12, "{resynced} bytes for {written} written");
    assert_eq!(cluster.beta.status()["role"], "Primary");
}

#[test]
fn the_primary_dies_and_the_survivor_is_promoted_by_hand() {
    let mut cluster = Cluster::primary(&plan());
    let load = ledger("survivor").start(cluster.alpha.nbd(), 8);
    load.wait_acked(2000);
    cluster.alpha.kill();
    cluster.beta.wait_connection("Connecting");
    cluster.beta.promote().refused(17, &["may be Primary", "lockstep promote r0 --peer-is-down"]);
    cluster.beta.lockstep(&flagged("--peer-is-down")).ok();
    load.retarget(cluster.beta.nbd());
    load.wait_acked(1000);
    cluster.alpha.start();
    cluster.wait_synced();
    let mut ledger = load.stop();
    settle(&cluster, &mut ledger);
    assert_eq!(cluster.alpha.status()["role"], "Secondary");
}

#[test]
fn both_lose_power_and_both_return() {
    let mut cluster = Cluster::primary(&plan());
    let load = ledger("both return from power loss").start(cluster.alpha.nbd(), 8);
    load.wait_acked(2000);
    cluster.lose_power();
    cluster.beta.start();
    cluster.alpha.start();
    cluster.wait_synced();
    cluster.beta.promote().ok();
    load.retarget(cluster.beta.nbd());
    load.wait_acked(500);
    let mut ledger = load.stop();
    settle(&cluster, &mut ledger);
    assert!(cluster.resynced_bytes() <= MAX_HOT_BYTES + 16 * MIB, "hot regions only");
}

#[test]
fn both_lose_power_and_one_returns() {
    let mut cluster = Cluster::primary(&plan());
    let load = ledger("one returns from power loss").start(cluster.alpha.nbd(), 8);
    load.wait_acked(2000);
    cluster.lose_power();
    cluster.beta.start();
    cluster.beta.promote().refused(17, &["uncleanly", "lockstep promote r0 --accept-data-loss"]);
    cluster.beta.lockstep(&flagged("--peer-is-down")).refused(17, &["--accept-data-loss"]);
    cluster.beta.lockstep(&flagged("--accept-data-loss")).ok();
    load.retarget(cluster.beta.nbd());
    load.wait_acked(1000);
    // The other copy stopped as uncleanly as this one: it is no better, and becomes the target.
    cluster.alpha.start();
    cluster.wait_synced();
    let mut ledger = load.stop();
    settle(&cluster, &mut ledger);
}

#[test]
fn a_degraded_primary_loses_power_and_returns_alone() {
    let mut cluster = Cluster::primary(&plan());
    let load = ledger("degraded").start(cluster.alpha.nbd(), 8);
    load.wait_acked(500);
    cluster.beta.stop();
    load.wait_acked(1000);
    cluster.alpha.lose_power();
    cluster.alpha.start();
    cluster.alpha.promote().ok();
    load.wait_acked(500);
    cluster.beta.start();
    cluster.wait_synced();
    let mut ledger = load.stop();
    settle(&cluster, &mut ledger);
    assert!(cluster.resynced_bytes() < SIZE_BYTES, "no full sync");
}

#[test]
fn the_source_stops_during_the_first_sync() {
    let mut cluster = Cluster::new(&plan());
    let mut image = vec![0; SIZE_BYTES as usize];
    for (index, block) in image.chunks_mut(4096).enumerate() {
        block.fill(index as u8 | 1);
    }
    std::fs::write(cluster.alpha.disk(), image).expect("write the source");
    cluster.alpha.lockstep(&["create-md", RESOURCE, "--source"]).ok();
    cluster.beta.lockstep(&["create-md", RESOURCE]).ok();
    cluster.proxy.slow_down(SLOW);
    cluster.beta.start();
    cluster.alpha.start();
    // Some of it must be durable on both sides, which is counted in batches.
    let done = cluster.beta.wait_status("half of the first sync", |status| {
        status["peers"][0]["resynced_bytes_total"].as_u64().is_some_and(|bytes| bytes >= SIZE_BYTES / 2)
    });
    assert_eq!(done["disk"], "Inconsistent");
    cluster.alpha.stop();
    cluster.proxy.heal();
    cluster.alpha.start();
    cluster.alpha.promote().ok();
    cluster.assert_replicas_equal();
    let resynced = cluster.beta.resynced_bytes();
    assert!(resynced <= SIZE_BYTES + SIZE_BYTES / 10, "{resynced} bytes: the sync began anew");
}

#[test]
fn the_link_flaps_while_the_primary_is_the_target() {
    let mut cluster = Cluster::primary(&plan());
    let ledger = ledger("flapping");
    cluster.beta.stop();
    let load = ledger.start(cluster.alpha.nbd(), 8);
    load.wait_acked(15_000);
    let ledger = load.stop();
    cluster.alpha.demote_idle();
    cluster.proxy.slow_down(SLOW / 4);
    cluster.beta.start();
    cluster.beta.wait_replication("SyncTarget");
    cluster.beta.promote().ok();
    let load = ledger.start(cluster.beta.nbd(), 4);
    for _ in 0..3 {
        load.wait_acked(50);
        assert_eq!(
            cluster.beta.status()["disk"],
            "Inconsistent",
            "the resync was over too soon for this test"
        );
        cluster.proxy.reset();
        cluster.beta.wait_replication("SyncTarget");
    }
    cluster.proxy.heal();
    cluster.wait_synced();
    load.wait_acked(100);
    assert_eq!(load.interruptions(), 0, "I/O must be held, not failed");
    let mut ledger = load.stop();
    settle(&cluster, &mut ledger);
}
