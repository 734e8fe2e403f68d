//! The transmission phase: requests, and replies of all three kinds.

use super::fields::{be, u16_at, u32_at, u64_at};
use super::number::{chunk, cmd, errno, magic, with};
use super::{Raw, Style};

/// A request, right or wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Command flags.
    pub flags: u16,
    /// Command.
    pub command: u16,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

/// One chunk of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Its flags.
    pub flags: u16,
    /// Its type.
    pub kind: u16,
    /// Its payload.
    pub payload: Vec<u8>,
    /// The offset in its header, of an extended one.
    pub offset: Option<u64>,
}

/// The whole answer to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The request's.
    pub cookie: u64,
    /// 0 is success.
    pub error: u32,
    /// Data of a read.
    pub data: Vec<u8>,
    /// Empty where it was a simple reply.
    pub chunks: Vec<Chunk>,
}

/// What one chunk of block status says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Number of the context.
    pub context: u32,
    /// Type of the chunk.
    pub kind: u16,
    /// Length and flags of each extent.
    pub extents: Vec<(u64, u64)>,
}

impl Request {
    /// A request without flags.
    pub fn new(command: u16, offset: u64, length: u64) -> Request {
        Request { flags: 0, command, offset, length }
    }

    /// With these flags.
    pub fn flags(self, flags: u16) -> Request {
        Request { flags, ..self }
    }

    /// Its header.
    pub fn header(&self, style: Style, cookie: u64) -> Vec<u8> {
        let Request { flags, command, offset, length } = *self;
        match style {
            Style::Extended => be(&[&magic::EXTENDED_REQUEST, &flags, &command, &cookie, &offset, &length]),
            _ => be(&[&magic::REQUEST, &flags, &command, &cookie, &offset, &(length as u32)]),
        }
    }
}

impl Reply {
    /// What the specification asks of the chunks of every answer: the last one and no other is marked, content lies
    /// inside the request and does not overlap, all of it is there unless there is an error, each type has its layout.
    #[track_caller]
    pub fn assert_sound(&self, request: &Request) {
        let end = request.offset.saturating_add(request.length);
        let mut covered = Vec::new();
        for (at, chunk) in self.chunks.iter().enumerate() {
            let (payload, length) = (&chunk.payload, chunk.payload.len());
            let is_last = at + 1 == self.chunks.len();
            assert_eq!(
                chunk.flags,
                u16::from(is_last) * chunk::DONE,
                "flags of chunk {at}: {:?}",
                chunk.kind
            );
            assert_eq!(
                chunk.offset.unwrap_or(request.offset),
                request.offset,
                "the offset repeats the request's"
            );
            match chunk.kind {
                chunk::NONE => assert!(length == 0 && is_last),
                chunk::OFFSET_DATA => {
                    assert!(length >= 9 && request.command == cmd::READ);
                    covered.push((u64_at(payload, 0), length as u64 - 8));
                }
                chunk::OFFSET_HOLE => {
                    assert!(length == 12 && request.command == cmd::READ);
                    covered.push((u64_at(payload, 0), u64::from(u32_at(payload, 8))));
                }
                chunk::BLOCK_STATUS | chunk::BLOCK_STATUS_EXT => {
                    assert_eq!(request.command, cmd::BLOCK_STATUS);
                }
                chunk::ERROR | chunk::ERROR_OFFSET => {
                    let fixed = if chunk.kind == chunk::ERROR { 6 } else { 14 };
                    let words = usize::from(u16_at(payload, 4));
                    assert!(u32_at(payload, 0) != 0 && length == fixed + words && words <= 4096);
                    let words = std::str::from_utf8(&payload[6..6 + words]).expect("words in UTF-8");
                    assert!(!words.contains('\0'), "{words:?}");
                    if chunk.kind == chunk::ERROR_OFFSET {
                        assert!((request.offset..end).contains(&u64_at(payload, length - 8)));
                    }
                }
                other => panic!("a chunk of unknown type {other:#x}"),
            }
        }
        assert!(covered.iter().all(|(offset, length)| *length > 0 && *offset >= request.offset));
        assert!(covered.iter().all(|(offset, length)| offset + length <= end), "content beyond the request");
        covered.sort_unstable();
        assert!(covered.windows(2).all(|two| two[0].0 + two[0].1 <= two[1].0), "overlapping: {covered:?}");
        if request.command == cmd::READ && self.error == 0 && !self.chunks.is_empty() {
            let all: u64 = covered.iter().map(|(_, length)| length).sum();
            assert_eq!(all, request.length, "all that was asked for: {covered:?}");
        }
        let known =
            [0, errno::EPERM, errno::EIO, errno::EINVAL, errno::ENOSPC, errno::EOVERFLOW, errno::ENOTSUP];
        assert!(known.contains(&self.error) || self.error == errno::ESHUTDOWN, "error {}", self.error);
    }
}

