//! The life of a process: boot, inputs to its core, ticks, pauses, and its end by kill, power loss or leave.

use crate::disk::MetaFile;
use crate::ghost::{Force, WriteId};
use crate::host::{DiskOp, Input, SlotBuf, Stop};
use crate::inspect;
use crate::session::Session;
use crate::setup::retimed;
use crate::small::Watch;
use crate::world::{Ev, Phase, World, node_id};
use lockstep_bitmap::{Findings, Origin, Store};
use lockstep_core::{
    Command, CommandId, DiskError, DiskState, Event, Frame, Instant, Node, NodeConfig, OpId, PeerConfig,
    ReqId, Role, SlotId,
};
use std::collections::btree_map::Entry;
use std::rc::Rc;

/// Ticks that a core may ask for at one instant before it counts as not sleeping.
const TICKS_PER_INSTANT_MAX: u32 = 200;

impl World {
    /// Starts the process of a machine, which finds its disk or not.
    pub(crate) fn boot(&mut self, n: usize, disk: bool) {
        self.hosts[n].booting = false;
        if self.hosts[n].node.is_some() {
            return;
        }
        let (store, found) = match self.recovered(n) {
            Ok(recovered) => recovered,
            Err(why) => return self.fail("recover", format!("node {n}: {why}")),
        };
        if self.hosts[n].stopped == Stop::Power {
            self.hosts[n].boot_id = self.rng.clock.wide();
            self.hosts[n].clock_base = self.rng.clock.below(1 << 40);
        }
        self.hosts[n].run_id = self.rng.clock.wide();
        let is_retimed = self.setup.faults.retimed && self.phase == Phase::Stormy;
        let timing =
            if is_retimed { retimed(self.setup.timing, &mut self.rng.clock) } else { self.setup.timing };
        let s = &self.setup;
        let cfg = NodeConfig {
            node: node_id(n),
            peer: Some(PeerConfig { node: node_id(1 - n) }),
            run_id: self.hosts[n].run_id,
            boot_id: self.hosts[n].boot_id,
            seed: [(); 4].map(|()| self.rng.clock.word()),
            granule_bytes: s.granule_bytes[n],
            survives_process_death: s.survives[n],
            sample: 0,
            writes_max: s.writes_max,
            undurable_max: s.undurable_max,
            resync_window: s.resync_window,
            bits_frame_bytes: s.bits_frame_bytes,
            timing,
        };
        let store = disk.then(|| self.as_attached(n, store));
        self.hosts[n].diskless = !disk;
        let boot_id = self.hosts[n].boot_id.to_le_bytes();
        self.hosts[n].unclean_expected = store.as_ref().and_then(|store| {
            let sb = &store.superblock;
            let excused = !sb.may_be_written || self.setup.survives[n] && sb.boot_id == boot_id;
            sb.log.current().filter(|_| !excused).map(|generation| generation.id)
        });
        self.say(format_args!("n{n} BOOT process {} disk {disk} {found:?}", self.hosts[n].process));
        self.hosts[n].node = Some(Node::new(cfg, store));
        self.deliver(n, Input::Start);
    }

    /// What the durable bytes of a machine's metadata say.
    pub(crate) fn recovered(&self, n: usize) -> Result<(Store, Findings), String> {
        self.recovered_from(&self.hosts[n].meta)
    }

    /// The same, to look at.
    pub(crate) fn record(&self, n: usize) -> Result<Rc<Store>, String> {
        self.hosts[n].meta.recovered(self.setup.max_hot).map(|(store, _)| store)
    }

    /// What the durable bytes of some metadata say.
    pub(crate) fn recovered_from(&self, meta: &MetaFile) -> Result<(Store, Findings), String> {
        meta.recovered(self.setup.max_hot).map(|(store, found)| ((*store).clone(), found))
    }

    /// Gives an input to a core, now or when its process goes on.
    pub(crate) fn deliver(&mut self, n: usize, input: Input) {
        let host = &mut self.hosts[n];
        if host.node.is_none() {
            return;
        }
        if host.is_paused(self.now) {
            host.backlog.push_back(input);
        } else {
            self.feed(n, input);
        }
    }

