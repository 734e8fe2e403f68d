//! Power cuts of real daemons on files that log what is written to them (what is checked: `src/power.rs`).
//!
//! QEMU's storage daemon serves the files and keeps their logs, nbdfuse makes them files: the data is written with
//! O_DIRECT through the ring, the metadata with RWF_DSYNC. The same under real block devices is in `tests/vm`.

use lockstep_e2e::{
    Cluster, Loss, Media, Moment, Node, Positions, Recording, Rng, Served, WriteLog, power_plan, rounds,
    seed, temp_dir,
};
use rustix::io::ReadWriteFlags;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

const MIB: u64 = 1 << 20;
const SIZE_BYTES: u64 = 64 * MIB;

/// A file of a node: where the daemon finds it, the image behind it, the log of the writes to it.
#[derive(Debug)]
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
}

#[derive(Debug)]
struct Files {
    served: Vec<Served>,
    media: [[Medium; 2]; 2],
}

impl Files {
    fn new(cluster: &Cluster) -> Files {
        let media = [&cluster.alpha, &cluster.beta]
            .map(|node| [Medium::new(node.disk()), Medium::new(&node.metadata())]);
        Files { served: Vec::new(), media }
    }

    fn lengths(&self) -> Positions {
        let length = |medium: &Medium| medium.log.metadata().expect("length of a log").len();
        [0, 1].map(|which| [length(&self.media[which][0]), length(&self.media[which][1])])
    }
}

impl Media for Files {
    const HAS_UNFLUSHED: bool = true;

    fn begin(&mut self, which: usize, _: &Node) {
        let data = &self.media[which][0];
        File::create(&data.file).and_then(|file| file.set_len(SIZE_BYTES)).expect("a sparse file");
        self.served.push(data.begin());
    }

    fn begin_metadata(&mut self, which: usize) {
        self.served.push(self.media[which][1].begin());
    }

    /// The lengths were the same when looked at twice: so they were between.
    fn look(&self, _: &Cluster) -> (Moment, Positions) {
        loop {
            let first = self.lengths();
            let from = Instant::now();
            let to = Instant::now();
            if self.lengths() == first {
                return (Moment { from, to }, first);
            }
        }
    }

    fn end(&mut self) {
        self.served.clear();
    }

    fn again(&mut self, which: usize, part: usize, position: u64, loss: Loss, rng: &mut Rng) {
        let medium = &self.media[which][part];
        std::fs::copy(&medium.base, &medium.image).expect("copy an image");
        let image = File::options().write(true).open(&medium.image).expect("open an image");
        let log = WriteLog::read(&medium.log).expect("read a log");
        let entries = log.entries_within(position);
        let uncovered = log.cut(entries, &image, loss, rng).expect("write an image");
        let count = entries.len();
        println!("  {}: {count} entries, {uncovered} not flushed, {loss:?} lost", medium.file.display());
        self.served.push(Served::start(&medium.image, &medium.file, None));
    }

    fn image(&self, which: usize) -> PathBuf {
        self.media[which][0].image.clone()
    }
}

#[test]
fn what_was_promised_survives_power_cuts() {
    let number = seed("power");
    for round in 0..rounds("POWER", 1) {
        let number = number.wrapping_add(round);
        let mut recording = Recording::new(&power_plan(SIZE_BYTES), Files::new, 4, number);
        let mut rng = Rng::new(!number);
        for turn in 0..rounds("POWER_CUTS", 10) {
            println!("round {round}, cut {turn}");
            recording.cut_somewhere(&mut rng);
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
