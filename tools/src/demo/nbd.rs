//! A small blocking NBD client over a unix socket, with as many requests in flight as the caller likes.
//!
//! Invariants: replies are matched by cookie and never reordered or invented here; a server that stays
//! silent longer than [`SILENCE_MAX`] is an error, so that nothing that uses this client can hang.
//! Tolerates a server that dies.

use lockstep_nbd::client::{Handshake, Reply, next_reply};
use lockstep_nbd::{Command, NbdError, Request};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Longest silence of a server that owes an answer. Longer than the time after which a lost peer is given up.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(15);

/// One connection.
pub(crate) struct Client {
    stream: UnixStream,
    input: Vec<u8>,
    taken_bytes: usize,
}

/// The end of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Done {
    /// As it was sent.
    pub(crate) cookie: u64,
    /// `None` is success.
    pub(crate) error: Option<NbdError>,
}

impl Client {
    /// Connects and goes through the handshake for an export.
    pub(crate) fn connect(socket: &Path, export: &str) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        stream.set_write_timeout(Some(SILENCE_MAX))?;
        let mut client = Client { stream, input: Vec::new(), taken_bytes: 0 };
        let mut handshake = Handshake::new(export, false);
        while handshake.connected().is_none() {
            client.fill()?;
            client.taken_bytes += handshake.receive(client.unread()).map_err(io::Error::other)?;
            client.stream.write_all(&handshake.take_output())?;
        }
        Ok(client)
    }

    /// Sends a write; its reply comes later, from [`Client::next_done`].
    pub(crate) fn send_write(&mut self, cookie: u64, offset: u64, data: &[u8]) -> io::Result<()> {
        self.send(&request(Command::Write, cookie, offset, data.len())?, data)
    }

    /// The next reply to a write or flush.
    pub(crate) fn next_done(&mut self) -> io::Result<Done> {
        loop {
            match next_reply(self.unread()) {
                Reply::NeedMore => self.fill()?,
                Reply::Simple { consumed, cookie, error } => {
                    self.taken_bytes += consumed;
                    return Ok(Done { cookie, error });
                }
                Reply::Bad(error) => return Err(io::Error::other(error)),
                // Structured replies were not asked for.
                other => return Err(io::Error::other(format!("unexpected reply {other:?}"))),
            }
        }
    }

    /// Makes everything durable that was answered before, with nothing else in flight here.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.send(&request(Command::Flush, 0, 0, 0)?, &[])?;
        succeeded(self.next_done()?)
    }

    /// Reads, with nothing else in flight here.
    pub(crate) fn read(&mut self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.send(&request(Command::Read, 0, offset, data.len())?, &[])?;
        succeeded(self.next_done()?)?;
        let ready_bytes = self.unread().len().min(data.len());
        let (ready, rest) = data.split_at_mut(ready_bytes);
        ready.copy_from_slice(&self.unread()[..ready_bytes]);
        self.taken_bytes += ready_bytes;
        self.stream.read_exact(rest)
    }

    /// Says goodbye.
    pub(crate) fn disconnect(mut self) -> io::Result<()> {
        self.send(&request(Command::Disconnect, 0, 0, 0)?, &[])
    }

    fn send(&mut self, request: &Request, payload: &[u8]) -> io::Result<()> {
        self.stream.write_all(&request.encode())?;
        self.stream.write_all(payload)
    }

    fn unread(&self) -> &[u8] {
        &self.input[self.taken_bytes..]
    }

    /// Reads what has come, at least one byte.
    fn fill(&mut self) -> io::Result<()> {
        self.input.drain(..self.taken_bytes);
        self.taken_bytes = 0;
        let mut chunk = [0; 4096];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection")),
            Ok(length_bytes) => {
                self.input.extend_from_slice(&chunk[..length_bytes]);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let silence = format!("the server was silent for {SILENCE_MAX:?}");
                Err(io::Error::new(io::ErrorKind::TimedOut, silence))
            }
            Err(error) => Err(error),
        }
    }
}

fn request(command: Command, cookie: u64, offset: u64, length_bytes: usize) -> io::Result<Request> {
    let length = u32::try_from(length_bytes).map_err(io::Error::other)?;
    Ok(Request::new(command, cookie, offset, length.into()))
}

fn succeeded(done: Done) -> io::Result<()> {
    done.error.map_or(Ok(()), |error| Err(io::Error::other(error)))
}
