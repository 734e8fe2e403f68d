//! The verbs that the daemon executes; this side asks, waits and says what came of it.

use crate::cli::{Global, Promote, StatusArgs, Verb, Wait, WaitFor};
use crate::confirm::confirm;
use crate::control::{
    AttachBody, Client, DemoteBody, DoneDoc, DownBody, InvalidateBody, NoBody, PromoteBody, ResolveBody,
    SyncBody,
};
use crate::failure::{Failure, NOT_RUNNING, TIMEOUT, UNREACHABLE};
use crate::output::Output;
use crate::status::{ResourceDoc, StatusDoc, render};
use serde::Serialize;
use std::time::{Duration, Instant};

const WATCH_INTERVAL: Duration = Duration::from_secs(1);
const POLL_INTERVAL: Duration = Duration::from_millis(100);
const CLEAR_SCREEN: &str = "\x1b[H\x1b[2J\x1b[3J";

/// Execute a verb of the control API.
pub(crate) fn run(global: &Global, verb: &Verb, output: &Output) -> Result<(), Failure> {
    let client = Client::new(global.socket.clone())?;
    let say = |done: DoneDoc| output.done(&done, &done.message);
    match verb {
        Verb::Status(args) => status(&client, args, output),
        Verb::Wait(args) => wait(&client, args, output),
        Verb::Uri(args) => uri(&client, &args.resource, output),
        Verb::Up(args) => say(client.command(&args.resource, "up", &NoBody {})?),
        Verb::Attach(args) => {
            say(client.command(&args.resource, "attach", &AttachBody { moved: args.moved })?)
        }
        Verb::Detach(args) => say(client.command(&args.resource, "detach", &NoBody {})?),
        Verb::Down(args) => say(client.command(&args.resource, "down", &DownBody { force: args.force })?),
        Verb::Connect(args) => say(client.command(&args.resource, "connect", &NoBody {})?),
        Verb::Disconnect(args) => say(client.command(&args.resource, "disconnect", &NoBody {})?),
        Verb::Promote(args) => {
            confirm_promotion(args)?;
            let options =
                PromoteBody { peer_is_down: args.peer_is_down, accept_data_loss: args.accept_data_loss };
            say(client.command(&args.resource, "promote", &options)?)
        }
        Verb::Demote(args) => {
            say(client.command(&args.resource, "demote", &DemoteBody { force: args.force })?)
        }
        Verb::Invalidate(args) => {
            say(client.command(&args.resource, "invalidate", &InvalidateBody { peer: args.peer })?)
        }
        Verb::Resolve(args) => {
            let options = ResolveBody { discard: args.discard.clone() };
            say(client.command(&args.resource, "resolve", &options)?)
        }
        Verb::Sync(args) => {
            let pause = (args.pause || args.resume).then_some(args.pause);
            say(client.command(
                &args.resource,
                "sync",
                &SyncBody { pause, rate: args.rate, min_rate: args.min_rate },
            )?)
        }
        Verb::Checkpoint(verb) => crate::checkpoint::run(&client, verb, output),
        Verb::Daemon
        | Verb::Config(_)
        | Verb::CreateMd(_)
        | Verb::DumpMd(_)
        | Verb::Compare(_)
        | Verb::Demo(_)
        | Verb::Nbd(_)
        | Verb::Version => unreachable!("main executes these without a daemon"),
    }
}

fn confirm_promotion(args: &Promote) -> Result<(), Failure> {
    let lost = match (args.accept_data_loss, args.peer_is_down) {
        _ if args.yes => return Ok(()),
        (true, _) => "this copy may lack writes that were acknowledged; they are given up",
        (false, true) => "what the peer acknowledged alone is given up, and what it still acknowledges",
        (false, false) => return Ok(()),
    };
    confirm(&args.resource, lost)
}

fn status(client: &Client, args: &StatusArgs, output: &Output) -> Result<(), Failure> {
    loop {
        let status = client.status(args.resource.as_deref());
        let status = match status {
            // Whoever watches wants to see the daemon come back.
            Err(failure) if args.watch && failure.code == NOT_RUNNING => {
                output.message(&failure.message);
                std::thread::sleep(WATCH_INTERVAL);
                continue;
            }
            status => status?,
        };
        let clear = if args.watch && output.on_terminal() { CLEAR_SCREEN } else { "" };
        output.data(&status, || format!("{clear}{}", render(&status)))?;
        if !args.watch {
            return Ok(());
        }
        std::thread::sleep(WATCH_INTERVAL);
    }
}

