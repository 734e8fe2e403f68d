//! The server's side of the handshake: greeting, client flags, options, up to the transmission phase.
//!
//! One option at a time: [`Negotiation::receive`] takes bytes up to the end of one option and no further, and
//! [`Negotiation::poll`] answers it. Bytes behind the last option are thus never touched: they are requests.
//!
//! Limits: an option announcing too much data, too many options, and anything from a client that does not
//! follow the protocol end the connection. Buffered bytes never exceed what arrived, nor one option. Time
//! is the caller's: a handshake deadline belongs there.

mod contexts;
mod tls;

use alloc::string::String;
use alloc::vec::Vec;
use core::mem;

use contexts::Selection;
use tls::Security;
pub use tls::TlsPolicy;

use crate::errors::HandshakeError;
use crate::export::{ExportDirectory, ExportInfo, Lookup};
use crate::reply::Framing;
use crate::wire::{
    FixedBytes, GREETING_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, Reader, STRING_BYTES_MAX, handshake_flag,
    info, option, option_reply, prefix_of,
};

/// Bounds of one handshake.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Options answered before the connection is closed.
    pub options_max: u32,
    /// Most data of one option, in bytes.
    pub option_bytes_max: u32,
}

impl Default for Limits {
    /// 64 options of 16 KiB: a name of 4096 bytes, and more questions about it than there are.
    fn default() -> Self {
        Self { options_max: 64, option_bytes_max: 16 << 10 }
    }
}

/// What the caller does next. Whatever was put in the output is to be sent in any case.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Step {
    /// Everything taken so far is answered: call `receive` with more bytes.
    NeedMore,
    /// The export `name` is not ready: call `poll` again when the directory may have changed its mind.
    Hold {
        /// The name that the client asked for.
        name: String,
    },
    /// Send the output, then begin TLS as its server; whatever arrived and was not taken is the beginning of the
    /// client's TLS handshake. Nothing is taken until [`Negotiation::tls_established`].
    StartTls,
    /// The handshake is over: the next byte of input is the first of a request.
    Transmission(Transmission),
    /// Send the output, then close.
    Close,
}

/// What was agreed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Transmission {
    /// The export, as the client was told.
    pub export: ExportInfo,
    /// How requests and answers are framed.
    pub framing: Framing,
    /// Metadata contexts that were selected for this export; the number of one is its position plus 1.
    pub contexts: Vec<String>,
}

/// The handshake of one connection.
#[derive(Debug)]
pub struct Negotiation {
    limits: Limits,
    phase: Phase,
    /// The incomplete field, or the data of the option to be answered.
    pending: Vec<u8>,
    options_seen: u32,
    fixed_newstyle: bool,
    no_zeroes: bool,
    framing: Framing,
    selection: Selection,
    security: Security,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    ClientFlags,
    OptionHeader,
    OptionData {
        option: u32,
        length_bytes: usize,
    },
    Answer {
        option: u32,
    },
    /// STARTTLS was acknowledged; what comes now is not NBD.
    StartingTls,
    Finished,
}

const CLIENT_FLAGS_BYTES: usize = 4;
const OPTION_HEADER_BYTES: usize = 16;
const ZEROES_BYTES: usize = 124;

