//! Every command, every flag, every error, on the bytes that a client would send.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use super::*;
use crate::export::{BlockSizes, ExportInfo};

const SIZE_BYTES: u64 = 1 << 30;

fn export(min: u32, read_only: bool) -> ExportInfo {
    ExportInfo {
        name: "v0".into(),
        description: "".into(),
        size_bytes: SIZE_BYTES,
        read_only,
        block: BlockSizes { min, preferred: 4096, max: 1 << 20 },
        rotational: false,
        multi_conn: true,
        fast_zero: false,
        contexts: Vec::new(),
    }
}

/// A parser for a connection with so many contexts.
fn parser_with(export: ExportInfo, framing: Framing, contexts: usize) -> RequestParser {
    let contexts = vec![String::from("x-test:some"); contexts];
    RequestParser::new(&Transmission { export, framing, contexts })
}

fn parser_for(export: ExportInfo, structured: bool) -> RequestParser {
    parser_with(export, if structured { Framing::Structured } else { Framing::Simple }, 0)
}

fn header(flags: u16, command: u16, offset: u64, length: u32) -> [u8; REQUEST_HEADER_BYTES] {
    FixedBytes::new()
        .put(&0x2560_9513_u32.to_be_bytes())
        .put(&flags.to_be_bytes())
        .put(&command.to_be_bytes())
        .put(&77_u64.to_be_bytes())
        .put(&offset.to_be_bytes())
        .put(&length.to_be_bytes())
        .into_full()
}

/// The error, or `None` if the request is good.
fn refusal(parser: &RequestParser, flags: u16, command: u16, offset: u64, length: u32) -> Option<NbdError> {
    match parser.next(&header(flags, command, offset, length)) {
        Parsed::Request { consumed, request } => {
            assert_eq!((consumed, request.cookie), (28, 77));
            None
        }
        Parsed::Invalid { consumed, cookie, error, payload_to_skip, reply } => {
            assert_eq!((consumed, cookie), (28, 77));
            assert_eq!(payload_to_skip, if command == 1 { u64::from(length) } else { 0 });
            let is_chunk = reply.as_bytes().starts_with(&0x668e_33ef_u32.to_be_bytes());
            assert_eq!(is_chunk, parser.framing != Framing::Simple);
            Some(error)
        }
        other => unreachable!("{other:?}"),
    }
}

#[test]
fn golden_request() {
    let bytes = *b"\x25\x60\x95\x13\0\x01\0\x01\0\0\0\0\0\0\0\x4d\0\0\0\0\0\0\x10\0\0\0\x02\0";
    let request = Request { fua: true, ..Request::new(Command::Write, 77, 4096, 512) };
    assert_eq!(request.encode(), bytes);
    assert_eq!(request.payload_bytes(), 512);
    let parser = parser_for(export(1, false), false);
    assert_eq!(parser.next(&bytes), Parsed::Request { consumed: 28, request });
    for end in 0..bytes.len() {
        assert_eq!(parser.next(&bytes[..end]), Parsed::NeedMore);
    }
}

#[test]
fn every_command_is_accepted_with_fua() {
    let parser = parser_for(export(1, false), true);
    for command in [0, 1, 4, 5, 6] {
        assert_eq!(refusal(&parser, 0, command, 0, 1), None);
        assert_eq!(refusal(&parser, 1, command, SIZE_BYTES - 1, 1), None);
    }
    assert_eq!(refusal(&parser, 1, 3, 0, 0), None);
    assert_eq!(refusal(&parser, 0xffff, 2, 5, 5), None);
}

#[test]
fn encode_and_parse_agree() {
    let parser = parser_for(export(1, false), true);
    for (command, range) in [
        (Command::Read, (5, 6)),
        (Command::Write, (5, 6)),
        (Command::Disconnect, (0, 0)),
        (Command::Flush, (0, 0)),
        (Command::Trim, (5, 6)),
        (Command::Cache, (5, 6)),
        (Command::WriteZeroes, (5, 6)),
    ] {
        let request = Request {
            fua: command.modifies(),
            no_hole: command == Command::WriteZeroes,
            df: command == Command::Read,
            ..Request::new(command, u64::MAX, range.0, range.1)
        };
        assert_eq!(parser.next(&request.encode()), Parsed::Request { consumed: 28, request });
    }
}

#[test]
fn unknown_commands_and_flags_are_invalid() {
    let parser = parser_for(export(1, false), true);
    for command in [7, 8, 0xffff] {
        assert_eq!(refusal(&parser, 0, command, 0, 512), Some(NbdError::Invalid));
    }
    // NO_HOLE outside of zeroes, DF outside of reads, REQ_ONE, FAST_ZERO which is not offered.
    for (flags, command) in [(2, 1), (2, 0), (4, 1), (4, 6), (8, 0), (16, 6), (0x8000, 3)] {
        assert_eq!(refusal(&parser, flags, command, 0, 512), Some(NbdError::Invalid), "{flags} {command}");
    }
    let simple = parser_for(export(1, false), false);
    assert_eq!(refusal(&simple, 4, 0, 0, 512), Some(NbdError::Invalid), "DF was not offered");
}

