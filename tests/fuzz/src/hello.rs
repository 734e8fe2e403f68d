//! The first exchange between nodes, with a stranger on the other end.
//!
//! Two parts. Any bytes at either side, in any chunks: nothing is taken beyond what was given, what comes out does not
//! depend on the chunks, memory grows only with bytes that arrived, and whoever was refused once gets no second try.
//! And a good exchange whose bytes are changed on the way: both sides are through, with the same key, only if nothing
//! that a Hello or a Proof says was changed.

use lockstep_bitmap::NodeId;
use lockstep_core::PeerHello;
use lockstep_counting::measure;
use lockstep_engine::hello::{Expected, Hello, HelloError, Local, Step};

use crate::input::{Cuts, Input};

fn local(node: u8, name: &str) -> Local {
    Local {
        cluster: "c1".into(),
        secret: [7; 32],
        node: NodeId(node),
        node_name: name.into(),
        run_id: 100 + u128::from(node),
        boot_id: 200 + u128::from(node),
    }
}

fn expected(node: u8, name: &str) -> Expected {
    Expected { resource: "r0".into(), peer: NodeId(node), peer_name: name.into() }
}

fn find(name: &str) -> Result<Expected, String> {
    if name == "r0" { Ok(expected(0, "alpha")) } else { Err(format!("no resource {name}")) }
}

fn nobody(_: &str) -> Result<Expected, String> {
    Err("a dialler is not asked".into())
}

fn dialler(out: &mut Vec<u8>) -> Hello {
    Hello::dial(local(0, "alpha"), expected(1, "beta"), [1; 32], out)
}

fn acceptor() -> Hello {
    Hello::accept(local(1, "beta"), [2; 32])
}

/// What one side said, how many bytes it took, and what it came to.
type Heard = (Vec<u8>, usize, Result<Step, HelloError>);

/// Feeds one side a stream that arrives in chunks.
fn hear(dials: bool, stream: &[u8], mut cuts: Cuts) -> Heard {
    let (mut out, mut taken, mut arrived) = (Vec::new(), 0, 0_usize);
    let mut hello = if dials { dialler(&mut out) } else { acceptor() };
    let find: &dyn Fn(&str) -> Result<Expected, String> = if dials { &nobody } else { &find };
    loop {
        let (consumed, step) = hello.receive(&stream[taken..arrived], find, &mut out);
        assert!(consumed <= arrived - taken, "takes more than it was given");
        taken += consumed;
        match step {
            Ok(Step::NeedMore) if arrived == stream.len() => return (out, taken, Ok(Step::NeedMore)),
            Ok(Step::NeedMore) => arrived = arrived.saturating_add(cuts.next()).min(stream.len()),
            Ok(done) => return (out, taken, Ok(done)),
            Err(error) => {
                let said = out.len();
                let again = hello.receive(stream, find, &mut out);
                assert_eq!(again, (0, Err(error.clone())), "goes on after a refusal");
                assert_eq!(out.len(), said, "answers after a refusal");
                // Bytes of a message that is refused by its length alone are taken one chunk at a time.
                return (out, 0, Err(error));
            }
        }
    }
}

/// A well-formed message of chosen fields.
fn message(input: &mut Input<'_>, out: &mut Vec<u8>) {
    let kind = input.one_of(&[1, 1, 1, 2, 3, 0, 9]);
    let mut body = Vec::new();
    if kind == 1 {
        body.extend(b"LOCKSTEP");
        body.extend([input.one_of(&[1, 1, 1, 0, 2]), 0, input.one_of(&[1, 1, 2, 0, 9]), 0]);
        body.extend(input.array::<8>());
        body.extend(u128::from(input.u8()).to_le_bytes());
        body.extend([9; 16]);
        body.extend([input.u8(); 32]);
        body.extend([input.one_of(&[0, 0, 0, 1, 7]), input.one_of(&[1, 1, 1, 0, 7])]);
        let names = [&["c1", "c2"], &["r0", "r9"], &["alpha", "beta"], &["beta", "alpha"]];
        for choices in names {
            let text = choices[usize::from(input.below(8) == 7)];
            body.push(text.len() as u8);
            body.extend(text.as_bytes());
        }
    }
    let more = usize::from(input.u8() >> 4);
    body.extend(input.bytes(more));
    let length = match input.below(16) {
        0 => input.u16(),
        _ => body.len() as u16,
    };
    out.push(kind);
    out.extend(length.to_le_bytes());
    out.extend(body);
}

