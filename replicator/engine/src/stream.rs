//! Both directions of a stream socket: what was received and not yet understood, and what waits to be sent.
//!
//! At most one receive and one send are in flight per socket. Everything queued while a send is in flight
//! goes in the next one. A message owns one reference of each slot in it until it was sent or given up.

use std::collections::VecDeque;
use std::io;

use crate::ring::{Fd, Incoming, Op, Outgoing};
use crate::slots::{Arena, Span};
use crate::stock::Stock;
use crate::token::{Io, Token};

/// Received bytes of one connection.
pub(crate) struct Inbox {
    /// `None` while the kernel has it.
    incoming: Option<Box<Incoming>>,
    start: usize,
    end: usize,
}

impl Inbox {
    /// An empty buffer of this size.
    pub(crate) fn new(fd: Fd, buffer_bytes: usize) -> Self {
        Self { incoming: Some(Box::new(Incoming::new(fd, buffer_bytes))), start: 0, end: 0 }
    }

    /// A buffer of this size that begins with what was received elsewhere, which fits.
    pub(crate) fn with(fd: Fd, buffer_bytes: usize, received: &[u8]) -> Self {
        let mut incoming = Box::new(Incoming::new(fd, buffer_bytes));
        incoming.buffer[..received.len()].copy_from_slice(received);
        Self { incoming: Some(incoming), start: 0, end: received.len() }
    }

    /// Room for more, once it is known that the other end is worth it. Not while a receive is in flight.
    pub(crate) fn grow(&mut self, buffer_bytes: usize) {
        let Some(incoming) = &mut self.incoming else { unreachable!("growing under the kernel") };
        incoming.replace_buffer(self.start..self.end, buffer_bytes);
        (self.start, self.end) = (0, self.end - self.start);
    }

    /// Nothing is received any more: forgets what was, and its buffer. Not while a receive is in flight.
    pub(crate) fn discard(&mut self) {
        (self.start, self.end) = (0, 0);
        self.grow(0);
    }

    /// Whether a receive is in flight.
    pub(crate) fn is_receiving(&self) -> bool {
        self.incoming.is_none()
    }

    /// What was received and not consumed; empty while a receive is in flight.
    pub(crate) fn data(&self) -> &[u8] {
        self.incoming.as_ref().map_or(&[], |incoming| &incoming.buffer[self.start..self.end])
    }

    /// The first bytes were understood.
    pub(crate) fn consume(&mut self, bytes: usize) {
        assert!(bytes <= self.end - self.start, "consuming what was not received");
        self.start += bytes;
    }

    /// Starts a receive: into the span first, then behind what is not yet consumed. The caller has consumed
    /// so much that there is room.
    pub(crate) fn receive(&mut self, io: &mut Io, token: Token, span: Option<Span>) {
        let Some(mut incoming) = self.incoming.take() else { unreachable!("two receives at once") };
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start > 0 && incoming.buffer.len() - self.end < incoming.buffer.len() / 2 {
            incoming.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let buffer_bytes = incoming.buffer.len();
        incoming.aim(span, self.end..buffer_bytes);
        io.push(token, Op::Receive(incoming));
    }

    /// A receive ended with `bytes`; returns how many of them went to the span.
    pub(crate) fn received(&mut self, incoming: Box<Incoming>, bytes: u32) -> u32 {
        let in_span = incoming.span().map_or(0, |span| span.len.min(bytes));
        self.end += (bytes - in_span) as usize;
        assert!(self.end <= incoming.buffer.len(), "received more than there was room for");
        self.incoming = Some(incoming);
        in_span
    }
}

/// What waits to be sent on one connection.
pub(crate) struct Outbox {
    fd: Fd,
    /// May overtake the others.
    urgent: VecDeque<Box<Outgoing>>,
    ordered: VecDeque<Box<Outgoing>>,
    stock: Stock,
    sending: bool,
    /// Nothing is accepted or sent any more.
    closed: bool,
}

/// What a completed send carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    /// Answers.
    pub(crate) replies: u32,
    /// Request bytes that they free.
    pub(crate) reply_bytes: u64,
    /// Memory of the slots in it.
    pub(crate) slot_bytes: u64,
}

impl Outbox {
    /// An empty queue.
    pub(crate) fn new(fd: Fd, stock: &Stock) -> Self {
        let (urgent, ordered) = (VecDeque::with_capacity(4), VecDeque::with_capacity(64));
        Self { fd, urgent, ordered, stock: stock.clone(), sending: false, closed: false }
    }

    /// The message that takes what is to be sent next, with room for a header and a payload; `None` once
    /// closed. The caller puts something into it.
    pub(crate) fn message(&mut self, overtakes: bool) -> Option<&mut Outgoing> {
        if self.closed {
            return None;
        }
        let queue = if overtakes { &mut self.urgent } else { &mut self.ordered };
        if queue.back().is_none_or(|last| last.is_full()) {
            queue.push_back(self.stock.take(&self.fd));
        }
        queue.back_mut().map(|message| &mut **message)
    }

    /// Whether everything was sent.
    pub(crate) fn is_empty(&self) -> bool {
        !self.sending && self.urgent.is_empty() && self.ordered.is_empty()
    }

