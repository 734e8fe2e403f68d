//! Clients that come while nobody is Primary: they wait for the promotion, not for ever, and not too many of them.

mod common;

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use common::{Client, LIMIT, Pair, command, promote, wait_protected};
use lockstep_core::Command;
use lockstep_engine::{Engine, EngineConfig, EngineHandle};

const FOR_EVER: Duration = Duration::from_secs(3600);

fn start(pair: &Pair, node: usize, change: impl FnOnce(&mut EngineConfig)) -> EngineHandle {
    let mut config = pair.config(node);
    config.hold_greeting = FOR_EVER;
    change(&mut config);
    Engine::start(config).unwrap()
}

/// Clients that connect, each in a thread; what became of them, as it becomes of them.
fn come(pair: &Pair, node: usize, clients: usize) -> (Receiver<Result<u64, String>>, Vec<JoinHandle<()>>) {
    let (sender, receiver) = channel();
    let threads = (0..clients).map(|_| {
        let (sender, socket) = (sender.clone(), pair.socket(node));
        std::thread::spawn(move || {
            sender.send(Client::connect(&socket, "r0", true).map(|client| client.size_bytes)).unwrap();
        })
    });
    (receiver, threads.collect())
}

/// A connection that says nothing is closed when the time for its handshake is over.
fn wait_handshake_time(pair: &Pair, node: usize) {
    let mut silent = UnixStream::connect(pair.socket(node)).unwrap();
    silent.set_read_timeout(Some(LIMIT)).unwrap();
    silent.read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn who_comes_before_the_promotion_waits_for_it_and_is_not_late_then() {
    let pair = Pair::new("/dev/shm");
    let alpha = start(&pair, 0, |config| config.limits.handshake_timeout = Duration::from_millis(200));
    let (results, threads) = come(&pair, 0, 3);
    // Twice: the time of those that are held would have been over as well.
    wait_handshake_time(&pair, 0);
    wait_handshake_time(&pair, 0);
    results.try_recv().expect_err("nobody is served, refused or closed");
    promote(&alpha);
    for _ in 0..3 {
        assert_eq!(results.recv_timeout(LIMIT).unwrap(), Ok(common::SIZE_BYTES));
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn who_waits_too_long_is_told_why() {
    let pair = Pair::new("/dev/shm");
    let _alpha = start(&pair, 0, |config| config.hold_greeting = Duration::from_millis(100));
    let error = Client::connect(&pair.socket(0), "r0", true).err().expect("nobody is promoted");
    assert!(error.contains("r0 is Secondary on alpha; promote it: lockstep promote r0"), "{error}");
}

#[test]
fn no_more_wait_than_the_bound_says() {
    let pair = Pair::new("/dev/shm");
    let alpha = start(&pair, 0, |config| config.limits.held_max = 2);
    let (results, threads) = come(&pair, 0, 5);
    for _ in 0..3 {
        let error = results.recv_timeout(LIMIT).unwrap().expect_err("one too many");
        assert!(error.contains("lockstep promote r0"), "{error}");
    }
    promote(&alpha);
    for _ in 0..2 {
        assert_eq!(results.recv_timeout(LIMIT).unwrap(), Ok(common::SIZE_BYTES));
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn who_belongs_to_the_other_node_is_refused_at_once() {
    let pair = Pair::new("/dev/shm");
    let [alpha, beta] = [0, 1].map(|node| start(&pair, node, |_| ()));
    promote(&alpha);
    wait_protected(&alpha);
    wait_protected(&beta);
    let refused = |node: usize| {
        let error = Client::connect(&pair.socket(node), "r0", true).err().expect("it is Secondary");
        assert!(error.contains("Secondary"), "{error}");
    };
    refused(1);
    command(&alpha, Command::Demote { force: false }).unwrap();
    // Its clients' address is about to move.
    refused(0);
    let (results, threads) = come(&pair, 1, 1);
    promote(&beta);
    assert_eq!(results.recv_timeout(LIMIT).unwrap(), Ok(common::SIZE_BYTES));
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    refused(0);
    // Whoever comes to alpha when beta is gone comes for the next promotion.
    drop(beta);
    common::wait_for("beta is gone", || common::status(&alpha).peers[0].role.is_none());
    let (results, threads) = come(&pair, 0, 1);
    let downed = Command::Promote { peer_is_down: true, accept_data_loss: false };
    command(&alpha, downed).unwrap();
    assert_eq!(results.recv_timeout(LIMIT).unwrap(), Ok(common::SIZE_BYTES));
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}
