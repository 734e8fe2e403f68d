//! Requests and replies of the NBD specification, byte by byte over a socket. `docs/CONFORMANCE.md` says which rule
//! each test holds. What a reply must look like in any case is asserted by `Reply::assert_sound`, for every request of
//! these tests.

use lockstep_e2e::Plain;
use lockstep_e2e::bytes::number::{chunk, cmd, errno, flag, magic, opt, with};
use lockstep_e2e::bytes::{Raw, Request, Style, be};
use std::os::unix::fs::{FileExt, MetadataExt};

const SIZE_BYTES: u64 = 48 << 20;
const PAYLOAD_MAX: u64 = 32 << 20;
const STYLES: [Style; 2] = [Style::Simple, Style::Structured];

fn plain() -> Plain {
    Plain::start(SIZE_BYTES, &[])
}

/// Bytes that show where they come from.
fn pattern(offset: u64, length: u64) -> Vec<u8> {
    (offset..offset + length).map(|at| (at / 509 * 7 + at) as u8).collect()
}

#[test]
fn without_negotiation_every_reply_is_simple() {
    let served = plain();
    let mut raw = Raw::serve(served.socket(), Style::Simple);
    // `Raw::reply` takes nothing else on such a connection.
    let commands = [cmd::READ, cmd::FLUSH, cmd::TRIM, cmd::CACHE, cmd::WRITE_ZEROES, cmd::BLOCK_STATUS, 4242];
    for command in commands {
        for (offset, length) in [(0, 4096), (0, 0), (SIZE_BYTES, 1), (u64::MAX, 4096)] {
            let reply = raw.call(Request::new(command, offset, length));
            assert!(reply.chunks.is_empty());
        }
    }
    assert_eq!(raw.put(0, 0, &[1; 512]), 0);
    assert_eq!(raw.put(0, SIZE_BYTES, &[1; 512]), errno::ENOSPC);
    raw.assert_in_step();
}

#[test]
fn a_failed_read_with_a_simple_reply_has_no_data() {
    let served = plain();
    let mut raw = Raw::serve(served.socket(), Style::Simple);
    for (offset, length) in [(SIZE_BYTES - 1, 2), (0, PAYLOAD_MAX + 1), (0, 0), (u64::MAX, 1)] {
        let reply = raw.call(Request::new(cmd::READ, offset, length));
        assert!(reply.error != 0 && reply.data.is_empty());
        raw.assert_in_step();
    }
}

#[test]
fn a_read_is_answered_in_chunks_where_they_were_agreed_even_when_it_is_refused() {
    let served = plain();
    let mut raw = Raw::serve(served.socket(), Style::Structured);
    let good = Request::new(cmd::READ, 512, 4096);
    let bad = [
        good.flags(with::NO_HOLE),
        good.flags(0xff00),
        Request { length: 0, ..good },
        Request { offset: SIZE_BYTES - 4095, ..good },
        Request { length: PAYLOAD_MAX + 1, ..good },
        Request { offset: u64::MAX - 4095, ..good },
    ];
    for request in bad {
        let reply = raw.call(request);
        assert!(reply.error != 0 && reply.data.is_empty(), "{request:?}: {reply:02x?}");
        assert_eq!(reply.chunks.len(), 1);
        assert!(reply.chunks[0].payload.len() > 6, "the error has words");
    }
    assert_eq!(raw.call(good).chunks.len(), 1);
}

#[test]
fn the_chunks_of_a_read_are_few_and_aligned() {
    let served = plain();
    let mut raw = Raw::serve(served.socket(), Style::Structured);
    let data = pattern(0, 4 << 20);
    for (block, part) in data.chunks(1 << 20).enumerate() {
        assert_eq!(raw.put(0, (block as u64) << 20, part), 0);
    }
    let ranges = [(0, 1), (1, 1), (511, 2), (4095, 4098), (1, 1 << 20), (0, 2 << 20), (513, (3 << 20) + 1)];
    for (offset, length) in ranges {
        let reply = raw.call(Request::new(cmd::READ, offset, length));
        assert!(reply.data == data[offset as usize..(offset + length) as usize], "{length} at {offset}");
        // None is smaller than 2 MiB but the last one, and none begins or ends inside a sector but at the ends.
        assert!(reply.chunks.len() as u64 <= 1 + length.div_ceil(2 << 20), "{}", reply.chunks.len());
        for chunk in &reply.chunks[1..] {
            assert_eq!(chunk.payload[6..8], [chunk.payload[6] & 0xfe, 0], "a chunk begins inside a sector");
        }
    }
    assert_eq!(raw.get(8 << 20, PAYLOAD_MAX), vec![0; PAYLOAD_MAX as usize]);
}

