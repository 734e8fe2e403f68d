//! Two engines in one process over loopback, and a small blocking NBD client.
#![allow(dead_code, reason = "each test file uses a part")]

pub(crate) mod raw;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use lockstep_bitmap::{
    Base, CreateParams, DEFAULT_REGION_SHIFT, Generation, GenerationId, GenerationLog, Geometry, Identity,
    NodeId, Origin, PeerCopy, PeerRecord,
};
use lockstep_core::{Command, ConnectionState, DiskState, Done, Refusal, ReplicationState, Status};
use lockstep_engine::{
    Access, Engine, EngineConfig, EngineHandle, Limits, Listener, NbdListener, PeerAddress, ResourceConfig,
    ResourceReport, TlsPolicy, create_metadata, device_facts,
};
use lockstep_nbd::client::{Handshake, Reply, next_reply};
use lockstep_nbd::{Command as Nbd, NbdError, Request};
use rustix::net::{AddressFamily, SocketType, bind, getsockname, ipproto, socket, sockopt};

pub(crate) const SIZE_BYTES: u64 = 16 << 20;
/// Of any wait for something that must come: on a machine with much else to do it takes its time.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
const NAMES: [&str; 2] = ["alpha", "beta"];

/// Folders, ports and configurations of a pair.
pub(crate) struct Pair {
    _folder: tempfile::TempDir,
    pub(crate) root: PathBuf,
    resources: Vec<&'static str>,
    ports: [SocketAddr; 2],
    _reserved: [OwnedFd; 2],
    pub(crate) secrets: [[u8; 32]; 2],
}

impl Pair {
    /// Below `base`, with disks full of zeroes; alpha's copy is the source.
    pub(crate) fn new(base: &str) -> Self {
        Self::with(base, &["r0"])
    }

