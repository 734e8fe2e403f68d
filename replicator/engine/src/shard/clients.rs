//! Connections of NBD clients: the handshake, waiting for a role change, and the end.
//!
//! A client ends in one of two ways. Drained: nothing more is read, what is under way is answered, then it is
//! closed (it said goodbye, or the export closed). Hung up: the socket is shut down at once, answers are
//! dropped. Its entry goes when the kernel and the core are done with it.

use std::net::IpAddr;
use std::time::Duration;

use lockstep_core::{Event, Instant, ReqId};
use lockstep_nbd::{Limits, Negotiation, RequestParser, Step, TlsPolicy, Transmission};
use rustix::io::Errno;

use super::Shard;
use super::resource::Resource;
use super::turns::Turns;
use crate::config::ResourceConfig;
use crate::fleet::Home;
use crate::nbd::{Client, Context, Directory, Export, Phase, Security, Serving};
use crate::ring::{Completion, Fd, Op};
use crate::token::Token;

/// How long a client that goes may take to read its answers.
const DRAIN: Duration = Duration::from_secs(2);

/// A handshake has at least so long, even if others wait for its place. Many clients that come at once are done sooner
/// and follow each other; strangers that say nothing keep nobody out for longer.
const HANDSHAKE_MIN: Duration = Duration::from_millis(100);

impl Shard {
    /// A connection came in on an NBD listener.
    pub(super) fn client_accepted(&mut self, fd: Fd, address: String, ip: Option<IpAddr>, tls: TlsPolicy) {
        self.make_room_for_handshake();
        let Some(place) = self.fleet.connections.take() else {
            // Most of them are gone and wait for what they asked for, which nobody can do now.
            let open = self.fleet.connections.taken();
            return tracing::warn!(
                "{open} connections of NBD clients are open or ending; refusing {address}"
            );
        };
        watch_over(&fd, self.config.limits.progress_timeout);
        if ip.is_none() {
            widen(&fd);
        }
        let deadline = self.clock.now() + self.config.limits.handshake_timeout;
        let negotiation = Box::new(Negotiation::new(Limits::default()).with_tls(tls));
        let mut client = Client::new(fd, place, (address, ip), negotiation, deadline, &self.stock);
        if let Some(message) = client.outbox.message(false) {
            message.push_head(&Negotiation::greeting());
        }
        let index = self.clients.insert(client);
        self.list_talking(index);
        self.receive_from(index);
        self.want_sweep();
    }

    /// Whether one more may begin, if need be in place of the oldest.
    pub(super) fn has_room_for_handshake(&self) -> bool {
        let now = self.clock.now();
        self.oldest_if_full().is_none_or(|(_, deadline)| {
            deadline + HANDSHAKE_MIN <= now + self.config.limits.handshake_timeout
        })
    }

    /// The oldest handshake and its time limit, if there are as many as may be.
    fn oldest_if_full(&self) -> Option<(u32, Instant)> {
        let is_open = |client: &Client| {
            matches!(client.phase, Phase::Handshake(_) | Phase::Moving(..)) && !client.is_ending
        };
        let open = || self.clients.iter().filter(|(_, client)| is_open(client));
        if open().count() < self.config.limits.handshakes_max {
            return None;
        }
        open()
            .filter_map(|(index, client)| Some((index, client.deadline?)))
            .min_by_key(|(_, deadline)| *deadline)
    }

    /// Who connects and says nothing must not keep others out: the oldest goes.
    pub(super) fn make_room_for_handshake(&mut self) {
        if let Some((index, _)) = self.oldest_if_full() {
            tracing::debug!("too many unfinished NBD handshakes; closing the oldest");
            self.hang_up(index);
        }
    }

    pub(super) fn receive_from(&mut self, index: u32) {
        let Self { io: Some(io), clients, .. } = self else { return };
        let Some(client) = clients.get_mut(index) else { return };
        if !client.inbox.is_receiving() {
            client.inbox.receive(io, Token::ClientReceived(index), None);
            client.ops += 1;
        }
    }

