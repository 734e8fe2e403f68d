//! `nbd`: serves one file or device over NBD, without replication, metadata or control socket.
//!
//! The same server on the same engine, with a resource that has no peer and whose metadata live in memory and are
//! forgotten: for other people's test suites, and for anybody who wants one good NBD server. A FLUSH that was answered
//! is on stable media; nothing else is promised.

use crate::cli::Nbd;
use crate::daemon::{SPIN_US, memory_budget, memory_max_bytes, start_failure, start_log, wait_for_signal};
use crate::failure::Failure;
use crate::inherited::{self, Place};
use crate::secret::random;
use crate::stdio::Stdio;
use crate::text;
use crate::tls::{self, Terminator};
use lockstep_bitmap::{
    Base, CreateParams, DEFAULT_REGION_SHIFT, Generation, GenerationId, GenerationLog, Geometry, Identity,
    NAME_BYTES_MAX, NodeId, Origin, PeerCopy, PeerRecord,
};
use lockstep_core::{Command, Done, Timing};
use lockstep_engine::{
    Access, Engine, EngineConfig, EngineHandle, Limits, Listener, NbdListener, ResourceConfig, TlsPolicy,
    TlsTerminator, create_metadata, device_facts,
};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tokio::sync::oneshot;
use tracing::info;

const BLOCK_SHIFT: u8 = 12;
const NODE: NodeId = NodeId(0);
const NODE_OF_NOBODY: NodeId = NodeId(1);
const NODE_NAME: &str = "plain";
const SOCKET_MODE: u32 = 0o600;
/// Memory for payloads: enough for a few busy clients.
const BUFFER_BYTES: u64 = 96 << 20;
/// No resync will ever be the longer for it.
const MAX_HOT_REGIONS: u32 = u32::MAX;
const START_WAIT: Duration = Duration::from_secs(10);

/// Serve until stopped.
pub(crate) fn run(args: &Nbd) -> Result<(), Failure> {
    start_log();
    let mut listeners = listeners(args)?;
    let name = export_name(args)?;
    let scratch = Scratch::create()?;
    let stdio = args.stdio.then(|| Stdio::bind(scratch.path())).transpose().map_err(stdio_failure)?;
    if let Some(stdio) = &stdio {
        let socket = Arc::new(stdio.listener().map_err(stdio_failure)?);
        let tls = if args.tls_cert.is_some() { TlsPolicy::Optional } else { TlsPolicy::Off };
        listeners.push(NbdListener { place: Listener::Inherited { socket, place: None }, tls });
    }
    let (mut config, geometry) = config(args, &name, listeners, scratch.path())?;
    let terminator = terminator(args, &mut config)?;
    let memory = memory_budget(&config).with_volume(&geometry, MAX_HOT_REGIONS, 0);
    let engine = Engine::start(config).map_err(|error| start_failure(&error))?;
    info!("{memory}");
    open_export(&engine, &name)?;
    let (end, ended) = oneshot::channel();
    // Without an only client nobody ever says that it has gone.
    let _never = match &stdio {
        Some(stdio) => stdio.connect(end).map(|()| None).map_err(stdio_failure)?,
        None => Some(end),
    };
    // All of it is open by now, and nobody needs its name.
    drop(scratch);
    let pid_file = args.pid_file.as_deref().map(PidFile::write).transpose()?;
    info!("serving {} as \"{name}\"", args.file.display());
    let signal = wait_for_signal(async { drop(ended.await) });
    drop(pid_file);
    engine.stop();
    if let Some(terminator) = terminator {
        terminator.finish();
    }
    signal
}

fn stdio_failure(error: std::io::Error) -> Failure {
    Failure::generic(format!("standard input and output: {error}"))
}

/// As told, or that of the file, within the bounds of what a resource may be called.
fn export_name(args: &Nbd) -> Result<String, Failure> {
    let name = match &args.name {
        Some(name) => name.clone(),
        None => args.file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
    };
    match name.len() {
        1..=NAME_BYTES_MAX => Ok(name),
        length => Err(Failure::usage(format!(
            "{name:?} cannot be the name of an export: it has {length} bytes, not 1 to {NAME_BYTES_MAX}; \
             give another one with --name NAME"
        ))),
    }
}

/// Who does TLS, if there is a certificate.
fn terminator(args: &Nbd, config: &mut EngineConfig) -> Result<Option<Arc<Terminator>>, Failure> {
    let (Some(cert), Some(key)) = (&args.tls_cert, &args.tls_key) else { return Ok(None) };
    let files = tls::Files {
        cert: ("--tls-cert", cert),
        key: ("--tls-key", key),
        client_ca: args.tls_client_ca.as_deref().map(|path| ("--tls-client-ca", path)),
        client_certificates_optional: false,
    };
    let server = files.load()?;
    config.limits.tls_connection_bytes = tls::CONNECTION_BYTES;
    let terminator = Terminator::start(server, config.limits.connections_max())
        .map_err(|error| Failure::generic(format!("threads for TLS: {error}")))?;
    let terminator = Arc::new(terminator);
    config.terminator = Some(Arc::clone(&terminator) as Arc<dyn TlsTerminator>);
    Ok(Some(terminator))
}

