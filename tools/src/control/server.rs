//! The daemon's side of the control API.
//!
//! Invariants: a request never blocks the engine, it waits for an answer on a oneshot channel with a time
//! limit; a body has a small bound; unknown options are refused, since an option that is ignored may be the
//! one that mattered. Tolerates an engine that is gone: the channel closes and the client is told.

use super::{
    AttachBody, CheckpointBody, DemoteBody, DoneDoc, DownBody, ErrorBody, ErrorDoc, InvalidateBody, NoBody,
    PromoteBody, ResolveBody, SyncBody, VersionDoc, accept,
};
use crate::failure::{GENERIC, REFUSED, UNREACHABLE, USAGE};
use crate::refusal::render_refusal;
use crate::status::{Place, ResourceDoc, SCHEMA, StatusDoc, resource_doc};
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path as UrlPath, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use lockstep_bitmap::NodeId;
use lockstep_core::{CheckpointName, Command, Done, Refusal, SyncOrder};
use lockstep_engine::{CommandReply, EngineHandle, ResourceReport, StatusReply, UnknownResource, UpReply};
use serde::de::DeserializeOwned;
use std::future::Future;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::UnixListener;
use tokio::sync::oneshot;

const BODY_BYTES_MAX: usize = 16 * 1024;
const STATUS_WAIT: Duration = Duration::from_secs(10);
/// Longer than anything the core waits for; a command goes on after it, only the answer is lost.
pub(super) const COMMAND_WAIT: Duration = Duration::from_secs(120);

/// What the API asks of the engine; tests put something else there.
pub(crate) trait Backend: Send + Sync + 'static {
    /// Names of the resources, in the order of the configuration.
    fn names(&self) -> Vec<String>;
    /// See [`EngineHandle::command`].
    fn command(&self, resource: &str, command: Command, reply: CommandReply) -> Result<(), UnknownResource>;
    /// See [`EngineHandle::status`].
    fn status(&self, resource: &str, reply: StatusReply) -> Result<(), UnknownResource>;
    /// See [`EngineHandle::up`]; may block.
    fn up(&self, resource: &str, reply: UpReply) -> Result<(), UnknownResource>;
    /// See [`EngineHandle::attach`]; may block.
    fn attach(&self, resource: &str, moved: bool, reply: UpReply) -> Result<(), UnknownResource>;
    /// See [`EngineHandle::down`].
    fn down(&self, resource: &str, force: bool, reply: CommandReply) -> Result<(), UnknownResource>;
}

impl Backend for EngineHandle {
    fn names(&self) -> Vec<String> {
        self.resources().map(str::to_owned).collect()
    }
    fn command(&self, resource: &str, command: Command, reply: CommandReply) -> Result<(), UnknownResource> {
        EngineHandle::command(self, resource, command, reply)
    }
    fn status(&self, resource: &str, reply: StatusReply) -> Result<(), UnknownResource> {
        EngineHandle::status(self, resource, reply)
    }
    fn up(&self, resource: &str, reply: UpReply) -> Result<(), UnknownResource> {
        EngineHandle::up(self, resource, reply)
    }
    fn attach(&self, resource: &str, moved: bool, reply: UpReply) -> Result<(), UnknownResource> {
        EngineHandle::attach(self, resource, moved, reply)
    }
    fn down(&self, resource: &str, force: bool, reply: CommandReply) -> Result<(), UnknownResource> {
        EngineHandle::down(self, resource, force, reply)
    }
}

/// What every handler needs.
pub(crate) struct Shared<B> {
    /// The engine.
    pub(crate) backend: Arc<B>,
    /// Names and addresses.
    pub(crate) place: Place,
    /// Name of the cluster.
    pub(crate) cluster: String,
}

impl<B> Shared<B> {
    fn node_name(&self) -> String {
        crate::refusal::node_name(&self.place.names, NodeId(self.place.node))
    }
}

type App<B> = State<Arc<Shared<B>>>;

/// Bind the control socket, replacing one that no daemon answers on.
pub(crate) fn bind(socket: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    let began = Instant::now();
    loop {
        match bind_once(socket) {
            // A killed predecessor that nobody has waited for answers until it is gone.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && began.elapsed() < PREDECESSOR_WAIT => {
                std::thread::sleep(Duration::from_millis(20));
            }
            outcome => return outcome,
        }
    }
}

