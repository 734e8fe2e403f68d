//! What becomes of clients when the Primary's daemon is restarted or killed, and when the other node takes over: those
//! that come back on their own notice a pause and nothing else, those that do not get an error, and nothing that was
//! answered is lost either way. What each event costs is printed.
//!
//! The kernel's client is in `tests/vm`.

use lockstep_e2e::{Address, Cluster, Ledger, Plan, RESOURCE, Relay, qemu_uri, seed, tool, wait_until};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const SIZE_BYTES: u64 = 128 * MIB;

fn plan() -> Plan {
    Plan { size_bytes: SIZE_BYTES, max_hot_bytes: 32 * MIB, ..Plan::default() }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    /// SIGTERM, start, promote.
    Restart,
    /// kill -9, start, promote.
    KillAndRestart,
    /// Demoted here, promoted there.
    Move,
    /// kill -9 here, promoted there.
    Failover,
}

const EVENTS: [Event; 4] = [Event::Restart, Event::KillAndRestart, Event::Move, Event::Failover];

impl Event {
    /// Lets it happen to alpha, the Primary; ends with the answer to `promote`.
    fn happen(self, cluster: &mut Cluster, address: &Address) {
        let (alpha, beta) = (&mut cluster.alpha, &cluster.beta);
        match self {
            Event::Restart | Event::KillAndRestart => {
                if matches!(self, Event::Restart) {
                    alpha.stop();
                } else {
                    alpha.kill();
                }
                alpha.start();
                alpha.promote().ok();
            }
            Event::Move => {
                alpha.lockstep(&["demote", RESOURCE, "--force"]).ok();
                address.move_to(beta);
                beta.promote().ok();
            }
            Event::Failover => {
                alpha.kill();
                address.move_to(beta);
                beta.wait_connection("Connecting");
                beta.lockstep(&["promote", RESOURCE, "--peer-is-down"]).ok();
            }
        }
    }
}

/// Makes alpha the Primary again, under the client.
fn back_to_alpha(cluster: &mut Cluster, address: &Address) {
    if !cluster.alpha.is_running() {
        cluster.alpha.start();
    }
    cluster.wait_synced();
    if cluster.beta.status()["role"] == "Primary" {
        cluster.beta.lockstep(&["demote", RESOURCE, "--force"]).ok();
        address.move_to(&cluster.alpha);
        cluster.alpha.promote().ok();
    }
}

/// The ledger writes through a client of others, which no event may interrupt.
fn rides_over(name: &str, events: &[Event], start: impl FnOnce(&Address, &Cluster) -> Relay) {
    let mut cluster = Cluster::primary(&plan());
    let address = Address::new(&cluster.dir().join("address"), &cluster.alpha);
    let mut relay = start(&address, &cluster);
    let load = Ledger::new(SIZE_BYTES, 4, seed(name)).start(relay.socket(), 8);
    for event in events {
        load.wait_acked(300);
        let began = Instant::now();
        event.happen(&mut cluster, &address);
        let gap = began.elapsed();
        load.wait_acked(300);
        let stall = load.longest_silence(began, Instant::now());
        println!("{name}, {event:?}: Primary again after {gap:.2?}, nothing written for {stall:.2?}");
        back_to_alpha(&mut cluster, &address);
        assert_eq!(load.interruptions(), 0, "{name}, {event:?}: a request failed");
        assert!(relay.is_running(), "{name} ended");
    }
    load.wait_acked(100);
    let mut ledger = load.stop();
    cluster.assert_replicas_equal();
    ledger.assert_kept(cluster.beta.disk());
}

#[test]
fn qemu_with_a_reconnect_delay_notices_a_pause() {
    rides_over("QEMU", &EVENTS, |address, cluster| Relay::qemu(address, cluster.dir(), 60));
}

#[test]
fn nbdkit_with_its_retry_filter_notices_a_pause() {
    let events = [Event::KillAndRestart, Event::Failover];
    rides_over("nbdkit", &events, |address, cluster| Relay::nbdkit(address, cluster.dir()));
}

#[test]
fn qemu_without_a_reconnect_delay_gets_an_error_and_connects_again() {
    let mut cluster = Cluster::primary(&plan());
    let address = Address::new(&cluster.dir().join("address"), &cluster.alpha);
    let relay = Relay::qemu(&address, cluster.dir(), 0);
    let load = Ledger::new(SIZE_BYTES, 4, seed("QEMU, no delay")).start(relay.socket(), 8);
    load.wait_acked(300);
    Event::KillAndRestart.happen(&mut cluster, &address);
    wait_until("a request that failed", Duration::from_secs(30), || load.interruptions() > 0);
    load.wait_acked(300);
    let mut ledger = load.stop();
    cluster.assert_replicas_equal();
    ledger.assert_kept(cluster.beta.disk());
}

/// Writes until its connection ends; then what a program has to do by itself: connect again, and send again.
const LIBNBD: &str = r#"
import nbd, sys, time

def connected():
    handle = nbd.NBD()
    handle.connect_uri(sys.argv[1])
    return handle

handle, at = connected(), 0
try:
    while True:
        at = (at + 4096) % (64 << 20)
        handle.pwrite(b"L" * 4096, at)
except nbd.Error as error:
    print("write:", error.errno or error.string)
assert handle.aio_is_dead() or handle.aio_is_closed(), "the handle is of no more use"
deadline = time.monotonic() + 60
while True:
    try:
        handle = connected()
        break
    except nbd.Error:
        assert time.monotonic() < deadline, "no server any more"
        time.sleep(0.1)
handle.pwrite(b"L" * 4096, at)
assert handle.pread(4096, at) == b"L" * 4096
handle.shutdown()
"#;

#[test]
fn libnbd_gets_an_error_and_does_not_come_back_by_itself() {
    let mut cluster = Cluster::primary(&plan());
    let address = Address::new(&cluster.dir().join("address"), &cluster.alpha);
    let uri = qemu_uri(address.path(), RESOURCE);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| tool("python3").args(["-c", LIBNBD, &uri]).run());
        cluster.alpha.wait_status("a client", |status| {
            status["clients"].as_array().is_some_and(|clients| !clients.is_empty())
        });
        Event::Failover.happen(&mut cluster, &address);
        let ran = client.join().expect("the client's thread");
        println!("{}", ran.stdout);
        ran.ok();
    });
    cluster.alpha.start();
    cluster.assert_replicas_equal();
}
