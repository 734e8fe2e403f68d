//! Clients that behave: each reads and writes in a region of its own and knows what must be there.

use crate::subject::Subject;
use lockstep_e2e::{Connection, RESOURCE, Rng, wait_for};
use lockstep_nbd::Command;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

const REGION_BYTES: u64 = 256 << 10;
/// All of them together use less than so much, from the begin of the volume.
pub(crate) const BUSY_BYTES: u64 = 64 * REGION_BYTES;
const REQUEST_BYTES_MAX: u64 = 64 << 10;
const LIMIT: Duration = Duration::from_secs(120);

/// What one client knows of its region.
pub(crate) struct Model {
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
}

/// Clients at work.
pub(crate) struct Busy {
    stop: Arc<AtomicBool>,
    rounds: Vec<Arc<AtomicU64>>,
    threads: Vec<JoinHandle<Model>>,
}

impl Busy {
    pub(crate) fn start(subject: &Subject, clients: u64, seed: u64) -> Busy {
        let stop = Arc::new(AtomicBool::new(false));
        let mut busy = Busy { stop: Arc::clone(&stop), rounds: Vec::new(), threads: Vec::new() };
        assert!(clients * REGION_BYTES <= BUSY_BYTES);
        for client in 0..clients {
            let (socket, stop, done) = (subject.socket(), Arc::clone(&stop), Arc::new(AtomicU64::new(0)));
            busy.rounds.push(Arc::clone(&done));
            let rng = Rng::new(seed ^ client << 32);
            busy.threads.push(std::thread::spawn(move || work(&socket, client, rng, &stop, &done)));
        }
        busy.wait_progress(1);
        busy
    }

    /// Until each has made so many more rounds.
    #[track_caller]
    pub(crate) fn wait_progress(&self, rounds: u64) {
        let before: Vec<u64> = self.rounds.iter().map(|done| done.load(SeqCst)).collect();
        wait_for("progress of each client", LIMIT, || {
            assert!(!self.threads.iter().any(JoinHandle::is_finished), "a client gave up");
            let slowest =
                self.rounds.iter().zip(&before).map(|(done, before)| done.load(SeqCst) - before).min();
            if slowest >= Some(rounds) { Ok(()) } else { Err(format!("{slowest:?} rounds of {rounds}")) }
        });
    }

    /// Ends their work.
    pub(crate) fn stop(self) -> Vec<Model> {
        self.stop.store(true, SeqCst);
        self.threads
            .into_iter()
            .map(|thread| thread.join().expect("a client that found what it wrote"))
            .collect()
    }
}

fn work(socket: &Path, client: u64, mut rng: Rng, stop: &AtomicBool, done: &AtomicU64) -> Model {
    let mut connection = Connection::open(socket, RESOURCE).expect("connect");
    let mut model = Model { offset: client * REGION_BYTES, bytes: vec![0; REGION_BYTES as usize] };
    while !stop.load(SeqCst) {
        round(&mut connection, &mut model, &mut rng);
        done.fetch_add(1, SeqCst);
    }
    connection.flush().expect("flush");
    connection.close().expect("say goodbye");
    model
}

/// One change, and a look at another place.
fn round(connection: &mut Connection, model: &mut Model, rng: &mut Rng) {
    let (at, length) = place(rng);
    let changed = &mut model.bytes[at as usize..][..length as usize];
    if rng.below(8) == 0 {
        changed.fill(0);
        connection.send(Command::WriteZeroes, false, model.offset + at, length, &[]).expect("send");
        assert_eq!(connection.receive().expect("an answer").error, None);
    } else {
        changed.fill_with(|| rng.draw() as u8);
        connection.write(model.offset + at, changed).expect("write");
    }
    let (at, length) = place(rng);
    let read = connection.read(model.offset + at, length).expect("read");
    assert!(
        read == model.bytes[at as usize..][..length as usize],
        "{length} bytes at {at} are not what was written"
    );
}

fn place(rng: &mut Rng) -> (u64, u32) {
    let length = 1 + rng.below(REQUEST_BYTES_MAX);
    (rng.below(REGION_BYTES - length), length as u32)
}
