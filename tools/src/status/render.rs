//! The layout of `status` for people. Pure: document in, text out.

use super::advice::advice;
use super::model::{PeerDoc, ResourceDoc, ResyncDoc, StatusDoc};
use crate::text;
use std::fmt::Write as _;

const BAR_CELLS: u64 = 20;
const CLIENTS_SHOWN: usize = 4;

/// The whole document.
pub(crate) fn render(status: &StatusDoc) -> String {
    let mut out = String::new();
    for (index, resource) in status.resources.iter().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        render_resource(&mut out, resource);
    }
    out
}

// Writing to a String cannot fail, so the results of `writeln!` are dropped below.
fn render_resource(out: &mut String, resource: &ResourceDoc) {
    let generation = resource.generation.as_ref().map_or("none".to_owned(), |g| g.ordinal.to_string());
    let protection = match &resource.not_protected_reason {
        None => "PROTECTED".to_owned(),
        Some(reason) => format!("NOT PROTECTED: {reason}"),
    };
    let _ =
        writeln!(out, "{}  {}   generation {generation}   {protection}", resource.name, primary(resource));
    let width = resource.peers.iter().map(|peer| peer.name.len()).chain([resource.node.len() + 12]).max();
    let width = width.unwrap_or(0);
    render_own(out, resource, width);
    for peer in &resource.peers {
        render_peer(out, resource, peer, width);
    }
    render_orders(out, resource);
    render_memory(out, resource);
    for line in advice(resource) {
        let _ = writeln!(out, "      -> {line}");
    }
}

/// What operators told resync, here or there.
fn render_orders(out: &mut String, resource: &ResourceDoc) {
    for peer in &resource.peers {
        if peer.resync.as_ref().is_some_and(|resync| resync.paused_by_peer) {
            let _ = writeln!(out, "      resync is paused by {}", peer.name);
        }
    }
    if resource.sync_paused {
        let _ = writeln!(out, "      resync is paused by {} (this node)", resource.node);
    }
    if let Some(rate) = resource.sync_rate {
        let _ = writeln!(out, "      resync is limited here to {}/s", text::bytes(rate));
    }
    if let Some(rate) = resource.sync_min_rate {
        let _ = writeln!(
            out,
            "      resync gets {}/s at least by the word of {}, where nobody limits or pauses it",
            text::bytes(rate),
            resource.node
        );
    }
}

/// What the size of the volume and `max-hot` cost.
fn render_memory(out: &mut String, resource: &ResourceDoc) {
    let memory = &resource.memory;
    if memory.bitmaps_bytes == 0 {
        return;
    }
    let hot_bytes = u64::from(resource.hot_regions_max).saturating_mul(resource.region_bytes);
    let _ = writeln!(
        out,
        "      memory: payloads {}, bitmaps {} at most; a crash resync looks at {} at most",
        text::bytes(memory.reserved_bytes),
        text::bytes(memory.bitmaps_bytes),
        text::bytes(hot_bytes.min(resource.size_bytes)),
    );
}

fn primary(resource: &ResourceDoc) -> String {
    if !resource.up {
        return format!("down on {}", resource.node);
    }
    let changing = if resource.changing_role { " (changing)" } else { "" };
    let peer = resource.peers.iter().find(|peer| peer.role.as_deref() == Some("Primary"));
    match (resource.role.as_str(), peer) {
        ("Primary", _) => format!("Primary on {}{changing}", resource.node),
        (_, Some(peer)) => format!("Primary on {}{changing}", peer.name),
        _ => format!("no Primary{changing}"),
    }
}

fn render_own(out: &mut String, resource: &ResourceDoc, width: usize) {
    let label = format!("{} (this node)", resource.node);
    if resource.up {
        let _ = write!(out, "  {label:width$}  {:9}  {:12}", resource.role, resource.disk);
        let _ = write!(out, "   clients {}", resource.clients.len());
        if !resource.clients.is_empty() {
            let mut shown: Vec<&str> =
                resource.clients.iter().map(|client| client.address.as_str()).collect();
            let hidden = shown.len().saturating_sub(CLIENTS_SHOWN);
            shown.truncate(CLIENTS_SHOWN);
            let more = if hidden > 0 { format!(", {hidden} more") } else { String::new() };
            let _ = write!(out, " ({}{more})", shown.join(", "));
        }
        let held = if resource.suspended { resource.requests } else { 0 };
        let _ = write!(out, "   held I/O {held}");
        if resource.size_bytes > 0 {
            let _ = write!(out, "   {}", text::bytes(resource.size_bytes));
        }
    } else {
        let _ = write!(out, "  {label:width$}  down");
    }
    let _ = writeln!(out);
    if let Some(error) = &resource.error {
        let _ = writeln!(out, "      {error}");
    }
    if resource.unclean {
        let _ = writeln!(out, "      stopped uncleanly; a handshake with the peer settles it");
    }
}

