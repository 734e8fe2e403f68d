//! A connection to an NBD client, and the table of requests under way.
//!
//! Here is what concerns one connection; what a request means is the core's part. A client that exceeds a
//! bound is not read further until it is below it again. Whatever a client does, its requests in the core are
//! answered before its entry goes.

mod contexts;
mod directory;

use std::net::IpAddr;
use std::time::SystemTime;

use lockstep_core::{Instant, IoError, PIECE_BYTES_MAX, SlotId};
use lockstep_nbd::{Framing, Negotiation, ReplyHeader, ReplyTo, RequestParser};

pub(crate) use contexts::{Context, NotComplete, names as context_names};
pub(crate) use directory::{Directory, Export};

use crate::access::Guest;
use crate::fleet::ShardId;
use crate::places::Place;
use crate::ring::Fd;
use crate::slots::{ALIGN_BYTES, Arena, LARGE_BYTES, PoolId, SMALL_BYTES, Span, fits_small};
use crate::stock::Stock;
use crate::stream::{Inbox, Outbox};
use crate::tls::TlsSession;

/// Receive buffer of a client that is served: many requests per receive.
pub(crate) const BUFFER_BYTES: usize = 128 * 1024;
/// Receive buffer of a client in the handshake.
pub(crate) const HANDSHAKE_BUFFER_BYTES: usize = 4 * 1024;
/// Largest read or write offered.
pub(crate) const REQUEST_BYTES_MAX: u32 = 32 << 20;

/// Where a connection stands.
pub(crate) enum Phase {
    /// Options are negotiated.
    Handshake(Box<Negotiation>),
    /// A role change is under way: the export's answer waits since then.
    Held(Box<Negotiation>, Place),
    /// It named an export of this other shard, and goes there when all that it was told is sent.
    Moving(Box<Negotiation>, ShardId),
    /// Requests are served.
    Serving(Box<Serving>),
    /// Nothing is read any more; what is under way is answered.
    Draining,
    /// Shut down; waits for its last operations and requests.
    Dead,
}

/// How a connection stands to TLS.
pub(crate) enum Security {
    /// Without it.
    Plain,
    /// STARTTLS was acknowledged; the acknowledgement is on its way.
    Starting,
    /// The terminator has the client's socket, and its handshake is under way. The number tells this connection from
    /// others.
    Handshake(u64),
    /// Established, by a client with these names.
    Active(Vec<String>),
}

/// A client in the transmission phase.
pub(crate) struct Serving {
    pub(crate) resource: u16,
    /// Among the clients that are served.
    pub(crate) _place: Place,
    pub(crate) parser: RequestParser,
    pub(crate) framing: Framing,
    /// What its questions for block status are about, in the order that was agreed; `None`: it is gone.
    pub(crate) contexts: Vec<Option<Context>>,
    /// A write whose payload is arriving.
    pub(crate) write: Option<Writing>,
    /// A read that is larger than a part, and the only request under way.
    pub(crate) long_read: Option<LongRead>,
    /// Bytes of payload to be thrown away.
    pub(crate) skip: u64,
    /// The answer to a refused request, sent when its payload was thrown away: some clients take one that
    /// comes earlier for a broken connection.
    pub(crate) refusal: Option<ReplyHeader>,
}

/// A read that is answered part by part, so that it holds slots for what its client takes, not for all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LongRead {
    request: lockstep_nbd::Request,
    /// Bytes that were asked of the core.
    asked: u64,
    /// Some of it could not be read, and the client will be told behind the data: they were promised in one chunk.
    pub(crate) failed: Option<Failure>,
}

/// Why a request failed, and where, if that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) error: IoError,
    pub(crate) at: Option<u64>,
}

/// Largest read that is answered as a whole; it needs 17 slots if it is not aligned.
pub(crate) const READ_PART_BYTES: u64 = 2 << 20;

/// Which part of a read a request in the core is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// All of it; and every other request.
    Whole,
    /// The beginning of a read of so many bytes.
    First { whole_bytes: u64 },
    /// Neither the beginning nor the end.
    Middle,
    /// The end.
    Last,
}