/// Any bytes, and changed good ones.
pub(crate) fn exchange(data: &[u8]) {
    let mut input = Input::new(data);
    let (mode, dials, falling) = (input.below(3), input.flag(), input.u8());
    if mode == 2 {
        return meddled(&mut input);
    }
    let mut stream = Vec::new();
    if mode == 1 {
        while !input.is_empty() && stream.len() < 8 << 10 {
            message(&mut input, &mut stream);
        }
    } else {
        stream.extend(input.rest());
    }
    let (whole, usage) = measure(|| hear(dials, &stream, Cuts::Whole));
    let bound = 4096 + 8 * (stream.len() + whole.0.len()) as u64;
    assert!(usage.peak_bytes <= bound, "{usage:?} for {} bytes", stream.len());
    assert!(!matches!(whole.2, Ok(Step::Done { .. })), "a stranger is let in");
    for cuts in [Cuts::Bytewise, Cuts::Falling(falling)] {
        assert_eq!(hear(dials, &stream, cuts), whole, "{cuts:?}");
    }
}

/// What both sides came to, as far as they are through.
#[derive(Default)]
struct Through {
    dialler: Option<(PeerHello, [u8; 32])>,
    acceptor: Option<(PeerHello, [u8; 32])>,
}

/// A good exchange, some of whose bytes are changed on the way.
fn meddled(input: &mut Input<'_>) {
    let mut to_acceptor = Vec::new();
    let mut to_dialler = Vec::new();
    let (mut dial, mut accept) = (dialler(&mut to_acceptor), acceptor());
    let mut changed = false;
    let mut through = Through::default();
    for _ in 0..3 {
        changed |= change(input, &mut to_acceptor);
        let (_, step) = accept.receive(&std::mem::take(&mut to_acceptor), &find, &mut to_dialler);
        through.acceptor = through.acceptor.or(done(step));
        changed |= change(input, &mut to_dialler);
        let (_, step) = dial.receive(&std::mem::take(&mut to_dialler), &nobody, &mut to_acceptor);
        through.dialler = through.dialler.or(done(step));
    }
    if let (Some((acceptor, ours)), Some((dialler, theirs))) = (through.dialler, through.acceptor) {
        assert_eq!(ours, theirs, "both are through, with different keys");
        assert_eq!((acceptor.node, acceptor.run_id), (NodeId(1), 101));
        assert_eq!((dialler.node, dialler.run_id), (NodeId(0), 100));
    }
    assert!(changed || through.dialler.is_some() && through.acceptor.is_some(), "a good exchange fails");
    assert!(!changed || through.dialler.is_none(), "the dialler takes what was changed");
}

fn done(step: Result<Step, HelloError>) -> Option<(PeerHello, [u8; 32])> {
    match step {
        Ok(Step::Done { resource, peer, digest_key }) => {
            assert_eq!(resource, "r0");
            Some((peer, digest_key))
        }
        _ => None,
    }
}

fn change(input: &mut Input<'_>, bytes: &mut Vec<u8>) -> bool {
    let before = bytes.clone();
    let at = usize::from(input.u16()) % bytes.len().max(1);
    match (input.below(8), bytes.get_mut(at)) {
        (0, Some(byte)) => *byte ^= 1 << input.below(8),
        (1, Some(byte)) => *byte = input.u8(),
        (2, Some(_)) => bytes.truncate(at),
        (3, Some(_)) => drop(bytes.splice(at..at, input.bytes(8).to_vec())),
        _ => {}
    }
    *bytes != before
}
