//! The shell between clients' sessions and the core: admission, payloads, answers, and the end of a session.

use crate::host::{DiskOp, Input, Request};
use crate::session::{Next, Offer, payload_pieces};
use crate::setup::{MS, US};
use crate::socket::bytes_of;
use crate::world::{Ev, Phase, World};
use lockstep_core::{IoError, RequestKind};
use lockstep_nbd::{NbdError, ReplyTo};

/// How long a client that goes may take to read its answers.
const DRAIN_NS: u64 = 2000 * MS;
/// Mean latency between a client and a node.
pub(crate) const CLIENT_NS: u64 = 20 * US;

impl World {
    /// Bytes have arrived from a client, or something else has changed for it.
    pub(crate) fn serve(&mut self, n: usize, process: u32, number: u32, bytes: usize) {
        if self.hosts[n].process != process {
            return;
        }
        let Some(session) = self.hosts[n].sessions.get_mut(&number) else { return };
        session.socket.arrive(bytes);
        let client = session.client;
        while self.hosts[n].process == process && self.violation.is_none() && self.serve_next(n, number) {}
        if self.hosts[n].process == process {
            self.pump_session(n, number);
            self.check_ending(n, number);
            self.pump_client(client);
        }
    }

    /// Looks at all sessions of a process that was paused.
    pub(crate) fn serve_all(&mut self, n: usize) {
        let process = self.hosts[n].process;
        let numbers: Vec<u32> = self.hosts[n].sessions.keys().copied().collect();
        for number in numbers {
            self.serve(n, process, number, 0);
        }
    }

    fn serve_next(&mut self, n: usize, number: u32) -> bool {
        let host = &mut self.hosts[n];
        if host.node.is_none() || host.is_paused(self.now) {
            return false;
        }
        let has_slot = host.written.len() < self.setup.write_slots
            && host.slot_turns.front().is_none_or(|&first| first == number);
        let Some(session) = host.sessions.get_mut(&number) else { return false };
        let is_late = session.deadline_ns.is_some_and(|deadline| deadline <= self.now);
        if session.is_draining() {
            if is_late {
                self.hang_up(n, number);
            }
            return false;
        }
        let offer = Offer {
            state: host.export,
            size_bytes: self.setup.sectors as u64 * 512,
            now_ns: self.now,
            may_hold: !is_late,
            unsent_max: self.setup.unsent_max,
            has_slot,
        };
        let was_held = session.is_held();
        let next = session.next(&offer);
        let (wants_slot, is_held) = (session.wants_slot, session.is_held());
        if wants_slot && !host.slot_turns.contains(&number) {
            host.slot_turns.push_back(number);
        }
        if is_held && !was_held {
            self.look_again_at(n, number);
        }
        self.pump_session(n, number);
        match next {
            Next::Wait => return false,
            Next::Again => {}
            Next::Begin => self.count_clients(n),
            Next::Request(request) => self.admit(n, number, request),
            Next::Piece { req, first, tags } => self.payload(n, number, req, first, tags),
            Next::Drain => {
                self.drain(n, number);
                return false;
            }
            Next::HangUp(why) => {
                self.hang_up(n, number);
                if let Some(why) = why {
                    self.fail("nbd", format!("node {n}: {why}"));
                }
                return false;
            }
        }
        true
    }

    /// At the session's deadline.
    fn look_again_at(&mut self, n: usize, number: u32) {
        let host = &self.hosts[n];
        let deadline = host.sessions.get(&number).and_then(|session| session.deadline_ns);
        if let Some(deadline) = deadline {
            self.after(deadline - self.now, Ev::Serve(n, host.process, number, 0));
        }
    }

    fn admit(&mut self, n: usize, number: u32, request: lockstep_nbd::Request) {
        let host = &mut self.hosts[n];
        let req = (0..).find(|r| !host.requests.contains_key(r)).expect("there are few requests");
        let Some(session) = host.sessions.get_mut(&number) else { return };
        let asked = session.asked.remove(&request.cookie).filter(|asked| asked.request == request);
        let Some((asked, kind)) = asked.and_then(|asked| Some((asked, asked.kind?))) else {
            return self.fail("nbd", format!("node {n}: {request:?} was taken, and nobody asked that"));
        };
        let framing = session.admitted(req, &request);
        let range = ((request.offset / 512) as usize, request.length as usize / 512);
        let entry = Request {
            client: Some(session.client),
            session: number,
            asked: request,
            to: ReplyTo::new(framing, &request),
            kind,
            range,
            write: asked.write,
            began: asked.began,
            began_ns: asked.began_ns,
            payload: payload_pieces(&request),
            found: if kind == RequestKind::Read { vec![None; range.1] } else { Vec::new() },
        };
        host.requests.insert(req, entry);
        let (offset, len) = (request.offset, request.length);
        let fua = request.fua && request.command.modifies();
        self.feed(n, Input::Request { req, kind, offset, len, fua });
    }

