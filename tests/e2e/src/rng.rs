//! A small seeded generator (splitmix64), so that a failing round can be repeated with `LOCKSTEP_SEED`.

use std::time::{SystemTime, UNIX_EPOCH};

/// A stream of pseudo-random numbers.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The stream of this seed.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0. The bias is of no interest here.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.draw() % bound
    }
}

/// Seed of this run: `LOCKSTEP_SEED`, or the clock; printed, so that the run can be repeated.
pub fn seed(test: &str) -> u64 {
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64);
    let given = std::env::var("LOCKSTEP_SEED").ok();
    let seed = given.map_or_else(clock, |text| text.parse().expect("LOCKSTEP_SEED is a number"));
    println!("{test}: LOCKSTEP_SEED={seed}");
    seed
}

/// Rounds of a repeated test: `LOCKSTEP_ROUNDS_NAME`, or `default`.
pub fn rounds(name: &str, default: u64) -> u64 {
    let variable = format!("LOCKSTEP_ROUNDS_{name}");
    std::env::var(&variable)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}
