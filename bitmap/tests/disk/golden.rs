//! A file of version 1, kept forever: these bytes are what programs in the field wrote.
//!
//! After an intended change of the format: a new version number, a new fixture beside this one.

use std::path::PathBuf;

use crate::file::*;

fn fixture() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1.meta")
}

fn deterministic_file() -> Vec<u8> {
    let (mut file, last) = life().pop().expect("a life has steps");
    last.at.iter().for_each(|offset| put(&mut file, offset, &last.bytes));
    file
}

#[test]
fn today_writes_the_bytes_of_version_1() {
    let file = deterministic_file();
    if std::env::var_os("LOCKSTEP_WRITE_GOLDEN").is_some() {
        std::fs::write(fixture(), &file).expect("the fixture is written");
    }
    let golden = std::fs::read(fixture()).expect("the fixture exists");
    assert_eq!(golden.len(), file.len());
    let first = golden.iter().zip(&file).position(|(golden, today)| golden != today);
    assert_eq!(first, None, "first byte that differs");
}

#[test]
fn a_file_of_version_1_opens() {
    let golden = std::fs::read(fixture()).expect("the fixture exists");
    let store = truth(&golden);
    assert_eq!(store.superblock.identity.resource, "r0");
    assert_eq!(store.superblock.log.entries().len(), 2);
    assert_eq!(store.superblock.sequence, 5);
    assert_eq!(store.activity.hot_count(), 2);
    assert_eq!(store.slots[0].bits.count(), (SIZE_BYTES >> 12) - 7000);
    assert_eq!(store.slots[1].bits.count(), 512 + 5);
}
