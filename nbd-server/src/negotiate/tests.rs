//! Every option and every way to refuse it, on the bytes that a client would send.

use alloc::string::ToString;
use alloc::vec;

use super::*;
use crate::export::BlockSizes;

struct Directory;

impl ExportDirectory for Directory {
    fn list(&self) -> Vec<String> {
        vec!["v0".into(), "v1".into()]
    }

    fn find(&self, name: &str) -> Lookup {
        match name {
            "v0" | "" => Lookup::Found(export()),
            "standby" => Lookup::Refused { reason: "this node is Secondary".into() },
            "moving" => Lookup::NotReady,
            _ => Lookup::Unknown,
        }
    }
}

pub(super) fn export() -> ExportInfo {
    ExportInfo {
        name: "v0".into(),
        description: "db, Primary".into(),
        size_bytes: 1 << 30,
        read_only: false,
        block: BlockSizes::default(),
        rotational: false,
        multi_conn: true,
        fast_zero: true,
        contexts: vec!["base:allocation".into(), "x-test:one".into(), "x-test:two".into()],
    }
}

pub(super) fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

pub(super) fn query(name: &[u8], infos: &[u16]) -> Vec<u8> {
    let mut bytes = (name.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(name);
    bytes.extend_from_slice(&(infos.len() as u16).to_be_bytes());
    infos.iter().for_each(|info| bytes.extend_from_slice(&info.to_be_bytes()));
    bytes
}

pub(super) fn negotiation(client_flags: u32) -> Negotiation {
    let mut negotiation = Negotiation::new(Limits::default());
    assert_eq!(negotiation.receive(&client_flags.to_be_bytes()), Ok(4));
    negotiation
}

pub(super) fn ask(negotiation: &mut Negotiation, bytes: &[u8]) -> (Step, Vec<u8>) {
    assert_eq!(negotiation.receive(bytes), Ok(bytes.len()));
    let mut out = Vec::new();
    let step = negotiation.poll(&Directory, &mut out);
    (step, out)
}

/// Splits an answer into option, type and data of each reply.
pub(super) fn replies(bytes: &[u8]) -> Vec<(u32, u32, Vec<u8>)> {
    let mut reader = Reader::new(bytes);
    let mut replies = Vec::new();
    while let Some(magic) = reader.u64() {
        assert_eq!(magic, 0x0003_e889_0455_65a9);
        let (option, kind) = (reader.u32().unwrap(), reader.u32().unwrap());
        let length = reader.u32().unwrap() as usize;
        replies.push((option, kind, reader.bytes(length).unwrap().to_vec()));
    }
    assert!(reader.rest().is_empty());
    replies
}

pub(super) fn reply_types(bytes: &[u8]) -> Vec<u32> {
    replies(bytes).iter().map(|reply| reply.1).collect()
}

#[test]
fn golden_greeting() {
    assert_eq!(&Negotiation::greeting(), b"NBDMAGICIHAVEOPT\0\x03");
}

#[test]
fn golden_answer_to_go() {
    let mut negotiation = negotiation(3);
    let mut input = option(7, &query(b"v0", &[3]));
    input.extend_from_slice(b"a request");
    // Bytes behind GO are requests and stay with the caller.
    assert_eq!(negotiation.receive(&input), Ok(input.len() - 9));
    let mut out = Vec::new();
    let step = negotiation.poll(&Directory, &mut out);
    assert_eq!(
        step,
        Step::Transmission(Transmission { export: export(), framing: Framing::Simple, contexts: vec![] })
    );
    let magic = b"\0\x03\xe8\x89\x04\x55\x65\xa9";
    let mut expected = magic.to_vec();
    expected.extend_from_slice(b"\0\0\0\x07\0\0\0\x03\0\0\0\x0c\0\0\0\0\0\0\x40\0\0\0\x0d\x6d");
    expected.extend_from_slice(magic);
    expected.extend_from_slice(b"\0\0\0\x07\0\0\0\x03\0\0\0\x0e\0\x03\0\0\0\x01\0\0\x10\0\x02\0\0\0");
    expected.extend_from_slice(magic);
    expected.extend_from_slice(b"\0\0\0\x07\0\0\0\x01\0\0\0\0");
    assert_eq!(out, expected);
    assert_eq!(negotiation.receive(b"a request"), Ok(0));
    assert_eq!(negotiation.poll(&Directory, &mut out), Step::Close);
}

#[test]
fn info_answers_like_go_and_goes_on() {
    let mut negotiation = negotiation(3);
    let (step, info) = ask(&mut negotiation, &option(6, &query(b"", &[1, 2, 9])));
    assert_eq!(step, Step::NeedMore);
    let info = replies(&info);
    let kinds: Vec<u16> = info.iter().filter_map(|reply| Reader::new(&reply.2).u16()).collect();
    assert_eq!(kinds, [0, 3, 1, 2]);
    assert_eq!(&info[2].2[2..], b"v0");
    assert_eq!(&info[3].2[2..], b"db, Primary");
    let (step, go) = ask(&mut negotiation, &option(7, &query(b"", &[1, 2, 9])));
    assert!(matches!(step, Step::Transmission(_)));
    let data =
        |replies: Vec<(u32, u32, Vec<u8>)>| replies.into_iter().map(|r| (r.1, r.2)).collect::<Vec<_>>();
    assert_eq!(data(info), data(replies(&go)));
}

#[test]
fn structured_replies_offer_df() {
    let mut negotiation = negotiation(3);
    let (_, out) = ask(&mut negotiation, &option(8, b"x"));
    assert_eq!(reply_types(&out), [0x8000_0003]);
    let (_, out) = ask(&mut negotiation, &option(8, &[]));
    assert_eq!(reply_types(&out), [1]);
    let (step, out) = ask(&mut negotiation, &option(7, &query(b"v0", &[])));
    assert!(matches!(step, Step::Transmission(Transmission { framing: Framing::Structured, .. })));
    assert_eq!(replies(&out)[0].2[10..], [0x0d, 0xed]);
}

#[test]
fn transmission_flags_follow_the_export() {
    let mut export = export();
    export.read_only = true;
    export.multi_conn = false;
    export.rotational = true;
    assert_eq!(export.transmission_flags(Framing::Simple, false), 0b100_0001_1111);
    assert_eq!(export.transmission_flags(Framing::Structured, true), 0b100_1001_1111);
    assert_eq!(export.transmission_flags(Framing::Extended, false), 0b100_1001_1111);
    assert_eq!(export.transmission_flags(Framing::Extended, true), 0b1_0100_1001_1111);
}

#[test]
fn export_name_with_and_without_zeroes() {
    let (step, out) = ask(&mut negotiation(3), &option(1, b"v0"));
    assert!(matches!(step, Step::Transmission(_)));
    assert_eq!(out, [0, 0, 0, 0, 0x40, 0, 0, 0, 0x0d, 0x6d]);
    for client_flags in [0, 1] {
        let (step, out) = ask(&mut negotiation(client_flags), &option(1, b""));
        assert!(matches!(step, Step::Transmission(_)));
        assert_eq!(out.len(), 10 + 124);
        assert!(out[10..].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn export_name_refuses_by_closing() {
    let long = [b'n'; 4097];
    for name in [&b"nothing"[..], b"standby", b"\xff", b"v0\0", &long] {
        assert_eq!(ask(&mut negotiation(3), &option(1, name)), (Step::Close, vec![]));
    }
}

#[test]
fn list_names_every_export() {
    let mut negotiation = negotiation(3);
    let (step, out) = ask(&mut negotiation, &option(3, &[]));
    assert_eq!(step, Step::NeedMore);
    let expected =
        vec![(3, 2, b"\0\0\0\x02v0".to_vec()), (3, 2, b"\0\0\0\x02v1".to_vec()), (3, 1, Vec::new())];
    assert_eq!(replies(&out), expected);
    let (step, out) = ask(&mut negotiation, &option(3, b"x"));
    assert_eq!((step, reply_types(&out)), (Step::NeedMore, vec![0x8000_0003]));
}

#[test]
fn abort_is_acknowledged_with_or_without_data() {
    for data in [&b""[..], b"bye"] {
        let (step, out) = ask(&mut negotiation(3), &option(2, data));
        assert_eq!((step, replies(&out)), (Step::Close, vec![(2, 1, vec![])]));
    }
}

#[test]
fn other_options_are_unsupported_and_harmless() {
    let mut negotiation = negotiation(3);
    for number in [0, 4, 5, 12, u32::MAX] {
        let (step, out) = ask(&mut negotiation, &option(number, b"data"));
        assert_eq!(step, Step::NeedMore);
        assert_eq!((replies(&out)[0].0, reply_types(&out)), (number, vec![0x8000_0001]));
    }
    assert!(matches!(ask(&mut negotiation, &option(7, &query(b"v0", &[]))).0, Step::Transmission(_)));
}

#[test]
fn info_and_go_say_why_not() {
    let mut negotiation = negotiation(3);
    for number in [6, 7] {
        for (data, expected) in [
            (query(b"nothing", &[]), 0x8000_0006_u32),
            (query(b"standby", &[]), 0x8000_0002),
            (query(&[b'n'; 4097], &[]), 0x8000_0009),
            (query(b"\xff", &[]), 0x8000_0003),
            (query(b"v\0", &[]), 0x8000_0003),
            (query(b"v0", &[])[..7].to_vec(), 0x8000_0003),
            ([query(b"v0", &[1]), vec![0]].concat(), 0x8000_0003),
            (query(b"v0", &[1])[..8].to_vec(), 0x8000_0003),
            (vec![0xff; 8], 0x8000_0003),
            (vec![], 0x8000_0003),
        ] {
            let (step, out) = ask(&mut negotiation, &option(number, &data));
            assert_eq!((step, reply_types(&out)), (Step::NeedMore, vec![expected]));
        }
    }
    let (_, out) = ask(&mut negotiation, &option(7, &query(b"standby", &[])));
    assert_eq!(replies(&out)[0].2, b"this node is Secondary");
}

#[test]
fn an_export_that_is_not_ready_holds_the_client() {
    struct Ready;
    impl ExportDirectory for Ready {
        fn list(&self) -> Vec<String> {
            Vec::new()
        }
        fn find(&self, _: &str) -> Lookup {
            Lookup::Found(export())
        }
    }
    for bytes in [option(7, &query(b"moving", &[])), option(1, b"moving")] {
        let mut negotiation = negotiation(3);
        let (step, mut out) = ask(&mut negotiation, &bytes);
        assert_eq!((step, out.len()), (Step::Hold { name: "moving".to_string() }, 0));
        assert_eq!(negotiation.receive(&option(2, &[])), Ok(0), "nothing is taken while held");
        assert!(matches!(negotiation.poll(&Directory, &mut out), Step::Hold { .. }));
        assert!(matches!(negotiation.poll(&Ready, &mut out), Step::Transmission(_)));
        assert!(!out.is_empty());
    }
}

#[test]
fn a_server_that_goes_down_says_so_and_nothing_else() {
    struct Stopping;
    impl ExportDirectory for Stopping {
        fn list(&self) -> Vec<String> {
            unreachable!()
        }
        fn find(&self, _: &str) -> Lookup {
            unreachable!()
        }
        fn is_stopping(&self) -> bool {
            true
        }
    }
    let fresh = negotiation;
    let mut negotiation = fresh(3);
    let mut answer = |bytes: &[u8]| {
        negotiation.receive(bytes).expect("an option");
        let mut out = Vec::new();
        (negotiation.poll(&Stopping, &mut out), reply_types(&out))
    };
    let query = query(b"", &[]);
    for (number, data) in [(3, &[][..]), (7, &query), (8, &[]), (5, &[]), (4242, &[])] {
        assert_eq!(answer(&option(number, data)), (Step::NeedMore, vec![0x8000_0007]));
    }
    assert_eq!(answer(&option(2, &[])), (Step::Close, vec![1]), "goodbye is taken as ever");
    let mut without_words = fresh(3);
    without_words.receive(&option(1, b"")).expect("an option");
    assert_eq!(without_words.poll(&Stopping, &mut Vec::new()), Step::Close);
}

#[test]
fn clients_that_break_the_rules_are_dropped() {
    let mut fresh = Negotiation::new(Limits::default());
    assert_eq!(fresh.receive(&[0, 0, 0, 7]), Err(HandshakeError::UnknownClientFlags(7)));
    let mut bytes = option(3, &[]);
    bytes[0] = b'i';
    assert!(matches!(negotiation(3).receive(&bytes), Err(HandshakeError::BadOptionMagic(_))));
    let error = HandshakeError::OptionNeedsFixedNewstyle(7);
    assert_eq!(negotiation(2).receive(&option(7, &query(b"v0", &[]))), Err(error));
}

#[test]
fn long_options_are_refused_before_their_data() {
    let mut header = option(10, &[0; 16384]);
    assert_eq!(ask(&mut negotiation(3), &header).0, Step::NeedMore);
    header.truncate(16);
    header[12..].copy_from_slice(&16385_u32.to_be_bytes());
    let error = HandshakeError::OptionTooLong { option: 10, length_bytes: 16385 };
    assert_eq!(negotiation(3).receive(&header), Err(error));
}

#[test]
fn floods_of_options_end() {
    let mut negotiation = negotiation(3);
    for _ in 0..64 {
        assert_eq!(ask(&mut negotiation, &option(3, &[])).0, Step::NeedMore);
    }
    assert_eq!(negotiation.receive(&option(3, &[])), Err(HandshakeError::TooManyOptions(64)));
}

/// A length is believed only as its bytes arrive: what is held is what came, not what was announced.
#[test]
fn announced_lengths_cost_no_memory() {
    let mut negotiation = negotiation(3);
    let header = &option(10, &[0; 16384])[..20];
    assert_eq!(negotiation.receive(header), Ok(20));
    assert_eq!(negotiation.pending.len(), 4);
    assert!(negotiation.pending.capacity() <= 64);
}
