//! A client that stops anywhere: bytes as they go over the wire, of which any part may be sent.

use rustix::net::sockopt::set_socket_linger;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);
const GREETING_BYTES: usize = 18;

/// Numbers of commands.
pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISCONNECT: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const BLOCK_STATUS: u16 = 7;
/// Numbers of options.
pub(crate) const LIST: u32 = 3;
pub(crate) const GO: u32 = 7;
const SET_META_CONTEXT: u32 = 10;
const EXTENDED_HEADERS: u32 = 11;

/// A connection.
pub(crate) enum Raw {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Raw {
    /// A connection that nothing was read from.
    pub(crate) fn unix(socket: &Path) -> Raw {
        let stream = UnixStream::connect(socket).expect("connect");
        stream.set_read_timeout(Some(LIMIT)).expect("a time limit");
        stream.set_write_timeout(Some(LIMIT)).expect("a time limit");
        Raw::Unix(stream)
    }

    /// The same by TCP; when it is dropped the server sees a reset.
    pub(crate) fn tcp(port: u16) -> Raw {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
        stream.set_read_timeout(Some(LIMIT)).expect("a time limit");
        stream.set_write_timeout(Some(LIMIT)).expect("a time limit");
        set_socket_linger(&stream, Some(Duration::ZERO)).expect("an option of a socket");
        Raw::Tcp(stream)
    }

    pub(crate) fn receive(&mut self, bytes: usize) -> Vec<u8> {
        let mut buffer = vec![0; bytes];
        let received = match self {
            Raw::Unix(stream) => stream.read_exact(&mut buffer),
            Raw::Tcp(stream) => stream.read_exact(&mut buffer),
        };
        received.expect("bytes of the server");
        buffer
    }

    /// The server may be done with us before all of it is sent.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let _: io::Result<()> = match self {
            Raw::Unix(stream) => stream.write_all(bytes),
            Raw::Tcp(stream) => stream.write_all(bytes),
        };
    }

    /// Reads the greeting and goes on to the transmission phase of an export.
    pub(crate) fn shake(&mut self, export: &str) {
        self.shake_with(&[], export);
    }

    /// The same with 64-bit requests, and the context of allocation.
    pub(crate) fn shake_extended(&mut self, export: &str) {
        let text = |text: &str| [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat();
        let query = [text(export), 1_u32.to_be_bytes().to_vec(), text("base:allocation")].concat();
        self.shake_with(&[option(EXTENDED_HEADERS, &[]), option(SET_META_CONTEXT, &query)].concat(), export);
    }

    fn shake_with(&mut self, options: &[u8], export: &str) {
        const ACK: u32 = 1;
        const ERRORS: u32 = 1 << 31;
        self.receive(GREETING_BYTES);
        self.send(&[&flags()[..], options, &go(export)].concat());
        loop {
            let header = self.receive(20);
            let field = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("four bytes"));
            let (option, kind) = (field(8), field(12));
            self.receive(field(16) as usize);
            assert!(kind < ERRORS, "option {option} was answered with {kind:#x}");
            if (option, kind) == (GO, ACK) {
                return;
            }
        }
    }

    /// Sends as long as it is taken at once; how often it was.
    pub(crate) fn send_until_full(&mut self, bytes: &[u8]) -> usize {
        let Raw::Unix(stream) = self else { panic!("a unix socket") };
        stream.set_nonblocking(true).expect("a socket that does not wait");
        let taken =
            (0..100_000).take_while(|_| matches!(stream.write(bytes), Ok(sent) if sent == bytes.len()));
        let count = taken.count();
        stream.set_nonblocking(false).expect("a socket that waits");
        count
    }
}

/// Client flags: fixed newstyle, no zeroes.
pub(crate) fn flags() -> [u8; 4] {
    3_u32.to_be_bytes()
}

/// An option with this data.
pub(crate) fn option(number: u32, data: &[u8]) -> Vec<u8> {
    [b"IHAVEOPT", &number.to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), data].concat()
}

/// GO for this export.
pub(crate) fn go(export: &str) -> Vec<u8> {
    option(GO, &[&(export.len() as u32).to_be_bytes()[..], export.as_bytes(), &[0, 0]].concat())
}

/// The header of a request.
pub(crate) fn request(command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend([0, 0]);
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

/// The same with extended headers.
pub(crate) fn extended_request(command: u16, cookie: u64, offset: u64, length: u64) -> Vec<u8> {
    let mut bytes = 0x21e4_1c71_u32.to_be_bytes().to_vec();
    bytes.extend([0, 0]);
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}
