//! Faults: what strikes the machines and the network during the stormy phase.

use crate::host::Stop;
use crate::setup::MS;
use crate::world::{Ev, World};
use lockstep_core::ExportState;

impl World {
    /// A fault strikes, if this run has any.
    pub(crate) fn fault_step(&mut self) {
        if self.phase != crate::world::Phase::Stormy {
            return;
        }
        let gap = self.rng.fault.spread(self.setup.fault_gap_ns);
        self.after(gap, Ev::Fault);
        let f = self.setup.faults;
        if f.disk && self.rng.fault.chance(400) {
            self.afflict();
        }
        if f.disk && self.rng.fault.chance(100) {
            self.hang();
        }
        let n = self.rng.fault.below(2) as usize;
        match self.rng.fault.below(10) {
            0 if f.crash => self.strike(n, Stop::Kill),
            1 if f.power => self.strike(n, Stop::Power),
            2 if f.power && self.rng.fault.coin() => {
                self.say(format_args!("POWER LOSS of both"));
                self.power_off(0);
                self.power_off(1);
            }
            3 if f.pause => self.pause(n),
            4 if f.reset => self.reset(),
            5 if f.stall => self.silence(),
            6 if f.refuse => self.refuse_until = self.now + self.rng.fault.spread(100 * MS),
            7 if f.crash => self.strike(1 - n, Stop::Kill),
            8 | 9 if f.image => self.image_fault(n),
            _ => {}
        }
        if f.unreadable && self.rng.fault.coin() {
            let first = self.rng.fault.below(self.setup.sectors as u64) as usize;
            let end = (first + 64).min(self.setup.sectors);
            self.hosts[n].unreadable.extend(first..end);
        }
        if (f.crash || f.power) && self.rng.fault.chance(300) {
            // A second failure while the first is being dealt with.
            let how = if f.power && (!f.crash || self.rng.fault.coin()) { Stop::Power } else { Stop::Kill };
            let m = self.rng.fault.below(2) as usize;
            let delay = self.rng.fault.spread(8 * self.setup.meta_ns);
            self.after(delay, Ev::Stop(m, self.hosts[m].process, how));
        }
        self.restart_later();
    }

    /// Kills now, or at one of the core's next actions.
    fn strike(&mut self, mut n: usize, how: Stop) {
        if self.setup.faults.aimed && self.rng.fault.chance(700) {
            // Actions 3..16 and frames 21..63, with a liking for metadata writes and the handshake's frames.
            let code: u64 = match self.rng.fault.below(7) {
                5 | 6 if self.setup.faults.reset => {
                    // Between the loss of the link and the end of the rotation that must follow it.
                    self.reset();
                    n = usize::from(self.hosts[1].export == ExportState::Open);
                    15
                }
                0 => 6,
                1 => self.rng.fault.between(3, 13),
                2 => self.rng.fault.between(21, 25),
                3 => 16,
                _ => self.rng.fault.between(21, 63),
            };
            self.aimed = Some((n, code as u8, how));
        } else if how == Stop::Power {
            self.power_off(n);
        } else {
            self.stop(n, how);
        }
    }

    pub(crate) fn power_off(&mut self, n: usize) {
        if self.hosts[n].node.is_some() {
            self.stop(n, Stop::Power);
        } else {
            self.lose_power(n);
        }
    }

    fn pause(&mut self, n: usize) {
        if self.hosts[n].node.is_none() || self.hosts[n].is_paused(self.now) {
            return;
        }
        let length = self.rng.fault.spread(200 * MS);
        self.say(format_args!("n{n} PAUSE {} ms", length / MS));
        self.hosts[n].paused_until_ns = self.now + length;
        self.after(length, Ev::Resume(n, self.hosts[n].process));
    }

    fn silence(&mut self) {
        let length = self.rng.fault.spread(300 * MS);
        let which = self.rng.fault.below(4);
        self.say(format_args!("SILENCE {} ms, {which}", length / MS));
        for from in 0..2 {
            if which != from as u64 {
                self.silent_until[from] = self.now + length;
            }
        }
    }

    /// Every machine whose process has ended is started again after a while.
    pub(crate) fn restart_later(&mut self) {
        for n in 0..2 {
            if self.hosts[n].node.is_none() && !self.hosts[n].booting {
                self.hosts[n].booting = true;
                let mean = if self.rng.fault.chance(200) { 1500 } else { 100 };
                let delay = self.rng.fault.spread(mean * MS);
                self.after(delay, Ev::Boot(n));
            }
        }
    }
}
