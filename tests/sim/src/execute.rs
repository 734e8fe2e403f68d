//! The shell's side of the border: executes the core's actions, and checks that each keeps the border's
//! rules.

use crate::coverage::{variant, verdict};
use crate::decision::When;
use crate::disk::ZERO;
use crate::ghost::Force;
use crate::host::DiskOp;
use crate::net;
use crate::world::{Ev, World, node_id};
use lockstep_bitmap::{CopyRank, Generation, GenerationId, Origin, SUPERBLOCK_BYTES};
use lockstep_core::{
    Action, Command, DiskState, Done, ExportState, Frame, Node, Notice, Refusal, ReplicationState, SlotId,
};

impl World {
    /// Executes one action. True if the node has left.
    pub(crate) fn execute(&mut self, n: usize, node: &mut Node, action: Action) -> bool {
        self.log_action(n, &action);
        self.fold(action_code(&action) ^ (n as u64) << 32);
        if let Some(aim) = self.aimed.take_if(|aim| aim.n == n && aim.code == action_code(&action)) {
            match aim.when {
                When::Before => {
                    self.dying = Some(aim.how);
                    return false;
                }
                When::AtOnce => self.dying = Some(aim.how),
                When::After(ns) => self.after(ns, Ev::Stop(n, self.hosts[n].process, aim.how)),
            }
        }
        self.check_action(n, node, &action);
        match action {
            Action::DiskRead { op, req, offset, len } => {
                self.disk_read(n, op.0, req.map(|r| r.0), offset, len)
            }
            Action::DiskInspect { op, offset, len, digests } => {
                self.disk_inspect(n, op.0, (offset, len), digests)
            }
            Action::DiskFill { op, slot, offset, len, granule_bytes } => {
                self.disk_fill(n, op.0, slot.0, (offset, len), u64::from(granule_bytes));
            }
            Action::DiskWrite { op, offset, len, slot, fua } => {
                self.disk_write(n, op.0, (offset, len), Some(slot.0), fua);
            }
            Action::DiskZero { op, offset, len, fua, .. } => {
                self.disk_write(n, op.0, (offset, len), None, fua)
            }
            Action::DiskFlush { op } => {
                let covered = self.hosts[n].disk.submit_flush();
                let delay = self.rng.disk[n].spread(self.setup.flush_ns);
                self.start_op(n, op.0, DiskOp::Flush { covered }, delay);
            }
            Action::MetaWrite { op, page } => {
                let mut bytes = Vec::new();
                let at = node.render_meta(page, &mut bytes);
                self.meta_write(n, op.0, at.iter().collect(), bytes);
            }
            Action::RecordFailure { op, record } => self.record_failure(n, op.0, record),
            Action::CloseDisk { op } => self.close_disk(n, op.0),
            Action::Dial => self.dial(n),
            Action::Send { link, frame, slot } => {
                if let Frame::Verdict { code, .. } = frame {
                    self.seen.insert(verdict(code));
                }
                let mut body = Vec::new();
                if frame.has_control_body() {
                    node.render_body(&frame, &mut body);
                }
                if let Some(tags) = self.frame_tags(n, &frame, slot) {
                    let bytes = net::encode(&frame, &body, &tags);
                    self.send(n, link, bytes, frame.overtakes());
                }
            }
            Action::CloseLink { link, .. } => self.close(n, link),
            Action::Supply { req, offset, len, slot } => self.supply(n, req.0, (offset, len), slot.0),
            Action::Reply { req, result, .. } => {
                let status = node.status();
                let held = match status.disk {
                    DiskState::UpToDate if status.protected => 3,
                    DiskState::UpToDate => 1 << n,
                    // The Primary is a target: the promise rests on the other copy.
                    _ => 1 << (1 - n),
                };
                self.check_reply(n, &status, (req.0, result), held);
                self.replied(n, req.0, result, held);
            }
            Action::ReleaseSlot { slot } => self.release(n, slot.0),
            Action::Export { state } => self.export(n, node, state),
            Action::CommandDone { id, result } => return self.command_done(n, id.0, result),
            Action::Notice(notice) => self.noticed(n, node, notice),
        }
        false
    }

