//! The arena as fixed buffers of the ring, chunk by chunk as they come into use: registering pins memory, and an
//! idle volume shall hold none.
//!
//! A chunk is registered in front of the first operation of a disk on it, or never: what goes without is a little
//! slower and otherwise the same. Nothing is unregistered before the ring ends.
#![allow(unsafe_code)]

use std::io;

use io_uring::IoUring;
use lockstep_core::SlotId;

use crate::slots::Arena;

/// Which chunks of the arena the kernel knows.
#[derive(Debug, Default)]
pub(super) struct FixedBuffers {
    /// Empty once the kernel has refused one.
    is_registered: Vec<bool>,
}

impl FixedBuffers {
    /// An empty table for the whole arena.
    pub(super) fn new(uring: &IoUring, arena: &Arena) -> Self {
        let count = arena.chunk_count();
        match uring.submitter().register_buffers_sparse(count) {
            Ok(()) => Self { is_registered: vec![false; count as usize] },
            Err(error) => Self::refused(&error),
        }
    }

    /// Number of the fixed buffer that holds a slot, if there is one.
    pub(super) fn with_slot(&mut self, uring: &IoUring, arena: &Arena, slot: SlotId) -> Option<u16> {
        let chunk = arena.chunk_of(slot);
        let is_registered = self.is_registered.get_mut(usize::from(chunk))?;
        if !*is_registered {
            let (address, bytes) = arena.chunk(chunk);
            let iovec = libc::iovec { iov_base: address.cast(), iov_len: bytes };
            // SAFETY: the range lies in the arena's mapping; it is unmapped only after the ring was closed (see
            // `drop` of the ring).
            let result = unsafe { uring.submitter().register_buffers_update(chunk.into(), &[iovec], None) };
            if let Err(error) = result {
                *self = Self::refused(&error);
                return None;
            }
            *is_registered = true;
        }
        Some(chunk)
    }

    fn refused(error: &io::Error) -> Self {
        let advice = match error.raw_os_error() {
            Some(libc::ENOMEM | libc::EPERM) => {
                "; raise RLIMIT_MEMLOCK (LimitMEMLOCK=) above the sum of buffer-memory"
            }
            _ => "",
        };
        tracing::info!("buffers are not registered with the kernel ({error}): a little slower{advice}");
        Self::default()
    }
}
