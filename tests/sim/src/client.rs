//! Clients of the export: each holds a connection to the node that serves it, keeps a few requests in flight, and
//! checks its answers byte for byte. What it says on the wire is the real protocol.

use crate::decision::{ClientAct, Decision, Wrong};
use crate::ghost::WriteId;
use crate::serving::CLIENT_NS;
use crate::session::{Asked, Session, whole_units};
use crate::setup::MS;
use crate::socket::{Socket, bytes_of, payload_bytes, sector_bytes, tags_of};
use crate::world::{Ev, Phase, World};
use lockstep_core::{ExportState, RequestKind};
use lockstep_nbd::client::{ClientError, Handshake, Reply, next_reply};
use lockstep_nbd::{Command, NbdError, Request};
use std::collections::BTreeMap;

/// Sectors of the longest request: 256 KiB.
const REQUEST_SECTORS_MAX: u64 = 512;

/// One client.
#[derive(Default)]
pub(crate) struct Client {
    /// Its connection.
    pub(crate) link: Option<Attached>,
    /// Connections so far.
    connections: u32,
}

/// A client's end of a connection.
pub(crate) struct Attached {
    /// The machine.
    pub(crate) host: usize,
    /// The number of the server's end.
    pub(crate) session: u32,
    /// What the server sends.
    pub(crate) socket: Socket,
    /// Received and not understood yet.
    inbox: Vec<u8>,
    /// Until the transmission phase.
    handshake: Option<Box<Handshake>>,
    /// Bytes that the kernel has not taken.
    outbox: Vec<u8>,
    /// Requests without a whole answer, by cookie.
    waiting: BTreeMap<u64, Waiting>,
    cookies: u64,
    mute_until_ns: u64,
    deaf_until_ns: u64,
    is_leaving: bool,
}

struct Waiting {
    request: Request,
    /// What the server has answered: known here before it arrives. `None` for what has to be refused.
    answer: Option<Result<Vec<u64>, NbdError>>,
    is_wrong: bool,
}

impl Client {
    /// The connection is gone.
    pub(crate) fn detach(&mut self) {
        self.link = None;
    }

    /// The machine it is connected to.
    pub(crate) fn host(&self) -> Option<usize> {
        self.link.as_ref().map(|link| link.host)
    }

    /// It waits for nothing.
    pub(crate) fn is_idle(&self) -> bool {
        self.link.as_ref().is_none_or(|link| link.handshake.is_none() && link.waiting.is_empty())
    }
}

impl World {
    /// A client decides what to do next.
    pub(crate) fn client_step(&mut self, client: usize) {
        if self.phase == Phase::Quiet {
            return;
        }
        let delay = self.rng.work.spread(self.setup.think_ns);
        self.after(delay, Ev::Client(client));
        if let Some(act) = self.draw_act(client) {
            self.propose(0, Decision::Client(client, act));
        }
    }

    /// A client has done its work: some take their leave, some just go.
    pub(crate) fn client_ends(&mut self, client: usize) {
        self.client_act(client, if client.is_multiple_of(2) { ClientAct::Goodbye } else { ClientAct::Leave });
    }

    fn draw_act(&mut self, client: usize) -> Option<ClientAct> {
        let rude = self.setup.faults.rude_clients;
        let Some(link) = &self.clients[client].link else {
            let n = self.rng.work.below(2) as usize;
            let is_open = self.hosts[n].export == ExportState::Open;
            let structured = self.rng.work.coin();
            return (is_open || self.rng.work.chance(50)).then_some(ClientAct::Join { n, structured });
        };
        let rng = &mut self.rng.work;
        if rude && rng.chance(10) {
            let ns = rng.spread(10 * MS);
            return Some(match rng.below(8) {
                0 | 1 => ClientAct::Leave,
                2 => ClientAct::Goodbye,
                3 => ClientAct::Mute(ns),
                4 => ClientAct::Deaf(ns),
                5 => ClientAct::Wrong(rng.pick(&[Wrong::PastTheEnd, Wrong::Misaligned])),
                6 => ClientAct::Wrong(rng.pick(&[Wrong::Empty, Wrong::Flag])),
                _ => ClientAct::Goodbye,
            });
        }
        let may_ask = link.handshake.is_none() && !link.is_leaving;
        if !may_ask || link.waiting.len() as u64 >= self.setup.depth {
            return None;
        }
        let kind = self.draw_kind();
        let is_write = !matches!(kind, RequestKind::Read | RequestKind::Flush);
        let fua = is_write && self.rng.work.chance(100);
        let range = if kind == RequestKind::Flush { (0, 0) } else { self.draw_range() };
        Some(ClientAct::Request { kind, range, fua })
    }

