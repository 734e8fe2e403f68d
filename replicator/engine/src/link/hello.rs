//! The first exchange on a connection between nodes: who speaks, for which resource, and proof of the secret.
//!
//! Sans-IO: bytes in, bytes out. Dialler and acceptor each send a Hello with a fresh nonce, then each proves,
//! with a keyed hash over its role and both Hellos, that it knows the cluster's secret; the dialler proves
//! first. The role in the proof makes a reflected one worthless, the nonces a replayed one. What does not
//! match is answered with a Reject that says so in words, before the connection is closed.
//!
//! | bytes | message |
//! |---|---|
//! | 0 | kind: 1 Hello, 2 Proof, 3 Reject |
//! | 1..3 | length of the body, little-endian |
//! | 3.. | body |
//!
//! Hello: magic (8), lowest and highest version (2 + 2), features (8), run id (16), boot id (16), nonce (32),
//! sender's and receiver's node id (1 + 1), then cluster, resource, sender's and receiver's name, each with a
//! length byte. Proof: 32 bytes. Reject: text.

use std::fmt;

use lockstep_bitmap::NodeId;
use lockstep_core::PeerHello;

/// Longest body of a message.
const BODY_BYTES_MAX: usize = 1024;
const HEAD_BYTES: usize = 3;
const MAGIC: [u8; 8] = *b"LOCKSTEP";
const VERSION_MIN: u16 = 1;
const VERSION_MAX: u16 = 1;
/// Feature bits that this program knows. A peer may offer more; both use what both know.
const FEATURES: u64 = FEATURE_CHECKPOINTS | FEATURE_LEAST_RATE;
/// The frames about checkpoints.
const FEATURE_CHECKPOINTS: u64 = 1 << 0;
/// The least rate in Pace frames.
const FEATURE_LEAST_RATE: u64 = 1 << 1;

const HELLO: u8 = 1;
const PROOF: u8 = 2;
const REJECT: u8 = 3;

/// Who dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// This end connected.
    Dialler,
    /// This end accepted.
    Acceptor,
}

/// What this node says of itself, on every connection.
#[derive(Clone, Debug)]
pub struct Local {
    /// Name of the cluster.
    pub cluster: String,
    /// What all nodes of the cluster know, and nobody else.
    pub secret: [u8; 32],
    /// This node.
    pub node: NodeId,
    /// Its name.
    pub node_name: String,
    /// Random number of this process.
    pub run_id: u128,
    /// Boot id of this kernel.
    pub boot_id: u128,
}

/// A resource and the peer that is expected for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Name of the resource.
    pub resource: String,
    /// The peer.
    pub peer: NodeId,
    /// Its name.
    pub peer_name: String,
}

/// Why the exchange failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// Not this protocol, or damaged.
    #[error("what arrived is no hello of Lockstep")]
    Malformed,
    /// Something does not match; the text was sent to the peer.
    #[error("{0}")]
    Mismatch(String),
    /// The proof is wrong.
    #[error("the peer does not know the cluster's secret (secret-file must be equal on all nodes)")]
    Secret,
    /// The peer said no.
    #[error("the peer refused: {0}")]
    Rejected(String),
}

/// Outcome of `receive`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Go on.
    NeedMore,
    /// The peer is proved to be who it says, for this resource. What follows in the input is frames.
    Done {
        /// Name of the resource.
        resource: String,
        /// Who it is.
        peer: PeerHello,
        /// Key of the digests that are compared over this connection.
        digest_key: [u8; 32],
    },
}

/// What an acceptor is asked for, as it can be told before it takes anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Not yet known.
    NeedMore,
    /// This resource, by the word of a stranger.
    Resource(String),
    /// It is too late to ask, or there was no such message: the exchange says what is next.
    Settled,
}

/// One exchange.
pub struct Hello {
    side: Side,
    key: [u8; 32],
    local: Local,
    /// Known at once by the dialler, from the peer's Hello by the acceptor.
    expected: Option<Expected>,
    nonce: [u8; 32],
    /// Bytes of the two Hello bodies.
    mine: Vec<u8>,
    theirs: Vec<u8>,
    peer: Option<PeerHello>,
    pending: Vec<u8>,
    /// Why it is over: nothing is taken any more.
    failed: Option<HelloError>,
}

