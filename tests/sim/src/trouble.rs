//! Disks that fail: what may go wrong, what it does to their content, and how the operator replaces them.
//!
//! A write that fails may have landed in part; an fdatasync that fails loses what the cache held; a sector may be
//! unreadable until it is written. All of it ends when the disk is healed; the core's opinion of it does not.

use crate::decision::{Ailment, Decision};
use crate::disk::DataDisk;
use crate::host::{DiskOp, Input, Stop};
use crate::setup::MS;
use crate::world::{Ev, World, create_meta};
use lockstep_bitmap::{Base, FailureRecord, GenerationId, Store, Superblock};
use lockstep_core::{Command, CommandId, DiskError, DiskState, Instant, NewDisk, Role, Status};
use std::collections::BTreeSet;
use std::rc::Rc;

/// Chances per thousand of each kind of error.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trouble {
    write: u64,
    read: u64,
    flush: u64,
    meta: u64,
    /// Of writes, for want of space.
    full: u64,
    unreadable: BTreeSet<usize>,
}

impl Trouble {
    /// There is none.
    pub(crate) fn is_none(&self) -> bool {
        self.write + self.read + self.flush + self.meta + self.full == 0 && self.unreadable.is_empty()
    }
}

impl World {
    /// The disks of a machine go wrong for a while.
    pub(crate) fn afflict(&mut self, n: usize, what: Ailment, some: u64, length: u64) {
        self.hosts[n].afflicted = self.next_seq();
        let trouble = &mut self.hosts[n].trouble;
        let on_device =
            |what: &Ailment| matches!(what, Ailment::Write | Ailment::Flush | Ailment::WriteAndFlush);
        if self.setup.one_device[n] && on_device(&what) {
            trouble.meta = some;
        }
        match what {
            Ailment::All => {
                *trouble = Trouble { write: 1000, read: 1000, flush: 1000, meta: 1000, ..trouble.clone() };
            }
            Ailment::Write => trouble.write = some,
            Ailment::Read => trouble.read = some,
            Ailment::Flush => trouble.flush = some,
            Ailment::Meta => trouble.meta = some,
            Ailment::Full => trouble.full = some,
            Ailment::Sectors(sectors) => trouble.unreadable = sectors.into_iter().collect(),
            Ailment::WriteAndFlush => (trouble.write, trouble.flush) = (some, some),
        }
        self.say(format_args!("n{n} DISK TROUBLE {:?}", self.hosts[n].trouble));
        self.after(length, Ev::Heal(n));
    }

    /// The disks of a machine stop completing anything, for a while that may be longer than anybody waits.
    pub(crate) fn hang(&mut self, n: usize, length: u64) {
        if self.hosts[n].node.is_none() || self.hosts[n].hung {
            return;
        }
        (self.hosts[n].hung, self.hosts[n].has_hung) = (true, true);
        self.say(format_args!("n{n} DISK HANGS {} ms", length / MS));
        self.after(length, Ev::Unhang(n, self.hosts[n].process));
    }

    /// What hung goes on.
    pub(crate) fn unhang(&mut self, n: usize, process: u32) {
        if self.hosts[n].process != process || !std::mem::take(&mut self.hosts[n].hung) {
            return;
        }
        self.say(format_args!("n{n} DISK GOES ON"));
        let ops: Vec<u32> = self.hosts[n].ops.keys().copied().collect();
        let meta_ops: Vec<u32> = self.hosts[n].meta_ops.keys().copied().collect();
        for op in ops {
            let delay = self.disk_delay(n);
            self.after(delay, Ev::DiskDone(n, process, op));
        }
        for op in meta_ops {
            let delay = self.disk_delay(n);
            self.after(delay, Ev::MetaDone(n, process, op));
        }
    }

    /// What was being written when the power went may be readable no more, until it is written again.
    pub(crate) fn leave_latent_errors(&mut self, n: usize) {
        let f = self.setup.faults;
        if !f.unreadable || !self.rng.disk[n].chance(200) {
            return;
        }
        let host = &mut self.hosts[n];
        let torn = host.disk.all_flying_sectors();
        host.unreadable.extend(torn.clone());
        if f.disk {
            host.trouble.unreadable.extend(torn);
        }
    }

    /// Buffers that no operation uses any more.
    pub(crate) fn free_kept(&mut self, n: usize) {
        let host = &mut self.hosts[n];
        let uses = |op: &DiskOp, slot: u32| match op {
            DiskOp::Write { slot: Some(s), .. } | DiskOp::Fill { slot: s, .. } => *s == slot,
            _ => false,
        };
        let ops = &host.ops;
        let free: Vec<u32> =
            host.kept.iter().copied().filter(|&slot| !ops.values().any(|op| uses(op, slot))).collect();
        for slot in free {
            host.kept.remove(&slot);
            host.free(slot);
        }
    }

