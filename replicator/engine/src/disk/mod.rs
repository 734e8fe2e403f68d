//! The disk of a resource: opening, locking, and how I/O is done on it.
//!
//! A block device is opened with O_EXCL and O_DIRECT, a file is locked with flock: the lock lives on the very
//! open file description that does the I/O, so that it is free only when the last request of a killed
//! predecessor has ended (ordering 19). Buffered and direct I/O are never mixed on one open file.

mod allocation;
pub(crate) mod failed;
mod identity;
pub(crate) mod inspect;
mod jobs;
mod sample;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, StatxFlags};

use crate::error::AttachError;
use crate::ring::Fd;
pub(crate) use identity::identity_text;
pub use identity::{DeviceFacts, device_facts};
pub(crate) use jobs::Storage;
pub(crate) use sample::sample;

/// How bytes reach the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// O_DIRECT through the ring.
    Direct,
    /// Through the page cache: reads and writes in the shard's thread, everything that waits through the
    /// ring.
    Buffered,
    /// A file system in memory: everything in the shard's thread.
    Memory,
}

/// An open, locked disk, on its way to the shard.
#[derive(Debug)]
pub(crate) struct OpenDisk {
    pub(crate) fd: OwnedFd,
    pub(crate) mode: Mode,
    pub(crate) is_block: bool,
    pub(crate) size_bytes: u64,
    /// Smallest unit of a write in bytes, 512 to 4096.
    pub(crate) granule_bytes: u32,
    /// Submitting an operation may wait for the device: that is for the kernel's threads.
    pub(crate) may_block: bool,
    /// RWF_DSYNC makes a write durable; otherwise an fdatasync behind it does.
    pub(crate) keeps_dsync: bool,
    /// The file system is known to make a hole of any size by a note.
    pub(crate) has_holes: bool,
    /// It has seek times.
    pub(crate) is_rotational: bool,
}

/// A disk in use by a shard.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) fd: Fd,
    pub(crate) mode: Mode,
    pub(crate) is_block: bool,
    pub(crate) size_bytes: u64,
    pub(crate) granule_bytes: u32,
    pub(crate) may_block: bool,
    pub(crate) keeps_dsync: bool,
    pub(crate) has_holes: bool,
    pub(crate) is_rotational: bool,
    /// Not yet refused.
    pub(crate) can_punch: bool,
    pub(crate) can_zero_range: bool,
}

impl From<OpenDisk> for Disk {
    fn from(open: OpenDisk) -> Self {
        Self {
            fd: Rc::new(open.fd),
            mode: open.mode,
            is_block: open.is_block,
            size_bytes: open.size_bytes,
            granule_bytes: open.granule_bytes,
            may_block: open.may_block,
            keeps_dsync: open.keeps_dsync,
            has_holes: open.has_holes,
            is_rotational: open.is_rotational,
            can_punch: true,
            can_zero_range: true,
        }
    }
}

impl Disk {
    /// Whether a completed write survives the death of this process and counts as not stopped at the same
    /// boot.
    pub(crate) fn survives_process_death(&self) -> bool {
        self.mode != Mode::Buffered
    }

    /// For a write that must be durable (`fua`): whether to say so in the write itself. Where that does nothing, `fua`
    /// stays set: what makes it durable is still to be done.
    pub(crate) fn take_dsync(&self, fua: &mut bool) -> bool {
        self.keeps_dsync && std::mem::take(fua)
    }

    /// Whether a range of any size becomes zeroes in no more time than a small write takes, holes allowed.
    pub(crate) fn zeroes_fast(&self) -> bool {
        self.has_holes && self.can_punch
    }

    /// In words, for reports.
    pub(crate) fn describe(&self) -> String {
        let kind = if self.is_block { "block device" } else { "file" };
        let mode = match self.mode {
            Mode::Direct => "O_DIRECT",
            Mode::Buffered => "buffered",
            Mode::Memory => "in memory",
        };
        format!("{kind}, {mode}, logical blocks of {} bytes", self.granule_bytes)
    }
}