impl LongRead {
    /// A read of which nothing was asked.
    pub(crate) fn new(request: lockstep_nbd::Request) -> Self {
        Self { request, asked: 0, failed: None }
    }

    /// The next part, as a read of its own whose slots have no more bytes than these; `None` if they are less
    /// than a piece needs.
    pub(crate) fn next_part(&self, slot_bytes: u64) -> Option<(lockstep_nbd::Request, Part)> {
        let offset = self.request.offset + self.asked;
        let (mut length, mut free_bytes) = (0, slot_bytes);
        for (offset, piece_bytes) in pieces(offset, self.left_bytes()) {
            let (piece_bytes, needed_bytes) =
                (u64::from(piece_bytes), slot_bytes_needed(offset, piece_bytes.into()));
            if needed_bytes > free_bytes || length + piece_bytes > READ_PART_BYTES {
                break;
            }
            (length, free_bytes) = (length + piece_bytes, free_bytes - needed_bytes);
        }
        let part = match (self.asked, length == self.left_bytes()) {
            (0, true) => Part::Whole,
            (0, false) => Part::First { whole_bytes: self.request.length },
            (_, true) => Part::Last,
            (_, false) => Part::Middle,
        };
        (length > 0).then_some((lockstep_nbd::Request { offset, length, ..self.request }, part))
    }

    /// As it came.
    pub(crate) fn whole(&self) -> &lockstep_nbd::Request {
        &self.request
    }

    /// A part was asked of the core.
    pub(crate) fn advance(&mut self, bytes: u64) {
        self.asked += bytes;
    }

    /// Bytes that were not asked of the core.
    pub(crate) fn left_bytes(&self) -> u64 {
        self.request.length - self.asked
    }
}

/// Payload on its way to the core: of a write, as it arrives; or the zeroes at the edges of a range to be
/// zeroed, which the core takes as payload, since it zeroes whole blocks only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Writing {
    /// `None`: it was answered before all its bytes came; the rest is thrown away.
    pub(crate) request: Option<u32>,
    /// First byte not yet in a complete piece.
    pub(crate) offset: u64,
    /// Bytes from there on.
    pub(crate) left: u64,
    /// Made here, not received.
    pub(crate) is_zeroes: bool,
    /// A second range, as offset and length.
    then: (u64, u64),
    pub(crate) piece: Option<Piece>,
}

impl Writing {
    /// The payload of a request, if it has any.
    pub(crate) fn of(id: u32, request: &lockstep_nbd::Request) -> Option<Self> {
        let (offset, end) = (request.offset, request.offset + request.length);
        let ((offset, left), then) = match request.command {
            lockstep_nbd::Command::Write => ((offset, end - offset), (0, 0)),
            lockstep_nbd::Command::WriteZeroes => {
                let (first, last) = (offset.next_multiple_of(ALIGN_BYTES), end - end % ALIGN_BYTES);
                let edges = ((offset, first - offset), (last, end - last));
                match edges {
                    _ if first >= last => ((offset, end - offset), (0, 0)),
                    ((_, 0), tail) => (tail, (0, 0)),
                    edges => edges,
                }
            }
            _ => return None,
        };
        let is_zeroes = request.command == lockstep_nbd::Command::WriteZeroes;
        (left > 0).then_some(Self { request: Some(id), offset, left, is_zeroes, then, piece: None })
    }

    /// The piece is the core's; on to the next.
    pub(crate) fn advance(&mut self, piece_bytes: u32) {
        self.piece = None;
        self.offset += u64::from(piece_bytes);
        self.left -= u64::from(piece_bytes);
        if self.left == 0 {
            (self.offset, self.left) = std::mem::take(&mut self.then);
        }
    }
}

/// A part of a payload, on its way into a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) payload: Span,
    pub(crate) got: u32,
    /// When it got its slot.
    pub(crate) since: Instant,
}

