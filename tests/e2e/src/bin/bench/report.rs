//! What the benchmarks say: tables and curves, printed as they come and kept as Markdown and JSON.

use serde_json::{Value, json};
use std::fmt;

/// Some rows of figures, with what has to be known to read them.
#[derive(Default)]
pub(crate) struct Table {
    pub(crate) title: String,
    /// Heads of the columns; the first one names the rows.
    pub(crate) columns: Vec<String>,
    /// As many cells each as there are columns.
    pub(crate) rows: Vec<Vec<String>>,
    /// Sentences below it.
    pub(crate) notes: Vec<String>,
    /// The same figures unrounded, in units named by their keys.
    pub(crate) data: Value,
}

impl Table {
    /// An empty one.
    pub(crate) fn new(title: &str, columns: &[&str]) -> Self {
        let columns = columns.iter().map(|column| column.to_string()).collect();
        Self { title: title.to_string(), columns, ..Self::default() }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<String> = cells.into_iter().collect();
        assert_eq!(cells.len(), self.columns.len(), "cells of a row of \"{}\"", self.title);
        self.rows.push(cells);
    }

    pub(crate) fn note(&mut self, sentence: impl Into<String>) {
        self.notes.push(sentence.into());
    }

    pub(crate) fn to_markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let mut text = format!("## {}\n\n", self.title);
        text += &line(&self.columns);
        text += &format!("|{}\n", "---|".repeat(self.columns.len()));
        self.rows.iter().for_each(|row| text += &line(row));
        self.notes.iter().for_each(|note| text += &format!("\n{note}\n"));
        text
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({ "title": self.title, "data": self.data, "notes": self.notes })
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| &row[column]).chain([&self.columns[column]]);
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        writeln!(f, "\n{}", self.title)?;
        for row in [&self.columns].into_iter().chain(&self.rows) {
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                match column {
                    0 => write!(f, "  {cell:<width$}")?,
                    _ => write!(f, "  {cell:>width$}")?,
                }
            }
            writeln!(f)?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "  {note}"))
    }
}

/// Curves in one frame.
pub(crate) struct Plot {
    /// Name of its file, without an ending.
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) curves: Vec<Curve>,
}

pub(crate) struct Axis {
    /// With its unit.
    pub(crate) label: String,
    pub(crate) is_logarithmic: bool,
}

pub(crate) struct Curve {
    pub(crate) name: String,
    /// In the order of `x`.
    pub(crate) points: Vec<(f64, f64)>,
}

/// What one section measured.
#[derive(Default)]
pub(crate) struct Section {
    pub(crate) tables: Vec<Table>,
    pub(crate) plots: Vec<Plot>,
}
