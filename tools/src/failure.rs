//! How a command ends when it does not succeed: an exit code that scripts can rely on, and a message for
//! people.

use crate::config::ConfigError;
use std::fmt;

/// Anything without a code of its own.
pub(crate) const GENERIC: u8 = 1;
/// Wrong arguments.
pub(crate) const USAGE: u8 = 2;
/// The daemon does not run (`status`).
pub(crate) const NOT_RUNNING: u8 = 3;
/// The daemon cannot be reached, or permission is missing.
pub(crate) const UNREACHABLE: u8 = 4;
/// The configuration or what it names is wrong.
pub(crate) const CONFIG: u8 = 10;
/// Busy, in use, refused.
pub(crate) const REFUSED: u8 = 11;
/// A wait ran out of time.
pub(crate) const TIMEOUT: u8 = 20;

/// Exit code and message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Exit code of the process.
    pub(crate) code: u8,
    /// For people; empty when everything was said already.
    pub(crate) message: String,
}

impl Failure {
    /// With a code.
    pub(crate) fn new(code: u8, message: impl Into<String>) -> Self {
        Failure { code, message: message.into() }
    }

    /// Exit code 1.
    pub(crate) fn generic(message: impl Into<String>) -> Self {
        Self::new(GENERIC, message)
    }

    /// Exit code 2.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(USAGE, message)
    }

    /// Exit code 10.
    pub(crate) fn config(message: impl Into<String>) -> Self {
        Self::new(CONFIG, message)
    }

    /// Exit code 11.
    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self::new(REFUSED, message)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::config(error.to_string())
    }
}
