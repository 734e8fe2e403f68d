//! Directed scenarios that everything at random meets seldom: a cut at each moment of a return, two operators at once,
//! one way silence, hundreds of cuts. `docs/SCENARIOS.md` names which is which.

use super::*;

const PEER_IS_DOWN: Command = Command::Promote { peer_is_down: true, accept_data_loss: false };
const PROMOTE: Command = Command::Promote { peer_is_down: false, accept_data_loss: false };
/// More steps than a return with a few dirty blocks takes.
const STEPS: usize = 80;

impl World {
    fn try_step(&mut self, steps: usize) {
        for _ in 0..steps {
            self.step();
        }
    }

    /// Both ends learn at once that the connection is gone; what was on the way is.
    fn reset(&mut self) {
        let link = LinkId(self.next_link - 1);
        for host in &mut self.hosts {
            host.inbox.retain(|pending| !matches!(pending, Pending::Frame(..)));
            host.outbox.clear();
            host.inbox.push_back(Pending::LinkDown(link));
        }
    }

    fn begin(&mut self, i: usize, command: Command) -> CommandId {
        let id = CommandId(self.next_req);
        self.next_req += 1;
        self.hosts[i].handle(self.now, Event::Command { id, command });
        id
    }

    fn answer(&self, i: usize, id: CommandId) -> Option<Result<Done, Refusal>> {
        self.hosts[i].done.iter().find(|(of, _)| *of == id).map(|(_, result)| *result)
    }

    fn send_write(&mut self, i: usize, offset: u64, fill: u8) -> ReqId {
        let req = self.request(i, RequestKind::Write, (offset, 4096), false);
        let slot = self.hosts[i].slot((offset, vec![fill; 4096]));
        self.hosts[i].handle(self.now, Event::Payload { req, offset, len: 4096, slot });
        req
    }

    /// The disk that a node gave up is given back to it.
    pub(super) fn attach(&mut self, i: usize) {
        let id = CommandId(self.next_req);
        self.next_req += 1;
        let store = open(&self.hosts[i].meta);
        let disk = NewDisk { store, granule_bytes: 512, survives_process_death: true, sample: 0 };
        let (now, host) = (self.now, &mut self.hosts[i]);
        host.node.attach_store(now, id, disk).unwrap();
        while let Some(action) = host.node.poll_action() {
            host.execute(action);
        }
        self.until("it is attached", |w| w.answer(i, id) == Some(Ok(Done::Changed)));
    }

    fn moved(&self) -> u64 {
        self.status(0).peers[0].resynced_bytes_total
    }

    fn primaries(&self) -> usize {
        (0..2).filter(|&i| self.status(i).role == Role::Primary).count()
    }
}

/// A Primary that wrote 64 KiB without its peer, which is there again.
fn returning() -> World {
    let mut w = World::new();
    w.promote(0).unwrap();
    w.settled();
    w.cut();
    w.write(0, 65536, 3, 65536);
    w.cut = false;
    w
}

/// Scenarios 7 and 10: whatever was the last message that arrived, the rest is copied, in the same direction, once.
#[test]
fn a_cut_at_any_moment_of_a_return_costs_no_more_than_the_return() {
    for steps in 0..STEPS {
        let mut w = returning();
        let before = w.moved();
        w.until("they meet", |w| w.status(1).peers[0].connection == ConnectionState::Negotiating);
        w.try_step(steps);
        w.reset();
        w.settled();
        assert_eq!(w.hosts[0].data[65536], 3, "after {steps} steps");
        let moved = w.moved() - before;
        assert!((65536..=2 * 65536).contains(&moved), "{moved} bytes after {steps} steps");
        assert_eq!(w.status(0).generation, w.status(1).generation);
    }
}

/// Scenario 7: the Primary, or the peer, is killed in any step in which a generation begins or is taken over.
#[test]
fn a_kill_at_any_moment_of_a_return_is_no_split_brain() {
    for steps in 0..2 * STEPS {
        let mut w = returning();
        w.until("they meet", |w| w.status(1).peers[0].connection == ConnectionState::Negotiating);
        // Only the mark of its region says by now that it may be on one disk and not on the other.
        w.send_write(0, 1 << 20, 4);
        w.try_step(steps / 2);
        w.kill(steps % 2);
        w.settled();
        assert_eq!(w.hosts[1].data[65536], 3, "after {steps} steps");
    }
}