    /// The same with these resources.
    pub(crate) fn with(base: &str, resources: &[&'static str]) -> Self {
        let folder = tempfile::tempdir_in(base).unwrap();
        let root = folder.path().to_owned();
        let [(alpha, alpha_port), (beta, beta_port)] = [reserve_port(), reserve_port()];
        let (ports, _reserved) = ([alpha_port, beta_port], [alpha, beta]);
        let resources = resources.to_vec();
        let pair = Self { _folder: folder, root, resources, ports, _reserved, secrets: [[7; 32]; 2] };
        for (node, name) in NAMES.iter().enumerate() {
            std::fs::create_dir(pair.root.join(name)).unwrap();
            for resource in &pair.resources {
                std::fs::File::create(pair.disk_of(node, resource)).unwrap().set_len(SIZE_BYTES).unwrap();
                let params = pair.params_of(node, resource, node == 0);
                create_metadata(&pair.meta_of(node, resource), params, false).unwrap();
            }
        }
        pair
    }

    pub(crate) fn disk(&self, node: usize) -> PathBuf {
        self.disk_of(node, "r0")
    }

    pub(crate) fn disk_of(&self, node: usize, resource: &str) -> PathBuf {
        self.root.join(NAMES[node]).join(format!("{resource}.disk"))
    }

    pub(crate) fn meta(&self, node: usize) -> PathBuf {
        self.meta_of(node, "r0")
    }

    fn meta_of(&self, node: usize, resource: &str) -> PathBuf {
        self.root.join(NAMES[node]).join(format!("{resource}.meta"))
    }

    pub(crate) fn socket(&self, node: usize) -> PathBuf {
        self.root.join(NAMES[node]).join("nbd.sock")
    }

    pub(crate) fn params(&self, node: usize, is_source: bool) -> CreateParams {
        self.params_of(node, "r0", is_source)
    }

    fn params_of(&self, node: usize, resource: &str, is_source: bool) -> CreateParams {
        let geometry = Geometry::new(SIZE_BYTES, 12, DEFAULT_REGION_SHIFT).unwrap();
        let created = Generation {
            id: GenerationId(42),
            ordinal: 1,
            parent: None,
            node: NodeId(node as u8),
            began_unix_ms: 1,
            origin: Origin::Created,
        };
        let log = if is_source { vec![created] } else { Vec::new() };
        let peer = PeerRecord {
            node: NodeId(1 - node as u8),
            base: if is_source { Base::NoGeneration } else { Base::Unset },
            copy: if is_source { PeerCopy::NoGeneration } else { PeerCopy::MayHold },
            session_offered: 0,
            session_used: 0,
            may_be_primary: false,
            slot_epoch: 1,
            slot_filled: is_source,
        };
        CreateParams {
            file_id: 1 + node as u64,
            identity: Identity {
                resource: resource.into(),
                volume: 0,
                node: NodeId(node as u8),
                node_name: NAMES[node].into(),
                device: device_facts(&self.disk_of(node, resource)).unwrap().identity,
            },
            geometry,
            log: GenerationLog::from_entries(log).unwrap(),
            peers: vec![peer],
            checkpoints: 2,
        }
    }

    fn resource(&self, node: usize, name: &str) -> ResourceConfig {
        let peer = 1 - node;
        ResourceConfig {
            name: name.into(),
            disk: self.disk_of(node, name),
            meta: self.meta_of(node, name),
            failed_record: self.root.join(NAMES[node]).join(format!("{name}.failed")),
            read_only: false,
            access: Access::default(),
            peer: Some(PeerAddress {
                node: NodeId(peer as u8),
                name: NAMES[peer].into(),
                address: self.ports[peer],
            }),
            max_hot_regions: 64,
            buffer_bytes: Limits::BUFFER_BYTES_MIN,
            timing: Default::default(),
        }
    }

    pub(crate) fn config(&self, node: usize) -> EngineConfig {
        EngineConfig {
            cluster: "c1".into(),
            secret: self.secrets[node],
            node: NodeId(node as u8),
            node_name: NAMES[node].into(),
            listen: self.ports[node],
            nbd_listeners: vec![NbdListener {
                place: Listener::Unix { path: self.socket(node), mode: 0o600, group: None },
                tls: TlsPolicy::Off,
            }],
            terminator: None,
            resources: self.resources.iter().map(|resource| self.resource(node, resource)).collect(),
            limits: Limits::default(),
            memory_max_bytes: 1 << 30,
            spin_us: 50,
            congestion_control: None,
            hold_greeting: Duration::from_secs(10),
            lock_wait: Duration::from_secs(5),
            stop_wait: Duration::from_secs(5),
        }
    }

    pub(crate) fn start(&self, node: usize) -> EngineHandle {
        Engine::start(self.config(node)).unwrap()
    }

    /// New metadata, for a disk that took the place of the first one.
    pub(crate) fn create_again(&self, node: usize) {
        create_metadata(&self.meta(node), self.params(node, node == 0), true).unwrap();
    }

    pub(crate) fn connect(&self, node: usize) -> Client {
        Client::connect(&self.socket(node), "r0", true).unwrap()
    }
}

/// A port that is kept for an engine, also while it does not run: the socket never listens, and an engine that asks
/// for the port by number gets it.
fn reserve_port() -> (OwnedFd, SocketAddr) {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::TCP)).unwrap();
    sockopt::set_socket_reuseaddr(&socket, true).unwrap();
    bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = getsockname(&socket).unwrap().try_into().unwrap();
    (socket, address)
}

pub(crate) fn report(engine: &EngineHandle) -> ResourceReport {
    report_of(engine, "r0")
}

pub(crate) fn report_of(engine: &EngineHandle, resource: &str) -> ResourceReport {
    let (sender, receiver) = channel();
    engine.status(resource, Box::new(move |report| sender.send(report).unwrap())).unwrap();
    receiver.recv_timeout(LIMIT).unwrap()
}

pub(crate) fn status(engine: &EngineHandle) -> Status {
    report(engine).status.unwrap()
}

pub(crate) fn command(engine: &EngineHandle, command: Command) -> Result<Done, Refusal> {
    command_to(engine, "r0", command)
}

