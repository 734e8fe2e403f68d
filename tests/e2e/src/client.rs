//! A blocking NBD client over a unix socket or TCP, with many requests in flight if the caller likes.
//!
//! Every receive has a time limit, so that a server that does not answer fails a test and never hangs it.

use crate::dial::{Stream, Target};
use lockstep_nbd::client::{ClientError, Connected, Handshake, Reply, next_reply};
use lockstep_nbd::{Command, NbdError, Request};
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::time::Duration;

/// Longest silence of a server, longer than any time-out of a daemon under test.
const ANSWER_LIMIT: Duration = Duration::from_secs(40);
const INPUT_BYTES: usize = 256 << 10;

/// An open export.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    input: Vec<u8>,
    cookie: u64,
    /// Data that follows the reply, by cookie of a read.
    reads: HashMap<u64, usize>,
    offered: Connected,
}

/// The end of one request.
#[derive(Debug)]
pub struct Answer {
    /// The request.
    pub cookie: u64,
    /// `None` is success.
    pub error: Option<NbdError>,
    /// What was read.
    pub data: Vec<u8>,
}

impl Connection {
    /// Opens `export` at a unix socket, or where else a server listens. A refusal of the server is an error of kind
    /// `PermissionDenied` with its words.
    pub fn open(target: impl Into<Target>, export: &str) -> io::Result<Connection> {
        let mut stream = target.into().connect(ANSWER_LIMIT)?;
        let mut handshake = Handshake::new(export, false);
        let mut input = Vec::new();
        loop {
            let taken = handshake.receive(&input).map_err(refusal)?;
            input.drain(..taken);
            stream.write_all(&handshake.take_output())?;
            if let Some(offered) = handshake.connected() {
                let offered = offered.clone();
                return Ok(Connection { stream, input, cookie: 0, reads: HashMap::new(), offered });
            }
            receive_some(&mut stream, &mut input)?;
        }
    }

    /// Size of the export in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.offered.size_bytes
    }

    /// Sends a request and gives its cookie. `payload` is that of a write, and empty otherwise.
    pub fn send(
        &mut self,
        command: Command,
        fua: bool,
        offset: u64,
        length: u32,
        payload: &[u8],
    ) -> io::Result<u64> {
        self.cookie += 1;
        let cookie = self.cookie;
        let request = Request { fua, ..Request::new(command, cookie, offset, length.into()) };
        let mut bytes = request.encode().to_vec();
        bytes.extend_from_slice(payload);
        if command == Command::Read {
            self.reads.insert(cookie, length as usize);
        }
        self.stream.write_all(&bytes)?;
        Ok(cookie)
    }

    /// Sends a request as far as the server takes it now. False: it took nothing or a part; this connection is good
    /// for nothing more than being kept.
    pub fn try_send(&mut self, command: Command, offset: u64, length: u32, payload: &[u8]) -> bool {
        self.cookie += 1;
        let request = Request::new(command, self.cookie, offset, length.into());
        let mut bytes = request.encode().to_vec();
        bytes.extend_from_slice(payload);
        self.stream.set_nonblocking(true).expect("a socket that does not wait");
        let sent = self.stream.write(&bytes);
        self.stream.set_nonblocking(false).expect("a socket that waits");
        matches!(sent, Ok(count) if count == bytes.len())
    }

    /// Waits for the next answer, of any request.
    pub fn receive(&mut self) -> io::Result<Answer> {
        let (consumed, cookie, error) = loop {
            match next_reply(&self.input) {
                Reply::NeedMore => receive_some(&mut self.stream, &mut self.input)?,
                Reply::Simple { consumed, cookie, error } => break (consumed, cookie, error),
                other => return Err(io::Error::other(format!("unexpected reply {other:?}"))),
            }
        };
        self.input.drain(..consumed);
        let length = self.reads.remove(&cookie).filter(|_| error.is_none()).unwrap_or(0);
        while self.input.len() < length {
            receive_some(&mut self.stream, &mut self.input)?;
        }
        Ok(Answer { cookie, error, data: self.input.drain(..length).collect() })
    }

    /// Writes and waits for the answer.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.call(Command::Write, offset, data.len() as u32, data).map(drop)
    }

    /// Reads and waits for the answer.
    pub fn read(&mut self, offset: u64, length: u32) -> io::Result<Vec<u8>> {
        self.call(Command::Read, offset, length, &[])
    }

    /// Makes durable what was answered before.
    pub fn flush(&mut self) -> io::Result<()> {
        self.call(Command::Flush, 0, 0, &[]).map(drop)
    }

    /// Says goodbye. Without it the server sees a client that is gone.
    pub fn close(mut self) -> io::Result<()> {
        self.send(Command::Disconnect, false, 0, 0, &[]).map(drop)
    }

    fn call(&mut self, command: Command, offset: u64, length: u32, payload: &[u8]) -> io::Result<Vec<u8>> {
        let cookie = self.send(command, false, offset, length, payload)?;
        let answer = self.receive()?;
        assert_eq!(answer.cookie, cookie, "the answer belongs to the only request in flight");
        match answer.error {
            None => Ok(answer.data),
            Some(error) => Err(io::Error::other(format!("{command:?} at {offset}: {error}"))),
        }
    }
}

fn receive_some(stream: &mut Stream, input: &mut Vec<u8>) -> io::Result<()> {
    let filled = input.len();
    input.resize(filled + INPUT_BYTES, 0);
    // A wait with a time limit ends early when the process was stopped meanwhile.
    let received = loop {
        match stream.read(&mut input[filled..]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            received => break received,
        }
    };
    input.truncate(filled + received.as_ref().map_or(0, |count| *count));
    match received? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

fn refusal(error: ClientError) -> io::Error {
    let kind = match error {
        ClientError::Refused { .. } => io::ErrorKind::PermissionDenied,
        _ => io::ErrorKind::InvalidData,
    };
    io::Error::new(kind, error.to_string())
}
