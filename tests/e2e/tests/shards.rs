//! Three volumes on two shards: each keeps what it promised through moves, failures and restarts, and none of them
//! notices on which shard it is, nor by which listener its clients came.

use lockstep_e2e::{
    Cluster, Connection, Ledger, Load, Node, Plan, Port, RESOURCE, SECOND, Target, assert_equal,
    open_descriptors, seed, wait_for, wait_until,
};
use serde_json::Value;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const SIZE_BYTES: u64 = 64 * MIB;
const LIMIT: Duration = Duration::from_secs(40);
/// Data files of the three.
const DISKS: [&str; 3] = ["disk", "disk2", "disk3"];

/// A pair whose alpha serves clients at two listeners.
struct Pair {
    cluster: Cluster,
    names: Vec<&'static str>,
    tcp: SocketAddr,
    _port: Port,
}

fn pair() -> Pair {
    let port = Port::reserve();
    let plan = Plan {
        size_bytes: SIZE_BYTES,
        max_hot_bytes: 32 * MIB,
        buffer_mib: 64,
        resources: 3,
        shards: Some(2),
        client_port: Some(port.number()),
        ..Plan::default()
    };
    let cluster = Cluster::connected(&plan);
    let tcp = SocketAddr::from((Ipv4Addr::LOCALHOST, port.number()));
    Pair { cluster, names: plan.names().collect(), tcp, _port: port }
}

fn status(node: &Node, name: &str) -> Value {
    let text = node.lockstep(&["status", name, "--json"]).ok();
    let document: Value = serde_json::from_str(&text).expect("status --json prints JSON");
    document["resources"][0].clone()
}

#[track_caller]
fn wait_status(node: &Node, name: &str, what: &str, holds: impl Fn(&Value) -> bool) {
    wait_for(&format!("{what}: {name} on {}", node.name()), LIMIT, || {
        let status = status(node, name);
        if holds(&status) { Ok(()) } else { Err(format!("{status:#}")) }
    });
}

impl Pair {
    #[track_caller]
    fn promote_all(&self) {
        self.names.iter().for_each(|name| drop(self.cluster.alpha.lockstep(&["promote", name]).ok()));
    }

    #[track_caller]
    fn wait_protected(&self) {
        for node in [&self.cluster.alpha, &self.cluster.beta] {
            for name in &self.names {
                wait_status(node, name, "protected", |status| status["protected"] == true);
            }
        }
    }

    /// Writers on each volume; those of the second one come by TCP, as do those of none else.
    fn start(&self, ledgers: Vec<Ledger>) -> Vec<Load> {
        let alpha = &self.cluster.alpha;
        let target = |name: &str| match name {
            SECOND => Target::from(self.tcp),
            _ => Target::from(alpha.nbd()),
        };
        self.names.iter().zip(ledgers).map(|(name, ledger)| ledger.of(name).start(target(name), 4)).collect()
    }

    /// Both copies of each hold what was promised.
    #[track_caller]
    fn assert_kept(&self, ledgers: &mut [Ledger]) {
        self.wait_protected();
        for (name, ledger) in self.names.iter().zip(ledgers) {
            for node in [&self.cluster.alpha, &self.cluster.beta] {
                wait_status(node, name, "quiet", |status| {
                    status["requests"] == 0 && status["peers"][0]["out_of_sync_bytes"] == 0
                });
            }
            let disk = DISKS[self.names.iter().position(|other| other == name).expect("a volume")];
            let [alpha, beta] = ["alpha", "beta"].map(|node| self.cluster.dir().join(node).join(disk));
            assert_equal(&alpha, &beta);
            ledger.assert_kept(&alpha);
        }
    }
}

fn new_ledgers() -> Vec<Ledger> {
    (0..DISKS.len() as u64).map(|nth| Ledger::new(SIZE_BYTES, 2, seed("shards") + nth)).collect()
}

#[track_caller]
fn wait_acked(loads: &[Load]) {
    loads.iter().for_each(|load| load.wait_acked(300));
}

#[test]
fn every_volume_is_written_and_mirrored_and_finds_its_peer_again() {
    let mut pair = pair();
    pair.promote_all();
    let loads = pair.start(new_ledgers());
    wait_acked(&loads);
    for (name, clients) in pair.names.iter().zip([2, 2, 2]) {
        let attached = status(&pair.cluster.alpha, name)["clients"].as_array().map(Vec::len);
        assert_eq!(attached, Some(clients), "{name}");
    }
    pair.cluster.proxy.reset();
    wait_acked(&loads);
    pair.wait_protected();
    // A peer that stops and comes back, without a word and with one.
    pair.cluster.beta.kill();
    pair.cluster.beta.start();
    pair.wait_protected();
    wait_acked(&loads);
    pair.cluster.beta.stop();
    pair.cluster.beta.start();
    pair.wait_protected();
    wait_acked(&loads);
    let mut ledgers: Vec<Ledger> = loads.into_iter().map(Load::stop).collect();
    pair.assert_kept(&mut ledgers);
}

