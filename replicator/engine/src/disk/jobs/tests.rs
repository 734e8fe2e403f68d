//! Every job in every mode of I/O, on real files.
use super::*;
use crate::disk;
use crate::slots::{Arena, PoolSize};
use std::path::Path;
use std::time::Duration;

const POOL: PoolId = PoolId(0);
const MODES: [Mode; 3] = [Mode::Direct, Mode::Buffered, Mode::Memory];

struct Bench {
    io: Io,
    storage: Storage,
    path: std::path::PathBuf,
    _folder: tempfile::TempDir,
    next_op: u32,
    /// Changes how an operation ended.
    spoil: Spoil,
}

type Spoil = fn(&Op) -> Option<io::Error>;

/// A file of 1 MiB full of 0xEE on a disk of this mode; on a file system without O_DIRECT "direct" is what it
/// gives.
fn bench(mode: Mode) -> Bench {
    let base = if mode == Mode::Memory { "/dev/shm" } else { env!("CARGO_MANIFEST_DIR") };
    let folder = tempfile::tempdir_in(base).unwrap();
    let path = folder.path().join("disk");
    std::fs::write(&path, vec![0xEE; 1 << 20]).unwrap();
    let mut open = if mode == Mode::Buffered {
        buffered(&path)
    } else {
        disk::open(&path, false, Duration::ZERO).unwrap()
    };
    if mode == Mode::Buffered {
        open.mode = Mode::Buffered;
    }
    let arena = Arena::new(&[PoolSize { small: 8, large: 4 }]).unwrap();
    let mut storage = Storage::new(0, "r0", POOL);
    storage.disk = Some(open.into());
    Bench { io: Io::new(arena, 0).unwrap(), storage, path, _folder: folder, next_op: 0, spoil: |_| None }
}

fn buffered(path: &Path) -> disk::OpenDisk {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let (mode, size_bytes) = (Mode::Buffered, 1 << 20);
    disk::OpenDisk {
        fd: file.into(),
        mode,
        is_block: false,
        size_bytes,
        granule_bytes: 512,
        may_block: false,
        keeps_dsync: true,
        has_holes: true,
        is_rotational: false,
    }
}

impl Bench {
    fn op(&mut self) -> OpId {
        self.next_op += 1;
        OpId(self.next_op)
    }

    /// Runs until one job has finished.
    fn finish(&mut self) -> (OpId, Result<(), DiskError>, Option<SlotId>) {
        loop {
            self.storage.run_inline_meta(&mut self.io);
            self.storage.run_inline(&mut self.io);
            match self.storage.next_finished() {
                Some(Event::DiskDone { op, result, slot }) => return (op, result, slot),
                Some(other) => panic!("{other:?}"),
                None => {}
            }
            self.io.wait(Some(Duration::from_secs(5)));
            while let Some(mut completion) = self.io.reap() {
                if let Some(error) = (self.spoil)(&completion.op) {
                    completion.result = Err(error);
                }
                let Token::Storage { job, .. } = completion.token else { panic!("{completion:?}") };
                self.storage.completed(&mut self.io, job, completion);
            }
        }
    }

    fn content(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()
    }
}

#[test]
fn written_blocks_are_read_back_in_every_mode() {
    for mode in MODES {
        let mut b = bench(mode);
        for (round, fua) in [(1, false), (2, true)] {
            let slot = b.io.arena().take(POOL, 8192, 8192).unwrap();
            b.io.arena().bytes_mut(Span::of_volume(slot, 8192, 8192)).fill(round);
            let op = b.op();
            b.storage.write(&mut b.io, op, 8192, 8192, slot, fua);
            assert_eq!(b.finish(), (op, Ok(()), None));
            b.io.arena().release(slot);
            let op = b.op();
            b.storage.flush(&mut b.io, op);
            assert_eq!(b.finish().1, Ok(()));
            // Unaligned: the wanted part lies where it belongs.
            let op = b.op();
            b.storage.read(&mut b.io, op, 8191, 3, None);
            let (done, result, slot) = b.finish();
            assert_eq!((done, result), (op, Ok(())));
            let slot = slot.unwrap();
            assert_eq!(b.io.arena().bytes(Span::of_volume(slot, 8191, 3)), [0xEE, round, round], "{mode:?}");
            b.io.arena().release(slot);
        }
        assert_eq!(b.io.arena().in_use(), 0);
        assert!(b.storage.is_idle());
    }
}