    pub(super) fn client_received(&mut self, index: u32, completion: Completion<Token>) {
        let (Some(client), Op::Receive(incoming)) = (self.clients.get_mut(index), completion.op) else {
            return;
        };
        client.ops -= 1;
        let bytes = *completion.result.as_ref().unwrap_or(&0);
        let in_payload = client.inbox.received(incoming, bytes);
        if let Phase::Serving(serving) = &mut client.phase
            && let Some(piece) = serving.write.as_mut().and_then(|write| write.piece.as_mut())
        {
            piece.got += in_payload;
        }
        if client.is_ending {
            return self.stop_reading(index);
        }
        if bytes == 0 {
            return self.hang_up(index);
        }
        match client.phase {
            Phase::Handshake(_) if client.is_asked() => self.negotiate(index),
            Phase::Serving(_) => self.serve(index),
            Phase::Handshake(_) | Phase::Held(..) | Phase::Moving(..) | Phase::Draining | Phase::Dead => {}
        }
    }

    fn directory(&self, client: &Client, may_hold: bool) -> Directory {
        let guest = client.guest();
        let export = |(number, config): (usize, &ResourceConfig)| match self.fleet.home_of(number) {
            Home { shard, index } if shard == self.id => self.resources[index].export(config, guest),
            Home { shard, .. } => Export::of_shard(shard, config.name.clone(), config.access.admit(guest)),
        };
        let exports = self.fleet.config.resources.iter().enumerate().map(export).collect();
        let (node_name, client) = (self.config.node_name.clone(), client.address.clone());
        Directory { exports, node_name, client, may_hold, is_stopping: self.stopping.is_some() }
    }

    /// Goes on with a handshake.
    pub(super) fn negotiate(&mut self, index: u32) {
        let Some(client) = self.clients.get_mut(index) else { return };
        let (mut negotiation, held) = match std::mem::replace(&mut client.phase, Phase::Draining) {
            Phase::Handshake(negotiation) => (negotiation, None),
            Phase::Held(negotiation, place) => (negotiation, Some(place)),
            other => return client.phase = other,
        };
        let was_held = held.is_some();
        let now = self.clock.now();
        let in_time = client.hold_until.is_none_or(|hold_until| now < hold_until);
        let place = if in_time { held.or_else(|| self.fleet.held.take()) } else { None };
        let Some(client) = self.clients.get(index) else { return };
        let directory = self.directory(client, place.is_some());
        let Some(client) = self.clients.get_mut(index) else { return };
        let mut answer = Vec::new();
        let step = match negotiation.receive(client.inbox.data()) {
            Ok(taken) => {
                client.inbox.consume(taken);
                negotiation.poll(&directory, &mut answer)
            }
            Err(error) => {
                tracing::debug!("NBD handshake of {}: {error}", client.address);
                Step::Close
            }
        };
        let is_answered = !answer.is_empty();
        if is_answered && let Some(message) = client.outbox.message(false) {
            message.push_head(&answer);
        }
        match step {
            Step::NeedMore => {
                client.phase = Phase::Handshake(negotiation);
                if was_held {
                    // It was kept waiting: that is not its own time.
                    client.deadline = Some(now + self.config.limits.handshake_timeout);
                }
                // The next option is looked at when this answer is sent: who does not read gets no more.
                if !is_answered {
                    self.receive_from(index);
                }
            }
            Step::Hold { name } => match (directory.other_shard(&name), place) {
                (Some(shard), _) => client.phase = Phase::Moving(negotiation, shard),
                (None, Some(place)) => {
                    // Once for each connection: who asks again and again is not held for ever.
                    let hold_until = *client.hold_until.get_or_insert(now + self.config.hold_greeting);
                    client.deadline = Some(hold_until);
                    client.phase = Phase::Held(negotiation, place);
                    self.want_sweep();
                }
                (None, None) => unreachable!("nobody is held without a place"),
            },
            Step::Transmission(agreed) => self.begin_transmission(index, agreed),
            Step::StartTls => {
                client.phase = Phase::Handshake(negotiation);
                client.security = Security::Starting;
            }
            Step::Close => self.drain(index),
        }
        self.list_talking(index);
    }

