//! Block status: what a client may ask about ranges of an export, and the chunks that answer it.
//!
//! A metadata context is negotiated under a number; here numbers are 1 for the first name of the list that was
//! agreed, and so on. An answer has one chunk for each context that was asked for. Invariants: an answer describes
//! at least one extent, no extent is empty, neighbours differ, and together they never exceed the range asked for;
//! they may end before it, and the client asks again.

use alloc::vec::Vec;

use crate::reply::{Framing, ReplyTo};
use crate::wire::chunk;

/// Metadata contexts of one connection at most.
pub const CONTEXTS_MAX: usize = 32;

/// Extents of one chunk at most: an answer stays small, and so does the work for it.
pub const EXTENTS_MAX: usize = 128;

/// Name of the context that the specification defines.
pub const ALLOCATION_CONTEXT: &str = "base:allocation";
/// In `base:allocation`: nothing is stored there.
pub const ALLOCATION_HOLE: u32 = 1;
/// In `base:allocation`: it reads as zeroes.
pub const ALLOCATION_ZERO: u32 = 2;

/// Which of the contexts that were agreed a request asks for.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct ContextSet(u32);

impl ContextSet {
    /// The first so many.
    pub const fn first(count: usize) -> Self {
        let missing = CONTEXTS_MAX.saturating_sub(count);
        Self(if count == 0 { 0 } else { u32::MAX >> missing })
    }

    /// Adds the context with this number; `None` if it is there already, or is no number of a context.
    pub(crate) fn with(self, id: u32) -> Option<Self> {
        let bit = 1_u32.checked_shl(id.checked_sub(1)?)?;
        (self.0 & bit == 0).then_some(Self(self.0 | bit))
    }

    /// Whether all of these are in `other`.
    pub(crate) const fn is_within(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Positions in the list that was agreed, ascending; a context's number is one more.
    pub fn positions(self) -> impl Iterator<Item = usize> {
        (0..CONTEXTS_MAX).filter(move |position| self.0 >> position & 1 != 0)
    }
}

/// A stretch of an export with equal flags.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Extent {
    /// In bytes; not 0.
    pub length: u64,
    /// As the context defines them.
    pub flags: u32,
}

/// Extents of one context, from the begin of a range on.
#[derive(Debug)]
pub struct Extents {
    list: Vec<Extent>,
    left: u64,
    most: usize,
}

impl Extents {
    /// None yet, of a range of so many bytes; one at most if the client asked for one.
    pub fn new(range_bytes: u64, only_one: bool) -> Self {
        let most = if only_one { 1 } else { EXTENTS_MAX };
        Self { list: Vec::new(), left: range_bytes, most }
    }

    /// Forgets the extents and begins again, with the memory that it has.
    pub fn restart(&mut self, range_bytes: u64, only_one: bool) {
        self.list.clear();
        self.left = range_bytes;
        self.most = if only_one { 1 } else { EXTENTS_MAX };
    }

    /// Appends a stretch, as part of the one before if its flags are the same, cut at the end of the range.
    pub fn push(&mut self, length: u64, flags: u32) {
        let length = length.min(self.left);
        if length == 0 {
            return;
        }
        let has_room = self.list.len() < self.most;
        match self.list.last_mut() {
            Some(last) if last.flags == flags => last.length += length,
            _ if has_room => self.list.push(Extent { length, flags }),
            _ => {
                self.left = 0;
                return;
            }
        }
        self.left -= length;
    }

    /// Whether a further stretch would change nothing.
    pub fn is_full(&self) -> bool {
        self.left == 0
    }

    /// Those that there are.
    pub fn as_slice(&self) -> &[Extent] {
        &self.list
    }
}

