//! The ledger: what was written to a volume and what of it was acknowledged, so that nothing can be lost
//! unnoticed.
//!
//! Each block that is written carries its own number, the sequence number of the write, filling and a
//! checksum. Per block one write at most is in flight, so what may be found later is exact: the last
//! acknowledged version, or the one that was in flight when the connection broke. What a check has found
//! must be found again ever after. Nothing here knows a server; `load` does the writing.

use std::io;

/// Bytes of a block of the ledger.
pub(crate) const BLOCK_BYTES: usize = 4096;

/// Blocks read at once by a check.
const BLOCKS_PER_READ: usize = 32;
const MAGIC: u64 = 0x4c45_4447_4552_3031;
const CHECKSUM_BYTES: usize = 32;

/// The versions that one block may hold; 0 stands for never written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    issued: u32,
    lowest: u32,
    highest: u32,
}

impl Entry {
    /// The sequence number for a write that is about to be sent.
    pub(crate) fn issue(&mut self) -> u32 {
        self.issued += 1;
        self.highest = self.issued;
        self.issued
    }

    /// The write sent last was acknowledged.
    pub(crate) fn acknowledge(&mut self) {
        self.lowest = self.issued;
    }

    fn is_uncertain(self) -> bool {
        self.lowest != self.highest
    }
}

/// All blocks of the ledger, the first being block 0 of the volume.
pub(crate) struct Ledger {
    /// One entry per block.
    pub(crate) entries: Vec<Entry>,
}

/// Result of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Check {
    /// Blocks that were ever written.
    pub(crate) blocks: u64,
    /// Blocks whose last write was in flight when its connection broke.
    pub(crate) in_flight: u64,
    /// Of these, those that hold that last write.
    pub(crate) in_flight_found: u64,
    /// Acknowledged block writes that are missing.
    pub(crate) lost: u64,
    /// What is wrong, in words, the first few.
    pub(crate) wrong: Vec<String>,
}

impl Ledger {
    /// Nothing written yet.
    pub(crate) fn new(blocks: usize) -> Self {
        Ledger { entries: vec![Entry::default(); blocks] }
    }

    /// Reads every block that was written and compares. `read` fills the buffer from an offset in bytes on.
    pub(crate) fn check(
        &mut self,
        mut read: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<Check> {
        let mut check = Check::default();
        let mut buffer = vec![0; BLOCKS_PER_READ * BLOCK_BYTES];
        for (group, entries) in self.entries.chunks_mut(BLOCKS_PER_READ).enumerate() {
            if entries.iter().all(|entry| entry.issued == 0) {
                continue;
            }
            let first_block = (group * BLOCKS_PER_READ) as u64;
            let bytes = &mut buffer[..entries.len() * BLOCK_BYTES];
            read(first_block * BLOCK_BYTES as u64, bytes)?;
            for ((block, entry), content) in (first_block..).zip(entries).zip(bytes.chunks(BLOCK_BYTES)) {
                check.take(block, entry, content);
            }
        }
        Ok(check)
    }
}

impl Check {
    /// True if everything is as it must be.
    pub(crate) fn passed(&self) -> bool {
        self.wrong.is_empty()
    }

    fn take(&mut self, block: u64, entry: &mut Entry, content: &[u8]) {
        if entry.issued == 0 {
            return;
        }
        self.blocks += 1;
        self.in_flight += u64::from(entry.is_uncertain());
        let found = match version(block, content) {
            Some(found) => found,
            None => {
                self.lost += u64::from(entry.lowest);
                return self.complain(format!("block {block} holds no record of the ledger"));
            }
        };
        if found < entry.lowest {
            self.lost += u64::from(entry.lowest - found);
            let (lowest, lost) = (entry.lowest, entry.lowest - found);
            self.complain(format!(
                "block {block} holds write {found}, but {lowest} was acknowledged ({lost} lost)"
            ));
        } else if found > entry.lowest && found != entry.highest {
            self.complain(format!("block {block} holds write {found}, which cannot be there"));
        } else {
            self.in_flight_found += u64::from(entry.is_uncertain() && found == entry.highest);
            // It was read, so from now on it must stay.
            (entry.lowest, entry.highest) = (found, found);
        }
    }

