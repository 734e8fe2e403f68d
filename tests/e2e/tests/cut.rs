//! The wire between the nodes is spoilt in every way under load: writes go on, only what was missed is
//! copied, and the copies are equal again. The wire is cut during the resync too.

use lockstep_e2e::{Cluster, Direction, Ledger, Load, Plan, Rng, rounds, seed};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const SIZE_BYTES: u64 = 1024 * MIB;
const WRITES_PER_S: f64 = 2000.0;
const RESYNC_BYTES_PER_S: u64 = 8 * MIB;
/// Written before the fault and perhaps not durable on the peer: one epoch and its flush.
const UNDURABLE: Duration = Duration::from_millis(1500);

#[derive(Clone, Copy, Debug)]
enum Fault {
    Cut,
    Stall,
    SwallowToBeta,
    SwallowToAlpha,
    TruncateToBeta,
    TruncateToAlpha,
    HalfOpen,
    FrozenPeer,
}

const FAULTS: [Fault; 8] = [
    Fault::Cut,
    Fault::Stall,
    Fault::SwallowToBeta,
    Fault::TruncateToBeta,
    Fault::HalfOpen,
    Fault::SwallowToAlpha,
    Fault::TruncateToAlpha,
    Fault::FrozenPeer,
];

fn strike(cluster: &Cluster, fault: Fault, rng: &mut Rng) {
    let proxy = &cluster.proxy;
    match fault {
        Fault::Cut => proxy.cut(),
        Fault::Stall => proxy.stall(),
        Fault::SwallowToBeta => proxy.swallow(Direction::ToBeta),
        Fault::SwallowToAlpha => proxy.swallow(Direction::ToAlpha),
        Fault::TruncateToBeta => proxy.truncate(Direction::ToBeta, rng.below(9000) as u32),
        Fault::TruncateToAlpha => proxy.truncate(Direction::ToAlpha, rng.below(90) as u32),
        Fault::HalfOpen => proxy.half_open(),
        Fault::FrozenPeer => cluster.beta.pause(),
    }
}

fn heal(cluster: &Cluster, fault: Fault) {
    match fault {
        Fault::FrozenPeer => cluster.beta.resume(),
        _ => cluster.proxy.heal(),
    }
}

/// On a wire so slow that the resync is still going on when it is cut.
fn cut_during_resync(cluster: &Cluster) {
    let interrupted = || cluster.alpha.log().matches("replication SyncSource -> Off").count();
    let before = interrupted();
    cluster.proxy.slow_down(RESYNC_BYTES_PER_S);
    cluster.alpha.wait_replication("SyncSource");
    cluster.proxy.reset();
    cluster.alpha.wait_status("the interruption", |_| interrupted() > before);
    cluster.proxy.slow_down(0);
}

/// One fault under load, and a second cut while the resync runs.
fn cut_once(cluster: &Cluster, load: &Load, fault: Fault, rng: &mut Rng) {
    let rate = load.wait_rate(WRITES_PER_S);
    let before = cluster.alpha.resynced_bytes();
    let struck = Instant::now();
    strike(cluster, fault, rng);
    cluster.alpha.wait_connection("Connecting");
    load.wait_acked(1000 + rng.below(3000));
    heal(cluster, fault);
    cut_during_resync(cluster);
    let healed = Instant::now();
    cluster.wait_synced();
    let resynced = cluster.alpha.resynced_bytes() - before;
    let missed = load.sent_bytes(struck - UNDURABLE, healed);
    println!("{fault:?}: {rate:.0} writes/s, {missed} bytes missed or not durable, {resynced} resynced");
    assert!(resynced > 0, "{fault:?}: nothing was resynced");
    assert!(resynced * 10 <= missed * 12, "{fault:?}: {resynced} bytes resynced for {missed} missed");
}

#[test]
fn every_kind_of_cut_under_load() {
    let cluster = Cluster::primary(&Plan { size_bytes: SIZE_BYTES, ..Plan::default() });
    let number = seed("cut");
    let mut rng = Rng::new(number);
    let mut ledger = Ledger::new(SIZE_BYTES, 4, number);
    for _ in 0..rounds("CUT", 1) {
        for fault in FAULTS {
            let load = ledger.start(cluster.alpha.nbd(), 8);
            cut_once(&cluster, &load, fault, &mut rng);
            assert_eq!(load.interruptions(), 0, "{fault:?}: clients noticed");
            ledger = load.stop();
            cluster.assert_replicas_equal();
        }
        ledger.assert_kept(cluster.beta.disk());
    }
}

#[test]
fn a_flapping_link_never_stops_the_writers() {
    let cluster = Cluster::primary(&Plan { size_bytes: SIZE_BYTES, ..Plan::default() });
    let number = seed("flap");
    let mut rng = Rng::new(number);
    let load = Ledger::new(SIZE_BYTES, 4, number).start(cluster.alpha.nbd(), 8);
    load.wait_rate(WRITES_PER_S);
    for _ in 0..10 * rounds("CUT", 1) {
        load.wait_acked(1 + rng.below(1500));
        cluster.proxy.reset();
    }
    cluster.wait_synced();
    assert_eq!(load.interruptions(), 0, "clients noticed");
    let mut ledger = load.stop();
    cluster.assert_replicas_equal();
    ledger.assert_kept(cluster.beta.disk());
}
