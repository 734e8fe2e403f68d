//! A disk that stops answering under load, with `disk-timeout`: its copy fails, clients of the Primary go on through
//! the other one, what the disk does late harms nobody, and `attach` brings the copy back by bitmap.

use lockstep_e2e::{
    Cluster, Direction, Fault, FaultyDisk, Ledger, Node, Plan, RESOURCE, Ran, qemu_uri, seed, tool, wait_for,
    wait_until,
};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const SIZE_BYTES: u64 = 128 * MIB;
const LIMIT: Duration = Duration::from_secs(40);
const ALPHA: usize = 0;
const BETA: usize = 1;

struct Scene {
    /// Ended before the daemons, which may wait for it: taken out behind the cluster.
    disk: FaultyDisk,
    cluster: Cluster,
    failing: usize,
}

impl Scene {
    /// Both equal, alpha Primary; the disk of `failing` will hang.
    fn new(failing: usize) -> Scene {
        let plan = Plan {
            size_bytes: SIZE_BYTES,
            max_hot_bytes: 32 * MIB,
            disk_timeout_s: Some(2),
            ..Plan::default()
        };
        let mut cluster = Cluster::new(&plan);
        let dir = cluster.dir().join("faulty");
        let link = cluster.nodes()[failing].disk().to_path_buf();
        let disk = FaultyDisk::new(&dir, &link, SIZE_BYTES, Fault::Hangs);
        cluster.begin();
        Scene { disk, cluster, failing }
    }
}

/// The node whose disk hangs, and the other one.
fn nodes(cluster: &Cluster, failing: usize) -> (&Node, &Node) {
    let nodes = [&cluster.alpha, &cluster.beta];
    (nodes[failing], nodes[1 - failing])
}

/// From the last answer of a disk to a copy that is known to have failed, on both nodes.
fn hang(disk: &mut FaultyDisk, (failed, other): (&Node, &Node)) {
    disk.fail();
    failed.wait_status("a failed copy", |status| status["disk"] == "Failed");
    let alone = |status: &serde_json::Value| status["disk"] == "UpToDate" && status["protected"] == false;
    other.wait_status("a copy that goes on alone", alone);
}

/// A disk that answers again is attached as soon as it has done what it was asked for.
fn return_of(node: &Node, cluster: &Cluster) {
    let before = cluster.resynced_bytes();
    wait_for("the attach of a disk that answers again", LIMIT, || {
        let ran = node.lockstep(&["attach", RESOURCE]);
        if ran.code == 0 { Ok(()) } else { Err(ran.to_string()) }
    });
    cluster.wait_synced();
    let resynced = cluster.resynced_bytes() - before;
    assert!(resynced > 0 && resynced < SIZE_BYTES, "{resynced} bytes: a full copy");
    assert_eq!(cluster.alpha.status()["role"], "Primary");
    for node in [&cluster.alpha, &cluster.beta] {
        assert!(!node.log().contains("SplitBrain"), "{} saw a split brain", node.name());
    }
}

fn writers_go_on(failing: usize, name: &str) {
    let Scene { cluster, mut disk, .. } = Scene::new(failing);
    let (failed, other) = nodes(&cluster, failing);
    let load = Ledger::new(SIZE_BYTES, 4, seed(name)).start(cluster.alpha.nbd(), 4);
    load.wait_acked(300);
    hang(&mut disk, (failed, other));
    load.wait_acked(500);
    // While the disk may still do something, no other takes its place.
    failed.lockstep(&["attach", RESOURCE]).refused(11, &["has not completed", "lockstep attach r0"]);
    disk.mend();
    load.wait_acked(300);
    return_of(failed, &cluster);
    load.wait_acked(200);
    assert_eq!(load.interruptions(), 0, "clients of the Primary noticed");
    let mut ledger = load.stop();
    cluster.assert_replicas_equal();
    ledger.assert_kept(cluster.beta.disk());
}

#[test]
fn the_disk_of_the_secondary_hangs() {
    writers_go_on(BETA, "the Secondary's disk hangs");
}

#[test]
fn the_disk_of_the_primary_hangs() {
    writers_go_on(ALPHA, "the Primary's disk hangs");
}

/// Writes for some seconds, reads all of it again, and fails at the first error that the server answers.
fn fio(cluster: &Cluster) -> Ran {
    let uri = format!("--uri={}", qemu_uri(cluster.alpha.nbd(), RESOURCE));
    let aux = format!("--aux-path={}", cluster.dir().display());
    tool("fio")
        .args(["--name=job", "--output-format=terse", "--ioengine=nbd", "--iodepth=8", "--randseed=7"])
        .args([aux, uri])
        .args(["--rw=randwrite", "--bs=4k", "--size=24M", "--fsync=64", "--rate_iops=1500"])
        .args(["--verify=crc32c", "--verify_fatal=1", "--do_verify=1"])
        .run()
}

#[test]
fn fio_notices_no_more_than_a_pause_and_reads_back_what_it_wrote() {
    let Scene { cluster, mut disk, failing } = Scene::new(ALPHA);
    let (failed, other) = nodes(&cluster, failing);
    let before = cluster.proxy.passed_bytes(Direction::ToBeta);
    std::thread::scope(|scope| {
        let job = scope.spawn(|| fio(&cluster));
        let passed = || cluster.proxy.passed_bytes(Direction::ToBeta) - before;
        wait_until("some of fio's writes", LIMIT, || passed() > 4 * MIB);
        hang(&mut disk, (failed, other));
        wait_until("more of fio's writes", LIMIT, || passed() > 12 * MIB);
        disk.mend();
        // It reads through the other copy, or from this one while that is being filled.
        return_of(failed, &cluster);
        job.join().expect("fio").ok();
    });
    cluster.assert_replicas_equal();
}
