//! The terminator: handshakes, and bytes between clients inside of TLS and the shard's sockets, on threads of its own.
//!
//! Invariants: one task per connection, with two buffers of fixed size; a side that does not read stops the other
//! side's bytes, and nobody else's. A connection ends with its client, however that goes; with the shard's hold on it
//! (at once during the handshake, else after the little time in which the shard's last bytes may be taken); and with
//! the terminator. Nothing of a connection outlives its task. No client can do more to us than fail.

use super::names;
use lockstep_engine::{Established, TlsConnection, TlsSession, TlsTerminator};
use rustix::net::AddressFamily;
use rustls::ServerConfig;
use std::fmt;
use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread::available_parallelism;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, split};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{info, warn};

/// Bytes on their way in one direction.
const BUFFER_BYTES: usize = 64 << 10;
/// Records that are not sent yet.
const RECORDS_BYTES_MAX: usize = 64 << 10;
/// Memory of one connection at most: both directions, records that wait, and a handshake message that is put together.
pub(crate) const CONNECTION_BYTES: u64 = (2 * BUFFER_BYTES + RECORDS_BYTES_MAX + (96 << 10)) as u64;
const THREADS_MAX: usize = 4;
/// How long a client may take for the last bytes, when the shard is done with it.
const LINGER: Duration = Duration::from_secs(2);

/// Does TLS for a daemon.
pub(crate) struct Terminator {
    /// `Some` until it is dropped.
    runtime: Option<Runtime>,
    acceptor: TlsAcceptor,
    places: Arc<Semaphore>,
    places_max: u32,
}

impl fmt::Debug for Terminator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terminator").field("places_max", &self.places_max).finish_non_exhaustive()
    }
}

impl Terminator {
    /// With room for so many connections.
    pub(crate) fn start(config: Arc<ServerConfig>, connections_max: usize) -> io::Result<Self> {
        let threads = available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("lockstep-tls")
            .enable_all()
            .build()?;
        let places_max = u32::try_from(connections_max).unwrap_or(u32::MAX);
        let places = Arc::new(Semaphore::new(places_max as usize));
        Ok(Self { runtime: Some(runtime), acceptor: config.into(), places, places_max })
    }

    /// Waits until the last bytes of the connections that the shard has let go of are sent, for a little time.
    pub(crate) fn finish(&self) {
        let all = Arc::clone(&self.places).acquire_many_owned(self.places_max);
        if let Some(runtime) = &self.runtime {
            let _ = runtime.block_on(async { timeout(2 * LINGER, all).await });
        }
    }
}

impl Drop for Terminator {
    fn drop(&mut self) {
        // Whoever drops the last reference must not wait for it.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl TlsTerminator for Terminator {
    fn take_over(&self, connection: TlsConnection) -> TlsSession {
        let (hold, released) = oneshot::channel::<()>();
        let place = Arc::clone(&self.places).try_acquire_owned();
        match (place, &self.runtime) {
            (Ok(place), Some(runtime)) => {
                let acceptor = self.acceptor.clone();
                drop(runtime.spawn(terminate(acceptor, connection, released, place)));
            }
            _ => warn!("too many connections inside of TLS; closing {}", connection.address),
        }
        Box::new(hold)
    }
}

/// One connection, to its end.
async fn terminate(
    acceptor: TlsAcceptor,
    connection: TlsConnection,
    released: oneshot::Receiver<()>,
    _place: OwnedSemaphorePermit,
) {
    let TlsConnection { socket, received, plaintext, address, established } = connection;
    let established = Greeting { address: address.clone(), established };
    let ended = async {
        let shard = unix_stream(plaintext)?;
        match rustix::net::sockopt::socket_domain(&socket)? {
            AddressFamily::UNIX => {
                let client = Preceded::new(received, unix_stream(socket)?);
                serve(acceptor, client, shard, established, released).await
            }
            _ => {
                let socket = std::net::TcpStream::from(socket);
                socket.set_nonblocking(true)?;
                let client = Preceded::new(received, TcpStream::from_std(socket)?);
                serve(acceptor, client, shard, established, released).await
            }
        }
    };
    if let Err(error) = ended.await {
        info!("TLS with client {address}: {error}");
    }
}

fn unix_stream(socket: OwnedFd) -> io::Result<UnixStream> {
    let socket = std::os::unix::net::UnixStream::from(socket);
    socket.set_nonblocking(true)?;
    UnixStream::from_std(socket)
}

/// What is said when a handshake succeeded.
struct Greeting {
    address: String,
    established: Established,
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    acceptor: TlsAcceptor,
    client: S,
    shard: UnixStream,
    greeting: Greeting,
    mut released: oneshot::Receiver<()>,
) -> io::Result<()> {
    let accept = acceptor.accept_with(client, |session| session.set_buffer_limit(Some(RECORDS_BYTES_MAX)));
    let tls = tokio::select! {
        biased;
        _ = &mut released => return Err(io::Error::other("the handshake was ended by the server")),
        accepted = accept => accepted?,
    };
    let session = tls.get_ref().1;
    let names = session.peer_certificates().and_then(|chain| chain.first());
    let names = names.map(|own| names::of_certificate(own)).unwrap_or_default();
    tracing::debug!("TLS with client {}: {:?}", greeting.address, session.protocol_version());
    (greeting.established)(names);
    pass(tls, shard, released).await;
    Ok(())
}

/// Bytes both ways, until one side is gone.
async fn pass<S: AsyncRead + AsyncWrite + Unpin>(
    tls: TlsStream<S>,
    shard: UnixStream,
    released: oneshot::Receiver<()>,
) {
    let (mut from_client, mut to_client) = split(tls);
    let (mut from_shard, mut to_shard) = shard.into_split();
    let up = async {
        match copy(&mut from_client, &mut to_shard).await {
            Ended::Source => {}
            // The shard takes nothing more, and may still have something to say.
            Ended::Sink => pending().await,
        }
    };
    let down = async {
        if matches!(copy(&mut from_shard, &mut to_client).await, Ended::Source) {
            let _ = timeout(LINGER, to_client.shutdown()).await;
        }
    };
    let patience = async {
        let _ = released.await;
        sleep(LINGER).await;
    };
    tokio::select! {
        () = up => {}
        () = down => {}
        () = patience => {}
    }
}

/// Which side of a direction is gone.
enum Ended {
    Source,
    Sink,
}

async fn copy(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> Ended {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        // A client that goes without a word is an error here, and gone all the same.
        let Ok(count @ 1..) = from.read(&mut buffer).await else { return Ended::Source };
        let Some(bytes) = buffer.get(..count) else { return Ended::Source };
        if to.write_all(bytes).await.is_err() || to.flush().await.is_err() {
            return Ended::Sink;
        }
    }
}

/// A socket of which something was read already.
struct Preceded<S> {
    received: Vec<u8>,
    taken: usize,
    socket: S,
}

impl<S> Preceded<S> {
    fn new(received: Vec<u8>, socket: S) -> Self {
        Self { received, taken: 0, socket }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Preceded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let rest = this.received.get(this.taken..).unwrap_or_default();
        if rest.is_empty() {
            this.received = Vec::new();
            return Pin::new(&mut this.socket).poll_read(context, buffer);
        }
        let count = rest.len().min(buffer.remaining());
        buffer.put_slice(rest.get(..count).unwrap_or_default());
        this.taken += count;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Preceded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests;
