//! How long to look for completions before sleeping.
//!
//! The rule of KVM's halt polling: a sleep that was short would have fitted into a spin, so spin the full
//! budget next time; a long one shows that nothing is going on, so spin less, down to not at all.
//!
//! A spinning thread offers its processor to others each time round. One that computes keeps it for its whole
//! time slice, a hundred times longer than a wake-up would have taken, so while there is such a one nothing is
//! looked for: whoever sleeps is woken at once and goes first.

use std::time::{Duration, Instant};

/// The adaptive budget.
#[derive(Debug)]
pub(crate) struct Spin {
    max: Duration,
    now: Duration,
    /// Until then somebody else needs the processor.
    crowded_until: Option<Instant>,
}

/// A wait shorter than this many budgets counts as short: the sleep itself, and the peer's, cost more than
/// one.
const SHORT_BUDGETS: u32 = 4;
const BUDGET_MIN: Duration = Duration::from_micros(5);
/// Who only serves a request seldom keeps a processor for so long, and if it serves many at a time, spinning gains
/// nothing either.
const SLICE_MIN: Duration = Duration::from_micros(100);
/// Between two looks whether the processor is still wanted: a slice of some milliseconds is lost with each.
const CROWDED: Duration = Duration::from_millis(100);

impl Spin {
    pub(crate) fn new(max: Duration) -> Self {
        Self { max, now: max, crowded_until: None }
    }

    /// For a wait that begins now.
    pub(crate) fn budget(&mut self, now: Instant) -> Duration {
        self.crowded_until = self.crowded_until.filter(|until| now < *until);
        if self.crowded_until.is_some() { Duration::ZERO } else { self.now }
    }

    /// The processor was offered, and came back after so long. Returns whether to go on.
    pub(crate) fn yielded(&mut self, took: Duration, now: Instant) -> bool {
        if took < SLICE_MIN {
            return true;
        }
        self.crowded_until = Some(now + CROWDED);
        false
    }

    /// Something completed while spinning.
    pub(crate) fn found(&mut self) {
        self.now = self.max;
    }

    /// Spinning did not help; the whole wait took this long.
    pub(crate) fn slept(&mut self, waited: Duration) {
        if waited < self.max * SHORT_BUDGETS {
            self.now = self.max;
        } else {
            self.now /= 2;
            if self.now < BUDGET_MIN {
                self.now = Duration::ZERO;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_ends_the_spinning_and_work_brings_it_back() {
        let max = Duration::from_micros(50);
        let mut spin = Spin::new(max);
        for _ in 0..5 {
            spin.slept(Duration::from_millis(500));
        }
        assert_eq!(spin.budget(Instant::now()), Duration::ZERO);
        spin.slept(Duration::from_micros(80));
        assert_eq!(spin.budget(Instant::now()), max);
        spin.slept(Duration::from_millis(1));
        assert!(spin.budget(Instant::now()) < max);
        spin.found();
        assert_eq!(spin.budget(Instant::now()), max);
    }

    #[test]
    fn a_budget_of_zero_never_spins() {
        let mut spin = Spin::new(Duration::ZERO);
        spin.found();
        spin.slept(Duration::from_micros(1));
        assert_eq!(spin.budget(Instant::now()), Duration::ZERO);
    }

    #[test]
    fn who_computes_beside_it_ends_the_spinning_for_a_while() {
        let (max, begin) = (Duration::from_micros(50), Instant::now());
        let mut spin = Spin::new(max);
        assert!(spin.yielded(Duration::from_micros(40), begin), "a client that wrote its next request");
        assert_eq!(spin.budget(begin), max);
        assert!(!spin.yielded(Duration::from_millis(3), begin));
        assert_eq!(spin.budget(begin), Duration::ZERO);
        spin.found();
        spin.slept(Duration::from_micros(80));
        assert_eq!(spin.budget(begin + CROWDED / 2), Duration::ZERO, "work alone does not bring it back");
        assert_eq!(spin.budget(begin + CROWDED), max);
    }
}
