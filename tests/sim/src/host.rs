//! One machine: its disks, which outlive the process, and the process with its core and its shell's books.

use crate::disk::{DataDisk, MetaFile, UNDEFINED};
use crate::ghost::{Seq, WriteId};
use crate::image::Image;
use crate::net::Arrived;
use crate::rules::Book;
use crate::session::Session;
use crate::trouble::Trouble;
use lockstep_bitmap::{FailureRecord, GenerationId};
use lockstep_core::{
    Command, DiskError, ExportState, LinkId, LinkLoss, Node, PeerHello, Refusal, RequestKind,
};
use lockstep_nbd::ReplyTo;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// An input of the core that owns its data, so that it can wait for a paused process.
#[derive(Debug)]
pub(crate) enum Input {
    /// First event.
    Start,
    /// Deadline.
    Tick,
    /// A client's request.
    Request { req: u32, kind: RequestKind, offset: u64, len: u64, fua: bool },
    /// Part of a write's data.
    Payload { req: u32, offset: u64, tags: Vec<u64> },
    /// The client of an incomplete write is gone.
    Abandoned { req: u32 },
    /// Number of clients.
    Clients { open: u32 },
    /// Disk operation done; for a read the bytes and where they are from.
    DiskDone { op: u32, result: Result<(), DiskError>, read: Option<(u64, Vec<u64>)> },
    /// Inspection done: the bytes and where they are from, or it failed.
    DiskInspected { op: u32, read: Option<(u64, Vec<u64>)>, digests: bool },
    /// Metadata write done.
    MetaDone { op: u32, result: Result<(), DiskError> },
    /// Connection.
    LinkUp { link: LinkId, peer: PeerHello },
    /// Frame.
    Frame { link: LinkId, arrived: Arrived },
    /// The connection is not read, or again.
    Reading { link: LinkId, is_reading: bool },
    /// Connection lost.
    LinkDown { link: Option<LinkId>, loss: LinkLoss },
    /// Operator.
    Command { id: u32, command: Command },
}

/// A buffer of the shell.
#[derive(Debug)]
pub(crate) struct SlotBuf {
    /// Sector of the volume that the first tag is of; a multiple of eight (4 KiB).
    pub(crate) first: usize,
    /// Tags; [`UNDEFINED`] where nothing was put.
    pub(crate) tags: Vec<u64>,
}

impl SlotBuf {
    /// A slot that holds `tags` for the range that begins at byte `offset`.
    pub(crate) fn holding(offset: u64, tags: &[u64]) -> Self {
        let sector = (offset / 512) as usize;
        let first = sector & !7;
        let mut all = vec![UNDEFINED; sector - first];
        all.extend(tags);
        all.resize(all.len().next_multiple_of(8), UNDEFINED);
        SlotBuf { first, tags: all }
    }

    /// The tags of a range, if the slot reaches over it.
    pub(crate) fn range(&self, first: usize, count: usize) -> Option<&[u64]> {
        self.tags.get(first.checked_sub(self.first)?..)?.get(..count)
    }
}

/// A disk operation in flight.
#[derive(Debug)]
pub(crate) enum DiskOp {
    /// Read; sampled early or at completion.
    Read { req: Option<u32>, first: usize, count: usize, early: Option<Vec<u64>> },
    /// Read for a resync; sampled early or at completion.
    Inspect { first: usize, count: usize, early: Option<Vec<u64>>, digests: bool },
    /// Fill of a slot's edges.
    Fill { slot: u32, parts: [(usize, usize); 2] },
    /// Write from a slot or of zeroes.
    Write { slot: Option<u32>, fua: bool },
    /// Flush that covers so many completions.
    Flush { covered: u64 },
    /// A read for a request that was answered meanwhile: the disk hung.
    Late,
}

