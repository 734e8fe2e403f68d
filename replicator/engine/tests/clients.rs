//! Clients and strangers that misbehave harm nobody but themselves.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use common::{Client, Pair, promote, report, status, wait_for, wait_protected};
use lockstep_nbd::{Command as Nbd, Request};

/// Clients that connect at the same moment.
const CROWD: usize = 64;

fn raw_request(command: Nbd, offset: u64, length: u32) -> [u8; 28] {
    Request::new(command, 7, offset, length.into()).encode()
}

#[test]
fn a_client_that_vanishes_in_the_middle_of_a_write_leaves_nothing_behind() {
    let pair = Pair::new("/dev/shm");
    let (alpha, beta) = (pair.start(0), pair.start(1));
    promote(&alpha);
    wait_protected(&alpha);
    for sent in [0, 1, 4096, 131_072, 500_000] {
        let mut client = pair.connect(0);
        client.send(&raw_request(Nbd::Write, 4096, 1 << 20));
        client.send(&vec![1; sent]);
        drop(client);
    }
    // A piece may be on its way to beta without a slot and a client here: its request ends with the answer to it.
    wait_for("no client, no slot and no request", || {
        let report = report(&alpha);
        report.clients.is_empty() && report.memory.slots_in_use == 0 && status(&alpha).requests == 0
    });
    pair.connect(0).write(0, &[2; 4096]);
    wait_for("beta at rest", || report(&beta).memory.slots_in_use == 0);
}

#[test]
fn a_client_that_does_not_read_its_answers_stops_only_itself() {
    let pair = Pair::new("/dev/shm");
    let alpha = pair.start(0);
    promote(&alpha);
    let mut greedy = pair.connect(0);
    // More than its bound, and more than all slots for reading.
    greedy.set_nonblocking();
    let request = raw_request(Nbd::Read, 0, 1 << 20);
    let taken = (0..100_000).take_while(|_| greedy.try_send(&request)).count();
    assert!(taken > 0);
    let mut modest = pair.connect(0);
    for _ in 0..10 {
        modest.write(8192, &[3; 8192]);
    }
    drop(greedy);
    wait_for("slots free again", || report(&alpha).memory.slots_in_use == 0);
    assert_eq!(modest.read(8192, 8192), vec![3; 8192]);
}

#[test]
fn strangers_are_turned_away() {
    let pair = Pair::new("/dev/shm");
    let alpha = pair.start(0);
    promote(&alpha);
    let noise: Vec<u8> = (0..70_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut on_nbd = UnixStream::connect(pair.socket(0)).unwrap();
    let mut on_port = TcpStream::connect(pair.config(0).listen).unwrap();
    // The other end may close before all of it is taken.
    let _ = (on_nbd.write_all(&noise), on_port.write_all(&noise));
    let ends = |stream: &mut dyn Read| {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).map_or(0, |bytes| bytes) < 1000
    };
    on_nbd.set_read_timeout(Some(common::LIMIT)).unwrap();
    on_port.set_read_timeout(Some(common::LIMIT)).unwrap();
    assert!(ends(&mut on_nbd) && ends(&mut on_port));
    let mut in_transmission = pair.connect(0);
    in_transmission.send(&noise);
    assert!(in_transmission.is_closed());
    pair.connect(0).write(0, &[1; 512]);
    assert!(Client::connect(&pair.socket(0), "nothing", true).is_err());
}

#[test]
fn unfinished_handshakes_are_bounded_and_do_not_keep_others_out() {
    let pair = Pair::new("/dev/shm");
    let mut config = pair.config(0);
    config.limits.handshakes_max = 4;
    config.limits.handshake_timeout = 2 * common::LIMIT;
    let alpha = lockstep_engine::Engine::start(config).unwrap();
    promote(&alpha);
    let mut idle: Vec<UnixStream> = (0..8).map(|_| UnixStream::connect(pair.socket(0)).unwrap()).collect();
    Client::connect(&pair.socket(0), "r0", false).unwrap();
    // The oldest ones had to go.
    idle[0].set_read_timeout(Some(common::LIMIT)).unwrap();
    assert!(idle[0].read_to_end(&mut Vec::new()).is_ok());
}

#[test]
fn clients_that_come_at_once_are_served_one_after_the_other() {
    let pair = Pair::new("/dev/shm");
    let mut config = pair.config(0);
    config.limits.handshakes_max = 4;
    let alpha = lockstep_engine::Engine::start(config).unwrap();
    promote(&alpha);
    let socket = pair.socket(0);
    let all_here = Barrier::new(CROWD);
    std::thread::scope(|scope| {
        for _ in 0..CROWD {
            scope.spawn(|| {
                all_here.wait();
                Client::connect(&socket, "r0", false).unwrap();
            });
        }
    });
}