/// Scenario 13: each cut comes after a few steps of whatever is under way; no write may be lost or answered with an
/// error, and each return is by bitmap.
#[test]
fn five_hundred_cuts_under_load() {
    let mut w = World::new();
    w.promote(0).unwrap();
    w.settled();
    let before = w.moved();
    let mut draw = 1_u64;
    let (mut written, mut versions) = (0, [0_u8; 16]);
    for _ in 0..500 {
        draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (block, steps) = ((draw >> 33) as usize % 16, (draw >> 40) as usize % 40);
        versions[block] = versions[block].wrapping_add(1).max(1);
        let offset = block as u64 * 131_072;
        let req = w.send_write(0, offset, versions[block]);
        w.try_step(steps);
        w.reset();
        assert_eq!(w.reply(0, req), Ok(()));
        written += 4096;
        if draw >> 60 == 0 {
            w.settled();
        }
    }
    w.settled();
    for (block, version) in versions.iter().enumerate() {
        assert_eq!(w.hosts[1].data[block * 131_072], *version, "block {block}");
    }
    // Each write misses the peer at most once, and then waits for as many returns as it takes.
    let moved = w.moved() - before;
    assert!(moved > 0 && moved <= 40 * written, "{moved} bytes for {written} written");
}

/// Scenario 14: what one side sends arrives, what the other sends does not: both let go within the timeout, the writes
/// are answered, and nothing has parted.
#[test]
fn silence_in_one_direction_is_noticed_by_both() {
    for mute in 0..2 {
        let mut w = World::new();
        w.promote(0).unwrap();
        w.settled();
        let began = w.now.0;
        w.mute = Some(mute);
        w.write(0, 0, 1, 4096);
        w.until("both let go", |w| {
            (0..2).all(|i| w.status(i).peers[0].connection != ConnectionState::Connected)
        });
        let took_s = (w.now.0 - began) / 1_000_000_000;
        let timeout = Timing::default().timeout.as_secs();
        assert!((timeout..=2 * timeout).contains(&took_s), "{took_s} s");
        w.write(0, 4096, 2, 4096);
        w.mute = None;
        w.settled();
        assert_eq!((w.hosts[1].data[0], w.hosts[1].data[4096]), (1, 2));
    }
}

/// Scenario 17: two operators type the same at once, or a few steps apart, and the connection may be cut at any moment:
/// there is never more than one Primary of one history, the other one is told why, and neither waits for ever.
#[test]
fn of_a_thousand_races_for_the_role_each_has_one_winner_at_most() {
    let (mut wins, mut refused) = ([0; 2], 0);
    let mut w = World::new();
    w.settled();
    for round in 0..1000_usize {
        let (first, apart, cut) = (round % 2, round / 2 % 12, round / 24 % 24);
        let ids = [w.begin(first, PROMOTE), {
            w.try_step(apart);
            w.begin(1 - first, PROMOTE)
        }];
        if round % 3 == 0 {
            w.try_step(cut);
            w.reset();
        }
        let nodes = [first, 1 - first];
        w.until("both are answered", |w| (0..2).all(|k| w.answer(nodes[k], ids[k]).is_some()));
        let won: Vec<usize> =
            (0..2).filter(|&k| w.answer(nodes[k], ids[k]).unwrap().is_ok()).map(|k| nodes[k]).collect();
        assert!(won.len() <= 1, "round {round}: both were promoted");
        assert!(won.len() == 1 || round % 3 == 0, "round {round}: nobody was promoted");
        assert_eq!(w.primaries(), won.len(), "round {round}");
        refused += 2 - won.len();
        for winner in won {
            wins[winner] += 1;
            w.command(winner, Command::Demote { force: false }).unwrap();
        }
        w.settled();
    }
    assert!(wins.iter().all(|&n| n > 100) && refused >= 1000, "{wins:?}, {refused} refused");
}