    /// Nothing is wrong with the disks of this machine any more.
    pub(crate) fn heal(&mut self, n: usize) {
        (self.hosts[n].trouble, self.hosts[n].afflicted) = (Trouble::default(), self.next_seq());
    }

    /// How a data operation ends; the effect of an error is here, that of success with the caller.
    pub(crate) fn fate(&mut self, n: usize, op: u32, what: &DiskOp) -> Result<(), DiskError> {
        let host = &mut self.hosts[n];
        let rng = &mut self.rng.disk[n];
        let t = &mut host.trouble;
        let unreadable =
            |first: usize, count: usize| t.unreadable.range(first..first + count).next().is_some();
        match *what {
            DiskOp::Write { fua, .. } => {
                if fua && self.setup.sync_of_fua && rng.chance(t.flush) {
                    host.disk.complete_unsynced(op);
                    host.disk.fail_flush(rng);
                    let seq = self.next_seq();
                    (self.failures.power[n], self.failures.unclean[n]) = (seq, seq);
                    return Err(DiskError::Sync);
                }
                if rng.chance(t.write) {
                    host.disk.fail(op, rng);
                    return Err(DiskError::Io);
                }
                if rng.chance(t.full) {
                    host.disk.fail(op, rng);
                    return Err(DiskError::NoSpace);
                }
                for sector in host.disk.flying_sectors(op) {
                    t.unreadable.remove(&sector);
                }
            }
            DiskOp::Flush { .. } if rng.chance(t.flush) => {
                host.disk.fail_flush(rng);
                host.lost_flush = true;
                let seq = self.next_seq();
                (self.failures.power[n], self.failures.unclean[n]) = (seq, seq);
                return Err(DiskError::Io);
            }
            DiskOp::Read { first, count, .. } if unreadable(first, count) || rng.chance(t.read) => {
                return Err(DiskError::Io);
            }
            DiskOp::Fill { parts, .. }
                if parts.iter().any(|&(first, count)| unreadable(first, count)) || rng.chance(t.read) =>
            {
                return Err(DiskError::Io);
            }
            _ => {}
        }
        Ok(())
    }

    /// How a metadata write ends, and what it leaves.
    pub(crate) fn meta_fate(&mut self, n: usize, op: u32) -> Result<(), DiskError> {
        let host = &mut self.hosts[n];
        if self.rng.disk[n].chance(host.trouble.meta) {
            host.meta.fail(op, &mut self.rng.disk[n]);
            return Err(DiskError::Io);
        }
        let before = self.record(n).map(|store| store.superblock.clone());
        self.hosts[n].meta.complete(op);
        if let Ok(before) = before {
            self.check_record(n, &before);
        }
        self.learn_recorded(n);
        Ok(())
    }

    /// Does the durable record, or the shell's, say by now that an fdatasync failed?
    fn learn_recorded(&mut self, n: usize) {
        if !self.hosts[n].lost_flush {
            return;
        }
        let record = self.record(n).map(|store| self.as_attached(n, (*store).clone()).superblock);
        let excused =
            |sb: Superblock| sb.boot_id == self.hosts[n].boot_id.to_le_bytes() && sb.unclean_in.is_none();
        self.hosts[n].lost_flush = record.is_ok_and(excused);
    }

    /// Nobody knows of the failure any more once the process has ended that saw it: whoever goes on with such a disk
    /// has to boot the machine first, as the documents say, so that it counts as stopped uncleanly.
    pub(crate) fn ends_as(&mut self, n: usize, how: Stop) -> Stop {
        self.learn_recorded(n);
        if self.hosts[n].lost_flush { Stop::Power } else { how }
    }

    /// The shell's own record of a failure; seldom that cannot be written either.
    pub(crate) fn record_failure(&mut self, n: usize, op: u32, record: FailureRecord) {
        let result =
            if self.rng.disk[n].chance(self.setup.focus.chance(100)) { Err(DiskError::Io) } else { Ok(()) };
        if result.is_ok() {
            self.hosts[n].failed = Some(record);
            self.learn_recorded(n);
        }
        self.hosts[n].unrecordable |= result.is_err();
        let process = self.hosts[n].process;
        self.after(self.setup.meta_ns, Ev::Input(n, process, Input::MetaDone { op, result }));
    }

    /// Closes a disk that the core is done with, once nothing is in flight on it.
    pub(crate) fn close_disk(&mut self, n: usize, op: u32) {
        self.hosts[n].diskless = true;
        let process = self.hosts[n].process;
        self.after(self.setup.meta_ns, Ev::DiskClosed(n, process, op));
    }

    /// Is everything of it in?
    pub(crate) fn disk_closed(&mut self, n: usize, process: u32, op: u32) {
        if self.hosts[n].process != process {
            return;
        }
        if self.hosts[n].ops.is_empty() && self.hosts[n].meta_ops.is_empty() {
            self.deliver(n, Input::MetaDone { op, result: Ok(()) });
        } else {
            self.after(MS, Ev::DiskClosed(n, process, op));
        }
    }