impl Reply {
    /// The extents of a successful answer about block status. Each of them, and their sum, is in the bounds that the
    /// specification sets.
    #[track_caller]
    pub fn described(&self, request: &Request) -> Vec<Described> {
        assert_eq!(self.error, 0, "{self:02x?}");
        let chunks = self.chunks.iter().filter(|chunk| chunk.kind != chunk::NONE);
        let described: Vec<Described> = chunks.map(Described::read).collect();
        for one in &described {
            let (last, before) = one.extents.split_last().expect("at least one extent");
            let sum: u64 = before.iter().map(|(length, _)| length).sum();
            assert!(one.extents.iter().all(|(length, _)| *length > 0), "{one:?}");
            assert!(sum < request.length, "extents behind the range: {one:?}");
            assert!(request.flags & with::REQ_ONE == 0 || before.is_empty() && last.0 <= request.length);
            let differ = one.extents.windows(2).all(|two| two[0].1 != two[1].1);
            assert!(differ, "neighbours with the same flags: {one:?}");
            let ends = before.iter().scan(request.offset, |at, (length, _)| {
                *at += length;
                Some(*at)
            });
            assert!(ends.into_iter().all(|end| end % 512 == 0), "an extent ends inside a sector: {one:?}");
        }
        described
    }
}

impl Described {
    #[track_caller]
    fn read(chunk: &Chunk) -> Described {
        let (head, each) = if chunk.kind == chunk::BLOCK_STATUS { (4, 8) } else { (8, 16) };
        let (head, list) = chunk.payload.split_at(head);
        assert!(!list.is_empty() && list.len().is_multiple_of(each), "{chunk:02x?}");
        if each == 16 {
            let count = u32_at(head, 4) as usize;
            assert!(count == 0 || count == list.len() / 16, "number of extents: {chunk:02x?}");
        }
        let extent = |bytes: &[u8]| match each {
            8 => (u64::from(u32_at(bytes, 0)), u64::from(u32_at(bytes, 4))),
            _ => (u64_at(bytes, 0), u64_at(bytes, 8)),
        };
        let extents = list.chunks(each).map(extent).collect();
        Described { context: u32_at(head, 0), kind: chunk.kind, extents }
    }
}

impl Raw {
    /// Sends a request with a fresh cookie.
    #[track_caller]
    pub fn request(&mut self, request: Request) -> u64 {
        let cookie = self.next_cookie();
        let header = request.header(self.style, cookie);
        self.send(&header);
        cookie
    }

    /// Sends a write with a fresh cookie.
    #[track_caller]
    pub fn write(&mut self, flags: u16, offset: u64, data: &[u8]) -> u64 {
        let flags = if self.style == Style::Extended { flags | with::PAYLOAD_LEN } else { flags };
        let request = Request { flags, command: cmd::WRITE, offset, length: data.len() as u64 };
        let cookie = self.request(request);
        self.send(data);
        cookie
    }

    /// Sends a request that has no payload, and takes its answer, which must be the next one.
    #[track_caller]
    pub fn call(&mut self, request: Request) -> Reply {
        let cookie = self.request(request);
        let read_bytes = if request.command == cmd::READ { request.length } else { 0 };
        let reply = self.reply(read_bytes);
        assert_eq!(reply.cookie, cookie, "{reply:02x?}");
        reply.assert_sound(&request);
        reply
    }

