//! Faults: what strikes the machines and the network during the stormy phase.
//!
//! [`World::fault_step`] draws them, [`World::befall`] lets them happen.

use crate::decision::{Ailment, Aim, Decision, Fault, When};
use crate::host::Stop;
use crate::prng::Prng;
use crate::setup::{Focus, MS};
use crate::world::{Ev, Phase, World};
use lockstep_core::{Command, ExportState};

/// What may go wrong next.
#[derive(Clone, Copy)]
enum Kind {
    Kill,
    Power,
    PowerOfBoth,
    Pause,
    Reset,
    Silence,
    Refuse,
    Image,
    Flip,
    Stranger,
    WallClock,
    Rot,
    Type,
}

impl World {
    /// Draws what goes wrong next, if this run has any faults.
    pub(crate) fn fault_step(&mut self) {
        if self.phase != Phase::Stormy {
            return;
        }
        let gap = self.rng.fault.spread(self.setup.fault_gap_ns);
        self.after(gap, Ev::Fault);
        let f = self.setup.faults;
        if f.disk && self.rng.fault.chance(400) {
            self.draw_trouble();
        }
        if f.disk && self.rng.fault.chance(100) {
            let n = self.rng.fault.below(2) as usize;
            let ns = self.rng.fault.spread(600 * MS);
            self.strikes(0, Fault::Hang { n, ns });
        }
        for _ in 1..self.setup.focus.chance(1) {
            let n = self.rng.fault.below(2) as usize;
            self.draw_fault(n);
        }
        let n = self.rng.fault.below(2) as usize;
        self.draw_fault(n);
        if f.unreadable && self.rng.fault.coin() {
            let first = self.rng.fault.below(self.setup.sectors as u64) as usize;
            let count = 64.min(self.setup.sectors - first);
            self.strikes(0, Fault::Unreadable(n, (first, count)));
        }
        if (f.crash || f.power) && self.rng.fault.chance(300) {
            // A second failure while the first is being dealt with.
            let how = if f.power && (!f.crash || self.rng.fault.coin()) { Stop::Power } else { Stop::Kill };
            let m = self.rng.fault.below(2) as usize;
            let delay = self.rng.fault.spread(8 * self.setup.meta_ns);
            self.strikes(delay, Fault::Strike(m, how));
        }
        self.restart_later();
    }

    fn strikes(&mut self, delay_ns: u64, fault: Fault) {
        self.propose(delay_ns, Decision::Fault(fault));
    }

    fn draw_fault(&mut self, n: usize) {
        let Some(kind) = self.draw_kind_of_fault() else { return };
        let rng = &mut self.rng.fault;
        match kind {
            Kind::Kill => self.draw_strike(n, Stop::Kill),
            Kind::Power => self.draw_strike(n, Stop::Power),
            Kind::PowerOfBoth => {
                self.strikes(0, Fault::Strike(0, Stop::Power));
                self.strikes(0, Fault::Strike(1, Stop::Power));
            }
            Kind::Pause => {
                let ns = rng.spread(200 * MS);
                self.strikes(0, Fault::Pause { n, ns });
            }
            Kind::Reset => self.strikes(0, Fault::Reset),
            Kind::Silence => {
                let ns = rng.spread(300 * MS);
                let from = rng.pick(&[[false, true], [true, false], [true; 2], [true; 2]]);
                self.strikes(0, Fault::Silence { from, ns });
            }
            Kind::Refuse => {
                let ns = rng.spread(100 * MS);
                self.strikes(0, Fault::Refuse { ns });
            }
            Kind::Image => {
                let takes = self.hosts[n].image.is_none() || rng.chance(300);
                self.strikes(0, if takes { Fault::TakeImage(n) } else { Fault::RestoreImage(n) });
            }
            Kind::Flip => self.strikes(0, Fault::Flip),
            Kind::Stranger => {
                let ns = rng.spread(100 * MS);
                self.strikes(0, Fault::Stranger { ns });
                self.strikes(0, Fault::Reset);
            }
            Kind::WallClock => {
                let (forward, ms) = (rng.coin(), rng.pick(&[1, 1000, 3_600_000, u64::from(u32::MAX)]));
                self.strikes(0, Fault::WallClock { n, forward, ms });
            }
            Kind::Rot => {
                let bit = rng.word() >> 16;
                self.strikes(0, Fault::Rot { n, bit });
            }
            Kind::Type => self.draw_commands(),
        }
    }

