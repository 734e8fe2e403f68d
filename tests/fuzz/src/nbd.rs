//! NBD, both sides of the wire: negotiation, requests, and what a client is told.
//!
//! Asserted: no machine takes more than it was given; how the stream is cut does not matter, to the byte at which it is
//! over; memory grows only with bytes that arrived; a session that refused something takes nothing more; a request
//! that is let through is inside of what was offered, and is refused exactly when the specification says so.

mod requests;
pub(crate) mod session;

pub(crate) use requests::transmission;

use lockstep_counting::measure;
use lockstep_nbd::client::{ClientError, Connected, Handshake, Reply, next_reply};
use lockstep_nbd::{
    ALLOCATION_CONTEXT, BlockSizes, ExportDirectory, ExportInfo, HandshakeError, Limits, Lookup, Negotiation,
    Step, TlsPolicy, Transmission,
};

use crate::input::{Cuts, Input};

const OPTION_MAGIC: &[u8] = b"IHAVEOPT";
const OTHER_CONTEXT: &str = "x-lockstep:out-of-sync";
/// Memory that a machine may hold before anything arrived.
const FIXED_BYTES: u64 = 2048;

/// Four exports: one to serve, one refused, one that needs TLS, one that is ready when asked for the second time.
struct Directory {
    asked: std::cell::Cell<u32>,
}

fn export() -> ExportInfo {
    ExportInfo {
        name: "v0".into(),
        description: "a volume".into(),
        size_bytes: 1 << 20,
        read_only: false,
        block: BlockSizes { min: 512, preferred: 4096, max: 1 << 20 },
        rotational: false,
        multi_conn: true,
        fast_zero: true,
        contexts: vec![ALLOCATION_CONTEXT.into(), OTHER_CONTEXT.into()],
    }
}

impl ExportDirectory for Directory {
    fn list(&self) -> Vec<String> {
        vec!["v0".into(), "standby".into()]
    }

    fn find(&self, name: &str) -> Lookup {
        self.asked.set(self.asked.get() + 1);
        match name {
            "v0" | "" => Lookup::Found(export()),
            "standby" => Lookup::Refused { reason: "this node is Secondary".into() },
            "secret" => Lookup::TlsRequired,
            "later" if self.asked.get() % 2 == 1 => Lookup::NotReady,
            "later" => Lookup::Found(export()),
            _ => Lookup::Unknown,
        }
    }
}

/// How a handshake came to its end.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Hungry,
    Closed,
    Refused(HandshakeError),
    /// What was agreed, and at which byte the requests begin.
    Agreed(Transmission, usize),
}

/// Runs a handshake over a stream that arrives in chunks. What follows on STARTTLS stands for what comes out of TLS.
fn shake(stream: &[u8], policy: TlsPolicy, mut cuts: Cuts) -> (Vec<u8>, End) {
    let mut machine = Negotiation::new(Limits::default()).with_tls(policy);
    let mut is_inside = false;
    let directory = Directory { asked: 0.into() };
    let (mut output, mut taken, mut arrived) = (Vec::new(), 0, 0_usize);
    loop {
        let offered = &stream[taken..arrived];
        let consumed = match machine.receive(offered) {
            Ok(consumed) => consumed,
            Err(error) => {
                assert_eq!(machine.receive(&stream[taken..]), Err(error), "goes on after a refusal");
                return (output, End::Refused(error));
            }
        };
        assert!(consumed <= offered.len(), "takes more than it was given");
        taken += consumed;
        let said = output.len();
        match machine.poll(&directory, &mut output) {
            Step::NeedMore if consumed > 0 || output.len() > said => {}
            Step::NeedMore if arrived == stream.len() => return (output, End::Hungry),
            Step::NeedMore => arrived = arrived.saturating_add(cuts.next()).min(stream.len()),
            Step::Hold { name } => assert_eq!(name, "later"),
            Step::StartTls => {
                assert!(policy != TlsPolicy::Off && !is_inside, "TLS that was not offered");
                assert_eq!(machine.receive(&stream[taken..]), Ok(0), "takes plaintext behind STARTTLS");
                machine.tls_established();
                is_inside = true;
            }
            Step::Close => {
                assert_eq!(machine.receive(&stream[taken..]), Ok(0), "takes input after its end");
                return (output, End::Closed);
            }
            Step::Transmission(agreed) => {
                assert_eq!(machine.receive(&stream[taken..]), Ok(0), "takes bytes of requests");
                assert!(
                    is_inside || policy != TlsPolicy::Required,
                    "requests without the TLS that is required"
                );
                return (output, End::Agreed(agreed, taken));
            }
        }
    }
}

