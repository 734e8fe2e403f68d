//! Makes a failing scenario small.
//!
//! Each step proposes a simpler scenario and keeps it if the same check still fails. Simpler is, in this order: calm
//! latencies and plain sizes, fewer kinds of decisions, fewer decisions (delta debugging), an earlier end, round
//! moments. The steps are repeated until none of them helps.
//!
//! Whatever is removed also changes when the rest happens, and with that what damage is drawn. A candidate therefore
//! gets a few seeds for its environment before it counts as harmless; its decisions stay the same.

use crate::decision::{ClientAct, Decision, Fault, Line};
use crate::setup::{MS, Setup};
use crate::{Outcome, Scenario, kept, replay, words};

/// Seeds that a candidate's environment gets.
const SEEDS: usize = 4;
/// So many decisions are quickly run, and more depends on what is drawn.
const SHORT: usize = 50;
/// Seeds that the environment of a short candidate gets.
const SEEDS_OF_SHORT: usize = 16;
/// A run that went on for so long after the moment of the first failure does not fail in the same way.
const PATIENCE_NS: u64 = 3_000 * MS;

/// The simplest scenario found that breaks a promise of the same check; says on the way how far it is.
pub fn shrink(first: &Outcome, mut progress: impl FnMut(&str)) -> Result<Scenario, String> {
    let violation =
        first.violation.as_ref().ok_or("this run breaks no promise; there is nothing to shrink")?;
    let mut it = Shrinker {
        check: violation.check,
        until_ns: violation.at_ns + PATIENCE_NS,
        best: first.scenario.clone(),
        tried: 0,
        progress: &mut progress,
    };
    let again = it.best.clone();
    if !it.accept(&again) {
        return Err(format!("the recorded run does not fail with {} again", violation.check));
    }
    loop {
        let before = it.best.clone();
        it.plain_setup();
        it.fewer_kinds();
        it.certain_faults();
        it.fewer_lines();
        it.earlier_end();
        it.smaller_requests();
        it.round_moments();
        if it.best == before {
            break;
        }
    }
    let (tried, lines) = (it.tried, it.best.lines.len());
    (it.progress)(&format!("{lines} decisions are left after {tried} runs; {} fails", it.check));
    Ok(it.best)
}

struct Shrinker<'a> {
    check: &'static str,
    until_ns: u64,
    best: Scenario,
    tried: u64,
    progress: &'a mut dyn FnMut(&str),
}