    pub(crate) fn feed(&mut self, n: usize, input: Input) {
        let Some(mut node) = self.hosts[n].node.take() else { return };
        self.log_input(n, &input);
        let current = self.hosts[n].conn.map(|conn| self.conns[conn].ends[n].link);
        self.hosts[n].book.hear(&node, &input, current);
        self.hosts[n].book.hears_old_link =
            matches!(&input, Input::Frame { link, .. } if current.is_some_and(|current| current != *link));
        let now = self.local(n, self.now);
        let unix_ms =
            (self.now / 1_000_000 + 1_700_000_000_000).saturating_add_signed(self.hosts[n].wall_clock_ms);
        let host = &mut self.hosts[n];
        let (mut body, mut found) = (Vec::new(), Vec::new());
        let event = match input {
            Input::Start => Event::Start { unix_ms },
            Input::Tick => Event::Tick { unix_ms },
            Input::Request { req, kind, offset, len, fua } => {
                Event::Request { req: ReqId(req), kind, offset, len, fua }
            }
            Input::Payload { req, offset, tags } => {
                let slot = SlotId(host.alloc(SlotBuf::holding(offset, &tags)));
                host.written.insert(slot.0);
                Event::Payload { req: ReqId(req), offset, len: tags.len() as u32 * 512, slot }
            }
            Input::Abandoned { req } => Event::Abandoned { req: ReqId(req) },
            Input::Clients { open } => Event::Clients { open },
            Input::DiskDone { op, result, read } => {
                let slot = read.map(|(offset, tags)| SlotId(host.alloc(SlotBuf::holding(offset, &tags))));
                Event::DiskDone { op: OpId(op), result, slot }
            }
            Input::DiskInspected { op, read, digests } => {
                let op = OpId(op);
                let tags = read.as_ref().map_or(&[][..], |(_, tags)| tags);
                let zeroes = inspect::zeroes(tags);
                if digests {
                    found = inspect::digests(tags);
                }
                let result = if read.is_some() { Ok(()) } else { Err(DiskError::Io) };
                let slot = read.map(|(offset, tags)| SlotId(host.alloc(SlotBuf::holding(offset, &tags))));
                Event::DiskInspected { op, result, slot, zeroes, digests: &found }
            }
            Input::MetaDone { op, result } => Event::MetaDone { op: OpId(op), result },
            Input::LinkUp { link, peer } => Event::LinkUp { link, peer },
            Input::Frame { link, arrived } => {
                let slot = arrived
                    .frame
                    .payload()
                    .map(|(offset, _)| SlotId(host.alloc(SlotBuf::holding(offset, &arrived.tags))));
                host.received.extend(slot.map(|slot| slot.0));
                body = arrived.body;
                Event::Frame { link, frame: arrived.frame, body: &body, slot }
            }
            Input::Reading { link, is_reading } => Event::Reading { link, is_reading },
            Input::LinkDown { link, loss } => Event::LinkDown { link, loss },
            Input::Command { id, command } => Event::Command { id: CommandId(id), command },
        };
        node.handle(Instant(now), event);
        self.learn_points(n, &node);
        drop((body, found));
        self.run_actions(n, node);
    }

    /// Executes what the core asks for.
    pub(crate) fn run_actions(&mut self, n: usize, mut node: Node) {
        let (mut left, mut actions) = (false, 0);
        while let Some(action) = node.poll_action() {
            actions += 1;
            self.crash_point(n, Some(&action));
            if self.dying.is_none() {
                left |= self.execute(n, &mut node, action);
            }
            if self.dying.is_some() || self.violation.is_some() {
                break;
            }
        }
        self.crash_point(n, None);
        if self.dying.is_none() {
            self.check_bounds(n, &node, actions);
        }
        self.rearm(n, &node);
        self.hosts[n].node = Some(node);
        self.wake_reader(n);
        self.wake_writers(n);
        if let Some(how) = self.dying.take() {
            self.stop(n, how);
        } else if left {
            self.stop(n, Stop::Exit);
        }
    }

    fn log_input(&self, n: usize, input: &Input) {
        if !self.log {
            return;
        }
        match input {
            Input::Frame { arrived, .. } if arrived.frame == Frame::Heartbeat => {}
            Input::Frame { link, arrived } => {
                self.say(format_args!("n{n} < link {link} {:?}", arrived.frame))
            }
            Input::Payload { req, offset, tags } => {
                self.say(format_args!("n{n} < Payload req {req} at {offset} len {}", tags.len() * 512));
            }
            Input::DiskDone { op, result, .. } => self.say(format_args!("n{n} < DiskDone {op} {result:?}")),
            Input::DiskInspected { op, read, .. } => {
                self.say(format_args!("n{n} < DiskInspected {op} {}", read.is_some()));
            }
            other => self.say(format_args!("n{n} < {other:?}")),
        }
    }

    /// The machine's own clock.
    pub(crate) fn local(&self, n: usize, real: u64) -> u64 {
        let ppm = 1_000_000 - 500 + self.setup.clock_ppm[n];
        self.hosts[n].clock_base + (u128::from(real) * u128::from(ppm) / 1_000_000) as u64
    }

