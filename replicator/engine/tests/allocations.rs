//! The engine takes no memory per request: two of them serve thousands of requests without an allocation.
//!
//! Everything in this program is counted but the test's own thread, which plays the clients. After a warm-up, in which
//! tables and lists get the room that they keep, the count must be zero: not few.

mod common;

use common::{Client, Pair, promote, wait_protected};
use lockstep_counting::{exempt_this_thread, first_of_others, others, watch_others};
use lockstep_nbd::Command as Nbd;

const WARM_UP: u64 = 3000;
const COUNTED: u64 = 10_000;
/// Requests that one client has on the way.
const DEPTH: u64 = 12;

/// A round of requests of all kinds and sizes on each client, and all of their answers.
fn round(clients: &mut [Client], payload: &[u8], n: u64) {
    for client in clients.iter_mut() {
        for k in 0..DEPTH {
            let mixed = (n * DEPTH + k).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
            let (offset, length) = (mixed % (12 << 20), 1 + (mixed >> 24) as u32 % (1 << (9 + mixed % 11)));
            match mixed % 9 {
                0..=4 => _ = client.begin(Nbd::Write, k == 0, offset, length, &payload[..length as usize]),
                5 => _ = client.begin(Nbd::WriteZeroes, false, offset, length, &[]),
                6 => _ = client.begin(Nbd::Trim, false, offset, length, &[]),
                7 => _ = client.begin(Nbd::Flush, false, 0, 0, &[]),
                _ => _ = client.begin(Nbd::Cache, false, offset, length, &[]),
            }
        }
    }
    for client in clients {
        (0..DEPTH).for_each(|_| assert_eq!(client.answer().1, None));
        client.read(n % 4000 * 1024, 1 + (n % 200_000) as u32);
    }
}

fn serve(base: &str) {
    let pair = Pair::new(base);
    let (alpha, beta) = (pair.start(0), pair.start(1));
    promote(&alpha);
    wait_protected(&alpha);
    let mut clients = [pair.connect(0), pair.connect(0)];
    let payload = vec![0x5a; 1 << 20];
    let each = DEPTH * clients.len() as u64;
    (0..WARM_UP / each).for_each(|n| round(&mut clients, &payload, n));
    watch_others();
    (0..COUNTED / each).for_each(|n| round(&mut clients, &payload, n));
    let count = others();
    assert_eq!(count, 0, "{base}: in {COUNTED} requests; first\n{}", first_of_others().unwrap_or_default());
    beta.stop();
    alpha.stop();
}

/// Disks in memory are served in the thread of the engine, those on a file system through the ring.
#[test]
fn no_request_takes_memory_in_the_engine() {
    exempt_this_thread();
    serve("/dev/shm");
    serve(env!("CARGO_TARGET_TMPDIR"));
}
