//! What an fdatasync that fails takes with it, what is answered only after a record is durable, and what a peer may not
//! make a node remember.

use super::*;

impl World {
    /// Metadata writes complete again, and those that were held do now.
    pub(super) fn release_meta(&mut self, i: usize) {
        let held = self.hosts[i].held_meta.take().unwrap();
        self.hosts[i].inbox.extend(held.into_iter().map(Pending::Meta));
    }

    /// Node 1 takes its leave, and is about to have recorded it: node 0 does not know.
    fn begin_farewell(&mut self) {
        self.hosts[1].held_meta = Some(vec![]);
        self.hosts[1].handle(self.now, Event::Command { id: CommandId(9000), command: Command::Leave });
        self.until("it records that", |w| w.hosts[1].held_meta.as_ref().is_some_and(|held| !held.is_empty()));
        assert!(open(&self.hosts[1].meta).superblock.outdated);
    }

    fn is_answered(&self, i: usize, req: ReqId) -> bool {
        self.hosts[i].replies.iter().any(|(of, _)| *of == req)
    }

    fn pass(&mut self, seconds: u64) {
        let end = self.now.0 + seconds * 1_000_000_000;
        self.until("time passes", |w| w.now.0 >= end);
    }
}

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

/// Ordering 4: FLUSH promises what the lost copy may lack, so that copy has to be behind first, durably.
#[test]
fn no_flush_is_answered_before_the_rotation_is_durable() {
    let mut w = World::new();
    w.promote(0).unwrap();
    w.settled();
    w.hosts[1].held = Some(vec![]);
    w.write(0, 0, 1, 4096);
    let flush = w.request(0, RequestKind::Flush, (0, 0), false);
    w.until("the peer flushes", |w| w.hosts[1].held.as_ref().is_some_and(|held| !held.is_empty()));
    w.hosts[0].held_meta = Some(vec![]);
    w.cut();
    w.pass(3);
    assert!(!w.is_answered(0, flush), "the peer may hold the generation, and not the write");
    w.release_meta(0);
    assert_eq!(w.reply(0, flush), Ok(()));
}

/// Ordering 5: until the failure is recorded at the failed copy, the other side goes on waiting for it.
#[test]
fn a_write_that_failed_at_the_peer_waits_for_the_record_of_that() {
    let mut w = World::new();
    w.promote(0).unwrap();
    w.settled();
    (w.hosts[1].fua_fails, w.hosts[1].held_meta) = (true, Some(vec![]));
    let req = w.request(0, RequestKind::Write, (4096, 4096), true);
    let slot = w.hosts[0].slot((4096, vec![2; 4096]));
    w.hosts[0].handle(w.now, Event::Payload { req, offset: 4096, len: 4096, slot });
    w.until("the copy fails", |w| w.status(1).disk == DiskState::Failed);
    w.pass(3);
    assert!(!w.is_answered(0, req), "nothing durable tells of the failure");
    assert_eq!(w.status(0).peers[0].connection, ConnectionState::Connected);
    w.release_meta(1);
    assert_eq!(w.reply(0, req), Ok(()));
    assert!(open(&w.hosts[1].meta).superblock.outdated);
}

/// What is kept of served writes until a flush is bounded by the peer's own table; a peer that never asks is left.
#[test]
fn a_peer_that_never_asks_for_a_flush_is_left() {
    let mut w = World::new();
    w.promote(0).unwrap();
    w.settled();
    w.hosts[0].flush_fails = true;
    w.write(0, 0, 0, 4096);
    w.until("the copy is given up", |w| w.status(0).disk == DiskState::Failed);
    w.until("the link is closed", |w| w.status(0).peers[0].connection == ConnectionState::Connecting);
    w.until("the other one serves", |w| w.status(0).peers[0].connection == ConnectionState::Connected);
    let link = LinkId(w.next_link - 1);
    let mut pos = 0;
    while w.hosts[1].closing.is_empty() {
        pos += 1;
        assert!(pos < 1000, "it keeps everything");
        let frame = Frame::Zero { pos: Position(pos), offset: 0, len: 4096, punch: true, fua: false };
        w.hosts[1].handle(w.now, Event::Frame { link, frame, body: &[], slot: None });
        while let Some(pending) = w.hosts[1].inbox.pop_front() {
            w.deliver(1, pending);
        }
    }
    assert!(pos > 64, "what an honest peer has under way is taken");
}

