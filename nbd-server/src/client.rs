//! The client's side of the wire: a handshake with GO, and replies. For the demo, the ledger and the tests.
//!
//! Requests are encoded by [`Request::encode`](crate::Request::encode). The caller keeps the table of
//! cookies in flight; this codec only says what a reply is and how many bytes of data follow it. A server
//! is trusted no more than a client: lengths are bounded before they are believed, and no input panics.

use alloc::string::String;
use alloc::vec::Vec;
use core::mem;

use thiserror::Error;

use crate::errors::NbdError;
use crate::export::BlockSizes;
use crate::request::PAYLOAD_BYTES_MAX;
use crate::wire::{
    GREETING_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, Reader, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC,
    chunk, handshake_flag, info, option, option_reply, transmission_flag,
};

/// Why the connection to a server is of no use.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum ClientError {
    /// The greeting is not that of a fixed newstyle NBD server.
    #[error("not a fixed newstyle NBD server")]
    NotNbd,
    /// The server does not let this client use the export.
    #[error("server refuses the export: {message} (reply {reply_type:#010x})")]
    Refused {
        /// The option reply's type.
        reply_type: u32,
        /// The server's words.
        message: String,
    },
    /// The server broke the protocol.
    #[error("server broke the protocol: {0}")]
    Misbehaved(&'static str),
}

/// What the server offered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Connected {
    /// Size of the export in bytes.
    pub size_bytes: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether flushes count for all connections.
    pub multi_conn: bool,
    /// Request sizes; the defaults of the protocol where the server named none.
    pub block: BlockSizes,
    /// Whether reads are answered in chunks.
    pub structured: bool,
}

/// A client's handshake: send what `take_output` gives, feed what arrives to `receive`, until `connected`.
#[derive(Debug)]
pub struct Handshake {
    export_name: String,
    phase: Phase,
    pending: Vec<u8>,
    out: Vec<u8>,
    offered: Connected,
    export_seen: bool,
    /// Why this connection is over: nothing is taken any more.
    failed: Option<ClientError>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    Greeting { structured: bool },
    ReplyHeader { option: u32 },
    ReplyData { option: u32, reply_type: u32, length_bytes: usize },
    Connected,
}

const GREETING_BYTES: usize = 18;
const OPTION_REPLY_HEADER_BYTES: usize = 20;
const OPTION_REPLY_BYTES_MAX: usize = 64 << 10;

impl Handshake {
    /// A handshake for the export of this name (at most 4096 bytes), asking for structured replies or not.
    pub fn new(export_name: &str, structured: bool) -> Self {
        let block = BlockSizes::default();
        let offered =
            Connected { size_bytes: 0, read_only: false, multi_conn: false, block, structured: false };
        Self {
            export_name: export_name.into(),
            phase: Phase::Greeting { structured },
            pending: Vec::new(),
            out: Vec::new(),
            offered,
            export_seen: false,
            failed: None,
        }
    }

