//! Fields of messages, big endian.

/// Bytes of a message, field after field: `be!`-like concatenation for numbers of all sizes.
pub fn be(parts: &[&dyn Fields]) -> Vec<u8> {
    let mut bytes = Vec::new();
    parts.iter().for_each(|part| part.put(&mut bytes));
    bytes
}

/// What can stand in a message.
pub trait Fields {
    /// Appends it.
    fn put(&self, bytes: &mut Vec<u8>);
}

macro_rules! number {
    ($($kind:ty),*) => {
        $(impl Fields for $kind {
            fn put(&self, bytes: &mut Vec<u8>) {
                bytes.extend_from_slice(&self.to_be_bytes());
            }
        })*
    };
}

number!(u16, u32, u64);

impl Fields for &[u8] {
    fn put(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(self);
    }
}

impl Fields for &str {
    fn put(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(self.as_bytes());
    }
}

impl Fields for Vec<u8> {
    fn put(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(self);
    }
}

/// The number at `at`.
#[track_caller]
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

/// The number at `at`.
#[track_caller]
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// The number at `at`.
#[track_caller]
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
