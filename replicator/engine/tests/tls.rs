//! The shard's part in TLS: the test is the terminator, whose "TLS" is plaintext, and the client.

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::raw::Raw;
use common::{LIMIT, Pair, promote, report, wait_for};
use lockstep_engine::{
    Access, Engine, EngineConfig, EngineHandle, NamePattern, TlsConnection, TlsPolicy, TlsSession,
    TlsTerminator,
};

const STARTTLS: u32 = 5;
const ACK: u32 = 1;
const ERR_POLICY: u32 = 0x8000_0002;
const ERR_UNKNOWN: u32 = 0x8000_0006;
const ERR_TLS_REQD: u32 = 0x8000_0005;

/// Hands everything to the test.
#[derive(Debug)]
struct Toy(Mutex<Sender<(TlsConnection, Receiver<()>)>>);

impl TlsTerminator for Toy {
    fn take_over(&self, connection: TlsConnection) -> TlsSession {
        let (hold, released) = channel::<()>();
        self.0.lock().unwrap().send((connection, released)).unwrap();
        Box::new(hold)
    }
}

type Taken = Receiver<(TlsConnection, Receiver<()>)>;

fn start(pair: &Pair, change: impl FnOnce(&mut EngineConfig)) -> (EngineHandle, Taken) {
    let (sender, taken) = channel();
    let mut config = pair.config(0);
    config.terminator = Some(Arc::new(Toy(Mutex::new(sender))));
    config.nbd_listeners[0].tls = TlsPolicy::Optional;
    change(&mut config);
    let engine = Engine::start(config).unwrap();
    promote(&engine);
    (engine, taken)
}

#[track_caller]
fn assert_closed(client: &mut Raw) {
    let read = client.0.read(&mut [0]);
    assert!(!matches!(read, Ok(1..)), "{read:?}");
}

/// STARTTLS, up to the terminator's turn.
fn begin(pair: &Pair, taken: &Taken, behind: &[u8]) -> (Raw, TlsConnection, Receiver<()>) {
    let mut client = Raw::connect(pair);
    assert_eq!(client.ask(STARTTLS, &[], behind), ACK);
    let (connection, released) = taken.recv_timeout(LIMIT).unwrap();
    (client, connection, released)
}

/// What the terminator says when the handshake succeeded; the client goes on at the plaintext's end.
fn establish(connection: TlsConnection, names: &[&str]) -> Raw {
    (connection.established)(names.iter().map(|&name| name.into()).collect());
    let inside = UnixStream::from(connection.plaintext);
    inside.set_read_timeout(Some(LIMIT)).unwrap();
    Raw(inside)
}

#[track_caller]
fn assert_released(released: &Receiver<()>) {
    wait_for("the shard lets go", || released.try_recv() == Err(TryRecvError::Disconnected));
}

#[test]
fn the_handshake_goes_on_inside_and_plaintext_behind_starttls_is_the_terminators() {
    let pair = Pair::new("/dev/shm");
    let (alpha, taken) = start(&pair, |_| {});
    // A whole option, in the same segment.
    let smuggled = b"IHAVEOPT\0\0\0\x03\0\0\0\0";
    let (mut outside, connection, released) = begin(&pair, &taken, smuggled);
    assert_eq!(connection.received, smuggled);
    assert!(connection.address.contains("unix"));
    // The client's socket is the terminator's alone.
    let mut socket = UnixStream::from(connection.socket.try_clone().unwrap());
    socket.write_all(b"hello").unwrap();
    let mut hello = [0; 5];
    outside.0.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"hello", "nothing came before it: no answer to what was smuggled");
    outside.0.write_all(b"from the client").unwrap();
    let mut heard = [0; 15];
    socket.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"from the client");
    let mut inside = establish(connection, &[]);
    assert_eq!(inside.ask(STARTTLS, &[], &[]), 0x8000_0003, "not twice");
    assert_eq!(inside.ask_info("r0"), ACK);
    assert_eq!(inside.ask(2, &[], &[]), ACK);
    assert_closed(&mut inside);
    assert_released(&released);
    assert!(report(&alpha).clients.is_empty());
}

#[test]
fn bytes_that_come_before_the_terminators_word_wait_for_it() {
    let pair = Pair::new("/dev/shm");
    let (_alpha, taken) = start(&pair, |config| {
        config.resources[0].access =
            Access { names: vec![NamePattern::parse("vm1").unwrap()], ..Access::default() };
    });
    let (_outside, connection, _released) = begin(&pair, &taken, &[]);
    let mut early = UnixStream::from(connection.plaintext.try_clone().unwrap());
    early.write_all(b"IHAVEOPT\0\0\0\x06\0\0\0\x08\0\0\0\x02r0\0\0").unwrap();
    early.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(early.read(&mut [0]).is_err(), "answered before the client was known");
    let mut inside = establish(connection, &["vm1"]);
    let mut reply = inside.answer();
    while reply == 3 {
        reply = inside.answer();
    }
    assert_eq!(reply, ACK);
}

