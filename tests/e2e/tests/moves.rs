//! Planned moves under load, two promotions at once, and a daemon that is killed and back before its last
//! writes have left the kernel.

use lockstep_e2e::{Cluster, Ledger, Node, Plan, RESOURCE, Rng, rounds, seed};

const MIB: u64 = 1 << 20;
const SIZE_BYTES: u64 = 128 * MIB;

fn plan() -> Plan {
    Plan { size_bytes: SIZE_BYTES, max_hot_bytes: 32 * MIB, ..Plan::default() }
}

fn roles(cluster: &Cluster) -> [String; 2] {
    [&cluster.alpha, &cluster.beta].map(|node| node.status()["role"].as_str().unwrap_or("?").to_string())
}

/// Moves the Primary while writers hang on it, as an operator does who means it.
fn move_by_force(from: &Node, to: &Node) {
    from.demote().refused(11, &["attached", "lockstep demote r0 --force"]);
    from.lockstep(&["demote", RESOURCE, "--force"]).ok();
    to.promote().ok();
}

#[test]
fn planned_moves_copy_nothing() {
    let cluster = Cluster::primary(&plan());
    let mut ledger = Ledger::new(SIZE_BYTES, 4, seed("moves"));
    let before = cluster.resynced_bytes();
    for _ in 0..rounds("MOVE", 2) {
        for (from, to) in [(&cluster.alpha, &cluster.beta), (&cluster.beta, &cluster.alpha)] {
            let load = ledger.start(from.nbd(), 8);
            load.wait_acked(1000);
            move_by_force(from, to);
            load.retarget(to.nbd());
            load.wait_acked(1000);
            ledger = load.stop();
            to.demote_idle();
            from.demote_idle();
            from.promote().ok();
            from.demote_idle();
            to.promote().ok();
            to.promote().ok();
        }
        cluster.assert_replicas_equal();
        ledger.assert_kept(cluster.beta.disk());
    }
    assert_eq!(cluster.resynced_bytes(), before, "a planned move copies nothing");
}

#[test]
fn a_second_primary_is_refused() {
    let cluster = Cluster::primary(&plan());
    cluster.beta.promote().refused(11, &["alpha is Primary", "lockstep demote r0"]);
    for flag in ["--peer-is-down", "--accept-data-loss"] {
        cluster.beta.lockstep(&["promote", RESOURCE, flag]).refused(11, &["alpha"]);
    }
    assert_eq!(roles(&cluster), ["Primary", "Secondary"]);
    let error = cluster.beta.connect().expect_err("a Secondary serves no clients").to_string();
    assert!(error.contains("Secondary"), "{error}");
    let uris = [&cluster.alpha, &cluster.beta].map(|node| node.lockstep(&["uri", RESOURCE]).ok());
    assert_eq!(uris[0], uris[1], "the Primary's address, from any node");
}

#[test]
fn of_two_promotions_at_once_one_wins() {
    let cluster = Cluster::connected(&plan());
    for _ in 0..rounds("MOVE", 2) * 3 {
        let ran = std::thread::scope(|scope| {
            let threads = [&cluster.alpha, &cluster.beta].map(|node| scope.spawn(|| node.promote()));
            threads.map(|thread| thread.join().expect("a promotion"))
        });
        let codes = [ran[0].code, ran[1].code];
        assert!(codes == [0, 11] || codes == [11, 0], "one wins, one is refused: {}\n{}", ran[0], ran[1]);
        let winner = usize::from(codes[0] != 0);
        let primary = roles(&cluster).iter().position(|role| role == "Primary");
        assert_eq!(primary, Some(winner), "{}\n{}", ran[0], ran[1]);
        [&cluster.alpha, &cluster.beta][winner].demote_idle();
    }
    assert_eq!(cluster.resynced_bytes(), 0);
}

#[test]
fn a_killed_daemon_is_back_while_its_last_writes_are_in_the_kernel() {
    let mut cluster = Cluster::primary(&Plan { on_disk: true, ..plan() });
    let number = seed("back at once");
    let mut rng = Rng::new(number);
    let mut ledger = Ledger::new(SIZE_BYTES, 4, number);
    for _ in 0..3 {
        let load = ledger.start(cluster.alpha.nbd(), 16);
        load.wait_acked(200 + rng.below(300));
        // The process is gone, what it had asked of the disk perhaps not.
        cluster.alpha.kill();
        cluster.alpha.start();
        cluster.wait_synced();
        cluster.alpha.promote().ok();
        load.wait_acked(100);
        ledger = load.stop();
        cluster.assert_replicas_equal();
        ledger.assert_kept(cluster.beta.disk());
    }
}

#[test]
fn a_second_daemon_is_locked_out() {
    let cluster = Cluster::primary(&plan());
    let ran = cluster.alpha.lockstep(&["create-md", RESOURCE, "--overwrite"]);
    assert_ne!(ran.code, 0, "metadata in use: {ran}");
    let second = cluster.alpha.lockstep(&["daemon"]);
    assert_ne!(second.code, 0, "two daemons on one control socket: {second}");
    cluster.assert_replicas_equal();
    assert_eq!(roles(&cluster), ["Primary", "Secondary"]);
}

#[test]
fn a_frozen_primary_that_wakes_up_acknowledges_nothing_alone() {
    let cluster = Cluster::primary(&plan());
    let ledger = Ledger::new(SIZE_BYTES, 4, seed("frozen")).write_some(cluster.alpha.nbd(), 500);
    cluster.alpha.wait_status("all durable", |status| status["undurable_writes"] == 0);
    let mut client = cluster.alpha.connect().expect("a client");
    cluster.alpha.pause();
    cluster.beta.wait_connection("Connecting");
    cluster.beta.lockstep(&["promote", RESOURCE, "--peer-is-down"]).ok();
    let mut ledger = ledger.write_some(cluster.beta.nbd(), 500);
    cluster.alpha.resume();
    cluster.alpha.wait_replication("SplitBrain");
    assert_eq!(cluster.alpha.peer()["split_brain"]["bytes"], 0, "it wrote nothing alone");
    cluster.alpha.demote().refused(11, &["attached"]);
    client.read(0, 4096).expect("a read");
    drop(client);
    cluster.alpha.wait_status("no clients", |status| status["clients"].as_array().is_some_and(Vec::is_empty));
    cluster.alpha.demote_idle();
    cluster.alpha.lockstep(&["resolve", RESOURCE, "--discard", "alpha"]).ok();
    cluster.assert_replicas_equal();
    ledger.assert_kept(cluster.alpha.disk());
}
