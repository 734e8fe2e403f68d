//! kill -9 of the Secondary, of the Primary and of both, at random moments under load, on a volume much
//! larger than what may be hot: every acknowledged write is found, on both copies, without a full sync.

use lockstep_e2e::{Plan, RESOURCE, Scene, rounds};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const SIZE_BYTES: u64 = 1024 * MIB;
const MAX_HOT_BYTES: u64 = 64 * MIB;
const _: () = assert!(SIZE_BYTES >= 16 * MAX_HOT_BYTES);
const WRITES_PER_S: f64 = 2000.0;

fn scene(name: &str) -> Scene {
    let plan = Plan { size_bytes: SIZE_BYTES, max_hot_bytes: MAX_HOT_BYTES, ..Plan::default() };
    Scene::primary(name, &plan)
}

#[test]
fn the_secondary_is_killed() {
    let mut scene = scene("kill Secondary");
    for _ in 0..rounds("KILL", 2) {
        let load = scene.load();
        let cluster = &mut scene.cluster;
        load.wait_rate(WRITES_PER_S);
        load.wait_acked(scene.rng.below(2000));
        let (before, written) = (cluster.alpha.resynced_bytes(), load.acked_bytes());
        cluster.beta.kill();
        load.wait_acked(500 + scene.rng.below(1500));
        cluster.beta.start();
        cluster.wait_synced();
        let resynced = cluster.alpha.resynced_bytes() - before;
        let bound = MAX_HOT_BYTES + load.acked_bytes() - written;
        println!("{resynced} bytes resynced, at most {bound} expected");
        assert!(resynced > 0 && resynced <= bound, "{resynced} bytes resynced, at most {bound} expected");
        assert_eq!(load.interruptions(), 0, "clients of the Primary noticed");
        scene.settle(load);
    }
}

#[test]
fn the_primary_is_killed_and_the_survivor_promoted() {
    let mut scene = scene("kill Primary");
    for _ in 0..rounds("KILL", 2) {
        let load = scene.load();
        let cluster = &mut scene.cluster;
        load.wait_rate(WRITES_PER_S);
        load.wait_acked(scene.rng.below(2000));
        if scene.rng.below(2) == 0 {
            // What is on the wire when the Primary dies never arrives: what was acknowledged must be there
            // before.
            cluster.proxy.stall();
            std::thread::sleep(Duration::from_millis(scene.rng.below(60)));
        }
        cluster.alpha.kill();
        cluster.proxy.reset();
        cluster.proxy.heal();
        cluster.beta.wait_connection("Connecting");
        cluster.beta.promote().refused(17, &["--peer-is-down"]);
        cluster.beta.lockstep(&["promote", RESOURCE, "--peer-is-down"]).ok();
        load.retarget(cluster.beta.nbd());
        let written = load.acked_bytes();
        load.wait_acked(500 + scene.rng.below(1500));
        let before = cluster.beta.resynced_bytes();
        cluster.alpha.start();
        cluster.wait_synced();
        assert_eq!(cluster.alpha.status()["role"], "Secondary");
        let resynced = cluster.beta.resynced_bytes() - before;
        let bound = MAX_HOT_BYTES + (load.acked_bytes() - written) * 12 / 10;
        println!("{resynced} bytes resynced, at most {bound} expected");
        assert!(resynced > 0 && resynced <= bound, "{resynced} bytes resynced, at most {bound} expected");
        scene.settle(load);
        scene.cluster.beta.demote_idle();
        scene.cluster.alpha.promote().ok();
    }
}

#[test]
fn both_are_killed() {
    let mut scene = scene("kill both");
    for round in 0..rounds("KILL", 2) {
        let load = scene.load();
        let cluster = &mut scene.cluster;
        load.wait_rate(WRITES_PER_S);
        load.wait_acked(scene.rng.below(2000));
        let mut order = cluster.nodes();
        if scene.rng.below(2) == 0 {
            order.swap(0, 1);
        }
        for node in order {
            node.kill();
        }
        let mut order = cluster.nodes();
        if scene.rng.below(2) == 0 {
            order.swap(0, 1);
        }
        for node in order {
            node.start();
        }
        cluster.wait_synced();
        let resynced = cluster.resynced_bytes();
        println!("round {round}: {resynced} bytes resynced");
        assert!(resynced <= MAX_HOT_BYTES + 16 * MIB, "{resynced} bytes: more than the hot regions");
        cluster.alpha.promote().ok();
        load.wait_acked(500);
        scene.settle(load);
    }
}