#[test]
fn silent_strangers_do_not_keep_the_peer_out() {
    let pair = Pair::new("/dev/shm");
    let mut config = pair.config(1);
    config.limits.hellos_max = 4;
    config.limits.hello_timeout = 2 * common::LIMIT;
    let port = config.listen;
    let _beta = lockstep_engine::Engine::start(config).unwrap();
    let silent: Vec<TcpStream> = (0..8).map(|_| TcpStream::connect(port).unwrap()).collect();
    let alpha = pair.start(0);
    promote(&alpha);
    wait_protected(&alpha);
    drop(silent);
}

#[test]
fn a_bad_request_is_answered_and_the_next_one_served() {
    let pair = Pair::new("/dev/shm");
    let alpha = pair.start(0);
    promote(&alpha);
    let mut client = pair.connect(0);
    client.begin(Nbd::Write, false, common::SIZE_BYTES - 512, 1024, &[0; 1024]);
    assert_eq!(client.answer().1, Some(lockstep_nbd::NbdError::NoSpace));
    client.begin(Nbd::Trim, false, common::SIZE_BYTES, 512, &[]);
    assert_eq!(client.answer().1, Some(lockstep_nbd::NbdError::Invalid));
    client.write(common::SIZE_BYTES - 512, &[5; 512]);
    assert_eq!(client.read(common::SIZE_BYTES - 512, 512), vec![5; 512]);
    client.disconnect();
}

/// Sends what the server takes at once.
fn flood(client: &mut Client, request: &[u8], count: usize) -> usize {
    client.set_nonblocking();
    (0..count).take_while(|_| client.try_send(request)).count()
}

#[test]
fn unread_answers_leave_buffers_to_others() {
    let pair = Pair::new("/dev/shm");
    let alpha = pair.start(0);
    promote(&alpha);
    let mut modest = pair.connect(0);
    modest.write(0, &vec![4; 8 << 20]);
    let mut greedy = pair.connect(0);
    assert_eq!(flood(&mut greedy, &raw_request(Nbd::Read, 0, 4 << 20), 9), 9);
    // Two MiB are in the socket; what is held behind them depends on when the requests came.
    wait_for("the greedy one waits", || report(&alpha).memory.slots_in_use >= 16);
    for len in [512, 65_536, 8 << 20] {
        assert_eq!(modest.read(0, len), vec![4; len as usize]);
    }
}

#[test]
fn most_of_a_long_answer_leaves_before_its_client_reads() {
    const LENGTH: u32 = 1 << 20;
    let pair = Pair::new("/dev/shm");
    let alpha = pair.start(0);
    promote(&alpha);
    let mut client = pair.connect(0);
    client.begin(Nbd::Read, false, 0, LENGTH, &[]);
    wait_for("half of it", || client.unread_bytes() >= u64::from(LENGTH) / 2);
    assert_eq!(client.take_data(LENGTH).len(), LENGTH as usize);
}

#[test]
fn clients_that_take_no_answers_do_not_delay_large_reads_of_others() {
    let pair = Pair::new("/dev/shm");
    let alpha = pair.start(0);
    promote(&alpha);
    let stuck: Vec<Client> = (0..32)
        .map(|_| {
            let mut client = pair.connect(0);
            client.send(&raw_request(Nbd::Read, 0, 16 << 20));
            client
        })
        .collect();
    wait_for("they hold what they may", || report(&alpha).memory.slots_in_use > 150);
    for structured in [true, false] {
        let mut reader = Client::connect(&pair.socket(0), "r0", structured).unwrap();
        for length in [16 << 20, 512, 3 << 20, 2 << 20] {
            assert_eq!(reader.read(0, length).len(), length as usize);
        }
        reader.disconnect();
    }
    assert_eq!(report(&alpha).clients.len(), stuck.len(), "nobody had to go for that");
    drop(stuck);
    wait_for("slots free again", || report(&alpha).memory.slots_in_use == 0);
}

