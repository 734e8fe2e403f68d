//! Disks of the device mapper: logged by dm-log-writes while they are recorded, plain afterwards, with the same name.

use lockstep_e2e::{Cluster, Loss, Media, Moment, Node, Positions, Rng, WriteLog, run, wait_for};
use std::cell::Cell;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const METADATA_BYTES: u64 = 32 << 20;
/// Room for what is written while it is recorded.
const LOG_BYTES: u64 = 192 << 20;
const STEP_LIMIT: Duration = Duration::from_secs(60);
const SECTOR_BYTES: u64 = 512;

/// A device: its name, the image under it, the log, and where its file system is mounted, if it has one.
#[derive(Debug)]
struct Device {
    name: String,
    image: PathBuf,
    log: PathBuf,
    bytes: u64,
    mounted_at: Option<PathBuf>,
    /// Loop devices in use.
    loops: Vec<String>,
}

impl Device {
    fn new(dir: &Path, node: &str, part: &str, bytes: u64, mounted_at: Option<PathBuf>) -> Device {
        let name = format!("{node}-{part}");
        let (image, log) = (dir.join(format!("{name}.image")), dir.join(format!("{name}.log")));
        Device { name, image, log, bytes, mounted_at, loops: Vec::new() }
    }

    fn path(&self) -> PathBuf {
        Path::new("/dev/mapper").join(&self.name)
    }

    /// Zeroes, and a log that begins with them.
    fn begin(&mut self) {
        sparse(&self.image, self.bytes);
        sparse(&self.log, LOG_BYTES);
        let (data, log) = (self.attach(&self.image.clone()), self.attach(&self.log.clone()));
        self.map(&format!("log-writes {data} {log}"));
        if self.mounted_at.is_some() {
            types("mkfs.ext4", &["-q", &self.path().display().to_string()]);
            self.mount();
        }
    }

    fn attach(&mut self, file: &Path) -> String {
        let device = types("losetup", &["--find", "--show", &file.display().to_string()]).trim().to_string();
        self.loops.push(device.clone());
        device
    }

    fn map(&self, target: &str) {
        let table = format!("0 {} {target}", self.bytes / SECTOR_BYTES);
        let uuid = format!("lockstep-{}", self.name);
        let create =
            ["create", &self.name, "--noudevsync", "--noudevrules", "--uuid", &uuid, "--table", &table];
        types("dmsetup", &create);
        // There is no udev that would.
        types("dmsetup", &["mknodes"]);
    }

    fn mount(&self) {
        let place = self.mounted_at.as_ref().expect("a place").display().to_string();
        types("mount", &[&self.path().display().to_string(), &place]);
    }

    /// Behind everything that is in the log by now, or will be for what has ended by now.
    fn mark(&self, number: u64) {
        types("dmsetup", &["message", &self.name, "0", "mark", &mark_text(number)]);
    }

    fn end(&mut self) {
        if self.loops.is_empty() {
            return;
        }
        if let Some(place) = &self.mounted_at {
            types("umount", &[&place.display().to_string()]);
        }
        // What held the disk of a killed daemon open may take a moment to go.
        wait_for(&format!("the end of {}", self.name), STEP_LIMIT, || {
            let ran = run(Command::new("dmsetup").args(["remove", "--noudevsync", &self.name]));
            if ran.code == 0 { Ok(()) } else { Err(ran.to_string()) }
        });
        for device in self.loops.drain(..) {
            types("losetup", &["--detach", &device]);
        }
    }

    fn again(&mut self, position: u64, loss: Loss, rng: &mut Rng) {
        let log = WriteLog::read(&self.log).expect("read a log");
        let entries = log.entries_before_mark(&mark_text(position)).expect("a mark in the log");
        sparse(&self.image, self.bytes);
        let image = File::options().write(true).open(&self.image).expect("open an image");
        let uncovered = log.cut(entries, &image, loss, rng).expect("write an image");
        println!("  {}: {} entries, {uncovered} not flushed, {loss:?} lost", self.name, entries.len());
        let data = self.attach(&self.image.clone());
        self.map(&format!("linear {data} 0"));
        if self.mounted_at.is_some() {
            self.mount();
        }
    }
}

/// Data and metadata of both nodes.
#[derive(Debug)]
pub(crate) struct Mapped {
    devices: [[Device; 2]; 2],
    /// How often the logs were marked.
    marks: Cell<u64>,
}

impl Mapped {
    pub(crate) fn new(cluster: &Cluster, size_bytes: u64) -> Mapped {
        let devices = [&cluster.alpha, &cluster.beta].map(|node| {
            let place = node.metadata().parent().expect("a folder").to_path_buf();
            let device = |part, bytes, place| Device::new(cluster.dir(), node.name(), part, bytes, place);
            [device("data", size_bytes, None), device("metadata", METADATA_BYTES, Some(place))]
        });
        Mapped { devices, marks: Cell::new(0) }
    }
}

impl Media for Mapped {
    /// The kernel logs a write when the flush that covers it begins.
    const HAS_UNFLUSHED: bool = false;

    fn begin(&mut self, which: usize, node: &Node) {
        let [data, metadata] = &mut self.devices[which];
        data.begin();
        metadata.begin();
        std::os::unix::fs::symlink(data.path(), node.disk()).expect("a link to a device");
    }

    /// It is on a file system that is logged from its beginning.
    fn begin_metadata(&mut self, _: usize) {}

    fn look(&self, cluster: &Cluster) -> (Moment, Positions) {
        for node in [&cluster.alpha, &cluster.beta] {
            node.pause();
        }
        let from = Instant::now();
        let number = self.marks.get() + 1;
        self.marks.set(number);
        self.devices.iter().flatten().for_each(|device| device.mark(number));
        let to = Instant::now();
        for node in [&cluster.alpha, &cluster.beta] {
            node.resume();
        }
        (Moment { from, to }, [[number; 2]; 2])
    }

    fn end(&mut self) {
        self.devices.iter_mut().flatten().for_each(Device::end);
    }

    fn again(&mut self, which: usize, part: usize, position: u64, loss: Loss, rng: &mut Rng) {
        self.devices[which][part].again(position, loss, rng);
    }

    /// The daemon writes past the page cache, and the loop device through that of the image.
    fn image(&self, which: usize) -> PathBuf {
        self.devices[which][0].image.clone()
    }
}

fn mark_text(number: u64) -> String {
    format!("moment-{number}")
}

fn sparse(path: &Path, bytes: u64) {
    File::create(path).and_then(|file| file.set_len(bytes)).expect("a sparse file");
}

#[track_caller]
fn types(program: &str, arguments: &[&str]) -> String {
    run(Command::new(program).args(arguments)).ok()
}
