//! Both options on the bytes that a client would send, and what is agreed in the end.

use alloc::vec;

use super::super::tests::{ask, negotiation, option, query, replies, reply_types};
use super::*;
use crate::negotiate::Transmission;

const STRUCTURED: u32 = 8;
const LIST: u32 = 9;
const SET: u32 = 10;
const EXTENDED: u32 = 11;
const ALL: [&str; 3] = ["base:allocation", "x-test:one", "x-test:two"];

fn queries(export: &str, texts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = (export.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(export.as_bytes());
    bytes.extend_from_slice(&(texts.len() as u32).to_be_bytes());
    for text in texts {
        bytes.extend_from_slice(&(text.len() as u32).to_be_bytes());
        bytes.extend_from_slice(text);
    }
    bytes
}

/// A handshake with structured replies.
fn structured() -> Negotiation {
    let mut negotiation = negotiation(3);
    ask(&mut negotiation, &option(STRUCTURED, &[]));
    negotiation
}

/// Numbers and names that were told, up to the acknowledgement.
fn told(negotiation: &mut Negotiation, number: u32, export: &str, texts: &[&[u8]]) -> Vec<(u32, String)> {
    let (step, out) = ask(negotiation, &option(number, &queries(export, texts)));
    assert_eq!(step, Step::NeedMore);
    let mut replies = replies(&out);
    assert_eq!(replies.pop(), Some((number, 1, vec![])), "an acknowledgement comes last");
    let read = |(option, kind, data): (u32, u32, Vec<u8>)| {
        assert_eq!((option, kind), (number, 4));
        let (id, name) = data.split_first_chunk().unwrap();
        (u32::from_be_bytes(*id), String::from_utf8(name.to_vec()).unwrap())
    };
    replies.into_iter().map(read).collect()
}

fn names(told: &[(u32, String)]) -> Vec<&str> {
    told.iter().map(|(_, name)| name.as_str()).collect()
}

fn agreed(negotiation: &mut Negotiation, export: &str) -> Transmission {
    match ask(negotiation, &option(7, &query(export.as_bytes(), &[]))) {
        (Step::Transmission(agreed), _) => agreed,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_list_without_queries_has_all_and_a_namespace_has_its_own() {
    let mut negotiation = structured();
    assert_eq!(names(&told(&mut negotiation, LIST, "v0", &[])), ALL);
    assert_eq!(names(&told(&mut negotiation, LIST, "", &[b"x-test:"])), ALL[1..]);
    assert_eq!(names(&told(&mut negotiation, LIST, "v0", &[b"base:", b"base:allocation"])), ALL[..1]);
    assert_eq!(names(&told(&mut negotiation, LIST, "v0", &[b"other:", b"x-test:three"])), [""; 0]);
    assert!(agreed(&mut negotiation, "v0").contexts.is_empty(), "a list selects nothing");
}

#[test]
fn a_selection_has_numbers_and_counts_for_its_export() {
    let mut negotiation = structured();
    let told = told(
        &mut negotiation,
        SET,
        "",
        &[b"x-test:two", b"base:allocation", b"x-test:", b"qemu:dirty-bitmap:b"],
    );
    assert_eq!(told, [(1, "base:allocation".into()), (2, "x-test:two".into())]);
    let agreed = agreed(&mut negotiation, "v0");
    assert_eq!(agreed.contexts, ["base:allocation", "x-test:two"]);
    assert_eq!(agreed.framing, Framing::Structured);
}

#[test]
fn a_selection_replaces_the_one_before_even_when_it_fails() {
    let good = queries("v0", &[b"base:allocation"]);
    let malformed = [&good[..], &[0]].concat();
    let bad = [
        queries("none", &[b"base:allocation"]),
        queries("v0", &[b"allocation"]),
        queries("v0", &[]),
        malformed,
    ];
    for bad in bad {
        let mut negotiation = structured();
        assert_eq!(told(&mut negotiation, SET, "v0", &[b"base:allocation"]).len(), 1);
        ask(&mut negotiation, &option(SET, &bad));
        assert!(agreed(&mut negotiation, "v0").contexts.is_empty());
    }
}

#[test]
fn what_is_wrong_with_a_query_is_said() {
    let long = [b'a'; 4097];
    let refusals: [(&[u8], u32); 7] = [
        (&queries("none", &[]), 0x8000_0006),
        (&queries("standby", &[]), 0x8000_0002),
        (&queries("v0", &[b"base"]), 0x8000_0003),
        (&queries("v0", &[b":leaf"]), 0x8000_0003),
        (&queries("v0", &[b"base:\0"]), 0x8000_0003),
        (&queries("v0", &[&long]), 0x8000_0009),
        (b"\0\0\0\x02v0\xff\xff\xff\xff\0\0\0\x01a", 0x8000_0003),
    ];
    for (data, expected) in refusals {
        for number in [LIST, SET] {
            let (step, out) = ask(&mut structured(), &option(number, data));
            assert_eq!((step, reply_types(&out)), (Step::NeedMore, vec![expected]));
        }
    }
    for number in [LIST, SET] {
        let (_, out) = ask(&mut negotiation(3), &option(number, &queries("v0", &[])));
        assert_eq!(reply_types(&out), [0x8000_0003], "structured replies come first");
    }
    let held = Step::Hold { name: "moving".into() };
    assert_eq!(ask(&mut structured(), &option(SET, &queries("moving", &[]))), (held, vec![]));
}

#[test]
fn extended_headers_include_structured_replies() {
    let mut negotiation = negotiation(3);
    let mut ask = |number, data: &[u8]| {
        reply_types(&super::super::tests::ask(&mut negotiation, &option(number, data)).1)
    };
    assert_eq!(ask(EXTENDED, b"x"), [0x8000_0003]);
    assert_eq!(ask(EXTENDED, &[]), [1]);
    assert_eq!(ask(EXTENDED, &[]), [0x8000_0003]);
    assert_eq!(ask(STRUCTURED, &[]), [0x8000_000a]);
    assert_eq!(ask(SET, &queries("v0", &[b"base:allocation"])), [4, 1]);
    let agreed = agreed(&mut negotiation, "v0");
    assert_eq!((agreed.framing, agreed.contexts.len()), (Framing::Extended, 1));
}

#[test]
fn the_flag_for_lists_of_contexts_comes_with_contexts() {
    for (texts, expected) in [(&[][..], 0x0d_ed), (&[&b"base:allocation"[..]][..], 0x1d_ed)] {
        let mut negotiation = negotiation(3);
        ask(&mut negotiation, &option(EXTENDED, &[]));
        ask(&mut negotiation, &option(SET, &queries("v0", texts)));
        let (_, out) = ask(&mut negotiation, &option(6, &query(b"v0", &[])));
        assert_eq!(replies(&out)[0].2[10..], u16::to_be_bytes(expected));
    }
}

#[test]
fn export_name_is_over_with_extended_headers() {
    let mut negotiation = negotiation(3);
    ask(&mut negotiation, &option(EXTENDED, &[]));
    assert_eq!(ask(&mut negotiation, &option(1, b"v0")), (Step::Close, vec![]));
}
