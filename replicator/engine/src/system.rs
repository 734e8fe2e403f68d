//! Facts of this machine and process: randomness, boot id, clocks, limits.

use std::fs::{self, File};
use std::io::{self, Read};
use std::time::{SystemTime, UNIX_EPOCH};

use lockstep_core::Instant;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Random bytes of the kernel.
pub(crate) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The kernel's boot id: changes with each boot, and with nothing else.
pub(crate) fn boot_id() -> io::Result<u128> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    u128::from_str_radix(&digits, 16).map_err(|_| io::Error::other(format!("unexpected boot id {text:?}")))
}

/// Lets this process open so many files, if its hard limit allows it; returns how many it may.
pub(crate) fn raise_open_files(wanted: u64) -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let may = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
    if may(current) >= wanted {
        return may(current);
    }
    let raised = wanted.min(may(maximum));
    match setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum }) {
        Ok(()) => raised,
        Err(_) => may(current),
    }
}

/// Monotonic time since the clock was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(std::time::Instant);

impl Clock {
    /// A clock that starts now, at one second: zero stays free for "never".
    pub(crate) fn new() -> Self {
        Self(std::time::Instant::now())
    }

    /// Now.
    pub(crate) fn now(&self) -> Instant {
        Instant(1_000_000_000 + self.0.elapsed().as_nanos() as u64)
    }
}

/// Wall clock in milliseconds since 1970, for records and messages only.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_id_is_stable_and_random_bytes_are_not() {
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
        assert_ne!(random::<16>().unwrap(), random::<16>().unwrap());
    }
}
