//! What is found in a piece for a resync: which of its units are all zero, and their digests.
//!
//! A digest is the first 16 bytes of BLAKE3, keyed with a secret of the connection. Hashing happens in the
//! shard's thread, a piece at a time: 128 KiB take some tens of microseconds.

use lockstep_core::{DIGEST_BYTES, DiskError, OpId, UNIT_BYTES};

use crate::slots::Span;

/// A piece that was read to be looked at.
#[derive(Debug)]
pub(crate) struct Inspected {
    pub(crate) op: OpId,
    pub(crate) result: Result<(), DiskError>,
    /// Where it is, unless it could not be read.
    pub(crate) span: Span,
    /// Digests are wanted.
    pub(crate) key: Option<[u8; 32]>,
}

/// Bit `n`: unit `n` is all zero.
pub(crate) fn zero_units(bytes: &[u8]) -> u32 {
    let is_zero = |unit: &[u8]| {
        let (chunks, rest) = unit.as_chunks::<64>();
        chunks.iter().all(|chunk| *chunk == [0; 64]) && rest.iter().all(|byte| *byte == 0)
    };
    let units = (0_u32..).zip(bytes.chunks(UNIT_BYTES as usize));
    units.filter(|(_, unit)| is_zero(unit)).map(|(n, _)| 1 << n).sum()
}

/// The digest of each unit, one after the other.
pub(crate) fn digests(bytes: &[u8], key: &[u8; 32], out: &mut Vec<u8>) {
    for unit in bytes.chunks(UNIT_BYTES as usize) {
        out.extend_from_slice(&blake3::keyed_hash(key, unit).as_bytes()[..DIGEST_BYTES]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_units_are_found_one_by_one() {
        let mut bytes = vec![0; 3 * 4096 + 512];
        assert_eq!(zero_units(&bytes), 0b1111);
        bytes[4096 + 4095] = 1;
        assert_eq!(zero_units(&bytes), 0b1101);
        bytes[3 * 4096 + 511] = 1;
        assert_eq!(zero_units(&bytes), 0b0101);
        assert_eq!(zero_units(&vec![0; 128 << 10]), u32::MAX);
    }

    #[test]
    fn digests_are_of_units_and_depend_on_the_key() {
        let mut bytes = vec![7; 2 * 4096];
        let of = |bytes: &[u8], key: u8| {
            let mut out = Vec::new();
            digests(bytes, &[key; 32], &mut out);
            out
        };
        let before = of(&bytes, 1);
        assert_eq!(before.len(), 2 * DIGEST_BYTES);
        assert_eq!(before[..16], before[16..]);
        assert_ne!(before, of(&bytes, 2));
        bytes[8191] = 8;
        let after = of(&bytes, 1);
        assert_eq!(before[..16], after[..16]);
        assert_ne!(before[16..], after[16..]);
    }
}
