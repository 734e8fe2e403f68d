//! What a client knew at a past moment: when each write was sent and answered, and the ledger as it stood then.
//!
//! With it the disks that a power cut at that moment left behind can be judged long after.

use crate::ledger::Ledger;
use crate::writer::{Promise, Writer};
use std::time::Instant;

/// What happened to one request of a writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// Noted before it was sent.
    Sent { first_block: u64, blocks: u64, sequence: u64 },
    /// Noted after the answer came; `fua` if it is durable by itself.
    Answered { first_block: u64, blocks: u64, sequence: u64, fua: bool },
    /// A flush that was sent then was answered now.
    Flushed { sent_at: Instant },
}

/// One line of a diary.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Note {
    pub(crate) at: Instant,
    pub(crate) what: What,
}

/// A moment that is known to lie between two readings of the clock.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Not before this.
    pub from: Instant,
    /// Not after this.
    pub to: Instant,
}

/// Which writes must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promised {
    /// All that were answered.
    Acknowledged,
    /// Those that were sent with FUA and answered, or answered before a flush was sent that was answered.
    Durable,
}

impl Ledger {
    /// The ledger as it stood at a moment, if all that happened to it later were undone by a power cut. It must keep a
    /// diary. What is not promised may be there or not, each sector by itself.
    pub fn at(&self, moment: Moment, promised: Promised) -> Ledger {
        let notes = self.writers.iter().flat_map(|writer| writer.diary.as_ref().expect("a diary"));
        let flushes = notes.filter(|note| note.at <= moment.from).filter_map(|note| match note.what {
            What::Flushed { sent_at } => Some(sent_at),
            _ => None,
        });
        let flushed = flushes.max();
        let is_promised = |note: &Note, fua: bool| {
            let covered = fua || flushed.is_some_and(|sent_at| note.at < sent_at);
            note.at <= moment.from && (promised == Promised::Acknowledged || covered)
        };
        let mut past = self.clone();
        for writer in &mut past.writers {
            go_back(writer, moment, is_promised);
        }
        past
    }
}

fn go_back(writer: &mut Writer, moment: Moment, is_promised: impl Fn(&Note, bool) -> bool) {
    writer.promises.clear();
    writer.may_be_torn = true;
    for note in writer.diary.take().expect("a diary") {
        match note.what {
            What::Sent { first_block, blocks, sequence } if note.at <= moment.to => {
                for block in first_block..first_block + blocks {
                    writer.promises.entry(block).or_default().maybe.push(sequence);
                }
            }
            What::Answered { first_block, blocks, sequence, fua } if is_promised(&note, fua) => {
                for block in first_block..first_block + blocks {
                    let Promise { acked, acked_at, maybe } = writer.promises.entry(block).or_default();
                    (*acked, *acked_at) = (sequence, Some(note.at));
                    maybe.retain(|later| *later > sequence);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn promises(ledger: &Ledger, block: u64) -> (u64, Vec<u64>) {
        let promise = &ledger.writers[0].promises[&block];
        (promise.acked, promise.maybe.clone())
    }

    #[test]
    fn a_past_moment_knows_what_was_sent_answered_and_flushed_by_then() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let sent = |ms, first_block, sequence| Note {
            at: at(ms),
            what: What::Sent { first_block, blocks: 1, sequence },
        };
        let answered = |ms, first_block, sequence, fua| Note {
            at: at(ms),
            what: What::Answered { first_block, blocks: 1, sequence, fua },
        };
        let notes = vec![
            sent(1, 5, 1),
            answered(2, 5, 1, false),
            sent(3, 5, 2),
            Note { at: at(7), what: What::Flushed { sent_at: at(4) } },
            answered(8, 5, 2, false),
            sent(9, 5, 3),
            sent(10, 6, 4),
            answered(11, 6, 4, true),
            answered(12, 5, 3, false),
        ];
        let mut ledger = Ledger::new(256 << 20, 1, 1).with_diary();
        ledger.writers[0].diary = Some(notes);
        let view = |ms, promised| ledger.at(Moment { from: at(ms), to: at(ms) }, promised);
        assert_eq!(promises(&view(6, Promised::Durable), 5), (0, vec![1, 2]));
        assert_eq!(promises(&view(7, Promised::Durable), 5), (1, vec![2]));
        assert_eq!(promises(&view(7, Promised::Acknowledged), 5), (1, vec![2]));
        // It was answered after the flush was sent: not covered.
        assert_eq!(promises(&view(9, Promised::Durable), 5), (1, vec![2, 3]));
        assert_eq!(promises(&view(9, Promised::Acknowledged), 5), (2, vec![3]));
        assert_eq!(promises(&view(11, Promised::Durable), 6), (4, vec![]));
        assert_eq!(promises(&view(12, Promised::Acknowledged), 5), (3, vec![]));
        assert_eq!(promises(&view(12, Promised::Durable), 5), (1, vec![2, 3]));
    }
}
