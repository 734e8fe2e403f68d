//! What the control plane asks: commands, reports, up, down, stop.

use std::rc::Rc;
use std::time::Duration;

use lockstep_core::{Command, Done, Event, Instant, NewDisk, Node, NodeConfig, PeerConfig, Refusal};

use super::resource::{Pools, Stage};
use super::{Shard, listen};
use crate::attach::Attached;
use crate::error::AttachError;
use crate::handle::{CommandReply, Message, UpReply};
use crate::memory::bitmaps_bytes;
use crate::report::{ClientInfo, MemoryReport, ResourceReport};
use crate::system;

/// Pieces of trims and zeroes of one resource in flight.
pub(crate) const WRITES_MAX: usize = 256;
/// Writes that were answered and are not durable on both copies yet.
pub(crate) const UNDURABLE_MAX: usize = 8192;
/// How much longer than `stop_wait` a down may take until it is answered although disk operations have not
/// ended.
const CLOSE_WAIT: Duration = Duration::from_secs(2);
/// Resync pieces in flight.
pub(crate) const RESYNC_WINDOW: usize = 32;
/// Bytes of bitmap in one frame.
const BITS_FRAME_BYTES: usize = 32 * 1024;

impl Shard {
    pub(super) fn control(&mut self, message: Message) {
        match message {
            Message::Command(resource, command, reply) => self.command(resource, command, reply),
            Message::Status(resource, reply) => reply(self.report(resource)),
            Message::NeedsDisk(resource, reply) => reply(self.needs_disk(resource)),
            Message::MayAttach(resource, reply) => reply(self.may_attach(resource)),
            Message::Up(resource, attached, reply) => self.up(resource, attached, reply),
            Message::Down(resource, force, reply) => self.down(resource, force, Some(reply)),
            Message::TlsEstablished { client, serial, names } => self.tls_established(client, serial, names),
            Message::Client(client) => self.client_moved(client),
            Message::Peer(peer) => self.peer_moved(*peer),
            Message::Stop => {
                self.stopping = Some(self.clock.now());
                self.leave_inherited_sockets();
                (0..self.resources.len()).for_each(|resource| self.down(resource, true, None));
                self.want_sweep();
            }
        }
    }

    fn command(&mut self, resource: usize, command: Command, reply: CommandReply) {
        if command == Command::Leave {
            return self.down(resource, true, Some(reply));
        }
        if !matches!(self.resources[resource].stage, Stage::Up) {
            return reply(Err(Refusal::Leaving));
        }
        let id = self.resources[resource].add_command(reply);
        self.feed(resource, Event::Command { id, command });
    }

