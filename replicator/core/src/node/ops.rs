//! Operations that the shell was asked for: what each belongs to, and a disk that does not complete them.
//!
//! `disk-timeout` is counted in quarters, each of which needs a tick of its own: a process that stood still does not
//! blame its disk. An operation that is overdue ends the copy for good, like a failed fdatasync, since it may still
//! land at any time: nothing is written or read there any more. Its task then goes on as after an error, but for one
//! whose buffer the operation may still fill. The late completion only gives its buffer back; until then the shell
//! keeps every buffer that the operation uses, and the disk stays open.

use super::Node;
use super::task::{OpKind, Work};
use crate::action::{Action, Failed};
use crate::event::DiskError;
use crate::ids::{Instant, OpId, SlotId};
use crate::refusal::IoError;
use crate::slab::Slab;
use alloc::vec::Vec;
use core::time::Duration;
use lockstep_bitmap::MetaPage;
use lockstep_bitmap::marks::{Mark, mark};

const QUARTERS: u64 = 4;

/// All outstanding operations.
#[derive(Debug)]
pub(super) struct Ops {
    table: Slab<Op>,
    quarter: u64,
    quarter_at: Instant,
    /// Operations that have a time limit.
    limited: usize,
}

#[derive(Clone, Copy, Debug)]
struct Op {
    kind: OpKind,
    /// In which it began.
    quarter: u64,
}

fn has_limit(kind: OpKind) -> bool {
    !matches!(kind, OpKind::FailureRecord | OpKind::CloseDisk | OpKind::Abandoned)
}

impl Ops {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Ops { table: Slab::with_capacity(capacity), quarter: 0, quarter_at: Instant(0), limited: 0 }
    }

    fn insert(&mut self, kind: OpKind, now: Instant) -> OpId {
        if has_limit(kind) {
            if self.limited == 0 {
                (self.quarter, self.quarter_at) = (self.quarter + 1, now);
            }
            self.limited += 1;
        }
        OpId(self.table.insert(Op { kind, quarter: self.quarter }))
    }

    pub(super) fn remove(&mut self, op: OpId) -> Option<OpKind> {
        let kind = self.table.remove(op.0)?.kind;
        self.limited -= usize::from(has_limit(kind));
        Some(kind)
    }

    /// When the next quarter ends, while anything is under way.
    pub(super) fn due(&self, limit: Duration) -> Option<Instant> {
        (self.limited > 0).then(|| self.quarter_at + limit / QUARTERS as u32)
    }

    /// Ends a quarter that is over. What is under way since before the last four is overdue, and is forgotten but for
    /// its number.
    fn abandon_overdue(&mut self, now: Instant, limit: Duration) -> Vec<OpKind> {
        if self.due(limit).is_none_or(|due| due > now) {
            return Vec::new();
        }
        (self.quarter, self.quarter_at) = (self.quarter + 1, now);
        let oldest = self.quarter.saturating_sub(QUARTERS);
        let overdue = self.table.select(|op| has_limit(op.kind) && op.quarter < oldest);
        let mut kinds = Vec::new();
        for id in overdue {
            if let Some(op) = self.table.get_mut(id) {
                kinds.push(core::mem::replace(&mut op.kind, OpKind::Abandoned));
                self.limited -= 1;
            }
        }
        kinds
    }
}

impl Node {
    pub(super) fn new_op(&mut self, kind: OpKind) -> OpId {
        self.ops.insert(kind, self.now)
    }

    /// A completion that nobody waits for any more.
    pub(super) fn on_late(&mut self, slot: Option<SlotId>) {
        mark(Mark::LateCompletion);
        if let Some(slot) = slot {
            self.act(Action::ReleaseSlot { slot });
        }
    }

    /// Gives up a disk that does not complete what it was given.
    pub(super) fn watch_disk(&mut self) {
        let Some(limit) = self.cfg.timing.disk_timeout else { return };
        let overdue = self.ops.abandon_overdue(self.now, limit);
        if overdue.is_empty() {
            return;
        }
        mark(Mark::DiskOverdue);
        if !self.without_disk() {
            self.note_failed(Failed::Hung, 0, DiskError::Io);
            // First: what lands late must not meet anything newer.
            self.lose_disk();
        }
        for kind in overdue {
            self.end_abandoned(kind);
        }
    }

    fn end_abandoned(&mut self, kind: OpKind) {
        let failed = Err(DiskError::Io);
        let id = match kind {
            OpKind::Task(id) | OpKind::Fill(id) => id,
            OpKind::Meta(MetaPage::Superblock) => return self.on_superblock_hung(),
            OpKind::Meta(_) => return,
            OpKind::Flush(purpose) => return self.on_flushed(purpose, failed),
            OpKind::FailureRecord | OpKind::CloseDisk | OpKind::Abandoned => return,
        };
        let alone = self.io_is_lost();
        let Some(task) = self.tasks.get_mut(id) else { return };
        if alone {
            // Nobody else is known to have it.
            task.failed = Some(IoError::Io);
        }
        match (task.work, kind) {
            // The operation may still put bytes into the buffer of this request: it is not read from elsewhere into it.
            (Work::Read { .. }, _) | (Work::Write { .. }, OpKind::Fill(_)) => {
                self.finish_client_task(id, Some(IoError::Io));
            }
            (Work::Serve { .. } | Work::Piece { .. }, _) => {
                self.on_task_inspected(id, failed, None, (0, &[]))
            }
            (_, OpKind::Fill(_)) => self.on_filled(id, failed),
            _ => self.on_task_done(id, failed, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Position;
    use crate::node::task::FlushFor;

    const LIMIT: Duration = Duration::from_secs(4);

    fn at(ms: u64) -> Instant {
        Instant(ms * 1_000_000)
    }

    fn flush() -> OpKind {
        OpKind::Flush(FlushFor::Stream { covers: Position(1) })
    }

    #[test]
    fn an_operation_is_overdue_after_four_quarters_and_never_before() {
        let mut ops = Ops::with_capacity(4);
        assert_eq!(ops.due(LIMIT), None);
        let old = ops.insert(flush(), at(0));
        assert_eq!(ops.due(LIMIT), Some(at(1000)));
        for ms in [1000, 2000, 3000] {
            assert!(ops.abandon_overdue(at(ms), LIMIT).is_empty());
        }
        let young = ops.insert(flush(), at(3500));
        assert!(ops.abandon_overdue(at(4000), LIMIT).is_empty());
        assert_eq!(ops.abandon_overdue(at(5000), LIMIT).len(), 1);
        assert!(matches!(ops.remove(old), Some(OpKind::Abandoned)), "its number is kept until it completes");
        assert!(matches!(ops.remove(young), Some(OpKind::Flush(_))));
        assert_eq!(ops.due(LIMIT), None);
    }

    #[test]
    fn a_process_that_stood_still_does_not_blame_its_disk() {
        let mut ops = Ops::with_capacity(4);
        ops.insert(flush(), at(0));
        assert!(ops.abandon_overdue(at(60_000), LIMIT).is_empty());
        assert!(ops.abandon_overdue(at(60_001), LIMIT).is_empty());
        assert_eq!(ops.due(LIMIT), Some(at(61_000)));
    }
}