    fn payload(&mut self, n: usize, number: u32, req: u32, first: usize, tags: Vec<u64>) {
        let host = &mut self.hosts[n];
        if host.slot_turns.front() == Some(&number) {
            host.slot_turns.pop_front();
        }
        let Some(request) = host.requests.get_mut(&req) else { return };
        request.payload.pop_front();
        self.feed(n, Input::Payload { req, offset: first as u64 * 512, tags });
    }

    /// A buffer for clients' writes may be free again: who waits longest is served soon.
    pub(crate) fn wake_writers(&mut self, n: usize) {
        let host = &self.hosts[n];
        if let Some(&first) = host.slot_turns.front()
            && host.written.len() < self.setup.write_slots
        {
            self.after(0, Ev::Serve(n, host.process, first, 0));
        }
    }

    /// Tells the core how many clients its export has, if that changed.
    fn count_clients(&mut self, n: usize) {
        let host = &mut self.hosts[n];
        let open = host.sessions.values().filter(|session| session.is_served()).count() as u32;
        if host.clients != open {
            host.clients = open;
            let process = host.process;
            self.after(0, Ev::Input(n, process, Input::Clients { open }));
        }
    }

    /// The export's state has changed: who waits for it is looked at, and where it closes everybody goes.
    pub(crate) fn export_changed(&mut self, n: usize, closes: bool) {
        let host = &self.hosts[n];
        let process = host.process;
        let sessions: Vec<(u32, bool)> =
            host.sessions.iter().map(|(&number, session)| (number, session.is_served())).collect();
        for (number, is_served) in sessions {
            if is_served && closes {
                self.drain(n, number);
            } else {
                self.after(0, Ev::Serve(n, process, number, 0));
            }
        }
    }

    /// Nothing more is taken from a client; it is closed when its requests are answered.
    fn drain(&mut self, n: usize, number: u32) {
        self.end_reading(n, number);
        if let Some(session) = self.hosts[n].sessions.get_mut(&number) {
            session.deadline_ns = Some(self.now + DRAIN_NS);
        }
        self.look_again_at(n, number);
        self.check_ending(n, number);
    }

    fn end_reading(&mut self, n: usize, number: u32) {
        let seq = self.next_seq();
        let host = &mut self.hosts[n];
        let Some(session) = host.sessions.get_mut(&number) else { return };
        let abandoned = session.stop_reading();
        for write in std::mem::take(&mut session.asked).values().filter_map(|asked| asked.write) {
            self.lines.all[self.lines.of[n]].give_up(write, seq);
        }
        host.slot_turns.retain(|&waiting| waiting != number);
        let process = host.process;
        if let Some(req) = abandoned {
            self.after(0, Ev::Input(n, process, Input::Abandoned { req }));
        }
        self.wake_writers(n);
        self.count_clients(n);
    }

    /// Closes a session at once; its requests in the core are answered to nobody.
    fn hang_up(&mut self, n: usize, number: u32) {
        self.end_reading(n, number);
        let host = &mut self.hosts[n];
        let Some(session) = host.sessions.remove(&number) else { return };
        for request in host.requests.values_mut().filter(|request| request.session == number) {
            request.client = None;
        }
        self.hung_up(session.client, number);
    }

    fn check_ending(&mut self, n: usize, number: u32) {
        let is_over = |session: &crate::session::Session| {
            session.is_draining() && session.in_core == 0 && session.outbox.is_empty()
        };
        if self.hosts[n].sessions.get(&number).is_some_and(is_over) {
            self.hang_up(n, number);
        }
    }

    /// Gives a client's kernel what it takes of the answers.
    pub(crate) fn pump_session(&mut self, n: usize, number: u32) {
        let Some(session) = self.hosts[n].sessions.get_mut(&number) else { return };
        let client = session.client;
        let was_full = session.unsent >= self.setup.unsent_max || !session.is_served();
        let mut link = self.clients[client].link.as_mut().filter(|link| link.session == number);
        let (mut pushed, mut sent) = (0, false);
        while let Some((bytes, counts)) = session.outbox.front_mut() {
            match &mut link {
                Some(link) => pushed += link.socket.push(bytes),
                // Nobody is there to read it.
                None => bytes.clear(),
            }
            if !bytes.is_empty() {
                break;
            }
            session.unsent -= usize::from(*counts);
            session.outbox.pop_front();
            sent = true;
        }
        let is_freed = sent && was_full && (session.unsent < self.setup.unsent_max || !session.is_served());
        let process = self.hosts[n].process;
        if pushed > 0 {
            let latency = self.rng.net.spread(CLIENT_NS);
            let at = link.map_or(self.now, |link| link.socket.arrival_ns(self.now, latency));
            self.after(at - self.now, Ev::AtClient(client, number, pushed));
        }
        if is_freed {
            self.after(0, Ev::Serve(n, process, number, 0));
        }
    }

