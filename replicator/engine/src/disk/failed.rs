//! The record of a failed copy whose metadata could not say so: a small file in the directory for running state.
//!
//! It names the metadata file and the last sequence number that may have been written to it, so that it stops
//! applying by itself once an attach has taken note of it, and never applies to another metadata file; and the
//! generation that the copy was in, and what it was becoming. It does not survive a reboot; an unclean stop is then
//! recognised by the boot id.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use lockstep_bitmap::{Becoming, FailureRecord, GenerationId, NodeId, Superblock};

const TITLE: &str = "lockstep failed disk";

/// Writes the record, durably as far as the directory is.
pub(crate) fn record(path: &Path, record: &FailureRecord) -> io::Result<()> {
    let partial = path.with_extension("failed.new");
    let mut file = File::create(&partial)?;
    let FailureRecord { file_id, sequence, generation, becoming } = record;
    writeln!(file, "{TITLE}\nmetadata {file_id:016x}\nsequence {sequence}")?;
    if let Some(GenerationId(generation)) = generation {
        writeln!(file, "generation {generation:032x}")?;
    }
    if let Some(Becoming { generation: GenerationId(generation), node: NodeId(node) }) = becoming {
        writeln!(file, "becoming {generation:032x} of {node}")?;
    }
    file.sync_all()?;
    fs::rename(&partial, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

/// Applies the record to the superblock that was read. Something there that cannot be understood is an error: it
/// may have been a record.
pub(crate) fn apply(path: &Path, superblock: &mut Superblock) -> io::Result<()> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    match parse(&text) {
        Some(record) => superblock.apply_failure(&record),
        None => {
            let why = format!("{} is no record of a failed disk; look at it, then remove it", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
    }
    Ok(())
}

fn parse(text: &str) -> Option<FailureRecord> {
    let mut lines = text.lines();
    if lines.next()? != TITLE {
        return None;
    }
    let file_id = u64::from_str_radix(lines.next()?.strip_prefix("metadata ")?, 16).ok()?;
    let sequence = lines.next()?.strip_prefix("sequence ")?.parse().ok()?;
    let id = |digits: &str| Some(GenerationId(u128::from_str_radix(digits, 16).ok()?));
    let (mut generation, mut becoming) = (None, None);
    for line in lines {
        match line.split_once(' ')? {
            ("generation", digits) if generation.is_none() => generation = Some(id(digits)?),
            ("becoming", rest) if becoming.is_none() => {
                let (digits, node) = rest.split_once(" of ")?;
                becoming = Some(Becoming { generation: id(digits)?, node: NodeId(node.parse().ok()?) });
            }
            _ => return None,
        }
    }
    Some(FailureRecord { file_id, sequence, generation, becoming })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r0.failed");
        for generation in [None, Some(GenerationId(u128::MAX / 3))] {
            let becoming = generation.map(|generation| Becoming { generation, node: NodeId(7) });
            let failure = FailureRecord { file_id: 0xfeed, sequence: 17, generation, becoming };
            record(&path, &failure).unwrap();
            assert_eq!(parse(&fs::read_to_string(&path).unwrap()), Some(failure));
            assert!(record(&folder.path().join("gone/r0.failed"), &failure).is_err());
        }
        let head = "lockstep failed disk\n";
        for rest in [
            "",
            "metadata x\nsequence 1\n",
            "metadata 1\nsequence 1\ngeneration x\n",
            "metadata 1\nsequence 1\nbecoming 1\n",
        ] {
            assert_eq!(parse(&format!("{head}{rest}")), None, "{rest:?}");
        }
        assert_eq!(parse(""), None);
    }
}
