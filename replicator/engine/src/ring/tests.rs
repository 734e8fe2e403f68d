//! The ring against the real kernel.
use super::*;
use crate::slots::{PoolId, PoolSize, Span};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;

fn ring() -> Ring<u32> {
    let arena = Arena::new(&[PoolSize { small: 4, large: 2 }]).unwrap();
    Ring::new(arena, 50).unwrap()
}

fn next(ring: &mut Ring<u32>) -> Completion<u32> {
    loop {
        if let Some(completion) = ring.reap() {
            return completion;
        }
        ring.wait(Some(Duration::from_secs(5)));
    }
}

#[test]
fn bytes_written_come_back() {
    let file = tempfile::tempfile().unwrap();
    let fd: Fd = Rc::new(OwnedFd::from(file));
    let mut ring = ring();
    let slot = ring.arena().take(PoolId(0), 0, 8192).unwrap();
    let span = Span::of_volume(slot, 0, 8192);
    ring.arena().bytes_mut(span).fill(7);
    ring.push(1, Op::Write { fd: Rc::clone(&fd), span, offset: 4096, dsync: true });
    let done = next(&mut ring);
    assert_eq!((done.token, done.result.unwrap()), (1, 8192));
    ring.arena().bytes_mut(span).fill(0);
    ring.push(2, Op::Read { fd: Rc::clone(&fd), span, offset: 4096 });
    ring.push(3, Op::Datasync { fd });
    let mut tokens = [next(&mut ring).token, next(&mut ring).token];
    tokens.sort_unstable();
    assert_eq!(tokens, [2, 3]);
    assert!(ring.arena().bytes(span).iter().all(|byte| *byte == 7));
    assert_eq!(ring.in_flight(), 0);
}

#[test]
fn a_disk_does_not_wait_for_the_end_of_a_turn() {
    let file = tempfile::tempfile().unwrap();
    let fd: Fd = Rc::new(OwnedFd::from(file));
    let mut ring = ring();
    let slot = ring.arena().take(PoolId(0), 0, 4096).unwrap();
    let span = Span::of_volume(slot, 0, 4096);
    let waiting = |ring: &mut Ring<u32>| ring.uring.as_mut().unwrap().submission().len();
    let write = |ring: &mut Ring<u32>, token: u32| {
        let offset = u64::from(token) * 4096;
        ring.push(token, Op::Write { fd: Rc::clone(&fd), span, offset, dsync: false });
        waiting(ring)
    };
    let waited: Vec<usize> = (0..12).map(|token| write(&mut ring, token)).collect();
    assert_eq!(waited, [1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4]);
    ring.submit();
    assert_eq!(write(&mut ring, 12), 1, "counted from the last start");
    (0..13).for_each(|_| assert_eq!(next(&mut ring).result.unwrap(), 4096));
    let waited: Vec<usize> = (13..21).map(|token| write(&mut ring, token)).collect();
    assert_eq!(waited, [1, 2, 3, 4, 5, 6, 7, 0], "a wait starts them as well");
    (0..8).for_each(|_| assert_eq!(next(&mut ring).result.unwrap(), 4096));
}

