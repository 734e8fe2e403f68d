//! Golden bytes of every reply.

use super::*;
use crate::errors::NbdError;

const COOKIE: u64 = 0x0102_0304_0506_0708;

#[test]
fn simple_replies() {
    let good = [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    assert_eq!(simple_reply(COOKIE, None), good);
    let bad = [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 1, 2, 3, 4, 5, 6, 7, 8];
    assert_eq!(simple_reply(COOKIE, Some(NbdError::NoSpace)), bad);
    assert_eq!(read_reply(false, COOKIE, 4096, 512).as_bytes(), good);
}

#[test]
fn data_chunk_is_the_header_of_a_structured_read() {
    let expected = [
        0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 2, 8, // 512 + 8 bytes
        0, 0, 0, 0, 0, 0, 0x10, 0,
    ];
    assert_eq!(read_reply(true, COOKIE, 4096, 512).as_bytes(), expected);
    assert_eq!(expected.len(), DATA_CHUNK_HEADER_BYTES);
    let mut more_follows = expected;
    more_follows[5] = 0;
    assert_eq!(data_chunk(COOKIE, 4096, 512, false).as_bytes(), more_follows);
}

#[test]
fn hole_and_none_chunks() {
    let hole = [
        0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 2, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 12, // offset, size
        0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 2, 0,
    ];
    assert_eq!(hole_chunk(COOKIE, 4096, 512, true).as_bytes(), hole);
    let none = [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0];
    assert_eq!(none_chunk(COOKIE).as_bytes(), none);
}

#[test]
fn error_chunks() {
    let error = [
        0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 8, // error, text
        0, 0, 0, 5, 0, 2, b'n', b'o',
    ];
    assert_eq!(error_chunk(COOKIE, NbdError::Io, "no", true).as_bytes(), error);
    let error_offset = [
        0x66, 0x8e, 0x33, 0xef, 0, 0, 0x80, 2, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 16, // error, text
        0, 0, 0, 5, 0, 2, b'n', b'o', 0, 0, 0, 0, 0, 0, 0x10, 0,
    ];
    assert_eq!(error_offset_chunk(COOKIE, NbdError::Io, "no", 4096, false).as_bytes(), error_offset);
}

#[test]
fn long_messages_are_cut_between_characters() {
    let message = "é".repeat(MESSAGE_BYTES_MAX);
    let reply = error_offset_chunk(COOKIE, NbdError::Io, &message, u64::MAX, true);
    let bytes = reply.as_bytes();
    let text_bytes = usize::from(u16::from_be_bytes([bytes[24], bytes[25]]));
    assert_eq!(text_bytes, MESSAGE_BYTES_MAX / 2 * 2);
    assert!(core::str::from_utf8(&bytes[26..26 + text_bytes]).is_ok());
    assert_eq!(bytes.len(), 26 + text_bytes + 8);
}

#[test]
fn only_reads_are_answered_in_chunks() {
    let mut request = Request {
        command: Command::Write,
        fua: false,
        no_hole: false,
        df: false,
        cookie: 9,
        offset: 0,
        length: 1,
    };
    let failed = Err(NbdError::Io);
    assert_eq!(request_reply(true, &request, Ok(()), "").as_bytes(), simple_reply(9, None));
    assert_eq!(request_reply(true, &request, failed, "").as_bytes(), simple_reply(9, Some(NbdError::Io)));
    request.command = Command::Read;
    assert_eq!(request_reply(true, &request, failed, "why"), error_chunk(9, NbdError::Io, "why", true));
    assert_eq!(request_reply(false, &request, failed, "").as_bytes(), simple_reply(9, Some(NbdError::Io)));
}