    fn begin_transmission(&mut self, index: u32, agreed: Transmission) {
        let resource = self.resources.iter().position(|resource| resource.name == agreed.export.name);
        let (Some(resource), Some(client)) = (resource, self.clients.get_mut(index)) else { return };
        let Some(place) = self.fleet.served.take() else {
            let served = self.fleet.served.taken();
            tracing::warn!("{served} clients are connected, no more are served; closing {}", client.address);
            return self.drain(index);
        };
        client.inbox.grow(crate::nbd::BUFFER_BYTES);
        let parser = RequestParser::new(&agreed);
        let resource = resource as u16;
        let framing = agreed.framing;
        // Each name was offered by the directory. A checkpoint may be gone since: its place stays.
        let node = self.resources[usize::from(resource)].node.as_ref();
        let contexts = agreed.contexts.iter().map(|name| Context::named(name, node)).collect();
        client.phase = Phase::Serving(Box::new(Serving {
            resource,
            _place: place,
            parser,
            framing,
            contexts,
            write: None,
            long_read: None,
            skip: 0,
            refusal: None,
        }));
        client.deadline = None;
        let over = match &client.security {
            Security::Active(names) if names.is_empty() => " over TLS".into(),
            Security::Active(names) => format!(" over TLS, as {}", names.join(", ")),
            _ => String::new(),
        };
        tracing::info!("{}: client {} connected{over}", agreed.export.name, client.address);
        self.count_clients(usize::from(resource));
        self.serve(index);
    }

    /// Tells the core how many clients its export has, if that changed.
    fn count_clients(&mut self, resource: usize) {
        let serves = |client: &Client| client.served_resource() == Some(resource as u16);
        let open = self.clients.iter().filter(|(_, client)| serves(client)).count() as u32;
        let entry = &mut self.resources[resource];
        if entry.clients != open {
            entry.clients = open;
            entry.events.push_back(Event::Clients { open });
        }
    }

    /// Looks again at clients that wait for an export.
    pub(super) fn retry_held(&mut self) {
        for index in 0..self.clients.bound() {
            if self.clients.get(index).is_some_and(|client| matches!(client.phase, Phase::Held(..))) {
                self.negotiate(index);
            }
        }
    }

    pub(super) fn feed_starved_clients(&mut self) {
        for resource in 0..self.resources.len() {
            self.give_turns(resource, |entry| &entry.request_turns);
            self.give_turns(resource, |entry| &entry.read_turns);
            self.give_turns(resource, |entry| &entry.write_turns);
        }
    }

    /// Serves who waits longest, until one has to go on waiting.
    fn give_turns(&mut self, resource: usize, turns: fn(&Resource) -> &Turns) {
        while let Some(first) = turns(&self.resources[resource]).first() {
            self.serve(first);
            if turns(&self.resources[resource]).first() == Some(first) {
                return;
            }
        }
    }

    /// Nothing more is taken from a client; it is closed when its requests are answered.
    pub(super) fn drain(&mut self, index: u32) {
        let deadline = self.clock.now() + DRAIN;
        let Some(client) = self.clients.get_mut(index) else { return };
        if std::mem::replace(&mut client.is_ending, true) {
            return;
        }
        client.deadline = Some(deadline);
        self.want_sweep();
        self.end_reading(index, rustix::net::Shutdown::Read);
    }

    /// Closes a client at once.
    pub(super) fn hang_up(&mut self, index: u32) {
        let Self { io: Some(io), clients, .. } = self else { return };
        let Some(client) = clients.get_mut(index) else { return };
        if std::mem::replace(&mut client.is_gone, true) {
            return;
        }
        client.is_ending = true;
        client.deadline = None;
        client.outbox.close(io.arena());
        client.tls_session = None;
        self.end_reading(index, rustix::net::Shutdown::Both);
    }

