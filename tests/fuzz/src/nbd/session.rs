//! Whole sessions of an NBD client: well-formed ones from a grammar, and what becomes of them when bytes are flipped,
//! put in, taken out and doubled, and messages are cut, doubled and put in another order.
//!
//! Asserted beside what holds for any stream: a session that was not changed is understood to its end, agrees what it
//! asked for, and has nothing refused.

use lockstep_nbd::{ALLOCATION_CONTEXT, Framing, TlsPolicy};

use super::requests::{self, Followed, follow};
use super::{End, OPTION_MAGIC, OTHER_CONTEXT, shake};
use crate::input::{Cuts, Input};

const BLOCK_BYTES: u64 = 512;
const SIZE_BYTES: u64 = 1 << 20;
const REQUESTS_MAX: usize = 24;
const CHANGES_MAX: usize = 6;

/// What a client sends, message by message, and what comes of it.
struct Session {
    messages: Vec<Vec<u8>>,
    /// Of the listener.
    policy: TlsPolicy,
    framing: Framing,
    contexts: Vec<&'static str>,
    requests: usize,
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    [OPTION_MAGIC, &number.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data].concat()
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()
}

impl Session {
    fn new(input: &mut Input<'_>) -> Self {
        let framing = input.one_of(&[Framing::Simple, Framing::Structured, Framing::Extended]);
        let requests = input.below(REQUESTS_MAX);
        let policy =
            input.one_of(&[TlsPolicy::Off, TlsPolicy::Off, TlsPolicy::Optional, TlsPolicy::Required]);
        let mut session = Session { messages: Vec::new(), policy, framing, contexts: Vec::new(), requests };
        session.handshake(input);
        for _ in 0..requests {
            let request = session.request(input);
            session.messages.push(request);
        }
        if input.flag() {
            let goodbye = session.header(requests::DISCONNECT, 0, 0, 0, input);
            session.messages.push(goodbye);
            session.requests += 1;
        }
        session
    }

    fn handshake(&mut self, input: &mut Input<'_>) {
        let no_zeroes = input.below(2) as u8;
        self.messages.push(vec![0, 0, 0, 1 | no_zeroes << 1]);
        self.begin_tls(input);
        let info = [text("none"), vec![0, 0]].concat();
        let asides = [option(3, &[]), option(6, &info), option(200, b"x")];
        for _ in 0..input.below(3) {
            self.messages.push(asides[input.below(3)].clone());
        }
        match self.framing {
            Framing::Simple => {}
            Framing::Structured => self.messages.push(option(8, &[])),
            Framing::Extended => self.messages.push(option(11, &[])),
        }
        if self.framing != Framing::Simple {
            self.select(input);
        }
        let name = input.one_of(&["v0", ""]);
        let is_old = input.below(4) == 0 && self.framing != Framing::Extended;
        let infos = input.below(4) as u16;
        let asked: Vec<u8> = (0..infos).flat_map(u16::to_be_bytes).collect();
        self.messages.push(match is_old {
            true => option(1, name.as_bytes()),
            false => option(7, &[text(name), infos.to_be_bytes().to_vec(), asked].concat()),
        });
    }

    /// Begins TLS where it is needed, and sometimes where it is only offered. What was agreed before is forgotten.
    fn begin_tls(&mut self, input: &mut Input<'_>) {
        let may = self.policy != TlsPolicy::Off;
        if may && (input.flag() || self.policy == TlsPolicy::Required) {
            for _ in 0..input.below(3) {
                self.messages.push(option(input.one_of(&[8, 11, 3]), &[]));
            }
            self.messages.push(option(5, &[]));
        }
    }

    /// Asks for contexts; the last time counts.
    fn select(&mut self, input: &mut Input<'_>) {
        let all = [ALLOCATION_CONTEXT, OTHER_CONTEXT];
        for _ in 0..input.below(3) {
            let asked = [&[][..], &all[..1], &all[1..], &all][input.below(4)];
            let queries: Vec<u8> = asked.iter().flat_map(|query| text(query)).collect();
            let number = (asked.len() as u32).to_be_bytes().to_vec();
            let data = [text(input.one_of(&["v0", ""])), number, queries].concat();
            if input.below(4) == 0 {
                self.messages.push(option(9, &data));
            } else {
                self.messages.push(option(10, &data));
                self.contexts = asked.to_vec();
            }
        }
    }

    fn header(&self, command: u64, flags: u64, offset: u64, length: u64, input: &mut Input<'_>) -> Vec<u8> {
        let is_extended = self.framing == Framing::Extended;
        let magic = if is_extended { requests::EXTENDED_REQUEST_MAGIC } else { requests::REQUEST_MAGIC };
        let mut bytes = magic.to_vec();
        bytes.extend((flags as u16).to_be_bytes());
        bytes.extend((command as u16).to_be_bytes());
        bytes.extend(input.array::<8>());
        bytes.extend(offset.to_be_bytes());
        match is_extended {
            true => bytes.extend(length.to_be_bytes()),
            false => bytes.extend((length as u32).to_be_bytes()),
        }
        bytes
    }

