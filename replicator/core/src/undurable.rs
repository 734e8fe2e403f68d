//! The writes of the resource's stream that are not yet known to be durable on every copy, by position.
//!
//! An entry is made when a write is submitted and goes, in order, when the write is durable here and, if it was
//! mirrored, at the peer. Until then its region stays marked (ordering 3), and if the link is lost its range becomes
//! dirty bits. The table has a fixed capacity: when it is full the Primary waits for a flush, it never forgets.

use crate::ids::{Instant, Position};
use alloc::collections::VecDeque;
use lockstep_bitmap::{ByteRange, RegionIndex};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) range: ByteRange,
    /// The region whose use ends with it; none for a node without disk.
    pub(crate) region: Option<RegionIndex>,
    /// The task that made it.
    task: u32,
    local_done: bool,
    mirrored: bool,
    at: Instant,
}

#[derive(Debug)]
pub(crate) struct Undurable {
    /// Position of the front entry.
    first: u64,
    entries: VecDeque<Entry>,
    capacity: usize,
    bytes: u64,
    /// All writes up to here completed locally.
    local_prefix: u64,
    local_durable: u64,
    peer_durable: u64,
    /// First and last position mirrored to the peer that is connected now (0: none).
    mirrored: (u64, u64),
}

impl Undurable {
    /// Memory of one write.
    pub(crate) const ENTRY_BYTES: usize = size_of::<Entry>();

    pub(crate) fn new(capacity: usize) -> Self {
        Undurable {
            first: 1,
            entries: VecDeque::with_capacity(capacity),
            capacity,
            bytes: 0,
            local_prefix: 0,
            local_durable: 0,
            peer_durable: 0,
            mirrored: (0, 0),
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.entries.len() >= self.capacity
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// When the oldest entry was made.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.entries.front().map(|entry| entry.at)
    }

    /// Position of the last write submitted.
    pub(crate) fn last(&self) -> Position {
        Position(self.first + self.entries.len() as u64 - 1)
    }

    pub(crate) fn push(
        &mut self,
        range: ByteRange,
        region: Option<RegionIndex>,
        task: u32,
        mirrored: bool,
        at: Instant,
    ) -> Position {
        assert!(!self.is_full(), "the table of undurable writes never forgets");
        self.entries.push_back(Entry { range, region, task, local_done: false, mirrored, at });
        self.bytes += range.len();
        let pos = self.last();
        if mirrored {
            let first = if self.mirrored.1 == 0 { pos.0 } else { self.mirrored.0 };
            self.mirrored = (first, pos.0);
        }
        pos
    }

    fn entry(&mut self, pos: Position) -> Option<&mut Entry> {
        let index = pos.0.checked_sub(self.first)?;
        self.entries.get_mut(usize::try_from(index).ok()?)
    }

    /// The task whose write has this position, while it is in the table.
    pub(crate) fn task_at(&mut self, pos: Position) -> Option<u32> {
        self.entry(pos).map(|entry| entry.task)
    }

    pub(crate) fn local_done(&mut self, pos: Position) {
        if let Some(entry) = self.entry(pos) {
            entry.local_done = true;
        }
        while self.entry(Position(self.local_prefix + 1)).is_some_and(|entry| entry.local_done) {
            self.local_prefix += 1;
        }
    }

    /// All writes up to here completed locally: what an fdatasync submitted now makes durable.
    pub(crate) fn local_prefix(&self) -> Position {
        Position(self.local_prefix)
    }

    pub(crate) fn local_durable(&self) -> Position {
        Position(self.local_durable)
    }

    pub(crate) fn peer_durable(&self) -> Position {
        Position(self.peer_durable)
    }

    pub(crate) fn set_local_durable(&mut self, upto: Position) {
        self.local_durable = self.local_durable.max(upto.0);
    }

    pub(crate) fn set_peer_durable(&mut self, upto: Position) {
        self.peer_durable = self.peer_durable.max(upto.0);
    }

    /// Some write up to `upto` still has to become durable at the peer.
    pub(crate) fn peer_lacks(&self, upto: Position) -> bool {
        let (first, last) = self.mirrored;
        last != 0 && upto.0 >= first && upto.0.min(last) > self.peer_durable
    }

    /// Everything up to here is durable on each copy that mirrored it.
    pub(crate) fn retired(&self) -> Position {
        Position(self.first - 1)
    }

    /// Takes the oldest write if it is durable everywhere.
    pub(crate) fn pop_retired(&mut self) -> Option<Entry> {
        let entry = self.entries.front()?;
        let durable_there = !entry.mirrored || self.first <= self.peer_durable;
        if self.first > self.local_durable || !durable_there {
            return None;
        }
        self.first += 1;
        let entry = self.entries.pop_front()?;
        self.bytes -= entry.range.len();
        Some(entry)
    }

    /// The local disk is gone: nothing is waited for here any more, and its regions are nobody's.
    pub(crate) fn forget_local(&mut self) {
        for entry in &mut self.entries {
            (entry.local_done, entry.region) = (true, None);
        }
        self.local_prefix = self.last().0;
        self.local_durable = self.local_prefix;
    }

    /// The peer is lost: hands over every range that it may lack, and waits for it no longer.
    pub(crate) fn unmirror(&mut self, mut lacks: impl FnMut(ByteRange)) {
        for (pos, entry) in (self.first..).zip(&mut self.entries) {
            if entry.mirrored && pos > self.peer_durable {
                lacks(entry.range);
            }
            entry.mirrored = false;
        }
        self.mirrored = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(table: &mut Undurable, start: u64, mirrored: bool) -> Position {
        table.push(ByteRange::new(start, 512), Some(RegionIndex(0)), 0, mirrored, Instant(0))
    }

    #[test]
    fn retires_in_order_and_only_when_durable_on_both() {
        let mut table = Undurable::new(4);
        let (a, b, c) =
            (push(&mut table, 0, true), push(&mut table, 512, true), push(&mut table, 1024, false));
        table.local_done(b);
        assert_eq!(table.local_prefix(), Position(0));
        table.local_done(a);
        assert_eq!(table.local_prefix(), b);
        table.set_local_durable(b);
        assert!(table.pop_retired().is_none(), "not durable at the peer");
        table.set_peer_durable(a);
        assert!(table.pop_retired().is_some());
        assert!(table.pop_retired().is_none());
        assert!(table.peer_lacks(b));
        table.set_peer_durable(b);
        assert!(!table.peer_lacks(c));
        assert!(table.pop_retired().is_some());
        assert!(table.pop_retired().is_none(), "c is not durable here");
        table.local_done(c);
        table.set_local_durable(c);
        assert!(table.pop_retired().is_some());
        assert_eq!(table.retired(), c);
    }

    #[test]
    fn a_lost_peer_lacks_what_it_did_not_confirm_as_durable() {
        let mut table = Undurable::new(4);
        let a = push(&mut table, 0, true);
        push(&mut table, 512, true);
        push(&mut table, 1024, false);
        table.set_peer_durable(a);
        let mut lacks = alloc::vec::Vec::new();
        table.unmirror(|range| lacks.push(range.start));
        assert_eq!(lacks, [512], "the third has had its bits since it was submitted");
        assert!(!table.peer_lacks(table.last()));
    }

    #[test]
    #[should_panic(expected = "never forgets")]
    fn a_full_table_takes_nothing() {
        let mut table = Undurable::new(1);
        push(&mut table, 0, true);
        push(&mut table, 0, true);
    }
}
