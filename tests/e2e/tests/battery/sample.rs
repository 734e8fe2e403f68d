//! What is copied and compared.

use lockstep_e2e::{Plain, Rng};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const SIZE_BYTES: u64 = 24 * MIB;

/// Data, zeroes, and a ragged mixture, as long as the export.
pub(crate) fn sample(seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut bytes = vec![0; SIZE_BYTES as usize];
    for start in (0..bytes.len()).step_by(2 << 20) {
        let end = bytes.len().min(start + 300_000 + rng.below(1 << 20) as usize);
        bytes[start..end].fill_with(|| rng.draw() as u8);
    }
    bytes
}

/// The first byte at which the served file differs.
#[track_caller]
pub(crate) fn assert_holds(served: &Plain, expected: &[u8]) {
    let bytes = std::fs::read(served.disk()).expect("the served file");
    let wrong = (0..bytes.len().max(expected.len())).find(|&at| bytes.get(at) != expected.get(at));
    assert_eq!(wrong, None, "the served file differs from there on");
}