    /// Takes bytes of the handshake, never any behind it; returns how many. An error is the end of it.
    pub fn receive(&mut self, input: &[u8]) -> Result<usize, ClientError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let taken = self.take(input);
        self.failed = taken.as_ref().err().cloned();
        taken
    }

    fn take(&mut self, input: &[u8]) -> Result<usize, ClientError> {
        let mut rest = input;
        while let Some(wanted) = self.wanted_bytes() {
            let missing = wanted.saturating_sub(self.pending.len());
            let (taken, after) = rest.split_at_checked(missing).unwrap_or((rest, &[]));
            self.pending.extend_from_slice(taken);
            rest = after;
            if self.pending.len() < wanted {
                break;
            }
            let field = mem::take(&mut self.pending);
            self.phase = self.field_complete(&field)?;
        }
        Ok(input.len() - rest.len())
    }

    /// Bytes to send now; empties the queue.
    pub fn take_output(&mut self) -> Vec<u8> {
        mem::take(&mut self.out)
    }

    /// The server's offer, once the handshake is over and requests may be sent.
    pub fn connected(&self) -> Option<&Connected> {
        (self.phase == Phase::Connected).then_some(&self.offered)
    }

    fn wanted_bytes(&self) -> Option<usize> {
        match self.phase {
            Phase::Greeting { .. } => Some(GREETING_BYTES),
            Phase::ReplyHeader { .. } => Some(OPTION_REPLY_HEADER_BYTES),
            Phase::ReplyData { length_bytes, .. } => Some(length_bytes),
            Phase::Connected => None,
        }
    }

    fn field_complete(&mut self, field: &[u8]) -> Result<Phase, ClientError> {
        match self.phase {
            Phase::Greeting { structured } => {
                self.answer_greeting(field)?;
                if structured {
                    self.put_option(option::STRUCTURED_REPLY, &[]);
                    Ok(Phase::ReplyHeader { option: option::STRUCTURED_REPLY })
                } else {
                    Ok(self.ask_to_go())
                }
            }
            Phase::ReplyHeader { option } => {
                let (reply_type, length_bytes) = read_option_reply_header(field, option)?;
                Ok(Phase::ReplyData { option, reply_type, length_bytes })
            }
            Phase::ReplyData { option: option::STRUCTURED_REPLY, reply_type, .. } => {
                self.offered.structured = reply_type == option_reply::ACK;
                Ok(self.ask_to_go())
            }
            Phase::ReplyData { option, reply_type, .. } => self.take_go_reply(option, reply_type, field),
            Phase::Connected => Ok(Phase::Connected),
        }
    }

    fn answer_greeting(&mut self, field: &[u8]) -> Result<(), ClientError> {
        let mut reader = Reader::new(field);
        let magics = (reader.u64(), reader.u64());
        let flags = reader.u16().unwrap_or(0);
        if magics != (Some(GREETING_MAGIC), Some(OPTION_MAGIC)) || flags & handshake_flag::FIXED_NEWSTYLE == 0
        {
            return Err(ClientError::NotNbd);
        }
        let known = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
        self.out.extend_from_slice(&u32::from(flags & known).to_be_bytes());
        Ok(())
    }

    fn ask_to_go(&mut self) -> Phase {
        let mut data = Vec::with_capacity(self.export_name.len() + 8);
        data.extend_from_slice(&(self.export_name.len() as u32).to_be_bytes());
        data.extend_from_slice(self.export_name.as_bytes());
        data.extend_from_slice(&1_u16.to_be_bytes());
        data.extend_from_slice(&info::BLOCK_SIZE.to_be_bytes());
        self.put_option(option::GO, &data);
        Phase::ReplyHeader { option: option::GO }
    }

    fn put_option(&mut self, option: u32, data: &[u8]) {
        self.out.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        self.out.extend_from_slice(&option.to_be_bytes());
        self.out.extend_from_slice(&(data.len() as u32).to_be_bytes());
        self.out.extend_from_slice(data);
    }

    fn take_go_reply(&mut self, option: u32, reply_type: u32, data: &[u8]) -> Result<Phase, ClientError> {
        match reply_type {
            option_reply::ACK if self.export_seen => Ok(Phase::Connected),
            option_reply::ACK => {
                Err(ClientError::Misbehaved("acknowledged without naming the export's size"))
            }
            option_reply::INFO => {
                self.take_info(data).ok_or(ClientError::Misbehaved("short information item"))?;
                Ok(Phase::ReplyHeader { option })
            }
            _ if reply_type & option_reply::ERROR_BIT != 0 => {
                Err(ClientError::Refused { reply_type, message: String::from_utf8_lossy(data).into_owned() })
            }
            _ => Err(ClientError::Misbehaved("unexpected reply to GO")),
        }
    }

    fn take_info(&mut self, data: &[u8]) -> Option<()> {
        let mut reader = Reader::new(data);
        match reader.u16()? {
            info::EXPORT => {
                self.offered.size_bytes = reader.u64()?;
                let flags = reader.u16()?;
                self.offered.read_only = flags & transmission_flag::READ_ONLY != 0;
                self.offered.multi_conn = flags & transmission_flag::CAN_MULTI_CONN != 0;
                self.export_seen = true;
            }
            info::BLOCK_SIZE => {
                let (min, preferred, max) = (reader.u32()?, reader.u32()?, reader.u32()?);
                self.offered.block = BlockSizes { min, preferred, max };
            }
            _ => {}
        }
        Some(())
    }
}

fn read_option_reply_header(field: &[u8], asked: u32) -> Result<(u32, usize), ClientError> {
    let mut reader = Reader::new(field);
    let magic = reader.u64();
    let option = reader.u32();
    let reply_type = reader.u32().unwrap_or(0);
    let length_bytes = reader.u32().unwrap_or(0) as usize;
    if magic != Some(OPTION_REPLY_MAGIC) || option != Some(asked) {
        return Err(ClientError::Misbehaved("reply to an option that was not asked"));
    }
    if length_bytes > OPTION_REPLY_BYTES_MAX {
        return Err(ClientError::Misbehaved("option reply too long"));
    }
    Ok((reply_type, length_bytes))
}

