//! What operators and clients do to the pace of a resync.

use super::*;

#[test]
fn a_paused_resync_mirrors_writes_and_goes_on_where_it_was() {
    let mut w = World::new();
    w.promote(0).unwrap();
    w.settled();
    assert_eq!(w.command(1, Command::Sync(SyncOrder::Pause)), Ok(Done::Changed));
    assert_eq!(w.command(1, Command::Sync(SyncOrder::Pause)), Ok(Done::Already));
    w.cut();
    w.write(0, 65536, 3, 65536);
    w.cut = false;
    w.until("both say so", |w| {
        let states = [0, 1].map(|i| w.status(i).peers[0].replication);
        states == [ReplicationState::PausedSource, ReplicationState::PausedTarget]
    });
    w.write(0, 0, 4, 4096);
    assert_eq!(w.hosts[1].data[0], 4);
    assert!(w.status(0).peers[0].resync.as_ref().is_some_and(|r| r.paused_by_peer && r.left_bytes == 65536));
    // Its lasting beyond the link does not keep the role from moving.
    assert_eq!(w.command(0, Command::Demote { force: false }), Ok(Done::Changed));
    assert_eq!(w.promote(0), Ok(Done::Changed));
    assert_eq!(w.command(1, Command::Sync(SyncOrder::Resume)), Ok(Done::Changed));
    w.settled();
}

/// A busy client's node keeps a resync slow; either operator may want more of it, and a lower limit goes before that.
#[test]
fn what_an_operator_wants_of_a_resync_at_least_counts_at_either_node() {
    let mib = |n: u64| Some(n << 20);
    for teller in 0..2 {
        let mut w = World::new();
        w.promote(0).unwrap();
        w.settled();
        w.command(1, Command::Sync(SyncOrder::Pause)).unwrap();
        w.cut();
        w.write(0, 65536, 3, 65536);
        w.cut = false;
        w.until("both know", |w| (0..2).all(|i| w.status(i).peers[0].resync.is_some()));
        let limits = |w: &mut World, wanted: Option<u64>| {
            let limit = |w: &World, i: usize| w.status(i).peers[0].resync.as_ref().unwrap().limit_bytes_per_s;
            let ends = w.now.0 + 10_000_000_000;
            // A client is at work all the time.
            while (0..2).any(|i| limit(w, i) != wanted) {
                assert!(w.now.0 < ends, "{:?} instead of {wanted:?}", [0, 1].map(|i| limit(w, i)));
                w.write(0, 0, 4, 4096);
                let next = w.now.0 + 20_000_000;
                w.until("time passes", |w| w.now.0 >= next);
            }
        };
        limits(&mut w, mib(16));
        let least = |rate| Command::Sync(SyncOrder::AtLeast(rate));
        assert_eq!(w.command(teller, least(mib(64))), Ok(Done::Changed));
        assert_eq!(w.command(teller, least(mib(64))), Ok(Done::Already));
        assert_eq!(w.status(teller).sync_least, mib(64));
        limits(&mut w, mib(64));
        w.command(1, Command::Sync(SyncOrder::Rate(mib(32)))).unwrap();
        limits(&mut w, mib(32));
        w.command(1, Command::Sync(SyncOrder::Rate(None))).unwrap();
        limits(&mut w, mib(64));
        w.command(teller, least(None)).unwrap();
        limits(&mut w, mib(16));
        w.command(1, Command::Sync(SyncOrder::Resume)).unwrap();
        w.settled();
    }
}

/// A peer of an older version takes the frame with it for a broken one.
#[test]
fn what_an_operator_wants_at_least_is_not_told_to_a_peer_that_does_not_know_it() {
    let mut w = World::new();
    w.takes_least = false;
    w.promote(0).unwrap();
    w.settled();
    w.command(1, Command::Sync(SyncOrder::Pause)).unwrap();
    w.command(1, Command::Sync(SyncOrder::AtLeast(Some(64 << 20)))).unwrap();
    w.cut();
    w.write(0, 65536, 3, 65536);
    w.cut = false;
    w.until("both know", |w| (0..2).all(|i| w.status(i).peers[0].resync.is_some()));
    let limit = |w: &World| w.status(0).peers[0].resync.as_ref().unwrap().limit_bytes_per_s;
    for _ in 0..100 {
        w.write(0, 0, 4, 4096);
        let next = w.now.0 + 20_000_000;
        w.until("time passes", |w| w.now.0 >= next);
    }
    assert_eq!(limit(&w), Some(16 << 20));
    w.command(1, Command::Sync(SyncOrder::Resume)).unwrap();
    w.settled();
}
