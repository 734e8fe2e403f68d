//! Disks that fail under load, by tools that others wrote: writes with EIO, flushes with EIO, no room.
//!
//! Whichever copy fails, clients of the Primary go on without an error, `status` names the failed copy, and what
//! was acknowledged is on the other one. Then the disk is replaced, and both copies are equal again.

use lockstep_e2e::{Cluster, Fault, FaultyDisk, Ledger, Load, Node, Plan, RESOURCE, SmallDisk, seed};

const MIB: u64 = 1 << 20;
const SIZE_BYTES: u64 = 64 * MIB;
const ALPHA: usize = 0;
const BETA: usize = 1;

/// Dropped in this order: what is mounted goes before the directory it is in.
struct Scene {
    faulty: Option<FaultyDisk>,
    _small: Option<SmallDisk>,
    cluster: Cluster,
    failing: usize,
}

impl Scene {
    fn with_fault(failing: usize, fault: Fault) -> Scene {
        let mut cluster = new_cluster();
        let dir = cluster.dir().join("faulty");
        let name = cluster.nodes()[failing].disk().to_path_buf();
        let faulty = FaultyDisk::new(&dir, &name, SIZE_BYTES, fault);
        Scene { faulty: Some(faulty), _small: None, cluster, failing }.up()
    }

    /// A disk with room for an eighth of the volume.
    fn with_little_room(failing: usize) -> Scene {
        let mut cluster = new_cluster();
        let small = SmallDisk::new(&cluster.dir().join("small"), SIZE_BYTES / 8);
        small.hold(cluster.nodes()[failing].disk(), SIZE_BYTES);
        Scene { faulty: None, _small: Some(small), cluster, failing }.up()
    }

    /// Both equal and connected, alpha Primary.
    fn up(mut self) -> Scene {
        self.cluster.begin();
        self
    }

    fn load(&self, name: &str) -> Load {
        let load = Ledger::new(SIZE_BYTES, 4, seed(name)).start(self.cluster.alpha.nbd(), 4);
        load.wait_acked(300);
        load
    }

    fn fail(&mut self) {
        if let Some(faulty) = &mut self.faulty {
            faulty.fail();
        }
    }

    fn nodes(&mut self) -> (&mut Node, &mut Node) {
        let [alpha, beta] = self.cluster.nodes();
        if self.failing == ALPHA { (alpha, beta) } else { (beta, alpha) }
    }

    /// The copy that failed is shown as such, on both nodes, and the other one goes on alone.
    fn assert_failed(&mut self, load: &Load) {
        let lost = |disk: &serde_json::Value| disk == "Failed" || disk == "Diskless" || disk == "Outdated";
        let (failed, other) = self.nodes();
        failed.wait_status("a failed copy", |status| lost(&status["disk"]));
        other.wait_status("the peer's failed copy", |status| {
            status["disk"] == "UpToDate" && status["protected"] == false
        });
        load.wait_acked(500);
        assert_eq!(load.interruptions(), 0, "clients of the Primary noticed");
        assert_eq!(self.cluster.alpha.status()["role"], "Primary");
    }

    /// Another disk takes the place of the one that failed.
    fn replace_disk(&mut self) {
        let (failed, _) = self.nodes();
        std::fs::remove_file(failed.disk()).expect("remove the link to the old disk");
        std::fs::File::create(failed.disk()).and_then(|file| file.set_len(SIZE_BYTES)).expect("a new disk");
    }

    fn settle(&mut self, load: Load) {
        load.wait_acked(200);
        assert_eq!(load.interruptions(), 0, "clients of the Primary noticed");
        let mut ledger = load.stop();
        self.cluster.assert_replicas_equal();
        ledger.assert_kept(self.cluster.beta.disk());
    }
}

fn new_cluster() -> Cluster {
    Cluster::new(&Plan { size_bytes: SIZE_BYTES, max_hot_bytes: 32 * MIB, ..Plan::default() })
}

/// The Secondary leaves with its broken disk, and comes back with another one.
fn the_secondary_fails(mut scene: Scene, name: &str) {
    let load = scene.load(name);
    scene.fail();
    scene.assert_failed(&load);
    scene.replace_disk();
    let (failed, _) = scene.nodes();
    for typed in [&["down", RESOURCE][..], &["create-md", RESOURCE, "--overwrite"], &["up", RESOURCE]] {
        failed.lockstep(typed).ok();
    }
    scene.settle(load);
}

#[test]
fn writes_fail_at_the_secondary() {
    the_secondary_fails(Scene::with_fault(BETA, Fault::Writes), "writes fail at the Secondary");
}

#[test]
fn flushes_fail_at_the_secondary() {
    the_secondary_fails(Scene::with_fault(BETA, Fault::Flushes), "flushes fail at the Secondary");
}

#[test]
fn no_room_at_the_secondary() {
    the_secondary_fails(Scene::with_little_room(BETA), "no room at the Secondary");
}

/// The Primary goes on through its peer, and gets another disk under its clients.
fn the_primary_fails(mut scene: Scene, name: &str) {
    let load = scene.load(name);
    scene.fail();
    scene.assert_failed(&load);
    scene.replace_disk();
    let (failed, _) = scene.nodes();
    for typed in [&["create-md", RESOURCE, "--overwrite"][..], &["attach", RESOURCE]] {
        failed.lockstep(typed).ok();
    }
    scene.settle(load);
}

#[test]
fn writes_fail_at_the_primary() {
    the_primary_fails(Scene::with_fault(ALPHA, Fault::Writes), "writes fail at the Primary");
}

#[test]
fn flushes_fail_at_the_primary() {
    the_primary_fails(Scene::with_fault(ALPHA, Fault::Flushes), "flushes fail at the Primary");
}

#[test]
fn no_room_at_the_primary() {
    the_primary_fails(Scene::with_little_room(ALPHA), "no room at the Primary");
}
