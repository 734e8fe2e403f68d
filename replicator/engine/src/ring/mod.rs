//! The ring: submits operations and hands back each with its result, exactly once.
//!
//! A table of operations owns every `user_data`; an operation and the memory it names stay there until its
//! completion was reaped. Closing the ring cancels and waits for what is in flight. What is then still in
//! flight, or when a ring is dropped without that, is leaked rather than freed under the kernel.
//!
//! One `submit_and_wait` per turn, and an entry into the kernel for each eighth read or write of a disk. Before
//! sleeping the thread spins for a while, since a wake-up costs more than most operations; the time adapts, so that an
//! idle daemon does not burn a processor.
//!
//! What somebody waits for goes first: receives start behind the sends of the turn, or with the next wait, and
//! the completion of a small send, which only gives its memory back, does not end the spinning unless somebody
//! was said to wait for that.
#![allow(unsafe_code)]

mod fixed;
mod message;
mod op;
mod socket;
mod spin;

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use io_uring::{IoUring, cqueue, squeue, types};

pub(crate) use message::{Incoming, MESSAGE_MEMORY_BYTES, Outgoing};
pub(crate) use op::{Fd, Op};
pub(crate) use socket::SocketAddress;

use crate::error::StartError;
use crate::slab::Slab;
use crate::slots::Arena;
use fixed::FixedBuffers;
use spin::Spin;

/// A completed operation.
#[derive(Debug)]
pub(crate) struct Completion<T> {
    /// What the caller gave with it.
    pub(crate) token: T,
    /// Bytes, as the operation defines.
    pub(crate) result: io::Result<u32>,
    /// The operation, with its buffers.
    pub(crate) op: Op,
}

/// The ring and the arena whose memory it lends to the kernel.
pub(crate) struct Ring<T> {
    /// `None` only inside `drop`.
    uring: Option<IoUring>,
    in_flight: Slab<(T, Op)>,
    /// Receives that start behind the next send, or with the next wait.
    receives: Vec<squeue::Entry>,
    /// Completions that were seen and not reaped.
    completed: VecDeque<cqueue::Entry>,
    /// Reads and writes of disks that were queued and not started.
    disk_waiting: u32,
    /// Small sends not yet reaped.
    small_sends: u32,
    /// Somebody waits for the end of one of them.
    is_awaited: bool,
    arena: Option<Arena>,
    fixed: FixedBuffers,
    spin: Spin,
}

impl<T: Copy> Ring<T> {
    /// Sets the ring up for the calling thread, which must be the only one that ever uses it.
    pub(crate) fn new(arena: Arena, spin_us: u32) -> Result<Self, StartError> {
        let uring = set_up()?;
        let fixed = FixedBuffers::new(&uring, &arena);
        Ok(Self {
            uring: Some(uring),
            in_flight: Slab::with_capacity(4096),
            receives: Vec::with_capacity(64),
            completed: VecDeque::with_capacity(256),
            disk_waiting: 0,
            small_sends: 0,
            is_awaited: false,
            arena: Some(arena),
            fixed,
            spin: Spin::new(Duration::from_micros(u64::from(spin_us))),
        })
    }

    /// The slots.
    pub(crate) fn arena(&mut self) -> &mut Arena {
        match &mut self.arena {
            Some(arena) => arena,
            None => unreachable!("the arena goes in drop only"),
        }
    }

    /// Operations not yet reaped.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Queues an operation; it starts at the next `submit` or `wait`, a receive behind the others. A disk does not wait
    /// for the end of a long turn: its reads and writes start with every eighth.
    pub(crate) fn push(&mut self, token: T, op: Op) {
        self.push_with(token, op, squeue::Flags::empty());
    }

    /// The same for one whose submission may block: a thread of the kernel does that.
    pub(crate) fn push_blocking(&mut self, token: T, op: Op) {
        self.push_with(token, op, squeue::Flags::ASYNC);
    }

