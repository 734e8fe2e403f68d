//! Faults: what strikes the machines and the network during the stormy phase.
//!
//! [`World::fault_step`] draws them, [`World::befall`] lets them happen.

use crate::decision::{Ailment, Aim, Decision, Fault, When};
use crate::host::Stop;
use crate::setup::MS;
use crate::world::{Ev, Phase, World};
use lockstep_core::ExportState;

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
        let f = self.setup.faults;
        match self.rng.fault.below(10) {
            0 if f.crash => self.draw_strike(n, Stop::Kill),
            1 if f.power => self.draw_strike(n, Stop::Power),
            2 if f.power && self.rng.fault.coin() => {
                self.strikes(0, Fault::Strike(0, Stop::Power));
                self.strikes(0, Fault::Strike(1, Stop::Power));
            }
            3 if f.pause => {
                let ns = self.rng.fault.spread(200 * MS);
                self.strikes(0, Fault::Pause { n, ns });
            }
            4 if f.reset => self.strikes(0, Fault::Reset),
            5 if f.stall => {
                let ns = self.rng.fault.spread(300 * MS);
                let from = self.rng.fault.pick(&[[false, true], [true, false], [true; 2], [true; 2]]);
                self.strikes(0, Fault::Silence { from, ns });
            }
            6 if f.refuse => {
                let ns = self.rng.fault.spread(100 * MS);
                self.strikes(0, Fault::Refuse { ns });
            }
            7 if f.crash => self.draw_strike(1 - n, Stop::Kill),
            8 | 9 if f.image => {
                let takes = self.hosts[n].image.is_none() || self.rng.fault.chance(300);
                self.strikes(0, if takes { Fault::TakeImage(n) } else { Fault::RestoreImage(n) });
            }
            _ => {}
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
        let what = match self.rng.fault.below(8) {
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
        }
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
            if self.hosts[n].node.is_none() && !self.hosts[n].booting {
                self.hosts[n].booting = true;
                let mean = if self.rng.fault.chance(200) { 1500 } else { 100 };
                let delay = self.rng.fault.spread(mean * MS);
                let disk = !(self.setup.faults.disk && self.rng.fault.chance(100));
                match self.phase {
                    Phase::Stormy => self.propose(delay, Decision::Boot { n, disk }),
                    _ => self.after(delay, Ev::Boot(n, disk)),
                }
            }
        }
    }
}
