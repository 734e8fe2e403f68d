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
    Client, Failure, LongRead, Part, Phase, READ_PART_BYTES, REQUEST_BYTES_MAX, Request, slot_bytes_needed,
    take_all,
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

/// What is sent for a request, or for a part of a read.
pub(super) enum Answer {
    /// This; the data of a read follow.
    Header(ReplyHeader),
    /// The data: they continue what was sent before.
    Data,
    /// The last data, and then this.
    DataAnd(ReplyHeader),
    /// Nothing: the client was promised data that cannot be had, and there is no way to tell it but to close.
    Broken,
    /// There is none, the export closed before: the client finds its connection closed. Those that come back ask the
    /// next Primary; an error would be the end of it for them.
    Unanswered,
}

impl Answer {
    /// Whether bytes of the volume are part of it; zeroes, where they could not be read.
    pub(super) fn has_data(&self, request: &Request, failure: Option<Failure>) -> bool {
        let is_read = request.request.command == Command::Read;
        is_read
            && match self {
                Self::Header(_) => failure.is_none(),
                Self::Data | Self::DataAnd(_) => true,
                Self::Broken | Self::Unanswered => false,
            }
    }
}

/// The answer to a request, or to a part of a read of which an earlier part `failed`.
pub(super) fn answer_to(request: &Request, failure: Option<Failure>, failed: Option<Failure>) -> Answer {
    let (asked, to) = (&request.request, &request.to);
    let has_chunks = to.framing() != Framing::Simple;
    // A chunk for each part, unless the client wants one for all.
    let (in_chunks, in_one) = (has_chunks && !asked.df, has_chunks && asked.df);
    Answer::Header(match (failure, request.part) {
        (Some(Failure { error: IoError::Shutdown, .. }), _) => return Answer::Unanswered,
        (None, Part::Whole) if asked.command == Command::Read => {
            to.data(asked.offset, wire_bytes(asked.length))
        }
        (None, Part::Whole) => to.result(asked.command, Ok(()), ""),
        (None, part) if in_chunks => {
            to.data_chunk(asked.offset, wire_bytes(asked.length), part == Part::Last)
        }
        // Its end is not known yet: what comes later may fail.
        (None, Part::First { whole_bytes }) if in_one => {
            to.data_chunk(asked.offset, wire_bytes(whole_bytes), false)
        }
        (_, Part::Middle) if in_one => return Answer::Data,
        (_, Part::Last) if in_one => {
            let end = failed.or(failure).map_or(to.none_chunk(), |failure| refusal(request, failure));
            return Answer::DataAnd(end);
        }
        (None, Part::First { whole_bytes }) => to.data(asked.offset, wire_bytes(whole_bytes)),
        (None, Part::Middle | Part::Last) => return Answer::Data,
        (Some(_), Part::Middle | Part::Last) if !in_chunks => return Answer::Broken,
        (Some(failure), _) => refusal(request, failure),
    })
}

fn refusal(request: &Request, failure: Failure) -> ReplyHeader {
    let (to, command, Failure { error, at }) = (&request.to, request.request.command, failure);
    // Only a chunk can say where.
    let is_told = command == Command::Read && to.framing() != Framing::Simple;
    match at.filter(|_| is_told) {
        Some(at) => to.error_offset_chunk(wire_error(error), words(error), at, true),
        None => to.result(command, Err(wire_error(error)), words(error)),
    }
}

/// Length of a read, which the largest block bounds.
fn wire_bytes(length: u64) -> u32 {
    debug_assert!(length <= u64::from(REQUEST_BYTES_MAX), "a read longer than is offered");
    length as u32
}
