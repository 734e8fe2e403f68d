//! Clients' reads: how much of the memory one client may hold, and answers in parts.
//!
//! What was read stays in its slots until the client has taken it from its socket; one that does not would keep
//! them. Therefore each client may always have one slot, and so many are kept free for those who have none; of
//! what is free beyond that, a client holds at most as much as it leaves. A read that does not fit its client's
//! share is answered part by part, each as large as fits then. It is the only request of its client that is under
//! way, so that nothing comes between its parts.

use lockstep_core::{Event, IoError, ReqId, RequestKind, SlotId};
use lockstep_nbd::{Command, Framing, ReplyHeader, ReplyTo};

use super::Shard;
use super::requests::{Next, counted_bytes, wire_error, words};
use crate::nbd::{
    Client, LongRead, Part, Phase, READ_PART_BYTES, REQUEST_BYTES_MAX, Request, slot_bytes_needed, take_all,
};
use crate::slots::LARGE_BYTES;

impl Shard {
    /// What a client's next read may take, in bytes of slots.
    fn read_share_bytes(&mut self, index: u32) -> u64 {
        let Self { io: Some(io), clients, resources, config, .. } = self else { return 0 };
        let Some(client) = clients.get(index) else { return 0 };
        let Some(resource) = client.served_resource() else { return 0 };
        let entry = &resources[usize::from(resource)];
        let holds = |other: &Client| other.served_resource() == Some(resource) && other.read_slot_bytes > 0;
        let holders = clients.iter().filter(|(at, other)| *at != index && holds(other)).count();
        let reserve = config.limits.clients_max.min(entry.read_slots_large / 2);
        let claimed = reserve.saturating_sub(holders + 1) * LARGE_BYTES;
        let open_bytes = io.arena().free_bytes_in(entry.pools.read).saturating_sub(claimed as u64);
        let held_bytes = client.read_slot_bytes;
        let least_bytes = if held_bytes == 0 { LARGE_BYTES as u64 } else { 0 };
        (open_bytes / 2).saturating_sub(held_bytes / 2).max(least_bytes)
    }

    /// A read was received: all of it is begun if it fits; if not, its parts are, one after the other.
    pub(super) fn begin_read(&mut self, index: u32, consumed: usize, request: lockstep_nbd::Request) -> Next {
        let share_bytes = self.read_share_bytes(index);
        let fits = request.length <= READ_PART_BYTES
            && slot_bytes_needed(request.offset, request.length) <= share_bytes;
        let Some(client) = self.clients.get_mut(index) else { return Next::Wait };
        if !fits && client.requests > 0 {
            client.starved = true;
            return Next::Wait;
        }
        let slots = if fits { self.take_for_read(index, &request) } else { Some(Vec::new()) };
        let (Some(slots), Some(client)) = (slots, self.clients.get_mut(index)) else { return Next::Wait };
        client.inbox.consume(consumed);
        client.unsent += 1;
        client.unsent_bytes += counted_bytes(&request);
        match &mut client.phase {
            Phase::Serving(serving) if !fits => serving.long_read = Some(LongRead::new(request)),
            _ => self.ask(index, request, Part::Whole, slots),
        }
        Next::Again
    }

    /// Goes on with a read in parts.
    pub(super) fn read_on(&mut self, index: u32) -> Next {
        let share_bytes = self.read_share_bytes(index);
        let Some(client) = self.clients.get_mut(index) else { return Next::Wait };
        let Phase::Serving(serving) = &mut client.phase else { return Next::Wait };
        let (resource, is_asked) = (usize::from(serving.resource), client.requests > 0);
        let Some(read) = &mut serving.long_read else { return Next::Again };
        client.starved = true;
        let Some((request, part)) = read.next_part(share_bytes).filter(|_| !is_asked) else {
            // It waits for its own answers, and for nobody's slots.
            self.resources[resource].read_turns.leave(index);
            return Next::Wait;
        };
        let Some(slots) = self.take_for_read(index, &request) else { return Next::Wait };
        if let Some(client) = self.clients.get_mut(index)
            && let Phase::Serving(serving) = &mut client.phase
        {
            match (&mut serving.long_read, part) {
                // It is asked for as if it had fitted from the start.
                (read, Part::Whole) => *read = None,
                (Some(read), _) => read.advance(request.length),
                (None, _) => {}
            }
        }
        self.ask(index, request, part, slots);
        Next::Again
    }

