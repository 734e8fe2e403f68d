//! LIST_META_CONTEXT and SET_META_CONTEXT: which kinds of block status a client may ask for.
//!
//! A selection belongs to one export and replaces the one before, even when it fails. It counts only if the export
//! that is opened is that one. Queries for namespaces that are not known are passed over; a query without a
//! namespace is refused. A bare namespace lists its contexts and selects none.

use alloc::string::String;
use alloc::vec::Vec;

use super::{BadName, MALFORMED, Negotiation, Step, check_name, found, put_reply, refuse};
use crate::export::{ExportDirectory, ExportInfo};
use crate::reply::Framing;
use crate::status::CONTEXTS_MAX;
use crate::wire::{Reader, option, option_reply};

/// The contexts that were selected last.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Selection {
    /// Canonical name of the export.
    export: String,
    /// In the order of their numbers.
    contexts: Vec<String>,
}

impl Selection {
    /// Those that count when this export is opened.
    pub(super) fn of(&self, export: &ExportInfo) -> &[String] {
        if self.export == export.name { &self.contexts } else { &[] }
    }
}

/// The data of both options.
struct Queries<'a> {
    name: &'a str,
    texts: Vec<&'a str>,
}

impl<'a> Queries<'a> {
    fn read(data: &'a [u8]) -> Result<Self, BadName> {
        let mut reader = Reader::new(data);
        let name = read_string(&mut reader)?;
        let count = reader.u32().ok_or(MALFORMED)?;
        let mut texts = Vec::new();
        for _ in 0..count {
            // Each has four bytes at least, so that a false count ends soon.
            texts.push(read_string(&mut reader)?);
        }
        if !reader.rest().is_empty() {
            return Err(MALFORMED);
        }
        let name = check_name(name)?;
        let texts = texts.into_iter().map(check_query).collect::<Result<_, _>>()?;
        Ok(Self { name, texts })
    }

    /// The export's contexts that are asked for, each once.
    fn wanted(&self, export: &ExportInfo, lists: bool) -> Vec<String> {
        let is_asked = |context: &&String| {
            (lists && self.texts.is_empty())
                || self
                    .texts
                    .iter()
                    .any(|query| *query == context.as_str() || lists && is_wildcard(query, context))
        };
        export.contexts.iter().take(CONTEXTS_MAX).filter(is_asked).cloned().collect()
    }
}

fn is_wildcard(query: &str, context: &str) -> bool {
    query.ends_with(':') && context.starts_with(query)
}

fn read_string<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], BadName> {
    let bytes = reader.u32().ok_or(MALFORMED)? as usize;
    reader.bytes(bytes).ok_or(MALFORMED)
}

fn check_query(bytes: &[u8]) -> Result<&str, BadName> {
    let text = check_name(bytes)?;
    match text.split_once(':') {
        Some((namespace, _)) if !namespace.is_empty() => Ok(text),
        _ => Err(BadName { reply_type: option_reply::ERR_INVALID, why: "a query is NAMESPACE:LEAF" }),
    }
}

impl Negotiation {
    pub(super) fn answer_meta_context(
        &mut self,
        option: u32,
        data: &[u8],
        directory: &dyn ExportDirectory,
        out: &mut Vec<u8>,
    ) -> Step {
        let selects = option == option::SET_META_CONTEXT;
        if selects {
            self.selection = Selection::default();
        }
        if self.framing == Framing::Simple {
            return refuse(out, option, option_reply::ERR_INVALID, "structured replies come first");
        }
        let queries = match Queries::read(data) {
            Ok(queries) => queries,
            Err(BadName { reply_type, why }) => return refuse(out, option, reply_type, why),
        };
        let export = match found(self.security, option, queries.name, directory, out) {
            Ok(export) => export,
            Err(absent) => return absent.into(),
        };
        let wanted = queries.wanted(&export, !selects);
        for (id, context) in (1_u32..).zip(&wanted) {
            // The number means nothing in a list.
            let id = if selects { id } else { 0 };
            put_reply(out, option, option_reply::META_CONTEXT, &[&id.to_be_bytes(), context.as_bytes()]);
        }
        put_reply(out, option, option_reply::ACK, &[]);
        if selects {
            self.selection = Selection { export: export.name, contexts: wanted };
        }
        Step::NeedMore
    }
}

#[cfg(test)]
mod tests;
