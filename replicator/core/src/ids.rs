//! Newtypes for the numbers that cross the border between core and shell.

use core::fmt;
use core::ops::Add;
use core::time::Duration;

/// Monotonic time in nanoseconds since an arbitrary start of the shell's choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(pub u64);

impl Instant {
    /// Time passed since `earlier`, zero if `earlier` is later.
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, rhs: Duration) -> Instant {
        Instant(self.0.saturating_add(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// An operation of the core that the shell executes: each is completed exactly once.
    OpId(u32)
);
id!(
    /// A client's request, numbered by the shell; free again after its [`crate::Action::Reply`].
    ReqId(u32)
);
id!(
    /// A buffer of the shell. The byte of volume offset `o` lies at slot offset `o % 4096` plus its distance.
    SlotId(u32)
);
id!(
    /// One connection to a peer; never reused while the daemon runs.
    LinkId(u32)
);
id!(
    /// Place of a write in the resource's stream; starts at 1.
    Position(u64)
);
id!(
    /// An operator's command, numbered by the shell.
    CommandId(u32)
);
