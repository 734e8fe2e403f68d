//! The source of a resync: reads a piece that the target asks for under its overlap lock, sorts its units, answers.
//!
//! The answer to a piece is a row of parts that cover it without gaps: what is equal (the target's digest of
//! the unit is ours), what is zero, what travels. All of them are queued in the stream before the lock is free
//! (ordering 12): so they follow every write that the target had applied there, and every later write follows
//! them. For the same reason an equal digest holds although the target took its own earlier: each write
//! between the two goes to both copies. One that fails here does not: where that happened everything travels.

use super::Node;
use super::resync::BATCH_RANGES_MAX;
use super::task::{OpKind, Work};
use crate::action::{Action, CloseReason, Failed};
use crate::config::{DIGEST_BYTES, UNIT_BYTES};
use crate::event::DiskError;
use crate::frame::Frame;
use crate::ids::{LinkId, OpId, SlotId};
use alloc::vec::Vec;
use lockstep_bitmap::ByteRange;

/// What the target has to do with a part of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Same,
    Zero,
    Data,
}

/// A shorter run of zero units travels as data, unless it is the whole piece: it would split a write in two.
pub(super) const ZERO_UNITS_MIN: usize = 4;
/// Units of the largest piece.
pub(super) const UNITS_MAX: usize = (crate::config::PIECE_BYTES_MAX / UNIT_BYTES) as usize;

/// The parts of a piece, in order, without gaps. `theirs`: the target's digests, if it sent them.
fn parts(range: ByteRange, zeroes: u32, ours: &[u8], theirs: Option<&[u8]>) -> Vec<(ByteRange, Sort)> {
    let units = units_of(range);
    let digest = |digests: &[u8], unit: usize| {
        digests
            .get(unit * DIGEST_BYTES..(unit + 1) * DIGEST_BYTES)
            .and_then(|d| <[u8; DIGEST_BYTES]>::try_from(d).ok())
    };
    let sort = |unit: usize| {
        let same = theirs.is_some_and(|theirs| {
            let (a, b) = (digest(ours, unit), digest(theirs, unit));
            a.is_some() && a == b
        });
        match (same, zeroes >> unit & 1 == 1) {
            (true, _) => Sort::Same,
            (false, true) => Sort::Zero,
            (false, false) => Sort::Data,
        }
    };
    let mut runs: Vec<(usize, usize, Sort)> = Vec::new();
    for unit in 0..units {
        match (sort(unit), runs.last_mut()) {
            (sort, Some(last)) if last.2 == sort => last.1 = unit + 1,
            (sort, _) => runs.push((unit, unit + 1, sort)),
        }
    }
    let mut parts: Vec<(ByteRange, Sort)> = Vec::new();
    for (from, to, mut sort) in runs {
        if sort == Sort::Zero && to - from < ZERO_UNITS_MIN && to - from < units {
            sort = Sort::Data;
        }
        let start = range.start + from as u64 * UNIT_BYTES;
        let end = range.end.min(range.start + to as u64 * UNIT_BYTES);
        match parts.last_mut() {
            Some(last) if last.1 == sort => last.0.end = end,
            _ => parts.push((ByteRange { start, end }, sort)),
        }
    }
    parts
}

/// Units of a piece; the last one may be short.
pub(super) fn units_of(range: ByteRange) -> usize {
    usize::try_from(range.len().div_ceil(UNIT_BYTES)).unwrap_or(0).min(UNITS_MAX)
}

impl Node {
    /// The target asks for a piece, with its digests or without.
    pub(super) fn on_piece_request(
        &mut self,
        link: LinkId,
        batch: u64,
        (offset, len): (u64, u32),
        digests: Option<&[u8]>,
    ) {
        let source = self.resync.as_ref().is_some_and(|resync| !resync.is_target());
        let range = ByteRange::new(offset, u64::from(len));
        let fits = digests.is_none_or(|digests| digests.len() == units_of(range) * DIGEST_BYTES);
        if !source || !fits || !offset.is_multiple_of(UNIT_BYTES) {
            return self.close_link(CloseReason::PeerMisbehaved);
        }
        let work = Work::Serve { batch, hashed: digests.is_some() };
        let id = self.on_peer_wants(link, work, offset, len);
        if let (Some(id), Some(digests), Some(resync)) = (id, digests, self.resync.as_mut()) {
            resync.asked.push((id, digests.to_vec()));
        }
    }

    pub(super) fn on_inspected(
        &mut self,
        op: OpId,
        result: Result<(), DiskError>,
        slot: Option<SlotId>,
        found: (u32, &[u8]),
    ) {
        match self.ops.remove(op) {
            Some(OpKind::Task(id)) => self.on_task_inspected(id, result, slot, found),
            Some(OpKind::Abandoned) => self.on_late(slot),
            _ => debug_assert!(false, "unknown inspection"),
        }
    }

    pub(super) fn on_task_inspected(
        &mut self,
        id: u32,
        result: Result<(), DiskError>,
        slot: Option<SlotId>,
        found: (u32, &[u8]),
    ) {
        match self.tasks.get(id).map(|task| task.work) {
            Some(Work::Serve { .. }) => self.answer_piece(id, result, slot, found),
            Some(Work::Piece { .. }) => self.on_piece_hashed(id, result, slot, found.1),
            _ => debug_assert!(false, "inspection of a task that is gone"),
        }
    }

