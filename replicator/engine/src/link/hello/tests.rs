//! Both ends of the exchange, and those who should not get in.
use super::*;

fn local(node: u8, name: &str) -> Local {
    Local {
        cluster: "c1".into(),
        secret: [7; 32],
        node: NodeId(node),
        node_name: name.into(),
        run_id: 100 + u128::from(node),
        boot_id: 5,
    }
}

fn expected(peer: u8, name: &str) -> Expected {
    Expected { resource: "r0".into(), peer: NodeId(peer), peer_name: name.into() }
}

fn find_r0(name: &str) -> Result<Expected, String> {
    if name == "r0" { Ok(expected(0, "alpha")) } else { Err(format!("no resource {name}")) }
}

fn nobody(_: &str) -> Result<Expected, String> {
    Err("the dialler looks nothing up".into())
}

type Ends = (Result<Step, HelloError>, Result<Step, HelloError>);

/// Runs an exchange in chunks of `chunk` bytes until both ends have come to one, or nothing moves any more.
fn run(dialler: Local, want: Expected, acceptor: Local, chunk: usize) -> Ends {
    let mut to_acceptor = Vec::new();
    let mut to_dialler = Vec::new();
    let mut dial = Hello::dial(dialler, want, [1; 32], &mut to_acceptor);
    let mut accept = Hello::accept(acceptor, [2; 32]);
    let mut ends = (Ok(Step::NeedMore), Ok(Step::NeedMore));
    for _ in 0..10_000 {
        let piece: Vec<u8> = to_acceptor.drain(..chunk.min(to_acceptor.len())).collect();
        if ends.1 == Ok(Step::NeedMore) && !piece.is_empty() {
            ends.1 = accept.receive(&piece, &find_r0, &mut to_dialler).1;
        }
        let piece: Vec<u8> = to_dialler.drain(..chunk.min(to_dialler.len())).collect();
        if ends.0 == Ok(Step::NeedMore) && !piece.is_empty() {
            ends.0 = dial.receive(&piece, &nobody, &mut to_acceptor).1;
        }
    }
    ends
}

fn is_mismatch(end: &Result<Step, HelloError>, word: &str) -> bool {
    matches!(end, Err(HelloError::Mismatch(text)) if text.contains(word))
}

fn is_rejected(end: &Result<Step, HelloError>, word: &str) -> bool {
    matches!(end, Err(HelloError::Rejected(text)) if text.contains(word))
}

#[test]
fn two_nodes_of_one_cluster_find_each_other_in_any_chunking() {
    for chunk in [1, 2, 3, 50, 4096] {
        let (dialler, acceptor) = run(local(0, "alpha"), expected(1, "beta"), local(1, "beta"), chunk);
        let peer = |node: u8| PeerHello {
            node: NodeId(node),
            run_id: 100 + u128::from(node),
            boot_id: 5,
            keeps_checkpoints: true,
            takes_least: true,
        };
        let Ok(Step::Done { digest_key, .. }) = acceptor else { panic!("{acceptor:?}") };
        assert_eq!(dialler, Ok(Step::Done { resource: "r0".into(), peer: peer(1), digest_key }));
        assert_eq!(acceptor, Ok(Step::Done { resource: "r0".into(), peer: peer(0), digest_key }));
    }
}

#[test]
fn bytes_behind_the_last_message_are_left_for_the_frames() {
    let mut wire = Vec::new();
    let mut answer = Vec::new();
    let mut dial = Hello::dial(local(0, "alpha"), expected(1, "beta"), [1; 32], &mut wire);
    let mut accept = Hello::accept(local(1, "beta"), [2; 32]);
    accept.receive(&wire, &find_r0, &mut answer).1.unwrap();
    wire.clear();
    dial.receive(&answer, &nobody, &mut wire).1.unwrap();
    let proof_bytes = wire.len();
    wire.extend(b"frame");
    let (taken, end) = accept.receive(&wire, &find_r0, &mut answer);
    assert!(matches!(end, Ok(Step::Done { .. })));
    assert_eq!(taken, proof_bytes);
}

#[test]
fn another_secret_is_found_by_the_acceptor_and_told() {
    let stranger = Local { secret: [8; 32], ..local(0, "alpha") };
    let (dialler, acceptor) = run(stranger, expected(1, "beta"), local(1, "beta"), 4096);
    assert_eq!(acceptor, Err(HelloError::Secret));
    assert!(is_rejected(&dialler, "secret"), "{dialler:?}");
}

#[test]
fn what_does_not_match_is_named_on_both_sides() {
    let other_cluster = Local { cluster: "c2".into(), ..local(0, "alpha") };
    let (dialler, acceptor) = run(other_cluster, expected(1, "beta"), local(1, "beta"), 4096);
    assert!(is_mismatch(&acceptor, "cluster") && is_rejected(&dialler, "cluster"));

    let other_resource = Expected { resource: "r9".into(), ..expected(1, "beta") };
    let (dialler, acceptor) = run(local(0, "alpha"), other_resource, local(1, "beta"), 4096);
    assert!(is_mismatch(&acceptor, "no resource r9") && is_rejected(&dialler, "r9"));

    let (dialler, acceptor) = run(local(0, "alpha"), expected(2, "gamma"), local(1, "beta"), 4096);
    assert!(is_mismatch(&acceptor, "gamma") && is_rejected(&dialler, "gamma"));

    let (_, acceptor) = run(local(3, "delta"), expected(1, "beta"), local(1, "beta"), 4096);
    assert!(is_mismatch(&acceptor, "delta"), "{acceptor:?}");
}

