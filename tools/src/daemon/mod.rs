//! The daemon: configuration in, engine and control socket up, and on a signal everything down again in
//! order.
//!
//! Order of start: configuration and secret, control socket (which refuses a second daemon), engine, then
//! "ready". Order of stop: no new commands, every resource leaves cleanly, socket removed. A resource that
//! cannot attach its disk never stops the others; what stops the daemon from starting has an exit code and
//! says what to do.

mod notify;
mod settings;

pub(crate) use settings::{SPIN_US, Settings, limits, memory_max_bytes, this_node};

use crate::cli::Global;
use crate::control::{Shared, bind, serve};
use crate::failure::{Failure, GENERIC, REFUSED, UNREACHABLE};
use crate::inherited;
use crate::text;
use lockstep_engine::{Engine, EngineConfig, EngineHandle, MemoryBudget, ResourceReport, StartError};
use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

/// How long requests that are being answered may take once the daemon stops.
const LAST_ANSWERS_WAIT: Duration = Duration::from_secs(2);
const FIRST_REPORT_WAIT: Duration = Duration::from_secs(10);

/// Run until told to stop.
pub(crate) fn run(global: &Global) -> Result<(), Failure> {
    let mut settings = Settings::load(global)?;
    let adopted =
        inherited::take().and_then(|sockets| inherited::adopt(&mut settings.engine.nbd_listeners, sockets));
    adopted.map_err(Failure::config)?;
    start_log();
    let listener = bind(&global.socket).map_err(|error| socket_failure(&global.socket, &error))?;
    let result = run_engine(settings, listener);
    // What is left of a socket is replaced at the next start; removing it is for people who look.
    let _ = std::fs::remove_file(&global.socket);
    notify::send("STOPPING=1\nSTATUS=stopped");
    result
}

fn run_engine(settings: Settings, listener: std::os::unix::net::UnixListener) -> Result<(), Failure> {
    let Settings { engine: config, place, cluster, terminator } = settings;
    let engine = Engine::start(config).map_err(|error| start_failure(&error))?;
    let mut memory = memory_budget(engine.config());
    for name in engine.resources() {
        memory.bitmaps_bytes += announce(&engine, name, &place.uris[usize::from(place.node)]);
    }
    info!("{memory}; memory-max is {}", text::bytes(engine.config().memory_max_bytes));
    let engine = Arc::new(engine);
    let shared = Arc::new(Shared { backend: Arc::clone(&engine), place, cluster });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::generic(format!("cannot start a runtime: {error}")))?;
    let served = runtime.block_on(serve_until_signal(listener, shared));
    notify::send("STOPPING=1\nSTATUS=leaving the resources");
    // Ends what still waits for an answer, so that the engine has one owner again.
    drop(runtime);
    match Arc::try_unwrap(engine) {
        Ok(engine) => engine.stop(),
        Err(shared) => drop(shared),
    }
    if let Some(terminator) = terminator {
        terminator.finish();
    }
    info!("stopped");
    served
}

async fn serve_until_signal(
    listener: std::os::unix::net::UnixListener,
    shared: Arc<Shared<EngineHandle>>,
) -> Result<(), Failure> {
    let failed = |what: &str, error: std::io::Error| Failure::generic(format!("{what}: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| failed("SIGTERM", error))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| failed("SIGINT", error))?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let stopped = async move { drop(stopped.await) };
    let mut server = tokio::spawn(serve(listener, shared, stopped));
    notify::send("READY=1\nSTATUS=serving");
    info!("ready");
    tokio::select! {
        _ = terminate.recv() => info!("SIGTERM: leaving the resources"),
        _ = interrupt.recv() => info!("SIGINT: leaving the resources"),
        ended = &mut server => {
            let reason = match ended {
                Ok(Ok(())) => "it ended".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            error!("the control socket failed: {reason}");
            return Err(Failure::generic(format!("the control socket failed: {reason}")));
        }
    }
    drop(stop);
    // Questions that are not answered by then are dropped with the runtime.
    let _ = tokio::time::timeout(LAST_ANSWERS_WAIT, server).await;
    Ok(())
}

/// Returns when the process is told to stop, or what it does has ended.
pub(crate) fn wait_for_signal(ended: impl Future<Output = ()>) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::generic(format!("waiting for a signal: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        tokio::select! {
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
            () = ended => Ok(()),
        }
    })
}

pub(crate) fn memory_budget(config: &EngineConfig) -> MemoryBudget {
    MemoryBudget::new(&config.limits, config.resources.iter().map(|resource| resource.buffer_bytes))
}

/// One line per resource, so that the log of a start tells what is served where. Returns the memory of its
/// bitmaps.
fn announce(engine: &EngineHandle, name: &str, uri_patterns: &[String]) -> u64 {
    let (sender, receiver) = std::sync::mpsc::channel::<ResourceReport>();
    let asked = engine.status(name, Box::new(move |report| _ = sender.send(report)));
    let Ok(report) =
        asked.map_err(|_| ()).and_then(|()| receiver.recv_timeout(FIRST_REPORT_WAIT).map_err(|_| ()))
    else {
        warn!("{name}: no report from the engine");
        return 0;
    };
    let uris: Vec<String> = uri_patterns.iter().map(|pattern| pattern.replace("{}", name)).collect();
    let memory = text::bytes(report.memory.reserved_bytes);
    match &report.error {
        None => info!("{name}: {} at {}; buffers {memory}", report.disk.display(), uris.join(" ")),
        Some(error) => warn!("{name}: runs without its disk: {error}; buffers {memory}"),
    }
    report.memory.bitmaps_bytes
}

pub(crate) fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("LOCKSTEP_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    // The journal has its own clock. A log that exists already belongs to whoever runs daemons in one
    // process.
    let _ = match std::env::var_os("JOURNAL_STREAM") {
        Some(_) => log.without_time().try_init(),
        None => log.try_init(),
    };
}

fn socket_failure(socket: &Path, error: &std::io::Error) -> Failure {
    let code = match error.kind() {
        std::io::ErrorKind::AddrInUse => REFUSED,
        std::io::ErrorKind::PermissionDenied => UNREACHABLE,
        _ => GENERIC,
    };
    let next = match error.kind() {
        std::io::ErrorKind::AddrInUse => "; stop it first, or name another socket by --socket",
        _ => "",
    };
    Failure::new(code, format!("control socket {}: {error}{next}", socket.display()))
}

pub(crate) fn start_failure(error: &StartError) -> Failure {
    let code = match error {
        StartError::RingNotPermitted(_) => UNREACHABLE,
        StartError::Listen { error, .. } | StartError::ListenNbd { error, .. }
            if error.kind() == std::io::ErrorKind::AddrInUse =>
        {
            REFUSED
        }
        StartError::Config(_) => crate::failure::CONFIG,
        _ => GENERIC,
    };
    Failure::new(code, error.to_string())
}