    /// The error that a request without payload is answered with; 0 is success.
    #[track_caller]
    pub fn error_of(&mut self, command: u16, flags: u16, offset: u64, length: u64) -> u32 {
        self.call(Request { flags, command, offset, length }).error
    }

    /// Writes, and takes the answer, which must be the next one.
    #[track_caller]
    pub fn put(&mut self, flags: u16, offset: u64, data: &[u8]) -> u32 {
        let cookie = self.write(flags, offset, data);
        let reply = self.reply(0);
        assert_eq!(reply.cookie, cookie, "{reply:02x?}");
        reply.error
    }

    /// Reads.
    #[track_caller]
    pub fn get(&mut self, offset: u64, length: u64) -> Vec<u8> {
        let reply = self.call(Request::new(cmd::READ, offset, length));
        assert_eq!(
            (reply.error, reply.data.len() as u64),
            (0, length),
            "a read of {length} bytes at {offset}"
        );
        reply.data
    }

    /// The stream of replies is in step, and nothing was said that was not asked for: the next thing that comes is
    /// the answer to a request sent now.
    #[track_caller]
    pub fn assert_in_step(&mut self) {
        assert_eq!(self.error_of(cmd::FLUSH, 0, 0, 0), 0, "a flush");
    }

    /// The next reply, all of it. `read_bytes` is how many bytes follow a simple one that is no error.
    #[track_caller]
    pub fn reply(&mut self, read_bytes: u64) -> Reply {
        let begin = u32_at(&self.take(4), 0);
        match (begin, self.style) {
            (magic::SIMPLE_REPLY, Style::Simple | Style::Structured) => self.simple_reply(read_bytes),
            (magic::STRUCTURED_REPLY, Style::Structured) | (magic::EXTENDED_REPLY, Style::Extended) => {
                self.chunked_reply()
            }
            (other, style) => panic!("{other:#010x} begins a reply to a client that agreed on {style:?}"),
        }
    }

    #[track_caller]
    fn simple_reply(&mut self, read_bytes: u64) -> Reply {
        let rest = self.take(12);
        let error = u32_at(&rest, 0);
        let data = if error == 0 { self.take(read_bytes as usize) } else { Vec::new() };
        Reply { cookie: u64_at(&rest, 4), error, data, chunks: Vec::new() }
    }

    /// Chunks up to the last one, of which the magic of the first was taken. No other request may be under way.
    #[track_caller]
    fn chunked_reply(&mut self) -> Reply {
        let (cookie, first) = self.chunk();
        let mut chunks = vec![first];
        while chunks[chunks.len() - 1].flags & chunk::DONE == 0 {
            self.take(4);
            let (next_cookie, next) = self.chunk();
            assert_eq!(next_cookie, cookie, "chunks of one reply have one cookie");
            chunks.push(next);
        }
        let mut reply = Reply { cookie, error: 0, data: Vec::new(), chunks };
        for at in 0..reply.chunks.len() {
            let payload = &reply.chunks[at].payload;
            match reply.chunks[at].kind {
                chunk::OFFSET_DATA => reply.data.extend_from_slice(&payload[8..]),
                chunk::OFFSET_HOLE => reply.data.resize(reply.data.len() + u32_at(payload, 8) as usize, 0),
                kind if kind & 1 << 15 != 0 => reply.error = u32_at(payload, 0),
                _ => {}
            }
        }
        reply
    }

    /// A chunk behind its magic.
    #[track_caller]
    fn chunk(&mut self) -> (u64, Chunk) {
        let extended = self.style == Style::Extended;
        let header = self.take(if extended { 28 } else { 16 });
        let length = if extended { u64_at(&header, 20) } else { u64::from(u32_at(&header, 12)) };
        let chunk = Chunk {
            flags: u16_at(&header, 0),
            kind: u16_at(&header, 2),
            payload: self.take(length as usize),
            offset: extended.then(|| u64_at(&header, 12)),
        };
        (u64_at(&header, 4), chunk)
    }
}
