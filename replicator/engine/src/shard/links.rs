//! Connections to peers: dialling, accepting, the hello, frames, and the end of each link, reported once.

use std::io;
use std::rc::Rc;

use lockstep_core::{Event, Instant, LinkId, LinkLoss, PeerHello};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::Shard;
use super::resource::Stage;
use crate::congestion;
use crate::link::{Expected, Hello, Link, Parsed, Phase, Step, Wanted};
use crate::ring::{Completion, Fd, Op, SocketAddress};
use crate::system;
use crate::token::Token;

/// How long a closing link may take to send what is queued.
const DRAIN: std::time::Duration = std::time::Duration::from_secs(1);

impl Shard {
    /// Connects to the peer. Answered by LinkUp, or by LinkDown without a link.
    pub(super) fn dial(&mut self, resource: usize) {
        let Some(peer) = self.config.resources[resource].peer.clone() else { return };
        if matches!(self.resources[resource].stage, Stage::Closing { .. }) {
            let down = Event::LinkDown { link: None, loss: LinkLoss::Unreachable };
            return self.resources[resource].events.push_back(down);
        }
        let family = if peer.address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let fd: Fd = match rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None) {
            Ok(fd) => Rc::new(fd),
            Err(error) => {
                self.note_link_error(resource, format!("socket: {error}"));
                let down = Event::LinkDown { link: None, loss: LinkLoss::Unreachable };
                return self.resources[resource].events.push_back(down);
            }
        };
        // The listening socket has shown that it can be set.
        let _ = congestion::set(&*fd, self.config.congestion_control.as_deref());
        let deadline = self.clock.now() + self.config.limits.hello_timeout;
        let mut link =
            Link::new(Rc::clone(&fd), Phase::Connecting, peer.address.to_string(), deadline, &self.stock);
        link.resource = Some(resource as u16);
        link.ops = 1;
        let index = self.links.insert(link);
        let address = Box::new(SocketAddress::new(peer.address));
        self.io().push(Token::LinkConnected(index), Op::Connect { fd, address });
        self.want_sweep();
    }

    pub(super) fn link_connected(&mut self, index: u32, result: io::Result<u32>) {
        let Some(link) = self.links.get_mut(index) else { return };
        link.ops -= 1;
        if !matches!(link.phase, Phase::Connecting) {
            return self.reap_link(index);
        }
        if let Err(error) = result {
            return self.fail_link(index, LinkLoss::Unreachable, &error.to_string());
        }
        let resource = usize::from(link.resource.unwrap_or_default());
        let expected = self.expected(resource);
        let (Some(expected), Ok(nonce)) = (expected, system::random()) else {
            return self.fail_link(index, LinkLoss::Unreachable, "no peer or no randomness");
        };
        self.scratch.clear();
        let hello = Hello::dial(self.fleet.local.clone(), expected, nonce, &mut self.scratch);
        self.begin_hello(index, hello);
    }

    /// A connection came in on the replication port.
    pub(super) fn peer_accepted(&mut self, fd: Fd, address: String) {
        let deadline = self.clock.now() + self.config.limits.hello_timeout;
        self.welcome_peer(Link::new(fd, Phase::Connecting, address, deadline, &self.stock));
    }

    /// A connection of a stranger, who may have said something already.
    pub(super) fn welcome_peer(&mut self, link: Link) {
        let Ok(nonce) = system::random() else { return };
        self.make_room_for_hello();
        let index = self.links.insert(link);
        self.scratch.clear();
        let hello = Hello::accept(self.fleet.local.clone(), nonce);
        self.begin_hello(index, hello);
    }

    /// Strangers that connect and say nothing must not keep the peer out: the oldest goes.
    fn make_room_for_hello(&mut self) {
        let is_stranger = |link: &Link| {
            link.resource.is_none() && matches!(link.phase, Phase::Hello(_) | Phase::Draining(_))
        };
        let strangers = || self.links.iter().filter(|(_, link)| is_stranger(link));
        if strangers().count() < self.config.limits.hellos_max {
            return;
        }
        let oldest = strangers().min_by_key(|(_, link)| link.deadline).map(|(index, _)| index);
        if let Some(index) = oldest {
            tracing::debug!("too many unfinished connections to the replication port; closing the oldest");
            self.fail_link(index, LinkLoss::Lost, "");
        }
    }

    fn begin_hello(&mut self, index: u32, hello: Hello) {
        let Self { links, scratch, .. } = self;
        let Some(link) = links.get_mut(index) else { return };
        // Small frames must not wait for each other; a socket that does not know the option works without.
        let _ = rustix::net::sockopt::set_tcp_nodelay(&*link.fd, true);
        link.phase = Phase::Hello(Box::new(hello));
        if !scratch.is_empty()
            && let Some(message) = link.outbox.message(false)
        {
            message.push_head(scratch);
        }
        self.want_sweep();
        // A peer that another shard sent here has spoken already.
        match self.links.get(index).is_some_and(|link| link.inbox.data().is_empty()) {
            true => self.receive_hello(index),
            false => self.go_on_with_hello(index),
        }
    }

    fn receive_hello(&mut self, index: u32) {
        let Self { io: Some(io), links, .. } = self else { return };
        links.get_mut(index).into_iter().for_each(|link| link.receive(io, Token::LinkReceived(index)));
    }

    /// The peer that a resource expects.
    fn expected(&self, resource: usize) -> Option<Expected> {
        let config = self.config.resources.get(resource)?;
        let peer = config.peer.as_ref()?;
        Some(Expected { resource: config.name.clone(), peer: peer.node, peer_name: peer.name.clone() })
    }

    fn find(&self, name: &str) -> Result<Expected, String> {
        let node = &self.config.node_name;
        let index = self.resources.iter().position(|resource| resource.name == name);
        let Some(index) = index else { return Err(format!("{node} has no resource {name:?}")) };
        if matches!(self.resources[index].stage, Stage::Closing { .. } | Stage::Down) {
            return Err(format!("resource {name} is down on {node}"));
        }
        self.expected(index).ok_or_else(|| format!("resource {name} has no peer on {node}"))
    }

    pub(super) fn link_received(&mut self, index: u32, completion: Completion<Token>) {
        let Self { io: Some(io), links, .. } = self else { return };
        let (Some(link), Op::Receive(incoming)) = (links.get_mut(index), completion.op) else { return };
        link.ops -= 1;
        let bytes = *completion.result.as_ref().unwrap_or(&0);
        let in_payload = link.inbox.received(incoming, bytes);
        link.payload_received(in_payload);
        match (&link.phase, completion.result) {
            (Phase::Dead | Phase::Draining(_) | Phase::Connecting, _) => {
                link.drop_partial(io.arena());
                self.reap_link(index);
            }
            (_, Ok(0)) => self.fail_link(index, LinkLoss::Lost, "closed by the peer"),
            (_, Err(error)) => self.fail_link(index, LinkLoss::Lost, &error.to_string()),
            (Phase::Hello(_), Ok(_)) => self.go_on_with_hello(index),
            (Phase::Up(_), Ok(_)) => self.read_frames(index),
        }
    }

    fn go_on_with_hello(&mut self, index: u32) {
        let Some(link) = self.links.get_mut(index) else { return };
        let Phase::Hello(mut hello) = std::mem::replace(&mut link.phase, Phase::Connecting) else { return };
        match hello.wanted(link.inbox.data()) {
            Wanted::NeedMore => {
                link.phase = Phase::Hello(hello);
                return self.receive_hello(index);
            }
            Wanted::Resource(name) => {
                let home = self.fleet.home(&name);
                if let Some(home) = home.filter(|home| home.shard != self.id) {
                    return self.move_peer(index, home.shard);
                }
            }
            Wanted::Settled => {}
        }
        let mut answer = Vec::new();
        let Some(link) = self.links.get(index) else { return };
        let (taken, outcome) = hello.receive(link.inbox.data(), &|name| self.find(name), &mut answer);
        let Some(link) = self.links.get_mut(index) else { return };
        link.inbox.consume(taken);
        link.phase = Phase::Hello(hello);
        if !answer.is_empty()
            && let Some(message) = link.outbox.message(false)
        {
            message.push_head(&answer);
        }
        match outcome {
            Ok(Step::NeedMore) => self.receive_hello(index),
            Ok(Step::Done { resource, peer, digest_key }) => self.link_up(index, &resource, peer, digest_key),
            Err(error) => {
                let (dialled, address) = (link.resource, link.address.clone());
                link.phase = Phase::Draining(LinkId(0));
                link.deadline = Some(self.clock.now() + DRAIN);
                match dialled {
                    Some(resource) => {
                        self.note_link_error(usize::from(resource), format!("{address}: {error}"));
                        let down = Event::LinkDown { link: None, loss: LinkLoss::Rejected };
                        self.resources[usize::from(resource)].events.push_back(down);
                    }
                    // Strangers may come at any rate; the dialling node logs what concerns it.
                    None => tracing::debug!("connection from {address} refused: {error}"),
                }
            }
        }
    }

    fn link_up(&mut self, index: u32, name: &str, peer: PeerHello, digest_key: [u8; 32]) {
        let Some(resource) = self.resources.iter().position(|resource| resource.name == name) else { return };
        if matches!(self.resources[resource].stage, Stage::Closing { .. } | Stage::Down) {
            return self.fail_link(index, LinkLoss::Lost, "the resource went down");
        }
        // Every older link is reported down before this one is reported up.
        if let Some(old) = self.resources[resource].link {
            self.fail_link(old, LinkLoss::Superseded, "a newer connection of the peer");
        }
        for old in 0..self.links.bound() {
            let is_old = |link: &Link| {
                link.resource == Some(resource as u16) && matches!(link.phase, Phase::Draining(_))
            };
            if self.links.get(old).is_some_and(is_old) {
                self.fail_link(old, LinkLoss::Closed, "");
            }
        }
        self.drain_storage(resource);
        let id = LinkId(self.next_link);
        self.next_link += 1;
        let Some(link) = self.links.get_mut(index) else { return };
        link.phase = Phase::Up(id);
        link.inbox.grow(crate::link::BUFFER_BYTES);
        link.resource = Some(resource as u16);
        link.deadline = None;
        self.resources[resource].link = Some(index);
        self.resources[resource].digest_key = digest_key;
        self.resources[resource].link_error = None;
        self.feed(resource, Event::LinkUp { link: id, peer });
        self.read_frames(index);
    }

    /// Hands every complete frame to the core, then receives more.
    fn read_frames(&mut self, index: u32) {
        loop {
            let Self { io: Some(io), links, resources, .. } = self else { return };
            let Some(link) = links.get_mut(index) else { return };
            let (Phase::Up(id), Some(resource)) = (&link.phase, link.resource) else { return };
            let (id, resource) = (*id, usize::from(resource));
            let pool = resources[resource].pools.receive;
            if link.unread && io.arena().free_in(pool) > 0 {
                // Before the next frame: it must not meet a timer that ran out meanwhile.
                link.unread = false;
                self.feed(resource, Event::Reading { link: id, is_reading: true });
                continue;
            }
            match link.next_frame(io.arena(), pool) {
                Parsed::Control { frame, body_bytes } => {
                    let body = link.inbox.data()[..body_bytes].to_vec();
                    link.inbox.consume(body_bytes);
                    self.feed(resource, Event::Frame { link: id, frame, body: &body, slot: None });
                }
                Parsed::Data { frame, slot } => {
                    io.arena().give_to_core(slot);
                    self.feed(resource, Event::Frame { link: id, frame, body: &[], slot: Some(slot) });
                }
                Parsed::NeedMore => return link.receive(io, Token::LinkReceived(index)),
                Parsed::Backlogged => return io.await_sends(),
                Parsed::Starved => {
                    io.await_sends();
                    if !std::mem::replace(&mut link.unread, true) {
                        self.feed(resource, Event::Reading { link: id, is_reading: false });
                    }
                    return;
                }
                Parsed::Malformed(why) => return self.fail_link(index, LinkLoss::Malformed, &why),
            }
        }
    }

    pub(super) fn feed_starved_links(&mut self) {
        for index in 0..self.links.bound() {
            if self.links.get(index).is_some_and(|link| link.starved) {
                self.read_frames(index);
            }
        }
    }

    pub(super) fn link_sent(&mut self, index: u32, completion: Completion<Token>) {
        let Self { io: Some(io), links, .. } = self else { return };
        let (Some(link), Op::Send(message)) = (links.get_mut(index), completion.op) else { return };
        link.ops -= 1;
        let result = link.outbox.sent(io.arena(), message, completion.result);
        match (&link.phase, result) {
            (Phase::Dead, _) => self.reap_link(index),
            (_, Err(error)) => self.fail_link(index, LinkLoss::Lost, &error.to_string()),
            (Phase::Draining(_), Ok(_)) if link.outbox.is_empty() => {
                self.fail_link(index, LinkLoss::Closed, "")
            }
            (Phase::Up(_), Ok(_)) if link.starved => self.read_frames(index),
            (_, Ok(_)) => {}
        }
    }

    /// Sends what is queued on every link.
    pub(super) fn kick_links(&mut self) {
        let Self { io: Some(io), links, .. } = self else { return };
        for index in 0..links.bound() {
            if let Some(link) = links.get_mut(index)
                && link.outbox.kick(io, Token::LinkSent(index))
            {
                link.ops += 1;
            }
        }
    }

    /// The core closes a link: what is queued is sent, nothing more is read.
    pub(super) fn close_link(&mut self, resource: usize, id: LinkId) {
        let Some(index) = self.resources[resource].link else { return };
        let deadline = self.clock.now() + DRAIN;
        let Some(link) = self.links.get_mut(index) else { return };
        if !matches!(link.phase, Phase::Up(up) if up == id) {
            return;
        }
        link.phase = Phase::Draining(id);
        link.deadline = Some(deadline);
        let is_done = link.outbox.is_empty();
        self.resources[resource].link = None;
        self.want_sweep();
        if is_done {
            self.fail_link(index, LinkLoss::Closed, "");
        }
    }

    /// Ends a connection in whatever phase it is, and reports that to the core once.
    fn fail_link(&mut self, index: u32, loss: LinkLoss, why: &str) {
        let Self { io: Some(io), links, .. } = self else { return };
        let Some(link) = links.get_mut(index) else { return };
        let is_dialled = link.resource.is_some();
        let report = match link.phase {
            Phase::Dead => return,
            Phase::Up(id) => Some((Some(id), loss)),
            // The hello failed, and that was reported.
            Phase::Draining(LinkId(0)) => None,
            Phase::Draining(id) => Some((Some(id), LinkLoss::Closed)),
            Phase::Connecting | Phase::Hello(_) if is_dialled => Some((None, LinkLoss::Unreachable)),
            Phase::Connecting | Phase::Hello(_) => None,
        };
        let (resource, text) = (link.resource, format!("{}: {why}", link.address));
        link.shut_down(io.arena());
        if let (Some(resource), Some((link, loss))) = (resource.map(usize::from), report) {
            if link.is_some() && self.resources[resource].link == Some(index) {
                self.resources[resource].link = None;
            }
            if loss != LinkLoss::Closed {
                self.note_link_error(resource, text);
            }
            if loss == LinkLoss::Superseded {
                // Before the newer one is reported; no action is being executed now.
                self.feed(resource, Event::LinkDown { link, loss });
            } else {
                self.resources[resource].events.push_back(Event::LinkDown { link, loss });
            }
        }
        self.reap_link(index);
    }

    /// Says why there is no link; a reason that repeats is logged once.
    fn note_link_error(&mut self, resource: usize, why: String) {
        let entry = &mut self.resources[resource];
        if entry.link_error.as_ref() != Some(&why) {
            tracing::info!("{} {}: link: {why}", entry.name, self.config.node_name);
            entry.link_error = Some(why);
        }
    }

    fn reap_link(&mut self, index: u32) {
        if self.links.get(index).is_some_and(|link| matches!(link.phase, Phase::Dead) && link.ops == 0) {
            self.links.remove(index);
        }
    }

    pub(super) fn sweep_links(&mut self, now: Instant) {
        for index in 0..self.links.bound() {
            let Some(deadline) = self.links.get(index).and_then(|link| link.deadline) else { continue };
            if deadline <= now {
                self.fail_link(index, LinkLoss::Unreachable, "no answer in time");
            } else {
                self.want_sweep();
            }
        }
    }

    /// Ends every connection of a resource that goes down.
    pub(super) fn drop_links(&mut self, resource: usize) {
        for index in 0..self.links.bound() {
            if self.links.get(index).is_some_and(|link| link.resource == Some(resource as u16)) {
                self.fail_link(index, LinkLoss::Lost, "the resource goes down");
            }
        }
    }

    /// Whether a connection of the resource still has operations in flight.
    pub(super) fn has_links(&self, resource: usize) -> bool {
        self.links.iter().any(|(_, link)| link.resource == Some(resource as u16))
    }
}
