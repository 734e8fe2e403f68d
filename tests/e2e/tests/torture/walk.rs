//! The walk: what is true of the pair by now, the steps that may follow, and the judgement after them.

use lockstep_e2e::{
    Cluster, Health, Ledger, Load, Node, Plan, RESOURCE, Ran, Rng, SwitchedDisk, Wires, assert_equal,
    temp_dir, wait_for,
};
use serde_json::Value;
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const SIZE_BYTES: u64 = 64 * MIB;
/// Until a pair on which nothing is wrong any more has what it needs for the next thing.
const MEND_LIMIT: Duration = Duration::from_secs(60);
const NAMES: [&str; 2] = ["alpha", "beta"];

/// One thing that happens. Nodes are meant by their role: 0 is the Primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    PullCable,
    /// Between the client and one of them.
    PullClient(usize),
    /// So many of a hundred packets vanish on the way to one of them.
    Lose(usize, u64),
    /// To both.
    LoseBoth(u64),
    /// SIGSTOP.
    Freeze(usize),
    Kill(usize),
    KillBoth,
    /// kill -9 of the Primary; the other one is promoted.
    FailOver,
    Disk(usize, Health),
    Move,
    Disconnect(usize),
    Invalidate,
    PauseSync,
    Detach(usize),
    /// Everything is mended, and nobody waits for what follows from it.
    Rejoin,
    /// The operator lies.
    SplitBrain,
}

/// A pair, and what is wrong with it.
pub(crate) struct Walk {
    /// Let go of before the daemons end that use them.
    disks: [SwitchedDisk; 2],
    cluster: Cluster,
    wires: Wires,
    images: [PathBuf; 2],
    load: Option<Load>,
    /// Who was Primary last.
    primary: usize,
    /// Nobody is, until everything is mended.
    is_vacant: bool,
    /// Nothing has happened since both copies were seen to be UpToDate and mirrored.
    is_whole: bool,
    is_wired: bool,
    is_frozen: [bool; 2],
    health: [Health; 2],
    is_detached: [bool; 2],
    /// Since the last judgement a disk failed, and a split brain was made.
    had_errors: bool,
    was_split: bool,
    /// Length of each log when it was read last.
    read: [usize; 2],
    steps: u64,
    _dir: TempDir,
}

/// Draws after which no step is left that makes sense.
const DRAWS_MAX: u32 = 1000;

impl Walk {
    /// Both copies equal and mirrored, alpha Primary, writers at work.
    pub(crate) fn new(seed: u64) -> Walk {
        let dir = temp_dir(false);
        let wires = Wires::new(dir.path());
        let plan = Plan {
            size_bytes: SIZE_BYTES,
            max_hot_bytes: 16 * MIB,
            disk_timeout_s: Some(2),
            hosts: Some(wires.pids()),
            ..Plan::default()
        };
        let mut cluster = Cluster::new(&plan);
        let images = [&cluster.alpha, &cluster.beta].map(|node| node.disk().with_extension("image"));
        let mut start = |which: usize| {
            let file = cluster.nodes()[which].disk().to_path_buf();
            File::create(&images[which]).and_then(|image| image.set_len(SIZE_BYTES)).expect("a sparse file");
            File::create(&file).expect("create a file");
            SwitchedDisk::start(&images[which], &file)
        };
        let disks = [start(0), start(1)];
        cluster.begin();
        let load = Some(Ledger::new(SIZE_BYTES, 4, seed).start(wires.export_of(0), 8));
        Walk {
            disks,
            cluster,
            wires,
            images,
            load,
            primary: 0,
            is_vacant: false,
            is_whole: true,
            is_wired: true,
            is_frozen: [false; 2],
            health: [Health::Well; 2],
            is_detached: [false; 2],
            had_errors: false,
            was_split: false,
            read: [0; 2],
            steps: 0,
            _dir: dir,
        }
    }

    /// How many steps were taken.
    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    /// Some steps, and the judgement. The number decides what happens.
    pub(crate) fn episode(&mut self, number: u64) {
        let mut rng = Rng::new(number);
        println!("episode LOCKSTEP_SEED={number}, {} is Primary", NAMES[self.primary]);
        for _ in 0..1 + rng.below(5) {
            // With both nodes frozen, the wire cut and a disk sick nothing else may be done to them.
            let mut drawn = (0..DRAWS_MAX).map(|_| draw(&mut rng));
            let Some(step) = drawn.find(|step| self.may(*step)) else { break };
            println!("  {step:?}");
            self.take(step, &mut rng);
            self.steps += 1;
            self.go_on(&mut rng);
        }
        self.mend();
        self.judge(&mut rng);
    }

