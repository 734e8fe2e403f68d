//! Clients' requests: cut into pieces, admitted, locked, answered once when every piece is done.
//!
//! A piece goes through the stages of [`super::task::Stage`] and never holds a lock while it waits for admission. A
//! request that arrives while the export is not open is answered with `Shutdown`; one that finds no UpToDate copy
//! within reach waits, and fails after `io_timeout`.

use super::Node;
use super::handshake::Phase;
use super::task::{OpKind, Stage, Task, Work, Zero};
use crate::action::{Action, ExportState, Notice};
use crate::config::PIECE_BYTES_MAX;
use crate::event::RequestKind;
use crate::frame::Frame;
use crate::ids::{LinkId, OpId, Position, ReqId, SlotId};
use crate::overlap::Mode;
use crate::refusal::IoError;
use crate::status::{DiskState, Role};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use lockstep_bitmap::canary::{Bug, is_planted};
use lockstep_bitmap::marks::{Mark, mark};
use lockstep_bitmap::{ByteRange, Store};

#[derive(Clone, Copy, Debug)]
struct Request {
    kind: RequestKind,
    fua: bool,
    /// Bytes not yet cut into pieces by us (trim, zero).
    uncut: ByteRange,
    /// Payload bytes still to arrive.
    expected: u64,
    outstanding: u32,
    failed: Option<IoError>,
    /// Begin of the piece that failed, the first one of several.
    failed_at: Option<u64>,
}

#[derive(Debug, Default)]
pub(super) struct Requests {
    table: Vec<Option<Request>>,
    pub(super) open: u32,
    /// Pieces that are not admitted yet.
    pub(super) gate: VecDeque<u32>,
    /// Requests with bytes left to cut.
    cutting: VecDeque<ReqId>,
    /// Pieces of trims and zeroes in flight: no slot of the shell bounds them.
    cut: usize,
    /// Flush requests and the position up to which all must be durable.
    pub(super) flushes: Vec<(ReqId, Position)>,
}

impl Requests {
    /// Memory of one request: its entry, and its place in a queue.
    pub(super) const BYTES_EACH: usize = size_of::<Option<Request>>() + size_of::<(ReqId, Position)>();

    /// With room for so many in each list, before it takes more memory.
    pub(super) fn with_capacity(entries: usize) -> Self {
        Requests {
            table: Vec::with_capacity(entries),
            gate: VecDeque::with_capacity(entries),
            cutting: VecDeque::with_capacity(entries),
            flushes: Vec::with_capacity(entries),
            ..Requests::default()
        }
    }

    fn get_mut(&mut self, req: ReqId) -> Option<&mut Request> {
        self.table.get_mut(req.0 as usize)?.as_mut()
    }
}

/// Pieces of one trim or zero request that may be in flight: others must get their turn.
const CUT_AHEAD: u32 = 8;
/// Trims and zeroes are cut to whole units of this many bytes; the shell sends the edges of a zero as payload.
const CUT_ALIGN: u64 = 4096;

impl Node {
    pub(super) fn on_request(&mut self, req: ReqId, kind: RequestKind, offset: u64, len: u64, fua: bool) {
        if self.export != ExportState::Open {
            return self.act(Action::Reply { req, result: Err(IoError::Shutdown), at: None });
        }
        let range = ByteRange::new(offset, len);
        let mut request = Request {
            kind,
            fua,
            uncut: ByteRange::new(offset, 0),
            expected: 0,
            outstanding: 0,
            failed: None,
            failed_at: None,
        };
        match kind {
            RequestKind::Write => request.expected = len,
            RequestKind::Trim => request.uncut = aligned_inside(range),
            RequestKind::Zero { .. } => {
                request.uncut = aligned_inside(range);
                request.expected = len - request.uncut.len();
            }
            RequestKind::Read | RequestKind::Flush => {}
        }
        let index = req.0 as usize;
        if self.requests.table.len() <= index {
            self.requests.table.resize(index + 1, None);
        }
        if let Some(entry) = self.requests.table.get_mut(index) {
            debug_assert!(entry.is_none(), "the shell used a request number twice");
            *entry = Some(request);
        }
        self.requests.open += 1;
        match kind {
            RequestKind::Read => self.cut_read(req, range),
            RequestKind::Flush => self.requests.flushes.push((req, self.stream.replied)),
            RequestKind::Trim | RequestKind::Zero { .. } => self.requests.cutting.push_back(req),
            RequestKind::Write => self.finish_if_done(req),
        }
    }