    fn push_with(&mut self, token: T, op: Op, flags: squeue::Flags) {
        let index = self.in_flight.insert((token, op));
        let (Some(uring), Some(arena), Some((_, op))) =
            (&mut self.uring, &mut self.arena, self.in_flight.get_mut(index))
        else {
            unreachable!("ring and arena go in drop only, and the operation was just inserted")
        };
        let is_lazy = op.is_lazy();
        self.small_sends += u32::from(is_lazy);
        let user_data = u64::from(index) | if is_lazy { LAZY } else { 0 };
        let disk_slot = op.disk_slot();
        let fixed = disk_slot.and_then(|slot| self.fixed.with_slot(uring, arena, slot));
        let entry = op.prepare(arena, fixed).user_data(user_data).flags(flags);
        match op {
            Op::Receive(_) => self.receives.push(entry),
            _ => enqueue(uring, &entry),
        }
        self.disk_waiting += u32::from(disk_slot.is_some());
        if self.disk_waiting == DISK_WAITING_MAX {
            self.disk_waiting = 0;
            submit(uring);
        }
    }

    /// Starts what others wait for, if there is any, and the receives behind it; does not wait.
    pub(crate) fn submit(&mut self) {
        self.disk_waiting = 0;
        if self.uring.as_mut().is_some_and(|uring| !uring.submission().is_empty()) {
            self.queue_receives();
            self.uring.as_mut().into_iter().for_each(submit);
        }
    }

    /// Somebody needs what a send in flight holds, or has more to send behind it: until none is left, each that ends
    /// is worth a turn.
    pub(crate) fn await_sends(&mut self) {
        self.is_awaited = self.small_sends > 0;
    }

    fn queue_receives(&mut self) {
        let Some(uring) = &mut self.uring else { return };
        self.receives.drain(..).for_each(|entry| enqueue(uring, &entry));
    }

    /// Starts everything queued and waits until something completes or `timeout` has passed.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>) {
        self.disk_waiting = 0;
        self.queue_receives();
        let Some(uring) = &mut self.uring else { return };
        submit(uring);
        let began = Instant::now();
        let budget = self.spin.budget(began).min(timeout.unwrap_or(Duration::MAX));
        let (mut looked_at, mut now) = (0, began);
        loop {
            self.completed.extend(uring.completion());
            if self.completed.range(looked_at..).any(|entry| self.is_awaited || !is_small_send(entry)) {
                self.spin.found();
                return;
            }
            looked_at = self.completed.len();
            if now - began >= budget {
                // Sleeping runs deferred work as well.
                break;
            }
            if uring.submission().taskrun() {
                // Runs deferred work, since `io_uring` asks for completions when this flag is set.
                submit(uring);
                now = Instant::now();
            } else {
                let offered = now;
                rustix::thread::sched_yield();
                now = Instant::now();
                self.spin.yielded(now - offered, now);
            }
        }
        if !self.completed.is_empty() {
            // Nothing else to do: now their memory.
            return;
        }
        let left = timeout.map(|timeout| timeout.saturating_sub(began.elapsed()));
        if left != Some(Duration::ZERO) {
            sleep(uring, left);
        }
        self.spin.slept(began.elapsed());
    }

    /// The next completion.
    pub(crate) fn reap(&mut self) -> Option<Completion<T>> {
        let (Some(uring), Some(arena)) = (&mut self.uring, &mut self.arena) else { return None };
        let entry = self.completed.pop_front().or_else(|| uring.completion().next())?;
        if is_small_send(&entry) {
            self.small_sends -= 1;
            self.is_awaited &= self.small_sends > 0;
        }
        let index = u32::try_from(entry.user_data() & !LAZY).unwrap_or(u32::MAX);
        let Some((token, mut op)) = self.in_flight.remove(index) else {
            unreachable!("a completion for operation {index}, which is not in flight")
        };
        op.finish(arena, entry.result());
        let result = u32::try_from(entry.result()).map_err(|_| io::Error::from_raw_os_error(-entry.result()));
        Some(Completion { token, result, op })
    }
}

impl<T: Copy> Ring<T> {
    /// Cancels and reaps until nothing is in flight, or for five seconds.
    fn drain(&mut self, token: T) {
        let began = Instant::now();
        // Before the cancellation, which knows only what has started.
        self.queue_receives();
        self.push(token, Op::CancelAll);
        while self.in_flight() > 0 && began.elapsed() < Duration::from_secs(5) {
            self.wait(Some(Duration::from_millis(100)));
            while self.reap().is_some() {}
        }
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        // Closing the ring does not wait for requests that already run; their memory must stay.
        drop(self.uring.take());
        if self.in_flight.len() > 0 {
            std::mem::forget(std::mem::replace(&mut self.in_flight, Slab::with_capacity(0)));
            std::mem::forget(self.arena.take());
        }
    }
}

