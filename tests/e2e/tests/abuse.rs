//! Clients that behave badly, in crowds: whoever behaves goes on with the right data, the memory stays below what was
//! announced, and nothing of them is left when they went.

#[path = "abuse/busy.rs"]
mod busy;
#[path = "abuse/dying.rs"]
mod dying;
#[path = "abuse/raw.rs"]
mod raw;
#[path = "abuse/subject.rs"]
mod subject;

use busy::{BUSY_BYTES, Busy};
use dying::{STATES, bring_to};
use lockstep_e2e::{Cluster, Connection, Plan, RESOURCE, Rng, open_descriptors, rounds, seed, wait_until};
use lockstep_nbd::Command;
use raw::{BLOCK_STATUS, LIST, Raw, WRITE, extended_request, flags, go, option, request};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::time::Duration;
use subject::{SIZE_BYTES, Subject};

const MIB: u64 = 1 << 20;
const IDLE: usize = 1000;
const HALF_OPEN: usize = 200;
const LIMIT: Duration = Duration::from_secs(30);

/// The crowd's sockets are in this process.
fn allow_many_files() {
    const FILES: u64 = 4096;
    let now = getrlimit(Resource::Nofile);
    if now.current.is_some_and(|limit| limit < FILES) {
        let maximum = now.maximum.map(|limit| limit.max(FILES));
        setrlimit(Resource::Nofile, Rlimit { current: Some(FILES), maximum }).expect("more open files");
    }
}

/// One that begins a handshake and does not end it.
fn half_open(subject: &Subject, number: usize) -> Raw {
    let mut raw = Raw::unix(&subject.socket());
    let announced = option(LIST, &[7; 16 << 10]);
    match number % 4 {
        0 => {}
        1 => raw.send(&flags()),
        2 => raw.send(&[&flags()[..], &announced[..9]].concat()),
        _ => raw.send(&[&flags()[..], &announced[..8 << 10]].concat()),
    }
    raw
}

fn a_crowd(subject: &Subject) {
    allow_many_files();
    let at_rest = subject.descriptors_at_rest();
    let busy = Busy::start(subject, 64, seed("crowd"));
    let (mut idle, mut unfinished) = (Vec::new(), Vec::new());
    let before = subject.rss_bytes();
    for number in 0..IDLE {
        idle.push(subject.connect());
        if number % (IDLE / HALF_OPEN) == 0 {
            unfinished.push(half_open(subject, number));
        }
    }
    let grown = subject.rss_bytes().saturating_sub(before);
    println!("{IDLE} idle and {HALF_OPEN} half-open connections took {} KiB", grown >> 10);
    assert!(grown < 64 * MIB, "{} KiB", grown >> 10);
    busy.wait_progress(30);
    for (number, client) in (0_u64..).zip(&mut idle) {
        client.read(number * 4096, 4096).expect("an idle client is served");
    }
    busy.wait_progress(10);
    subject.assert_within_budget();
    drop((idle, unfinished));
    let models = busy.stop();
    subject.wait_at_rest(at_rest);
    subject.assert_holds(&models);
}

#[test]
fn a_crowd_at_the_server_alone() {
    a_crowd(&Subject::alone());
}

#[test]
fn a_crowd_at_the_primary_of_a_pair() {
    a_crowd(&Subject::pair());
}

/// Sends until it is not read any more, and reads nothing.
fn deaf(subject: &Subject, number: u64) -> Connection {
    let mut client = subject.connect();
    let (command, length) = match number % 3 {
        0 => (Command::Read, 1 << 20),
        1 => (Command::Read, 32 << 20),
        // Refused, each with an answer.
        _ => (Command::Cache, 0),
    };
    let offset = BUSY_BYTES + number * 4096;
    (0..100_000).take_while(|_| client.try_send(command, offset, length, &[])).for_each(drop);
    client
}

fn clients_that_never_read(subject: &Subject) {
    let at_rest = subject.descriptors_at_rest();
    let busy = Busy::start(subject, 16, seed("deaf"));
    let clients: Vec<Connection> = (0..24).map(|number| deaf(subject, number)).collect();
    let mut curious: Vec<Raw> = (0..8).map(|_| Raw::unix(&subject.socket())).collect();
    for raw in &mut curious {
        raw.shake_extended(RESOURCE);
        let taken = raw.send_until_full(&extended_request(BLOCK_STATUS, 1, 0, SIZE_BYTES));
        assert!(taken < 100_000, "it is read although it does not read");
    }
    busy.wait_progress(100);
    subject.assert_within_budget();
    drop((clients, curious));
    let models = busy.stop();
    subject.wait_at_rest(at_rest);
    subject.assert_holds(&models);
}

