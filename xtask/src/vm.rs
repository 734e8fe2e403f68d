//! `vm`: the daemon under real kernels, the oldest supported one first.
//!
//! Lays the binary, the guest's scripts and the program that cuts the power there into a fresh folder and lets
//! `tests/vm/run` boot it. The folder is removed again, also after a failure.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::shell::{self, PROFILE, Run, cargo};

/// The kernels that `tests/vm/run` knows.
pub(crate) const KERNELS: &[&str] = &["6.1", "6.12"];

/// Emulation is ten to twenty times slower than the machine below it, and CI has two cores for it.
const GUEST_SECONDS_MAX: u32 = 480;
const CUT_SECONDS_MAX: u32 = 40;
const MATRIX_SECONDS_MAX: u32 = 3600;

/// guest.sh becomes run.sh.
const SCRIPTS: &[&str] =
    &["guest.sh", "pair.sh", "client.sh", "events.sh", "move.sh", "ride.sh", "matrix.sh"];

/// What the guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// The test, with so many power cuts; without the recording for them if there are none.
    Test { cuts: u32 },
    /// Every way to attach the kernel's client against every event, as a table.
    Matrix,
}

impl Job {
    fn seconds_max(self) -> u32 {
        match self {
            Job::Test { cuts } => GUEST_SECONDS_MAX + cuts * CUT_SECONDS_MAX,
            Job::Matrix => MATRIX_SECONDS_MAX,
        }
    }
}

/// Does it on each kernel.
pub(crate) fn vm(kernels: &[&str], job: Job) -> Result<()> {
    let binary = shell::build_lockstep(PROFILE)?;
    let folder = Folder::new()?;
    cargo().args(["build", "--profile", PROFILE, "--package", "lockstep-e2e", "--bin", "guest"]).status()?;
    let programs = [("lockstep", binary), ("power", shell::target_dir().join(PROFILE).join("guest"))];
    for (name, program) in programs {
        // Without its debug information: all of it would travel through the emulated machine's memory.
        Run::new("strip").args(["--strip-debug", "-o"]).args([folder.0.join(name), program]).status()?;
    }
    let scripts = shell::root().join("tests/vm");
    for script in SCRIPTS {
        copy(&scripts.join(script), &folder.0.join(script))?;
    }
    fs::rename(folder.0.join("guest.sh"), folder.0.join("run.sh")).context("name the guest's script")?;
    let (what, cuts) = match job {
        Job::Test { cuts } => ("test", cuts),
        Job::Matrix => ("matrix", 0),
    };
    fs::write(folder.0.join("what"), what).context("write what the guest is to do")?;
    fs::write(folder.0.join("cuts"), cuts.to_string()).context("write the number of cuts")?;
    for kernel in kernels {
        Run::new(scripts.join("run"))
            .args([*kernel])
            .args([&folder.0])
            .args([job.seconds_max().to_string()])
            .status()
            .with_context(|| format!("guest test on kernel {kernel}"))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// A folder that goes away with its owner.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Folder> {
        let path = std::env::temp_dir().join(format!("lockstep-vm-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nothing is lost if it stays: the next run has another name.
        let _ = fs::remove_dir_all(&self.0);
    }
}