/// Scenario 27: whatever was copied before, the copy is Inconsistent until all of it is there; the Primary's clients
/// notice nothing.
#[test]
fn a_target_whose_disk_fails_at_any_moment_is_filled_after_it_was_replaced() {
    let mut failed = 0;
    for steps in 0..STEPS {
        let mut w = returning();
        w.until("they meet", |w| w.status(1).peers[0].connection == ConnectionState::Negotiating);
        w.try_step(steps);
        w.hosts[1].write_fails = true;
        let write = w.send_write(0, 0, 4);
        assert_eq!(w.reply(0, write), Ok(()), "after {steps} steps");
        w.until("it has failed", |w| w.status(1).disk < DiskState::Inconsistent);
        w.hosts[1].write_fails = false;
        w.until("its files are closed", |w| w.hosts[1].inbox.is_empty());
        failed += usize::from(open(&w.hosts[1].meta).superblock.inconsistent.is_some());
        w.attach(1);
        assert!(w.status(1).disk < DiskState::Consistent, "after {steps} steps");
        w.settled();
        assert_eq!((w.hosts[1].data[0], w.hosts[1].data[65536]), (4, 3), "after {steps} steps");
    }
    assert!(failed > 5, "{failed} failures in the middle of a resync");
}

/// Scenario 34: the copy that was being filled is promoted by force, and the source comes back: nothing is mixed, and
/// nothing is overwritten before somebody has said which one loses.
#[test]
fn a_half_filled_copy_promoted_by_force_is_copied_back_only_when_told() {
    let mut w = returning();
    w.until("a target", |w| w.status(1).disk == DiskState::Inconsistent);
    w.cut = true;
    w.kill(0);
    w.until("alone", |w| w.status(1).peers[0].connection == ConnectionState::Connecting);
    assert!(matches!(w.promote(1), Err(Refusal::DataLoss { .. })));
    assert!(matches!(w.command(1, PEER_IS_DOWN), Err(Refusal::DataLoss { .. })));
    let by_force = Command::Promote { peer_is_down: true, accept_data_loss: true };
    assert_eq!(w.command(1, by_force), Ok(Done::Changed));
    w.write(1, 0, 9, 4096);
    w.cut = false;
    w.until("both say so", |w| {
        (0..2).all(|i| w.status(i).peers[0].replication == ReplicationState::SplitBrain)
    });
    assert_eq!((w.hosts[0].data[65536], w.hosts[0].data[0] == 9), (3, false), "the source is untouched");
    assert_eq!(w.command(1, Command::Resolve { discard: NodeId(0) }), Ok(Done::Changed));
    w.settled();
    assert_eq!(w.hosts[0].data[0], 9);
}

/// A split brain of two Secondaries: the first block of each says whose it is.
fn split() -> World {
    let mut w = World::new();
    w.promote(0).unwrap();
    w.settled();
    w.cut();
    w.write(0, 0, 3, 4096);
    assert_eq!(w.command(1, PEER_IS_DOWN), Ok(Done::Changed));
    w.write(1, 0, 9, 4096);
    (0..2).for_each(|i| _ = w.command(i, Command::Demote { force: false }).unwrap());
    w.cut = false;
    w.until("split brain", is_split);
    w
}

fn is_split(w: &World) -> bool {
    w.status(1).peers[0].replication == ReplicationState::SplitBrain
}

/// An operator who names the wrong loser and says so before the nodes have met again is heard.
#[test]
fn the_last_word_on_a_split_brain_counts() {
    let mut w = split();
    assert_eq!(w.command(1, Command::Resolve { discard: NodeId(1) }), Ok(Done::Changed));
    assert!(!is_split(&w), "the nodes meet again to hear of it");
    assert_eq!(w.command(1, Command::Resolve { discard: NodeId(0) }), Ok(Done::Changed));
    w.settled();
    assert_eq!([0, 1].map(|i| w.hosts[i].data[0]), [9, 9], "the word that was taken back was carried out");
}

