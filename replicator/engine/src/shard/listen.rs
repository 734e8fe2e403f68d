//! Listening sockets: one for peers, any number for NBD clients.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::Mode;

use super::Shard;
use crate::config::{EngineConfig, Listener};
use crate::error::StartError;
use crate::ring::{Completion, Fd, Op};
use crate::token::Token;

/// One listening socket.
pub(super) struct Socket {
    fd: Fd,
    /// For NBD clients; otherwise it is the replication port.
    is_nbd: bool,
    /// Of a unix socket.
    path: Option<PathBuf>,
    /// Accepting failed; tried again at the next sweep.
    is_paused: bool,
    /// That was said.
    is_reported: bool,
}

impl Socket {
    fn new(fd: OwnedFd, is_nbd: bool, path: Option<PathBuf>) -> Self {
        Self { fd: Rc::new(fd), is_nbd, path, is_paused: false, is_reported: false }
    }
}

/// Opens the replication port and all NBD listeners.
pub(super) fn open_all(config: &EngineConfig) -> Result<Vec<Socket>, StartError> {
    let mut sockets = Vec::new();
    if config.resources.iter().any(|resource| resource.peer.is_some()) {
        let address = config.listen;
        let bound = patiently(config.lock_wait, || TcpListener::bind(address));
        let listener = bound.map_err(|error| StartError::Listen { address, error })?;
        sockets.push(Socket::new(listener.into(), false, None));
    }
    for listener in &config.nbd_listeners {
        let failed = |error| StartError::ListenNbd { listener: describe(listener), error };
        let (fd, path): (OwnedFd, _) = match listener {
            Listener::Tcp(address) => {
                let bound = patiently(config.lock_wait, || TcpListener::bind(address));
                (bound.map_err(failed)?.into(), None)
            }
            Listener::Unix { path, mode } => {
                let bound = patiently(config.lock_wait, || bind_unix(path, *mode));
                (bound.map_err(failed)?.into(), Some(path.clone()))
            }
            Listener::Inherited(fd) => (fd.try_clone().map_err(failed)?, None),
        };
        sockets.push(Socket::new(fd, true, path));
    }
    Ok(sockets)
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
        Listener::Inherited(_) => "an inherited socket".into(),
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
fn bind_unix(path: &Path, mode: u32) -> io::Result<UnixListener> {
    if fs::symlink_metadata(path).is_ok() {
        match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            Err(error) => return Err(error),
            Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
        }
    }
    // Nobody else may connect before the mode is set, whatever umask we were started with.
    let umask = rustix::process::umask(Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(umask);
    let listener = listener?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

/// The URI of an export on a listener.
pub(super) fn uri(listener: &Listener, export: &str) -> Option<String> {
    match listener {
        Listener::Tcp(address) => Some(format!("nbd://{address}/{export}")),
        Listener::Unix { path, .. } => Some(format!("nbd+unix:///{export}?socket={}", path.display())),
        // Whoever opened it knows where it listens.
        Listener::Inherited(_) => None,
    }
}

impl Shard {
    /// Starts accepting on every socket.
    pub(super) fn listen(&mut self) {
        (0..self.sockets.len()).for_each(|index| self.accept_on(index));
    }

    fn accept_on(&mut self, index: usize) {
        let fd = Rc::clone(&self.sockets[index].fd);
        self.sockets[index].is_paused = false;
        self.io().push(Token::Accept(index as u16), Op::Accept { fd, accepted: None });
    }

    pub(super) fn accepted(&mut self, index: u16, completion: Completion<Token>) {
        let socket = usize::from(index);
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
        self.accept_on(socket);
        if self.stopping.is_some() {
            return;
        }
        let address = rustix::net::getpeername(&*fd).ok().flatten();
        let address = address.and_then(|address| SocketAddr::try_from(address).ok());
        match (self.sockets[socket].is_nbd, address) {
            (false, address) => self.peer_accepted(fd, address.map_or("unknown".into(), |a| a.to_string())),
            (true, Some(address)) => self.client_accepted(fd, address.to_string()),
            (true, None) => {
                let pid = rustix::net::sockopt::socket_peercred(&*fd).map(|cred| cred.pid.as_raw_nonzero());
                let address = pid.map_or("unix".into(), |pid| format!("unix, process {pid}"));
                self.client_accepted(fd, address);
            }
        }
    }

    pub(super) fn sweep_listeners(&mut self) {
        for index in 0..self.sockets.len() {
            if self.sockets[index].is_paused {
                self.accept_on(index);
            }
        }
    }
}