    fn node(&mut self, which: usize) -> &mut Node {
        let [alpha, beta] = self.cluster.nodes();
        if which == 0 { alpha } else { beta }
    }

    /// The node in a role: 0 is the Primary.
    fn by_role(&self, role: usize) -> usize {
        if role == 0 { self.primary } else { 1 - self.primary }
    }

    fn is_up(&self, which: usize) -> bool {
        let nodes = [&self.cluster.alpha, &self.cluster.beta];
        nodes[which].is_running() && !self.is_frozen[which]
    }

    fn is_sick(&self) -> bool {
        self.health != [Health::Well; 2] || self.is_detached != [false; 2]
    }

    /// Whether a step makes sense, and leaves the operator a way that loses nothing.
    fn may(&self, step: Step) -> bool {
        let all_up = self.is_up(0) && self.is_up(1);
        let by_role = |role| self.by_role(role);
        match step {
            Step::PullCable | Step::PullClient(_) | Step::Lose(..) | Step::LoseBoth(_) => self.is_wired,
            Step::Freeze(role) => self.is_up(by_role(role)),
            // What hangs in a disk cannot be killed; and where one copy failed, the other one is all there is.
            Step::Kill(role) => self.is_up(by_role(role)) && !self.is_sick(),
            Step::KillBoth => all_up && !self.is_sick(),
            Step::FailOver
            | Step::Disk(..)
            | Step::Move
            | Step::Invalidate
            | Step::SplitBrain
            | Step::Detach(_) => self.is_whole,
            Step::Disconnect(role) => self.is_up(by_role(role)),
            Step::PauseSync => self.is_up(self.primary) && !self.is_vacant,
            Step::Rejoin => !self.is_whole && !self.is_sick(),
        }
    }

    fn take(&mut self, step: Step, rng: &mut Rng) {
        let is_planned = matches!(step, Step::Move | Step::FailOver | Step::SplitBrain);
        if !is_planned {
            self.is_whole = false;
        }
        match step {
            Step::PullCable => self.unwire(|wires| wires.plug(false)),
            Step::PullClient(role) => {
                let node = self.by_role(role);
                self.unwire(|wires| wires.plug_client(node, false));
            }
            Step::Lose(role, percent) => {
                let to = self.by_role(role);
                self.unwire(|wires| wires.lose(to, percent));
            }
            Step::LoseBoth(percent) => self.unwire(|wires| (0..2).for_each(|to| wires.lose(to, percent))),
            Step::Freeze(role) => {
                let which = self.by_role(role);
                self.node(which).pause();
                self.is_frozen[which] = true;
            }
            Step::Kill(role) => self.kill(self.by_role(role), rng),
            Step::KillBoth => {
                let first = rng.below(2) as usize;
                self.node(first).kill();
                self.node(1 - first).kill();
                self.is_vacant = true;
            }
            Step::FailOver => self.fail_over(),
            Step::Disk(role, health) => self.sicken(self.by_role(role), health),
            Step::Move => self.relocate(),
            Step::Disconnect(role) => {
                let which = self.by_role(role);
                self.types(which, &["disconnect", RESOURCE]).ok();
            }
            Step::Invalidate => {
                self.types(self.by_role(1), &["invalidate", RESOURCE]).ok();
            }
            Step::PauseSync => {
                self.types(self.primary, &["sync", RESOURCE, "--pause"]).ok();
            }
            Step::Detach(role) => {
                let which = self.by_role(role);
                self.types(which, &["detach", RESOURCE]).ok();
                self.is_detached[which] = true;
            }
            Step::Rejoin => self.rejoin(),
            Step::SplitBrain => self.split_brain(rng),
        }
    }

    fn types(&mut self, which: usize, words: &[&str]) -> Ran {
        println!("    {}: {}", NAMES[which], words.join(" "));
        self.node(which).lockstep(words)
    }

    fn unwire(&mut self, fault: impl Fn(&Wires)) {
        fault(&self.wires);
        self.is_wired = false;
    }

    /// The Secondary stays away until everything is mended; the Primary returns, and goes on if it may without a flag.
    fn kill(&mut self, which: usize, rng: &mut Rng) {
        self.node(which).kill();
        if which != self.primary || rng.below(3) == 0 {
            self.is_vacant |= which == self.primary;
            return;
        }
        self.node(which).start();
        let is_promoted = self.is_vacant || self.types(which, &["promote", RESOURCE]).code == 0;
        self.is_vacant = !is_promoted || self.is_vacant;
    }