/// The same word again takes nothing back, though nobody is there to hear it.
#[test]
fn a_word_on_a_split_brain_that_is_said_twice_counts() {
    let mut w = split();
    let resolve = Command::Resolve { discard: NodeId(0) };
    assert_eq!(w.command(1, resolve), Ok(Done::Changed));
    w.command(1, Command::Disconnect).unwrap();
    assert_eq!(w.command(1, resolve), Err(Refusal::NothingToResolve));
    w.command(1, Command::Connect).unwrap();
    w.settled();
    assert_eq!([0, 1].map(|i| w.hosts[i].data[0]), [9, 9]);
}

/// Scenario 40: a Primary that is being filled has lost its source: what it has not got is not answered, least of all
/// with what its own disk holds; what it has is.
#[test]
fn a_primary_that_is_being_filled_waits_for_its_source() {
    let mut w = returning();
    w.command(1, Command::Sync(SyncOrder::Pause)).unwrap();
    w.until("a target", |w| w.status(1).peers[0].replication == ReplicationState::PausedTarget);
    w.command(0, Command::Demote { force: false }).unwrap();
    w.promote(1).unwrap();
    let read = w.request(1, RequestKind::Read, (65536, 4096), false);
    assert_eq!(w.reply(1, read), Ok(()));
    assert!(w.hosts[1].reads.is_empty(), "read from a disk that is stale there");
    w.cut();
    let reads = [65536, 0].map(|offset| w.request(1, RequestKind::Read, (offset, 4096), false));
    w.try_step(STEPS);
    let answered = |w: &World, req| w.hosts[1].replies.iter().any(|(of, _)| *of == req);
    assert!(!answered(&w, reads[0]), "answered with what is not there");
    w.cut = false;
    assert_eq!(w.reply(1, reads[0]), Ok(()));
    assert_eq!(w.reply(1, reads[1]), Ok(()));
    assert!(!w.hosts[1].reads.contains(&65536), "read from a disk that is stale there");
    // Nobody returns: an error after a while.
    w.cut();
    let read = w.request(1, RequestKind::Read, (65536, 4096), false);
    for _ in 0..3 {
        let end = w.now.0 + 25_000_000_000;
        w.until("time passes", |w| w.now.0 >= end);
    }
    assert!(w.hosts[1].replies.contains(&(read, Err(IoError::Io))), "it waits for ever");
    w.cut = false;
    w.command(1, Command::Sync(SyncOrder::Resume)).unwrap();
    w.settled();
}

/// Scenario 42: each node in turn gives its disk up and takes it back, with writes before, between and after, a few
/// steps apart: clients notice nothing, and what comes back is brought up to date by bitmap.
#[test]
fn disks_go_and_come_under_load() {
    let mut w = World::new();
    w.promote(0).unwrap();
    w.settled();
    let before = w.moved();
    for round in 0..2 * STEPS {
        let i = round % 2;
        let fill = u8::try_from(round).unwrap() + 1;
        let first = w.send_write(0, 131_072, fill);
        w.try_step(round / 2 % 8);
        let detach = w.begin(i, Command::Detach);
        w.try_step(round / 4);
        let second = w.send_write(0, 0, fill);
        w.until("it is detached", |w| w.answer(i, detach).is_some());
        assert_eq!(w.answer(i, detach), Some(Ok(Done::Changed)), "round {round}");
        let third = w.send_write(0, 262_144, fill);
        assert_eq!([first, second, third].map(|req| w.reply(0, req)), [Ok(()); 3], "round {round}");
        w.until("its files are closed", |w| w.hosts[i].inbox.is_empty());
        w.attach(i);
        let last = w.send_write(0, 4096, fill);
        assert_eq!(w.reply(0, last), Ok(()));
        w.settled();
        assert_eq!([0, 4096, 131_072, 262_144].map(|at| w.hosts[i].data[at]), [fill; 4], "round {round}");
    }
    // Three regions may have been hot each time, and at most four blocks were missed.
    let moved = w.moved() - before;
    assert!(moved <= 2 * STEPS as u64 * (3 * 131_072 + 4 * 4096), "{moved} bytes");
}
