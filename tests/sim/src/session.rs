//! The server's side of one client's connection, as the engine does it: the real NBD negotiation and parser, and the
//! books around them. Nothing here touches a core; [`crate::serving`] does that.
//!
//! A client that exceeds a bound is not read further until it is below it again. Whatever a client does, its
//! requests in the core are answered before its session goes.

use crate::ghost::{Seq, WriteId};
use crate::setup::MS;
use crate::socket::{SECTOR_BYTES, Socket, tags_of};
use lockstep_core::{ExportState, PIECE_BYTES_MAX, RequestKind};
use lockstep_nbd::{
    BlockSizes, Command, ExportDirectory, ExportInfo, Framing, Limits, Lookup, Negotiation, Parsed, ReplyTo,
    Request, RequestParser, Step,
};
use std::collections::{BTreeMap, VecDeque};

/// How long a client may wait for the end of a role change.
const HOLD_NS: u64 = 100 * MS;

/// What a client has asked on a connection; the truth about what its bytes mean.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    /// As it was encoded.
    pub(crate) request: Request,
    /// In the core's words; `None` for one that has to be refused.
    pub(crate) kind: Option<RequestKind>,
    /// Set for writes, trims and zeroes.
    pub(crate) write: Option<WriteId>,
    /// When it was sent.
    pub(crate) began: Seq,
    /// Virtual time of it.
    pub(crate) began_ns: u64,
}

/// The export as this node offers it now.
pub(crate) struct Offer {
    /// What the core says.
    pub(crate) state: ExportState,
    /// Size of the volume.
    pub(crate) size_bytes: u64,
    /// Time.
    pub(crate) now_ns: u64,
    /// A role change may still end in time.
    pub(crate) may_hold: bool,
    /// Answers that a client may leave unread.
    pub(crate) unsent_max: usize,
    /// Buffers for clients' writes are free, and this client is next.
    pub(crate) has_slot: bool,
}

impl ExportDirectory for Offer {
    fn list(&self) -> Vec<String> {
        vec!["r0".into()]
    }

    fn find(&self, name: &str) -> Lookup {
        match self.state {
            _ if name != "r0" => Lookup::Unknown,
            ExportState::Open => Lookup::Found(ExportInfo {
                name: name.into(),
                description: String::new(),
                size_bytes: self.size_bytes,
                read_only: false,
                // The simulated disks know whole sectors only.
                block: BlockSizes { min: 512, preferred: 4096, max: 32 << 20 },
                rotational: false,
                multi_conn: true,
                fast_zero: false,
                contexts: Vec::new(),
            }),
            ExportState::Hold if self.may_hold => Lookup::NotReady,
            _ => Lookup::Refused { reason: "not here".into() },
        }
    }
}

enum Phase {
    Handshake(Box<Negotiation>),
    Serving(Box<Serving>),
    /// Nothing is read any more; what is under way is answered.
    Draining,
}

struct Serving {
    parser: RequestParser,
    framing: Framing,
    write: Option<Writing>,
    /// Bytes of payload to be thrown away.
    skip: usize,
    /// The answer to a refused request, sent when its payload was thrown away.
    refusal: Option<Vec<u8>>,
}

/// Payload on its way to the core: of a write, or the zeroes at the edges of a range to be zeroed.
struct Writing {
    req: u32,
    pieces: VecDeque<(usize, usize)>,
    got: Vec<u8>,
    is_zeroes: bool,
}

/// What is to be done after a look at the received bytes.
pub(crate) enum Next {
    /// Nothing before something arrives, is freed or changes.
    Wait,
    /// Something was done: look again.
    Again,
    /// The handshake is over.
    Begin,
    /// A request for the core; its header is taken when it is [`Session::admitted`].
    Request(Request),
    /// A piece of a write.
    Piece { req: u32, first: usize, tags: Vec<u64> },
    /// The client goes: nothing more is taken from it.
    Drain,
    /// The connection is over, or of no use.
    HangUp(Option<String>),
}

/// One connection.
pub(crate) struct Session {
    /// Whose.
    pub(crate) client: usize,
    /// What it sends.
    pub(crate) socket: Socket,
    /// What it asked and was not admitted or refused yet, by cookie.
    pub(crate) asked: BTreeMap<u64, Asked>,
    /// Answers that the socket has not taken; whether they count.
    pub(crate) outbox: VecDeque<(Vec<u8>, bool)>,
    /// Requests whose answer the socket has not taken.
    pub(crate) unsent: usize,
    /// Requests in the core.
    pub(crate) in_core: usize,
    /// Waits for a buffer.
    pub(crate) wants_slot: bool,
    /// Until then, for a role change or to drain.
    pub(crate) deadline_ns: Option<u64>,
    phase: Phase,
}

