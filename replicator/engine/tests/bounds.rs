//! Whatever is bounded makes one client wait, and nobody else; what does not fit is refused before it is taken.

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use common::{Client, Pair, promote, report, wait_for};
use lockstep_engine::{Engine, EngineConfig, Limits, MemoryBudget, StartError};
use lockstep_nbd::Command as Nbd;

#[test]
fn options_sent_at_once_are_answered_one_by_one() {
    const LIST: u32 = 3;
    const COUNT: usize = 60;
    let pair = Pair::new("/dev/shm");
    let _alpha = pair.start(0);
    let mut stream = UnixStream::connect(pair.socket(0)).unwrap();
    stream.set_read_timeout(Some(common::LIMIT)).unwrap();
    let mut sent = 3_u32.to_be_bytes().to_vec();
    for _ in 0..COUNT {
        sent.extend_from_slice(b"IHAVEOPT");
        sent.extend_from_slice(&LIST.to_be_bytes());
        sent.extend_from_slice(&0_u32.to_be_bytes());
    }
    stream.write_all(&sent).unwrap();
    // Greeting; then per option one name ("r0", with its length) and the acknowledgement.
    let mut answers = vec![0; 18 + COUNT * (20 + 6 + 20)];
    stream.read_exact(&mut answers).unwrap();
    assert_eq!(answers.windows(2).filter(|two| two == b"r0").count(), COUNT);
}

#[test]
fn clients_share_the_places_for_requests() {
    let pair = Pair::new("/dev/shm");
    let mut config = pair.config(0);
    config.limits.requests_max = 4;
    let alpha = Engine::start(config).unwrap();
    promote(&alpha);
    let mut clients: Vec<Client> = (0..6).map(|_| pair.connect(0)).collect();
    let lengths = [4096, 65_536, 512];
    for client in &mut clients {
        for length in lengths.iter().cycle().take(60) {
            client.begin(Nbd::Read, false, 0, *length, &[]);
        }
    }
    // The last one first: nobody's answers depend on another's being read.
    for client in clients.iter_mut().rev() {
        for length in lengths.iter().cycle().take(60) {
            assert_eq!(client.take_data(*length).len(), *length as usize);
        }
    }
    wait_for("slots free again", || report(&alpha).memory.slots_in_use == 0);
}

#[test]
fn a_client_that_leaves_its_place_lets_the_next_one_have_it() {
    let pair = Pair::new("/dev/shm");
    let mut config = pair.config(0);
    config.limits.requests_max = 1;
    let alpha = Engine::start(config).unwrap();
    promote(&alpha);
    // A write whose bytes do not come holds the only place.
    let mut slow = pair.connect(0);
    slow.begin(Nbd::Write, false, 0, 4096, &[]);
    wait_for("it holds a slot", || report(&alpha).memory.slots_in_use == 1);
    let mut gone = pair.connect(0);
    gone.begin(Nbd::Flush, false, 0, 0, &[]);
    let mut waiting = pair.connect(0);
    waiting.begin(Nbd::Flush, false, 0, 0, &[]);
    drop(gone);
    assert!(!waiting.has_answer_within(Duration::from_millis(200)));
    slow.send(&[1; 4096]);
    assert_eq!(slow.answer().1, None);
    assert_eq!(waiting.answer().1, None);
}

fn budget(config: &EngineConfig) -> MemoryBudget {
    MemoryBudget::new(&config.limits, config.resources.iter().map(|resource| resource.buffer_bytes))
}

#[test]
fn what_does_not_fit_the_memory_is_refused_before_it_is_taken() {
    let pair = Pair::new("/dev/shm");
    let mut config = pair.config(0);
    let fixed_bytes = budget(&config).total_bytes();
    config.memory_max_bytes = fixed_bytes - 1;
    match Engine::start(config.clone()) {
        Err(StartError::Config(why)) => {
            assert!(why.contains("memory-max") && why.contains("buffer-memory"), "{why}")
        }
        other => panic!("{:?}", other.map(|_| ())),
    }
    // All but the bitmaps fits: the resource runs without its disk, and says why.
    config.memory_max_bytes = fixed_bytes;
    let alpha = Engine::start(config).unwrap();
    let error = report(&alpha).error.unwrap_or_default();
    assert!(error.contains("its bitmaps need 1 MiB") && error.contains("memory-max"), "{error}");
    // Nor is it attached later.
    let (sender, receiver) = std::sync::mpsc::channel();
    alpha.up("r0", Box::new(move |result| sender.send(result).unwrap())).unwrap();
    let refused = receiver.recv_timeout(common::LIMIT).unwrap().unwrap_err();
    assert!(refused.contains("its bitmaps need 1 MiB"), "{refused}");
}

#[test]
fn the_budget_names_its_parts() {
    let pair = Pair::new("/dev/shm");
    let mut config = pair.config(0);
    let one = budget(&config);
    assert!(one.buffers_bytes <= Limits::BUFFER_BYTES_MIN + (1 << 20), "{one}");
    assert!(one.buffers_bytes * 10 > Limits::BUFFER_BYTES_MIN * 9, "{one}");
    config.limits.clients_max *= 2;
    let more = budget(&config);
    assert!(more.clients_bytes > one.clients_bytes && more.tables_bytes == one.tables_bytes);
    config.resources.push(config.resources[0].clone());
    let two = budget(&config);
    assert_eq!((two.buffers_bytes, two.tables_bytes), (2 * one.buffers_bytes, 2 * one.tables_bytes));
    let text = one.to_string();
    assert!(text.starts_with("memory: ") && text.contains("at most (buffers "), "{text}");
    println!("{text}");
}
