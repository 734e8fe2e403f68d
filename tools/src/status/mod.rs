//! What `status` shows: a stable JSON document, made by the daemon, and its layout for people, made by the
//! client.

mod advice;
mod convert;
mod model;
mod render;
#[cfg(test)]
mod tests;

pub(crate) use convert::{Place, resource_doc};
pub(crate) use model::{CheckpointDoc, PeerDoc, ResourceDoc, ResyncDoc, SCHEMA, StatusDoc};
pub(crate) use render::render;
