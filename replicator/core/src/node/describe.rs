//! What clients are told about ranges of the volume: which of its copies serves their reads, and where the copies
//! differ. Nothing here changes anything.

use super::Node;
use crate::status::DiskState;
use lockstep_bitmap::DirtyBitmap;

impl Node {
    /// Whether clients' reads are served by this node's own disk, all of it: only then do its holes say what they
    /// would read.
    pub fn reads_own_copy(&self) -> bool {
        self.attached && self.store.is_some() && self.disk == DiskState::UpToDate
    }

    /// Blocks that may differ from the peer's copy; `None` where this node has no copy that could. What is on its
    /// way to both copies and was not answered is not among them.
    pub fn out_of_sync(&self) -> Option<&DirtyBitmap> {
        let copy = self.store.as_ref().filter(|_| self.attached && !self.without_disk());
        copy.map(|store| &store.slots[0].bits)
    }

    /// Whether these blocks are to be copied from one of the copies to the other by a resync that has begun, be it
    /// paused or not.
    pub fn is_resyncing(&self) -> bool {
        self.resync.is_some()
    }

    /// Whether what clients write goes to this node's disk and nowhere else.
    pub fn writes_alone(&self) -> bool {
        self.reads_own_copy() && self.mirror_link().is_none() && self.served_link().is_none()
    }
}