    /// Both were mirrored when the Primary died, so that the other one has everything.
    fn fail_over(&mut self) {
        let (dead, next) = (self.primary, 1 - self.primary);
        self.node(dead).kill();
        self.node(next).wait_connection("Connecting");
        self.types(next, &["promote", RESOURCE]).refused(17, &["lockstep promote r0 --peer-is-down"]);
        self.types(next, &["promote", RESOURCE, "--peer-is-down"]).ok();
        self.lead(next);
        self.is_whole = false;
    }

    fn relocate(&mut self) {
        let (from, to) = (self.primary, 1 - self.primary);
        self.types(from, &["demote", RESOURCE, "--force"]).ok();
        self.types(to, &["promote", RESOURCE]).ok();
        self.lead(to);
    }

    fn lead(&mut self, which: usize) {
        self.primary = which;
        self.is_vacant = false;
        if let Some(load) = &self.load {
            load.retarget(self.wires.export_of(which));
        }
    }

    fn sicken(&mut self, which: usize, health: Health) {
        self.health[which] = health;
        self.had_errors |= health != Health::Slow;
        self.disks[which].switch(health);
        if health == Health::Slow {
            return;
        }
        // Until then the other copy must not be lost: that would be two failures.
        let nodes = [&self.cluster.alpha, &self.cluster.beta];
        nodes[which].wait_status("a failed copy", |status| status["disk"] == "Failed");
        let alone = |status: &Value| status["disk"] == "UpToDate" && status["protected"] == false;
        nodes[1 - which].wait_status("a copy that goes on alone", alone);
    }

    /// Writers write on where they must be able to; elsewhere some time passes.
    fn go_on(&mut self, rng: &mut Rng) {
        let is_served = !self.is_vacant && self.is_up(self.primary) && !self.is_sick();
        let load = self.load.as_ref().expect("writers are at work");
        if is_served && self.is_whole {
            load.wait_acked(50 + rng.below(500));
        } else {
            // Short and long against the time-out of the link, which is 2 s.
            let limit_ms = if rng.below(3) == 0 { 3500 } else { 400 };
            std::thread::sleep(Duration::from_millis(rng.below(limit_ms)));
        }
    }

    /// Cables, daemons, connections: all there again.
    fn rejoin(&mut self) {
        self.wires.heal();
        self.is_wired = true;
        for which in 0..2 {
            if std::mem::take(&mut self.is_frozen[which]) {
                self.node(which).resume();
            }
            if !self.node(which).is_running() {
                self.node(which).start();
            }
        }
        for which in 0..2 {
            self.types(which, &["connect", RESOURCE]).ok();
        }
    }

    /// Everything is made good, and both copies are UpToDate and mirrored, with a Primary.
    fn mend(&mut self) {
        println!("  mend");
        for which in 0..2 {
            if self.health[which] != Health::Well {
                self.disks[which].switch(Health::Well);
                self.health[which] = Health::Well;
            }
        }
        self.rejoin();
        for which in 0..2 {
            self.attach(which);
            self.types(which, &["sync", RESOURCE, "--resume"]).ok();
        }
        self.is_detached = [false; 2];
        if self.is_vacant {
            self.promote_somebody();
        }
        self.cluster.wait_synced();
        self.is_whole = true;
    }

    /// Without a flag: all there is takes part, so that nothing can be given up.
    fn promote_somebody(&mut self) {
        let mut turn = self.primary;
        let which = wait_for("a node that can be promoted", MEND_LIMIT, || {
            let which = turn % 2;
            turn += 1;
            let ran = self.node(which).promote();
            if ran.code == 0 { Ok(which) } else { Err(ran.to_string()) }
        });
        println!("    {}: promoted", NAMES[which]);
        self.lead(which);
    }

    /// A disk that is well again is taken back, or takes the place of itself that failed.
    fn attach(&mut self, which: usize) {
        let nodes = [&self.cluster.alpha, &self.cluster.beta];
        let node = nodes[which];
        wait_for(&format!("a disk of {}", NAMES[which]), MEND_LIMIT, || {
            let status = node.status();
            let disk = status["disk"].as_str().unwrap_or_default();
            println!("    {}: {disk}", NAMES[which]);
            if !["Failed", "Diskless"].contains(&disk) {
                return Ok(());
            }
            let ran = node.lockstep(&["attach", RESOURCE]);
            if ran.code == 0 {
                return Ok(());
            }
            if ran.stderr.contains("replace it") {
                replace(node, status["role"] == "Primary");
            }
            Err(format!("{disk}; {ran}"))
        });
    }

