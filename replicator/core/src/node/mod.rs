//! [`Node`]: the state of one resource on one node, and the routing of events to the parts that decide.
//!
//! The parts are files of this folder, each with its own paragraph on what it keeps: `attach`, `io` (client
//! requests), `describe` (what clients may ask of a range), `stream` (writes in the resource's stream and their
//! durability), `receive` (the peer's writes), `meta` (what is made durable, and when), `handshake`, `mirror` (begin
//! and end of replication), `resync`, `role`, `leave`, `invalidate`, `checkpoint` (what was written since), `repair`
//! (reads that fail), `failure`, `serve` and `detach` (a copy that is lost or given up, and its node's clients),
//! `timers`, `view` (status). All of them follow one pattern: change the state in memory, write what must be durable,
//! and run the effect that relies on it from the completion.

mod attach;
mod checkpoint;
mod checkpoint_exchange;
mod describe;
mod detach;
mod diskless;
mod exchange;
mod failure;
mod footprint;
mod handshake;
mod invalidate;
mod io;
mod leave;
mod meta;
mod mirror;
mod ops;
mod pace;
mod pieces;
mod progress;
mod receive;
mod repair;
mod resync;
mod role;
mod serve;
mod stream;
mod task;
mod timers;
mod view;

pub use detach::NewDisk;
pub use footprint::TableBounds;
pub use invalidate::declare_wrong;
pub use receive::PEER_TASKS_MAX;
pub use timers::Deadline;

use crate::action::{Action, ExportState, Notice};
use crate::config::{NodeConfig, PIECE_BYTES_MAX};
use crate::event::Event;
use crate::ids::Instant;
use crate::overlap::Overlap;
use crate::rng::Rng;
use crate::slab::Slab;
use crate::status::{DiskState, Role};
use crate::undurable::Undurable;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use handshake::{Dialer, Link};
use io::Requests;
use lockstep_bitmap::{FailureRecord, Geometry, PeerCopy, PeerRecord, Store};
use meta::MetaState;
use ops::Ops;
use receive::Receiver;
use resync::Resync;
use role::Change;
use stream::Stream;
use task::Task;

/// One resource on one node. See the crate's documentation for the contract.
#[derive(Debug)]
pub struct Node {
    cfg: NodeConfig,
    now: Instant,
    /// Wall clock in milliseconds at `wall_at`.
    wall_unix_ms: u64,
    wall_at: Instant,
    /// When the timers were looked at.
    timers_at: Instant,
    rng: Rng,
    actions: VecDeque<Action>,
    /// None: Diskless, or Failed and recorded as that.
    store: Option<Store>,
    disk: DiskState,
    role: Role,
    export: ExportState,
    /// The durable record was read, hot regions are dirty bits; handshakes and commands may begin.
    attached: bool,
    tasks: Slab<Task>,
    /// Tasks without a slot that the peer asked for.
    peer_tasks: usize,
    ops: Ops,
    locks: Overlap,
    /// Tasks whose lock was granted and that have not gone on yet.
    granted: VecDeque<u32>,
    requests: Requests,
    stream: Stream,
    undurable: Undurable,
    meta: MetaState,
    failure: failure::Failure,
    /// A failure that nobody could record.
    unrecorded: Option<FailureRecord>,
    /// The shell closes the files of a disk that is given up.
    closing: meta::OpenDisk,
    /// The detach, and the attach, that wait for their end.
    detached: Option<crate::ids::CommandId>,
    attaching: Option<crate::ids::CommandId>,
    /// Generation and term of the only UpToDate copy, the peer's, while this node has none that was mirrored since.
    through: Option<(lockstep_bitmap::GenerationId, u64)>,
    /// Without disk: the volume, and the highest term heard of.
    served: Option<Geometry>,
    term_seen: u64,
    serving: diskless::Serving,
    link: Option<Link>,
    dialer: Dialer,
    receiver: Receiver,
    resync: Option<Resync>,
    resynced_bytes_total: u64,
    pace: pace::Pace,
    /// Digests of HashRequests that are being sent, in their order.
    digests: VecDeque<Vec<u8>>,
    change: Option<Change>,
    checkpoints: checkpoint::Checkpoints,
    /// A Secondary without its peer makes its copy clean.
    settle: attach::Settle,
    /// Bits of the slot come from marks of hot regions. A hint for the next resync: it need not outlive this process.
    marked: bool,
    /// A rotation is not durable yet: nothing is acknowledged (ordering 4).
    rotating: bool,
    suspended_since: Option<Instant>,
    clients: u32,
    /// The operator's word on who loses a split brain, until the next verdict.
    discard: Option<lockstep_bitmap::NodeId>,
    proposal: lockstep_bitmap::GenerationId,
    contact_since: Instant,
    started: Instant,
    /// The peer was reached, or a dial failed, since the start.
    contact_tried: bool,
    last_peer: Option<crate::snapshot::Snapshot>,
    /// Who held the suspended writes before the link was lost (ordering 13).
    suspended_peer: Option<crate::event::PeerHello>,
    /// A departure that waits for the change under way.
    pending_leave: Option<crate::ids::CommandId>,
    /// A resolve that waits for a handshake.
    resolving: Option<role::Resolving>,
    /// Scratch list of ranges.
    lacking: Vec<lockstep_bitmap::ByteRange>,
}