fn config(
    args: &Nbd,
    name: &str,
    nbd_listeners: Vec<NbdListener>,
    dir: &Path,
) -> Result<(EngineConfig, Geometry), Failure> {
    let meta = dir.join("meta");
    let geometry = write_metadata(args, name, &meta)?;
    let config = EngineConfig {
        cluster: "plain".into(),
        secret: [0; 32],
        node: NODE,
        node_name: NODE_NAME.into(),
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        nbd_listeners,
        terminator: None,
        resources: vec![ResourceConfig {
            name: name.into(),
            disk: args.file.clone(),
            meta,
            failed_record: dir.join("failed"),
            peer: None,
            read_only: args.read_only,
            access: Access::default(),
            max_hot_regions: MAX_HOT_REGIONS,
            buffer_bytes: BUFFER_BYTES,
            timing: Timing::default(),
        }],
        limits: Limits { clients_max: args.max_clients, ..Limits::default() },
        memory_max_bytes: memory_max_bytes(None),
        spin_us: SPIN_US,
        congestion_control: None,
        hold_greeting: Duration::ZERO,
        lock_wait: Duration::ZERO,
        stop_wait: START_WAIT,
    };
    Ok((config, geometry))
}

/// A first generation that nobody else will ever see.
fn write_metadata(args: &Nbd, name: &str, meta: &Path) -> Result<Geometry, Failure> {
    let named = |error: &dyn std::fmt::Display| Failure::generic(format!("{}: {error}", args.file.display()));
    let facts = device_facts(&args.file).map_err(|error| named(&error))?;
    let geometry =
        Geometry::new(facts.size_bytes, BLOCK_SHIFT, DEFAULT_REGION_SHIFT).map_err(|error| named(&error))?;
    let mut log = GenerationLog::new();
    let first = Generation {
        id: GenerationId(u128::from_le_bytes(random()?)),
        ordinal: 1,
        parent: None,
        node: NODE,
        began_unix_ms: text::unix_ms_now(),
        origin: Origin::Created,
    };
    log.push(first, &[]);
    let identity = Identity {
        resource: name.into(),
        volume: 0,
        node: NODE,
        node_name: NODE_NAME.into(),
        device: facts.identity,
    };
    let file_id = u64::from_le_bytes(random()?);
    // A peer that lacks every block and never comes: no write needs a mark.
    let nobody = PeerRecord {
        node: NODE_OF_NOBODY,
        base: Base::NoGeneration,
        copy: PeerCopy::NoGeneration,
        session_offered: 0,
        session_used: 0,
        may_be_primary: false,
        slot_epoch: 1,
        slot_filled: true,
    };
    let params = CreateParams { file_id, identity, geometry, log, peers: vec![nobody], checkpoints: 0 };
    create_metadata(meta, params, false).map_err(|error| Failure::generic(error.to_string()))?;
    Ok(geometry)
}

/// As the options say; what a service manager handed over comes first. What other machines reach has TLS.
fn listeners(args: &Nbd) -> Result<Vec<NbdListener>, Failure> {
    let has_tls = args.tls_cert.is_some();
    let local = if has_tls { TlsPolicy::Optional } else { TlsPolicy::Off };
    let tcp = |address: SocketAddr, origin: &str| match (address.ip().is_loopback(), has_tls) {
        (true, _) => Ok(local),
        (false, true) => Ok(TlsPolicy::Required),
        (false, false) => Err(Failure::usage(format!(
            "{origin} {address}: without TLS only loopback addresses are served; give --tls-cert and --tls-key, or \
             use --unix"
        ))),
    };
    let mut listeners = Vec::new();
    for socket in inherited::take().map_err(Failure::usage)? {
        let tls = match &socket.place {
            Place::Tcp(address) => tcp(*address, "LISTEN_FDS")?,
            Place::Unix(_) | Place::Nameless => local,
        };
        listeners.push(NbdListener { place: socket.into_listener(), tls });
    }
    if let Some(path) = &args.unix {
        let place = Listener::Unix { path: path.clone(), mode: SOCKET_MODE, group: None };
        listeners.push(NbdListener { place, tls: local });
    }
    if let Some(address) = args.tcp {
        listeners.push(NbdListener { place: Listener::Tcp(address), tls: tcp(address, "--tcp")? });
    }
    match listeners.is_empty() && !args.stdio {
        true => Err(Failure::usage(
            "nowhere to listen; give --unix PATH, --tcp ADDR:PORT or --stdio, or sockets by LISTEN_FDS",
        )),
        false => Ok(listeners),
    }
}

/// Opens the export to clients.
fn open_export(engine: &EngineHandle, name: &str) -> Result<(), Failure> {
    let (sender, receiver) = mpsc::channel();
    let promote = Command::Promote { peer_is_down: false, accept_data_loss: false };
    let reply = Box::new(move |result| _ = sender.send(result));
    engine.command(name, promote, reply).map_err(|error| Failure::generic(error.to_string()))?;
    match receiver.recv_timeout(START_WAIT) {
        Ok(Ok(Done::Changed | Done::Already)) => Ok(()),
        _ => Err(Failure::generic(problem(engine, name))),
    }
}

/// Why it is not served.
fn problem(engine: &EngineHandle, name: &str) -> String {
    let (sender, receiver) = mpsc::channel();
    let asked = engine.status(name, Box::new(move |report| _ = sender.send(report)));
    let report = asked.ok().and_then(|()| receiver.recv_timeout(START_WAIT).ok());
    report.and_then(|report| report.error).unwrap_or_else(|| format!("{name} cannot be served"))
}

/// A directory in memory for what is to be forgotten.
struct Scratch(PathBuf);

impl Scratch {
    fn create() -> Result<Self, Failure> {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let path = parent.join(format!("lockstep-nbd-{:032x}", u128::from_le_bytes(random()?)));
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|error| Failure::generic(format!("{}: {error}", path.display())))?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Says that clients may come, and who serves them; gone when nobody does.
struct PidFile(PathBuf);

impl PidFile {
    fn write(path: &Path) -> Result<Self, Failure> {
        std::fs::write(path, format!("{}\n", std::process::id()))
            .map_err(|error| Failure::generic(format!("{}: {error}", path.display())))?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
