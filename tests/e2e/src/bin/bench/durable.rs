//! Writes with FUA at depth 1, by a client of our own: fio's engine for NBD never sends the flag.

use crate::contender::{Contender, Way};
use crate::fio::{self, Sample, sample};
use lockstep_e2e::{Connection, Rng};
use lockstep_nbd::Command;
use std::time::{Duration, Instant};

const BLOCK_BYTES: u32 = 4096;

/// Random writes of 4 KiB, each on stable storage when it is answered.
pub(crate) fn writes(contender: &Contender, bytes: u64, runtime: Duration) -> Sample {
    match &contender.way {
        Way::Nbd(target) => {
            let connection = Connection::open(target.clone(), contender.export);
            over_nbd(connection.expect("open an export"), bytes, runtime)
        }
        Way::Files(_) => {
            let arguments = ["--rw=randwrite", "--bs=4k", "--iodepth=1", "--sync=dsync"];
            fio::run(&contender.jobs(), bytes, &arguments, Some(runtime))
        }
    }
}

fn over_nbd(mut connection: Connection, bytes: u64, runtime: Duration) -> Sample {
    let payload = vec![0x5a; BLOCK_BYTES as usize];
    let blocks = bytes / u64::from(BLOCK_BYTES);
    let mut rng = Rng::new(bytes);
    let mut latencies_us = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < runtime {
        let offset = rng.draw() % blocks * u64::from(BLOCK_BYTES);
        let sent = Instant::now();
        connection.send(Command::Write, true, offset, BLOCK_BYTES, &payload).expect("send a write");
        let answer = connection.receive().expect("an answer");
        assert!(answer.error.is_none(), "a write failed: {answer:?}");
        latencies_us.push(sent.elapsed().as_secs_f64() * 1e6);
    }
    let seconds = begin.elapsed().as_secs_f64();
    connection.close().expect("say goodbye");
    sample(latencies_us, seconds)
}
