//! A TOML document as tables that know their keys and their lines.
//!
//! Invariants: a table is only handed out after all its keys were checked against the allowed ones, so that
//! a typing error is never ignored; each error carries the line of what it is about. TOML's own grammar is
//! the `toml` crate's.

use super::{ConfigError, SizeRange, duration_between, size_between};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Bytes of the text.
pub(crate) type Span = std::ops::Range<usize>;

/// The text and its name, for errors.
pub(crate) struct Document<'a> {
    file: &'a Path,
    text: &'a str,
}

impl<'a> Document<'a> {
    /// A text to be parsed.
    pub(crate) fn new(file: &'a Path, text: &'a str) -> Self {
        Document { file, text }
    }

    /// The top table, with its keys checked.
    pub(crate) fn parse(&self, allowed: &'static [&'static str]) -> Result<Table<'a, '_>, ConfigError> {
        let table = DeTable::parse(self.text).map_err(|error| {
            let span = error.span().unwrap_or(0..0);
            let twice = ["duplicate key", "cannot extend value"];
            let hint = if twice.iter().any(|words| error.message().contains(words)) {
                let written = self.text.get(span.clone()).unwrap_or("");
                format!(
                    ": {written} (give it once; for a value that differs between nodes give one key per node \
                     and no common one: disk.alpha, disk.beta)"
                )
            } else {
                String::new()
            };
            let message = format!("{}{hint}", error.message().trim().replace('\n', "; "));
            self.error(span, message)
        })?;
        Table::new(self, "the top of the file".to_owned(), table, allowed)
    }

    /// Line of a byte, counted from 1.
    pub(crate) fn line(&self, byte: usize) -> usize {
        let end = byte.min(self.text.len());
        1 + self.text.as_bytes()[..end].iter().filter(|&&b| b == b'\n').count()
    }

    /// An error at a place.
    pub(crate) fn error(&self, span: Span, message: impl Into<String>) -> ConfigError {
        let line = Some(self.line(span.start));
        ConfigError { file: self.file.to_owned(), line, message: message.into() }
    }

    /// An error about the value of a key.
    pub(crate) fn value_error(&self, key: &str, message: &str, span: Span) -> ConfigError {
        self.error(span, format!("{key}: {message}"))
    }
}

/// A string for all, or one per name.
pub(crate) enum OneOrNamed {
    /// For all.
    One(String),
    /// Name, string, place.
    Named(Vec<(String, String, Span)>),
}

/// A named table with its name's place.
type NamedTable<'a, 'd> = (String, Span, Table<'a, 'd>);

/// A table with its keys checked; values are taken out one by one.
pub(crate) struct Table<'a, 'd> {
    document: &'d Document<'a>,
    title: String,
    span: Span,
    values: BTreeMap<String, Spanned<DeValue<'a>>>,
}