#[test]
fn a_long_read_that_fails_in_the_middle_does_not_pass_for_data() {
    let pair = Pair::new("/dev/shm");
    let alpha = pair.start(0);
    promote(&alpha);
    std::fs::OpenOptions::new().write(true).open(pair.disk(0)).unwrap().set_len(7 << 20).unwrap();
    let expected = (lockstep_nbd::NbdError::Io, Some(7 << 20));
    for (structured, error) in [(true, Some(expected)), (false, None)] {
        let mut client = Client::connect(&pair.socket(0), "r0", structured).unwrap();
        client.begin(Nbd::Read, false, 0, 12 << 20, &[]);
        assert_eq!(client.take_error(), error);
    }
    wait_for("no slot is left", || report(&alpha).memory.slots_in_use == 0);
}

#[test]
fn a_client_that_stands_in_the_way_is_closed() {
    let pair = Pair::new("/dev/shm");
    let mut config = pair.config(0);
    config.limits.progress_timeout = Duration::from_millis(300);
    config.limits.clients_max = 256;
    let alpha = lockstep_engine::Engine::start(config).unwrap();
    promote(&alpha);
    let connect = |length| {
        let mut client = pair.connect(0);
        client.send(&raw_request(Nbd::Read, 0, length));
        client
    };
    let mut slow = pair.connect(0);
    slow.send(&raw_request(Nbd::Write, 0, 4096));
    let greedy = [connect(12 << 20), connect(12 << 20)];
    wait_for("they hold slots", || report(&alpha).memory.slots_in_use > 32);
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(report(&alpha).clients.len(), 3, "nobody else needs what they hold");
    // More than there are slots for.
    let others: Vec<Client> = (0..220).map(|_| connect(2 << 20)).collect();
    wait_for("some are closed", || report(&alpha).clients.len() < 3 + others.len());
    drop((greedy, others));
    wait_for("only the slow one is left", || report(&alpha).clients.len() == 1);
    slow.send(&[1; 4096]);
    assert_eq!(slow.answer().1, None);
}

#[test]
fn requests_whose_answers_are_not_read_are_not_read_either() {
    let pair = Pair::new("/dev/shm");
    let alpha = pair.start(0);
    promote(&alpha);
    let mut unknown = raw_request(Nbd::Flush, 0, 0);
    unknown[7] = 77;
    for request in [unknown, raw_request(Nbd::Cache, 0, 512)] {
        let mut client = pair.connect(0);
        client.set_nonblocking();
        let began = Instant::now();
        let mut sent = 0;
        while began.elapsed() < Duration::from_secs(1) {
            sent += usize::from(client.try_send(&request));
        }
        // What the socket's buffers hold, and no more.
        assert!(sent < 100_000, "{sent} requests were taken");
    }
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_large_read_and_many_clients_all_get_their_turn() {
    let pair = Pair::new("/dev/shm");
    let alpha = pair.start(0);
    promote(&alpha);
    let stop = AtomicBool::new(false);
    let counts: [AtomicU32; 6] = Default::default();
    std::thread::scope(|scope| {
        // Also where something below fails: the scope waits for its threads.
        let _stopper = StopAtEnd(&stop);
        for count in &counts {
            let mut client = pair.connect(0);
            let stop = &stop;
            scope.spawn(move || {
                let depth = (0..64).map(|_| client.begin(Nbd::Read, false, 0, 131_072, &[])).count();
                while !stop.load(Ordering::Relaxed) {
                    client.take_data(131_072);
                    client.begin(Nbd::Read, false, 0, 131_072, &[]);
                    count.fetch_add(1, Ordering::Relaxed);
                }
                (0..depth).for_each(|_| drop(client.take_data(131_072)));
            });
        }
        let mut large = pair.connect(0);
        let began = Instant::now();
        for _ in 0..3 {
            assert_eq!(large.read(0, 16 << 20).len(), 16 << 20);
        }
        let took = began.elapsed();
        let least = || counts.iter().map(|count| count.load(Ordering::Relaxed)).min().unwrap_or(0);
        let most = || counts.iter().map(|count| count.load(Ordering::Relaxed)).max().unwrap_or(0);
        wait_for("some answers", || most() > 1000);
        let (least, most) = (least(), most());
        assert!(least * 10 > most, "{counts:?}");
        assert!(took < Duration::from_secs(10), "the large reads took {took:?}");
    });
}

#[test]
fn a_refused_write_is_answered_after_its_payload() {
    let pair = Pair::new("/dev/shm");
    let alpha = pair.start(0);
    promote(&alpha);
    let mut client = pair.connect(0);
    client.send(&raw_request(Nbd::Write, common::SIZE_BYTES, 4096));
    client.send(&[0; 4095]);
    assert!(!client.has_answer_within(Duration::from_millis(300)));
    client.send(&[0]);
    assert_eq!(client.answer().1, Some(lockstep_nbd::NbdError::NoSpace));
}
