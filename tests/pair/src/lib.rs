//! Two nodes, and a shell around each that has no bytes: disks, network and slots are books.
//!
//! Whoever drives it decides what is delivered when, and may change what the nodes send each other. The shell holds
//! each node to the border of the core: slots are released once, requests and commands answered once, operations
//! numbered uniquely, overlapping writes never at the disk together, frames are such as a peer takes, tables keep
//! their bounds. It counts what the nodes allocate. `tests/fuzz` drives it with any input.
#![forbid(unsafe_code)]

mod shell;

use lockstep_bitmap::{ByteRange, NodeId};
use lockstep_core::{
    Command, CommandId, DIGEST_BYTES, DiskError, Done, Event, ExportState, Instant, LinkId, LinkLoss,
    PIECE_BYTES_MAX, PeerHello, Refusal, ReqId, RequestKind, TableBounds, UNIT_BYTES,
};

pub use crate::shell::{Packet, Shell, Start};
use crate::shell::{Pending, run_id};

/// Sizes of a pair.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Size of the volume.
    pub size_bytes: u64,
    /// A region of the activity map has two to the power of this many bytes.
    pub region_shift: u8,
    /// Regions that may be hot.
    pub hot_max: u32,
    /// Bytes of bitmap in one frame.
    pub bits_frame_bytes: usize,
    /// The shell's tables, and those of the core that it chooses. Whoever needs one slot more waits.
    pub tables: TableBounds,
}

impl Shape {
    /// So small that everything comes to its bound.
    pub const SMALL: Shape = Shape {
        size_bytes: 4 << 20,
        region_shift: 17,
        hot_max: 8,
        bits_frame_bytes: 16,
        tables: TableBounds { writes_max: 64, undurable_max: 64, resync_window: 4, slots: 48, requests: 16 },
    };
}

/// The pair.
pub struct Pair {
    /// Both of them.
    pub shells: [Shell; 2],
    now: Instant,
    numbers: u32,
    /// Bit `n`: the unit `n` modulo 64 differs between the disks; and is zero on both.
    pub differing: u64,
    /// See `differing`.
    pub zero: u64,
    /// Dialling fails.
    pub cut: bool,
    shape: Shape,
}

impl Pair {
    /// Two nodes that have just started.
    pub fn new(shape: Shape, starts: [Start; 2]) -> Self {
        let [first, second] = starts;
        let shells = [Shell::new(shape, 0, first), Shell::new(shape, 1, second)];
        let (now, numbers, cut) = (Instant(1), 0, false);
        let mut pair = Pair { shells, now, numbers, differing: 0b0111, zero: 0b1000, cut, shape };
        for node in 0..2 {
            pair.shells[node].handle(pair.now, Event::Start { unix_ms: 1000 });
        }
        pair
    }

    fn number(&mut self) -> u32 {
        self.numbers += 1;
        self.numbers
    }

    /// Everything that can be done now: completions, frames, dialling, closing. Returns whether there was something.
    pub fn step(&mut self) -> bool {
        let mut moved = false;
        for node in 0..2 {
            moved |= self.complete(node, 0, Ok(()));
            moved |= self.receive(node);
            moved |= self.connect(node);
        }
        moved
    }

    /// Steps until nothing moves, at most so many.
    pub fn settle(&mut self, steps: usize) {
        for _ in 0..steps {
            if !self.step() {
                return;
            }
        }
    }

    /// Settles, and lets the time go to each next deadline, until `wanted` or so many deadlines have passed.
    pub fn until(&mut self, deadlines: usize, wanted: impl Fn(&Pair) -> bool) -> bool {
        for _ in 0..deadlines {
            self.settle(100_000);
            if wanted(self) {
                return true;
            }
            self.pass_deadline();
        }
        false
    }

    /// Completes the operation at this place of a node's queue.
    pub fn complete(&mut self, node: usize, place: usize, result: Result<(), DiskError>) -> bool {
        let shell = &mut self.shells[node];
        let Some(pending) = shell.pending.get(place).copied() else { return false };
        let takes_slot = matches!(pending, Pending::Read { gives_slot: true, .. } | Pending::Inspect { .. });
        if takes_slot && !shell.has_room() {
            // It waits for its turn; others go on.
            shell.pending.rotate_left(1);
            return shell.pending.iter().any(|other| matches!(other, Pending::Other(_) | Pending::Meta(_)));
        }
        shell.pending.remove(place);
        let slot = (takes_slot && result.is_ok()).then(|| shell.take_slot());
        match pending {
            Pending::Read { op, .. } | Pending::Other(op) => {
                shell.writing.remove(&op);
                shell.handle(self.now, Event::DiskDone { op, result, slot });
            }
            Pending::Meta(op) => shell.handle(self.now, Event::MetaDone { op, result }),
            Pending::Inspect { op, offset, len, digests } => {
                let (zeroes, words) =
                    inspect(offset, len, self.zero, if node == 0 { 0 } else { self.differing });
                let words = if digests && result.is_ok() { words.as_flattened() } else { &[] };
                let units = u64::from(len).div_ceil(UNIT_BYTES) as usize * DIGEST_BYTES;
                let digests = &words[..units.min(words.len())];
                shell.handle(self.now, Event::DiskInspected { op, result, slot, zeroes, digests });
            }
        }
        true
    }

    /// Hands the first frame that the other node sent to this one.
    pub fn receive(&mut self, node: usize) -> bool {
        let [first, second] = &mut self.shells;
        let (to, from) = if node == 0 { (first, second) } else { (second, first) };
        let Some(packet) = from.sent.front() else { return false };
        if packet.frame.payload().is_some() && !to.has_room() {
            return false;
        }
        let Some(Packet { link, frame, body }) = from.sent.pop_front() else { return false };
        let slot = frame.payload().is_some().then(|| to.take_slot());
        to.handle(self.now, Event::Frame { link, frame, body: &body, slot });
        from.spare.push(body);
        true
    }

