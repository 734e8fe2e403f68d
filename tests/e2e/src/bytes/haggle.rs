//! The handshake: greeting, options, and what an export is like.

use super::fields::{be, u16_at, u32_at, u64_at};
use super::number::{hello, info, magic, opt, rep};
use super::{Raw, Style};
use crate::dial::Target;

/// One reply to an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionReply {
    /// Its type.
    pub kind: u32,
    /// Its data.
    pub data: Vec<u8>,
}

impl OptionReply {
    /// Whether no other reply to the same option follows.
    pub fn is_final(&self) -> bool {
        self.kind == rep::ACK || self.kind & rep::ERROR != 0
    }

    /// Its data as words.
    #[track_caller]
    pub fn words(&self) -> &str {
        std::str::from_utf8(&self.data).expect("words of the server in UTF-8")
    }
}

/// What the server says of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// In bytes.
    pub size: u64,
    /// Transmission flags.
    pub flags: u16,
    /// Least, preferred, most; where it was said.
    pub block_sizes: Option<[u32; 3]>,
}

/// Data of INFO and GO.
pub fn info_query(name: &[u8], wanted: &[u16]) -> Vec<u8> {
    let mut bytes = be(&[&(name.len() as u32), &name, &(wanted.len() as u16)]);
    wanted.iter().for_each(|item| bytes.extend_from_slice(&item.to_be_bytes()));
    bytes
}

/// Data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub fn meta_query(name: &[u8], queries: &[&str]) -> Vec<u8> {
    let mut bytes = be(&[&(name.len() as u32), &name, &(queries.len() as u32)]);
    for query in queries {
        bytes.extend(be(&[&(query.len() as u32), query]));
    }
    bytes
}

impl Raw {
    /// Connects, takes the greeting, and answers with these flags.
    #[track_caller]
    pub fn greet(target: impl Into<Target>, flags: u32) -> Raw {
        let mut raw = Raw::dial(target);
        let greeting = raw.take(18);
        assert_eq!((u64_at(&greeting, 0), u64_at(&greeting, 8)), (magic::GREETING, magic::OPTION));
        raw.send(&flags.to_be_bytes());
        raw
    }

    /// A handshake in fixed newstyle, at the first option.
    #[track_caller]
    pub fn haggle(target: impl Into<Target>) -> Raw {
        Raw::greet(target, hello::FIXED | hello::NO_ZEROES)
    }

    /// A connection in the transmission phase, to the export of the empty name.
    #[track_caller]
    pub fn serve(target: impl Into<Target>, style: Style) -> Raw {
        let mut raw = Raw::haggle(target);
        raw.agree(style);
        raw.go(b"");
        raw
    }

    /// Asks for the replies of this style.
    #[track_caller]
    pub fn agree(&mut self, style: Style) {
        let option = match style {
            Style::Simple => return,
            Style::Structured => opt::STRUCTURED_REPLY,
            Style::Extended => opt::EXTENDED_HEADERS,
        };
        assert_eq!(self.ask(option, &[]), [OptionReply { kind: rep::ACK, data: Vec::new() }]);
        self.style = style;
    }

    /// Sends an option.
    #[track_caller]
    pub fn option(&mut self, option: u32, data: &[u8]) {
        self.send(&be(&[&magic::OPTION, &option, &(data.len() as u32), &data]));
    }

    /// The next reply, which must be to this option.
    #[track_caller]
    pub fn option_reply(&mut self, option: u32) -> OptionReply {
        let header = self.take(20);
        assert_eq!((u64_at(&header, 0), u32_at(&header, 8)), (magic::OPTION_REPLY, option), "{header:02x?}");
        let data = self.take(u32_at(&header, 16) as usize);
        OptionReply { kind: u32_at(&header, 12), data }
    }

    /// Sends an option, and takes all replies to it.
    #[track_caller]
    pub fn ask(&mut self, option: u32, data: &[u8]) -> Vec<OptionReply> {
        self.option(option, data);
        let mut replies = vec![self.option_reply(option)];
        while !replies[replies.len() - 1].is_final() {
            replies.push(self.option_reply(option));
        }
        replies
    }

    /// Sends an option, and takes the type of the last reply to it.
    #[track_caller]
    pub fn outcome(&mut self, option: u32, data: &[u8]) -> u32 {
        self.ask(option, data).pop().expect("a final reply").kind
    }

    /// Begins the transmission phase.
    #[track_caller]
    pub fn go(&mut self, name: &[u8]) -> Export {
        let replies = self.ask(opt::GO, &info_query(name, &[info::BLOCK_SIZE]));
        export_of(&replies)
    }

    /// The handshake goes on: the server still answers.
    #[track_caller]
    pub fn assert_haggling(&mut self) {
        assert_eq!(self.outcome(opt::LIST, &[]), rep::ACK, "the handshake goes on");
    }
}

/// What successful replies to INFO or GO say.
#[track_caller]
pub(crate) fn export_of(replies: &[OptionReply]) -> Export {
    let (last, before) = replies.split_last().expect("a reply");
    assert_eq!(last.kind, rep::ACK, "{replies:02x?}");
    let mut export = None;
    let mut block_sizes = None;
    for reply in before {
        assert_eq!(reply.kind, rep::INFO, "{replies:02x?}");
        match u16_at(&reply.data, 0) {
            info::EXPORT => {
                assert_eq!(reply.data.len(), 12, "{reply:02x?}");
                export = Some((u64_at(&reply.data, 2), u16_at(&reply.data, 10)));
            }
            info::BLOCK_SIZE => {
                assert_eq!(reply.data.len(), 14, "{reply:02x?}");
                block_sizes = Some([2, 6, 10].map(|at| u32_at(&reply.data, at)));
            }
            _ => {}
        }
    }
    let (size, flags) = export.expect("size and flags of the export");
    Export { size, flags, block_sizes }
}