    fn cut_read(&mut self, req: ReqId, range: ByteRange) {
        let mut at = range.start;
        while at < range.end {
            let end = piece_end(at).min(range.end);
            let piece = ByteRange { start: at, end };
            self.add_piece(req, Task::new(Work::Read { req }, piece, None, None));
            at = end;
        }
        self.finish_if_done(req);
    }

    pub(super) fn on_payload(&mut self, req: ReqId, offset: u64, len: u32, slot: SlotId) {
        let Some(request) = self.requests.get_mut(req) else {
            // Answered with Shutdown before its bytes arrived.
            return self.act(Action::ReleaseSlot { slot });
        };
        request.expected = request.expected.saturating_sub(u64::from(len));
        let work = Work::Write { req, zero: None, fua: request.fua };
        let range = ByteRange::new(offset, u64::from(len));
        self.add_piece(req, Task::new(work, range, Some(slot), None));
    }

    pub(super) fn on_abandoned(&mut self, req: ReqId) {
        if let Some(request) = self.requests.get_mut(req) {
            // Its client may be there all the same and read the answer: where the export closes, the shell stops
            // reading in the middle of a payload. Part of a write is no write.
            if !is_planted(Bug::HalfAWriteIsDone) {
                request.failed = request.failed.or(Some(IoError::Shutdown));
            }
            request.expected = 0;
            request.uncut.end = request.uncut.start;
            self.finish_if_done(req);
        }
    }

    fn add_piece(&mut self, req: ReqId, task: Task) {
        if let Some(request) = self.requests.get_mut(req) {
            request.outstanding += 1;
        }
        let id = self.tasks.insert(task);
        self.enter(id);
    }

    /// Moves requests on: admission, cutting, flushes.
    pub(super) fn pump_requests(&mut self) -> bool {
        let mut moved = self.update_suspension();
        for _ in 0..self.requests.gate.len() {
            if let Some(id) = self.requests.gate.pop_front() {
                moved |= self.enter(id);
            }
        }
        moved |= self.pump_cutting();
        let rotated = !self.rotating || is_planted(Bug::FlushDuringRotation);
        if rotated && self.suspended_since.is_none() {
            let here = self.undurable.local_durable();
            let retired = if is_planted(Bug::FlushHereOnly) { here } else { self.undurable.retired() };
            let failed = self.io_is_lost();
            // A copy whose fdatasync failed promises nothing any more.
            moved |= self.end_flushes(failed.then_some(IoError::Io), |upto| upto <= retired || failed);
        }
        moved
    }

    /// Answers the flushes whose position is wanted; whether there were any.
    fn end_flushes(&mut self, failed: Option<IoError>, wanted: impl Fn(Position) -> bool) -> bool {
        // The list is put back with the room that it has: no flush takes memory.
        let mut flushes = core::mem::take(&mut self.requests.flushes);
        let before = flushes.len();
        flushes.retain(|(req, upto)| {
            let ends = wanted(*upto);
            if ends {
                self.end_request(*req, failed);
            }
            !ends
        });
        let ended = flushes.len() < before;
        debug_assert!(self.requests.flushes.is_empty(), "a flush came while others were answered");
        self.requests.flushes = flushes;
        ended
    }

    fn pump_cutting(&mut self) -> bool {
        let mut moved = false;
        for _ in 0..self.requests.cutting.len() {
            if self.requests.cut >= self.cfg.writes_max {
                // Who was cut last stands at the end: all get their turn.
                break;
            }
            let Some(req) = self.requests.cutting.pop_front() else { break };
            while let Some((piece, work)) = self.next_cut(req) {
                moved = true;
                self.add_piece(req, Task::new(work, piece, None, None));
            }
            match self.requests.get_mut(req) {
                Some(request) if request.uncut.is_empty() => self.finish_if_done(req),
                Some(_) => self.requests.cutting.push_back(req),
                None => {}
            }
        }
        moved
    }

