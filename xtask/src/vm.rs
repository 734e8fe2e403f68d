//! `vm`: the daemon under real kernels, the oldest supported one first.
//!
//! Lays the binary, the guest's scripts and the program that cuts the power there into a fresh folder and lets
//! `tests/vm/run` boot it. The folder is removed again, also after a failure.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::shell::{self, PROFILE, Run, cargo};
use crate::vm_bench;

/// The kernels that `tests/vm/run` knows.
pub(crate) const KERNELS: &[&str] = &["6.1", "6.12"];

/// Emulation is ten to twenty times slower than the machine below it, and CI has two cores for it.
const GUEST_SECONDS_MAX: u32 = 480;
const CUT_SECONDS_MAX: u32 = 40;
const MATRIX_SECONDS_MAX: u32 = 3600;
const BENCH_SECONDS_MAX: u32 = 1200;

/// guest.sh becomes run.sh.
const SCRIPTS: &[&str] =
    &["guest.sh", "pair.sh", "client.sh", "events.sh", "move.sh", "ride.sh", "matrix.sh", "bench.sh"];

/// What the guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// The test, with so many power cuts; without the recording for them if there are none.
    Test { cuts: u32 },
    /// Every way to attach the kernel's client against every event, as a table.
    Matrix,
    /// Beside the kernel's DRBD; `vm_bench` reads what the guest measured.
    Bench { quick: bool },
}

impl Job {
    fn seconds_max(self) -> u32 {
        match self {
            Job::Test { cuts } => GUEST_SECONDS_MAX + cuts * CUT_SECONDS_MAX,
            Job::Matrix => MATRIX_SECONDS_MAX,
            Job::Bench { .. } => BENCH_SECONDS_MAX,
        }
    }

    fn profile(self) -> &'static str {
        match self {
            Job::Bench { .. } => "release",
            _ => PROFILE,
        }
    }
}

/// Does it on each kernel.
pub(crate) fn vm(kernels: &[&str], job: Job) -> Result<()> {
    let folder = lay_out(job)?;
    kernels.iter().try_for_each(|kernel| boot(kernel, &folder, job).map(drop))
}

/// Does it on one kernel, and returns what the guest's console showed.
pub(crate) fn console(kernel: &str, job: Job) -> Result<String> {
    boot(kernel, &lay_out(job)?, job)
}

/// What the guest finds in its folder.
fn lay_out(job: Job) -> Result<Folder> {
    let profile = job.profile();
    let mut programs = vec![("lockstep", shell::build_lockstep(profile)?)];
    if matches!(job, Job::Test { .. }) {
        let guest = ["build", "--profile", profile, "--package", "lockstep-e2e", "--bin", "guest"];
        cargo().args(guest).status()?;
        programs.push(("power", shell::target_dir().join(profile).join("guest")));
    }
    let folder = Folder::new()?;
    for (name, program) in programs {
        // Without its debug information: all of it would travel through the emulated machine's memory.
        Run::new("strip").args(["--strip-debug", "-o"]).args([folder.0.join(name), program]).status()?;
    }
    for script in SCRIPTS {
        copy(&scripts().join(script), &folder.0.join(script))?;
    }
    fs::rename(folder.0.join("guest.sh"), folder.0.join("run.sh")).context("name the guest's script")?;
    let (what, parameter) = match job {
        Job::Test { cuts } => ("test", ("cuts", cuts.to_string())),
        Job::Matrix => ("matrix", ("cuts", "0".to_string())),
        Job::Bench { quick } => ("bench", ("bench", vm_bench::plan(quick))),
    };
    for (name, text) in [("what", what.to_string()), parameter] {
        fs::write(folder.0.join(name), text).with_context(|| format!("write the guest's file {name}"))?;
    }
    Ok(folder)
}

fn boot(kernel: &str, folder: &Folder, job: Job) -> Result<String> {
    let run = Run::new(scripts().join("run")).args([kernel]).args([&folder.0]);
    let failed = || format!("the guest on kernel {kernel}");
    run.args([job.seconds_max().to_string()]).shown().with_context(failed)
}

fn scripts() -> PathBuf {
    shell::root().join("tests/vm")
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
