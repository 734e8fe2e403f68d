//! How long to look for completions before sleeping.
//!
//! The rule of KVM's halt polling: a sleep that was short would have fitted into a spin, so spin the full
//! budget next time; a long one shows that nothing is going on, so spin less, down to not at all.

use std::time::Duration;

/// The adaptive budget.
#[derive(Debug)]
pub(crate) struct Spin {
    max: Duration,
    now: Duration,
}

/// A wait shorter than this many budgets counts as short: the sleep itself, and the peer's, cost more than
/// one.
const SHORT_BUDGETS: u32 = 4;
const BUDGET_MIN: Duration = Duration::from_micros(5);

impl Spin {
    pub(crate) fn new(max: Duration) -> Self {
        Self { max, now: max }
    }

    pub(crate) fn budget(&self) -> Duration {
        self.now
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
        assert_eq!(spin.budget(), Duration::ZERO);
        spin.slept(Duration::from_micros(80));
        assert_eq!(spin.budget(), max);
        spin.slept(Duration::from_millis(1));
        assert!(spin.budget() < max);
        spin.found();
        assert_eq!(spin.budget(), max);
    }

    #[test]
    fn a_budget_of_zero_never_spins() {
        let mut spin = Spin::new(Duration::ZERO);
        spin.found();
        spin.slept(Duration::from_micros(1));
        assert_eq!(spin.budget(), Duration::ZERO);
    }
}
