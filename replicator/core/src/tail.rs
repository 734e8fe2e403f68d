//! How long the slowest of clients' requests take, and how long they took while no resync was in their way.
//!
//! Counts in steps of a logarithmic scale, an eighth of an octave each: a request costs a few instructions and no
//! memory, and a percentile is at most an eighth too high. What was calm is remembered as the median of the last
//! such intervals, since the tail of a short interval varies by a factor of two on its own; it does not age while
//! nothing calm is seen.

use alloc::collections::VecDeque;

/// Steps per octave, as a power of two.
const STEP_BITS: u32 = 3;
const STEPS: u64 = 1 << STEP_BITS;
/// Latencies are counted in units of so many nanoseconds, as a power of two.
const UNIT_BITS: u32 = 10;
/// Everything from this many units on, 17 s, is counted as the same.
const UNITS_END: u64 = 1 << 24;
const COUNTS: usize = index(UNITS_END - 1) + 1;
/// Calm intervals that are remembered.
const CALM_KEPT: usize = 15;

/// Where so many units are counted.
const fn index(units: u64) -> usize {
    if units < STEPS {
        return units as usize;
    }
    let shift = units.ilog2() - STEP_BITS;
    (shift as usize + 1) * STEPS as usize + (units >> shift) as usize % STEPS as usize
}

/// The largest number of units that is counted there.
const fn units(index: usize) -> u64 {
    let (octave, step) = (index as u64 / STEPS, index as u64 % STEPS);
    match octave {
        0 => step,
        _ => ((STEPS + step + 1) << (octave - 1)) - 1,
    }
}

/// Requests of one kind.
#[derive(Debug)]
pub(crate) struct Tail {
    counts: [u32; COUNTS],
    count: u32,
    /// The tails of the last calm intervals, in nanoseconds.
    calm: VecDeque<u64>,
}

impl Tail {
    pub(crate) fn new() -> Self {
        Tail { counts: [0; COUNTS], count: 0, calm: VecDeque::with_capacity(CALM_KEPT) }
    }

    /// A request took so long.
    pub(crate) fn observe(&mut self, ns: u64) {
        if let Some(count) = self.counts.get_mut(index((ns >> UNIT_BITS).min(UNITS_END - 1))) {
            *count = count.saturating_add(1);
            self.count = self.count.saturating_add(1);
        }
    }

    /// Requests since the interval began.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// Ends an interval: what all but one in a hundred, and one more, did not exceed: a single one says little.
    pub(crate) fn take(&mut self) -> Option<u64> {
        let total = core::mem::take(&mut self.count);
        if total == 0 {
            return None;
        }
        let mut left = total.saturating_sub(1 + total / 100).max(1);
        let mut tail = None;
        for (index, count) in self.counts.iter_mut().enumerate() {
            let count = core::mem::take(count);
            left = left.saturating_sub(count);
            if left == 0 && tail.is_none() {
                tail = Some((units(index) + 1) << UNIT_BITS);
            }
        }
        tail
    }

    /// No resync was in the way of an interval that ended so.
    pub(crate) fn learn(&mut self, tail: u64) {
        if self.calm.len() == CALM_KEPT {
            self.calm.pop_front();
        }
        self.calm.push_back(tail);
    }

    /// What is usual while no resync is in the way; `None` if that was never seen.
    pub(crate) fn calm(&self) -> Option<u64> {
        let mut sorted = [0; CALM_KEPT];
        let sorted = sorted.get_mut(..self.calm.len())?;
        sorted.iter_mut().zip(&self.calm).for_each(|(to, from)| *to = *from);
        sorted.sort_unstable();
        sorted.get(sorted.len().checked_sub(1)? / 2).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tail_of(latencies: &[u64]) -> Option<u64> {
        let mut tail = Tail::new();
        latencies.iter().for_each(|ns| tail.observe(*ns));
        tail.take()
    }

    #[test]
    fn one_in_a_hundred_does_not_count_and_two_do() {
        let mut latencies = [[100_000; 98].as_slice(), &[9_000_000; 2]].concat();
        let low = tail_of(&latencies).expect("a tail");
        assert!((100_000..=113_000).contains(&low), "{low}");
        latencies.push(9_000_000);
        let high = tail_of(&latencies).expect("a tail");
        assert!((9_000_000..=10_200_000).contains(&high), "{high}");
    }

    #[test]
    fn an_interval_begins_with_nothing() {
        let mut tail = Tail::new();
        assert_eq!(tail.take(), None);
        tail.observe(5_000_000);
        assert_eq!(tail.count(), 1);
        assert!(tail.take().is_some_and(|ns| ns >= 5_000_000));
        assert_eq!((tail.count(), tail.take()), (0, None));
    }

    #[test]
    fn what_is_calm_is_the_median_and_follows_what_lasts() {
        let mut tail = Tail::new();
        assert_eq!(tail.calm(), None);
        tail.learn(100);
        tail.learn(900);
        assert_eq!(tail.calm(), Some(100), "the better one of two");
        (0..CALM_KEPT).for_each(|_| tail.learn(200));
        tail.learn(7000);
        assert_eq!(tail.calm(), Some(200), "one that is slow says nothing");
        (0..CALM_KEPT / 2).for_each(|_| tail.learn(7000));
        assert_eq!(tail.calm(), Some(7000));
    }

    proptest! {
        /// As the sorted list says, or up to an eighth more.
        #[test]
        fn a_percentile_is_nearly_exact(latencies in proptest::collection::vec(0u64..20_000_000_000, 1..400)) {
            let mut sorted = latencies.clone();
            sorted.sort_unstable();
            let rank = latencies.len().saturating_sub(1 + latencies.len() / 100).max(1);
            let exact = sorted[rank - 1].min((UNITS_END << UNIT_BITS) - 1);
            let tail = tail_of(&latencies).expect("a tail");
            prop_assert!(exact < tail && tail <= exact + exact / 8 + (1 << UNIT_BITS), "{exact} {tail}");
        }

        #[test]
        fn every_latency_has_its_place(at in 0..COUNTS) {
            prop_assert_eq!(index(units(at)), at);
            prop_assert!(at == 0 || index(units(at - 1) + 1) == at);
        }
    }
}
