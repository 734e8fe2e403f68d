//! Checkpoints through moves, kills and resyncs: what is complete names each block that differs from the volume at the
//! point, what may lack something says so.

use super::*;
use lockstep_bitmap::{BlockIndex, CheckpointId, CheckpointState, Incomplete, Invalid};
use lockstep_core::CheckpointName;

const UNCLEAN: CheckpointState = CheckpointState::Incomplete(Incomplete::UncleanStop);
const PEER_IS_DOWN: Command = Command::Promote { peer_is_down: true, accept_data_loss: false };
const DEMOTE: Command = Command::Demote { force: false };

fn name(name: &str) -> CheckpointName {
    CheckpointName::new(name).unwrap()
}

fn create(text: &str) -> Command {
    Command::CreateCheckpoint { name: name(text) }
}

fn delete(text: &str) -> Command {
    Command::DeleteCheckpoint { name: name(text) }
}

impl World {
    fn checkpoint(&self, i: usize, text: &str) -> Option<(CheckpointId, CheckpointState, u64)> {
        let found = self.hosts[i].node.checkpoints().find(|held| held.name == text)?;
        Some((found.id, found.state, found.changed_bytes))
    }

    fn state(&self, i: usize, text: &str) -> Option<CheckpointState> {
        self.checkpoint(i, text).map(|(_, state, _)| state)
    }

    /// On this node it is complete, can be read, and names every block that is not as it was.
    fn assert_names(&self, i: usize, text: &str, was: &[u8]) {
        let (id, state, _) = self.checkpoint(i, text).expect("it is there");
        assert_eq!(state, CheckpointState::Complete, "node {i}");
        let bits = self.hosts[i].node.checkpoint_bits(id).expect("it can be read");
        for (block, (now, was)) in (0..).zip(self.hosts[i].data.chunks(4096).zip(was.chunks(4096))) {
            assert!(now == was || bits.is_dirty(BlockIndex(block)), "node {i} lacks block {block}");
        }
    }

    /// The exchange has ended on both.
    fn both_have(&mut self, text: &str, wanted: CheckpointState) {
        self.until("both have it", |w| (0..2).all(|i| w.state(i, text) == Some(wanted)));
    }

    fn lazily_written(&mut self) {
        let end = self.now + Timing::default().lazy_write * 4;
        self.until("what waits is written", |w| w.now >= end);
    }
}

fn pair() -> World {
    let mut w = World::new();
    w.promote(0).unwrap();
    w.settled();
    w
}

#[test]
fn a_checkpoint_follows_the_writes_on_both_nodes() {
    let mut w = pair();
    w.write(0, 0, 1, 4096);
    assert_eq!(w.command(0, create("c")), Ok(Done::Changed));
    let was = w.hosts[0].data.clone();
    assert_eq!(w.checkpoint(0, "c").map(|found| found.2), Some(0));
    assert_eq!(w.checkpoint(0, "c").map(|found| found.0), w.checkpoint(1, "c").map(|found| found.0));
    w.write(0, 65_536, 2, 8192);
    w.write(0, 512, 3, 512);
    for i in 0..2 {
        w.assert_names(i, "c", &was);
        assert_eq!(w.checkpoint(i, "c").map(|found| found.2), Some(3 * 4096), "and no more");
        assert!(w.hosts[i].node.checkpoints().all(|held| held.is_at_peer));
    }
    assert_eq!(w.command(0, delete("c")), Ok(Done::Changed));
    assert_eq!(w.command(0, delete("c")), Ok(Done::Already));
    assert_eq!((w.state(0, "c"), w.state(1, "c")), (None, None));
}

#[test]
fn what_is_refused_says_why() {
    let mut w = pair();
    assert_eq!(w.command(1, create("c")), Err(Refusal::CheckpointNotPrimary));
    assert_eq!(w.command(1, delete("c")), Err(Refusal::CheckpointNotPrimary));
    assert_eq!(w.command(0, create("c")), Ok(Done::Changed));
    assert_eq!(w.command(0, create("c")), Err(Refusal::CheckpointExists));
    assert_eq!(w.command(0, create("d")), Ok(Done::Changed));
    assert_eq!(w.command(0, create("e")), Err(Refusal::CheckpointRoom { room: 2 }));
    assert_eq!(w.command(0, delete("d")), Ok(Done::Changed));
    assert_eq!(w.command(0, create("e")), Ok(Done::Changed));
    assert_eq!(w.checkpoint(0, "e").map(|found| found.2), Some(0));
    w.command(0, Command::Detach).unwrap();
    let disk = DiskState::Diskless;
    assert_eq!(w.command(0, create("f")), Err(Refusal::CheckpointDisk { disk }));
}

