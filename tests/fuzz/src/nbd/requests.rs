//! Requests of NBD clients, against the specification written down a second time.

use lockstep_counting::measure;
use lockstep_nbd::client::{Reply, next_reply};
use lockstep_nbd::{
    BlockSizes, Command, ExportInfo, Framing, NbdError, PAYLOAD_BYTES_MAX, Parsed, REQUEST_HEADER_BYTES,
    Request, RequestParser, Transmission,
};

use super::export;
use crate::input::Input;

pub(super) const REQUEST_MAGIC: [u8; 4] = 0x2560_9513_u32.to_be_bytes();
pub(super) const EXTENDED_REQUEST_MAGIC: [u8; 4] = 0x21e4_1c71_u32.to_be_bytes();
const EXTENDED_REPLY_MAGIC: [u8; 4] = 0x6e8a_278c_u32.to_be_bytes();
const EXTENDED_HEADER_BYTES: usize = 32;

pub(super) const READ: u64 = 0;
pub(super) const WRITE: u64 = 1;
pub(super) const DISCONNECT: u64 = 2;
pub(super) const FLUSH: u64 = 3;
const TRIM: u64 = 4;
pub(super) const WRITE_ZEROES: u64 = 6;
pub(super) const BLOCK_STATUS: u64 = 7;

pub(super) const FUA: u64 = 1;
pub(super) const NO_HOLE: u64 = 2;
pub(super) const DF: u64 = 4;
pub(super) const REQ_ONE: u64 = 8;
pub(super) const FAST_ZERO: u64 = 16;
pub(super) const PAYLOAD_LEN: u64 = 32;

/// An export, and what was agreed for it.
fn any_agreement(input: &mut Input<'_>) -> Transmission {
    let min = 1_u32 << input.below(13);
    let preferred = (512 << input.below(6)).max(min);
    let max = preferred.saturating_mul(1 + u32::from(input.u8())).min(PAYLOAD_BYTES_MAX / min * min);
    let block = BlockSizes { min, preferred, max: max.max(preferred) };
    let size_bytes = u64::from(input.u32()) * u64::from(min) * if input.flag() { 1 << 20 } else { 1 };
    let kinds = input.u8();
    let (read_only, fast_zero) = (kinds.is_multiple_of(4), kinds & 8 != 0);
    let export = ExportInfo { size_bytes, block, read_only, fast_zero, ..export() };
    let choice = input.u8();
    let framings = [Framing::Simple, Framing::Structured, Framing::Extended, Framing::Structured];
    let framing = framings[usize::from(choice & 3)];
    let selected = if framing == Framing::Simple { 0 } else { usize::from(choice >> 4) % 3 };
    let contexts = export.contexts[..selected].to_vec();
    Transmission { export, framing, contexts }
}

/// Headers that are mostly good, each followed by nothing: payloads are the caller's part.
fn headers(input: &mut Input<'_>, agreed: &Transmission) -> Vec<u8> {
    let (export, is_extended) = (&agreed.export, agreed.framing == Framing::Extended);
    let mut stream = Vec::new();
    while !input.is_empty() && stream.len() < 8 << 10 {
        let magic = if is_extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
        stream.extend(if input.below(32) == 31 { input.array() } else { magic });
        let flags = input.one_of(&[0, 0, 0, 1, 2, 4, 3, 5, 8, 16, 32, 33, 40, 64]);
        stream.extend([0, flags, 0, input.one_of(&[0, 1, 1, 2, 3, 4, 5, 6, 7, 9])]);
        stream.extend(input.array::<8>());
        let offset = match input.below(4) {
            0 => input.u64(),
            1 => export.size_bytes.wrapping_sub(u64::from(input.u16()) * u64::from(export.block.min)),
            _ => u64::from(input.u32()) * u64::from(export.block.min) % (export.size_bytes + 1),
        };
        let length = match input.below(4) {
            0 => input.u32(),
            1 => export.block.max.wrapping_add(u32::from(input.u8())),
            _ => u32::from(input.u8()) * export.block.min,
        };
        stream.extend(offset.to_be_bytes());
        match is_extended {
            true => stream.extend((u64::from(length) << (input.below(3) * 8)).to_be_bytes()),
            false => stream.extend(length.to_be_bytes()),
        }
    }
    stream
}

/// Requests to any export.
pub(crate) fn transmission(data: &[u8]) {
    let mut input = Input::new(data);
    let made = input.flag();
    let agreed = any_agreement(&mut input);
    let stream = if made { headers(&mut input, &agreed) } else { input.rest().to_vec() };
    follow(&stream, &agreed, !made);
}

/// How far a stream of requests was followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Followed {
    /// Let through.
    pub(super) requests: usize,
    /// Refused.
    pub(super) refusals: usize,
    /// Bytes behind the last whole request.
    pub(super) left_bytes: usize,
    /// It ended at something that is no request.
    pub(super) is_broken: bool,
}

