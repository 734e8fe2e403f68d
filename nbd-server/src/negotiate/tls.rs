//! STARTTLS: what a client may say before TLS, and what is forgotten when it begins.
//!
//! The specification's modes: [`TlsPolicy::Off`] is NOTLS, [`TlsPolicy::Required`] is FORCEDTLS,
//! [`TlsPolicy::Optional`] is SELECTIVETLS, with the directory saying which exports need TLS.
//!
//! Invariants: nothing that was agreed in plaintext counts inside of TLS but the client's flags; no byte that
//! arrived in plaintext behind STARTTLS is taken, it stays with the caller and belongs to the TLS handshake;
//! `ERR_TLS_REQD` is sent only where STARTTLS would be accepted.

use alloc::string::String;
use alloc::vec::Vec;

use super::{NO_DATA_EXPECTED, NO_SUCH_EXPORT, Negotiation, Phase, Step, put_reply, refuse};
use crate::wire::{option, option_reply};

/// What a listener does about TLS.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum TlsPolicy {
    /// It has none.
    #[default]
    Off,
    /// Clients may begin it; exports may need it.
    Optional,
    /// Nothing is answered before it but ABORT.
    Required,
}

/// How a connection stands to TLS.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Security {
    /// In plaintext, on a listener with this policy.
    Plain(TlsPolicy),
    /// Inside of TLS.
    Active,
}

impl Security {
    /// Whether an option is refused because TLS was not begun.
    pub(super) const fn forbids(self, option: u32) -> bool {
        matches!(self, Self::Plain(TlsPolicy::Required))
            && !matches!(option, option::STARTTLS | option::ABORT)
    }

    /// Type and text of the answer to who asks for an export that needs TLS, on a connection without.
    pub(super) fn refusal_without_tls(self) -> (u32, String) {
        match self {
            Self::Plain(TlsPolicy::Optional | TlsPolicy::Required) => {
                (option_reply::ERR_TLS_REQD, "this export requires TLS: STARTTLS first".into())
            }
            // It cannot be had here, and the specification forbids to ask for it.
            Self::Plain(TlsPolicy::Off) | Self::Active => (option_reply::ERR_UNKNOWN, NO_SUCH_EXPORT.into()),
        }
    }
}

impl Negotiation {
    /// A handshake on a listener with this policy.
    #[must_use]
    pub fn with_tls(self, policy: TlsPolicy) -> Self {
        Self { security: Security::Plain(policy), ..self }
    }

    /// Goes on inside of TLS, after [`Step::StartTls`]. All that was agreed before is forgotten; the client's
    /// flags and the options counted stay.
    ///
    /// # Panics
    ///
    /// If the last step was another one.
    pub fn tls_established(&mut self) {
        assert_eq!(self.phase, Phase::StartingTls, "TLS that was not negotiated");
        *self = Self {
            phase: Phase::OptionHeader,
            options_seen: self.options_seen,
            fixed_newstyle: self.fixed_newstyle,
            no_zeroes: self.no_zeroes,
            security: Security::Active,
            ..Self::new(self.limits)
        };
    }

    pub(super) fn answer_starttls(&self, data: &[u8], out: &mut Vec<u8>) -> Step {
        let (reply_type, why) = match self.security {
            Security::Active => (option_reply::ERR_INVALID, "TLS is in use already"),
            Security::Plain(TlsPolicy::Off) => (option_reply::ERR_UNSUP, "TLS is not offered"),
            Security::Plain(_) if !data.is_empty() => (option_reply::ERR_INVALID, NO_DATA_EXPECTED),
            Security::Plain(_) => {
                put_reply(out, option::STARTTLS, option_reply::ACK, &[]);
                return Step::StartTls;
            }
        };
        refuse(out, option::STARTTLS, reply_type, why)
    }

    /// An option that is answered inside of TLS only.
    pub(super) fn demand_tls(&self, option: u32, out: &mut Vec<u8>) -> Step {
        if option == option::EXPORT_NAME {
            return Step::Close;
        }
        refuse(out, option, option_reply::ERR_TLS_REQD, "TLS is required: STARTTLS first")
    }
}

#[cfg(test)]
mod tests;
