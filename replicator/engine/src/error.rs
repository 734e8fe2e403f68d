//! Why the engine, or one of its resources, cannot run. Every message says what to do.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// The engine as a whole cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// `io_uring_setup` is refused by the system.
    #[error(
        "io_uring is not permitted here ({0}): check that sysctl kernel.io_uring_disabled is 0 (or this user is in \
         kernel.io_uring_group), \
         and that no seccomp profile (container, systemd SystemCallFilter) blocks io_uring_setup"
    )]
    RingNotPermitted(io::Error),
    /// The kernel is too old.
    #[error("io_uring of this kernel is too old ({0}): Linux 6.1 or newer is needed")]
    RingTooOld(io::Error),
    /// The ring's own memory.
    #[error("no memory for the ring ({0}): raise RLIMIT_MEMLOCK (LimitMEMLOCK=) to 1 MiB at least")]
    RingMemory(io::Error),
    /// Memory for the payload buffers.
    #[error(
        "cannot reserve {bytes} bytes for buffers ({error}): lower the buffer memory in the configuration"
    )]
    Memory {
        /// How much.
        bytes: u64,
        /// Why not.
        error: io::Error,
    },
    /// The replication port.
    #[error("cannot listen for peers on {address}: {error}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        error: io::Error,
    },
    /// An NBD listener.
    #[error("cannot listen for NBD clients on {listener}: {error}")]
    ListenNbd {
        /// Where.
        listener: String,
        /// Why not.
        error: io::Error,
    },
    /// A setting makes no sense.
    #[error("{0}")]
    Config(String),
    /// Anything else of the system.
    #[error("{what}: {error}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        error: io::Error,
    },
}

/// A disk or metadata file cannot be used; the resource runs Diskless.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// There is no metadata file.
    #[error("there is no metadata at {path}; create it: lockstep create-md {resource}")]
    NoMetadata {
        /// Where.
        path: PathBuf,
        /// Of which resource.
        resource: String,
    },
    /// There is no disk.
    #[error("there is no disk at {0}")]
    NoDisk(PathBuf),
    /// Somebody else holds it.
    #[error("{0} is in use: another daemon, a mount, or another program holds it")]
    InUse(PathBuf),
    /// It cannot be opened, locked or read.
    #[error("{path}: {error}")]
    Io {
        /// What.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// Recovery refused the metadata.
    #[error("the metadata in {path} cannot be used: {reason}")]
    Damaged {
        /// Where.
        path: PathBuf,
        /// In words.
        reason: String,
    },
    /// The metadata is of another resource, node or pair.
    #[error(
        "the metadata in {path} belongs to {theirs}, not to {ours}. If the configuration names the wrong file, correct \
         it there; to give up what this file records: lockstep create-md {resource} --overwrite"
    )]
    Foreign {
        /// Where.
        path: PathBuf,
        /// Of which resource it should be.
        resource: String,
        /// What it says.
        theirs: String,
        /// What was expected.
        ours: String,
    },
    /// The disk is not the one that the metadata was made for.
    #[error(
        "{path} is not the disk of the metadata in {meta}: expected \"{expected}...\", found \"{found}\". If it is the \
         same data on another device, or in another place: lockstep attach {resource} --moved (all of it is compared \
         with the peer's copy). If it is a new disk: lockstep create-md {resource} --overwrite. If it is neither, \
         correct the disk in the configuration"
    )]
    OtherDisk {
        /// The disk.
        path: PathBuf,
        /// Its metadata.
        meta: PathBuf,
        /// The resource.
        resource: String,
        /// Beginning of what was recorded.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The disk is that of another resource.
    #[error(
        "{path} is the disk of resource {other}, by its metadata: the disks of {resource} and {other} were swapped. \
         Correct the disk in the configuration, or plug them in as they were"
    )]
    Swapped {
        /// The disk.
        path: PathBuf,
        /// For which it was given.
        resource: String,
        /// Whose it is.
        other: String,
    },
    /// The disk is smaller than recorded.
    #[error(
        "{path} has {actual_bytes} bytes, less than the {recorded_bytes} of the volume that its metadata records. Give \
         it that size again; to give up what it holds: lockstep create-md {resource} --overwrite"
    )]
    Size {
        /// The resource.
        resource: String,
        /// The disk.
        path: PathBuf,
        /// Now.
        actual_bytes: u64,
        /// At create-md.
        recorded_bytes: u64,
    },
    /// Its bitmaps would exceed what the daemon may take.
    #[error("its bitmaps need {} MiB: {excess}", bitmaps_bytes.div_ceil(1 << 20))]
    Memory {
        /// For this volume.
        bitmaps_bytes: u64,
        /// All of it, and what to do.
        excess: String,
    },
    /// It is neither a file nor a block device.
    #[error("{0} is neither a file nor a block device")]
    Kind(PathBuf),
    /// Metadata exists and was not to be overwritten.
    #[error("{0} exists already; to replace it and forget what it records: create-md --overwrite")]
    Exists(PathBuf),
}

impl AttachError {
    pub(crate) fn io(path: &std::path::Path, error: impl Into<io::Error>) -> Self {
        Self::Io { path: path.to_owned(), error: error.into() }
    }
}
