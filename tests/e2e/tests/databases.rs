//! Databases through failovers: SQLite and PostgreSQL on ext4 on a volume, while the Primary is killed.
//!
//! A round: transactions run on the Primary; its daemon gets kill -9, and with it the machine that mounts the
//! volume is gone. The peer is promoted, mounts the file system (journal replay), recovers the database, and
//! every transaction whose commit was confirmed must be there, whole. It writes on while the old node comes
//! back as target. At the end both disks hold the same clean file system.
//!
//! What the database must hold is judged by the scripts in `databases/`, against a ledger outside of the volume.

use lockstep_e2e::{Cluster, Mounted, Plan, RESOURCE, Rng, Volume, rounds, seed, tool};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const SIZE_BYTES: u64 = 256 * MIB;
const MAX_HOT_BYTES: u64 = 64 * MIB;

/// A database, as a script that is given the mount, the ledger and the file that tells it to stop.
struct Database {
    /// Its interpreter, and how that is run.
    program: Vec<String>,
    /// Its last argument.
    last: String,
}

struct Scene {
    cluster: Cluster,
    rng: Rng,
    database: Database,
    machines: u64,
}

impl Scene {
    fn new(name: &str, cluster: Cluster, database: Database) -> Scene {
        Scene { cluster, rng: Rng::new(seed(name)), database, machines: 0 }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.cluster.dir().join(name)
    }

    /// Transactions that the ledger has.
    fn noted(&self) -> usize {
        fs::read_to_string(self.file("ledger")).map_or(0, |text| text.lines().count())
    }

    /// A new machine that mounts what this node serves.
    fn mount(&mut self, node: usize, volume: Volume) -> Mounted {
        self.machines += 1;
        let dir = self.file(&format!("machine{}", self.machines));
        let path = |path: PathBuf| path.display().to_string();
        let mut program: Vec<&str> = self.database.program.iter().map(String::as_str).collect();
        let given = [
            path(dir.join("mnt")),
            path(self.file("ledger")),
            path(self.file("stop")),
            self.database.last.clone(),
        ];
        program.extend(given.iter().map(String::as_str));
        Mounted::start(&dir, [&self.cluster.alpha, &self.cluster.beta][node], volume, &program)
    }

    #[track_caller]
    fn wait_transactions(&self, machine: &mut Mounted, more: usize) {
        let goal = self.noted() + more;
        machine.wait_while_running(&format!("{more} more transactions"), || self.noted() >= goal);
    }

    fn run(&mut self) {
        let mut primary = 0;
        self.cluster.nodes()[primary].promote().ok();
        let mut machine = self.mount(primary, Volume::Empty);
        for _ in 0..rounds("DATABASE", 1) {
            let more = 50 + self.rng.below(300) as usize;
            self.wait_transactions(&mut machine, more);
            if self.rng.below(2) == 0 {
                // What is on the wire when the Primary dies never arrives: what was committed must be there before.
                self.cluster.proxy.stall();
                std::thread::sleep(Duration::from_millis(self.rng.below(60)));
            }
            self.cluster.nodes()[primary].kill();
            machine.lose_power();
            self.cluster.proxy.reset();
            self.cluster.proxy.heal();
            let old = primary;
            primary = 1 - old;
            let survivor = &self.cluster.nodes()[primary];
            survivor.wait_connection("Connecting");
            survivor.lockstep(&["promote", RESOURCE, "--peer-is-down"]).ok();
            machine = self.mount(primary, Volume::Kept);
            self.wait_transactions(&mut machine, 30);
            self.cluster.nodes()[old].start();
            self.cluster.wait_synced();
            self.wait_transactions(&mut machine, 30);
            assert_eq!(self.cluster.nodes()[old].status()["role"], "Secondary");
        }
        fs::write(self.file("stop"), "").expect("tell the program to stop");
        machine.wait_end();
        println!("{} transactions", self.noted());
        self.cluster.nodes()[primary].demote_idle();
        self.compare();
    }

    /// Both disks are equal, and hold a clean file system.
    fn compare(&mut self) {
        self.cluster.assert_replicas_equal();
        for node in self.cluster.nodes() {
            node.stop();
        }
        let disks = [&self.cluster.alpha, &self.cluster.beta].map(|node| node.disk().display().to_string());
        self.cluster.alpha.lockstep(&["compare", &disks[0], &disks[1]]).ok();
        for disk in disks {
            tool("e2fsck").args(["-f", "-n", &disk]).run().ok();
        }
    }
}

fn cluster() -> Cluster {
    Cluster::connected(&Plan { size_bytes: SIZE_BYTES, max_hot_bytes: MAX_HOT_BYTES, ..Plan::default() })
}

fn sqlite(journal: &str) {
    const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/databases/sqlite.py");
    let program = ["/usr/bin/python3", SCRIPT].map(str::to_string).to_vec();
    Scene::new(&format!("sqlite {journal}"), cluster(), Database { program, last: journal.to_string() })
        .run();
}

#[test]
fn sqlite_with_a_write_ahead_log() {
    sqlite("wal");
}

#[test]
fn sqlite_with_a_rollback_journal() {
    sqlite("delete");
}

/// Numbers of the user as whom the server runs, which must not be root.
fn postgres_ids() -> (u32, u32) {
    let id = |option: &str| {
        let ran = lockstep_e2e::run(Command::new("id").args([option, "postgres"]));
        assert_eq!(ran.code, 0, "no user postgres: apt-get install postgresql (or cargo xtask setup): {ran}");
        ran.stdout.trim().parse().expect("a number")
    };
    (id("-u"), id("-g"))
}

#[test]
fn postgresql_with_three_sessions() {
    const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/databases/postgres.py");
    const STARTER: &str = "chown postgres \"$1\"; exec setpriv --reuid postgres --regid postgres --clear-groups -- \
         /usr/bin/python3 \"$0\" \"$1\" \"$2\" \"$3\" \"$4\"";
    let (user, group) = postgres_ids();
    let cluster = cluster();
    fs::set_permissions(cluster.dir(), fs::Permissions::from_mode(0o711)).expect("mode of the directory");
    let [run, ledger, script] = ["run", "ledger", "postgres.py"].map(|name| cluster.dir().join(name));
    fs::create_dir(&run).expect("directory of the server's socket");
    fs::write(&ledger, "").expect("create the ledger");
    // The user may not be able to read the source tree.
    fs::copy(SCRIPT, &script).expect("copy the script");
    for path in [&run, &ledger, &script] {
        chown(path, Some(user), Some(group)).expect("change an owner");
    }
    let path = |path: PathBuf| path.display().to_string();
    let program = ["sh", "-c", STARTER, &path(script)].map(str::to_string).to_vec();
    Scene::new("postgresql", cluster, Database { program, last: path(run) }).run();
}