impl Node {
    /// A node that has done nothing yet; send [`Event::Start`]. Without `store` it is Diskless.
    ///
    /// # Panics
    /// If a region of the volume is smaller than [`PIECE_BYTES_MAX`], or a limit is zero.
    pub fn new(cfg: NodeConfig, store: Option<Store>) -> Self {
        assert!(cfg.writes_max > 0 && cfg.undurable_max > 0 && cfg.resync_window > 0);
        if let Some(store) = &store {
            assert!(store.geometry().region_bytes() >= PIECE_BYTES_MAX);
            assert!(store.geometry().block_bytes() <= PIECE_BYTES_MAX && !store.slots.is_empty());
        }
        let mut rng = Rng::new(cfg.seed);
        let proposal = rng.generation_id();
        Node {
            now: Instant(0),
            wall_unix_ms: 0,
            wall_at: Instant(0),
            timers_at: Instant(0),
            actions: VecDeque::with_capacity(1024),
            disk: DiskState::Diskless,
            role: Role::Secondary,
            export: ExportState::Closed,
            attached: false,
            tasks: Slab::with_capacity(cfg.writes_max),
            peer_tasks: 0,
            ops: Ops::with_capacity(cfg.writes_max),
            locks: Overlap::with_capacity(cfg.writes_max),
            granted: VecDeque::with_capacity(cfg.writes_max),
            requests: Requests::with_capacity(cfg.writes_max),
            stream: Stream::with_capacity(cfg.writes_max),
            undurable: Undurable::new(cfg.undurable_max),
            meta: MetaState::new(store.as_ref()),
            failure: failure::Failure::None,
            unrecorded: None,
            closing: meta::OpenDisk::Not,
            detached: None,
            attaching: None,
            through: None,
            served: None,
            term_seen: 0,
            serving: diskless::Serving::default(),
            link: None,
            dialer: Dialer::new(&cfg),
            receiver: Receiver::with_capacity(cfg.undurable_max),
            resync: None,
            resynced_bytes_total: 0,
            pace: pace::Pace::new(),
            digests: VecDeque::new(),
            change: None,
            checkpoints: checkpoint::Checkpoints::default(),
            settle: attach::Settle::Idle,
            marked: false,
            rotating: false,
            suspended_since: None,
            clients: 0,
            discard: None,
            proposal,
            contact_since: Instant(0),
            started: Instant(0),
            contact_tried: false,
            last_peer: None,
            suspended_peer: None,
            pending_leave: None,
            resolving: None,
            lacking: Vec::new(),
            cfg,
            rng,
            store,
        }
    }

    /// Takes one input. Drain [`Self::poll_action`] to `None` before the next.
    pub fn handle(&mut self, now: Instant, event: Event<'_>) {
        debug_assert!(self.actions.is_empty(), "actions of the previous event were not drained");
        self.now = self.now.max(now);
        let is_frequent = matches!(
            event,
            Event::Request { .. } | Event::Payload { .. } | Event::DiskDone { .. } | Event::Frame { .. }
        );
        match event {
            Event::Start { unix_ms } => {
                self.set_wall(unix_ms);
                (self.started, self.contact_since) = (self.now, self.now);
                self.start();
            }
            Event::Tick { unix_ms } => self.set_wall(unix_ms),
            Event::Request { req, kind, offset, len, fua } => self.on_request(req, kind, offset, len, fua),
            Event::Payload { req, offset, len, slot } => self.on_payload(req, offset, len, slot),
            Event::Abandoned { req } => self.on_abandoned(req),
            Event::Clients { open } => self.clients = open,
            Event::DiskDone { op, result, slot } => self.on_disk_done(op, result, slot),
            Event::DiskInspected { op, result, slot, zeroes, digests } => {
                self.on_inspected(op, result, slot, (zeroes, digests));
            }
            Event::MetaDone { op, result } => self.on_meta_done(op, result),
            Event::LinkUp { link, peer } => self.on_link_up(link, peer),
            Event::Frame { link, frame, body, slot } => self.on_frame(link, frame, body, slot),
            Event::Reading { link, is_reading } => self.on_reading(link, is_reading),
            Event::LinkDown { link, loss } => self.on_link_down(link, loss),
            Event::Command { id, command } => self.on_command(id, command),
        }
        if !is_frequent || self.timers_are_due() {
            self.on_timers();
        }
        self.pump();
    }