    fn end_reading(&mut self, index: u32, how: rustix::net::Shutdown) {
        let Some(client) = self.clients.get_mut(index) else { return };
        let resource = match &client.phase {
            Phase::Serving(serving) => Some(usize::from(serving.resource)),
            _ => None,
        };
        // A receive in flight ends with this.
        let _ = rustix::net::shutdown(&*client.fd, how);
        if !client.inbox.is_receiving() {
            self.stop_reading(index);
        }
        if let Some(resource) = resource {
            let entry = &mut self.resources[resource];
            let turns = [&mut entry.request_turns, &mut entry.read_turns, &mut entry.write_turns];
            let was_first = turns.map(|turns| turns.leave(index));
            if was_first.contains(&true) {
                // Who comes next may need less: look again although nothing was freed.
                self.frees_seen = u64::MAX;
            }
            self.count_clients(resource);
        }
    }

    /// No receive is in flight any more: a write whose bytes will not come is abandoned.
    fn stop_reading(&mut self, index: u32) {
        let Self { io: Some(io), clients, resources, .. } = self else { return };
        let Some(client) = clients.get_mut(index) else { return };
        let resource = match &client.phase {
            Phase::Serving(serving) => Some(usize::from(serving.resource)),
            _ => None,
        };
        let next = if client.is_gone { Phase::Dead } else { Phase::Draining };
        let abandoned = client.stop_reading(io.arena(), next);
        if let (Some(resource), Some(request)) = (resource, abandoned) {
            resources[resource].events.push_back(Event::Abandoned { req: ReqId(request) });
        }
        self.check_ending(index);
    }

    /// Closes a drained client, forgets one that is gone, lets go of one that moves.
    pub(super) fn check_ending(&mut self, index: u32) {
        let Some(client) = self.clients.get(index) else { return };
        let is_idle = client.requests == 0 && client.outbox.is_empty();
        match client.phase {
            Phase::Draining if is_idle && client.is_ending => self.hang_up(index),
            Phase::Moving(..) if is_idle && client.ops == 0 && !client.is_ending => self.move_client(index),
            Phase::Dead if client.requests == 0 && client.ops == 0 => {
                self.clients.remove(index);
            }
            _ => {}
        }
    }

    /// The export closed: every client of the resource goes.
    pub(super) fn close_clients(&mut self, resource: usize) {
        for index in 0..self.clients.bound() {
            let Some(client) = self.clients.get(index) else { continue };
            if client.served_resource() == Some(resource as u16) {
                tracing::info!("{}: closing client {}", self.resources[resource].name, client.address);
                self.drain(index);
            }
        }
    }

    pub(super) fn list_talking(&mut self, index: u32) {
        let Some(client) = self.clients.get_mut(index) else { return };
        if !std::mem::replace(&mut client.is_listed, true) {
            self.talking.push(index);
        }
    }

    /// Sends what is queued for clients.
    pub(super) fn kick_clients(&mut self) {
        let now = self.clock.now();
        while let Some(index) = self.talking.pop() {
            let Self { io: Some(io), clients, .. } = self else { return };
            let Some(client) = clients.get_mut(index) else { continue };
            client.is_listed = false;
            if client.outbox.kick(io, Token::ClientSent(index)) {
                client.ops += 1;
                client.sending_since = Some(now);
            } else {
                self.check_ending(index);
            }
        }
    }

    pub(super) fn client_sent(&mut self, index: u32, completion: Completion<Token>) {
        let Self { io: Some(io), clients, .. } = self else { return };
        let (Some(client), Op::Send(message)) = (clients.get_mut(index), completion.op) else { return };
        client.ops -= 1;
        client.sending_since = None;
        match client.outbox.sent(io.arena(), message, completion.result) {
            Ok(sent) => {
                client.unsent -= sent.replies;
                client.unsent_bytes -= sent.reply_bytes;
                client.read_slot_bytes -= sent.slot_bytes;
                let was_starved = client.starved;
                let is_starting = matches!(client.security, Security::Starting) && !client.is_ending;
                if !client.outbox.is_empty() {
                    self.list_talking(index);
                } else if client.is_asked() {
                    self.negotiate(index);
                } else if is_starting {
                    self.start_tls(index);
                } else {
                    self.check_ending(index);
                }
                if was_starved {
                    self.serve(index);
                }
            }
            Err(_) => {
                self.hang_up(index);
                self.check_ending(index);
            }
        }
    }

