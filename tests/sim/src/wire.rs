//! How connections live and end in the simulated world: dialling, sending, arriving, resets, closing.

use crate::host::Input;
use crate::net::{self, Conn, End, Pipe};
use crate::setup::{MS, US};
use crate::world::{Ev, World, node_id};
use lockstep_core::{LinkId, LinkLoss, PeerHello};

impl World {
    /// The core of the dialling node wants a connection.
    pub(crate) fn dial(&mut self, n: usize) {
        // A link that the core closed is no obstacle, even before the shell has reported its end.
        let linked = self.hosts[n].conn.is_some_and(|conn| !self.conns[conn].ends[n].closing);
        if n != 0 || self.hosts[n].dialing || linked {
            return self.fail("border", format!("node {n} dials though it must not now"));
        }
        self.hosts[n].dialing = true;
        let mut delay = 2 * self.setup.wire_ns + self.rng.net.below(2 * MS);
        if self.silent_until.iter().any(|&until| until > self.now) {
            delay += self.rng.net.between(20, 200) * MS;
        }
        self.after(delay, Ev::Dialled(n, self.hosts[n].process));
    }

    /// A dial ends, with or without a connection.
    pub(crate) fn dialled(&mut self, n: usize, process: u32) {
        if self.hosts[n].process != process || !self.hosts[n].dialing {
            return;
        }
        self.hosts[n].dialing = false;
        let peer = &self.hosts[1 - n];
        let silent = self.silent_until.iter().any(|&until| until > self.now);
        if peer.node.is_some() && self.now < self.stranger_until {
            return self.deliver(n, Input::LinkDown { link: None, loss: LinkLoss::Rejected });
        }
        if peer.node.is_none() || peer.is_paused(self.now) || silent || self.now < self.refuse_until {
            return self.deliver(n, Input::LinkDown { link: None, loss: LinkLoss::Unreachable });
        }
        let ends = [0, 1].map(|end| {
            let host = &mut self.hosts[end];
            host.links += 1;
            End { link: LinkId(host.links), process: host.process, up: false, down: false, closing: false }
        });
        let pipes = [0, 1].map(|_| Pipe { last_arrival: self.now, ..Pipe::default() });
        self.conns.push(Conn { ends, pipes });
        let conn = self.conns.len() - 1;
        let later = self.rng.net.below(2) as usize;
        let delay = self.setup.wire_ns + self.rng.net.below(MS);
        self.after(delay, Ev::Up(conn, later));
        self.up(conn, 1 - later);
    }

    /// An end's handshake is done: its core hears of the connection.
    pub(crate) fn up(&mut self, conn: usize, end: usize) {
        let e = &mut self.conns[conn].ends[end];
        if e.down || e.process != self.hosts[end].process {
            e.down = true;
            return;
        }
        match self.hosts[end].conn {
            // A still newer connection was up first.
            Some(newer) if newer > conn => {
                self.conns[conn].ends[end].down = true;
                return;
            }
            Some(old) => self.end_link(old, end, LinkLoss::Superseded),
            None => {}
        }
        self.conns[conn].ends[end].up = true;
        self.hosts[end].conn = Some(conn);
        let link = self.conns[conn].ends[end].link;
        let other = &self.hosts[1 - end];
        let (run_id, boot_id) = (other.run_id, other.boot_id);
        let peer = PeerHello {
            node: node_id(1 - end),
            run_id,
            boot_id,
            keeps_checkpoints: self.setup.checkpoints > 0,
            takes_least: true,
        };
        self.deliver(end, Input::LinkUp { link, peer });
        self.parse(conn, 1 - end);
    }

    fn end_link(&mut self, conn: usize, end: usize, loss: LinkLoss) {
        let e = &mut self.conns[conn].ends[end];
        if e.down {
            return;
        }
        e.down = true;
        let link = e.link;
        self.conns[conn].pipes[end].dead = true;
        if self.hosts[end].conn == Some(conn) {
            self.hosts[end].conn = None;
            self.hosts[end].deaf = false;
        }
        self.deliver(end, Input::LinkDown { link: Some(link), loss });
    }