    /// The next output, to be executed before the next input.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// May clients be served?
    pub fn export(&self) -> ExportState {
        self.export
    }

    /// Size and granularity of the volume; `None` while Diskless and never served through a peer.
    pub fn geometry(&self) -> Option<&Geometry> {
        self.store.as_ref().map(Store::geometry).or(self.served.as_ref())
    }

    /// Pieces of work in flight or queued, for clients, for the peer and for resync: what the tables of this node hold.
    pub fn pieces(&self) -> usize {
        self.tasks.len()
    }

    /// Runs everything that waits for a condition, until nothing moves.
    fn pump(&mut self) {
        for _ in 0..PUMP_ROUNDS_MAX {
            let mut moved = self.pump_granted();
            moved |= self.pump_stream();
            self.pump_lost_io();
            moved |= self.pump_requests();
            moved |= self.pump_resync();
            moved |= self.pump_handshake();
            moved |= self.pump_settle();
            moved |= self.pump_change();
            moved |= self.pump_pending_leave();
            moved |= self.pump_resolve();
            moved |= self.pump_checkpoint_exchange();
            moved |= self.pump_checkpoint_order();
            moved |= self.pump_checkpoints();
            moved |= self.pump_meta();
            if !moved {
                return;
            }
        }
        debug_assert!(false, "the pump does not come to rest");
    }

    fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    fn notice(&mut self, notice: Notice) {
        self.act(Action::Notice(notice));
    }

    fn set_wall(&mut self, unix_ms: u64) {
        self.wall_unix_ms = unix_ms;
        self.wall_at = self.now;
    }

    fn unix_ms(&self) -> u64 {
        let passed = u64::try_from(self.now.since(self.wall_at).as_millis()).unwrap_or(0);
        self.wall_unix_ms + passed
    }

    fn set_disk(&mut self, new: DiskState) {
        let old = core::mem::replace(&mut self.disk, new);
        if new == DiskState::UpToDate {
            self.through = None;
        }
        if old != new {
            self.notice(Notice::Disk { old, new });
        }
    }

    fn set_role(&mut self, new: Role) {
        let old = core::mem::replace(&mut self.role, new);
        if old != new {
            self.notice(Notice::Role { old, new });
        }
    }

    fn set_export(&mut self, state: ExportState) {
        if core::mem::replace(&mut self.export, state) != state {
            self.act(Action::Export { state });
        }
    }

    /// The durable record of the peer.
    fn peer(&self) -> Option<&PeerRecord> {
        self.store.as_ref()?.superblock.peers.first()
    }

    fn peer_mut(&mut self) -> Option<&mut PeerRecord> {
        self.store.as_mut()?.superblock.peers.first_mut()
    }

    fn peer_copy(&self) -> PeerCopy {
        self.peer().map_or(PeerCopy::MayHold, |peer| peer.copy)
    }

    /// The durable record proves that the other copy is behind this one.
    fn peer_proven_behind(&self) -> bool {
        match self.peer_copy() {
            PeerCopy::NoGeneration
            | PeerCopy::LeftOutdated
            | PeerCopy::SyncTarget
            | PeerCopy::RotatedWithout => true,
            PeerCopy::MayHold | PeerCopy::ToldToFinish => false,
        }
    }

    fn tasks_where(&self, wanted: impl FnMut(&Task) -> bool) -> Vec<u32> {
        self.tasks.select(wanted)
    }
}

/// A pump that has not come to rest after so many rounds is a defect.
const PUMP_ROUNDS_MAX: usize = 10_000;
