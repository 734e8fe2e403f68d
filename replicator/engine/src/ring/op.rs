//! Operations: what the caller wants done, with everything the kernel needs until it is done.
//!
//! An operation owns its descriptor and its memory (or names a span of the arena); the ring keeps it until
//! the completion and then gives it back, so that buffers are never dropped or moved under the kernel.

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::rc::Rc;

use io_uring::{opcode, squeue, types};
use lockstep_core::SlotId;

use super::message::{Incoming, Outgoing};
use super::socket::SocketAddress;
use crate::slots::{Arena, Span};

/// A descriptor that stays open while an operation uses it.
pub(crate) type Fd = Rc<OwnedFd>;

/// A send of more than this is worth a turn when it ends: others may wait behind it.
const LAZY_SEND_BYTES_MAX: usize = 16 << 10;

/// One operation.
#[derive(Debug)]
pub(crate) enum Op {
    /// Read a file into a span.
    Read { fd: Fd, span: Span, offset: u64 },
    /// Write a span to a file; durable at completion if `dsync`.
    Write { fd: Fd, span: Span, offset: u64, dsync: bool },
    /// Write all bytes of a shared buffer to a file, durable at completion.
    WriteBytes { fd: Fd, bytes: Rc<Vec<u8>>, offset: u64 },
    /// fdatasync.
    Datasync { fd: Fd },
    /// fallocate with these mode bits.
    Allocate { fd: Fd, mode: i32, offset: u64, len: u64 },
    /// Receive from a socket.
    Receive(Box<Incoming>),
    /// Send to a socket.
    Send(Box<Outgoing>),
    /// Take a connection from a listener; the completion puts it into `accepted`.
    Accept { fd: Fd, accepted: Option<OwnedFd> },
    /// Connect a socket.
    Connect { fd: Fd, address: Box<SocketAddress> },
    /// Wait until a descriptor is readable.
    Readable { fd: Fd },
    /// Cancel what is in flight on a descriptor.
    CancelOn { fd: Fd },
    /// Cancel everything in flight; used when the ring ends.
    CancelAll,
}

impl Op {
    /// Spans that the kernel uses, and whether it writes them.
    fn for_each_span(&self, mut visit: impl FnMut(Span, bool)) {
        match self {
            Op::Read { span, .. } => visit(*span, true),
            Op::Write { span, .. } => visit(*span, false),
            Op::Receive(incoming) => incoming.span().into_iter().for_each(|span| visit(span, true)),
            Op::Send(outgoing) => outgoing.spans().for_each(|span| visit(span, false)),
            _ => {}
        }
    }

    /// Whether nothing but memory waits for the completion: a small send has all but always ended when its
    /// submission returns.
    pub(super) fn is_lazy(&self) -> bool {
        matches!(self, Op::Send(outgoing) if outgoing.bytes() <= LAZY_SEND_BYTES_MAX)
    }

    /// The slot of which a disk is read or written, for which a fixed buffer pays.
    pub(super) fn disk_slot(&self) -> Option<SlotId> {
        match self {
            Op::Read { span, .. } | Op::Write { span, .. } => Some(span.slot),
            _ => None,
        }
    }

    /// Builds the entry; `fixed` is the registered buffer with the slot of a disk's operation. The operation must not
    /// move or be dropped before its completion, other than by moving the boxes and counted pointers in it, which
    /// leaves what they point to in place.
    pub(super) fn prepare(&mut self, arena: &mut Arena, fixed: Option<u16>) -> squeue::Entry {
        match self {
            Op::Receive(incoming) => return incoming.prepare(arena),
            Op::Send(outgoing) => return outgoing.prepare(arena),
            _ => {}
        }
        match self {
            Op::Read { fd, span, offset } => {
                let address = arena.kernel_begins(*span, true);
                let fd = raw(fd);
                match fixed {
                    Some(chunk) => {
                        opcode::ReadFixed::new(fd, address, span.len, chunk).offset(*offset).build()
                    }
                    None => opcode::Read::new(fd, address, span.len).offset(*offset).build(),
                }
            }
            Op::Write { fd, span, offset, dsync } => {
                let address = arena.kernel_begins(*span, false);
                let fd = raw(fd);
                let flags = if *dsync { libc::RWF_DSYNC } else { 0 };
                match fixed {
                    Some(chunk) => {
                        let write = opcode::WriteFixed::new(fd, address, span.len, chunk);
                        write.offset(*offset).rw_flags(flags).build()
                    }
                    None => opcode::Write::new(fd, address, span.len).offset(*offset).rw_flags(flags).build(),
                }
            }
            Op::WriteBytes { fd, bytes, offset } => {
                let write = opcode::Write::new(raw(fd), bytes.as_ptr(), bytes.len() as u32);
                write.offset(*offset).rw_flags(libc::RWF_DSYNC).build()
            }
            Op::Datasync { fd } => opcode::Fsync::new(raw(fd)).flags(types::FsyncFlags::DATASYNC).build(),
            Op::Allocate { fd, mode, offset, len } => {
                opcode::Fallocate::new(raw(fd), *len).offset(*offset).mode(*mode).build()
            }
            Op::Accept { fd, .. } => {
                let accept = opcode::Accept::new(raw(fd), std::ptr::null_mut(), std::ptr::null_mut());
                accept.flags(libc::SOCK_CLOEXEC).build()
            }
            Op::Connect { fd, address } => {
                let (pointer, len) = address.as_raw();
                opcode::Connect::new(raw(fd), pointer, len).build()
            }
            Op::Readable { fd } => opcode::PollAdd::new(raw(fd), libc::POLLIN as u32).build(),
            Op::CancelOn { fd } => opcode::AsyncCancel2::new(types::CancelBuilder::fd(raw(fd)).all()).build(),
            Op::CancelAll => opcode::AsyncCancel2::new(types::CancelBuilder::any()).build(),
            Op::Receive(_) | Op::Send(_) => unreachable!("prepared above"),
        }
    }

    /// The kernel is done with it, with this result.
    pub(super) fn finish(&mut self, arena: &mut Arena, result: i32) {
        self.for_each_span(|span, writes| arena.kernel_done(span, writes));
        if let Op::Accept { accepted, .. } = self
            && result >= 0
        {
            // SAFETY: a successful accept gives a new descriptor that nobody else knows; this completion is
            // handled once, and the descriptor is not used in any other way.
            *accepted = Some(unsafe { OwnedFd::from_raw_fd(result) });
        }
    }
}

pub(super) fn raw(fd: &Fd) -> types::Fd {
    types::Fd(fd.as_raw_fd())
}
