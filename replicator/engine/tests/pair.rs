//! Two engines mirror what a client writes.

mod common;

use common::{Client, Pair, assert_equal, command, promote, report, status, wait_for, wait_protected};
use lockstep_core::{Command, ConnectionState, DiskState, Done, Refusal, Role};
use lockstep_nbd::Command as Nbd;

fn pattern(seed: u32, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..bytes).map(|_| next()).collect()
}

/// Everything a client can ask, aligned and not, small and large.
fn exercise(client: &mut Client) {
    let ranges =
        [(0, 512), (4096, 4096), (1000, 77), (131_000, 5000), (1 << 20, 3 << 20), (5_000_001, 1_000_003)];
    for (seed, (offset, bytes)) in (1..).zip(ranges) {
        let data = pattern(seed, bytes);
        if seed % 2 == 0 {
            client.write_fua(offset, &data)
        } else {
            client.write(offset, &data)
        }
        assert_eq!(client.read(offset, bytes as u32), data);
    }
    // A trim takes whole blocks inside its range; a zero is exact.
    client.zero(Nbd::Trim, 1 << 20, 300_000);
    client.zero(Nbd::WriteZeroes, 2_000_001, 99_999);
    assert!(client.read(1 << 20, 299_008).iter().all(|byte| *byte == 0));
    assert!(client.read(2_000_001, 99_999).iter().all(|byte| *byte == 0));
    let kept = pattern(5, 3 << 20);
    for at in [2_000_000, 2_100_000] {
        assert_eq!(client.read(at, 1), [kept[at as usize - (1 << 20)]]);
    }
    client.zero(Nbd::Cache, 0, 4096);
    client.flush();
}

fn mirror(base: &str) {
    let pair = Pair::new(base);
    let (alpha, beta) = (pair.start(0), pair.start(1));
    promote(&alpha);
    let mut client = pair.connect(0);
    assert_eq!(client.size_bytes, common::SIZE_BYTES);
    exercise(&mut client);
    wait_protected(&alpha);
    exercise(&mut client);
    assert_eq!(report(&alpha).clients.len(), 1);
    client.disconnect();
    wait_for("no client", || status(&alpha).clients == 0);
    assert_eq!(report(&alpha).memory.slots_in_use, 0);
    wait_for("beta at rest", || report(&beta).memory.slots_in_use == 0);
    assert_eq!(command(&alpha, Command::Demote { force: false }), Ok(Done::Changed));
    assert_equal(&pair.disk(0), &pair.disk(1));
    beta.stop();
    alpha.stop();
}

#[test]
fn what_is_written_is_on_both_copies_in_memory() {
    mirror("/dev/shm");
}

#[test]
fn what_is_written_is_on_both_copies_on_a_file_system() {
    mirror(env!("CARGO_TARGET_TMPDIR"));
}

#[test]
fn a_planned_move_needs_no_flag() {
    let pair = Pair::new("/dev/shm");
    let (alpha, beta) = (pair.start(0), pair.start(1));
    promote(&alpha);
    wait_protected(&alpha);
    let mut client = pair.connect(0);
    client.write(0, &pattern(1, 100_000));
    let in_use = command(&alpha, Command::Demote { force: false });
    assert_eq!(in_use, Err(Refusal::InUse { clients: 1 }));
    assert_eq!(command(&alpha, Command::Demote { force: true }), Ok(Done::Changed));
    assert!(client.is_closed());
    wait_for("beta knows", || status(&beta).peers[0].role == Some(Role::Secondary));
    promote(&beta);
    assert_eq!(status(&alpha).role, Role::Secondary);
    let refused = Client::connect(&pair.socket(0), "r0", true).err().unwrap();
    assert!(refused.contains("promote r0"), "{refused}");
    let mut client = pair.connect(1);
    assert_eq!(client.read(0, 100_000), pattern(1, 100_000));
    client.write(50_000, &pattern(2, 100_000));
    client.disconnect();
    assert_equal(&pair.disk(0), &pair.disk(1));
}

#[test]
fn a_peer_that_was_away_is_brought_up_to_date() {
    let pair = Pair::new("/dev/shm");
    let (alpha, beta) = (pair.start(0), pair.start(1));
    promote(&alpha);
    wait_protected(&alpha);
    let mut client = pair.connect(0);
    client.write(0, &pattern(1, 1 << 20));
    beta.stop();
    wait_for("alone", || status(&alpha).peers[0].connection == ConnectionState::Connecting);
    client.write(500_000, &pattern(2, 1 << 20));
    client.write(9_000_000, &pattern(3, 12_345));
    let beta = pair.start(1);
    wait_protected(&alpha);
    client.write(12_000_000, &pattern(4, 4096));
    client.disconnect();
    wait_for("beta at rest", || report(&beta).memory.slots_in_use == 0);
    assert_equal(&pair.disk(0), &pair.disk(1));
}

