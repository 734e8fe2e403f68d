//! Disks that fail below two engines: a file that becomes shorter, so that reads behind its end find nothing, and a
//! file system without room. No client of a Primary sees an error while the other copy is good, and the last copy is
//! not given up for one.

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Client, Pair, SIZE_BYTES, assert_equal, promote, report, status, wait_for, wait_protected};
use lockstep_core::{DiskState, Role};
use lockstep_engine::EngineHandle;
use lockstep_nbd::{Command as Nbd, NbdError};

const MIB: u64 = 1 << 20;

fn pattern(seed: u64, bytes: u64) -> Vec<u8> {
    (0..bytes).map(|at| (at / 512).wrapping_mul(seed | 1) as u8 | 1).collect()
}

/// What is behind this place cannot be read any more; what is written there makes the file longer again.
fn shorten(disk: &Path, bytes: u64) {
    File::options().write(true).open(disk).unwrap().set_len(bytes).unwrap();
}

fn bytes_at(disk: &Path, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    File::open(disk).unwrap().read_exact_at(&mut bytes, offset).unwrap();
    bytes
}

/// Memory is read in the engine's thread, a file system of a disk through the ring.
fn places() -> [&'static str; 2] {
    ["/dev/shm", env!("CARGO_TARGET_TMPDIR")]
}

fn mirrored(pair: &Pair) -> (EngineHandle, EngineHandle, Client) {
    let (alpha, beta) = (pair.start(0), pair.start(1));
    promote(&alpha);
    wait_protected(&alpha);
    let client = pair.connect(0);
    (alpha, beta, client)
}

#[test]
fn what_the_primary_cannot_read_comes_from_the_peer_and_is_put_back() {
    for place in places() {
        let pair = Pair::new(place);
        let (alpha, _beta, mut client) = mirrored(&pair);
        let data = pattern(3, SIZE_BYTES);
        client.write(0, &data);
        client.flush();
        // Only at the end: what is written behind a hole would make the hole readable.
        for missing in [4096, 128 * 1024 - 100, 128 * 1024] {
            shorten(&pair.disk(0), SIZE_BYTES - missing);
            // Short, or empty, for the last piece; its neighbour can be read.
            let offset = SIZE_BYTES - 256 * 1024;
            let read = client.read(offset, 256 * 1024);
            assert!(read == data[offset as usize..], "{missing} bytes are missing");
            wait_for("a repair", || {
                let length = pair.disk(0).metadata().unwrap().len();
                length == SIZE_BYTES && bytes_at(&pair.disk(0), offset, read.len()) == read
            });
            assert_eq!(status(&alpha).disk, DiskState::UpToDate, "a read error does not end a copy");
        }
        assert!(client.read(0, SIZE_BYTES as u32) == data);
        client.disconnect();
        assert_equal(&pair.disk(0), &pair.disk(1));
    }
}

#[test]
fn what_no_copy_can_read_is_an_error_of_that_read_alone() {
    let pair = Pair::new("/dev/shm");
    let alpha = pair.start(0);
    promote(&alpha);
    let mut client = pair.connect(0);
    client.write(0, &pattern(5, SIZE_BYTES));
    shorten(&pair.disk(0), 8 * MIB);
    assert_eq!(client.call(Nbd::Read, false, 8 * MIB, 4096, &[]), Some(NbdError::Io));
    assert_eq!(client.read(0, 4096), pattern(5, 4096));
    assert_eq!(status(&alpha).role, Role::Primary);
    assert_eq!(status(&alpha).disk, DiskState::UpToDate);
    // A block that is written can be read again.
    client.write(8 * MIB, &[9; 4096]);
    assert_eq!(client.read(8 * MIB, 4096), [9; 4096]);
    assert_eq!(client.call(Nbd::Read, false, 12 * MIB, 4096, &[]), Some(NbdError::Io));
}

/// A file system of memory with little room; unmounted with its handle.
struct Small(PathBuf);

