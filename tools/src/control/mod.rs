//! The control API: JSON over HTTP/1.1 on a unix socket; the daemon serves it, the command line is its
//! client.
//!
//! `GET /v1/version`, `GET /v1/status`, `GET /v1/resources/R`, `POST /v1/resources/R/VERB` with the verb's
//! options as a JSON object. Every answer is an object; a failure is
//! `{"error":{"code":17,"message":"..."}}`, whose code is the exit code of the command line.

mod accept;
mod client;
mod server;
#[cfg(test)]
mod tests;

pub(crate) use client::Client;
pub(crate) use server::{Asked, Shared, asked, bind, serve};

use serde::{Deserialize, Serialize};

/// Options of `promote`.
#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PromoteBody {
    /// The operator asserts that the peer is down.
    pub(crate) peer_is_down: bool,
    /// The operator takes a copy that may lack writes.
    pub(crate) accept_data_loss: bool,
}

/// Options of `demote`.
#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DemoteBody {
    /// Close clients.
    pub(crate) force: bool,
}

/// Options of `down`.
#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DownBody {
    /// Close clients.
    pub(crate) force: bool,
}

/// Options of `resolve`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResolveBody {
    /// Name of the node that loses.
    pub(crate) discard: String,
}

/// Options of `attach`.
#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AttachBody {
    /// The operator says that a disk which is not known holds this data.
    pub(crate) moved: bool,
}

/// Options of `invalidate`.
#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct InvalidateBody {
    /// The peer's copy.
    pub(crate) peer: bool,
}

/// Options of `sync`: one of them.
#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct SyncBody {
    /// Pause, or go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pause: Option<bool>,
    /// Bytes per second at most; 0: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rate: Option<u64>,
    /// Bytes per second at least; 0: what clients leave.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) min_rate: Option<u64>,
}

/// Options of `checkpoint-create` and `checkpoint-delete`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CheckpointBody {
    /// Name of the checkpoint.
    pub(crate) name: String,
}

/// Options of verbs that have none.
#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NoBody {}

/// A command that did what it should.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DoneDoc {
    /// Version of the schema.
    pub(crate) schema: u32,
    /// The resource.
    pub(crate) resource: String,
    /// `changed`, `already`, `left_as_outdated`, `left_as_is`.
    pub(crate) result: String,
    /// For people.
    pub(crate) message: String,
}

/// A command or question that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ErrorDoc {
    /// What happened.
    pub(crate) error: ErrorBody,
}

/// Inside of [`ErrorDoc`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ErrorBody {
    /// Exit code of the command line.
    pub(crate) code: u8,
    /// For people.
    pub(crate) message: String,
}

/// The version of this program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VersionDoc {
    /// Version of the schema.
    pub(crate) schema: u32,
    /// Version of the program.
    pub(crate) version: String,
}

impl VersionDoc {
    /// Of this binary.
    pub(crate) fn current() -> Self {
        VersionDoc { schema: crate::status::SCHEMA, version: env!("CARGO_PKG_VERSION").to_owned() }
    }
}