impl Shrinker<'_> {
    /// Keeps a candidate if it still fails, without what it did not need.
    fn accept(&mut self, candidate: &Scenario) -> bool {
        let seeds = if candidate.lines.len() > SHORT { SEEDS } else { SEEDS_OF_SHORT };
        for candidate in candidate.environments().take(seeds) {
            self.tried += 1;
            let outcome = replay(&candidate, false, self.until_ns);
            let fails = outcome.violation.is_some_and(|v| v.check == self.check);
            if fails && kept::passes_without_its_bug(&candidate) {
                // As recorded: what came too late or after the failure is gone.
                self.best = outcome.scenario;
                return true;
            }
        }
        false
    }

    fn say(&mut self, step: &str) {
        let (lines, tried) = (self.best.lines.len(), self.tried);
        (self.progress)(&format!("{step}: {lines} decisions, {tried} runs"));
    }

    /// Each field of the setup at its plain value, where it does not matter.
    fn plain_setup(&mut self) {
        let mut calm = self.best.clone();
        calm.setup.calm_latency = true;
        if !self.best.setup.calm_latency {
            self.accept(&calm);
        }
        let names: Vec<&'static str> = Setup::plain().fields().iter().map(|(name, _)| *name).collect();
        for name in names {
            let mut candidate = self.best.clone();
            let value = field(&mut Setup::plain(), name);
            if name == "seed" || field(&mut candidate.setup, name) == value {
                continue;
            }
            set_field(&mut candidate.setup, name, &value);
            drop_impossible(&mut candidate);
            self.accept(&candidate);
        }
        self.say("plain setup");
    }

    /// No decisions of one kind at all.
    fn fewer_kinds(&mut self) {
        let mut kinds: Vec<String> = self.best.lines.iter().map(|line| words::kind(&line.what)).collect();
        kinds.sort();
        kinds.dedup();
        for gone in kinds {
            let mut candidate = self.best.clone();
            candidate.lines.retain(|line| words::kind(&line.what) != gone);
            if candidate.lines.len() < self.best.lines.len() {
                self.accept(&candidate);
            }
        }
        self.say("fewer kinds");
    }

    /// What happens with some chance happens always.
    fn certain_faults(&mut self) {
        for i in 0..self.best.lines.len() {
            let mut candidate = self.best.clone();
            if let Some(Decision::Fault(Fault::Trouble { per_mille, .. })) =
                candidate.lines.get_mut(i).map(|line| &mut line.what)
                && std::mem::replace(per_mille, 1000) != 1000
            {
                self.accept(&candidate);
            }
        }
    }

    /// Delta debugging: leaves out ever smaller parts.
    fn fewer_lines(&mut self) {
        let mut part = self.best.lines.len().div_ceil(2);
        while part > 0 {
            // From the end: what comes last leans on what comes before.
            let mut end = self.best.lines.len();
            while end > 0 {
                let mut candidate = self.best.clone();
                let start = end.saturating_sub(part);
                candidate.lines.drain(start..end.min(candidate.lines.len()));
                self.accept(&candidate);
                end = start.min(self.best.lines.len());
            }
            self.say("fewer decisions");
            part /= 2;
        }
    }

    /// The faults end as early as possible.
    fn earlier_end(&mut self) {
        let (mut low, mut high) = (0, self.best.setup.stormy_ns / MS);
        while low < high {
            let middle = low.midpoint(high);
            let mut candidate = self.best.clone();
            candidate.setup.stormy_ns = middle * MS;
            if self.accept(&candidate) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        self.say("earlier end");
    }

    /// One sector where it does not matter how many there are.
    fn smaller_requests(&mut self) {
        for i in 0..self.best.lines.len() {
            let mut candidate = self.best.clone();
            let Some(Line { what: Decision::Client(_, ClientAct::Request { range, fua, .. }), .. }) =
                candidate.lines.get_mut(i)
            else {
                continue;
            };
            if range.1 > 8 || *fua {
                (range.1, *fua) = (range.1.min(8), false);
                self.accept(&candidate);
            }
        }
    }

    /// Moments and lengths that people can read.
    fn round_moments(&mut self) {
        for unit in [MS, MS / 10] {
            let mut candidate = self.best.clone();
            candidate.lines.iter_mut().for_each(|line| round(line, unit));
            if candidate == self.best || self.accept(&candidate) {
                return;
            }
        }
    }
}

fn round(line: &mut Line, unit: u64) {
    let to = |ns: &mut u64| *ns = ns.div_ceil(unit) * unit;
    to(&mut line.at_ns);
    if let Decision::Fault(
        Fault::Pause { ns, .. }
        | Fault::Silence { ns, .. }
        | Fault::Refuse { ns }
        | Fault::Hang { ns, .. }
        | Fault::Trouble { ns, .. },
    ) = &mut line.what
    {
        to(ns);
    }
}

/// Without the decisions that this setup has no place for.
fn drop_impossible(scenario: &mut Scenario) {
    let setup = &scenario.setup;
    scenario.lines.retain(|line| {
        let text = words::show(&line.what);
        words::parse(&text.split_whitespace().collect::<Vec<_>>(), setup).is_ok()
    });
}

fn field(setup: &mut Setup, name: &str) -> String {
    setup.fields().into_iter().find(|(known, _)| *known == name).map_or_else(String::new, |(_, v)| v.show())
}

fn set_field(setup: &mut Setup, name: &str, text: &str) {
    if let Some((_, value)) = setup.fields().into_iter().find(|(known, _)| *known == name) {
        value.read(text).expect("what a field shows it can read");
    }
}
