//! Two nodes on ideal disks and an ideal network: the main job, step by step, without faults.
//!
//! What faults do to it is the simulator's matter; this shows that the core's border is enough to run it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use lockstep_bitmap::{
    Base, CreateParams, DeviceIdentity, Generation, GenerationId, GenerationLog, Geometry, Identity,
    MetaPage, NodeId, Origin, PeerCopy, PeerRecord, Store, create, initial_pages, recover,
};
use lockstep_core::{
    Action, Command, CommandId, ConnectionState, DiskError, DiskState, Done, Event, Frame, Instant, IoError,
    LinkId, LinkLoss, NewDisk, Node, NodeConfig, OpId, PEER_TASKS_MAX, PeerConfig, PeerHello, Position,
    Refusal, ReplicationState, ReqId, RequestKind, Role, SlotId, SyncOrder, Timing,
};
use std::collections::{BTreeMap, VecDeque};

#[path = "pair/checkpoints.rs"]
mod checkpoints;
#[path = "pair/durability.rs"]
mod durability;
#[path = "pair/moments.rs"]
mod moments;
#[path = "pair/pace.rs"]
mod pace;
#[path = "pair/scenarios.rs"]
mod scenarios;

const SIZE: u64 = 2 << 20;

/// What is under way, to be delivered as an event.
enum Pending {
    Disk(OpId, Option<(u64, Vec<u8>)>),
    Inspected(OpId, u64, Vec<u8>),
    Unreadable(OpId),
    DiskFailed(OpId, DiskError),
    Meta(OpId),
    MetaFailed(OpId),
    Frame(LinkId, Frame, Vec<u8>, Option<Vec<u8>>),
    LinkDown(LinkId),
}

/// A frame on its way: link, header, control body, payload.
type Sent = (LinkId, Frame, Vec<u8>, Option<Vec<u8>>);

struct Host {
    node: Node,
    boot: u128,
    data: Vec<u8>,
    meta: Vec<u8>,
    /// Offset on the volume and bytes.
    slots: BTreeMap<u32, (u64, Vec<u8>)>,
    next_slot: u32,
    inbox: VecDeque<Pending>,
    outbox: Vec<Sent>,
    closing: Vec<LinkId>,
    dialing: bool,
    flush_fails: bool,
    /// Neither the metadata nor the shell's record of a failure can be written.
    meta_fails: bool,
    /// So does the flush in a write with FUA.
    fua_fails: bool,
    /// Reads for clients fail; so do writes, and leave what there was.
    read_fails: bool,
    write_fails: bool,
    /// Where the own disk was read for clients.
    reads: Vec<u64>,
    /// Writes in flight.
    writing: BTreeMap<OpId, std::ops::Range<usize>>,
    /// Flushes, and metadata writes, that do not complete for now.
    held: Option<Vec<OpId>>,
    held_meta: Option<Vec<OpId>>,
    /// What is written of the superblock stays in the disk's queue.
    keeps_superblock: bool,
    /// A range that a resync cannot read.
    unreadable: std::ops::Range<u64>,
    replies: Vec<(ReqId, Result<(), IoError>)>,
    done: Vec<(CommandId, Result<Done, Refusal>)>,
}

