//! The transmission phase: requests in, events to the core, answers out.
//!
//! A request is admitted when its bounds and slots allow; until then its header stays unread. A write's
//! payload goes to the core piece by piece, as it arrives.

use lockstep_core::{Event, IoError, Node, ReqId, RequestKind, SlotId};
use lockstep_nbd::{Command, NbdError, Parsed, ReplyTo};

use super::Shard;
use super::reads::{Answer, answer_to};
use super::resource::Resource;
use crate::disk::Disk;
use crate::nbd::{Client, Failure, Part, Phase, Piece, Request, Writing, piece_bytes};
use crate::slots::Span;
use crate::token::{Io, Token};

/// What to do after a look at the received bytes.
pub(super) enum Next {
    /// Look again.
    Again,
    /// Receive.
    Receive,
    /// Wait until something is freed, or the connection is going.
    Wait,
    /// The client broke the protocol.
    HangUp,
}

impl Shard {
    /// Takes requests from what a client has sent, until there are no more or it must wait.
    pub(super) fn serve(&mut self, index: u32) {
        loop {
            match self.serve_next(index) {
                Next::Again => {}
                Next::Wait => {
                    if self.clients.get(index).is_some_and(|client| client.starved) {
                        self.io().await_sends();
                    }
                    return;
                }
                Next::HangUp => return self.hang_up(index),
                Next::Receive => {
                    let Self { io: Some(io), clients, .. } = self else { return };
                    let Some(client) = clients.get_mut(index) else { return };
                    if !client.inbox.is_receiving() {
                        let rest = client.payload_rest();
                        client.inbox.receive(io, Token::ClientReceived(index), rest);
                        client.ops += 1;
                    }
                    return;
                }
            }
        }
    }

    fn serve_next(&mut self, index: u32) -> Next {
        let Some(client) = self.clients.get_mut(index) else { return Next::Wait };
        if client.is_ending || client.inbox.is_receiving() {
            return Next::Wait;
        }
        client.starved = false;
        let Phase::Serving(serving) = &mut client.phase else { return Next::Wait };
        if serving.skip > 0 {
            let skipped = serving.skip.min(client.inbox.data().len() as u64);
            client.inbox.consume(skipped as usize);
            serving.skip -= skipped;
            return if serving.skip == 0 { Next::Again } else { Next::Receive };
        }
        if let Some(reply) = serving.refusal.take() {
            client.unsent += 1;
            self.answer(index, reply.as_bytes());
            return Next::Again;
        }
        if serving.write.is_some() {
            return self.take_payload(index);
        }
        if serving.long_read.is_some() {
            return self.read_on(index);
        }
        if client.unsent >= self.config.limits.client_requests_max {
            // Whatever comes next has an answer, and this client does not read its answers.
            client.starved = true;
            return Next::Wait;
        }
        match serving.parser.next(client.inbox.data()) {
            Parsed::NeedMore => Next::Receive,
            Parsed::Request { consumed, request } => self.admit(index, consumed, request),
            Parsed::Invalid { consumed, payload_to_skip, reply, .. } => {
                (serving.skip, serving.refusal) = (payload_to_skip, Some(reply));
                client.inbox.consume(consumed);
                Next::Again
            }
            Parsed::Fatal(error) => {
                tracing::warn!("client {} breaks the protocol: {error}", client.address);
                Next::HangUp
            }
        }
    }

    fn admit(&mut self, index: u32, consumed: usize, request: lockstep_nbd::Request) -> Next {
        let kind = match request.command {
            Command::Read => RequestKind::Read,
            Command::Write => RequestKind::Write,
            Command::Trim => RequestKind::Trim,
            Command::WriteZeroes if request.fast && !self.zeroes_fast(index, &request) => {
                return self.refuse(index, consumed, &request, NbdError::NotSupported);
            }
            Command::WriteZeroes => RequestKind::Zero { no_hole: request.no_hole },
            Command::Flush => RequestKind::Flush,
            Command::BlockStatus => return self.admit_status(index, consumed, &request),
            Command::Disconnect | Command::Cache => {
                return self.admit_without_core(index, consumed, &request);
            }
        };
        let limits = &self.config.limits;
        let Self { clients, resources, .. } = self;
        let Some(client) = clients.get_mut(index) else { return Next::Wait };
        let Phase::Serving(serving) = &mut client.phase else { return Next::Wait };
        let bytes = counted_bytes(&request);
        if client.unsent > 0 && client.unsent_bytes + bytes > limits.client_bytes_max {
            client.starved = true;
            return Next::Wait;
        }
        if kind == RequestKind::Read {
            return self.begin_read(index, consumed, request);
        }
        let resource = usize::from(serving.resource);
        let entry = &mut resources[resource];
        if entry.requests.len() >= limits.requests_max || !entry.request_turns.may_take(index) {
            entry.request_turns.wait(index);
            client.starved = true;
            return Next::Wait;
        }
        entry.request_turns.took(index);
        client.inbox.consume(consumed);
        client.requests += 1;
        client.unsent += 1;
        client.unsent_bytes += bytes;
        let (part, slots) = (Part::Whole, Vec::new());
        let to = ReplyTo::new(serving.framing, &request);
        let id = entry.requests.insert(Request { client: index, request, to, part, slots });
        serving.write = Writing::of(id, &request);
        let (offset, len) = (request.offset, request.length);
        let fua = request.fua && request.command.modifies();
        self.feed(resource, Event::Request { req: ReqId(id), kind, offset, len, fua });
        Next::Again
    }

