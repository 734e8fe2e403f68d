//! Power cuts: real daemons on disks that log each write and flush, and the same pair again on what these disks may
//! hold after a power cut at a random moment.
//!
//! Data and metadata of both nodes are files that QEMU's storage daemon serves and logs, through FUSE (a daemon opens
//! the data with O_DIRECT and writes it through its ring, the metadata with RWF_DSYNC). While writers write, moments
//! are noted, each with the lengths of the four logs at it. Afterwards, for each of some: the four files are made
//! again as they may be after a cut then, of one machine or of both; fresh daemons start on them, and
//! - they attach, and both copies become equal,
//! - nothing is missing that was flushed by then (D2), or, where one machine had not lost power, that was acknowledged
//!   (D1), and no block holds what was never written there.
//!
//! Tolerated: any subset of what no flush covers is lost, sector by sector, on each disk by itself.

use lockstep_e2e::{
    Cluster, Ledger, Load, Loss, Moment, Node, Plan, Promised, RESOURCE, Ran, Rng, Served, WriteLog,
    assert_equal, rounds, seed, temp_dir,
};
use rustix::fs::OFlags;
use rustix::io::ReadWriteFlags;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const SIZE_BYTES: u64 = 64 * MIB;
const ALPHA: usize = 0;
const BETA: usize = 1;

/// A file of a node: where the daemon finds it, the image behind it, the log of the writes to it.
struct Medium {
    file: PathBuf,
    image: PathBuf,
    log: PathBuf,
    /// What the image held when the log began.
    base: PathBuf,
}

impl Medium {
    fn new(file: &Path) -> Medium {
        let beside = |suffix: &str| {
            let mut name = file.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        Medium {
            file: file.to_path_buf(),
            image: beside(".image"),
            log: beside(".writes"),
            base: beside(".base"),
        }
    }

    /// Serves what is at the file's place now, with a log.
    fn begin(&self) -> Served {
        std::fs::rename(&self.file, &self.image).expect("move an image");
        std::fs::copy(&self.image, &self.base).expect("copy an image");
        File::create(&self.file).expect("create a file");
        Served::start(&self.image, &self.file, Some(&self.log))
    }

    /// Makes the image that a cut leaves behind, and serves it.
    fn again(&self, log_bytes: u64, loss: Loss, rng: &mut Rng) -> Served {
        std::fs::copy(&self.base, &self.image).expect("copy an image");
        let image = File::options().write(true).open(&self.image).expect("open an image");
        let log = WriteLog::read(&self.log).expect("read a log");
        let entries = log.entries_within(log_bytes);
        let uncovered = log.cut(entries, &image, loss, rng).expect("write an image");
        println!(
            "  {}: {} entries, {uncovered} not flushed, {loss:?} lost",
            self.file.display(),
            entries.len()
        );
        Served::start(&self.image, &self.file, None)
    }
}

/// When the power may be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Both copies UpToDate and mirrored, from before the moment until after it.
    Mirrored,
    /// Alpha goes on alone, and has answered writes since beta is gone.
    Degraded,
    /// Anything between.
    Changing,
}

#[derive(Clone, Debug)]
struct Cut {
    moment: Moment,
    /// Data and metadata of each node.
    log_bytes: [[u64; 2]; 2],
    phase: Phase,
}

/// Whether the daemon's own descriptor of its disk says so.
fn is_direct(node: &Node) -> bool {
    let process = PathBuf::from(format!("/proc/{}", node.pid()));
    let open = std::fs::read_dir(process.join("fd")).expect("descriptors of a daemon").flatten();
    let disk = open.into_iter().find(|entry| entry.path().read_link().is_ok_and(|path| path == node.disk()));
    let number = disk.expect("the daemon has its disk open").file_name();
    let facts = std::fs::read_to_string(process.join("fdinfo").join(number)).expect("facts of a descriptor");
    let flags = facts.lines().find_map(|line| line.strip_prefix("flags:")).expect("flags of a descriptor");
    let flags = u32::from_str_radix(flags.trim(), 8).expect("flags in octal digits");
    flags & OFlags::DIRECT.bits() != 0
}

/// The served files are let go of before the daemons end that use them.
struct Rig {
    served: Vec<Served>,
    media: [[Medium; 2]; 2],
    cluster: Cluster,
}

impl Rig {
    /// Running on logged disks, alpha Primary.
    fn new() -> Rig {
        let plan = Plan { size_bytes: SIZE_BYTES, max_hot_bytes: 16 * MIB, ..Plan::default() };
        let mut cluster = Cluster::new(&plan);
        let media = [&cluster.alpha, &cluster.beta]
            .map(|node| [Medium::new(node.disk()), Medium::new(&node.metadata())]);
        let mut served = Vec::new();
        for (node, [data, metadata]) in cluster.nodes().into_iter().zip(&media) {
            File::create(&data.file).and_then(|file| file.set_len(SIZE_BYTES)).expect("a sparse file");
            served.push(data.begin());
            node.lockstep(&["create-md", RESOURCE, "--clean"]).ok();
            served.push(metadata.begin());
        }
        cluster.beta.start();
        cluster.alpha.start();
        cluster.wait_synced();
        cluster.alpha.promote().ok();
        for node in [&cluster.alpha, &cluster.beta] {
            assert!(is_direct(node), "{} has not opened its disk with O_DIRECT", node.name());
        }
        Rig { served, media, cluster }
    }

