//! `vm`: the daemon under real kernels, the oldest supported one first.
//!
//! Lays the binary, the guest's script and the program that cuts the power there into a fresh folder and lets
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

/// Runs the guest's test on each kernel, with so many power cuts; without the recording for them if there are none.
pub(crate) fn vm(kernels: &[&str], cuts: u32) -> Result<()> {
    let binary = shell::build_lockstep(PROFILE)?;
    let folder = Folder::new()?;
    cargo().args(["build", "--profile", PROFILE, "--package", "lockstep-e2e", "--bin", "guest"]).status()?;
    let programs = [("lockstep", binary), ("power", shell::target_dir().join(PROFILE).join("guest"))];
    for (name, program) in programs {
        // Without its debug information: all of it would travel through the emulated machine's memory.
        Run::new("strip").args(["--strip-debug", "-o"]).args([folder.0.join(name), program]).status()?;
    }
    copy(&shell::root().join("tests/vm/guest.sh"), &folder.0.join("run.sh"))?;
    fs::write(folder.0.join("cuts"), cuts.to_string()).context("write the number of cuts")?;
    for kernel in kernels {
        Run::new(shell::root().join("tests/vm/run"))
            .args([*kernel])
            .args([&folder.0])
            .args([(GUEST_SECONDS_MAX + cuts * CUT_SECONDS_MAX).to_string()])
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