pub(crate) fn command_to(engine: &EngineHandle, resource: &str, command: Command) -> Result<Done, Refusal> {
    let (sender, receiver) = channel();
    engine.command(resource, command, Box::new(move |result| sender.send(result).unwrap())).unwrap();
    receiver.recv_timeout(LIMIT).unwrap()
}

pub(crate) fn promote(engine: &EngineHandle) {
    promote_one(engine, "r0");
}

pub(crate) fn promote_one(engine: &EngineHandle, resource: &str) {
    let plain = Command::Promote { peer_is_down: false, accept_data_loss: false };
    assert_eq!(command_to(engine, resource, plain), Ok(Done::Changed));
}

pub(crate) fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < LIMIT, "not so in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Both copies are UpToDate and mirrored.
pub(crate) fn wait_protected(engine: &EngineHandle) {
    wait_protected_one(engine, "r0");
}

pub(crate) fn wait_protected_one(engine: &EngineHandle, resource: &str) {
    wait_for("protected", || {
        let status = report_of(engine, resource).status.unwrap();
        let peer = &status.peers[0];
        status.disk == DiskState::UpToDate
            && peer.disk == Some(DiskState::UpToDate)
            && peer.connection == ConnectionState::Connected
            && peer.replication == ReplicationState::Established
    });
}

pub(crate) fn assert_equal(one: &Path, two: &Path) {
    let (one, two) = (std::fs::read(one).unwrap(), std::fs::read(two).unwrap());
    assert_eq!(one.len(), two.len());
    let differs = one.iter().zip(&two).position(|(a, b)| a != b);
    assert_eq!(differs, None, "the copies differ");
}

/// A blocking client with one request in flight, or as many as the caller begins.
pub(crate) struct Client {
    stream: UnixStream,
    received: Vec<u8>,
    pub(crate) size_bytes: u64,
    next_cookie: u64,
}

impl Client {
    pub(crate) fn connect(path: &Path, export: &str, structured: bool) -> Result<Self, String> {
        let mut stream = UnixStream::connect(path).map_err(|error| error.to_string())?;
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut handshake = Handshake::new(export, structured);
        let mut received = Vec::new();
        loop {
            stream.write_all(&handshake.take_output()).map_err(|error| error.to_string())?;
            if let Some(offer) = handshake.connected() {
                let size_bytes = offer.size_bytes;
                return Ok(Self { stream, received, size_bytes, next_cookie: 1 });
            }
            read_more(&mut stream, &mut received)?;
            let taken = handshake.receive(&received).map_err(|error| error.to_string())?;
            received.drain(..taken);
        }
    }

    /// Sends a request; returns its cookie.
    pub(crate) fn begin(&mut self, command: Nbd, fua: bool, offset: u64, length: u32, payload: &[u8]) -> u64 {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let request = Request { fua, ..Request::new(command, cookie, offset, length.into()) };
        self.stream.write_all(&request.encode()).unwrap();
        self.stream.write_all(payload).unwrap();
        cookie
    }

