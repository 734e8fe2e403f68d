//! What the shell finds when it looks at a piece for a resync: zero units and digests, for tags instead of bytes.

use crate::disk::ZERO;

const UNIT_SECTORS: usize = (lockstep_core::UNIT_BYTES / 512) as usize;

/// Bit `n`: unit `n` is all zero.
pub(crate) fn zeroes(tags: &[u64]) -> u32 {
    let units = (0_u32..).zip(tags.chunks(UNIT_SECTORS));
    units.filter(|(_, unit)| unit.iter().all(|&tag| tag == ZERO)).map(|(n, _)| 1 << n).sum()
}

/// Digests of all units. No two different rows of tags that a run can make have the same one, as far as 128 bits go.
pub(crate) fn digests(tags: &[u64]) -> Vec<u8> {
    tags.chunks(UNIT_SECTORS).flat_map(|unit| digest(unit).to_le_bytes()).collect()
}

fn digest(tags: &[u64]) -> u128 {
    // FNV-1a with 128 bits over the tags.
    tags.iter()
        .flat_map(|tag| tag.to_le_bytes())
        .fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |hash, byte| {
            (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013B)
        })
}
