//! Checks over both machines: the cover of differing sectors by durable metadata (C4), what a promoted copy
//! holds (C2), and that a healed cluster converges (C8), is at rest and has answered everything (C11, C12).

use crate::points::points_unrest;
use crate::setup::MS;
use crate::world::{Ev, Phase, World};
use lockstep_bitmap::Store;
use lockstep_core::{DiskState, Node, ReplicationState, Role, Status};

/// A healed cluster has this long to come to rest, in virtual time.
const REST_NS_MAX: u64 = 60_000 * MS;

impl World {
    /// The caches write back a little; the cover is checked.
    pub(crate) fn idle(&mut self) {
        for n in 0..2 {
            let rng = &mut self.rng.disk[n];
            if rng.coin() {
                self.hosts[n].disk.evict(rng);
            }
        }
        self.check_cover();
        self.check_points_everywhere();
        let gap = self.rng.clock.spread(60 * MS);
        self.after(gap, Ev::Idle);
    }

    /// D5: each sector that differs, or may differ after a power loss at this instant, is in a durable
    /// bitmap or activity map.
    pub(crate) fn check_cover(&mut self) {
        if self.hosts.iter().any(|host| host.restored) {
            // Nothing of what it lacks is known before the next handshake.
            return;
        }
        let stores = match (self.record(0), self.record(1)) {
            (Ok(a), Ok(b)) => [a, b],
            (Err(why), _) | (_, Err(why)) => return self.fail("recover", why),
        };
        if Self::is_covered_in_full(&stores) {
            return;
        }
        let (a, b) = (&self.hosts[0].disk, &self.hosts[1].disk);
        let block_sectors = 1_usize << (self.setup.block_shift - 9);
        let uncovered = (0..self.setup.sectors).find(|&sector| {
            let tag = a.visible()[sector];
            (a.may_differ(sector, tag) || b.may_differ(sector, tag))
                && !stores.iter().any(|store| covers(store, (sector / block_sectors) as u64))
        });
        if let Some(sector) = uncovered {
            let words = [0, 1].map(|n| self.hosts[n].disk.describe(sector));
            let hot = stores.each_ref().map(|s| s.activity.hot_regions().map(|r| r.0).collect::<Vec<_>>());
            self.fail(
                "C4 cover",
                format!(
                    "sector {sector} (block {}, region {}) differs, and no durable bit or mark covers it: \
                     {} / {}; hot {hot:?}",
                    sector / block_sectors,
                    (sector * 512) >> self.setup.region_shift,
                    words[0],
                    words[1]
                ),
            );
        }
    }

    /// A copy that was just opened to clients holds what they may expect.
    pub(crate) fn check_opened(&mut self, n: usize, node: &Node) {
        self.check_points(n, node);
        if node.status().disk != DiskState::UpToDate {
            return;
        }
        let (line, seq) = (self.lines.of[n], self.seq);
        for sector in 0..self.setup.sectors {
            let tag = self.hosts[n].disk.visible()[sector];
            if let Err(why) = self.lines.all[line].check(sector, tag, seq) {
                return self.fail("C2", format!("node {n} was promoted (line {line}): {why}"));
            }
        }
    }

    /// The faults end: everything is started, heard and connected again.
    pub(crate) fn calm(&mut self) {
        self.say(format_args!("CALM"));
        self.phase = Phase::Calm;
        self.aimed = None;
        // What was on somebody's mind in the storm is no part of what follows.
        self.operator.loser = None;
        self.hosts.iter_mut().for_each(|host| host.booting = false);
        self.silent_until = [self.now; 2];
        (self.refuse_until, self.stranger_until) = (0, 0);
        (0..2).for_each(|n| self.heal(n));
        for n in 0..2 {
            self.hosts[n].unreadable.clear();
            if self.hosts[n].is_paused(self.now) {
                self.hosts[n].paused_until_ns = self.now;
                self.resume(n, self.hosts[n].process);
            }
        }
        self.break_for_good();
        self.restart_later();
        self.after(500 * MS, Ev::Rest);
    }