/// Bytes from `offset` to the end of its piece, at most `left`.
pub(crate) fn piece_bytes(offset: u64, left: u64) -> u32 {
    left.min(PIECE_BYTES_MAX - offset % PIECE_BYTES_MAX) as u32
}

/// One connection.
pub(crate) struct Client {
    pub(crate) fd: Fd,
    /// Among all connections.
    pub(crate) place: Place,
    pub(crate) address: String,
    /// `None`: it came by a unix socket.
    pub(crate) ip: Option<IpAddr>,
    pub(crate) since: SystemTime,
    pub(crate) phase: Phase,
    pub(crate) security: Security,
    /// Holds the terminator to its connection.
    pub(crate) tls_session: Option<TlsSession>,
    /// When patience ends, in every phase but `Serving`.
    pub(crate) deadline: Option<Instant>,
    /// Until when it may be kept waiting for a role change, once it was.
    pub(crate) hold_until: Option<Instant>,
    pub(crate) inbox: Inbox,
    pub(crate) outbox: Outbox,
    /// Operations in the ring.
    pub(crate) ops: u32,
    /// Requests in the core.
    pub(crate) requests: u32,
    /// Requests admitted whose answer was not sent, and their bytes.
    pub(crate) unsent: u32,
    pub(crate) unsent_bytes: u64,
    /// Memory of the slots of its reads.
    pub(crate) read_slot_bytes: u64,
    /// When the send in flight began.
    pub(crate) sending_since: Option<Instant>,
    /// Not read until answers were sent or a slot is free.
    pub(crate) starved: bool,
    /// It is going: nothing more is taken from it. With a receive in flight, its phase changes when that has
    /// ended.
    pub(crate) is_ending: bool,
    /// It is going at once: answers are of no use any more.
    pub(crate) is_gone: bool,
    /// In the list of those with something to send.
    pub(crate) is_listed: bool,
}

impl Client {
    /// A connection that has received nothing.
    pub(crate) fn new(
        fd: Fd,
        place: Place,
        (address, ip): (String, Option<IpAddr>),
        negotiation: Box<Negotiation>,
        deadline: Instant,
        stock: &Stock,
    ) -> Self {
        Self {
            place,
            address,
            ip,
            since: SystemTime::now(),
            phase: Phase::Handshake(negotiation),
            security: Security::Plain,
            tls_session: None,
            deadline: Some(deadline),
            hold_until: None,
            inbox: Inbox::new(fd.clone(), HANDSHAKE_BUFFER_BYTES),
            outbox: Outbox::new(fd.clone(), stock),
            ops: 0,
            requests: 0,
            unsent: 0,
            unsent_bytes: 0,
            read_slot_bytes: 0,
            sending_since: None,
            starved: false,
            is_ending: false,
            is_gone: false,
            is_listed: false,
            fd,
        }
    }

    /// It as allow lists see it.
    pub(crate) fn guest(&self) -> Guest<'_> {
        let names = match &self.security {
            Security::Active(names) => Some(names.as_slice()),
            _ => None,
        };
        Guest { address: self.ip, names }
    }

    /// Options may be taken from it.
    pub(crate) fn is_asked(&self) -> bool {
        let between = matches!(self.security, Security::Starting | Security::Handshake(_));
        matches!(self.phase, Phase::Handshake(_)) && !self.is_ending && !between
    }

    /// The read in parts that is under way.
    pub(crate) fn long_read(&mut self) -> Option<&mut LongRead> {
        match &mut self.phase {
            Phase::Serving(serving) => serving.long_read.as_mut(),
            _ => None,
        }
    }

    /// The resource whose export it opened, while it is served.
    pub(crate) fn served_resource(&self) -> Option<u16> {
        match &self.phase {
            Phase::Serving(serving) if !self.is_ending => Some(serving.resource),
            _ => None,
        }
    }

    /// Where the next bytes of a payload go.
    pub(crate) fn payload_rest(&self) -> Option<Span> {
        let Phase::Serving(serving) = &self.phase else { return None };
        let piece = serving.write.as_ref()?.piece.as_ref()?;
        Some(piece.payload.skip(piece.got))
    }

    /// Ends the reading: drops a half-received payload. Returns the write that will never be complete. Not
    /// while a receive is in flight into the payload's slot.
    pub(crate) fn stop_reading(&mut self, arena: &mut Arena, next: Phase) -> Option<u32> {
        self.starved = false;
        self.inbox.discard();
        let Phase::Serving(serving) = std::mem::replace(&mut self.phase, next) else { return None };
        let write = serving.write?;
        if let Some(piece) = write.piece {
            arena.release(piece.payload.slot);
        }
        write.request
    }
}

