//! `dump-md`: what a metadata file records, read the way the daemon reads it. Never writes.

use crate::cli::{DumpMd, Global};
use crate::config::Config;
use crate::daemon::this_node;
use crate::failure::Failure;
use crate::output::Output;
use crate::status::SCHEMA;
use crate::text;
use lockstep_bitmap::{Base, Findings, PeerCopy, Store};
use lockstep_engine::read_metadata;
use rustix::fs::FlockOperation;
use serde::Serialize;
use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};

#[derive(Serialize)]
struct Dump {
    schema: u32,
    file: PathBuf,
    held_by_daemon: bool,
    resource: String,
    volume: u16,
    node: String,
    node_id: u8,
    size_bytes: u64,
    block_bytes: u64,
    region_bytes: u64,
    sequence: u64,
    term: u64,
    outdated: bool,
    inconsistent: Option<BecomingDump>,
    may_be_written: bool,
    unclean_in: Option<String>,
    was_primary: bool,
    declared_clean: bool,
    hot_regions: u32,
    damaged_pages: u32,
    generations: Vec<GenerationDump>,
    peers: Vec<PeerDump>,
}

#[derive(Serialize)]
struct BecomingDump {
    generation: String,
    node_id: u8,
}

#[derive(Serialize)]
struct GenerationDump {
    id: String,
    ordinal: u64,
    parent: Option<String>,
    node_id: u8,
    began: String,
    origin: String,
}

#[derive(Serialize)]
struct PeerDump {
    node_id: u8,
    copy: &'static str,
    base: String,
    dirty_bytes: u64,
    session_offered: u64,
    session_used: u64,
    may_be_primary: bool,
}

/// Execute it.
pub(crate) fn dump_md(global: &Global, args: &DumpMd, output: &Output) -> Result<(), Failure> {
    let path = if args.target.contains('/') {
        PathBuf::from(&args.target)
    } else {
        let config = Config::load(&global.config)?;
        let node = this_node(global, &config)?;
        let path = config.known_resource(&args.target)?.meta_path(node, &global.state_dir);
        if !path.exists() {
            let message =
                format!("no metadata at {0}; create it: lockstep create-md {1}", path.display(), args.target);
            return Err(Failure::generic(message));
        }
        path
    };
    let dump = read(&path)?;
    if dump.held_by_daemon {
        output.message("a daemon holds this file: what is shown may be in motion");
    }
    output.data(&dump, || render(&dump))
}

fn read(path: &Path) -> Result<Dump, Failure> {
    let (store, findings) = read_metadata(path).map_err(|error| Failure::generic(error.to_string()))?;
    let file = File::open(path).map_err(|error| Failure::generic(format!("{}: {error}", path.display())))?;
    let held_by_daemon = rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_err();
    Ok(describe(path, held_by_daemon, &store, &findings))
}

