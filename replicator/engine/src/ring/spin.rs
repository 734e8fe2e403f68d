//! How long to look for completions before sleeping.
//!
//! The rule of KVM's halt polling: a sleep that was short would have fitted into a spin, so spin the full
//! budget next time; a long one shows that nothing is going on, so spin less, down to not at all.
//!
//! A spinning thread offers its processor to others each time round. One that computes keeps it for its whole
//! time slice, a hundred times longer than a wake-up would have taken, so while such a one takes most of the time
//! nothing is looked for: whoever sleeps is woken at once and goes first. Single long absences say nothing, as a
//! virtual machine has them, too.

use std::time::{Duration, Instant};

/// The adaptive budget.
#[derive(Debug)]
pub(crate) struct Spin {
    max: Duration,
    now: Duration,
    /// Since when it is counted how long others kept the processor, and that.
    began: Option<Instant>,
    lost: Duration,
    /// Until then somebody else needs the processor.
    crowded_until: Option<Instant>,
}

/// A wait shorter than this many budgets counts as short: the sleep itself, and the peer's, cost more than
/// one.
const SHORT_BUDGETS: u32 = 4;
const BUDGET_MIN: Duration = Duration::from_micros(5);
/// Who only serves a request seldom keeps a processor for so long.
const SLICE_MIN: Duration = Duration::from_micros(100);
/// Over this time it is counted who has the processor.
const WINDOW: Duration = Duration::from_millis(10);
/// Between two looks whether the processor is still wanted, which cost a window of slow answers each.
const CROWDED: Duration = Duration::from_millis(200);

impl Spin {
    pub(crate) fn new(max: Duration) -> Self {
        Self { max, now: max, began: None, lost: Duration::ZERO, crowded_until: None }
    }

    /// For a wait that begins now.
    pub(crate) fn budget(&mut self, now: Instant) -> Duration {
        self.crowded_until = self.crowded_until.filter(|until| now < *until);
        if self.crowded_until.is_some() { Duration::ZERO } else { self.now }
    }

    /// The processor was offered, and came back after so long.
    pub(crate) fn yielded(&mut self, took: Duration, now: Instant) {
        if took >= SLICE_MIN {
            self.lost += took;
        }
        let began = *self.began.get_or_insert(now);
        if now - began >= WINDOW {
            self.crowded_until = (self.lost * 2 > now - began).then_some(now + CROWDED);
            (self.began, self.lost) = (None, Duration::ZERO);
        }
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
        let (max, us) = (Duration::from_micros(50), Duration::from_micros);
        let mut spin = Spin::new(max);
        let mut now = Instant::now();
        let mut offers = |spin: &mut Spin, took: &[Duration]| {
            for took in took.iter().cycle().take(200) {
                now += *took;
                spin.yielded(*took, now);
            }
            now
        };
        let at = offers(&mut spin, &[us(40)]);
        assert_eq!(spin.budget(at), max, "a client that writes its next request");
        let at = offers(&mut spin, &[&[us(3000)][..], &[us(50); 99]].concat());
        assert_eq!(spin.budget(at), max, "the host took the processor now and then");
        let at = offers(&mut spin, &[us(3000), us(40)]);
        assert_eq!(spin.budget(at), Duration::ZERO);
        spin.found();
        spin.slept(us(80));
        assert_eq!(spin.budget(at + CROWDED / 2), Duration::ZERO, "work alone does not bring it back");
        assert_eq!(spin.budget(at + CROWDED), max);
    }
}