    fn next_cut(&mut self, req: ReqId) -> Option<(ByteRange, Work)> {
        let full = self.requests.cut >= self.cfg.writes_max;
        let request = self.requests.get_mut(req)?;
        if request.uncut.is_empty() || request.outstanding >= CUT_AHEAD || full {
            return None;
        }
        let end = piece_end(request.uncut.start).min(request.uncut.end);
        let piece = ByteRange { start: request.uncut.start, end };
        request.uncut.start = end;
        let punch = !matches!(request.kind, RequestKind::Zero { no_hole: true });
        let work = Work::Write { req, zero: Some(Zero { punch }), fua: request.fua };
        self.requests.cut += 1;
        Some((piece, work))
    }

    /// Admits a client's piece and asks for its lock. False: it waits at the gate (again).
    fn enter(&mut self, id: u32) -> bool {
        let Some(task) = self.tasks.get(id).copied() else { return true };
        if self.io_is_lost() {
            self.drop_client_task(id, IoError::Io);
            return true;
        }
        if !self.admits(&task) {
            if self.waits_in_vain(&task) {
                self.drop_client_task(id, IoError::Io);
                return true;
            }
            self.requests.gate.push_back(id);
            return false;
        }
        let mode = if matches!(task.work, Work::Read { .. }) { Mode::Shared } else { Mode::Exclusive };
        self.ask_lock(id, mode);
        true
    }

    fn admits(&self, task: &Task) -> bool {
        if self.suspended_since.is_some() || !self.reaches_up_to_date_copy() || self.is_detaching() {
            return false;
        }
        // Reading the rest of a block that is stale here would write stale bytes to both copies: resync comes first.
        !(self.is_stale(task.range) && self.needs_fill(task))
    }

