//! Where an NBD server listens, and the way there: a unix socket on this machine, or TCP from a host of [`Wires`].
//!
//! [`Wires`]: crate::Wires

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// An address of a server.
#[derive(Clone, Debug)]
pub enum Target {
    /// A socket in the file system.
    Unix(PathBuf),
    /// TCP, from the network namespace of a process: the thread that connects moves there, and stays.
    Tcp {
        /// The server.
        address: SocketAddr,
        /// Process id of whoever holds the client's host.
        host: u32,
    },
}

impl From<&Path> for Target {
    fn from(socket: &Path) -> Target {
        Target::Unix(socket.to_path_buf())
    }
}

impl Target {
    /// A connection whose sends and receives take no longer than `limit` each.
    pub(crate) fn connect(&self, limit: Duration) -> io::Result<Stream> {
        match self {
            Target::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(limit))?;
                stream.set_write_timeout(Some(limit))?;
                Ok(Stream::Unix(stream))
            }
            Target::Tcp { address, host } => {
                let namespace = File::open(format!("/proc/{host}/ns/net"))?;
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
                let stream = TcpStream::connect_timeout(address, CONNECT_LIMIT)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(limit))?;
                stream.set_write_timeout(Some(limit))?;
                Ok(Stream::Tcp(stream))
            }
        }
    }
}

/// A server that does not answer by then is tried again: its cable may be out.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// An open connection.
#[derive(Debug)]
pub(crate) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    pub(crate) fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        match self {
            Stream::Unix(stream) => stream.set_nonblocking(nonblocking),
            Stream::Tcp(stream) => stream.set_nonblocking(nonblocking),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.read(buffer),
            Stream::Tcp(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.write(buffer),
            Stream::Tcp(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