fn describe(path: &Path, held_by_daemon: bool, store: &Store, findings: &Findings) -> Dump {
    let superblock = &store.superblock;
    let hex = |id: lockstep_bitmap::GenerationId| format!("{:032x}", id.0);
    let block_bytes = store.geometry().block_bytes();
    let generations = superblock.log.entries().iter().map(|generation| GenerationDump {
        id: hex(generation.id),
        ordinal: generation.ordinal,
        parent: generation.parent.map(hex),
        node_id: generation.node.0,
        began: text::rfc3339(generation.began_unix_ms),
        origin: format!("{:?}", generation.origin),
    });
    let peers = superblock.peers.iter().zip(&store.slots).map(|(peer, slot)| PeerDump {
        node_id: peer.node.0,
        copy: copy_words(peer.copy),
        base: match peer.base {
            Base::Unset => "unset".to_owned(),
            Base::NoGeneration => "none".to_owned(),
            Base::Generation(id) => hex(id),
        },
        dirty_bytes: slot.bits.count() * block_bytes,
        session_offered: peer.session_offered,
        session_used: peer.session_used,
        may_be_primary: peer.may_be_primary,
    });
    Dump {
        schema: SCHEMA,
        file: path.to_owned(),
        held_by_daemon,
        resource: superblock.identity.resource.clone(),
        volume: superblock.identity.volume,
        node: superblock.identity.node_name.clone(),
        node_id: superblock.identity.node.0,
        size_bytes: superblock.size_bytes,
        block_bytes,
        region_bytes: store.geometry().region_bytes(),
        sequence: superblock.sequence,
        term: superblock.term,
        outdated: superblock.outdated,
        inconsistent: superblock
            .inconsistent
            .map(|becoming| BecomingDump { generation: hex(becoming.generation), node_id: becoming.node.0 }),
        may_be_written: superblock.may_be_written,
        unclean_in: superblock.unclean_in.map(hex),
        was_primary: superblock.was_primary,
        declared_clean: superblock.declared_clean,
        hot_regions: findings.hot_regions,
        damaged_pages: findings.damaged_pages,
        generations: generations.collect(),
        peers: peers.collect(),
    }
}

fn copy_words(copy: PeerCopy) -> &'static str {
    match copy {
        PeerCopy::MayHold => "may hold the current generation",
        PeerCopy::NoGeneration => "has no generation",
        PeerCopy::LeftOutdated => "left as Outdated",
        PeerCopy::SyncTarget => "target of a resync from here",
        PeerCopy::ToldToFinish => "told that its resync ended, not confirmed",
        PeerCopy::RotatedWithout => "lacks the current generation",
    }
}

// Writing to a String cannot fail, so the results of `writeln!` are dropped below.
fn render(dump: &Dump) -> String {
    let mut out = String::new();
    let short = |id: &str| id.get(..8).unwrap_or(id).to_owned();
    let _ = writeln!(
        out,
        "{}: resource {} volume {} of {}",
        dump.file.display(),
        dump.resource,
        dump.volume,
        dump.node
    );
    let _ = writeln!(
        out,
        "  size {}, blocks of {}, regions of {}, sequence {}, term {}",
        text::bytes(dump.size_bytes),
        text::bytes(dump.block_bytes),
        text::bytes(dump.region_bytes),
        dump.sequence,
        dump.term
    );
    let mut flags = Vec::new();
    let set = [
        (dump.outdated, "outdated"),
        (dump.may_be_written, "may be written"),
        (dump.was_primary, "was Primary"),
        (dump.declared_clean, "declared clean"),
    ];
    flags.extend(set.iter().filter(|(is_set, _)| *is_set).map(|(_, word)| (*word).to_owned()));
    flags.extend(dump.unclean_in.as_ref().map(|id| format!("unclean in {}", short(id))));
    flags.extend(
        dump.inconsistent
            .as_ref()
            .map(|b| format!("inconsistent, becoming {} of node {}", short(&b.generation), b.node_id)),
    );
    let flags = if flags.is_empty() { "none".to_owned() } else { flags.join(", ") };
    let _ = writeln!(out, "  flags: {flags}");
    let _ = writeln!(out, "  hot regions {}, damaged pages {}", dump.hot_regions, dump.damaged_pages);
    for generation in &dump.generations {
        let _ = writeln!(
            out,
            "  generation {} {} since {} on node {}: {}",
            generation.ordinal,
            short(&generation.id),
            text::readable(&generation.began),
            generation.node_id,
            generation.origin
        );
    }
    if dump.generations.is_empty() {
        let _ = writeln!(out, "  no generation: never synchronised");
    }
    for peer in &dump.peers {
        let _ = writeln!(
            out,
            "  peer node {}: {}; base {}; dirty {}; session {} offered, {} used",
            peer.node_id,
            peer.copy,
            short(&peer.base),
            text::bytes(peer.dirty_bytes),
            peer.session_offered,
            peer.session_used
        );
    }
    out
}