/// How long a predecessor may take to die before it counts as another daemon.
const PREDECESSOR_WAIT: Duration = Duration::from_secs(1);

fn bind_once(socket: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    if let Ok(existing) = std::fs::symlink_metadata(socket) {
        if !existing.file_type().is_socket() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something that is no socket is there"));
        }
        match std::os::unix::net::UnixStream::connect(socket) {
            Ok(_) => return Err(io::Error::new(io::ErrorKind::AddrInUse, "another daemon answers there")),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(socket)?,
            Err(error) => return Err(error),
        }
    }
    if let Some(parent) = socket.parent() {
        std::fs::create_dir_all(parent)?;
    }
    // Nobody else may connect before the mode is set, whatever umask we were started with.
    let umask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = std::os::unix::net::UnixListener::bind(socket);
    rustix::process::umask(umask);
    let listener = listener?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o660))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Serve until `stop` ends, then finish the requests that are being answered.
pub(crate) async fn serve<B: Backend>(
    listener: std::os::unix::net::UnixListener,
    shared: Arc<Shared<B>>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = Router::new()
        .route("/v1/version", get(async || Json(VersionDoc::current())))
        .route("/v1/status", get(get_status::<B>))
        .route("/v1/resources/{resource}", get(get_resource::<B>))
        .route("/v1/resources/{resource}/{verb}", post(post_verb::<B>))
        .fallback(async || ApiError::new(StatusCode::NOT_FOUND, GENERIC, "no such path in this API"))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(shared);
    accept::serve(UnixListener::from_std(listener)?, router, stop).await;
    Ok(())
}

/// A failure as the client sees it.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    body: ErrorBody,
}

impl ApiError {
    fn new(status: StatusCode, code: u8, message: impl Into<String>) -> Self {
        ApiError { status, body: ErrorBody { code, message: message.into() } }
    }

    /// The HTTP status, and what is said.
    pub(crate) fn parts(&self) -> (u16, &ErrorBody) {
        (self.status.as_u16(), &self.body)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(ErrorDoc { error: self.body })).into_response()
    }
}

async fn get_status<B: Backend>(State(shared): App<B>) -> Result<Json<StatusDoc>, ApiError> {
    let mut resources = Vec::new();
    for name in shared.backend.names() {
        resources.push(report(&shared, &name).await?);
    }
    let doc = StatusDoc {
        schema: SCHEMA,
        version: VersionDoc::current().version,
        cluster: shared.cluster.clone(),
        node: shared.node_name(),
        resources,
    };
    Ok(Json(doc))
}

async fn get_resource<B: Backend>(
    State(shared): App<B>,
    UrlPath(resource): UrlPath<String>,
) -> Result<Json<StatusDoc>, ApiError> {
    let doc = StatusDoc {
        schema: SCHEMA,
        version: VersionDoc::current().version,
        cluster: shared.cluster.clone(),
        node: shared.node_name(),
        resources: vec![report(&shared, &resource).await?],
    };
    Ok(Json(doc))
}

async fn report<B: Backend>(shared: &Shared<B>, resource: &str) -> Result<ResourceDoc, ApiError> {
    let (sender, receiver) = oneshot::channel::<ResourceReport>();
    // A send fails only if the client has gone meanwhile.
    let reply = Box::new(move |report| _ = sender.send(report));
    shared.backend.status(resource, reply).map_err(|error| unknown_resource(shared, error))?;
    let report = answer(receiver, STATUS_WAIT).await?;
    Ok(resource_doc(&report, &shared.place, crate::text::unix_ms_now()))
}

/// What a request wants, with its options checked.
#[derive(Debug)]
pub(crate) enum Asked {
    /// `up`, or `attach` and whether the disk was moved.
    Open {
        /// `None` for `up`.
        moved: Option<bool>,
    },
    /// Something for the core.
    Command(Command),
    /// `down`: the core leaves, and the disks are closed.
    Down {
        /// Close clients.
        force: bool,
    },
}