    fn rearm(&mut self, n: usize, node: &Node) {
        let Some(deadline) = node.next_deadline() else {
            self.hosts[n].tick_at_ns = u64::MAX;
            return;
        };
        let ppm = 1_000_000 - 500 + self.setup.clock_ppm[n];
        let wanted = deadline.at.0.saturating_sub(self.hosts[n].clock_base);
        let real = (u128::from(wanted) * 1_000_000).div_ceil(u128::from(ppm)) as u64;
        let at = real.max(self.now);
        if at == self.now && self.hosts[n].ticks_here > TICKS_PER_INSTANT_MAX {
            return self.fail("C12 storm", format!("node {n} asks for ticks without end: {}", deadline.why));
        }
        if self.hosts[n].tick_at_ns != at {
            self.hosts[n].tick_at_ns = at;
            let process = self.hosts[n].process;
            self.after(at - self.now, Ev::Tick(n, process));
        }
    }

    /// A scheduled tick; ignored if the deadline has moved since.
    pub(crate) fn tick(&mut self, n: usize, process: u32) {
        let host = &mut self.hosts[n];
        if host.process != process || host.tick_at_ns != self.now {
            return;
        }
        host.tick_at_ns = u64::MAX;
        host.ticks_here += 1;
        self.deliver(n, Input::Tick);
    }

    /// A paused process goes on: everything that happened meanwhile arrives at once.
    pub(crate) fn resume(&mut self, n: usize, process: u32) {
        if self.hosts[n].process != process || self.hosts[n].is_paused(self.now) {
            return;
        }
        self.say(format_args!("n{n} RESUME"));
        while self.hosts[n].process == process && self.violation.is_none() {
            let Some(input) = self.hosts[n].backlog.pop_front() else { break };
            self.feed(n, input);
        }
        self.deliver(n, Input::Tick);
        self.serve_all(n);
    }

    /// The process of a machine ends; its requests are never answered.
    pub(crate) fn stop(&mut self, n: usize, how: Stop) {
        if self.hosts[n].node.is_none() {
            return;
        }
        self.say(format_args!("n{n} STOP {how:?}"));
        let writes = |op: &DiskOp| matches!(op, DiskOp::Write { .. });
        // What a disk that hung never completed cannot be waited for.
        let waited = !self.hosts[n].has_hung;
        if how == Stop::Exit && waited && self.hosts[n].ops.values().any(writes) {
            let running = format!("{:?}", self.hosts[n].ops);
            self.fail("C11 leave", format!("node {n} left with writes in flight: {running}"));
        }
        let seq = self.next_seq();
        let requests = std::mem::take(&mut self.hosts[n].requests);
        let in_sockets: Vec<WriteId> = self.hosts[n].sessions.values().flat_map(Session::unheard).collect();
        for write in requests.values().filter_map(|r| r.write).chain(in_sockets) {
            self.lines.all[self.lines.of[n]].give_up(write, seq);
        }
        self.clients.iter_mut().filter(|c| c.host() == Some(n)).for_each(|c| c.detach());
        self.cut(n, how == Stop::Power);
        if how == Stop::Power {
            self.leave_latent_errors(n);
        }
        self.lose_operations(n, how);
        self.learn_landed_rotation(n);
        let how = self.ends_as(n, how);
        let host = &mut self.hosts[n];
        host.forget();
        host.stopped = how;
        host.stopped_at_ns = self.now;
        if how == Stop::Power {
            self.lose_power(n);
        } else if how == Stop::Kill && !self.setup.survives[n] {
            self.failures.unclean[n] = seq;
        }
    }

    /// What was in flight on the disks of a machine may have landed.
    fn lose_operations(&mut self, n: usize, how: Stop) {
        let host = &mut self.hosts[n];
        match self.watch.as_mut().and_then(Watch::listing) {
            Some(listed) => {
                host.meta.crash_listed(&mut |outcomes| listed.choose(outcomes));
                host.disk.crash_listed(how == Stop::Power, &mut |outcomes| listed.choose(outcomes));
            }
            None => {
                let rng = &mut self.rng.disk[n];
                host.meta.crash(rng);
                host.disk.process_crash(rng);
            }
        }
    }

    /// A rotation that was in flight may have landed: its node alone holds the new generation from here.
    fn learn_landed_rotation(&mut self, n: usize) {
        let Ok(store) = self.record(n) else { return };
        let Some(current) = store.superblock.log.current() else { return };
        let without_flag = matches!(current.origin, Origin::PeerLost | Origin::Promoted);
        let of_parent = current.parent.and_then(|id| self.lines.of_generation.get(&id).copied());
        let Some(line) = of_parent.filter(|_| without_flag) else { return };
        if let Entry::Vacant(entry) = self.lines.of_generation.entry(current.id) {
            entry.insert(line);
            let seq = self.next_seq();
            self.lines.all[line].rotated(n, seq);
        }
    }