    fn admit_without_core(&mut self, index: u32, consumed: usize, request: &lockstep_nbd::Request) -> Next {
        let Some(client) = self.clients.get_mut(index) else { return Next::Wait };
        client.inbox.consume(consumed);
        if request.command == Command::Disconnect {
            self.drain(index);
            return Next::Wait;
        }
        // Nothing is cached here that could be filled.
        client.unsent += 1;
        let Phase::Serving(serving) = &client.phase else { return Next::Wait };
        let done = ReplyTo::new(serving.framing, request).result(request.command, Ok(()), "");
        self.answer(index, done.as_bytes());
        Next::Again
    }

    /// Whether zeroes cost less than a write of them: a hole on this disk alone. What the peer's disk would take is
    /// not known here.
    fn zeroes_fast(&self, index: u32, request: &lockstep_nbd::Request) -> bool {
        let resource = self.clients.get(index).and_then(Client::served_resource);
        let entry = resource.map(|resource| &self.resources[usize::from(resource)]);
        entry.is_some_and(|entry| {
            let is_alone = entry.node.as_ref().is_some_and(Node::writes_alone);
            is_alone && !request.no_hole && entry.storage.disk.as_ref().is_some_and(Disk::zeroes_fast)
        })
    }

    /// Answers a request with an error, nothing done.
    fn refuse(
        &mut self,
        index: u32,
        consumed: usize,
        request: &lockstep_nbd::Request,
        error: NbdError,
    ) -> Next {
        let Some(client) = self.clients.get_mut(index) else { return Next::Wait };
        let Phase::Serving(serving) = &client.phase else { return Next::Wait };
        client.inbox.consume(consumed);
        client.unsent += 1;
        let answer =
            ReplyTo::new(serving.framing, request).result(request.command, Err(error), "not as fast");
        self.answer(index, answer.as_bytes());
        Next::Again
    }

    /// Goes on with the payload of a write.
    fn take_payload(&mut self, index: u32) -> Next {
        let now = self.clock.now();
        let Self { io: Some(io), clients, resources, .. } = self else { return Next::Wait };
        let Some(client) = clients.get_mut(index) else { return Next::Wait };
        let Phase::Serving(serving) = &mut client.phase else { return Next::Wait };
        let resource = usize::from(serving.resource);
        let Some(write) = &mut serving.write else { return Next::Again };
        let Some(request) = write.request else {
            // Answered before its bytes came.
            let got = write.piece.map_or(0, |piece| {
                io.arena().release(piece.payload.slot);
                u64::from(piece.got)
            });
            serving.skip = if write.is_zeroes { 0 } else { write.left - got };
            serving.write = None;
            return Next::Again;
        };
        let piece = match &mut write.piece {
            Some(piece) => piece,
            empty => {
                let len = piece_bytes(write.offset, write.left);
                let Some(slot) = take_for_write(io, &mut resources[resource], index, write.offset, len)
                else {
                    client.starved = true;
                    self.want_sweep();
                    return Next::Wait;
                };
                empty.insert(Piece { payload: Span::of_volume(slot, write.offset, len), got: 0, since: now })
            }
        };
        if write.is_zeroes {
            io.arena().bytes_mut(piece.payload).fill(0);
            piece.got = piece.payload.len;
        }
        let data = client.inbox.data();
        let available = data.len().min((piece.payload.len - piece.got) as usize);
        if available > 0 {
            let target = piece.payload.skip(piece.got).first(available as u32);
            io.arena().bytes_mut(target).copy_from_slice(&data[..available]);
            client.inbox.consume(available);
            piece.got += available as u32;
        }
        if piece.got < piece.payload.len {
            return Next::Receive;
        }
        let (offset, len, slot) = (write.offset, piece.payload.len, piece.payload.slot);
        write.advance(len);
        if write.left == 0 {
            serving.write = None;
        }
        io.arena().give_to_core(slot);
        self.feed(resource, Event::Payload { req: ReqId(request), offset, len, slot });
        Next::Again
    }

