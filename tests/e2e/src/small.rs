//! A file system that is full soon: a small tmpfs, unmounted with its handle.

use crate::run::run;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted tmpfs.
#[derive(Debug)]
pub struct SmallDisk {
    dir: PathBuf,
}

impl SmallDisk {
    /// Mounts one of this size at a new directory.
    pub fn new(dir: &Path, bytes: u64) -> SmallDisk {
        std::fs::create_dir(dir).expect("directory of a mount");
        let options = format!("size={bytes}");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "lockstep-e2e"]).arg(dir)).ok();
        SmallDisk { dir: dir.to_path_buf() }
    }

    /// Puts a sparse file of this size there, reached by `name` from outside.
    pub fn hold(&self, name: &Path, bytes: u64) {
        let file = self.dir.join("disk");
        std::fs::File::create(&file).and_then(|file| file.set_len(bytes)).expect("a sparse file");
        std::os::unix::fs::symlink(&file, name).expect("a link");
    }

    /// Makes room.
    pub fn grow(&self, bytes: u64) {
        let options = format!("remount,size={bytes}");
        run(Command::new("mount").args(["-o", &options]).arg(&self.dir)).ok();
    }
}

impl Drop for SmallDisk {
    /// Lazily: a daemon that is about to be killed may have a file open.
    fn drop(&mut self) {
        let ran = run(Command::new("umount").arg("--lazy").arg(&self.dir));
        assert!(ran.code == 0 || std::thread::panicking(), "{ran}");
    }
}
