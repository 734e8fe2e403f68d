//! `config check`: what can be said of a configuration without starting anything.

use crate::cli::Global;
use crate::config::{Config, ResourceEntry};
use crate::daemon::{Settings, limits, memory_max_bytes, this_node};
use crate::failure::Failure;
use crate::output::Output;
use crate::status::SCHEMA;
use lockstep_bitmap::{DEFAULT_CHECKPOINTS, DEFAULT_REGION_SHIFT, Geometry};
use lockstep_engine::{MemoryBudget, read_metadata};
use serde_json::json;

/// Blocks of new metadata: 4 KiB.
const BLOCK_SHIFT: u8 = 12;

/// Checks the file and what it names (secret, TLS, groups, hosts), and says what the daemon would take of memory.
pub(crate) fn config_check(global: &Global, output: &Output) -> Result<(), Failure> {
    let config = Config::load(&global.config)?;
    Settings::check(global, &config)?;
    let (budget, unknown) = memory(global, &config);
    let max_bytes = memory_max_bytes(config.memory_max_bytes);
    if let Some(excess) = budget.excess(max_bytes) {
        return Err(Failure::config(format!("{}: {excess}", config.file.display())));
    }
    let resources: Vec<&str> = config.resources.iter().map(|resource| resource.name.as_str()).collect();
    let nodes: Vec<&str> = config.nodes.iter().map(|node| node.name.as_str()).collect();
    let not_counted = match unknown.is_empty() {
        true => String::new(),
        false => format!("; without the bitmaps of {}, whose size is not known here", unknown.join(", ")),
    };
    let text = format!(
        "{}: ok; nodes {}; resources {}\n{budget}; memory-max is {}{not_counted}",
        config.file.display(),
        nodes.join(", "),
        resources.join(", "),
        crate::text::bytes(max_bytes),
    );
    let doc = json!({
        "schema": SCHEMA,
        "ok": true,
        "cluster": config.cluster,
        "nodes": nodes,
        "resources": resources,
        "memory_bytes": budget.total_bytes(),
        "memory_max_bytes": max_bytes,
    });
    output.done(&doc, &text)
}

/// The budget, and the resources whose size is not known.
fn memory<'a>(global: &Global, config: &'a Config) -> (MemoryBudget, Vec<&'a str>) {
    let buffers = config.resources.iter().map(|resource| resource.buffer_memory_bytes);
    let mut budget = MemoryBudget::new(&limits(config), buffers);
    let node = this_node(global, config).ok();
    let mut unknown = Vec::new();
    for resource in &config.resources {
        match volume(global, node, resource) {
            Some((geometry, checkpoints)) => {
                budget = budget.with_volume(&geometry, resource.max_hot_regions, checkpoints);
            }
            None => unknown.push(resource.name.as_str()),
        }
    }
    (budget, unknown)
}

/// Size, and room for checkpoints: as the metadata on this node say, else as `create-md` will for the size in the file.
fn volume(global: &Global, node: Option<u8>, resource: &ResourceEntry) -> Option<(Geometry, u8)> {
    let recorded = node.and_then(|node| read_metadata(&resource.meta_path(node, &global.state_dir)).ok());
    recorded.map(|(store, _)| (*store.geometry(), store.layout().checkpoints())).or_else(|| {
        let size_bytes = resource.size_bytes?;
        Some((Geometry::new(size_bytes, BLOCK_SHIFT, DEFAULT_REGION_SHIFT).ok()?, DEFAULT_CHECKPOINTS))
    })
}