    /// Polls whether the healed cluster has come to rest.
    pub(crate) fn rest(&mut self) {
        // A command to leave may have been under way when the faults ended.
        self.restart_later();
        if let Some(n) = self.survivor() {
            match self.rest_alone(n) {
                None => {}
                Some(why) if self.is_late_alone() => {
                    let state = self.look(n).map_or("down".into(), |status| short(&status));
                    self.fail("D7 alone", format!("{why}; node {n} {state}"));
                }
                Some(_) => self.after(50 * MS, Ev::Rest),
            }
            return;
        }
        if self.phase == Phase::Calm {
            self.phase = Phase::Quiet;
            (0..self.clients.len()).for_each(|client| self.client_ends(client));
        }
        let seen = [0, 1].map(|n| self.look(n));
        match self.unrest(&seen) {
            None => {
                self.check_final(&seen);
                self.phase = Phase::Done;
            }
            Some(why) if self.now > self.setup.stormy_ns + REST_NS_MAX => {
                let states = seen.each_ref().map(|s| s.as_ref().map_or("down".into(), short));
                self.fail("C8 C12", format!("no rest: {why}; {} / {}", states[0], states[1]));
            }
            Some(_) => self.after(50 * MS, Ev::Rest),
        }
    }

    /// What is still missing.
    fn unrest(&self, seen: &[Option<Status>; 2]) -> Option<String> {
        let [Some(a), Some(b)] = seen else { return Some("a node is down".into()) };
        for (n, s) in [a, b].into_iter().enumerate() {
            let host = &self.hosts[n];
            if !host.requests.is_empty() {
                let oldest = host.requests.iter().next();
                return Some(format!("node {n} has not answered request {oldest:?}"));
            }
            if !host.commands.is_empty() {
                return Some(format!("node {n} has not answered {:?}", host.commands));
            }
            let peer = &s.peers[0];
            if s.disk != DiskState::UpToDate || peer.replication != ReplicationState::Established {
                return Some(format!("node {n} is not UpToDate and Established"));
            }
            if peer.out_of_sync_bytes != 0 || s.undurable_writes != 0 {
                return Some(format!("node {n} has dirty or undurable blocks"));
            }
            if !host.ops.is_empty() || !host.meta_ops.is_empty() {
                return Some(format!("node {n} has operations in flight"));
            }
            if let Some(session) = host.sessions.values().next() {
                return Some(format!("node {n} still has a session: {}", session.describe()));
            }
            if host.node.as_ref().is_some_and(|node| node.pieces() > 0) {
                return Some(format!("node {n} has pieces of work"));
            }
            if !host.slots.is_empty() {
                return Some(format!("node {n} holds slots {:?}", host.slots.keys()));
            }
        }
        if a.role != Role::Primary && b.role != Role::Primary {
            return Some("no node is Primary".into());
        }
        if let Some(why) = points_unrest(a, b) {
            return Some(why);
        }
        let same = a.generation.as_ref().map(|g| g.id) == b.generation.as_ref().map(|g| g.id);
        if same { None } else { Some("the generations differ".into()) }
    }

    fn check_final(&mut self, seen: &[Option<Status>; 2]) {
        self.check_points_everywhere();
        if seen.iter().flatten().all(|s| s.role == Role::Primary) {
            return self.fail("C7", "both nodes are Primary and Established".into());
        }
        let primary = usize::from(seen[1].as_ref().is_some_and(|s| s.role == Role::Primary));
        let (line, seq) = (self.lines.of[primary], self.next_seq());
        for sector in 0..self.setup.sectors {
            let tags = [0, 1].map(|n| self.hosts[n].disk.visible()[sector]);
            if tags[0] != tags[1] {
                let words = [0, 1].map(|n| self.hosts[n].disk.describe(sector));
                return self.fail(
                    "C8",
                    format!("the copies differ in sector {sector}: {} / {}", words[0], words[1]),
                );
            }
            if let Err(why) = self.lines.all[line].check(sector, tags[0], seq) {
                return self.fail("C2", format!("at the end (line {line}): {why}"));
            }
        }
    }
}

fn covers(store: &Store, block: u64) -> bool {
    let geometry = store.geometry();
    let index = lockstep_bitmap::BlockIndex(block);
    let first_byte = block << geometry.block_shift();
    store.slots[0].bits.is_dirty(index)
        || store.activity.hot_regions().any(|region| region == geometry.region_of_byte(first_byte))
}

/// A status in one line.
pub(crate) fn short(s: &Status) -> String {
    let peer = &s.peers[0];
    format!(
        "{} {} {:?}/{:?} gen {:?} term {} dirty {} undurable {} hot {} requests {} \
         suspended {} unclean {} next {:?}",
        s.role,
        s.disk,
        peer.connection,
        peer.replication,
        s.generation.as_ref().map(|g| (g.ordinal, g.id.to_string())),
        s.term,
        peer.out_of_sync_bytes,
        s.undurable_writes,
        s.hot_regions,
        s.requests,
        s.suspended,
        s.unclean,
        s.next_deadline
    )
}
