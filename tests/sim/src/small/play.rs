//! One run: two fresh nodes are synchronised, the writes are sent, somebody crashes, and the checkers judge what comes
//! after it.

use super::case::{BLOCK_SECTORS, Case, REST_NS, Then, Work};
use super::odometer::Odometer;
use super::watch::Watch;
use crate::decision::ClientAct;
use crate::host::Stop;
use crate::setup::MS;
use crate::world::{Ev, Phase, World};
use lockstep_core::{Command, DiskState, ExportState, Refusal, ReplicationState, RequestKind};
use std::hash::{DefaultHasher, Hash, Hasher};

const PROMOTE: Command = Command::Promote { peer_is_down: false, accept_data_loss: false };
const PEER_IS_DOWN: Command = Command::Promote { peer_is_down: true, accept_data_loss: false };
const ACCEPT_DATA_LOSS: Command = Command::Promote { peer_is_down: true, accept_data_loss: true };

/// The world of one run.
pub(crate) struct Play {
    pub(crate) world: World,
    case: Case,
    /// Hash of what the crash has left, if nobody lives.
    pub(crate) left: Option<u64>,
}

impl Play {
    pub(crate) fn new(case: Case, at: u64, outcomes: Odometer, log: bool) -> Self {
        let [primary, secondary] = case.crash.victims();
        let victims = if case.primary() == 0 { [primary, secondary] } else { [secondary, primary] };
        let watch = Watch::new(at, victims, case.crash.how(), outcomes);
        let world = World::still(case.setup(), watch, log);
        Play { world, case, left: None }
    }

    /// Up to the crash. False if there is none: the work is done before the step that it waits for.
    pub(crate) fn crash(&mut self) -> bool {
        let p = self.case.primary();
        self.boot(0, 0);
        self.boot(1, 0);
        self.until("synchronised", |w| [0, 1].iter().all(|&n| settled(w, n)));
        self.command(p, PROMOTE);
        self.until("promoted", |w| w.hosts[p].export == ExportState::Open);
        self.wait(REST_NS);
        if !matches!(self.case.work, Work::Return | Work::Move) {
            self.begin();
        }
        self.work(p);
        self.wait(REST_NS);
        let came = self.world.watch.as_mut().is_some_and(Watch::end);
        if came {
            self.world.check_cover();
            let nobody_lives = self.world.hosts.iter().all(|host| host.node.is_none());
            self.left = nobody_lives.then(|| self.state());
        }
        came
    }

    /// From here on each step is one at which somebody may crash.
    fn begin(&mut self) {
        if let Some(watch) = &mut self.world.watch {
            watch.begin();
        }
    }

    fn work(&mut self, p: usize) {
        match self.case.work {
            Work::Plain => {
                self.ask(p, RequestKind::Write, 0, false);
                self.ask(p, RequestKind::Write, 1, false);
                self.ask(p, RequestKind::Write, 0, false);
            }
            Work::Flush => {
                self.ask(p, RequestKind::Write, 0, false);
                self.answered();
                self.ask(p, RequestKind::Flush, 0, false);
                self.ask(p, RequestKind::Write, 1, true);
                self.answered();
                self.ask(p, RequestKind::Write, 0, false);
            }
            Work::Zeroes => {
                self.ask(p, RequestKind::Write, 0, false);
                self.answered();
                self.ask(p, RequestKind::Zero { no_hole: false }, 0, false);
                self.ask(p, RequestKind::Trim, 1, false);
            }
            Work::Degraded => {
                self.write_alone(p);
                self.ask(p, RequestKind::Write, 0, false);
            }
            Work::Return => {
                self.write_alone(p);
                self.answered();
                self.begin();
                self.boot(1 - p, 0);
                self.until("a target", |w| replicates(w, 1 - p, ReplicationState::SyncTarget));
                self.ask(p, RequestKind::Write, 0, false);
                self.until("synchronised", |w| [0, 1].iter().all(|&n| settled(w, n)));
            }
            Work::Move => {
                self.ask(p, RequestKind::Write, 0, false);
                self.ask(p, RequestKind::Write, 1, false);
                self.wait(MS / 2);
                self.begin();
                self.command(p, Command::Demote { force: true });
                self.command(1 - p, PROMOTE);
                self.ask(1 - p, RequestKind::Write, 0, false);
                self.answered();
            }
        }
        self.answered();
    }

    /// The first write, then the peer is gone, and the second.
    fn write_alone(&mut self, p: usize) {
        self.ask(p, RequestKind::Write, 0, false);
        self.answered();
        if !self.is_over() {
            self.world.stop(1 - p, Stop::Kill);
        }
        self.ask(p, RequestKind::Write, 1, false);
    }

    /// What happens after the crash, to the end.
    pub(crate) fn go_on(&mut self) {
        let p = self.case.primary();
        let alive = (0..2).find(|&n| self.world.hosts[n].node.is_some());
        match self.case.then {
            Then::Meet => self.meet(p),
            Then::MeetReversed => self.meet(1 - p),
            Then::FailOver => {
                self.serve_alone(alive.unwrap_or(1 - p));
                self.meet(p);
            }
            Then::GoOn => {
                self.serve_alone(p);
                self.meet(p);
            }
            Then::Stale => {
                let n = alive.unwrap_or(1 - p);
                self.serve_alone(n);
                self.lose(n);
                self.meet(1 - n);
            }
        }
    }