impl Negotiation {
    /// A handshake that has received nothing.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            phase: Phase::ClientFlags,
            pending: Vec::new(),
            options_seen: 0,
            fixed_newstyle: false,
            no_zeroes: false,
            framing: Framing::Simple,
            selection: Selection::default(),
            security: Security::Plain(TlsPolicy::Off),
        }
    }

    /// The server's first bytes; 18 of them.
    pub fn greeting() -> [u8; 18] {
        let flags = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
        FixedBytes::new()
            .put(&GREETING_MAGIC.to_be_bytes())
            .put(&OPTION_MAGIC.to_be_bytes())
            .put(&flags.to_be_bytes())
            .into_full()
    }

    /// Takes bytes up to the end of one option; returns how many. It takes none while an option waits for
    /// `poll`.
    pub fn receive(&mut self, input: &[u8]) -> Result<usize, HandshakeError> {
        let mut rest = input;
        while let Some(wanted) = self.wanted_bytes() {
            let missing = wanted.saturating_sub(self.pending.len());
            let (taken, after) = rest.split_at_checked(missing).unwrap_or((rest, &[]));
            self.pending.extend_from_slice(taken);
            rest = after;
            if self.pending.len() < wanted {
                break;
            }
            self.field_complete()?;
        }
        Ok(input.len() - rest.len())
    }

    /// Answers the option that `receive` completed, if it did.
    pub fn poll(&mut self, directory: &dyn ExportDirectory, out: &mut Vec<u8>) -> Step {
        let option = match self.phase {
            Phase::Answer { option } => option,
            Phase::Finished => return Step::Close,
            _ => return Step::NeedMore,
        };
        let data = mem::take(&mut self.pending);
        let step = match option {
            _ if self.security.forbids(option) => self.demand_tls(option, out),
            option::EXPORT_NAME if directory.is_stopping() => Step::Close,
            option if directory.is_stopping() && option != option::ABORT => {
                refuse(out, option, option_reply::ERR_SHUTDOWN, "the server is going down")
            }
            option::EXPORT_NAME => self.answer_export_name(&data, directory, out),
            option::INFO | option::GO => self.answer_info(option, &data, directory, out),
            option::ABORT => {
                put_reply(out, option, option_reply::ACK, &[]);
                Step::Close
            }
            option::LIST => answer_list(&data, directory, out),
            option::STRUCTURED_REPLY | option::EXTENDED_HEADERS => self.answer_framing(option, &data, out),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.answer_meta_context(option, &data, directory, out)
            }
            option::STARTTLS => self.answer_starttls(&data, out),
            _ => refuse(out, option, option_reply::ERR_UNSUP, "option not supported"),
        };
        match &step {
            Step::Hold { .. } => self.pending = data,
            Step::NeedMore => self.phase = Phase::OptionHeader,
            Step::StartTls => self.phase = Phase::StartingTls,
            Step::Transmission(_) | Step::Close => self.phase = Phase::Finished,
        }
        step
    }

    /// Bytes that the current field needs in all; `None` when no input is wanted.
    fn wanted_bytes(&self) -> Option<usize> {
        match self.phase {
            Phase::ClientFlags => Some(CLIENT_FLAGS_BYTES),
            Phase::OptionHeader => Some(OPTION_HEADER_BYTES),
            Phase::OptionData { length_bytes, .. } => Some(length_bytes),
            Phase::Answer { .. } | Phase::StartingTls | Phase::Finished => None,
        }
    }

    fn field_complete(&mut self) -> Result<(), HandshakeError> {
        match self.phase {
            Phase::ClientFlags => {
                self.take_client_flags()?;
                self.pending.clear();
                self.phase = Phase::OptionHeader;
            }
            Phase::OptionHeader => {
                self.phase = self.check_option_header()?;
                self.pending.clear();
            }
            Phase::OptionData { option, .. } => self.phase = Phase::Answer { option },
            Phase::Answer { .. } | Phase::StartingTls | Phase::Finished => {}
        }
        Ok(())
    }

    fn take_client_flags(&mut self) -> Result<(), HandshakeError> {
        let flags = Reader::new(&self.pending).u32().unwrap_or(0);
        let fixed = u32::from(handshake_flag::FIXED_NEWSTYLE);
        let no_zeroes = u32::from(handshake_flag::NO_ZEROES);
        if flags & !(fixed | no_zeroes) != 0 {
            return Err(HandshakeError::UnknownClientFlags(flags));
        }
        self.fixed_newstyle = flags & fixed != 0;
        self.no_zeroes = flags & no_zeroes != 0;
        Ok(())
    }

    fn check_option_header(&mut self) -> Result<Phase, HandshakeError> {
        let mut reader = Reader::new(&self.pending);
        let magic = reader.u64().unwrap_or(0);
        let option = reader.u32().unwrap_or(0);
        let length_bytes = reader.u32().unwrap_or(0);
        if magic != OPTION_MAGIC {
            return Err(HandshakeError::BadOptionMagic(magic));
        }
        if !self.fixed_newstyle && option != option::EXPORT_NAME {
            return Err(HandshakeError::OptionNeedsFixedNewstyle(option));
        }
        if length_bytes > self.limits.option_bytes_max {
            return Err(HandshakeError::OptionTooLong { option, length_bytes });
        }
        if self.options_seen == self.limits.options_max {
            return Err(HandshakeError::TooManyOptions(self.limits.options_max));
        }
        self.options_seen += 1;
        Ok(Phase::OptionData { option, length_bytes: length_bytes as usize })
    }

    /// This option has no way to say no, except by closing.
    fn answer_export_name(&self, data: &[u8], directory: &dyn ExportDirectory, out: &mut Vec<u8>) -> Step {
        let Ok(name) = check_name(data) else {
            return Step::Close;
        };
        if self.framing == Framing::Extended {
            // Its answer has no extended form, and the specification forbids it.
            return Step::Close;
        }
        match directory.find(name) {
            Lookup::NotReady => Step::Hold { name: name.into() },
            Lookup::Unknown | Lookup::Refused { .. } | Lookup::TlsRequired => Step::Close,
            Lookup::Found(export) => {
                out.extend_from_slice(&export.size_bytes.to_be_bytes());
                out.extend_from_slice(&self.transmission_flags(&export).to_be_bytes());
                if !self.no_zeroes {
                    out.extend_from_slice(&[0; ZEROES_BYTES]);
                }
                Step::Transmission(self.agreed(export))
            }
        }
    }

    fn answer_info(
        &self,
        option: u32,
        data: &[u8],
        directory: &dyn ExportDirectory,
        out: &mut Vec<u8>,
    ) -> Step {
        let query = match InfoQuery::read(data) {
            Ok(query) => query,
            Err(BadName { reply_type, why }) => return refuse(out, option, reply_type, why),
        };
        let export = match found(self.security, option, query.name, directory, out) {
            Ok(export) => export,
            Err(absent) => return absent.into(),
        };
        put_export_info(out, option, &export, self.transmission_flags(&export));
        if query.wants_name {
            put_info(out, option, info::NAME, &[export.name.as_bytes()]);
        }
        if query.wants_description {
            let text = prefix_of(&export.description, STRING_BYTES_MAX);
            put_info(out, option, info::DESCRIPTION, &[text.as_bytes()]);
        }
        put_reply(out, option, option_reply::ACK, &[]);
        if option == option::GO { Step::Transmission(self.agreed(export)) } else { Step::NeedMore }
    }

    /// Structured replies, and extended headers, which include them.
    fn answer_framing(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>) -> Step {
        if !data.is_empty() {
            return refuse(out, option, option_reply::ERR_INVALID, NO_DATA_EXPECTED);
        }
        let is_extended = self.framing == Framing::Extended;
        match option {
            option::STRUCTURED_REPLY if is_extended => {
                return refuse(
                    out,
                    option,
                    option_reply::ERR_EXT_HEADER_REQD,
                    "extended headers were agreed",
                );
            }
            option::STRUCTURED_REPLY => self.framing = Framing::Structured,
            _ if is_extended => {
                return refuse(out, option, option_reply::ERR_INVALID, "extended headers were agreed");
            }
            _ => self.framing = Framing::Extended,
        }
        put_reply(out, option, option_reply::ACK, &[]);
        Step::NeedMore
    }

    fn transmission_flags(&self, export: &ExportInfo) -> u16 {
        export.transmission_flags(self.framing, !self.selection.of(export).is_empty())
    }

    fn agreed(&self, export: ExportInfo) -> Transmission {
        let contexts = self.selection.of(&export).to_vec();
        Transmission { export, framing: self.framing, contexts }
    }
}