impl Small {
    /// Takes the place of `disk`, which keeps its size and becomes sparse.
    fn below(disk: &Path, bytes: u64) -> Small {
        let folder = disk.with_extension("small");
        std::fs::create_dir(&folder).unwrap();
        let small = Small(folder);
        small.mount(&format!("size={bytes}"));
        let file = small.0.join("disk");
        File::create(&file).unwrap().set_len(SIZE_BYTES).unwrap();
        std::fs::remove_file(disk).unwrap();
        std::os::unix::fs::symlink(&file, disk).unwrap();
        small
    }

    fn mount(&self, options: &str) {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "lockstep-engine"]).arg(&self.0);
        assert!(mount.status().unwrap().success(), "mount a tmpfs (needs root)");
    }

    fn grow(&self, bytes: u64) {
        let options = format!("remount,size={bytes}");
        assert!(Command::new("mount").args(["-o", &options]).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily: an engine may have the file open, if the test fails.
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.0).status();
        assert!(std::thread::panicking() || unmounted.unwrap().success());
    }
}

/// A pair of which one disk has room for a quarter of the volume; dropped before the pair's folders.
fn with_little_room(node: usize) -> (Small, Pair) {
    let pair = Pair::new("/dev/shm");
    let small = Small::below(&pair.disk(node), SIZE_BYTES / 4);
    pair.create_again(node);
    (small, pair)
}

#[test]
fn a_copy_without_room_fails_and_clients_go_on_through_the_other() {
    for node in 0..2 {
        let (small, pair) = with_little_room(node);
        let (alpha, beta, mut client) = mirrored(&pair);
        let data = pattern(7, SIZE_BYTES);
        for offset in (0..SIZE_BYTES).step_by(MIB as usize) {
            client.write(offset, &data[offset as usize..][..MIB as usize]);
        }
        client.flush();
        let (failed, other) = if node == 0 { (&alpha, &beta) } else { (&beta, &alpha) };
        wait_for("a failed copy", || status(failed).disk == DiskState::Failed);
        wait_for("the other copy", || status(other).disk == DiskState::UpToDate);
        assert_eq!(status(&alpha).role, Role::Primary);
        assert!(client.read(0, SIZE_BYTES as u32) == data, "through the other copy");
        assert!(std::fs::read(pair.disk(1 - node)).unwrap() == data);
        // With room it is taken back, and filled.
        small.grow(2 * SIZE_BYTES);
        let (sender, attached) = std::sync::mpsc::channel();
        failed.attach("r0", false, Box::new(move |result| sender.send(result).unwrap())).unwrap();
        attached.recv_timeout(common::LIMIT).unwrap().unwrap();
        wait_protected(&alpha);
        client.disconnect();
        wait_for("at rest", || report(&beta).memory.slots_in_use == 0);
        assert_equal(&pair.disk(0), &pair.disk(1));
        drop((alpha, beta));
    }
}

#[test]
fn the_last_copy_is_not_given_up_for_want_of_room() {
    let (small, pair) = with_little_room(0);
    let alpha = pair.start(0);
    promote(&alpha);
    let mut client = pair.connect(0);
    client.write(0, &pattern(1, MIB));
    let mut refused = 0;
    for offset in (MIB..SIZE_BYTES).step_by(MIB as usize) {
        let data = pattern(offset, MIB);
        match client.call(Nbd::Write, false, offset, MIB as u32, &data) {
            None => assert!(client.read(offset, MIB as u32) == data, "what was acknowledged is there"),
            Some(error) => {
                assert_eq!(error, NbdError::NoSpace);
                refused += 1;
            }
        }
    }
    assert!(refused > 0, "it had room for all of it");
    assert_eq!((status(&alpha).disk, status(&alpha).role), (DiskState::UpToDate, Role::Primary));
    assert_eq!(client.read(0, MIB as u32), pattern(1, MIB));
    client.flush();
    small.grow(2 * SIZE_BYTES);
    client.write(0, &pattern(11, SIZE_BYTES));
    client.flush();
    // What was refused is known to differ: the peer gets all of it.
    let _beta = pair.start(1);
    wait_protected(&alpha);
    client.disconnect();
    assert_equal(&pair.disk(0), &pair.disk(1));
    drop(alpha);
}
