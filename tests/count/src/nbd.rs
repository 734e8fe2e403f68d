//! One request of an NBD client: its header is parsed, and the header of its answer made.

use std::hint::black_box;

use lockstep_counting::measure;
use lockstep_nbd::{
    BlockSizes, Command, ExportInfo, Framing, Parsed, ReplyTo, Request, RequestParser, Transmission,
};

const SIZE_BYTES: u64 = 1 << 32;
const LENGTH_BYTES: u64 = 4096;
const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;

fn agreed(framing: Framing) -> Transmission {
    let export = ExportInfo {
        name: "r0".into(),
        description: String::new(),
        size_bytes: SIZE_BYTES,
        read_only: false,
        block: BlockSizes { min: 1, preferred: 4096, max: 32 << 20 },
        rotational: false,
        multi_conn: true,
        fast_zero: true,
        contexts: Vec::new(),
    };
    Transmission { export, framing, contexts: Vec::new() }
}

/// A write, answered by a simple reply.
pub(crate) fn simple_write(times: u32) -> u64 {
    serve(Framing::Simple, times, |cookie, offset| {
        Request::new(Command::Write, cookie, offset, LENGTH_BYTES).encode()
    })
}

/// A read with an extended header, answered by the header of a chunk.
pub(crate) fn extended_read(times: u32) -> u64 {
    serve(Framing::Extended, times, |cookie, offset| {
        let mut header = [0; 32];
        header[..4].copy_from_slice(&EXTENDED_REQUEST_MAGIC.to_be_bytes());
        header[8..16].copy_from_slice(&cookie.to_be_bytes());
        header[16..24].copy_from_slice(&offset.to_be_bytes());
        header[24..].copy_from_slice(&LENGTH_BYTES.to_be_bytes());
        header
    })
}

/// Serves requests with these headers, of a cookie and an offset.
fn serve<const N: usize>(framing: Framing, times: u32, header: impl Fn(u64, u64) -> [u8; N]) -> u64 {
    let parser = RequestParser::new(&agreed(framing));
    let mut reply = Vec::with_capacity(256);
    let mut allocations = 0;
    for number in 0..u64::from(times) {
        let header = black_box(header(number, number * LENGTH_BYTES));
        let ((), usage) = measure(|| answer(&parser, framing, &header, &mut reply));
        allocations += usage.allocations;
        assert!(!black_box(&reply).is_empty());
    }
    allocations
}

fn answer(parser: &RequestParser, framing: Framing, header: &[u8], reply: &mut Vec<u8>) {
    let Parsed::Request { request, .. } = parser.next(header) else { panic!("a good request is refused") };
    let to = ReplyTo::new(framing, &request);
    let head = match request.command {
        Command::Read => to.data(request.offset, request.length as u32),
        command => to.result(command, Ok(()), ""),
    };
    reply.clear();
    reply.extend_from_slice(head.as_bytes());
}
