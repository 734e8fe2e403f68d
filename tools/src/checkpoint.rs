//! `checkpoint create|list|delete`: what backup tools read as the metadata context `x-lockstep:checkpoint:NAME`.

use crate::cli::CheckpointVerb;
use crate::control::{CheckpointBody, Client};
use crate::failure::{Failure, NOT_RUNNING, UNREACHABLE};
use crate::output::Output;
use crate::status::{CheckpointDoc, ResourceDoc, SCHEMA};
use crate::text::{bytes, readable};
use crate::verbs::only_resource;
use serde::Serialize;
use std::fmt::Write as _;

#[derive(Serialize)]
struct ListDoc<'a> {
    schema: u32,
    resource: &'a str,
    node: &'a str,
    checkpoints: &'a [CheckpointDoc],
}

/// Execute it.
pub(crate) fn run(client: &Client, verb: &CheckpointVerb, output: &Output) -> Result<(), Failure> {
    match verb {
        CheckpointVerb::Create(args) => {
            let options = CheckpointBody { name: args.name.clone() };
            let done = client.command(&args.resource, "checkpoint-create", &options)?;
            let status = client.status(Some(&args.resource))?;
            let message = begun(only_resource(&status)?, &args.name);
            output.done(&done, &message)
        }
        CheckpointVerb::Delete(args) => {
            let options = CheckpointBody { name: args.name.clone() };
            let done = client.command(&args.resource, "checkpoint-delete", &options)?;
            output.done(&done, &done.message)
        }
        CheckpointVerb::List(args) => {
            let status = client.status(Some(&args.resource)).map_err(|failure| match failure.code {
                // That code is for the question whether it runs.
                NOT_RUNNING => Failure::new(UNREACHABLE, failure.message),
                _ => failure,
            })?;
            let resource = only_resource(&status)?;
            let (name, node) = (&resource.name, &resource.node);
            let doc = ListDoc { schema: SCHEMA, resource: name, node, checkpoints: &resource.checkpoints };
            output.data(&doc, || list(resource))
        }
    }
}

fn begun(resource: &ResourceDoc, name: &str) -> String {
    let at_peer = resource.checkpoints.iter().any(|found| found.name == name && found.on_peer);
    let place = match resource.peers.first() {
        Some(_) if at_peer => "on both nodes".to_owned(),
        Some(peer) => {
            format!("on {} only; {} gets it when it is mirrored to, if it has room", resource.node, peer.name)
        }
        None => format!("on {}", resource.node),
    };
    format!("{}: checkpoint {name} has begun {place}", resource.name)
}

/// A table, one line each.
fn list(resource: &ResourceDoc) -> String {
    if resource.checkpoints.is_empty() {
        return format!("{} has no checkpoints on {}\n", resource.name, resource.node);
    }
    let row = |found: &CheckpointDoc| {
        let state = match &found.reason {
            Some(reason) => format!("{}: {reason}", found.state),
            None => found.state.clone(),
        };
        let place = if found.on_peer { "both nodes" } else { "this node only" };
        [found.name.clone(), readable(&found.created), bytes(found.changed_bytes), place.to_owned(), state]
    };
    let heads = ["NAME", "CREATED", "CHANGED", "ON", "STATE"].map(str::to_owned);
    let rows: Vec<[String; 5]> = [heads].into_iter().chain(resource.checkpoints.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths = [0, 1, 2, 3].map(width);
    let mut text = String::new();
    for row in &rows {
        for (cell, width) in row.iter().zip(widths) {
            // Writing to a String cannot fail.
            let _ = write!(text, "{cell:width$}  ");
        }
        text += &row[4];
        text.push('\n');
    }
    text
}