#[test]
fn a_write_in_flight_counts_as_written_since() {
    let mut w = pair();
    let was = w.hosts[0].data.clone();
    let req = w.request(0, RequestKind::Write, (4096, 4096), false);
    let slot = w.hosts[0].slot((4096, vec![9; 4096]));
    w.hosts[0].handle(w.now, Event::Payload { req, offset: 4096, len: 4096, slot });
    assert_eq!(w.command(0, create("c")), Ok(Done::Changed));
    assert_eq!(w.reply(0, req), Ok(()));
    (0..2).for_each(|i| w.assert_names(i, "c", &was));
}

#[test]
fn a_killed_primary_has_it_complete_and_so_has_the_peer_after_its_own_kill() {
    let mut w = pair();
    w.command(0, create("c")).unwrap();
    let was = w.hosts[0].data.clone();
    w.write(0, 65_536, 2, 8192);
    w.kill(0);
    w.settled();
    w.assert_names(0, "c", &was);
    assert_eq!(w.promote(0), Ok(Done::Changed));
    w.write(0, 1 << 20, 2, 4096);
    w.kill(1);
    assert_eq!(w.state(1, "c"), Some(UNCLEAN), "its bits were in memory, whatever the boot id says");
    w.settled();
    w.both_have("c", CheckpointState::Complete);
    (0..2).for_each(|i| w.assert_names(i, "c", &was));
}

#[test]
fn a_failover_goes_on_with_the_peers() {
    let mut w = pair();
    w.command(0, create("c")).unwrap();
    let was = w.hosts[0].data.clone();
    w.write(0, 65_536, 2, 8192);
    w.kill(0);
    w.cut();
    assert_eq!(w.command(1, PEER_IS_DOWN), Ok(Done::Changed));
    w.assert_names(1, "c", &was);
    w.write(1, 1 << 20, 3, 4096);
    w.assert_names(1, "c", &was);
    w.lazily_written();
    // Covered again by now, it survives a kill of the new Primary, too.
    w.write(1, 3 << 18, 3, 4096);
    w.kill(1);
    assert_eq!(w.state(1, "c"), Some(CheckpointState::Complete));
    w.cut = false;
    w.settled();
    (0..2).for_each(|i| w.assert_names(i, "c", &was));
}

#[test]
fn a_cover_is_taken_back_by_a_demotion_and_recorded_again_after_a_promotion() {
    let mut w = pair();
    w.command(0, create("c")).unwrap();
    let was = w.hosts[0].data.clone();
    w.write(0, 0, 2, 4096);
    w.command(0, DEMOTE).unwrap();
    w.promote(1).unwrap();
    w.write(1, 65_536, 3, 4096);
    w.cut();
    // Killed before anything of it was written lazily: it may lack what node 1 wrote.
    w.kill(0);
    assert_eq!(w.state(0, "c"), Some(UNCLEAN));
    w.assert_names(1, "c", &was);
    w.cut = false;
    w.settled();
    w.both_have("c", CheckpointState::Complete);
    w.command(1, DEMOTE).unwrap();
    w.promote(0).unwrap();
    w.lazily_written();
    w.write(0, 1 << 20, 4, 4096);
    w.kill(0);
    w.settled();
    (0..2).for_each(|i| w.assert_names(i, "c", &was));
}

#[test]
fn the_list_of_the_primary_counts_when_the_peer_returns() {
    let mut w = pair();
    w.command(0, create("gone")).unwrap();
    w.cut();
    w.command(0, delete("gone")).unwrap();
    assert_eq!(w.command(0, create("new")), Ok(Done::Changed));
    let was = w.hosts[0].data.clone();
    assert!(w.hosts[0].node.checkpoints().all(|held| !held.is_at_peer));
    w.write(0, 65_536, 3, 65_536);
    w.cut = false;
    w.settled();
    w.both_have("new", CheckpointState::Complete);
    assert_eq!(w.state(1, "gone"), None);
    (0..2).for_each(|i| w.assert_names(i, "new", &was));
    assert!((0..2).all(|i| w.hosts[i].node.checkpoints().all(|held| held.is_at_peer)));
}