    fn draw_kind(&mut self) -> RequestKind {
        match self.rng.work.below(100) {
            0..45 => RequestKind::Write,
            45..80 => RequestKind::Read,
            80..86 => RequestKind::Trim,
            86..92 => RequestKind::Zero { no_hole: self.rng.work.coin() },
            _ => RequestKind::Flush,
        }
    }

    fn draw_range(&mut self) -> (usize, usize) {
        let rng = &mut self.rng.work;
        let area = if rng.chance(800) { self.setup.hot_sectors } else { self.setup.sectors } as u64;
        let longest = match rng.below(10) {
            0..4 => 1,
            4..8 => 16,
            8 => 128,
            _ => REQUEST_SECTORS_MAX,
        };
        let count = rng.between(1, longest.min(area));
        let mut first = rng.below(area - count + 1);
        if rng.coin() {
            first &= !7;
        }
        (first as usize, count as usize)
    }

    /// A client does something; what makes no sense now has no effect.
    pub(crate) fn client_act(&mut self, client: usize, act: ClientAct) {
        let now = self.now;
        match act {
            ClientAct::Join { n, structured } => self.join(client, n, structured),
            ClientAct::Leave => self.leave_host(client),
            ClientAct::Goodbye => self.take_leave(client),
            ClientAct::Request { kind, range, fua } => self.request(client, kind, range, fua),
            ClientAct::Wrong(wrong) => self.ask_wrongly(client, wrong),
            ClientAct::Mute(ns) | ClientAct::Deaf(ns) => {
                let Some(link) = &mut self.clients[client].link else { return };
                if matches!(act, ClientAct::Mute(_)) {
                    link.mute_until_ns = now + ns;
                } else {
                    link.deaf_until_ns = now + ns;
                }
                let number = link.session;
                self.after(ns, Ev::AtClient(client, number, 0));
            }
        }
    }

    fn join(&mut self, client: usize, n: usize, structured: bool) {
        if self.clients[client].link.is_some() || self.hosts[n].node.is_none() {
            return;
        }
        let capacity = self.setup.client_buffer_bytes;
        self.clients[client].connections += 1;
        let session = self.clients[client].connections * self.clients.len() as u32 + client as u32;
        self.clients[client].link = Some(Attached {
            host: n,
            session,
            socket: Socket::new(capacity),
            handshake: Some(Box::new(Handshake::new("r0", structured))),
            inbox: Vec::new(),
            outbox: Vec::new(),
            waiting: BTreeMap::new(),
            cookies: 0,
            mute_until_ns: 0,
            deaf_until_ns: 0,
            is_leaving: false,
        });
        self.hosts[n].sessions.insert(session, Session::new(client, capacity));
        self.after(CLIENT_NS, Ev::Serve(n, self.hosts[n].process, session, 0));
    }

    fn request(&mut self, client: usize, kind: RequestKind, range: (usize, usize), fua: bool) {
        let Some(n) = self.clients[client].host() else { return };
        let seq = self.next_seq();
        let is_write = !matches!(kind, RequestKind::Read | RequestKind::Flush);
        let write = is_write.then(|| {
            self.writes += 1;
            let zeroes = kind != RequestKind::Write;
            // The edges of a trim are left alone.
            let (first, count) = if kind == RequestKind::Trim { whole_units(range) } else { range };
            WriteId { id: self.writes, first, count, zeroes }
        });
        let (command, no_hole) = match kind {
            RequestKind::Read => (Command::Read, false),
            RequestKind::Write => (Command::Write, false),
            RequestKind::Trim => (Command::Trim, false),
            RequestKind::Zero { no_hole } => (Command::WriteZeroes, no_hole),
            RequestKind::Flush => (Command::Flush, false),
        };
        let (offset, length) = (range.0 as u64 * 512, range.1 as u64 * 512);
        let request = Request { fua, no_hole, ..Request::new(command, 0, offset, length) };
        let Some(request) = self.ask(client, request, Some(kind), write) else { return };
        if let Some(write) = write {
            let line = self.lines.of[n];
            self.lines.all[line].begin(write, seq, fua);
        }
        if let (Some(write), Some(link)) = (write, &mut self.clients[client].link)
            && payload_bytes(&request) > 0
        {
            let tags: Vec<u64> = (range.0..range.0 + range.1).map(|sector| write.tag(sector)).collect();
            link.outbox.extend(bytes_of(&tags));
        }
        self.pump_client(client);
    }

