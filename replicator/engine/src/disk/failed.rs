//! The record of a failed copy whose metadata could not say so: a small file in the directory for running state.
//!
//! It names the metadata file and the last sequence number that may have been written to it, so that it stops
//! applying by itself once an attach has taken note of it, and never applies to another metadata file. It does
//! not survive a reboot; an unclean stop is then recognised by the boot id.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use lockstep_bitmap::Superblock;

const TITLE: &str = "lockstep failed disk";

/// Writes the record, durably as far as the directory is.
pub(crate) fn record(path: &Path, file_id: u64, sequence: u64) -> io::Result<()> {
    let partial = path.with_extension("failed.new");
    let mut file = File::create(&partial)?;
    writeln!(file, "{TITLE}\nmetadata {file_id:016x}\nsequence {sequence}")?;
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
        Some((file_id, sequence)) if file_id == superblock.file_id => superblock.mark_failed_upto(sequence),
        Some(_) => {}
        None => {
            let why = format!("{} is no record of a failed disk; look at it, then remove it", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
    }
    Ok(())
}

fn parse(text: &str) -> Option<(u64, u64)> {
    let mut lines = text.lines();
    if lines.next()? != TITLE {
        return None;
    }
    let file_id = u64::from_str_radix(lines.next()?.strip_prefix("metadata ")?, 16).ok()?;
    let sequence = lines.next()?.strip_prefix("sequence ")?.parse().ok()?;
    lines.next().is_none().then_some((file_id, sequence))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r0.failed");
        record(&path, 0xfeed, 17).unwrap();
        assert_eq!(parse(&fs::read_to_string(&path).unwrap()), Some((0xfeed, 17)));
        for text in ["", "lockstep failed disk\n", "lockstep failed disk\nmetadata x\nsequence 1\n"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
        assert!(record(&folder.path().join("gone/r0.failed"), 1, 1).is_err());
    }
}