const GRANULE_BYTES_MIN: u32 = 512;
const GRANULE_BYTES_MAX: u32 = 4096;
/// Of tmpfs and ramfs, from linux/magic.h.
const MEMORY_MAGICS: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// From linux/magic.h. With a dozen requests under way FUSE makes whoever submits the next one wait, although
/// it was asked not to: one slow disk would hold up every resource, and the heartbeats.
const FUSE_MAGIC: i64 = 0x6573_5546;

/// ext4, XFS and btrfs: what they do with RWF_DSYNC is known to be what it says, and a hole is a note. FUSE forgets
/// RWF_DSYNC, of a write with O_DIRECT that it completes later, as those of the ring are.
const DSYNC_MAGICS: [i64; 3] = [0xef53, 0x5846_5342, 0x9123_683e];

/// Opens and locks a disk. Waits up to `lock_wait` for a predecessor whose last request is still ending.
pub(crate) fn open(path: &Path, read_only: bool, lock_wait: Duration) -> Result<OpenDisk, AttachError> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(AttachError::NoDisk(path.to_owned()));
        }
        Err(error) => return Err(AttachError::io(path, error)),
    };
    let mut disk = match metadata.file_type() {
        kind if kind.is_block_device() => open_block(path, read_only, lock_wait)?,
        kind if kind.is_file() => open_file(path, read_only, lock_wait)?,
        _ => return Err(AttachError::Kind(path.to_owned())),
    };
    disk.is_rotational = identity::is_rotational(&metadata);
    Ok(disk)
}

fn open_block(path: &Path, read_only: bool, lock_wait: Duration) -> Result<OpenDisk, AttachError> {
    let mut options = OpenOptions::new();
    options.read(true).write(!read_only).custom_flags(libc::O_EXCL | libc::O_DIRECT);
    let mut file = retry(path, lock_wait, || options.open(path))?;
    let granule_bytes = rustix::fs::ioctl_blksszget(&file).map_err(|error| AttachError::io(path, error))?;
    let size_bytes = size_of(&mut file).map_err(|error| AttachError::io(path, error))?;
    if !(GRANULE_BYTES_MIN..=GRANULE_BYTES_MAX).contains(&granule_bytes) {
        let error = io::Error::other(format!("logical blocks of {granule_bytes} bytes are not supported"));
        return Err(AttachError::io(path, error));
    }
    Ok(OpenDisk {
        fd: file.into(),
        mode: Mode::Direct,
        is_block: true,
        size_bytes,
        granule_bytes,
        may_block: false,
        keeps_dsync: true,
        // Whether it can do that, and how fast, is seen when it is tried.
        has_holes: false,
        is_rotational: false,
    })
}

fn open_file(path: &Path, read_only: bool, lock_wait: Duration) -> Result<OpenDisk, AttachError> {
    let failed = |error: io::Error| AttachError::io(path, error);
    let in_memory = is_in_memory(path);
    let mut direct = OpenOptions::new();
    direct.read(true).write(!read_only).custom_flags(libc::O_DIRECT);
    let mut plain = OpenOptions::new();
    plain.read(true).write(!read_only);
    let opened = if in_memory { None } else { direct.open(path).ok() };
    let direct_granule = opened.as_ref().and_then(granule_of_file);
    let mut file = match opened {
        Some(file) if direct_granule.is_some() => file,
        _ => plain.open(path).map_err(failed)?,
    };
    retry(path, lock_wait, || lock(&file))?;
    let size_bytes = size_of(&mut file).map_err(failed)?;
    let kind = rustix::fs::statfs(path).map_or(0, |stat| stat.f_type);
    let mut disk = OpenDisk {
        fd: file.into(),
        mode: if in_memory { Mode::Memory } else { Mode::Buffered },
        is_block: false,
        size_bytes,
        granule_bytes: GRANULE_BYTES_MIN,
        may_block: kind == FUSE_MAGIC,
        keeps_dsync: DSYNC_MAGICS.contains(&kind),
        has_holes: DSYNC_MAGICS.contains(&kind) || kind == MEMORY_MAGICS[0],
        is_rotational: false,
    };
    match direct_granule {
        Some(granule_bytes) if size_bytes.is_multiple_of(u64::from(granule_bytes)) => {
            (disk.mode, disk.granule_bytes) = (Mode::Direct, granule_bytes);
        }
        Some(granule_bytes) => {
            let error = format!(
                "the size of {size_bytes} bytes is not a multiple of the file system's {granule_bytes}"
            );
            return Err(failed(io::Error::other(error)));
        }
        None => {}
    }
    Ok(disk)
}