    fn log_action(&self, n: usize, action: &Action) {
        if self.log && !matches!(action, Action::Send { frame: Frame::Heartbeat, .. }) {
            match action {
                Action::Notice(notice) => self.say(format_args!("n{n} * {notice:?}")),
                Action::Send { link, frame, .. } => self.say(format_args!("n{n} > link {link} {frame:?}")),
                other => self.say(format_args!("n{n} > {other:?}")),
            }
        }
    }

    fn start_op(&mut self, n: usize, op: u32, what: DiskOp, delay: u64) {
        let host = &mut self.hosts[n];
        if host.ops.contains_key(&op) || host.meta_ops.contains_key(&op) {
            return self.fail("ops", format!("node {n}: operation {op} is in flight already"));
        }
        host.ops.insert(op, what);
        let process = host.process;
        self.after(delay, Ev::DiskDone(n, process, op));
    }

    pub(crate) fn disk_delay(&mut self, n: usize) -> u64 {
        let mean = self.setup.disk_ns[n];
        self.rng.disk[n].spread(mean)
    }

    fn disk_read(&mut self, n: usize, op: u32, req: Option<u32>, offset: u64, len: u32) {
        let Some((first, count)) = self.sectors(n, "read", (offset, len), 512) else { return };
        let rng = &mut self.rng.disk[n];
        let early = rng.coin().then(|| self.hosts[n].disk.read(first, count, rng));
        let delay = self.disk_delay(n);
        self.start_op(n, op, DiskOp::Read { req, first, count, early }, delay);
    }

    fn disk_inspect(&mut self, n: usize, op: u32, range: (u64, u32), digests: bool) {
        if !range.0.is_multiple_of(lockstep_core::UNIT_BYTES) {
            return self.fail("border", format!("node {n}: inspection at {} is misaligned", range.0));
        }
        let Some((first, count)) = self.sectors(n, "inspection", range, 512) else { return };
        let rng = &mut self.rng.disk[n];
        let early = rng.coin().then(|| self.hosts[n].disk.read(first, count, rng));
        let delay = self.disk_delay(n);
        self.start_op(n, op, DiskOp::Inspect { first, count, early, digests }, delay);
    }

    fn disk_fill(&mut self, n: usize, op: u32, slot: u32, range: (u64, u32), granule: u64) {
        let (start, end) = (range.0, range.0 + u64::from(range.1));
        let (outer, outer_end) = (start / granule * granule, end.next_multiple_of(granule));
        let sector = |at: u64| (at / 512) as usize;
        let parts = [(sector(outer), sector(start - outer)), (sector(end), sector(outer_end - end))];
        if sector(outer_end) > self.setup.sectors || !self.hosts[n].slots.contains_key(&slot) {
            return self
                .fail("border", format!("node {n}: fill of slot {slot} around {range:?} is not possible"));
        }
        let delay = self.disk_delay(n);
        self.start_op(n, op, DiskOp::Fill { slot, parts }, delay);
    }

    fn disk_write(&mut self, n: usize, op: u32, range: (u64, u32), slot: Option<u32>, fua: bool) {
        let granule = u64::from(self.setup.granule_bytes[n]);
        let Some((first, count)) = self.sectors(n, "write", range, granule) else { return };
        let tags = match slot {
            None => vec![ZERO; count],
            Some(slot) => match self.hosts[n].slots.get(&slot).and_then(|buf| buf.range(first, count)) {
                Some(tags) => tags.to_vec(),
                None => {
                    return self
                        .fail("border", format!("node {n}: write {op} from a slot that has no such range"));
                }
            },
        };
        self.fold(first as u64 ^ tags[0]);
        if let Err(why) = self.hosts[n].disk.submit(op, first, tags, fua) {
            return self.fail("O20 overlap", format!("node {n}: {why}"));
        }
        let delay = self.disk_delay(n) + if fua { self.setup.flush_ns / 2 } else { 0 };
        self.start_op(n, op, DiskOp::Write { slot, fua }, delay);
    }

