//! The metadata file: locking, reading, checking that it belongs here, creating.
//!
//! The lock is taken on the open file description that later does the writes, and is held as long as the
//! resource runs: it is what keeps a second daemon, or create-md, away.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use lockstep_bitmap::{CreateParams, Findings, RecoverError, Store, create, initial_pages, recover};

use crate::disk::{lock, retry, size_of};
use crate::error::AttachError;

/// Opens, locks and recovers. The caller checks that it belongs to its resource.
pub(crate) fn open(
    path: &Path,
    resource: &str,
    max_hot_regions: u32,
    lock_wait: Duration,
) -> Result<(File, Store, Findings), AttachError> {
    let mut file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(AttachError::NoMetadata { path: path.to_owned(), resource: resource.to_owned() });
        }
        Err(error) => return Err(AttachError::io(path, error)),
    };
    retry(path, lock_wait, || lock(&file))?;
    let (store, findings) = recover_file(path, &mut file, max_hot_regions)?;
    Ok((file, store, findings))
}

/// Reads a metadata file without locking it: a look at what may be in use.
pub fn read_metadata(path: &Path) -> Result<(Store, Findings), AttachError> {
    let mut file = File::open(path).map_err(|error| AttachError::io(path, error))?;
    recover_file(path, &mut file, u32::MAX)
}

fn recover_file(
    path: &Path,
    file: &mut File,
    max_hot_regions: u32,
) -> Result<(Store, Findings), AttachError> {
    let length = size_of(file).map_err(|error| AttachError::io(path, error))?;
    let mut read = |offset, bytes: &mut [u8]| file.read_exact_at(bytes, offset);
    recover(length, &mut read, max_hot_regions).map_err(|error| match error {
        RecoverError::Read(error) => AttachError::io(path, error),
        other => AttachError::Damaged { path: path.to_owned(), reason: other.to_string() },
    })
}

/// Writes a new metadata file. Refuses one that exists unless `overwrite`, and one that a daemon holds in any
/// case. When it returns, the file and its name are durable.
pub fn create_metadata(path: &Path, params: CreateParams, overwrite: bool) -> Result<(), AttachError> {
    let failed = |error: io::Error| AttachError::io(path, error);
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(libc::O_DSYNC);
    let file = match options.create_new(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if !overwrite && fs::metadata(path).map_err(failed)?.len() > 0 {
                return Err(AttachError::Exists(path.to_owned()));
            }
            options.create_new(false).open(path).map_err(failed)?
        }
        Err(error) => return Err(failed(error)),
    };
    retry(path, Duration::ZERO, || lock(&file))?;
    let (superblock, layout) = create(params);
    let is_file = file.metadata().map_err(failed)?.is_file();
    if is_file {
        reserve(&file, layout.file_bytes()).map_err(failed)?;
    }
    for (offset, bytes) in initial_pages(&superblock, &layout) {
        file.write_all_at(&bytes, offset).map_err(failed)?;
    }
    file.sync_all().map_err(failed)?;
    if is_file && let Some(folder) = path.parent() {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
    }
    Ok(())
}

/// The space is allocated now, so that no metadata write fails later for want of it.
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    file.set_len(bytes)?;
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