    /// Takes the slots of a read, or of a part of one, if it is the client's turn.
    fn take_for_read(&mut self, index: u32, request: &lockstep_nbd::Request) -> Option<Vec<SlotId>> {
        let requests_max = self.config.limits.requests_max;
        let Self { io: Some(io), clients, resources, .. } = self else { return None };
        let client = clients.get_mut(index)?;
        let entry = &mut resources[usize::from(client.served_resource()?)];
        client.starved = true;
        if entry.requests.len() >= requests_max || !entry.request_turns.may_take(index) {
            entry.request_turns.wait(index);
            return None;
        }
        entry.request_turns.took(index);
        let mut slots = entry.spare_lists.pop().unwrap_or_default();
        let (offset, len, pool) = (request.offset, request.length, entry.pools.read);
        if !entry.read_turns.may_take(index) || !take_all(io.arena(), pool, offset, len, &mut slots) {
            entry.read_turns.wait(index);
            entry.spare_lists.push(slots);
            self.want_sweep();
            return None;
        }
        entry.read_turns.took(index);
        client.starved = false;
        client.read_slot_bytes += slots.iter().map(|slot| io.arena().slot_bytes(*slot)).sum::<u64>();
        Some(slots)
    }

    fn ask(&mut self, index: u32, request: lockstep_nbd::Request, part: Part, slots: Vec<SlotId>) {
        let Some(client) = self.clients.get_mut(index) else { return };
        let Phase::Serving(serving) = &client.phase else { return };
        client.requests += 1;
        let resource = usize::from(serving.resource);
        let whole = serving.long_read.as_ref().map_or(&request, LongRead::whole);
        let to = ReplyTo::new(serving.framing, whole);
        let entry = &mut self.resources[resource];
        let id = entry.requests.insert(Request { client: index, request, to, part, slots });
        let (offset, len) = (request.offset, request.length);
        self.feed(
            resource,
            Event::Request { req: ReqId(id), kind: RequestKind::Read, offset, len, fua: false },
        );
    }
}

/// How the answer to a request begins.
pub(super) enum Answer {
    /// With this; the data of a read follow.
    Header(ReplyHeader),
    /// With the data: they continue what was sent before.
    Data,
    /// The client was promised data that cannot be had, and there is no way to tell it but this: to close.
    Broken,
    /// There is none, the export closed before: the client finds its connection closed. Those that come back ask the
    /// next Primary; an error would be the end of it for them.
    Unanswered,
}

/// The beginning of the answer to a request with this result; where it failed, if that is known.
pub(super) fn answer_to(request: &Request, result: Result<(), IoError>, at: Option<u64>) -> Answer {
    let (asked, to) = (&request.request, &request.to);
    // A chunk for each part, unless the client wants one for all.
    let in_chunks = to.framing() != Framing::Simple && !asked.df;
    Answer::Header(match (result, request.part) {
        (Err(IoError::Shutdown), _) => return Answer::Unanswered,
        (Ok(()), Part::Whole) if asked.command == Command::Read => {
            to.data(asked.offset, wire_bytes(asked.length))
        }
        (Ok(()), Part::Whole) => to.result(asked.command, Ok(()), ""),
        (Ok(()), part) if in_chunks => {
            to.data_chunk(asked.offset, wire_bytes(asked.length), part == Part::Last)
        }
        (Ok(()), Part::First { whole_bytes }) => to.data(asked.offset, wire_bytes(whole_bytes)),
        (Ok(()), Part::Middle | Part::Last) => return Answer::Data,
        (Err(_), Part::Middle | Part::Last) if !in_chunks => return Answer::Broken,
        (Err(error), _) => {
            // Only a chunk can say where.
            let is_told = asked.command == Command::Read && to.framing() != Framing::Simple;
            match at.filter(|_| is_told) {
                Some(at) => to.error_offset_chunk(wire_error(error), words(error), at, true),
                None => to.result(asked.command, Err(wire_error(error)), words(error)),
            }
        }
    })
}

/// Length of a read, which the largest block bounds.
fn wire_bytes(length: u64) -> u32 {
    debug_assert!(length <= u64::from(REQUEST_BYTES_MAX), "a read longer than is offered");
    length as u32
}