    /// Closes and dials as the node has asked for.
    pub fn connect(&mut self, node: usize) -> bool {
        if std::mem::take(&mut self.shells[node].closing) {
            self.lose_link([true, true]);
            return true;
        }
        if !std::mem::take(&mut self.shells[node].dialing) {
            return false;
        }
        if self.cut {
            let down = Event::LinkDown { link: None, loss: LinkLoss::Unreachable };
            self.shells[node].handle(self.now, down);
            return true;
        }
        self.lose_link([true, true]);
        let link = LinkId(self.number());
        for node in 0..2_u8 {
            let other = 1 - node;
            let peer = PeerHello {
                node: NodeId(other),
                run_id: run_id(other),
                boot_id: 20 + u128::from(other),
                keeps_checkpoints: true,
                takes_least: true,
            };
            let shell = &mut self.shells[usize::from(node)];
            shell.link = Some(link);
            shell.handle(self.now, Event::LinkUp { link, peer });
        }
        true
    }

    /// The connection ends, for those who notice.
    pub fn lose_link(&mut self, notices: [bool; 2]) {
        for (node, notices) in (0..2).zip(notices) {
            if notices && let Some(link) = self.shells[node].link.take() {
                self.shells[node].sent.clear();
                let down = Event::LinkDown { link: Some(link), loss: LinkLoss::Lost };
                self.shells[node].handle(self.now, down);
            }
        }
    }

    /// The time goes on to the next deadline of either node.
    pub fn pass_deadline(&mut self) {
        let deadlines = self.shells.iter().filter_map(|shell| shell.node.next_deadline());
        if let Some(next) = deadlines.map(|deadline| deadline.at).min() {
            self.pass(next.0.saturating_sub(self.now.0) + 1);
        }
    }

    /// The time goes on.
    pub fn pass(&mut self, nanoseconds: u64) {
        self.now = Instant(self.now.0.saturating_add(nanoseconds));
        for node in 0..2 {
            let unix_ms = self.now.0 / 1_000_000;
            self.shells[node].handle(self.now, Event::Tick { unix_ms });
        }
    }

    /// A client's request, if the node serves clients and has room. Its payload arrives at once.
    pub fn request(&mut self, node: usize, kind: RequestKind, range: ByteRange, fua: bool) -> bool {
        let pieces = (range.start / PIECE_BYTES_MAX..range.end.div_ceil(PIECE_BYTES_MAX)).count();
        let shell = &self.shells[node];
        let open = shell.export == ExportState::Open && shell.requests.len() < self.shape.tables.requests;
        let has_slots = shell.slots.len() + pieces <= self.shape.tables.slots;
        if !open || !has_slots || range.end > self.shape.size_bytes {
            return false;
        }
        let now = self.now;
        let shell = &mut self.shells[node];
        // The lowest that is free, as a shell does with its tables.
        let req = (0..).map(ReqId).find(|req| !shell.requests.contains(req)).expect("few are in use");
        shell.requests.insert(req);
        let (offset, len) = (range.start, range.end - range.start);
        shell.handle(now, Event::Request { req, kind, offset, len, fua });
        let mut start = range.start;
        while kind == RequestKind::Write && start < range.end {
            let end = ((start / PIECE_BYTES_MAX + 1) * PIECE_BYTES_MAX).min(range.end);
            let slot = shell.take_slot();
            let len = (end - start) as u32;
            shell.handle(now, Event::Payload { req, offset: start, len, slot });
            start = end;
        }
        true
    }

    /// An operator's command.
    pub fn command(&mut self, node: usize, command: Command) -> CommandId {
        let id = CommandId(self.number());
        self.shells[node].commands.insert(id);
        self.shells[node].handle(self.now, Event::Command { id, command });
        id
    }

    /// What became of a command.
    pub fn answer(&self, node: usize, id: CommandId) -> Option<Result<Done, Refusal>> {
        let answers = &self.shells[node].answers;
        answers.iter().find(|(of, _)| *of == id).map(|(_, result)| *result)
    }

    /// The connection that a node knows.
    pub fn link(&self, node: usize) -> Option<LinkId> {
        self.shells[node].link
    }

    /// Number of requests that a node has not answered.
    pub fn waiting(&self, node: usize) -> usize {
        self.shells[node].requests.len()
    }

    /// Nothing is left of anything: slots, requests, commands, operations, pieces.
    pub fn is_empty(&self, node: usize) -> bool {
        let shell = &self.shells[node];
        let books = shell.slots.len() + shell.requests.len() + shell.commands.len() + shell.pending.len();
        books + shell.node.pieces() == 0
    }

    /// What is left, for messages.
    pub fn rest(&self, node: usize) -> String {
        let Shell { slots, requests, commands, pending, .. } = &self.shells[node];
        let pieces = self.shells[node].node.pieces();
        format!("node {node}: {slots:?} {requests:?} {commands:?} {pending:?}, {pieces} pieces")
    }
}

/// Which units of a range are zero, and a digest for each.
fn inspect(offset: u64, len: u32, zero: u64, differing: u64) -> (u32, [[u8; DIGEST_BYTES]; 32]) {
    let units = u64::from(len).div_ceil(UNIT_BYTES);
    let (mut zeroes, mut words) = (0, [[0; DIGEST_BYTES]; 32]);
    for (unit, word) in (0..units).zip(&mut words) {
        let number = (offset / UNIT_BYTES + unit) % 64;
        zeroes |= u32::from(zero >> number & 1 == 1) << unit;
        word[0] = number as u8;
        word[1] = (differing >> number & 1) as u8;
    }
    (zeroes, words)
}
