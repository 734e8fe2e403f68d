//! Executes the core's disk and metadata actions of one resource, and reports each exactly once.
//!
//! A job is one action; it may need several operations. Operations of files in memory and buffered ones run
//! in the shard's thread, when the caller says so (`run_inline`: after what goes to the peer was submitted;
//! `run_inline_meta`: before that, as a part of it may wait for metadata); everything that can wait for a device goes
//! through the ring. A job keeps a reference to each slot it uses.
//!
//! Through the page cache an error of writing back is told once: of two syncs at a time one hears of it, and the other
//! one, which covers the same bytes, ends well. It must not be heard first, so that there is one at a time, and it
//! lasts until its job is reported.

mod inline;

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use lockstep_bitmap::{Locations, SUPERBLOCK_BYTES};
use lockstep_core::{DiskError, Event, OpId, SlotId};
use rustix::fs::FallocateFlags;

use super::inspect::Inspected;
use super::{Disk, Mode};
use crate::ring::{Completion, Fd, Op};
use crate::slab::Slab;
use crate::slots::{PoolId, Span};
use crate::token::{Io, Token};
use inline::{edges, put_edges, read_all, write_all, zero_inline};

/// Disk, metadata file and jobs of one resource.
pub(crate) struct Storage {
    /// Number of the resource, for tokens.
    resource: u16,
    name: String,
    pub(crate) disk: Option<Disk>,
    /// Metadata file, and whether it lives in memory.
    pub(crate) meta: Option<(Fd, bool)>,
    /// Slots for reads that are not a client's, and for blocks around an unaligned range.
    pool: PoolId,
    jobs: Slab<Job>,
    inline: VecDeque<u32>,
    /// The same for metadata.
    inline_meta: VecDeque<u32>,
    /// Jobs that wait for a slot.
    starved: VecDeque<Wanted>,
    finished: VecDeque<Event<'static>>,
    inspected: VecDeque<Inspected>,
    /// Buffers of metadata pages, to be used again: nobody else has them.
    spare: Vec<Rc<Vec<u8>>>,
    /// The core is done with the disk: it is closed when nothing is in flight.
    closing: Option<OpId>,
    /// In buffered mode: the job that syncs.
    syncing: Option<u32>,
    /// Operations that wait until it has ended.
    syncs: VecDeque<(u32, Op)>,
}

struct Job {
    op: OpId,
    work: Work,
    /// Operations in the ring.
    left: u8,
    /// A write with FUA failed, and its bytes are being written without: what fails tells which half of it did.
    is_unsynced: bool,
    error: Option<DiskError>,
}

#[derive(Clone, Copy, Debug)]
struct Range {
    span: Span,
    offset: u64,
}

enum Work {
    /// `hand_over`: the slot goes to the core.
    Read {
        range: Range,
        hand_over: bool,
    },
    /// A read whose bytes are looked at for a resync; the key, if digests are wanted.
    Inspect {
        range: Range,
        key: Option<[u8; 32]>,
    },
    Write {
        range: Range,
        fua: bool,
    },
    Zero {
        offset: u64,
        len: u32,
        punch: bool,
        fua: bool,
    },
    /// A range that does not consist of whole logical blocks: read, changed, written.
    ZeroEdges {
        offset: u64,
        len: u32,
        fua: bool,
        range: Range,
        is_read: bool,
    },
    Fill {
        slot: SlotId,
        offset: u64,
        len: u32,
        granule_bytes: u32,
        scratch: SlotId,
    },
    Flush,
    Meta {
        bytes: Rc<Vec<u8>>,
        locations: Locations,
    },
}

/// A job whose slot could not be had yet.
#[derive(Clone, Copy)]
enum Wanted {
    Read { op: OpId, offset: u64, len: u32 },
    Inspect { op: OpId, offset: u64, len: u32, key: Option<[u8; 32]> },
    Zero { op: OpId, offset: u64, len: u32, fua: bool },
    Fill { op: OpId, slot: SlotId, offset: u64, len: u32, granule_bytes: u32 },
}

const SCRATCH_TAIL: u32 = 4096;

impl Storage {
    /// Memory of one job: its entry, its place in a queue, its operation in the ring, its completion.
    pub(crate) const JOB_MEMORY_BYTES: usize =
        size_of::<Option<Job>>() + size_of::<Wanted>() + 2 * size_of::<Op>() + size_of::<Event<'_>>() + 64;

