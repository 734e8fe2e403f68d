//! Planted bugs: each turns one rule of the design off, at the place where it is kept, so that the simulator can show
//! that it would notice (`lockstep-sim canary`).
//!
//! Invariants: without the feature `canary` no bug is ever planted and [`is_planted`] is a constant, so that nothing
//! of this is left in the product; with it at most one bug is planted at a time, for the whole process. A site is one
//! short condition and does nothing while its bug is not planted.

/// Defines [`Bug`] and what is told of each.
macro_rules! bugs {
    ($($bug:ident, $rule:literal, $breaks:literal;)*) => {
        /// A rule that can be turned off.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Bug {
            $(#[doc = $breaks] $bug,)*
        }

        #[cfg(feature = "canary")]
        impl Bug {
            /// All of them.
            pub const ALL: &[Bug] = &[$(Bug::$bug,)*];

            /// The ordering (by its number) or guarantee that it breaks.
            pub fn rule(self) -> &'static str {
                match self {
                    $(Bug::$bug => $rule,)*
                }
            }

            /// What it does.
            pub fn breaks(self) -> &'static str {
                match self {
                    $(Bug::$bug => $breaks,)*
                }
            }
        }
    };
}

bugs! {
    AckBeforePeer, "6", "A write is acknowledged when it is on the local disk, whatever the peer says.";
    SkipActivityMark, "1", "A write goes on before the mark of its region is on disk.";
    ForgetWhatPeerLacks, "7", "What a lost peer has not confirmed as durable does not become dirty bits.";
    HalfAWriteIsDone, "D1", "A write whose client stops in the middle of it is answered as if it were done.";
    InvalidateInACheckpoint, "7", "A copy is declared wrong while a batch is made durable, which then clears bits.";
    TrustDoubtfulDigest, "D4", "An equal digest counts where a write has failed at the source.";
    ForgetDoubtsAtDemotion, "D1", "A target may be promoted that has a write which failed at its source.";
    DurableOvertakes, "D7", "Durable overtakes the word that a write has failed.";
}

/// Is this bug planted?
#[cfg(not(feature = "canary"))]
#[inline(always)]
pub const fn is_planted(_bug: Bug) -> bool {
    false
}

#[cfg(feature = "canary")]
mod planted {
    use super::Bug;
    use core::sync::atomic::{AtomicU8, Ordering};

    const NONE: u8 = u8::MAX;
    static PLANTED: AtomicU8 = AtomicU8::new(NONE);

    /// Plants a bug in the whole process in place of the one before; `None`: all rules hold.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.store(bug.map_or(NONE, |bug| bug as u8), Ordering::SeqCst);
    }

    /// Is this bug planted?
    pub fn is_planted(bug: Bug) -> bool {
        PLANTED.load(Ordering::Relaxed) == bug as u8
    }
}

#[cfg(feature = "canary")]
pub use planted::{is_planted, plant};