impl fmt::Debug for Hello {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hello")
            .field("side", &self.side)
            .field("expected", &self.expected)
            .finish_non_exhaustive()
    }
}

impl Hello {
    /// The dialling side; appends its first message to `out`. `nonce` is random and never used again.
    pub fn dial(local: Local, expected: Expected, nonce: [u8; 32], out: &mut Vec<u8>) -> Self {
        let mut hello = Self::new(Side::Dialler, local, nonce);
        hello.mine = hello.encode(&expected);
        put(out, HELLO, &hello.mine);
        hello.expected = Some(expected);
        hello
    }

    /// The accepting side, which waits for the other's first message.
    pub fn accept(local: Local, nonce: [u8; 32]) -> Self {
        Self::new(Side::Acceptor, local, nonce)
    }

    fn new(side: Side, local: Local, nonce: [u8; 32]) -> Self {
        let key = blake3::derive_key("lockstep 2026 hello proof v1", &local.secret);
        let (mine, theirs, pending) = (Vec::new(), Vec::new(), Vec::new());
        let (expected, peer, failed) = (None, None, None);
        Self { side, key, local, expected, nonce, mine, theirs, peer, pending, failed }
    }

    /// Looks at bytes and takes none: which resource the other side begins with.
    pub fn wanted(&self, input: &[u8]) -> Wanted {
        let has_begun = self.peer.is_some() || !self.pending.is_empty() || self.failed.is_some();
        if self.side == Side::Dialler || has_begun {
            return Wanted::Settled;
        }
        let Some(([kind, length @ ..], rest)) = input.split_first_chunk::<HEAD_BYTES>() else {
            return Wanted::NeedMore;
        };
        let length = usize::from(u16::from_le_bytes(*length));
        if *kind != HELLO || length > BODY_BYTES_MAX {
            return Wanted::Settled;
        }
        match rest.get(..length) {
            None => Wanted::NeedMore,
            Some(body) => {
                Offer::decode(body).map_or(Wanted::Settled, |offer| Wanted::Resource(offer.resource))
            }
        }
    }

    /// Takes bytes; returns how many, and what is next. `find` names the resource's peer, or says why not. On
    /// an error send what is in `out`, then close: the exchange is over, and nobody gets a second try in it.
    pub fn receive(
        &mut self,
        input: &[u8],
        find: &dyn Fn(&str) -> Result<Expected, String>,
        out: &mut Vec<u8>,
    ) -> (usize, Result<Step, HelloError>) {
        if let Some(error) = &self.failed {
            return (0, Err(error.clone()));
        }
        let (taken, step) = self.take(input, find, out);
        self.failed = step.as_ref().err().cloned();
        (taken, step)
    }

    fn take(
        &mut self,
        input: &[u8],
        find: &dyn Fn(&str) -> Result<Expected, String>,
        out: &mut Vec<u8>,
    ) -> (usize, Result<Step, HelloError>) {
        let mut taken = 0;
        loop {
            let wanted = match self.pending.get(1..HEAD_BYTES) {
                Some(length) => HEAD_BYTES + usize::from(u16::from_le_bytes([length[0], length[1]])),
                None => HEAD_BYTES,
            };
            if wanted > HEAD_BYTES + BODY_BYTES_MAX {
                return (taken, Err(HelloError::Malformed));
            }
            let missing = wanted - self.pending.len();
            if missing == 0 && wanted > HEAD_BYTES {
                let message = std::mem::take(&mut self.pending);
                match self.message(message[0], &message[HEAD_BYTES..], find, out) {
                    Ok(Step::NeedMore) => continue,
                    end => return (taken, end),
                }
            }
            if missing == 0 {
                // A body of no bytes is never right.
                return (taken, Err(HelloError::Malformed));
            }
            let available = missing.min(input.len() - taken);
            if available == 0 {
                return (taken, Ok(Step::NeedMore));
            }
            self.pending.extend_from_slice(&input[taken..taken + available]);
            taken += available;
        }
    }

