//! One thing happens at each moment of another.

use super::*;

/// Moments that are tried: more than the longest of the procedures takes.
const STEPS: usize = 60;

impl World {
    fn steps(&mut self, steps: usize) {
        for _ in 0..steps {
            self.step();
        }
    }

    pub(super) fn begin_write(&mut self, i: usize, offset: u64, fill: u8) -> ReqId {
        let req = self.request(i, RequestKind::Write, (offset, 4096), false);
        let slot = self.hosts[i].slot((offset, vec![fill; 4096]));
        self.hosts[i].handle(self.now, Event::Payload { req, offset, len: 4096, slot });
        req
    }
}

/// The peer's bytes that a repair puts back are older than a write that came between.
#[test]
fn a_repair_never_overtakes_a_write() {
    for steps in 0..STEPS {
        let mut w = World::new();
        w.promote(0).unwrap();
        w.settled();
        w.write(0, 0, 1, 4096);
        w.hosts[0].read_fails = true;
        let reads = [0, 1].map(|_| w.request(0, RequestKind::Read, (0, 4096), false));
        w.steps(steps);
        let write = w.begin_write(0, 0, 2);
        assert_eq!([reads[0], reads[1], write].map(|req| w.reply(0, req)), [Ok(()); 3]);
        w.settled();
        assert_eq!(w.hosts[0].data[0], 2, "after {steps} steps");
    }
}

/// Ordering 7: a block that was copied, and then written at the target only, is dirty again.
#[test]
fn a_write_that_fails_at_the_source_takes_back_what_was_copied() {
    let mut failed = 0;
    for steps in 0..STEPS {
        let mut w = World::new();
        w.promote(0).unwrap();
        w.settled();
        w.cut();
        w.write(0, 0, 1, 65536);
        w.cut = false;
        w.until("the resync", |w| w.status(0).peers[0].replication == ReplicationState::SyncSource);
        w.steps(steps);
        w.hosts[0].write_fails = true;
        let write = w.begin_write(0, 4096, 2);
        let result = w.reply(0, write);
        w.hosts[0].write_fails = false;
        if w.status(0).disk == DiskState::UpToDate {
            failed += usize::from(result.is_err());
            w.settled();
        }
    }
    assert!(failed > 5, "the resync was over before the write, {failed} times not");
}

/// A copy that was restored from an image is recognised however often the handshake is cut.
#[test]
fn a_restored_copy_is_filled_after_a_cut_at_any_moment() {
    for steps in 0..STEPS {
        let mut w = World::new();
        w.promote(0).unwrap();
        w.settled();
        w.write(0, 0, 1, 4096);
        w.command(0, Command::Demote { force: false }).unwrap();
        let image = (w.hosts[1].meta.clone(), w.hosts[1].data.clone());
        w.cut();
        w.cut = false;
        w.settled();
        w.promote(0).unwrap();
        w.write(0, 0, 2, 4096);
        w.command(0, Command::Demote { force: false }).unwrap();
        (w.hosts[1].meta, w.hosts[1].data) = image;
        w.kill(1);
        w.until("they meet", |w| w.status(1).peers[0].connection == ConnectionState::Negotiating);
        w.steps(steps);
        w.cut();
        w.cut = false;
        w.settled();
        assert_eq!(w.hosts[1].data[0], 2, "after {steps} steps");
    }
}

/// Where one copy has adopted the generation and the other has not, the operator names the first as the source.
#[test]
fn an_adoption_that_is_interrupted_at_any_moment_needs_one_command() {
    let mut told = 0;
    for steps in 0..2 * STEPS {
        let zero = vec![0; usize::try_from(SIZE).unwrap()];
        let mut w = World::with([meta_file(0, false, true), meta_file(1, false, true)], zero);
        w.until("they meet", |w| w.status(1).peers[0].connection == ConnectionState::Negotiating);
        w.steps(steps / 2);
        w.kill(steps % 2);
        w.until("they meet again", |w| {
            let shown = w.status(0).peers[0].replication;
            shown == ReplicationState::Established || shown == ReplicationState::NoSource
        });
        if w.status(0).peers[0].replication == ReplicationState::NoSource {
            told += 1;
            let adopter = (0..2).find(|&i| w.status(i).generation.is_some()).unwrap();
            assert!(matches!(w.promote(adopter), Err(Refusal::MayBeStale { .. })));
            let flag = Command::Promote { peer_is_down: true, accept_data_loss: false };
            assert_eq!(w.command(adopter, flag), Ok(Done::Changed), "after {steps} steps");
        }
        w.settled();
    }
    assert!(told > 0, "no cut came between the two");
}

/// Ordering 4: from the farewell's fdatasync on, what it does not cover counts on the copy that stays alone.
#[test]
fn nothing_is_acknowledged_between_a_farewell_and_the_rotation() {
    let mut w = World::new();
    w.promote(0).unwrap();
    w.settled();
    w.write(0, 0, 1, 4096);
    w.hosts[0].held = Some(vec![]);
    w.hosts[1].handle(w.now, Event::Command { id: CommandId(9000), command: Command::Leave });
    w.until("the farewell's flush", |w| w.hosts[0].held.as_ref().is_some_and(|held| held.len() == 1));
    let write = w.begin_write(0, 0, 2);
    w.steps(STEPS);
    assert_eq!(w.hosts[1].data[0], 2, "both have written it");
    assert!(!w.hosts[0].replies.iter().any(|(of, _)| *of == write), "acknowledged too early");
    for op in w.hosts[0].held.take().unwrap() {
        w.deliver(0, Pending::Disk(op, None));
    }
    assert_eq!(w.reply(0, write), Ok(()));
    assert_eq!(open(&w.hosts[0].meta).superblock.peers[0].copy, PeerCopy::RotatedWithout);
    w.until("it has left", |w| w.hosts[1].done.contains(&(CommandId(9000), Ok(Done::LeftAsOutdated))));
}

/// D3: it has the word of both that it is behind, and then it loses the peer before that has met the verdict, too.
#[test]
fn a_copy_that_was_told_to_be_the_target_is_not_promoted_as_one_that_may_be_behind() {
    let mut told = 0;
    for steps in 0..STEPS {
        let mut w = World::new();
        w.promote(0).unwrap();
        w.settled();
        w.cut();
        w.write(0, 0, 2, 4096);
        w.cut = false;
        w.until("they meet", |w| w.status(1).peers[0].connection == ConnectionState::Negotiating);
        w.steps(steps);
        w.hosts[1].held_meta = Some(vec![]);
        w.cut();
        w.release_meta(1);
        w.until("nothing is under way", |w| w.hosts[1].inbox.is_empty());
        if open(&w.hosts[1].meta).superblock.inconsistent.is_none() {
            continue;
        }
        told += 1;
        let flag = Command::Promote { peer_is_down: true, accept_data_loss: false };
        let refused = w.command(1, flag);
        assert!(matches!(refused, Err(Refusal::DataLoss { .. })), "after {steps} steps: {refused:?}");
        w.cut = false;
        w.settled();
        assert_eq!(w.hosts[1].data[0], 2, "after {steps} steps");
    }
    assert!(told > 1, "told {told} times");
}
