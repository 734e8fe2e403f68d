//! `setup`: the Debian packages and Rust components that the tests use.
//!
//! Installs only what is missing, and only as root on a Debian system; otherwise it prints the exact
//! command. Keeps all packages of qemu at one version: a machine may carry a newer `qemu-utils` (from
//! backports), which excludes the release's own `qemu-system-x86` until it is brought back. Anything that
//! is still missing at the end is an error that names it.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::shell::{self, Run};

/// Each package with what needs it.
const PACKAGES: &[(&str, &str)] = &[
    ("binutils", "strip the binary for the guest"),
    ("cpio", "initramfs of the guest"),
    ("e2fsprogs", "file systems in tests"),
    ("fio", "load with verification"),
    ("fuse3", "nbdfuse's mounts"),
    ("iproute2", "network namespaces"),
    ("libnbd-bin", "nbdinfo, nbdcopy, nbdfuse"),
    ("libnbd0", "the client library"),
    ("mmdebstrap", "images of the guest"),
    ("nbd-client", "the kernel's client"),
    ("nbdkit", "benchmark baseline"),
    ("nftables", "cut links"),
    ("postgresql", "transactions through a failover"),
    ("python3-libnbd", "scripted clients"),
    ("qemu-system-common", "qemu-storage-daemon"),
    ("qemu-system-x86", "the guest's machine"),
    ("qemu-utils", "qemu-io, qemu-img"),
    ("util-linux", "mount, flock, unshare"),
    ("valgrind", "memory and instructions of the pure crates"),
    ("xfsprogs", "file systems in tests"),
];

/// Makes the machine ready for every stage of `test`.
pub(crate) fn setup() -> Result<()> {
    rust_components()?;
    let missing = missing_packages()?;
    if missing.is_empty() {
        println!("setup: all {} packages are installed", PACKAGES.len());
        return Ok(());
    }
    for (name, purpose) in &missing {
        println!("setup: {name} is missing ({purpose})");
    }
    ensure!(
        is_root()?,
        "packages are missing and this is not root; run:\n  sudo apt-get update && sudo apt-get install \
         --no-install-recommends --allow-downgrades {}",
        install_arguments(&missing)?.join(" ")
    );
    install(&missing)?;
    let left = missing_packages()?;
    ensure!(left.is_empty(), "not installed: {}", names(&left).join(" "));
    Ok(())
}

fn install(missing: &[Package]) -> Result<()> {
    // Another apt may be at work on a fresh machine: wait for its lock.
    let lock = "DPkg::Lock::Timeout=300";
    Run::new("apt-get").args(["update", "-qq", "-o", lock]).status()?;
    println!("setup: installing");
    let installed = Run::new("apt-get")
        .args(["install", "-qq", "-y", "-o", lock])
        .args(["--no-install-recommends", "--allow-downgrades"])
        .args(install_arguments(missing)?)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdout();
    if let Err(error) = installed {
        let left = missing_packages()?;
        for (name, _) in &left {
            if candidate(name)?.is_none() {
                println!("setup: the package lists have no {name}");
            }
        }
        bail!("{error}; not installed: {}", names(&left).join(" "));
    }
    Ok(())
}

type Package = (&'static str, &'static str);

fn missing_packages() -> Result<Vec<Package>> {
    ensure!(
        Path::new("/usr/bin/dpkg-query").exists(),
        "this is not a Debian system; install what these packages hold: {}",
        names(PACKAGES).join(" ")
    );
    // dpkg-query fails when it does not know a package, and still lists those that it knows.
    let listing = Run::new("dpkg-query")
        .args(["-W", "-f", "${Package} ${db:Status-Status}\\n"])
        .args(names(PACKAGES))
        .stdout_even_if_failed()?;
    Ok(not_installed(&listing))
}

fn not_installed(listing: &str) -> Vec<Package> {
    let is_installed = |name: &str| listing.lines().any(|line| line == format!("{name} installed"));
    PACKAGES.iter().copied().filter(|(name, _)| !is_installed(name)).collect()
}

fn names(packages: &[Package]) -> Vec<&'static str> {
    packages.iter().map(|(name, _)| *name).collect()
}

/// Package names for apt. When anything of qemu is missing: all of qemu, at the version that apt offers.
fn install_arguments(missing: &[Package]) -> Result<Vec<String>> {
    let is_qemu = |name: &str| name.starts_with("qemu-");
    let mut arguments: Vec<String> =
        names(missing).into_iter().filter(|name| !is_qemu(name)).map(String::from).collect();
    if names(missing).into_iter().any(is_qemu) {
        let version = candidate("qemu-system-x86")?;
        for name in names(PACKAGES).into_iter().filter(|name| is_qemu(name)) {
            arguments.push(match &version {
                Some(version) => format!("{name}={version}"),
                None => name.to_string(),
            });
        }
    }
    Ok(arguments)
}

fn candidate(package: &str) -> Result<Option<String>> {
    let policy = Run::new("apt-cache").args(["policy", package]).stdout()?;
    Ok(candidate_in(&policy))
}

fn candidate_in(policy: &str) -> Option<String> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_string())
}

fn rust_components() -> Result<()> {
    for (subcommand, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        if shell::cargo().args([subcommand, "--version"]).stdout().is_err() {
            println!("setup: cargo {subcommand} is missing");
            Run::new("rustup")
                .args(["component", "add", component])
                .status()
                .with_context(|| format!("install the Rust component {component}"))?;
        }
    }
    Ok(())
}

fn is_root() -> Result<bool> {
    Ok(Run::new("id").args(["-u"]).stdout()?.trim() == "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_counts_only_when_fully_installed() {
        let listing: String = PACKAGES
            .iter()
            .map(|(name, _)| match *name {
                "fio" => "fio config-files\n".to_string(),
                "nbdkit" => String::new(),
                name => format!("{name} installed\n"),
            })
            .collect();
        assert_eq!(names(&not_installed(&listing)), ["fio", "nbdkit"]);
    }

    #[test]
    fn the_candidate_is_read_from_the_policy() {
        let policy = "qemu-system-x86:\n  Installed: (none)\n  Candidate: 1:7.2+dfsg-7\n  Version table:\n";
        assert_eq!(candidate_in(policy).as_deref(), Some("1:7.2+dfsg-7"));
        assert_eq!(candidate_in("nbdfuse:\n  Installed: (none)\n  Candidate: (none)\n"), None);
        assert_eq!(candidate_in(""), None);
    }
}
