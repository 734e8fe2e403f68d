//! Waiting for a condition, never for a time: every wait has a deadline and says what it saw last.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Polls until `look` gives a value. Panics at the deadline with what `look` saw last.
#[track_caller]
pub fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        match look() {
            Ok(value) => return value,
            Err(seen) if Instant::now() >= deadline => {
                panic!("waited {limit:?} for: {what}\nlast seen: {seen}")
            }
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// Polls until `done`. Panics at the deadline.
#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    wait_for(what, limit, || done().then_some(()).ok_or_else(|| "not yet".to_string()));
}