/// Reads a verb and its options. `nodes` are the names of all nodes, by their ids.
pub(crate) fn asked(verb: &str, body: &[u8], nodes: &[String]) -> Result<Asked, ApiError> {
    Ok(Asked::Command(match verb {
        "promote" => {
            let PromoteBody { peer_is_down, accept_data_loss } = options(body)?;
            Command::Promote { peer_is_down, accept_data_loss }
        }
        "demote" => Command::Demote { force: options::<DemoteBody>(body)?.force },
        "connect" => options::<NoBody>(body).map(|_| Command::Connect)?,
        "disconnect" => options::<NoBody>(body).map(|_| Command::Disconnect)?,
        "invalidate" => Command::Invalidate { peer: options::<InvalidateBody>(body)?.peer },
        "sync" => sync_command(&options::<SyncBody>(body)?)?,
        "resolve" => resolve_command(nodes, &options::<ResolveBody>(body)?)?,
        "checkpoint-create" => Command::CreateCheckpoint { name: checkpoint_name(body)? },
        "checkpoint-delete" => Command::DeleteCheckpoint { name: checkpoint_name(body)? },
        "up" => return options::<NoBody>(body).map(|_| Asked::Open { moved: None }),
        "attach" => return Ok(Asked::Open { moved: Some(options::<AttachBody>(body)?.moved) }),
        "detach" => options::<NoBody>(body).map(|_| Command::Detach)?,
        "down" => return Ok(Asked::Down { force: options::<DownBody>(body)?.force }),
        _ => return Err(ApiError::new(StatusCode::NOT_FOUND, GENERIC, format!("no such command: {verb}"))),
    }))
}

async fn post_verb<B: Backend>(
    State(shared): App<B>,
    UrlPath((resource, verb)): UrlPath<(String, String)>,
    body: Bytes,
) -> Result<Json<DoneDoc>, ApiError> {
    let (command, force) = match asked(&verb, &body, &shared.place.names)? {
        Asked::Open { moved } => return open_disk(shared, resource, moved).await,
        Asked::Command(command) => (command, false),
        Asked::Down { force } => (Command::Leave, force),
    };
    let (sender, receiver) = oneshot::channel::<Result<Done, Refusal>>();
    let reply: CommandReply = Box::new(move |result| _ = sender.send(result));
    // `down` is more than the core's part of it: the disks are closed too.
    let sent = match command {
        Command::Leave => shared.backend.down(&resource, force, reply),
        command => shared.backend.command(&resource, command, reply),
    };
    sent.map_err(|error| unknown_resource(&shared, error))?;
    match answer(receiver, COMMAND_WAIT).await? {
        Ok(done) => Ok(Json(done_doc(&shared, &resource, &verb, done))),
        Err(refusal) => {
            let message = render_refusal(&refusal, &verb, &resource, &shared.place.names);
            Err(ApiError::new(StatusCode::CONFLICT, refusal.exit_code(), format!("{resource}: {message}")))
        }
    }
}

fn sync_command(body: &SyncBody) -> Result<Command, ApiError> {
    let wanted = |rate: u64| Some(rate).filter(|rate| *rate > 0);
    Ok(Command::Sync(match (body.pause, body.rate, body.min_rate) {
        (Some(true), None, None) => SyncOrder::Pause,
        (Some(false), None, None) => SyncOrder::Resume,
        (None, Some(rate), None) => SyncOrder::Rate(wanted(rate)),
        (None, None, Some(rate)) => SyncOrder::AtLeast(wanted(rate)),
        _ => {
            let message = "sync: give one of \"pause\" (true or false), \"rate\" (bytes per second at most, 0: no \
                           limit) and \"min_rate\" (bytes per second at least, 0: what clients leave)";
            return Err(ApiError::new(StatusCode::BAD_REQUEST, USAGE, message));
        }
    }))
}

