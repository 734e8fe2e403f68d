//! Deadlines: each wait of the core has one, or an operation under way.

use super::Node;
use super::role::Change;
use crate::action::CloseReason;
use crate::frame::Frame;
use crate::ids::Instant;
use core::time::Duration;
use lockstep_bitmap::canary::{Bug, is_planted};

/// When the core wants [`crate::Event::Tick`], and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// Not before.
    pub at: Instant,
    /// The timer's name.
    pub why: &'static str,
}

/// Epochs without a new region until unused activity marks are removed.
const IDLE_EPOCHS: u32 = 5;
/// While a resync runs its limit and its progress are looked at this often.
const SAMPLE: Duration = crate::pace::INTERVAL;
/// While there is traffic the timers are looked at this often.
const LOOK: Duration = Duration::from_millis(10);

impl Node {
    /// The earliest deadline, if there is one.
    pub fn next_deadline(&self) -> Option<Deadline> {
        let timing = &self.cfg.timing;
        let mut list = [None; 14];
        let mut set = |index: usize, at: Option<Instant>, why: &'static str| {
            if let (Some(entry), Some(at)) = (list.get_mut(index), at) {
                *entry = Some(Deadline { at, why });
            }
        };
        if let Some(link) = &self.link {
            set(0, (!link.unread).then(|| link.heard + timing.timeout), "peer timeout");
            set(1, Some(link.sent + timing.heartbeat), "heartbeat");
        } else if self.attached && !self.is_failing() {
            set(2, self.dialer.due(), "dial");
        }
        set(3, self.undurable.oldest().map(|at| self.epoch_check(at)), "epoch");
        set(4, self.suspension_due(), "io timeout");
        set(5, self.change_deadline(), "role change");
        set(9, self.resolving.map(|resolving| self.resolve_deadline(resolving)), "resolve");
        let undecided = matches!(self.change, Some(Change::Promoting(_))) && !self.contact_tried;
        let contact_due = Some(self.first_contact_due()).filter(|at| undecided && *at > self.now);
        set(10, contact_due, "first contact");
        set(6, self.round_due(), "bitmap pages");
        set(7, self.idle_due(), "cooling");
        set(8, self.resync.as_ref().map(|_| self.now + SAMPLE), "resync progress");
        set(12, self.pace_due(), "resync limit");
        set(11, self.retry_due().filter(|_| !is_planted(Bug::NoTimerForRetry)), "unreadable blocks");
        set(13, timing.disk_timeout.and_then(|limit| self.ops.due(limit)), "disk timeout");
        list.into_iter().flatten().min_by_key(|deadline| deadline.at)
    }

    /// An epoch that is being closed is looked at again after the same time.
    fn epoch_check(&self, oldest: Instant) -> Instant {
        let due = oldest + self.cfg.timing.epoch;
        if due > self.now { due } else { self.now + self.cfg.timing.epoch }
    }

    /// When what waits for an UpToDate copy fails; what comes later is looked at with the heartbeat's interval.
    fn suspension_due(&self) -> Option<Instant> {
        let since = self.suspended_since.filter(|_| self.requests.open > 0)?;
        let due = since + self.cfg.timing.io_timeout;
        Some(if due > self.now { due } else { self.now + self.cfg.timing.heartbeat })
    }

    fn change_deadline(&self) -> Option<Instant> {
        match &self.change {
            Some(Change::Promoting(promoting)) => {
                promoting.waiting_since().map(|at| at + self.cfg.timing.timeout * 2)
            }
            Some(Change::Leaving(leaving)) => leaving.waiting_since().map(|at| at + self.cfg.timing.timeout),
            Some(Change::Invalidating(invalidating)) => {
                invalidating.waiting_since().map(|at| at + self.cfg.timing.timeout * 2)
            }
            Some(Change::Demoting(_) | Change::Granting | Change::Detaching(_)) | None => None,
        }
    }

    fn stale_pages(&self) -> bool {
        !self.bits_are_durable()
    }

    fn round_due(&self) -> Option<Instant> {
        self.stale_pages().then(|| {
            let due = self.meta.round_at + self.cfg.timing.lazy_write;
            // A round is running or blocked: its completions move it.
            if due > self.now { due } else { self.now + self.cfg.timing.lazy_write }
        })
    }

    fn idle_due(&self) -> Option<Instant> {
        let candidates = self.store.as_ref().is_some_and(|store| store.activity.candidates() > 0);
        let idle = self.cfg.timing.epoch * IDLE_EPOCHS;
        candidates.then(|| {
            let due = self.meta.used_at + idle;
            if due > self.now { due } else { self.now + idle }
        })
    }

    /// Whether what comes with each write has to look at the timers. A deadline that passes brings a Tick, but one that
    /// is counted from now moves on with the writes; and what waits for a copy fails at once when its time is over.
    pub(super) fn timers_are_due(&self) -> bool {
        self.now.since(self.timers_at) >= LOOK || self.suspended_since.is_some()
    }

    /// Acts on every deadline that has passed.
    pub(super) fn on_timers(&mut self) {
        self.timers_at = self.now;
        let timing = self.cfg.timing;
        let link = self.link.as_ref().map(|link| (link.id, link.heard, link.sent, link.unread));
        if let Some((id, heard, sent, unread)) = link {
            if !unread && self.now.since(heard) >= timing.timeout {
                self.close_link(CloseReason::Silent);
            } else if self.now.since(sent) >= timing.heartbeat {
                self.send(id, Frame::Heartbeat, None);
            }
        }
        if !self.is_failing() {
            self.dial_if_due();
        }
        if self.suspended_since.is_some_and(|at| self.now.since(at) >= timing.io_timeout) {
            self.fail_suspended();
        }
        if self.change_deadline().is_some_and(|at| at <= self.now) {
            match self.change {
                Some(Change::Promoting(_)) => self.promotion_timed_out(),
                Some(Change::Leaving(_)) => self.leave_timed_out(),
                Some(Change::Invalidating(invalidating)) => self.invalidate_timed_out(invalidating),
                _ => {}
            }
        }
        if self.stale_pages() && self.now.since(self.meta.round_at) >= timing.lazy_write {
            self.write_stale_bits();
        }
        if self.attached && self.now.since(self.meta.used_at) >= timing.epoch * IDLE_EPOCHS {
            self.cool(u32::MAX);
        }
        if self.retry_due().is_some_and(|at| at <= self.now) && !is_planted(Bug::NoTimerForRetry) {
            self.retry_unreadable();
        }
        self.watch_disk();
        self.pump_pace();
        self.sample_resync();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NodeConfig;
    use crate::event::{Event, RequestKind};
    use crate::ids::ReqId;

    fn node() -> Node {
        let cfg = NodeConfig::of_a_test(None, 4096);
        Node::new(cfg, None)
    }

    /// A request comes, and nothing else happens. Whether the timers were looked at.
    fn looks(node: &mut Node, now: Instant) -> bool {
        let before = node.timers_at;
        let kind = RequestKind::Read;
        node.handle(now, Event::Request { req: ReqId(0), kind, offset: 0, len: 4096, fua: false });
        while node.poll_action().is_some() {}
        node.timers_at != before
    }

    /// Deadlines that are counted from now would never pass.
    #[test]
    fn traffic_alone_looks_at_the_timers_now_and_then() {
        let mut node = node();
        let millis = |ms: u64| Instant(0) + Duration::from_millis(ms);
        let looked = (1..=100).filter(|ms| looks(&mut node, millis(*ms))).count();
        assert!((5..=10).contains(&looked), "{looked} of 100");
    }

    #[test]
    fn while_something_is_suspended_each_request_does() {
        let mut node = node();
        node.suspended_since = Some(Instant(0));
        assert!(looks(&mut node, Instant(1)));
    }
}
