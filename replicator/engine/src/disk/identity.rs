//! What tells one disk from another: compared at each attach, so that metadata is never used with somebody
//! else's data.
//!
//! A block device is known by its partition UUID, wwid and serial number, or, if it has none, by the place
//! where it is plugged in; a file by its inode, birth time and file system. Nothing goes in that a reboot
//! changes by itself, like device numbers. The identity is a hash and the beginning of the text, so that a
//! mismatch can be shown to people.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use lockstep_bitmap::DeviceIdentity;
use rustix::fs::{AtFlags, StatxFlags, major, minor};

/// What can be told about a disk without locking it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceFacts {
    /// For comparison, and for the metadata.
    pub identity: DeviceIdentity,
    /// The same for people.
    pub text: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Block device, or file.
    pub is_block: bool,
    /// Nothing is known that another disk has not got too: a mix-up would not be noticed.
    pub is_ambiguous: bool,
}

/// Looks at a disk. Fails if it is neither a block device nor a file, or cannot be read.
pub fn device_facts(path: &Path) -> io::Result<DeviceFacts> {
    let metadata = fs::metadata(path)?;
    let is_block = metadata.file_type().is_block_device();
    if !is_block && !metadata.is_file() {
        return Err(io::Error::other("neither a file nor a block device"));
    }
    let size_bytes = super::size_of(&mut File::open(path)?)?;
    let (text, is_ambiguous) = match is_block {
        true => Block::of(metadata.rdev()).text(),
        false => (file_text(path, metadata.dev())?, false),
    };
    Ok(DeviceFacts { identity: identity_of(&text), text, size_bytes, is_block, is_ambiguous })
}

/// Whether the device under a file or block device has seek times, as far as the kernel says so.
pub(super) fn is_rotational(metadata: &fs::Metadata) -> bool {
    let device = if metadata.file_type().is_block_device() { metadata.rdev() } else { metadata.dev() };
    let folder = Path::new("/sys/dev/block").join(format!("{}:{}", major(device), minor(device)));
    // A partition's folder lies inside that of its disk.
    let told = [folder.join("queue/rotational"), folder.join("../queue/rotational")];
    told.iter().find_map(|file| read_line(file)).is_some_and(|line| line == "1")
}

const HASH_BYTES: usize = 24;

fn identity_of(text: &str) -> DeviceIdentity {
    let mut bytes = [0; 64];
    bytes[..HASH_BYTES].copy_from_slice(&blake3::hash(text.as_bytes()).as_bytes()[..HASH_BYTES]);
    let room = bytes.len() - HASH_BYTES;
    let shown = &text.as_bytes()[..text.len().min(room)];
    bytes[HASH_BYTES..HASH_BYTES + shown.len()].copy_from_slice(shown);
    DeviceIdentity(bytes)
}

/// The beginning of the text that an identity was made from.
pub(crate) fn identity_text(identity: &DeviceIdentity) -> String {
    let shown = identity.0[HASH_BYTES..].split(|byte| *byte == 0).next().unwrap_or(&[]);
    String::from_utf8_lossy(shown).into_owned()
}

/// Files below the device's folder in sysfs that name it, the most telling first.
const NAMES: [(&str, &str); 6] = [
    ("wwid", "wwid"),
    ("wwid", "device/wwid"),
    ("serial", "serial"),
    ("serial", "device/serial"),
    ("uuid", "dm/uuid"),
    ("uuid", "md/uuid"),
];
/// What udev knows of a whole disk.
const UDEV_NAMES: [&str; 2] = ["ID_WWN_WITH_EXTENSION", "ID_SERIAL"];

/// What the system says of a block device.
#[derive(Debug, Default)]
struct Block {
    /// Number and UUID of a partition.
    partition: Option<(String, Option<String>)>,
    /// Names of the whole disk, each with its kind.
    names: Vec<String>,
    /// Where the disk is plugged in.
    place: Option<String>,
}

impl Block {
    fn of(rdev: u64) -> Self {
        let number = format!("{}:{}", major(rdev), minor(rdev));
        let folder = Path::new("/sys/dev/block").join(&number);
        let partition = read_line(&folder.join("partition"));
        // A partition's folder lies inside that of its disk.
        let disk = if partition.is_some() { folder.join("..") } else { folder.clone() };
        let named = |(key, file): &(&str, &str)| Some(format!("{key}={}", read_line(&disk.join(file))?));
        let mut names: Vec<String> = NAMES.iter().filter_map(named).collect();
        names.extend(named(&("loop", "loop/backing_file")));
        if names.is_empty() {
            let number = read_line(&disk.join("dev")).unwrap_or_default();
            let known = |key: &&str| Some(format!("{key}={}", udev_value(&number, key)?));
            names.extend(UDEV_NAMES.iter().filter_map(known));
        }
        // New kernels tell the UUID themselves; it is the same one.
        let uuid = || {
            let told = value_in(&folder.join("uevent"), "PARTUUID=");
            told.or_else(|| udev_value(&number, "ID_PART_ENTRY_UUID")).map(|uuid| uuid.to_lowercase())
        };
        let partition = partition.map(|number| (number, uuid()));
        let place = fs::canonicalize(disk.join("device")).ok().map(|device| place_of(&device));
        Self { partition, names, place }
    }