/// A client's request in the shell's books.
#[derive(Debug)]
pub(crate) struct Request {
    /// `None`: the client is gone, the reply goes nowhere.
    pub(crate) client: Option<usize>,
    /// Its connection.
    pub(crate) session: u32,
    /// As it came.
    pub(crate) asked: lockstep_nbd::Request,
    /// Where its answer goes.
    pub(crate) to: ReplyTo,
    /// What it asks.
    pub(crate) kind: RequestKind,
    /// First sector and number.
    pub(crate) range: (usize, usize),
    /// Set for writes, trims and zeroes.
    pub(crate) write: Option<WriteId>,
    /// When it was sent.
    pub(crate) began: Seq,
    /// Virtual time of it.
    pub(crate) began_ns: u64,
    /// Parts of the payload that have not gone to the core: first sector, number.
    pub(crate) payload: VecDeque<(usize, usize)>,
    /// Result of a read, sector by sector.
    pub(crate) found: Vec<Option<u64>>,
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Killed.
    Kill,
    /// The machine lost power.
    Power,
    /// It left by command.
    Exit,
}

/// A command that the operator waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    /// What was typed.
    pub(crate) command: Command,
}

/// A machine.
pub(crate) struct Host {
    /// Data disk.
    pub(crate) disk: DataDisk,
    /// Metadata file.
    pub(crate) meta: MetaFile,
    /// Sectors that a resync cannot read, until they are written.
    pub(crate) unreadable: BTreeSet<usize>,
    /// The running process's core.
    pub(crate) node: Option<Node>,
    /// Counts processes on this machine.
    pub(crate) process: u32,
    /// Boot id of the kernel.
    pub(crate) boot_id: u128,
    /// Run id of the process.
    pub(crate) run_id: u128,
    /// Added to the clock of this boot, ns.
    pub(crate) clock_base: u64,
    /// By how much its wall clock is wrong.
    pub(crate) wall_clock_ms: i64,
    /// A bit of its metadata has turned over.
    pub(crate) is_rotten: bool,
    /// Why the last process ended.
    pub(crate) stopped: Stop,
    /// When it ended.
    pub(crate) stopped_at_ns: u64,
    /// It never comes back.
    pub(crate) is_gone: bool,
    /// A start is scheduled.
    pub(crate) booting: bool,
    /// Stands still until then.
    pub(crate) paused_until_ns: u64,
    /// Inputs that wait for a paused process.
    pub(crate) backlog: VecDeque<Input>,
    /// Time of the scheduled tick.
    pub(crate) tick_at_ns: u64,
    /// Ticks at the present instant, to catch a core that never sleeps.
    pub(crate) ticks_here: u32,
    /// Buffers in use.
    pub(crate) slots: BTreeMap<u32, SlotBuf>,
    /// Numbers of buffers to use again, last freed first.
    pub(crate) slots_free: Vec<u32>,
    /// Buffers in use for what the peer sent.
    pub(crate) received: BTreeSet<u32>,
    /// The connection is not read until one of them is free.
    pub(crate) deaf: bool,
    /// Disk operations in flight.
    pub(crate) ops: BTreeMap<u32, DiskOp>,
    /// Metadata writes in flight.
    pub(crate) meta_ops: BTreeMap<u32, ()>,
    /// Requests not answered.
    pub(crate) requests: BTreeMap<u32, Request>,
    /// Commands not answered.
    pub(crate) commands: BTreeMap<u32, Pending>,
    /// State of the export as told by the core.
    pub(crate) export: ExportState,
    /// Clients served, as the core was told.
    pub(crate) clients: u32,
    /// Connections of clients.
    pub(crate) sessions: BTreeMap<u32, Session>,
    /// Buffers in use for what clients write.
    pub(crate) written: BTreeSet<u32>,
    /// Connections that wait for such a buffer.
    pub(crate) slot_turns: VecDeque<u32>,
    /// The connection that the core knows.
    pub(crate) conn: Option<usize>,
    /// Connections so far, for their numbers.
    pub(crate) links: u32,
    /// The core waits for a dial.
    pub(crate) dialing: bool,
    /// Its disks complete nothing at present.
    pub(crate) hung: bool,
    /// They did so in the life of this process.
    pub(crate) has_hung: bool,
    /// Buffers that the core gave back while a disk that hung uses them.
    pub(crate) kept: BTreeSet<u32>,
    /// What is wrong with its disks at present.
    pub(crate) trouble: Trouble,
    /// The shell's record of a failure, lost with the power.
    pub(crate) failed: Option<FailureRecord>,
    /// An fdatasync failed, and nothing durable says so.
    pub(crate) lost_flush: bool,
    /// The process has no disk: none was found at its start, or the core gave it up.
    pub(crate) diskless: bool,
    /// Last refusal of a promotion, and how many in a row.
    pub(crate) refused: Option<(Refusal, u32)>,
    /// Its copy was declared wrong, and is: it has not been synchronised since.
    pub(crate) declared_wrong: bool,
    /// Its data and metadata at an earlier moment.
    pub(crate) image: Option<Image>,
    /// An image was put back, and it has not met the other machine since.
    pub(crate) restored: bool,
    /// The shadow book of its process.
    pub(crate) book: Book,
    /// The process knows of a failure that nothing could record.
    pub(crate) unrecordable: bool,
    /// The next record has to say that the copy stopped uncleanly in this generation.
    pub(crate) unclean_expected: Option<GenerationId>,
    /// When the trouble of its disks last began or ended.
    pub(crate) afflicted: Seq,
    /// When it last got an empty disk.
    pub(crate) replaced: Seq,
}