/// Memory of a request in the core, and of the list of slots of the largest read.
pub(crate) const REQUEST_MEMORY_BYTES: usize = size_of::<Option<Request>>() + 2 * size_of::<u32>();
pub(crate) const LIST_MEMORY_BYTES: usize =
    (READ_PART_BYTES as usize / PIECE_BYTES_MAX as usize + 1) * size_of::<SlotId>();

/// A request in the core.
pub(crate) struct Request {
    pub(crate) client: u32,
    pub(crate) request: lockstep_nbd::Request,
    /// Where its answer goes.
    pub(crate) to: ReplyTo,
    pub(crate) part: Part,
    /// Slots of a read, one per piece.
    pub(crate) slots: Vec<SlotId>,
}

impl Request {
    /// Slot of the piece that holds this byte, and the first byte it holds.
    pub(crate) fn slot_at(&self, offset: u64) -> Option<(SlotId, u64)> {
        let first_piece = self.request.offset / PIECE_BYTES_MAX;
        let piece = offset / PIECE_BYTES_MAX;
        let index = usize::try_from(piece.checked_sub(first_piece)?).ok()?;
        Some((*self.slots.get(index)?, self.request.offset.max(piece * PIECE_BYTES_MAX)))
    }

    /// The parts of its range, with their slots.
    pub(crate) fn spans(&self) -> impl Iterator<Item = Span> {
        let pieces = pieces(self.request.offset, self.request.length);
        self.slots.iter().zip(pieces).map(|(slot, (offset, len))| Span::of_volume(*slot, offset, len))
    }
}

/// Takes slots for all pieces of a range, or none. They are appended to `slots`, which is empty.
pub(crate) fn take_all(
    arena: &mut Arena,
    pool: PoolId,
    offset: u64,
    len: u64,
    slots: &mut Vec<SlotId>,
) -> bool {
    let (small, large) = slots_needed(offset, len);
    if !arena.has_free(pool, small, large) {
        // Nothing is taken and given back: that would look as if something had become free.
        return false;
    }
    for (offset, len) in pieces(offset, len) {
        let Some(slot) = arena.take(pool, offset, len) else { unreachable!("the slots were counted") };
        slots.push(slot);
    }
    true
}

/// How many pieces of a range fit a small slot, and how many need a large one.
fn slots_needed(offset: u64, len: u64) -> (u32, u32) {
    pieces(offset, len).fold((0, 0), |(small, large), (offset, len)| match fits_small(offset, len) {
        true => (small + 1, large),
        false => (small, large + 1),
    })
}

/// Bytes of the slots that a range needs.
pub(crate) fn slot_bytes_needed(offset: u64, len: u64) -> u64 {
    let (small, large) = slots_needed(offset, len);
    u64::from(small) * SMALL_BYTES as u64 + u64::from(large) * LARGE_BYTES as u64
}