    pub(super) fn ask_lock(&mut self, id: u32, mode: Mode) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        task.stage = Stage::Lock;
        if matches!(task.work, Work::Read { .. }) && is_planted(Bug::ReadPastTheLock) {
            return self.granted.push_back(id);
        }
        if self.locks.request(id, task.range, mode) {
            self.granted.push_back(id);
        }
    }

    pub(super) fn unlock(&mut self, id: u32) {
        self.locks.release(id, &mut self.granted);
    }

    pub(super) fn pump_granted(&mut self) -> bool {
        let mut moved = false;
        while let Some(id) = self.granted.pop_front() {
            moved = true;
            let Some(task) = self.tasks.get(id).copied() else { continue };
            match task.work {
                Work::Read { req } => self.start_read(id, req),
                Work::Write { .. } => self.take_region(id),
                Work::PeerWrite { .. } => self.start_peer_write(id),
                Work::PeerRead { .. } | Work::Serve { .. } => self.start_peer_read(id),
                Work::Piece { .. } => self.start_piece(id),
                Work::Part { .. } => self.start_part(id),
            }
        }
        moved
    }

    /// A block in the range differs from the UpToDate copy, as far as we know.
    pub(super) fn is_stale(&self, range: ByteRange) -> bool {
        let dirty = |store: &Store| store.slots[0].bits.any(store.geometry().blocks_touched(range));
        if self.disk == DiskState::UpToDate || is_planted(Bug::ReadStaleBlocks) {
            return false;
        }
        // Until the source's bits are here, nothing is known to be clean.
        let unknown =
            self.without_disk() || self.link.as_ref().is_some_and(|link| link.phase == Phase::Exchanging);
        unknown || self.store.as_ref().is_none_or(dirty)
    }

    fn start_read(&mut self, id: u32, req: ReqId) {
        let now = self.now;
        let Some(task) = self.tasks.get_mut(id) else { return };
        task.began = now;
        let task = *task;
        if task.repair {
            return self.read_for_repair(id);
        }
        if !self.reaches_up_to_date_copy() {
            // Lost while it waited for its lock: what this copy holds, and what its bits say, counts for nothing.
            return self.regate(id);
        }
        if !self.is_stale(task.range) {
            self.set_running(id, true, false, None);
            let op = self.new_op(OpKind::Task(id));
            return self.act(Action::DiskRead { op, req: Some(req), offset: task.offset(), len: task.len() });
        }
        match self.out_link() {
            Some(link) => {
                mark(Mark::ReadStale);
                self.set_running(id, false, true, Some(link));
                let frame = Frame::Read { id, offset: task.offset(), len: task.len() };
                self.send(link, frame, None);
            }
            None => self.regate(id),
        }
    }

    /// Back to the gate, without a lock.
    pub(super) fn regate(&mut self, id: u32) {
        self.unlock(id);
        if let Some(task) = self.tasks.get_mut(id) {
            task.stage = Stage::Gate;
            (task.local_pending, task.peer_pending, task.repair) = (false, false, false);
            self.requests.gate.push_back(id);
        }
    }

    pub(super) fn set_running(&mut self, id: u32, local: bool, peer: bool, link: Option<LinkId>) {
        if let Some(task) = self.tasks.get_mut(id) {
            task.stage = Stage::Running;
            (task.local_pending, task.peer_pending, task.link) = (local, peer, link);
        }
    }

    pub(super) fn on_read_data(&mut self, link: LinkId, id: u32, range: ByteRange, slot: SlotId) {
        match self.tasks.get(id).copied() {
            Some(task) if self.is_repair_data(&task, link, range) => self.repair(id, range, slot),
            Some(Task {
                work: Work::Read { req },
                repair: false,
                range: asked,
                peer_pending: true,
                link: on,
                ..
            }) if asked == range && on == Some(link) => {
                let len = u32::try_from(range.len()).unwrap_or(0);
                self.act(Action::Supply { req, offset: range.start, len, slot });
                self.finish_client_task(id, None);
            }
            _ => self.act(Action::ReleaseSlot { slot }),
        }
    }

    pub(super) fn on_read_failed(&mut self, link: LinkId, id: u32) {
        let waiting = self.tasks.get(id).is_some_and(|task| {
            matches!(task.work, Work::Read { .. }) && task.peer_pending && task.link == Some(link)
        });
        if waiting {
            self.finish_client_task(id, Some(IoError::Io));
        }
    }

    /// Ends a client's piece that holds its lock (or waits for it).
    pub(super) fn finish_client_task(&mut self, id: u32, failed: Option<IoError>) {
        self.unlock(id);
        self.drop_client_task_with(id, failed);
    }

    fn drop_client_task(&mut self, id: u32, failed: IoError) {
        self.drop_client_task_with(id, Some(failed));
    }

    fn drop_client_task_with(&mut self, id: u32, failed: Option<IoError>) {
        let Some(task) = self.tasks.remove(id) else { return };
        if let Some(slot) = task.slot {
            self.act(Action::ReleaseSlot { slot });
        }
        if let Some(region) = task.region {
            self.release_region(region);
        }
        if let Work::Write { zero: Some(_), .. } = task.work {
            self.requests.cut -= 1;
        }
        if let (Work::Read { req } | Work::Write { req, .. }, Some(request)) = (
            task.work,
            match task.work {
                Work::Read { req } | Work::Write { req, .. } => self.requests.get_mut(req),
                _ => None,
            },
        ) {
            request.outstanding -= 1;
            if failed.is_some() {
                request.failed = request.failed.or(failed);
                request.failed_at = Some(request.failed_at.unwrap_or(u64::MAX).min(task.range.start));
            }
            self.finish_if_done(req);
        }
    }

    fn finish_if_done(&mut self, req: ReqId) {
        let Some(request) = self.requests.get_mut(req) else { return };
        let waits = request.outstanding > 0 || request.expected > 0 || !request.uncut.is_empty();
        if !waits && request.kind != RequestKind::Flush {
            let failed = request.failed;
            self.end_request(req, failed);
        }
    }

    fn end_request(&mut self, req: ReqId, failed: Option<IoError>) {
        if let Some(request) = self.requests.table.get_mut(req.0 as usize).and_then(Option::take) {
            self.requests.open -= 1;
            self.act(Action::Reply { req, result: failed.map_or(Ok(()), Err), at: request.failed_at });
        }
    }

    /// An UpToDate copy is within reach: only then are clients served.
    pub(super) fn reaches_up_to_date_copy(&self) -> bool {
        match self.disk {
            DiskState::UpToDate => true,
            DiskState::Inconsistent => self.mirror_link().is_some() && self.resync_is_target(),
            DiskState::Diskless | DiskState::Failed => self.served_link().is_some(),
            DiskState::Outdated | DiskState::Consistent => false,
        }
    }

    fn update_suspension(&mut self) -> bool {
        let must = self.role == Role::Primary && !self.reaches_up_to_date_copy() && !self.io_is_lost();
        match (must, self.suspended_since) {
            (true, None) => {
                self.suspended_since = Some(self.now);
                self.notice(Notice::Suspended);
                true
            }
            (false, Some(_)) => {
                self.suspended_since = None;
                self.notice(Notice::Resumed);
                true
            }
            _ => false,
        }
    }

    /// Answers everything that waits for an UpToDate copy with EIO; bits and marks stay.
    pub(super) fn fail_suspended(&mut self) {
        self.fail_gate();
        for id in self.tasks_where(|task| task.stage == Stage::Suspended) {
            self.fail_task(id);
        }
        self.end_flushes(Some(IoError::Io), |_| true);
    }

    /// Answers every piece that was not admitted yet with EIO.
    pub(super) fn fail_gate(&mut self) {
        for id in core::mem::take(&mut self.requests.gate) {
            self.drop_client_task(id, IoError::Io);
        }
    }

    /// Fails a client's piece: at once, or when the disk gives its slot back.
    pub(super) fn fail_task(&mut self, id: u32) {
        match self.tasks.get_mut(id) {
            Some(task) if task.local_pending => {
                (task.failed, task.peer_pending, task.stage) = (Some(IoError::Io), false, Stage::Running);
            }
            _ => self.finish_client_task(id, Some(IoError::Io)),
        }
    }

    pub(super) fn on_disk_done(
        &mut self,
        op: OpId,
        result: Result<(), crate::event::DiskError>,
        slot: Option<SlotId>,
    ) {
        match self.ops.remove(op) {
            Some(OpKind::Task(id)) => self.on_task_done(id, result, slot),
            Some(OpKind::Fill(id)) => self.on_filled(id, result),
            Some(OpKind::Flush(purpose)) => self.on_flushed(purpose, result),
            Some(OpKind::Abandoned) => self.on_late(slot),
            Some(OpKind::Meta(_) | OpKind::FailureRecord | OpKind::CloseDisk) | None => {
                debug_assert!(false, "unknown disk operation")
            }
        }
    }

    pub(super) fn on_task_done(
        &mut self,
        id: u32,
        result: Result<(), crate::event::DiskError>,
        slot: Option<SlotId>,
    ) {
        match self.tasks.get(id).map(|task| task.work) {
            Some(Work::Read { req }) => self.on_read_done(id, req, result),
            Some(Work::Write { .. }) => self.on_local_write_done(id, result),
            Some(Work::PeerWrite { .. }) => self.on_peer_write_done(id, result),
            Some(Work::PeerRead { .. }) => self.on_peer_read_done(id, result, slot),
            Some(Work::Part { .. }) => self.on_part_written(id, result),
            Some(Work::Serve { .. } | Work::Piece { .. }) | None => {
                debug_assert!(false, "completion of a task that is gone or inspects");
            }
        }
    }
}

/// End of the piece that begins at `at`.
fn piece_end(at: u64) -> u64 {
    (at / PIECE_BYTES_MAX + 1).saturating_mul(PIECE_BYTES_MAX)
}

fn aligned_inside(range: ByteRange) -> ByteRange {
    let start = range.start.next_multiple_of(CUT_ALIGN);
    let end = range.end - range.end % CUT_ALIGN;
    if start < end { ByteRange { start, end } } else { ByteRange { start: range.start, end: range.start } }
}
