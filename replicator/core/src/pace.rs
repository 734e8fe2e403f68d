//! How fast a resync may go: a limit that follows the latency of clients' writes, and the bucket that keeps to it.
//!
//! The limit falls quickly while writes take clearly longer than they did at best lately, and rises slowly while
//! they do not; where nobody writes it rises fast. It never falls below a floor, so that a resync always ends. Pure:
//! time is an input, the numbers are integers.

use crate::ids::Instant;
use alloc::collections::VecDeque;
use core::time::Duration;

/// The limit is looked at this often.
pub(crate) const INTERVAL: Duration = Duration::from_millis(250);
/// Intervals whose best mean counts as undisturbed: ten seconds with writes.
const INTERVALS_KEPT: usize = 40;
/// A mean may be twice the best one, or this much above it.
const SLACK_NS: u64 = 250_000;
/// Bytes per second that a resync always gets.
const FLOOR_BYTES_PER_S: u64 = 4 << 20;
/// And at least one part in so many of the best rate that was seen.
const FLOOR_PART: u64 = 20;
/// A resync begins with this limit where clients write.
const START_BYTES_PER_S: u64 = 64 << 20;

/// The limit by latency.
#[derive(Debug)]
pub(crate) struct Feedback {
    /// Mean latencies of the last intervals that had writes, in nanoseconds.
    means: VecDeque<u64>,
    sum_ns: u64,
    count: u64,
    began: Instant,
    /// Bytes that the resync had looked at when the interval began.
    moved_bytes: u64,
    /// Best rate of this resync.
    peak: u64,
    /// Bytes per second.
    limit: Option<u64>,
}

impl Feedback {
    pub(crate) fn new() -> Self {
        Feedback {
            means: VecDeque::with_capacity(INTERVALS_KEPT),
            sum_ns: 0,
            count: 0,
            began: Instant(0),
            moved_bytes: 0,
            peak: 0,
            limit: None,
        }
    }

    /// A resync begins: carefully, if clients are writing.
    pub(crate) fn begin(&mut self, now: Instant) {
        let busy = self.count > 0 && now.since(self.began) < INTERVAL * 4;
        (self.peak, self.moved_bytes, self.began) = (0, 0, now);
        self.limit = busy.then_some(START_BYTES_PER_S);
    }

    /// A client's write took so long.
    pub(crate) fn observe(&mut self, latency: Duration) {
        self.sum_ns = self.sum_ns.saturating_add(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
        self.count += 1;
    }

    /// Ends an interval, if it is time. `moved_bytes`: what the resync looked at so far; none runs without.
    pub(crate) fn turn(&mut self, now: Instant, moved_bytes: Option<u64>) {
        let passed = now.since(self.began);
        if passed < INTERVAL {
            return;
        }
        let mean = self.sum_ns.checked_div(self.count);
        (self.sum_ns, self.count, self.began) = (0, 0, now);
        if let Some(mean) = mean {
            if self.means.len() == INTERVALS_KEPT {
                self.means.pop_front();
            }
            self.means.push_back(mean);
        }
        if let Some(moved) = moved_bytes {
            let bytes = moved.saturating_sub(core::mem::replace(&mut self.moved_bytes, moved));
            let passed_us = u64::try_from(passed.as_micros()).unwrap_or(u64::MAX).max(1);
            self.adapt(mean, bytes.saturating_mul(1_000_000) / passed_us);
        }
    }

    fn adapt(&mut self, mean: Option<u64>, rate: u64) {
        self.peak = self.peak.max(rate);
        let floor = FLOOR_BYTES_PER_S.max(self.peak / FLOOR_PART);
        let best = self.means.iter().copied().min().unwrap_or(0);
        let allowed = best.saturating_add(best.max(SLACK_NS));
        self.limit = match (mean, self.limit) {
            (Some(mean), limit) if mean > allowed => {
                let from = limit.map_or(rate, |limit| limit.min(rate.max(floor)));
                Some((from / 10 * 7).max(floor))
            }
            // The first writes that are seen: how fast they are without resync is still to be learnt.
            (Some(_), None) if self.means.len() == 1 => Some(START_BYTES_PER_S),
            (_, None) => None,
            (Some(_), Some(limit)) => Some(limit.saturating_add((limit / 8).max(FLOOR_BYTES_PER_S))),
            (None, Some(limit)) => Some(limit.saturating_mul(2)),
        }
        // A limit far above what the disks and the wire do is none.
        .filter(|limit| self.peak == 0 || *limit / 4 <= self.peak.max(START_BYTES_PER_S));
    }

    pub(crate) fn limit(&self) -> Option<u64> {
        self.limit
    }
}

/// Lets through so many bytes per second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    /// Bytes that may be taken now; what is taken goes below zero.
    left: i64,
    at: Instant,
}

/// What was not used is kept for this part of a second.
const BURST_PART: u64 = 8;

impl Bucket {
    pub(crate) fn new(now: Instant) -> Self {
        Bucket { left: 1, at: now }
    }

    /// Something may be taken.
    pub(crate) fn allows(&mut self, now: Instant, bytes_per_s: u64) -> bool {
        let passed_ns = now.since(self.at).as_nanos();
        let gained = i64::try_from(passed_ns * u128::from(bytes_per_s) / 1_000_000_000).unwrap_or(i64::MAX);
        // Time that gained nothing is not forgotten.
        if gained > 0 {
            let burst = i64::try_from(bytes_per_s / BURST_PART).unwrap_or(i64::MAX).max(1);
            (self.left, self.at) = (self.left.saturating_add(gained).min(burst), now);
        }
        self.left > 0
    }

