//! A connection to a peer: the hello exchange, then frames both ways.
//!
//! Here is what concerns one connection; which resource it serves, and what the core is told, is the shard's
//! part. Payload of data frames goes straight into slots; header and payload are always checked against their
//! checksums.

pub mod hello;

use crc_fast::crc32_iscsi as crc32c;
use lockstep_core::{FRAME_BYTES, Frame, Instant, LinkId, SlotId};

pub(crate) use hello::{Expected, Hello, Local, Step, Wanted};

use crate::ring::Fd;
use crate::slots::{Arena, PoolId, Span};
use crate::stock::Stock;
use crate::stream::{Inbox, Outbox};
use crate::token::{Io, Token};

/// Receive buffer of a link that is up: many frames per receive.
pub(crate) const BUFFER_BYTES: usize = 256 * 1024;
/// Receive buffer in the hello exchange.
pub(crate) const HELLO_BUFFER_BYTES: usize = 4 * 1024;
/// What may wait to be sent without its payloads: acknowledgements above all. A peer that makes us queue more
/// does not read what it asks for, and is not read either.
pub(crate) const BACKLOG_BYTES_MAX: usize = 4 << 20;

/// Where a connection stands.
#[derive(Debug)]
pub(crate) enum Phase {
    /// Being connected.
    Connecting,
    /// The hello exchange runs.
    Hello(Box<Hello>),
    /// Frames flow.
    Up(LinkId),
    /// What is queued is sent, nothing more is read.
    Draining(LinkId),
    /// Shut down; waits for its last operations.
    Dead,
}

/// One connection.
pub(crate) struct Link {
    pub(crate) fd: Fd,
    pub(crate) phase: Phase,
    /// Known from the start where this node dialled, after the hello otherwise.
    pub(crate) resource: Option<u16>,
    pub(crate) address: String,
    /// When patience ends, in `Connecting`, `Hello` and `Draining`.
    pub(crate) deadline: Option<Instant>,
    pub(crate) inbox: Inbox,
    pub(crate) outbox: Outbox,
    /// Operations in the ring.
    pub(crate) ops: u32,
    /// No slot was free for the next payload, or the peer does not take what it is sent: the socket is not
    /// read until that has changed.
    pub(crate) starved: bool,
    /// The core was told that the socket is not read.
    pub(crate) unread: bool,
    partial: Option<Partial>,
}

/// A data frame whose payload is still arriving.
#[derive(Clone, Copy, Debug)]
struct Partial {
    frame: Frame,
    payload: Span,
    got: u32,
    checksum: u32,
}

/// What the received bytes hold.
#[derive(Debug)]
pub(crate) enum Parsed {
    /// A frame; a body of `body_bytes` lies at the front of the inbox and is to be consumed.
    Control { frame: Frame, body_bytes: usize },
    /// A data frame; the slot is the caller's.
    Data { frame: Frame, slot: SlotId },
    /// Nothing complete.
    NeedMore,
    /// A payload comes for which no slot is free.
    Starved,
    /// The peer does not take what it is sent: nothing more is read before it does.
    Backlogged,
    /// Not what a peer sends, in words.
    Malformed(String),
}

impl Link {
    /// A connection in its first phase.
    pub(crate) fn new(fd: Fd, phase: Phase, address: String, deadline: Instant, stock: &Stock) -> Self {
        let (inbox, outbox) = (Inbox::new(fd.clone(), HELLO_BUFFER_BYTES), Outbox::new(fd.clone(), stock));
        let deadline = Some(deadline);
        let (resource, partial, ops, starved, unread) = (None, None, 0, false, false);
        Self { fd, phase, resource, address, deadline, inbox, outbox, ops, starved, unread, partial }
    }

    /// Starts a receive, if none is in flight.
    pub(crate) fn receive(&mut self, io: &mut Io, token: Token) {
        if self.inbox.is_receiving() {
            return;
        }
        let rest = self.partial.map(|partial| partial.payload.skip(partial.got));
        self.inbox.receive(io, token, rest);
        self.ops += 1;
    }

    /// Bytes of the current payload were received into its slot.
    pub(crate) fn payload_received(&mut self, bytes: u32) {
        if let Some(partial) = &mut self.partial {
            partial.got += bytes;
        }
    }

