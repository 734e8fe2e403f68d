//! Two nodes, and a shell around each that has no bytes: disks, network and slots are books.
//!
//! Whoever drives it decides what is delivered when, and may change what the nodes send each other. The shell holds
//! each node to the border of the core: slots are released once, requests and commands answered once, operations
//! numbered uniquely, overlapping writes never at the disk together, frames are such as a peer takes, tables keep
//! their bounds. It counts what the nodes allocate.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lockstep_bitmap::{
    Base, ByteRange, CreateParams, DeviceIdentity, Generation, GenerationId, GenerationLog, Geometry,
    Identity, NodeId, Origin, PeerCopy, PeerRecord, Store, create,
};
use lockstep_core::{
    Action, Command, CommandId, DIGEST_BYTES, DiskError, Done, Event, ExportState, Frame, Instant, LinkId,
    LinkLoss, Node, NodeConfig, OpId, PIECE_BYTES_MAX, PeerConfig, PeerHello, Refusal, ReqId, RequestKind,
    SlotId, TableBounds, Timing, UNIT_BYTES,
};
use lockstep_counting::measure;

use crate::frames::check_sent;

/// Size of the volume.
pub const SIZE_BYTES: u64 = 4 << 20;
/// Slots of a shell: whoever needs one more waits.
pub const SLOTS_MAX: usize = 48;
/// Requests of clients at a time.
pub const REQUESTS_MAX: usize = 16;
const WRITES_MAX: usize = 64;
const UNDURABLE_MAX: usize = 64;
const RESYNC_WINDOW: usize = 4;
/// Actions of one event; one that answers everything there is stays far below.
const ACTIONS_MAX: usize = 20_000;

/// What a node starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Its operator said that its data count.
    Source,
    /// It has no data.
    Fresh,
    /// It has none, and its operator said that both disks are equal.
    Clean,
    /// It has no disk.
    Diskless,
}

/// What a disk has not completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pending {
    Read { op: OpId, gives_slot: bool },
    Inspect { op: OpId, offset: u64, len: u32, digests: bool },
    Other(OpId),
    Meta(OpId),
}

/// A frame on its way.
#[derive(Clone, Debug)]
pub struct Packet {
    /// The connection that it was sent on.
    pub link: LinkId,
    /// The header.
    pub frame: Frame,
    /// A control frame's body.
    pub body: Vec<u8>,
}

/// One node and its shell.
pub struct Shell {
    /// The node.
    pub node: Node,
    me: u8,
    pending: VecDeque<Pending>,
    writing: BTreeMap<OpId, ByteRange>,
    slots: BTreeSet<u32>,
    slots_given: u32,
    /// What it sent and nobody received.
    pub sent: VecDeque<Packet>,
    spare: Vec<Vec<u8>>,
    page: Vec<u8>,
    link: Option<LinkId>,
    closing: bool,
    dialing: bool,
    export: ExportState,
    requests: BTreeSet<ReqId>,
    commands: BTreeSet<CommandId>,
    answers: Vec<(CommandId, Result<Done, Refusal>)>,
    /// Allocations in the node since the start.
    pub allocations: u64,
}

fn store(me: u8, start: Start) -> Store {
    let source = start == Start::Source;
    let mut log = GenerationLog::new();
    if source {
        let (id, origin) = (GenerationId(77 + u128::from(me)), Origin::Created);
        let node = NodeId(me);
        log.push(Generation { id, ordinal: 1, parent: None, node, began_unix_ms: 1, origin }, &[]);
    }
    let peer = PeerRecord {
        node: NodeId(1 - me),
        base: if source { Base::NoGeneration } else { Base::Unset },
        copy: if source { PeerCopy::NoGeneration } else { PeerCopy::MayHold },
        session_offered: 0,
        session_used: 0,
        may_be_primary: false,
        slot_epoch: 1,
        slot_filled: source,
    };
    let (mut superblock, layout) = create(CreateParams {
        file_id: u64::from(me) + 1,
        identity: Identity {
            resource: "r0".into(),
            volume: 0,
            node: NodeId(me),
            node_name: format!("n{me}"),
            device: DeviceIdentity([me; 64]),
        },
        geometry: Geometry::new(SIZE_BYTES, 12, 17).expect("a good geometry"),
        log,
        peers: vec![peer],
        checkpoints: 2,
    });
    superblock.declared_clean = start == Start::Clean;
    Store::new(superblock, layout, 8)
}

fn run_id(me: u8) -> u128 {
    10 + u128::from(me)
}

impl Shell {
    fn new(me: u8, start: Start) -> Self {
        let cfg = NodeConfig {
            node: NodeId(me),
            peer: Some(PeerConfig { node: NodeId(1 - me) }),
            run_id: run_id(me),
            boot_id: 20 + u128::from(me),
            seed: [u64::from(me) + 1, 2, 3, 4],
            granule_bytes: 512,
            survives_process_death: true,
            sample: 0,
            writes_max: WRITES_MAX,
            undurable_max: UNDURABLE_MAX,
            resync_window: RESYNC_WINDOW,
            bits_frame_bytes: 16,
            timing: Timing::default(),
        };
        let node = Node::new(cfg, (start != Start::Diskless).then(|| store(me, start)));
        Shell {
            node,
            me,
            pending: VecDeque::with_capacity(1024),
            writing: BTreeMap::new(),
            slots: BTreeSet::new(),
            slots_given: 0,
            sent: VecDeque::with_capacity(1024),
            spare: Vec::new(),
            page: Vec::with_capacity(1 << 16),
            link: None,
            closing: false,
            dialing: false,
            export: ExportState::Closed,
            requests: BTreeSet::new(),
            commands: BTreeSet::new(),
            answers: Vec::new(),
            allocations: 0,
        }
    }

