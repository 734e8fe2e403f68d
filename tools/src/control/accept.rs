//! Connections to the control socket: a bounded number, each for one request and a bounded time.
//!
//! What the shard's queue of questions and commands can hold follows from this: one entry for each connection.
//! Whoever comes when all places are taken waits in the kernel's queue of the socket.

use super::server::COMMAND_WAIT;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

/// Requests that are served at the same time.
pub(crate) const CONNECTIONS_MAX: usize = 32;
/// Headers of one request, and what is buffered of its body.
pub(crate) const BUFFER_BYTES: usize = 16 * 1024;
/// A client that connects says what it wants.
const HEADER_WAIT: Duration = Duration::from_secs(10);
/// Longest life of a connection: the longest answer, and the time to send and fetch it.
const CONNECTION_WAIT: Duration = COMMAND_WAIT.saturating_add(Duration::from_secs(20));
/// Accepting failed, for want of descriptors say.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Serves until `stop` ends, then finishes what is being answered.
pub(super) async fn serve(listener: UnixListener, router: Router, stop: impl Future<Output = ()> + Send) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut open = JoinSet::new();
    let mut stop = pin!(stop);
    loop {
        let next = tokio::select! {
            () = &mut stop => break,
            Some(_) = open.join_next() => continue,
            next = accept(&listener, &places) => next,
        };
        if let Some((stream, place)) = next {
            open.spawn(answer(stream, router.clone(), place));
        }
    }
    drop(listener);
    while open.join_next().await.is_some() {}
}

/// A connection with a place; `None`: nothing this time.
async fn accept(
    listener: &UnixListener,
    places: &Arc<Semaphore>,
) -> Option<(UnixStream, OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, place)),
        Err(error) => {
            tracing::warn!("accepting on the control socket: {error}; trying again");
            tokio::time::sleep(ACCEPT_AGAIN).await;
            None
        }
    }
}

async fn answer(stream: UnixStream, router: Router, place: OwnedSemaphorePermit) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEADER_WAIT)
        .max_buf_size(BUFFER_BYTES)
        .keep_alive(false);
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    // A client that breaks off, or takes too long, has nothing more to be told.
    let _ = tokio::time::timeout(CONNECTION_WAIT, connection).await;
    drop(place);
}
