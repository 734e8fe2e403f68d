//! Power cuts: a pair on disks that log each write and flush, and the same pair again on what these disks may hold
//! after a power cut at a random moment.
//!
//! While writers write, moments are noted, each with the positions of the four logs (data and metadata of both nodes)
//! at it. Afterwards, for each of some: the four disks are made again as they may be after a cut then, of one machine
//! or of both; fresh daemons start on them, and
//! - they attach, and both copies become equal,
//! - nothing is missing that was flushed by then (D2), or, where one machine had not lost power, that was acknowledged
//!   (D1), and no block holds what was never written there.
//!
//! Tolerated: any subset of what no flush covers is lost, sector by sector, on each disk by itself.

use crate::cluster::{Cluster, NODES, Plan, RESOURCE};
use crate::diary::{Moment, Promised};
use crate::image::assert_equal;
use crate::ledger::{Ledger, Load};
use crate::node::Node;
use crate::rng::Rng;
use crate::write_log::Loss;
use std::path::PathBuf;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const ALPHA: usize = 0;
const BETA: usize = 1;

/// Positions in the logs of data and metadata, of each node.
pub type Positions = [[u64; 2]; 2];

/// Disks that log.
pub trait Media {
    /// The logs have every write, in order. Otherwise they have a write when a flush covers it, and one with FUA at
    /// once, before older ones of the same blocks: what no flush covers is as good as lost, what a machine has that
    /// keeps its power cannot be made again, and nothing is sent with FUA.
    const HAS_UNFLUSHED: bool;

    /// The disk of a node is there, and logged; so is what its metadata will be on, if it can be.
    fn begin(&mut self, which: usize, node: &Node);

    /// Its metadata was made: that is logged too.
    fn begin_metadata(&mut self, which: usize);

    /// A moment, and the positions at it.
    fn look(&self, cluster: &Cluster) -> (Moment, Positions);

    /// Lets go of all disks; no daemon runs.
    fn end(&mut self);

    /// A disk as it may be after a cut at a position; part 0 is the data, 1 the metadata.
    fn again(&mut self, which: usize, part: usize, position: u64, loss: Loss, rng: &mut Rng);

    /// Where the bytes of a node's data are, past what serves them.
    fn image(&self, which: usize) -> PathBuf;
}

/// When the power may be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Both copies UpToDate and mirrored, from before the moment until after it.
    Mirrored,
    /// Alpha goes on alone, and has answered writes since beta is gone.
    Degraded,
    /// Anything between.
    Changing,
}

#[derive(Clone, Debug)]
struct Cut {
    moment: Moment,
    positions: Positions,
    phase: Phase,
}

/// A pair that was recorded: what its clients knew, and moments to cut the power at. The disks are let go of before the
/// daemons end that use them.
#[derive(Debug)]
pub struct Recording<M> {
    media: M,
    cluster: Cluster,
    ledger: Ledger,
    cuts: Vec<Cut>,
}

impl<M: Media> Recording<M> {
    /// A pair under load: mirrored, parted, and mirrored again. The more `moments`, the longer it takes.
    pub fn new(plan: &Plan, media: impl FnOnce(&Cluster) -> M, moments: u64, seed: u64) -> Recording<M> {
        let cluster = Cluster::new(plan);
        let media = media(&cluster);
        let ledger = Ledger::new(plan.size_bytes, 4, seed).with_diary();
        let ledger = if M::HAS_UNFLUSHED { ledger } else { ledger.without_fua() };
        let mut recording = Recording { media, cluster, ledger, cuts: Vec::new() };
        recording.start();
        recording.write(moments, &mut Rng::new(seed));
        recording.end();
        println!("recorded {} blocks, {} moments", recording.ledger.blocks(), recording.cuts.len());
        recording
    }

    /// On logged disks, alpha Primary.
    fn start(&mut self) {
        for which in [BETA, ALPHA] {
            let [alpha, beta] = self.cluster.nodes();
            let node = if which == ALPHA { alpha } else { beta };
            self.media.begin(which, node);
            node.lockstep(&["create-md", RESOURCE, "--clean"]).ok();
            self.media.begin_metadata(which);
            node.start();
            node.assert_direct();
        }
        self.cluster.wait_synced();
        self.cluster.alpha.promote().ok();
    }

    fn write(&mut self, moments: u64, rng: &mut Rng) {
        let load = self.ledger.clone().start(self.cluster.alpha.nbd(), 8);
        for part in 0..2 {
            let begin = self.cuts.len();
            self.cluster.wait_synced();
            let losses =
                |cluster: &Cluster| cluster.alpha.log().matches("replication Established ->").count();
            let before = losses(&self.cluster);
            self.look_on(&load, Phase::Mirrored, 2 * moments, rng);
            self.cluster.wait_synced();
            if losses(&self.cluster) != before {
                // On a slow machine a peer may be silent for too long.
                self.cuts[begin..].iter_mut().for_each(|cut| cut.phase = Phase::Changing);
            }
            if part == 0 {
                self.cluster.proxy.cut();
                self.look_on(&load, Phase::Changing, moments.div_ceil(2), rng);
                self.cluster.alpha.wait_connection("Connecting");
                self.look_on(&load, Phase::Degraded, moments, rng);
                self.cluster.proxy.heal();
                self.look_on(&load, Phase::Changing, moments, rng);
            }
        }
        self.ledger = load.stop();
    }

