//! Ten thousand sessions of NBD clients, most of them changed, against the handshake and the parser of requests.
//!
//! `LOCKSTEP_FUZZ_ROUNDS` says how many, `LOCKSTEP_FUZZ_SEED` which. A failure names the file where its choices lie,
//! for `LOCKSTEP_FUZZ_INPUT=FILE cargo test --profile checked -p lockstep-fuzz --test corpora nbd_session`.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Instant;

use lockstep_fuzz::mutate::Mutator;
use lockstep_fuzz::nbd_session;

const ROUNDS: u64 = 10_000;
const SEED: u64 = 2;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

#[test]
fn ten_thousand_changed_sessions_keep_every_promise() {
    let (rounds, seed) = (setting("LOCKSTEP_FUZZ_ROUNDS", ROUNDS), setting("LOCKSTEP_FUZZ_SEED", SEED));
    let (mut choices, start) = (Mutator::new(seed, Vec::new()), Instant::now());
    for round in 0..rounds {
        let input = choices.noise(1500);
        if let Err(failure) = catch_unwind(AssertUnwindSafe(|| nbd_session(&input))) {
            let file = std::env::temp_dir().join(format!("lockstep-session-{}", std::process::id()));
            std::fs::write(&file, &input).unwrap();
            eprintln!("round {round} of seed {seed} failed; its choices are in {}", file.display());
            resume_unwind(failure);
        }
    }
    println!("{rounds} sessions of seed {seed}, {:.1?}", start.elapsed());
}
