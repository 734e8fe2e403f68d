//! Listening sockets: one for peers, any number for NBD clients.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use lockstep_nbd::TlsPolicy;
use rustix::fs::{Mode, OFlags};

use super::Shard;
use crate::config::{EngineConfig, Listener, NbdListener};
use crate::congestion;
use crate::error::StartError;
use crate::ring::{Completion, Fd, Op};
use crate::token::Token;

/// One listening socket.
pub(super) struct Socket {
    fd: Fd,
    /// For NBD clients; otherwise it is the replication port.
    nbd: Option<TlsPolicy>,
    /// Of a unix socket that was made here.
    path: Option<PathBuf>,
    /// Somebody else opened it, and keeps it when this daemon ends.
    is_inherited: bool,
    /// Accepting failed; tried again at the next sweep.
    is_paused: bool,
    /// Who comes stays in the backlog until there is room for a handshake.
    is_full: bool,
    /// That was said.
    is_reported: bool,
}

impl Socket {
    fn new(fd: OwnedFd, nbd: Option<TlsPolicy>) -> Self {
        let fd = Rc::new(fd);
        Self {
            fd,
            nbd,
            path: None,
            is_inherited: false,
            is_paused: false,
            is_full: false,
            is_reported: false,
        }
    }
}

/// Opens the replication port and all NBD listeners.
pub(super) fn open_all(config: &EngineConfig) -> Result<Vec<Socket>, StartError> {
    congestion::check(config.congestion_control.as_deref())?;
    let mut sockets = Vec::new();
    if config.resources.iter().any(|resource| resource.peer.is_some()) {
        let address = config.listen;
        let bound = patiently(config.lock_wait, || listen_tcp(config, address));
        let listener = bound.map_err(|error| StartError::Listen { address, error })?;
        sockets.push(Socket::new(listener.into(), None));
    }
    for NbdListener { place, tls } in &config.nbd_listeners {
        if *tls != TlsPolicy::Off && config.terminator.is_none() {
            return Err(StartError::Config(format!("{} has TLS, and nobody does it", describe(place))));
        }
        let mut socket = open_nbd(config, place, *tls)
            .map_err(|error| StartError::ListenNbd { listener: describe(place), error })?;
        match place {
            Listener::Unix { path, .. } => socket.path = Some(path.clone()),
            Listener::Inherited { .. } => socket.is_inherited = true,
            Listener::Tcp(_) => {}
        }
        sockets.push(socket);
    }
    Ok(sockets)
}

fn open_nbd(config: &EngineConfig, place: &Listener, tls: TlsPolicy) -> io::Result<Socket> {
    let fd: OwnedFd = match place {
        Listener::Tcp(address) => patiently(config.lock_wait, || listen_tcp(config, *address))?.into(),
        Listener::Unix { path, mode, group } => {
            patiently(config.lock_wait, || bind_unix(path, *mode, *group))?.into()
        }
        Listener::Inherited { socket, .. } => {
            // The ring's accept is to wait for a connection.
            let flags = rustix::fs::fcntl_getfl(&**socket)?;
            rustix::fs::fcntl_setfl(&**socket, flags.difference(OFlags::NONBLOCK))?;
            socket.try_clone()?
        }
    };
    Ok(Socket::new(fd, Some(tls)))
}

fn listen_tcp(config: &EngineConfig, address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    congestion::set(&listener, config.congestion_control.as_deref())?;
    Ok(listener)
}

/// Removes the names of unix sockets.
pub(super) fn remove(sockets: &[Socket]) {
    for path in sockets.iter().filter_map(|socket| socket.path.as_ref()) {
        let _ = fs::remove_file(path);
    }
}

fn describe(listener: &Listener) -> String {
    match listener {
        Listener::Tcp(address) => address.to_string(),
        Listener::Unix { path, .. } => path.display().to_string(),
        Listener::Inherited { place: Some(place), .. } => describe(place),
        Listener::Inherited { place: None, .. } => "an inherited socket".into(),
    }
}

/// The pending accept of a killed predecessor keeps its socket for a moment, as its last request keeps the
/// disk.
fn patiently<T>(wait: Duration, mut bind: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let began = Instant::now();
    loop {
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && began.elapsed() < wait => {
                thread::sleep(BIND_AGAIN);
            }
            outcome => return outcome,
        }
    }
}

/// Interval of the attempts to bind an address that is in use.
const BIND_AGAIN: Duration = Duration::from_millis(20);

