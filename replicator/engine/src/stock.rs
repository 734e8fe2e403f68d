//! Empty messages, for all connections of a shard: who sends takes one, and it comes back when it was sent.
//!
//! Invariants: a message in stock holds no slot and no socket; as many are kept as were made at the start, each with
//! all the room that it may need, so that sending takes no memory as long as no more are on the way. Beyond that one is
//! made and thrown away again; how many that can be follows from what is queued at all.

use std::cell::RefCell;
use std::rc::Rc;

use crate::ring::{Fd, Outgoing};

/// Messages made at the start, and kept.
pub(crate) const MESSAGES_KEPT: usize = 64;

/// The messages that nobody uses.
#[derive(Clone)]
pub(crate) struct Stock(Rc<RefCell<Messages>>);

// Boxed, since a message must not move while the kernel has it, and goes back and forth.
#[allow(clippy::vec_box)]
type Messages = Vec<Box<Outgoing>>;

impl Stock {
    /// A full stock.
    pub(crate) fn new() -> Self {
        let messages = (0..MESSAGES_KEPT).map(|_| Box::new(Outgoing::new())).collect();
        Stock(Rc::new(RefCell::new(messages)))
    }

    /// A message to be sent on this socket.
    pub(crate) fn take(&self, fd: &Fd) -> Box<Outgoing> {
        let mut message = self.0.borrow_mut().pop().unwrap_or_else(|| Box::new(Outgoing::new()));
        message.aim(fd);
        message
    }

    /// A message that was cleared.
    pub(crate) fn give_back(&self, message: Box<Outgoing>) {
        debug_assert!(message.is_empty(), "a message with content is no spare one");
        let mut messages = self.0.borrow_mut();
        if messages.len() < MESSAGES_KEPT {
            messages.push(message);
        }
    }
}
