//! Tests of the client's codec against hostile and odd servers; agreement with our server is in `tests/`.

use super::*;
use crate::reply;
use crate::reply::{Framing, ReplyTo};

fn greeting(flags: u16) -> Vec<u8> {
    let mut bytes = b"NBDMAGICIHAVEOPT".to_vec();
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes
}

fn option_reply(option: u32, reply_type: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
    for field in [option, reply_type, data.len() as u32] {
        bytes.extend_from_slice(&field.to_be_bytes());
    }
    bytes.extend_from_slice(data);
    bytes
}

fn to(cookie: u64) -> ReplyTo {
    ReplyTo { framing: Framing::Structured, cookie, offset: 0 }
}

#[test]
fn golden_client_bytes() {
    let mut handshake = Handshake::new("v0", false);
    assert_eq!(handshake.receive(&greeting(3)), Ok(18));
    let expected = b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x0a\0\0\0\x02v0\0\x01\0\x03";
    assert_eq!(handshake.take_output(), expected);
    assert!(handshake.take_output().is_empty());
}

#[test]
fn refuses_what_is_not_fixed_newstyle() {
    assert_eq!(Handshake::new("", false).receive(&greeting(2)), Err(ClientError::NotNbd));
    assert_eq!(Handshake::new("", false).receive(&[b'x'; 18]), Err(ClientError::NotNbd));
}

#[test]
fn goes_on_without_structured_replies() {
    let mut handshake = Handshake::new("v0", true);
    handshake.receive(&greeting(3)).unwrap();
    handshake.receive(&option_reply(8, 0x8000_0001, b"what?")).unwrap();
    let export = [0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 3];
    handshake.receive(&option_reply(7, 3, &export)).unwrap();
    assert!(handshake.connected().is_none());
    handshake.receive(&option_reply(7, 1, &[])).unwrap();
    let connected = handshake.connected().unwrap();
    assert_eq!((connected.size_bytes, connected.read_only, connected.structured), (4096, true, false));
    assert_eq!(connected.block, BlockSizes::default());
}

#[test]
fn server_misbehaviour_is_an_error() {
    let after_greeting = |bytes: &[u8]| {
        let mut handshake = Handshake::new("v0", false);
        handshake.receive(&greeting(3)).unwrap();
        handshake.receive(bytes)
    };
    assert!(matches!(after_greeting(&option_reply(7, 1, &[])), Err(ClientError::Misbehaved(_))));
    assert!(matches!(after_greeting(&option_reply(6, 1, &[])), Err(ClientError::Misbehaved(_))));
    assert!(matches!(after_greeting(&option_reply(7, 3, &[0, 0, 1])), Err(ClientError::Misbehaved(_))));
    let mut long = option_reply(7, 3, &[]);
    long[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
    assert!(matches!(after_greeting(&long), Err(ClientError::Misbehaved(_))));
    let refused = after_greeting(&option_reply(7, 0x8000_0002, b"no"));
    assert_eq!(refused, Err(ClientError::Refused { reply_type: 0x8000_0002, message: "no".into() }));
}

#[test]
fn reads_every_reply_that_the_server_writes() {
    let simple = reply::simple_reply(7, Some(NbdError::NoSpace));
    assert_eq!(
        next_reply(&simple),
        Reply::Simple { consumed: 16, cookie: 7, error: Some(NbdError::NoSpace) }
    );
    assert_eq!(
        next_reply(to(7).data_chunk(512, 1024, true).as_bytes()),
        Reply::Data { consumed: 28, cookie: 7, offset: 512, length: 1024, done: true }
    );
    assert_eq!(
        next_reply(to(7).hole_chunk(512, 1024, false).as_bytes()),
        Reply::Hole { consumed: 32, cookie: 7, offset: 512, length: 1024, done: false }
    );
    assert_eq!(next_reply(to(7).none_chunk().as_bytes()), Reply::Done { consumed: 20, cookie: 7 });
    let error = to(7).error_offset_chunk(NbdError::Io, "disk", 9, true);
    assert_eq!(
        next_reply(error.as_bytes()),
        Reply::Failed {
            consumed: 38,
            cookie: 7,
            error: NbdError::Io,
            offset: Some(9),
            message: "disk".into(),
            done: true
        }
    );
    for end in 0..error.as_bytes().len() {
        assert_eq!(next_reply(&error.as_bytes()[..end]), Reply::NeedMore);
    }
}

#[test]
fn bad_replies_are_refused() {
    assert!(matches!(next_reply(&[0; 16]), Reply::Bad(_)));
    // An empty chunk that is not the last, data without bytes, a hole of odd length, success as an error.
    let mut none = to(1).none_chunk().as_bytes().to_vec();
    none[5] = 0;
    assert!(matches!(next_reply(&none), Reply::Bad(_)));
    let mut data = to(1).data_chunk(0, 1, true).as_bytes().to_vec();
    data[19] = 8;
    assert!(matches!(next_reply(&data), Reply::Bad(_)));
    data[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
    assert!(matches!(next_reply(&data), Reply::Bad(_)));
    let mut hole = to(1).hole_chunk(0, 1, true).as_bytes().to_vec();
    hole[19] = 13;
    assert!(matches!(next_reply(&hole), Reply::Bad(_)));
    let mut error = to(1).error_chunk(NbdError::Io, "", true).as_bytes().to_vec();
    error[23] = 0;
    assert!(matches!(next_reply(&error), Reply::Bad(_)));
}
