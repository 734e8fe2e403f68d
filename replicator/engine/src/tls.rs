//! TLS without cryptography in the shard: the border to whoever does it.
//!
//! When a client's STARTTLS was acknowledged, the shard hands its socket to the [`TlsTerminator`], and talks from then
//! on to one end of a pair of sockets, whose other end the terminator holds: plaintext on this side, TLS on the
//! other. The shard says that it is done with a connection by dropping its [`TlsSession`]; the terminator says so by
//! closing its end. What was received in plaintext behind STARTTLS goes along: only TLS may make sense of it.

use std::fmt;
use std::os::fd::OwnedFd;

/// Does the handshakes, and the encryption of what passes.
pub trait TlsTerminator: Send + Sync + fmt::Debug {
    /// Takes a connection over. Called on the shard's thread: it must not wait.
    fn take_over(&self, connection: TlsConnection) -> TlsSession;
}

/// A connection whose client was told to begin TLS.
pub struct TlsConnection {
    /// The client's socket.
    pub socket: OwnedFd,
    /// What the client sent already.
    pub received: Vec<u8>,
    /// The other end of the shard's socket: what is read there is to be encrypted. Close it when the client is gone.
    pub plaintext: OwnedFd,
    /// The client, for the log.
    pub address: String,
    /// To be called once the handshake succeeded, before anything is written to `plaintext`.
    pub established: Established,
}

/// Takes the names in the client's certificate; none if it has no certificate.
pub type Established = Box<dyn FnOnce(Vec<String>) + Send>;

/// The shard's hold on a connection: when it is dropped, the shard takes nothing more from it, and what the shard
/// wrote before has a moment to reach the client.
pub type TlsSession = Box<dyn Send>;

impl fmt::Debug for TlsConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConnection").field("address", &self.address).finish_non_exhaustive()
    }
}