#[test]
fn zeroes_are_exact_in_every_mode() {
    for mode in MODES {
        for (offset, len) in [(4096, 8192), (5000, 7), (4095, 4098), (131_072, 131_072), (200_000, 50_000)] {
            for (punch, fua) in [(true, false), (false, true)] {
                let mut b = bench(mode);
                let op = b.op();
                b.storage.zero(&mut b.io, op, offset, len, punch, fua);
                assert_eq!(b.finish(), (op, Ok(()), None));
                let content = b.content();
                let (from, to) = (offset as usize, offset as usize + len as usize);
                let exact =
                    |(at, byte): (usize, &u8)| *byte == if (from..to).contains(&at) { 0 } else { 0xEE };
                assert!(content.iter().enumerate().all(exact), "{mode:?} {offset} {len} {punch}");
                assert_eq!((content.len(), b.io.arena().in_use()), (1 << 20, 0));
            }
        }
    }
}

#[test]
fn edges_of_a_payload_are_filled_from_the_disk() {
    for mode in MODES {
        for (offset, len) in [(4100_u64, 10_u32), (4096, 10), (8190, 2), (4000, 5000), (1_048_000, 100)] {
            let mut b = bench(mode);
            let slot = b.io.arena().take(POOL, offset, len).unwrap();
            let payload = Span::of_volume(slot, offset, len);
            b.io.arena().bytes_mut(payload).fill(1);
            let op = b.op();
            b.storage.fill(&mut b.io, op, (slot, offset, len), 4096);
            assert_eq!(b.finish(), (op, Ok(()), None));
            let start = offset - offset % 4096;
            let whole = (offset + u64::from(len)).next_multiple_of(4096) - start;
            let all = Span::of_volume(slot, start, whole as u32);
            for (at, byte) in (start..).zip(b.io.arena().bytes(all)) {
                let inside = at >= offset && at < offset + u64::from(len);
                assert_eq!(*byte, if inside { 1 } else { 0xEE }, "{mode:?} {offset} {len} at {at}");
            }
            b.io.arena().release(slot);
            assert_eq!(b.io.arena().in_use(), 0);
        }
    }
}

#[test]
fn a_read_past_the_end_fails_and_a_read_without_slots_waits() {
    for mode in MODES {
        let mut b = bench(mode);
        let op = b.op();
        b.storage.read(&mut b.io, op, 1 << 20, 4096, None);
        assert_eq!(b.finish(), (op, Err(DiskError::Io), None));
        let mut taken = Vec::new();
        while let Some(slot) = b.io.arena().take(POOL, 0, 4096) {
            taken.push(slot);
        }
        let op = b.op();
        b.storage.read(&mut b.io, op, 0, 4096, None);
        b.storage.feed_starved(&mut b.io);
        assert!(!b.storage.is_idle() && !b.storage.has_inline() && b.io.in_flight() == 0);
        b.io.arena().release(taken[0]);
        b.storage.feed_starved(&mut b.io);
        assert_eq!(b.finish().0, op);
    }
}

fn io_error() -> Option<io::Error> {
    Some(io::Error::from_raw_os_error(libc::EIO))
}

/// A write with FUA is two things, and which of them failed decides whether the copy is lost.
#[test]
fn a_write_with_fua_tells_which_half_of_it_failed() {
    for mode in [Mode::Direct, Mode::Buffered] {
        let fails: [(Spoil, DiskError); 3] = [
            (|op| matches!(op, Op::Write { dsync: true, .. }).then(io_error)?, DiskError::Sync),
            (|op| matches!(op, Op::Write { .. }).then(io_error)?, DiskError::Io),
            (
                |op| matches!(op, Op::Write { .. }).then(|| io::Error::from_raw_os_error(libc::ENOSPC)),
                DiskError::NoSpace,
            ),
        ];
        for (spoil, expected) in fails {
            let mut b = bench(mode);
            b.storage.disk.as_mut().unwrap().keeps_dsync = true;
            b.spoil = spoil;
            let slot = b.io.arena().take(POOL, 8192, 8192).unwrap();
            b.io.arena().bytes_mut(Span::of_volume(slot, 8192, 8192)).fill(7);
            let op = b.op();
            b.storage.write(&mut b.io, op, 8192, 8192, slot, true);
            assert_eq!(b.finish(), (op, Err(expected), None), "{mode:?}");
            b.io.arena().release(slot);
            assert!(b.storage.is_idle() && b.io.arena().in_use() == 0);
        }
    }
}

