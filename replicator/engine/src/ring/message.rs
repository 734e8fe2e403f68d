//! Scatter receive and gather send: what goes in one `recvmsg` or `sendmsg`, or, where it is one range of
//! memory, in one `recv` or `send`, which cost the kernel less.
//!
//! Both live in boxes that are used again and again; their addresses are stable while the kernel uses them, and no
//! allocation is made per message: an outgoing one has all the room that it may need from the start.
#![allow(unsafe_code)]

use std::mem;
use std::ops::Range;

use io_uring::{opcode, squeue};

use super::op::{Fd, raw};
use crate::slots::{Arena, Span};

/// Most parts of one message; the kernel takes 1024.
pub(crate) const PARTS_MAX: usize = 512;
/// A message is full from this size on, so that what may overtake does not wait long.
pub(crate) const MESSAGE_BYTES: usize = 1 << 20;

/// An empty message keeps so much room for headers: more than those of `PARTS_MAX` parts need.
const HEADS_KEPT_BYTES: usize = 16 << 10;
/// Memory of an empty message that has been full.
pub(crate) const MESSAGE_MEMORY_BYTES: usize = HEADS_KEPT_BYTES
    + PARTS_MAX * (mem::size_of::<Part>() + mem::size_of::<libc::iovec>())
    + mem::size_of::<Outgoing>();

/// A receive: first into a span (the rest of a payload), then into the connection's buffer.
pub(crate) struct Incoming {
    fd: Fd,
    span: Option<Span>,
    /// The connection's buffer; bytes are received at `free`.
    pub(crate) buffer: Box<[u8]>,
    free: Range<usize>,
    iovecs: [libc::iovec; 2],
    header: libc::msghdr,
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming").field("span", &self.span).field("free", &self.free).finish_non_exhaustive()
    }
}

impl Incoming {
    /// A receive for a connection with a buffer of this size.
    pub(crate) fn new(fd: Fd, buffer_bytes: usize) -> Self {
        // SAFETY: all-zero bytes are a valid msghdr and valid iovecs: null pointers with zero lengths.
        let (iovecs, header) = unsafe { (mem::zeroed(), mem::zeroed()) };
        let buffer = vec![0; buffer_bytes].into_boxed_slice();
        Self { fd, span: None, buffer, free: 0..0, iovecs, header }
    }

    /// A buffer of another size, with these bytes of the old one at its front.
    pub(crate) fn replace_buffer(&mut self, kept: Range<usize>, buffer_bytes: usize) {
        let mut buffer = vec![0; buffer_bytes].into_boxed_slice();
        buffer[..kept.len()].copy_from_slice(&self.buffer[kept]);
        self.buffer = buffer;
    }

    /// Says where the next bytes go.
    pub(crate) fn aim(&mut self, span: Option<Span>, free: Range<usize>) {
        assert!(free.start <= free.end && free.end <= self.buffer.len(), "receiving outside the buffer");
        assert!(span.is_some() || !free.is_empty(), "receiving into nothing");
        self.span = span;
        self.free = free;
    }

    /// The span aimed at.
    pub(crate) fn span(&self) -> Option<Span> {
        self.span
    }

    pub(super) fn prepare(&mut self, arena: &mut Arena) -> squeue::Entry {
        let mut count = 0;
        if let Some(span) = self.span {
            let address = arena.kernel_begins(span, true);
            self.iovecs[count] = libc::iovec { iov_base: address.cast(), iov_len: span.len as usize };
            count += 1;
        }
        if !self.free.is_empty() {
            let target = &mut self.buffer[self.free.clone()];
            self.iovecs[count] = libc::iovec { iov_base: target.as_mut_ptr().cast(), iov_len: target.len() };
            count += 1;
        }
        if count == 1 {
            let [first, _] = self.iovecs;
            // Cut, not lost, if it is longer than the kernel can count: the rest comes with the next receive.
            let len = u32::try_from(first.iov_len).unwrap_or(u32::MAX);
            return opcode::Recv::new(raw(&self.fd), first.iov_base.cast(), len).build();
        }
        self.header.msg_iov = self.iovecs.as_mut_ptr();
        self.header.msg_iovlen = count;
        opcode::RecvMsg::new(raw(&self.fd), &mut self.header).build()
    }
}

#[derive(Clone, Debug)]
enum Part {
    /// Bytes of `heads`.
    Head(Range<usize>),
    /// Payload; the message owns one reference of the slot.
    Payload(Span),
}

