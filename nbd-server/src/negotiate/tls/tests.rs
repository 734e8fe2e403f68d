//! The modes of the specification, section "TLS support", option by option, on the bytes that a client would send.

use alloc::vec;

use super::*;
use crate::errors::HandshakeError;
use crate::export::{ExportDirectory, Lookup};
use crate::negotiate::tests::{ask, export, option, query, replies};
use crate::negotiate::{Limits, Transmission};
use crate::reply::Framing;

const ACK: u32 = 1;
const ERR_UNSUP: u32 = 0x8000_0001;
const ERR_INVALID: u32 = 0x8000_0003;
const ERR_TLS_REQD: u32 = 0x8000_0005;
const ERR_UNKNOWN: u32 = 0x8000_0006;
const STARTTLS: u32 = 5;
const GO: u32 = 7;

/// "open" for everybody, "secret" inside of TLS.
struct Selective;

impl ExportDirectory for Selective {
    fn list(&self) -> Vec<String> {
        vec!["open".into()]
    }

    fn find(&self, name: &str) -> Lookup {
        match name {
            "open" => Lookup::Found(export()),
            "secret" => Lookup::TlsRequired,
            _ => Lookup::Unknown,
        }
    }
}

fn on(policy: TlsPolicy) -> Negotiation {
    let mut negotiation = Negotiation::new(Limits::default()).with_tls(policy);
    assert_eq!(negotiation.receive(&3_u32.to_be_bytes()), Ok(4));
    negotiation
}

fn inside(policy: TlsPolicy) -> Negotiation {
    let mut negotiation = on(policy);
    assert_eq!(ask(&mut negotiation, &option(STARTTLS, &[])).0, Step::StartTls);
    negotiation.tls_established();
    negotiation
}

/// The only answer to an option, which leaves the handshake where it is.
#[track_caller]
fn answer(negotiation: &mut Negotiation, number: u32, data: &[u8]) -> u32 {
    let (step, out) = ask(negotiation, &option(number, data));
    assert_eq!(step, Step::NeedMore);
    let [(asked, reply, _)]: [_; 1] = replies(&out).try_into().unwrap();
    assert_eq!(asked, number);
    reply
}

fn ask_selective(negotiation: &mut Negotiation, number: u32, data: &[u8]) -> (Step, Vec<u32>) {
    let bytes = option(number, data);
    assert_eq!(negotiation.receive(&bytes), Ok(bytes.len()));
    let mut out = Vec::new();
    let step = negotiation.poll(&Selective, &mut out);
    // EXPORT_NAME has no replies.
    let types = if number == 1 { Vec::new() } else { replies(&out).iter().map(|reply| reply.1).collect() };
    (step, types)
}

#[test]
fn notls_refuses_starttls_and_never_asks_for_it() {
    let mut negotiation = on(TlsPolicy::Off);
    assert_eq!(answer(&mut negotiation, STARTTLS, &[]), ERR_UNSUP);
    assert_eq!(answer(&mut negotiation, STARTTLS, b"x"), ERR_UNSUP);
    assert_eq!(
        ask_selective(&mut negotiation, 6, &query(b"secret", &[])),
        (Step::NeedMore, vec![ERR_UNKNOWN])
    );
    assert_eq!(
        ask_selective(&mut negotiation, GO, &query(b"secret", &[])),
        (Step::NeedMore, vec![ERR_UNKNOWN])
    );
    assert!(matches!(ask(&mut negotiation, &option(GO, &query(b"v0", &[]))).0, Step::Transmission(_)));
}

#[test]
fn forcedtls_answers_nothing_before_but_starttls_and_abort() {
    let go = query(b"v0", &[3]);
    // LIST, PEEK_EXPORT, INFO, GO, STRUCTURED_REPLY, contexts, extended headers, unknown ones; well formed or not.
    let asked: [(u32, &[u8]); 10] = [
        (3, &[]),
        (3, b"x"),
        (4, &[]),
        (6, &go),
        (7, &go),
        (7, b"?"),
        (8, &[]),
        (9, &[]),
        (10, &go),
        (99, b"x"),
    ];
    let mut negotiation = on(TlsPolicy::Required);
    for (number, data) in asked.into_iter().chain([(11, &b""[..])]) {
        assert_eq!(answer(&mut negotiation, number, data), ERR_TLS_REQD, "option {number}");
    }
    assert_eq!(answer(&mut negotiation, STARTTLS, b"x"), ERR_INVALID);
    let (step, out) = ask(&mut negotiation, &option(STARTTLS, &[]));
    assert_eq!((step, replies(&out)), (Step::StartTls, vec![(STARTTLS, ACK, vec![])]));
}

#[test]
fn forcedtls_acknowledges_abort_and_closes_on_export_name() {
    let (step, out) = ask(&mut on(TlsPolicy::Required), &option(2, &[]));
    assert_eq!((step, replies(&out)), (Step::Close, vec![(2, ACK, vec![])]));
    assert_eq!(ask(&mut on(TlsPolicy::Required), &option(1, b"v0")), (Step::Close, vec![]));
}

#[test]
fn a_client_without_fixed_newstyle_gets_no_tls() {
    for policy in [TlsPolicy::Off, TlsPolicy::Optional, TlsPolicy::Required] {
        let mut negotiation = Negotiation::new(Limits::default()).with_tls(policy);
        assert_eq!(negotiation.receive(&0_u32.to_be_bytes()), Ok(4));
        let starttls = negotiation.receive(&option(STARTTLS, &[]));
        assert_eq!(starttls, Err(HandshakeError::OptionNeedsFixedNewstyle(STARTTLS)));
    }
}

