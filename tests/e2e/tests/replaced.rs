//! A node that is Primary no more, because it was demoted or because the other one took over: what it was still sent
//! has no effect after that, and never overwrites what its successor wrote.

use lockstep_e2e::{Cluster, Connection, Plan, RESOURCE};
use lockstep_nbd::Command;
use std::collections::{HashMap, HashSet};

const MIB: u64 = 1 << 20;
const SIZE_BYTES: u64 = 128 * MIB;
const WRITE_BYTES: u64 = 64 << 10;
/// What was there before, what the old Primary was sent, what the new one wrote.
const BEFORE: u8 = 0x11;
const LATE: u8 = 0x22;
const AFTER: u8 = 0x33;
const WRITES: u64 = 64;

fn cluster() -> Cluster {
    let plan = Plan { size_bytes: SIZE_BYTES, max_hot_bytes: 32 * MIB, ..Plan::default() };
    let cluster = Cluster::primary(&plan);
    write_all(&mut cluster.alpha.connect().expect("a client"), 0..WRITES, BEFORE);
    cluster.alpha.wait_status("all durable", |status| status["undurable_writes"] == 0);
    cluster
}

fn write_all(client: &mut Connection, writes: std::ops::Range<u64>, byte: u8) {
    for nth in writes {
        client.write(nth * WRITE_BYTES, &[byte; WRITE_BYTES as usize]).expect("a write");
    }
    client.flush().expect("a flush");
}

/// Sends so many writes, and waits for nothing.
fn send_late(client: &mut Connection) {
    let payload = [LATE; WRITE_BYTES as usize];
    for nth in 0..WRITES {
        client.send(Command::Write, false, nth * WRITE_BYTES, WRITE_BYTES as u32, &payload).expect("send");
    }
}

/// Beta is promoted by an operator who says that alpha is down, and writes the first half.
fn beta_takes_over(cluster: &Cluster) {
    cluster.beta.wait_connection("Connecting");
    cluster.beta.lockstep(&["promote", RESOURCE, "--peer-is-down"]).ok();
    write_all(&mut cluster.beta.connect().expect("a client of beta"), 0..WRITES / 2, AFTER);
}

/// Both copies hold what beta wrote in the first half, and in the second what was there before.
fn assert_nothing_late(cluster: &Cluster) {
    cluster.assert_replicas_equal();
    let found = std::fs::read(cluster.alpha.disk()).expect("read a disk");
    for nth in 0..WRITES {
        let expected = if nth < WRITES / 2 { AFTER } else { BEFORE };
        let start = (nth * WRITE_BYTES) as usize;
        let whole = found[start..start + WRITE_BYTES as usize].iter().all(|byte| *byte == expected);
        assert!(whole, "write {nth} of the old Primary shows");
    }
}

#[test]
fn a_killed_primary_answers_nothing_that_its_peer_lacks_and_loses_it() {
    let mut cluster = cluster();
    let mut client = cluster.alpha.connect().expect("a client");
    // Nothing reaches beta, and alpha has not noticed when it dies.
    cluster.proxy.stall();
    send_late(&mut client);
    cluster.alpha.wait_status("writes under way", |status| status["requests"] != 0);
    cluster.alpha.kill();
    client.receive().expect_err("an answer to what only alpha has");
    cluster.proxy.heal();
    beta_takes_over(&cluster);
    cluster.alpha.start();
    assert_nothing_late(&cluster);
}

#[test]
fn a_frozen_primary_that_was_replaced_gives_way_with_all_it_was_sent() {
    let cluster = cluster();
    let mut client = cluster.alpha.connect().expect("a client");
    cluster.alpha.pause();
    // Its socket takes this much; alpha finds it there when it wakes up.
    assert!(client.try_send(Command::Write, 0, WRITE_BYTES as u32, &[LATE; WRITE_BYTES as usize]));
    beta_takes_over(&cluster);
    cluster.alpha.resume();
    // Not frozen but dead, the operator said: what alpha does alone from here on is a history of its own.
    cluster.alpha.wait_replication("SplitBrain");
    cluster.alpha.lockstep(&["demote", RESOURCE, "--force"]).ok();
    cluster.alpha.lockstep(&["resolve", RESOURCE, "--discard", "alpha"]).ok();
    assert_nothing_late(&cluster);
}

/// So small that many whole ones wait in the socket, behind those that the server has taken.
const FLOOD_BYTES: u64 = 4096;

/// Sends until the server takes no more for good; then takes the answers that are left. Gives the offsets of the writes
/// that were sent, and of those that were answered.
fn flood(mut client: Connection) -> [HashSet<u64>; 2] {
    let payload = [LATE; FLOOD_BYTES as usize];
    let mut sent = HashMap::new();
    for nth in 0.. {
        let offset = nth % (SIZE_BYTES / FLOOD_BYTES) * FLOOD_BYTES;
        match client.send(Command::Write, false, offset, FLOOD_BYTES as u32, &payload) {
            Ok(cookie) => sent.insert(cookie, offset),
            Err(_) => break,
        };
    }
    let answers = std::iter::from_fn(|| client.receive().ok());
    let answered = answers.map(|answer| {
        assert_eq!(answer.error, None, "closed, not failed");
        sent[&answer.cookie]
    });
    let answered = answered.collect();
    [sent.into_values().collect(), answered]
}

#[test]
fn what_a_forced_demotion_leaves_unanswered_takes_no_effect_later() {
    let cluster = cluster();
    // Slow enough that there is always something under way.
    cluster.proxy.slow_down(16 * MIB);
    let client = cluster.alpha.connect().expect("a client");
    std::thread::scope(|scope| {
        let flooding = scope.spawn(|| flood(client));
        cluster.alpha.wait_status("many writes under way", |status| {
            status["requests"].as_u64().is_some_and(|requests| requests >= 8)
        });
        cluster.alpha.lockstep(&["demote", RESOURCE, "--force"]).ok();
        cluster.beta.promote().ok();
        let mut successor = cluster.beta.connect().expect("a client of beta");
        let at_once = successor.read(0, 32 << 20).expect("a read");
        let [sent, answered] = flooding.join().expect("the flood");
        println!("{} places written to, {} answered", sent.len(), answered.len());
        assert!(answered.len() < sent.len(), "nothing was left unanswered");
        cluster.wait_quiet();
        assert!(at_once == successor.read(0, 32 << 20).expect("a read"), "something changed afterwards");
        for offset in answered.iter().filter(|offset| **offset < 32 << 20) {
            let start = *offset as usize;
            let whole = at_once[start..start + FLOOD_BYTES as usize].iter().all(|byte| *byte == LATE);
            assert!(whole, "the answered write at {offset} is missing");
        }
    });
    cluster.assert_replicas_equal();
}
