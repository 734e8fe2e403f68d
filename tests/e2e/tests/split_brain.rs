//! Split brain: made by force, shown on both sides, resolved as told and never otherwise; and two copies that
//! have nothing in common.

use lockstep_e2e::{Cluster, Ledger, Plan, RESOURCE, seed};

const MIB: u64 = 1 << 20;
const SIZE_BYTES: u64 = 128 * MIB;

fn plan() -> Plan {
    Plan { size_bytes: SIZE_BYTES, max_hot_bytes: 32 * MIB, ..Plan::default() }
}

/// Both sides were Primary and wrote alone. Gives the history of each side.
fn split(name: &str) -> (Cluster, Ledger, Ledger) {
    let cluster = Cluster::primary(&plan());
    let common = Ledger::new(SIZE_BYTES, 4, seed(name)).write_some(cluster.alpha.nbd(), 1000);
    cluster.proxy.cut();
    cluster.beta.wait_connection("Connecting");
    cluster.beta.promote().refused(17, &["--peer-is-down"]);
    cluster.beta.lockstep(&["promote", RESOURCE, "--peer-is-down"]).ok();
    let on_alpha = common.clone().write_some(cluster.alpha.nbd(), 700);
    let on_beta = common.write_some(cluster.beta.nbd(), 300);
    cluster.proxy.heal();
    for node in [&cluster.alpha, &cluster.beta] {
        node.wait_replication("SplitBrain");
    }
    (cluster, on_alpha, on_beta)
}

#[test]
fn it_is_shown_on_both_sides_and_each_serves_its_own() {
    let (cluster, on_alpha, on_beta) = split("shown");
    for node in [&cluster.alpha, &cluster.beta] {
        let status = node.status();
        let shown = &status["peers"][0]["split_brain"];
        for side in ["bytes", "peer_bytes"] {
            assert!(shown[side].as_u64().is_some_and(|bytes| bytes > 0), "{side} in {shown}");
        }
        for side in ["since", "peer_since"] {
            assert!(shown[side].as_str().is_some_and(|time| time.contains('T')), "{side} in {shown}");
        }
        assert_eq!(status["protected"], false);
        let text = node.lockstep(&["status"]).ok();
        for words in ["SPLIT BRAIN", "alpha wrote", "beta wrote", "lockstep resolve r0 --discard"] {
            assert!(text.contains(words), "\"{words}\" is missing in\n{text}");
        }
    }
    let [alpha, beta] = [&cluster.alpha, &cluster.beta].map(|node| node.peer()["split_brain"].clone());
    assert_eq!(alpha["bytes"], beta["peer_bytes"]);
    assert_eq!(alpha["peer_since"], beta["since"]);
    let mut on_alpha = on_alpha.write_some(cluster.alpha.nbd(), 200);
    let mut on_beta = on_beta.write_some(cluster.beta.nbd(), 200);
    on_alpha.assert_kept(cluster.alpha.disk());
    on_beta.assert_kept(cluster.beta.disk());
}

#[test]
fn it_is_resolved_as_told_and_the_winner_is_not_disturbed() {
    let (cluster, on_alpha, _) = split("discard beta");
    let resolve = |loser| ["resolve", RESOURCE, "--discard", loser];
    cluster.alpha.lockstep(&resolve("gamma")).refused(2, &["alpha, beta"]);
    cluster.alpha.lockstep(&resolve("beta")).refused(11, &["beta is Primary", "lockstep demote r0"]);
    cluster.alpha.wait_replication("SplitBrain");
    let load = on_alpha.start(cluster.alpha.nbd(), 4);
    load.wait_acked(200);
    cluster.beta.demote_idle();
    cluster.alpha.wait_status("beta as Secondary", |status| status["peers"][0]["role"] == "Secondary");
    cluster.alpha.lockstep(&resolve("beta")).ok();
    cluster.wait_synced();
    load.wait_acked(200);
    assert_eq!(load.interruptions(), 0, "the winner's clients noticed");
    let mut on_alpha = load.stop();
    cluster.assert_replicas_equal();
    on_alpha.assert_kept(cluster.beta.disk());
    assert!(cluster.resynced_bytes() < SIZE_BYTES / 2, "both sides know what they wrote: no full sync");
    cluster.alpha.lockstep(&resolve("beta")).refused(11, &["no split brain"]);
}

#[test]
fn the_other_side_may_be_discarded_and_it_may_be_told_there() {
    let (cluster, _, mut on_beta) = split("discard alpha");
    cluster.alpha.demote_idle();
    cluster.alpha.lockstep(&["resolve", RESOURCE, "--discard", "alpha"]).ok();
    cluster.assert_replicas_equal();
    on_beta.assert_kept(cluster.alpha.disk());
    assert_eq!(cluster.beta.status()["role"], "Primary");
}

/// What the promotion gave up stays split over restarts of both daemons.
#[test]
fn it_survives_restarts() {
    let (mut cluster, _, mut on_beta) = split("restarts");
    for node in cluster.nodes() {
        node.stop();
    }
    for node in cluster.nodes() {
        node.start();
    }
    for node in [&cluster.alpha, &cluster.beta] {
        node.wait_replication("SplitBrain");
        assert_eq!(node.status()["protected"], false);
    }
    cluster.beta.lockstep(&["resolve", RESOURCE, "--discard", "alpha"]).ok();
    cluster.assert_replicas_equal();
    on_beta.assert_kept(cluster.alpha.disk());
}

#[test]
fn unrelated_data_is_refused() {
    let mut cluster = Cluster::new(&plan());
    for (node, byte) in cluster.nodes().into_iter().zip([1_u8, 2]) {
        std::fs::write(node.disk(), vec![byte; SIZE_BYTES as usize]).expect("write the data");
        node.lockstep(&["create-md", RESOURCE, "--source"]).ok();
        node.start();
    }
    for (node, byte) in [(&cluster.alpha, 1_u8), (&cluster.beta, 2)] {
        node.wait_replication("Unrelated");
        let text = node.lockstep(&["status"]).ok();
        assert!(text.contains("create-md r0 --overwrite"), "{text}");
        let data = std::fs::read(node.disk()).expect("read the data");
        assert!(data.iter().all(|found| *found == byte), "{} was changed", node.name());
        assert_eq!(node.status()["protected"], false);
    }
    // The operator decides whose data may go.
    cluster.beta.lockstep(&["down", RESOURCE]).ok();
    cluster.beta.lockstep(&["create-md", RESOURCE, "--overwrite"]).ok();
    cluster.beta.lockstep(&["up", RESOURCE]).ok();
    cluster.assert_replicas_equal();
    let data = std::fs::read(cluster.beta.disk()).expect("read the data");
    assert!(data.iter().all(|found| *found == 1));
}
