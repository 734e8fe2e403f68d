//! What operators and backup tools see of checkpoints.

use crate::status::CheckpointStatus;
use alloc::borrow::ToOwned;
use core::fmt;
use lockstep_bitmap::{CheckpointId, CheckpointState, NAME_BYTES_MAX};

/// The name of a checkpoint: as that of a resource, letters, digits, `-`, `_` and `.`, at most 64, beginning with a
/// letter or a digit.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CheckpointName {
    bytes: [u8; NAME_BYTES_MAX],
    len: u8,
}

impl CheckpointName {
    /// Checks and takes a name.
    pub fn new(name: &str) -> Option<Self> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let begins_well = name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric());
        if name.len() > NAME_BYTES_MAX || !begins_well || !name.bytes().all(plain) {
            return None;
        }
        let mut bytes = [0; NAME_BYTES_MAX];
        bytes.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
        Some(Self { bytes, len: u8::try_from(name.len()).ok()? })
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        let name = self.bytes.get(..usize::from(self.len)).unwrap_or_default();
        core::str::from_utf8(name).unwrap_or_default()
    }
}

impl fmt::Debug for CheckpointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// One checkpoint, as this node knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointView<'a> {
    /// Its random name, the same on both nodes.
    pub id: CheckpointId,
    /// Its name.
    pub name: &'a str,
    /// When it was created, milliseconds since 1970.
    pub created_unix_ms: u64,
    /// What it is worth here.
    pub state: CheckpointState,
    /// Bytes of the blocks that its bits name.
    pub changed_bytes: u64,
    /// The peer has it, too, as far as was heard of it since this daemon started.
    pub is_at_peer: bool,
}

impl CheckpointView<'_> {
    /// The same, for whoever keeps it.
    pub(crate) fn to_status(self) -> CheckpointStatus {
        let Self { id, name, created_unix_ms, state, changed_bytes, is_at_peer } = self;
        CheckpointStatus { id, name: name.to_owned(), created_unix_ms, state, changed_bytes, is_at_peer }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_those_of_resources() {
        for good in ["a", "2026-11-30", "full.backup_1", &"n".repeat(64)] {
            assert_eq!(CheckpointName::new(good).as_ref().map(CheckpointName::as_str), Some(good));
        }
        for bad in ["", "-a", ".a", "a b", "a/b", "ä", &"n".repeat(65)] {
            assert_eq!(CheckpointName::new(bad), None, "{bad:?}");
        }
    }
}