    /// Bytes of a read arrived in the request's own buffers.
    pub(crate) fn found(&mut self, n: usize, req: u32, first: usize, tags: &[u64]) {
        let Some(request) = self.hosts[n].requests.get_mut(&req) else {
            return self.fail("C11 reads", format!("node {n}: bytes for request {req} after its reply"));
        };
        let start = request.range.0;
        if request.kind != RequestKind::Read
            || first < start
            || first + tags.len() > start + request.found.len()
        {
            return self
                .fail("border", format!("node {n}: bytes at sector {first} do not belong to request {req}"));
        }
        for (i, &tag) in tags.iter().enumerate() {
            request.found[first - start + i] = Some(tag);
        }
    }

    /// The core answered a request while `held` copies were mirrored and UpToDate.
    pub(crate) fn replied(&mut self, n: usize, req: u32, result: Result<(), IoError>, held: u8) {
        let Some(request) = self.hosts[n].requests.remove(&req) else {
            return self.fail("replies", format!("node {n}: reply to request {req}, which is not open"));
        };
        if self.hosts[n].has_hung {
            let reads = |op: &DiskOp| matches!(op, DiskOp::Read { req: Some(r), .. } if *r == req);
            self.hosts[n].ops.values_mut().filter(|op| reads(op)).for_each(|op| *op = DiskOp::Late);
        }
        let (seq, line) = (self.next_seq(), self.lines.of[n]);
        let ghost = &mut self.lines.all[line];
        if held == 3 {
            ghost.mirrored_at(seq);
        }
        if result.is_ok() && request.client.is_some() && !request.payload.is_empty() {
            return self.fail("replies", format!("node {n}: write {req} answered before all of it arrived"));
        }
        // The promise rested on the other machine alone, which lost power before its word arrived here.
        let hollow = held == 1 << (1 - n) && self.failures.power[1 - n] > request.began;
        match (request.write, result, request.client) {
            (Some(write), Ok(()), Some(_)) if !hollow => ghost.acknowledge(write, seq, held),
            (Some(write), _, _) => ghost.give_up(write, seq),
            (None, Ok(()), Some(_)) if request.kind == RequestKind::Flush => {
                ghost.flushed(request.began, held)
            }
            (None, Ok(()), Some(_)) => self.check_read(n, req, &request, held),
            (None, _, _) => {}
        }
        if result.is_err() && request.client.is_some() && self.phase != Phase::Stormy {
            let age_ms = (self.now - request.began_ns) / MS;
            self.say(format_args!("n{n} request {req} failed {result:?} after {age_ms} ms"));
            self.failed_alone(n, request.began_ns, &format!("{request:?} with {result:?}"));
        }
        if self.violation.is_none() {
            self.answer(n, req, &request, result);
        }
    }

    fn check_read(&mut self, n: usize, req: u32, request: &Request, held: u8) {
        let (seq, line) = (self.seq, self.lines.of[n]);
        for (i, tag) in request.found.iter().enumerate() {
            let sector = request.range.0 + i;
            let Some(tag) = *tag else {
                return self.fail("C1", format!("node {n}: read {req} answered without sector {sector}"));
            };
            if let Err(why) = self.lines.all[line].check(sector, tag, request.began) {
                return self.fail("C1", format!("node {n}: read {req}: {why}"));
            }
            self.lines.all[line].observe(sector, tag, request.began, seq, held);
        }
    }

    /// Sends the answer, if the client is still there.
    fn answer(&mut self, n: usize, req: u32, request: &Request, result: Result<(), IoError>) {
        let number = request.session;
        let Some(session) = self.hosts[n].sessions.get_mut(&number) else { return };
        session.answered(req);
        let result = result.map_err(wire_error);
        let tags: Vec<u64> = request.found.iter().map(|tag| tag.unwrap_or_default()).collect();
        let (asked, to) = (&request.asked, &request.to);
        let header = if result.is_ok() && request.kind == RequestKind::Read {
            to.data(asked.offset, asked.length as u32)
        } else {
            to.result(asked.command, result, "as the core says")
        };
        let mut bytes = header.as_bytes().to_vec();
        if result.is_ok() {
            bytes.extend(bytes_of(&tags));
        }
        session.outbox.push_back((bytes, true));
        let client = session.client;
        self.expect_answer(client, number, asked.cookie, result.map(|()| tags));
        let process = self.hosts[n].process;
        // No action may be in the way of what follows: the session goes on after this one.
        self.after(0, Ev::Serve(n, process, number, 0));
    }
}

fn wire_error(error: IoError) -> NbdError {
    match error {
        IoError::Io => NbdError::Io,
        IoError::NoSpace => NbdError::NoSpace,
        IoError::Shutdown => NbdError::Shutdown,
    }
}