/// Data of LIST_META_CONTEXT and SET_META_CONTEXT.
fn queries(input: &mut Input<'_>, name: &str) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat();
    let count = input.below(4) as u32;
    let mut data = [text(name), (count + u32::from(input.below(16) == 0)).to_be_bytes().to_vec()].concat();
    for _ in 0..count {
        data.extend(text(input.one_of(&[
            ALLOCATION_CONTEXT,
            OTHER_CONTEXT,
            "base:",
            "x-lockstep:",
            "qemu:x",
            "base",
            "",
        ])));
    }
    data
}

/// A stream of mostly good options, from choices.
fn options(input: &mut Input<'_>) -> Vec<u8> {
    let mut stream = vec![0, 0, 0, input.one_of(&[3, 3, 3, 1, 2, 0, 7])];
    while !input.is_empty() && stream.len() < 16 << 10 {
        let number = input.one_of(&[7, 7, 6, 3, 8, 1, 2, 5, 9, 10, 200, 10, 11]);
        let name = input.one_of(&["v0", "standby", "later", "", "none", "v\0", "secret"]);
        let data = match input.below(5) {
            0 => Vec::new(),
            1 => name.as_bytes().to_vec(),
            2 => input.bytes(20).to_vec(),
            3 if [9, 10].contains(&number) => queries(input, name),
            _ => {
                let length = (name.len() as u32).wrapping_add(input.one_of(&[0, 0, 0, 0, 1, 255]));
                let mut data = length.to_be_bytes().to_vec();
                data.extend(name.as_bytes());
                let infos = input.below(4) as u16;
                data.extend(infos.to_be_bytes());
                (0..infos).for_each(|_| data.extend([0, input.one_of(&[0, 1, 2, 3, 9])]));
                data
            }
        };
        let length = match input.below(16) {
            0 => input.u32(),
            1 => 16 << 10,
            _ => data.len() as u32,
        };
        stream.extend(OPTION_MAGIC);
        stream.extend(u32::from(number as u8).to_be_bytes());
        stream.extend(length.to_be_bytes());
        stream.extend(data);
    }
    stream
}

/// The server's handshake over any stream.
pub(crate) fn negotiation(data: &[u8]) {
    let mut input = Input::new(data);
    let (made, falling) = (input.flag(), input.u8());
    let stream = if made { options(&mut input) } else { input.rest().to_vec() };
    let policy = [TlsPolicy::Off, TlsPolicy::Optional, TlsPolicy::Required][usize::from(falling % 3)];
    let (whole, usage) = measure(|| shake(&stream, policy, Cuts::Whole));
    let bound = FIXED_BYTES + 4 * (stream.len() + whole.0.len()) as u64;
    assert!(usage.peak_bytes <= bound, "{usage:?} for {} bytes", stream.len());
    for cuts in [Cuts::Bytewise, Cuts::Falling(falling)] {
        assert_eq!(shake(&stream, policy, cuts), whole, "{cuts:?}");
    }
}

/// What a client's handshake came to: what it said, and the offer and its end, or the error.
type Heard = (Vec<u8>, Result<Option<(Connected, usize)>, ClientError>);