/// Reads requests until the stream cannot be followed or ends. Without payloads, headers follow each other.
pub(super) fn follow(stream: &[u8], agreed: &Transmission, has_payloads: bool) -> Followed {
    let parser = RequestParser::new(agreed);
    let (mut rest, mut followed) = (stream, Followed::default());
    loop {
        let (parsed, usage) = measure(|| parser.next(rest));
        assert_eq!(usage.allocations, 0, "a request takes memory");
        followed.left_bytes = rest.len();
        let Some(header) = Header::read(rest, agreed) else {
            assert_eq!(parsed, Parsed::NeedMore);
            return followed;
        };
        let Some(own) = rest.get(..header.bytes + header.list_bytes(agreed)) else {
            assert_eq!(parsed, Parsed::NeedMore, "{header:?}");
            return followed;
        };
        assert_eq!(parser.next(own), parsed, "looks behind its end");
        (0..own.len()).for_each(|cut| assert_eq!(parser.next(&own[..cut]), Parsed::NeedMore));
        if matches!(parsed, Parsed::Fatal(_)) {
            let too_long = header.payload_bytes(agreed) > payload_bytes_max(agreed);
            assert!(!header.is_good_magic || too_long, "{header:?}");
            return Followed { is_broken: true, ..followed };
        }
        let refusal = header.refused(&own[header.bytes..], agreed);
        let (consumed, payload) = checked(&parsed, own, (&header, refusal), &parser, agreed);
        match refusal {
            None => followed.requests += 1,
            Some(_) => followed.refusals += 1,
        }
        assert!(payload <= payload_bytes_max(agreed), "more payload than may be thrown away");
        let skipped = if has_payloads { payload as usize } else { 0 };
        let Some(after) = rest.get(consumed + skipped..) else { return followed };
        rest = after;
    }
}

/// Who announces payloads has learned how large they may be; of others more is read, and thrown away.
fn payload_bytes_max(agreed: &Transmission) -> u64 {
    match agreed.framing {
        Framing::Extended => u64::from(agreed.export.block.max),
        Framing::Simple | Framing::Structured => u64::from(PAYLOAD_BYTES_MAX),
    }
}

/// Compares an answer of the parser with the specification's; bytes consumed, and payload behind them.
fn checked(
    parsed: &Parsed,
    own: &[u8],
    (header, refusal): (&Header, Option<NbdError>),
    parser: &RequestParser,
    agreed: &Transmission,
) -> (usize, u64) {
    match *parsed {
        Parsed::NeedMore | Parsed::Fatal(_) => panic!("{header:?} is whole"),
        Parsed::Request { consumed, request } => {
            assert_eq!(refusal, None, "{request:?} is let through");
            assert_eq!(consumed, own.len());
            if agreed.framing != Framing::Extended {
                check_request(&request, own, parser);
            }
            (consumed, request.payload_bytes())
        }
        Parsed::Invalid { consumed, cookie, error, payload_to_skip, reply } => {
            assert_eq!(refusal, Some(error), "{header:?}");
            assert_eq!((consumed, payload_to_skip), (header.bytes, header.payload_bytes(agreed)));
            assert_eq!(own[8..16], cookie.to_be_bytes());
            check_refusal(reply.as_bytes(), (cookie, error), agreed.framing);
            (consumed, payload_to_skip)
        }
    }
}

/// What is let through comes out the same when it is encoded again.
fn check_request(request: &Request, own: &[u8], parser: &RequestParser) {
    let again = parser.next(&request.encode());
    assert_eq!(again, Parsed::Request { consumed: REQUEST_HEADER_BYTES, request: *request });
    if request.command != Command::Disconnect {
        assert_eq!(request.encode(), own);
    }
}