    /// Lengths of the logs at one moment: they were the same when looked at twice.
    fn look(&self, phase: Phase) -> Cut {
        let length = |medium: &Medium| medium.log.metadata().expect("length of a log").len();
        let lengths =
            || [ALPHA, BETA].map(|node| [length(&self.media[node][0]), length(&self.media[node][1])]);
        loop {
            let first = lengths();
            let from = Instant::now();
            let to = Instant::now();
            if lengths() == first {
                return Cut { moment: Moment { from, to }, log_bytes: first, phase };
            }
        }
    }

    fn end(&mut self) {
        for node in self.cluster.nodes() {
            if node.is_running() {
                node.kill();
            }
        }
        self.served.clear();
    }

    fn node(&mut self, which: usize) -> &mut Node {
        let [alpha, beta] = self.cluster.nodes();
        if which == ALPHA { alpha } else { beta }
    }

    /// Both machines as they are after the cut: those that `lost` power lack what was not flushed.
    fn cut(&mut self, cut: &Cut, lost: [bool; 2], rng: &mut Rng) {
        for which in [ALPHA, BETA] {
            // One power cut for both files, but each disk has its own cache.
            for part in [0, 1] {
                let loss = if lost[which] { Loss::draw(rng) } else { Loss::Nothing };
                let served = self.media[which][part].again(cut.log_bytes[which][part], loss, rng);
                self.served.push(served);
            }
            self.node(which).returns(lost[which]);
        }
    }

    #[track_caller]
    fn assert_kept(&self, which: usize, ledger: &mut Ledger) {
        ledger.assert_kept(&self.media[which][0].image);
    }

    /// Equal, as promised, and in service.
    #[track_caller]
    fn settle(&mut self, primary: usize, mut ledger: Ledger) {
        self.cluster.wait_quiet();
        self.assert_kept(primary, &mut ledger);
        let mut ledger = ledger.write_some(self.node(primary).nbd(), 100);
        self.cluster.wait_quiet();
        assert_equal(&self.media[ALPHA][0].image, &self.media[BETA][0].image);
        self.assert_kept(1 - primary, &mut ledger);
    }
}

/// Moments while `load` runs.
fn look_on(rig: &Rig, load: &Load, phase: Phase, count: u64, rng: &mut Rng, cuts: &mut Vec<Cut>) {
    for _ in 0..count {
        load.wait_acked(30 + rng.below(300));
        std::thread::sleep(Duration::from_micros(rng.below(20_000)));
        cuts.push(rig.look(phase));
    }
}

/// A pair under load: mirrored, parted, and mirrored again; what its clients knew, and moments to cut the power at.
fn record(number: u64, rng: &mut Rng) -> (Rig, Ledger, Vec<Cut>) {
    let mut rig = Rig::new();
    let load = Ledger::new(SIZE_BYTES, 4, number).with_diary().start(rig.cluster.alpha.nbd(), 8);
    let mut cuts = Vec::new();
    for part in 0..2 {
        let begin = cuts.len();
        rig.cluster.wait_synced();
        let losses = |rig: &Rig| rig.cluster.alpha.log().matches("replication Established ->").count();
        let before = losses(&rig);
        look_on(&rig, &load, Phase::Mirrored, 10, rng, &mut cuts);
        rig.cluster.wait_synced();
        if losses(&rig) != before {
            // On a slow machine a peer may be silent for too long.
            cuts[begin..].iter_mut().for_each(|cut| cut.phase = Phase::Changing);
        }
        if part == 0 {
            rig.cluster.proxy.cut();
            look_on(&rig, &load, Phase::Changing, 2, rng, &mut cuts);
            rig.cluster.alpha.wait_connection("Connecting");
            look_on(&rig, &load, Phase::Degraded, 4, rng, &mut cuts);
            rig.cluster.proxy.heal();
            look_on(&rig, &load, Phase::Changing, 4, rng, &mut cuts);
        }
    }
    let ledger = load.stop();
    rig.end();
    println!("recorded {} blocks", ledger.blocks());
    (rig, ledger, cuts)
}

/// Promotes, with `--peer-is-down` where the refusal says so and names nothing worse.
#[track_caller]
fn promote_alone(node: &Node) {
    let ran = node.promote();
    if ran.code != 0 {
        ran.refused(17, &["lockstep promote r0 --peer-is-down"]);
        node.lockstep(&["promote", RESOURCE, "--peer-is-down"]).ok();
    }
}