    /// What an attach makes of the durable record.
    pub(crate) fn as_attached(&self, n: usize, mut store: Store) -> Store {
        if let Some(record) = &self.hosts[n].failed {
            store.superblock.apply_failure(record);
        }
        store
    }

    /// The operator looks after disks. True if something was typed.
    pub(crate) fn tend_disks(&mut self, seen: &[Option<Status>; 2]) -> bool {
        if !self.setup.faults.disk {
            return false;
        }
        let calm = self.phase != crate::world::Phase::Stormy;
        for (n, status) in seen.iter().enumerate() {
            let Some(status) = status else { continue };
            if self.hosts[n].diskless && (calm || self.rng.operator.chance(200)) {
                let empty = self.may_replace(n) && self.rng.operator.coin();
                match calm {
                    true => self.attach_disk(n, empty),
                    false => self.propose(0, Decision::Attach { n, empty }),
                }
                return true;
            }
            let hopeless = status.role == Role::Primary
                && status.disk < DiskState::UpToDate
                && (status.suspended || self.hosts[n].diskless);
            let served = status.peers.iter().all(|peer| peer.disk == Some(DiskState::UpToDate));
            if hopeless && !served && self.rng.operator.chance(100) {
                self.type_in(n, Command::Demote { force: true });
                return true;
            }
        }
        if !calm && self.rng.operator.chance(20) {
            let n = self.rng.operator.below(2) as usize;
            self.type_in(n, Command::Detach);
            return true;
        }
        false
    }

    /// The other copy has everything; a restored machine does not know yet that it lacks what this disk has.
    fn may_replace(&self, n: usize) -> bool {
        let other = self.look(1 - n);
        !self.hosts[1 - n].restored && other.is_some_and(|other| other.disk == DiskState::UpToDate)
    }

    /// Gives a running node a disk: the one it had, or an empty one.
    pub(crate) fn attach_disk(&mut self, n: usize, replaced: bool) {
        let idle = self.hosts[n].ops.is_empty() && self.hosts[n].meta_ops.is_empty();
        let unfit = self.hosts[n].is_paused(self.now) || !self.hosts[n].diskless;
        if !idle || unfit || (replaced && !self.may_replace(n)) {
            return;
        }
        let Some(mut node) = self.hosts[n].node.take() else { return };
        self.operator.commands += 1;
        let id = self.operator.commands;
        let meta =
            replaced.then(|| create_meta(&self.setup, n, self.rng.clock.word(), GenerationId(0), false));
        let store = match &meta {
            Some(meta) => self.recovered_from(meta),
            None => self.recovered(n),
        };
        let store = match store {
            Ok((store, _)) => self.as_attached(n, store),
            Err(why) => return self.fail("recover", format!("node {n}: {why}")),
        };
        let (granule_bytes, survives_process_death) = (self.setup.granule_bytes[n], self.setup.survives[n]);
        let disk = NewDisk { store, granule_bytes, survives_process_death, sample: 0 };
        let now = Instant(self.local(n, self.now));
        match node.attach_store(now, CommandId(id), disk) {
            Ok(()) => {
                self.say(format_args!(
                    "n{n} ATTACH {}",
                    if replaced { "an empty disk" } else { "the disk again" }
                ));
                if let Some(meta) = meta {
                    (self.hosts[n].meta, self.hosts[n].lost_flush) = (meta, false);
                    // The old image went with the old disk, and how that was stopped.
                    self.hosts[n].restored = false;
                    self.hosts[n].unclean_expected = None;
                    self.hosts[n].replaced = self.next_seq();
                    let garbage = |s: usize| (1 << 63) | ((n as u64 + 11) << 40) | s as u64;
                    self.hosts[n].disk = DataDisk::new((0..self.setup.sectors).map(garbage).collect());
                }
                if std::mem::take(&mut self.hosts[n].unrecordable)
                    && !replaced
                    && node.status().disk > DiskState::Outdated
                {
                    self.fail(
                        "O5 forgotten",
                        format!("node {n}: takes a disk for whole whose failure it alone knows"),
                    );
                }
                self.hosts[n].diskless = false;
                self.hosts[n].commands.insert(id, crate::host::Pending { command: Command::Detach });
            }
            Err(why) => self.say(format_args!("n{n} attach refused: {why:?}")),
        }
        self.run_actions(n, node);
    }

    /// A fresh copy needs no bits: it is copied in full, and once its source has set them all, it has them.
    pub(crate) fn is_covered_in_full(stores: &[Rc<Store>; 2]) -> bool {
        let fresh = |n: usize| {
            let (own, other) = (&stores[n].superblock, &stores[1 - n].superblock);
            let begun = own.inconsistent.is_some() && other.peers[0].base == Base::NoGeneration;
            own.log.current().is_none() && !begun
        };
        fresh(0) || fresh(1)
    }
}
