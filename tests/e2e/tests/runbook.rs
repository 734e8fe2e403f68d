//! The procedures of `docs/RUNBOOK.md`, typed from its text: each is made necessary, followed line by line, and
//! must end with two equal copies that hold what was acknowledged. A procedure that no test follows is a failure.
//!
//! A line is typed on the node that its comment names. `systemctl` starts and stops the daemon of that node;
//! `/dev/vdb` is its data file, `/backup` a folder of the test.

use lockstep_e2e::{Cluster, Fault, FaultyDisk, Ledger, Load, Node, Plan, RESOURCE, SmallDisk, seed};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

const RUNBOOK: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/RUNBOOK.md"));
const MIB: u64 = 1 << 20;
const SIZE_BYTES: u64 = 64 * MIB;

/// Makes a procedure necessary, follows it, and looks at what it was to do.
type Procedure = fn(&mut Scene);

/// By heading.
const PROCEDURES: &[(&str, Procedure)] = &[
    ("Look", |scene| scene.follow()),
    ("Planned move", |scene| {
        scene.follow();
        assert_eq!(scene.cluster.beta.status()["role"], "Primary");
        assert_eq!(scene.cluster.resynced_bytes(), 0, "nothing is copied");
    }),
    ("Maintenance of a node", |scene| {
        let load = scene.load();
        scene.follow();
        scene.undisturbed(load);
    }),
    ("The Primary died", |scene| {
        scene.cluster.alpha.kill();
        scene.cluster.beta.wait_connection("Connecting");
        scene.follow();
        assert_eq!(scene.cluster.beta.status()["role"], "Primary");
    }),
    ("Both lost power, both are back", |scene| {
        scene.cluster.lose_power();
        for node in scene.cluster.nodes() {
            node.start();
        }
        scene.follow();
    }),
    ("Both lost power, one is back", |scene| {
        scene.cluster.lose_power();
        scene.cluster.beta.start();
        scene.follow();
        scene.cluster.alpha.start();
    }),
    ("Both machines are gone", |scene| {
        for node in scene.cluster.nodes() {
            node.kill();
        }
        // One of the disks was read on another machine.
        fs::copy(scene.cluster.beta.disk(), scene.cluster.dir().join("backup/r0.img")).expect("copy a disk");
        for node in scene.cluster.nodes() {
            new_disk(node);
            fs::remove_file(meta_of(node)).expect("remove the metadata");
        }
        scene.follow();
        assert_eq!(scene.cluster.alpha.status()["role"], "Primary");
    }),
    ("Split brain", |scene| {
        scene.cluster.proxy.cut();
        scene.cluster.beta.wait_connection("Connecting");
        scene.cluster.beta.lockstep(&["promote", RESOURCE, "--peer-is-down"]).ok();
        let mut client = scene.cluster.beta.connect().expect("a client");
        client.write(0, &[7; 4096]).expect("a write");
        drop(client);
        scene.write();
        scene.cluster.proxy.heal();
        for node in [&scene.cluster.alpha, &scene.cluster.beta] {
            node.wait_replication("SplitBrain");
            node.wait_status("no client", |status| status["clients"].as_array().is_some_and(Vec::is_empty));
        }
        scene.follow();
    }),
    ("Replace the disk of a Secondary", |scene| {
        let load = scene.load();
        new_disk(&scene.cluster.beta);
        scene.follow();
        scene.undisturbed(load);
    }),
    ("Replace the disk of a Primary", |scene| {
        scene.alpha_on_a_failing_disk();
        let load = scene.load();
        scene.faulty.as_mut().expect("a failing disk").fail();
        scene.cluster.alpha.wait_status("a failed disk", |status| status["disk"] != "UpToDate");
        load.wait_acked(200);
        new_disk(&scene.cluster.alpha);
        scene.follow();
        scene.undisturbed(load);
    }),
    ("A disk hung", |scene| {
        scene.beta_on_a_hanging_disk();
        let load = scene.load();
        let mut disk = scene.faulty.take().expect("a hanging disk");
        disk.fail();
        scene.cluster.beta.wait_status("a failed disk", |status| status["disk"] == "Failed");
        load.wait_acked(200);
        let early = scene.cluster.beta.lockstep(&["attach", RESOURCE]);
        early.refused(11, &["has not completed", "lockstep attach r0"]);
        disk.mend();
        scene.faulty = Some(disk);
        // The procedure's own word for "too early" is a refusal.
        scene.cluster.beta.wait_status("a disk that was let go of", |status| status["disk_mode"].is_null());
        scene.follow();
        scene.undisturbed(load);
    }),
    ("Replace a node", |scene| {
        scene.cluster.beta.kill();
        new_disk(&scene.cluster.beta);
        fs::remove_file(meta_of(&scene.cluster.beta)).expect("remove the metadata");
        scene.follow();
    }),
    ("Two copies without data", |scene| {
        for node in scene.cluster.nodes() {
            node.stop();
            node.lockstep(&["create-md", RESOURCE, "--overwrite"]).ok();
            node.start();
        }
        scene.cluster.alpha.wait_replication("NoSource");
        scene.follow();
    }),
    ("A copy is wrong", |scene| {
        let load = scene.load();
        spoil(&scene.cluster.beta);
        scene.follow();
        scene.undisturbed(load);
    }),
    ("Restore an image", |scene| {
        let image = scene.cluster.dir().join("backup/r0.img");
        let content: Vec<u8> = (0..SIZE_BYTES).map(|at| (at / 4096 % 251) as u8).collect();
        fs::write(&image, &content).expect("write an image");
        scene.follow();
        scene.cluster.assert_replicas_equal();
        assert!(fs::read(scene.cluster.beta.disk()).expect("read a disk") == content, "it is not the image");
        scene.ledger = None;
    }),
    ("Incremental backup", |scene| {
        let load = scene.load();
        scene.follow();
        let found = scene.cluster.beta.status()["checkpoints"].clone();
        assert_eq!((&found[0]["name"], &found[1]), (&"tuesday".into(), &serde_json::Value::Null), "{found}");
        assert_eq!(found[0]["state"], "complete", "{found}");
        scene.undisturbed(load);
    }),
    ("Disk full", |scene| {
        scene.beta_on_a_small_disk();
        let load = scene.load();
        // Until its disk has no room for what is new.
        scene.cluster.alpha.wait_status("a copy that fell behind", |status| status["protected"] == false);
        load.wait_acked(200);
        scene.small.as_ref().expect("a small disk").grow(2 * SIZE_BYTES);
        scene.follow();
        scene.undisturbed(load);
    }),
    ("The peer is slow", |scene| {
        let load = scene.load();
        scene.follow();
        scene.undisturbed(load);
    }),
    ("A resync is slow", |scene| {
        scene.cluster.beta.stop();
        scene.write();
        scene.cluster.beta.start();
        scene.follow();
    }),
    ("A disk was moved", |scene| {
        scene.cluster.beta.stop();
        scene.write();
        let old = scene.cluster.beta.disk().with_extension("old");
        fs::rename(scene.cluster.beta.disk(), &old).expect("rename the disk");
        fs::copy(&old, scene.cluster.beta.disk()).expect("copy the disk");
        scene.cluster.beta.start();
        scene.follow();
    }),
    ("Read a disk without Lockstep", |scene| {
        scene.follow();
        let image = scene.cluster.dir().join("backup/r0.img");
        scene.ledger.as_mut().expect("a ledger").assert_kept(&image);
    }),
];