/// A send: headers and payloads in order.
pub(crate) struct Outgoing {
    /// Where it goes; none while nobody uses it.
    fd: Option<Fd>,
    heads: Vec<u8>,
    parts: Vec<Part>,
    bytes: usize,
    /// Answers in it, for the caller's accounting.
    pub(crate) replies: u32,
    /// Request bytes that these answers free, for the caller's accounting.
    pub(crate) reply_bytes: u64,
    iovecs: Vec<libc::iovec>,
    header: libc::msghdr,
}

impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outgoing")
            .field("bytes", &self.bytes)
            .field("parts", &self.parts.len())
            .finish_non_exhaustive()
    }
}

impl Outgoing {
    /// An empty message, with room for the headers and payloads of a full one.
    pub(crate) fn new() -> Self {
        // SAFETY: all-zero bytes are a valid msghdr.
        let header = unsafe { mem::zeroed() };
        let heads = Vec::with_capacity(HEADS_KEPT_BYTES);
        let (parts, iovecs) = (Vec::with_capacity(PARTS_MAX), Vec::with_capacity(PARTS_MAX));
        Self { fd: None, heads, parts, bytes: 0, replies: 0, reply_bytes: 0, iovecs, header }
    }

    /// It goes to this socket.
    pub(crate) fn aim(&mut self, fd: &Fd) {
        self.fd = Some(Fd::clone(fd));
    }

    /// Appends bytes.
    pub(crate) fn push_head(&mut self, bytes: &[u8]) {
        let start = self.heads.len();
        self.heads.extend_from_slice(bytes);
        self.bytes += bytes.len();
        if let Some(Part::Head(last)) = self.parts.last_mut() {
            last.end = self.heads.len();
        } else {
            self.parts.push(Part::Head(start..self.heads.len()));
        }
    }

    /// Appends payload; takes over one reference of the slot.
    pub(crate) fn push_payload(&mut self, span: Span) {
        self.bytes += span.len as usize;
        self.parts.push(Part::Payload(span));
    }

    /// Whether more should go in the next message. Room for a header and a payload is always left.
    pub(crate) fn is_full(&self) -> bool {
        self.parts.len() + 2 > PARTS_MAX || self.bytes >= MESSAGE_BYTES
    }

    /// Whether there is nothing to send.
    pub(crate) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Bytes that lie in no slot.
    pub(crate) fn head_bytes(&self) -> usize {
        self.heads.len()
    }

    /// Bytes in all.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Spans in it.
    pub(crate) fn spans(&self) -> impl Iterator<Item = Span> {
        self.parts.iter().filter_map(|part| match part {
            Part::Payload(span) => Some(*span),
            Part::Head(_) => None,
        })
    }

    /// Empties it; lets go of the slots and of the socket.
    pub(crate) fn clear(&mut self, arena: &mut Arena) {
        self.spans().for_each(|span| arena.release(span.slot));
        self.fd = None;
        self.parts.clear();
        self.heads.clear();
        self.heads.shrink_to(HEADS_KEPT_BYTES);
        self.iovecs.clear();
        (self.bytes, self.replies, self.reply_bytes) = (0, 0, 0);
    }

    pub(super) fn prepare(&mut self, arena: &mut Arena) -> squeue::Entry {
        let Some(fd) = self.fd.as_ref().map(raw) else { unreachable!("a message that goes nowhere") };
        self.iovecs.clear();
        for part in &self.parts {
            let iovec = match part {
                Part::Head(range) => {
                    let bytes = &self.heads[range.clone()];
                    libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
                }
                Part::Payload(span) => {
                    let address = arena.kernel_begins(*span, false);
                    libc::iovec { iov_base: address.cast(), iov_len: span.len as usize }
                }
            };
            self.iovecs.push(iovec);
        }
        // Without MSG_WAITALL a send may end short; with it the kernel goes on until all is sent or the
        // socket fails.
        let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        if let [only] = self.iovecs.as_slice()
            && let Ok(len) = u32::try_from(only.iov_len)
        {
            return opcode::Send::new(fd, only.iov_base.cast(), len).flags(flags).build();
        }
        self.header.msg_iov = self.iovecs.as_mut_ptr();
        self.header.msg_iovlen = self.iovecs.len();
        let flags = flags as u32;
        opcode::SendMsg::new(fd, &self.header).flags(flags).build()
    }
}