    /// Which family is next; `None` if that one is off. How often each comes is the seed's matter.
    fn draw_kind_of_fault(&mut self) -> Option<Kind> {
        let f = self.setup.faults;
        let kinds = [
            (f.crash, Kind::Kill),
            (f.crash, Kind::Kill),
            (f.power, Kind::Power),
            (f.power, Kind::PowerOfBoth),
            (f.pause, Kind::Pause),
            (f.reset, Kind::Reset),
            (f.stall, Kind::Silence),
            (f.refuse, Kind::Refuse),
            (f.image, Kind::Image),
            (f.image, Kind::Image),
            (f.flip, Kind::Flip),
            (f.stranger, Kind::Stranger),
            (f.wall_clock, Kind::WallClock),
            (f.rot, Kind::Rot),
            (f.typist, Kind::Type),
        ];
        let mut weights = Prng::new(self.setup.seed, "weights");
        let weights = kinds.map(|_| weights.pick(&[1, 1, 2, 4]));
        // Those that are off count less: a run with few families has many faults of these.
        let weight = |((is_on, _), weight): (&(bool, Kind), &u64)| if *is_on { 2 * weight } else { *weight };
        let total = kinds.iter().zip(&weights).map(weight).sum();
        let mut drawn = self.rng.fault.below(total);
        for (kind, weight) in kinds.iter().zip(kinds.iter().zip(&weights).map(weight)) {
            if drawn < weight {
                return kind.0.then_some(kind.1);
            }
            drawn -= weight;
        }
        None
    }

    /// A process may die while it writes its metadata, and a connection may go.
    pub(crate) fn draw_haste(&mut self, n: usize, is_superblock: bool) {
        let f = self.setup.faults;
        if self.phase != Phase::Stormy || self.is_scripted() {
            return;
        }
        if f.hasty_reset && is_superblock {
            self.draw_hasty_reset(n);
        }
        if f.hasty && self.rng.fault.chance(10) {
            let how = if f.power && (!f.crash || self.rng.fault.coin()) { Stop::Power } else { Stop::Kill };
            let delay = self.rng.fault.below(2 * self.setup.meta_ns);
            self.strikes(delay, Fault::Strike(n, how));
        }
    }

    /// A link that goes between a decision and its record. Few leave, so that those are hardly ever spared.
    fn draw_hasty_reset(&mut self, n: usize) {
        let leaves = self.hosts[n].commands.values().any(|pending| pending.command == Command::Leave);
        if self.rng.fault.chance(if leaves { 700 } else { 100 }) {
            let delay = if leaves { 0 } else { self.rng.fault.below(self.setup.meta_ns) };
            self.strikes(delay, Fault::Reset);
        }
    }

    /// Strikes now, or at one of the core's next actions.
    fn draw_strike(&mut self, mut n: usize, how: Stop) {
        if !self.setup.faults.aimed || !self.rng.fault.chance(700) {
            return self.strikes(0, Fault::Strike(n, how));
        }
        // Actions 3..16 and frames 21..63, with a liking for metadata writes and the handshake's frames.
        let code: u64 = match self.rng.fault.below(7) {
            5 | 6 if self.setup.faults.reset => {
                // Between the loss of the link and the end of the rotation that must follow it.
                self.strikes(0, Fault::Reset);
                n = usize::from(self.hosts[1].export == ExportState::Open);
                15
            }
            0 => 6,
            1 => self.rng.fault.between(3, 13),
            2 => self.rng.fault.between(21, 25),
            3 => 16,
            _ => self.rng.fault.between(21, 63),
        };
        let codes = self.setup.focus.codes;
        let code = if codes.is_empty() { code } else { self.rng.fault.pick(codes) };
        let when = match self.rng.fault.below(4) {
            0 => When::Before,
            1 => When::AtOnce,
            _ => When::After(self.rng.fault.below(2 * self.setup.meta_ns)),
        };
        self.strikes(0, Fault::Aim(Aim { n, code, how, when }));
    }

