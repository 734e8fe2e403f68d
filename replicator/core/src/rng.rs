//! Seeded random numbers for generation ids and jitter (xoshiro256++ of Blackman and Vigna, 2019).

use lockstep_bitmap::GenerationId;

#[derive(Clone, Debug)]
pub(crate) struct Rng([u64; 4]);

impl Rng {
    pub(crate) fn new(mut seed: [u64; 4]) -> Self {
        if seed == [0; 4] {
            // The all-zero state is the one from which the generator never leaves.
            seed = [1, 2, 3, 4];
        }
        Rng(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        let [a, b, c, d] = self.0;
        let result = a.wrapping_add(d).rotate_left(23).wrapping_add(a);
        let (c2, d2) = (c ^ a, d ^ b);
        self.0 = [a ^ d2, b ^ c2, c2 ^ (b << 17), d2.rotate_left(45)];
        result
    }

    /// A number below `bound` (0 if `bound` is 0).
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next().checked_rem(bound).unwrap_or(0)
    }

    pub(crate) fn generation_id(&mut self) -> GenerationId {
        loop {
            let id = (u128::from(self.next()) << 64) | u128::from(self.next());
            if id != 0 {
                return GenerationId(id);
            }
        }
    }
}
