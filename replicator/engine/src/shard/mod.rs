//! The loop of a shard: one thread, one ring, and the resources that are dealt to it; the first shard has the listeners
//! too, and hands each connection to the shard of the resource that it turns out to be for.
//!
//! A turn: completions become events for the cores; their actions are executed as they come; metadata in memory is
//! written, as writes may wait for it; what goes to peers is submitted before anything else is written in this thread;
//! then local writes, then answers to clients; then one wait. Cores are never called while their actions are being
//! executed: events that arise meanwhile are queued.

mod actions;
mod clients;
mod control;
mod describe;
mod export;
mod links;
mod listen;
mod moves;
mod reads;
mod requests;
mod resource;
mod tls;
mod turns;

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use lockstep_core::{Event, Instant};

use crate::attach;
use crate::config::EngineConfig;
use crate::disk::inspect::{self, Inspected};
use crate::error::StartError;
use crate::fleet::{Fleet, Home, ShardId};
use crate::handle::Message;
use crate::link::Link;
use crate::nbd::Client;
use crate::ring::{Completion, Fd, Op, Ring};
use crate::slab::Slab;
use crate::slots::{Arena, PoolSize};
use crate::stock::Stock;
use crate::system::{self, Clock};
use crate::token::{Io, Token};
use listen::Socket;
use resource::Resource;

pub(crate) use control::{RESYNC_WINDOW, UNDURABLE_MAX, WRITES_MAX};
pub(crate) use describe::STATUS_MEMORY_BYTES;
pub(crate) use moves::{MovedClient, MovedPeer};
pub(crate) use resource::Pools;

/// How often connections with a time limit are looked at.
const SWEEP: Duration = Duration::from_millis(100);

/// Longest time in which the thread does what needs no kernel, before it looks at sockets, timers and commands
/// again: work in memory makes more of itself.
const TURN_MAX: Duration = Duration::from_millis(5);

/// Completions of one turn at most: an operation that was started in it may have ended in it.
const COMPLETIONS_MAX: usize = 4096;

/// All that a shard's thread owns.
pub(crate) struct Shard {
    id: ShardId,
    fleet: Arc<Fleet>,
    /// With the resources of this shard only.
    config: EngineConfig,
    clock: Clock,
    /// `None` only when the thread ends.
    io: Option<Io>,
    resources: Vec<Resource>,
    sockets: Vec<Socket>,
    links: Slab<Link>,
    next_link: u32,
    clients: Slab<Client>,
    /// Clients from other shards that have not begun here; each has a place among all connections.
    arrivals: VecDeque<Box<MovedClient>>,
    /// Clients with something to send.
    talking: Vec<u32>,
    /// Clients whose read goes on with its next part.
    reading_on: Vec<u32>,
    /// When to look at time limits, if there are any.
    sweep_at: Option<Instant>,
    /// An export's state changed: look again at clients that wait for it.
    exports_changed: bool,
    /// `Arena::frees` when starved connections were last looked at.
    frees_seen: u64,
    inbox: Receiver<Message>,
    wake: Fd,
    /// Connections handed to the terminator so far.
    tls_connections: u64,
    stopping: Option<Instant>,
    /// Nothing is up since then; the others were told.
    is_down: bool,
    /// Messages for all connections.
    stock: Stock,
    /// For frames' bodies and handshakes.
    scratch: Vec<u8>,
    /// Digests of the piece that is being looked at.
    digests: Vec<u8>,
}

