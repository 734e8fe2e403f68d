//! The shard's part in TLS: handing connections to the terminator, and going on inside of them.
//!
//! Between its STARTTLS and the terminator's word a client is in the handshake as any other: it counts among those, and
//! its time runs. What comes from the terminator is not looked at before it has said who the client is.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::Shard;
use crate::handle::Message;
use crate::nbd::{HANDSHAKE_BUFFER_BYTES, Phase, Security};
use crate::stream::{Inbox, Outbox};
use crate::tls::TlsConnection;

impl Shard {
    /// The acknowledgement of STARTTLS was sent, and nothing is in flight on the client's socket.
    pub(super) fn start_tls(&mut self, index: u32) {
        if let Err(error) = self.hand_over(index) {
            let Some(client) = self.clients.get(index) else { return };
            tracing::warn!("TLS with client {}: {error}; closing it", client.address);
            return self.hang_up(index);
        }
        self.receive_from(index);
    }

    fn hand_over(&mut self, index: u32) -> io::Result<()> {
        let (Some(client), Some(terminator)) = (self.clients.get_mut(index), &self.config.terminator) else {
            return Ok(());
        };
        let (shard_end, terminator_end) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        let socket: OwnedFd = client.fd.try_clone()?;
        let received = client.inbox.data().to_vec();
        // The last of the shard's hold on the client's socket goes with these.
        client.fd = Rc::new(shard_end);
        client.inbox = Inbox::new(Rc::clone(&client.fd), HANDSHAKE_BUFFER_BYTES);
        client.outbox = Outbox::new(Rc::clone(&client.fd), &self.stock);
        self.tls_connections += 1;
        let (serial, queue) = (self.tls_connections, self.fleet.queue(self.id).clone());
        let established = move |names| queue.send(Message::TlsEstablished { client: index, serial, names });
        client.security = Security::Handshake(serial);
        client.tls_session = Some(terminator.take_over(TlsConnection {
            socket,
            received,
            plaintext: terminator_end,
            address: client.address.clone(),
            established: Box::new(established),
        }));
        Ok(())
    }

    /// A client's TLS handshake succeeded.
    pub(super) fn tls_established(&mut self, index: u32, serial: u64, names: Vec<String>) {
        let Some(client) = self.clients.get_mut(index) else { return };
        let Phase::Handshake(negotiation) = &mut client.phase else { return };
        if client.is_ending || !matches!(client.security, Security::Handshake(known) if known == serial) {
            return;
        }
        negotiation.tls_established();
        client.security = Security::Active(names);
        if !client.inbox.is_receiving() {
            self.negotiate(index);
        }
    }
}