    fn message(
        &mut self,
        kind: u8,
        body: &[u8],
        find: &dyn Fn(&str) -> Result<Expected, String>,
        out: &mut Vec<u8>,
    ) -> Result<Step, HelloError> {
        match (kind, self.peer, self.side) {
            (REJECT, ..) => Err(HelloError::Rejected(printable(body))),
            (HELLO, None, Side::Dialler) => {
                self.take_hello(body, find, out)?;
                put(out, PROOF, &self.proof(Side::Dialler));
                Ok(Step::NeedMore)
            }
            (HELLO, None, Side::Acceptor) => {
                self.take_hello(body, find, out)?;
                if let Some(expected) = &self.expected {
                    self.mine = self.encode(expected);
                }
                put(out, HELLO, &self.mine);
                Ok(Step::NeedMore)
            }
            (PROOF, Some(peer), side) => {
                let other = if side == Side::Dialler { Side::Acceptor } else { Side::Dialler };
                let theirs: [u8; 32] = body.try_into().map_err(|_| HelloError::Malformed)?;
                // Comparing hashes of the type `blake3::Hash` takes the same time wherever they differ.
                if blake3::Hash::from(theirs) != blake3::Hash::from(self.proof(other)) {
                    put(out, REJECT, HelloError::Secret.to_string().as_bytes());
                    return Err(HelloError::Secret);
                }
                if side == Side::Acceptor {
                    put(out, PROOF, &self.proof(Side::Acceptor));
                }
                let resource = self.expected.as_ref().map(|e| e.resource.clone()).unwrap_or_default();
                Ok(Step::Done { resource, peer, digest_key: self.digest_key() })
            }
            _ => Err(HelloError::Malformed),
        }
    }

    fn take_hello(
        &mut self,
        body: &[u8],
        find: &dyn Fn(&str) -> Result<Expected, String>,
        out: &mut Vec<u8>,
    ) -> Result<(), HelloError> {
        let offer = Offer::decode(body).ok_or(HelloError::Malformed)?;
        match self.check(&offer, find) {
            Ok(expected) => {
                self.peer = Some(PeerHello {
                    node: expected.peer,
                    run_id: offer.run_id,
                    boot_id: offer.boot_id,
                    keeps_checkpoints: offer.features & FEATURE_CHECKPOINTS != 0,
                    takes_least: offer.features & FEATURE_LEAST_RATE != 0,
                });
                self.expected = Some(expected);
                self.theirs = body.to_vec();
                Ok(())
            }
            Err(reason) => {
                put(out, REJECT, reason.as_bytes());
                Err(HelloError::Mismatch(reason))
            }
        }
    }

    /// The text of an error goes to both operators: it names both sides.
    fn check(
        &self,
        offer: &Offer,
        find: &dyn Fn(&str) -> Result<Expected, String>,
    ) -> Result<Expected, String> {
        let local = &self.local;
        if offer.version_min > VERSION_MAX || offer.version_max < VERSION_MIN {
            return Err(format!(
                "{} speaks versions {VERSION_MIN} to {VERSION_MAX} of the protocol, {} speaks {} to {}",
                local.node_name, offer.sender_name, offer.version_min, offer.version_max
            ));
        }
        if offer.cluster != local.cluster {
            return Err(format!(
                "{} is in cluster {:?}, {} in {:?}",
                local.node_name, local.cluster, offer.sender_name, offer.cluster
            ));
        }
        let expected = match &self.expected {
            Some(expected) if expected.resource != offer.resource => {
                return Err(format!(
                    "asked for resource {:?}, was answered for {:?}",
                    expected.resource, offer.resource
                ));
            }
            Some(expected) => expected.clone(),
            None => find(&offer.resource)?,
        };
        if (offer.sender, &offer.sender_name) != (expected.peer, &expected.peer_name) {
            return Err(format!(
                "{} expects node {} ({}) as peer of {}, not node {} ({})",
                local.node_name,
                expected.peer.0,
                expected.peer_name,
                expected.resource,
                offer.sender.0,
                offer.sender_name
            ));
        }
        if (offer.receiver, &offer.receiver_name) != (local.node, &local.node_name) {
            return Err(format!(
                "this is node {} ({}), not node {} ({}): check the addresses in the configuration",
                local.node.0, local.node_name, offer.receiver.0, offer.receiver_name
            ));
        }
        // Only one end dials, so that two connections never cross.
        let dialler = if self.side == Side::Acceptor { expected.peer } else { local.node };
        if dialler != local.node.min(expected.peer) {
            return Err(format!("node {} must not dial: the node with the lower id does", dialler.0));
        }
        if offer.run_id == local.run_id {
            return Err("connected to itself".into());
        }
        Ok(expected)
    }