#[test]
fn a_read_that_may_not_be_fragmented_has_one_content_chunk() {
    let served = plain();
    let mut raw = Raw::serve(served.socket(), Style::Structured);
    // Data between holes.
    assert_eq!(raw.put(0, 8192, &pattern(8192, 4096)), 0);
    let content = [chunk::OFFSET_DATA, chunk::OFFSET_HOLE];
    for length in [1, 4096, 16_384, 65_535, 65_536, 1 << 20, 3 << 20, PAYLOAD_MAX] {
        let reply = raw.call(Request::new(cmd::READ, 4096, length).flags(with::DF));
        let of_content = reply.chunks.iter().filter(|chunk| content.contains(&chunk.kind)).count();
        if reply.error == errno::EOVERFLOW && length > 65_536 {
            assert_eq!(of_content, 0, "too large to be sent unfragmented, and sent in part");
            continue;
        }
        assert_eq!((reply.error, of_content), (0, 1), "{length} bytes");
        let written = 4096..8192.min(length.max(4096)) as usize;
        assert!(reply.data.get(written.clone()).unwrap_or_default() == &pattern(8192, 4096)[..written.len()]);
        if length > 4096 {
            assert_eq!(reply.chunks[0].kind, chunk::OFFSET_DATA, "data and hole: all of it as data");
        }
    }
    let mut simple = Raw::serve(served.socket(), Style::Simple);
    assert_eq!(simple.error_of(cmd::READ, with::DF, 0, 4096), errno::EINVAL, "it was not offered");
}

#[test]
fn errors_come_in_chunks_with_words_where_chunks_were_agreed() {
    let served = plain();
    let mut raw = Raw::serve(served.socket(), Style::Structured);
    for (command, offset, length) in [
        (cmd::TRIM, SIZE_BYTES, 4096),
        (cmd::WRITE_ZEROES, SIZE_BYTES, 4096),
        (cmd::CACHE, SIZE_BYTES, 4096),
        (cmd::BLOCK_STATUS, 0, 4096),
        (cmd::FLUSH, 1, 0),
        (4242, 0, 4096),
    ] {
        let reply = raw.call(Request::new(command, offset, length));
        assert_ne!(reply.error, 0);
        let [only] = &reply.chunks[..] else { panic!("command {command}: {reply:02x?}") };
        assert!(only.payload.len() > 6, "an error with words");
    }
    let cookie = raw.write(0, SIZE_BYTES, &[1; 4096]);
    let reply = raw.reply(0);
    assert_eq!((reply.cookie, reply.error, reply.chunks.len()), (cookie, errno::ENOSPC, 1));
}

#[test]
fn cookies_come_back_as_they_were_sent() {
    let served = plain();
    for style in STYLES {
        let mut raw = Raw::serve(served.socket(), style);
        for cookie in [0, 1, u64::MAX, 1 << 63, 0x6744_6698_0000_0000, 0x668e_33ef_2560_9513] {
            let requests = [
                Request::new(cmd::READ, 0, 512),
                Request::new(cmd::READ, SIZE_BYTES, 512),
                Request::new(cmd::FLUSH, 0, 0),
                Request::new(cmd::TRIM, 0, 4096),
                Request::new(4242, 0, 0),
            ];
            for request in requests {
                raw.send(&request.header(style, cookie));
                let reply = raw.reply(if request.command == cmd::READ { request.length } else { 0 });
                assert_eq!(reply.cookie, cookie, "{request:?}");
            }
        }
        raw.assert_in_step();
    }
}

#[test]
fn what_was_written_trimmed_and_zeroed_is_read_back() {
    let served = plain();
    let mut raw = Raw::serve(served.socket(), Style::Structured);
    let mut expected = pattern(0, 1 << 20);
    assert_eq!(raw.put(0, 0, &expected), 0);
    let zeroed = [(0, 1), (4095, 2), (8192, 4096), (20_000, 3), (65_536 - 1, 131_074), (1 << 19, 12_345)];
    for (at, (offset, length)) in zeroed.into_iter().enumerate() {
        let flags = [0, with::NO_HOLE, with::FUA, with::FUA | with::NO_HOLE][at % 4];
        assert_eq!(raw.error_of(cmd::WRITE_ZEROES, flags, offset, length), 0);
        expected[offset as usize..(offset + length) as usize].fill(0);
    }
    assert_eq!(raw.error_of(cmd::CACHE, 0, 0, 1 << 20), 0, "it changes nothing");
    let written = [(1, 1), (4096, 8192), (100_001, 50_000)];
    for (offset, length) in written {
        let data = pattern(offset + 13, length);
        assert_eq!(raw.put(0, offset, &data), 0);
        expected[offset as usize..(offset + length) as usize].copy_from_slice(&data);
    }
    assert!(raw.get(0, 1 << 20) == expected);
    // Trimmed bytes are of no interest to their owner; those around them are.
    assert_eq!(raw.error_of(cmd::TRIM, 0, 10_001, 20_000), 0);
    let after = raw.get(0, 1 << 20);
    assert!(after[..10_001] == expected[..10_001] && after[30_001..] == expected[30_001..]);
}

