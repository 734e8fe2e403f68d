//! A client of bytes: it writes what a test wants, right or wrong, and reads what comes. Nothing here is the product's
//! own encoding; bytes and numbers are those of the NBD specification.
//!
//! Every send and receive has a time limit, so that a server that says nothing fails a test and never hangs it. What
//! a reply must look like in any case (its magic number, the option it answers, chunks that end) is asserted here.

mod fields;
mod haggle;
pub mod number;
mod replies;

pub use fields::{Fields, be};
pub use haggle::{Export, OptionReply, info_query, meta_query};
pub use replies::{Chunk, Described, Reply, Request};

use crate::dial::{Stream, Target};
use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

/// Longer than any time-out of a server.
const ANSWER_LIMIT: Duration = Duration::from_secs(40);

/// Which headers and replies a connection agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Simple replies.
    Simple,
    /// Reads are answered in chunks.
    Structured,
    /// Extended headers.
    Extended,
}

/// One connection.
#[derive(Debug)]
pub struct Raw {
    stream: Stream,
    /// What [`Raw::request`] and [`Raw::reply`] write and expect.
    pub style: Style,
    cookie: u64,
}

impl Raw {
    /// Connects, and neither reads nor writes.
    pub fn dial(target: impl Into<Target>) -> Raw {
        let stream = target.into().connect(ANSWER_LIMIT).expect("connect to a server");
        Raw { stream, style: Style::Simple, cookie: 0 }
    }

    /// Sends bytes, all of them.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server takes what is sent");
    }

    /// Sends as much as a server takes that may close at any moment.
    pub fn send_or_lose(&mut self, bytes: &[u8]) {
        drop(self.stream.write_all(bytes));
    }

    /// So many bytes.
    #[track_caller]
    pub fn take(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        if let Err(error) = self.stream.read_exact(&mut bytes) {
            panic!("waiting for {count} bytes of the server: {error}");
        }
        bytes
    }

    /// Waits until the server has closed; what came before that. A reset counts: it has the same meaning, and comes
    /// where the server did not read all that was sent.
    #[track_caller]
    pub fn wait_closed(&mut self) -> Vec<u8> {
        let mut said = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return said,
                Ok(count) => said.extend_from_slice(&buffer[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    panic!("the server did not close within {ANSWER_LIMIT:?}")
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return said,
            }
        }
    }

    /// The server closes and says nothing more.
    #[track_caller]
    pub fn assert_closed(&mut self) {
        let said = self.wait_closed();
        assert!(said.is_empty(), "instead of closing, the server said {said:02x?}");
    }

    /// Nothing more is sent; the server sees the end.
    pub fn shut_sending(&self) {
        self.stream.shut_sending().expect("shut down one direction of a socket");
    }

    /// An answer of the server still lies in the socket, or arrives within this time.
    pub fn hears_within(&mut self, limit: Duration) -> bool {
        self.stream.readable_within(limit).expect("wait on a socket")
    }

    /// The address of this end, of a connection by TCP.
    pub fn local_address(&self) -> Option<std::net::SocketAddr> {
        self.stream.local_address()
    }

    /// A cookie that no other request of this connection has.
    pub fn next_cookie(&mut self) -> u64 {
        self.cookie += 1;
        self.cookie
    }
}