#[test]
fn read_only_exports_refuse_changes_and_nothing_else() {
    let parser = parser_for(export(1, true), false);
    for command in [1, 4, 6] {
        assert_eq!(refusal(&parser, 0, command, 0, 512), Some(NbdError::NotPermitted));
    }
    assert_eq!(refusal(&parser, 0, 0, 0, 512), None);
    assert_eq!(refusal(&parser, 0, 5, 0, 512), None);
    assert_eq!(refusal(&parser, 0, 3, 0, 0), None);
}

#[test]
fn ranges_outside_the_export() {
    let parser = parser_for(export(1, false), false);
    let outside = [(SIZE_BYTES, 1), (SIZE_BYTES - 1, 2), (u64::MAX, 1), (u64::MAX, 1 << 20), (1 << 63, 512)];
    for (offset, length) in outside {
        for command in [0, 4, 5] {
            assert_eq!(refusal(&parser, 0, command, offset, length), Some(NbdError::Invalid));
        }
        for command in [1, 6] {
            assert_eq!(refusal(&parser, 0, command, offset, length), Some(NbdError::NoSpace));
        }
    }
}

#[test]
fn zero_length_and_flush_with_a_range_are_invalid() {
    let parser = parser_for(export(1, false), false);
    for command in [0, 1, 4, 5, 6] {
        assert_eq!(refusal(&parser, 0, command, 0, 0), Some(NbdError::Invalid));
    }
    assert_eq!(refusal(&parser, 0, 3, 0, 1), Some(NbdError::Invalid));
    assert_eq!(refusal(&parser, 0, 3, 1, 0), Some(NbdError::Invalid));
}

#[test]
fn alignment_to_the_minimum_block() {
    let parser = parser_for(export(512, false), false);
    for command in [0, 1, 4, 5, 6] {
        assert_eq!(refusal(&parser, 0, command, 512, 512), None);
        assert_eq!(refusal(&parser, 0, command, 511, 512), Some(NbdError::Invalid));
        assert_eq!(refusal(&parser, 0, command, 512, 511), Some(NbdError::Invalid));
    }
}

#[test]
fn the_maximum_binds_reads_and_writes_only() {
    let parser = parser_for(export(1, false), false);
    let max = 1 << 20;
    assert_eq!(refusal(&parser, 0, 0, 0, max), None);
    assert_eq!(refusal(&parser, 0, 0, 0, max + 1), Some(NbdError::Overflow));
    assert_eq!(refusal(&parser, 0, 1, 0, max), None);
    assert_eq!(refusal(&parser, 0, 1, 0, max + 1), Some(NbdError::Invalid));
    assert_eq!(refusal(&parser, 0, 1, 0, PAYLOAD_BYTES_MAX), Some(NbdError::Invalid));
    for command in [4, 5, 6] {
        assert_eq!(refusal(&parser, 0, command, 0, SIZE_BYTES as u32), None);
    }
}

#[test]
fn streams_that_cannot_be_followed() {
    let parser = parser_for(export(1, false), false);
    let mut bytes = header(0, 0, 0, 1);
    bytes[0] = 0;
    assert_eq!(parser.next(&bytes), Parsed::Fatal(ProtocolError::BadRequestMagic(0x0060_9513)));
    let bytes = header(0xffff, 1, u64::MAX, PAYLOAD_BYTES_MAX + 1);
    assert_eq!(
        parser.next(&bytes),
        Parsed::Fatal(ProtocolError::PayloadTooLong(u64::from(PAYLOAD_BYTES_MAX) + 1))
    );
}