/// Why there is no export to speak of now.
enum Absent {
    /// It is not ready.
    Held(String),
    /// The client was told why.
    Refused,
}

impl From<Absent> for Step {
    fn from(absent: Absent) -> Self {
        match absent {
            Absent::Held(name) => Self::Hold { name },
            Absent::Refused => Self::NeedMore,
        }
    }
}

/// The export of this name; a refusal is put into `out`.
fn found(
    security: Security,
    option: u32,
    name: &str,
    directory: &dyn ExportDirectory,
    out: &mut Vec<u8>,
) -> Result<ExportInfo, Absent> {
    let (reply_type, why) = match directory.find(name) {
        Lookup::Found(export) => return Ok(export),
        Lookup::NotReady => return Err(Absent::Held(name.into())),
        Lookup::Unknown => (option_reply::ERR_UNKNOWN, NO_SUCH_EXPORT.into()),
        Lookup::TlsRequired => security.refusal_without_tls(),
        Lookup::Refused { reason } => (option_reply::ERR_POLICY, reason),
    };
    refuse(out, option, reply_type, &why);
    Err(Absent::Refused)
}

fn answer_list(data: &[u8], directory: &dyn ExportDirectory, out: &mut Vec<u8>) -> Step {
    if !data.is_empty() {
        return refuse(out, option::LIST, option_reply::ERR_INVALID, NO_DATA_EXPECTED);
    }
    for name in directory.list() {
        let name = prefix_of(&name, STRING_BYTES_MAX).as_bytes();
        put_reply(out, option::LIST, option_reply::SERVER, &[&(name.len() as u32).to_be_bytes(), name]);
    }
    put_reply(out, option::LIST, option_reply::ACK, &[]);
    Step::NeedMore
}