/// One machine loses power; the other one's daemon is killed at that moment.
fn one_loses_power(rig: &mut Rig, ledger: &Ledger, cut: &Cut, rng: &mut Rng) {
    let loser = rng.below(2) as usize;
    let kept = 1 - loser;
    let is_alone = rng.below(2) == 0;
    println!(
        " {} loses power, the other one returns {}",
        ["alpha", "beta"][loser],
        if is_alone { "first" } else { "too" }
    );
    rig.cut(cut, [loser == ALPHA, loser == BETA], rng);
    let mut ledger = ledger.at(cut.moment, Promised::Acknowledged);
    rig.node(kept).start();
    if is_alone {
        promote_alone(rig.node(kept));
        rig.assert_kept(kept, &mut ledger);
        rig.node(loser).start();
        rig.settle(kept, ledger);
    } else {
        both_return(rig, loser, ledger, rng);
    }
}

/// The other one is there already, or comes now.
fn both_return(rig: &mut Rig, second: usize, ledger: Ledger, rng: &mut Rng) {
    rig.node(second).start();
    rig.cluster.wait_synced();
    let primary = rng.below(2) as usize;
    rig.node(primary).promote().ok();
    rig.settle(primary, ledger);
}

/// Both lose power at the same moment; both return, or one does.
fn both_lose_power(rig: &mut Rig, ledger: &Ledger, cut: &Cut, rng: &mut Rng) {
    rig.cut(cut, [true, true], rng);
    let mut ledger = ledger.at(cut.moment, Promised::Durable);
    let alone = match cut.phase {
        Phase::Mirrored if rng.below(2) == 0 => Some(rng.below(2) as usize),
        Phase::Degraded if rng.below(2) == 0 => Some(ALPHA),
        _ => None,
    };
    println!(
        " both lose power; {}",
        alone.map_or("both return".to_string(), |which| format!("{} returns", ["alpha", "beta"][which]))
    );
    let first = alone.unwrap_or_else(|| rng.below(2) as usize);
    rig.node(first).start();
    match cut.phase {
        _ if alone.is_none() => return both_return(rig, 1 - first, ledger, rng),
        Phase::Degraded => drop(rig.node(first).promote().ok()),
        _ => {
            let refused: Ran = rig.node(first).promote();
            refused.refused(17, &["uncleanly", "lockstep promote r0 --accept-data-loss"]);
            rig.node(first).lockstep(&["promote", RESOURCE, "--accept-data-loss"]).ok();
        }
    }
    rig.assert_kept(first, &mut ledger);
    // The other one is no better, and is the target.
    rig.node(1 - first).start();
    rig.settle(first, ledger);
}

#[test]
fn what_was_promised_survives_power_cuts() {
    let number = seed("power");
    for round in 0..rounds("POWER", 1) {
        let mut rng = Rng::new(number.wrapping_add(round));
        let (mut rig, ledger, cuts) = record(number.wrapping_add(round), &mut rng);
        for turn in 0..rounds("POWER_CUTS", 10) {
            let cut = cuts[rng.below(cuts.len() as u64) as usize].clone();
            println!("round {round}, cut {turn}: {:?}", cut.phase);
            match cut.phase {
                Phase::Mirrored if rng.below(3) < 2 => one_loses_power(&mut rig, &ledger, &cut, &mut rng),
                _ => both_lose_power(&mut rig, &ledger, &cut, &mut rng),
            }
            rig.end();
        }
    }
}

#[test]
fn what_a_daemon_makes_durable_is_a_flush_in_the_log() {
    let dir = temp_dir(false);
    let medium = Medium::new(&dir.path().join("disk"));
    File::create(&medium.file).and_then(|file| file.set_len(MIB)).expect("a sparse file");
    let served = medium.begin();
    let file = File::options().write(true).open(&medium.file).expect("open a served file");
    file.write_all_at(&[1; 4096], 0).expect("a write");
    file.sync_data().expect("fdatasync");
    let block = [std::io::IoSlice::new(&[2; 4096])];
    rustix::io::pwritev2(&file, &block, 8192, ReadWriteFlags::DSYNC).expect("a write with FUA");
    file.write_all_at(&[3; 512], 4096).expect("a write");
    drop(file);
    drop(served);
    let log = WriteLog::read(&medium.log).expect("read a log");
    let mut shown: Vec<(u64, u64, bool)> = log
        .entries()
        .iter()
        .map(|entry| (entry.offset_bytes, entry.length_bytes, entry.is_flush()))
        .collect();
    shown.iter_mut().filter(|(_, _, is_flush)| *is_flush).for_each(|entry| entry.0 = 0);
    let expected = [(0, 4096, false), (0, 0, true), (8192, 4096, false), (0, 0, true), (4096, 512, false)];
    assert_eq!(shown[..5], expected);
}
