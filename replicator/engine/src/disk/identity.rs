//! What tells one disk from another: compared at each attach, so that metadata is never used with somebody
//! else's data.
//!
//! A block device is known by its wwid, serial number and partition UUID, a file by its file system, inode
//! and birth time. The identity is a hash and the beginning of the text, so that a mismatch can be shown to
//! people.

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
}

/// Looks at a disk. Fails if it is neither a block device nor a file, or cannot be read.
pub fn device_facts(path: &Path) -> io::Result<DeviceFacts> {
    let metadata = fs::metadata(path)?;
    let is_block = metadata.file_type().is_block_device();
    if !is_block && !metadata.is_file() {
        return Err(io::Error::other("neither a file nor a block device"));
    }
    let size_bytes = super::size_of(&mut File::open(path)?)?;
    let text = if is_block { block_text(metadata.rdev()) } else { file_text(path, metadata.dev())? };
    Ok(DeviceFacts { identity: identity_of(&text), text, size_bytes, is_block })
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
/// What udev knows.
const UDEV_KEYS: [&str; 3] = ["ID_PART_ENTRY_UUID", "ID_WWN_WITH_EXTENSION", "ID_SERIAL"];

fn block_text(rdev: u64) -> String {
    let number = format!("{}:{}", major(rdev), minor(rdev));
    let folder = Path::new("/sys/dev/block").join(&number);
    let is_partition = folder.join("partition").exists();
    // A partition's folder lies inside that of its disk.
    let disk = if is_partition { folder.join("..") } else { folder.clone() };
    let mut facts = Vec::new();
    for (key, file) in NAMES {
        if let Some(value) = read_line(&disk.join(file)) {
            facts.push(format!("{key}={value}"));
        }
    }
    if is_partition && let Some(value) = read_line(&folder.join("partition")) {
        facts.push(format!("partition={value}"));
    }
    let backing = disk.join("loop/backing_file");
    if let Some(value) = read_line(&backing) {
        facts.push(format!("loop={value}"));
    }
    if facts.is_empty() {
        let udev =
            fs::read_to_string(Path::new("/run/udev/data").join(format!("b{number}"))).unwrap_or_default();
        let known = udev.lines().filter_map(|line| line.strip_prefix("E:"));
        facts
            .extend(known.filter(|line| UDEV_KEYS.iter().any(|key| line.starts_with(key))).map(String::from));
    }
    if facts.is_empty() { "a device without serial number".into() } else { facts.join(" ") }
}

fn read_line(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().next()?.trim();
    (!line.is_empty()).then(|| line.to_owned())
}

fn file_text(path: &Path, dev: u64) -> io::Result<String> {
    let mask = StatxFlags::INO | StatxFlags::BTIME;
    let stat = rustix::fs::statx(rustix::fs::CWD, path, AtFlags::empty(), mask)?;
    let system = uuid_of_file_system(dev).unwrap_or_else(|| format!("device {}:{}", major(dev), minor(dev)));
    let born = format!("{}.{:09}", stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec);
    Ok(format!("inode {} born {born} on {system}", stat.stx_ino))
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
}
