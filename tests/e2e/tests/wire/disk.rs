//! What the disk below has to do with the answers: durable when it was said so, errors as the specification numbers
//! them, nothing promised that cannot be had. `docs/CONFORMANCE.md` says which rule each test holds.

use lockstep_e2e::bytes::number::{chunk, cmd, errno, opt, rep, with};
use lockstep_e2e::bytes::{Raw, Request, Style, info_query};
use lockstep_e2e::{Fault, FaultyDisk, Plain, Served, SmallDisk, UNREADABLE, WriteLog, temp_dir, wait_until};
use std::fs::File;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const SIZE_BYTES: u64 = 8 << 20;
const LIMIT: Duration = Duration::from_secs(20);

/// What the disk was asked for: each write with its offset, and each flush.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Write(u64),
    Flush,
}

/// The log of a disk, which has everything in it that the disk has answered.
fn asked(log: &Path) -> Vec<Asked> {
    let log = WriteLog::read(log).expect("read a log");
    let changes = log.entries().iter().filter(|entry| entry.is_flush() || entry.length_bytes > 0);
    changes
        .map(|entry| if entry.is_flush() { Asked::Flush } else { Asked::Write(entry.offset_bytes) })
        .collect()
}

/// A flush covers what was answered on any connection; a write with FUA is durable by itself.
#[test]
fn what_was_said_to_be_durable_was_flushed_before_the_answer() {
    let dir = temp_dir(true);
    let path = |name: &str| dir.path().join(name);
    for name in ["image", "disk.img"] {
        File::create(path(name)).and_then(|file| file.set_len(SIZE_BYTES)).expect("a sparse file");
    }
    let (image, disk, log) = (path("image"), path("disk.img"), path("writes.log"));
    let below = Served::start(&image, &disk, Some(&log));
    let served = Plain::serve(dir, &[]);
    let mut writer = Raw::serve(served.socket(), Style::Simple);
    let mut flusher = Raw::serve(served.socket(), Style::Structured);
    for round in 0..20 {
        let offset = round * 65_536;
        assert_eq!(writer.put(0, offset, &[1 + round as u8; 4096]), 0);
        assert!(asked(&log).contains(&Asked::Write(offset)), "a write that was answered reached the disk");
        let error = match round % 4 {
            0 => flusher.error_of(cmd::FLUSH, 0, 0, 0),
            1 => writer.error_of(cmd::FLUSH, with::FUA, 0, 0),
            2 => writer.put(with::FUA, offset, &[100; 4096]),
            _ => flusher.error_of(cmd::WRITE_ZEROES, with::FUA | with::NO_HOLE, offset, 4096),
        };
        assert_eq!(error, 0);
        let asked = asked(&log);
        let last_write = asked.iter().rposition(|entry| *entry == Asked::Write(offset)).expect("the write");
        assert!(asked[last_write..].contains(&Asked::Flush), "round {round}: {:?}", &asked[last_write..]);
    }
    drop((writer, flusher, served));
    drop(below);
}

