//! Properties of both ends over whole byte streams: how a stream is cut does not matter, no stream breaks the
//! machines, and our client and our server understand each other.

mod common;

use common::{DISK_BYTES, End, Server};
use lockstep_nbd::client::{ClientError, Handshake, Reply, next_reply};
use lockstep_nbd::{Command, NbdError, Request};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

const EXTENDED_HEADERS: u32 = 11;
/// The maximum block of the export of `common`.
const BLOCK_BYTES_MAX: u64 = 16 << 10;

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn go(name: &[u8]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(name);
    data.extend_from_slice(&[0, 0]);
    data
}

/// An option that leaves the handshake going.
fn any_option() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(option(3, &[])),
        Just(option(8, &[])),
        Just(option(6, &go(b"v0"))),
        Just(option(7, &go(b"standby"))),
        Just(option(EXTENDED_HEADERS, &[])),
        (9_u32..20, vec(any::<u8>(), 0..40)).prop_map(|(number, data)| option(number, &data)),
    ]
}

fn any_command() -> impl Strategy<Value = Command> {
    prop_oneof![
        3 => Just(Command::Read),
        3 => Just(Command::Write),
        1 => Just(Command::Flush),
        1 => Just(Command::Trim),
        1 => Just(Command::Cache),
        1 => Just(Command::WriteZeroes),
    ]
}

/// Any request, mostly good: ranges may leave the export, be empty or be too long, flags may not fit.
fn any_request() -> impl Strategy<Value = Request> {
    let offset = prop_oneof![8 => 0..DISK_BYTES as u64, 1 => any::<u64>()];
    let length = prop_oneof![8 => 1..2000_u64, 1 => 0..40_000_u64];
    let flags = (any::<bool>(), prop::bool::weighted(0.1), prop::bool::weighted(0.1));
    (any_command(), flags, any::<u64>(), offset, length).prop_map(
        |(command, (fua, no_hole, df), cookie, offset, length)| {
            let (offset, length) = if command == Command::Flush { (0, 0) } else { (offset, length) };
            Request { fua, no_hole, df, ..Request::new(command, cookie, offset, length) }
        },
    )
}

/// The header with the magic and the length of extended headers; a payload has to be announced there.
fn extended(request: &Request) -> Vec<u8> {
    let mut bytes = request.encode().to_vec();
    bytes[..4].copy_from_slice(&0x21e4_1c71_u32.to_be_bytes());
    if request.command == Command::Write {
        bytes[5] |= 1 << 5;
    }
    bytes.truncate(24);
    bytes.extend_from_slice(&request.length.to_be_bytes());
    bytes
}

fn with_payload(header: &[u8], request: &Request) -> Vec<u8> {
    let mut bytes = header.to_vec();
    bytes.extend((0..request.payload_bytes()).map(|index| (index ^ request.cookie) as u8));
    bytes
}

/// What a well-behaved but clumsy client sends in one connection.
fn any_stream() -> impl Strategy<Value = Vec<u8>> {
    (vec(any_option(), 0..6), vec(any_request(), 0..20)).prop_map(|(options, requests)| {
        let mut stream = vec![0, 0, 0, 3];
        options.iter().for_each(|bytes| stream.extend_from_slice(bytes));
        stream.extend_from_slice(&option(7, &go(b"v0")));
        // Every other form of this option is refused, and every other option leaves the headers as they are.
        let is_extended = options.contains(&option(EXTENDED_HEADERS, &[]));
        // Who announces payloads knows how long they may be: a longer one ends the connection.
        let fits = |request: &&Request| !is_extended || request.payload_bytes() <= BLOCK_BYTES_MAX;
        for request in requests.iter().filter(fits) {
            let header = if is_extended { extended(request) } else { request.encode().to_vec() };
            stream.extend(with_payload(&header, request));
        }
        stream
    })
}

/// Cuts `stream` at the given places and feeds the pieces.
fn serve_in_pieces(stream: &[u8], cuts: &[Index]) -> Server {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
    places.sort_unstable();
    places.push(stream.len());
    let mut server = Server::new();
    let mut begin = 0;
    for end in places {
        server.feed(&stream[begin..end]);
        begin = end;
    }
    server
}

fn assert_same(one: &Server, other: &Server) {
    assert_eq!(one.output, other.output);
    assert_eq!(one.requests, other.requests);
    assert_eq!(one.end, other.end);
    assert_eq!(one.disk(), other.disk());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn cuts_do_not_matter(stream in any_stream(), cuts in vec(any::<Index>(), 0..30)) {
        let whole = serve_in_pieces(&stream, &[]);
        prop_assert_eq!(whole.end, None);
        prop_assert_eq!(whole.backlog_bytes(), 0);
        assert_same(&whole, &serve_in_pieces(&stream, &cuts));
        let mut bytewise = Server::new();
        stream.chunks(1).for_each(|byte| bytewise.feed(byte));
        assert_same(&whole, &bytewise);
    }

    #[test]
    fn damaged_streams_break_nothing(
        mut stream in any_stream(),
        damage in vec((any::<Index>(), any::<u8>()), 1..8),
        cuts in vec(any::<Index>(), 0..10),
    ) {
        for (place, value) in damage {
            let place = place.index(stream.len());
            stream[place] = value;
        }
        let whole = serve_in_pieces(&stream, &[]);
        assert_same(&whole, &serve_in_pieces(&stream, &cuts));
    }

    #[test]
    fn noise_breaks_nothing(noise in vec(any::<u8>(), 0..400), option_header in any::<bool>()) {
        let mut server = Server::new();
        server.feed(&[0, 0, 0, 3]);
        if option_header {
            server.feed(b"IHAVEOPT\0\0\0\x07\0\0\0\x40");
        }
        server.feed(&noise);
        let mut client = Handshake::new("v0", true);
        if let Ok(consumed) = client.receive(&noise) {
            prop_assert!(consumed <= noise.len());
        }
        let mut chunk = 0x668e_33ef_u32.to_be_bytes().to_vec();
        chunk.extend_from_slice(&noise);
        for input in [&noise, &chunk] {
            prop_assert!(consumed_bytes(&next_reply(input)) <= input.len());
        }
    }

    #[test]
    fn own_client_and_server_agree(
        requests in vec(any_request(), 0..20),
        structured in any::<bool>(),
        cuts in vec(1_usize..50, 1..20),
    ) {
        let mut server = Server::new();
        let mut client = Handshake::new("v0", structured);
        shake_hands(&mut server, &mut client, &cuts)?;
        let offered = client.connected().expect("connected");
        prop_assert_eq!(offered.structured, structured);
        prop_assert_eq!(offered.size_bytes, DISK_BYTES as u64);
        prop_assert_eq!(offered.block, common::export().block);
        let mut model = vec![0_u8; DISK_BYTES];
        for request in &requests {
            server.output.clear();
            server.feed(&with_payload(&request.encode(), request));
            check_answer(request, structured, &mut model, &server.output)?;
        }
        prop_assert_eq!(server.disk(), &model[..]);
        let bye = Request::new(Command::Disconnect, 0, 0, 0);
        server.feed(&bye.encode());
        prop_assert_eq!(server.end, Some(End::Polite));
    }
}

