//! Client and server against each other over a real socket, with a backend that plays the engine.

use super::server::Backend;
use super::*;
use crate::failure::Failure;
use crate::status::Place;
use lockstep_core::{Command, Done, Refusal};
use lockstep_engine::{CommandReply, MemoryReport, ResourceReport, StatusReply, UnknownResource, UpReply};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

#[derive(Default)]
struct Played {
    asked: Mutex<Vec<String>>,
}

impl Played {
    fn note(&self, what: String, resource: &str) -> Result<(), UnknownResource> {
        self.asked.lock().unwrap().push(what);
        if resource == "r0" { Ok(()) } else { Err(UnknownResource(resource.to_owned())) }
    }
}

impl Backend for Played {
    fn names(&self) -> Vec<String> {
        vec!["r0".to_owned()]
    }
    fn command(&self, resource: &str, command: Command, reply: CommandReply) -> Result<(), UnknownResource> {
        self.note(format!("{command:?}"), resource)?;
        match command {
            Command::Promote { accept_data_loss: true, .. } => reply(Ok(Done::Changed)),
            Command::Promote { .. } => reply(Err(Refusal::NoData)),
            Command::Demote { .. } => reply(Err(Refusal::InUse { clients: 2 })),
            Command::Disconnect => drop(reply),
            _ => reply(Ok(Done::Already)),
        }
        Ok(())
    }
    fn status(&self, resource: &str, reply: StatusReply) -> Result<(), UnknownResource> {
        self.note("status".to_owned(), resource)?;
        reply(ResourceReport {
            name: resource.to_owned(),
            status: None,
            error: Some("broken".to_owned()),
            clients: Vec::new(),
            disk: "/d".into(),
            disk_mode: None,
            meta: "/m".into(),
            nbd_uris: Vec::new(),
            peer: None,
            memory: MemoryReport::default(),
            link_error: None,
        });
        Ok(())
    }
    fn up(&self, resource: &str, reply: UpReply) -> Result<(), UnknownResource> {
        self.note("up".to_owned(), resource)?;
        reply(Err("no metadata".to_owned()));
        Ok(())
    }
    fn attach(&self, resource: &str, moved: bool, reply: UpReply) -> Result<(), UnknownResource> {
        self.note(format!("attach {moved}"), resource)?;
        reply(Ok(Done::Changed));
        Ok(())
    }
    fn down(&self, resource: &str, force: bool, reply: CommandReply) -> Result<(), UnknownResource> {
        self.note(format!("down {force}"), resource)?;
        reply(if force { Ok(Done::LeftAsOutdated) } else { Err(Refusal::InUse { clients: 1 }) });
        Ok(())
    }
}

struct Served {
    client: Client,
    backend: Arc<Played>,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

fn served() -> Served {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control.sock");
    let listener = bind(&socket).unwrap();
    let backend = Arc::new(Played::default());
    let place = Place {
        names: vec!["alpha".to_owned(), "beta".to_owned()],
        node: 0,
        addresses: Vec::new(),
        uris: Vec::new(),
    };
    let shared = Arc::new(Shared { backend: Arc::clone(&backend), place, cluster: "c".to_owned() });
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(serve(listener, shared, std::future::pending())).unwrap();
    });
    Served { client: Client::new(socket.clone()).unwrap(), backend, socket, _dir: dir }
}

fn code(result: Result<DoneDoc, Failure>) -> (u8, String) {
    let failure = result.expect_err("must fail");
    (failure.code, failure.message)
}

#[test]
fn commands_reach_the_engine_with_their_options() {
    let served = served();
    let flags = PromoteBody { peer_is_down: false, accept_data_loss: true };
    let done = served.client.command("r0", "promote", &flags).unwrap();
    assert_eq!((done.result.as_str(), done.message.as_str()), ("changed", "r0: Primary on alpha"));
    served.client.command("r0", "resolve", &ResolveBody { discard: "beta".to_owned() }).unwrap();
    let limit = SyncBody { rate: Some(1 << 20), ..SyncBody::default() };
    served.client.command("r0", "sync", &limit).unwrap();
    served.client.command("r0", "sync", &SyncBody { pause: Some(false), ..SyncBody::default() }).unwrap();
    let least = SyncBody { min_rate: Some(2 << 20), ..SyncBody::default() };
    served.client.command("r0", "sync", &least).unwrap();
    assert_eq!(code(served.client.command("r0", "sync", &SyncBody { rate: Some(1), ..least })).0, 2);
    assert_eq!(code(served.client.command("r0", "sync", &NoBody {})).0, 2);
    assert_eq!(code(served.client.command("r0", "sync", &SyncBody { pause: Some(true), ..limit })).0, 2);
    assert_eq!(served.client.command("r0", "connect", &NoBody {}).unwrap().result, "already");
    let done = served.client.command("r0", "attach", &AttachBody { moved: true }).unwrap();
    assert_eq!(done.message, "r0: its disk is attached on alpha");
    let done = served.client.command("r0", "detach", &NoBody {}).unwrap();
    assert_eq!(done.message, "r0: without its disk on alpha already");
    served.client.command("r0", "invalidate", &InvalidateBody { peer: true }).unwrap();
    let (refused, message) = code(served.client.command("r0", "down", &NoBody {}));
    assert!(refused == 11 && message.contains("lockstep down r0 --force"), "{refused} {message}");
    let done = served.client.command("r0", "down", &DownBody { force: true }).unwrap();
    assert_eq!(done.result, "left_as_outdated");
    assert_eq!(
        *served.backend.asked.lock().unwrap(),
        [
            "Promote { peer_is_down: false, accept_data_loss: true }",
            "Resolve { discard: NodeId(1) }",
            "Sync(Rate(Some(1048576)))",
            "Sync(Resume)",
            "Sync(AtLeast(Some(2097152)))",
            "Connect",
            "attach true",
            "Detach",
            "Invalidate { peer: true }",
            "down false",
            "down true"
        ]
    );
}

