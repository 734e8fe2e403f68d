//! Connections on their way from one shard to another.
//!
//! The first shard accepts them all. A client stays where it is until it names an export of another shard, and may be
//! sent on with every option; a peer is sent on when its first message has come, which names a resource, before
//! anything was answered. A connection moves only when nothing of it is in flight and nothing waits to be sent, so that
//! its socket, what it has sent and nobody looked at, and how far it has come are all of it. Clients that arrive wait
//! while there are too many handshakes, as they would in the backlog of a listener. What waits for a shard that ends is
//! closed with its queue.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use lockstep_core::Instant;
use lockstep_nbd::Negotiation;

use super::Shard;
use crate::fleet::ShardId;
use crate::handle::Message;
use crate::link::{self, HELLO_BUFFER_BYTES, Link};
use crate::nbd::{Client, HANDSHAKE_BUFFER_BYTES, Phase, Security};
use crate::places::Place;
use crate::stream::Inbox;
use crate::tls::TlsSession;

/// A client that named an export.
pub(crate) struct MovedClient {
    fd: OwnedFd,
    place: Place,
    address: String,
    ip: Option<IpAddr>,
    /// The option that names the export waits in it for its answer.
    negotiation: Box<Negotiation>,
    /// Without TLS, or inside of it.
    security: Security,
    tls_session: Option<TlsSession>,
    deadline: Option<Instant>,
    hold_until: Option<Instant>,
    received: Vec<u8>,
}

/// A peer that named a resource.
pub(crate) struct MovedPeer {
    fd: OwnedFd,
    /// Among those that wait in a queue.
    place: Place,
    address: String,
    deadline: Instant,
    /// Its first message, and what it sent behind.
    received: Vec<u8>,
}

impl Shard {
    /// A client that is to move has been sent everything.
    pub(super) fn move_client(&mut self, index: u32) {
        let Some(client) = self.clients.remove(index) else { return };
        let Phase::Moving(negotiation, shard) = client.phase else {
            unreachable!("client {index} moves, and its phase does not say where to")
        };
        let received = client.inbox.data().to_vec();
        drop((client.inbox, client.outbox));
        let Some(fd) = Rc::into_inner(client.fd) else {
            unreachable!("nothing of client {index} is in flight, and its socket is in use")
        };
        let moved = MovedClient {
            fd,
            place: client.place,
            address: client.address,
            ip: client.ip,
            negotiation,
            security: client.security,
            tls_session: client.tls_session,
            deadline: client.deadline,
            hold_until: client.hold_until,
            received,
        };
        self.fleet.send(shard, Message::Client(Box::new(moved)));
    }

    /// A client comes from another shard, for an export of this one.
    pub(super) fn client_moved(&mut self, moved: Box<MovedClient>) {
        self.arrivals.push_back(moved);
        self.admit_arrivals();
    }

    /// As at a listener, clients that come at once wait until there is room for their handshakes.
    pub(super) fn admit_arrivals(&mut self) {
        while !self.arrivals.is_empty() && self.has_room_for_handshake() {
            self.arrivals.pop_front().into_iter().for_each(|moved| self.welcome_client(*moved));
        }
    }

    fn welcome_client(&mut self, moved: MovedClient) {
        self.make_room_for_handshake();
        let fd = Rc::new(moved.fd);
        let deadline = moved.deadline.unwrap_or(self.clock.now());
        let inbox = Inbox::with(Rc::clone(&fd), HANDSHAKE_BUFFER_BYTES, &moved.received);
        let who = (moved.address, moved.ip);
        let client = Client {
            security: moved.security,
            tls_session: moved.tls_session,
            hold_until: moved.hold_until,
            inbox,
            ..Client::new(fd, moved.place, who, moved.negotiation, deadline, &self.stock)
        };
        let index = self.clients.insert(client);
        self.want_sweep();
        self.negotiate(index);
    }

    /// A peer named a resource of another shard.
    pub(super) fn move_peer(&mut self, index: u32, shard: ShardId) {
        let now = self.clock.now();
        let Some(link) = self.links.remove(index) else { return };
        let Some(place) = self.fleet.moving_peers.take() else {
            // Strangers came faster than that shard could look at them; a peer dials again.
            return tracing::debug!("too many connections wait for another shard; closing {}", link.address);
        };
        let received = link.inbox.data().to_vec();
        drop((link.inbox, link.outbox));
        let Some(fd) = Rc::into_inner(link.fd) else {
            unreachable!("nothing of link {index} is in flight, and its socket is in use")
        };
        let deadline = link.deadline.unwrap_or(now);
        let moved = MovedPeer { fd, place, address: link.address, deadline, received };
        self.fleet.send(shard, Message::Peer(Box::new(moved)));
    }

    /// A peer comes from another shard, for a resource of this one.
    pub(super) fn peer_moved(&mut self, moved: MovedPeer) {
        drop(moved.place);
        let fd = Rc::new(moved.fd);
        let inbox = Inbox::with(Rc::clone(&fd), HELLO_BUFFER_BYTES, &moved.received);
        let mut link = Link::new(fd, link::Phase::Connecting, moved.address, moved.deadline, &self.stock);
        link.inbox = inbox;
        self.welcome_peer(link);
    }
}