    /// The text, and whether another disk might have the same.
    fn text(self) -> (String, bool) {
        let mut facts = Vec::new();
        let needs_place = self.names.is_empty() && !matches!(self.partition, Some((_, Some(_))));
        let is_ambiguous = needs_place && self.place.is_none();
        if let Some((number, uuid)) = self.partition {
            facts.extend(uuid.map(|uuid| format!("partuuid={uuid}")));
            facts.push(format!("partition={number}"));
        }
        facts.extend(self.names);
        if needs_place {
            facts.push(
                self.place.map_or("a device without serial number".into(), |place| format!("at {place}")),
            );
        }
        (facts.join(" "), is_ambiguous)
    }
}

/// The bus address in the path of a device. virtio numbers its devices as it finds them: that part goes.
fn place_of(device: &Path) -> String {
    let is_counted = |name: &str| name.starts_with("virtio");
    let path = match device.file_name() {
        Some(name) if name.to_str().is_some_and(is_counted) => device.parent().unwrap_or(device),
        _ => device,
    };
    path.strip_prefix("/sys/devices").unwrap_or(path).display().to_string()
}

fn udev_value(number: &str, key: &str) -> Option<String> {
    value_in(&Path::new("/run/udev/data").join(format!("b{number}")), &format!("E:{key}="))
}

/// The rest of the line that begins so.
fn value_in(path: &Path, prefix: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(prefix)).map(|value| value.trim().to_owned())
}

fn read_line(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().next()?.trim();
    (!line.is_empty()).then(|| line.to_owned())
}

fn file_text(path: &Path, dev: u64) -> io::Result<String> {
    let mask = StatxFlags::INO | StatxFlags::BTIME;
    let stat = rustix::fs::statx(rustix::fs::CWD, path, AtFlags::empty(), mask)?;
    let born = format!("{}.{:09}", stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec);
    let file = format!("inode {} born {born}", stat.stx_ino);
    Ok(match uuid_of_file_system(dev).or_else(|| id_of_file_system(path, dev)) {
        Some(system) => format!("{file} on {system}"),
        // Inode and birth time carry it alone.
        None => file,
    })
}

fn uuid_of_file_system(dev: u64) -> Option<String> {
    for entry in fs::read_dir("/dev/disk/by-uuid").ok()? {
        let entry = entry.ok()?;
        if fs::metadata(entry.path()).is_ok_and(|metadata| metadata.rdev() == dev) {
            return entry.file_name().into_string().ok();
        }
    }
    None
}

/// What a file system without a device of its own (btrfs, zfs, overlay) calls itself: its device number is
/// given out in the order of mounting. Others may derive this id from their device number.
fn id_of_file_system(path: &Path, dev: u64) -> Option<String> {
    if major(dev) != 0 {
        return None;
    }
    let id = rustix::fs::statvfs(path).ok()?.f_fsid;
    (id != 0).then(|| format!("{id:016x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_keeps_its_identity_and_a_copy_has_another() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        fs::write(&one, [0; 4096]).unwrap();
        fs::copy(&one, &two).unwrap();
        let facts = device_facts(&one).unwrap();
        assert_eq!(device_facts(&one).unwrap(), facts);
        assert_ne!(device_facts(&two).unwrap().identity, facts.identity);
        assert_eq!((facts.size_bytes, facts.is_block), (4096, false));
        assert!(facts.text.starts_with(&identity_text(&facts.identity)), "{}", facts.text);
        assert!(identity_text(&facts.identity).starts_with("inode "));
    }

    #[test]
    fn other_kinds_of_files_are_refused() {
        assert!(device_facts(Path::new("/dev/null")).is_err());
        assert!(device_facts(Path::new("/")).is_err());
    }

    #[test]
    fn a_partition_is_known_by_its_uuid_before_the_serial_of_its_disk() {
        let uuid = Some("0a-1b".to_owned());
        let serial = || vec!["serial=S1".to_owned()];
        let place = || Some("pci0000:00/0000:00:04.0".to_owned());
        let block = |partition: Option<Option<String>>, names, place| {
            let partition = partition.map(|uuid| ("1".to_owned(), uuid));
            Block { partition, names, place }.text()
        };
        let with_both = block(Some(uuid.clone()), serial(), place());
        assert_eq!(with_both, ("partuuid=0a-1b partition=1 serial=S1".into(), false));
        assert_eq!(block(Some(uuid), vec![], place()), ("partuuid=0a-1b partition=1".into(), false));
        let only_place = block(Some(None), vec![], place());
        assert_eq!(only_place, ("partition=1 at pci0000:00/0000:00:04.0".into(), false));
        assert_eq!(block(None, serial(), place()), ("serial=S1".into(), false));
        assert!(block(Some(None), vec![], None).1 && block(None, vec![], None).1);
    }

    #[test]
    fn a_place_does_not_depend_on_the_order_of_discovery() {
        let place = |path: &str| place_of(Path::new(path));
        assert_eq!(place("/sys/devices/pci0000:00/0000:00:04.0/virtio3"), "pci0000:00/0000:00:04.0");
        assert_eq!(place("/sys/devices/pci0000:00/0000:00:05.0/nvme"), "pci0000:00/0000:00:05.0/nvme");
    }
}