fn extended(flags: u16, command: u16, offset: u64, length: u64) -> Vec<u8> {
    let mut bytes = 0x21e4_1c71_u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(77_u64.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

#[test]
fn extended_requests_have_their_own_magic_and_long_lengths() {
    let parser = parser_with(ExportInfo { size_bytes: 1 << 50, ..export(1, false) }, Framing::Extended, 0);
    let bytes = extended(0, 6, 1 << 30, 1 << 49);
    let request = Request::new(Command::WriteZeroes, 77, 1 << 30, 1 << 49);
    assert_eq!(parser.next(&bytes), Parsed::Request { consumed: 32, request });
    for end in 0..bytes.len() {
        assert_eq!(parser.next(&bytes[..end]), Parsed::NeedMore);
    }
    let mut compact = header(0, 0, 0, 1).to_vec();
    compact.extend([0; 4]);
    assert!(matches!(parser.next(&compact), Parsed::Fatal(ProtocolError::BadRequestMagic(_))));
    let long = extended(0, 0, u64::MAX, u64::MAX);
    assert!(matches!(parser.next(&long), Parsed::Invalid { consumed: 32, payload_to_skip: 0, .. }));
}

#[test]
fn an_announced_payload_is_skipped_where_none_belongs() {
    let parser = parser_with(export(1, false), Framing::Extended, 0);
    let invalid = |bytes: &[u8], skip: u64| match parser.next(bytes) {
        Parsed::Invalid { consumed: 32, cookie: 77, error: NbdError::Invalid, payload_to_skip, reply } => {
            assert_eq!(payload_to_skip, skip);
            assert!(reply.as_bytes().starts_with(&0x6e8a_278c_u32.to_be_bytes()));
        }
        other => unreachable!("{other:?}"),
    };
    for command in [0, 3, 4, 5, 6, 99] {
        invalid(&extended(32, command, 0, 512), 512);
    }
    // More than the largest block ends the connection, whatever it is for.
    let too_long = u64::from(parser.block_max_bytes) + 1;
    let fatal = Parsed::Fatal(ProtocolError::PayloadTooLong(too_long));
    for command in [1, 4] {
        assert_eq!(parser.next(&extended(32, command, 0, too_long)), fatal);
    }
    // A write has its payload, announced or not.
    for flags in [0, 32] {
        let request = Request::new(Command::Write, 77, 0, 512);
        assert_eq!(parser.next(&extended(flags, 1, 0, 512)), Parsed::Request { consumed: 32, request });
    }
    let parser = parser_for(export(1, false), true);
    assert_eq!(refusal(&parser, 32, 1, 0, 512), Some(NbdError::Invalid), "not with short headers");
}

#[test]
fn block_status_needs_a_context() {
    let without = parser_for(export(1, false), true);
    assert_eq!(refusal(&without, 0, 7, 0, 512), Some(NbdError::Invalid));
    let parser = parser_with(export(1, true), Framing::Structured, 2);
    let request = Request {
        req_one: true,
        contexts: ContextSet::first(2),
        ..Request::new(Command::BlockStatus, 77, 5, u64::from(u32::MAX) >> 3)
    };
    assert_eq!(parser.next(&request.encode()), Parsed::Request { consumed: 28, request });
    assert_eq!(refusal(&parser, 4, 0, 0, 512), None);
    for (flags, offset, length) in [(0, 0, 0), (0, SIZE_BYTES, 1), (2, 0, 512), (16, 0, 512), (32, 0, 512)] {
        match parser.next(&header(flags, 7, offset, length)) {
            Parsed::Invalid { error: NbdError::Invalid, payload_to_skip: 0, reply, .. } => {
                assert!(reply.as_bytes().starts_with(&0x668e_33ef_u32.to_be_bytes()), "as a chunk");
            }
            other => unreachable!("{other:?}"),
        }
    }
}

#[test]
fn a_list_of_contexts_comes_with_its_length() {
    let parser = parser_with(export(1, false), Framing::Extended, 3);
    let ask = |length: u64, ids: &[u32], more: &[u8]| {
        let mut payload = length.to_be_bytes().to_vec();
        ids.iter().for_each(|id| payload.extend(id.to_be_bytes()));
        payload.extend(more);
        let mut bytes = extended(32, 7, 4096, payload.len() as u64);
        bytes.extend(payload);
        bytes
    };
    let bytes = ask(8192, &[3, 1], &[]);
    let contexts = ContextSet::default().with(1).and_then(|set| set.with(3)).unwrap();
    let request = Request { contexts, ..Request::new(Command::BlockStatus, 77, 4096, 8192) };
    assert_eq!(parser.next(&bytes), Parsed::Request { consumed: bytes.len(), request });
    for end in 0..bytes.len() {
        assert_eq!(parser.next(&bytes[..end]), Parsed::NeedMore);
    }
    let long = [1; 33];
    let bad =
        [ask(1, &[4], &[]), ask(1, &[0], &[]), ask(1, &[1, 1], &[]), ask(1, &[1], &[0]), ask(0, &[1], &[])];
    for bytes in bad.into_iter().chain([ask(1, &[], &[]), ask(1, &long, &[]), ask(SIZE_BYTES, &[1], &[])]) {
        match parser.next(&bytes) {
            Parsed::Invalid { consumed: 32, error: NbdError::Invalid, payload_to_skip, .. } => {
                assert_eq!(payload_to_skip, bytes.len() as u64 - 32);
            }
            other => unreachable!("{other:?}"),
        }
    }
}

#[test]
fn fast_zeroes_are_taken_where_they_were_offered() {
    let offered = parser_for(ExportInfo { fast_zero: true, ..export(1, false) }, false);
    assert_eq!(refusal(&offered, 16 | 2, 6, 0, 512), None);
    assert_eq!(refusal(&offered, 16, 1, 0, 512), Some(NbdError::Invalid));
    let fast = Request { fast: true, ..Request::new(Command::WriteZeroes, 1, 0, 9) };
    assert_eq!(offered.next(&fast.encode()), Parsed::Request { consumed: 28, request: fast });
}
