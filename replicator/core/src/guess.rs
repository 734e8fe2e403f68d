//! Whether to hash the next piece of a resync before it is asked for.
//!
//! A comparison costs two reads and two hashes; it pays where copies are equal. After a crash most blocks of a hot
//! region are, and few of those written during a long outage. So the last answers say what to expect, piece by piece,
//! and where everything differs one piece in a few is still compared, to notice the end of that. Either way is right:
//! this decides about traffic only.

use lockstep_bitmap::marks::{Mark, mark};

/// So many pieces in a row that differed, and the next one is expected to differ.
const DIFFERED_MAX: u32 = 16;
/// While pieces are expected to differ, one in so many is compared all the same.
const PROBE_EVERY: u32 = 8;

/// What the answers so far make of the next piece.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Guess {
    /// Compared pieces in a row of which less than half was equal.
    differed: u32,
    /// Pieces since the last one that was compared.
    skipped: u32,
}

impl Guess {
    /// Whether the next piece is worth a comparison.
    pub(crate) fn compares_next(&mut self) -> bool {
        if self.differed >= DIFFERED_MAX && self.skipped + 1 < PROBE_EVERY {
            mark(Mark::HashingGivenUp);
            self.skipped += 1;
            return false;
        }
        self.skipped = 0;
        true
    }

    /// A piece was compared.
    pub(crate) fn compared(&mut self, equal_bytes: u64, bytes: u64) {
        self.differed = if equal_bytes >= bytes.div_ceil(2) { 0 } else { self.differed.saturating_add(1) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of these pieces were compared.
    fn walk(guess: &mut Guess, pieces: u32, equal_bytes: u64) -> u32 {
        (0..pieces)
            .filter(|_| {
                let compares = guess.compares_next();
                if compares {
                    guess.compared(equal_bytes, 100);
                }
                compares
            })
            .count() as u32
    }

    #[test]
    fn equal_pieces_are_all_compared_and_different_ones_seldom() {
        let mut guess = Guess::default();
        assert_eq!(walk(&mut guess, 1000, 50), 1000);
        assert_eq!(walk(&mut guess, 1000, 49), DIFFERED_MAX + (1000 - DIFFERED_MAX) / PROBE_EVERY);
    }

    #[test]
    fn a_probe_finds_the_end_of_what_differs() {
        let mut guess = Guess::default();
        walk(&mut guess, 1000, 0);
        let compared = walk(&mut guess, 1000, 100);
        assert!(compared > 1000 - PROBE_EVERY, "{compared}");
    }
}