    /// Waits for the next answer that is not to a read.
    pub(crate) fn answer(&mut self) -> (u64, Option<NbdError>) {
        loop {
            match next_reply(&self.received) {
                Reply::NeedMore => read_more(&mut self.stream, &mut self.received).unwrap(),
                Reply::Simple { consumed, cookie, error } => {
                    self.received.drain(..consumed);
                    return (cookie, error);
                }
                Reply::Failed { consumed, cookie, error, .. } => {
                    self.received.drain(..consumed);
                    return (cookie, Some(error));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    pub(crate) fn call(
        &mut self,
        command: Nbd,
        fua: bool,
        offset: u64,
        length: u32,
        payload: &[u8],
    ) -> Option<NbdError> {
        let cookie = self.begin(command, fua, offset, length, payload);
        let (answered, error) = self.answer();
        assert_eq!(answered, cookie);
        error
    }

    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) {
        assert_eq!(self.call(Nbd::Write, false, offset, bytes.len() as u32, bytes), None);
    }

    pub(crate) fn write_fua(&mut self, offset: u64, bytes: &[u8]) {
        assert_eq!(self.call(Nbd::Write, true, offset, bytes.len() as u32, bytes), None);
    }

    pub(crate) fn zero(&mut self, command: Nbd, offset: u64, length: u32) {
        assert_eq!(self.call(command, false, offset, length, &[]), None);
    }

    pub(crate) fn flush(&mut self) {
        assert_eq!(self.call(Nbd::Flush, false, 0, 0, &[]), None);
    }

    pub(crate) fn read(&mut self, offset: u64, length: u32) -> Vec<u8> {
        self.begin(Nbd::Read, false, offset, length, &[]);
        self.take_data(length)
    }

    /// Waits for the next answer, to a read of this length, in as many parts as it comes.
    pub(crate) fn take_data(&mut self, length: u32) -> Vec<u8> {
        let mut data = Vec::new();
        while data.len() < length as usize {
            let (consumed, bytes) = match next_reply(&self.received) {
                Reply::NeedMore => {
                    read_more(&mut self.stream, &mut self.received).unwrap();
                    continue;
                }
                Reply::Data { consumed, length, .. } => (consumed, length),
                Reply::Simple { consumed, error: None, .. } => (consumed, length),
                other => panic!("{other:?}"),
            };
            let end = consumed + bytes as usize;
            while self.received.len() < end {
                read_more(&mut self.stream, &mut self.received).unwrap();
            }
            data.extend(self.received.drain(..end).skip(consumed));
        }
        data
    }

    /// Waits for the end of an answer: its error, or that the server closed.
    pub(crate) fn take_error(&mut self) -> Option<(NbdError, Option<u64>)> {
        loop {
            match next_reply(&self.received) {
                Reply::NeedMore => read_more(&mut self.stream, &mut self.received).ok()?,
                Reply::Data { consumed, length, done: false, .. } => {
                    let end = consumed + length as usize;
                    while self.received.len() < end {
                        read_more(&mut self.stream, &mut self.received).ok()?;
                    }
                    self.received.drain(..end);
                }
                // One header for all of it: what follows is data, until it ends.
                Reply::Simple { error: None, .. } => {
                    while read_more(&mut self.stream, &mut self.received).is_ok() {}
                    return None;
                }
                Reply::Simple { error, .. } => return error.map(|error| (error, None)),
                Reply::Failed { error, offset, .. } => return Some((error, offset)),
                other => panic!("{other:?}"),
            }
        }
    }

    /// Whether something arrives in this time.
    pub(crate) fn has_answer_within(&mut self, wait: Duration) -> bool {
        self.stream.set_read_timeout(Some(wait)).unwrap();
        let arrived = read_more(&mut self.stream, &mut self.received).is_ok();
        self.stream.set_read_timeout(Some(LIMIT)).unwrap();
        arrived
    }

    /// Bytes as they are.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        // The server may have closed already.
        let _ = self.stream.write_all(bytes);
    }

    pub(crate) fn set_nonblocking(&mut self) {
        self.stream.set_nonblocking(true).unwrap();
    }

    /// False if the server takes nothing more now.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> bool {
        matches!(self.stream.write(bytes), Ok(sent) if sent == bytes.len())
    }

    /// Bytes that have arrived and were not read.
    pub(crate) fn unread_bytes(&self) -> u64 {
        rustix::io::ioctl_fionread(&self.stream).unwrap()
    }

    /// Whether the server has closed the connection.
    pub(crate) fn is_closed(&mut self) -> bool {
        read_more(&mut self.stream, &mut self.received).is_err()
    }

    pub(crate) fn disconnect(mut self) {
        self.begin(Nbd::Disconnect, false, 0, 0, &[]);
        assert!(self.is_closed());
    }
}

fn read_more(stream: &mut UnixStream, received: &mut Vec<u8>) -> Result<(), String> {
    let mut buffer = vec![0; 64 << 10];
    match stream.read(&mut buffer) {
        Ok(0) => Err("closed".into()),
        Ok(count) => {
            received.extend_from_slice(&buffer[..count]);
            Ok(())
        }
        Err(error) => Err(error.to_string()),
    }
}
