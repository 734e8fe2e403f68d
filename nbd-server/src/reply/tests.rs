//! Golden bytes of every reply.

use alloc::vec;

use super::*;
use crate::errors::NbdError;

const COOKIE: u64 = 0x0102_0304_0506_0708;
const OFFSET: u64 = 0x0a00_0000_0000_0b00;

fn to(framing: Framing) -> ReplyTo {
    ReplyTo { framing, cookie: COOKIE, offset: OFFSET }
}

#[test]
fn simple_replies() {
    let good = [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    assert_eq!(simple_reply(COOKIE, None), good);
    let bad = [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 1, 2, 3, 4, 5, 6, 7, 8];
    assert_eq!(simple_reply(COOKIE, Some(NbdError::NoSpace)), bad);
    assert_eq!(to(Framing::Simple).data(4096, 512).as_bytes(), good);
}

#[test]
fn data_chunk_is_the_header_of_a_structured_read() {
    let expected = [
        0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 2, 8, // 512 + 8 bytes
        0, 0, 0, 0, 0, 0, 0x10, 0,
    ];
    assert_eq!(to(Framing::Structured).data(4096, 512).as_bytes(), expected);
    let mut more_follows = expected;
    more_follows[5] = 0;
    assert_eq!(to(Framing::Structured).data_chunk(4096, 512, false).as_bytes(), more_follows);
}

#[test]
fn hole_and_none_chunks() {
    let hole = [
        0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 2, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 12, // offset, size
        0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 2, 0,
    ];
    assert_eq!(to(Framing::Structured).hole_chunk(4096, 512, true).as_bytes(), hole);
    let none = [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0];
    assert_eq!(to(Framing::Structured).none_chunk().as_bytes(), none);
}

#[test]
fn error_chunks() {
    let error = [
        0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 8, // error, text
        0, 0, 0, 5, 0, 2, b'n', b'o',
    ];
    assert_eq!(to(Framing::Structured).error_chunk(NbdError::Io, "no", true).as_bytes(), error);
    let error_offset = [
        0x66, 0x8e, 0x33, 0xef, 0, 0, 0x80, 2, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 16, // error, text
        0, 0, 0, 5, 0, 2, b'n', b'o', 0, 0, 0, 0, 0, 0, 0x10, 0,
    ];
    assert_eq!(
        to(Framing::Structured).error_offset_chunk(NbdError::Io, "no", 4096, false).as_bytes(),
        error_offset
    );
}

#[test]
fn long_messages_are_cut_between_characters() {
    let message = "é".repeat(MESSAGE_BYTES_MAX);
    let reply = to(Framing::Structured).error_offset_chunk(NbdError::Io, &message, u64::MAX, true);
    let bytes = reply.as_bytes();
    let text_bytes = usize::from(u16::from_be_bytes([bytes[24], bytes[25]]));
    assert_eq!(text_bytes, MESSAGE_BYTES_MAX / 2 * 2);
    assert!(core::str::from_utf8(&bytes[26..26 + text_bytes]).is_ok());
    assert_eq!(bytes.len(), 26 + text_bytes + 8);
}

#[test]
fn failures_have_words_where_chunks_were_agreed() {
    let failed = Err(NbdError::Io);
    let [simple, chunks] = [Framing::Simple, Framing::Structured].map(to);
    assert_eq!(chunks.result(Command::Write, Ok(()), "").as_bytes(), simple_reply(COOKIE, None));
    for command in [Command::Read, Command::BlockStatus, Command::Write, Command::Flush] {
        assert_eq!(chunks.result(command, failed, "why"), chunks.error_chunk(NbdError::Io, "why", true));
        let refusal = simple.result(command, failed, "why");
        assert_eq!(refusal.as_bytes(), simple_reply(COOKIE, Some(NbdError::Io)));
    }
}

#[test]
fn with_extended_headers_everything_is_a_chunk_that_repeats_the_offset() {
    let extended = to(Framing::Extended);
    let head = |kind: [u8; 2], length: u8| {
        let mut bytes = vec![0x6e, 0x8a, 0x27, 0x8c, 0, 1, kind[0], kind[1], 1, 2, 3, 4, 5, 6, 7, 8];
        bytes.extend([0x0a, 0, 0, 0, 0, 0, 0x0b, 0, 0, 0, 0, 0, 0, 0, 0, length]);
        bytes
    };
    for command in [Command::Write, Command::Flush, Command::Trim, Command::Cache, Command::WriteZeroes] {
        assert_eq!(extended.result(command, Ok(()), "").as_bytes(), head([0, 0], 0));
        let refusal = extended.result(command, Err(NbdError::Io), "no");
        assert_eq!(refusal.as_bytes(), [&head([0x80, 1], 8)[..], &[0, 0, 0, 5, 0, 2, b'n', b'o']].concat());
    }
    let data = extended.data(0x1000, 3);
    assert_eq!(data.as_bytes(), [&head([0, 1], 11)[..], &[0, 0, 0, 0, 0, 0, 0x10, 0]].concat());
}
