//! From the durable record to a copy that may take part, and from a lost link to a copy that is clean.
//!
//! At attach the hot regions become dirty bits, durably, before the map is reset, before the first snapshot and before
//! the first I/O. "May be written" is set before the first write and cleared only when everything is drained, flushed
//! and recorded (ordering 16); what it says at attach is kept as "unclean" until a resync with the peer ended.

use super::Node;
use super::meta::Effect;
use super::task::{FlushFor, OpKind, Stage};
use crate::action::Action;
use crate::status::{DiskState, Role};
use lockstep_bitmap::Base;
use lockstep_bitmap::canary::{Bug, is_planted};

/// Making the copy clean, step by step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settle {
    /// Nothing to do.
    Idle,
    /// Operations of the peer are still running.
    Draining,
    /// fdatasync.
    Flushing,
    /// Bitmap pages.
    Bits,
    /// Removal of activity marks.
    Cooling,
    /// Superblock.
    Recording,
}

impl Node {
    pub(super) fn start(&mut self) {
        let survives = self.cfg.survives_process_death;
        let boot_id = self.cfg.boot_id.to_le_bytes();
        let Some(store) = self.store.as_mut() else {
            self.attached = true;
            return;
        };
        let marked = !is_planted(Bug::DropMarksAtAttach) && store.merge_hot() > 0;
        let dirty = !store.slots.iter().all(|slot| slot.bits.is_empty());
        let written = store.superblock.may_be_written;
        super::checkpoint::judge_at_attach(store, written);
        let sb = &mut store.superblock;
        let current = sb.log.current().map(|generation| generation.id);
        // Completed writes outlive a killed daemon where the kernel or the device holds them; nothing excuses a reboot.
        if written && !is_planted(Bug::ForgetUnclean) && !(survives && sb.boot_id == boot_id) {
            sb.unclean_in = current;
        }
        // The bits come from regions that were hot while the peer had our generation.
        if let (true, Some(peer), Some(current)) = (dirty, sb.peers.first_mut(), current)
            && peer.base == Base::Unset
        {
            peer.base = Base::Generation(current);
        }
        self.marked = marked;
        let begins_epoch = store.slot_numbers().any(|slot| !store.slot(slot).epoch_durable());
        self.set_disk(self.recorded_disk_state());
        if begins_epoch {
            // The shell was told that the disk was moved; its slot's pages wait for the superblock that says so.
            self.hold_slot_pages();
            self.commit(Effect::Confirmed);
        }
        // Always: it also writes both copies of a superblock of which recovery may have found only one.
        self.settle = Settle::Draining;
    }

    /// The copy stopped uncleanly in the generation that it still carries, and no resync has ended since.
    pub(super) fn is_unclean(&self) -> bool {
        let unclean_in = self.store.as_ref().and_then(|store| store.superblock.unclean_in);
        unclean_in.is_some() && unclean_in == self.current_generation()
    }

    /// What the durable record says of this copy, without a peer.
    fn recorded_disk_state(&self) -> DiskState {
        let Some(store) = &self.store else { return DiskState::Diskless };
        let sb = &store.superblock;
        if sb.inconsistent.is_some() || sb.log.current().is_none() {
            DiskState::Inconsistent
        } else if sb.outdated {
            DiskState::Outdated
        } else if self.peer_proven_behind() {
            DiskState::UpToDate
        } else {
            DiskState::Consistent
        }
    }

    pub(super) fn is_settled(&self) -> bool {
        self.settle == Settle::Idle && !self.is_failing()
    }

    /// A Secondary without its peer drains, flushes, records, and becomes clean.
    pub(super) fn begin_settle(&mut self) {
        let written = self.store.as_ref().is_some_and(|store| store.superblock.may_be_written);
        if (written || !self.bits_are_durable()) && self.settle == Settle::Idle {
            self.settle = Settle::Draining;
        }
    }

    pub(super) fn pump_settle(&mut self) -> bool {
        if self.without_disk() {
            return core::mem::replace(&mut self.settle, Settle::Idle) != Settle::Idle;
        }
        let next = match self.settle {
            Settle::Draining if !self.uses_disk() && is_planted(Bug::CleanWithoutFlush) => {
                self.settle = Settle::Flushing;
                self.on_settle_flushed();
                Settle::Bits
            }
            Settle::Draining if !self.uses_disk() || is_planted(Bug::HandshakeBeforeOldWrites) => {
                let served = self.serving.completed();
                let op = self.new_op(OpKind::Flush(FlushFor::Settle { served }));
                self.act(Action::DiskFlush { op });
                Settle::Flushing
            }
            Settle::Bits if self.bits_are_durable() => Settle::Cooling,
            Settle::Bits => {
                self.write_stale_bits();
                return false;
            }
            Settle::Cooling => {
                let hot = self.store.as_ref().map_or(0, |store| store.activity.durable_count());
                if hot == 0 || self.cool(hot) == 0 && self.nothing_to_cool() {
                    self.record_settled();
                    Settle::Recording
                } else {
                    return false;
                }
            }
            Settle::Idle | Settle::Draining | Settle::Flushing | Settle::Recording => return false,
        };
        self.settle = next;
        true
    }

    pub(super) fn uses_disk(&self) -> bool {
        self.tasks.iter().any(|(_, task)| task.local_pending || task.stage == Stage::Fill)
    }

    /// Marks are in use or their removal is in flight elsewhere.
    fn nothing_to_cool(&self) -> bool {
        self.store.as_ref().is_none_or(|store| {
            store.activity.candidates() == 0
                && !store.activity.want_write()
                && store.activity.hot_count() == 0
        })
    }

    pub(super) fn on_settle_flushed(&mut self) {
        if self.settle == Settle::Flushing {
            // The link is gone or was never there: nothing is mirrored, all that ran has completed.
            let upto = self.undurable.local_prefix();
            self.undurable.set_local_durable(upto);
            self.settle = Settle::Bits;
            self.write_stale_bits();
        }
    }

    fn record_settled(&mut self) {
        if self.role == Role::Primary && !self.is_detaching() {
            self.note_may_be_written();
        } else if let Some(store) = self.store.as_mut() {
            store.superblock.may_be_written = false;
        }
        self.uncover_checkpoints();
        self.commit(Effect::Settled);
    }

    pub(super) fn on_settled(&mut self) {
        if self.settle == Settle::Recording {
            self.settle = Settle::Idle;
            self.attached = true;
            self.on_attached();
        }
    }

    /// Ordering 16: recorded before the first write of any kind can come.
    pub(super) fn note_may_be_written(&mut self) {
        let boot_id = self.cfg.boot_id.to_le_bytes();
        if let Some(store) = self.store.as_mut().filter(|_| !is_planted(Bug::WriteWithoutFlag)) {
            store.superblock.may_be_written = true;
            store.superblock.boot_id = boot_id;
        }
    }
}