/// `up`, or `attach` and whether the disk was moved.
async fn open_disk<B: Backend>(
    shared: Arc<Shared<B>>,
    resource: String,
    attach: Option<bool>,
) -> Result<Json<DoneDoc>, ApiError> {
    let (sender, receiver) = oneshot::channel::<Result<Done, String>>();
    let reply: UpReply = Box::new(move |result| _ = sender.send(result));
    let (backend, name) = (Arc::clone(&shared.backend), resource.clone());
    let open = move || match attach {
        None => backend.up(&name, reply),
        Some(moved) => backend.attach(&name, moved, reply),
    };
    let sent = tokio::task::spawn_blocking(open).await;
    sent.map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, GENERIC, error.to_string()))?
        .map_err(|error| unknown_resource(&shared, error))?;
    match answer(receiver, COMMAND_WAIT).await? {
        Ok(done) => {
            let verb = if attach.is_some() { "attach" } else { "up" };
            Ok(Json(done_doc(&shared, &resource, verb, done)))
        }
        Err(message) => Err(ApiError::new(
            StatusCode::CONFLICT,
            REFUSED,
            format!("{resource} runs without its disk: {message}"),
        )),
    }
}

fn resolve_command(nodes: &[String], body: &ResolveBody) -> Result<Command, ApiError> {
    let index = nodes.iter().position(|name| *name == body.discard);
    let id = index.and_then(|index| u8::try_from(index).ok()).ok_or_else(|| {
        let names = nodes.join(", ");
        ApiError::new(
            StatusCode::BAD_REQUEST,
            USAGE,
            format!("no node \"{}\"; the nodes are {names}", body.discard),
        )
    })?;
    Ok(Command::Resolve { discard: NodeId(id) })
}

fn checkpoint_name(body: &[u8]) -> Result<CheckpointName, ApiError> {
    let CheckpointBody { name } = options(body)?;
    CheckpointName::new(&name).ok_or_else(|| {
        let message = format!(
            "\"{name}\" cannot be the name of a checkpoint: 1 to 64 letters, digits, '-', '_' or '.', the first one a \
             letter or a digit"
        );
        ApiError::new(StatusCode::BAD_REQUEST, USAGE, message)
    })
}

/// An empty body means no options.
fn options<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    let text: &[u8] = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(text)
        .map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, USAGE, format!("options: {error}")))
}

async fn answer<T>(receiver: oneshot::Receiver<T>, wait: Duration) -> Result<T, ApiError> {
    match tokio::time::timeout(wait, receiver).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err(ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            UNREACHABLE,
            "the engine has stopped; see the log",
        )),
        Err(_) => {
            let message = format!("no answer within {wait:?}; the command may still go on: see status");
            Err(ApiError::new(StatusCode::GATEWAY_TIMEOUT, GENERIC, message))
        }
    }
}

fn unknown_resource<B: Backend>(shared: &Shared<B>, UnknownResource(name): UnknownResource) -> ApiError {
    let known = shared.backend.names().join(", ");
    ApiError::new(
        StatusCode::NOT_FOUND,
        GENERIC,
        format!("no resource {name} on {}; it has: {known}", shared.node_name()),
    )
}

fn done_doc<B>(shared: &Shared<B>, resource: &str, verb: &str, done: Done) -> DoneDoc {
    let node = shared.node_name();
    let state = match verb {
        "promote" => format!("Primary on {node}"),
        "demote" => format!("Secondary on {node}"),
        "connect" => "told to connect".to_owned(),
        "disconnect" => "disconnected".to_owned(),
        "invalidate" => "declared wrong; all of it is synchronised from the other copy".to_owned(),
        "resolve" => "resolved; the loser is resynchronised when the nodes are connected".to_owned(),
        "sync" => format!("the resync is as ordered on {node}"),
        "checkpoint-create" => "the checkpoint has begun".to_owned(),
        "checkpoint-delete" => "the checkpoint is deleted".to_owned(),
        "up" => format!("up on {node}"),
        "detach" => format!("without its disk on {node}"),
        "attach" => format!("its disk is attached on {node}"),
        _ => format!("down on {node}"),
    };
    let (result, message) = match done {
        Done::Changed => ("changed", format!("{resource}: {state}")),
        Done::Already => ("already", format!("{resource}: {state} already")),
        Done::LeftAsOutdated => (
            "left_as_outdated",
            format!("{resource}: {state}; the peer stays UpToDate and recorded that this copy left"),
        ),
        Done::LeftAsIs => (
            "left_as_is",
            format!("{resource}: {state}; left as it was, since no peer with an UpToDate copy agreed"),
        ),
    };
    DoneDoc { schema: SCHEMA, resource: resource.to_owned(), result: result.to_owned(), message }
}
