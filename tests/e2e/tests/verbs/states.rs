//! The states of `docs/VERBS.md`: each puts a fresh pair into one, by what an operator or an accident does.

use lockstep_e2e::{Backup, Cluster, Connection, Fault, FaultyDisk, Node, Plan, RESOURCE};
use lockstep_nbd::Command;

const MIB: u64 = 1 << 20;
/// Bytes per second of a wire on which a resync does not end while verbs are typed.
const SLOW: u64 = 6 * MIB;

/// A pair in a state, and the node at which verbs are typed.
pub(crate) struct Scene {
    /// Unmounted before the pair's directory is removed.
    _faulty: Option<FaultyDisk>,
    cluster: Cluster,
    at: usize,
    /// Attached to the export.
    _client: Option<Connection>,
}

impl Scene {
    pub(crate) fn node(&self) -> &Node {
        [&self.cluster.alpha, &self.cluster.beta][self.at]
    }

    /// The directory of the pair, which messages name.
    pub(crate) fn dir(&self) -> String {
        self.cluster.dir().display().to_string()
    }
}

/// Puts a fresh pair into a state.
type Make = fn() -> Scene;

/// By the heading in the document.
pub(crate) const STATES: &[(&str, Make)] = &[
    ("No daemon", || {
        let mut cluster = connected();
        cluster.alpha.stop();
        at(cluster, 0)
    }),
    ("Unknown resource", || at(connected(), 0)),
    ("Down", || {
        let cluster = connected();
        cluster.alpha.lockstep(&["down", RESOURCE]).ok();
        at(cluster, 0)
    }),
    ("No metadata", || {
        let mut cluster = Cluster::new(&plan());
        cluster.alpha.start();
        at(cluster, 0)
    }),
    ("Two copies without data", || {
        let mut cluster = Cluster::new(&plan());
        for node in cluster.nodes() {
            node.lockstep(&["create-md", RESOURCE]).ok();
            node.start();
        }
        cluster.alpha.wait_replication("NoSource");
        at(cluster, 0)
    }),
    ("Secondary, in sync, nobody Primary", || at(connected(), 0)),
    ("Secondary of a Primary", || at(primary(), 1)),
    ("Primary, in sync", || at(primary(), 0)),
    ("Primary with a client", || {
        let cluster = primary();
        let client = cluster.alpha.connect().expect("a client");
        cluster.alpha.wait_status("a client", |status| status["clients"][0].is_object());
        Scene { _faulty: None, cluster, at: 0, _client: Some(client) }
    }),
    ("Primary, peer away", || {
        let mut cluster = primary();
        cluster.beta.kill();
        cluster.alpha.wait_connection("Connecting");
        at(cluster, 0)
    }),
    ("Primary whose disk failed", || {
        let mut cluster = Cluster::new(&plan());
        let dir = cluster.dir().join("faulty");
        let mut faulty = FaultyDisk::new(&dir, cluster.alpha.disk(), 128 * MIB, Fault::Writes);
        cluster.begin();
        faulty.fail();
        write(&cluster.alpha, MIB);
        let served = |status: &serde_json::Value| {
            status["disk"] != "UpToDate" && status["peers"][0]["connection"] == "Connected"
        };
        cluster.alpha.wait_status("clients served through the peer", served);
        Scene { _faulty: Some(faulty), cluster, at: 0, _client: None }
    }),
    ("Primary, disk detached", || at(detached(0), 0)),
    ("Primary, disk of the peer detached", || at(detached(1), 0)),
    ("Secondary, disk detached", || at(detached(1), 1)),
    ("Primary, the last good copy failed", || {
        let mut cluster = Cluster::new(&plan());
        let dir = cluster.dir().join("faulty");
        let mut faulty = FaultyDisk::new(&dir, cluster.alpha.disk(), 128 * MIB, Fault::Flushes);
        cluster.begin();
        cluster.beta.kill();
        cluster.alpha.wait_connection("Connecting");
        write(&cluster.alpha, MIB);
        faulty.fail();
        let mut client = cluster.alpha.connect().expect("a client");
        client.write(0, &[9; 4096]).expect("a write that nothing has made durable");
        client.send(Command::Flush, false, 0, 0, &[]).expect("ask for a flush");
        assert!(client.receive().expect("an answer").error.is_some());
        drop(client);
        cluster.alpha.wait_status("a failed disk", |status| {
            status["disk"] == "Failed" && status["clients"].as_array().is_some_and(Vec::is_empty)
        });
        Scene { _faulty: Some(faulty), cluster, at: 0, _client: None }
    }),
    ("Secondary, disconnected", || {
        let cluster = primary();
        cluster.beta.lockstep(&["disconnect", RESOURCE]).ok();
        cluster.beta.wait_connection("StandAlone");
        at(cluster, 1)
    }),
    ("Secondary, peer away", || {
        let mut cluster = primary();
        cluster.alpha.kill();
        cluster
            .beta
            .wait_status("whole, not known to be the newest", |status| status["disk"] == "Consistent");
        at(cluster, 1)
    }),
    ("Secondary that left, peer away", || {
        let mut cluster = primary();
        cluster.beta.stop();
        write(&cluster.alpha, MIB);
        cluster.alpha.stop();
        cluster.beta.start();
        at(cluster, 1)
    }),
    ("Secondary that stopped uncleanly, peer away", || {
        let mut cluster = primary();
        write(&cluster.alpha, MIB);
        cluster.lose_power();
        cluster.beta.start();
        cluster.beta.wait_status("unclean", |status| status["unclean"] == true);
        at(cluster, 1)
    }),
    ("Target of a resync", || at(resyncing(), 1)),
    ("Source of a resync", || at(resyncing(), 0)),
    ("Target of a paused resync", || {
        let cluster = resyncing();
        cluster.alpha.lockstep(&["sync", RESOURCE, "--pause"]).ok();
        cluster.beta.wait_status("a pause", |status| status["peers"][0]["replication"] == "PausedTarget");
        at(cluster, 1)
    }),
    ("Source of an incomplete resync", || {
        let mut cluster = Cluster::new(&plan());
        let dir = cluster.dir().join("faulty");
        let mut faulty = FaultyDisk::new(&dir, cluster.alpha.disk(), 128 * MIB, Fault::Reads);
        cluster.begin();
        cluster.beta.stop();
        write(&cluster.alpha, 8 * MIB);
        faulty.fail();
        cluster.beta.start();
        cluster
            .alpha
            .wait_status("unreadable blocks", |status| status["peers"][0]["resync"]["incomplete"] == true);
        Scene { _faulty: Some(faulty), cluster, at: 0, _client: None }
    }),
    ("Unfinished target, source away", || {
        let mut cluster = resyncing();
        cluster.alpha.kill();
        cluster.beta.wait_connection("Connecting");
        at(cluster, 1)
    }),
    ("Split brain, both Primary", || at(parted(), 0)),
    ("Split brain, this node Secondary", || {
        let cluster = parted();
        cluster.beta.demote_idle();
        cluster.beta.wait_replication("SplitBrain");
        at(cluster, 1)
    }),
    ("Primary that lacks what the peer has", || {
        let mut cluster = primary();
        cluster.beta.stop();
        cluster.alpha.stop();
        let image = Backup::of(&cluster.alpha);
        for node in cluster.nodes() {
            node.start();
        }
        cluster.wait_synced();
        cluster.beta.promote().ok();
        write(&cluster.beta, MIB);
        cluster.alpha.stop();
        cluster.beta.stop();
        image.restore();
        cluster.alpha.start();
        cluster.alpha.promote().ok();
        cluster.beta.start();
        cluster.alpha.wait_replication("TargetIsPrimary");
        at(cluster, 0)
    }),
    ("Unrelated data", || {
        let mut cluster = Cluster::new(&plan());
        for (node, byte) in cluster.nodes().into_iter().zip([1_u8, 2]) {
            std::fs::write(node.disk(), vec![byte; 128 << 20]).expect("write the data");
            node.lockstep(&["create-md", RESOURCE, "--source"]).ok();
            node.start();
        }
        cluster.alpha.wait_replication("Unrelated");
        at(cluster, 0)
    }),
];