    /// A request that nobody refuses, with its payload.
    fn request(&self, input: &mut Input<'_>) -> Vec<u8> {
        let commands = [0, 0, 1, 1, 1, 3, 4, 5, 6, 7, 7];
        let commands = if self.contexts.is_empty() { &commands[..9] } else { &commands };
        let command = input.one_of(commands);
        let has_data = [requests::READ, requests::WRITE].contains(&command);
        let most = if has_data { 16 } else { SIZE_BYTES / BLOCK_BYTES };
        let length = BLOCK_BYTES * (1 + u64::from(input.u16()) % most);
        let offset =
            u64::from(input.u16()) * BLOCK_BYTES % (SIZE_BYTES - length + 1) / BLOCK_BYTES * BLOCK_BYTES;
        let fua = u64::from(input.flag()) * requests::FUA;
        let is_extended = self.framing == Framing::Extended;
        let flags = match command {
            requests::READ if self.framing != Framing::Simple => input.one_of(&[0, requests::DF]),
            requests::WRITE if is_extended => requests::PAYLOAD_LEN,
            requests::WRITE_ZEROES => input.one_of(&[0, requests::NO_HOLE, requests::FAST_ZERO]),
            requests::BLOCK_STATUS => input.one_of(&[0, requests::REQ_ONE]),
            _ => 0,
        };
        match command {
            requests::WRITE => {
                let payload = vec![input.u8(); length as usize];
                [self.header(command, flags | fua, offset, length, input), payload].concat()
            }
            requests::FLUSH => self.header(command, fua, 0, 0, input),
            requests::BLOCK_STATUS if is_extended && input.flag() => {
                let id = 1 + input.below(self.contexts.len()) as u32;
                let list = [&length.to_be_bytes()[..], &id.to_be_bytes()].concat();
                let flags = flags | fua | requests::PAYLOAD_LEN;
                [self.header(command, flags, offset, list.len() as u64, input), list].concat()
            }
            _ => self.header(command, flags | fua, offset, length, input),
        }
    }
}

/// Changes one thing.
fn change(messages: &mut Vec<Vec<u8>>, input: &mut Input<'_>) {
    let [which, other] = [(); 2].map(|()| usize::from(input.u16()) % messages.len());
    let length = messages[which].len();
    let at = usize::from(input.u16()) % (length + 1);
    let end = (at + 1 + input.below(12)).min(length);
    let part = at..end.max(at);
    match input.below(9) {
        0 | 1 if at < length => messages[which][at] ^= 1 << input.below(8),
        2 if at < length => messages[which][at] = input.one_of(&[0, 1, 0x7f, 0x80, 0xff]),
        3 => drop(messages[which].splice(at..at, input.bytes(12).to_vec())),
        4 => drop(messages[which].drain(part)),
        5 => {
            let copy = messages[which][part].to_vec();
            drop(messages[which].splice(at..at, copy));
        }
        6 => messages.swap(which, other),
        7 => messages[which].truncate(at),
        _ => {
            let copy = messages[which].clone();
            messages.insert(other, copy);
        }
    }
}

fn made(input: &mut Input<'_>) -> (Session, Vec<Vec<u8>>) {
    let changes = input.below(CHANGES_MAX);
    let session = Session::new(input);
    let mut messages = session.messages.clone();
    (0..changes).for_each(|_| change(&mut messages, input));
    (session, messages)
}

/// The bytes of a session, changed or not, that these choices lead to; its export is called "v0".
pub fn stream(data: &[u8]) -> Vec<u8> {
    made(&mut Input::new(data)).1.concat()
}

/// A session from its first byte to its last.
pub(crate) fn session(data: &[u8]) {
    let mut input = Input::new(data);
    let (session, messages) = made(&mut input);
    let (stream, falling) = (messages.concat(), input.u8());
    let whole = shake(&stream, session.policy, Cuts::Whole);
    for cuts in [Cuts::Bytewise, Cuts::Falling(falling)] {
        assert_eq!(shake(&stream, session.policy, cuts), whole, "{cuts:?}");
    }
    let followed = match &whole.1 {
        End::Agreed(agreed, at) => Some(follow(&stream[*at..], agreed, true)),
        _ => None,
    };
    if messages == session.messages {
        let End::Agreed(agreed, _) = whole.1 else { panic!("a good handshake ended with {:?}", whole.1) };
        assert_eq!((agreed.framing, agreed.contexts), (session.framing, owned(&session.contexts)));
        let all = Followed { requests: session.requests, ..Followed::default() };
        assert_eq!(followed, Some(all), "a good session was not followed");
    }
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}