    /// At rest, equal, and as promised.
    fn judge(&mut self, rng: &mut Rng) {
        let mut ledger = self.load.take().expect("writers are at work").stop();
        self.cluster.wait_quiet();
        assert_equal(&self.images[0], &self.images[1]);
        ledger.assert_kept(&self.images[rng.below(2) as usize]);
        for which in 0..2 {
            self.node(which).assert_alive();
            self.look_at_log(which);
        }
        (self.had_errors, self.was_split) = (false, false);
        if rng.below(4) == 0 {
            self.restart(rng);
        }
        self.load = Some(ledger.start(self.wires.export_of(self.primary), 8));
    }

    fn look_at_log(&mut self, which: usize) {
        let log = self.node(which).log();
        let new = log.get(self.read[which]..).unwrap_or_default();
        let is_bad = |line: &&str| match line.contains("split brain") || line.contains("SplitBrain") {
            true => !self.was_split,
            false => line.contains("panicked") || (line.contains(" ERROR ") && !self.had_errors),
        };
        let bad: Vec<&str> = new.lines().filter(is_bad).collect();
        assert!(bad.is_empty(), "{} said:\n{}", NAMES[which], bad.join("\n"));
        self.read[which] = log.len();
    }

    /// Both stop in order; their metadata can be read; both return, and hardly anything is copied.
    fn restart(&mut self, rng: &mut Rng) {
        println!("  restart both");
        let first = rng.below(2) as usize;
        for which in [first, 1 - first] {
            self.node(which).stop();
        }
        for which in 0..2 {
            self.node(which).lockstep(&["dump-md", RESOURCE]).ok();
            self.node(which).start();
        }
        self.cluster.wait_synced();
        // What was not flushed when the first one left counts as not written there.
        let resynced = self.cluster.resynced_bytes();
        assert!(
            resynced < SIZE_BYTES / 4,
            "{resynced} bytes copied, and nothing was written since both were equal"
        );
        let next = rng.below(2) as usize;
        self.node(next).promote().ok();
        self.lead(next);
    }

    /// Both sides are Primary and write; one of them is given up.
    fn split_brain(&mut self, rng: &mut Rng) {
        let (known, liar) = (self.primary, 1 - self.primary);
        self.was_split = true;
        let common = self.load.take().expect("writers are at work").stop();
        self.wires.plug(false);
        self.node(liar).wait_connection("Connecting");
        self.types(liar, &["promote", RESOURCE, "--peer-is-down"]).ok();
        let nodes = [&self.cluster.alpha, &self.cluster.beta];
        let mut sides = [known, liar]
            .map(|which| (which, common.clone().write_some(nodes[which].nbd(), 1 + rng.below(300))));
        self.wires.plug(true);
        for node in nodes {
            node.wait_replication("SplitBrain");
        }
        sides.rotate_left(rng.below(2) as usize);
        let [(winner, ledger), (loser, _)] = sides;
        println!("    {} loses", NAMES[loser]);
        nodes[loser].demote_idle();
        let teller = nodes[rng.below(2) as usize];
        wait_for("a loser that is known to be Secondary", MEND_LIMIT, || {
            let ran = teller.lockstep(&["resolve", RESOURCE, "--discard", NAMES[loser]]);
            if ran.code == 0 { Ok(()) } else { Err(ran.to_string()) }
        });
        self.cluster.wait_synced();
        self.load = Some(ledger.start(self.wires.export_of(winner), 8));
        self.lead(winner);
    }
}

/// As the runbook says.
fn replace(node: &Node, is_primary: bool) {
    let (before, after) = if is_primary { ("detach", "attach") } else { ("down", "up") };
    println!("    {}: {before}, create-md --overwrite, {after}", node.name());
    node.lockstep(&[before, RESOURCE]).ok();
    node.lockstep(&["create-md", RESOURCE, "--overwrite"]).ok();
    node.lockstep(&[after, RESOURCE]).ok();
}

fn draw(rng: &mut Rng) -> Step {
    let role = rng.below(2) as usize;
    match rng.below(32) {
        0..2 => Step::PullCable,
        2 => Step::PullClient(role),
        3..5 => Step::Lose(role, 100),
        5 => Step::Lose(role, 1 + rng.below(40)),
        6..8 => Step::LoseBoth(1 + rng.below(20)),
        8..11 => Step::Freeze(role),
        11..14 => Step::Kill(role),
        14 => Step::KillBoth,
        15..18 => Step::FailOver,
        18..22 => {
            let kinds = [Health::WritesFail, Health::FlushesFail, Health::Full, Health::Slow, Health::Hangs];
            Step::Disk(role, kinds[rng.below(kinds.len() as u64) as usize])
        }
        22..24 => Step::Move,
        24 => Step::Disconnect(role),
        25 => Step::Invalidate,
        26 => Step::PauseSync,
        27 => Step::Detach(role),
        28..31 => Step::Rejoin,
        _ => Step::SplitBrain,
    }
}
