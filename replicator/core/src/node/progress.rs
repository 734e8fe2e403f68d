//! How far a resync is, in numbers that can be believed: what is done and left are counts of bits, the rate is
//! measured, and where nothing moves there is no estimate.

use super::Node;
use crate::ids::Instant;
use crate::status::ResyncStatus;
use alloc::vec::Vec;
use lockstep_bitmap::BlockRange;

/// Blocks that the source cannot read: ranges in order that do not touch each other. Of a disk that is worse than
/// the bound only the first ones are kept: the target stops asking there.
#[derive(Debug, Default)]
pub(super) struct Unreadable {
    ranges: Vec<BlockRange>,
}

impl Unreadable {
    pub(super) fn insert(&mut self, blocks: BlockRange) {
        let mut merged = blocks;
        self.ranges.retain(|range| {
            let apart = range.end < blocks.start || blocks.end < range.start;
            if !apart {
                (merged.start, merged.end) = (merged.start.min(range.start), merged.end.max(range.end));
            }
            apart
        });
        if !self.is_full() {
            let at = self.ranges.partition_point(|range| range.start < merged.start);
            self.ranges.insert(at, merged);
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.ranges.len() >= UNREADABLE_MAX
    }

    pub(super) fn remove(&mut self, blocks: BlockRange) {
        if self.first_in(blocks).is_none() {
            return;
        }
        let cut = |range: &BlockRange| {
            let before = BlockRange { start: range.start, end: range.end.min(blocks.start) };
            let after = BlockRange { start: range.start.max(blocks.end), end: range.end };
            [before, after].into_iter().filter(|part| part.start < part.end)
        };
        self.ranges = self.ranges.iter().flat_map(cut).collect();
    }

    /// The first range that has a block in common.
    pub(super) fn first_in(&self, blocks: BlockRange) -> Option<BlockRange> {
        let at = self.ranges.partition_point(|range| range.end <= blocks.start);
        self.ranges.get(at).copied().filter(|range| range.start < blocks.end)
    }

    pub(super) fn blocks(&self) -> u64 {
        self.ranges.iter().map(|range| range.len()).sum()
    }
}

/// Ranges of unreadable blocks that are kept.
const UNREADABLE_MAX: usize = 1024;
/// Rate and ETA look back over so many samples, taken by the tick.
const SAMPLES_MAX: usize = 10;
/// Ranges that the status names.
const RANGES_SHOWN: usize = 8;

impl Node {
    /// Called by the tick: remembers how much is done.
    pub(super) fn sample_resync(&mut self) {
        let now = self.now;
        if let Some(resync) = self.resync.as_mut() {
            let due = resync.samples.back().is_none_or(|(at, _)| now.since(*at).as_millis() >= 500);
            if due {
                if resync.samples.len() == SAMPLES_MAX {
                    resync.samples.pop_front();
                }
                resync.samples.push_back((now, resync.done_blocks));
            }
        }
    }

    pub(super) fn resync_status(&self) -> Option<ResyncStatus> {
        let resync = self.resync.as_ref()?;
        let geometry = self.geometry()?;
        let block_bytes = geometry.block_bytes();
        let left = self.dirty_blocks();
        let (since, then) = resync.samples.front().copied().unwrap_or((resync.started, 0));
        let rate = rate(resync.done_blocks.saturating_sub(then) * block_bytes, since, self.now);
        let incomplete = left > 0 && (left == resync.unreadable.blocks() || resync.unreadable.is_full());
        let bytes = |blocks: &BlockRange| {
            let bytes = geometry.bytes_of(*blocks);
            (bytes.start, bytes.len())
        };
        Some(ResyncStatus {
            total_bytes: (resync.done_blocks + left) * block_bytes,
            left_bytes: left * block_bytes,
            rate_bytes_per_s: rate,
            eta_s: (left * block_bytes).checked_div(rate).filter(|_| !incomplete && !self.resync_held()),
            running_ms: u64::try_from(self.now.since(resync.started).as_millis()).unwrap_or(u64::MAX),
            limit_bytes_per_s: self.resync_limit(),
            paused_by_peer: resync.peer_paused,
            moved: resync.moved,
            unreadable_bytes: resync.unreadable.blocks() * block_bytes,
            unreadable: resync.unreadable.ranges.iter().take(RANGES_SHOWN).map(bytes).collect(),
            incomplete,
        })
    }
}

/// Bytes per second since a moment.
fn rate(bytes: u64, since: Instant, now: Instant) -> u64 {
    let passed_ms = now.since(since).as_millis().max(1);
    u64::try_from(u128::from(bytes) * 1000 / passed_ms).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use core::time::Duration;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn unreadable_ranges_are_a_set_of_blocks(
            ops in proptest::collection::vec((any::<bool>(), 0u64..40, 1u64..6), 1..60),
        ) {
            let (mut ranges, mut set) = (Unreadable::default(), BTreeSet::new());
            for (insert, start, len) in ops {
                let blocks = BlockRange { start, end: start + len };
                if insert {
                    ranges.insert(blocks);
                    set.extend(start..start + len);
                } else {
                    ranges.remove(blocks);
                    set.retain(|block| !(start..start + len).contains(block));
                }
                prop_assert!(ranges.ranges.windows(2).all(|w| w[0].end < w[1].start));
                let listed: BTreeSet<u64> = ranges.ranges.iter().flat_map(|r| r.start..r.end).collect();
                prop_assert_eq!(&listed, &set);
                prop_assert_eq!(ranges.blocks(), set.len() as u64);
                let first = ranges.first_in(blocks).map(|r| r.start.max(start));
                prop_assert_eq!(first, set.range(start..start + len).next().copied());
            }
        }
    }

    #[test]
    fn of_a_disk_that_is_worse_the_first_ranges_are_kept() {
        let mut ranges = Unreadable::default();
        for n in 0..2 * UNREADABLE_MAX as u64 {
            ranges.insert(BlockRange { start: 2 * n, end: 2 * n + 1 });
        }
        assert!(ranges.is_full());
        assert_eq!((ranges.ranges.len(), ranges.blocks()), (UNREADABLE_MAX, UNREADABLE_MAX as u64));
        // What joins two of them makes room.
        ranges.insert(BlockRange { start: 1, end: 2 });
        assert_eq!((ranges.is_full(), ranges.blocks()), (false, UNREADABLE_MAX as u64 + 1));
    }

    #[test]
    fn a_rate_never_overflows_and_never_divides_by_nothing() {
        assert_eq!(rate(4096, Instant(0), Instant(0)), 4_096_000);
        assert_eq!(rate(0, Instant(0), Instant(5)), 0);
        assert_eq!(rate(1 << 20, Instant(0), Instant(0) + Duration::from_secs(2)), 1 << 19);
        assert_eq!(rate(u64::MAX, Instant(0), Instant(1)), u64::MAX);
    }
}