    /// Checks a range of the border and converts it.
    fn sectors(
        &mut self,
        n: usize,
        what: &str,
        (offset, len): (u64, u32),
        granule: u64,
    ) -> Option<(usize, usize)> {
        let end = offset + u64::from(len);
        let volume = self.setup.sectors as u64 * 512;
        let piece = lockstep_core::PIECE_BYTES_MAX;
        let aligned = offset % granule == 0 && (end % granule == 0 || end == volume);
        if !aligned || len == 0 || end > volume || offset / piece != (end - 1) / piece {
            self.fail(
                "border",
                format!("node {n}: {what} of {len} bytes at {offset} is misaligned or outside"),
            );
            return None;
        }
        Some(((offset / 512) as usize, len as usize / 512))
    }

    fn meta_write(&mut self, n: usize, op: u32, offsets: Vec<u64>, bytes: Vec<u8>) {
        if self.hosts[n].ops.contains_key(&op) || self.hosts[n].meta_ops.insert(op, ()).is_some() {
            return self.fail("ops", format!("node {n}: operation {op} is in flight already"));
        }
        let is_superblock = bytes.len() == SUPERBLOCK_BYTES;
        if let Err(why) = self.hosts[n].meta.submit(op, offsets, bytes) {
            return self.fail("meta", format!("node {n}: {why}"));
        }
        self.draw_haste(n, is_superblock);
        let delay = self.rng.disk[n].spread(self.setup.meta_ns);
        self.after(delay, Ev::MetaDone(n, self.hosts[n].process, op));
    }

    /// The tags of a data frame; empty for others; `None` after a violation.
    fn frame_tags(&mut self, n: usize, frame: &Frame, slot: Option<SlotId>) -> Option<Vec<u64>> {
        let Some((offset, len)) = frame.payload() else { return Some(Vec::new()) };
        let (first, count) = self.sectors(n, "data frame", (offset, len), 512)?;
        let buf = slot.and_then(|slot| self.hosts[n].slots.get(&slot.0));
        let tags = buf.and_then(|buf| buf.range(first, count)).map(<[u64]>::to_vec);
        if tags.is_none() {
            self.fail("border", format!("node {n}: {frame:?} from a slot that has no such range"));
        }
        tags
    }

    fn supply(&mut self, n: usize, req: u32, (offset, len): (u64, u32), slot: u32) {
        let Some((first, count)) = self.sectors(n, "supply", (offset, len), 512) else { return };
        let buf = self.hosts[n].slots.get(&slot).and_then(|buf| buf.range(first, count));
        let Some(tags) = buf.map(<[u64]>::to_vec) else {
            return self.fail("border", format!("node {n}: supply from a slot that has no such range"));
        };
        self.found(n, req, first, &tags);
        self.release(n, slot);
    }

    fn release(&mut self, n: usize, slot: u32) {
        let in_use = |op: &DiskOp| match op {
            DiskOp::Write { slot: Some(s), .. } | DiskOp::Fill { slot: s, .. } => *s == slot,
            _ => false,
        };
        if self.hosts[n].has_hung && self.hosts[n].ops.values().any(in_use) {
            if !self.hosts[n].kept.insert(slot) {
                self.fail("slots", format!("node {n}: slot {slot} released twice"));
            }
            return;
        }
        if self.hosts[n].ops.values().any(in_use) {
            return self.fail("slots", format!("node {n}: slot {slot} released while the disk uses it"));
        }
        if !self.hosts[n].free(slot) {
            self.fail("slots", format!("node {n}: slot {slot} released that is not in use"));
        }
    }

    fn export(&mut self, n: usize, node: &Node, state: ExportState) {
        let was = std::mem::replace(&mut self.hosts[n].export, state);
        if state == ExportState::Open {
            self.opened(n, node);
        }
        self.export_changed(n, was == ExportState::Open && state != ExportState::Open);
    }