impl Host {
    /// A machine that was never started.
    pub(crate) fn new(disk: DataDisk, meta: MetaFile) -> Self {
        Host {
            disk,
            meta,
            unreadable: BTreeSet::new(),
            node: None,
            process: 0,
            boot_id: 0,
            run_id: 0,
            clock_base: 0,
            wall_clock_ms: 0,
            is_rotten: false,
            stopped: Stop::Power,
            stopped_at_ns: 0,
            is_gone: false,
            booting: false,
            paused_until_ns: 0,
            backlog: VecDeque::new(),
            tick_at_ns: u64::MAX,
            ticks_here: 0,
            slots: BTreeMap::new(),
            slots_free: Vec::new(),
            received: BTreeSet::new(),
            deaf: false,
            ops: BTreeMap::new(),
            meta_ops: BTreeMap::new(),
            requests: BTreeMap::new(),
            commands: BTreeMap::new(),
            export: ExportState::Closed,
            clients: 0,
            sessions: BTreeMap::new(),
            written: BTreeSet::new(),
            slot_turns: VecDeque::new(),
            conn: None,
            links: 0,
            dialing: false,
            hung: false,
            has_hung: false,
            kept: BTreeSet::new(),
            trouble: Trouble::default(),
            failed: None,
            lost_flush: false,
            diskless: false,
            refused: None,
            declared_wrong: false,
            image: None,
            restored: false,
            book: Book::default(),
            unrecordable: false,
            unclean_expected: None,
            afflicted: 0,
            replaced: 0,
        }
    }

    /// Takes a buffer, preferring the one freed last, as the engine does: late users of a freed one are
    /// found.
    pub(crate) fn alloc(&mut self, buf: SlotBuf) -> u32 {
        let number = self.slots_free.pop().unwrap_or(self.slots.len() as u32);
        assert!(self.slots.insert(number, buf).is_none(), "slot {number} was in use");
        number
    }

    /// Gives a buffer back; false if it was not in use.
    pub(crate) fn free(&mut self, slot: u32) -> bool {
        self.slots_free.push(slot);
        self.received.remove(&slot);
        self.written.remove(&slot);
        self.slots.remove(&slot).is_some()
    }

    /// A process stands still at this time.
    pub(crate) fn is_paused(&self, now: u64) -> bool {
        now < self.paused_until_ns
    }

    /// Forgets everything that a process holds in memory.
    pub(crate) fn forget(&mut self) {
        self.node = None;
        self.process += 1;
        self.paused_until_ns = 0;
        self.backlog.clear();
        self.tick_at_ns = u64::MAX;
        (self.hung, self.has_hung) = (false, false);
        self.kept.clear();
        self.slots.clear();
        self.slots_free.clear();
        self.received.clear();
        self.deaf = false;
        self.ops.clear();
        self.meta_ops.clear();
        self.requests.clear();
        self.commands.clear();
        self.export = ExportState::Closed;
        self.clients = 0;
        self.sessions.clear();
        self.written.clear();
        self.slot_turns.clear();
        self.conn = None;
        self.dialing = false;
        self.refused = None;
        (self.book, self.unrecordable) = (Book::default(), false);
    }
}