#[test]
fn down_and_up_again_while_the_peer_serves() {
    let pair = Pair::new("/dev/shm");
    let (alpha, beta) = (pair.start(0), pair.start(1));
    promote(&alpha);
    wait_protected(&alpha);
    let (sender, done) = std::sync::mpsc::channel();
    for expected in [Done::LeftAsOutdated, Done::Already] {
        let reply = sender.clone();
        let answer =
            move |result: Result<Done, Refusal>| reply.send(result.map_err(|why| why.to_string())).unwrap();
        beta.down("r0", false, Box::new(answer)).unwrap();
        assert_eq!(done.recv().unwrap(), Ok(expected));
        assert!(report(&beta).status.is_none());
    }
    pair.connect(0).write(0, &pattern(9, 8192));
    for expected in [Done::Changed, Done::Already] {
        let reply = sender.clone();
        beta.up("r0", Box::new(move |result| reply.send(result).unwrap())).unwrap();
        assert_eq!(done.recv().unwrap(), Ok(expected));
    }
    wait_protected(&alpha);
    assert_equal(&pair.disk(0), &pair.disk(1));
}

#[test]
fn down_refuses_to_close_clients_unless_it_is_told_to() {
    let pair = Pair::new("/dev/shm");
    let (alpha, _beta) = (pair.start(0), pair.start(1));
    promote(&alpha);
    wait_protected(&alpha);
    let mut client = pair.connect(0);
    let down = |force| {
        let (sender, done) = std::sync::mpsc::channel();
        alpha.down("r0", force, Box::new(move |result| sender.send(result).unwrap())).unwrap();
        done.recv().unwrap()
    };
    assert_eq!(down(false), Err(Refusal::InUse { clients: 1 }));
    // Nothing was changed.
    client.write(0, &pattern(1, 100_000));
    assert_eq!(client.read(0, 100_000), pattern(1, 100_000));
    assert_eq!(status(&alpha).role, Role::Primary);
    assert_eq!(down(true), Ok(Done::LeftAsOutdated));
    assert!(client.is_closed());
    assert_eq!(down(false), Ok(Done::Already));
    assert_equal(&pair.disk(0), &pair.disk(1));
}

#[test]
fn a_primary_without_clients_goes_down_when_it_is_asked() {
    let pair = Pair::new("/dev/shm");
    let alpha = pair.start(0);
    promote(&alpha);
    pair.connect(0).disconnect();
    wait_for("no client", || status(&alpha).clients == 0);
    let (sender, done) = std::sync::mpsc::channel();
    alpha.down("r0", false, Box::new(move |result| sender.send(result).unwrap())).unwrap();
    assert_eq!(done.recv().unwrap(), Ok(Done::LeftAsIs));
}

#[test]
fn up_never_mistakes_going_down_for_being_up() {
    let pair = Pair::new("/dev/shm");
    let (alpha, beta) = (pair.start(0), pair.start(1));
    promote(&alpha);
    for _ in 0..5 {
        wait_protected(&alpha);
        let (downs, is_down) = std::sync::mpsc::channel();
        beta.down("r0", false, Box::new(move |result| downs.send(result.is_ok()).unwrap())).unwrap();
        let up = || {
            let (ups, is_up) = std::sync::mpsc::channel();
            beta.up("r0", Box::new(move |result| ups.send(result).unwrap())).unwrap();
            is_up.recv().unwrap()
        };
        let first = up();
        assert!(is_down.recv().unwrap());
        match first {
            // It was down already.
            Ok(done) => assert_eq!(done, Done::Changed),
            Err(why) => {
                assert!(why.contains("going down"), "{why}");
                assert_eq!(up(), Ok(Done::Changed));
            }
        }
    }
}

#[test]
fn another_secret_is_no_peer() {
    let mut pair = Pair::new("/dev/shm");
    pair.secrets[1] = [8; 32];
    let (alpha, _beta) = (pair.start(0), pair.start(1));
    wait_for("a reason", || report(&alpha).link_error.is_some_and(|why| why.contains("secret")));
    assert_eq!(status(&alpha).peers[0].connection, ConnectionState::Connecting);
}

#[test]
fn without_metadata_a_resource_runs_diskless_and_says_what_to_type() {
    let pair = Pair::new("/dev/shm");
    std::fs::remove_file(pair.meta(0)).unwrap();
    let alpha = pair.start(0);
    let report = report(&alpha);
    assert!(report.error.unwrap().contains("lockstep create-md r0"));
    assert_eq!(report.status.unwrap().disk, DiskState::Diskless);
}

#[test]
fn a_second_daemon_gets_neither_port_nor_disk() {
    let pair = Pair::new("/dev/shm");
    let _alpha = pair.start(0);
    assert!(lockstep_engine::Engine::start(pair.config(0)).is_err());
    let overwritten = lockstep_engine::create_metadata(&pair.meta(0), pair.params(0, true), true);
    assert!(matches!(overwritten, Err(lockstep_engine::AttachError::InUse(_))), "{overwritten:?}");
}
