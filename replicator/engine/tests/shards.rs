//! Several shards in one engine: wherever a connection came in, it is served where its resource is, and what is
//! promised of an engine holds for all of its shards together.

mod common;

use std::collections::HashMap;
use std::io::Write;
use std::net::TcpStream;
use std::sync::Barrier;
use std::sync::mpsc::channel;
use std::time::Duration;

use common::raw::Raw;
use common::{
    Client, LIMIT, Pair, SIZE_BYTES, assert_equal, promote_one, report_of, wait_for, wait_protected_one,
};
use lockstep_bitmap::NodeId;
use lockstep_engine::hello::{Expected, Hello, Local};
use lockstep_engine::{Engine, EngineConfig, EngineHandle, MemoryBudget};

/// In turn: the second one is on the second shard.
const NAMES: [&str; 3] = ["r0", "r1", "r2"];

fn pair() -> Pair {
    Pair::with("/dev/shm", &NAMES)
}

fn start(pair: &Pair, node: usize, change: impl FnOnce(&mut EngineConfig)) -> EngineHandle {
    let mut config = pair.config(node);
    config.limits.shards = 2;
    change(&mut config);
    Engine::start(config).unwrap()
}

fn connect(pair: &Pair, export: &str) -> Client {
    Client::connect(&pair.socket(0), export, true).unwrap()
}

#[test]
fn every_export_is_served_from_one_listener_and_mirrored() {
    let pair = pair();
    let (alpha, beta) = (start(&pair, 0, |_| {}), start(&pair, 1, |_| {}));
    let mut clients = HashMap::new();
    for name in NAMES {
        promote_one(&alpha, name);
        wait_protected_one(&alpha, name);
        clients.insert(name, connect(&pair, name));
    }
    for (byte, name) in (1..).zip(NAMES) {
        clients.get_mut(name).unwrap().write(4096, &[byte; 8192]);
    }
    for (byte, name) in (1..).zip(NAMES) {
        assert_eq!(clients.get_mut(name).unwrap().read(4096, 8192), [byte; 8192], "{name}");
        let report = report_of(&alpha, name);
        assert_eq!(report.name, name);
        let exports: Vec<&str> = report.clients.iter().map(|client| client.export.as_str()).collect();
        assert_eq!(exports, [name]);
    }
    clients.into_values().for_each(Client::disconnect);
    alpha.stop();
    beta.stop();
    for name in NAMES {
        assert_equal(&pair.disk_of(0, name), &pair.disk_of(1, name));
    }
}

#[test]
fn a_peer_that_comes_back_finds_its_resources_again() {
    let pair = pair();
    let beta = start(&pair, 1, |_| {});
    for _ in 0..2 {
        // Alpha dials, beta is where links are handed on.
        let alpha = start(&pair, 0, |_| {});
        NAMES.iter().for_each(|name| wait_protected_one(&alpha, name));
        let last = |name: &&str| report_of(&beta, name).status.unwrap().peers[0].role.is_some();
        assert!(NAMES.iter().all(last));
        alpha.stop();
    }
}

#[test]
fn a_client_may_ask_about_exports_of_all_shards_at_once() {
    const ACK: u32 = 1;
    const ERR_UNKNOWN: u32 = 0x8000_0006;
    let pair = pair();
    let alpha = start(&pair, 0, |_| {});
    NAMES.iter().for_each(|name| promote_one(&alpha, name));
    let mut client = Raw::connect(&pair);
    let asked = ["r1", "r0", "r2", "nothing", "r1", "r1", "r0"];
    client.0.write_all(&asked.map(Raw::info).concat()).unwrap();
    for name in asked {
        assert_eq!(client.last_reply(), if name == "nothing" { ERR_UNKNOWN } else { ACK }, "{name}");
    }
    // What it sends later arrives where it is by then.
    for name in NAMES {
        assert_eq!(client.ask_info(name), ACK);
    }
}

#[test]
fn who_waits_for_a_promotion_waits_on_any_shard_and_is_counted_once() {
    let pair = pair();
    let alpha = start(&pair, 0, |config| {
        config.hold_greeting = Duration::from_secs(3600);
        config.limits.held_max = 2;
    });
    let (sender, results) = channel();
    for name in ["r0", "r1", "r1", "r0"] {
        let (sender, socket) = (sender.clone(), pair.socket(0));
        std::thread::spawn(move || {
            let client = Client::connect(&socket, name, true).map(|client| client.size_bytes);
            sender.send(client).unwrap();
        });
    }
    for _ in 0..2 {
        let error = results.recv_timeout(LIMIT).unwrap().expect_err("two too many");
        assert!(error.contains("promote it: lockstep promote"), "{error}");
    }
    results.try_recv().expect_err("the others wait");
    NAMES.iter().for_each(|name| promote_one(&alpha, name));
    for _ in 0..2 {
        assert_eq!(results.recv_timeout(LIMIT).unwrap(), Ok(SIZE_BYTES));
    }
}

#[test]
fn the_number_of_clients_is_that_of_all_shards() {
    let pair = pair();
    let alpha = start(&pair, 0, |config| config.limits.clients_max = 2);
    NAMES.iter().for_each(|name| promote_one(&alpha, name));
    let (first, _second) = (connect(&pair, "r0"), connect(&pair, "r1"));
    for name in NAMES {
        let mut third = connect(&pair, name);
        assert!(third.is_closed(), "{name}");
    }
    first.disconnect();
    wait_for("its place is free", || report_of(&alpha, "r0").clients.is_empty());
    connect(&pair, "r1").write(0, &[1; 512]);
}

