//! A daemon that is stopped (SIGSTOP) beyond `timeout` under load, and goes on (SIGCONT) as if nothing had
//! happened: a hypervisor that pauses a machine, a disk that hangs.
//!
//! A frozen Secondary, and a frozen Primary that nobody replaced, must cost no more than a bitmap resync. Only
//! a Primary that was replaced by force while requests of its clients waited has to end as split brain: it
//! cannot know, and answers them.

use lockstep_e2e::{Load, Plan, RESOURCE, Scene, rounds};

const MIB: u64 = 1 << 20;
const SIZE_BYTES: u64 = 128 * MIB;
const MAX_HOT_BYTES: u64 = 32 * MIB;
/// What the log of a node says about a split brain.
const SPLIT_BRAIN: &str = "SplitBrain";

fn scene(name: &str) -> Scene {
    let plan = Plan { size_bytes: SIZE_BYTES, max_hot_bytes: MAX_HOT_BYTES, ..Plan::default() };
    Scene::primary(name, &plan)
}

/// Equal, as promised, and never taken for parted.
fn settle(scene: &mut Scene, load: Load) {
    scene.settle(load);
    for node in scene.cluster.nodes() {
        assert!(!node.log().contains(SPLIT_BRAIN), "{} saw a split brain", node.name());
    }
}

#[test]
fn a_frozen_secondary_is_left_behind_and_catches_up() {
    let mut scene = scene("frozen Secondary");
    for _ in 0..rounds("FREEZE", 2) {
        let load = scene.load();
        load.wait_acked(500 + scene.rng.below(2000));
        let cluster = &scene.cluster;
        let (before, written) = (cluster.alpha.resynced_bytes(), load.acked_bytes());
        cluster.beta.pause();
        cluster.alpha.wait_connection("Connecting");
        load.wait_acked(500 + scene.rng.below(1500));
        cluster.beta.resume();
        cluster.wait_synced();
        let resynced = cluster.alpha.resynced_bytes() - before;
        let bound = MAX_HOT_BYTES + load.acked_bytes() - written;
        assert!(resynced > 0 && resynced <= bound, "{resynced} bytes resynced, at most {bound} expected");
        assert_eq!(load.interruptions(), 0, "clients of the Primary noticed");
        settle(&mut scene, load);
    }
}

#[test]
fn a_frozen_primary_that_nobody_replaced_goes_on() {
    let mut scene = scene("frozen Primary");
    for _ in 0..rounds("FREEZE", 2) {
        let load = scene.load();
        load.wait_acked(500 + scene.rng.below(2000));
        let cluster = &scene.cluster;
        cluster.alpha.pause();
        cluster.beta.wait_connection("Connecting");
        cluster.beta.promote().refused(17, &["may be Primary", "--peer-is-down"]);
        cluster.alpha.resume();
        load.wait_acked(500);
        cluster.wait_synced();
        assert_eq!(cluster.alpha.status()["role"], "Primary");
        assert_eq!(load.interruptions(), 0, "clients of the Primary noticed more than a pause");
        settle(&mut scene, load);
    }
}

#[test]
fn a_frozen_primary_that_was_replaced_under_load_is_split_brain_and_keeps_what_it_acknowledged() {
    let mut scene = scene("replaced Primary");
    let load = scene.load();
    load.wait_acked(1000);
    let cluster = &scene.cluster;
    cluster.alpha.pause();
    cluster.beta.wait_connection("Connecting");
    cluster.beta.lockstep(&["promote", RESOURCE, "--peer-is-down"]).ok();
    let mut client = cluster.beta.connect().expect("a client of the promoted copy");
    client.write(0, &[1; 4096]).expect("a write");
    drop(client);
    cluster.alpha.resume();
    // Its clients never left: they are answered, and go on.
    load.wait_acked(500);
    cluster.alpha.wait_replication(SPLIT_BRAIN);
    cluster.beta.wait_replication(SPLIT_BRAIN);
    assert!(cluster.alpha.log().contains(SPLIT_BRAIN), "the log says it in other words");
    load.wait_acked(500);
    let mut ledger = load.stop();
    let split = cluster.alpha.peer()["split_brain"].clone();
    assert!(split["bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{split}");
    cluster.beta.demote_idle();
    cluster.alpha.lockstep(&["resolve", RESOURCE, "--discard", "beta"]).ok();
    cluster.assert_replicas_equal();
    ledger.assert_kept(cluster.beta.disk());
}