    /// Clients of this node may read from now on: choose the line of history, and what it may have lost.
    fn opened(&mut self, n: usize, node: &Node) {
        let own = self.learn_generation(n, node);
        // A target serves what its source holds.
        let becoming = self.record(n).ok().and_then(|store| store.superblock.inconsistent);
        let of_source = becoming.and_then(|b| self.line_of_source(1 - n, b.generation));
        // So does a node without disk.
        let without = node.status().disk <= DiskState::Failed;
        let server = self.record(1 - n).ok().and_then(|store| store.superblock.log.current().cloned());
        let of_server = server.filter(|_| without).and_then(|g| self.lines.of_generation.get(&g.id).copied());
        if let Some(line) = of_server.or(of_source).or(own) {
            self.lines.of[n] = line;
        }
        let (line, seq) = (self.lines.of[n], self.next_seq());
        let lost = self.lines.all[line].promoted(n, Force::None, self.failures, seq);
        self.say(format_args!("n{n} OPEN line {line}, loss allowed: {lost}"));
        self.check_opened(n, node);
    }

    /// The line of a node's generation. One that a promotion by a flag began gets a line of its own, without
    /// what the flag gave up; any other continues its parent's.
    fn learn_generation(&mut self, n: usize, node: &Node) -> Option<usize> {
        node.status().generation.map(|generation| self.learn(n, &generation))
    }

    /// The line of a generation that a source has. A promotion that failed may have begun it, so that nobody was told.
    fn line_of_source(&mut self, source: usize, id: GenerationId) -> Option<usize> {
        if let Some(&line) = self.lines.of_generation.get(&id) {
            return Some(line);
        }
        let (store, _) = self.recovered(source).ok()?;
        let generation = store.superblock.log.current().filter(|generation| generation.id == id)?;
        Some(self.learn(source, generation))
    }

    fn learn(&mut self, n: usize, generation: &Generation) -> usize {
        if let Some(&line) = self.lines.of_generation.get(&generation.id) {
            return line;
        }
        let parent = generation.parent.and_then(|p| self.lines.of_generation.get(&p).copied());
        let mut line = parent.unwrap_or(self.lines.of[n]);
        let force = match generation.origin {
            Origin::PeerIsDown => Force::PeerIsDown,
            Origin::DataLoss { .. } => Force::DataLoss,
            Origin::Created | Origin::Agreed | Origin::PeerLost | Origin::Promoted => Force::None,
        };
        if force != Force::None {
            let seq = self.next_seq();
            let mut fork = self.lines.all[line].clone();
            // Whose copy it is made of: the other one may be the first to tell, after the promotion itself has failed.
            let by = (0..2).find(|&by| node_id(by) == generation.node).unwrap_or(n);
            let lost = fork.promoted(by, force, self.failures, seq);
            if let Origin::DataLoss { from: CopyRank::Inconsistent } = generation.origin {
                // A mixture of any two lines: whatever was written anywhere may be there.
                self.lines.all.iter().for_each(|line| fork.mix(line));
            }
            self.lines.all.push(fork);
            line = self.lines.all.len() - 1;
            self.say(format_args!("n{n} FORK line {line} by {force:?}, loss allowed: {lost}"));
        }
        self.lines.of_generation.insert(generation.id, line);
        let seq = self.next_seq();
        self.lines.all[line].rotated(n, seq);
        line
    }

