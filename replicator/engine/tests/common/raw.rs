//! A client that speaks the NBD handshake by hand, an option at a time.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::{LIMIT, Pair};

const INFO: u32 = 6;
/// Type of the replies of INFO that are not its last.
const REP_INFO: u32 = 3;

pub(crate) struct Raw(pub(crate) UnixStream);

impl Raw {
    pub(crate) fn connect(pair: &Pair) -> Self {
        let mut stream = UnixStream::connect(pair.socket(0)).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.read_exact(&mut [0; 18]).unwrap();
        stream.write_all(&3_u32.to_be_bytes()).unwrap();
        Self(stream)
    }

    /// An option, as it is sent.
    pub(crate) fn option(option: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        bytes
    }

    /// INFO about an export, as it is sent.
    pub(crate) fn info(name: &str) -> Vec<u8> {
        Self::option(INFO, &[&(name.len() as u32).to_be_bytes()[..], name.as_bytes(), &[0, 0]].concat())
    }

    /// Sends an option, and bytes behind it: type of the next reply.
    pub(crate) fn ask(&mut self, option: u32, data: &[u8], behind: &[u8]) -> u32 {
        self.0.write_all(&[&Self::option(option, data)[..], behind].concat()).unwrap();
        self.answer()
    }

    /// Type of the next reply.
    pub(crate) fn answer(&mut self) -> u32 {
        let mut header = [0; 20];
        self.0.read_exact(&mut header).unwrap();
        let field = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        self.0.read_exact(&mut vec![0; field(16) as usize]).unwrap();
        field(12)
    }

    /// Type of the last reply to an option.
    pub(crate) fn last_reply(&mut self) -> u32 {
        loop {
            let reply = self.answer();
            if reply != REP_INFO {
                return reply;
            }
        }
    }

    /// Asks about an export: the last reply.
    pub(crate) fn ask_info(&mut self, name: &str) -> u32 {
        self.0.write_all(&Self::info(name)).unwrap();
        self.last_reply()
    }
}