#[test]
fn clients_that_never_read_disturb_nobody() {
    clients_that_never_read(&Subject::alone());
    clients_that_never_read(&Subject::pair());
}

fn deaths(subject: &Subject, count: u64) {
    /// Alive at the same time.
    const ALIVE: usize = 12;
    let number = seed("deaths");
    let (mut rng, at_rest) = (Rng::new(number), subject.descriptors_at_rest());
    let busy = Busy::start(subject, 8, number);
    let mut alive: Vec<Raw> = Vec::new();
    for nth in 0..count {
        let mut raw = match subject.port() {
            Some(port) if rng.below(2) == 0 => Raw::tcp(port),
            _ => Raw::unix(&subject.socket()),
        };
        bring_to(&mut raw, STATES[nth as usize % STATES.len()], &mut rng);
        alive.push(raw);
        if alive.len() > ALIVE {
            alive.swap_remove(rng.below(ALIVE as u64) as usize);
        }
    }
    drop(alive);
    busy.wait_progress(20);
    let models = busy.stop();
    subject.wait_at_rest(at_rest);
    subject.assert_within_budget();
    subject.assert_holds(&models);
}

#[test]
fn clients_that_die_in_any_state_leave_nothing_behind() {
    let count = rounds("DEATH", 400);
    deaths(&Subject::alone(), count);
    deaths(&Subject::pair(), count);
}

/// Whoever asks while the role changes is held. Those that die meanwhile do not take the places of others.
#[test]
fn clients_that_die_while_they_are_held_leave_nothing_behind() {
    const DYING: usize = 100;
    let plan = Plan { timeout_ms: 20_000, ..Plan::default() };
    let subject = Subject::Pair(Box::new(Cluster::connected(&plan)));
    let Subject::Pair(cluster) = &subject else { unreachable!("it was just made") };
    let node = &cluster.alpha;
    // The peer's consent takes its time.
    cluster.proxy.delay(Duration::from_secs(5));
    std::thread::scope(|scope| {
        let promotion = scope.spawn(|| node.promote());
        node.wait_status("a change of role", |status| status["changing_role"] == true);
        let waiting: Vec<_> = (0..4).map(|_| scope.spawn(|| node.connect())).collect();
        let descriptors = open_descriptors(node.pid());
        for _ in 0..3 {
            let ask = || {
                let mut raw = Raw::unix(node.nbd());
                raw.send(&[&flags()[..], &go(RESOURCE)].concat());
                raw
            };
            let dying: Vec<Raw> = (0..DYING).map(|_| ask()).collect();
            wait_until("the crowd is held", LIMIT, || open_descriptors(node.pid()) >= descriptors + DYING);
            drop(dying);
            // Four more may have been on their way.
            wait_until("the dead are gone", LIMIT, || open_descriptors(node.pid()) <= descriptors + 4);
        }
        assert_eq!(node.status()["changing_role"], true, "it was over before the dead were noticed");
        cluster.proxy.delay(Duration::ZERO);
        promotion.join().expect("a promotion").ok();
        for client in waiting {
            client
                .join()
                .expect("a client")
                .expect("a client that waited is served")
                .flush()
                .expect("a flush");
        }
    });
    cluster.assert_replicas_equal();
}

fn empty_promises(subject: &Subject) {
    let at_rest = subject.descriptors_at_rest();
    let busy = Busy::start(subject, 8, seed("promises"));
    busy.wait_progress(20);
    let before = subject.rss_bytes();
    let mut promised: Vec<Raw> = (0..8).map(|_| Raw::unix(&subject.socket())).collect();
    for raw in &mut promised {
        raw.shake(RESOURCE);
        raw.send(&request(WRITE, 1, BUSY_BYTES, 32 << 20));
    }
    busy.wait_progress(100);
    let grown = subject.rss_bytes().saturating_sub(before);
    println!("eight announced writes of 32 MiB took {} KiB", grown >> 10);
    assert!(grown < 8 * MIB, "{} KiB", grown >> 10);
    drop(promised);
    let models = busy.stop();
    subject.wait_at_rest(at_rest);
    subject.assert_holds(&models);
}

#[test]
fn writes_that_are_announced_and_never_sent_take_no_memory() {
    empty_promises(&Subject::alone());
    empty_promises(&Subject::pair());
}
