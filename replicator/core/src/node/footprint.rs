//! Memory of a node's tables, from the bounds that its configuration and its shell set.

use super::Node;
use super::diskless::Serving;
use super::io::Requests;
use super::receive::{PEER_TASKS_MAX, WINDOW_MAX};
use super::serve::{UNITS_MAX, ZERO_UNITS_MIN};
use super::task::{OpKind, Task};
use crate::action::Action;
use crate::config::DIGEST_BYTES;
use crate::overlap::Overlap;
use crate::undurable::Undurable;
use alloc::vec::Vec;

/// What bounds the tables of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableBounds {
    /// As in [`crate::NodeConfig`].
    pub writes_max: usize,
    /// As in [`crate::NodeConfig`].
    pub undurable_max: usize,
    /// As in [`crate::NodeConfig`].
    pub resync_window: usize,
    /// Slots that the shell has for this resource.
    pub slots: usize,
    /// Requests that the shell hands over at a time.
    pub requests: usize,
}

/// A table that grows by doubling may have room for twice what it holds.
const GROWTH: usize = 2;

/// Parts of one piece that have no slot: shorter runs of zeroes travel, and between two of them something else lies.
const ZERO_PARTS_MAX: usize = UNITS_MAX / (ZERO_UNITS_MIN + 1) + 1;
const DIGESTS_BYTES_MAX: usize = UNITS_MAX * DIGEST_BYTES + size_of::<(u32, Vec<u8>)>();

impl TableBounds {
    /// Pieces in flight or queued: with a slot, or counted.
    pub fn pieces(&self) -> usize {
        self.slots + self.writes_max + PEER_TASKS_MAX + (1 + ZERO_PARTS_MAX) * self.resync_window
    }

    /// Memory that a node's tables take at most, metadata excepted.
    pub fn memory_bytes(&self) -> usize {
        // The number of a piece is in one or two queues, and in lists of free numbers.
        let piece = size_of::<Option<Task>>() + size_of::<Option<OpKind>>() + 4 * size_of::<u32>();
        // At worst one step answers everything there is, or sends it again.
        let piece = piece + Overlap::CLAIM_BYTES + 2 * size_of::<Action>();
        let tables = self.pieces() * piece + self.requests * Requests::BYTES_EACH + WINDOW_MAX;
        // Digests of a piece, with the request here or on their way out.
        let tables = tables + (PEER_TASKS_MAX + self.resync_window) * DIGESTS_BYTES_MAX;
        // Those written after the last that is taken go here, too.
        let served = Serving::len_max(self.undurable_max) + self.pieces();
        let tables = tables + served * Serving::BYTES_EACH;
        GROWTH * tables + self.undurable_max * Undurable::ENTRY_BYTES + size_of::<Node>()
    }
}
