//! Programs that others wrote. One that is missing fails the test, with the Debian package that has it.

use crate::run::{Ran, run};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Longest run of a foreign program, in seconds.
const LIMIT_S: &str = "120";

const PACKAGES: &[(&str, &str)] = &[
    ("bash", "bash"),
    ("e2fsck", "e2fsprogs"),
    ("fio", "fio"),
    ("fusermount3", "fuse3"),
    ("ip", "iproute2"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("mmdebstrap", "mmdebstrap"),
    ("mount", "mount"),
    ("nbd-client", "nbd-client"),
    ("nbdcopy", "libnbd-bin"),
    ("nbddump", "libnbd-bin"),
    ("nbdfuse", "libnbd-bin"),
    ("nbdinfo", "libnbd-bin"),
    ("nbdkit", "nbdkit"),
    ("nft", "nftables"),
    ("perf", "linux-perf"),
    ("python3", "python3-libnbd"),
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
    ("qemu-storage-daemon", "qemu-system-common"),
    ("xfs_repair", "xfsprogs"),
    ("ss", "iproute2"),
];

/// A command line under construction.
#[derive(Debug)]
pub struct Tool(Command);

/// A program by name. Panics if it is not installed, naming its package.
#[track_caller]
pub fn tool(program: &str) -> Tool {
    Tool::of(require(program))
}

/// Where a program is. Panics if it is not installed, naming its package.
#[track_caller]
pub(crate) fn require(program: &str) -> PathBuf {
    let package = PACKAGES.iter().find(|(name, _)| *name == program).map(|(_, package)| *package);
    let package = package.unwrap_or_else(|| panic!("{program} is not in the table of packages"));
    // Debian's modules belong to Debian's interpreter, whatever else is first in PATH.
    let places = ["/usr/bin", "/usr/sbin", "/sbin"].map(|folder| Path::new(folder).join(program));
    places
        .into_iter()
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("{program} is missing: apt-get install {package} (or cargo xtask setup)"))
}

impl Tool {
    /// A command line that begins so, with a limit of its time.
    pub(crate) fn of(program: impl AsRef<OsStr>) -> Tool {
        let mut command = Command::new("timeout");
        command.arg(LIMIT_S).arg(program);
        Tool(command)
    }

    /// One more argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Tool {
        self.0.arg(argument);
        self
    }

    /// More arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Tool {
        self.0.args(arguments);
        self
    }

    /// Runs it to its end.
    pub fn run(mut self) -> Ran {
        run(&mut self.0)
    }
}

/// The address of an export in the form that QEMU's tools take it.
pub fn qemu_uri(socket: &Path, export: &str) -> String {
    format!("nbd+unix:///{export}?socket={}", socket.display())
}