/// The error of a lost write is told once. Who hears of it is reported before anybody else's sync ends well.
#[test]
fn syncs_through_the_page_cache_are_reported_one_after_the_other() {
    let mut b = bench(Mode::Buffered);
    b.spoil = |op| matches!(op, Op::Write { dsync: true, .. }).then(io_error)?;
    let slot = b.io.arena().take(POOL, 8192, 8192).unwrap();
    let [write, zero, flush] = [(); 3].map(|()| b.op());
    b.storage.write(&mut b.io, write, 8192, 8192, slot, true);
    b.storage.flush(&mut b.io, flush);
    b.storage.zero(&mut b.io, zero, 65_536, 8192, true, true);
    b.io.arena().release(slot);
    assert_eq!(b.io.in_flight(), 2, "the write, and the hole that is not synced yet");
    assert_eq!(b.finish(), (write, Err(DiskError::Sync), None));
    assert_eq!(b.finish(), (flush, Ok(()), None));
    assert_eq!(b.finish(), (zero, Ok(()), None));
    assert!(b.storage.is_idle());
}

/// D2, where the kernel does nothing for RWF_DSYNC: an fdatasync that begins behind the write makes it durable.
#[test]
fn on_a_disk_that_forgets_dsync_a_write_with_fua_ends_with_its_fdatasync() {
    for (mode, is_write) in [(Mode::Direct, true), (Mode::Direct, false), (Mode::Buffered, true)] {
        let mut b = bench(mode);
        b.storage.disk.as_mut().unwrap().keeps_dsync = false;
        b.spoil = |op| {
            assert!(!matches!(op, Op::Write { dsync: true, .. }), "it asked for what it does not get");
            matches!(op, Op::Datasync { .. }).then(io_error)?
        };
        let op = b.op();
        if is_write {
            let slot = b.io.arena().take(POOL, 8192, 8192).unwrap();
            b.io.arena().bytes_mut(Span::of_volume(slot, 8192, 8192)).fill(7);
            b.storage.write(&mut b.io, op, 8192, 8192, slot, true);
        } else {
            b.storage.zero(&mut b.io, op, 5000, 7, false, true);
        }
        assert_eq!(b.finish(), (op, Err(DiskError::Sync), None), "it did not wait for an fdatasync");
        assert_eq!((b.content()[5000] == 0, b.content()[8192] == 7), (!is_write, is_write));
    }
}

#[test]
fn zeroes_with_fua_that_were_not_made_durable_say_so() {
    for mode in [Mode::Direct, Mode::Buffered] {
        let mut b = bench(mode);
        b.spoil = |op| matches!(op, Op::Datasync { .. } | Op::Write { dsync: true, .. }).then(io_error)?;
        let op = b.op();
        b.storage.zero(&mut b.io, op, 8192, 8192, true, true);
        assert_eq!(b.finish(), (op, Err(DiskError::Sync), None), "{mode:?}");
    }
}

#[test]
fn without_a_disk_every_job_fails() {
    let mut b = bench(Mode::Memory);
    b.storage.disk = None;
    let op = b.op();
    b.storage.flush(&mut b.io, op);
    assert_eq!(b.finish(), (op, Err(DiskError::Io), None));
    let op = b.op();
    b.storage.read(&mut b.io, op, 0, 512, None);
    assert_eq!(b.finish(), (op, Err(DiskError::Io), None));
}

#[test]
fn every_way_to_have_no_room_is_the_same_error() {
    for number in [libc::ENOSPC, libc::EDQUOT, libc::EFBIG] {
        assert_eq!(kind_of(&io::Error::from_raw_os_error(number)), DiskError::NoSpace);
    }
    assert_eq!(kind_of(&io::Error::from_raw_os_error(libc::EIO)), DiskError::Io);
}