#[test]
fn a_read_that_fails_is_an_error_without_data_and_the_connection_goes_on() {
    let dir = temp_dir(true);
    let mut disk =
        FaultyDisk::new(&dir.path().join("faulty"), &dir.path().join("disk.img"), SIZE_BYTES, Fault::Reads);
    let served = Plain::serve(dir, &[]);
    let mut simple = Raw::serve(served.socket(), Style::Simple);
    let mut structured = Raw::serve(served.socket(), Style::Structured);
    assert_eq!(simple.put(0, 0, &vec![9; SIZE_BYTES as usize]), 0);
    disk.fail();
    let bad = UNREADABLE[0];
    for (offset, length) in [(bad, 4096), (bad - 4096, 16_384), (bad + 4095, 1)] {
        let request = Request::new(cmd::READ, offset, length);
        let reply = simple.call(request);
        assert_eq!((reply.error, reply.data.len()), (errno::EIO, 0));
        for flags in [0, with::DF] {
            let reply = structured.call(request.flags(flags));
            assert_eq!(reply.error, errno::EIO);
            let errors = reply.chunks.iter().filter(|chunk| chunk.kind & 1 << 15 != 0);
            assert_eq!(errors.count(), 1, "{:02x?}", reply.chunks);
        }
    }
    // A long one, which is answered in parts and fails in the second: what came before is good, and then an error.
    let long = Request::new(cmd::READ, 2 << 20, SIZE_BYTES - (2 << 20));
    let reply = structured.call(long);
    assert_eq!(reply.error, errno::EIO);
    assert!(!reply.data.is_empty());
    assert!(reply.data.iter().all(|byte| *byte == 9), "what came in chunks is what was written");
    assert!(
        matches!(reply.chunks.last(), Some(last) if [chunk::ERROR, chunk::ERROR_OFFSET].contains(&last.kind))
    );
    // In one chunk it cannot be cut short: zeroes fill it up, and then comes the error.
    let reply = structured.call(long.flags(with::DF));
    assert_eq!((reply.error, reply.data.len() as u64), (errno::EIO, long.length));
    let good = (UNREADABLE[1] - long.offset) as usize / (2 << 20) * (2 << 20);
    assert!(reply.data[..good].iter().all(|byte| *byte == 9));
    assert!(reply.data[good..].iter().all(|byte| [0, 9].contains(byte)) && reply.data[good..].contains(&0));
    assert_eq!(reply.chunks.len(), 2);
    for raw in [&mut simple, &mut structured] {
        assert_eq!(raw.get(0, 4096), [9; 4096]);
        raw.assert_in_step();
    }
    // A simple reply that promised data it cannot have is cut off: there is no other way to tell.
    simple.request(long);
    let said = simple.wait_closed();
    assert!(
        (said.len() as u64) < 16 + long.length
            && said.get(16..).unwrap_or_default().iter().all(|byte| *byte == 9)
    );
    disk.mend();
    drop((structured, served));
}

#[test]
fn no_room_on_the_disk_is_no_space() {
    let dir = temp_dir(true);
    let small = SmallDisk::new(&dir.path().join("small"), 1 << 20);
    small.hold(&dir.path().join("disk.img"), SIZE_BYTES);
    let served = Plain::serve(dir, &[]);
    let mut raw = Raw::serve(served.socket(), Style::Simple);
    let errors: Vec<u32> = (0..4).map(|at| raw.put(0, at << 19, &[7; 1 << 19])).collect();
    assert!(
        errors.contains(&errno::ENOSPC) && errors.iter().all(|error| [0, errno::ENOSPC].contains(error)),
        "{errors:?}"
    );
    small.grow(2 * SIZE_BYTES);
    assert_eq!(raw.put(0, 3 << 19, &[7; 1 << 19]), 0, "there is room again");
    raw.assert_in_step();
    drop((raw, served));
}

/// Whether a new client is greeted.
fn greets(socket: &Path) -> bool {
    let greeting = UnixStream::connect(socket).and_then(|mut stream| stream.read_exact(&mut [0; 18]));
    greeting.is_ok()
}

/// What a server had taken when it was told to stop is done and answered, and then the connection ends.
#[test]
fn a_stopping_server_answers_what_is_under_way() {
    let dir = temp_dir(true);
    let (name, faulty) = (dir.path().join("disk.img"), dir.path().join("faulty"));
    let mut disk = FaultyDisk::new(&faulty, &name, SIZE_BYTES, Fault::Hangs);
    let mut served = Plain::serve(dir, &[]);
    let mut raw = Raw::serve(served.socket(), Style::Simple);
    disk.fail();
    let cookie = raw.write(0, 0, &[5; 4096]);
    // The server has seen the write when it has answered what came behind it.
    raw.send(&Request::new(4242, 0, 0).header(Style::Simple, 77));
    assert_eq!(raw.reply(0).cookie, 77);
    let (mut haggling, mut leaving, mut hasty) = {
        let haggle = || Raw::haggle(served.socket());
        (haggle(), haggle(), haggle())
    };
    served.terminate();
    // It takes no more clients, but those that are there hear why.
    wait_until("the server stops", LIMIT, || !greets(&served.socket()));
    for option in [opt::LIST, opt::GO, opt::STRUCTURED_REPLY] {
        assert_eq!(haggling.outcome(option, &info_query(b"", &[])), rep::ERR_SHUTDOWN);
    }
    assert_eq!(leaving.outcome(opt::ABORT, &[]), rep::ACK);
    hasty.option(opt::EXPORT_NAME, b"");
    hasty.assert_closed();
    disk.mend();
    let reply = raw.reply(0);
    assert_eq!(reply.cookie, cookie);
    assert!([0, errno::ESHUTDOWN].contains(&reply.error), "error {}", reply.error);
    raw.assert_closed();
    served.stop();
}
