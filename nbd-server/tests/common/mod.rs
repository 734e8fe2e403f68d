//! A whole NBD server over a byte vector, without sockets: what the engine does, in the smallest form.
//!
//! It keeps the engine's contract with the parsers (unconsumed bytes stay in the receive buffer) and
//! asserts what the engine relies on: nobody consumes more than was given, and a request that was let
//! through fits the export.

use lockstep_nbd::{
    BlockSizes, Command, ExportDirectory, ExportInfo, Extents, Framing, HandshakeError, Limits, Lookup,
    Negotiation, Parsed, ProtocolError, ReplyHeader, ReplyTo, Request, RequestParser, Step, put_status,
};

pub(crate) const DISK_BYTES: usize = 64 << 10;

pub(crate) struct Directory;

impl ExportDirectory for Directory {
    fn list(&self) -> Vec<String> {
        vec!["v0".into()]
    }

    fn find(&self, name: &str) -> Lookup {
        match name {
            "v0" | "" => Lookup::Found(export()),
            "standby" => Lookup::Refused { reason: "this node is Secondary".into() },
            _ => Lookup::Unknown,
        }
    }
}

pub(crate) fn export() -> ExportInfo {
    ExportInfo {
        name: "v0".into(),
        description: String::new(),
        size_bytes: DISK_BYTES as u64,
        read_only: false,
        block: BlockSizes { min: 1, preferred: 4096, max: 16 << 10 },
        rotational: false,
        multi_conn: true,
        fast_zero: true,
        contexts: vec!["base:allocation".into(), "x-test:odd".into()],
    }
}

/// How the connection ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum End {
    Polite,
    Handshake(HandshakeError),
    Requests(ProtocolError),
}

pub(crate) struct Server {
    handshake: Negotiation,
    /// The parser and how answers are framed, once the handshake is over.
    session: Option<(RequestParser, Framing)>,
    disk: Vec<u8>,
    received: Vec<u8>,
    /// Payload still to be thrown away, and the refusal to send behind it.
    skip: Option<(u64, ReplyHeader)>,
    pub(crate) output: Vec<u8>,
    pub(crate) requests: Vec<Request>,
    pub(crate) end: Option<End>,
}

impl Server {
    pub(crate) fn new() -> Self {
        Self {
            handshake: Negotiation::new(Limits::default()),
            session: None,
            disk: vec![0; DISK_BYTES],
            received: Vec::new(),
            skip: None,
            output: Negotiation::greeting().to_vec(),
            requests: Vec::new(),
            end: None,
        }
    }

    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.received.extend_from_slice(bytes);
        while self.end.is_none() && self.turn() {}
    }

    /// One step of progress; `false` when more bytes are needed.
    fn turn(&mut self) -> bool {
        match self.session.clone() {
            None => self.handshake_turn(),
            Some((parser, framing)) => self.request_turn(&parser, framing),
        }
    }

    fn handshake_turn(&mut self) -> bool {
        let consumed = match self.handshake.receive(&self.received) {
            Ok(consumed) => consumed,
            Err(error) => {
                self.end = Some(End::Handshake(error));
                return false;
            }
        };
        assert!(consumed <= self.received.len());
        self.received.drain(..consumed);
        let answered_before = self.output.len();
        match self.handshake.poll(&Directory, &mut self.output) {
            Step::NeedMore => return consumed > 0 || self.output.len() > answered_before,
            Step::Hold { .. } => unreachable!("this directory is always ready"),
            Step::StartTls => unreachable!("this listener has no TLS"),
            Step::Close => self.end = Some(End::Polite),
            Step::Transmission(agreed) => {
                assert_eq!(agreed.export, export());
                self.session = Some((RequestParser::new(&agreed), agreed.framing));
            }
        }
        true
    }

    fn request_turn(&mut self, parser: &RequestParser, framing: Framing) -> bool {
        if let Some((bytes, reply)) = self.skip {
            let skipped = bytes.min(self.received.len() as u64);
            self.received.drain(..skipped as usize);
            self.skip = if skipped == bytes {
                self.output.extend_from_slice(reply.as_bytes());
                None
            } else {
                Some((bytes - skipped, reply))
            };
            return self.skip.is_none();
        }
        match parser.next(&self.received) {
            Parsed::NeedMore => false,
            Parsed::Fatal(error) => {
                self.end = Some(End::Requests(error));
                false
            }
            Parsed::Invalid { consumed, payload_to_skip, reply, .. } => {
                assert!(consumed <= self.received.len());
                self.received.drain(..consumed);
                // A client still busy sending its payload does not expect an answer to it: libnbd gives up.
                self.skip = Some((payload_to_skip, reply));
                true
            }
            Parsed::Request { consumed, request } => {
                assert!(request.offset + request.length <= DISK_BYTES as u64);
                let whole = consumed + request.payload_bytes() as usize;
                if self.received.len() < whole {
                    return false;
                }
                let payload = self.received.drain(..whole).skip(consumed).collect::<Vec<_>>();
                self.serve(&request, &ReplyTo::new(framing, &request), &payload);
                true
            }
        }
    }

    fn serve(&mut self, request: &Request, to: &ReplyTo, payload: &[u8]) {
        self.requests.push(*request);
        let range = request.offset as usize..request.offset as usize + request.length as usize;
        match request.command {
            Command::Disconnect => {
                self.end = Some(End::Polite);
                return;
            }
            Command::Read => {
                let header = to.data(request.offset, request.length as u32);
                self.output.extend_from_slice(header.as_bytes());
                self.output.extend_from_slice(&self.disk[range]);
                return;
            }
            Command::Write => self.disk[range].copy_from_slice(payload),
            Command::Trim | Command::WriteZeroes => self.disk[range].fill(0),
            Command::BlockStatus => return self.describe(request, to),
            Command::Flush | Command::Cache => {}
        }
        let done = to.result(request.command, Ok(()), "");
        self.output.extend_from_slice(done.as_bytes());
    }

    /// Every context says which bytes are zero; the second one the other way round.
    fn describe(&mut self, request: &Request, to: &ReplyTo) {
        let range = request.offset as usize..(request.offset + request.length) as usize;
        let positions: Vec<usize> = request.contexts.positions().collect();
        for position in &positions {
            let mut extents = Extents::new(request.length, request.req_one);
            for byte in &self.disk[range.clone()] {
                extents.push(1, u32::from((*byte == 0) == (*position == 0)));
            }
            put_status(to, *position, &extents, Some(position) == positions.last(), &mut self.output);
        }
    }

    pub(crate) fn disk(&self) -> &[u8] {
        &self.disk
    }

    /// Bytes received and not yet understood.
    pub(crate) fn backlog_bytes(&self) -> usize {
        self.received.len()
    }
}