/// Orderings 10, 11: the source counts on the target, and forgets that it was behind, when the target has recorded the
/// end.
#[test]
fn the_end_of_a_resync_is_told_when_it_is_durable() {
    let mut w = World::new();
    w.promote(0).unwrap();
    w.until("the resync runs", |w| w.status(1).peers[0].replication == ReplicationState::SyncTarget);
    w.hosts[1].held_meta = Some(vec![]);
    w.pass(3);
    assert_eq!(w.status(1).peers[0].out_of_sync_bytes, 0, "all is copied");
    assert_eq!(w.status(0).peers[0].disk, Some(DiskState::Inconsistent), "and the record is not written");
    assert!(open(&w.hosts[1].meta).superblock.inconsistent.is_none(), "or not known to be");
    let source = open(&w.hosts[0].meta).superblock.peers[0].clone();
    assert_eq!((source.copy, source.base), (PeerCopy::ToldToFinish, Base::NoGeneration));
    w.release_meta(1);
    w.settled();
    let forgotten = |w: &World| open(&w.hosts[0].meta).superblock.peers[0].base == Base::Unset;
    w.until("the source forgets", forgotten);
}

/// Ordering 11: the record that proves the target to be behind is withdrawn before the target is told to finish.
#[test]
fn a_target_is_told_to_finish_when_the_proof_is_withdrawn() {
    let mut w = World::new();
    w.promote(0).unwrap();
    w.until("the resync runs", |w| w.status(1).peers[0].replication == ReplicationState::SyncTarget);
    w.hosts[0].held_meta = Some(vec![]);
    w.pass(3);
    assert_eq!(w.status(1).peers[0].out_of_sync_bytes, 0, "all is copied");
    assert_eq!(w.status(1).disk, DiskState::Inconsistent);
    w.release_meta(0);
    w.settled();
}

/// Ordering 15: the peer has recorded that this node may be Primary before clients may write.
#[test]
fn a_promotion_waits_for_the_record_of_the_peer() {
    let mut w = World::new();
    w.promote(0).unwrap();
    w.settled();
    w.command(0, Command::Demote { force: false }).unwrap();
    w.hosts[1].held_meta = Some(vec![]);
    let promote = Command::Promote { peer_is_down: false, accept_data_loss: false };
    w.hosts[0].handle(w.now, Event::Command { id: CommandId(9000), command: promote });
    w.pass(3);
    assert_eq!(w.status(0).role, Role::Secondary);
    w.release_meta(1);
    w.until("it is Primary", |w| w.hosts[0].done.contains(&(CommandId(9000), Ok(Done::Changed))));
}

/// Ordering 13: clients of a node without disk go on through the copy that has what they wrote, and through no other.
#[test]
fn what_was_suspended_is_sent_again_to_the_same_kernel_only() {
    for (boot, expected) in [(1, Ok(())), (2, Err(IoError::Io))] {
        let mut w = World::new();
        w.promote(0).unwrap();
        w.settled();
        w.hosts[0].flush_fails = true;
        w.write(0, 0, 1, 4096);
        w.until("the copy is given up", |w| w.status(0).disk < DiskState::Inconsistent);
        w.write(0, 0, 2, 4096);
        w.cut = true;
        let req = w.request(0, RequestKind::Write, (4096, 4096), false);
        let slot = w.hosts[0].slot((4096, vec![3; 4096]));
        w.hosts[0].handle(w.now, Event::Payload { req, offset: 4096, len: 4096, slot });
        let (meta, data) = (w.hosts[1].meta.clone(), w.hosts[1].data.clone());
        w.hosts[1] = Host::booted(1, meta, data, 100, boot);
        let link = LinkId(w.next_link - 1);
        w.hosts[0].inbox.push_back(Pending::LinkDown(link));
        w.hosts[1].handle(w.now, Event::Start { unix_ms: 5000 });
        w.pass(1);
        assert!(!w.is_answered(0, req), "no copy is within reach");
        w.cut = false;
        assert_eq!(w.reply(0, req), expected, "boot {boot}");
    }
}

/// Ordering 15, on the way down: what was acknowledged is durable on both copies before the peer is told Secondary.
#[test]
fn a_demotion_waits_until_both_copies_have_flushed() {
    let mut w = World::new();
    w.promote(0).unwrap();
    w.settled();
    w.hosts[1].held = Some(vec![]);
    w.write(0, 0, 1, 4096);
    w.hosts[0]
        .handle(w.now, Event::Command { id: CommandId(9000), command: Command::Demote { force: false } });
    w.pass(3);
    assert_eq!((w.status(0).role, w.status(1).peers[0].role), (Role::Primary, Some(Role::Primary)));
    let held = w.hosts[1].held.take().unwrap();
    w.hosts[1].inbox.extend(held.into_iter().map(|op| Pending::Disk(op, None)));
    w.until("it is Secondary", |w| w.hosts[0].done.contains(&(CommandId(9000), Ok(Done::Changed))));
}

