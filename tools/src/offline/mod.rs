//! Tools that need no daemon: configuration, metadata, comparing images.

mod check;
mod compare;
mod create_md;
mod dump_md;
mod signature;

pub(crate) use check::config_check;
pub(crate) use compare::compare;
pub(crate) use create_md::create_md;
pub(crate) use dump_md::dump_md;

use crate::cli::ConfigInit;
use crate::config::{InitPlan, init};
use crate::failure::Failure;
use crate::output::Output;
use crate::status::SCHEMA;
use serde_json::json;

/// `config init`.
pub(crate) fn config_init(args: &ConfigInit, output: &Output) -> Result<(), Failure> {
    let steps = init(&InitPlan {
        resource: args.resource.clone(),
        nodes: args.nodes.clone(),
        disk: args.disk.clone(),
        size: args.size.clone(),
        dir: args.dir.clone(),
    })?;
    output.done(&json!({ "schema": SCHEMA, "dir": args.dir }), steps.trim_end())
}