impl<T: Copy> Ring<T> {
    /// Ends the ring: everything in flight is cancelled and waited for. The token is used for the
    /// cancellation.
    pub(crate) fn close(mut self, token: T) {
        self.drain(token);
    }
}

fn set_up() -> Result<IoUring, StartError> {
    let error = match SIZES.iter().map(|sizes| build(*sizes, true)).find(|result| !is_out_of_memory(result)) {
        Some(Ok(uring)) => return Ok(uring),
        Some(Err(error)) => error,
        None => return Err(StartError::RingMemory(io::Error::from_raw_os_error(libc::ENOMEM))),
    };
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES | libc::ENOSYS) => Err(StartError::RingNotPermitted(error)),
        Some(libc::EINVAL) => {
            let uring = build(SIZES[0], false).map_err(StartError::RingTooOld)?;
            tracing::warn!(
                "this kernel refuses deferred task running ({error}): slower; use Linux 6.1 or newer"
            );
            Ok(uring)
        }
        _ => Err(StartError::System { what: "io_uring_setup", error }),
    }
}

/// Entries for submissions and completions. The small one fits the smallest usual RLIMIT_MEMLOCK; what does
/// not fit it is kept by the kernel until there is room.
const SIZES: [(u32, u32); 2] = [(1024, 8192), (128, 512)];

fn build((submissions, completions): (u32, u32), is_deferred: bool) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_cqsize(completions).setup_submit_all().setup_coop_taskrun().setup_taskrun_flag();
    if is_deferred {
        builder.setup_single_issuer().setup_defer_taskrun();
    }
    builder.build(submissions)
}

fn is_out_of_memory(result: &io::Result<IoUring>) -> bool {
    matches!(result, Err(error) if error.raw_os_error() == Some(libc::ENOMEM))
}

/// A disk that gets a whole turn's operations at once has been idle while they were made, and tends to end them all at
/// once, so that clients, nodes and disks work in turn instead of side by side. Starting each alone costs more entries
/// into the kernel and more notices to the device than it gains.
const DISK_WAITING_MAX: u32 = 8;

/// In the `user_data` of operations whose completion does not end the spinning.
const LAZY: u64 = 1 << 32;

fn is_small_send(entry: &cqueue::Entry) -> bool {
    entry.user_data() & LAZY != 0
}

/// Puts an entry into the submission queue.
fn enqueue(uring: &mut IoUring, entry: &squeue::Entry) {
    loop {
        // SAFETY: the entry points to memory owned by its operation or by the arena. The operation stays in
        // `in_flight` until its completion was reaped: moving it there moves boxes, not what they hold.
        // Arena spans are marked as the kernel's. Both outlive the ring (see `drop`).
        if unsafe { uring.submission().push(entry) }.is_ok() {
            return;
        }
        submit(uring);
    }
}

/// Submits what is queued and runs deferred work; does not enter the kernel when there is neither. A full
/// completion queue or an interruption is no error: the entries stay queued.
fn submit(uring: &mut IoUring) {
    let queue = uring.submission();
    let is_idle = queue.is_empty() && !queue.taskrun() && !queue.cq_overflow();
    drop(queue);
    if is_idle {
        return;
    }
    match uring.submit() {
        Ok(_) => {}
        Err(error) if is_passing(&error) => rustix::thread::sched_yield(),
        Err(error) => panic!("io_uring_enter: {error}"),
    }
}

fn sleep(uring: &mut IoUring, timeout: Option<Duration>) {
    let result = match timeout {
        None => uring.submit_and_wait(1),
        Some(timeout) => {
            let timespec = types::Timespec::from(timeout);
            uring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&timespec))
        }
    };
    match result {
        Ok(_) => {}
        Err(error) if is_passing(&error) || error.raw_os_error() == Some(libc::ETIME) => {}
        Err(error) => panic!("io_uring_enter: {error}"),
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

#[cfg(test)]
mod tests;