/// Node 1, which lacks a part, is the source: node 0 has it all, and gives it back.
#[test]
fn a_source_is_completed_by_its_target() {
    let mut w = pair();
    w.command(0, create("c")).unwrap();
    let was = w.hosts[0].data.clone();
    w.write(0, 65_536, 2, 8192);
    w.cut();
    w.kill(1);
    w.command(0, DEMOTE).unwrap();
    let data_loss = Command::Promote { peer_is_down: false, accept_data_loss: true };
    w.command(1, data_loss).unwrap();
    assert_eq!(w.state(1, "c"), Some(UNCLEAN), "it cannot be read, and says why");
    assert!(w.checkpoint(1, "c").is_some_and(|(id, ..)| w.hosts[1].node.checkpoint_bits(id).is_none()));
    w.write(1, 1 << 20, 3, 4096);
    w.cut = false;
    w.until("they meet", |w| w.status(1).peers[0].connection == ConnectionState::Connected);
    if w.status(1).peers[0].replication == ReplicationState::SplitBrain {
        w.command(1, Command::Resolve { discard: NodeId(0) }).unwrap();
    }
    w.settled();
    w.both_have("c", CheckpointState::Complete);
    (0..2).for_each(|i| w.assert_names(i, "c", &was));
}

#[test]
fn what_nobody_has_complete_is_invalid_for_good() {
    let mut w = pair();
    w.command(0, create("c")).unwrap();
    w.command(0, DEMOTE).unwrap();
    w.cut();
    for i in 0..2 {
        // Written to as Secondary before it settled: so a kill in the connection.
        assert_eq!(w.state(i, "c"), Some(CheckpointState::Complete), "a settled copy has all on disk");
    }
    w.cut = false;
    w.settled();
    w.cut = true;
    for i in 0..2 {
        w.kill(i);
        assert_eq!(w.state(i, "c"), Some(UNCLEAN));
    }
    w.cut = false;
    w.settled();
    w.promote(0).unwrap();
    w.both_have("c", CheckpointState::Invalid(Invalid::NobodyComplete));
    assert_eq!(w.command(0, delete("c")), Ok(Done::Changed));
    assert_eq!(w.command(0, create("c")), Ok(Done::Changed));
    w.both_have("c", CheckpointState::Complete);
}

#[test]
fn an_inconsistent_copy_that_is_promoted_has_none() {
    let mut w = pair();
    w.command(0, create("c")).unwrap();
    w.command(1, Command::Sync(SyncOrder::Pause)).unwrap();
    w.command(1, Command::Invalidate { peer: false }).unwrap();
    w.until("it is a target", |w| w.status(1).peers[0].replication == ReplicationState::PausedTarget);
    w.cut();
    let data_loss = Command::Promote { peer_is_down: false, accept_data_loss: true };
    assert_eq!(w.command(1, data_loss), Ok(Done::Changed));
    assert_eq!(w.state(1, "c"), Some(CheckpointState::Invalid(Invalid::DataLoss)));
}

/// Created while the peer is being filled: whatever of it is stale will be copied.
#[test]
fn a_checkpoint_of_a_resync_is_complete_at_the_target_when_that_has_ended() {
    let mut w = pair();
    w.command(1, Command::Sync(SyncOrder::Pause)).unwrap();
    w.cut();
    w.write(0, 65_536, 3, 65_536);
    w.cut = false;
    w.until("it is paused", |w| w.status(1).peers[0].replication == ReplicationState::PausedTarget);
    w.until("the lists are exchanged", |w| {
        w.hosts.iter().all(|host| host.inbox.is_empty() && host.outbox.is_empty())
    });
    assert_eq!(w.command(0, create("c")), Ok(Done::Changed));
    let was = w.hosts[0].data.clone();
    w.write(0, 69_632, 4, 4096);
    w.command(1, Command::Sync(SyncOrder::Resume)).unwrap();
    w.settled();
    (0..2).for_each(|i| w.assert_names(i, "c", &was));
    // And on it goes there.
    w.command(0, DEMOTE).unwrap();
    w.promote(1).unwrap();
    w.write(1, 0, 5, 4096);
    (0..2).for_each(|i| w.assert_names(i, "c", &was));
}

