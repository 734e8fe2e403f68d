//! Clients of the export: each keeps a few requests in flight to the node that serves it, and checks what it
//! reads.

use crate::decision::{ClientAct, Decision};
use crate::ghost::WriteId;
use crate::host::{DiskOp, Input, Request};
use crate::setup::{MS, US};
use crate::world::{Ev, Phase, World};
use std::collections::VecDeque;

use lockstep_core::{ExportState, IoError, PIECE_BYTES_MAX, RequestKind};

/// Sectors of the longest request: 256 KiB.
const REQUEST_SECTORS_MAX: u64 = 512;

/// One client.
#[derive(Debug, Default)]
pub(crate) struct Client {
    /// The machine it is attached to.
    pub(crate) host: Option<usize>,
    /// Requests sent and not answered.
    pub(crate) waiting: u64,
}

impl Client {
    /// The connection is gone.
    pub(crate) fn detach(&mut self) {
        *self = Client::default();
    }
}

impl World {
    /// A client is to attach, send a request, or go away.
    pub(crate) fn client_step(&mut self, client: usize) {
        if self.phase == Phase::Quiet {
            return;
        }
        let delay = self.rng.work.spread(self.setup.think_ns);
        self.after(delay, Ev::Client(client));
        let act = match self.clients[client].host {
            None => {
                let n = self.rng.work.below(2) as usize;
                if !self.takes_clients(n) {
                    return;
                }
                ClientAct::Join(n)
            }
            Some(_) if self.setup.faults.rude_clients && self.rng.work.chance(5) => ClientAct::Leave,
            Some(_) if self.clients[client].waiting < self.setup.depth => self.draw_request(),
            Some(_) => return,
        };
        self.propose(0, Decision::Client(client, act));
    }

    fn takes_clients(&self, n: usize) -> bool {
        let host = &self.hosts[n];
        host.export == ExportState::Open && host.node.is_some() && !host.is_paused(self.now)
    }

    /// A client attaches.
    pub(crate) fn join(&mut self, client: usize, n: usize) {
        if self.clients[client].host.is_some() || !self.takes_clients(n) {
            return;
        }
        let host = &mut self.hosts[n];
        host.clients += 1;
        let open = host.clients;
        self.clients[client].host = Some(n);
        self.deliver(n, Input::Clients { open });
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

    fn draw_request(&mut self) -> ClientAct {
        let kind = self.draw_kind();
        let fua = is_write(kind) && self.rng.work.chance(100);
        let range = if kind == RequestKind::Flush { (0, 0) } else { self.draw_range() };
        ClientAct::Request { kind, range, fua }
    }

    /// A client sends a request, if it is attached.
    pub(crate) fn request(&mut self, client: usize, kind: RequestKind, range: (usize, usize), fua: bool) {
        let Some(n) = self.clients[client].host else { return };
        let (line, seq) = (self.lines.of[n], self.next_seq());
        let write = is_write(kind).then(|| {
            self.writes += 1;
            let zeroes = kind != RequestKind::Write;
            // The edges of a trim are left alone.
            let (first, count) = if kind == RequestKind::Trim { whole_units(range) } else { range };
            WriteId { id: self.writes, first, count, zeroes }
        });
        if let Some(write) = write {
            self.lines.all[line].begin(write, seq, fua);
        }
        let host = &mut self.hosts[n];
        let req = (0..).find(|r| !host.requests.contains_key(r)).expect("there are few requests");
        let request = Request {
            client: Some(client),
            kind,
            range,
            write,
            began: seq,
            began_ns: self.now,
            payload: payload_pieces(kind, range),
            found: if kind == RequestKind::Read { vec![None; range.1] } else { Vec::new() },
        };
        host.requests.insert(req, request);
        let process = host.process;
        self.clients[client].waiting += 1;
        let (offset, len) = (range.0 as u64 * 512, range.1 as u64 * 512);
        self.after(0, Ev::Input(n, process, Input::Request { req, kind, offset, len, fua }));
        if self.hosts[n].requests[&req].payload.front().is_some() {
            self.after(0, Ev::Piece(n, process, req));
        }
    }

    /// The next piece of a write's payload arrives from the client.
    pub(crate) fn payload_piece(&mut self, n: usize, process: u32, req: u32) {
        if self.hosts[n].process != process {
            return;
        }
        let Some(request) = self.hosts[n].requests.get_mut(&req) else { return };
        let (Some(write), Some(_)) = (request.write, request.client) else { return };
        let Some((first, count)) = request.payload.pop_front() else { return };
        let more = !request.payload.is_empty();
        let tags = (first..first + count).map(|sector| write.tag(sector)).collect();
        self.deliver(n, Input::Payload { req, offset: first as u64 * 512, tags });
        if more {
            let delay = if self.rng.net.coin() { 0 } else { self.rng.net.spread(50 * US) };
            self.after(delay, Ev::Piece(n, process, req));
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
        if let Some(client) = request.client {
            self.clients[client].waiting -= 1;
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
}

fn is_write(kind: RequestKind) -> bool {
    !matches!(kind, RequestKind::Read | RequestKind::Flush)
}

/// The 4 KiB units inside a range of sectors; an empty range if there is none.
fn whole_units((first, count): (usize, usize)) -> (usize, usize) {
    let (start, end) = (first.next_multiple_of(8), (first + count) & !7);
    if start < end { (start, end - start) } else { (first, 0) }
}

/// What the shell sends as payload, piece by piece: all of a write, the edges of a zero.
fn payload_pieces(kind: RequestKind, range: (usize, usize)) -> VecDeque<(usize, usize)> {
    let (start, end) = (range.0, range.0 + range.1);
    let inside = whole_units(range);
    let parts = match kind {
        RequestKind::Write => vec![(start, end)],
        RequestKind::Zero { .. } if inside.1 == 0 => vec![(start, end)],
        RequestKind::Zero { .. } => vec![(start, inside.0), (inside.0 + inside.1, end)],
        _ => vec![],
    };
    let piece_sectors = PIECE_BYTES_MAX as usize / 512;
    let mut pieces = VecDeque::new();
    for (mut at, end) in parts {
        while at < end {
            let next = ((at / piece_sectors + 1) * piece_sectors).min(end);
            pieces.push_back((at, next - at));
            at = next;
        }
    }
    pieces
}