    /// Bytes that wait to be sent, without payloads: those are bounded by their slots.
    pub(crate) fn waiting_head_bytes(&self) -> usize {
        self.urgent.iter().chain(&self.ordered).map(|message| message.head_bytes()).sum()
    }

    /// Starts the next send, if none is in flight and something waits. Returns whether it did.
    pub(crate) fn kick(&mut self, io: &mut Io, token: Token) -> bool {
        if self.sending {
            if !(self.urgent.is_empty() && self.ordered.is_empty()) {
                io.await_sends();
            }
            return false;
        }
        if self.closed {
            return false;
        }
        let Some(message) = self.urgent.pop_front().or_else(|| self.ordered.pop_front()) else {
            return false;
        };
        assert!(!message.is_empty(), "an empty message was queued");
        self.sending = true;
        io.push(token, Op::Send(message));
        true
    }

    /// A send ended. Fails if not everything was sent: the connection is broken.
    pub(crate) fn sent(
        &mut self,
        arena: &mut Arena,
        mut message: Box<Outgoing>,
        result: io::Result<u32>,
    ) -> io::Result<Sent> {
        self.sending = false;
        let wanted = message.bytes();
        let slot_bytes = message.spans().map(|span| arena.slot_bytes(span.slot)).sum();
        let sent = Sent { replies: message.replies, reply_bytes: message.reply_bytes, slot_bytes };
        message.clear(arena);
        self.stock.give_back(message);
        match result {
            Ok(bytes) if bytes as usize == wanted => Ok(sent),
            Ok(_) => Err(io::ErrorKind::WriteZero.into()),
            Err(error) => Err(error),
        }
    }

    /// Gives up what waits and takes nothing more; what is in flight ends by itself.
    pub(crate) fn close(&mut self, arena: &mut Arena) {
        self.closed = true;
        for mut message in self.urgent.drain(..).chain(self.ordered.drain(..)) {
            message.clear(arena);
            self.stock.give_back(message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::{PoolId, PoolSize};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::rc::Rc;
    use std::time::Duration;

    fn io() -> Io {
        Io::new(Arena::new(&[PoolSize { small: 8, large: 0 }]).unwrap(), 0).unwrap()
    }

    fn next(io: &mut Io) -> (io::Result<u32>, Op) {
        loop {
            if let Some(completion) = io.reap() {
                return (completion.result, completion.op);
            }
            io.wait(Some(Duration::from_secs(5)));
        }
    }

    #[test]
    fn what_overtakes_goes_first_and_the_rest_keeps_its_order() {
        let mut io = io();
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut out = Outbox::new(Rc::new(near.into()), &Stock::new());
        let slot = io.arena().take(PoolId(0), 0, 8192).unwrap();
        io.arena().bytes_mut(Span::of_volume(slot, 0, 8192)).fill(b'p');
        for text in ["one", "two"] {
            let message = out.message(false).unwrap();
            message.push_head(text.as_bytes());
            io.arena().retain(slot);
            message.push_payload(Span::of_volume(slot, 0, 2));
        }
        io.arena().release(slot);
        out.message(true).unwrap().push_head(b"ack");
        let mut wire = [0; 13];
        while out.kick(&mut io, Token::Wake) {
            assert!(!out.kick(&mut io, Token::Wake), "one send at a time");
            let (result, Op::Send(message)) = next(&mut io) else { panic!() };
            out.sent(io.arena(), message, result).unwrap();
        }
        far.read_exact(&mut wire).unwrap();
        assert_eq!(&wire, b"ackonepptwopp");
        assert!(out.is_empty());
        assert_eq!(io.arena().in_use(), 0);
    }

    #[test]
    fn a_closed_queue_lets_go_of_its_slots() {
        let mut io = io();
        let (near, _far) = UnixStream::pair().unwrap();
        let mut out = Outbox::new(Rc::new(near.into()), &Stock::new());
        let slot = io.arena().take(PoolId(0), 0, 8192).unwrap();
        out.message(false).unwrap().push_payload(Span::of_volume(slot, 0, 2));
        out.close(io.arena());
        assert!(out.is_empty() && out.message(true).is_none());
        assert_eq!(io.arena().in_use(), 0);
    }

    #[test]
    fn bytes_arrive_in_the_span_first_and_then_in_the_buffer() {
        let mut io = io();
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut inbox = Inbox::new(Rc::new(near.into()), 8);
        let mut step = |inbox: &mut Inbox, io: &mut Io, bytes: &[u8], span| {
            far.write_all(bytes).unwrap();
            inbox.receive(io, Token::Wake, span);
            let (result, Op::Receive(incoming)) = next(io) else { panic!() };
            inbox.received(incoming, result.unwrap())
        };
        assert_eq!(step(&mut inbox, &mut io, b"abcdef", None), 0);
        inbox.consume(4);
        assert_eq!(inbox.data(), b"ef");
        let slot = io.arena().take(PoolId(0), 0, 512).unwrap();
        let span = Span::of_volume(slot, 0, 3);
        assert_eq!(step(&mut inbox, &mut io, b"123gh", Some(span)), 3);
        assert_eq!(inbox.data(), b"efgh");
        assert_eq!(io.arena().bytes(span), b"123");
    }
}