    /// The next frame in what was received.
    pub(crate) fn next_frame(&mut self, arena: &mut Arena, pool: PoolId) -> Parsed {
        self.starved = self.outbox.waiting_head_bytes() > BACKLOG_BYTES_MAX;
        if self.starved {
            return Parsed::Backlogged;
        }
        if self.partial.is_none()
            && let Some(early) = self.next_header(arena, pool)
        {
            return early;
        }
        let Some(partial) = &mut self.partial else { return Parsed::NeedMore };
        let rest = partial.payload.skip(partial.got);
        let data = self.inbox.data();
        let available = data.len().min(rest.len as usize);
        if available > 0 {
            let target = rest.first(available as u32);
            arena.bytes_mut(target).copy_from_slice(&data[..available]);
            partial.got += available as u32;
            self.inbox.consume(available);
        }
        if partial.got < partial.payload.len {
            return Parsed::NeedMore;
        }
        let Partial { frame, payload, checksum, .. } = *partial;
        self.partial = None;
        if crc32c(arena.bytes(payload)) != checksum {
            arena.release(payload.slot);
            return Parsed::Malformed(format!("checksum of the payload of {frame:?}"));
        }
        Parsed::Data { frame, slot: payload.slot }
    }

    /// Reads a header. `None`: a data frame began.
    fn next_header(&mut self, arena: &mut Arena, pool: PoolId) -> Option<Parsed> {
        let data = self.inbox.data();
        let Some(head) = data.first_chunk::<FRAME_BYTES>() else { return Some(Parsed::NeedMore) };
        let (frame, body_bytes, checksum) = match Frame::decode(head, crc32c) {
            Ok(decoded) => decoded,
            Err(error) => return Some(Parsed::Malformed(error.to_string())),
        };
        if let Some((offset, len)) = frame.payload() {
            let Some(slot) = arena.take(pool, offset, len) else {
                self.starved = true;
                return Some(Parsed::Starved);
            };
            self.inbox.consume(FRAME_BYTES);
            let payload = Span::of_volume(slot, offset, len);
            self.partial = Some(Partial { frame, payload, got: 0, checksum });
            return None;
        }
        let body_bytes = body_bytes as usize;
        let Some(body) = data[FRAME_BYTES..].get(..body_bytes) else { return Some(Parsed::NeedMore) };
        if crc32c(body) != checksum {
            return Some(Parsed::Malformed(format!("checksum of the body of {frame:?}")));
        }
        self.inbox.consume(FRAME_BYTES);
        Some(Parsed::Control { frame, body_bytes })
    }

    /// Queues a frame. `body` is empty for data frames; takes over one reference of the slot of `payload`.
    pub(crate) fn queue(&mut self, arena: &mut Arena, frame: &Frame, body: &[u8], payload: Option<Span>) {
        let Some(message) = self.outbox.message(frame.overtakes()) else {
            return payload.into_iter().for_each(|payload| arena.release(payload.slot));
        };
        let bytes = payload.map_or(body, |payload| arena.bytes(payload));
        let head = frame.encode(bytes.len() as u32, crc32c(bytes), crc32c);
        message.push_head(&head);
        match payload {
            Some(payload) => message.push_payload(payload),
            None if !body.is_empty() => message.push_head(body),
            None => {}
        }
    }

    /// Shuts the socket down and gives up what waits. Operations in flight end by themselves; the entry stays
    /// until they did.
    pub(crate) fn shut_down(&mut self, arena: &mut Arena) {
        self.phase = Phase::Dead;
        self.deadline = None;
        self.starved = false;
        let _ = rustix::net::shutdown(&*self.fd, rustix::net::Shutdown::Both);
        self.outbox.close(arena);
        self.drop_partial(arena);
    }

    /// Lets go of a payload that will not become complete, unless the kernel still writes to it.
    pub(crate) fn drop_partial(&mut self, arena: &mut Arena) {
        if !self.inbox.is_receiving()
            && let Some(partial) = self.partial.take()
        {
            arena.release(partial.payload.slot);
        }
    }
}

#[cfg(test)]
mod tests;