    /// Whether a client stands still with memory that others wait for.
    fn is_in_the_way(&self, client: &Client, serving: &Serving, now: Instant) -> bool {
        let is_late = |since: Instant| now.since(since) >= self.config.limits.progress_timeout;
        let entry = &self.resources[usize::from(serving.resource)];
        let piece = serving.write.and_then(|write| write.piece);
        let hinders_reads = client.read_slot_bytes > 0 && client.sending_since.is_some_and(is_late);
        let hinders_writes = piece.is_some_and(|piece| is_late(piece.since));
        (hinders_reads && entry.read_turns.first().is_some())
            || (hinders_writes && entry.write_turns.first().is_some())
    }

    pub(super) fn sweep_clients(&mut self, now: Instant) {
        let waits = |entry: &Resource| entry.read_turns.first().or(entry.write_turns.first()).is_some();
        if self.resources.iter().any(waits) {
            self.want_sweep();
        }
        for index in 0..self.clients.bound() {
            let Some(client) = self.clients.get(index) else { continue };
            match (&client.phase, client.deadline) {
                (Phase::Serving(serving), None) if self.is_in_the_way(client, serving, now) => {
                    tracing::warn!(
                        "closing client {}: it does not move, and others wait for its buffers",
                        client.address
                    );
                    self.hang_up(index);
                }
                (_, None) => {}
                // Nothing is received while it waits: its place must not stay taken if it has left.
                (Phase::Held(..), Some(_)) if has_left(&client.fd) => self.hang_up(index),
                // Looks again too: the reason for waiting may be gone.
                (Phase::Held(..), Some(_)) => {
                    self.negotiate(index);
                    self.want_sweep();
                }
                (_, Some(deadline)) if deadline <= now => self.hang_up(index),
                (_, Some(_)) => self.want_sweep(),
            }
        }
    }
}

/// Whether the other end of a connection without unread bytes is closed.
fn has_left(fd: &Fd) -> bool {
    use rustix::net::RecvFlags;
    let peeked = rustix::net::recv(&**fd, &mut [0_u8; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT);
    match peeked {
        Ok((bytes, _)) => bytes == 0,
        Err(error) => !matches!(error, Errno::AGAIN | Errno::INTR),
    }
}

/// Small answers leave at once, and the kernel ends a connection whose host is gone. A unix socket knows none
/// of this, and needs none of it.
fn watch_over(fd: &Fd, silence_max: Duration) {
    use rustix::net::sockopt;
    const PROBES: u32 = 3;
    let pause = (silence_max / (PROBES + 1)).max(Duration::from_secs(1));
    let millis = u32::try_from(silence_max.as_millis()).unwrap_or(u32::MAX);
    let _ = sockopt::set_tcp_nodelay(&**fd, true)
        .and_then(|()| sockopt::set_socket_keepalive(&**fd, true))
        .and_then(|()| sockopt::set_tcp_keepidle(&**fd, pause))
        .and_then(|()| sockopt::set_tcp_keepintvl(&**fd, pause))
        .and_then(|()| sockopt::set_tcp_keepcnt(&**fd, PROBES))
        .and_then(|()| sockopt::set_tcp_user_timeout(&**fd, millis));
}

/// A unix socket takes some 200 KiB at a time, unlike TCP, which adapts: each part of a long answer would wait until
/// the client has read the one before.
fn widen(fd: &Fd) {
    use rustix::net::sockopt;
    const SEND_BYTES: usize = 1 << 20;
    // Without the privilege, as much as the system allows.
    let _ = sockopt::set_socket_send_buffer_size_force(&**fd, SEND_BYTES)
        .or_else(|_| sockopt::set_socket_send_buffer_size(&**fd, SEND_BYTES));
}
