//! Starting and steering an engine from other threads.
//!
//! Calls never block on a shard: they put a message into the queue of the one that has the resource, and return.
//! Answers come through callbacks, which run on the shard's thread and must only hand the answer on. Shards talk to
//! each other through the same queues.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use lockstep_core::{Command, Done, Refusal};
use rustix::event::EventfdFlags;

use crate::attach::{self, Attached};
use crate::config::EngineConfig;
use crate::error::{AttachError, StartError};
use crate::fleet::{Fleet, Home, ShardId};
use crate::report::ResourceReport;
use crate::shard::{self, MovedClient, MovedPeer};
use crate::system;

/// Answer to a command.
pub type CommandReply = Box<dyn FnOnce(Result<Done, Refusal>) + Send>;
/// Answer to a status question.
pub type StatusReply = Box<dyn FnOnce(ResourceReport) + Send>;
/// Answer to `up`: whether the disk could be attached.
pub type UpReply = Box<dyn FnOnce(Result<Done, String>) + Send>;

/// Answer to the question whether a resource lacks a disk; an error in words while it may not be given one.
type NeedsReply = Box<dyn FnOnce(Result<bool, String>) + Send>;

/// No resource of this name is configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no resource {0} in the configuration")]
pub struct UnknownResource(pub String);

/// What the control plane and other shards ask of a shard. Numbers of resources are those on that shard.
pub(crate) enum Message {
    /// A command for the core.
    Command(usize, Command, CommandReply),
    /// A report.
    Status(usize, StatusReply),
    /// Whether a resource lacks a disk, and may be given one.
    NeedsDisk(usize, NeedsReply),
    /// The same, of a resource that must be up.
    MayAttach(usize, NeedsReply),
    /// The disks of a resource were opened; run it.
    Up(usize, Box<Result<Attached, AttachError>>, UpReply),
    /// Leave, then close the disks.
    Down(usize, bool, CommandReply),
    /// A client is inside of TLS, and its certificate has these names.
    TlsEstablished {
        /// Its index.
        client: u32,
        /// Which of the connections that had this index.
        serial: u64,
        /// In its certificate.
        names: Vec<String>,
    },
    /// A client named an export of this shard, and is its client from now on.
    Client(Box<MovedClient>),
    /// A peer named a resource of this shard, and its hello goes on here.
    Peer(Box<MovedPeer>),
    /// Everything down, then end the thread.
    Stop,
}

/// Starts engines.
pub struct Engine;

impl Engine {
    /// Opens listeners and disks, and starts the shards. A resource whose disk cannot be attached runs
    /// Diskless and says why in its report.
    pub fn start(mut config: EngineConfig) -> Result<EngineHandle, StartError> {
        // One without resources would have nothing to do.
        config.limits.shards = config.limits.shards.clamp(1, config.resources.len().max(1));
        let wanted = open_files_max(&config);
        let may = system::raise_open_files(wanted);
        if may < wanted {
            tracing::warn!(
                "this process may open {may} files, and needs {wanted} for all clients that it may serve: raise its \
                 limit (LimitNOFILE=, ulimit -Hn), or lower max-clients"
            );
        }
        let mut queues = Vec::new();
        let mut inboxes = Vec::new();
        for _ in 0..config.limits.shards {
            let (queue, inbox) = Queue::new()?;
            queues.push(queue);
            inboxes.push(inbox);
        }
        let fleet = Arc::new(Fleet::new(config, queues)?);
        // If one cannot start, those before it are stopped when this is dropped.
        let mut handle = EngineHandle { fleet: Arc::clone(&fleet), threads: Vec::new() };
        // Nobody is served before there is somebody for each resource: all begin when this is let go.
        let gate = Arc::new(Mutex::new(()));
        let closed = gate.lock();
        for (shard, inbox) in fleet.shards().zip(inboxes) {
            match spawn(Arc::clone(&fleet), shard, inbox, Arc::clone(&gate)) {
                Ok(thread) => handle.threads.push(thread),
                Err(error) => {
                    fleet.shards().skip(handle.threads.len()).for_each(|_| fleet.has_stopped());
                    return Err(error);
                }
            }
        }
        drop(closed);
        Ok(handle)
    }
}

/// Files that an engine has open at most, and some for the program around it.
fn open_files_max(config: &EngineConfig) -> u64 {
    const PROGRAM: usize = 64;
    /// Disk, metadata, links.
    const RESOURCE: usize = 8;
    /// Ring and queue of one more.
    const SHARD: usize = 4;
    let shards = config.limits.shards;
    // As many peers again may be on their way to their shard.
    let hellos = if shards > 1 { shards + 1 } else { shards } * config.limits.hellos_max;
    let connections = config.limits.connections_max() + hellos;
    let listeners = config.nbd_listeners.len();
    (connections + RESOURCE * config.resources.len() + listeners + SHARD * (shards - 1) + PROGRAM) as u64
}

/// The shard builds its ring on its own thread (a ring belongs to one); this waits for its word. It runs when the gate
/// is open.
fn spawn(
    fleet: Arc<Fleet>,
    id: ShardId,
    inbox: Receiver<Message>,
    gate: Arc<Mutex<()>>,
) -> Result<JoinHandle<()>, StartError> {
    let (ready, is_ready) = channel();
    let run = move || match shard::Shard::new(fleet, id, inbox) {
        Ok(mut shard) => {
            let _ = ready.send(Ok(()));
            drop(ready);
            drop(gate.lock());
            let _bomb = AbortOnPanic;
            shard.run();
        }
        Err(error) => {
            let _ = ready.send(Err(error));
        }
    };
    let thread = std::thread::Builder::new()
        .name("lockstep-shard".into())
        .spawn(run)
        .map_err(|error| StartError::System { what: "starting a thread", error })?;
    match is_ready.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(error)) => {
            let _ = thread.join();
            Err(error)
        }
        Err(_) => Err(StartError::Config("the shard thread ended at start".into())),
    }
}