#[test]
fn failures_carry_exit_codes_and_commands() {
    let served = served();
    let client = &served.client;
    let (refused, message) = code(client.command("r0", "promote", &PromoteBody::default()));
    assert!(refused == 17 && message.contains("lockstep create-md r0 --source"), "{refused} {message}");
    let (refused, message) = code(client.command("r0", "demote", &DemoteBody::default()));
    assert!(refused == 11 && message.contains("lockstep demote r0 --force"), "{refused} {message}");
    let (failed, message) = code(client.command("r0", "up", &NoBody {}));
    assert!(failed == 11 && message.contains("no metadata"), "{failed} {message}");
    assert_eq!(code(client.command("r0", "resolve", &ResolveBody { discard: "gamma".to_owned() })).0, 2);
    assert_eq!(code(client.command("r0", "resolve", &NoBody {})).0, 2);
    assert_eq!(code(client.command("r0", "promote", &serde_json::json!({"force": true}))).0, 2);
    assert_eq!(code(client.command("r0", "explode", &NoBody {})).0, 1);
    assert_eq!(code(client.command("../r0", "promote", &NoBody {})).0, 2);
    let (unknown, message) = code(client.command("r9", "connect", &NoBody {}));
    assert!(unknown == 1 && message.contains("no resource r9 on alpha; it has: r0"), "{message}");
    // An engine that drops the question is reported, not waited for.
    assert_eq!(code(client.command("r0", "disconnect", &NoBody {})).0, 4);
    let large = serde_json::json!({ "discard": "x".repeat(100_000) });
    assert!(client.command("r0", "resolve", &large).is_err());
}

#[test]
fn status_of_all_and_of_one() {
    let served = served();
    let all = served.client.status(None).unwrap();
    assert_eq!((all.node.as_str(), all.resources.len(), all.schema), ("alpha", 1, 1));
    assert_eq!(served.client.status(Some("r0")).unwrap().resources[0].error.as_deref(), Some("broken"));
    assert_eq!(served.client.status(Some("r1")).unwrap_err().code, 1);
}

#[test]
fn absent_daemon_is_3_for_questions_and_4_for_commands() {
    let client = Client::new(PathBuf::from("/nowhere/control.sock")).unwrap();
    assert_eq!(client.status(None).unwrap_err().code, 3);
    assert_eq!(code(client.command("r0", "promote", &PromoteBody::default())).0, 4);
}

#[test]
fn socket_is_private_and_only_a_stale_one_is_replaced() {
    let served = served();
    let metadata = std::fs::symlink_metadata(&served.socket).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o660);
    let refused = bind(&served.socket).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::AddrInUse);
    let dir = tempfile::tempdir().unwrap();
    let stale = dir.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    bind(&stale).unwrap();
    assert!(std::fs::symlink_metadata(&stale).unwrap().file_type().is_socket());
    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(bind(&file).is_err());
    assert_eq!(read(&file), "precious");
}

#[test]
fn nobody_gets_in_before_the_socket_has_its_mode() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control.sock");
    // The most open umask that one can be started with; files of other tests have their mode set by name.
    let umask = rustix::process::umask(rustix::fs::Mode::empty());
    let done = std::sync::atomic::AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut seen = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                seen |= std::fs::symlink_metadata(&socket).map_or(0, |entry| entry.permissions().mode());
            }
            seen
        });
        for _ in 0..500 {
            drop(bind(&socket).unwrap());
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        watcher.join().unwrap()
    });
    rustix::process::umask(umask);
    assert_eq!(seen & 0o777 & !0o660, 0, "modes seen: {:o}", seen & 0o777);
}

#[test]
fn more_connections_than_places_wait_and_harm_nobody() {
    use std::os::unix::net::UnixStream;
    let served = served();
    let connect = || UnixStream::connect(&served.socket).unwrap();
    let silent: Vec<UnixStream> = (0..accept::CONNECTIONS_MAX).map(|_| connect()).collect();
    let waiting = std::thread::scope(|scope| {
        let asked = scope.spawn(|| Client::new(served.socket.clone()).unwrap().status(None).unwrap());
        // Places become free as the silent ones go, one by one.
        for stream in silent {
            drop(stream);
        }
        asked.join().unwrap()
    });
    assert_eq!(waiting.resources.len(), 1);
    // A request whose headers do not fit is refused, not collected.
    let mut greedy = connect();
    let header = format!("GET /v1/status HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(4 * accept::BUFFER_BYTES));
    use std::io::{Read, Write};
    // The other end may close before all of it is taken.
    let _ = greedy.write_all(header.as_bytes());
    let mut answer = String::new();
    let _ = greedy.read_to_string(&mut answer);
    assert!(!answer.contains("resources"), "{answer}");
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}