/// Runs the client's handshake over what a server says, which arrives in chunks.
fn hear(stream: &[u8], structured: bool, mut cuts: Cuts) -> Heard {
    let mut client = Handshake::new("v0", structured);
    let (mut said, mut taken, mut arrived) = (Vec::new(), 0, 0_usize);
    while arrived < stream.len() {
        arrived = arrived.saturating_add(cuts.next()).min(stream.len());
        match client.receive(&stream[taken..arrived]) {
            Ok(consumed) => taken += consumed,
            Err(error) => {
                said.extend(client.take_output());
                assert_eq!(client.receive(&stream[taken..]), Err(error.clone()), "goes on after a refusal");
                assert!(client.connected().is_none());
                return (said, Err(error));
            }
        }
        assert!(taken <= arrived, "takes more than it was given");
        said.extend(client.take_output());
    }
    (said, Ok(client.connected().map(|offer| (offer.clone(), taken))))
}

/// What a server says in a handshake, mostly good.
fn server_words(input: &mut Input<'_>) -> Vec<u8> {
    let mut stream = b"NBDMAGICIHAVEOPT\0".to_vec();
    stream.push(input.one_of(&[3, 3, 3, 1, 0]));
    while !input.is_empty() && stream.len() < 16 << 10 {
        let (mut option, mut kind) = (input.one_of(&[7_u32, 7, 8, 6]), input.one_of(&[1_u32, 3, 3, 2]));
        if input.below(8) == 0 {
            (option, kind) = (input.u32(), input.u32() | 1 << 31);
        }
        let data = match input.below(4) {
            0 => Vec::new(),
            1 => [&[0, 0][..], &input.array::<10>()].concat(),
            2 => [&[0, 3][..], &input.array::<12>()].concat(),
            _ => input.bytes(24).to_vec(),
        };
        stream.extend(0x0003_e889_0455_65a9_u64.to_be_bytes());
        stream.extend(option.to_be_bytes());
        stream.extend(kind.to_be_bytes());
        stream.extend((data.len() as u32).to_be_bytes());
        stream.extend(data);
    }
    stream
}

/// The client's side: handshake and replies of any server.
pub(crate) fn client(data: &[u8]) {
    let mut input = Input::new(data);
    let (made, structured, falling) = (input.flag(), input.flag(), input.u8());
    let stream = if made { server_words(&mut input) } else { input.rest().to_vec() };
    let (whole, usage) = measure(|| hear(&stream, structured, Cuts::Whole));
    let bound = FIXED_BYTES + 8 * (stream.len() + whole.0.len()) as u64;
    assert!(usage.peak_bytes <= bound, "{usage:?} for {} bytes", stream.len());
    for cuts in [Cuts::Bytewise, Cuts::Falling(falling)] {
        assert_eq!(hear(&stream, structured, cuts), whole, "{cuts:?}");
    }
    replies(&stream);
    for magic in [0x6744_6698_u32, 0x668e_33ef] {
        replies(&[&magic.to_be_bytes()[..], &stream].concat());
    }
}

/// Reads replies until the stream cannot be followed or ends; data is skipped.
fn replies(mut stream: &[u8]) {
    loop {
        let (reply, usage) = measure(|| next_reply(stream));
        assert!(usage.peak_bytes <= FIXED_BYTES + 4 * stream.len() as u64, "{usage:?}");
        let (consumed, data) = match reply {
            Reply::NeedMore | Reply::Bad(_) => return,
            Reply::Data { consumed, length, .. } => (consumed, length as usize),
            Reply::Simple { consumed, .. }
            | Reply::Hole { consumed, .. }
            | Reply::Failed { consumed, .. }
            | Reply::Done { consumed, .. } => (consumed, 0),
        };
        assert_eq!(next_reply(&stream[..consumed]), reply, "looks behind its end");
        let first = &stream[..consumed - 1];
        assert!(matches!(next_reply(first), Reply::NeedMore), "needs less than it takes");
        let Some(rest) = stream.get(consumed + data..) else { return };
        stream = rest;
    }
}