impl Shard {
    /// Opens listeners and disks on the thread that will run it.
    pub(crate) fn new(fleet: Arc<Fleet>, id: ShardId, inbox: Receiver<Message>) -> Result<Self, StartError> {
        let config = fleet.config_of(id);
        if u16::try_from(config.resources.len() * usize::from(Pools::COUNT)).is_err() {
            return Err(StartError::Config("too many resources".into()));
        }
        let sizes: Vec<PoolSize> =
            config.resources.iter().flat_map(|r| Pools::sizes(r.buffer_bytes)).collect();
        let bytes: u64 = sizes.iter().map(|size| size.bytes() as u64).sum();
        let arena = Arena::new(&sizes).map_err(|error| StartError::Memory { bytes, error })?;
        let io = Ring::new(arena, config.spin_us)?;
        let sockets = if id == ShardId::FIRST { listen::open_all(&fleet.config)? } else { Vec::new() };
        let wake = fleet.queue(id).wake().try_clone();
        let wake = wake.map_err(|error| StartError::System { what: "duplicating the eventfd", error })?;
        let resources = (0..).zip(&config.resources).map(|(index, r)| Resource::new(index, r)).collect();
        tracing::info!("{} MiB of buffers for {} resources", bytes >> 20, config.resources.len());
        let mut shard = Self {
            id,
            clock: fleet.clock,
            io: Some(io),
            resources,
            sockets,
            links: Slab::with_capacity(64),
            next_link: 1,
            clients: Slab::with_capacity(config.limits.clients_max),
            arrivals: VecDeque::new(),
            talking: Vec::with_capacity(config.limits.clients_max),
            reading_on: Vec::new(),
            sweep_at: None,
            exports_changed: false,
            frees_seen: 0,
            inbox,
            wake: Rc::new(wake),
            tls_connections: 0,
            stopping: None,
            is_down: false,
            stock: Stock::new(),
            scratch: Vec::new(),
            digests: Vec::new(),
            config,
            fleet,
        };
        for index in 0..shard.resources.len() {
            let number = shard.fleet.number(Home { shard: id, index });
            let attached = attach::attach(&shard.fleet.config, number, false);
            shard.bring_up(index, attached);
        }
        shard.listen();
        Ok(shard)
    }

    /// Runs until told to stop.
    pub(crate) fn run(&mut self) {
        let wake = Op::Readable { fd: Rc::clone(&self.wake) };
        self.io().push(Token::Wake, wake);
        while !self.has_stopped() {
            for _ in 0..COMPLETIONS_MAX {
                let Some(completion) = self.io().reap() else { break };
                self.complete(completion);
            }
            self.keep_time();
            let timeout = if self.settle() { self.timeout() } else { Some(Duration::ZERO) };
            self.io().wait(timeout);
        }
        if let Some(io) = self.io.take() {
            io.close(Token::Close);
        }
        listen::remove(&self.sockets);
    }

    fn io(&mut self) -> &mut Io {
        match &mut self.io {
            Some(io) => io,
            None => unreachable!("the ring goes when the thread ends"),
        }
    }

    fn complete(&mut self, completion: Completion<Token>) {
        match completion.token {
            Token::Storage { resource, job } => {
                let Self { io: Some(io), resources, .. } = self else { return };
                resources[usize::from(resource)].storage.completed(io, job, completion);
                self.drain_storage(usize::from(resource));
            }
            Token::ClientReceived(index) => self.client_received(index, completion),
            Token::ClientSent(index) => self.client_sent(index, completion),
            Token::LinkReceived(index) => self.link_received(index, completion),
            Token::LinkSent(index) => self.link_sent(index, completion),
            Token::LinkConnected(index) => self.link_connected(index, completion.result),
            Token::Accept(index) => self.accepted(index, completion),
            Token::Wake => {
                let mut count = [0; 8];
                let _ = rustix::io::read(&*self.wake, &mut count);
                self.io().push(Token::Wake, completion.op);
                while let Ok(message) = self.inbox.try_recv() {
                    self.control(message);
                }
            }
            Token::Close => {}
        }
    }

    /// Gives the core what its disks have completed, and what arose meanwhile.
    fn drain_storage(&mut self, resource: usize) {
        loop {
            let entry = &mut self.resources[resource];
            if let Some(inspected) = entry.storage.next_inspected() {
                self.report_inspected(resource, inspected);
                continue;
            }
            entry.storage.close_if_idle();
            let Some(event) = entry.storage.next_finished().or_else(|| entry.events.pop_front()) else {
                return;
            };
            if let Event::DiskDone { slot: Some(slot), .. } = event {
                self.io().arena().give_to_core(slot);
            }
            self.feed(resource, event);
        }
    }