    fn command_done(&mut self, n: usize, id: u32, result: Result<Done, Refusal>) -> bool {
        let Some(pending) = self.hosts[n].commands.remove(&id) else {
            self.fail("commands", format!("node {n}: command {id} answered that was not asked: {result:?}"));
            return false;
        };
        if matches!(pending.command, Command::Promote { .. }) {
            self.answered_alone(n, result);
        }
        if let Err(refusal) = &result {
            self.seen.insert(format!("refusal {}", variant(refusal)));
        }
        let host = &mut self.hosts[n];
        match (pending.command, result) {
            (Command::Promote { .. }, Err(refusal)) => {
                let before = host.refused.map_or(0, |(_, times)| times);
                host.refused = Some((refusal, before + 1));
            }
            (Command::Promote { .. }, Ok(_)) => host.refused = None,
            (Command::Resolve { discard }, Ok(_)) => {
                self.operator.named = (0..2).find(|&loser| node_id(loser) == discard);
            }
            (Command::Leave, Ok(_)) => return true,
            _ => {}
        }
        false
    }

    fn noticed(&mut self, n: usize, node: &Node, notice: Notice) {
        match notice {
            Notice::SplitBrain if !self.split_allowed => {
                self.fail("C6", format!("node {n} reports split brain that nobody caused"));
            }
            Notice::Invalidated => self.spoil(n),
            // Both have recorded the verdict.
            Notice::Replication { new: ReplicationState::Exchanging, .. } => self.hosts[n].restored = false,
            Notice::Disk { new: DiskState::UpToDate, .. } => self.hosts[n].declared_wrong = false,
            Notice::LinkLost { .. } => self.hosts[n].book.parted(),
            // Its record says so, and no more: where the other copy fails too, what was not flushed may be gone.
            Notice::Disk { new: DiskState::Failed, .. } => self.failures.unclean[n] = self.next_seq(),
            Notice::UnrelatedData => self.fail("C6", format!("node {n} reports unrelated data")),
            Notice::Generation { .. } => {
                // A restored copy that rotates before the other one can tell it what it is has parted from it.
                self.split_allowed |= self.hosts[n].restored;
                let line = self.learn_generation(n, node);
                if let (Some(line), ExportState::Open) = (line, self.hosts[n].export) {
                    self.lines.of[n] = line;
                }
            }
            _ => {}
        }
    }

    /// The copy of this node was declared wrong, and it is: only a full resync brings it back.
    fn spoil(&mut self, n: usize) {
        let record = match self.record(n) {
            Ok(store) => store,
            Err(why) => return self.fail("recover", why),
        };
        let dirty = record.slots[0].bits.count();
        if record.superblock.inconsistent.is_none() || dirty < record.geometry().blocks() {
            return self.fail("C3 invalidate", format!("node {n}: told before it is durable, {dirty} dirty"));
        }
        let tag = |sector| (1 << 63) | ((n as u64 + 1) << 40) | (1 << 39) | sector as u64;
        self.say(format_args!("n{n} SPOILT"));
        self.hosts[n].disk.scribble(tag, &mut self.rng.disk[n]);
        self.hosts[n].declared_wrong = true;
        // What it held unflushed is no help to the other one any more.
        self.failures.unclean[n] = self.next_seq();
    }
}

/// A number for each kind of action that faults can aim at.
pub(crate) fn action_code(action: &Action) -> u64 {
    match action {
        Action::DiskRead { .. } => 1,
        Action::DiskFill { .. } => 2,
        Action::DiskWrite { .. } => 3,
        Action::DiskZero { .. } => 4,
        Action::DiskFlush { .. } => 5,
        Action::MetaWrite { .. } | Action::RecordFailure { .. } => 6,
        Action::CloseDisk { .. } => 16,
        Action::Dial => 7,
        Action::CloseLink { .. } => 8,
        Action::Supply { .. } => 9,
        Action::Reply { .. } => 10,
        Action::ReleaseSlot { .. } => 11,
        Action::Export { .. } => 12,
        Action::CommandDone { .. } => 13,
        Action::Notice(Notice::LinkLost { .. }) => 15,
        Action::Notice(_) => 14,
        Action::DiskInspect { .. } => 16,
        Action::Send { frame, .. } => 20 + frame_code(frame),
    }
}

fn frame_code(frame: &Frame) -> u64 {
    u64::from(frame.encode(0, 0, |_| 0)[0])
}
