//! Requests to two nodes in lockstep, of the sizes that the daemon gives them.
//!
//! The time stands still, except where a workload lets it pass: no timer comes between. Each workload first does for
//! a while what it is about to do, unmeasured, so that regions are hot and tables have grown.

use lockstep_bitmap::ByteRange;
use lockstep_core::{
    Command, DiskState, PIECE_BYTES_MAX, ReplicationState, RequestKind, SyncOrder, TableBounds,
};
use lockstep_pair::{Pair, Shape, Shell, Start};

/// The daemon's sizes (`shard/control.rs`, `max-hot`), with a volume of 256 regions.
const SHAPE: Shape = Shape {
    size_bytes: 1 << 30,
    region_shift: REGION_SHIFT,
    hot_max: 2048,
    bits_frame_bytes: 32 << 10,
    tables: TableBounds {
        writes_max: 256,
        undurable_max: 8192,
        resync_window: 32,
        slots: 512,
        requests: 128,
    },
};
const REGION_SHIFT: u8 = 22;
const BLOCK_BYTES: u64 = 4096;
/// Steps of a pair until it has come to rest, at most.
const STEPS_MAX: usize = 1_000_000;
/// Deadlines that may pass until a pair is where it should be.
const DEADLINES_MAX: usize = 1000;
/// Requests under way in the workload of many.
const DEPTH: u32 = 32;
/// Writes in an epoch.
const EPOCH_WRITES: u64 = 32;
const SECOND: u64 = 1_000_000_000;

const PRIMARY: [bool; 2] = [true, false];
const PEER: [bool; 2] = [false, true];
const BOTH: [bool; 2] = [true, true];

/// Primary and peer of one volume.
struct Lockstep {
    pair: Pair,
    /// Requests so far: each goes to another place.
    requests: u64,
}

impl Lockstep {
    /// Both UpToDate, every region hot, nothing measured.
    fn new(shape: Shape) -> Self {
        let mut pair = Pair::new(shape, [Start::Clean, Start::Clean]);
        measure_at(&mut pair, [false, false]);
        pair.until(10, |_| false);
        pair.command(0, Command::Promote { peer_is_down: false, accept_data_loss: false });
        assert!(pair.until(DEADLINES_MAX, in_lockstep), "no lockstep");
        let mut lockstep = Lockstep { pair, requests: 0 };
        for region in 0..shape.size_bytes >> REGION_SHIFT {
            lockstep.request(RequestKind::Write, ByteRange::new(region << REGION_SHIFT, BLOCK_BYTES));
            lockstep.settle();
        }
        lockstep.flush();
        lockstep
    }

    fn request(&mut self, kind: RequestKind, range: ByteRange) {
        assert!(self.pair.request(0, kind, range, false), "a request was not taken: {}", self.pair.rest(0));
    }

    fn settle(&mut self) {
        self.pair.settle(STEPS_MAX);
        assert_eq!(self.pair.waiting(0), 0, "a request is not answered: {}", self.pair.rest(0));
    }

    fn flush(&mut self) {
        self.request(RequestKind::Flush, ByteRange::new(0, 0));
        self.settle();
    }

    /// The next block, far from the last one; each comes once.
    fn block(&mut self) -> ByteRange {
        self.requests += 1;
        let blocks = SHAPE.size_bytes / BLOCK_BYTES;
        ByteRange::new(self.requests * 0x9e37_79b1 % blocks * BLOCK_BYTES, BLOCK_BYTES)
    }

    fn on_block(&mut self, kind: RequestKind) {
        let range = self.block();
        self.request(kind, range);
    }

    /// Does it so often unmeasured, then so often measured at these nodes; returns their allocations.
    fn count(mut self, nodes: [bool; 2], times: u32, mut work: impl FnMut(&mut Lockstep)) -> u64 {
        (0..times).for_each(|_| work(&mut self));
        measure_at(&mut self.pair, nodes);
        (0..times).for_each(|_| work(&mut self));
        allocations(&self.pair)
    }
}

fn measure_at(pair: &mut Pair, nodes: [bool; 2]) {
    for (shell, is_measured) in pair.shells.iter_mut().zip(nodes) {
        (shell.is_measured, shell.allocations) = (is_measured, 0);
    }
}

fn allocations(pair: &Pair) -> u64 {
    pair.shells.iter().map(|shell| shell.allocations).sum()
}