#[test]
fn zeroes_without_a_hole_have_room_on_the_disk() {
    let served = plain();
    let mut raw = Raw::serve(served.socket(), Style::Simple);
    let room = || served.disk().metadata().expect("facts of a file").blocks() * 512;
    assert_eq!(raw.error_of(cmd::WRITE_ZEROES, with::NO_HOLE, 0, 1 << 20), 0);
    assert!(room() >= 1 << 20, "{} bytes have room", room());
    assert_eq!(raw.error_of(cmd::WRITE_ZEROES, with::NO_HOLE, 1 << 20, 12_345), 0);
    assert!(room() >= (1 << 20) + 12_345);
    assert_eq!(raw.get(0, 2 << 20), vec![0; 2 << 20]);
}

#[test]
fn a_write_that_was_answered_is_in_the_file() {
    let served = plain();
    let mut raw = Raw::serve(served.socket(), Style::Simple);
    let file = std::fs::File::open(served.disk()).expect("the file");
    for (offset, length) in [(0, 4096), (12_289, 1), (77_777, 65_536), (SIZE_BYTES - 1, 1)] {
        let data = pattern(offset, length);
        assert_eq!(raw.put(0, offset, &data), 0);
        let mut there = vec![0; length as usize];
        file.read_exact_at(&mut there, offset).expect("read the file");
        assert!(there == data);
    }
}

#[test]
fn a_disconnect_is_obeyed_when_everything_before_it_was_answered_and_nothing_behind_it_is_done() {
    let served = plain();
    for style in STYLES {
        let mut raw = Raw::serve(served.socket(), style);
        let cookies: Vec<u64> =
            (0..100).map(|at| raw.write(with::FUA, at * 8192, &pattern(at, 4096))).collect();
        // The values of a goodbye are of no interest.
        let goodbye = Request { flags: with::FUA, command: cmd::DISC, offset: 5, length: 7 };
        let behind = Request::new(cmd::WRITE, 0, 4096).header(style, 9999);
        raw.send_or_lose(&be(&[&goodbye.header(style, u64::MAX), &behind, &vec![0xee; 4096]]));
        let mut answered: Vec<u64> = (0..100).map(|_| raw.reply(0).cookie).collect();
        answered.sort_unstable();
        assert_eq!(answered, cookies);
        raw.assert_closed();
        let mut next = Raw::serve(served.socket(), style);
        assert!(next.get(0, 4096) == pattern(0, 4096));
    }
}

#[test]
fn what_is_no_request_ends_the_connection() {
    let served = plain();
    // Reserved by the specification, of replies, of the other style, of an option.
    let wrong =
        [0x1256_0953, 0x9674_4668, 0x2560_9514, magic::SIMPLE_REPLY, magic::EXTENDED_REQUEST, 0x4948_4156];
    for style in STYLES {
        for number in wrong {
            let mut raw = Raw::serve(served.socket(), style);
            raw.assert_in_step();
            let mut bytes = Request::new(cmd::FLUSH, 0, 0).header(style, 1);
            bytes[..4].copy_from_slice(&number.to_be_bytes());
            raw.send(&bytes);
            raw.assert_closed();
        }
    }
    Raw::serve(served.socket(), Style::Simple).assert_in_step();
}

#[test]
fn the_options_end_with_the_transmission_phase() {
    let served = plain();
    let mut raw = Raw::serve(served.socket(), Style::Simple);
    raw.send(&be(&[&magic::OPTION, &opt::LIST, &0_u32, &vec![0; 64]]));
    raw.assert_closed();
}

#[test]
fn a_command_without_payload_may_be_longer_than_any_payload() {
    let served = Plain::start(5 << 30, &[]);
    let mut raw = Raw::serve(served.socket(), Style::Structured);
    assert_eq!(raw.put(0, (4 << 30) - 4096, &[7; 4096]), 0);
    for command in [cmd::TRIM, cmd::WRITE_ZEROES, cmd::CACHE] {
        let error = raw.error_of(command, 0, 0, u64::from(u32::MAX));
        assert_eq!(error, 0, "command {command}");
    }
    let last = raw.get((4 << 30) - 4096, 4096);
    assert_eq!(last[..4095], [0; 4095], "zeroed but for the byte behind the range");
    assert_eq!(last[4095], 7);
    raw.assert_in_step();
}

#[test]
fn fua_is_taken_with_every_command() {
    let served = plain();
    for style in STYLES {
        let mut raw = Raw::haggle(served.socket());
        raw.agree(style);
        assert_ne!(raw.go(b"").flags & flag::SEND_FUA, 0);
        assert_eq!(raw.put(with::FUA, 0, &[1; 512]), 0);
        assert_eq!(raw.error_of(cmd::FLUSH, with::FUA, 0, 0), 0);
        for command in [cmd::READ, cmd::TRIM, cmd::CACHE, cmd::WRITE_ZEROES] {
            assert_eq!(raw.error_of(command, with::FUA, 4096, 4096), 0, "command {command}");
        }
        raw.assert_in_step();
    }
}