fn render_peer(out: &mut String, resource: &ResourceDoc, peer: &PeerDoc, width: usize) {
    let role = peer.role.as_deref().unwrap_or("-");
    let disk = peer.disk.as_deref().unwrap_or("-");
    let _ = write!(out, "  {:width$}  {role:9}  {disk:12}   {}", peer.name, peer.connection);
    if peer.connection == "Connected" && peer.replication != "Off" {
        let _ = write!(out, " {}", peer.replication);
    }
    let _ = write!(out, "   since {}", text::readable(&peer.since));
    if peer.out_of_sync_bytes > 0 && peer.resync.is_none() {
        let _ = write!(out, "   out of sync {}", text::bytes(peer.out_of_sync_bytes));
    }
    let _ = writeln!(out);
    if let Some(error) = &peer.link_error {
        let _ = writeln!(out, "      {error}");
    }
    if let Some(resync) = &peer.resync {
        render_resync(out, resync);
    }
    if let Some(split) = &peer.split_brain {
        let since = |time: &Option<String>| {
            time.as_deref().map_or(String::new(), |time| format!(" since {}", text::readable(time)))
        };
        let theirs = split.peer_bytes.map_or("an unknown amount".to_owned(), text::bytes);
        let _ = writeln!(
            out,
            "      SPLIT BRAIN  {} wrote {}{}, {} wrote {theirs}{}",
            resource.node,
            text::bytes(split.bytes),
            since(&split.since),
            peer.name,
            since(&split.peer_since),
        );
    }
}

fn render_resync(out: &mut String, resync: &ResyncDoc) {
    let total = resync.total_bytes.max(1);
    let done = resync.done_bytes.min(total);
    let cells = scaled(done, BAR_CELLS, total);
    let permille = scaled(done, 1000, total);
    let bar: String = (0..BAR_CELLS).map(|cell| if cell < cells { '#' } else { '.' }).collect();
    let eta = resync.eta_s.map_or("unknown".to_owned(), text::clock);
    let limit = resync.limit.map_or(String::new(), |limit| format!(" (limit {}/s)", text::bytes(limit)));
    let _ = writeln!(
        out,
        "      resync {} -> {}  [{bar}] {:3}.{} %   {} of {} left   {}/s{limit}   ETA {eta}   since {}",
        resync.source,
        resync.target,
        permille / 10,
        permille % 10,
        text::bytes(resync.total_bytes - done.min(resync.total_bytes)),
        text::bytes(resync.total_bytes),
        text::bytes(resync.rate),
        text::readable(&resync.since),
    );
    let _ = writeln!(
        out,
        "        copied {}, equal {}, zero {}",
        text::bytes(resync.copied_bytes),
        text::bytes(resync.equal_bytes),
        text::bytes(resync.zero_bytes),
    );
    if resync.unreadable_bytes > 0 {
        render_unreadable(out, resync);
    }
}

fn render_unreadable(out: &mut String, resync: &ResyncDoc) {
    let shown: u64 = resync.unreadable.iter().map(|range| range.length).sum();
    let ranges: Vec<String> =
        resync.unreadable.iter().map(|range| format!("{}+{}", range.offset, range.length)).collect();
    let more = if shown < resync.unreadable_bytes { ", ..." } else { "" };
    let what = if resync.incomplete { "INCOMPLETE" } else { "goes on" };
    let _ = writeln!(
        out,
        "        {what}: {} cannot read {} of its disk, at {}{more} (offset+length in bytes)",
        resync.source,
        text::bytes(resync.unreadable_bytes),
        ranges.join(", "),
    );
}

/// `part * scale / whole`, rounded down, for any sizes.
fn scaled(part: u64, scale: u64, whole: u64) -> u64 {
    u64::try_from(u128::from(part) * u128::from(scale) / u128::from(whole)).unwrap_or(scale)
}