/// A client understands the server's refusal, whole or in any part.
fn check_refusal(reply: &[u8], expected: (u64, NbdError), framing: Framing) {
    if framing == Framing::Extended {
        const DONE: u64 = 1;
        const ERROR: u64 = 1 << 15 | 1;
        let field = |from: usize, to: usize| number(&reply[from..to]);
        assert_eq!((&reply[..4], field(4, 6), field(6, 8)), (&EXTENDED_REPLY_MAGIC[..], DONE, ERROR));
        assert_eq!((field(8, 16), field(32, 36)), (expected.0, u64::from(expected.1.to_wire())));
        assert_eq!((field(24, 32), field(36, 38)), (reply.len() as u64 - 32, reply.len() as u64 - 38));
        return;
    }
    for cut in 0..reply.len() {
        assert_eq!(next_reply(&reply[..cut]), Reply::NeedMore);
    }
    match next_reply(reply) {
        Reply::Simple { consumed, cookie, error } => {
            assert_eq!((consumed, cookie, error), (reply.len(), expected.0, Some(expected.1)));
        }
        Reply::Failed { consumed, cookie, error, done, .. } => {
            assert_eq!((consumed, cookie, error, done), (reply.len(), expected.0, expected.1, true));
        }
        other => panic!("{other:?} is no refusal"),
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// A header as the specification lays it out.
#[derive(Clone, Copy, Debug)]
struct Header {
    is_good_magic: bool,
    flags: u64,
    command: u64,
    offset: u64,
    length: u64,
    bytes: usize,
}

impl Header {
    fn read(stream: &[u8], agreed: &Transmission) -> Option<Self> {
        let is_extended = agreed.framing == Framing::Extended;
        let (bytes, magic) = match is_extended {
            true => (EXTENDED_HEADER_BYTES, EXTENDED_REQUEST_MAGIC),
            false => (REQUEST_HEADER_BYTES, REQUEST_MAGIC),
        };
        let header = stream.get(..bytes)?;
        Some(Self {
            is_good_magic: header[..4] == magic,
            flags: number(&header[4..6]),
            command: number(&header[6..8]),
            offset: number(&header[16..24]),
            length: number(&header[24..]),
            bytes,
        })
    }

    fn payload_bytes(&self, agreed: &Transmission) -> u64 {
        let is_announced = agreed.framing == Framing::Extended && self.flags & PAYLOAD_LEN != 0;
        if is_announced || self.command == WRITE { self.length } else { 0 }
    }

    /// Bytes of the list of contexts that belongs to the header: a length, and one number at least.
    fn list_bytes(&self, agreed: &Transmission) -> usize {
        let has_list = self.command == BLOCK_STATUS && self.is_good_magic;
        let bytes = if has_list { self.payload_bytes(agreed) } else { 0 };
        let is_list = (12..=8 + 4 * 32).contains(&bytes) && bytes.is_multiple_of(4);
        if is_list { bytes as usize } else { 0 }
    }

    /// The specification's answer; `None`: it is let through.
    fn refused(&self, list: &[u8], agreed: &Transmission) -> Option<NbdError> {
        let (export, is_extended) = (&agreed.export, agreed.framing == Framing::Extended);
        let Header { flags, command, offset, mut length, .. } = *self;
        let is_filtered = command == BLOCK_STATUS && self.payload_bytes(agreed) > 0;
        if is_filtered {
            if !is_good_list(list, agreed) {
                return Some(NbdError::Invalid);
            }
            length = number(&list[..8]);
        }
        if command == DISCONNECT {
            return None;
        }
        let allowed = match command {
            READ if agreed.framing != Framing::Simple => DF,
            WRITE if is_extended => PAYLOAD_LEN,
            WRITE_ZEROES if export.fast_zero => NO_HOLE | FAST_ZERO,
            WRITE_ZEROES => NO_HOLE,
            BLOCK_STATUS if is_filtered => REQ_ONE | PAYLOAD_LEN,
            BLOCK_STATUS => REQ_ONE,
            _ => 0,
        };
        if command > BLOCK_STATUS || flags & !(allowed | FUA) != 0 {
            return Some(NbdError::Invalid);
        }
        if export.read_only && [WRITE, TRIM, WRITE_ZEROES].contains(&command) {
            return Some(NbdError::NotPermitted);
        }
        if command == BLOCK_STATUS && agreed.contexts.is_empty() {
            return Some(NbdError::Invalid);
        }
        if command == FLUSH {
            return (offset != 0 || length != 0).then_some(NbdError::Invalid);
        }
        refused_range(command, offset, length, export)
    }
}

/// Whether all numbers are of contexts that were selected, and none is there twice.
fn is_good_list(list: &[u8], agreed: &Transmission) -> bool {
    let numbers: Vec<u64> = list.get(8..).unwrap_or(&[]).chunks(4).map(number).collect();
    let is_known = |number: &u64| (1..=agreed.contexts.len() as u64).contains(number);
    let is_twice = (1..numbers.len()).any(|at| numbers[..at].contains(&numbers[at]));
    !numbers.is_empty() && !is_twice && numbers.iter().all(is_known)
}

fn refused_range(command: u64, offset: u64, length: u64, export: &ExportInfo) -> Option<NbdError> {
    let min = u64::from(export.block.min);
    if length == 0 || !offset.is_multiple_of(min) || !length.is_multiple_of(min) {
        return Some(NbdError::Invalid);
    }
    if u128::from(offset) + u128::from(length) > u128::from(export.size_bytes) {
        let grows = [WRITE, WRITE_ZEROES].contains(&command);
        return Some(if grows { NbdError::NoSpace } else { NbdError::Invalid });
    }
    let too_long = length > u64::from(export.block.max);
    match command {
        _ if !too_long => None,
        READ => Some(NbdError::Overflow),
        WRITE => Some(NbdError::Invalid),
        _ => None,
    }
}