#[test]
fn the_higher_id_must_not_dial() {
    let find = |_: &str| Ok(expected(1, "beta"));
    let mut wire = Vec::new();
    Hello::dial(local(1, "beta"), expected(0, "alpha"), [1; 32], &mut wire);
    let mut accept = Hello::accept(local(0, "alpha"), [2; 32]);
    let end = accept.receive(&wire, &find, &mut Vec::new()).1;
    assert!(is_mismatch(&end, "must not dial"), "{end:?}");
}

/// An attacker without the secret sends a dialler's own proof back to it.
#[test]
fn a_reflected_proof_is_worthless() {
    let mut wire = Vec::new();
    let mut answer = Vec::new();
    let mut dial = Hello::dial(local(0, "alpha"), expected(1, "beta"), [1; 32], &mut wire);
    let attacker = Local { secret: [0; 32], ..local(1, "beta") };
    let mut accept = Hello::accept(attacker, [2; 32]);
    accept.receive(&wire, &find_r0, &mut answer).1.unwrap();
    wire.clear();
    dial.receive(&answer, &nobody, &mut wire).1.unwrap();
    let proof = wire.clone();
    assert_eq!(dial.receive(&proof, &nobody, &mut wire).1, Err(HelloError::Secret));
}

/// An attacker answers with the dialler's own Hello.
#[test]
fn a_reflected_hello_is_refused() {
    let mut wire = Vec::new();
    let mut dial = Hello::dial(local(0, "alpha"), expected(1, "beta"), [1; 32], &mut wire);
    let reflected = wire.clone();
    assert!(matches!(dial.receive(&reflected, &nobody, &mut wire).1, Err(HelloError::Mismatch(_))));
}

#[test]
fn a_proof_of_an_earlier_connection_is_worthless() {
    let record = |nonce| {
        let (mut wire, mut answer) = (Vec::new(), Vec::new());
        let mut dial = Hello::dial(local(0, "alpha"), expected(1, "beta"), [1; 32], &mut wire);
        let hello = wire.clone();
        let mut accept = Hello::accept(local(1, "beta"), nonce);
        accept.receive(&wire, &find_r0, &mut answer).1.unwrap();
        wire.clear();
        dial.receive(&answer, &nobody, &mut wire).1.unwrap();
        (hello, wire, accept)
    };
    let (_, proof, mut first) = record([2; 32]);
    assert!(matches!(first.receive(&proof, &find_r0, &mut Vec::new()).1, Ok(Step::Done { .. })));
    let (_, _, mut second) = record([3; 32]);
    assert_eq!(second.receive(&proof, &find_r0, &mut Vec::new()).1, Err(HelloError::Secret));
}

#[test]
fn truncation_waits_and_garbage_ends_without_a_panic() {
    let mut wire = Vec::new();
    Hello::dial(local(0, "alpha"), expected(1, "beta"), [1; 32], &mut wire);
    for cut in 0..wire.len() {
        let mut accept = Hello::accept(local(1, "beta"), [2; 32]);
        let (taken, end) = accept.receive(&wire[..cut], &find_r0, &mut Vec::new());
        assert_eq!((taken, end), (cut, Ok(Step::NeedMore)));
    }
    for bit in 0..wire.len() * 8 {
        let mut bad = wire.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let mut accept = Hello::accept(local(1, "beta"), [2; 32]);
        let (taken, _) = accept.receive(&bad, &find_r0, &mut Vec::new());
        assert!(taken <= bad.len());
    }
    let mut accept = Hello::accept(local(1, "beta"), [2; 32]);
    let http = b"GET / HTTP/1.1\r\n\r\n";
    assert_eq!(accept.receive(http, &find_r0, &mut Vec::new()).1, Err(HelloError::Malformed));
    let mut accept = Hello::accept(local(1, "beta"), [2; 32]);
    let early_proof = [PROOF, 32, 0].into_iter().chain([0; 32]).collect::<Vec<u8>>();
    assert_eq!(accept.receive(&early_proof, &find_r0, &mut Vec::new()).1, Err(HelloError::Malformed));
}

#[test]
fn an_acceptor_sees_what_is_wanted_once_all_of_the_first_message_is_there() {
    let mut wire = Vec::new();
    let mut dial = Hello::dial(local(0, "alpha"), expected(1, "beta"), [1; 32], &mut wire);
    let mut accept = Hello::accept(local(1, "beta"), [2; 32]);
    for end in 0..wire.len() {
        assert_eq!(accept.wanted(&wire[..end]), Wanted::NeedMore, "{end} bytes");
    }
    assert_eq!(accept.wanted(&wire), Wanted::Resource("r0".into()));
    assert_eq!(accept.wanted(&[&wire[..], b"more"].concat()), Wanted::Resource("r0".into()));
    let mut answer = Vec::new();
    accept.receive(&wire, &find_r0, &mut answer).1.unwrap();
    assert_eq!(accept.wanted(&wire), Wanted::Settled, "only the first message is asked");
    assert_eq!(dial.wanted(&answer), Wanted::Settled, "a dialler knows");
    dial.receive(&answer, &nobody, &mut Vec::new()).1.unwrap();
}

#[test]
fn what_is_no_first_message_is_left_to_the_exchange() {
    let accept = Hello::accept(local(1, "beta"), [2; 32]);
    let mut proof = Vec::new();
    put(&mut proof, PROOF, &[0; 32]);
    let too_long = [HELLO, 1, 4];
    for bytes in [&b"GET / HTTP/1.1"[..], &proof, &too_long, &[HELLO, 0, 0], &[HELLO, 1, 0, 7]] {
        assert_eq!(accept.wanted(bytes), Wanted::Settled, "{bytes:?}");
    }
}