    fn answer_piece(
        &mut self,
        id: u32,
        result: Result<(), DiskError>,
        slot: Option<SlotId>,
        (zeroes, digests): (u32, &[u8]),
    ) {
        let Some(task) = self.tasks.get(id).copied() else { return };
        // What a copy returns that has failed meanwhile counts no more, and the link is about to end.
        let link = task.link.filter(|link| self.is_current(Some(*link)) && !self.without_disk());
        let blocks = self.geometry().map(|geometry| geometry.blocks_touched(task.range));
        let theirs = self.resync.as_mut().and_then(|resync| {
            let asked = resync.take_asked(id);
            asked.filter(|_| blocks.is_some_and(|blocks| resync.may_be_equal(blocks)))
        });
        if let (Some(link), Work::Serve { batch, .. }) = (link, task.work) {
            match slot.filter(|_| result.is_ok()) {
                Some(slot) => {
                    self.note_served(batch, task.range);
                    for (part, sort) in parts(task.range, zeroes, digests, theirs.as_deref()) {
                        self.send_part(link, batch, part, sort, slot);
                    }
                }
                None => self.refuse_piece(link, batch, task.range),
            }
        }
        if let Some(slot) = slot {
            self.act(Action::ReleaseSlot { slot });
        }
        // The piece is queued in the stream: what is written from now on follows it (ordering 12).
        self.drop_peer_task(id);
    }

    fn send_part(&mut self, link: LinkId, batch: u64, part: ByteRange, sort: Sort, slot: SlotId) {
        let (offset, len) = (part.start, u32::try_from(part.len()).unwrap_or(0));
        let moved = self.resync.as_mut().map(|resync| &mut resync.moved);
        let (frame, slot, counter) = match sort {
            Sort::Same => (Frame::ResyncSame { batch, offset, len }, None, moved.map(|m| &mut m.equal_bytes)),
            Sort::Zero => (Frame::ResyncZero { batch, offset, len }, None, moved.map(|m| &mut m.zero_bytes)),
            Sort::Data => {
                (Frame::ResyncData { batch, offset, len }, Some(slot), moved.map(|m| &mut m.copied_bytes))
            }
        };
        if let Some(counter) = counter {
            *counter += part.len();
        }
        self.send(link, frame, slot);
    }

    /// A piece that cannot be read keeps its bits; the target goes on, and asks again block by block.
    fn refuse_piece(&mut self, link: LinkId, batch: u64, range: ByteRange) {
        self.note_failed(Failed::Read, range.start, DiskError::Io);
        let blocks = self.geometry().map(|geometry| geometry.blocks_touched(range));
        if let (Some(blocks), Some(resync)) = (blocks, self.resync.as_mut())
            && blocks.len() == 1
        {
            resync.unreadable.insert(blocks);
        }
        let len = u32::try_from(range.len()).unwrap_or(0);
        self.send(link, Frame::ResyncFailed { batch, offset: range.start, len }, None);
    }

    /// Remembers what was read for the target, until its batch is durable there.
    fn note_served(&mut self, batch: u64, range: ByteRange) {
        let blocks = self.geometry().map(|geometry| geometry.blocks_covered(range));
        let Some((blocks, resync)) = blocks.zip(self.resync.as_mut()) else { return };
        resync.copied.push((batch, blocks));
        resync.unreadable.remove(blocks);
        // Two batches may be under way.
        if resync.copied.len() > 3 * BATCH_RANGES_MAX {
            self.close_link(CloseReason::PeerMisbehaved);
        }
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;
    use alloc::vec;

    fn units(parts: &[(ByteRange, Sort)]) -> Vec<(u64, u64, Sort)> {
        parts.iter().map(|(r, sort)| (r.start / UNIT_BYTES, r.end.div_ceil(UNIT_BYTES), *sort)).collect()
    }

    #[test]
    fn parts_cover_the_piece_and_only_what_differs_travels() {
        let range = ByteRange::new(UNIT_BYTES * 2, 8 * UNIT_BYTES);
        let ours: Vec<u8> = (0..8u8).flat_map(|unit| [unit; DIGEST_BYTES]).collect();
        let mut theirs = ours.clone();
        theirs[3 * DIGEST_BYTES + 7] ^= 1;
        let expected = [(2, 5, Sort::Same), (5, 6, Sort::Data), (6, 10, Sort::Same)];
        assert_eq!(units(&parts(range, 0, &ours, Some(&theirs))), expected);
        assert_eq!(units(&parts(range, 0, &ours, None)), [(2, 10, Sort::Data)]);
        // Without digests of our own nothing is equal.
        assert_eq!(units(&parts(range, 0, &[], Some(&[]))), [(2, 10, Sort::Data)]);
    }

    #[test]
    fn long_runs_of_zeroes_are_zeroes_and_equal_zeroes_are_equal() {
        let range = ByteRange::new(0, 8 * UNIT_BYTES - 512);
        assert_eq!(units(&parts(range, 0xFF, &[], None)), [(0, 8, Sort::Zero)]);
        assert_eq!(parts(range, 0xFF, &[], None)[0].0, range, "the last unit is short");
        assert_eq!(units(&parts(range, 0b0000_1111, &[], None)), [(0, 4, Sort::Zero), (4, 8, Sort::Data)]);
        assert_eq!(units(&parts(range, 0b0001_1000, &[], None)), [(0, 8, Sort::Data)]);
        let zero = vec![9; 8 * DIGEST_BYTES];
        assert_eq!(units(&parts(range, 0xFF, &zero, Some(&zero))), [(0, 8, Sort::Same)]);
        assert_eq!(units(&parts(ByteRange::new(0, 512), 1, &[], None)), [(0, 1, Sort::Zero)]);
    }
}
