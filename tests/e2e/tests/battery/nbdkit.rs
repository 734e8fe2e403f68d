//! nbdkit as a client: its nbd plugin, with filters between that change the size, the number and the order of
//! requests. Its own clients then work through it.

use crate::sample::{MIB, SIZE_BYTES, assert_holds, sample};
use lockstep_e2e::{Connection, Plain, Process, assert_equal, tool, wait_until};
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);

/// Runs a script with `$uri` of an nbdkit that is a client of `served`.
#[track_caller]
fn through(served: &Plain, filters: &[&str], settings: &[&str], script: &str) -> String {
    let words = filters.iter().map(|filter| format!("--filter={filter}"));
    let plugin = ["nbd".to_string(), format!("uri={}", served.uri())];
    let run = ["--run".to_string(), format!("set -e; cd '{}'; {script}", served.dir().display())];
    let words = words.chain(plugin).chain(settings.iter().map(ToString::to_string)).chain(run);
    tool("nbdkit").args(["-U", "-"]).args(words).run().ok()
}

/// Filters that pass everything on, in their way; each is written through and read through.
#[test]
fn what_goes_through_the_filters_arrives() {
    let bytes = sample(3);
    let served = Plain::start(SIZE_BYTES, &[]);
    let image = served.file("sample.img", &bytes);
    let ways: [(&[&str], &[&str]); 9] = [
        (&[], &["shared=true"]),
        (&["blocksize"], &["minblock=4096", "maxdata=65536", "maxlen=1M"]),
        (&["cache"], &["cache=writeback"]),
        (&["readahead", "cache"], &["cache-on-read=true"]),
        (&["retry", "retry-request"], &["retries=3", "retry-delay=1"]),
        (&["delay"], &["rdelay=1ms", "wdelay=1ms"]),
        (&["error"], &["error=EIO", "error-rate=0"]),
        (&["fua", "nozero"], &["fuamode=emulate", "zeromode=notrim"]),
        (&["swab", "swab"], &["swab-bits=16"]),
    ];
    for (filters, settings) in ways {
        tool("qemu-io").args(["-f", "raw", "-c", "discard 0 24M"]).arg(served.uri()).run().ok();
        let script = "nbdcopy --flush sample.img $uri; nbdcopy $uri back.img";
        through(&served, filters, settings, script);
        assert_holds(&served, &bytes);
        assert_equal(&image, &served.path("back.img"));
    }
}

#[test]
fn a_copy_on_write_filter_leaves_the_export_alone() {
    let (old, new) = (sample(4), sample(5));
    let served = Plain::holding(&old, &[]);
    let image = served.file("new.img", &new);
    through(&served, &["cow"], &[], "nbdcopy new.img $uri; nbdcopy $uri back.img");
    assert_equal(&image, &served.path("back.img"));
    assert_holds(&served, &old);
}

/// A table with one partition, from 1 MiB to 9 MiB.
fn partitioned(mut bytes: Vec<u8>) -> Vec<u8> {
    let [start, sectors] = [MIB / 512, 8 * MIB / 512].map(|number| (number as u32).to_le_bytes());
    let entry = [[0, 0xff, 0xff, 0xff], [0x83, 0xff, 0xff, 0xff], start, sectors].concat();
    bytes[..512].fill(0);
    bytes[446..462].copy_from_slice(&entry);
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    bytes
}

#[test]
fn a_part_of_the_export_is_written_and_nothing_beside_it() {
    let mut expected = partitioned(sample(6));
    let served = Plain::holding(&expected, &[]);
    let part = sample(7)[..8 << 20].to_vec();
    served.file("part.img", &part);
    let ways: [(&str, &[&str]); 2] =
        [("partition", &["partition=1"]), ("offset", &["offset=10M", "range=8M"])];
    for ((filter, settings), start) in ways.into_iter().zip([1 << 20, 10 << 20]) {
        let script = "nbdcopy part.img $uri; nbdcopy $uri back.img; cmp part.img back.img";
        through(&served, &[filter], settings, script);
        expected[start..start + part.len()].copy_from_slice(&part);
        assert_holds(&served, &expected);
    }
}

/// Filters that read here and there, in small pieces.
#[test]
fn what_is_inside_the_export_is_read() {
    let bytes = sample(8);
    let served = Plain::start(SIZE_BYTES, &[]);
    served.file("inner.img", &bytes[..3 << 20]);
    let dir = served.dir().display();
    let pack =
        format!("cd '{dir}' && tar -cf tar.img --format=gnu inner.img && gzip -c inner.img > gzip.img");
    tool("bash").args(["-c", &pack]).run().ok();
    let ways: [(&str, &[&str]); 2] = [("tar", &["tar-entry=inner.img"]), ("gzip", &[])];
    for (filter, settings) in ways {
        let file = std::fs::read(served.path(&format!("{filter}.img"))).expect("an archive");
        let inner = Plain::holding(&padded(file), &["--read-only"]);
        let script = format!("nbdcopy $uri back.img; cmp back.img '{dir}/inner.img'");
        through(&inner, &[filter], settings, &script);
    }
}

/// Exports are whole sectors.
fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// The filter opens the export anew, as often as the server was away, and sends again what was not answered.
#[test]
fn the_retry_filter_rides_over_restarts() {
    let mut served = Plain::start(SIZE_BYTES, &[]);
    let (socket, log) = (served.path("proxy.sock"), served.path("proxy.log"));
    let place = ["-f", "-U", &socket.display().to_string(), "--filter=retry", "nbd"].map(str::to_string);
    let settings = ["retries=30", "retry-delay=1", "retry-exponential=no"].map(str::to_string);
    let words = [&place[..], &[format!("uri={}", served.uri())], &settings].concat();
    let _proxy = Process::start(Path::new("/usr/bin/nbdkit"), &words, &log, None);
    wait_until("nbdkit", LIMIT, || Connection::open(socket.as_path(), "").is_ok());
    let mut client = Connection::open(socket.as_path(), "").expect("a client of nbdkit");
    let bytes = sample(9);
    for (index, chunk) in bytes.chunks(64 << 10).enumerate() {
        if index % 100 == 50 {
            assert!(served.stop().success());
            served.serve_again();
        }
        client.write(index as u64 * (64 << 10), chunk).expect("a write that is sent again");
    }
    client.flush().expect("a flush");
    assert_holds(&served, &bytes);
}