const NO_SUCH_EXPORT: &str = "no such export";
const NO_DATA_EXPECTED: &str = "this option takes no data";

/// The data of INFO and GO.
struct InfoQuery<'a> {
    name: &'a str,
    wants_name: bool,
    wants_description: bool,
}

/// Why a name or query is refused.
struct BadName {
    reply_type: u32,
    why: &'static str,
}

const MALFORMED: BadName =
    BadName { reply_type: option_reply::ERR_INVALID, why: "lengths inside the option do not add up" };

impl<'a> InfoQuery<'a> {
    fn read(data: &'a [u8]) -> Result<Self, BadName> {
        let mut reader = Reader::new(data);
        let name_bytes = reader.u32().ok_or(MALFORMED)? as usize;
        let name = reader.bytes(name_bytes).ok_or(MALFORMED)?;
        let count = usize::from(reader.u16().ok_or(MALFORMED)?);
        if reader.rest().len() != count * 2 {
            return Err(MALFORMED);
        }
        let name = check_name(name)?;
        let mut query = Self { name, wants_name: false, wants_description: false };
        while let Some(wanted) = reader.u16() {
            query.wants_name |= wanted == info::NAME;
            query.wants_description |= wanted == info::DESCRIPTION;
        }
        Ok(query)
    }
}

fn check_name(bytes: &[u8]) -> Result<&str, BadName> {
    if bytes.len() > STRING_BYTES_MAX {
        return Err(BadName { reply_type: option_reply::ERR_TOO_BIG, why: "name longer than 4096 bytes" });
    }
    match core::str::from_utf8(bytes) {
        Ok(name) if !name.contains('\0') => Ok(name),
        _ => Err(BadName { reply_type: option_reply::ERR_INVALID, why: "name is not text" }),
    }
}

fn put_export_info(out: &mut Vec<u8>, option: u32, export: &ExportInfo, flags: u16) {
    assert!(export.block.is_valid(), "block sizes of the export break the specification");
    let size = export.size_bytes.to_be_bytes();
    put_info(out, option, info::EXPORT, &[&size, &flags.to_be_bytes()]);
    let block = &export.block;
    let sizes = [block.min.to_be_bytes(), block.preferred.to_be_bytes(), block.max.to_be_bytes()];
    put_info(out, option, info::BLOCK_SIZE, &[sizes.as_flattened()]);
}

fn put_info(out: &mut Vec<u8>, option: u32, kind: u16, parts: &[&[u8]]) {
    let length = 2 + parts.iter().map(|part| part.len()).sum::<usize>();
    put_reply_header(out, option, option_reply::INFO, length);
    out.extend_from_slice(&kind.to_be_bytes());
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

fn put_reply(out: &mut Vec<u8>, option: u32, reply_type: u32, parts: &[&[u8]]) {
    put_reply_header(out, option, reply_type, parts.iter().map(|part| part.len()).sum());
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

fn put_reply_header(out: &mut Vec<u8>, option: u32, reply_type: u32, length: usize) {
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&reply_type.to_be_bytes());
    out.extend_from_slice(&(length as u32).to_be_bytes());
}

/// An error reply leaves the handshake where it was.
fn refuse(out: &mut Vec<u8>, option: u32, reply_type: u32, why: &str) -> Step {
    put_reply(out, option, reply_type, &[prefix_of(why, STRING_BYTES_MAX).as_bytes()]);
    Step::NeedMore
}

#[cfg(test)]
mod tests;