    /// Looks at a piece that was read for a resync, and tells the core what was found.
    fn report_inspected(&mut self, resource: usize, inspected: Inspected) {
        let Inspected { op, result, span, key } = inspected;
        let mut found = std::mem::take(&mut self.digests);
        found.clear();
        let mut zeroes = 0;
        if result.is_ok() {
            let arena = self.io().arena();
            let bytes = arena.bytes(span);
            zeroes = inspect::zero_units(bytes);
            if let Some(key) = key {
                inspect::digests(bytes, &key, &mut found);
            }
            arena.give_to_core(span.slot);
        }
        let slot = result.is_ok().then_some(span.slot);
        self.feed(resource, Event::DiskInspected { op, result, slot, zeroes, digests: &found });
        self.digests = found;
    }

    /// Brings everything to rest that can move without the kernel: peers first, then local I/O in this
    /// thread, then clients. False: there is more to do, but others had to wait long enough.
    fn settle(&mut self) -> bool {
        let began = self.clock.now();
        while self.clock.now().since(began) < TURN_MAX {
            (0..self.resources.len()).for_each(|resource| self.drain_storage(resource));
            (0..self.resources.len()).for_each(|resource| self.write_meta_inline(resource));
            if self.exports_changed {
                self.exports_changed = false;
                self.retry_held();
            }
            while let Some(index) = self.reading_on.pop() {
                self.serve(index);
            }
            let frees = self.io().arena().frees();
            if frees != self.frees_seen {
                self.frees_seen = frees;
                self.feed_starved();
            }
            self.kick_links();
            let Self { io: Some(io), resources, .. } = self else { return true };
            if resources.iter().any(|resource| resource.storage.has_inline()) {
                // Peers work while this thread writes.
                io.submit();
                resources.iter_mut().for_each(|resource| resource.storage.run_inline(io));
                continue;
            }
            self.kick_clients();
            self.finish_downs();
            let moving = self.exports_changed
                || !self.reading_on.is_empty()
                || self
                    .resources
                    .iter()
                    .any(|resource| !resource.events.is_empty() || resource.storage.has_inline());
            if !moving && self.io().arena().frees() == self.frees_seen {
                return true;
            }
        }
        self.kick_clients();
        false
    }

    /// Writes that wait for a mark (ordering 1) then go to the peer together with those that do not. Twice, as marks
    /// that were wanted since the first write of their page was asked for are in its second one.
    fn write_meta_inline(&mut self, resource: usize) {
        for _ in 0..2 {
            let Self { io: Some(io), resources, .. } = self else { return };
            if !resources[resource].storage.run_inline_meta(io) {
                return;
            }
            self.drain_storage(resource);
        }
    }

    fn feed_starved(&mut self) {
        let Self { io: Some(io), resources, .. } = self else { return };
        resources.iter_mut().for_each(|resource| resource.storage.feed_starved(io));
        self.feed_starved_links();
        self.feed_starved_clients();
    }

    fn keep_time(&mut self) {
        self.admit_arrivals();
        self.accept_where_room();
        let now = self.clock.now();
        for index in 0..self.resources.len() {
            if self.resources[index].deadline().is_some_and(|at| at <= now) {
                self.feed(index, Event::Tick { unix_ms: system::unix_ms() });
            }
        }
        if self.sweep_at.is_some_and(|at| at <= now) {
            self.sweep_at = None;
            self.sweep_links(now);
            self.sweep_clients(now);
            self.sweep_listeners();
            self.sweep_downs(now);
        }
    }

    /// Something has a time limit.
    fn want_sweep(&mut self) {
        if self.sweep_at.is_none() {
            self.sweep_at = Some(self.clock.now() + SWEEP);
        }
    }

    fn timeout(&mut self) -> Option<Duration> {
        let deadlines = self.resources.iter_mut().filter_map(Resource::deadline);
        let next = deadlines.chain(self.sweep_at).min()?;
        Some(next.since(self.clock.now()))
    }
}