    /// Queues a request's header, with a cookie of its own.
    fn ask(
        &mut self,
        client: usize,
        mut request: Request,
        kind: Option<RequestKind>,
        write: Option<WriteId>,
    ) -> Option<Request> {
        let link = self.clients[client].link.as_mut()?;
        let session = self.hosts[link.host].sessions.get_mut(&link.session)?;
        if link.handshake.is_some() || link.is_leaving || session.is_draining() {
            return None;
        }
        link.cookies += 1;
        request.cookie = link.cookies;
        let asked = Asked { request, kind, write, began: self.seq, began_ns: self.now };
        session.asked.insert(request.cookie, asked);
        let waiting = Waiting { request, answer: None, is_wrong: kind.is_none() };
        link.waiting.insert(request.cookie, waiting);
        link.outbox.extend(request.encode());
        Some(request)
    }

    fn ask_wrongly(&mut self, client: usize, wrong: Wrong) {
        let end = self.setup.sectors as u64 * 512;
        let (command, offset, length, no_hole) = match wrong {
            Wrong::PastTheEnd => (Command::Write, end - 512, 1024, false),
            Wrong::Misaligned => (Command::Write, 0, 256, false),
            Wrong::Empty => (Command::Read, 0, 0, false),
            Wrong::Flag => (Command::Read, 0, 512, true),
        };
        let request = Request { no_hole, ..Request::new(command, 0, offset, length) };
        if let Some(request) = self.ask(client, request, None, None)
            && let Some(link) = &mut self.clients[client].link
        {
            link.outbox.resize(link.outbox.len() + payload_bytes(&request), 0x5a);
        }
        self.pump_client(client);
    }

    fn take_leave(&mut self, client: usize) {
        let Some(link) = self.clients[client].link.as_mut().filter(|link| !link.is_leaving) else { return };
        if link.handshake.is_some() {
            return self.leave_host(client);
        }
        link.is_leaving = true;
        let goodbye = Request::new(Command::Disconnect, link.cookies + 1, 0, 0);
        link.outbox.extend(goodbye.encode());
        self.pump_client(client);
    }

    /// A client goes; what its kernel has taken arrives, nothing else.
    fn leave_host(&mut self, client: usize) {
        let Some(link) = self.clients[client].link.take() else { return };
        let (n, number) = (link.host, link.session);
        let Some(session) = self.hosts[n].sessions.get_mut(&number) else { return };
        session.socket.close();
        let latency = self.rng.net.spread(CLIENT_NS);
        let at = session.socket.arrival_ns(self.now, latency);
        self.after(at - self.now, Ev::Serve(n, self.hosts[n].process, number, 0));
    }

    /// Gives the kernel what it takes.
    pub(crate) fn pump_client(&mut self, client: usize) {
        let Some(link) = self.clients[client].link.as_mut() else { return };
        let (n, number) = (link.host, link.session);
        let Some(session) = self.hosts[n].sessions.get_mut(&number) else { return };
        if link.mute_until_ns > self.now || link.outbox.is_empty() {
            return;
        }
        let pushed = session.socket.push(&mut link.outbox);
        if pushed > 0 {
            let latency = self.rng.net.spread(CLIENT_NS);
            let at = session.socket.arrival_ns(self.now, latency);
            self.after(at - self.now, Ev::Serve(n, self.hosts[n].process, number, pushed));
        }
    }

