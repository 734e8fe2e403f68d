//! Power cuts under a real kernel: a part of the test in the guest (`tests/vm/guest.sh`), as root.
//!
//! Data is a block device of dm-log-writes; metadata is on ext4, on another one. Cut and judged is as `src/power.rs`
//! says, for a cut of both machines: dm-log-writes logs a write when the flush that covers it begins, so that all that
//! no flush covers is lost. The daemons are stopped while the logs are marked.

mod mapped;

use lockstep_e2e::{Plan, Recording, Rng, power_plan, rounds, seed};
use mapped::Mapped;

const SIZE_BYTES: u64 = 32 << 20;

fn main() {
    let number = seed("power in the guest");
    // Everything is slow there, and only what is promised is judged.
    let plan = Plan { buffer_mib: 64, timeout_ms: 6000, own_metadata: true, ..power_plan(SIZE_BYTES) };
    let mut recording = Recording::new(&plan, |cluster| Mapped::new(cluster, SIZE_BYTES), 1, number);
    let mut rng = Rng::new(!number);
    for turn in 0..rounds("POWER_CUTS", 2) {
        println!("cut {turn}");
        recording.cut_somewhere(&mut rng);
    }
    println!("all cuts judged");
}
