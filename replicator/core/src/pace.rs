//! How fast a resync may go: a limit that follows the tail of the latency of clients' requests, and the bucket that
//! keeps to it.
//!
//! The limit falls quickly while the slowest one in a hundred requests takes clearly longer than it does without a
//! resync, and rises slowly while it does not; where nobody asks for anything there is none. It never falls below a
//! floor, so that a resync always ends; an operator who needs the end of it more than a short tail raises that. What
//! is usual without one is only learnt while none moves anything: before it, while it is paused, and in the moments
//! in which it is held to look (a probe), which take a small part of its time. So it cannot get used to the harm that
//! it does. Pure: time is an input, the numbers are integers.

use crate::ids::Instant;
use crate::tail::Tail;
use core::time::Duration;

/// The limit is looked at this often.
pub(crate) const INTERVAL: Duration = Duration::from_millis(100);
/// An interval with fewer requests goes on, up to this.
const REQUESTS_MIN: u32 = 20;
const INTERVAL_MAX: Duration = Duration::from_millis(500);
/// The tail may be longer by half of the usual one, or by this.
const SLACK_NS: u64 = 100_000;
/// Bytes per second that a resync always gets.
const FLOOR_BYTES_PER_S: u64 = 4 << 20;
/// And at least one part in so many of the best rate that was seen.
const FLOOR_PART: u64 = 64;
/// A resync begins with this limit, and goes on with it after it stood still, where clients are at work.
const START_BYTES_PER_S: u64 = 16 << 20;
/// It rises by an eighth, or by this.
const RISE_BYTES_PER_S: u64 = 1 << 20;
/// After so long without a request nobody is at work.
const QUIET: Duration = Duration::from_millis(200);
/// After so many intervals in which a resync moved nothing what it had under way is over, also at the target.
const STILL_MIN: u32 = 2;
/// While it is held to look at clients alone.
const HELD_BYTES_PER_S: u64 = 1;
/// A probe ends after so many calm intervals, or so many of any kind.
const PROBE_CALM: u32 = 2;
const PROBE_INTERVALS_MAX: u32 = 6;
/// From one probe to the next, and where the limit is as low as it gets and does not help.
const PROBE_EVERY: Duration = Duration::from_secs(10);
const PROBE_PAUSE: Duration = Duration::from_secs(3);

/// The limit by latency.
#[derive(Debug)]
pub(crate) struct Feedback {
    writes: Tail,
    reads: Tail,
    began: Instant,
    /// Bytes that the resync had looked at when the interval began.
    moved_bytes: u64,
    /// Best rate of this resync.
    peak: u64,
    /// Bytes per second.
    limit: Option<u64>,
    /// Bytes per second that an operator wants at least.
    least: u64,
    /// When the last request was under way.
    asked: Option<Instant>,
    /// Intervals in which no resync moved anything.
    still: u32,
    /// Intervals of the probe that is under way.
    probe: Option<u32>,
    /// When the last one began.
    probed: Option<Instant>,
}

/// How far an interval's tails are from what is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Strain {
    /// In percent of what is allowed: the worse one of reads and writes.
    percent: Option<u64>,
    /// There were requests of a kind that was never seen without a resync.
    unknown: bool,
}

impl Feedback {
    pub(crate) fn new() -> Self {
        Feedback {
            writes: Tail::new(),
            reads: Tail::new(),
            began: Instant(0),
            moved_bytes: 0,
            peak: 0,
            limit: None,
            least: 0,
            asked: None,
            still: 0,
            probe: None,
            probed: None,
        }
    }

    /// A resync begins: carefully, if clients are at work.
    pub(crate) fn begin(&mut self, now: Instant) {
        (self.peak, self.moved_bytes, self.began) = (0, 0, now);
        self.limit = self.careful(now);
        let known = self.writes.calm().is_some() || self.reads.calm().is_some();
        (self.probe, self.probed) = (None, known.then_some(now));
        if self.limit.is_some() && !known {
            self.hold(now);
        }
    }

    /// An operator wants so many bytes per second at least; 0: nobody wants any.
    pub(crate) fn set_least(&mut self, least: u64) {
        self.least = least;
        if least > 0 {
            self.probe = None;
        }
    }

    /// Clients wait for answers.
    pub(crate) fn note_open(&mut self, now: Instant) {
        self.asked = Some(now);
    }

    /// A client's write has ended, and took so long.
    pub(crate) fn observe_write(&mut self, now: Instant, ns: u64) {
        self.asked = Some(now);
        self.writes.observe(ns);
    }