    /// A machine's volatile state is gone, whether its process ran or not.
    pub(crate) fn lose_power(&mut self, n: usize) {
        let seq = self.next_seq();
        self.hosts[n].disk.power_loss(&mut self.rng.disk[n]);
        if self.hosts[n].stopped != Stop::Exit || self.hosts[n].diskless {
            // Whoever left in order had nothing volatile to lose, unless its disk had failed before.
            self.failures.power[n] = seq;
            self.failures.unclean[n] = seq;
        }
        let primary_is_target =
            self.look(1 - n).is_some_and(|s| s.role == Role::Primary && s.disk != DiskState::UpToDate);
        if primary_is_target {
            let line = self.lines.of[1 - n];
            let lost = self.lines.all[line].reckon(n, Force::None, self.failures, seq);
            self.say(format_args!("n{n} loss under a Primary that is a target: {lost}"));
        }
        (self.hosts[n].failed, self.hosts[n].lost_flush) = (None, false);
        let left = self.hosts[n].stopped == Stop::Exit;
        self.hosts[n].stopped = Stop::Power;
        self.say(format_args!("n{n} POWER LOSS{}", if left { " after it left" } else { "" }));
        self.check_cover();
    }

    /// The operator types a command.
    pub(crate) fn command(&mut self, n: usize, command: Command) {
        if self.hosts[n].node.is_none() || !self.may_type(n, command) {
            return;
        }
        if let Command::Promote { peer_is_down: true, accept_data_loss } = command {
            self.learn_forced(n, accept_data_loss);
        }
        self.operator.commands += 1;
        let id = self.operator.commands;
        let pending = crate::host::Pending { command };
        self.hosts[n].commands.insert(id, pending);
        self.deliver(n, Input::Command { id, command });
    }

    /// A disk operation completes: first its effect, then the core hears of it.
    pub(crate) fn disk_done(&mut self, n: usize, process: u32, op: u32) {
        if self.hosts[n].process != process {
            return;
        }
        if self.hosts[n].hung {
            return;
        }
        let Some(what) = self.hosts[n].ops.remove(&op) else { return };
        self.free_kept(n);
        self.disk_changed();
        let result = self.fate(n, op, &what);
        if result.is_err() {
            if let DiskOp::Read { req: Some(req), first, count, .. } = what {
                self.hosts[n].book.read_failed(req, (first, count));
            }
            return self.deliver(n, Input::DiskDone { op, result, read: None });
        }
        let host = &mut self.hosts[n];
        let rng = &mut self.rng.disk[n];
        let mut read = None;
        match what {
            DiskOp::Write { .. } => {
                let (first, count) = host.disk.complete(op);
                host.unreadable.retain(|sector| !(first..first + count).contains(sector));
            }
            DiskOp::Inspect { first, count, early, digests } => {
                let bad = host.unreadable.range(first..first + count).next().is_some();
                let tags = early.unwrap_or_else(|| host.disk.read(first, count, rng));
                let read = (!bad).then_some((first as u64 * 512, tags));
                return self.deliver(n, Input::DiskInspected { op, read, digests });
            }
            DiskOp::Late => {}
            DiskOp::Flush { covered } => {
                host.disk.complete_flush(covered);
                host.book.flushed(op);
            }
            DiskOp::Fill { slot, parts } => {
                for (first, count) in parts {
                    let tags = host.disk.read(first, count, rng);
                    if let Some(buf) = host.slots.get_mut(&slot) {
                        buf.tags[first - buf.first..][..count].copy_from_slice(&tags);
                    }
                }
            }
            DiskOp::Read { req, first, count, early } => {
                let tags = early.unwrap_or_else(|| host.disk.read(first, count, rng));
                let failed = host.node.as_ref().is_some_and(|node| node.status().disk <= DiskState::Failed);
                match req {
                    Some(req) if failed => {
                        host.book.ended_late(req, first);
                        self.found(n, req, first, &tags);
                    }
                    Some(req) => self.found(n, req, first, &tags),
                    None => read = Some((first as u64 * 512, tags)),
                }
            }
        }
        self.deliver(n, Input::DiskDone { op, result, read });
    }

    /// A metadata write completes.
    pub(crate) fn meta_done(&mut self, n: usize, process: u32, op: u32) {
        let hung = self.hosts[n].hung && self.setup.one_device[n];
        if self.hosts[n].process == process && !hung && self.hosts[n].meta_ops.remove(&op).is_some() {
            let result = self.meta_fate(n, op);
            self.disk_changed();
            self.deliver(n, Input::MetaDone { op, result });
        }
    }
}
