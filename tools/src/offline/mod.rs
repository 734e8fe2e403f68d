//! Tools that need no daemon: configuration, metadata, comparing images.

mod compare;
mod create_md;
mod dump_md;
mod signature;

pub(crate) use compare::compare;
pub(crate) use create_md::create_md;
pub(crate) use dump_md::dump_md;

use crate::cli::{ConfigInit, Global};
use crate::config::{Config, InitPlan, init};
use crate::failure::Failure;
use crate::output::Output;
use crate::secret;
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

/// `config check`.
pub(crate) fn config_check(global: &Global, output: &Output) -> Result<(), Failure> {
    let config = Config::load(&global.config)?;
    secret::load(&config.secret_file)?;
    let resources: Vec<&str> = config.resources.iter().map(|resource| resource.name.as_str()).collect();
    let nodes: Vec<&str> = config.nodes.iter().map(|node| node.name.as_str()).collect();
    let text = format!(
        "{}: ok; nodes {}; resources {}",
        config.file.display(),
        nodes.join(", "),
        resources.join(", ")
    );
    let doc = json!({
        "schema": SCHEMA,
        "ok": true,
        "cluster": config.cluster,
        "nodes": nodes,
        "resources": resources,
    });
    output.done(&doc, &text)
}
