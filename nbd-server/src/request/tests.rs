//! Every command, every flag, every error, on the bytes that a client would send.

use super::*;
use crate::export::BlockSizes;

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
    }
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
            let text = reply.as_bytes();
            assert!(text.starts_with(&0x668e_33ef_u32.to_be_bytes()) == (parser.structured && command == 0));
            Some(error)
        }
        other => unreachable!("{other:?}"),
    }
}

#[test]
fn golden_request() {
    let bytes = *b"\x25\x60\x95\x13\0\x01\0\x01\0\0\0\0\0\0\0\x4d\0\0\0\0\0\0\x10\0\0\0\x02\0";
    let request = Request {
        command: Command::Write,
        fua: true,
        no_hole: false,
        df: false,
        cookie: 77,
        offset: 4096,
        length: 512,
    };
    assert_eq!(request.encode(), bytes);
    assert_eq!(request.payload_bytes(), 512);
    let parser = RequestParser::new(&export(1, false), false);
    assert_eq!(parser.next(&bytes), Parsed::Request { consumed: 28, request });
    for end in 0..bytes.len() {
        assert_eq!(parser.next(&bytes[..end]), Parsed::NeedMore);
    }
}

#[test]
fn every_command_is_accepted_with_fua() {
    let parser = RequestParser::new(&export(1, false), true);
    for command in [0, 1, 4, 5, 6] {
        assert_eq!(refusal(&parser, 0, command, 0, 1), None);
        assert_eq!(refusal(&parser, 1, command, SIZE_BYTES - 1, 1), None);
    }
    assert_eq!(refusal(&parser, 1, 3, 0, 0), None);
    assert_eq!(refusal(&parser, 0xffff, 2, 5, 5), None);
}

#[test]
fn encode_and_parse_agree() {
    let parser = RequestParser::new(&export(1, false), true);
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
            command,
            fua: command.modifies(),
            no_hole: command == Command::WriteZeroes,
            df: command == Command::Read,
            cookie: u64::MAX,
            offset: range.0,
            length: range.1,
        };
        assert_eq!(parser.next(&request.encode()), Parsed::Request { consumed: 28, request });
    }
}

#[test]
fn unknown_commands_and_flags_are_invalid() {
    let parser = RequestParser::new(&export(1, false), true);
    for command in [7, 8, 0xffff] {
        assert_eq!(refusal(&parser, 0, command, 0, 512), Some(NbdError::Invalid));
    }
    // NO_HOLE outside of zeroes, DF outside of reads, REQ_ONE, FAST_ZERO which is not offered.
    for (flags, command) in [(2, 1), (2, 0), (4, 1), (4, 6), (8, 0), (16, 6), (0x8000, 3)] {
        assert_eq!(refusal(&parser, flags, command, 0, 512), Some(NbdError::Invalid), "{flags} {command}");
    }
    let simple = RequestParser::new(&export(1, false), false);
    assert_eq!(refusal(&simple, 4, 0, 0, 512), Some(NbdError::Invalid), "DF was not offered");
}

#[test]
fn read_only_exports_refuse_changes_and_nothing_else() {
    let parser = RequestParser::new(&export(1, true), false);
    for command in [1, 4, 6] {
        assert_eq!(refusal(&parser, 0, command, 0, 512), Some(NbdError::NotPermitted));
    }
    assert_eq!(refusal(&parser, 0, 0, 0, 512), None);
    assert_eq!(refusal(&parser, 0, 5, 0, 512), None);
    assert_eq!(refusal(&parser, 0, 3, 0, 0), None);
}

#[test]
fn ranges_outside_the_export() {
    let parser = RequestParser::new(&export(1, false), false);
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
    let parser = RequestParser::new(&export(1, false), false);
    for command in [0, 1, 4, 5, 6] {
        assert_eq!(refusal(&parser, 0, command, 0, 0), Some(NbdError::Invalid));
    }
    assert_eq!(refusal(&parser, 0, 3, 0, 1), Some(NbdError::Invalid));
    assert_eq!(refusal(&parser, 0, 3, 1, 0), Some(NbdError::Invalid));
}

#[test]
fn alignment_to_the_minimum_block() {
    let parser = RequestParser::new(&export(512, false), false);
    for command in [0, 1, 4, 5, 6] {
        assert_eq!(refusal(&parser, 0, command, 512, 512), None);
        assert_eq!(refusal(&parser, 0, command, 511, 512), Some(NbdError::Invalid));
        assert_eq!(refusal(&parser, 0, command, 512, 511), Some(NbdError::Invalid));
    }
}

#[test]
fn the_maximum_binds_reads_and_writes_only() {
    let parser = RequestParser::new(&export(1, false), false);
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
    let parser = RequestParser::new(&export(1, false), false);
    let mut bytes = header(0, 0, 0, 1);
    bytes[0] = 0;
    assert_eq!(parser.next(&bytes), Parsed::Fatal(ProtocolError::BadRequestMagic(0x0060_9513)));
    let bytes = header(0xffff, 1, u64::MAX, PAYLOAD_BYTES_MAX + 1);
    assert_eq!(parser.next(&bytes), Parsed::Fatal(ProtocolError::WriteTooLong(PAYLOAD_BYTES_MAX + 1)));
}
