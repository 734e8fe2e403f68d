//! The clients of a newer Debian, in a folder that is fetched once (`newer.sh`). It needs root, and the network where
//! the folder is not there yet.

use crate::foreign::{Tool, require};
use crate::run::run;
use std::path::{Path, PathBuf};
use std::process::Command;

const SCRIPT: &str = include_str!("newer.sh");
/// A download on a slow day.
const FETCH_LIMIT_S: &str = "300";

/// Where they are.
#[derive(Clone, Debug)]
pub struct Newer(PathBuf);

impl Newer {
    /// Fetches them if they are not there.
    #[track_caller]
    pub fn clients() -> Newer {
        require("mmdebstrap");
        let mut command = Command::new("timeout");
        command.args([FETCH_LIMIT_S, "bash", "-c", SCRIPT, "newer.sh", "get"]);
        Newer(PathBuf::from(run(&mut command).ok().trim()))
    }

    /// One of them. It sees `dir` as `/mnt`, and nothing else of this machine but its devices.
    pub fn tool(&self, dir: &Path, program: &str) -> Tool {
        let alone = ["--mount", "--propagation", "private", "bash", "-c", SCRIPT, "newer.sh", "run"];
        Tool::of("unshare").args(alone).arg(&self.0).arg(dir).arg(program)
    }
}
