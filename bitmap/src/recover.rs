//! Reads a metadata file and rebuilds what was durable.

use crate::store::Store;
use crate::superblock::SuperblockError;

/// What recovery met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Copies (1 or 2) that hold the superblock taken. If 1, write the superblock before relying on it.
    pub superblock_copies: u8,
    /// Pages read that were damaged, torn, misplaced, of another epoch, or unreadable, superblock places included.
    pub damaged_pages: u32,
    /// Of these, pages that could not be read at all.
    pub unreadable_pages: u32,
    /// Regions that were hot, or may have been.
    pub hot_regions: u32,
    /// Bits pages that count as all dirty since their content is lost.
    pub pages_taken_as_dirty: u32,
}

/// Why a file was refused. `E` is the caller's read error.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError<E> {
    /// No place could be read; one of the errors.
    #[error("the metadata cannot be read")]
    Read(E),
    /// Nothing here was written by Lockstep.
    #[error("not a Lockstep metadata file")]
    NotLockstep,
    /// This is, or was, a Lockstep file; it has no intact superblock.
    #[error("no intact superblock: the metadata is damaged")]
    NoSuperblock,
    /// Written by a newer program.
    #[error("metadata format version {0} is newer than this program")]
    NewerVersion(u16),
    /// Intact superblocks contradict each other: a create-md was interrupted, or two files were mixed.
    #[error("the superblocks contradict each other: create-md was interrupted, or two files were mixed")]
    Contradiction,
    /// An intact superblock has impossible content.
    #[error("impossible superblock: {0}")]
    Superblock(SuperblockError),
    /// The file is shorter than its superblock says.
    #[error("the file has {file_bytes} bytes, its superblock asks for {needed_bytes}")]
    Truncated {
        /// Length found.
        file_bytes: u64,
        /// Length needed.
        needed_bytes: u64,
    },
}

/// Recovers the metadata of a volume. `read` fills the buffer from the offset on, or fails. `max_hot` bounds the regions
/// that are hot later; those found on disk may be more.
///
/// Hot regions are not yet merged into the slots: `Store::merge_hot` does that.
pub fn recover<E>(
    _file_len: u64,
    _read: &mut dyn FnMut(u64, &mut [u8]) -> Result<(), E>,
    _max_hot: u32,
) -> Result<(Store, Findings), RecoverError<E>> {
    Err(RecoverError::NotLockstep)
}