struct Scene {
    procedure: &'static str,
    /// Unmounted before the pair's directory is removed.
    small: Option<SmallDisk>,
    faulty: Option<FaultyDisk>,
    cluster: Cluster,
    /// What must be there at the end, unless the procedure gives it up.
    ledger: Option<Ledger>,
}

fn plan() -> Plan {
    Plan { size_bytes: SIZE_BYTES, max_hot_bytes: 32 * MIB, ..Plan::default() }
}

/// What is typed, and on which node.
#[derive(Debug)]
struct Step {
    node: &'static str,
    line: &'static str,
}

/// Lines of the shell in a document's text.
fn shell_lines(text: &'static str) -> impl Iterator<Item = &'static str> {
    let fences = text.split("\n```").skip(1).step_by(2);
    fences.filter_map(|fence| fence.strip_prefix("sh\n")).flat_map(str::lines)
}

/// The text of a procedure.
fn section(title: &str) -> &'static str {
    let heading = format!("\n### {title}\n");
    let (_, rest) = RUNBOOK.split_once(&heading).unwrap_or_else(|| panic!("no procedure \"{title}\""));
    rest.split("\n#").next().unwrap_or("")
}

fn steps(title: &str) -> Vec<Step> {
    let step = |line: &'static str| {
        let (typed, node) = line.split_once("# on ").unwrap_or_else(|| panic!("no node is named: {line}"));
        Step { node: node.trim(), line: typed.trim() }
    };
    shell_lines(section(title)).map(step).collect()
}

impl Scene {
    /// Alpha is Primary and was written.
    fn new(procedure: &'static str) -> Scene {
        let cluster = Cluster::primary(&plan());
        fs::create_dir(cluster.dir().join("backup")).expect("a folder");
        let ledger = Ledger::new(SIZE_BYTES, 4, seed(procedure)).write_some(cluster.alpha.nbd(), 500);
        let idle = |status: &serde_json::Value| status["clients"].as_array().is_some_and(Vec::is_empty);
        cluster.alpha.wait_status("no client", idle);
        Scene { procedure, cluster, ledger: Some(ledger), small: None, faulty: None }
    }