    fn complain(&mut self, what: String) {
        const SHOWN: usize = 8;
        if self.wrong.len() < SHOWN {
            self.wrong.push(what);
        }
    }
}

/// Makes the content of one block. Panics if `content` is not one block long.
pub(crate) fn fill(block: u64, sequence: u32, content: &mut [u8]) {
    assert_eq!(content.len(), BLOCK_BYTES, "a record is one block");
    let (body, checksum) = content.split_at_mut(BLOCK_BYTES - CHECKSUM_BYTES);
    // Content that is nowhere equal, so that a mixture of two versions cannot pass for either.
    let mut state = block ^ u64::from(sequence).rotate_left(40);
    for word in body.chunks_exact_mut(8) {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        word.copy_from_slice(&(state ^ (state >> 29)).to_le_bytes());
    }
    for (field, value) in body.chunks_exact_mut(8).zip([MAGIC, block, u64::from(sequence)]) {
        field.copy_from_slice(&value.to_le_bytes());
    }
    checksum.copy_from_slice(blake3::hash(body).as_bytes());
}

/// The version that a block holds; 0 for a block of zeroes, `None` for what is no record of this block.
fn version(block: u64, content: &[u8]) -> Option<u32> {
    if content.iter().all(|&byte| byte == 0) {
        return Some(0);
    }
    let (body, checksum) = content.split_at_checked(BLOCK_BYTES - CHECKSUM_BYTES)?;
    let mut fields = body.chunks_exact(8).map_while(|field| Some(u64::from_le_bytes(field.try_into().ok()?)));
    let header = (fields.next()?, fields.next()?);
    let sequence = u32::try_from(fields.next()?).ok()?;
    let intact = header == (MAGIC, block) && checksum == blake3::hash(body).as_bytes();
    intact.then_some(sequence)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(ledger: &mut Ledger, volume: &[u8]) -> Check {
        let read = |offset: u64, to: &mut [u8]| {
            to.copy_from_slice(&volume[offset as usize..][..to.len()]);
            Ok(())
        };
        ledger.check(read).unwrap()
    }

    fn put(volume: &mut [u8], block: u64, sequence: u32) {
        fill(block, sequence, &mut volume[block as usize * BLOCK_BYTES..][..BLOCK_BYTES]);
    }

    #[test]
    fn finds_exactly_what_may_be_there() {
        let mut volume = vec![0; 40 * BLOCK_BYTES];
        let mut ledger = Ledger::new(40);
        for _ in 0..3 {
            let sequence = ledger.entries[35].issue();
            put(&mut volume, 35, sequence);
            ledger.entries[35].acknowledge();
        }
        assert_eq!(check(&mut ledger, &volume), Check { blocks: 1, ..Check::default() });

        // In flight: either version passes, and then it is settled.
        assert_eq!(ledger.entries[35].issue(), 4);
        let found = check(&mut ledger, &volume);
        assert_eq!((found.in_flight, found.in_flight_found, found.passed()), (1, 0, true));
        put(&mut volume, 35, 4);
        assert!(!check(&mut ledger, &volume).passed(), "a write came back after it was seen not to be there");

        put(&mut volume, 35, 2);
        let lost = check(&mut ledger, &volume);
        assert_eq!((lost.lost, lost.wrong.len()), (1, 1));
        // The sequence number of the write that vanished is not used again.
        assert_eq!(ledger.entries[35].issue(), 5);
    }

    #[test]
    fn sees_damage_displacement_and_loss() {
        let mut volume = vec![0; 2 * BLOCK_BYTES];
        let mut ledger = Ledger::new(2);
        ledger.entries[1].issue();
        ledger.entries[1].acknowledge();
        assert_eq!(check(&mut ledger, &volume).lost, 1);
        fill(0, 1, &mut volume[BLOCK_BYTES..]);
        assert!(!check(&mut ledger, &volume).passed(), "a record of another block passed");
        put(&mut volume, 1, 1);
        assert!(check(&mut ledger, &volume).passed());
        volume[BLOCK_BYTES + 2000] ^= 1;
        assert!(!check(&mut ledger, &volume).passed());
    }
}
