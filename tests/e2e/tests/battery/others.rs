//! Independent implementations of the protocol: the crate `nbd`, nbd-client; and fio's engine.

use crate::sample::{MIB, SIZE_BYTES, assert_holds, sample};
use lockstep_e2e::{Plain, Port, tool};
use nbd::client::{NbdClient, NbdExt, handshake};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;

/// It asks with EXPORT_NAME, reads the 124 zeroes behind the answer, and has one request under way.
#[test]
fn the_nbd_crate_reads_what_it_wrote() {
    let bytes = sample(21);
    let served = Plain::start(SIZE_BYTES, &["--name", "disk"]);
    for name in [&b"disk"[..], b""] {
        let mut stream = UnixStream::connect(served.socket()).expect("connect");
        let export = handshake(&mut stream, name).expect("a handshake");
        assert_eq!((export.size, export.readonly, export.send_flush), (SIZE_BYTES, false, true));
        let mut client = NbdClient::new(stream, &export);
        for chunk in bytes.chunks(1_000_003) {
            client.write_all(chunk).expect("write");
        }
        client.flush().expect("flush");
        assert_holds(&served, &bytes);
        client.seek(SeekFrom::Start(777)).expect("seek");
        let mut back = vec![0; 3_000_001];
        client.read_exact(&mut back).expect("read");
        assert!(back == bytes[777..][..3_000_001]);
        client.seek(SeekFrom::Start(0)).expect("seek");
        client.trim(SIZE_BYTES as usize).expect("trim");
        assert_holds(&served, &vec![0; SIZE_BYTES as usize]);
    }
    let stream = UnixStream::connect(served.socket()).expect("connect");
    assert!(handshake(&stream, b"nothing").is_err(), "EXPORT_NAME of an export that is not there");
}

#[test]
fn nbd_client_lists_the_export() {
    let port = Port::reserve();
    let address = format!("127.0.0.1:{}", port.number());
    let served = Plain::start(SIZE_BYTES, &["--name", "disk", "--tcp", &address]);
    let list = |words: &[&str]| tool("nbd-client").arg("-l").args(words).run().ok();
    let port = port.number().to_string();
    let socket = served.socket().display().to_string();
    for said in [list(&["127.0.0.1", &port]), list(&["-unix", &socket])] {
        assert_eq!(said.lines().last(), Some("disk"), "{said}");
    }
}

/// Four jobs are four connections.
#[test]
fn fio_verifies_and_trims_on_four_connections() {
    let served = Plain::start(SIZE_BYTES, &[]);
    let aux = format!("--aux-path={}", served.dir().display());
    let uri = format!("--uri={}", served.uri());
    let fio = || {
        let job = ["--name=job", "--output-format=terse", "--ioengine=nbd", "--iodepth=16", "--randseed=9"];
        tool("fio").arg(&aux).args(job).arg(&uri)
    };
    let own = ["--numjobs=4", "--size=6M", "--offset_increment=6M"];
    let verify = ["--verify=crc32c", "--verify_fatal=1", "--do_verify=1"];
    let sizes = ["--rw=randwrite", "--bsrange=512-256k", "--blockalign=512"];
    fio().args(own).args(sizes).args(verify).run().ok();
    // Each block is trimmed, then written.
    fio().args(own).args(["--rw=randtrimwrite", "--bs=8k"]).args(verify).run().ok();
    fio().args(["--rw=trim", "--bs=1M"]).arg(format!("--size={}M", SIZE_BYTES / MIB)).run().ok();
    assert_holds(&served, &vec![0; SIZE_BYTES as usize]);
}