    /// Another pair, of which beta's file system has room for a part of the volume.
    fn beta_on_a_small_disk(&mut self) {
        let cluster = Cluster::new(&plan());
        let small = SmallDisk::new(&cluster.dir().join("small"), SIZE_BYTES / 8);
        small.hold(cluster.beta.disk(), SIZE_BYTES);
        self.small = Some(small);
        self.restart_with(cluster);
    }

    /// Another pair, of which alpha's disk will fail.
    fn alpha_on_a_failing_disk(&mut self) {
        let cluster = Cluster::new(&plan());
        let dir = cluster.dir().join("faulty");
        self.faulty = Some(FaultyDisk::new(&dir, cluster.alpha.disk(), SIZE_BYTES, Fault::Writes));
        self.restart_with(cluster);
    }

    /// Another pair, of which beta's disk will hang.
    fn beta_on_a_hanging_disk(&mut self) {
        let cluster = Cluster::new(&Plan { disk_timeout_s: Some(2), ..plan() });
        let dir = cluster.dir().join("faulty");
        self.faulty = Some(FaultyDisk::new(&dir, cluster.beta.disk(), SIZE_BYTES, Fault::Hangs));
        self.restart_with(cluster);
    }

    /// Both copies empty and equal, alpha Primary.
    fn restart_with(&mut self, mut cluster: Cluster) {
        cluster.begin();
        self.cluster = cluster;
        self.ledger = Some(Ledger::new(SIZE_BYTES, 4, seed("special disk")));
    }

    /// Types the procedure.
    fn follow(&mut self) {
        for step in steps(self.procedure) {
            println!("{}: {}", step.node, step.line);
            let dir = self.cluster.dir().display().to_string();
            let node = self.cluster.nodes().into_iter().find(|node| node.name() == step.node);
            let node = node.unwrap_or_else(|| panic!("no node {}", step.node));
            let words: Vec<&str> = step.line.split_whitespace().collect();
            match words.as_slice() {
                ["lockstep", arguments @ ..] => drop(node.lockstep(arguments).ok()),
                ["systemctl", "start", "lockstep"] => node.start(),
                ["systemctl", "stop", "lockstep"] => node.stop(),
                ["cp", ..] => {
                    let disk = node.disk().display().to_string();
                    let line =
                        step.line.replace("/dev/vdb", &disk).replace("/backup", &format!("{dir}/backup"));
                    lockstep_e2e::run(Command::new("sh").args(["-c", &line])).ok();
                }
                _ => panic!("nobody knows how to run {step:?}"),
            }
        }
    }

    fn load(&mut self) -> Load {
        let load = self.ledger.take().expect("a ledger").start(self.cluster.alpha.nbd(), 4);
        load.wait_acked(200);
        load
    }

    fn undisturbed(&mut self, load: Load) {
        load.wait_acked(200);
        assert_eq!(load.interruptions(), 0, "clients of the Primary noticed");
        self.ledger = Some(load.stop());
    }

    fn write(&mut self) {
        let ledger = self.ledger.take().expect("a ledger");
        self.ledger = Some(ledger.write_some(self.cluster.alpha.nbd(), 500));
    }

    fn settle(&mut self) {
        self.cluster.assert_replicas_equal();
        if let Some(ledger) = &mut self.ledger {
            ledger.assert_kept(self.cluster.alpha.disk());
        }
    }
}

fn meta_of(node: &Node) -> PathBuf {
    node.disk().with_file_name(format!("{RESOURCE}.0.meta"))
}

/// Another disk of the same size is put in place of the node's.
fn new_disk(node: &Node) {
    fs::remove_file(node.disk()).expect("remove the old disk");
    fs::File::create(node.disk()).and_then(|file| file.set_len(SIZE_BYTES)).expect("a new disk");
}

/// Somebody writes to the disk without Lockstep.
fn spoil(node: &Node) {
    let file = fs::File::options().write(true).open(node.disk()).expect("open the disk");
    for at in (0..SIZE_BYTES).step_by(5 * MIB as usize) {
        file.write_all_at(&[0xee; 512], at).expect("write to the disk");
    }
}

fn follow(part: usize, parts: usize) {
    for (title, procedure) in PROCEDURES.iter().skip(part).step_by(parts) {
        println!("== {title}");
        let mut scene = Scene::new(title);
        procedure(&mut scene);
        scene.settle();
    }
}

#[test]
fn every_procedure_of_the_first_half_works_as_written() {
    follow(0, 2);
}

#[test]
fn every_procedure_of_the_second_half_works_as_written() {
    follow(1, 2);
}

#[test]
fn no_procedure_of_the_document_is_left_out() {
    let (_, procedures) = RUNBOOK.split_once("\n## Procedures\n").expect("procedures");
    let titles: Vec<&str> = procedures.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let known: Vec<&str> = PROCEDURES.iter().map(|(title, _)| *title).collect();
    assert_eq!(titles, known);
    let followed: usize = titles.iter().map(|title| steps(title).len()).sum();
    assert_eq!(followed, shell_lines(RUNBOOK).count(), "commands outside of the procedures");
}