/// A socket at this path that nobody listens on is left from a predecessor and is replaced.
fn bind_unix(path: &Path, mode: u32, group: Option<u32>) -> io::Result<UnixListener> {
    if fs::symlink_metadata(path).is_ok() {
        match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            Err(error) => return Err(error),
            Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
        }
    }
    // Nobody else may connect before group and mode are set, whatever umask we were started with.
    let umask = rustix::process::umask(Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(umask);
    let listener = listener?;
    if group.is_some() {
        chown(path, None, group)?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

/// The URI of an export on a listener.
pub(super) fn uri(listener: &NbdListener, export: &str) -> Option<String> {
    let scheme = if listener.tls == TlsPolicy::Required { "nbds" } else { "nbd" };
    match &listener.place {
        Listener::Inherited { place, .. } => place.as_deref(),
        place => Some(place),
    }
    .and_then(|place| match place {
        Listener::Tcp(address) => Some(format!("{scheme}://{address}/{export}")),
        Listener::Unix { path, .. } => Some(format!("{scheme}+unix:///{export}?socket={}", path.display())),
        Listener::Inherited { .. } => None,
    })
}

impl Shard {
    /// Starts accepting on every socket.
    pub(super) fn listen(&mut self) {
        (0..self.sockets.len()).for_each(|index| self.accept_on(index));
    }

    /// Connections that come from now on are the next daemon's.
    pub(super) fn leave_inherited_sockets(&mut self) {
        let Self { io: Some(io), sockets, .. } = self else { return };
        for socket in sockets.iter().filter(|socket| socket.is_inherited) {
            io.push(Token::Close, Op::CancelOn { fd: Rc::clone(&socket.fd) });
        }
    }

    fn accept_on(&mut self, index: usize) {
        let fd = Rc::clone(&self.sockets[index].fd);
        self.sockets[index].is_paused = false;
        self.io().push(Token::Accept(index as u16), Op::Accept { fd, accepted: None });
    }

    pub(super) fn accepted(&mut self, index: u16, completion: Completion<Token>) {
        let socket = usize::from(index);
        if self.is_left(&self.sockets[socket]) {
            return;
        }
        if let Err(error) = &completion.result {
            let entry = &mut self.sockets[socket];
            if !std::mem::replace(&mut entry.is_reported, true) {
                tracing::warn!("accepting a connection: {error}; trying again");
            }
            entry.is_paused = true;
            return self.want_sweep();
        }
        self.sockets[socket].is_reported = false;
        let Op::Accept { accepted: Some(fd), .. } = completion.op else { return };
        let fd = Rc::new(fd);
        if self.stopping.is_some() {
            return self.accept_on(socket);
        }
        let address = rustix::net::getpeername(&*fd).ok().flatten();
        let address = address.and_then(|address| SocketAddr::try_from(address).ok());
        match (self.sockets[socket].nbd, address) {
            (None, address) => self.peer_accepted(fd, address.map_or("unknown".into(), |a| a.to_string())),
            (Some(tls), Some(address)) => {
                self.client_accepted(fd, address.to_string(), Some(address.ip()), tls);
            }
            (Some(tls), None) => {
                let pid = rustix::net::sockopt::socket_peercred(&*fd).map(|cred| cred.pid.as_raw_nonzero());
                let address = pid.map_or("unix".into(), |pid| format!("unix, process {pid}"));
                self.client_accepted(fd, address, None, tls);
            }
        }
        self.sockets[socket].is_full = true;
        self.accept_where_room();
    }

    /// Goes on accepting where that had to wait until fewer handshakes are under way.
    pub(super) fn accept_where_room(&mut self) {
        for index in 0..self.sockets.len() {
            let socket = &self.sockets[index];
            let has_room = || socket.nbd.is_none() || self.has_room_for_handshake();
            if socket.is_full && !self.is_left(socket) && has_room() {
                self.sockets[index].is_full = false;
                self.accept_on(index);
            }
        }
    }

    /// Who comes there is the next daemon's.
    fn is_left(&self, socket: &Socket) -> bool {
        socket.is_inherited && self.stopping.is_some()
    }

    pub(super) fn sweep_listeners(&mut self) {
        for index in 0..self.sockets.len() {
            if self.sockets[index].is_paused && !self.is_left(&self.sockets[index]) {
                self.accept_on(index);
            }
        }
    }
}
