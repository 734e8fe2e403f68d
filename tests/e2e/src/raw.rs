//! An NBD handshake by hand, option by option, for what no well-behaved client does.

use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// A connection whose flags are exchanged.
#[derive(Debug)]
pub struct RawHandshake {
    stream: TcpStream,
}

/// A reply to an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionReply {
    /// The option.
    pub option: u32,
    /// Its type.
    pub kind: u32,
    /// What comes with it.
    pub data: Vec<u8>,
}

impl RawHandshake {
    /// From this address of loopback.
    pub fn open(from: &str, server: SocketAddr) -> RawHandshake {
        let own = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
        let from = SocketAddr::new(from.parse().expect("an address"), 0);
        bind(&own, &from).expect("an address of loopback");
        connect(&own, &server).expect("a server");
        let mut stream = TcpStream::from(own);
        stream.set_read_timeout(Some(LIMIT)).expect("a time limit");
        stream.read_exact(&mut [0; 18]).expect("the greeting");
        stream.write_all(&3_u32.to_be_bytes()).expect("send the client's flags");
        RawHandshake { stream }
    }

    /// Bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("send");
    }

    /// The next reply, or the end of the connection.
    pub fn reply(&mut self) -> io::Result<OptionReply> {
        let mut header = [0; 20];
        self.stream.read_exact(&mut header)?;
        let field = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("four bytes"));
        assert_eq!(header[..8], REPLY_MAGIC.to_be_bytes());
        let mut data = vec![0; field(16) as usize];
        self.stream.read_exact(&mut data)?;
        Ok(OptionReply { option: field(8), kind: field(12), data })
    }

    /// All replies to an option, up to the acknowledgement or error.
    pub fn ask(&mut self, option: u32, data: &[u8]) -> Vec<OptionReply> {
        self.send(&option_bytes(option, data));
        let mut replies = Vec::new();
        loop {
            let reply = self.reply().expect("a reply");
            let is_last = reply.kind == 1 || reply.kind >> 31 == 1;
            replies.push(reply);
            if is_last {
                return replies;
            }
        }
    }

    /// Everything that comes until the server closes.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        // A reset is an end as well.
        let _ = self.stream.read_to_end(&mut rest);
        rest
    }
}

/// An option as it is sent.
pub fn option_bytes(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}