#[test]
fn volumes_move_one_by_one_and_fail_over_together() {
    let mut pair = pair();
    pair.promote_all();
    let loads = pair.start(new_ledgers());
    wait_acked(&loads);
    // The second one moves under load, the others stay.
    let Cluster { alpha, beta, .. } = &pair.cluster;
    alpha.lockstep(&["demote", SECOND]).refused(11, &["attached"]);
    alpha.lockstep(&["demote", SECOND, "--force"]).ok();
    beta.lockstep(&["promote", SECOND]).ok();
    loads[1].retarget(beta.nbd());
    wait_acked(&loads);
    pair.wait_protected();
    pair.cluster.alpha.kill();
    for name in [pair.names[0], pair.names[2]] {
        let lost = |status: &Value| status["peers"][0]["connection"] == "Connecting";
        wait_status(&pair.cluster.beta, name, "alpha is gone", lost);
        pair.cluster.beta.lockstep(&["promote", name, "--peer-is-down"]).ok();
    }
    loads.iter().for_each(|load| load.retarget(pair.cluster.beta.nbd()));
    wait_acked(&loads);
    pair.cluster.alpha.start();
    pair.wait_protected();
    wait_acked(&loads);
    let mut ledgers: Vec<Ledger> = loads.into_iter().map(Load::stop).collect();
    pair.assert_kept(&mut ledgers);
}

#[test]
fn a_restarted_daemon_has_all_volumes_again() {
    let mut pair = pair();
    pair.promote_all();
    let mut ledgers = new_ledgers();
    for round in 0..2 {
        let loads = pair.start(ledgers);
        wait_acked(&loads);
        ledgers = loads.into_iter().map(Load::stop).collect();
        if round == 0 {
            pair.cluster.alpha.stop();
        } else {
            pair.cluster.alpha.kill();
        }
        pair.cluster.alpha.start();
        pair.wait_protected();
        pair.promote_all();
    }
    pair.assert_kept(&mut ledgers);
}

#[test]
fn who_waits_for_a_volume_of_the_other_shard_is_served_when_it_opens() {
    let pair = pair();
    let alpha = &pair.cluster.alpha;
    // The first one is open, and nobody waits for that.
    alpha.lockstep(&["promote", RESOURCE]).ok();
    let before = open_descriptors(alpha.pid());
    std::thread::scope(|scope| {
        let targets = [Target::from(alpha.nbd()), Target::from(pair.tcp)];
        let waiting = targets.map(|target| scope.spawn(|| Connection::open(target, SECOND)));
        wait_until("both are there", LIMIT, || open_descriptors(alpha.pid()) >= before + 2);
        let mut other = alpha.connect().expect("the open one");
        other.write(0, &[1; 4096]).expect("write");
        assert!(waiting.iter().all(|client| !client.is_finished()), "served before the promotion");
        alpha.lockstep(&["promote", SECOND]).ok();
        for client in waiting {
            let mut client = client.join().expect("a client").expect("held, then served");
            client.write(4096, &[2; 4096]).expect("write");
            assert_eq!(client.read(4096, 4096).expect("read"), [2; 4096]);
        }
    });
}

#[test]
fn a_volume_of_the_second_shard_goes_down_and_comes_up_alone() {
    let pair = pair();
    pair.promote_all();
    let loads = pair.start(new_ledgers());
    wait_acked(&loads);
    let Cluster { alpha, beta, .. } = &pair.cluster;
    beta.lockstep(&["down", SECOND]).ok();
    wait_status(alpha, SECOND, "alone", |status| status["protected"] == false);
    for name in [pair.names[0], pair.names[2]] {
        assert_eq!(status(alpha, name)["protected"], true, "{name}");
    }
    wait_acked(&loads);
    beta.lockstep(&["up", SECOND]).ok();
    pair.wait_protected();
    // Where it is Primary, its clients are in the way.
    alpha.lockstep(&["down", SECOND]).refused(11, &["attached"]);
    alpha.lockstep(&["down", SECOND, "--force"]).ok();
    let refused = Connection::open(pair.tcp, SECOND).expect_err("it is down").to_string();
    assert!(refused.contains("bring it up: lockstep up r1"), "{refused}");
    alpha.lockstep(&["up", SECOND]).ok();
    pair.wait_protected();
    alpha.lockstep(&["promote", SECOND]).ok();
    wait_acked(&loads);
    let mut ledgers: Vec<Ledger> = loads.into_iter().map(Load::stop).collect();
    pair.assert_kept(&mut ledgers);
}

#[test]
fn one_daemon_tells_of_the_volumes_of_all_shards() {
    let pair = pair();
    let text = pair.cluster.alpha.lockstep(&["status", "--json"]).ok();
    let document: Value = serde_json::from_str(&text).expect("JSON");
    let listed: Vec<&str> =
        document["resources"].as_array().into_iter().flatten().filter_map(|r| r["name"].as_str()).collect();
    assert_eq!(listed, pair.names, "in the order of the configuration");
}
