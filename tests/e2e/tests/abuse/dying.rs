//! Clients that die, each in another state.

use crate::busy::BUSY_BYTES;
use crate::raw::{
    BLOCK_STATUS, DISCONNECT, FLUSH, LIST, READ, Raw, TRIM, WRITE, extended_request, flags, go, option,
    request,
};
use crate::subject::SIZE_BYTES;
use lockstep_e2e::{RESOURCE, Rng};

/// How far a client came.
#[derive(Clone, Copy, Debug)]
pub(crate) enum State {
    Silent,
    InGreeting,
    InFlags,
    InOptionHeader,
    InOptionData,
    AnswerOfGoUnread,
    AnswersOfOptionsUnread,
    Idle,
    InRequestHeader,
    InPayload,
    InRefusedPayload,
    ReadsPending,
    LongReadPending,
    WritesPending,
    ChangesPending,
    Disconnecting,
    DisconnectingWithWrites,
    InExtendedHeader,
    StatusPending,
    LongChangesPending,
}

use State::*;

pub(crate) const STATES: [State; 20] = [
    Silent,
    InGreeting,
    InFlags,
    InOptionHeader,
    InOptionData,
    AnswerOfGoUnread,
    AnswersOfOptionsUnread,
    Idle,
    InRequestHeader,
    InPayload,
    InRefusedPayload,
    ReadsPending,
    LongReadPending,
    WritesPending,
    ChangesPending,
    Disconnecting,
    DisconnectingWithWrites,
    InExtendedHeader,
    StatusPending,
    LongChangesPending,
];

/// Brings a fresh connection to this state; dropping it is its death.
pub(crate) fn bring_to(raw: &mut Raw, state: State, rng: &mut Rng) {
    let part = |bytes: Vec<u8>, rng: &mut Rng| {
        let length = rng.below(bytes.len() as u64) as usize;
        bytes[..length].to_vec()
    };
    match state {
        Silent => {}
        InGreeting => drop(raw.receive(rng.below(18) as usize)),
        InFlags => raw.send(&part(flags().to_vec(), rng)),
        InOptionHeader => raw.send(&[&flags()[..], &part(option(LIST, &[]), rng)].concat()),
        InOptionData => {
            let data = part(option(LIST, &vec![7; 16 << 10]), rng);
            raw.send(&[&flags()[..], &data].concat());
        }
        AnswerOfGoUnread => raw.send(&[&flags()[..], &go(RESOURCE)].concat()),
        AnswersOfOptionsUnread => raw.send(&[&flags()[..], &option(LIST, &[]).repeat(60)].concat()),
        InExtendedHeader | StatusPending | LongChangesPending => {
            raw.shake_extended(RESOURCE);
            let requests = extended_requests(state);
            let sent = if matches!(state, InExtendedHeader) { part(requests, rng) } else { requests };
            raw.send(&sent);
        }
        _ => {
            raw.shake(RESOURCE);
            let requests = requests(state, rng);
            raw.send(&requests);
        }
    }
}

/// What a client with extended headers has sent.
fn extended_requests(state: State) -> Vec<u8> {
    let rest = SIZE_BYTES - BUSY_BYTES;
    match state {
        StatusPending => (0..50).flat_map(|n| extended_request(BLOCK_STATUS, n, 0, SIZE_BYTES)).collect(),
        LongChangesPending => (0..8).flat_map(|n| extended_request(TRIM, n, BUSY_BYTES, rest)).collect(),
        _ => extended_request(READ, 1, 0, 4096),
    }
}

/// What a client in the transmission phase has sent.
fn requests(state: State, rng: &mut Rng) -> Vec<u8> {
    // Beside the regions of those who behave.
    let room = SIZE_BYTES - BUSY_BYTES;
    let mut near = |length: u32| BUSY_BYTES + rng.below(room - u64::from(length));
    let write = |offset: u64, length: u32, payload: u32| {
        [request(WRITE, 1, offset, length), vec![9; payload as usize]].concat()
    };
    match state {
        InRequestHeader => {
            let header = request(READ, 1, near(4096), 4096);
            header[..1 + near(0) as usize % 27].to_vec()
        }
        InPayload => write(near(1 << 20), 1 << 20, near(0) as u32 % (1 << 20)),
        InRefusedPayload => write(SIZE_BYTES, 1 << 20, near(0) as u32 % (1 << 20)),
        ReadsPending => (0..64).flat_map(|cookie| request(READ, cookie, near(1 << 16), 1 << 16)).collect(),
        LongReadPending => request(READ, 1, near(32 << 20), 32 << 20),
        WritesPending | DisconnectingWithWrites => {
            let mut bytes: Vec<u8> = (0..16).flat_map(|_| write(near(20_000), 20_000, 20_000)).collect();
            if matches!(state, DisconnectingWithWrites) {
                bytes.extend(request(DISCONNECT, 0, 0, 0));
            }
            bytes
        }
        ChangesPending => {
            let trims = (0..8).flat_map(|cookie| request(TRIM, cookie, near(5 << 20), 5 << 20));
            trims.chain((0..8).flat_map(|cookie| request(FLUSH, cookie, 0, 0))).collect()
        }
        Disconnecting => request(DISCONNECT, 0, 0, 0),
        _ => Vec::new(),
    }
}