/// A command that comes while the lists are exchanged waits for the end of that.
#[test]
fn a_checkpoint_right_after_a_promotion_is_no_matter_of_luck() {
    let mut w = pair();
    w.command(0, DEMOTE).unwrap();
    w.promote(1).unwrap();
    assert_eq!(w.command(1, create("c")), Ok(Done::Changed));
    w.both_have("c", CheckpointState::Complete);
}

/// A block that node 1 has yet to be sent owes its bit to that. Meanwhile the source goes back to what node 1 holds and
/// loses its own bit: the block turns out equal, and is none the less not what it was at the point.
#[test]
fn a_piece_that_is_equal_all_the_same_counts_as_written() {
    let mut w = pair();
    let stale = w.hosts[1].data[65_536..69_632].to_vec();
    w.command(1, Command::Sync(SyncOrder::Pause)).unwrap();
    w.cut();
    w.write(0, 65_536, 3, 4096);
    w.cut = false;
    w.until("it is paused", |w| w.status(1).peers[0].replication == ReplicationState::PausedTarget);
    assert_eq!(w.command(0, create("c")), Ok(Done::Changed));
    let was = w.hosts[0].data.clone();
    w.cut();
    let req = w.request(0, RequestKind::Write, (65_536, 4096), false);
    let slot = w.hosts[0].slot((65_536, stale));
    w.hosts[0].handle(w.now, Event::Payload { req, offset: 65_536, len: 4096, slot });
    assert_eq!(w.reply(0, req), Ok(()));
    w.command(0, DEMOTE).unwrap();
    w.cut = false;
    w.until("it is paused again", |w| w.status(1).peers[0].replication == ReplicationState::PausedTarget);
    w.kill(0);
    assert_eq!(w.state(0, "c"), Some(UNCLEAN));
    // Its machine started anew: everything is compared.
    let (meta, data) = (w.hosts[0].meta.clone(), w.hosts[0].data.clone());
    w.hosts[0] = Host::booted(0, meta, data, 77, 2);
    w.hosts[0].handle(w.now, Event::Start { unix_ms: 5000 });
    w.command(1, Command::Sync(SyncOrder::Resume)).unwrap();
    w.settled();
    let moved = w.status(1).peers[0].resynced_bytes_total;
    assert!(moved > 0);
    w.promote(0).unwrap();
    w.both_have("c", CheckpointState::Complete);
    (0..2).for_each(|i| w.assert_names(i, "c", &was));
}

/// The exchange is cut at every moment of a return: it ends all the same.
#[test]
fn an_exchange_that_is_cut_begins_again() {
    for steps in (1..90).step_by(2) {
        let mut w = pair();
        w.command(0, create("c")).unwrap();
        let was = w.hosts[0].data.clone();
        w.cut();
        w.write(0, 65_536, 3, 65_536);
        w.kill(1);
        w.cut = false;
        for _ in 0..steps {
            w.step();
        }
        let link = LinkId(w.next_link - 1);
        for host in &mut w.hosts {
            host.inbox.retain(|pending| !matches!(pending, Pending::Frame(..)));
            host.outbox.clear();
            host.inbox.push_back(Pending::LinkDown(link));
        }
        w.settled();
        w.both_have("c", CheckpointState::Complete);
        (0..2).for_each(|i| w.assert_names(i, "c", &was));
    }
}

/// Ordering 2: the record on disk still calls it complete and covered, so that a mark stands for its bits.
#[test]
fn a_mark_outlasts_the_checkpoint_that_needs_it_until_its_end_is_on_record() {
    let mut w = pair();
    w.cut();
    w.command(0, create("c")).unwrap();
    let was = w.hosts[0].data.clone();
    w.write(0, 65_536, 2, 8192);
    w.hosts[0].keeps_superblock = true;
    let id = CommandId(9000);
    w.hosts[0].handle(w.now, Event::Command { id, command: delete("c") });
    let end = w.now + Timing::default().epoch * 20;
    w.until("unused regions cool", |w| w.now >= end);
    assert!(!w.hosts[0].done.iter().any(|(of, _)| *of == id), "it is on record");
    w.kill(0);
    w.assert_names(0, "c", &was);
}
