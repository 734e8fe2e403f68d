//! Every body over the corpus that is kept, and over some thousand inputs made from it.
//!
//! `LOCKSTEP_FUZZ_ROUNDS` says how many for each target, `LOCKSTEP_FUZZ_SEED` which. A failure names the target, and
//! the file where its input lies; `LOCKSTEP_FUZZ_INPUT=FILE` runs that alone.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;

use lockstep_fuzz::mutate::Mutator;
use lockstep_fuzz::{TARGETS, Target};

const ROUNDS: u64 = 3000;
const SEED: u64 = 1;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

/// What is kept for a target, in the order of the names.
fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

/// Runs one input; if it fails, the input is left in a file first.
fn run(target: &Target, input: &[u8], what: &str) {
    if let Err(failure) = catch_unwind(AssertUnwindSafe(|| (target.run)(input))) {
        let file = std::env::temp_dir().join(format!("lockstep-fuzz-{}-{}", target.name, std::process::id()));
        std::fs::write(&file, input).unwrap();
        eprintln!("{} failed on {what}; the input is in {}", target.name, file.display());
        resume_unwind(failure);
    }
}

fn fuzz(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of this name");
    if let Some(file) = std::env::var_os("LOCKSTEP_FUZZ_INPUT") {
        return (target.run)(&std::fs::read(&file).unwrap());
    }
    let (rounds, seed) = (setting("LOCKSTEP_FUZZ_ROUNDS", ROUNDS), setting("LOCKSTEP_FUZZ_SEED", SEED));
    let kept = corpus(target);
    assert!(!kept.is_empty(), "{name} has no corpus");
    let start = Instant::now();
    kept.iter().enumerate().for_each(|(index, input)| run(target, input, &format!("kept input {index}")));
    let count = kept.len();
    let mut inputs = Mutator::new(seed, kept);
    for round in 0..rounds {
        run(target, &inputs.input(), &format!("round {round} of seed {seed}"));
    }
    println!("{name}: {count} kept inputs, {rounds} rounds of seed {seed}, {:.1?}", start.elapsed());
}

macro_rules! tests {
    ($($name:ident),+ $(,)?) => {
        $(#[test] fn $name() { fuzz(stringify!($name)); })+

        #[test]
        fn no_target_is_left_out() {
            let tested = [$(stringify!($name)),+];
            assert_eq!(TARGETS.iter().map(|target| target.name).collect::<Vec<_>>(), tested);
        }
    };
}

tests!(
    nbd_negotiation,
    nbd_transmission,
    nbd_session,
    nbd_client,
    peer_frames,
    peer_snapshots,
    peer_hello,
    peer_node,
    config,
    control,
    metadata,
    dirty_bitmap,
    activity_map,
    overlap_lock,
    generation_log,
);