    /// The proof that the node in the role `side` sends.
    fn proof(&self, side: Side) -> [u8; 32] {
        self.keyed(if side == Side::Dialler { b"dialler " } else { b"acceptor" })
    }

    /// Key of the digests that are compared over this connection: both ends know it, it is never used again, and
    /// nobody else can make two different blocks with the same digest.
    fn digest_key(&self) -> [u8; 32] {
        self.keyed(b"digests ")
    }

    /// Hash over both Hellos that only who knows the secret can compute.
    fn keyed(&self, what: &[u8; 8]) -> [u8; 32] {
        let (dialler, acceptor) = match self.side {
            Side::Dialler => (&self.mine, &self.theirs),
            Side::Acceptor => (&self.theirs, &self.mine),
        };
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(what);
        for hello in [dialler, acceptor] {
            hasher.update(&(hello.len() as u64).to_le_bytes());
            hasher.update(hello);
        }
        *hasher.finalize().as_bytes()
    }

    fn encode(&self, expected: &Expected) -> Vec<u8> {
        let local = &self.local;
        let mut body = Vec::with_capacity(256);
        body.extend(MAGIC);
        body.extend(VERSION_MIN.to_le_bytes());
        body.extend(VERSION_MAX.to_le_bytes());
        body.extend(FEATURES.to_le_bytes());
        body.extend(local.run_id.to_le_bytes());
        body.extend(local.boot_id.to_le_bytes());
        body.extend(self.nonce);
        body.extend([local.node.0, expected.peer.0]);
        for text in [&local.cluster, &expected.resource, &local.node_name, &expected.peer_name] {
            let text = &text.as_bytes()[..text.len().min(NAME_BYTES_MAX)];
            body.push(text.len() as u8);
            body.extend(text);
        }
        body
    }
}

/// Names are cut here: four of them fit a body.
const NAME_BYTES_MAX: usize = 200;

/// A peer's Hello, decoded.
struct Offer {
    version_min: u16,
    version_max: u16,
    features: u64,
    run_id: u128,
    boot_id: u128,
    sender: NodeId,
    receiver: NodeId,
    cluster: String,
    resource: String,
    sender_name: String,
    receiver_name: String,
}

impl Offer {
    fn decode(body: &[u8]) -> Option<Self> {
        let mut rest = body;
        if take::<8>(&mut rest)? != MAGIC {
            return None;
        }
        let version_min = u16::from_le_bytes(take(&mut rest)?);
        let version_max = u16::from_le_bytes(take(&mut rest)?);
        let features = u64::from_le_bytes(take(&mut rest)?);
        let run_id = u128::from_le_bytes(take(&mut rest)?);
        let boot_id = u128::from_le_bytes(take(&mut rest)?);
        let _nonce: [u8; 32] = take(&mut rest)?;
        let [sender, receiver] = take::<2>(&mut rest)?.map(NodeId);
        let cluster = take_text(&mut rest)?;
        let resource = take_text(&mut rest)?;
        let sender_name = take_text(&mut rest)?;
        let receiver_name = take_text(&mut rest)?;
        // Later versions may append fields.
        Some(Self {
            version_min,
            version_max,
            features,
            run_id,
            boot_id,
            sender,
            receiver,
            cluster,
            resource,
            sender_name,
            receiver_name,
        })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

fn take_text(rest: &mut &[u8]) -> Option<String> {
    let [length] = take(rest)?;
    let (text, tail) = rest.split_at_checked(usize::from(length))?;
    *rest = tail;
    let text = std::str::from_utf8(text).ok()?;
    (!text.contains(char::is_control)).then(|| text.to_owned())
}

fn put(out: &mut Vec<u8>, kind: u8, body: &[u8]) {
    let body = &body[..body.len().min(BODY_BYTES_MAX)];
    out.push(kind);
    out.extend((body.len() as u16).to_le_bytes());
    out.extend(body);
}

/// Text of the other side for our log: no control characters, bounded by the message.
fn printable(body: &[u8]) -> String {
    String::from_utf8_lossy(body).chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests;
