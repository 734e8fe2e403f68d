//! Frames over a socket pair.
use super::*;
use crate::ring::Op;
use crate::slots::PoolSize;
use crate::stock::Stock;
use lockstep_core::Position;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Duration;

const POOL: PoolId = PoolId(0);

struct Pair {
    io: Io,
    near: Link,
    far: Link,
}

fn pair() -> Pair {
    let (near, far) = UnixStream::pair().unwrap();
    let link = |socket: UnixStream, id| {
        Link::new(Rc::new(socket.into()), Phase::Up(LinkId(id)), "test".into(), Instant(0), &Stock::new())
    };
    let arena = Arena::new(&[PoolSize { small: 4, large: 3 }]).unwrap();
    Pair { io: Io::new(arena, 0).unwrap(), near: link(near, 1), far: link(far, 2) }
}

impl Pair {
    /// Moves what `near` has queued until `far` has a frame.
    fn transfer(&mut self) -> Parsed {
        loop {
            match self.far.next_frame(self.io.arena(), POOL) {
                Parsed::NeedMore => {}
                other => return other,
            }
            self.near.outbox.kick(&mut self.io, Token::LinkSent(1));
            self.far.receive(&mut self.io, Token::LinkReceived(2));
            self.io.wait(Some(Duration::from_secs(5)));
            while let Some(completion) = self.io.reap() {
                match completion.op {
                    Op::Send(message) => {
                        self.near.outbox.sent(self.io.arena(), message, completion.result).unwrap();
                    }
                    Op::Receive(incoming) => {
                        let in_span = self.far.inbox.received(incoming, completion.result.unwrap());
                        self.far.payload_received(in_span);
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}

fn write(offset: u64, len: u32) -> Frame {
    Frame::Write { pos: Position(1), offset, len, fua: false }
}

#[test]
fn a_payload_arrives_in_a_slot_where_it_belongs() {
    let mut p = pair();
    for (offset, len) in [(4095, 3), (0, 131_072), (300_000, 20_000)] {
        let slot = p.io.arena().take(POOL, offset, len).unwrap();
        let payload = Span::of_volume(slot, offset, len);
        let bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
        p.io.arena().bytes_mut(payload).copy_from_slice(&bytes);
        p.near.queue(p.io.arena(), &write(offset, len), &[], Some(payload));
        let Parsed::Data { frame, slot } = p.transfer() else { panic!() };
        assert_eq!(frame, write(offset, len));
        assert_eq!(p.io.arena().bytes(Span::of_volume(slot, offset, len)), bytes);
        p.io.arena().release(slot);
    }
    assert_eq!(p.io.arena().in_use(), 0);
}

#[test]
fn control_bodies_are_handed_over_and_acknowledgements_overtake() {
    let mut p = pair();
    let bits = Frame::Bits { first_block: 8 };
    p.near.queue(p.io.arena(), &bits, &[1, 2, 3], None);
    p.near.queue(p.io.arena(), &Frame::Written { pos: Position(9) }, &[], None);
    assert!(matches!(p.transfer(), Parsed::Control { frame: Frame::Written { .. }, body_bytes: 0 }));
    let Parsed::Control { frame, body_bytes } = p.transfer() else { panic!() };
    assert_eq!((frame, &p.far.inbox.data()[..body_bytes]), (bits, &[1, 2, 3][..]));
}

#[test]
fn damage_is_found_wherever_it_is() {
    let frame = write(0, 512);
    let payload = [7; 512];
    let head = frame.encode(512, crc32c(&payload), crc32c);
    let good: Vec<u8> = head.into_iter().chain(payload).collect();
    for at in [0, 5, 20, 35, 39, 40, 551] {
        let mut p = pair();
        let mut bad = good.clone();
        bad[at] ^= 1;
        p.near.outbox.message(false).unwrap().push_head(&bad);
        assert!(matches!(p.transfer(), Parsed::Malformed(_)), "byte {at}");
        assert_eq!(p.io.arena().in_use(), 0);
    }
}

#[test]
fn without_a_slot_nothing_is_lost() {
    let mut p = pair();
    let mut held = Vec::new();
    while let Some(slot) = p.io.arena().take(POOL, 0, 512) {
        held.push(slot);
    }
    let payload = [7; 512];
    let head = write(0, 512).encode(512, crc32c(&payload), crc32c);
    p.near.outbox.message(false).unwrap().push_head(&head);
    p.near.outbox.message(false).unwrap().push_head(&payload);
    assert!(matches!(p.transfer(), Parsed::Starved));
    assert!(p.far.starved);
    p.io.arena().release(held[0]);
    assert!(matches!(p.transfer(), Parsed::Data { .. }));
    assert!(!p.far.starved);
}

#[test]
fn who_does_not_take_answers_is_not_read() {
    let mut p = pair();
    let answer = |n| Frame::Durable { upto: Position(n) };
    let mut queued = 0;
    while !matches!(p.near.next_frame(p.io.arena(), POOL), Parsed::Backlogged) {
        queued += 1;
        p.near.queue(p.io.arena(), &answer(queued), &[], None);
    }
    assert!(p.near.starved, "it is looked at again when something was sent");
    assert_eq!(queued as usize, BACKLOG_BYTES_MAX / FRAME_BYTES + 1);
    for n in 1..=queued {
        let Parsed::Control { frame, .. } = p.transfer() else { panic!() };
        assert_eq!(frame, answer(n));
    }
    assert!(matches!(p.near.next_frame(p.io.arena(), POOL), Parsed::NeedMore));
    assert!(!p.near.starved);
}