/// Whether a file lives in memory, where no operation waits for a device.
pub(crate) fn is_in_memory(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| MEMORY_MAGICS.contains(&stat.f_type))
}

/// The alignment that O_DIRECT asks for, if the file system can do it.
fn granule_of_file(file: &File) -> Option<u32> {
    let mask = StatxFlags::DIOALIGN;
    let stat = rustix::fs::statx(file, "", rustix::fs::AtFlags::EMPTY_PATH, mask).ok()?;
    if stat.stx_mask & mask.bits() == 0 {
        // Not told: every file system that has O_DIRECT takes whole pages.
        return Some(GRANULE_BYTES_MAX);
    }
    let granule = stat.stx_dio_offset_align.max(stat.stx_dio_mem_align).max(GRANULE_BYTES_MIN);
    let usable = stat.stx_dio_offset_align > 0 && granule <= GRANULE_BYTES_MAX && granule.is_power_of_two();
    usable.then_some(granule)
}

/// Takes the exclusive lock of an open file.
pub(crate) fn lock(file: &File) -> io::Result<()> {
    rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive).map_err(io::Error::from)
}

/// Tries again while somebody else holds it.
pub(crate) fn retry<T>(
    path: &Path,
    lock_wait: Duration,
    mut attempt: impl FnMut() -> io::Result<T>,
) -> Result<T, AttachError> {
    let began = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EWOULDBLOCK)) => {
                if began.elapsed() >= lock_wait {
                    return Err(AttachError::InUse(path.to_owned()));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) => return Err(AttachError::io(path, error)),
        }
    }
}

/// Size of an open file or block device.
pub(crate) fn size_of(file: &mut File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(folder: &Path) -> std::path::PathBuf {
        let path = folder.join("disk");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        path
    }

    #[test]
    fn a_file_is_locked_as_long_as_its_description_lives() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(folder.path());
        let first = open(&path, false, Duration::ZERO).unwrap();
        assert!(matches!(open(&path, false, Duration::from_millis(30)), Err(AttachError::InUse(_))));
        let duplicate = first.fd.try_clone().unwrap();
        drop(first);
        assert!(matches!(open(&path, false, Duration::ZERO), Err(AttachError::InUse(_))));
        drop(duplicate);
        assert_eq!(open(&path, false, Duration::ZERO).unwrap().size_bytes, 1 << 20);
    }

    #[test]
    fn the_mode_follows_the_file_system() {
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        assert_eq!(open(&file(memory.path()), false, Duration::ZERO).unwrap().mode, Mode::Memory);
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let disk = open(&file(folder.path()), false, Duration::ZERO).unwrap();
        assert!(disk.mode != Mode::Memory && (512..=4096).contains(&disk.granule_bytes), "{disk:?}");
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        assert!(matches!(
            open(Path::new("/nonexistent"), false, Duration::ZERO),
            Err(AttachError::NoDisk(_))
        ));
        assert!(matches!(open(Path::new("/dev/null"), false, Duration::ZERO), Err(AttachError::Kind(_))));
    }
}