    /// Queues a frame. On a connection that is gone or closing it vanishes, as in the engine.
    pub(crate) fn send(&mut self, n: usize, link: LinkId, bytes: Vec<u8>, urgent: bool) {
        let Some(conn) = self.hosts[n].conn else { return };
        let c = &mut self.conns[conn];
        if c.ends[n].link != link || c.ends[n].closing || c.ends[n].down || c.pipes[n].dead {
            return;
        }
        for word in bytes.as_chunks::<8>().0 {
            self.trace = (self.trace ^ u64::from_le_bytes(*word)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        let pipe = &mut self.conns[conn].pipes[n];
        if urgent {
            pipe.urgent.push_back(bytes);
        } else {
            pipe.ordered.push_back(bytes);
        }
        self.transmit(conn, n);
    }

    fn transmit(&mut self, conn: usize, from: usize) {
        let pipe = &mut self.conns[conn].pipes[from];
        if pipe.sending {
            return;
        }
        let next = pipe.urgent.front().or(pipe.ordered.front()).map(Vec::len);
        match next {
            Some(len) => {
                pipe.sending = true;
                // Tags stand for 64 times as many bytes.
                let bytes = if len > 512 { len as u64 * 64 } else { len as u64 };
                let delay = US / 10 + bytes * self.setup.wire_ns_per_kib / 1024;
                self.after(delay, Ev::Sent(conn, from));
            }
            None if pipe.fin => {
                pipe.fin = false;
                self.fly(conn, from, None);
            }
            None => {}
        }
    }

    /// The wire has taken a frame: it arrives later, in one piece or several.
    pub(crate) fn sent(&mut self, conn: usize, from: usize) {
        let pipe = &mut self.conns[conn].pipes[from];
        pipe.sending = false;
        if let Some(mut bytes) = pipe.urgent.pop_front().or_else(|| pipe.ordered.pop_front()) {
            if self.rng.net.chance(100) {
                let rest = bytes.split_off(self.rng.net.below(bytes.len() as u64) as usize);
                self.fly(conn, from, Some(bytes));
                self.fly(conn, from, Some(rest));
            } else {
                self.fly(conn, from, Some(bytes));
            }
        }
        self.transmit(conn, from);
    }

    fn fly(&mut self, conn: usize, from: usize, piece: Option<Vec<u8>>) {
        let latency = self.rng.net.spread(self.setup.wire_ns);
        let pipe = &mut self.conns[conn].pipes[from];
        pipe.last_arrival = pipe.last_arrival.max(self.now + latency);
        let delay = pipe.last_arrival - self.now;
        pipe.flight.push_back(piece);
        self.after(delay, Ev::Arrive(conn, from));
    }

    /// A piece arrives, unless the network is silent: then it waits.
    pub(crate) fn arrive(&mut self, conn: usize, from: usize) {
        if self.silent_until[from] > self.now {
            let delay = self.silent_until[from] - self.now;
            return self.after(delay, Ev::Arrive(conn, from));
        }
        let c = &mut self.conns[conn];
        let Some(piece) = c.pipes[from].flight.pop_front() else { return };
        if c.ends[1 - from].down {
            return self.arrive_late(conn, from, piece);
        }
        match piece {
            Some(bytes) => {
                c.pipes[from].arrived.extend(bytes);
                self.parse(conn, from);
            }
            None => self.after(0, Ev::Lost(conn, 1 - from)),
        }
    }

    /// Bytes of a connection whose end the core has learnt: a shell that had read them already hands them over all the
    /// same, with the number of the old link.
    fn arrive_late(&mut self, conn: usize, from: usize, piece: Option<Vec<u8>>) {
        let to = 1 - from;
        let end = &self.conns[conn].ends[to];
        let (link, knows) = (end.link, end.up && end.process == self.hosts[to].process);
        if !knows {
            return;
        }
        self.conns[conn].pipes[from].arrived.extend(piece.into_iter().flatten());
        while let Ok(Some(arrived)) = net::decode(&mut self.conns[conn].pipes[from].arrived) {
            self.deliver(to, Input::Frame { link, arrived });
        }
    }

    fn parse(&mut self, conn: usize, from: usize) {
        let to = 1 - from;
        while self.conns[conn].ends[to].up && !self.conns[conn].ends[to].down {
            let link = self.conns[conn].ends[to].link;
            let host = &mut self.hosts[to];
            if host.received.len() >= self.setup.receive_slots && host.conn == Some(conn) {
                if !std::mem::replace(&mut host.deaf, true) {
                    self.deliver(to, Input::Reading { link, is_reading: false });
                }
                return;
            }
            match net::decode(&mut self.conns[conn].pipes[from].arrived) {
                Ok(None) => return,
                Ok(Some(arrived)) => self.deliver(to, Input::Frame { link, arrived }),
                Err(why) if self.conns[conn].pipes[from].is_damaged => {
                    self.say(format_args!("n{to} {why}"));
                    let delay = self.setup.wire_ns + self.rng.net.below(5 * MS);
                    self.after(delay, Ev::Lost(conn, from));
                    return self.end_link(conn, to, LinkLoss::Malformed);
                }
                Err(why) => return self.fail("wire", format!("node {to}: {why}")),
            }
        }
    }

    /// A buffer may be free again: the connection is read soon.
    pub(crate) fn wake_reader(&mut self, n: usize) {
        if self.hosts[n].deaf && self.hosts[n].received.len() < self.setup.receive_slots {
            self.after(0, Ev::Read(n));
        }
    }

    /// Goes on reading, if there are buffers.
    pub(crate) fn read(&mut self, n: usize) {
        let host = &mut self.hosts[n];
        if !host.deaf || host.received.len() >= self.setup.receive_slots {
            return;
        }
        host.deaf = false;
        let Some(conn) = host.conn else { return };
        let link = self.conns[conn].ends[n].link;
        self.deliver(n, Input::Reading { link, is_reading: true });
        self.parse(conn, 1 - n);
    }

    /// An end learns that its connection is lost.
    pub(crate) fn lost(&mut self, conn: usize, end: usize) {
        let e = &self.conns[conn].ends[end];
        if !e.up && !e.down {
            return self.after(MS, Ev::Lost(conn, end));
        }
        self.end_link(conn, end, LinkLoss::Lost);
    }

    /// The core closes its end, after what is queued.
    pub(crate) fn close(&mut self, n: usize, link: LinkId) {
        let Some(conn) = self.hosts[n].conn.filter(|&c| self.conns[c].ends[n].link == link) else { return };
        if std::mem::replace(&mut self.conns[conn].ends[n].closing, true) {
            return;
        }
        self.conns[conn].pipes[n].fin = true;
        self.transmit(conn, n);
        let delay = 100 * US + self.rng.net.below(5 * MS);
        self.after(delay, Ev::Closed(conn, n));
    }

    /// A closed end is gone.
    pub(crate) fn closed(&mut self, conn: usize, end: usize) {
        self.end_link(conn, end, LinkLoss::Closed);
    }

    /// A process is gone: its connections break. After a power loss the peer hears nothing.
    pub(crate) fn cut(&mut self, n: usize, silently: bool) {
        let process = self.hosts[n].process;
        for conn in 0..self.conns.len() {
            let end = &mut self.conns[conn].ends[n];
            if end.process != process || end.down {
                continue;
            }
            end.down = true;
            self.truncate(conn);
            if !silently {
                let delay = self.setup.wire_ns + self.rng.net.below(5 * MS);
                self.after(delay, Ev::Lost(conn, 1 - n));
            }
        }
    }

    /// The network resets the present connection; each end learns at its own time.
    pub(crate) fn reset(&mut self) {
        let Some(conn) = self.hosts[0].conn.or(self.hosts[1].conn) else { return };
        self.say(format_args!("RESET of connection {conn}"));
        self.truncate(conn);
        for end in 0..2 {
            let delay = self.rng.net.spread(10 * MS);
            self.after(delay, Ev::Lost(conn, end));
        }
    }

    /// A bit turns over on the present connection.
    pub(crate) fn flip(&mut self) {
        let Some(conn) = self.hosts[0].conn.or(self.hosts[1].conn) else { return };
        let first = self.rng.net.below(2) as usize;
        for from in [first, 1 - first] {
            let drawn = self.rng.net.word();
            if self.conns[conn].pipes[from].flip(drawn) {
                return self.say(format_args!("FLIP on connection {conn} from n{from}"));
            }
        }
    }

    fn truncate(&mut self, conn: usize) {
        for (from, pipe) in self.conns[conn].pipes.iter_mut().enumerate() {
            let keep = match &mut self.watch {
                Some(watch) => watch.keep(from, pipe),
                None => self.rng.net.below(pipe.in_flight_bytes() as u64 + 1) as usize,
            };
            pipe.truncate(keep);
        }
    }
}
