//! Bounds (C11) and progress (C12), after each input of a core: nothing grows beyond what it belongs to, and nothing
//! waits for nothing.
//!
//! Guarantee: D7, every state ends. What is left when a cluster is quiet is looked at in `check.rs`.

use crate::rules::{Broken, or_broken};
use crate::world::World;
use lockstep_core::Node;

/// Actions that one input may bring about: the tables of a run are far smaller.
const ACTIONS_MAX: usize = 2000;
/// Operations that belong to no piece of work: flushes for five purposes, and the two that end a failed copy.
const OPS_WITHOUT_PIECE_MAX: usize = 8;

impl World {
    /// A core has acted on an input, with so many actions.
    pub(crate) fn check_bounds(&mut self, n: usize, node: &Node, actions: usize) {
        let checked = self.check_sizes(n, node, actions).and_then(|()| self.check_progress(n, node));
        if let Err((check, what)) = checked {
            self.fail(check, format!("node {n}: {what}"));
        }
    }

    /// C11: each operation and each buffer belongs to a piece of work, of which there are few.
    fn check_sizes(&self, n: usize, node: &Node, actions: usize) -> Result<(), Broken> {
        let (host, pieces) = (&self.hosts[n], node.pieces());
        or_broken(actions <= ACTIONS_MAX, "C11 actions", || format!("{actions} actions for one input"))?;
        let ops = host.ops.len();
        or_broken(host.has_hung || ops <= pieces + OPS_WITHOUT_PIECE_MAX, "C11 operations", || {
            format!("{ops} operations for {pieces} pieces of work")
        })?;
        let slots = host.slots.len() - host.kept.len();
        or_broken(slots <= pieces, "C11 buffers", || format!("{slots} buffers for {pieces} pieces of work"))
    }

    /// C12: while anything is unfinished there is a timer, or an operation that will complete.
    fn check_progress(&self, n: usize, node: &Node) -> Result<(), Broken> {
        let host = &self.hosts[n];
        let unfinished = !host.requests.is_empty() || !host.commands.is_empty() || node.pieces() > 0;
        // What came while it stood still is to be acted on first, and may be the command that is not finished.
        let moves = node.next_deadline().is_some()
            || !host.backlog.is_empty()
            || host.dialing
            || host.book.is_ending_a_disk()
            || !(host.ops.is_empty() && host.meta_ops.is_empty())
            || host.requests.values().any(|request| !request.payload.is_empty());
        or_broken(!unfinished || moves, "C12 progress", || {
            format!("waits for nothing, with {} requests and {:?}", host.requests.len(), host.commands)
        })
    }
}
