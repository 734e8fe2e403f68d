//! Where an NBD server listens, and the way there: a unix socket on this machine, or TCP from a host of [`Wires`].
//!
//! [`Wires`]: crate::Wires

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
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
    /// TCP on loopback.
    Loopback(SocketAddr),
}

impl From<&Path> for Target {
    fn from(socket: &Path) -> Target {
        Target::Unix(socket.to_path_buf())
    }
}

impl From<PathBuf> for Target {
    fn from(socket: PathBuf) -> Target {
        Target::Unix(socket)
    }
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Target {
        Target::Loopback(address)
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
            Target::Loopback(address) => {
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

impl Stream {
    /// Sends nothing more.
    pub(crate) fn shut_sending(&self) -> io::Result<()> {
        match self {
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
        }
    }

    /// Whether there is something to read, or comes within this time.
    pub(crate) fn readable_within(&self, limit: Duration) -> io::Result<bool> {
        let fd = match self {
            Stream::Unix(stream) => stream.as_fd(),
            Stream::Tcp(stream) => stream.as_fd(),
        };
        let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
        Ok(poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&limit))? > 0)
    }

    /// The address of this end, of TCP.
    pub(crate) fn local_address(&self) -> Option<SocketAddr> {
        match self {
            Stream::Unix(_) => None,
            Stream::Tcp(stream) => stream.local_addr().ok(),
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
