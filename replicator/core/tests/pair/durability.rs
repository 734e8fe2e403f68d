//! What an fdatasync that fails takes with it.

use super::*;

/// The flush in a write with FUA is an fdatasync: where it fails, what other writes left in the cache may be gone.
#[test]
fn a_write_with_fua_that_is_not_made_durable_ends_even_the_last_copy() {
    let mut w = World::new();
    w.promote(0).unwrap();
    w.settled();
    w.cut();
    w.write(0, 0, 1, 4096);
    w.hosts[0].fua_fails = true;
    let req = w.request(0, RequestKind::Write, (4096, 4096), true);
    let slot = w.hosts[0].slot((4096, vec![2; 4096]));
    w.hosts[0].handle(w.now, Event::Payload { req, offset: 4096, len: 4096, slot });
    assert_eq!(w.reply(0, req), Err(IoError::Io));
    let flush = w.request(0, RequestKind::Flush, (0, 0), false);
    assert_eq!(w.reply(0, flush), Err(IoError::Io), "the write before it may be gone");
    w.until("it is given up", |w| w.status(0).disk == DiskState::Failed);
}

/// Two are under way, and the kernel tells only one of them.
#[test]
fn a_flush_that_ends_well_after_another_failed_proves_nothing() {
    let mut w = World::new();
    w.promote(0).unwrap();
    w.hosts[0].held = Some(vec![]);
    w.until("the source is to flush a batch", |w| {
        w.hosts[0].held.as_ref().is_some_and(|held| held.len() == 1)
    });
    w.write(0, 0, 1, 4096);
    w.until("and an epoch", |w| w.hosts[0].held.as_ref().is_some_and(|held| held.len() == 2));
    let held = w.hosts[0].held.take().unwrap();
    let dirty = w.status(1).peers[0].out_of_sync_bytes;
    w.deliver(0, Pending::DiskFailed(held[1], DiskError::Io));
    w.deliver(0, Pending::Disk(held[0], None));
    w.until("the source is given up", |w| {
        w.status(0).disk == DiskState::Failed && w.status(1).disk < DiskState::UpToDate
    });
    w.until("they part", |w| w.status(1).peers[0].replication == ReplicationState::Off);
    assert_eq!(w.status(1).peers[0].out_of_sync_bytes, dirty, "the target took it for durable");
}

/// Ordering 5: nothing durable tells of the failure, but the process that saw it knows the disk again.
#[test]
fn a_failure_that_nobody_could_record_is_remembered_by_the_process() {
    let mut w = World::new();
    w.promote(0).unwrap();
    w.settled();
    w.write(0, 0, 1, 4096);
    let host = &mut w.hosts[1];
    (host.flush_fails, host.meta_fails) = (true, true);
    w.cut = true;
    w.until("the copy is given up", |w| w.status(1).disk == DiskState::Failed);
    w.until("its files are closed", |w| w.hosts[1].inbox.is_empty());
    let host = &mut w.hosts[1];
    (host.flush_fails, host.meta_fails) = (false, false);
    let store = open(&host.meta);
    assert!(!store.superblock.outdated, "nothing durable tells of the failure");
    let disk = NewDisk { store, granule_bytes: 512, survives_process_death: true, sample: 0 };
    host.node.attach_store(w.now, CommandId(9000), disk).unwrap();
    while let Some(action) = host.node.poll_action() {
        host.execute(action);
    }
    w.until("it is attached", |w| w.hosts[1].done.contains(&(CommandId(9000), Ok(Done::Changed))));
    assert_eq!(w.status(1).disk, DiskState::Outdated);
    assert!(open(&w.hosts[1].meta).superblock.outdated, "from here on it is recorded");
    let flag = Command::Promote { peer_is_down: true, accept_data_loss: false };
    assert!(matches!(w.command(1, flag), Err(Refusal::DataLoss { .. })));
}