/// A shard that found itself broken must not leave a daemon behind that looks alive: the process ends, as
/// after a power loss, and is started again.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

/// A running engine. Dropping it stops the engine as [`EngineHandle::stop`] does.
pub struct EngineHandle {
    fleet: Arc<Fleet>,
    threads: Vec<JoinHandle<()>>,
}

/// The way to a shard.
#[derive(Clone)]
pub(crate) struct Queue {
    sender: Sender<Message>,
    wake: Arc<OwnedFd>,
}

impl Queue {
    /// An empty one, and the end that is the shard's.
    fn new() -> Result<(Self, Receiver<Message>), StartError> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let wake = rustix::event::eventfd(0, flags)
            .map_err(|error| StartError::System { what: "eventfd", error: error.into() })?;
        let (sender, inbox) = channel();
        Ok((Self { sender, wake: Arc::new(wake) }, inbox))
    }

    /// The descriptor that says that something was put in.
    pub(crate) fn wake(&self) -> &OwnedFd {
        &self.wake
    }

    /// A shard that is gone drops the message and with it the callback, which the caller sees.
    pub(crate) fn send(&self, message: Message) {
        let _ = self.sender.send(message);
        self.wake_up();
    }

    /// Lets the shard look around, whether there is a message or not.
    pub(crate) fn wake_up(&self) {
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
    }
}

impl EngineHandle {
    /// The configuration it runs with.
    pub fn config(&self) -> &EngineConfig {
        &self.fleet.config
    }

    /// Names of the resources, in the order of the configuration.
    pub fn resources(&self) -> impl Iterator<Item = &str> {
        self.fleet.config.resources.iter().map(|resource| resource.name.as_str())
    }

    /// Gives a command to a resource. One that is down answers [`Refusal::Leaving`].
    pub fn command(
        &self,
        resource: &str,
        command: Command,
        reply: CommandReply,
    ) -> Result<(), UnknownResource> {
        let home = self.home(resource)?;
        self.fleet.send(home.shard, Message::Command(home.index, command, reply));
        Ok(())
    }

    /// Asks for a report.
    pub fn status(&self, resource: &str, reply: StatusReply) -> Result<(), UnknownResource> {
        let home = self.home(resource)?;
        self.fleet.send(home.shard, Message::Status(home.index, reply));
        Ok(())
    }

    /// Brings a resource up that is down, or tries again to attach the disk of one that runs without. The
    /// disks are opened on a thread of their own. `Done::Already`: nothing was to be done.
    pub fn up(&self, resource: &str, reply: UpReply) -> Result<(), UnknownResource> {
        self.open_disk(resource, Message::NeedsDisk, false, reply)
    }

    /// Attaches the disk of a resource that runs without. `moved`: it is another one than the metadata knows, and the
    /// operator says that it holds this data; it becomes the target of a comparison with all of the peer's copy.
    pub fn attach(&self, resource: &str, moved: bool, reply: UpReply) -> Result<(), UnknownResource> {
        self.open_disk(resource, Message::MayAttach, moved, reply)
    }

    fn open_disk(
        &self,
        resource: &str,
        ask: fn(usize, NeedsReply) -> Message,
        moved: bool,
        reply: UpReply,
    ) -> Result<(), UnknownResource> {
        let home = self.home(resource)?;
        let fleet = Arc::clone(&self.fleet);
        let attach = move || {
            let (answer, needs_disk) = channel();
            let question = move |needs_disk| {
                let _ = answer.send(needs_disk);
            };
            fleet.send(home.shard, ask(home.index, Box::new(question)));
            match needs_disk.recv() {
                Ok(Err(why)) => reply(Err(why)),
                Ok(Ok(false)) => reply(Ok(Done::Already)),
                Ok(Ok(true)) => {
                    let attached = attach::attach(&fleet.config, fleet.number(home), moved);
                    fleet.send(home.shard, Message::Up(home.index, Box::new(attached), reply));
                }
                Err(_) => reply(Err("the daemon is stopping".into())),
            }
        };
        // Only an exhausted system cannot start a thread; the callback is dropped then, which the caller
        // sees.
        let _ = std::thread::Builder::new().name("lockstep-attach".into()).spawn(attach);
        Ok(())
    }

    /// Leaves the resource cleanly and closes its disks. Clients are closed only by `force`; without it they are a
    /// refusal.
    pub fn down(&self, resource: &str, force: bool, reply: CommandReply) -> Result<(), UnknownResource> {
        let home = self.home(resource)?;
        self.fleet.send(home.shard, Message::Down(home.index, force, reply));
        Ok(())
    }

    /// Leaves every resource cleanly, within `stop_wait`, and ends the engine.
    pub fn stop(self) {
        drop(self);
    }

    /// Every shard is told before one is waited for.
    fn shut_down(&mut self) {
        self.fleet.shards().for_each(|shard| self.fleet.send(shard, Message::Stop));
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }

    fn home(&self, resource: &str) -> Result<Home, UnknownResource> {
        self.fleet.home(resource).ok_or_else(|| UnknownResource(resource.into()))
    }
}

impl Drop for EngineHandle {
    fn drop(&mut self) {
        self.shut_down();
    }
}
