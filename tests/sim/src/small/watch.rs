//! A crash at one step of the cores.
//!
//! A step is a moment in which something outside the cores has just changed: before each action that does anything,
//! after the last one of an input, after each completion of a disk. Between two steps nothing changes that would
//! outlive a process or that the other node could see.

use super::odometer::Odometer;
use crate::host::Stop;
use crate::net::Pipe;
use crate::world::World;
use lockstep_core::{Action, Frame};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Steps are not counted yet.
    Idle,
    /// They are.
    Counting,
    /// The crash happens at this moment.
    Crash,
    /// It has happened.
    Over,
}

/// Which step, who, how, and with which outcomes.
#[derive(Clone, Debug)]
pub(crate) struct Watch {
    at: u64,
    victims: [bool; 2],
    how: Stop,
    state: State,
    /// Something changed since the last step.
    changed: bool,
    /// Steps so far.
    pub(crate) steps: u64,
    /// What becomes of what was under way.
    pub(crate) outcomes: Odometer,
}

impl Watch {
    /// These nodes crash at step `at`.
    pub(crate) fn new(at: u64, victims: [bool; 2], how: Stop, outcomes: Odometer) -> Self {
        Watch { at, victims, how, state: State::Idle, changed: false, steps: 0, outcomes }
    }

    /// Steps count from here.
    pub(crate) fn begin(&mut self) {
        self.state = State::Counting;
    }

    /// The crash happens at this moment.
    pub(crate) fn is_crash(&self) -> bool {
        self.state == State::Crash
    }

    /// It is dealt with. False if it did not come.
    pub(crate) fn end(&mut self) -> bool {
        let came = self.is_crash();
        self.state = State::Over;
        came
    }

    /// Outcomes, while they are to be listed.
    pub(crate) fn listing(&mut self) -> Option<&mut Odometer> {
        (self.state == State::Crash).then_some(&mut self.outcomes)
    }

    /// How many bytes of what `from` has sent arrive, now that the connection is cut: any number of pieces if the other
    /// end lives to see them.
    pub(crate) fn keep(&mut self, from: usize, pipe: &Pipe) -> usize {
        let all = pipe.in_flight_bytes();
        if self.state != State::Crash {
            return all;
        }
        if self.victims[1 - from] {
            return 0;
        }
        let pieces: Vec<usize> = pipe.flight.iter().flatten().map(Vec::len).filter(|len| *len > 0).collect();
        let kept = self.outcomes.choose(pieces.len() + 1);
        pieces.iter().take(kept).sum()
    }

    fn is_step(&mut self, action: Option<&Action>) -> bool {
        let heartbeat = matches!(action, Some(Action::Send { frame: Frame::Heartbeat, .. }));
        let inside = matches!(action, Some(Action::Notice(_) | Action::ReleaseSlot { .. }));
        if self.state != State::Counting || heartbeat || inside {
            return false;
        }
        let is_step = std::mem::replace(&mut self.changed, action.is_some()) || action.is_some();
        self.steps += u64::from(is_step);
        is_step && self.steps == self.at + 1
    }
}

impl World {
    /// Something was completed by a disk.
    pub(crate) fn disk_changed(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.changed = true;
        }
    }

    /// Before an action of this node, or after the last one of an input: is this where somebody crashes?
    pub(crate) fn crash_point(&mut self, n: usize, action: Option<&Action>) {
        let Some(watch) = self.watch.as_mut() else { return };
        if self.dying.is_some() || !watch.is_step(action) {
            return;
        }
        watch.state = State::Crash;
        let (victims, how) = (watch.victims, watch.how);
        self.say(format_args!("CRASH of {victims:?} before n{n} {action:?}"));
        if victims[1 - n] {
            self.stop(1 - n, how);
        }
        if victims[n] {
            self.dying = Some(how);
        }
    }
}