    /// A client's read has ended, and took so long.
    pub(crate) fn observe_read(&mut self, now: Instant, ns: u64) {
        self.asked = Some(now);
        self.reads.observe(ns);
    }

    /// Ends an interval, if it is time. `moved_bytes`: what the resync looked at so far; none runs without.
    pub(crate) fn turn(&mut self, now: Instant, moved_bytes: Option<u64>) {
        let passed = now.since(self.began);
        if passed < INTERVAL {
            return;
        }
        if (1..REQUESTS_MIN).contains(&self.requests()) && passed < INTERVAL_MAX {
            return;
        }
        self.began = now;
        let moved = moved_bytes.unwrap_or(self.moved_bytes);
        let bytes = moved.saturating_sub(core::mem::replace(&mut self.moved_bytes, moved));
        self.still = if bytes == 0 { self.still.saturating_add(1) } else { 0 };
        let strain = self.take_strain();
        if moved_bytes.is_some() {
            let passed_us = u64::try_from(passed.as_micros()).unwrap_or(u64::MAX).max(1);
            self.adapt(now, strain, bytes.saturating_mul(1_000_000) / passed_us);
        }
    }

    /// Looks at the interval's tails, and learns from them if they are calm: as calm as it gets, at the end of a probe.
    fn take_strain(&mut self) -> Strain {
        let ends = |past: u32| past + 1 == PROBE_INTERVALS_MAX;
        let is_calm = self.still >= STILL_MIN || self.probe.is_some_and(ends);
        let mut strain = Strain { percent: None, unknown: false };
        for tail in [&mut self.writes, &mut self.reads] {
            let Some(ns) = tail.take() else { continue };
            if is_calm {
                tail.learn(ns);
            }
            match tail.calm() {
                Some(calm) => {
                    let allowed = calm.saturating_add((calm / 2).max(SLACK_NS));
                    strain.percent = strain.percent.max(Some(ns.saturating_mul(100) / allowed));
                }
                None => strain.unknown = true,
            }
        }
        strain
    }

    fn adapt(&mut self, now: Instant, strain: Strain, rate: u64) {
        self.peak = self.peak.max(rate);
        let asked = strain.unknown || strain.percent.is_some();
        if let Some(past) = self.probe.take() {
            let over = self.still >= STILL_MIN - 1 + PROBE_CALM || past + 1 == PROBE_INTERVALS_MAX;
            self.probe = (asked && !over).then_some(past + 1);
            return;
        }
        if self.still >= STILL_MIN {
            self.limit = self.careful(now);
            return;
        }
        let floor = FLOOR_BYTES_PER_S.max(self.peak / FLOOR_PART).max(self.least);
        let suffers = strain.percent.is_some_and(|percent| percent > 100);
        let in_vain = suffers && self.limit.is_some_and(|limit| limit <= floor);
        self.limit = match (strain.percent, self.limit) {
            (Some(percent @ 101..), limit) => {
                let from = limit.unwrap_or(START_BYTES_PER_S * 2).min(rate.max(floor));
                Some((if percent > 200 { from / 2 } else { from / 4 * 3 }).max(floor))
            }
            (Some(_), limit) => limit.map(|limit| limit.saturating_add((limit / 8).max(RISE_BYTES_PER_S))),
            (None, limit) if asked || !self.is_quiet(now) => limit,
            (None, _) => None,
        }
        // A limit far above what the disks and the wire do is none.
        .filter(|limit| *limit / 4 <= self.peak.max(START_BYTES_PER_S).max(self.least));
        let pause = if in_vain || strain.unknown { PROBE_PAUSE } else { PROBE_EVERY };
        let is_due = self.probed.is_none_or(|at| now.since(at) >= pause);
        if asked && is_due && (self.limit.is_some() || strain.unknown) {
            self.limit = self.limit.or(Some(START_BYTES_PER_S));
            self.hold(now);
        }
    }

    /// Begins a probe, unless an operator wants the resync to go on in any case.
    fn hold(&mut self, now: Instant) {
        if self.least == 0 {
            (self.probe, self.probed) = (Some(0), Some(now));
        }
    }

    fn requests(&self) -> u32 {
        self.writes.count().saturating_add(self.reads.count())
    }

    fn is_quiet(&self, now: Instant) -> bool {
        self.asked.is_none_or(|at| now.since(at) >= QUIET)
    }

    /// The limit to begin with.
    fn careful(&self, now: Instant) -> Option<u64> {
        (!self.is_quiet(now)).then_some(START_BYTES_PER_S)
    }