    /// Moments while `load` runs.
    fn look_on(&mut self, load: &Load, phase: Phase, count: u64, rng: &mut Rng) {
        for _ in 0..count {
            load.wait_acked(30 + rng.below(300));
            std::thread::sleep(Duration::from_micros(rng.below(20_000)));
            let (moment, positions) = self.media.look(&self.cluster);
            self.cuts.push(Cut { moment, positions, phase });
        }
    }

    fn end(&mut self) {
        for node in self.cluster.nodes() {
            if node.is_running() {
                node.kill();
            }
        }
        self.media.end();
    }

    /// Cuts the power at one of the moments, and judges what is left.
    pub fn cut_somewhere(&mut self, rng: &mut Rng) {
        let cut = self.cuts[rng.below(self.cuts.len() as u64) as usize].clone();
        println!("{:?}", cut.phase);
        match cut.phase {
            Phase::Mirrored if M::HAS_UNFLUSHED && rng.below(3) < 2 => self.one_loses_power(&cut, rng),
            _ => self.both_lose_power(&cut, rng),
        }
        self.end();
    }

    fn node(&mut self, which: usize) -> &mut Node {
        let [alpha, beta] = self.cluster.nodes();
        if which == ALPHA { alpha } else { beta }
    }

    /// Both machines as they are after the cut: those that `lost` power lack what was not flushed.
    fn cut(&mut self, cut: &Cut, lost: [bool; 2], rng: &mut Rng) {
        for which in [ALPHA, BETA] {
            // One power cut for both, but each disk has its own cache.
            for part in [0, 1] {
                let loss = if lost[which] { Loss::draw(rng) } else { Loss::Nothing };
                self.media.again(which, part, cut.positions[which][part], loss, rng);
            }
            self.node(which).returns(lost[which]);
        }
    }

    #[track_caller]
    fn assert_kept(&self, which: usize, ledger: &mut Ledger) {
        ledger.assert_kept(&self.media.image(which));
    }

    /// Equal, as promised, and in service.
    #[track_caller]
    fn settle(&mut self, primary: usize, mut ledger: Ledger) {
        self.cluster.wait_quiet();
        self.assert_kept(primary, &mut ledger);
        let mut ledger = ledger.write_some(self.node(primary).nbd(), 100);
        self.cluster.wait_quiet();
        assert_equal(&self.media.image(ALPHA), &self.media.image(BETA));
        self.assert_kept(1 - primary, &mut ledger);
    }

    /// One machine loses power; the other one's daemon is killed at that moment.
    fn one_loses_power(&mut self, cut: &Cut, rng: &mut Rng) {
        let loser = rng.below(2) as usize;
        let kept = 1 - loser;
        let is_alone = rng.below(2) == 0;
        let how = if is_alone { "first" } else { "too" };
        println!(" {} loses power, the other one returns {how}", NODES[loser]);
        self.cut(cut, [loser == ALPHA, loser == BETA], rng);
        let mut ledger = self.ledger.at(cut.moment, Promised::Acknowledged);
        self.node(kept).start();
        if is_alone {
            promote_alone(self.node(kept));
            self.assert_kept(kept, &mut ledger);
            self.node(loser).start();
            self.settle(kept, ledger);
        } else {
            self.both_return(loser, ledger, rng);
        }
    }

    /// One is there already, and the second comes now.
    fn both_return(&mut self, second: usize, ledger: Ledger, rng: &mut Rng) {
        self.node(second).start();
        self.cluster.wait_synced();
        let primary = rng.below(2) as usize;
        self.node(primary).promote().ok();
        self.settle(primary, ledger);
    }

    /// Both lose power at the same moment; both return, or one does.
    fn both_lose_power(&mut self, cut: &Cut, rng: &mut Rng) {
        self.cut(cut, [true, true], rng);
        let mut ledger = self.ledger.at(cut.moment, Promised::Durable);
        let alone = match cut.phase {
            Phase::Mirrored if rng.below(2) == 0 => Some(rng.below(2) as usize),
            Phase::Degraded if rng.below(2) == 0 => Some(ALPHA),
            _ => None,
        };
        println!(" both lose power, {} first", alone.map_or("none alone", |which| NODES[which]));
        let first = alone.unwrap_or_else(|| rng.below(2) as usize);
        self.node(first).start();
        match cut.phase {
            _ if alone.is_none() => return self.both_return(1 - first, ledger, rng),
            Phase::Degraded => drop(self.node(first).promote().ok()),
            _ => {
                let refused = self.node(first).promote();
                refused.refused(17, &["uncleanly", "lockstep promote r0 --accept-data-loss"]);
                self.node(first).lockstep(&["promote", RESOURCE, "--accept-data-loss"]).ok();
            }
        }
        self.assert_kept(first, &mut ledger);
        // The other one is no better, and is the target.
        self.node(1 - first).start();
        self.settle(first, ledger);
    }
}

/// A plan with little that may be hot, so that the activity map is written often.
pub fn power_plan(size_bytes: u64) -> Plan {
    Plan { size_bytes, max_hot_bytes: 16 * MIB, ..Plan::default() }
}

/// Promotes, with `--peer-is-down` where the refusal says so and names nothing worse.
#[track_caller]
fn promote_alone(node: &Node) {
    let ran = node.promote();
    if ran.code != 0 {
        ran.refused(17, &["lockstep promote r0 --peer-is-down"]);
        node.lockstep(&["promote", RESOURCE, "--peer-is-down"]).ok();
    }
}
