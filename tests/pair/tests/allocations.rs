//! The core takes no memory per request: two nodes in lockstep serve thousands of them without an allocation.

use lockstep_bitmap::ByteRange;
use lockstep_core::{Command, DiskState, Done, ReplicationState, RequestKind};
use lockstep_pair::{Pair, Shape, Start};

const WARM_UP: u64 = 4000;
const COUNTED: u64 = 40_000;

fn in_lockstep(pair: &Pair) -> bool {
    pair.shells.iter().all(|shell| {
        let status = shell.node.status();
        let replication = status.peers.first().map(|peer| peer.replication);
        status.disk == DiskState::UpToDate && replication == Some(ReplicationState::Established)
    })
}

/// The n-th request: all kinds, aligned and not, several at a time, hot regions come and go.
fn request(pair: &mut Pair, n: u64) {
    let mixed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    let (offset, len) =
        (mixed % (Shape::SMALL.size_bytes - (1 << 19)), 1 + (mixed >> 24) % (1 << (9 + n % 10)));
    let aligned = ByteRange::new(offset / 4096 * 4096, (len / 4096 + 1) * 4096);
    let fua = n.is_multiple_of(7);
    match n % 10 {
        0..=4 => pair.request(0, RequestKind::Write, ByteRange::new(offset, len), fua),
        5 | 6 => pair.request(0, RequestKind::Read, ByteRange::new(offset, len), false),
        7 => pair.request(0, RequestKind::Flush, ByteRange::new(0, 0), false),
        8 => pair.request(0, RequestKind::Zero { no_hole: false }, aligned, fua),
        _ => pair.request(0, RequestKind::Trim, aligned, fua),
    };
}

fn serve(pair: &mut Pair, requests: std::ops::Range<u64>) {
    for n in requests {
        request(pair, n);
        match n % 5 {
            0 => pair.settle(100_000),
            1 => pair.settle(3),
            2 => pair.pass(100_000_000),
            _ => {}
        }
    }
    pair.settle(100_000);
    assert_eq!(pair.waiting(0), 0, "requests are not answered");
}

#[test]
fn no_request_takes_memory_in_the_core() {
    let mut pair = Pair::new(Shape::SMALL, [Start::Source, Start::Fresh]);
    pair.until(10, |_| false);
    let id = pair.command(0, Command::Promote { peer_is_down: false, accept_data_loss: false });
    assert!(pair.until(100, in_lockstep), "no lockstep");
    assert_eq!(pair.answer(0, id), Some(Ok(Done::Changed)));
    serve(&mut pair, 0..WARM_UP);
    pair.shells.iter_mut().for_each(|shell| shell.allocations = 0);
    serve(&mut pair, WARM_UP..WARM_UP + COUNTED);
    assert!(in_lockstep(&pair));
    let [primary, secondary] = pair.shells.each_ref().map(|shell| shell.allocations);
    assert_eq!(
        (primary, secondary),
        (0, 0),
        "allocations in {COUNTED} requests at the Primary, and at its peer"
    );
}