    /// One node serves clients while the other is down, as an honest operator would have it.
    fn serve_alone(&mut self, n: usize) {
        if self.world.hosts[n].node.is_none() {
            self.boot(n, 0);
            self.wait(5 * MS);
        }
        for _ in 0..40 {
            if self.world.hosts[n].export == ExportState::Open {
                break;
            }
            match self.world.hosts[n].refused {
                Some((Refusal::MayBeStale { .. }, _)) => self.command(n, PEER_IS_DOWN),
                Some((Refusal::DataLoss { .. }, _)) => self.command(n, ACCEPT_DATA_LOSS),
                _ => self.command(n, PROMOTE),
            }
            self.wait(25 * MS);
        }
        if !self.is_over() && self.world.hosts[n].export != ExportState::Open {
            let refused = self.world.hosts[n].refused;
            return self.world.fail("C12", format!("node {n} alone cannot be promoted: {refused:?}"));
        }
        self.ask(n, RequestKind::Write, 0, false);
        self.answered();
        self.wait(REST_NS);
    }

    /// The node that served alone loses its power; the other one starts, and its operator knows no flags.
    fn lose(&mut self, n: usize) {
        if self.is_over() {
            return;
        }
        self.world.stop(n, Stop::Power);
        self.boot(1 - n, 0);
        for _ in 0..2 {
            self.wait(50 * MS);
            self.command(1 - n, PROMOTE);
        }
        self.wait(50 * MS);
    }

    /// Whoever is down starts, `first` first; then the checkers for a healed pair.
    fn meet(&mut self, first: usize) {
        for (n, delay) in [(first, 0), (1 - first, 30 * MS)] {
            if self.world.hosts[n].node.is_none() {
                self.boot(n, delay);
            }
        }
        self.wait(40 * MS);
        let world = &mut self.world;
        world.phase = Phase::Calm;
        world.setup.stormy_ns = world.now;
        world.after(MS, Ev::Operator);
        world.after(20 * MS, Ev::Rest);
        world.run();
        if world.violation.is_none() && world.phase != Phase::Done {
            world.fail("C12", "nothing more happens, and the pair is not at rest".into());
        }
    }

    fn boot(&mut self, n: usize, delay: u64) {
        self.world.hosts[n].booting = true;
        self.world.after(delay, Ev::Boot(n, true));
    }

    fn command(&mut self, n: usize, command: Command) {
        if !self.is_over() {
            self.world.command(n, command);
            self.until("answered the operator", |w| w.hosts[n].commands.is_empty());
        }
    }

    fn is_over(&self) -> bool {
        self.world.violation.is_some() || self.world.watch.as_ref().is_some_and(Watch::is_crash)
    }

    fn wait(&mut self, ns: u64) {
        if !self.is_over() {
            self.world.run_until(self.world.now + ns);
        }
    }

    fn until(&mut self, what: &str, is_so: impl Fn(&World) -> bool) {
        for _ in 0..10_000 {
            if self.is_over() || is_so(&self.world) {
                return;
            }
            self.wait(MS / 2);
        }
        self.world.fail("C12", format!("not {what} after five seconds"));
    }

    fn answered(&mut self) {
        self.until("answered", |w| {
            w.clients[0].is_idle() && w.hosts.iter().all(|host| host.requests.is_empty())
        });
    }

    /// The client sends a request for one block, all of it at once.
    fn ask(&mut self, n: usize, kind: RequestKind, block: usize, fua: bool) {
        if self.is_over() {
            return;
        }
        if self.world.clients[0].host() != Some(n) {
            self.world.client_act(0, ClientAct::Leave);
            self.world.client_act(0, ClientAct::Join { n, structured: true });
            self.answered();
        }
        let range =
            if kind == RequestKind::Flush { (0, 0) } else { (self.case.block_at(block), BLOCK_SECTORS) };
        self.world.client_act(0, ClientAct::Request { kind, range, fua });
    }

    /// Everything that outlives a crash of both, and what the checkers expect of it.
    fn state(&self) -> u64 {
        let w = &self.world;
        let mut hasher = DefaultHasher::new();
        for host in &w.hosts {
            host.meta.bytes().hash(&mut hasher);
            format!("{:?}", host.disk.content()).hash(&mut hasher);
        }
        format!("{:?}{:?}", w.lines.all, w.failures).hash(&mut hasher);
        hasher.finish()
    }
}

fn replicates(w: &World, n: usize, how: ReplicationState) -> bool {
    w.look(n).is_some_and(|s| s.peers.iter().all(|p| p.replication == how))
}

fn settled(w: &World, n: usize) -> bool {
    w.look(n).is_some_and(|s| {
        s.disk == DiskState::UpToDate
            && s.peers
                .iter()
                .all(|p| p.replication == ReplicationState::Established && p.out_of_sync_bytes == 0)
    })
}
