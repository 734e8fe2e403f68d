//! Seeded random numbers in named streams, so that a change in one consumer does not shift the others.
//!
//! A stream begins anew at each moment of virtual time: what it gives depends on the seed, its name, the moment and
//! how often it was asked in that moment, and on nothing that was drawn before. A replay from which a decision was
//! removed therefore draws the same latencies and the same damage wherever it has not been changed by that.
//!
//! SplitMix64 (Steele, Lea, Flood, 2014): one word of state is enough, since nothing here needs a long
//! period.

/// One stream.
#[derive(Clone, Debug)]
pub(crate) struct Prng {
    base: u64,
    state: u64,
    is_calm: bool,
}

impl Prng {
    /// The stream `name` of a master seed.
    pub(crate) fn new(seed: u64, name: &str) -> Self {
        let mut base = seed ^ 0x6c6f_636b_7374_6570;
        for byte in name.bytes() {
            base = (base ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        base = mix(base);
        Prng { base, state: base, is_calm: false }
    }

    /// The same stream, with every duration at its mean.
    pub(crate) fn calm(self, is_calm: bool) -> Self {
        Prng { is_calm, ..self }
    }

    /// A new moment begins.
    pub(crate) fn moment(&mut self, now_ns: u64) {
        self.state = mix(self.base ^ mix(now_ns));
    }

    /// 64 random bits.
    pub(crate) fn word(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }

    /// A number below `bound`; 0 if `bound` is 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.word() % bound }
    }

    /// A number from `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True `per_mille` times of a thousand.
    pub(crate) fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    /// One of two.
    pub(crate) fn coin(&mut self) -> bool {
        self.word() >> 63 == 1
    }

    /// A duration around `mean`: many short ones, few long ones, some sixteen times as long.
    pub(crate) fn spread(&mut self, mean: u64) -> u64 {
        if self.is_calm {
            return mean;
        }
        let eighth = (mean / 8).max(1);
        let shift = self.between(0, 4) + if self.chance(20) { 3 } else { 0 };
        (eighth << shift) + self.below(eighth)
    }

    /// One of a non-empty list.
    pub(crate) fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u64) as usize]
    }

    /// 128 random bits.
    pub(crate) fn wide(&mut self) -> u128 {
        (u128::from(self.word()) << 64) | u128::from(self.word())
    }
}

fn mix(word: u64) -> u64 {
    let z = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
