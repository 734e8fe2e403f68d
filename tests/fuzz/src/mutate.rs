//! Inputs without a fuzzer: a seeded stream of variations of what is in the corpus, and of plain noise.
//!
//! Invariant: the same seed and the same corpus give the same inputs, so that a failure is found again.

/// Longest input, in bytes.
const INPUT_BYTES_MAX: usize = 4096;

/// Makes inputs.
#[derive(Clone, Debug)]
pub struct Mutator {
    state: u64,
    corpus: Vec<Vec<u8>>,
}

impl Mutator {
    /// Variations of `corpus`, in an order that follows from `seed`.
    pub fn new(seed: u64, corpus: Vec<Vec<u8>>) -> Self {
        Mutator { state: seed, corpus }
    }

    /// The next number (SplitMix64).
    fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.number() % bound.max(1) as u64) as usize
    }

    /// So many bytes of noise.
    pub fn noise(&mut self, bytes: usize) -> Vec<u8> {
        (0..bytes).map(|_| self.number() as u8).collect()
    }

    /// The next input.
    pub fn input(&mut self) -> Vec<u8> {
        let sizes = [16, 64, 256, 1024];
        if self.corpus.is_empty() || self.below(4) == 0 {
            let most = sizes[self.below(sizes.len())];
            let bytes = self.below(most);
            return self.noise(bytes);
        }
        let chosen = self.below(self.corpus.len());
        let mut input = self.corpus[chosen].clone();
        for _ in 0..=self.below(6) {
            self.change(&mut input);
        }
        input.truncate(INPUT_BYTES_MAX);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let at = self.below(input.len() + 1);
        let count = self.below(16);
        let end = (at + count).min(input.len());
        match self.below(8) {
            0 | 1 if at < input.len() => input[at] ^= 1 << self.below(8),
            2 if at < input.len() => input[at] = [0, 1, 0x7f, 0x80, 0xff, 3][self.below(6)],
            3 => drop(input.splice(at..at, self.noise(count))),
            4 => drop(input.drain(at..end)),
            5 => {
                let part = input[at..end].to_vec();
                let to = self.below(input.len() + 1);
                drop(input.splice(to..to, part));
            }
            6 => {
                let other = self.below(self.corpus.len());
                let from = self.below(self.corpus[other].len() + 1);
                input.truncate(at);
                input.extend_from_slice(&self.corpus[other][from..]);
            }
            _ => drop(input.splice(at..end, self.noise(count))),
        }
    }
}