impl Session {
    /// A connection that has received nothing.
    pub(crate) fn new(client: usize, capacity: usize) -> Self {
        Session {
            client,
            socket: Socket::new(capacity),
            asked: BTreeMap::new(),
            outbox: VecDeque::from([(Negotiation::greeting().to_vec(), false)]),
            unsent: 0,
            in_core: 0,
            wants_slot: false,
            deadline_ns: None,
            phase: Phase::Handshake(Box::new(Negotiation::new(Limits::default()))),
        }
    }

    /// Writes that the core has not heard of.
    pub(crate) fn unheard(&self) -> impl Iterator<Item = WriteId> {
        self.asked.values().filter_map(|asked| asked.write)
    }

    /// Where it stands, in words.
    pub(crate) fn describe(&self) -> String {
        let phase = match &self.phase {
            Phase::Handshake(_) => "in the handshake".to_owned(),
            Phase::Serving(serving) if serving.write.is_some() => "in a payload".to_owned(),
            Phase::Serving(serving) => format!("served, {} bytes to skip", serving.skip),
            Phase::Draining => "draining".to_owned(),
        };
        let (answers, asked) = (self.outbox.len(), self.asked.len());
        format!(
            "client {} {phase}, {} unsent, {answers} answers queued, {} in the core, {asked} unheard, \
             {} bytes arrived, at its end {}",
            self.client,
            self.unsent,
            self.in_core,
            self.socket.data().len(),
            self.socket.is_at_end()
        )
    }

    /// It counts as a client of the export.
    pub(crate) fn is_served(&self) -> bool {
        matches!(self.phase, Phase::Serving(_))
    }

    /// Nothing is taken from it any more.
    pub(crate) fn is_draining(&self) -> bool {
        matches!(self.phase, Phase::Draining)
    }

    /// It waits for a role change.
    pub(crate) fn is_held(&self) -> bool {
        matches!(self.phase, Phase::Handshake(_)) && self.deadline_ns.is_some()
    }

    /// Nothing more is read. Returns the write whose bytes will never come.
    pub(crate) fn stop_reading(&mut self) -> Option<u32> {
        self.wants_slot = false;
        match std::mem::replace(&mut self.phase, Phase::Draining) {
            Phase::Serving(serving) => serving.write.map(|write| write.req),
            _ => None,
        }
    }

    /// Looks at what has arrived.
    pub(crate) fn next(&mut self, offer: &Offer) -> Next {
        match &mut self.phase {
            Phase::Draining => return Next::Wait,
            Phase::Handshake(_) => return self.negotiate(offer),
            Phase::Serving(_) => {}
        }
        self.serve(offer)
    }

    fn negotiate(&mut self, offer: &Offer) -> Next {
        let Phase::Handshake(negotiation) = &mut self.phase else { return Next::Wait };
        // Who does not read its answers gets no more.
        if !self.outbox.is_empty() {
            return Next::Wait;
        }
        let taken = match negotiation.receive(self.socket.data()) {
            Ok(taken) => taken,
            Err(why) => return Next::HangUp(Some(format!("handshake: {why}"))),
        };
        self.socket.consume(taken);
        let mut answer = Vec::new();
        let step = negotiation.poll(offer, &mut answer);
        if !answer.is_empty() {
            self.outbox.push_back((answer, false));
        }
        match step {
            Step::NeedMore if taken == 0 => wait_for_more(&self.socket),
            Step::NeedMore => Next::Again,
            Step::Hold { .. } => {
                self.deadline_ns.get_or_insert(offer.now_ns + HOLD_NS);
                Next::Wait
            }
            Step::StartTls => unreachable!("the simulator has no TLS"),
            Step::Close => Next::Drain,
            Step::Transmission(agreed) => {
                self.deadline_ns = None;
                let (parser, framing) = (RequestParser::new(&agreed), agreed.framing);
                let serving = Serving { parser, framing, write: None, skip: 0, refusal: None };
                self.phase = Phase::Serving(Box::new(serving));
                Next::Begin
            }
        }
    }

