//! Sessions that a grammar makes and that were changed, sent to a live server: it goes on serving, and keeps nothing of
//! them. The same sessions meet the state machines alone in `tests/fuzz`.

use lockstep_e2e::{
    Connection, Plain, Rng, open_descriptors, peak_bytes, rounds, seed, settled_descriptors, wait_until,
};
use lockstep_fuzz::nbd_stream;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

const SIZE_BYTES: u64 = 2 << 20;
const EXPORT: &str = "v0";
const CHOICES: usize = 1500;
const LIMIT: Duration = Duration::from_secs(60);

/// Takes whatever the server says until it closes.
fn drain(mut stream: UnixStream) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    panic!("the server neither answers nor closes")
                }
                Err(_) => return,
            }
        }
    })
}

/// Sends it in pieces, then says that no more comes, or leaves without a word.
fn talk(socket: &Path, session: &[u8], rng: &mut Rng) {
    let mut stream = UnixStream::connect(socket).expect("connect");
    stream.set_read_timeout(Some(LIMIT)).expect("a time limit");
    stream.set_write_timeout(Some(LIMIT)).expect("a time limit");
    let reader = drain(stream.try_clone().expect("a second handle"));
    let mut rest = session;
    while !rest.is_empty() {
        let piece = rest.len().min(1 + rng.below(9000) as usize);
        // The server may be done with us before.
        if stream.write_all(&rest[..piece]).is_err() {
            break;
        }
        rest = &rest[piece..];
    }
    let how = if rng.below(4) == 0 { Shutdown::Both } else { Shutdown::Write };
    drop(stream.shutdown(how));
    reader.join().expect("an end");
}

#[test]
fn changed_sessions_leave_a_live_server_as_it_was() {
    let mut rng = Rng::new(seed("sessions"));
    let mut served = Plain::start(SIZE_BYTES, &["--name", EXPORT]);
    let serves = |byte: u8| {
        let mut client = Connection::open(served.socket().as_path(), EXPORT).expect("a client");
        let bytes = vec![byte; 70_000];
        client.write(1_234_567, &bytes).expect("a write");
        assert!(client.read(1_234_567, 70_000).expect("a read") == bytes);
        client.flush().expect("a flush");
        client.close().expect("a goodbye");
    };
    serves(0);
    let at_rest = settled_descriptors(served.pid());
    for round in 0..rounds("SESSION", 400) {
        let choices: Vec<u8> = (0..CHOICES).map(|_| rng.draw() as u8).collect();
        talk(&served.socket(), &nbd_stream(&choices), &mut rng);
        if round % 20 == 0 {
            serves(round as u8);
        }
    }
    serves(255);
    wait_until("no more descriptors than before", LIMIT, || open_descriptors(served.pid()) <= at_rest);
    assert!(peak_bytes(served.pid()) <= served.budget_bytes());
    assert!(served.stop().success(), "{}", served.log());
}
