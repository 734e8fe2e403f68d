//! Bodies of fuzz targets that need to see inside: the configuration, and what the control API is asked.
//!
//! They belong to `tests/fuzz`, which runs them. Each takes any bytes and panics where something does not hold.

use std::collections::BTreeSet;
use std::path::Path;

use crate::config::{Config, is_name};
use crate::control::{
    Asked, AttachBody, DemoteBody, DownBody, InvalidateBody, NoBody, PromoteBody, ResolveBody, SyncBody,
    asked,
};
use lockstep_core::{Command, SyncOrder};

/// The configuration file. What is accepted keeps what a [`Config`] promises; what is refused names a line that the
/// text has, and what is wrong there.
pub fn config(text: &str) {
    let file = Path::new("/etc/lockstep/lockstep.toml");
    let parsed = Config::parse(file, text);
    assert_eq!(parsed, Config::parse(file, text), "the same text, another answer");
    match parsed {
        Ok(config) => check_config(&config),
        Err(error) => {
            let lines = 1 + text.bytes().filter(|byte| *byte == b'\n').count();
            assert!(error.line.is_none_or(|line| (1..=lines).contains(&line)), "{error}: of {lines} lines");
            assert!(!error.message.trim().is_empty() && error.to_string().contains("lockstep.toml"));
        }
    }
}

fn check_config(config: &Config) {
    let names: Vec<&str> = config.nodes.iter().map(|node| node.name.as_str()).collect();
    assert!(names.len() == 2 && names[0] < names[1], "{names:?}");
    assert!(names.iter().all(|name| is_name(name)) && is_name(&config.cluster));
    assert!(
        config
            .nodes
            .iter()
            .all(|node| !node.nbd.listeners.is_empty() && config.node_id(&node.name).is_some())
    );
    assert!(config.secret_file.is_absolute());
    assert!(!config.resources.is_empty(), "no resource");
    for node in 0..2 {
        let mut used = BTreeSet::new();
        for resource in &config.resources {
            assert!(is_name(&resource.name) && config.resource(&resource.name) == Some(resource));
            let meta = resource.meta[usize::from(node)].as_deref();
            for path in [Some(resource.disk_path(node)), meta].into_iter().flatten() {
                assert!(path.is_absolute(), "{}", path.display());
                assert!(used.insert(path), "{} has two users on node {node}", path.display());
            }
        }
    }
    for resource in &config.resources {
        let timing = &resource.timing;
        assert!(timing.heartbeat * 2 <= timing.timeout && !timing.epoch.is_zero());
        assert!(resource.max_hot_regions > 0 && resource.size_bytes != Some(0));
    }
}

/// Verb and body of a request to the control API. What is refused says so with an exit code and in words, and not as a
/// fault of the daemon; what is accepted is accepted again when its options are written as the command line does.
pub fn control(verb: &str, body: &[u8]) {
    let nodes = ["alpha".to_owned(), "beta".to_owned()];
    let taken = asked(verb, body, &nodes);
    assert_eq!(format!("{taken:?}"), format!("{:?}", asked(verb, body, &nodes)));
    match taken {
        Ok(taken) => {
            let options = written(&taken, &nodes);
            let again = asked(verb, &options, &nodes);
            assert_eq!(format!("{again:?}"), format!("Ok({taken:?})"), "{verb}: {options:?}");
        }
        Err(error) => {
            let (status, said) = error.parts();
            assert!((400..500).contains(&status), "{status}: {said:?}");
            assert!(said.code != 0 && !said.message.is_empty());
            let written = serde_json::to_vec(said).expect("an error can be written");
            let read: crate::control::ErrorBody = serde_json::from_slice(&written).expect("and read");
            assert_eq!(read, *said);
        }
    }
}

/// The options as the command line writes them.
fn written(taken: &Asked, nodes: &[String]) -> Vec<u8> {
    let text = match taken {
        Asked::Open { moved: Some(moved) } => serde_json::to_vec(&AttachBody { moved: *moved }),
        Asked::Down { force } => serde_json::to_vec(&DownBody { force: *force }),
        Asked::Command(Command::Promote { peer_is_down, accept_data_loss }) => {
            let (peer_is_down, accept_data_loss) = (*peer_is_down, *accept_data_loss);
            serde_json::to_vec(&PromoteBody { peer_is_down, accept_data_loss })
        }
        Asked::Command(Command::Demote { force }) => serde_json::to_vec(&DemoteBody { force: *force }),
        Asked::Command(Command::Invalidate { peer }) => serde_json::to_vec(&InvalidateBody { peer: *peer }),
        Asked::Command(Command::Resolve { discard }) => {
            serde_json::to_vec(&ResolveBody { discard: nodes[usize::from(discard.0)].clone() })
        }
        Asked::Command(Command::Sync(order)) => serde_json::to_vec(&match order {
            SyncOrder::Pause => SyncBody { pause: Some(true), ..SyncBody::default() },
            SyncOrder::Resume => SyncBody { pause: Some(false), ..SyncBody::default() },
            SyncOrder::Rate(rate) => SyncBody { rate: Some(rate.unwrap_or(0)), ..SyncBody::default() },
            SyncOrder::AtLeast(rate) => SyncBody { min_rate: Some(rate.unwrap_or(0)), ..SyncBody::default() },
        }),
        _ => serde_json::to_vec(&NoBody {}),
    };
    text.expect("options can be written")
}
