//! Copies that are given up and brought back: declared wrong, restored from an image, moved, swapped, cloned, replaced.

use lockstep_e2e::{Backup, Cluster, Ledger, Node, Plan, RESOURCE, seed};
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

/// Runs without its disk, and says why with these words.
#[track_caller]
fn without_disk(node: &Node, words: &[&str]) {
    let status = node.wait_status("no disk", |status| status["disk"] == "Diskless");
    let error = status["error"].as_str().expect("a reason");
    for word in words {
        assert!(error.contains(word), "{error}: lacks {word}");
    }
}

#[test]
fn a_disk_that_was_moved_is_compared_as_a_whole() {
    let mut cluster = Cluster::primary(&plan());
    let ledger = ledger("moved").write_some(cluster.alpha.nbd(), 500);
    cluster.beta.stop();
    let ledger = ledger.write_some(cluster.alpha.nbd(), 100);
    // The same bytes in another file: so does a device look that was copied to another one.
    let old = cluster.beta.disk().with_extension("old");
    std::fs::rename(cluster.beta.disk(), &old).expect("rename");
    std::fs::copy(&old, cluster.beta.disk()).expect("copy");
    spoil(&cluster.beta);
    cluster.beta.start();
    without_disk(&cluster.beta, &["is not the disk", "expected", "found", "lockstep attach r0 --moved"]);
    cluster.beta.lockstep(&["attach", RESOURCE]).refused(11, &["lockstep attach r0 --moved"]);
    cluster.beta.lockstep(&["attach", RESOURCE, "--moved"]).ok();
    let mut ledger = ledger.write_some(cluster.alpha.nbd(), 100);
    settle(&cluster, &mut ledger);
    assert!(cluster.resynced_bytes() >= SIZE_BYTES, "all of it was looked at");
    cluster.beta.lockstep(&["attach", RESOURCE, "--moved"]).ok();
    // It is known from now on.
    cluster.beta.stop();
    cluster.beta.start();
    settle(&cluster, &mut ledger);
}

#[test]
fn a_moved_disk_alone_serves_nobody_without_a_word() {
    let mut cluster = Cluster::primary(&plan());
    cluster.beta.stop();
    cluster.alpha.stop();
    let old = cluster.alpha.disk().with_extension("old");
    std::fs::rename(cluster.alpha.disk(), &old).expect("rename");
    std::fs::copy(&old, cluster.alpha.disk()).expect("copy");
    cluster.alpha.start();
    without_disk(&cluster.alpha, &["--moved"]);
    cluster.alpha.lockstep(&["attach", RESOURCE, "--moved"]).ok();
    assert_eq!(cluster.alpha.status()["disk"], "Inconsistent");
    cluster.alpha.promote().refused(17, &["--accept-data-loss"]);
    // The disk that the metadata knew is a stranger now.
    cluster.alpha.stop();
    std::fs::rename(&old, cluster.alpha.disk()).expect("rename");
    cluster.alpha.start();
    without_disk(&cluster.alpha, &["--moved"]);
}

#[test]
fn swapped_disks_of_two_resources_are_refused() {
    let mut cluster = Cluster::new(&plan());
    let dir = cluster.dir().to_path_buf();
    let other = dir.join("alpha/other");
    let text = std::fs::read_to_string(cluster.alpha.config()).expect("read the config");
    let more = format!(
        "[[resource]]\nname = \"r1\"\ndisk.alpha = \"{0}/alpha/other\"\n\
         disk.beta = \"{0}/beta/other\"\nsize = {SIZE_BYTES}\n",
        dir.display()
    );
    std::fs::write(cluster.alpha.config(), text + &more).expect("write the config");
    for resource in [RESOURCE, "r1"] {
        cluster.alpha.lockstep(&["create-md", resource, "--source"]).ok();
    }
    let aside = dir.join("alpha/aside");
    let swap = |disk: &std::path::Path| {
        for (from, to) in [(disk, &*aside), (&other, disk), (&aside, &other)] {
            std::fs::rename(from, to).expect("rename");
        }
    };
    swap(cluster.alpha.disk());
    cluster.alpha.start();
    without_disk(&cluster.alpha, &["the disk of resource r1", "were swapped"]);
    let swapped = ["the disk of resource r1", "configuration"];
    cluster.alpha.lockstep(&["attach", RESOURCE, "--moved"]).refused(11, &swapped);
    cluster.alpha.lockstep(&["attach", "r1"]).refused(11, &["the disk of resource r0"]);
    swap(cluster.alpha.disk());
    for resource in [RESOURCE, "r1"] {
        cluster.alpha.lockstep(&["attach", resource]).ok();
        cluster.alpha.lockstep(&["promote", resource]).ok();
    }
}