    /// The core answers a request.
    pub(super) fn reply(&mut self, resource: usize, id: u32, result: Result<(), IoError>, at: Option<u64>) {
        let Self { io: Some(io), clients, resources, .. } = self else { return };
        let entry = &mut resources[resource];
        let Some(mut request) = entry.requests.remove(id) else {
            unreachable!("request {id} was answered twice")
        };
        let Some(client) = clients.get_mut(request.client) else {
            unreachable!("a client went before its requests")
        };
        client.requests -= 1;
        if let Phase::Serving(serving) = &mut client.phase
            && let Some(write) = &mut serving.write
            && write.request == Some(id)
        {
            write.request = None;
        }
        if entry.request_turns.first().is_some() {
            // Look again at who waits for a place.
            self.frees_seen = u64::MAX;
        }
        let mut bytes = counted_bytes(&request.request);
        let failure = result.err().map(|error| Failure { error, at });
        let failed = client.long_read().and_then(|long| long.failed);
        let answer = answer_to(&request, failure, failed);
        let is_end = match request.part {
            Part::Whole | Part::Last => true,
            Part::First { .. } | Part::Middle => failure.is_some() && !matches!(answer, Answer::Data),
        };
        if request.part != Part::Whole
            && let Phase::Serving(serving) = &mut client.phase
        {
            if is_end {
                bytes += serving.long_read.take().map_or(0, |long| long.left_bytes());
            } else {
                // Its next part is asked for when no action is being executed.
                self.reading_on.push(request.client);
                client.long_read().into_iter().for_each(|long| long.failed = failed.or(failure));
            }
        }
        let has_answer = !matches!(answer, Answer::Broken | Answer::Unanswered);
        if let Some(message) = has_answer.then(|| client.outbox.message(false)).flatten() {
            if let Answer::Header(header) = answer {
                message.push_head(header.as_bytes());
            }
            // Freed when the header is out: a little early where the data follows in further messages.
            message.replies += u32::from(is_end);
            message.reply_bytes += bytes;
        }
        let is_unread = failed.or(failure).is_some();
        queue_data(io, client, &request, answer.has_data(&request, failure), is_unread);
        if let Answer::DataAnd(tail) = &answer
            && let Some(message) = client.outbox.message(false)
        {
            message.push_head(tail.as_bytes());
        }
        if request.request.command == Command::Read {
            // As many as reads have had slots at the same time: each has one at least.
            request.slots.clear();
            entry.spare_lists.push(request.slots);
        }
        match answer {
            Answer::Broken => self.hang_up(request.client),
            Answer::Unanswered => {
                self.drain(request.client);
                self.list_talking(request.client);
            }
            Answer::Header(_) | Answer::Data | Answer::DataAnd(_) => self.list_talking(request.client),
        }
    }

    /// Queues an answer that the core was not asked for.
    pub(super) fn answer(&mut self, index: u32, header: &[u8]) {
        let Some(client) = self.clients.get_mut(index) else { return };
        if let Some(message) = client.outbox.message(false) {
            message.push_head(header);
            message.replies += 1;
        }
        self.list_talking(index);
    }
}

/// Sends the slots of a read, or gives them back. Zeroes stand for what could not be read.
fn queue_data(io: &mut Io, client: &mut Client, request: &Request, is_sent: bool, is_unread: bool) {
    for span in request.spans() {
        let message = if is_sent { client.outbox.message(false) } else { None };
        match message {
            Some(message) => {
                if is_unread {
                    io.arena().bytes_mut(span).fill(0);
                }
                message.push_payload(span);
            }
            None => {
                client.read_slot_bytes -= io.arena().slot_bytes(span.slot);
                io.arena().release(span.slot);
            }
        }
    }
}

/// Takes a slot for a piece of a payload, if it is the client's turn.
fn take_for_write(io: &mut Io, entry: &mut Resource, index: u32, offset: u64, len: u32) -> Option<SlotId> {
    let may_take = entry.write_turns.may_take(index);
    let slot = if may_take { io.arena().take(entry.pools.write, offset, len) } else { None };
    match slot {
        Some(_) => entry.write_turns.took(index),
        None => entry.write_turns.wait(index),
    }
    slot
}

/// What a request counts against the bound of its client.
pub(super) fn counted_bytes(request: &lockstep_nbd::Request) -> u64 {
    match request.command {
        Command::Read | Command::Write => request.length,
        _ => 0,
    }
}

pub(super) fn wire_error(error: IoError) -> NbdError {
    match error {
        IoError::Io => NbdError::Io,
        IoError::NoSpace => NbdError::NoSpace,
        IoError::Shutdown => NbdError::Shutdown,
    }
}

pub(super) fn words(error: IoError) -> &'static str {
    match error {
        IoError::Io => "no copy could do it",
        IoError::NoSpace => "no space left under a copy",
        IoError::Shutdown => "the export is closed",
    }
}
