//! The overlap lock of a volume: orders everything that touches the same bytes.
//!
//! Writes and resync pieces hold their range alone, reads share it. Grants are first come, first served among
//! ranges that overlap, so that on a receiver overlapping writes of one stream are applied in stream order
//! (ordering 20) and nobody starves. A read waits for an overlapping write in flight, and a write for a read, so
//! that a value once seen by a client is on every copy that a failover may choose.
//!
//! The table is a flat list: with the few hundred ranges that can be in flight a scan is faster than any tree.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use lockstep_bitmap::ByteRange;
use lockstep_bitmap::canary::{Bug, is_planted};

/// How a range is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Together with others that share it.
    Shared,
    /// Alone.
    Exclusive,
}

#[derive(Clone, Copy, Debug)]
struct Claim {
    range: ByteRange,
    mode: Mode,
    owner: u32,
}

impl Claim {
    fn conflicts(&self, other: &Claim) -> bool {
        (self.mode == Mode::Exclusive || other.mode == Mode::Exclusive) && self.range.overlaps(other.range)
    }
}

/// The lock. It is the core's own; the fuzzer holds it against a model.
#[derive(Debug, Default)]
pub struct Overlap {
    holders: Vec<Claim>,
    waiters: VecDeque<Claim>,
}

/// Ranges are rounded out to this many bytes.
const LOCK_BYTES: u64 = 4096;

impl Overlap {
    /// Memory of one range that is held or waited for.
    pub(crate) const CLAIM_BYTES: usize = size_of::<Claim>();

    /// A lock that has room for so many ranges held and as many waiting, before it takes more memory.
    pub fn with_capacity(ranges: usize) -> Self {
        Overlap { holders: Vec::with_capacity(ranges), waiters: VecDeque::with_capacity(ranges) }
    }

    /// True if the lock is held now; else `owner` comes out of a later [`Self::release`].
    pub fn request(&mut self, owner: u32, range: ByteRange, mode: Mode) -> bool {
        let start = range.start - range.start % LOCK_BYTES;
        let end = range.end.next_multiple_of(LOCK_BYTES);
        let claim = Claim { range: ByteRange { start, end }, mode, owner };
        debug_assert!(!self.holders.iter().chain(&self.waiters).any(|c| c.owner == owner));
        let waits = self.holders.iter().chain(&self.waiters).any(|other| other.conflicts(&claim));
        if waits && !is_planted(Bug::OverlapUnordered) {
            self.waiters.push_back(claim);
            return false;
        }
        self.holders.push(claim);
        true
    }

    /// Gives up what `owner` holds or waits for; appends the owners that hold their range from now on.
    pub fn release(&mut self, owner: u32, granted: &mut VecDeque<u32>) {
        let released = if let Some(index) = self.holders.iter().position(|claim| claim.owner == owner) {
            Some(self.holders.swap_remove(index))
        } else if let Some(index) = self.waiters.iter().position(|claim| claim.owner == owner) {
            self.waiters.remove(index)
        } else {
            None
        };
        let Some(released) = released else { return };
        let mut index = 0;
        while let Some(claim) = self.waiters.get(index).copied() {
            let earlier = self.waiters.iter().take(index);
            // Only whom it was in the way of can go on: all others are looked at once, and with no one.
            if !released.conflicts(&claim)
                || self.holders.iter().chain(earlier).any(|other| other.conflicts(&claim))
            {
                index += 1;
                continue;
            }
            self.waiters.remove(index);
            self.holders.push(claim);
            granted.push_back(claim.owner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against the definition: nobody holds a range that conflicts with another holder's, and conflicting claims
        /// are granted in the order in which they came.
        #[test]
        fn grants_are_exclusive_and_in_order(
            ops in proptest::collection::vec((0u64..16, 1u64..5, any::<bool>(), any::<u8>()), 1..80),
        ) {
            let mut lock = Overlap::default();
            let mut live: Vec<(u32, Claim, bool)> = Vec::new();
            for (owner, (start, len, exclusive, choice)) in (0u32..).zip(ops) {
                let range = ByteRange::new(start * 4096, len * 4096);
                let mode = if exclusive { Mode::Exclusive } else { Mode::Shared };
                let held = lock.request(owner, range, mode);
                live.push((owner, Claim { range, mode, owner }, held));
                if choice % 2 == 0 {
                    let gone = live.remove(usize::from(choice) % live.len());
                    let mut granted = VecDeque::new();
                    lock.release(gone.0, &mut granted);
                    for owner in granted {
                        let entry = live.iter_mut().find(|l| l.0 == owner).unwrap();
                        prop_assert!(!entry.2);
                        entry.2 = true;
                    }
                }
                for (i, a) in live.iter().enumerate() {
                    let blocked = live[..i].iter().any(|b| b.1.conflicts(&a.1));
                    let conflict = live.iter().any(|b| b.0 != a.0 && b.2 && b.1.conflicts(&a.1));
                    prop_assert!(!(a.2 && (conflict || blocked)));
                    prop_assert!(a.2 || blocked, "waits for nobody");
                }
            }
        }
    }

    #[test]
    fn sub_block_neighbours_conflict() {
        let mut lock = Overlap::default();
        assert!(lock.request(1, ByteRange::new(512, 512), Mode::Exclusive));
        assert!(!lock.request(2, ByteRange::new(1024, 512), Mode::Exclusive));
        let mut granted = VecDeque::new();
        lock.release(1, &mut granted);
        assert_eq!(granted, [2]);
    }
}