fn consumed_bytes(reply: &Reply) -> usize {
    match reply {
        Reply::NeedMore | Reply::Bad(_) => 0,
        Reply::Simple { consumed, .. }
        | Reply::Data { consumed, .. }
        | Reply::Hole { consumed, .. }
        | Reply::Failed { consumed, .. }
        | Reply::Done { consumed, .. } => *consumed,
    }
}

/// Passes bytes to and fro, cut into the given sizes, until both are done.
fn shake_hands(server: &mut Server, client: &mut Handshake, sizes: &[usize]) -> Result<(), TestCaseError> {
    let mut to_client = std::mem::take(&mut server.output);
    for turn in 0..2000 {
        let size = sizes[turn % sizes.len()].min(to_client.len());
        let consumed = client.receive(&to_client[..size]).expect("our server behaves");
        prop_assert_eq!(consumed, size, "the server says nothing behind the handshake");
        to_client.drain(..consumed);
        server.feed(&client.take_output());
        to_client.append(&mut server.output);
        if client.connected().is_some() && to_client.is_empty() {
            return Ok(());
        }
    }
    Err(TestCaseError::fail("handshake does not end"))
}

/// The specification's answer for this export, written down once more.
fn expected_error(request: &Request, structured: bool) -> Option<NbdError> {
    let flags_fit = (!request.no_hole || request.command == Command::WriteZeroes)
        && (!request.df || (request.command == Command::Read && structured));
    let end = request.offset.checked_add(request.length);
    let too_long = request.length > BLOCK_BYTES_MAX;
    match request.command {
        _ if !flags_fit => Some(NbdError::Invalid),
        Command::Flush => None,
        _ if request.length == 0 => Some(NbdError::Invalid),
        Command::Write | Command::WriteZeroes if end.is_none_or(|end| end > DISK_BYTES as u64) => {
            Some(NbdError::NoSpace)
        }
        _ if end.is_none_or(|end| end > DISK_BYTES as u64) => Some(NbdError::Invalid),
        Command::Read if too_long => Some(NbdError::Overflow),
        Command::Write if too_long => Some(NbdError::Invalid),
        _ => None,
    }
}

fn check_answer(
    request: &Request,
    structured: bool,
    model: &mut [u8],
    answer: &[u8],
) -> Result<(), TestCaseError> {
    let reply = next_reply(answer);
    let rest = &answer[consumed_bytes(&reply)..];
    let error = expected_error(request, structured);
    let in_chunks = structured && (request.command == Command::Read || error.is_some());
    match reply {
        Reply::Simple { cookie, error: seen, .. } if !in_chunks => {
            prop_assert_eq!((cookie, seen), (request.cookie, error));
        }
        Reply::Failed { cookie, error: seen, done: true, .. } if in_chunks => {
            prop_assert_eq!((cookie, Some(seen)), (request.cookie, error));
        }
        Reply::Data { cookie, offset, length, done: true, .. } if in_chunks => {
            let expected = (request.cookie, request.offset, request.length as u32);
            prop_assert_eq!((cookie, offset, length), expected);
            prop_assert_eq!(error, None);
        }
        other => return Err(TestCaseError::fail(format!("{other:?} for {request:?}"))),
    }
    if error.is_some() {
        prop_assert!(rest.is_empty());
        return Ok(());
    }
    let range = request.offset as usize..request.offset as usize + request.length as usize;
    match request.command {
        Command::Write => model[range].copy_from_slice(&with_payload(&request.encode(), request)[28..]),
        Command::Trim | Command::WriteZeroes => model[range].fill(0),
        Command::Read => prop_assert_eq!(rest, &model[range]),
        _ => {}
    }
    prop_assert!(request.command == Command::Read || rest.is_empty());
    Ok(())
}

#[test]
fn own_client_hears_why_it_is_refused() {
    let mut server = Server::new();
    let mut client = Handshake::new("standby", false);
    for _ in 0..2 {
        let said = std::mem::take(&mut server.output);
        let heard = client.receive(&said);
        if let Err(error) = heard {
            let message = "this node is Secondary".into();
            assert_eq!(error, ClientError::Refused { reply_type: 0x8000_0002, message });
            return;
        }
        server.feed(&client.take_output());
    }
    panic!("the client was let in");
}
