//! Checkpoints of real daemons: what was written since is counted on both nodes, through kill -9, restarts and a
//! failover; what cannot be done is refused in words.

use lockstep_e2e::{Cluster, Node, Plan, RESOURCE};
use serde_json::Value;

const BLOCK: u64 = 4096;
/// As the smallest hot region.
const REGION: u64 = 4 << 20;

fn create(node: &Node, name: &str) {
    node.lockstep(&["checkpoint", "create", RESOURCE, name]).ok();
}

fn checkpoint(node: &Node, name: &str) -> Option<Value> {
    let list = node.lockstep(&["checkpoint", "list", RESOURCE, "--json"]).ok();
    let list: Value = serde_json::from_str(&list).expect("a document");
    let all = list["checkpoints"].as_array().expect("a list").clone();
    all.into_iter().find(|found| found["name"] == name)
}

#[track_caller]
fn changed(node: &Node, name: &str) -> u64 {
    let found = checkpoint(node, name).expect("it is listed");
    assert_eq!(found["state"], "complete", "{}: {found}", node.name());
    found["changed_bytes"].as_u64().expect("a number")
}

/// One block in each of these regions.
fn write(node: &Node, regions: std::ops::Range<u64>) {
    let mut client = node.connect().expect("a client");
    for region in regions {
        client.write(region * REGION, &[7; BLOCK as usize]).expect("written");
    }
    client.close().expect("closed");
}

fn wait_complete(node: &Node, name: &str) {
    node.wait_status("the checkpoint is complete", |status| {
        let all = status["checkpoints"].as_array().expect("a list");
        all.iter().any(|found| found["name"] == name && found["state"] == "complete")
    });
}

#[test]
fn what_was_written_since_survives_kills_and_a_failover() {
    let mut cluster = Cluster::primary(&Plan::default());
    write(&cluster.alpha, 0..3);
    let said = cluster.alpha.lockstep(&["checkpoint", "create", RESOURCE, "monday"]);
    assert!(said.stderr.contains("monday has begun on both nodes"), "{said}");
    said.ok();
    write(&cluster.alpha, 2..5);
    for node in cluster.nodes() {
        assert_eq!(changed(node, "monday"), 3 * BLOCK, "{}", node.name());
        assert_eq!(checkpoint(node, "monday").expect("it is listed")["on_peer"], true);
    }
    // The Secondary loses what it had in memory, and gets it back.
    cluster.beta.kill();
    cluster.alpha.wait_connection("Connecting");
    write(&cluster.alpha, 5..6);
    cluster.beta.start();
    cluster.wait_synced();
    wait_complete(&cluster.beta, "monday");
    assert!(changed(&cluster.beta, "monday") >= 4 * BLOCK);
    assert_eq!(changed(&cluster.alpha, "monday"), 4 * BLOCK);
    // The Primary's is covered by its hot regions, which are added.
    cluster.alpha.kill();
    cluster.beta.wait_connection("Connecting");
    cluster.beta.lockstep(&["promote", RESOURCE, "--peer-is-down"]).ok();
    write(&cluster.beta, 6..7);
    let at_beta = changed(&cluster.beta, "monday");
    assert!(at_beta >= 5 * BLOCK, "{at_beta}");
    cluster.alpha.start();
    cluster.wait_synced();
    wait_complete(&cluster.alpha, "monday");
    assert!(changed(&cluster.alpha, "monday") >= 5 * BLOCK);
    // A clean restart of both loses nothing and adds nothing.
    cluster.beta.demote_idle();
    let before = cluster.nodes().map(|node| changed(node, "monday"));
    for node in cluster.nodes() {
        node.stop();
        node.start();
    }
    cluster.wait_synced();
    assert_eq!(cluster.nodes().map(|node| changed(node, "monday")), before);
    cluster.alpha.promote().ok();
    cluster.alpha.lockstep(&["checkpoint", "delete", RESOURCE, "monday"]).ok();
    for node in cluster.nodes() {
        assert_eq!(checkpoint(node, "monday"), None, "{}", node.name());
    }
}

#[test]
fn what_cannot_be_done_is_refused_in_words() {
    let mut cluster = Cluster::new(&Plan::default());
    cluster.alpha.lockstep(&["create-md", RESOURCE, "--clean", "--checkpoints", "1"]).ok();
    cluster.beta.lockstep(&["create-md", RESOURCE, "--clean", "--checkpoints", "0"]).ok();
    cluster.alpha.lockstep(&["create-md", RESOURCE, "--overwrite", "--checkpoints", "9"]).refused(2, &["9"]);
    for node in cluster.nodes() {
        node.start();
    }
    cluster.wait_synced();
    cluster.alpha.promote().ok();
    let (alpha, beta) = (&cluster.alpha, &cluster.beta);
    beta.lockstep(&["checkpoint", "create", RESOURCE, "a"]).refused(11, &["on the Primary", "promote r0"]);
    alpha.lockstep(&["checkpoint", "create", RESOURCE, "not/a/name"]).refused(2, &["letters, digits"]);
    let said = alpha.lockstep(&["checkpoint", "create", RESOURCE, "a"]);
    assert!(said.stderr.contains("on alpha only"), "beta has no room: {said}");
    said.ok();
    assert_eq!(checkpoint(alpha, "a").expect("it is listed")["on_peer"], false);
    alpha.lockstep(&["checkpoint", "create", RESOURCE, "a"]).refused(11, &["of this name"]);
    alpha
        .lockstep(&["checkpoint", "create", RESOURCE, "b"])
        .refused(11, &["room for 1 checkpoint", "delete r0"]);
    let list = alpha.lockstep(&["checkpoint", "list", RESOURCE]).ok();
    assert!(list.contains("this node only") && list.contains("complete"), "{list}");
    alpha.lockstep(&["checkpoint", "delete", RESOURCE, "a"]).ok();
    alpha.lockstep(&["checkpoint", "delete", RESOURCE, "a"]).ok();
    create(alpha, "b");
    cluster.alpha.demote_idle();
    cluster.beta.promote().ok();
    let refused = cluster.beta.lockstep(&["checkpoint", "create", RESOURCE, "c"]);
    refused.refused(11, &["no room", "create-md r0 --overwrite --checkpoints 4"]);
    // The list of the Primary counts: it never had it.
    cluster
        .alpha
        .wait_status("its checkpoint is gone", |status| status["checkpoints"] == Value::Array(vec![]));
}
