//! Copies that are given up and brought back: declared wrong, restored from an image, moved, swapped, cloned, replaced.

use lockstep_e2e::{Cluster, Ledger, Node, Plan, RESOURCE, seed};
use std::os::unix::fs::FileExt;

const MIB: u64 = 1 << 20;
const SIZE_BYTES: u64 = 64 * MIB;

fn plan() -> Plan {
    Plan { size_bytes: SIZE_BYTES, max_hot_bytes: 32 * MIB, ..Plan::default() }
}

fn ledger(story: &str) -> Ledger {
    Ledger::new(SIZE_BYTES, 4, seed(story))
}

/// Both copies are equal, and hold what the ledger was promised.
#[track_caller]
fn settle(cluster: &Cluster, ledger: &mut Ledger) {
    cluster.assert_replicas_equal();
    ledger.assert_kept(cluster.alpha.disk());
}

/// Somebody writes to a node's data file behind the daemon's back.
fn spoil(node: &Node) {
    let file = std::fs::File::options().write(true).open(node.disk()).expect("the data file");
    for at in (0..SIZE_BYTES).step_by(5 * MIB as usize) {
        file.write_all_at(&[0xee; 512], at).expect("a write");
    }
}

#[test]
fn a_copy_declared_wrong_is_filled_from_the_other() {
    let cluster = Cluster::primary(&plan());
    let ledger = ledger("invalidate").write_some(cluster.alpha.nbd(), 500);
    spoil(&cluster.beta);
    let before = cluster.resynced_bytes();
    cluster.beta.lockstep(&["invalidate", RESOURCE]).ok();
    let mut ledger = ledger.write_some(cluster.alpha.nbd(), 500);
    settle(&cluster, &mut ledger);
    assert!(cluster.resynced_bytes() - before >= SIZE_BYTES, "all of it was looked at");
    // The same, told on the other node.
    spoil(&cluster.beta);
    cluster.alpha.lockstep(&["invalidate", RESOURCE, "--peer"]).ok();
    settle(&cluster, &mut ledger);
}

#[test]
fn a_secondary_alone_is_declared_wrong_and_filled_when_its_peer_returns() {
    let mut cluster = Cluster::primary(&plan());
    let mut ledger = ledger("invalidate alone").write_some(cluster.alpha.nbd(), 500);
    cluster.alpha.kill();
    cluster.beta.wait_connection("Connecting");
    cluster.beta.lockstep(&["invalidate", RESOURCE]).ok();
    cluster.beta.lockstep(&["invalidate", RESOURCE]).ok();
    assert_eq!(cluster.beta.status()["disk"], "Inconsistent");
    spoil(&cluster.beta);
    cluster.beta.promote().refused(17, &["Inconsistent", "--accept-data-loss"]);
    cluster.beta.lose_power();
    cluster.beta.start();
    cluster.alpha.start();
    settle(&cluster, &mut ledger);
}

#[test]
fn the_only_good_copy_is_not_given_up() {
    let mut cluster = Cluster::primary(&plan());
    let invalidate = ["invalidate", RESOURCE];
    let invalidate_peer = ["invalidate", RESOURCE, "--peer"];
    cluster.alpha.lockstep(&invalidate).refused(11, &["alpha is Primary", "lockstep demote r0"]);
    cluster.beta.lockstep(&invalidate_peer).refused(11, &["alpha is Primary", "lockstep demote r0"]);
    cluster.beta.stop();
    cluster.alpha.wait_connection("Connecting");
    cluster.alpha.lockstep(&invalidate_peer).refused(11, &["with beta", "without --peer"]);
    cluster.alpha.demote().ok();
    cluster.alpha.lockstep(&invalidate).refused(11, &["alpha", "only one that is UpToDate", "create-md r0"]);
    cluster.beta.start();
    cluster.wait_synced();
}