    /// Of resource number `resource`, without disk.
    pub(crate) fn new(resource: u16, name: &str, pool: PoolId) -> Self {
        Self {
            resource,
            name: name.to_owned(),
            disk: None,
            meta: None,
            pool,
            jobs: Slab::with_capacity(1024),
            inline: VecDeque::with_capacity(1024),
            inline_meta: VecDeque::with_capacity(16),
            starved: VecDeque::new(),
            finished: VecDeque::with_capacity(1024),
            inspected: VecDeque::new(),
            spare: Vec::new(),
            closing: None,
            syncing: None,
            syncs: VecDeque::new(),
        }
    }

    /// Closes data and metadata once nothing is in flight.
    pub(crate) fn close(&mut self, op: OpId) {
        self.closing = Some(op);
        self.close_if_idle();
    }

    /// Whether the core is done with a disk that still has something in flight.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.is_some()
    }

    pub(crate) fn close_if_idle(&mut self) {
        if self.is_idle()
            && let Some(op) = self.closing.take()
        {
            (self.disk, self.meta) = (None, None);
            self.finished.push_back(Event::MetaDone { op, result: Ok(()) });
        }
    }

    /// Completions for the core, oldest first.
    pub(crate) fn next_finished(&mut self) -> Option<Event<'static>> {
        self.finished.pop_front()
    }

    /// The same for inspections, whose findings are still to be computed.
    pub(crate) fn next_inspected(&mut self) -> Option<Inspected> {
        self.inspected.pop_front()
    }

    /// Whether nothing is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        let reported = self.finished.is_empty() && self.inspected.is_empty();
        self.jobs.len() == 0 && self.starved.is_empty() && reported
    }

    /// Whether `run_inline` has work.
    pub(crate) fn has_inline(&self) -> bool {
        !(self.inline.is_empty() && self.inline_meta.is_empty())
    }

    /// Reads into `target`, the slot of a client's request and the offset it begins with, or into a slot that
    /// the completion hands over.
    pub(crate) fn read(
        &mut self,
        io: &mut Io,
        op: OpId,
        offset: u64,
        len: u32,
        target: Option<(SlotId, u64)>,
    ) {
        let (slot, first) = match target {
            Some((slot, first)) => {
                io.arena().retain(slot);
                (slot, first)
            }
            None => match io.arena().take(self.pool, offset, len) {
                Some(slot) => (slot, offset),
                None => return self.starved.push_back(Wanted::Read { op, offset, len }),
            },
        };
        let range = self.round_out(slot, first, offset, len);
        self.start(io, op, Work::Read { range, hand_over: target.is_none() });
    }

    /// Reads a piece into a slot that the completion hands over, to be looked at.
    pub(crate) fn inspect(&mut self, io: &mut Io, op: OpId, offset: u64, len: u32, key: Option<[u8; 32]>) {
        match io.arena().take(self.pool, offset, len) {
            Some(slot) => {
                let range = self.round_out(slot, offset, offset, len);
                self.start(io, op, Work::Inspect { range, key });
            }
            None => self.starved.push_back(Wanted::Inspect { op, offset, len, key }),
        }
    }

    /// Writes whole logical blocks.
    pub(crate) fn write(&mut self, io: &mut Io, op: OpId, offset: u64, len: u32, slot: SlotId, fua: bool) {
        io.arena().retain(slot);
        let range = Range { span: Span::of_volume(slot, offset, len), offset };
        self.start(io, op, Work::Write { range, fua });
    }

    /// Makes a range read as zeroes.
    pub(crate) fn zero(&mut self, io: &mut Io, op: OpId, offset: u64, len: u32, punch: bool, fua: bool) {
        let granule = self.disk.as_ref().map_or(1, |disk| match disk.mode {
            Mode::Direct => u64::from(disk.granule_bytes),
            Mode::Buffered | Mode::Memory => 1,
        });
        if (offset | u64::from(len)) & (granule - 1) == 0 {
            return self.start(io, op, Work::Zero { offset, len, punch, fua });
        }
        match io.arena().take(self.pool, offset, len) {
            Some(slot) => {
                let range = self.round_out(slot, offset, offset, len);
                self.start(io, op, Work::ZeroEdges { offset, len, fua, range, is_read: false });
            }
            None => self.starved.push_back(Wanted::Zero { op, offset, len, fua }),
        }
    }

    /// Reads the blocks at the edges of a payload and puts their bytes around it.
    pub(crate) fn fill(
        &mut self,
        io: &mut Io,
        op: OpId,
        (slot, offset, len): (SlotId, u64, u32),
        granule_bytes: u32,
    ) {
        match io.arena().take(self.pool, 0, 2 * SCRATCH_TAIL) {
            Some(scratch) => {
                io.arena().retain(slot);
                self.start(io, op, Work::Fill { slot, offset, len, granule_bytes, scratch });
            }
            None => self.starved.push_back(Wanted::Fill { op, slot, offset, len, granule_bytes }),
        }
    }

    /// Makes every write reported so far durable.
    pub(crate) fn flush(&mut self, io: &mut Io, op: OpId) {
        self.start(io, op, Work::Flush);
    }

    /// Writes all copies of a metadata page, durably. `render` appends its bytes and says where they go.
    pub(crate) fn write_meta(
        &mut self,
        io: &mut Io,
        op: OpId,
        render: impl FnOnce(&mut Vec<u8>) -> Locations,
    ) {
        let new = || Rc::new(Vec::with_capacity(SUPERBLOCK_BYTES));
        let mut bytes = self.spare.pop().unwrap_or_else(new);
        let Some(buffer) = Rc::get_mut(&mut bytes) else { unreachable!("a spare buffer is in use") };
        let locations = render(buffer);
        self.start(io, op, Work::Meta { bytes, locations });
    }

    /// Starts jobs that waited for a slot.
    pub(crate) fn feed_starved(&mut self, io: &mut Io) {
        for _ in 0..self.starved.len() {
            match self.starved.pop_front() {
                None => return,
                Some(Wanted::Read { op, offset, len }) => self.read(io, op, offset, len, None),
                Some(Wanted::Inspect { op, offset, len, key }) => self.inspect(io, op, offset, len, key),
                Some(Wanted::Zero { op, offset, len, fua }) => self.zero(io, op, offset, len, false, fua),
                Some(Wanted::Fill { op, slot, offset, len, granule_bytes }) => {
                    self.fill(io, op, (slot, offset, len), granule_bytes);
                }
            }
        }
    }

    /// Writes metadata in this thread; returns whether there was any.
    pub(crate) fn run_inline_meta(&mut self, io: &mut Io) -> bool {
        let had_some = !self.inline_meta.is_empty();
        while let Some(job) = self.inline_meta.pop_front() {
            self.run(io, job);
        }
        had_some
    }

    /// Runs what else is done in this thread.
    pub(crate) fn run_inline(&mut self, io: &mut Io) {
        while let Some(job) = self.inline.pop_front() {
            self.run(io, job);
        }
    }

    fn run(&mut self, io: &mut Io, job: u32) {
        if let Err(error) = self.do_inline(io, job) {
            self.note_failure(job, kind_of(&error), &error);
        }
        self.finish(io, job);
    }

    /// A part of a job ended.
    pub(crate) fn completed(&mut self, io: &mut Io, job: u32, completion: Completion<Token>) {
        let done = completion.result;
        match (completion.op, done) {
            (op, Err(error)) if is_passing(&error) => {
                return push_to(io, may_block(&self.disk), completion.token, op);
            }
            (Op::Allocate { .. }, Err(error)) if is_unsupported(&error) => {
                return self.zero_by_writing(io, job);
            }
            (Op::Write { fd, span, offset, dsync: true }, Err(error)) => {
                tracing::error!("{}: write with FUA at {offset} failed: {error}", self.name);
                return self.write_unsynced(io, job, Op::Write { fd, span, offset, dsync: false });
            }
            (op, Err(error)) => self.note_error(job, &op, &error),
            (Op::Read { fd, span, offset }, Ok(bytes)) if bytes > 0 && bytes < span.len => {
                let rest = Op::Read { fd, span: span.skip(bytes), offset: offset + u64::from(bytes) };
                return push_to(io, may_block(&self.disk), completion.token, rest);
            }
            (Op::Write { fd, span, offset, dsync }, Ok(bytes)) if bytes > 0 && bytes < span.len => {
                let rest = Op::Write { fd, span: span.skip(bytes), offset: offset + u64::from(bytes), dsync };
                return push_to(io, may_block(&self.disk), completion.token, rest);
            }
            (op @ (Op::Read { .. } | Op::Write { .. }), Ok(0)) => {
                self.note_error(job, &op, &io::Error::from(io::ErrorKind::UnexpectedEof));
            }
            (Op::WriteBytes { bytes, .. }, Ok(written)) if written as usize != bytes.len() => {
                self.note_failure(job, DiskError::Io, &io::Error::from(io::ErrorKind::WriteZero));
            }
            (_, Ok(_)) => {}
        }
        let Some(entry) = self.jobs.get_mut(job) else {
            unreachable!("a completion for job {job}, which is gone")
        };
        entry.left -= 1;
        if entry.left == 0 && !self.go_on(io, job) {
            self.finish(io, job);
        }
    }

    /// The device refuses the bytes, or it took them and could not make them durable: the system call does not tell,
    /// and the difference is that between an error of one range and a copy that is lost (a failed fdatasync). So the
    /// bytes are written again without FUA. Nothing that failed to become durable is flushed again.
    fn write_unsynced(&mut self, io: &mut Io, job: u32, write: Op) {
        let Some(entry) = self.jobs.get_mut(job) else { unreachable!("job {job} is gone") };
        entry.is_unsynced = true;
        push_to(io, may_block(&self.disk), Token::Storage { resource: self.resource, job }, write);
    }

    /// In direct mode a read covers whole logical blocks; the wanted part stays where it belongs.
    /// `first`: offset that the slot begins with.
    fn round_out(&self, slot: SlotId, first: u64, offset: u64, len: u32) -> Range {
        let granule = match &self.disk {
            Some(disk) if disk.mode == Mode::Direct => u64::from(disk.granule_bytes),
            _ => 1,
        };
        let start = offset - offset % granule;
        let end = (offset + u64::from(len)).next_multiple_of(granule);
        Range { span: Span::of_volume_from(slot, first, start, (end - start) as u32), offset: start }
    }

    fn start(&mut self, io: &mut Io, op: OpId, work: Work) {
        let job = self.jobs.insert(Job { op, work, left: 0, is_unsynced: false, error: None });
        let Some(Job { work, left, .. }) = self.jobs.get_mut(job) else { unreachable!("just inserted") };
        let token = Token::Storage { resource: self.resource, job };
        let may_block = may_block(&self.disk);
        let mut push = |op: Op| {
            *left += 1;
            push_to(io, may_block, token, op);
        };
        if let Work::Meta { bytes, locations } = work {
            match &self.meta {
                Some((fd, false)) => {
                    for offset in locations.offsets.iter().take(usize::from(locations.copies)) {
                        push(Op::WriteBytes { fd: Rc::clone(fd), bytes: Rc::clone(bytes), offset: *offset });
                    }
                }
                // Without a file the job fails there.
                Some((_, true)) | None => self.inline_meta.push_back(job),
            }
            return;
        }
        let Some(disk) = &self.disk else { return self.inline.push_back(job) };
        let fd = || Rc::clone(&disk.fd);
        match (disk.mode, work) {
            (Mode::Memory, _) => self.inline.push_back(job),
            (Mode::Direct, Work::Read { range, .. } | Work::Inspect { range, .. }) => {
                push(Op::Read { fd: fd(), span: range.span, offset: range.offset });
            }
            (Mode::Direct, Work::Write { range, fua }) => {
                let dsync = disk.take_dsync(fua);
                push(Op::Write { fd: fd(), span: range.span, offset: range.offset, dsync });
            }
            (Mode::Buffered, Work::Write { range, fua: fua @ true }) => {
                *left = 1;
                let dsync = disk.take_dsync(fua);
                let write = Op::Write { fd: fd(), span: range.span, offset: range.offset, dsync };
                self.push_write(io, job, write);
            }
            (Mode::Direct, Work::Fill { slot: _, offset, len, granule_bytes, scratch }) => {
                for (span, offset) in edges(disk, *offset, *len, *granule_bytes, *scratch) {
                    push(Op::Read { fd: fd(), span, offset });
                }
                if *left == 0 {
                    // Aligned after all.
                    self.inline.push_back(job);
                }
            }
            (Mode::Direct, Work::ZeroEdges { range, .. }) => {
                push(Op::Read { fd: fd(), span: range.span, offset: range.offset });
            }
            (Mode::Direct | Mode::Buffered, Work::Zero { offset, len, punch, .. }) => {
                let usable = if *punch { disk.can_punch } else { disk.can_zero_range };
                if usable {
                    let mode = allocate_mode(*punch).bits() as i32;
                    push(Op::Allocate { fd: fd(), mode, offset: *offset, len: u64::from(*len) });
                } else {
                    self.zero_by_writing(io, job);
                }
            }
            (Mode::Direct | Mode::Buffered, Work::Flush) => {
                *left = 1;
                let sync = Op::Datasync { fd: fd() };
                self.push_sync(io, job, sync);
            }
            (
                Mode::Buffered,
                Work::Read { .. } | Work::Inspect { .. } | Work::Write { .. } | Work::Fill { .. },
            ) => {
                self.inline.push_back(job);
            }
            (Mode::Buffered, Work::ZeroEdges { .. }) => unreachable!("buffered ranges have no alignment"),
            (_, Work::Meta { .. }) => unreachable!("handled above"),
        }
    }

    /// A write, which tells that if it syncs.
    fn push_write(&mut self, io: &mut Io, job: u32, write: Op) {
        match write {
            Op::Write { dsync: true, .. } => self.push_sync(io, job, write),
            _ => push_to(io, may_block(&self.disk), Token::Storage { resource: self.resource, job }, write),
        }
    }

    /// An operation that tells whether earlier writes failed; in buffered mode it waits for its turn (ordering 6).
    fn push_sync(&mut self, io: &mut Io, job: u32, op: Op) {
        let is_shared = self.disk.as_ref().is_some_and(|disk| disk.mode == Mode::Buffered);
        if is_shared && *self.syncing.get_or_insert(job) != job {
            return self.syncs.push_back((job, op));
        }
        push_to(io, may_block(&self.disk), Token::Storage { resource: self.resource, job }, op);
    }

    /// The device or file system has no operation for this: write zeroes.
    fn zero_by_writing(&mut self, io: &mut Io, job: u32) {
        let (Some(entry), Some(disk)) = (self.jobs.get_mut(job), &mut self.disk) else {
            unreachable!("a job on a disk that is gone")
        };
        let Work::Zero { offset, len, punch, fua, .. } = &mut entry.work else {
            unreachable!("only zeroing allocates")
        };
        if *punch {
            disk.can_punch = false;
        } else {
            disk.can_zero_range = false;
        }
        let span = io.arena().zeroes(*len);
        entry.left = 1;
        let dsync = disk.take_dsync(fua);
        let write = Op::Write { fd: Rc::clone(&disk.fd), span, offset: *offset, dsync };
        self.push_write(io, job, write);
    }

    /// All operations of a job have completed: starts what comes next, if anything does.
    fn go_on(&mut self, io: &mut Io, job: u32) -> bool {
        let (Some(entry), Some(disk)) = (self.jobs.get_mut(job), &self.disk) else { return false };
        if entry.error.is_some() {
            return false;
        }
        let token = Token::Storage { resource: self.resource, job };
        match &mut entry.work {
            Work::ZeroEdges { offset, len, fua, range, is_read: is_read @ false } => {
                *is_read = true;
                entry.left = 1;
                let zeroes = Span::of_volume(range.span.slot, *offset, *len);
                io.arena().bytes_mut(zeroes).fill(0);
                let (fd, span, offset) = (Rc::clone(&disk.fd), range.span, range.offset);
                let dsync = disk.take_dsync(fua);
                push_to(io, disk.may_block, token, Op::Write { fd, span, offset, dsync });
                true
            }
            Work::Write { fua: fua @ true, .. }
            | Work::Zero { fua: fua @ true, .. }
            | Work::ZeroEdges { fua: fua @ true, .. } => {
                *fua = false;
                entry.left = 1;
                let sync = Op::Datasync { fd: Rc::clone(&disk.fd) };
                self.push_sync(io, job, sync);
                true
            }
            Work::Fill { slot, offset, len, granule_bytes, scratch } => {
                put_edges(io, disk, (*slot, *offset, *len), *granule_bytes, *scratch);
                false
            }
            _ => false,
        }
    }

    fn do_inline(&mut self, io: &mut Io, job: u32) -> io::Result<()> {
        let Some(entry) = self.jobs.get(job) else { unreachable!("an inline job is gone") };
        if let Work::Meta { bytes, locations } = &entry.work {
            let Some((fd, _)) = &self.meta else { return Err(no_disk()) };
            for offset in locations.offsets.iter().take(usize::from(locations.copies)) {
                write_all(fd, bytes, *offset)?;
            }
            return Ok(());
        }
        let Some(disk) = &self.disk else { return Err(no_disk()) };
        match &entry.work {
            Work::Read { range, .. } | Work::Inspect { range, .. } => {
                read_all(&disk.fd, io.arena().bytes_mut(range.span), range.offset)
            }
            Work::Write { range, .. } => write_all(&disk.fd, io.arena().bytes(range.span), range.offset),
            Work::Zero { offset, len, punch, .. } => zero_inline(io, disk, *offset, *len, *punch),
            Work::Fill { slot, offset, len, granule_bytes, scratch } => {
                for (span, from) in edges(disk, *offset, *len, *granule_bytes, *scratch) {
                    read_all(&disk.fd, io.arena().bytes_mut(span), from)?;
                }
                put_edges(io, disk, (*slot, *offset, *len), *granule_bytes, *scratch);
                Ok(())
            }
            // In memory only; a device's flush goes through the ring.
            Work::Flush => Ok(rustix::fs::fdatasync(&*disk.fd)?),
            Work::ZeroEdges { .. } | Work::Meta { .. } => unreachable!("not inline, or handled above"),
        }
    }

    fn note_error(&mut self, job: u32, op: &Op, error: &io::Error) {
        let kind = if matches!(op, Op::Datasync { .. }) { DiskError::Sync } else { kind_of(error) };
        self.note_failure(job, kind, error);
    }

    fn note_failure(&mut self, job: u32, kind: DiskError, error: &io::Error) {
        let Some(entry) = self.jobs.get_mut(job) else { return };
        let what = match entry.work {
            Work::Read { .. } | Work::Inspect { .. } => "read",
            Work::Write { .. } => "write",
            Work::Zero { .. } | Work::ZeroEdges { .. } => "zeroing",
            Work::Fill { .. } => "read of a block's edge",
            Work::Flush => "fdatasync",
            Work::Meta { .. } => "metadata write",
        };
        tracing::error!("{}: {what} failed: {error}", self.name);
        entry.error = Some(kind);
    }

    fn finish(&mut self, io: &mut Io, job: u32) {
        let Some(Job { op, work, error, is_unsynced, .. }) = self.jobs.remove(job) else {
            unreachable!("job {job} finished twice")
        };
        if self.syncing == Some(job) {
            self.syncing = None;
            if let Some((next, op)) = self.syncs.pop_front() {
                self.push_sync(io, next, op);
            }
        }
        let error = error.or(is_unsynced.then_some(DiskError::Sync));
        let result = error.map_or(Ok(()), Err);
        let mut handed = None;
        match work {
            Work::Inspect { range, key } => {
                if result.is_err() {
                    io.arena().release(range.span.slot);
                }
                return self.inspected.push_back(Inspected { op, result, span: range.span, key });
            }
            Work::Read { range, hand_over: true } if result.is_ok() => handed = Some(range.span.slot),
            Work::Read { range, .. } | Work::Write { range, .. } | Work::ZeroEdges { range, .. } => {
                io.arena().release(range.span.slot);
            }
            Work::Fill { slot, scratch, .. } => {
                io.arena().release(slot);
                io.arena().release(scratch);
            }
            Work::Flush | Work::Zero { .. } => {}
            Work::Meta { mut bytes, .. } => {
                if let Some(buffer) = Rc::get_mut(&mut bytes) {
                    buffer.clear();
                    self.spare.push(bytes);
                }
                return self.finished.push_back(Event::MetaDone { op, result });
            }
        }
        self.finished.push_back(Event::DiskDone { op, result, slot: handed });
    }
}

fn allocate_mode(punch: bool) -> FallocateFlags {
    let mode = if punch { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
    mode | FallocateFlags::KEEP_SIZE
}

fn kind_of(error: &io::Error) -> DiskError {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => DiskError::NoSpace,
        _ => DiskError::Io,
    }
}

fn may_block(disk: &Option<Disk>) -> bool {
    disk.as_ref().is_some_and(|disk| disk.may_block)
}

fn push_to(io: &mut Io, may_block: bool, token: Token, op: Op) {
    if may_block { io.push_blocking(token, op) } else { io.push(token, op) }
}

fn no_disk() -> io::Error {
    io::Error::other("there is no disk")
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN))
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV))
}

#[cfg(test)]
mod tests;