    /// The disks of some machine are to go wrong for a while.
    fn draw_trouble(&mut self) {
        let n = self.rng.fault.below(2) as usize;
        let per_mille = self.rng.fault.pick(&[20, 200, 1000]);
        let hot_sectors = self.setup.hot_sectors as u64;
        let what = match Focus::pick(self.setup.focus.ailments, 8, &mut self.rng.fault) {
            0 => Ailment::All,
            1 => Ailment::Write,
            2 => Ailment::Read,
            3 => Ailment::Flush,
            4 => Ailment::Meta,
            5 => Ailment::Full,
            6 => Ailment::Sectors((0..8).map(|_| self.rng.fault.below(hot_sectors) as usize).collect()),
            _ => Ailment::WriteAndFlush,
        };
        let ns = self.rng.fault.spread(200 * MS);
        self.strikes(0, Fault::Trouble { n, what, per_mille, ns });
    }

    /// A fault strikes.
    pub(crate) fn befall(&mut self, fault: Fault) {
        match fault {
            Fault::Strike(n, Stop::Power) => self.power_off(n),
            Fault::Strike(n, how) => self.stop(n, how),
            Fault::Aim(aim) => self.aimed = Some(aim),
            Fault::Pause { n, ns } => self.pause(n, ns),
            Fault::Reset => self.reset(),
            Fault::Silence { from, ns } => self.silence(from, ns),
            Fault::Refuse { ns } => self.refuse_until = self.now + ns,
            Fault::TakeImage(n) => self.take_image(n),
            Fault::RestoreImage(n) => self.restore_image(n),
            Fault::Unreadable(n, (first, count)) => self.hosts[n].unreadable.extend(first..first + count),
            Fault::Trouble { n, what, per_mille, ns } => self.afflict(n, what, per_mille, ns),
            Fault::Hang { n, ns } => self.hang(n, ns),
            Fault::Flip => self.flip(),
            Fault::Stranger { ns } => self.stranger_until = self.now + ns,
            Fault::WallClock { n, forward, ms } => {
                let ms = ms.min(1 << 40).cast_signed();
                self.hosts[n].wall_clock_ms += if forward { ms } else { -ms };
            }
            Fault::Rot { n, bit } => self.rot(n, bit),
        }
    }

    /// Guarantee D8 speaks of one damaged copy of a page.
    fn rot(&mut self, n: usize, bit: u64) {
        let host = &mut self.hosts[n];
        if host.node.is_some() || std::mem::replace(&mut host.is_rotten, true) {
            return;
        }
        host.meta.flip(bit);
        self.say(format_args!("n{n} ROT at bit {bit}"));
    }

    pub(crate) fn power_off(&mut self, n: usize) {
        if self.hosts[n].node.is_some() {
            self.stop(n, Stop::Power);
        } else {
            self.lose_power(n);
        }
    }

    fn pause(&mut self, n: usize, length: u64) {
        if self.hosts[n].node.is_none() || self.hosts[n].is_paused(self.now) {
            return;
        }
        self.say(format_args!("n{n} PAUSE {} ms", length / MS));
        self.hosts[n].paused_until_ns = self.now + length;
        self.after(length, Ev::Resume(n, self.hosts[n].process));
    }

    fn silence(&mut self, from: [bool; 2], length: u64) {
        self.say(format_args!("SILENCE {} ms from {from:?}", length / MS));
        for n in (0..2).filter(|&n| from[n]) {
            self.silent_until[n] = self.now + length;
        }
    }

    /// Every machine whose process has ended is started again after a while.
    pub(crate) fn restart_later(&mut self) {
        for n in 0..2 {
            if self.hosts[n].node.is_none() && !self.hosts[n].booting && !self.hosts[n].is_gone {
                self.hosts[n].booting = true;
                // A day later, soon, or at once.
                let mean = self.rng.fault.pick(&[1500 * MS, 100 * MS, 100 * MS, 100 * MS, 100 * MS, MS / 4]);
                let delay = self.rng.fault.spread(mean);
                let disk = !(self.setup.faults.disk && self.rng.fault.chance(100));
                let left = self.hosts[n].stopped == Stop::Exit;
                if left
                    && self.phase == Phase::Stormy
                    && self.setup.faults.power
                    && self.rng.fault.chance(300)
                {
                    // Whoever has left in order is switched off.
                    self.strikes(delay / 2, Fault::Strike(n, Stop::Power));
                }
                match self.phase {
                    Phase::Stormy => {
                        if self.setup.faults.rot && self.rng.fault.chance(300) {
                            // Found by the very next start.
                            let bit = self.rng.fault.word() >> 16;
                            self.strikes(delay, Fault::Rot { n, bit });
                        }
                        self.propose(delay, Decision::Boot { n, disk });
                    }
                    _ => self.after(delay, Ev::Boot(n, disk)),
                }
            }
        }
    }
}