fn wait(client: &Client, args: &Wait, output: &Output) -> Result<(), Failure> {
    let deadline = Instant::now() + args.timeout;
    loop {
        let seen = match client.status(Some(&args.resource)) {
            Ok(status) => match only_resource(&status)? {
                resource if reached(resource, args.state) => return output.done(&status, ""),
                resource => Ok(describe(resource)),
            },
            // A daemon that is being started is waited for as well.
            Err(failure) if failure.code == NOT_RUNNING => Err(failure),
            Err(failure) => return Err(failure),
        };
        if Instant::now() >= deadline {
            return Err(match seen {
                Ok(state) => {
                    let state_name = format!("{:?}", args.state).to_lowercase();
                    let resource = &args.resource;
                    Failure::new(
                        TIMEOUT,
                        format!("{resource} is not {state_name} after {:?}: {state}", args.timeout),
                    )
                }
                Err(failure) => Failure::new(UNREACHABLE, failure.message),
            });
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

fn reached(resource: &ResourceDoc, state: WaitFor) -> bool {
    resource.up
        && match state {
            WaitFor::Connected => {
                !resource.peers.is_empty() && resource.peers.iter().all(|peer| peer.connection == "Connected")
            }
            WaitFor::Uptodate => resource.disk == "UpToDate",
            WaitFor::Primary => resource.role == "Primary" && !resource.changing_role,
            WaitFor::Secondary => resource.role == "Secondary" && !resource.changing_role,
            WaitFor::Synced => {
                let synced = |peer: &crate::status::PeerDoc| {
                    peer.connection == "Connected"
                        && peer.replication == "Established"
                        && peer.disk.as_deref() == Some("UpToDate")
                };
                resource.disk == "UpToDate" && !resource.peers.is_empty() && resource.peers.iter().all(synced)
            }
        }
}

fn describe(resource: &ResourceDoc) -> String {
    let peer = resource.peers.first().map_or(String::new(), |peer| {
        format!(", {} {} {}", peer.name, peer.connection, peer.disk.as_deref().unwrap_or("unknown"))
    });
    format!("{} {} {}{peer}", resource.node, resource.role, resource.disk)
}

#[derive(Serialize)]
struct UriDoc<'a> {
    schema: u32,
    node: &'a str,
    uri: &'a str,
}

fn uri(client: &Client, resource: &str, output: &Output) -> Result<(), Failure> {
    let status = client.status(Some(resource)).map_err(|failure| match failure.code {
        // That code is for the question whether it runs.
        NOT_RUNNING => Failure::new(UNREACHABLE, failure.message),
        _ => failure,
    })?;
    let resource = only_resource(&status)?;
    let primary_peer = resource.peers.iter().find(|peer| peer.role.as_deref() == Some("Primary"));
    let (node, uri) = match (resource.role.as_str(), primary_peer) {
        ("Primary", _) => (&resource.node, resource.uris.first()),
        (_, Some(peer)) => {
            let reachable = peer.uris.iter().find(|uri| uri.starts_with("nbd://"));
            if reachable.is_none() {
                output.message(&format!(
                    "{0} is Primary and listens on a unix socket only: the address is of use on {0} alone",
                    peer.name
                ));
            }
            (&peer.name, reachable.or(peer.uris.first()))
        }
        _ => {
            let message =
                format!("no node is known to be Primary of {0}; type: lockstep promote {0}", resource.name);
            return Err(Failure::generic(message));
        }
    };
    let uri = uri.ok_or_else(|| Failure::generic(format!("{node} has no NBD listener")))?;
    output.data(&UriDoc { schema: crate::status::SCHEMA, node, uri }, || format!("{uri}\n"))
}

pub(crate) fn only_resource(status: &StatusDoc) -> Result<&ResourceDoc, Failure> {
    status.resources.first().ok_or_else(|| Failure::generic("the daemon's answer has no resource"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn resource(changes: serde_json::Value) -> ResourceDoc {
        let text = r#"{
            "name": "r0", "node": "alpha", "up": true, "error": null, "role": "Primary", "disk": "UpToDate",
            "generation": null, "term": 1, "protected": true, "not_protected_reason": null,
            "suspended": false, "sync_paused": false, "sync_rate": null, "sync_min_rate": null,
            "unclean": false, "changing_role": false, "size_bytes": 1, "clients": [], "requests": 0,
            "undurable_writes": 0, "hot_regions": 0, "hot_regions_max": 1, "region_bytes": 1, "uris": [],
            "disk_path": "/d", "disk_mode": null, "meta_path": "/m", "next_deadline": null,
            "memory": { "reserved_bytes": 0, "slots_in_use": 0, "slots": 0 },
            "peers": [{
                "name": "beta", "id": 1, "address": "", "connection": "Connected",
                "replication": "Established",
                "role": "Secondary", "disk": "UpToDate", "out_of_sync_bytes": 0, "since": "",
                "link_error": null,
                "resync": null, "resynced_bytes_total": 0, "split_brain": null, "uris": []
            }],
            "checkpoints": []
        }"#;
        let mut doc: serde_json::Value = serde_json::from_str(text).unwrap();
        for (pointer, value) in changes.as_object().unwrap() {
            *doc.pointer_mut(pointer).unwrap() = value.clone();
        }
        serde_json::from_value(doc).unwrap()
    }

    #[test]
    fn states_that_wait_waits_for() {
        use WaitFor::{Connected, Primary, Secondary, Synced, Uptodate};
        let all = |changes: serde_json::Value| {
            let resource = resource(changes);
            [Connected, Uptodate, Primary, Secondary, Synced].map(|state| u8::from(reached(&resource, state)))
        };
        assert_eq!(all(json!({})), [1, 1, 1, 0, 1]);
        assert_eq!(all(json!({"/up": false})), [0, 0, 0, 0, 0]);
        assert_eq!(all(json!({"/role": "Secondary"})), [1, 1, 0, 1, 1]);
        assert_eq!(all(json!({"/changing_role": true})), [1, 1, 0, 0, 1]);
        assert_eq!(all(json!({"/disk": "Consistent"})), [1, 0, 1, 0, 0]);
        assert_eq!(all(json!({"/peers/0/connection": "Connecting"})), [0, 1, 1, 0, 0]);
        assert_eq!(all(json!({"/peers/0/replication": "SyncSource"})), [1, 1, 1, 0, 0]);
        assert_eq!(all(json!({"/peers/0/disk": "Inconsistent"})), [1, 1, 1, 0, 0]);
        assert_eq!(all(json!({"/peers": []})), [0, 1, 1, 0, 0]);
    }
}