/// Appends the chunk that answers for the context with this position in the list that was agreed. Not with simple
/// replies, which have no such answer.
///
/// Panics if there is no extent, which is no answer.
pub fn put_status(to: &ReplyTo, position: usize, extents: &Extents, done: bool, out: &mut Vec<u8>) {
    assert!(!extents.list.is_empty(), "an answer about nothing");
    let id = (position as u32).saturating_add(1).to_be_bytes();
    let count = extents.list.len();
    if to.framing == Framing::Extended {
        let bytes = 8 + 16 * count as u64;
        out.extend_from_slice(to.chunk_header::<32>(chunk::BLOCK_STATUS_EXT, bytes, done).as_slice());
        out.extend_from_slice(&id);
        out.extend_from_slice(&(count as u32).to_be_bytes());
        for extent in &extents.list {
            out.extend_from_slice(&extent.length.to_be_bytes());
            out.extend_from_slice(&u64::from(extent.flags).to_be_bytes());
        }
        return;
    }
    out.extend_from_slice(to.chunk_header::<32>(chunk::BLOCK_STATUS, 4 + 8 * count as u64, done).as_slice());
    out.extend_from_slice(&id);
    for extent in &extents.list {
        // A request without extended headers is shorter than that, and extents do not exceed it.
        let length = u32::try_from(extent.length).unwrap_or(u32::MAX);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&extent.flags.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn extents(range_bytes: u64, only_one: bool, parts: &[(u64, u32)]) -> Extents {
        let mut extents = Extents::new(range_bytes, only_one);
        parts.iter().for_each(|(length, flags)| extents.push(*length, *flags));
        extents
    }

    fn pairs(extents: &Extents) -> Vec<(u64, u32)> {
        extents.as_slice().iter().map(|extent| (extent.length, extent.flags)).collect()
    }

    #[test]
    fn neighbours_differ_and_nothing_lies_outside() {
        let some = extents(100, false, &[(10, 0), (20, 0), (0, 3), (30, 3), (1000, 0)]);
        assert_eq!(pairs(&some), [(30, 0), (30, 3), (40, 0)]);
        assert!(some.is_full());
        assert!(!extents(100, false, &[(10, 0)]).is_full());
    }

    #[test]
    fn one_extent_is_one_and_as_long_as_its_flags_are_the_same() {
        let one = extents(100, true, &[(10, 1), (10, 1), (10, 0), (70, 1)]);
        assert_eq!((pairs(&one), one.is_full()), (vec![(20, 1)], true));
    }

    #[test]
    fn an_answer_has_a_bound_and_ends_early() {
        let mut many = extents(1 << 40, false, &[]);
        let mut given = 0;
        while !many.is_full() {
            many.push(4096, given % 2);
            given += 1;
        }
        assert_eq!((many.as_slice().len(), given), (EXTENTS_MAX, EXTENTS_MAX as u32 + 1));
        many.restart(5, true);
        many.push(9, 2);
        assert_eq!(pairs(&many), [(5, 2)]);
    }

    #[test]
    fn sets_of_contexts() {
        assert!(ContextSet::first(0).is_empty());
        assert_eq!(ContextSet::first(3).positions().collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(ContextSet::first(CONTEXTS_MAX).positions().count(), CONTEXTS_MAX);
        let set = ContextSet::default().with(2).and_then(|set| set.with(32));
        assert_eq!(set.map(|set| set.positions().collect::<Vec<_>>()), Some(vec![1, 31]));
        assert_eq!(set.and_then(|set| set.with(2)), None, "twice");
        for id in [0, 33, u32::MAX] {
            assert_eq!(ContextSet::default().with(id), None, "{id}");
        }
        assert!(ContextSet::first(2).is_within(ContextSet::first(3)));
        assert!(!ContextSet::first(3).is_within(ContextSet::first(2)));
    }

    #[test]
    fn golden_chunks() {
        let some = extents(0x3000, false, &[(0x1000, 3), (0x2000, 0)]);
        let mut to = ReplyTo { framing: Framing::Structured, cookie: 0x0102, offset: 0x7000 };
        let mut out = Vec::new();
        put_status(&to, 0, &some, false, &mut out);
        let compact = *b"\x66\x8e\x33\xef\0\0\0\x05\0\0\0\0\0\0\x01\x02\0\0\0\x14\
            \0\0\0\x01\0\0\x10\0\0\0\0\x03\0\0\x20\0\0\0\0\0";
        assert_eq!(out, compact);
        to.framing = Framing::Extended;
        out.clear();
        put_status(&to, 1, &some, true, &mut out);
        let extended =
            *b"\x6e\x8a\x27\x8c\0\x01\0\x06\0\0\0\0\0\0\x01\x02\0\0\0\0\0\0\x70\0\0\0\0\0\0\0\0\x28\
            \0\0\0\x02\0\0\0\x02\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\x20\0\0\0\0\0\0\0\0\0";
        assert_eq!(out, extended);
    }
}