impl<'a, 'd> Table<'a, 'd> {
    fn new(
        document: &'d Document<'a>,
        title: String,
        table: Spanned<DeTable<'a>>,
        allowed: &'static [&'static str],
    ) -> Result<Self, ConfigError> {
        let span = table.span();
        let mut unknown_keys = Vec::new();
        let mut values = BTreeMap::new();
        for (key, value) in table.into_inner() {
            if !allowed.contains(&key.get_ref().as_ref()) {
                unknown_keys.push((key.span(), key.get_ref().to_string()));
            }
            values.insert(key.into_inner().into_owned(), value);
        }
        unknown_keys.sort_by_key(|(span, _)| span.start);
        if let Some((span, key)) = unknown_keys.into_iter().next() {
            return Err(document.error(span, unknown(&key, &title, allowed)));
        }
        Ok(Table { document, title, span, values })
    }

    /// Where a key's value is.
    pub(crate) fn span_of(&self, key: &str) -> Option<Span> {
        self.values.get(key).map(Spanned::span)
    }

    /// The error for a missing key.
    pub(crate) fn missing(&self, key: &str, what: &str) -> ConfigError {
        self.document.error(self.span.clone(), format!("{} needs the key \"{key}\": {what}", self.title))
    }

    /// A string that must be there.
    pub(crate) fn required_string(&mut self, key: &'static str) -> Result<(String, Span), ConfigError> {
        let missing = self.missing(key, "a string");
        self.string(key)?.ok_or(missing)
    }

    /// A string.
    pub(crate) fn string(&mut self, key: &'static str) -> Result<Option<(String, Span)>, ConfigError> {
        let Some(value) = self.values.remove(key) else { return Ok(None) };
        let span = value.span();
        match value.into_inner() {
            DeValue::String(text) => Ok(Some((text.into_owned(), span))),
            other => Err(self.wrong_type(key, &other, "a string", span)),
        }
    }

    /// A number or a string, as text.
    pub(crate) fn quantity(&mut self, key: &'static str) -> Result<Option<(String, Span)>, ConfigError> {
        let Some(value) = self.values.remove(key) else { return Ok(None) };
        let span = value.span();
        match value.into_inner() {
            DeValue::String(text) => Ok(Some((text.into_owned(), span))),
            DeValue::Integer(number) if number.radix() == 10 => {
                Ok(Some((number.as_str().replace('_', ""), span)))
            }
            other => Err(self.wrong_type(key, &other, "a number, or a string with a unit", span)),
        }
    }

    /// A size in bytes within a range.
    pub(crate) fn size(&mut self, key: &'static str, range: &SizeRange) -> Result<Option<u64>, ConfigError> {
        let Some((text, span)) = self.quantity(key)? else { return Ok(None) };
        size_between(&text, range).map(Some).map_err(|message| self.document.value_error(key, &message, span))
    }

    /// A duration within a range.
    pub(crate) fn duration(
        &mut self,
        key: &'static str,
        default: Duration,
        min: Duration,
        max: Duration,
    ) -> Result<Duration, ConfigError> {
        let Some((text, span)) = self.string(key)? else { return Ok(default) };
        duration_between(&text, min, max).map_err(|message| self.document.value_error(key, &message, span))
    }

    /// A list of strings.
    #[expect(clippy::type_complexity, reason = "a list with places, and its own place")]
    pub(crate) fn strings(
        &mut self,
        key: &'static str,
        example: &str,
    ) -> Result<Option<(Vec<(String, Span)>, Span)>, ConfigError> {
        let Some(value) = self.values.remove(key) else { return Ok(None) };
        let span = value.span();
        let DeValue::Array(array) = value.into_inner() else {
            let message = format!("a list of strings is needed, for example {example}");
            return Err(self.document.value_error(key, &message, span));
        };
        let mut list = Vec::new();
        for item in array {
            let item_span = item.span();
            match item.into_inner() {
                DeValue::String(text) => list.push((text.into_owned(), item_span)),
                other => return Err(self.wrong_type(key, &other, "a list of strings", item_span)),
            }
        }
        Ok(Some((list, span)))
    }

    /// A string, or a table of strings.
    pub(crate) fn string_or_strings_by_name(
        &mut self,
        key: &'static str,
    ) -> Result<Option<(OneOrNamed, Span)>, ConfigError> {
        let Some(value) = self.values.remove(key) else { return Ok(None) };
        let span = value.span();
        match value.into_inner() {
            DeValue::String(text) => Ok(Some((OneOrNamed::One(text.into_owned()), span))),
            DeValue::Table(table) => {
                let mut named = Vec::new();
                for (name, value) in table {
                    let name_span = name.span();
                    match value.into_inner() {
                        DeValue::String(text) => {
                            named.push((name.into_inner().into_owned(), text.into_owned(), name_span));
                        }
                        other => return Err(self.wrong_type(key, &other, "a string per node", name_span)),
                    }
                }
                // A table from dotted keys has the place of its first key, which is what a reader looks for.
                let first = named.iter().map(|(_, _, span)| span.start).min().unwrap_or(span.start);
                Ok(Some((OneOrNamed::Named(named), first..first)))
            }
            other => Err(self.wrong_type(key, &other, "a string, or one string per node", span)),
        }
    }

    /// A table: `[key]`.
    pub(crate) fn table(
        &mut self,
        key: &'static str,
        title: &str,
        allowed: &'static [&'static str],
    ) -> Result<Option<Table<'a, 'd>>, ConfigError> {
        let Some(value) = self.values.remove(key) else { return Ok(None) };
        let span = value.span();
        match value.into_inner() {
            DeValue::Table(inner) => {
                let inner = Spanned::new(span, inner);
                Table::new(self.document, title.to_owned(), inner, allowed).map(Some)
            }
            other => Err(self.wrong_type(key, &other, &format!("a table {title}"), span)),
        }
    }

    /// Tables by name: `[key.NAME]`.
    pub(crate) fn required_named_tables(
        &mut self,
        key: &'static str,
        title: &str,
        allowed: &'static [&'static str],
    ) -> Result<(Vec<NamedTable<'a, 'd>>, Span), ConfigError> {
        let missing = self.missing(key, &format!("tables {title}"));
        let value = self.values.remove(key).ok_or(missing)?;
        let span = value.span();
        let DeValue::Table(table) = value.into_inner() else {
            return Err(self.document.value_error(key, &format!("tables {title} are needed"), span));
        };
        let mut tables = Vec::new();
        for (name, value) in table {
            let (name_span, value_span) = (name.span(), value.span());
            let name = name.into_inner().into_owned();
            let DeValue::Table(inner) = value.into_inner() else {
                return Err(self.document.value_error(key, &format!("tables {title} are needed"), name_span));
            };
            let inner = Spanned::new(value_span, inner);
            tables.push((
                name.clone(),
                name_span,
                Table::new(self.document, format!("[{key}.{name}]"), inner, allowed)?,
            ));
        }
        let first = tables.iter().map(|(_, span, _)| span.start).min().unwrap_or(span.start);
        Ok((tables, first..first))
    }

    /// A list of tables: `[[key]]`.
    pub(crate) fn required_table_array(
        &mut self,
        key: &'static str,
        title: &str,
        allowed: &'static [&'static str],
    ) -> Result<(Vec<Table<'a, 'd>>, Span), ConfigError> {
        let missing = self.missing(key, &format!("at least one {title}"));
        let value = self.values.remove(key).ok_or(missing)?;
        let span = value.span();
        let wrong = |span| self.document.value_error(key, &format!("tables {title} are needed"), span);
        let DeValue::Array(array) = value.into_inner() else { return Err(wrong(span)) };
        let mut tables = Vec::new();
        for item in array {
            let item_span = item.span();
            let DeValue::Table(inner) = item.into_inner() else { return Err(wrong(item_span)) };
            let inner = Spanned::new(item_span, inner);
            tables.push(Table::new(self.document, title.to_owned(), inner, allowed)?);
        }
        Ok((tables, span))
    }

    fn wrong_type(&self, key: &str, found: &DeValue<'_>, wanted: &str, span: Span) -> ConfigError {
        self.document.value_error(
            key,
            &format!("{wanted} is needed, not a value of type {}", found.type_str()),
            span,
        )
    }
}

/// "unknown key ..., did you mean ...; allowed: ...".
pub(crate) fn unknown(key: &str, place: &str, allowed: &[&str]) -> String {
    let near = allowed.iter().map(|known| (distance(key, known), known)).min();
    let homes = super::PLACES.iter().filter(|(_, known)| known.contains(&key)).map(|(home, _)| *home);
    let homes: Vec<&str> = homes.collect();
    let guess = match near {
        _ if !homes.is_empty() => format!("; it belongs into {}", homes.join(" or into ")),
        Some((edits, known)) if edits <= 2 && edits < known.len() => format!("; did you mean \"{known}\"?"),
        _ => String::new(),
    };
    format!("unknown key \"{key}\" in {place}{guess} (allowed: {})", allowed.join(", "))
}

/// Edits (insert, delete, replace) between two words, by the usual table of one row.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