fn plan() -> Plan {
    Plan { size_bytes: 128 * MIB, max_hot_bytes: 32 * MIB, ..Plan::default() }
}

fn at(cluster: Cluster, at: usize) -> Scene {
    Scene { _faulty: None, cluster, at, _client: None }
}

fn connected() -> Cluster {
    Cluster::connected(&plan())
}

fn primary() -> Cluster {
    let cluster = Cluster::primary(&plan());
    cluster.beta.wait_status("a Primary", |status| status["peers"][0]["role"] == "Primary");
    cluster
}

/// Alpha is Primary, and one of the two works without its disk.
fn detached(without: usize) -> Cluster {
    let cluster = primary();
    let node = [&cluster.alpha, &cluster.beta][without];
    node.lockstep(&["detach", RESOURCE]).ok();
    node.wait_status("no disk", |status| {
        status["disk"] == "Diskless" && status["peers"][0]["connection"] == "Connected"
    });
    cluster
}

/// Writes so much, and lets go of the export again.
fn write(node: &Node, bytes: u64) {
    let mut client = node.connect().expect("a client");
    for chunk in 0..bytes / MIB {
        client.write(chunk * MIB, &vec![chunk as u8 + 1; MIB as usize]).expect("a write");
    }
    drop(client);
    let gone = |status: &serde_json::Value| status["clients"].as_array().is_some_and(Vec::is_empty);
    node.wait_status("no client", gone);
}

/// Alpha is Primary and sends to beta, for twenty seconds.
fn resyncing() -> Cluster {
    let mut cluster = primary();
    cluster.beta.stop();
    write(&cluster.alpha, 120 * MIB);
    cluster.proxy.slow_down(SLOW);
    cluster.beta.start();
    cluster.beta.wait_replication("SyncTarget");
    cluster.alpha.wait_replication("SyncSource");
    cluster
}

/// Both were written alone, and know it.
fn parted() -> Cluster {
    let cluster = primary();
    cluster.proxy.cut();
    cluster.beta.wait_connection("Connecting");
    cluster.beta.lockstep(&["promote", RESOURCE, "--peer-is-down"]).ok();
    for node in [&cluster.alpha, &cluster.beta] {
        write(node, MIB);
    }
    cluster.proxy.heal();
    for node in [&cluster.alpha, &cluster.beta] {
        node.wait_replication("SplitBrain");
    }
    cluster
}