    pub(crate) fn limit(&self) -> Option<u64> {
        if self.probe.is_some() {
            Some(HELD_BYTES_PER_S)
        } else {
            self.limit.map(|limit| limit.max(self.least))
        }
    }
}

/// Lets through so many bytes per second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    /// Bytes that may be taken now; what is taken goes below zero.
    left: i64,
    at: Instant,
}

/// What was not used is kept for this part of a second: what goes at once stands in the way of clients at once.
const BURST_PART: u64 = 1000;

impl Bucket {
    pub(crate) fn new(now: Instant) -> Self {
        Bucket { left: 1, at: now }
    }

    /// Something may be taken. What went while there was no limit is not owed to one that comes later.
    pub(crate) fn allows(&mut self, now: Instant, limit: Option<u64>) -> bool {
        let Some(bytes_per_s) = limit else {
            *self = Bucket::new(now);
            return true;
        };
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
    const CAPACITY: u64 = 1000 * MIB;
    const MS: u64 = 1_000_000;
    const PIECE: u64 = 128 << 10;

    /// A volume whose resync moves what it may.
    #[derive(Debug)]
    struct Volume {
        feedback: Feedback,
        now: Instant,
        moved: u64,
        /// Bytes per second in the last interval.
        rate: u64,
        held: u32,
    }

    impl Volume {
        fn new() -> Volume {
            Volume { feedback: Feedback::new(), now: Instant(0), moved: 0, rate: 0, held: 0 }
        }

        /// Writes that take so long, and no resync.
        fn calm(ns: u64) -> Volume {
            let mut volume = Volume::new();
            for _ in 0..20 {
                volume.now = volume.now + INTERVAL;
                (0..200).for_each(|_| volume.feedback.observe_write(volume.now, ns));
                volume.feedback.turn(volume.now, None);
            }
            volume
        }

        fn begin(mut self) -> Volume {
            self.feedback.begin(self.now);
            self
        }

        /// Intervals with 200 requests each, of which 3 % take as long as `slow` says at this rate.
        fn pass(&mut self, intervals: u32, fast: u64, slow: impl Fn(u64) -> u64) {
            for _ in 0..intervals {
                self.held += u32::from(self.feedback.probe.is_some());
                let moved = self.feedback.limit().map_or(CAPACITY, |limit| limit.min(CAPACITY)) / 10;
                (self.now, self.moved, self.rate) = (self.now + INTERVAL, self.moved + moved, moved * 10);
                (0..194).for_each(|_| self.feedback.observe_write(self.now, fast));
                (0..6).for_each(|_| self.feedback.observe_write(self.now, slow(self.rate)));
                self.feedback.turn(self.now, Some(self.moved));
            }
        }

        fn pass_idle(&mut self, intervals: u32) {
            for _ in 0..intervals {
                self.moved += self.feedback.limit().map_or(CAPACITY, |limit| limit.min(CAPACITY)) / 10;
                self.now = self.now + INTERVAL;
                self.feedback.turn(self.now, Some(self.moved));
            }
        }
    }

    /// From 50 MiB/s on the tail is ten times as long.
    fn suffers(rate: u64) -> u64 {
        if rate > 50 * MIB { 3 * MS } else { 300_000 }
    }

    #[test]
    fn an_operator_who_wants_more_gets_it_at_once_and_as_long_as_he_wants_it() {
        let mut volume = Volume::calm(100_000).begin();
        volume.pass(100, 100_000, suffers);
        assert!(volume.feedback.limit().is_some_and(|limit| limit < 80 * MIB));
        volume.feedback.set_least(400 * MIB);
        let from = volume.moved;
        volume.pass(200, 100_000, suffers);
        let rate = (volume.moved - from) / 20;
        assert!((400 * MIB..440 * MIB).contains(&rate), "{} MiB/s", rate / MIB);
        volume.feedback.set_least(0);
        volume.pass(50, 100_000, suffers);
        assert!(volume.feedback.limit().is_some_and(|limit| limit < 80 * MIB));
    }

    #[test]
    fn an_order_for_more_than_was_ever_reached_is_a_limit_and_no_licence() {
        let mut volume = Volume::calm(100_000).begin();
        volume.pass(100, 100_000, suffers);
        // What was moved in this interval was moved slowly, and clients suffer all the same.
        volume.feedback.set_least(900 * MIB);
        (volume.now, volume.moved) = (volume.now + INTERVAL, volume.moved + MIB);
        (0..200).for_each(|_| volume.feedback.observe_write(volume.now, 3 * MS));
        volume.feedback.turn(volume.now, Some(volume.moved));
        assert_eq!(volume.feedback.limit(), Some(900 * MIB));
    }

    #[test]
    fn without_requests_there_is_no_limit_and_one_is_gone_soon() {
        let mut volume = Volume::new().begin();
        volume.pass_idle(10);
        assert_eq!((volume.feedback.limit(), volume.moved), (None, CAPACITY));
        // They have stopped.
        volume.feedback.limit = Some(FLOOR_BYTES_PER_S);
        volume.pass_idle(15);
        assert_eq!(volume.feedback.limit(), None);
    }

    #[test]
    fn a_tail_that_suffers_slows_it_down_and_the_resync_cannot_get_used_to_it() {
        let mut volume = Volume::calm(300_000).begin();
        volume.pass(100, 100_000, suffers);
        // Ten minutes in which the tail is always too long, in all intervals but the probes.
        let (moved, intervals) = (volume.moved, 6000);
        volume.pass(intervals, 100_000, suffers);
        let mean = (volume.moved - moved) / u64::from(intervals) * 10;
        assert!((25 * MIB..=60 * MIB).contains(&mean), "{mean}");
        assert!(volume.held * 20 < intervals, "held in {} of {intervals}", volume.held);
    }

    #[test]
    fn it_is_slow_from_the_first_interval_in_which_requests_suffer() {
        let mut volume = Volume::calm(300_000).begin();
        volume.feedback.limit = None;
        volume.pass(1, 100_000, suffers);
        assert!(volume.feedback.limit().is_some_and(|limit| limit <= START_BYTES_PER_S), "{volume:?}");
    }

    #[test]
    fn however_much_requests_suffer_it_keeps_its_floor() {
        let mut volume = Volume::calm(300_000).begin();
        volume.pass_idle(20);
        assert_eq!(volume.feedback.limit(), None);
        // Not in the probes: they would show that it is not the resync.
        volume.pass(300, 100_000, |rate| if rate == 0 { 300_000 } else { 50 * MS });
        assert_eq!(volume.feedback.limit, Some(CAPACITY / FLOOR_PART));
        const { assert!(CAPACITY / FLOOR_PART > FLOOR_BYTES_PER_S) };
        assert!(volume.held * 5 < 300, "{}", volume.held);
    }

    #[test]
    fn requests_that_do_not_suffer_do_not_slow_it_down() {
        let mut volume = Volume::calm(300_000).begin();
        assert_eq!(volume.feedback.limit(), Some(START_BYTES_PER_S));
        volume.pass(60, 300_000, |_| 300_000);
        assert_eq!((volume.feedback.limit(), volume.rate), (None, CAPACITY));
    }

    #[test]
    fn reads_slow_it_down_as_well() {
        let mut volume = Volume::calm(300_000).begin();
        for _ in 0..40 {
            (0..200).for_each(|_| volume.feedback.observe_read(volume.now, 20_000));
            volume.pass(1, 300_000, |_| 300_000);
        }
        let before = volume.feedback.limit;
        (0..200).for_each(|_| volume.feedback.observe_read(volume.now, MS));
        volume.pass(1, 300_000, |_| 300_000);
        assert!(volume.feedback.limit < before && volume.feedback.limit.is_some(), "{before:?}");
    }

    #[test]
    fn where_nothing_is_known_it_is_held_at_once_to_look_at_the_clients_alone() {
        let mut volume = Volume::new().begin();
        volume.pass_idle(10);
        volume.pass(1, 100_000, suffers);
        assert_eq!(volume.feedback.limit(), Some(HELD_BYTES_PER_S));
        volume.pass(3, 100_000, suffers);
        assert_eq!(volume.feedback.limit(), Some(START_BYTES_PER_S));
        assert!(volume.feedback.writes.calm().is_some_and(|ns| ns < 350_000), "{:?}", volume.feedback);
        volume.pass(200, 100_000, suffers);
        assert!(volume.rate < 60 * MIB, "{}", volume.rate);
    }

    #[test]
    fn a_resync_that_stood_still_goes_on_carefully() {
        let mut volume = Volume::calm(300_000).begin();
        for _ in 0..50 {
            volume.now = volume.now + INTERVAL;
            (0..200).for_each(|_| volume.feedback.observe_write(volume.now, 300_000));
            volume.feedback.turn(volume.now, Some(volume.moved));
        }
        assert_eq!(volume.feedback.limit(), Some(START_BYTES_PER_S));
        // Nobody is at work any more.
        for _ in 0..5 {
            volume.now = volume.now + INTERVAL;
            volume.feedback.turn(volume.now, Some(volume.moved));
        }
        assert_eq!(volume.feedback.limit(), None);
    }

    #[test]
    fn clients_that_were_at_work_a_while_ago_do_not_slow_its_begin() {
        let mut volume = Volume::calm(300_000);
        // The interval that has them was never ended: nothing happened since.
        (0..200).for_each(|_| volume.feedback.observe_write(volume.now, 300_000));
        let last = volume.now;
        volume.now = last + QUIET / 2;
        let mut volume = volume.begin();
        assert_eq!(volume.feedback.limit(), Some(START_BYTES_PER_S));
        volume.now = last + QUIET;
        assert_eq!(volume.begin().feedback.limit(), None);
    }

    #[test]
    fn a_request_that_waits_is_one() {
        let mut volume = Volume::calm(300_000).begin();
        for _ in 0..20 {
            volume.feedback.note_open(volume.now + INTERVAL);
            volume.pass_idle(1);
        }
        assert_eq!(volume.feedback.limit(), Some(START_BYTES_PER_S));
        volume.pass_idle(3);
        assert_eq!(volume.feedback.limit(), None);
    }

    /// Reads were never seen without a resync: nothing says that it may go faster.
    #[test]
    fn a_few_requests_of_an_unknown_kind_do_not_let_it_go() {
        let mut volume = Volume::calm(300_000).begin();
        volume.feedback.observe_read(volume.now, MS);
        volume.now = volume.now + INTERVAL_MAX;
        volume.feedback.turn(volume.now, Some(MIB));
        assert_eq!(volume.feedback.limit, Some(START_BYTES_PER_S));
    }

    #[test]
    fn what_went_without_a_limit_is_not_owed() {
        let (mut bucket, second) = (Bucket::new(Instant(0)), Instant(1_000_000_000));
        for _ in 0..1000 {
            assert!(bucket.allows(Instant(0), None));
            bucket.take(PIECE);
        }
        bucket.allows(second, Some(MIB));
        let due = bucket.due(MIB).unwrap_or(second);
        assert!(due.since(second) <= Duration::from_millis(130), "{due:?}");
    }

    #[test]
    fn what_is_slower_for_good_counts_as_usual_after_a_while() {
        let mut volume = Volume::calm(100_000).begin();
        volume.pass(300, 10 * MS, |_| 10 * MS);
        assert!(volume.feedback.limit.is_none_or(|limit| limit > 100 * MIB), "{:?}", volume.feedback);
    }

    #[test]
    fn few_requests_make_a_longer_interval() {
        let mut volume = Volume::calm(300_000).begin();
        (0..REQUESTS_MIN - 1).for_each(|_| volume.feedback.observe_write(volume.now, 50 * MS));
        volume.feedback.turn(volume.now + INTERVAL, Some(MIB));
        assert_eq!(volume.feedback.limit(), Some(START_BYTES_PER_S));
        volume.feedback.turn(volume.now + INTERVAL_MAX, Some(4 * MIB));
        assert!(volume.feedback.limit() < Some(START_BYTES_PER_S));
    }

    proptest! {
        #[test]
        fn the_limit_is_never_below_the_floor_but_for_a_short_while(
            steps in proptest::collection::vec((0u64..u64::MAX, any::<Option<u32>>(), 500 * MS..u64::MAX / 64), 1..50),
        ) {
            let mut feedback = Feedback::new();
            let (mut now, mut moved, mut held) = (Instant(0), 0_u64, 0);
            feedback.begin(now);
            for (bytes, latency, wait_ns) in steps {
                now = now + Duration::from_nanos(wait_ns);
                moved = moved.saturating_add(bytes);
                if let Some(ns) = latency {
                    feedback.observe_write(now, u64::from(ns));
                    feedback.observe_read(now, u64::from(ns));
                }
                feedback.turn(now, Some(moved));
                held = if feedback.probe.is_some() { held + 1 } else { 0 };
                prop_assert!(held <= PROBE_INTERVALS_MAX);
                prop_assert!(feedback.limit.is_none_or(|limit| limit >= FLOOR_BYTES_PER_S));
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
                if !bucket.allows(now, Some(rate)) {
                    let due = bucket.due(rate).expect("it says when");
                    prop_assert!(due > now);
                    now = due;
                    prop_assert!(bucket.allows(now, Some(rate)), "{bucket:?}");
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