/// Offset and length of each piece of a range.
fn pieces(offset: u64, len: u64) -> impl Iterator<Item = (u64, u32)> {
    let end = offset + len;
    let piece = move |offset: u64| (offset < end).then(|| (offset, piece_bytes(offset, end - offset)));
    std::iter::successors(piece(offset), move |(offset, len)| piece(offset + u64::from(*len)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::PoolSize;

    fn asked(command: lockstep_nbd::Command, offset: u64, length: u64) -> lockstep_nbd::Request {
        lockstep_nbd::Request::new(command, 1, offset, length)
    }

    fn read(offset: u64, length: u64) -> Request {
        let request = asked(lockstep_nbd::Command::Read, offset, length);
        let to = ReplyTo::new(Framing::Simple, &request);
        Request { client: 0, request, to, part: Part::Whole, slots: Vec::new() }
    }

    #[test]
    fn a_long_read_is_cut_into_parts_that_add_up() {
        let whole = asked(lockstep_nbd::Command::Read, 4096, 2 * READ_PART_BYTES);
        let mut long = LongRead::new(whole);
        let mut parts = Vec::new();
        while long.left_bytes() > 0 {
            let (request, part) = long.next_part(1 << 30).unwrap();
            long.advance(request.length);
            parts.push((request.offset, request.length, part));
        }
        let size = READ_PART_BYTES;
        assert_eq!(
            parts,
            [
                (4096, size - 4096, Part::First { whole_bytes: 2 * size }),
                (size, size, Part::Middle),
                (2 * size, 4096, Part::Last),
            ]
        );
        let long = LongRead::new(whole);
        assert!(long.next_part(8191).is_none(), "a piece of this size needs a large slot");
        assert_eq!(long.next_part(131_072).unwrap().0.length, 131_072 - 4096);
        let small = LongRead::new(asked(lockstep_nbd::Command::Read, 0, 4096));
        assert_eq!(small.next_part(8192).unwrap().1, Part::Whole);
    }

    #[test]
    fn the_edges_of_zeroes_are_payload() {
        let parts = |offset, length| {
            let mut parts = Vec::new();
            let mut writing = Writing::of(1, &asked(lockstep_nbd::Command::WriteZeroes, offset, length));
            while let Some(write) = &mut writing {
                let bytes = piece_bytes(write.offset, write.left);
                parts.push((write.offset, bytes));
                write.advance(bytes);
                if write.left == 0 {
                    writing = None;
                }
            }
            parts
        };
        assert_eq!(parts(4096, 8192), []);
        assert_eq!(parts(4095, 8193), [(4095, 1)]);
        assert_eq!(parts(4096, 8193), [(12288, 1)]);
        assert_eq!(parts(1, 12288), [(1, 4095), (12288, 1)]);
        assert_eq!(parts(5000, 100), [(5000, 100)]);
        assert_eq!(parts(131_000, 4000), [(131_000, 72), (131_072, 3928)]);
    }

    #[test]
    fn a_range_is_cut_at_pieces_and_every_byte_finds_its_slot() {
        let mut arena = Arena::new(&[PoolSize { small: 1, large: 3 }]).unwrap();
        let (offset, length) = (PIECE_BYTES_MAX - 10, PIECE_BYTES_MAX + 20);
        let mut request = read(offset, length);
        assert!(take_all(&mut arena, PoolId(0), offset, length, &mut request.slots));
        let spans: Vec<Span> = request.spans().collect();
        assert_eq!(spans.iter().map(|span| span.len).collect::<Vec<_>>(), [10, 131_072, 10]);
        assert_eq!(spans[0].start, 4086);
        assert_eq!(request.slot_at(offset), Some((request.slots[0], offset)));
        assert_eq!(request.slot_at(PIECE_BYTES_MAX), Some((request.slots[1], PIECE_BYTES_MAX)));
        assert_eq!(request.slot_at(2 * PIECE_BYTES_MAX + 3), Some((request.slots[2], 2 * PIECE_BYTES_MAX)));
        assert_eq!(request.slot_at(3 * PIECE_BYTES_MAX), None);
    }

    #[test]
    fn a_range_that_does_not_fit_takes_nothing() {
        let mut arena = Arena::new(&[PoolSize { small: 0, large: 2 }]).unwrap();
        let mut slots = Vec::new();
        assert!(!take_all(&mut arena, PoolId(0), 0, 3 * PIECE_BYTES_MAX, &mut slots));
        assert!(slots.is_empty());
        assert_eq!((arena.in_use(), arena.frees()), (0, 0), "nothing was taken and given back");
        assert!(take_all(&mut arena, PoolId(0), 0, 2 * PIECE_BYTES_MAX, &mut slots));
    }
}