    /// The server has closed a connection: behind what was sent comes the end.
    pub(crate) fn hung_up(&mut self, client: usize, number: u32) {
        let link = self.clients[client].link.as_mut().filter(|link| link.session == number);
        if let Some(link) = link {
            link.socket.close();
            let at = link.socket.arrival_ns(self.now, CLIENT_NS);
            self.after(at - self.now, Ev::AtClient(client, number, 0));
        }
    }

    /// What the client has to find in an answer that is on its way.
    pub(crate) fn expect_answer(
        &mut self,
        client: usize,
        number: u32,
        cookie: u64,
        answer: Result<Vec<u64>, NbdError>,
    ) {
        let link = self.clients[client].link.as_mut().filter(|link| link.session == number);
        if let Some(waiting) = link.and_then(|link| link.waiting.get_mut(&cookie)) {
            waiting.answer = Some(answer);
        }
    }

    /// Bytes have arrived at a client, or it is no longer deaf or mute.
    pub(crate) fn at_client(&mut self, client: usize, number: u32, bytes: usize) {
        let sectors = self.setup.sectors;
        let Some(link) = self.clients[client].link.as_mut().filter(|link| link.session == number) else {
            return;
        };
        link.socket.arrive(bytes);
        if link.deaf_until_ns > self.now {
            return;
        }
        let n = link.host;
        let outcome = link.read(sectors as u64 * 512);
        let is_over = link.socket.is_at_end();
        match outcome {
            Ok(()) if is_over => return self.clients[client].detach(),
            Ok(()) => {}
            Err(None) => return self.leave_host(client),
            Err(Some(why)) => return self.fail("nbd", format!("client {client}: {why}")),
        }
        self.pump_session(n, number);
        self.pump_client(client);
    }
}

impl Attached {
    /// Reads what has arrived. Errs without words where the server refuses the export.
    fn read(&mut self, size_bytes: u64) -> Result<(), Option<String>> {
        self.inbox.extend_from_slice(self.socket.data());
        self.socket.consume(self.socket.data().len());
        if let Some(handshake) = &mut self.handshake {
            let taken = handshake.receive(&self.inbox).map_err(|why| match why {
                ClientError::Refused { .. } => None,
                other => Some(other.to_string()),
            })?;
            self.inbox.drain(..taken);
            self.outbox.extend(handshake.take_output());
            let Some(offered) = handshake.connected() else { return Ok(()) };
            if offered.size_bytes != size_bytes || offered.read_only {
                return Err(Some(format!("offered {offered:?}")));
            }
            self.handshake = None;
        }
        while self.read_reply()? {}
        Ok(())
    }

    /// Takes one reply; false if none has arrived as a whole.
    fn read_reply(&mut self) -> Result<bool, Option<String>> {
        let (consumed, cookie, length, failed) = match next_reply(&self.inbox) {
            Reply::NeedMore => return Ok(false),
            Reply::Simple { consumed, cookie, error } => {
                let asked = self.waiting.get(&cookie).map(|waiting| waiting.request);
                let data = asked.filter(|asked| asked.command == Command::Read && error.is_none());
                (consumed, cookie, data.map_or(0, |asked| asked.length), error)
            }
            Reply::Data { consumed, cookie, offset, length, done: true } => {
                let asked = self.waiting.get(&cookie).map(|waiting| waiting.request.offset);
                if asked != Some(offset) {
                    return Err(Some(format!("data from {offset} for {asked:?}")));
                }
                (consumed, cookie, u64::from(length), None)
            }
            Reply::Failed { consumed, cookie, error, .. } => (consumed, cookie, 0, Some(error)),
            other => return Err(Some(format!("answer {other:?}"))),
        };
        let end = consumed + sector_bytes(length);
        let Some(data) = self.inbox.get(consumed..end) else { return Ok(false) };
        let found = failed.map_or_else(|| Ok(tags_of(data)), Err);
        self.inbox.drain(..end);
        let Some(waiting) = self.waiting.remove(&cookie) else {
            return Err(Some(format!("an answer to {cookie}, which is not open")));
        };
        let is_expected = match &waiting.answer {
            Some(answer) => *answer == found,
            None => waiting.is_wrong && found.is_err(),
        };
        if is_expected {
            Ok(true)
        } else {
            Err(Some(format!("{:?} is answered by {found:?}", waiting.request)))
        }
    }
}
