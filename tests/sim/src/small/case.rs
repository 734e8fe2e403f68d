//! What is played: three writes in several ways, on several machines; who crashes, and what happens then.

use crate::host::Stop;
use crate::setup::{MS, Setup, US};
use lockstep_core::Timing;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Sectors of a block.
pub(crate) const BLOCK_SECTORS: usize = 8;
/// Sectors of the smallest region.
const REGION_SECTORS: usize = 256;

macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$of:meta])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $name {
            $($(#[$of])* $variant),*
        }

        impl $name {
            /// All of them.
            pub(crate) const ALL: &[Self] = &[$(Self::$variant),*];
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $word),* })
            }
        }

        impl FromStr for $name {
            type Err = ();

            fn from_str(word: &str) -> Result<Self, ()> {
                Self::ALL.iter().copied().find(|known| known.to_string() == word).ok_or(())
            }
        }
    };
}

named!(
    /// The three writes, to two blocks; the third goes to the block of the first.
    Work {
        /// All at once.
        Plain = "plain",
        /// The first, a FLUSH together with the second, which has FUA, then the third.
        Flush = "flush",
        /// The first; then zeroes there, and a trim of the other block.
        Zeroes = "zeroes",
        /// The first; then the peer is gone; the second and the third.
        Degraded = "degraded",
        /// The first and the second, without the peer, and then nobody crashes before it returns; the third while it is
        /// being synchronised.
        Return = "return",
        /// The first and the second, and in the middle of them the Primary is moved: nobody crashes before; the third
        /// goes to the new one.
        Move = "move",
    }
);

named!(
    /// Speeds and limits.
    Machines {
        /// Both alike; one region; the lower node is Primary; nothing that a process completed is lost with it.
        Alike = "alike",
        /// The peer's answer is there before the own disk's; two regions, one may be hot; the higher node is Primary;
        /// what a killed process completed is not known to last.
        FastPeer = "fast-peer",
        /// The own disk is done long before the peer; two regions, one may be hot.
        SlowPeer = "slow-peer",
    }
);

named!(
    /// Who crashes, and how.
    Crash {
        /// The Primary's process is killed.
        KillPrimary = "kill-primary",
        /// The Secondary's.
        KillSecondary = "kill-secondary",
        /// Both.
        KillBoth = "kill-both",
        /// The Primary's machine loses power.
        PowerPrimary = "power-primary",
        /// The Secondary's.
        PowerSecondary = "power-secondary",
        /// Both.
        PowerBoth = "power-both",
    }
);

named!(
    /// What happens then; clients go on where somebody is Primary.
    Then {
        /// Who is down starts again, the Primary of before first; they meet.
        Meet = "meet",
        /// The same, the Secondary of before first.
        MeetReversed = "meet-reversed",
        /// One goes on without the other (promoted, if it must be), takes one more write, and the other returns. It is
        /// the one that lives, or the Secondary of before.
        FailOver = "fail-over",
        /// The same with the Primary of before.
        GoOn = "go-on",
        /// As `FailOver`; then the one that went on is lost, and the other one starts alone before both meet.
        Stale = "stale",
    }
);

impl Crash {
    /// By role of before: Primary, Secondary.
    pub(crate) fn victims(self) -> [bool; 2] {
        match self {
            Crash::KillPrimary | Crash::PowerPrimary => [true, false],
            Crash::KillSecondary | Crash::PowerSecondary => [false, true],
            Crash::KillBoth | Crash::PowerBoth => [true, true],
        }
    }

    pub(crate) fn how(self) -> Stop {
        match self {
            Crash::KillPrimary | Crash::KillSecondary | Crash::KillBoth => Stop::Kill,
            Crash::PowerPrimary | Crash::PowerSecondary | Crash::PowerBoth => Stop::Power,
        }
    }
}

/// A family of runs: everything but the step of the crash and its outcomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) work: Work,
    pub(crate) machines: Machines,
    pub(crate) crash: Crash,
    pub(crate) then: Then,
}

impl Case {
    /// Those of `work` on `machines` that differ.
    pub(crate) fn all_of(work: Work, machines: Machines) -> impl Iterator<Item = Case> {
        let crashes = Crash::ALL.iter().flat_map(|&crash| Then::ALL.iter().map(move |&then| (crash, then)));
        crashes.map(move |(crash, then)| Case { work, machines, crash, then }).filter(Case::is_whole)
    }

    /// Continuations that say something about this crash.
    fn is_whole(&self) -> bool {
        let both = self.crash.victims() == [true, true];
        // The Secondary of this one is down already.
        let at_primary_only = self.work != Work::Degraded || self.crash.victims() == [true, false];
        at_primary_only
            && (both || self.work == Work::Degraded || !matches!(self.then, Then::MeetReversed | Then::GoOn))
    }

    /// Which machine is Primary at first.
    pub(crate) fn primary(&self) -> usize {
        usize::from(self.machines == Machines::FastPeer)
    }

    /// First sector of one of the two blocks. Only on machines that are alike both are in one region.
    pub(crate) fn block_at(&self, block: usize) -> usize {
        block * if self.machines == Machines::Alike { BLOCK_SECTORS } else { REGION_SECTORS }
    }

    pub(crate) fn setup(&self) -> Setup {
        let (own, peer, wire) = match self.machines {
            Machines::Alike => (100, 100, 50),
            Machines::FastPeer => (1000, 20, 10),
            Machines::SlowPeer => (20, 500, 1000),
        };
        let mut disk_ns = [peer * US; 2];
        disk_ns[self.primary()] = own * US;
        let survives = match self.machines {
            Machines::Alike => [true; 2],
            Machines::FastPeer => [false; 2],
            Machines::SlowPeer => [true, false],
        };
        Setup {
            seed: 1,
            sectors: self.block_at(1) + BLOCK_SECTORS,
            max_hot: 1,
            source: self.primary(),
            survives,
            undurable_max: 4,
            resync_window: 2,
            bits_frame_bytes: 8,
            timing: timing(),
            disk_ns,
            wire_ns: wire * US,
            wire_ns_per_kib: 100,
            ..Setup::plain()
        }
    }
}

fn timing() -> Timing {
    let ms = Duration::from_millis;
    Timing {
        timeout: ms(300),
        heartbeat: ms(100),
        redial_min: ms(5),
        redial_max: ms(20),
        epoch: ms(20),
        io_timeout: ms(5000),
        disk_timeout: None,
        lazy_write: ms(5),
        resync_retry: ms(50),
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}", self.work, self.machines, self.crash, self.then)
    }
}

/// How long nothing has to happen until a pair is at rest: every region is cold after five epochs.
pub(crate) const REST_NS: u64 = 200 * MS;
