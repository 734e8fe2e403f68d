//! Several connections to one export: neighbours in one block, and what each sees of the others.
//! `docs/CONFORMANCE.md` says which rule of the NBD specification each test holds.

use lockstep_e2e::bytes::number::{cmd, flag, with};
use lockstep_e2e::bytes::{Raw, Request, Style};
use lockstep_e2e::{Cluster, Plain, Plan, Rng, Target, rounds, seed};
use std::thread;

const SIZE_BYTES: u64 = 8 << 20;
const BLOCK_BYTES: u64 = 4096;
/// Rounds of each neighbour.
const ROUNDS: u64 = 400;
/// What a neighbour has under way at a time.
const DEPTH: u64 = 4;

/// Owns every second run of `run` bytes of one block, writes there and nowhere else, and remembers.
struct Neighbour {
    raw: Raw,
    rng: Rng,
    run: u64,
    first: u64,
    own: Vec<u8>,
}

impl Neighbour {
    fn new(target: &Target, index: u64, run: u64, seed: u64) -> Neighbour {
        let raw = Raw::serve(target.clone(), Style::Simple);
        Neighbour { raw, rng: Rng::new(seed ^ index), run, first: index, own: vec![0; BLOCK_BYTES as usize] }
    }

    /// A part of one of the own runs.
    fn draw(&mut self) -> (u64, u64) {
        let runs = BLOCK_BYTES / self.run / 2;
        let start = (self.rng.below(runs) * 2 + self.first) * self.run;
        let skip = self.rng.below(self.run);
        (start + skip, 1 + self.rng.below(self.run - skip))
    }

    /// Some requests that do not overlap each other, all under way at once.
    fn write_some(&mut self) {
        let mut ranges: Vec<(u64, u64)> = (0..DEPTH).map(|_| self.draw()).collect();
        ranges.sort_unstable();
        ranges.dedup_by(|next, kept| kept.0 + kept.1 > next.0);
        for &(offset, length) in &ranges {
            let byte = 1 + self.rng.below(255) as u8;
            let own = &mut self.own[offset as usize..(offset + length) as usize];
            if self.rng.below(4) == 0 {
                own.fill(0);
                self.raw.request(Request::new(cmd::WRITE_ZEROES, offset, length));
            } else {
                own.fill(byte);
                self.raw.write(0, offset, &vec![byte; length as usize]);
            }
        }
        ranges.iter().for_each(|_| assert_eq!(self.raw.reply(0).error, 0));
    }

    fn assert_kept(&mut self) {
        let there = self.raw.get(0, BLOCK_BYTES);
        let is_own = |at: usize| at as u64 / self.run % 2 == self.first;
        let lost = (0..there.len()).find(|&at| is_own(at) && there[at] != self.own[at]);
        assert_eq!(lost, None, "a byte of neighbour {} was overwritten by the other one", self.first);
    }
}

fn neighbours_in_one_block(target: &Target, rounds: u64, seed: u64) {
    for run in [1, 512, 2048] {
        thread::scope(|scope| {
            for index in 0..2 {
                scope.spawn(move || {
                    let mut neighbour = Neighbour::new(target, index, run, seed);
                    let end = BLOCK_BYTES as usize;
                    neighbour.own.copy_from_slice(&neighbour.raw.get(0, BLOCK_BYTES)[..end]);
                    for _ in 0..rounds {
                        neighbour.write_some();
                        neighbour.assert_kept();
                    }
                });
            }
        });
    }
}

#[test]
fn neighbours_in_one_block_lose_nothing() {
    let served = Plain::start(SIZE_BYTES, &[]);
    let rounds = rounds("NEIGHBOURS", ROUNDS);
    neighbours_in_one_block(&served.socket().into(), rounds, seed("neighbours"));
}

#[test]
fn neighbours_in_one_mirrored_block_lose_nothing_and_the_copies_are_equal() {
    let cluster = Cluster::primary(&Plan { size_bytes: SIZE_BYTES, ..Plan::default() });
    let rounds = rounds("NEIGHBOURS", ROUNDS) / 4;
    neighbours_in_one_block(&Target::from(cluster.alpha.nbd()), rounds, seed("mirrored neighbours"));
    cluster.assert_replicas_equal();
}

/// The flag that says so must not be a lie.
#[test]
fn what_one_connection_was_told_the_others_see() {
    let served = Plain::start(SIZE_BYTES, &[]);
    let mut readers: Vec<Raw> = (0..3).map(|_| Raw::serve(served.socket(), Style::Structured)).collect();
    let mut writer = Raw::haggle(served.socket());
    assert_ne!(writer.go(b"").flags & flag::CAN_MULTI_CONN, 0);
    for round in 1..100_u8 {
        let (offset, flags) = (u64::from(round) * 10_000, if round % 2 == 0 { with::FUA } else { 0 });
        assert_eq!(writer.put(flags, offset, &[round; 5000]), 0);
        for reader in &mut readers {
            assert_eq!(reader.get(offset, 5000), [round; 5000]);
            reader.assert_in_step();
        }
    }
}

/// While the server waits for the payload of one client's write, another one's requests are answered.
#[test]
fn a_payload_that_does_not_come_holds_nobody_else_up() {
    let served = Plain::start(SIZE_BYTES, &[]);
    let mut slow = Raw::serve(served.socket(), Style::Simple);
    let cookie = slow.next_cookie();
    slow.send(&Request::new(cmd::WRITE, 0, 8192).header(Style::Simple, cookie));
    slow.send(&[7; 4096]);
    let mut other = Raw::serve(served.socket(), Style::Simple);
    assert_eq!(other.put(0, 65_536, &[1; 8192]), 0);
    assert_eq!(other.get(65_536, 8192), [1; 8192]);
    other.assert_in_step();
    slow.send(&[7; 4096]);
    let reply = slow.reply(0);
    assert_eq!((reply.cookie, reply.error), (cookie, 0));
    assert_eq!(other.get(0, 8192), [7; 8192]);
}