    fn serve(&mut self, offer: &Offer) -> Next {
        let Phase::Serving(serving) = &mut self.phase else { return Next::Wait };
        if serving.skip > 0 {
            let skipped = serving.skip.min(self.socket.data().len());
            self.socket.consume(skipped);
            serving.skip -= skipped;
            return if serving.skip == 0 { Next::Again } else { wait_for_more(&self.socket) };
        }
        if let Some(answer) = serving.refusal.take() {
            self.unsent += 1;
            self.outbox.push_back((answer, true));
            return Next::Again;
        }
        if let Some(write) = &mut serving.write {
            return match write.take(&mut self.socket, offer.has_slot) {
                Taken::Piece(next, is_last) => {
                    self.wants_slot = false;
                    if is_last {
                        serving.write = None;
                    }
                    next
                }
                Taken::NoSlot => {
                    self.wants_slot = true;
                    Next::Wait
                }
                Taken::NeedMore => wait_for_more(&self.socket),
            };
        }
        if self.unsent >= offer.unsent_max {
            return Next::Wait;
        }
        match serving.parser.next(self.socket.data()) {
            Parsed::NeedMore => wait_for_more(&self.socket),
            Parsed::Fatal(why) => Next::HangUp(Some(why.to_string())),
            Parsed::Invalid { consumed, cookie, payload_to_skip, reply, .. } => {
                let is_meant = self.asked.remove(&cookie).is_some_and(|asked| asked.kind.is_none());
                if !is_meant {
                    return Next::HangUp(Some(format!("request {cookie} is good, and was refused")));
                }
                serving.skip = payload_to_skip.div_ceil(512) as usize * SECTOR_BYTES;
                serving.refusal = Some(reply.as_bytes().to_vec());
                self.socket.consume(consumed);
                Next::Again
            }
            Parsed::Request { consumed, request } => {
                self.socket.consume(consumed);
                match request.command {
                    Command::Disconnect => Next::Drain,
                    Command::Cache => {
                        self.asked.remove(&request.cookie);
                        self.unsent += 1;
                        let to = ReplyTo::new(serving.framing, &request);
                        let answer = to.result(request.command, Ok(()), "");
                        self.outbox.push_back((answer.as_bytes().to_vec(), true));
                        Next::Again
                    }
                    _ => Next::Request(request),
                }
            }
        }
    }

    /// A request is the core's. Says how it is answered.
    pub(crate) fn admitted(&mut self, req: u32, request: &Request) -> Framing {
        (self.unsent, self.in_core) = (self.unsent + 1, self.in_core + 1);
        let Phase::Serving(serving) = &mut self.phase else { return Framing::Simple };
        let pieces = payload_pieces(request);
        if !pieces.is_empty() {
            let is_zeroes = request.command == Command::WriteZeroes;
            serving.write = Some(Writing { req, pieces, got: Vec::new(), is_zeroes });
        }
        serving.framing
    }

    /// The core has answered: what is missing of its payload is thrown away.
    pub(crate) fn answered(&mut self, req: u32) {
        self.in_core -= 1;
        let Phase::Serving(serving) = &mut self.phase else { return };
        if let Some(write) = serving.write.take_if(|write| write.req == req)
            && !write.is_zeroes
        {
            let left: usize = write.pieces.iter().map(|(_, count)| count * SECTOR_BYTES).sum();
            serving.skip = left - write.got.len();
        }
    }
}

/// For bytes, unless there will be none.
fn wait_for_more(socket: &Socket) -> Next {
    if socket.is_at_end() { Next::HangUp(None) } else { Next::Wait }
}

enum Taken {
    Piece(Next, bool),
    NoSlot,
    NeedMore,
}

impl Writing {
    fn take(&mut self, socket: &mut Socket, has_slot: bool) -> Taken {
        let Some(&(first, count)) = self.pieces.front() else { return Taken::NeedMore };
        // A buffer first: nothing is read that has no place.
        if !has_slot {
            return Taken::NoSlot;
        }
        let wanted = count * SECTOR_BYTES;
        if self.is_zeroes {
            self.got.resize(wanted, 0);
        } else {
            let some = socket.data().len().min(wanted - self.got.len());
            self.got.extend_from_slice(&socket.data()[..some]);
            socket.consume(some);
        }
        if self.got.len() < wanted {
            return Taken::NeedMore;
        }
        self.pieces.pop_front();
        let tags = tags_of(&std::mem::take(&mut self.got));
        Taken::Piece(Next::Piece { req: self.req, first, tags }, self.pieces.is_empty())
    }
}

/// The 4 KiB units inside a range of sectors; an empty range if there is none.
pub(crate) fn whole_units((first, count): (usize, usize)) -> (usize, usize) {
    let (start, end) = (first.next_multiple_of(8), (first + count) & !7);
    if start < end { (start, end - start) } else { (first, 0) }
}

/// What goes to the core as payload, piece by piece: all of a write, the edges of a zero.
pub(crate) fn payload_pieces(request: &Request) -> VecDeque<(usize, usize)> {
    let range = ((request.offset / 512) as usize, request.length as usize / 512);
    let (start, end) = (range.0, range.0 + range.1);
    let inside = whole_units(range);
    let parts = match request.command {
        Command::Write => vec![(start, end)],
        Command::WriteZeroes if inside.1 == 0 => vec![(start, end)],
        Command::WriteZeroes => vec![(start, inside.0), (inside.0 + inside.1, end)],
        _ => vec![],
    };
    let piece_sectors = PIECE_BYTES_MAX as usize / 512;
    let mut pieces = VecDeque::new();
    for (mut at, end) in parts {
        while at < end {
            let next = ((at / piece_sectors + 1) * piece_sectors).min(end);
            pieces.push_back((at, next - at));
            at = next;
        }
    }
    pieces
}