    pub(crate) fn take(&mut self, bytes: u64) {
        self.left = self.left.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// When something may be taken again, if not now.
    pub(crate) fn due(&self, bytes_per_s: u64) -> Option<Instant> {
        let lacks = u64::try_from(1_i64.saturating_sub(self.left)).ok().filter(|lacks| *lacks > 0)?;
        let wait_ns = (u128::from(lacks) * 1_000_000_000).div_ceil(u128::from(bytes_per_s.max(1)));
        Some(self.at + Duration::from_nanos(u64::try_from(wait_ns).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    /// A volume whose resync moves what it may, up to `capacity`; latency grows with the rate.
    fn run(capacity: u64, latency: impl Fn(u64) -> Option<u64>, intervals: u32) -> (Feedback, u64) {
        let mut feedback = Feedback::new();
        let (mut now, mut moved) = (Instant(0), 0);
        feedback.begin(now);
        let mut rate = 0;
        for _ in 0..intervals {
            rate = feedback.limit().unwrap_or(u64::MAX).min(capacity);
            moved += rate / 4;
            now = now + INTERVAL;
            if let Some(ns) = latency(rate) {
                feedback.observe(Duration::from_nanos(ns));
            }
            feedback.turn(now, Some(moved));
        }
        (feedback, rate)
    }

    #[test]
    fn without_writes_the_limit_is_gone_soon() {
        let (mut feedback, rate) = run(1000 * MIB, |_| None, 1);
        assert_eq!((feedback.limit(), rate), (None, 1000 * MIB));
        // They have stopped.
        feedback.limit = Some(FLOOR_BYTES_PER_S);
        let (mut now, mut moved) = (feedback.began, feedback.moved_bytes);
        for _ in 0..12 {
            (now, moved) = (now + INTERVAL, moved + feedback.limit().unwrap_or(u64::MAX).min(1000 * MIB) / 4);
            feedback.turn(now, Some(moved));
        }
        assert_eq!(feedback.limit(), None);
    }

    #[test]
    fn writes_that_suffer_slow_it_down_and_it_never_starves() {
        // From 100 MiB/s on a write takes ten times as long.
        let latency = |rate: u64| Some(if rate > 100 * MIB { 5_000_000 } else { 500_000 });
        let (feedback, rate) = run(1000 * MIB, latency, 400);
        assert!((50 * MIB..=200 * MIB).contains(&rate), "{rate}");
        assert!(feedback.limit().is_some());
        // However slow it is, writes suffer: it keeps its floor.
        let mut feedback = run(1000 * MIB, |_| Some(100_000), 40).0;
        let (mut now, mut moved) = (feedback.began, feedback.moved_bytes);
        for _ in 0..30 {
            (now, moved) = (now + INTERVAL, moved + feedback.limit().unwrap_or(1000 * MIB) / 4);
            feedback.observe(Duration::from_millis(10));
            feedback.turn(now, Some(moved));
        }
        assert_eq!(feedback.limit(), Some(feedback.peak / FLOOR_PART));
        assert!(feedback.peak / FLOOR_PART > FLOOR_BYTES_PER_S);
    }

    #[test]
    fn writes_that_do_not_suffer_do_not_slow_it_down() {
        let (feedback, rate) = run(1000 * MIB, |_| Some(300_000), 60);
        assert_eq!((feedback.limit(), rate), (None, 1000 * MIB));
    }

    #[test]
    fn what_is_slower_for_good_counts_as_undisturbed_after_a_while() {
        let mut feedback = run(1000 * MIB, |_| Some(100_000), 40).0;
        let (mut now, mut moved) = (feedback.began, feedback.moved_bytes);
        for _ in 0..INTERVALS_KEPT + 40 {
            (now, moved) = (now + INTERVAL, moved + feedback.limit().unwrap_or(1000 * MIB) / 4);
            feedback.observe(Duration::from_millis(10));
            feedback.turn(now, Some(moved));
        }
        assert!(feedback.limit().is_none_or(|limit| limit > 100 * MIB), "{feedback:?}");
    }

    proptest! {
        #[test]
        fn the_limit_is_never_below_the_floor(
            steps in proptest::collection::vec((0u64..u64::MAX, any::<Option<u32>>(), 0u64..u64::MAX / 2), 1..50),
        ) {
            let mut feedback = Feedback::new();
            let (mut now, mut moved) = (Instant(0), 0_u64);
            feedback.begin(now);
            for (bytes, latency, wait_ns) in steps {
                now = now + Duration::from_nanos(wait_ns);
                moved = moved.saturating_add(bytes);
                if let Some(ns) = latency {
                    feedback.observe(Duration::from_nanos(u64::from(ns)));
                }
                feedback.turn(now, Some(moved));
                prop_assert!(feedback.limit().is_none_or(|limit| limit >= FLOOR_BYTES_PER_S));
            }
        }

        /// No more than the rate allows goes through, plus one burst and one piece; and it is never stuck.
        #[test]
        fn a_bucket_keeps_to_its_rate(
            rate in 1u64..1 << 40,
            pieces in proptest::collection::vec(1u64..1 << 17, 1..60),
        ) {
            let mut bucket = Bucket::new(Instant(0));
            let (mut now, mut taken) = (Instant(0), 0_u64);
            for piece in pieces {
                if !bucket.allows(now, rate) {
                    let due = bucket.due(rate).expect("it says when");
                    prop_assert!(due > now);
                    now = due;
                    prop_assert!(bucket.allows(now, rate), "{bucket:?}");
                }
                let burst = u128::from(rate / BURST_PART);
                let allowed = u128::from(now.0) * u128::from(rate) / 1_000_000_000 + burst + 2;
                prop_assert!(u128::from(taken) <= allowed + (1 << 17));
                bucket.take(piece);
                taken += piece;
            }
        }
    }
}