#[test]
fn a_copy_whose_flush_failed_is_no_source_after_a_restart() {
    let mut w = World::new();
    w.promote(0).unwrap();
    w.settled();
    w.write(0, 0, 1, 4096);
    w.hosts[0].flush_fails = true;
    w.until("the copy is given up", |w| w.status(0).disk == DiskState::Failed);
    w.until("node 1 serves", |w| w.status(1).disk == DiskState::UpToDate);
    w.write(0, 4096, 2, 4096);
    assert!(w.hosts[0].data[4096] != 2 && w.hosts[1].data[4096] == 2, "only the good copy is written");
    // The kernel dropped what it could not write.
    w.hosts[0].data[..4096].fill(0);
    w.cut = true;
    w.kill(0);
    assert_eq!(w.status(0).disk, DiskState::Outdated);
    w.cut = false;
    w.settled();
    assert_eq!(w.hosts[0].data[0], 1, "the good copy is the source");
}

#[test]
fn a_peer_that_floods_is_left_and_costs_no_memory() {
    // After the one write below, whose content it repeats: a peer that lies about content is not the matter here.
    let zero = |n: u64| Frame::Zero { pos: Position(n + 1), offset: 0, len: 4096, punch: true, fua: false };
    let read = |_| Frame::Read { id: 1, offset: 0, len: 4096 };
    let floods: [(usize, &dyn Fn(u64) -> Frame); 2] = [(1, &zero), (0, &read)];
    for (victim, frame) in floods {
        let mut w = World::new();
        w.promote(0).unwrap();
        w.settled();
        w.write(0, 0, 0, 4096);
        let link = LinkId(w.next_link - 1);
        // The disk of the victim answers nothing meanwhile.
        for n in 1..=PEER_TASKS_MAX as u64 {
            w.hosts[victim].handle(w.now, Event::Frame { link, frame: frame(n), body: &[], slot: None });
        }
        assert_eq!((w.hosts[victim].node.pieces(), w.hosts[victim].closing.len()), (PEER_TASKS_MAX, 0));
        let last = frame(PEER_TASKS_MAX as u64 + 1);
        w.hosts[victim].handle(w.now, Event::Frame { link, frame: last, body: &[], slot: None });
        assert_eq!(w.hosts[victim].closing, [link], "the link is closed");
        w.until("what was queued is dropped", |w| w.hosts[victim].node.pieces() == 0);
        w.settled();
    }
}

/// The only copy that counts stays after a write error: its client is told, and the other copy gets the block.
#[test]
fn a_write_error_does_not_end_the_last_copy() {
    let mut w = World::new();
    w.promote(0).unwrap();
    w.settled();
    w.cut();
    w.hosts[0].write_fails = true;
    let req = w.request(0, RequestKind::Write, (4096, 4096), false);
    let slot = w.hosts[0].slot((4096, vec![2; 4096]));
    w.hosts[0].handle(w.now, Event::Payload { req, offset: 4096, len: 4096, slot });
    assert_eq!(w.reply(0, req), Err(IoError::Io));
    w.hosts[0].write_fails = false;
    assert_eq!((w.status(0).disk, w.status(0).peers[0].out_of_sync_bytes), (DiskState::UpToDate, 4096));
    w.write(0, 8192, 3, 4096);
    w.cut = false;
    w.settled();
}

/// Ordering 5, by an operator: the copy that a Primary gives up is behind, durably, before the other one goes on alone;
/// and what it takes back later is behind, whatever its record says.
#[test]
fn a_copy_that_a_primary_gave_up_is_behind() {
    let mut w = World::new();
    w.promote(0).unwrap();
    w.settled();
    w.write(0, 0, 1, 4096);
    w.hosts[0].held_meta = Some(vec![]);
    w.hosts[0].handle(w.now, Event::Command { id: CommandId(9000), command: Command::Detach });
    w.pass(3);
    assert_eq!(w.status(0).peers[0].connection, ConnectionState::Connected, "nothing durable says so yet");
    w.release_meta(0);
    w.until("it is detached", |w| w.hosts[0].done.contains(&(CommandId(9000), Ok(Done::Changed))));
    let mut store = open(&w.hosts[0].meta);
    assert!(store.superblock.outdated);
    w.write(0, 0, 2, 4096);
    store.superblock.outdated = false;
    let disk = NewDisk { store, granule_bytes: 512, survives_process_death: true, sample: 0 };
    let (now, host) = (w.now, &mut w.hosts[0]);
    host.node.attach_store(now, CommandId(9001), disk).unwrap();
    assert_eq!(host.node.status().disk, DiskState::Outdated);
    while let Some(action) = host.node.poll_action() {
        host.execute(action);
    }
    w.settled();
    assert_eq!(w.hosts[0].data[0], 2);
}