#[test]
fn names_decide_who_may_open() {
    let pair = Pair::new("/dev/shm");
    let (_alpha, taken) = start(&pair, |config| {
        let names = vec![NamePattern::parse("*.example").unwrap()];
        config.resources[0].access = Access { names, ..Access::default() };
    });
    assert_eq!(Raw::connect(&pair).ask_info("r0"), ERR_TLS_REQD);
    for (names, answer) in [(&["vm1.example"][..], ACK), (&["vm1"], ERR_UNKNOWN), (&[], ERR_UNKNOWN)] {
        let (_outside, connection, _released) = begin(&pair, &taken, &[]);
        let mut inside = establish(connection, names);
        assert_eq!(inside.ask_info("r0"), answer, "{names:?}");
        let listed = inside.ask(3, &[], &[]);
        assert_eq!(listed, if answer == ACK { 2 } else { ACK }, "{names:?}");
    }
}

#[test]
fn a_client_inside_of_tls_takes_it_along_to_another_shard() {
    let pair = Pair::with("/dev/shm", &["r0", "r1"]);
    let (_alpha, taken) = start(&pair, |config| {
        config.hold_greeting = Duration::ZERO;
        config.limits.shards = 2;
        let names = vec![NamePattern::parse("vm1").unwrap()];
        config.resources[1].access = Access { names, ..Access::default() };
    });
    // It may have been there before, without.
    let mut plain = Raw::connect(&pair);
    assert_eq!(plain.ask_info("r1"), ERR_TLS_REQD);
    let (_outside, connection, released) = begin(&pair, &taken, &[]);
    let mut inside = establish(connection, &["vm1"]);
    for name in ["r1", "r0", "r1"] {
        // The second one is not promoted: it says so, to a client that it knows.
        assert_eq!(inside.ask_info(name), if name == "r0" { ACK } else { ERR_POLICY });
    }
    assert_eq!(released.try_recv(), Err(TryRecvError::Empty));
    drop(inside);
    assert_released(&released);
}

#[test]
fn a_terminator_that_gives_up_ends_the_client() {
    let pair = Pair::new("/dev/shm");
    let (_alpha, taken) = start(&pair, |_| {});
    let (mut outside, connection, released) = begin(&pair, &taken, &[]);
    drop(connection);
    assert_closed(&mut outside);
    assert_released(&released);
    // After it was established, too.
    let (mut outside, connection, released) = begin(&pair, &taken, &[]);
    drop(establish(connection, &[]));
    assert_closed(&mut outside);
    assert_released(&released);
}

#[test]
fn a_handshake_inside_of_tls_has_no_more_time_than_another() {
    let pair = Pair::new("/dev/shm");
    let (_alpha, taken) = start(&pair, |config| config.limits.handshake_timeout = Duration::from_millis(300));
    // One whose TLS never comes to an end, and one whose client says nothing inside of it.
    let (_outside, connection, released) = begin(&pair, &taken, &[]);
    assert_released(&released);
    drop(connection);
    let (_outside, connection, released) = begin(&pair, &taken, &[]);
    let mut inside = establish(connection, &[]);
    assert_released(&released);
    assert_closed(&mut inside);
}

#[test]
fn clients_that_begin_tls_count_among_the_unfinished() {
    let pair = Pair::new("/dev/shm");
    let (_alpha, taken) = start(&pair, |config| config.limits.handshakes_max = 2);
    let (_first, _connection, first_released) = begin(&pair, &taken, &[]);
    let (_second, _connection2, second_released) = begin(&pair, &taken, &[]);
    let (_third, _connection3, third_released) = begin(&pair, &taken, &[]);
    assert_released(&first_released);
    assert_eq!(second_released.try_recv(), Err(TryRecvError::Empty));
    assert_eq!(third_released.try_recv(), Err(TryRecvError::Empty));
}

#[test]
fn a_stop_lets_go_of_every_connection() {
    let pair = Pair::new("/dev/shm");
    let (alpha, taken) = start(&pair, |_| {});
    let (_one, connection, one_released) = begin(&pair, &taken, &[]);
    let (_other, other, other_released) = begin(&pair, &taken, &[]);
    let _inside = establish(other, &[]);
    alpha.stop();
    assert_released(&one_released);
    assert_released(&other_released);
    // Said too late: nobody is there, and nothing comes of it.
    (connection.established)(Vec::new());
}

#[test]
fn a_listener_with_tls_needs_somebody_who_does_it() {
    let pair = Pair::new("/dev/shm");
    let mut config = pair.config(0);
    config.nbd_listeners[0].tls = TlsPolicy::Required;
    assert!(Engine::start(config).is_err());
}