fn in_lockstep(pair: &Pair) -> bool {
    pair.shells.iter().all(|shell| {
        let status = shell.node.status();
        status.disk == DiskState::UpToDate && replication(shell) == Some(ReplicationState::Established)
    })
}

fn replication(shell: &Shell) -> Option<ReplicationState> {
    shell.node.status().peers.first().map(|peer| peer.replication)
}

/// A write of 4 KiB, at the Primary: to its disk and to the peer, both answers, the reply.
pub(crate) fn write_4k_primary(times: u32) -> u64 {
    write_4k(PRIMARY, times)
}

/// The same write, at the peer: received, written, acknowledged.
pub(crate) fn write_4k_peer(times: u32) -> u64 {
    write_4k(PEER, times)
}

fn write_4k(nodes: [bool; 2], times: u32) -> u64 {
    Lockstep::new(SHAPE).count(nodes, times, |lockstep| {
        lockstep.on_block(RequestKind::Write);
        lockstep.settle();
    })
}

/// The same write at both, one of many under way.
pub(crate) fn write_4k_deep(times: u32) -> u64 {
    let mut number = 0;
    Lockstep::new(SHAPE).count(BOTH, times, |lockstep| {
        lockstep.on_block(RequestKind::Write);
        number += 1;
        if number % DEPTH == 0 {
            lockstep.settle();
        }
    })
}

/// A write of 128 KiB in two pieces, at both.
pub(crate) fn write_128k(times: u32) -> u64 {
    Lockstep::new(SHAPE).count(BOTH, times, |lockstep| {
        let middle = lockstep.block().start / PIECE_BYTES_MAX * PIECE_BYTES_MAX % (SHAPE.size_bytes / 2)
            + PIECE_BYTES_MAX / 2;
        lockstep.request(RequestKind::Write, ByteRange::new(middle, PIECE_BYTES_MAX));
        lockstep.settle();
    })
}

/// A write of 4 KiB while the peer is away: a bit is set.
pub(crate) fn write_4k_alone(times: u32) -> u64 {
    let mut lockstep = Lockstep::new(SHAPE);
    lockstep.pair.cut = true;
    lockstep.pair.lose_link([true, true]);
    lockstep.count(PRIMARY, times, |lockstep| {
        lockstep.on_block(RequestKind::Write);
        lockstep.settle();
    })
}

/// A read of 4 KiB.
pub(crate) fn read_4k(times: u32) -> u64 {
    Lockstep::new(SHAPE).count(PRIMARY, times, |lockstep| {
        lockstep.on_block(RequestKind::Read);
        lockstep.settle();
    })
}

/// A write and a flush that covers it, at both.
pub(crate) fn flush(times: u32) -> u64 {
    Lockstep::new(SHAPE).count(BOTH, times, |lockstep| {
        lockstep.on_block(RequestKind::Write);
        lockstep.settle();
        lockstep.flush();
    })
}

/// Writes to one cold region, and a second later the Primary closes their epoch by itself; with the mark of the region,
/// the heartbeats of that second, and the cooling of what was durable before.
pub(crate) fn epoch(times: u32) -> u64 {
    let mut regions = (0..SHAPE.size_bytes >> REGION_SHIFT).cycle();
    Lockstep::new(SHAPE).count(BOTH, times, |lockstep| {
        let start = regions.next().unwrap_or(0) << REGION_SHIFT;
        for block in 0..EPOCH_WRITES {
            lockstep.request(RequestKind::Write, ByteRange::new(start + block * BLOCK_BYTES, BLOCK_BYTES));
            lockstep.settle();
        }
        lockstep.pair.pass(SECOND + 1);
        lockstep.settle();
    })
}

/// A piece of a resync, at both: looked at by each side, and copied where they differ. Its end is in the numbers, too.
pub(crate) fn resync_piece(times: u32) -> u64 {
    let shape = Shape { size_bytes: u64::from(times) * PIECE_BYTES_MAX, ..SHAPE };
    let mut pair = Lockstep::new(shape).pair;
    pair.command(0, Command::Sync(SyncOrder::Pause));
    pair.command(0, Command::Invalidate { peer: true });
    let is_begun = |pair: &Pair| replication(&pair.shells[0]) == Some(ReplicationState::PausedSource);
    assert!(pair.until(DEADLINES_MAX, is_begun), "no resync begins");
    measure_at(&mut pair, BOTH);
    pair.command(0, Command::Sync(SyncOrder::Resume));
    assert!(pair.until(DEADLINES_MAX, in_lockstep), "the resync does not end");
    allocations(&pair)
}
