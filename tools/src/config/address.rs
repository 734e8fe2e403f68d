//! A host and a port, as written in the configuration and in URIs. Only resolving asks the system.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};

/// A host (name or address) and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostPort {
    /// Name or address, without brackets.
    pub(crate) host: String,
    /// TCP port.
    pub(crate) port: u16,
}

impl HostPort {
    /// `host:port`, `[v6]:port`, `v4:port`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let port = port.parse().ok().filter(|&p| p != 0)?;
        let host = match host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']')?,
            None if host.contains(':') => return None,
            None => host,
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '%' | '_');
        (!host.is_empty() && host.chars().all(plain)).then(|| HostPort { host: host.to_owned(), port })
    }

    /// Can only this machine reach it?
    pub(crate) fn is_loopback(&self) -> bool {
        self.host == "localhost"
            || self.host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// Does it stand for every address of the machine?
    pub(crate) fn is_wildcard(&self) -> bool {
        self.host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_unspecified())
    }

    /// The first address that the name has.
    pub(crate) fn resolve(&self) -> std::io::Result<SocketAddr> {
        let nothing = || std::io::Error::new(std::io::ErrorKind::NotFound, format!("{self} has no address"));
        (self.host.as_str(), self.port).to_socket_addrs()?.next().ok_or_else(nothing)
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}