#[test]
fn selectivetls_serves_in_plaintext_what_does_not_need_it() {
    let mut negotiation = on(TlsPolicy::Optional);
    assert_eq!(answer(&mut negotiation, 8, &[]), ACK);
    assert_eq!(ask_selective(&mut negotiation, 3, &[]), (Step::NeedMore, vec![2, ACK]));
    for number in [6, GO] {
        let refused = ask_selective(&mut negotiation, number, &query(b"secret", &[]));
        assert_eq!(refused, (Step::NeedMore, vec![ERR_TLS_REQD]));
        let unknown = ask_selective(&mut negotiation, number, &query(b"none", &[]));
        assert_eq!(unknown, (Step::NeedMore, vec![ERR_UNKNOWN]));
    }
    assert_eq!(ask_selective(&mut on(TlsPolicy::Optional), 1, b"secret"), (Step::Close, vec![]));
    let (step, _) = ask_selective(&mut negotiation, GO, &query(b"open", &[]));
    assert!(matches!(step, Step::Transmission(Transmission { framing: Framing::Structured, .. })));
}

#[test]
fn inside_of_tls_nothing_asks_for_it() {
    for policy in [TlsPolicy::Optional, TlsPolicy::Required] {
        let mut negotiation = inside(policy);
        assert_eq!(answer(&mut negotiation, STARTTLS, &[]), ERR_INVALID);
        assert_eq!(answer(&mut negotiation, STARTTLS, b"x"), ERR_INVALID);
        let refused = ask_selective(&mut negotiation, GO, &query(b"secret", &[]));
        assert_eq!(refused, (Step::NeedMore, vec![ERR_UNKNOWN]), "a directory that still wants TLS");
        assert_eq!(answer(&mut negotiation, 99, &[]), ERR_UNSUP);
        assert!(matches!(ask(&mut negotiation, &option(GO, &query(b"v0", &[]))).0, Step::Transmission(_)));
    }
}

#[test]
fn what_was_agreed_in_plaintext_is_forgotten() {
    let mut context = 2_u32.to_be_bytes().to_vec();
    context.extend_from_slice(b"v0\0\0\0\x01\0\0\0\x0fbase:allocation");
    for framing in [8, 11] {
        let mut negotiation = on(TlsPolicy::Optional);
        assert_eq!(answer(&mut negotiation, framing, &[]), ACK);
        assert_eq!(ask(&mut negotiation, &option(10, &context)).0, Step::NeedMore);
        assert_eq!(ask(&mut negotiation, &option(STARTTLS, &[])).0, Step::StartTls);
        negotiation.tls_established();
        assert_eq!(
            answer(&mut negotiation, 10, &context),
            ERR_INVALID,
            "structured replies come first again"
        );
        let (step, out) = ask(&mut negotiation, &option(1, b"v0"));
        let Step::Transmission(agreed) = step else { panic!("{step:?}") };
        assert_eq!(agreed.framing, Framing::Simple);
        // The client's flags hold: no zeroes behind size and flags.
        assert_eq!(out.len(), 10);
    }
    // A selection alone is forgotten too.
    let mut negotiation = on(TlsPolicy::Optional);
    assert_eq!(answer(&mut negotiation, 8, &[]), ACK);
    let (_, out) = ask(&mut negotiation, &option(10, &context));
    assert_eq!(replies(&out).len(), 2, "a context and the end");
    assert_eq!(ask(&mut negotiation, &option(STARTTLS, &[])).0, Step::StartTls);
    negotiation.tls_established();
    assert_eq!(answer(&mut negotiation, 8, &[]), ACK);
    let (step, _) = ask(&mut negotiation, &option(GO, &query(b"v0", &[])));
    let Step::Transmission(agreed) = step else { panic!("{step:?}") };
    assert!(agreed.contexts.is_empty(), "{agreed:?}");
}

#[test]
fn plaintext_behind_starttls_is_never_taken() {
    let mut negotiation = on(TlsPolicy::Optional);
    let starttls = option(STARTTLS, &[]);
    let mut segment = starttls.clone();
    segment.extend(option(8, &[]));
    segment.extend(option(GO, &query(b"v0", &[])));
    assert_eq!(negotiation.receive(&segment), Ok(starttls.len()));
    let mut out = Vec::new();
    assert_eq!(negotiation.poll(&Selective, &mut out), Step::StartTls);
    assert_eq!(replies(&out), [(STARTTLS, ACK, vec![])]);
    assert_eq!(negotiation.receive(&segment[starttls.len()..]), Ok(0), "taken before TLS was established");
    let mut nothing = Vec::new();
    assert_eq!(negotiation.poll(&Selective, &mut nothing), Step::NeedMore);
    assert!(nothing.is_empty());
    negotiation.tls_established();
    assert_eq!(negotiation.poll(&Selective, &mut nothing), Step::NeedMore);
    assert!(nothing.is_empty(), "nothing of it was kept");
}

#[test]
fn options_of_both_sides_of_starttls_count_together() {
    let limits = Limits { options_max: 3, ..Limits::default() };
    let mut negotiation = Negotiation::new(limits).with_tls(TlsPolicy::Required);
    assert_eq!(negotiation.receive(&1_u32.to_be_bytes()), Ok(4));
    assert_eq!(answer(&mut negotiation, 3, &[]), ERR_TLS_REQD);
    assert_eq!(ask(&mut negotiation, &option(STARTTLS, &[])).0, Step::StartTls);
    negotiation.tls_established();
    assert_eq!(ask(&mut negotiation, &option(8, &[])).0, Step::NeedMore);
    assert_eq!(negotiation.receive(&option(8, &[])), Err(HandshakeError::TooManyOptions(3)));
}

#[test]
#[should_panic(expected = "not negotiated")]
fn tls_cannot_be_claimed() {
    on(TlsPolicy::Optional).tls_established();
}
