//! Whose turn it is when slots are short: who waits longest goes first, and nobody passes him.
//!
//! Without it whoever asks for little, or stands first in a table, would take every slot that becomes free,
//! and a read that needs most of a pool at one instant would never begin.

use std::collections::VecDeque;

/// Clients that wait for slots of one pool, by index; each at most once.
#[derive(Debug, Default)]
pub(crate) struct Turns(VecDeque<u32>);

impl Turns {
    /// Whether a client may take slots: nobody has waited longer.
    pub(crate) fn may_take(&self, client: u32) -> bool {
        self.0.front().is_none_or(|first| *first == client)
    }

    /// A client has to wait; it keeps its place if it waits already.
    pub(crate) fn wait(&mut self, client: u32) {
        if !self.0.contains(&client) {
            self.0.push_back(client);
        }
    }

    /// A client that was allowed to took its slots.
    pub(crate) fn took(&mut self, client: u32) {
        assert!(self.may_take(client), "client {client} took slots before its turn");
        self.0.pop_front();
    }

    /// A client goes. Returns whether others may have waited for it.
    pub(crate) fn leave(&mut self, client: u32) -> bool {
        let was_first = self.first() == Some(client);
        self.0.retain(|waiting| *waiting != client);
        was_first
    }

    /// Who waits longest.
    pub(crate) fn first(&self) -> Option<u32> {
        self.0.front().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_longest_goes_first_and_then_to_the_end() {
        let mut turns = Turns::default();
        assert!(turns.may_take(7));
        turns.took(7);
        [1, 2, 1].into_iter().for_each(|client| turns.wait(client));
        assert!(turns.may_take(1) && !turns.may_take(2) && !turns.may_take(7));
        turns.took(1);
        turns.wait(1);
        assert_eq!(turns.first(), Some(2));
        assert!(!turns.leave(1) && turns.leave(2));
        assert_eq!(turns.first(), None);
    }
}
