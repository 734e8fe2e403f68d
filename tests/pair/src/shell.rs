//! One node and its shell: it carries out each action in its books, and holds the node to what an action may be.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lockstep_bitmap::{
    Base, ByteRange, CreateParams, DeviceIdentity, Generation, GenerationId, GenerationLog, Geometry,
    Identity, NodeId, Origin, PeerCopy, PeerRecord, Store, crc32c, create,
};
use lockstep_core::{
    Action, CommandId, Done, Event, ExportState, Frame, Instant, LinkId, Node, NodeConfig, OpId, PeerConfig,
    Refusal, ReqId, SlotId, Timing,
};
use lockstep_counting::measure;

use crate::Shape;

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
pub(crate) enum Pending {
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
    shape: Shape,
    pub(crate) pending: VecDeque<Pending>,
    pub(crate) writing: BTreeMap<OpId, ByteRange>,
    pub(crate) slots: BTreeSet<u32>,
    slots_given: u32,
    /// What it sent and nobody received.
    pub sent: VecDeque<Packet>,
    pub(crate) spare: Vec<Vec<u8>>,
    page: Vec<u8>,
    pub(crate) link: Option<LinkId>,
    pub(crate) closing: bool,
    pub(crate) dialing: bool,
    pub(crate) export: ExportState,
    pub(crate) requests: BTreeSet<ReqId>,
    pub(crate) commands: BTreeSet<CommandId>,
    pub(crate) answers: Vec<(CommandId, Result<Done, Refusal>)>,
    /// What runs in the node goes through [`measure`].
    pub is_measured: bool,
    /// Allocations in the node while it was measured.
    pub allocations: u64,
}

fn store(shape: Shape, me: u8, start: Start) -> Store {
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
        geometry: Geometry::new(shape.size_bytes, 12, shape.region_shift).expect("a good geometry"),
        log,
        peers: vec![peer],
        checkpoints: 2,
    });
    superblock.declared_clean = start == Start::Clean;
    Store::new(superblock, layout, shape.hot_max)
}

pub(crate) fn run_id(me: u8) -> u128 {
    10 + u128::from(me)
}

impl Shell {
    pub(crate) fn new(shape: Shape, me: u8, start: Start) -> Self {
        let cfg = NodeConfig {
            node: NodeId(me),
            peer: Some(PeerConfig { node: NodeId(1 - me) }),
            run_id: run_id(me),
            boot_id: 20 + u128::from(me),
            seed: [u64::from(me) + 1, 2, 3, 4],
            granule_bytes: 512,
            survives_process_death: true,
            sample: 0,
            writes_max: shape.tables.writes_max,
            undurable_max: shape.tables.undurable_max,
            resync_window: shape.tables.resync_window,
            bits_frame_bytes: shape.bits_frame_bytes,
            timing: Timing::default(),
        };
        let node = Node::new(cfg, (start != Start::Diskless).then(|| store(shape, me, start)));
        Shell {
            node,
            me,
            shape,
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
            is_measured: true,
            allocations: 0,
        }
    }

    /// Runs something in the node.
    fn run<T>(&mut self, work: impl FnOnce(&mut Node) -> T) -> T {
        if !self.is_measured {
            return work(&mut self.node);
        }
        let (result, usage) = measure(|| work(&mut self.node));
        self.allocations += usage.allocations;
        result
    }

    pub(crate) fn handle(&mut self, now: Instant, event: Event<'_>) {
        self.run(|node| node.handle(now, event));
        for count in 0.. {
            let Some(action) = self.run(Node::poll_action) else { break };
            assert!(count < ACTIONS_MAX, "one event, {count} actions");
            self.execute(action);
        }
        let pieces = self.node.pieces();
        assert!(pieces <= self.shape.tables.pieces(), "node {}: {pieces} pieces", self.me);
    }

    pub(crate) fn take_slot(&mut self) -> SlotId {
        self.slots_given += 1;
        self.slots.insert(self.slots_given);
        SlotId(self.slots_given)
    }

    pub(crate) fn has_room(&self) -> bool {
        self.slots.len() < self.shape.tables.slots
    }

    fn begin(&mut self, pending: Pending) {
        let op = op_of(pending);
        assert!(self.pending.iter().all(|other| op_of(*other) != op), "operation {op} is under way already");
        self.pending.push_back(pending);
    }

    fn begin_write(&mut self, op: OpId, range: ByteRange) {
        assert!(range.end <= self.shape.size_bytes, "writes past the end: {range:?}");
        let clash = self.writing.values().find(|other| other.overlaps(range));
        assert!(clash.is_none(), "node {}: {range:?} is written while {clash:?} is", self.me);
        self.writing.insert(op, range);
        self.begin(Pending::Other(op));
    }

    fn execute(&mut self, action: Action) {
        match action {
            Action::DiskRead { op, req, offset, len } => {
                assert!(offset + u64::from(len) <= self.shape.size_bytes);
                self.begin(Pending::Read { op, gives_slot: req.is_none() });
            }
            Action::DiskInspect { op, offset, len, digests } => {
                assert!(offset + u64::from(len) <= self.shape.size_bytes);
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
                let mut rendered = std::mem::take(&mut self.page);
                rendered.clear();
                self.run(|node| node.render_meta(page, &mut rendered));
                self.page = rendered;
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
        self.run(|node| node.render_body(&frame, &mut body));
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

/// What a node sends is what its peer takes.
fn check_sent(frame: &Frame, body: &[u8]) {
    let body_bytes = frame.payload().map_or(body.len() as u32, |(_, len)| len);
    let head = frame.encode(body_bytes, 7, crc32c);
    assert_eq!(Frame::decode(&head, crc32c), Ok((*frame, body_bytes, 7)), "with {body_bytes} bytes");
}