#[test]
fn metadata_of_another_node_and_a_smaller_disk_are_refused() {
    let mut cluster = Cluster::connected(&plan());
    for node in cluster.nodes() {
        node.stop();
    }
    let metas = ["alpha", "beta"].map(|name| cluster.dir().join(name).join("r0.0.meta"));
    let own = std::fs::read(&metas[1]).expect("metadata of beta");
    std::fs::copy(&metas[0], &metas[1]).expect("copy");
    cluster.beta.start();
    without_disk(&cluster.beta, &["belongs to", "(alpha)", "(beta)", "lockstep create-md r0 --overwrite"]);
    std::fs::write(&metas[1], own).expect("metadata of beta");
    let file = std::fs::File::options().write(true).open(cluster.beta.disk()).expect("the data file");
    file.set_len(SIZE_BYTES - MIB).expect("truncate");
    cluster.beta.lockstep(&["attach", RESOURCE]).refused(11, &["less than", "create-md r0 --overwrite"]);
    file.set_len(SIZE_BYTES).expect("extend");
    cluster.beta.lockstep(&["attach", RESOURCE]).ok();
    cluster.beta.lockstep(&["down", RESOURCE]).ok();
    cluster.beta.lockstep(&["attach", RESOURCE]).refused(11, &["lockstep up r0"]);
}

#[test]
fn a_secondary_restored_from_an_older_image_is_found_and_filled() {
    let mut cluster = Cluster::primary(&plan());
    let ledger = ledger("image").write_some(cluster.alpha.nbd(), 300);
    cluster.beta.stop();
    let image = Backup::of(&cluster.beta);
    cluster.beta.start();
    cluster.wait_synced();
    let ledger = ledger.write_some(cluster.alpha.nbd(), 1000);
    cluster.beta.stop();
    image.restore();
    cluster.beta.start();
    let mut ledger = ledger.write_some(cluster.alpha.nbd(), 100);
    settle(&cluster, &mut ledger);
    assert!(cluster.resynced_bytes() >= SIZE_BYTES, "no bitmap tells what an older image lacks");
}

#[test]
fn an_older_image_of_the_primary_is_refused_while_it_is_primary() {
    let mut cluster = Cluster::primary(&plan());
    let ledger = ledger("image of a primary").write_some(cluster.alpha.nbd(), 300);
    // The image says that beta is behind, which was so then.
    cluster.beta.stop();
    let ledger = ledger.write_some(cluster.alpha.nbd(), 100);
    cluster.alpha.stop();
    let image = Backup::of(&cluster.alpha);
    for node in cluster.nodes() {
        node.start();
    }
    cluster.wait_synced();
    cluster.beta.promote().ok();
    let mut ledger = ledger.write_some(cluster.beta.nbd(), 1000);
    cluster.alpha.stop();
    cluster.beta.stop();
    image.restore();
    cluster.alpha.start();
    cluster.alpha.promote().ok();
    cluster.beta.start();
    cluster.alpha.wait_replication("TargetIsPrimary");
    cluster.beta.wait_replication("TargetIsPrimary");
    cluster.alpha.demote().ok();
    settle(&cluster, &mut ledger);
    assert!(cluster.resynced_bytes() >= SIZE_BYTES, "no bitmap tells what an older image lacks");
}

#[test]
fn an_older_image_that_was_promoted_by_force_is_split_brain() {
    let mut cluster = Cluster::primary(&plan());
    let ledger = ledger("image by force").write_some(cluster.alpha.nbd(), 300);
    cluster.beta.stop();
    let image = Backup::of(&cluster.beta);
    cluster.beta.start();
    cluster.wait_synced();
    let mut ledger = ledger.write_some(cluster.alpha.nbd(), 300);
    cluster.beta.stop();
    cluster.alpha.stop();
    image.restore();
    cluster.beta.start();
    cluster.beta.lockstep(&["promote", RESOURCE, "--accept-data-loss"]).ok();
    cluster.alpha.start();
    cluster.alpha.wait_replication("SplitBrain");
    cluster.beta.demote().ok();
    cluster.alpha.lockstep(&["resolve", RESOURCE, "--discard", "beta"]).ok();
    settle(&cluster, &mut ledger);
}

#[test]
fn a_disk_is_replaced_under_a_running_primary() {
    let cluster = Cluster::primary(&plan());
    let load = ledger("replace").start(cluster.alpha.nbd(), 4);
    load.wait_acked(200);
    cluster.alpha.lockstep(&["create-md", RESOURCE, "--overwrite"]).refused(11, &["in use"]);
    cluster.alpha.lockstep(&["detach", RESOURCE]).ok();
    cluster.alpha.lockstep(&["detach", RESOURCE]).ok();
    assert_eq!(cluster.alpha.status()["disk"], "Diskless");
    load.wait_acked(200);
    cluster.beta.lockstep(&["detach", RESOURCE]).refused(11, &["no other UpToDate copy"]);
    // Another file of the same size, which holds nothing.
    std::fs::remove_file(cluster.alpha.disk()).expect("remove the disk");
    cluster.alpha.lockstep(&["attach", RESOURCE]).refused(11, &["no disk"]);
    cluster.alpha.lockstep(&["create-md", RESOURCE, "--overwrite"]).ok();
    cluster.alpha.lockstep(&["attach", RESOURCE]).ok();
    load.wait_acked(200);
    cluster.wait_synced();
    assert_eq!(load.interruptions(), 0, "clients noticed");
    assert_eq!(cluster.alpha.status()["role"], "Primary");
    let mut ledger = load.stop();
    settle(&cluster, &mut ledger);
}