    /// Runs a resource with its disk, or Diskless if that cannot be attached.
    pub(super) fn bring_up(&mut self, resource: usize, attached: Result<Attached, AttachError>) {
        let attached = attached.and_then(|attached| self.admit_bitmaps(resource, attached));
        let config = &self.config.resources[resource];
        let entry = &mut self.resources[resource];
        entry.error = None;
        let mut sample = 0;
        let store = match attached {
            Ok(attached) => {
                entry.storage.disk = Some(attached.disk.into());
                entry.storage.meta = Some((Rc::new(attached.meta), attached.meta_in_memory));
                sample = attached.sample;
                Some(attached.store)
            }
            Err(error) => {
                tracing::error!("{}: runs without disk: {error}", entry.name);
                entry.error = Some(error.to_string());
                None
            }
        };
        let disk = entry.storage.disk.as_ref();
        let seed = system::random::<32>().unwrap_or_else(|error| {
            // The boot id and the run id still make it unique.
            tracing::error!("reading /dev/urandom: {error}");
            *blake3::hash(&self.fleet.local.run_id.to_le_bytes()).as_bytes()
        });
        let word = |nth: usize| seed[nth * 8..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let node = Node::new(
            NodeConfig {
                node: self.config.node,
                peer: config.peer.as_ref().map(|peer| PeerConfig { node: peer.node }),
                run_id: self.fleet.local.run_id,
                boot_id: self.fleet.local.boot_id,
                seed: [word(0), word(1), word(2), word(3)],
                granule_bytes: disk.map_or(512, |disk| disk.granule_bytes),
                survives_process_death: disk.is_some_and(|disk| disk.survives_process_death()),
                sample,
                writes_max: WRITES_MAX,
                undurable_max: UNDURABLE_MAX,
                resync_window: RESYNC_WINDOW,
                bits_frame_bytes: BITS_FRAME_BYTES,
                timing: config.timing,
            },
            store,
        );
        entry.node = Some(node);
        entry.stage = Stage::Up;
        entry.clients = 0;
        entry.link_error = None;
        entry.events.clear();
        self.feed(resource, Event::Start { unix_ms: system::unix_ms() });
    }

    /// Refuses a volume whose bitmaps do not fit beside everything else.
    fn admit_bitmaps(&mut self, resource: usize, attached: Attached) -> Result<Attached, AttachError> {
        self.give_back_bitmaps(resource);
        let max_hot_regions = self.config.resources[resource].max_hot_regions;
        let (geometry, layout) = (attached.store.geometry(), attached.store.layout());
        let bytes = bitmaps_bytes(geometry, max_hot_regions, layout.checkpoints());
        match self.fleet.memory.take(bytes) {
            Ok(()) => {
                self.resources[resource].bitmaps_bytes = bytes;
                Ok(attached)
            }
            Err(excess) => Err(AttachError::Memory { bitmaps_bytes: bytes, excess }),
        }
    }

    fn give_back_bitmaps(&mut self, resource: usize) {
        let bytes = std::mem::take(&mut self.resources[resource].bitmaps_bytes);
        self.fleet.memory.give_back(bytes);
    }

    /// Whether an attach is worth trying; an error in words while it is not.
    fn needs_disk(&self, resource: usize) -> Result<bool, String> {
        let entry = &self.resources[resource];
        match entry.stage {
            _ if self.stopping.is_some() => Err("the daemon is stopping".into()),
            // Its own locks would be in the way.
            Stage::Leaving { .. } | Stage::Closing { .. } => {
                Err(format!("{} is going down; try again when it is down", entry.name))
            }
            // Its own requests would land on what a later one wrote.
            Stage::Up if entry.storage.is_closing() => Err(format!(
                "the disk that was given up has not completed what it was asked for, and stays open until it has; \
                 then: lockstep attach {}",
                entry.name
            )),
            Stage::Up | Stage::Down => Ok(entry.storage.disk.is_none()),
        }
    }

    fn may_attach(&self, resource: usize) -> Result<bool, String> {
        let entry = &self.resources[resource];
        match entry.stage {
            Stage::Down => {
                Err(format!("{0} is down; type lockstep up {0}, which attaches its disk", entry.name))
            }
            _ => self.needs_disk(resource),
        }
    }

    fn up(&mut self, resource: usize, attached: Box<Result<Attached, AttachError>>, reply: UpReply) {
        let entry = &self.resources[resource];
        if self.stopping.is_some() {
            return reply(Err("the daemon is stopping".into()));
        }
        let has_disk = entry.storage.disk.is_some();
        match (&entry.stage, &entry.node) {
            (Stage::Up, _) if has_disk => reply(Ok(Done::Already)),
            (Stage::Up, _) if attached.is_err() => {
                let error = attached.err().map(|error| error.to_string());
                self.resources[resource].error.clone_from(&error);
                reply(Err(error.unwrap_or_default()));
            }
            (Stage::Down, _) => self.start_again(resource, *attached, reply),
            (Stage::Up, Some(_)) => self.attach_running(resource, *attached, reply),
            (Stage::Up | Stage::Leaving { .. } | Stage::Closing { .. }, _) => {
                self.resources[resource].restart = Some((attached, reply));
                self.down(resource, true, None);
            }
        }
    }

    /// Gives a disk to a core that runs without one.
    fn attach_running(&mut self, resource: usize, attached: Result<Attached, AttachError>, reply: UpReply) {
        let attached = match attached.and_then(|attached| self.admit_bitmaps(resource, attached)) {
            Ok(attached) => attached,
            Err(error) => {
                self.resources[resource].error = Some(error.to_string());
                return reply(Err(error.to_string()));
            }
        };
        let now = self.clock.now();
        let entry = &mut self.resources[resource];
        let disk: crate::disk::Disk = attached.disk.into();
        let new = NewDisk {
            store: attached.store,
            granule_bytes: disk.granule_bytes,
            survives_process_death: disk.survives_process_death(),
            sample: attached.sample,
        };
        let id = entry.add_command(Box::new(move |result| reply(result.map_err(|why| why.to_string()))));
        let Some(node) = &mut entry.node else { unreachable!("it runs") };
        match node.attach_store(now, id, new) {
            Ok(()) => {
                entry.storage.disk = Some(disk);
                entry.storage.meta = Some((Rc::new(attached.meta), attached.meta_in_memory));
                entry.error = None;
            }
            Err(refusal) => self.command_done(resource, id, Err(refusal)),
        }
        self.run_actions(resource);
    }

    fn start_again(&mut self, resource: usize, attached: Result<Attached, AttachError>, reply: UpReply) {
        let error = attached.as_ref().err().map(|error| error.to_string());
        self.bring_up(resource, attached);
        reply(error.map_or(Ok(Done::Changed), Err));
    }

    /// `force`: clients are closed.
    fn down(&mut self, resource: usize, force: bool, reply: Option<CommandReply>) {
        let now = self.clock.now();
        let entry = &mut self.resources[resource];
        let refusal = match (&entry.stage, &entry.node) {
            (Stage::Down, _) => return reply.into_iter().for_each(|reply| reply(Ok(Done::Already))),
            (Stage::Up, Some(node)) if !force => node.in_use(),
            _ => None,
        };
        if let Some(refusal) = refusal {
            return reply.into_iter().for_each(|reply| reply(Err(refusal)));
        }
        entry.down_replies.extend(reply);
        if !matches!(entry.stage, Stage::Up) {
            return;
        }
        entry.stage = Stage::Leaving { since: now };
        self.ask_to_leave(resource);
        self.want_sweep();
    }

    fn ask_to_leave(&mut self, resource: usize) {
        let Some(id) = self.resources[resource].leave_command() else { return };
        self.feed(resource, Event::Command { id, command: Command::Leave });
    }

    pub(super) fn sweep_downs(&mut self, now: Instant) {
        for resource in 0..self.resources.len() {
            match self.resources[resource].stage {
                Stage::Leaving { since } => {
                    self.want_sweep();
                    if now.since(since) >= self.config.stop_wait {
                        tracing::warn!("{}: could not leave cleanly in time", self.resources[resource].name);
                        self.left(resource, Ok(Done::LeftAsIs));
                    } else if self.resources[resource].leaving.is_none() {
                        // Refused while something else is under way: ask again.
                        self.ask_to_leave(resource);
                    }
                }
                Stage::Closing { .. } => self.want_sweep(),
                Stage::Up | Stage::Down => {}
            }
        }
    }

    /// Completes the downs whose last operations have ended.
    pub(super) fn finish_downs(&mut self) {
        for resource in 0..self.resources.len() {
            if matches!(self.resources[resource].stage, Stage::Closing { .. }) {
                self.finish_down(resource);
            }
        }
    }

    fn finish_down(&mut self, resource: usize) {
        if self.resources[resource].node.is_some() {
            self.close_clients(resource);
            // First, so that a disk that does not answer does not keep the peer waiting.
            self.drop_links(resource);
            if !self.resources[resource].storage.is_idle() {
                return self.give_up_waiting(resource);
            }
            self.drop_node(resource);
        }
        let is_busy = self.has_links(resource) || !self.resources[resource].storage.is_idle();
        if is_busy {
            return self.give_up_waiting(resource);
        }
        self.give_back_bitmaps(resource);
        let entry = &mut self.resources[resource];
        entry.storage.disk = None;
        entry.storage.meta = None;
        let Stage::Closing { result, .. } = std::mem::replace(&mut entry.stage, Stage::Down) else { return };
        tracing::info!("{}: down", entry.name);
        for reply in std::mem::take(&mut entry.down_replies) {
            reply(result);
        }
        match entry.restart.take() {
            Some((_, reply)) if self.stopping.is_some() => reply(Err("the daemon is stopping".into())),
            Some((attached, reply)) => self.start_again(resource, *attached, reply),
            None => {}
        }
    }

    /// Who waits for a down is told after a while, even if a disk never answers. The resource stays closing.
    fn give_up_waiting(&mut self, resource: usize) {
        let now = self.clock.now();
        let entry = &mut self.resources[resource];
        let Stage::Closing { since, .. } = entry.stage else { return };
        if now.since(since) < self.config.stop_wait + CLOSE_WAIT || entry.down_replies.is_empty() {
            return;
        }
        tracing::error!("{}: its disk does not complete what it was given; it stays locked", entry.name);
        std::mem::take(&mut entry.down_replies).into_iter().for_each(|reply| reply(Ok(Done::LeftAsIs)));
    }

    /// The core goes; what it had not answered is answered with an error, what it held is free again.
    fn drop_node(&mut self, resource: usize) {
        let entry = &mut self.resources[resource];
        (entry.node, entry.deadline) = (None, None);
        entry.events.clear();
        let commands = std::mem::take(&mut entry.commands);
        let open: Vec<u32> = entry.requests.iter().map(|(id, _)| id).collect();
        let pools: Pools = entry.pools;
        for id in open {
            self.reply(resource, id, Err(lockstep_core::IoError::Shutdown), None);
        }
        self.io().arena().reclaim_from_core(&pools.all());
        commands.into_iter().for_each(|(_, reply)| reply(Err(Refusal::Leaving)));
    }

    /// Everything is down on all shards, or the time for that is over.
    pub(super) fn has_stopped(&mut self) -> bool {
        let Some(since) = self.stopping else { return false };
        let all_down = self.resources.iter().all(|resource| matches!(resource.stage, Stage::Down));
        if all_down && !std::mem::replace(&mut self.is_down, true) {
            self.fleet.has_stopped();
        }
        let grace = self.config.stop_wait + CLOSE_WAIT;
        self.fleet.have_all_stopped() || self.clock.now().since(since) >= grace
    }

    fn report(&mut self, resource: usize) -> ResourceReport {
        let config = &self.config.resources[resource];
        let clients = self.clients.iter().map(|(_, client)| client);
        let clients = clients.filter(|client| client.served_resource() == Some(resource as u16));
        let info = |client: &crate::nbd::Client| ClientInfo {
            addr: client.address.clone(),
            export: config.name.clone(),
            since: client.since,
        };
        let clients = clients.map(info).collect();
        let entry = &self.resources[resource];
        let pools = entry.pools.all();
        let nbd_uris =
            self.config.nbd_listeners.iter().filter_map(|l| listen::uri(l, &config.name)).collect();
        let Some(io) = &mut self.io else { unreachable!("the ring goes when the thread ends") };
        let free: u32 = pools.iter().map(|pool| io.arena().free_in(*pool)).sum();
        ResourceReport {
            name: config.name.clone(),
            status: entry.node.as_ref().map(|node| node.status()),
            error: entry.error.clone(),
            clients,
            disk: config.disk.clone(),
            disk_mode: entry.storage.disk.as_ref().map(|disk| disk.describe()),
            meta: config.meta.clone(),
            nbd_uris,
            peer: config.peer.as_ref().map(|peer| (peer.name.clone(), peer.address.to_string())),
            memory: MemoryReport {
                reserved_bytes: entry.reserved_bytes,
                bitmaps_bytes: entry.bitmaps_bytes,
                slots_in_use: entry.slots - free,
                slots: entry.slots,
            },
            link_error: entry.link_error.clone(),
        }
    }
}