    fn handle(&mut self, now: Instant, event: Event<'_>) {
        let ((), usage) = measure(|| self.node.handle(now, event));
        self.allocations += usage.allocations;
        for count in 0.. {
            let (action, usage) = measure(|| self.node.poll_action());
            self.allocations += usage.allocations;
            let Some(action) = action else { break };
            assert!(count < ACTIONS_MAX, "one event, {count} actions");
            self.execute(action);
        }
        let bounds = TableBounds {
            writes_max: WRITES_MAX,
            undurable_max: UNDURABLE_MAX,
            resync_window: RESYNC_WINDOW,
            slots: SLOTS_MAX,
            requests: REQUESTS_MAX,
        };
        let pieces = self.node.pieces();
        assert!(pieces <= bounds.pieces(), "node {}: {pieces} pieces", self.me);
    }

    fn take_slot(&mut self) -> SlotId {
        self.slots_given += 1;
        self.slots.insert(self.slots_given);
        SlotId(self.slots_given)
    }

    fn has_room(&self) -> bool {
        self.slots.len() < SLOTS_MAX
    }

    fn begin(&mut self, pending: Pending) {
        let op = op_of(pending);
        assert!(self.pending.iter().all(|other| op_of(*other) != op), "operation {op} is under way already");
        self.pending.push_back(pending);
    }

    fn begin_write(&mut self, op: OpId, range: ByteRange) {
        assert!(range.end <= SIZE_BYTES, "writes past the end: {range:?}");
        let clash = self.writing.values().find(|other| other.overlaps(range));
        assert!(clash.is_none(), "node {}: {range:?} is written while {clash:?} is", self.me);
        self.writing.insert(op, range);
        self.begin(Pending::Other(op));
    }

    fn execute(&mut self, action: Action) {
        match action {
            Action::DiskRead { op, req, offset, len } => {
                assert!(offset + u64::from(len) <= SIZE_BYTES);
                self.begin(Pending::Read { op, gives_slot: req.is_none() });
            }
            Action::DiskInspect { op, offset, len, digests } => {
                assert!(offset + u64::from(len) <= SIZE_BYTES);
                self.begin(Pending::Inspect { op, offset, len, digests });
            }
            Action::DiskWrite { op, offset, len, slot, .. } => {
                assert!(self.slots.contains(&slot.0), "a write from a slot that is not there");
                self.begin_write(op, ByteRange::new(offset, u64::from(len)));
            }
            Action::DiskZero { op, offset, len, .. } => {
                self.begin_write(op, ByteRange::new(offset, u64::from(len)));
            }
            Action::DiskFill { op, slot, .. } => {
                assert!(self.slots.contains(&slot.0), "a slot that is not there is filled");
                self.begin(Pending::Other(op));
            }
            Action::DiskFlush { op } => self.begin(Pending::Other(op)),
            Action::MetaWrite { op, page } => {
                self.page.clear();
                let (_, usage) = measure(|| self.node.render_meta(page, &mut self.page));
                self.allocations += usage.allocations;
                self.begin(Pending::Meta(op));
            }
            Action::RecordFailure { op, .. } | Action::CloseDisk { op } => self.begin(Pending::Meta(op)),
            Action::Send { link, frame, slot } => self.send(link, frame, slot),
            Action::Dial => self.dialing = true,
            Action::CloseLink { link, .. } => self.closing |= self.link == Some(link),
            Action::Supply { slot, .. } | Action::ReleaseSlot { slot } => {
                assert!(self.slots.remove(&slot.0), "slot {slot} is released twice");
            }
            Action::Reply { req, .. } => {
                assert!(self.requests.remove(&req), "request {req} is answered twice");
            }
            Action::CommandDone { id, result } => {
                assert!(self.commands.remove(&id), "command {id} is answered twice");
                self.answers.push((id, result));
            }
            Action::Export { state } => self.export = state,
            Action::Notice(_) => {}
        }
    }

    fn send(&mut self, link: LinkId, frame: Frame, slot: Option<SlotId>) {
        assert_eq!(slot.is_some(), frame.payload().is_some(), "{frame:?} and its slot");
        assert!(
            slot.is_none_or(|slot| self.slots.contains(&slot.0)),
            "{frame:?} of a slot that is not there"
        );
        let mut body = self.spare.pop().unwrap_or_default();
        body.clear();
        body.reserve(1 << 12);
        let ((), usage) = measure(|| self.node.render_body(&frame, &mut body));
        self.allocations += usage.allocations;
        check_sent(&frame, &body);
        if self.link == Some(link) {
            self.sent.push_back(Packet { link, frame, body });
        }
    }
}

fn op_of(pending: Pending) -> OpId {
    match pending {
        Pending::Read { op, .. } | Pending::Inspect { op, .. } | Pending::Other(op) | Pending::Meta(op) => op,
    }
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
}

impl Pair {
    /// Two nodes that have just started.
    pub fn new(starts: [Start; 2]) -> Self {
        let [first, second] = starts;
        let shells = [Shell::new(0, first), Shell::new(1, second)];
        let mut pair =
            Pair { shells, now: Instant(1), numbers: 0, differing: 0b0111, zero: 0b1000, cut: false };
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
        let open = shell.export == ExportState::Open && shell.requests.len() < REQUESTS_MAX;
        if !open || shell.slots.len() + pieces > SLOTS_MAX || range.end > SIZE_BYTES {
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