fn meta_file(id: u8, source: bool, clean: bool) -> Vec<u8> {
    let mut log = GenerationLog::new();
    if source {
        let origin = Origin::Created;
        let first = Generation {
            id: GenerationId(77),
            ordinal: 1,
            parent: None,
            node: NodeId(id),
            began_unix_ms: 1,
            origin,
        };
        log.push(first, &[]);
    }
    let peer = PeerRecord {
        node: NodeId(1 - id),
        base: if source { Base::NoGeneration } else { Base::Unset },
        copy: if source { PeerCopy::NoGeneration } else { PeerCopy::MayHold },
        session_offered: 0,
        session_used: 0,
        may_be_primary: false,
        slot_epoch: 1,
        slot_filled: source,
    };
    let (mut superblock, layout) = create(CreateParams {
        file_id: u64::from(id) + 1,
        identity: Identity {
            resource: "r0".into(),
            volume: 0,
            node: NodeId(id),
            node_name: format!("n{id}"),
            device: DeviceIdentity([id; 64]),
        },
        geometry: Geometry::new(SIZE, 12, 17).unwrap(),
        log,
        peers: vec![peer],
        checkpoints: 2,
    });
    superblock.declared_clean = clean;
    let mut file = vec![0; usize::try_from(layout.file_bytes()).unwrap()];
    for (offset, bytes) in initial_pages(&superblock, &layout) {
        let at = usize::try_from(offset).unwrap();
        file[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    file
}

fn open(meta: &[u8]) -> Store {
    let mut read = |offset: u64, out: &mut [u8]| -> Result<(), ()> {
        let at = usize::try_from(offset).unwrap();
        out.copy_from_slice(&meta[at..at + out.len()]);
        Ok(())
    };
    recover(meta.len() as u64, &mut read, 4).unwrap().0
}

impl Host {
    fn new(id: u8, meta: Vec<u8>, data: Vec<u8>, run: u128) -> Host {
        Host::booted(id, meta, data, run, 1)
    }

    fn booted(id: u8, meta: Vec<u8>, data: Vec<u8>, run: u128, boot: u128) -> Host {
        let cfg = NodeConfig {
            node: NodeId(id),
            peer: Some(PeerConfig { node: NodeId(1 - id) }),
            run_id: run,
            boot_id: boot,
            seed: [u64::from(id) + 1, 2, 3, u64::try_from(run).unwrap()],
            granule_bytes: 512,
            survives_process_death: true,
            sample: 0,
            writes_max: 64,
            undurable_max: 64,
            resync_window: 4,
            bits_frame_bytes: 16,
            timing: Timing::default(),
        };
        let node = Node::new(cfg, Some(open(&meta)));
        let empty = (BTreeMap::new(), VecDeque::new());
        Host {
            node,
            boot,
            data,
            meta,
            slots: empty.0,
            next_slot: 0,
            inbox: empty.1,
            outbox: vec![],
            closing: vec![],
            dialing: false,
            flush_fails: false,
            meta_fails: false,
            fua_fails: false,
            read_fails: false,
            write_fails: false,
            reads: vec![],
            writing: BTreeMap::new(),
            held: None,
            held_meta: None,
            keeps_superblock: false,
            unreadable: 0..0,
            replies: vec![],
            done: vec![],
        }
    }

    fn slot(&mut self, (offset, bytes): (u64, Vec<u8>)) -> SlotId {
        self.next_slot += 1;
        self.slots.insert(self.next_slot, (offset, bytes));
        SlotId(self.next_slot)
    }

    fn slot_bytes(&self, slot: SlotId, offset: u64, len: u32) -> Vec<u8> {
        let (first, bytes) = &self.slots[&slot.0];
        let at = usize::try_from(offset - first).unwrap();
        bytes[at..at + len as usize].to_vec()
    }

    fn handle(&mut self, now: Instant, event: Event<'_>) {
        self.node.handle(now, event);
        while let Some(action) = self.node.poll_action() {
            self.execute(action);
        }
    }

    fn execute(&mut self, action: Action) {
        let span = |offset: u64, len: u32| {
            let at = usize::try_from(offset).unwrap();
            at..at + len as usize
        };
        match action {
            Action::DiskRead { op, req: Some(_), .. } if self.read_fails => {
                self.inbox.push_back(Pending::DiskFailed(op, DiskError::Io));
            }
            Action::DiskRead { op, req, offset, len } => {
                self.reads.extend(req.map(|_| offset));
                let bytes = req.is_none().then(|| (offset, self.data[span(offset, len)].to_vec()));
                self.inbox.push_back(Pending::Disk(op, bytes));
            }
            Action::DiskInspect { op, offset, len, .. }
                if self.unreadable.start < offset + u64::from(len) && offset < self.unreadable.end =>
            {
                self.inbox.push_back(Pending::Unreadable(op));
            }
            Action::DiskInspect { op, offset, len, .. } => {
                let bytes = self.data[span(offset, len)].to_vec();
                self.inbox.push_back(Pending::Inspected(op, offset, bytes));
            }
            Action::DiskWrite { op, fua: true, .. } if self.fua_fails => {
                self.inbox.push_back(Pending::DiskFailed(op, DiskError::Sync));
            }
            Action::DiskWrite { op, .. } if self.write_fails => {
                self.inbox.push_back(Pending::DiskFailed(op, DiskError::Io));
            }
            Action::DiskWrite { op, offset, len, slot, .. } => {
                let overlaps = |r: &std::ops::Range<usize>| {
                    r.start < span(offset, len).end && span(offset, len).start < r.end
                };
                assert!(!self.writing.values().any(overlaps), "two writes at once");
                self.writing.insert(op, span(offset, len));
                let bytes = self.slot_bytes(slot, offset, len);
                self.data[span(offset, len)].copy_from_slice(&bytes);
                self.inbox.push_back(Pending::Disk(op, None));
            }
            Action::DiskZero { op, offset, len, .. } => {
                self.data[span(offset, len)].fill(0);
                self.inbox.push_back(Pending::Disk(op, None));
            }
            Action::DiskFlush { op } => match &mut self.held {
                Some(held) => held.push(op),
                None if self.flush_fails => self.inbox.push_back(Pending::DiskFailed(op, DiskError::Io)),
                None => self.inbox.push_back(Pending::Disk(op, None)),
            },
            Action::MetaWrite { op, .. } | Action::RecordFailure { op, .. } if self.meta_fails => {
                self.inbox.push_back(Pending::MetaFailed(op));
            }
            Action::MetaWrite { page: MetaPage::Superblock, .. } if self.keeps_superblock => {}
            Action::MetaWrite { op, page } => {
                let mut bytes = Vec::new();
                let places = self.node.render_meta(page, &mut bytes);
                for offset in places.iter() {
                    self.meta[span(offset, u32::try_from(bytes.len()).unwrap())].copy_from_slice(&bytes);
                }
                match &mut self.held_meta {
                    Some(held) => held.push(op),
                    None => self.inbox.push_back(Pending::Meta(op)),
                }
            }
            Action::Send { link, frame, slot } => {
                let mut body = Vec::new();
                self.node.render_body(&frame, &mut body);
                let range = frame.payload().zip(slot);
                let payload = range.map(|((offset, len), slot)| self.slot_bytes(slot, offset, len));
                self.outbox.push((link, frame, body, payload));
            }
            Action::CloseLink { link, .. } => self.closing.push(link),
            Action::Dial => self.dialing = true,
            Action::ReleaseSlot { slot } => assert!(self.slots.remove(&slot.0).is_some(), "released twice"),
            Action::Supply { slot, .. } => assert!(self.slots.remove(&slot.0).is_some()),
            Action::Reply { req, result, .. } => self.replies.push((req, result)),
            Action::CommandDone { id, result } => self.done.push((id, result)),
            Action::DiskFill { op, slot, offset, len, granule_bytes } => {
                let granule = u64::from(granule_bytes);
                let (start, end) =
                    (offset - offset % granule, (offset + u64::from(len)).next_multiple_of(granule));
                let mut bytes = self.data[span(start, u32::try_from(end - start).unwrap())].to_vec();
                let at = usize::try_from(offset - start).unwrap();
                bytes[at..at + len as usize].copy_from_slice(&self.slot_bytes(slot, offset, len));
                self.slots.insert(slot.0, (start, bytes));
                self.inbox.push_back(Pending::Disk(op, None));
            }
            Action::RecordFailure { op, .. } | Action::CloseDisk { op } => {
                self.inbox.push_back(Pending::Meta(op));
            }
            Action::Export { .. } | Action::Notice(_) => {}
        }
    }
}

struct World {
    now: Instant,
    hosts: [Host; 2],
    next_link: u32,
    cut: bool,
    /// What this node sends does not arrive.
    mute: Option<usize>,
    /// Both know the least rate in Pace frames.
    takes_least: bool,
    next_req: u32,
}

impl World {
    /// One copy with data, one fresh.
    fn new() -> World {
        let data = (0..SIZE).map(|i| u8::try_from(i % 251).unwrap()).collect();
        World::with([meta_file(0, true, false), meta_file(1, false, false)], data)
    }

    fn with([first, second]: [Vec<u8>; 2], data: Vec<u8>) -> World {
        let zero = vec![0; usize::try_from(SIZE).unwrap()];
        let hosts = [Host::new(0, first, data, 1), Host::new(1, second, zero, 2)];
        let now = Instant(1);
        let mut world =
            World { now, hosts, next_link: 1, cut: false, mute: None, takes_least: true, next_req: 1 };
        for i in 0..2 {
            world.hosts[i].handle(world.now, Event::Start { unix_ms: 1000 });
        }
        world
    }

    /// Delivers everything and lets time pass until `wanted`, at most 30 virtual seconds.
    fn until(&mut self, what: &str, wanted: impl Fn(&World) -> bool) {
        let end = self.now.0 + 30_000_000_000;
        while !wanted(self) {
            assert!(self.now.0 < end, "{what}: {:#?} {:#?}", self.status(0), self.status(1));
            if !self.step() {
                let next = (0..2).filter_map(|i| self.hosts[i].node.next_deadline()).map(|d| d.at).min();
                self.now = next.unwrap().max(self.now);
                for i in 0..2 {
                    self.hosts[i].handle(self.now, Event::Tick { unix_ms: self.now.0 / 1_000_000 });
                }
                self.now.0 += 1;
            }
        }
    }

    fn step(&mut self) -> bool {
        let mut moved = false;
        for i in 0..2 {
            if let Some(pending) = self.hosts[i].inbox.pop_front() {
                moved = true;
                self.deliver(i, pending);
            }
            for (link, frame, body, payload) in std::mem::take(&mut self.hosts[i].outbox) {
                moved = true;
                if !self.cut && self.mute != Some(i) {
                    self.hosts[1 - i].inbox.push_back(Pending::Frame(link, frame, body, payload));
                }
            }
            for link in std::mem::take(&mut self.hosts[i].closing) {
                moved = true;
                for host in &mut self.hosts {
                    host.inbox.push_back(Pending::LinkDown(link));
                }
            }
            if std::mem::take(&mut self.hosts[i].dialing) {
                moved = true;
                self.dial(i);
            }
        }
        moved
    }

    fn dial(&mut self, i: usize) {
        if self.cut || self.mute.is_some() {
            let down = Event::LinkDown { link: None, loss: LinkLoss::Unreachable };
            return self.hosts[i].handle(self.now, down);
        }
        let link = LinkId(self.next_link);
        self.next_link += 1;
        for i in 0..2usize {
            let node = NodeId(u8::try_from(1 - i).unwrap());
            let peer = PeerHello {
                node,
                run_id: 10 * self.hosts[1 - i].boot + (1 - i) as u128,
                boot_id: self.hosts[1 - i].boot,
                keeps_checkpoints: true,
                takes_least: self.takes_least,
            };
            self.hosts[i].handle(self.now, Event::LinkUp { link, peer });
        }
    }

    fn deliver(&mut self, i: usize, pending: Pending) {
        let (now, host) = (self.now, &mut self.hosts[i]);
        match pending {
            Pending::Disk(op, bytes) => {
                host.writing.remove(&op);
                let slot = bytes.map(|bytes| host.slot(bytes));
                host.handle(now, Event::DiskDone { op, result: Ok(()), slot });
            }
            Pending::Unreadable(op) => {
                let result = Err(DiskError::Io);
                host.handle(now, Event::DiskInspected { op, result, slot: None, zeroes: 0, digests: &[] });
            }
            Pending::Inspected(op, offset, bytes) => {
                let units = || (0u32..).zip(bytes.chunks(4096));
                let zeroes =
                    units().filter(|(_, unit)| unit.iter().all(|b| *b == 0)).map(|(n, _)| 1 << n).sum();
                // Stands for a hash: the first and the last byte, and the sum.
                let digest = |unit: &[u8]| {
                    let sum = unit.iter().map(|b| u64::from(*b)).sum::<u64>();
                    [sum, u64::from(unit[0]) << 8 | u64::from(unit[unit.len() - 1])]
                        .map(u64::to_le_bytes)
                        .concat()
                };
                let digests: Vec<u8> = units().flat_map(|(_, unit)| digest(unit)).collect();
                let slot = Some(host.slot((offset, bytes)));
                host.handle(
                    now,
                    Event::DiskInspected { op, result: Ok(()), slot, zeroes, digests: &digests },
                );
            }
            Pending::DiskFailed(op, error) => {
                host.handle(now, Event::DiskDone { op, result: Err(error), slot: None });
            }
            Pending::MetaFailed(op) => {
                host.handle(now, Event::MetaDone { op, result: Err(DiskError::Io) });
            }
            Pending::Meta(op) => host.handle(now, Event::MetaDone { op, result: Ok(()) }),
            Pending::Frame(link, frame, body, payload) => {
                let slot =
                    frame.payload().zip(payload).map(|((offset, _), bytes)| host.slot((offset, bytes)));
                host.handle(now, Event::Frame { link, frame, body: &body, slot });
            }
            Pending::LinkDown(link) => {
                host.handle(now, Event::LinkDown { link: Some(link), loss: LinkLoss::Lost });
            }
        }
    }

    fn status(&self, i: usize) -> lockstep_core::Status {
        self.hosts[i].node.status()
    }

    fn command(&mut self, i: usize, command: Command) -> Result<Done, Refusal> {
        let id = CommandId(self.next_req);
        self.next_req += 1;
        self.hosts[i].handle(self.now, Event::Command { id, command });
        self.until("the command's answer", |w| w.hosts[i].done.iter().any(|(of, _)| *of == id));
        self.hosts[i].done.iter().find(|(of, _)| *of == id).unwrap().1
    }

    fn write(&mut self, i: usize, offset: u64, fill: u8, len: u32) {
        let req = self.request(i, RequestKind::Write, (offset, len), false);
        let slot = self.hosts[i].slot((offset, vec![fill; len as usize]));
        self.hosts[i].handle(self.now, Event::Payload { req, offset, len, slot });
        assert_eq!(self.reply(i, req), Ok(()));
    }

    fn request(&mut self, i: usize, kind: RequestKind, (offset, len): (u64, u32), fua: bool) -> ReqId {
        let req = ReqId(self.next_req);
        self.next_req += 1;
        self.hosts[i].handle(self.now, Event::Request { req, kind, offset, len: u64::from(len), fua });
        req
    }

    fn reply(&mut self, i: usize, req: ReqId) -> Result<(), IoError> {
        self.until("a reply", |w| w.hosts[i].replies.iter().any(|(of, _)| *of == req));
        self.hosts[i].replies.iter().find(|(of, _)| *of == req).unwrap().1
    }

    fn promote(&mut self, i: usize) -> Result<Done, Refusal> {
        self.command(i, Command::Promote { peer_is_down: false, accept_data_loss: false })
    }

    fn settled(&mut self) {
        self.until("both in lockstep", |w| {
            (0..2).all(|i| {
                let status = w.status(i);
                status.peers[0].replication == ReplicationState::Established
                    && status.disk == DiskState::UpToDate
            })
        });
        assert!(self.hosts[0].data == self.hosts[1].data, "the copies differ");
    }

    fn cut(&mut self) {
        self.cut = true;
        self.until("both notice", |w| {
            (0..2).all(|i| w.status(i).peers[0].connection == ConnectionState::Connecting)
        });
    }

    /// A process that was killed by -9 comes back on what it wrote.
    fn kill(&mut self, i: usize) {
        let (meta, data) = (self.hosts[i].meta.clone(), self.hosts[i].data.clone());
        self.hosts[i] = Host::new(u8::try_from(i).unwrap(), meta, data, 100 + u128::from(self.next_req));
        let link = LinkId(self.next_link - 1);
        self.hosts[1 - i].inbox.push_back(Pending::LinkDown(link));
        self.hosts[i].handle(self.now, Event::Start { unix_ms: 5000 });
    }
}

#[test]
fn a_fresh_pair_synchronises_and_mirrors() {
    let mut w = World::new();
    assert_eq!(w.promote(0), Ok(Done::Changed));
    w.settled();
    w.write(0, 4096, 7, 8192);
    w.write(0, 512, 9, 512);
    w.settled();
    assert_eq!(w.hosts[1].data[4096], 7);
    assert!(w.hosts[0].slots.is_empty() && w.hosts[1].slots.is_empty(), "slots leak");
}

/// The regions that were hot become bits as a whole, and few of their blocks differ.
#[test]
fn what_was_hot_when_a_daemon_was_killed_is_compared_before_it_travels() {
    let mut w = World::new();
    w.promote(0).unwrap();
    w.settled();
    w.write(0, 65536, 3, 4096);
    w.kill(0);
    w.until("the target compares", |w| {
        let is_comparison =
            |pending: &Pending| matches!(pending, Pending::Frame(_, Frame::HashRequest { .. }, ..));
        w.hosts.iter().any(|host| host.inbox.iter().any(is_comparison))
    });
    w.settled();
}

#[test]
fn a_pair_declared_equal_needs_no_sync() {
    let zero = vec![0; usize::try_from(SIZE).unwrap()];
    let mut w = World::with([meta_file(0, false, true), meta_file(1, false, true)], zero);
    w.settled();
    assert_eq!(w.promote(1), Ok(Done::Changed));
    w.write(1, 0, 3, 4096);
    w.settled();
    assert_eq!(w.status(0).peers[0].resynced_bytes_total, 0);
    assert_eq!(w.status(0).generation, w.status(1).generation);
}

#[test]
fn a_cut_costs_what_was_written_meanwhile() {
    let mut w = World::new();
    w.promote(0).unwrap();
    w.settled();
    w.cut();
    w.write(0, 65536, 3, 65536);
    let before = w.status(0).peers[0].resynced_bytes_total;
    assert_eq!(w.status(0).peers[0].out_of_sync_bytes, 65536);
    w.cut = false;
    w.settled();
    assert_eq!(w.status(0).peers[0].resynced_bytes_total - before, 65536);
    assert_eq!(w.status(0).peers[0].out_of_sync_bytes, 0);
}

#[test]
fn a_planned_move_needs_no_resync() {
    let mut w = World::new();
    w.promote(0).unwrap();
    w.settled();
    w.write(0, 0, 1, 4096);
    let total = w.status(1).peers[0].resynced_bytes_total;
    assert!(matches!(w.promote(1), Err(Refusal::PeerIsPrimary(_))));
    assert_eq!(w.command(0, Command::Demote { force: false }), Ok(Done::Changed));
    assert_eq!(w.promote(1), Ok(Done::Changed));
    w.write(1, 8192, 2, 4096);
    w.settled();
    assert_eq!(w.status(1).peers[0].resynced_bytes_total, total);
    assert_eq!(w.status(0).role, Role::Secondary);
}

#[test]
fn a_killed_primary_returns_as_target() {
    let mut w = World::new();
    w.promote(0).unwrap();
    w.settled();
    w.write(0, 0, 1, 4096);
    w.cut();
    assert!(matches!(w.promote(1), Err(Refusal::MayBeStale { .. })));
    let flag = Command::Promote { peer_is_down: true, accept_data_loss: false };
    w.kill(0);
    assert_eq!(w.command(1, flag), Ok(Done::Changed));
    w.write(1, 1 << 20, 5, 4096);
    w.cut = false;
    w.until("the loser is seen", |w| w.status(1).peers[0].connection == ConnectionState::Connected);
    // Node 0 rotated when it lost node 1, before it was killed: both wrote alone as far as anybody can know.
    assert_eq!(w.status(1).peers[0].replication, ReplicationState::SplitBrain);
    assert_eq!(w.command(1, Command::Resolve { discard: NodeId(0) }), Ok(Done::Changed));
    w.settled();
    assert_eq!((w.hosts[0].data[0], w.hosts[0].data[1 << 20]), (1, 5));
}

#[test]
fn a_primary_killed_in_contact_returns_by_bitmap() {
    let mut w = World::new();
    w.promote(0).unwrap();
    w.settled();
    w.write(0, 0, 1, 4096);
    w.kill(0);
    w.cut = true;
    w.until("node 1 notices", |w| w.status(1).peers[0].connection == ConnectionState::Connecting);
    let flag = Command::Promote { peer_is_down: true, accept_data_loss: false };
    assert_eq!(w.command(1, flag), Ok(Done::Changed));
    w.write(1, 1 << 20, 5, 4096);
    let total = w.status(1).peers[0].resynced_bytes_total;
    w.cut = false;
    w.settled();
    let copied = w.status(1).peers[0].resynced_bytes_total - total;
    assert!(copied < SIZE / 2, "{copied} bytes were copied: hot regions and writes are enough");
}

#[test]
fn a_block_that_cannot_be_read_is_named_and_the_rest_is_copied() {
    let mut w = World::new();
    w.hosts[0].unreadable = 300_000..300_512;
    w.promote(0).unwrap();
    let incomplete = |w: &World, i: usize| w.status(i).peers[0].resync.as_ref().is_some_and(|r| r.incomplete);
    w.until("everything else is copied", |w| incomplete(w, 0) && incomplete(w, 1));
    for i in 0..2 {
        let resync = w.status(i).peers[0].resync.clone().unwrap();
        assert_eq!((resync.left_bytes, resync.unreadable_bytes), (4096, 4096));
        assert_eq!((resync.unreadable, resync.eta_s), (vec![(299_008, 4096)], None));
    }
    assert_eq!(w.status(1).disk, DiskState::Inconsistent);
    // A write of the block reaches both copies; the bit goes when the source can read it.
    w.write(0, 299_008, 9, 4096);
    assert!(incomplete(&w, 1));
    w.hosts[0].unreadable = 0..0;
    assert_eq!(w.command(0, Command::Sync(SyncOrder::Resume)), Ok(Done::Changed));
    w.settled();
    assert_eq!(w.hosts[1].data[299_008], 9);
}

#[test]
fn a_write_that_needs_a_stale_block_does_not_wait_for_the_whole_resync() {
    let mut w = World::new();
    w.promote(0).unwrap();
    w.settled();
    w.cut();
    w.write(0, 65536, 3, 65536);
    w.command(0, Command::Demote { force: false }).unwrap();
    w.command(1, Command::Sync(SyncOrder::Pause)).unwrap();
    w.cut = false;
    w.until("it is paused", |w| w.status(1).peers[0].replication == ReplicationState::PausedTarget);
    assert_eq!(w.promote(1), Ok(Done::Changed));
    // Half a logical block: the other half is stale here.
    w.write(1, 69_732, 9, 100);
    let left = w.status(1).peers[0].resync.as_ref().map(|r| r.left_bytes);
    assert!(left.is_some_and(|left| left > 0 && left < 65536), "{left:?}");
    w.command(1, Command::Sync(SyncOrder::Resume)).unwrap();
    w.settled();
    assert_eq!((w.hosts[0].data[69_731], w.hosts[0].data[69_732]), (3, 9));
}

#[test]
fn leaving_in_order_needs_no_flag() {
    let mut w = World::new();
    w.promote(0).unwrap();
    w.settled();
    w.write(0, 0, 1, 4096);
    assert_eq!(w.command(1, Command::Leave), Ok(Done::LeftAsOutdated));
    w.write(0, 4096, 2, 4096);
    assert_eq!(w.command(0, Command::Leave), Ok(Done::LeftAsIs));
    for i in 0..2 {
        w.kill(i);
    }
    assert_eq!(w.status(0).disk, DiskState::UpToDate, "proof: the other left before");
    assert_eq!(w.status(1).disk, DiskState::Outdated);
    assert_eq!(w.promote(0), Ok(Done::Changed));
    w.settled();
}

#[test]
fn a_copy_declared_wrong_is_copied_whole_from_the_other() {
    let mut w = World::new();
    w.promote(0).unwrap();
    w.settled();
    let total = w.status(0).peers[0].resynced_bytes_total;
    assert_eq!(w.command(1, Command::Invalidate { peer: false }), Ok(Done::Changed));
    assert_eq!(w.status(1).disk, DiskState::Inconsistent);
    w.hosts[1].data[4096..8192].fill(0xee);
    w.write(0, 0, 1, 4096);
    w.settled();
    assert_eq!(w.status(0).peers[0].resynced_bytes_total - total, SIZE);
    // The same, asked for from the other node; a restart in between changes nothing.
    assert_eq!(w.command(0, Command::Invalidate { peer: true }), Ok(Done::Changed));
    w.hosts[1].data.fill(0xee);
    w.kill(1);
    w.settled();
    assert_eq!(w.status(0).role, Role::Primary);
}

#[test]
fn the_only_copy_that_counts_is_not_given_up() {
    let invalidate = |peer| Command::Invalidate { peer };
    let mut w = World::new();
    assert_eq!(w.command(0, invalidate(false)), Err(Refusal::LastCopy(NodeId(0))), "the peer has no data");
    w.promote(0).unwrap();
    w.settled();
    assert_eq!(w.command(0, invalidate(false)), Err(Refusal::LoserIsPrimary(NodeId(0))));
    assert_eq!(w.command(1, invalidate(true)), Err(Refusal::LoserIsPrimary(NodeId(0))));
    w.cut();
    assert_eq!(w.command(0, invalidate(true)), Err(Refusal::NotConnected(NodeId(1))));
    // Alone it is nobody's only copy as far as it knows: its peer was UpToDate when it was last heard of.
    assert_eq!(w.command(1, invalidate(false)), Ok(Done::Changed));
    assert_eq!(w.command(1, invalidate(false)), Ok(Done::Changed));
    w.kill(1);
    assert_eq!(w.status(1).disk, DiskState::Inconsistent);
    assert_eq!(w.command(0, Command::Demote { force: false }), Ok(Done::Changed));
    assert_eq!(w.status(0).disk, DiskState::UpToDate, "it rotated without the peer");
    assert_eq!(w.command(0, invalidate(false)), Err(Refusal::LastCopy(NodeId(0))));
    w.cut = false;
    w.settled();
}

#[test]
fn without_a_disk_at_the_peer_an_invalidation_is_refused_at_once() {
    let mut w = World::new();
    w.promote(0).unwrap();
    w.settled();
    assert_eq!(w.command(1, Command::Detach), Ok(Done::Changed));
    w.until("the Primary serves", |w| w.status(1).peers[0].connection == ConnectionState::Connected);
    let invalidate = Command::Invalidate { peer: false };
    assert_eq!(w.command(0, invalidate), Err(Refusal::LoserIsPrimary(NodeId(0))));
    assert_eq!(w.command(1, invalidate), Err(Refusal::NoDisk));
    assert_eq!(w.command(0, Command::Demote { force: false }), Ok(Done::Changed));
    assert_eq!(w.command(0, invalidate), Err(Refusal::LastCopy(NodeId(0))));
}

/// The export closes in the middle of a payload: the client is there to read the answer.
#[test]
fn half_a_write_is_not_acknowledged() {
    let mut w = World::new();
    w.promote(0).unwrap();
    w.settled();
    let req = w.request(0, RequestKind::Write, (0, 2 * 131_072), false);
    let slot = w.hosts[0].slot((0, vec![1; 131_072]));
    w.hosts[0].handle(w.now, Event::Payload { req, offset: 0, len: 131_072, slot });
    w.hosts[0].handle(w.now, Event::Abandoned { req });
    assert_eq!(w.reply(0, req), Err(IoError::Shutdown));
    w.settled();
}

#[test]
fn trims_in_flight_are_bounded_and_all_end() {
    let mut w = World::new();
    w.promote(0).unwrap();
    w.settled();
    let trims: Vec<ReqId> = (1000..1050).map(ReqId).collect();
    for req in &trims {
        let request = Event::Request { req: *req, kind: RequestKind::Trim, offset: 0, len: SIZE, fua: false };
        w.hosts[0].handle(w.now, request);
        // As many as `writes_max`.
        assert!(w.hosts[0].node.pieces() <= 64, "{} pieces", w.hosts[0].node.pieces());
    }
    w.until("all trims are answered", |w| {
        trims.iter().all(|req| w.hosts[0].replies.contains(&(*req, Ok(()))))
    });
    w.settled();
}

#[test]
fn silence_on_a_link_that_is_not_read_is_not_the_peers() {
    let mut w = World::new();
    w.promote(0).unwrap();
    w.settled();
    let link = LinkId(w.next_link - 1);
    let timeout = Timing::default().timeout;
    let tell = |w: &mut World, is_reading| {
        let event = Event::Reading { link, is_reading };
        w.hosts[1].handle(w.now, event);
    };
    tell(&mut w, false);
    w.now = w.now + timeout * 3;
    w.hosts[1].handle(w.now, Event::Tick { unix_ms: 1 });
    assert!(w.hosts[1].closing.is_empty(), "its frames wait in the socket");
    tell(&mut w, true);
    w.now = w.now + timeout / 2;
    w.hosts[1].handle(w.now, Event::Tick { unix_ms: 1 });
    assert!(w.hosts[1].closing.is_empty(), "the time begins when it is read again");
    w.now = w.now + timeout;
    w.hosts[1].handle(w.now, Event::Tick { unix_ms: 1 });
    assert_eq!(w.hosts[1].closing, [link]);
}
