//! When the resync may go on: the operator's pause and limit, which last as long as the daemon, and the limit that
//! keeps clients' writes fast, which does not go below what an operator wants at least.
//!
//! Each side tells the other its own word in Pace frames; the target, which asks for pieces, keeps to both. A pause
//! lets what is under way end, and its batch become durable.

use super::Node;
use super::handshake::Phase;
use crate::event::SyncOrder;
use crate::frame::Frame;
use crate::ids::{CommandId, Instant};
use crate::pace::{Feedback, INTERVAL};
use crate::refusal::Done;

/// This node's word.
#[derive(Debug)]
pub(super) struct Pace {
    pub(super) paused: bool,
    /// The operator's limit in bytes per second.
    pub(super) rate: Option<u64>,
    /// Bytes per second that the operator wants at least.
    pub(super) least: Option<u64>,
    pub(super) feedback: Feedback,
    /// What the peer was told last on this link: pause, limit, and the least.
    told: Option<(bool, Option<u64>, Option<u64>)>,
}

impl Pace {
    pub(super) fn new() -> Self {
        Pace { paused: false, rate: None, least: None, feedback: Feedback::new(), told: None }
    }
}

/// The stricter of two limits.
fn stricter(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    a.into_iter().chain(b).min()
}

impl Node {
    /// A resync begins on a new link.
    pub(super) fn begin_pace(&mut self) {
        self.pace.told = None;
        self.note_open();
        self.note_least();
        self.pace.feedback.begin(self.now);
    }

    fn note_open(&mut self) {
        if self.requests.open > 0 {
            self.pace.feedback.note_open(self.now);
        }
    }

    /// What either operator wants at least.
    fn note_least(&mut self) {
        let peer = self.resync.as_ref().map_or(0, |resync| resync.peer_least);
        self.pace.feedback.set_least(peer.max(self.pace.least.unwrap_or(0)));
    }

    fn own_limit(&self) -> Option<u64> {
        stricter(self.pace.rate, self.pace.feedback.limit())
    }

    /// Bytes per second that both ends allow.
    pub(super) fn resync_limit(&self) -> Option<u64> {
        stricter(self.own_limit(), self.resync.as_ref().and_then(|resync| resync.peer_rate))
    }

    /// An operator on either side has paused the resync.
    pub(super) fn resync_held(&self) -> bool {
        self.pace.paused || self.resync.as_ref().is_some_and(|resync| resync.peer_paused)
    }

    pub(super) fn on_sync_order(&mut self, id: CommandId, order: SyncOrder) {
        let orders = |node: &Node| (node.pace.paused, node.pace.rate, node.pace.least);
        let before = orders(self);
        let stuck = self.resync.as_ref().is_some_and(|resync| resync.unreadable.blocks() > 0);
        self.with_states(|node| match order {
            SyncOrder::Pause => node.pace.paused = true,
            SyncOrder::Resume => node.pace.paused = false,
            SyncOrder::Rate(rate) => node.pace.rate = rate.filter(|rate| *rate > 0),
            SyncOrder::AtLeast(rate) => node.pace.least = rate.filter(|rate| *rate > 0),
        });
        let again = order == SyncOrder::Resume && stuck;
        if again {
            self.retry_unreadable();
            self.tell_pace(true);
        }
        let changed = again || before != orders(self);
        self.finish_command(id, Ok(if changed { Done::Changed } else { Done::Already }));
    }

    /// Looks at the latency of clients' writes, and tells the peer what has changed.
    pub(super) fn pump_pace(&mut self) {
        let replicating = self.link.as_ref().is_some_and(|link| link.phase == Phase::Replicating);
        let moved = self.resync.as_ref().filter(|_| replicating).map(|resync| resync.moved.total_bytes());
        self.note_open();
        self.note_least();
        self.pace.feedback.turn(self.now, moved);
        if moved.is_some() && self.pace.told != Some((self.pace.paused, self.own_limit(), self.pace.least)) {
            self.tell_pace(false);
        }
    }

    fn tell_pace(&mut self, again: bool) {
        let (Some(link), true) = (self.mirror_link(), self.resync.is_some()) else { return };
        let (paused, limit, least) = (self.pace.paused, self.own_limit(), self.pace.least);
        self.pace.told = Some((paused, limit, least));
        let rate = limit.unwrap_or(0).min(crate::frame::NUMBER_MAX);
        let takes_least = self.link.as_ref().is_some_and(|link| link.hello.takes_least);
        let least = least.filter(|_| takes_least).unwrap_or(0);
        self.send(link, Frame::Pace { paused, again, rate, least }, None);
    }

    pub(super) fn on_pace(&mut self, paused: bool, again: bool, rate: u64, least: u64) {
        self.with_states(|node| {
            // The resync may have ended on this side.
            if let Some(resync) = node.resync.as_mut() {
                (resync.peer_paused, resync.peer_rate) = (paused, Some(rate).filter(|rate| *rate > 0));
                resync.peer_least = least;
            }
        });
        if again {
            self.retry_unreadable();
        }
    }

    /// When the limit lets the next piece through, if that is what the target waits for.
    pub(super) fn pace_due(&self) -> Option<Instant> {
        let resync = self.resync.as_ref().filter(|resync| resync.is_target() && !resync.waits())?;
        let due = resync.bucket.due(self.resync_limit()?)?;
        // Something else is in the way: its end moves it.
        Some(if due > self.now { due } else { self.now + INTERVAL })
    }
}