/// Ordering 5: whose copies were declared equal, the lower node proposed their generation. When the other one loses its
/// disk, the server begins a new one all the same: the lost copy carries the one that was adopted.
#[test]
fn a_generation_that_was_adopted_is_not_begun_again_to_serve_alone() {
    for primary in [0, 1] {
        let zero = vec![0; usize::try_from(SIZE).unwrap()];
        let mut w = World::with([meta_file(0, false, true), meta_file(1, false, true)], zero);
        w.settled();
        let adopted = w.status(0).generation;
        assert_eq!(adopted, w.status(1).generation);
        w.promote(primary).unwrap();
        assert_eq!(w.command(1, Command::Detach), Ok(Done::Changed));
        w.until("the link is up again", |w| w.status(1).peers[0].connection == ConnectionState::Connected);
        w.write(primary, 0, 3, 4096);
        let generation = w.status(0).generation;
        assert!(generation.is_some() && generation != adopted, "{generation:?} with node {primary} Primary");
    }
}

/// Ordering 15: a term that a node agreed to while it had no disk counts when it is promoted alone, on record too: its
/// next life must not take part in a term that it has already used.
#[test]
fn a_promotion_records_a_term_above_every_one_seen() {
    let mut w = World::new();
    w.promote(0).unwrap();
    w.settled();
    assert_eq!(w.command(1, Command::Detach), Ok(Done::Changed));
    w.until("the Primary serves", |w| w.status(1).peers[0].connection == ConnectionState::Connected);
    for _ in 0..3 {
        assert_eq!(w.command(0, Command::Demote { force: false }), Ok(Done::Changed));
        w.promote(0).unwrap();
    }
    w.until("its files are closed", |w| w.hosts[1].inbox.is_empty());
    w.cut();
    w.attach(1);
    let promote = Command::Promote { peer_is_down: true, accept_data_loss: true };
    assert_eq!(w.command(1, promote), Ok(Done::Changed));
    assert!(w.status(1).term > w.status(0).term, "{} and {}", w.status(1).term, w.status(0).term);
    assert_eq!(open(&w.hosts[1].meta).superblock.term, w.status(1).term);
}

/// The last copy that counts is not given up for a write that failed, whatever the one that leaves said before.
#[test]
fn a_write_that_fails_during_a_farewell_takes_no_copy_with_it() {
    let mut w = World::new();
    w.promote(0).unwrap();
    w.settled();
    w.begin_farewell();
    let refused = Err(Refusal::Busy);
    assert_eq!(w.command(0, Command::Detach), refused, "it is the last copy");
    w.hosts[0].write_fails = true;
    let req = w.begin_write(0, 0, 7);
    while w.step() {}
    assert!(!w.is_answered(0, req), "the peer's word on it is awaited");
    w.hosts[0].write_fails = false;
    w.release_meta(1);
    assert_eq!(w.reply(0, req), Err(IoError::Io));
    w.until("it has left", |w| w.hosts[1].done.contains(&(CommandId(9000), Ok(Done::LeftAsOutdated))));
    assert_eq!((w.status(0).disk, w.status(0).role), (DiskState::UpToDate, Role::Primary));
    w.write(0, 0, 8, 4096);
    w.kill(1);
    w.settled();
    assert_eq!(w.hosts[1].data[0], 8);
}

#[test]
fn the_copy_that_stays_is_not_declared_wrong_during_a_farewell() {
    let mut w = World::new();
    w.promote(0).unwrap();
    w.settled();
    w.command(0, Command::Demote { force: false }).unwrap();
    w.begin_farewell();
    assert_eq!(w.command(0, Command::Invalidate { peer: false }), Err(Refusal::LastCopy(NodeId(0))));
    w.release_meta(1);
    w.until("it has left", |w| w.hosts[1].done.contains(&(CommandId(9000), Ok(Done::LeftAsOutdated))));
    assert_eq!(w.promote(0), Ok(Done::Changed));
}