/// One reply, or one chunk of a reply. `consumed` never includes data of a read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Reply {
    /// Not yet whole; nothing was consumed.
    NeedMore,
    /// A reply without chunks. Where it answers a read, without error, as many bytes of data as were asked
    /// follow.
    Simple {
        /// Bytes of input taken.
        consumed: usize,
        /// The request's cookie.
        cookie: u64,
        /// `None` is success.
        error: Option<NbdError>,
    },
    /// `length` bytes of data follow; they belong at `offset` of the export.
    Data {
        /// Bytes of input taken.
        consumed: usize,
        /// The request's cookie.
        cookie: u64,
        /// Where the data belongs, in bytes.
        offset: u64,
        /// Bytes of data that follow.
        length: u32,
        /// Whether the reply ends behind this data.
        done: bool,
    },
    /// `length` bytes from `offset` are zeroes.
    Hole {
        /// Bytes of input taken.
        consumed: usize,
        /// The request's cookie.
        cookie: u64,
        /// Start of the zeroes, in bytes.
        offset: u64,
        /// Number of zeroes.
        length: u32,
        /// Whether the reply ends here.
        done: bool,
    },
    /// The request failed.
    Failed {
        /// Bytes of input taken.
        consumed: usize,
        /// The request's cookie.
        cookie: u64,
        /// Why.
        error: NbdError,
        /// Where, if the server says.
        offset: Option<u64>,
        /// The server's words.
        message: String,
        /// Whether the reply ends here.
        done: bool,
    },
    /// The empty last chunk.
    Done {
        /// Bytes of input taken.
        consumed: usize,
        /// The request's cookie.
        cookie: u64,
    },
    /// The stream cannot be followed: close.
    Bad(ClientError),
}

const CHUNK_HEADER_BYTES: usize = 20;
const ERROR_CHUNK_BYTES_MAX: u32 = 64 << 10;

/// Looks at the front of `input`, which must begin where the last reply (and its data) ended.
pub fn next_reply(input: &[u8]) -> Reply {
    let mut reader = Reader::new(input);
    match reader.u32() {
        None => Reply::NeedMore,
        Some(SIMPLE_REPLY_MAGIC) => read_simple(reader).unwrap_or(Reply::NeedMore),
        Some(STRUCTURED_REPLY_MAGIC) => read_chunk(reader).unwrap_or(Reply::NeedMore),
        Some(_) => bad("reply magic"),
    }
}

fn bad(what: &'static str) -> Reply {
    Reply::Bad(ClientError::Misbehaved(what))
}

fn read_simple(mut reader: Reader<'_>) -> Option<Reply> {
    let error = NbdError::from_wire(reader.u32()?);
    let cookie = reader.u64()?;
    Some(Reply::Simple { consumed: crate::reply::SIMPLE_REPLY_BYTES, cookie, error })
}

/// Reads a chunk behind its magic; `None` while it is not whole.
fn read_chunk(mut reader: Reader<'_>) -> Option<Reply> {
    let done = reader.u16()? & chunk::FLAG_DONE != 0;
    let kind = reader.u16()?;
    let cookie = reader.u64()?;
    let length = reader.u32()?;
    Some(match kind {
        chunk::NONE if length == 0 && done => Reply::Done { consumed: CHUNK_HEADER_BYTES, cookie },
        chunk::OFFSET_DATA if length > 8 && length - 8 <= PAYLOAD_BYTES_MAX => {
            let offset = reader.u64()?;
            Reply::Data { consumed: CHUNK_HEADER_BYTES + 8, cookie, offset, length: length - 8, done }
        }
        chunk::OFFSET_HOLE if length == 12 => {
            let (offset, length) = (reader.u64()?, reader.u32()?);
            Reply::Hole { consumed: CHUNK_HEADER_BYTES + 12, cookie, offset, length, done }
        }
        _ if kind & chunk::ERROR_BIT != 0 && length <= ERROR_CHUNK_BYTES_MAX => {
            let consumed = CHUNK_HEADER_BYTES + length as usize;
            let payload = reader.bytes(length as usize)?;
            match read_error(payload, kind) {
                Some((error, message, offset)) => {
                    Reply::Failed { consumed, cookie, error, offset, message, done }
                }
                None => bad("error chunk"),
            }
        }
        _ => bad("chunk type or length"),
    })
}

/// An error chunk of unknown type still begins with error and message.
fn read_error(payload: &[u8], kind: u16) -> Option<(NbdError, String, Option<u64>)> {
    let mut reader = Reader::new(payload);
    let error = NbdError::from_wire(reader.u32()?)?;
    let message_bytes = usize::from(reader.u16()?);
    let message = String::from_utf8_lossy(reader.bytes(message_bytes)?).into_owned();
    let offset = if kind == chunk::ERROR_OFFSET { Some(reader.u64()?) } else { None };
    Some((error, message, offset))
}

#[cfg(test)]
mod tests;