#[test]
fn a_message_is_gathered_and_scattered() {
    let (left, right) = UnixStream::pair().unwrap();
    let (left, right): (Fd, Fd) = (Rc::new(left.into()), Rc::new(right.into()));
    let mut ring = ring();
    let slot = ring.arena().take(PoolId(0), 0, 4096).unwrap();
    let span = Span::of_volume(slot, 0, 4);
    ring.arena().bytes_mut(span).copy_from_slice(b"slot");
    let mut message = Box::new(Outgoing::new());
    message.aim(&left);
    message.push_head(b"he");
    message.push_head(b"ad ");
    message.push_payload(span);
    message.push_head(b" tail");
    assert_eq!(message.bytes(), 14);
    ring.push(1, Op::Send(message));
    let mut incoming = Box::new(Incoming::new(right, 64));
    let target = ring.arena().take(PoolId(0), 0, 4096).unwrap();
    let target = Span { slot: target, start: 0, len: 6 };
    incoming.aim(Some(target), 0..64);
    ring.push(2, Op::Receive(incoming));
    for _ in 0..2 {
        let done = next(&mut ring);
        assert_eq!(done.result.unwrap(), 14);
        match done.op {
            Op::Send(mut message) => {
                message.clear(ring.arena());
                assert!(message.is_empty());
            }
            Op::Receive(incoming) => assert_eq!(&incoming.buffer[..8], b"lot tail"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(ring.arena().bytes(target), b"head s");
    assert_eq!(ring.arena().in_use(), 1, "the sent slot was let go");
}

#[test]
fn a_wait_ends_at_its_timeout_and_a_closed_ring_leaves_nothing_behind() {
    let (left, _right) = UnixStream::pair().unwrap();
    let mut ring = ring();
    let mut incoming = Box::new(Incoming::new(Rc::new(left.into()), 64));
    incoming.aim(None, 0..64);
    ring.push(1, Op::Receive(incoming));
    let began = Instant::now();
    ring.wait(Some(Duration::from_millis(20)));
    assert!(ring.reap().is_none());
    assert!(began.elapsed() >= Duration::from_millis(20));
    ring.drain(9);
    assert_eq!(ring.in_flight(), 0);
}

#[test]
fn a_receive_that_has_not_started_is_cancelled_too() {
    let (left, _right) = UnixStream::pair().unwrap();
    let mut ring = ring();
    ring.push(1, receive(Rc::new(left.into())));
    ring.drain(9);
    assert_eq!(ring.in_flight(), 0);
}

#[test]
fn a_receive_starts_behind_what_others_wait_for() {
    let (left, mut right) = UnixStream::pair().unwrap();
    right.write_all(b"there already").unwrap();
    let mut ring = ring();
    ring.push(1, receive(Rc::new(left.into())));
    ring.submit();
    assert!(ring.reap().is_none(), "it waits for the next wait");
    let done = next(&mut ring);
    assert_eq!((done.token, done.result.unwrap()), (1, 13));
}

#[test]
fn a_small_send_alone_does_not_end_the_spinning() {
    let (left, mut right) = UnixStream::pair().unwrap();
    let left: Fd = Rc::new(left.into());
    let arena = Arena::new(&[PoolSize { small: 4, large: 2 }]).unwrap();
    let mut ring = Ring::new(arena, 20_000_000).unwrap();
    let mut message = Box::new(Outgoing::new());
    message.aim(&Rc::clone(&left));
    message.push_head(b"ask");
    ring.push(1, receive(left));
    ring.push(2, Op::Send(message));
    let peer = std::thread::spawn(move || {
        right.read_exact(&mut [0; 3]).unwrap();
        right.write_all(b"answer").unwrap();
        right
    });
    ring.wait(None);
    let mut tokens = [ring.reap().unwrap().token, ring.reap().expect("the answer ends the wait").token];
    tokens.sort_unstable();
    assert_eq!(tokens, [1, 2]);
    peer.join().unwrap();
}

#[test]
fn a_small_send_that_somebody_waits_for_ends_the_spinning() {
    let (left, mut right) = UnixStream::pair().unwrap();
    let left: Fd = Rc::new(left.into());
    let arena = Arena::new(&[PoolSize { small: 4, large: 2 }]).unwrap();
    let mut ring = Ring::new(arena, 60_000_000).unwrap();
    let mut message = Box::new(Outgoing::new());
    message.aim(&Rc::clone(&left));
    message.push_head(b"ask");
    ring.push(1, receive(left));
    ring.push(2, Op::Send(message));
    ring.await_sends();
    let (seen, told) = std::sync::mpsc::channel();
    let peer = std::thread::spawn(move || {
        // At the limit it answers all the same, so that a wait which goes on ends with two completions.
        let _ = told.recv_timeout(Duration::from_secs(10));
        right.write_all(b"answer").unwrap();
        right
    });
    ring.wait(None);
    assert_eq!(ring.reap().unwrap().token, 2);
    assert!(ring.reap().is_none(), "it waited for the answer");
    seen.send(()).unwrap();
    assert_eq!(next(&mut ring).token, 1);
    peer.join().unwrap();
}

#[test]
fn what_only_gives_memory_back_is_reaped_when_nothing_else_comes() {
    let (left, _right) = UnixStream::pair().unwrap();
    let mut ring = ring();
    let mut message = Box::new(Outgoing::new());
    message.aim(&Rc::new(left.into()));
    message.push_head(b"beat");
    ring.push(1, Op::Send(message));
    ring.wait(None);
    assert_eq!(ring.reap().unwrap().token, 1);
}

fn receive(fd: Fd) -> Op {
    let mut incoming = Box::new(Incoming::new(fd, 64));
    incoming.aim(None, 0..64);
    Op::Receive(incoming)
}
