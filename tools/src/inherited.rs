//! Listening sockets that a service manager opened and hands over (LISTEN_FDS, as sd_listen_fds(3) describes it).
//!
//! Such a socket stays open between two daemons: clients that connect meanwhile wait for the next one.

use listenfd::ListenFd;
use lockstep_engine::{Listener, NbdListener};
use std::fmt;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

/// One socket.
#[derive(Debug)]
pub(crate) struct Inherited {
    socket: OwnedFd,
    /// Where it listens.
    pub(crate) place: Place,
}

/// Where a socket listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A name in the file system.
    Unix(PathBuf),
    /// A TCP port.
    Tcp(SocketAddr),
    /// A unix socket without such a name.
    Nameless,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Unix(path) => write!(f, "unix:{}", path.display()),
            Place::Tcp(address) => address.fmt(f),
            Place::Nameless => f.write_str("a unix socket without a path"),
        }
    }
}

/// All that this process was started with; an error in words if one of them does not listen.
pub(crate) fn take() -> Result<Vec<Inherited>, String> {
    let mut sockets = ListenFd::from_env();
    let mut all = Vec::new();
    for index in 0..sockets.len() {
        all.extend(
            take_one(&mut sockets, index).map_err(|error| {
                format!("LISTEN_FDS: socket {index} is no listening stream socket: {error}")
            })?,
        );
    }
    Ok(all)
}

fn take_one(sockets: &mut ListenFd, index: usize) -> std::io::Result<Option<Inherited>> {
    if let Ok(found) = sockets.take_unix_listener(index) {
        let Some(socket) = found else { return Ok(None) };
        let path = socket.local_addr()?.as_pathname().map(PathBuf::from);
        return Ok(Some(Inherited {
            socket: socket.into(),
            place: path.map_or(Place::Nameless, Place::Unix),
        }));
    }
    let Some(socket) = sockets.take_tcp_listener(index)? else { return Ok(None) };
    let place = Place::Tcp(socket.local_addr()?);
    Ok(Some(Inherited { socket: socket.into(), place }))
}

impl Inherited {
    /// As a listener that was not configured.
    pub(crate) fn into_listener(self) -> Listener {
        let place = match self.place {
            Place::Unix(path) => Some(Listener::Unix { path, mode: 0, group: None }),
            Place::Tcp(address) => Some(Listener::Tcp(address)),
            Place::Nameless => None,
        };
        Listener::Inherited { socket: Arc::new(self.socket), place: place.map(Box::new) }
    }
}

/// Uses the sockets in place of configured listeners that listen there. An error in words if one fits none.
pub(crate) fn adopt(listeners: &mut [NbdListener], sockets: Vec<Inherited>) -> Result<(), String> {
    for inherited in sockets {
        let fits = |listener: &&mut NbdListener| match (&listener.place, &inherited.place) {
            (Listener::Unix { path, .. }, Place::Unix(own)) => path == own,
            (Listener::Tcp(address), Place::Tcp(own)) => address == own,
            _ => false,
        };
        let Some(listener) = listeners.iter_mut().find(fits) else {
            return Err(format!(
                "LISTEN_FDS: there is a socket that listens on {}, which is no nbd listener of this node; add it to \
                 nbd in the configuration, or remove it from the socket unit",
                inherited.place
            ));
        };
        let place = Some(Box::new(listener.place.clone()));
        listener.place = Listener::Inherited { socket: Arc::new(inherited.socket), place };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_engine::TlsPolicy;
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    fn listener(place: Listener) -> NbdListener {
        NbdListener { place, tls: TlsPolicy::Optional }
    }

    #[test]
    fn a_socket_takes_the_place_of_the_listener_with_its_address() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd.sock");
        let unix = UnixListener::bind(&path).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let mut listeners = [
            listener(Listener::Tcp("127.0.0.1:1".parse().unwrap())),
            listener(Listener::Unix { path: path.clone(), mode: 0o600, group: None }),
            listener(Listener::Tcp(address)),
        ];
        let sockets = vec![
            Inherited { socket: tcp.into(), place: Place::Tcp(address) },
            Inherited { socket: unix.into(), place: Place::Unix(path.clone()) },
        ];
        adopt(&mut listeners, sockets).unwrap();
        let [own, by_path, by_address] = listeners.map(|listener| listener.place);
        assert!(matches!(own, Listener::Tcp(_)));
        let known = |place| match place {
            Listener::Inherited { place: Some(place), .. } => *place,
            other => panic!("{other:?}"),
        };
        assert!(matches!(known(by_path), Listener::Unix { path: own, .. } if own == path));
        assert!(matches!(known(by_address), Listener::Tcp(own) if own == address));
    }

    #[test]
    fn a_socket_that_fits_no_listener_is_an_error() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let twice = tcp.try_clone().unwrap();
        let inherited = |tcp: TcpListener| Inherited { socket: tcp.into(), place: Place::Tcp(address) };
        let unix = Listener::Unix { path: "/run/x".into(), mode: 0o600, group: None };
        let why = adopt(&mut [listener(unix)], vec![inherited(tcp.try_clone().unwrap())]).unwrap_err();
        assert!(why.contains(&address.to_string()) && why.contains("no nbd listener"), "{why}");
        let mut one = [listener(Listener::Tcp(address))];
        assert!(adopt(&mut one, vec![inherited(tcp), inherited(twice)]).is_err(), "two for one");
    }
}