#[test]
fn unfinished_handshakes_do_not_keep_others_out_of_another_shard() {
    let pair = pair();
    let alpha = start(&pair, 0, |config| {
        config.limits.handshakes_max = 4;
        config.limits.handshake_timeout = 2 * LIMIT;
    });
    promote_one(&alpha, "r1");
    let mut idle: Vec<Raw> = (0..8).map(|_| Raw::connect(&pair)).collect();
    for client in &mut idle {
        // The oldest of those that still say nothing may be closed by then.
        let _ = client.0.write_all(&Raw::info("r1"));
    }
    connect(&pair, "r1").write(0, &[1; 512]);
}

#[test]
fn clients_that_come_at_once_for_another_shard_are_served_one_after_the_other() {
    const CROWD: usize = 64;
    const ACK: u32 = 1;
    let pair = pair();
    let alpha = start(&pair, 0, |config| config.limits.handshakes_max = 4);
    promote_one(&alpha, "r1");
    let all_here = Barrier::new(CROWD);
    std::thread::scope(|scope| {
        for _ in 0..CROWD {
            scope.spawn(|| {
                all_here.wait();
                let mut client = Raw::connect(&pair);
                // After the first answer its handshake goes on where the export is.
                for _ in 0..2 {
                    client.0.write_all(&Raw::info("r1")).unwrap();
                    assert_eq!(client.last_reply(), ACK);
                }
            });
        }
    });
}

/// The first message of a dialler, who need not know the secret for it.
fn hello_of_a_stranger(resource: &str) -> Vec<u8> {
    let local = Local {
        cluster: "c1".into(),
        secret: [0; 32],
        node: NodeId(0),
        node_name: "alpha".into(),
        run_id: 1,
        boot_id: 1,
    };
    let expected = Expected { resource: resource.into(), peer: NodeId(1), peer_name: "beta".into() };
    let mut bytes = Vec::new();
    Hello::dial(local, expected, [3; 32], &mut bytes);
    bytes
}

#[test]
fn strangers_do_not_keep_the_peer_out_of_another_shard() {
    let pair = pair();
    let port = pair.config(1).listen;
    let beta = start(&pair, 1, |config| {
        config.limits.hellos_max = 4;
        config.limits.hello_timeout = 2 * LIMIT;
    });
    let hello = hello_of_a_stranger("r1");
    let strangers: Vec<TcpStream> = (0..12)
        .map(|nth| {
            let mut stranger = TcpStream::connect(port).unwrap();
            // In one piece, in two, and without an end.
            let cut = [hello.len(), 50, 2][nth % 3];
            let _ = stranger.write_all(&hello[..cut]);
            if nth % 3 == 1 {
                let _ = stranger.write_all(&hello[cut..]);
            }
            stranger
        })
        .collect();
    let alpha = start(&pair, 0, |_| {});
    NAMES.iter().for_each(|name| wait_protected_one(&alpha, name));
    drop(strangers);
    drop(beta);
}

#[test]
fn a_resource_of_another_shard_goes_down_and_comes_back() {
    let pair = pair();
    let (alpha, beta) = (start(&pair, 0, |_| {}), start(&pair, 1, |_| {}));
    NAMES.iter().for_each(|name| wait_protected_one(&alpha, name));
    let (sender, done) = channel();
    let reply = sender.clone();
    beta.down(
        "r1",
        false,
        Box::new(move |result| reply.send(result.map_err(|why| why.to_string())).unwrap()),
    )
    .unwrap();
    done.recv_timeout(LIMIT).unwrap().unwrap();
    assert!(report_of(&beta, "r1").status.is_none());
    wait_for("alpha is told why", || {
        report_of(&alpha, "r1").link_error.is_some_and(|why| why.contains("resource r1 is down on beta"))
    });
    ["r0", "r2"].iter().for_each(|name| wait_protected_one(&alpha, name));
    beta.up("r1", Box::new(move |result| sender.send(result).unwrap())).unwrap();
    done.recv_timeout(LIMIT).unwrap().unwrap();
    wait_protected_one(&alpha, "r1");
}

#[test]
fn the_memory_is_that_of_all_shards() {
    let pair = pair();
    let mut config = pair.config(0);
    config.limits.shards = 2;
    let buffers = config.resources.iter().map(|resource| resource.buffer_bytes);
    let fixed_bytes = MemoryBudget::new(&config.limits, buffers).total_bytes();
    let alone = pair.config(0);
    let bitmaps_bytes = {
        let engine = Engine::start(alone).unwrap();
        report_of(&engine, "r0").memory.bitmaps_bytes
    };
    // Room for the bitmaps of two of three.
    config.memory_max_bytes = fixed_bytes + 2 * bitmaps_bytes;
    let alpha = Engine::start(config).unwrap();
    let refused: Vec<String> = NAMES.iter().filter_map(|name| report_of(&alpha, name).error).collect();
    assert!(refused.len() == 1 && refused[0].contains("its bitmaps need"), "{refused:?}");
}

#[test]
fn more_shards_than_resources_are_as_many_as_there_are() {
    let pair = Pair::new("/dev/shm");
    let alpha = start(&pair, 0, |config| config.limits.shards = 64);
    assert_eq!(alpha.config().limits.shards, 1);
    promote_one(&alpha, "r0");
    connect(&pair, "r0").write(0, &[1; 512]);
}
