//! Extended headers, byte by byte over a socket: lengths of 64 bits, payloads that are announced, and questions about
//! some of the selected contexts. `docs/CONFORMANCE.md` says which rule of the extension each test holds.

use lockstep_e2e::bytes::number::{cmd, errno, flag, info, magic, opt, rep, with};
use lockstep_e2e::bytes::{Raw, Request, Style, be, info_query, meta_query};
use lockstep_e2e::{Cluster, Plain, Plan, RESOURCE};
use std::collections::BTreeSet;

const SIZE_BYTES: u64 = 48 << 20;
const PAYLOAD_MAX: u64 = 32 << 20;
const NAME: &[u8] = b"disk.img";

fn plain() -> Plain {
    Plain::start(SIZE_BYTES, &[])
}

#[test]
fn extended_headers_stand_alone_and_take_precedence() {
    let served = plain();
    let mut raw = Raw::haggle(served.socket());
    assert_eq!(raw.outcome(opt::EXTENDED_HEADERS, &[1]), rep::ERR_INVALID, "it takes no data");
    raw.agree(Style::Extended);
    assert_eq!(raw.outcome(opt::STRUCTURED_REPLY, &[]), rep::ERR_EXT_HEADER_REQD);
    // Said twice, it stays as it is.
    let again = raw.outcome(opt::EXTENDED_HEADERS, &[]);
    assert!([rep::ACK, rep::ERR_INVALID].contains(&again), "{again:#x}");
    assert_ne!(raw.go(NAME).flags & flag::SEND_DF, 0);
    raw.assert_in_step();
    let mut after = Raw::haggle(served.socket());
    after.agree(Style::Structured);
    after.agree(Style::Extended);
    after.go(NAME);
    after.assert_in_step();
}

#[test]
fn export_name_is_closed_to_who_agreed_on_extended_headers() {
    let served = plain();
    let mut raw = Raw::haggle(served.socket());
    raw.agree(Style::Extended);
    raw.option(opt::EXPORT_NAME, NAME);
    raw.assert_closed();
}

/// `Raw::reply` takes no other reply on such a connection, and `Reply::assert_sound` looks at the offset.
#[test]
fn every_reply_has_an_extended_header_that_repeats_the_offset() {
    let served = plain();
    let mut raw = Raw::serve(served.socket(), Style::Extended);
    for offset in [0, 1, 4096, SIZE_BYTES - 4096, SIZE_BYTES, u64::MAX] {
        for command in
            [cmd::READ, cmd::TRIM, cmd::CACHE, cmd::WRITE_ZEROES, cmd::BLOCK_STATUS, cmd::FLUSH, 4242]
        {
            let reply = raw.call(Request::new(command, offset, 4096));
            assert!(!reply.chunks.is_empty());
        }
        let cookie = raw.write(0, offset, &[0; 100]);
        let reply = raw.reply(0);
        assert_eq!(reply.cookie, cookie);
        reply.assert_sound(&Request::new(cmd::WRITE, offset, 100));
    }
    raw.assert_in_step();
}

#[test]
fn data_goes_both_ways_with_extended_headers() {
    let served = plain();
    let mut raw = Raw::serve(served.socket(), Style::Extended);
    let data: Vec<u8> = (0..5 << 20).map(|at: u32| (at / 509 + at) as u8).collect();
    assert_eq!(raw.put(with::FUA, 12_345, &data), 0);
    assert!(raw.get(12_345, data.len() as u64) == data);
    let reply = raw.call(Request::new(cmd::READ, 12_345, 65_536).flags(with::DF));
    assert_eq!((reply.error, reply.chunks.len()), (0, 1));
    assert!(reply.data == data[..65_536]);
    let too_long = raw.error_of(cmd::READ, 0, 0, PAYLOAD_MAX + 1);
    assert!([errno::EOVERFLOW, errno::EINVAL].contains(&too_long));
    assert_eq!(raw.error_of(cmd::READ, 0, 0, 1 << 40), errno::EINVAL);
    raw.assert_in_step();
}

#[test]
fn one_request_may_be_about_more_than_4_gib() {
    const BYTES: u64 = 10 << 30;
    let served = Plain::start(BYTES, &[]);
    let mut raw = Raw::serve(served.socket(), Style::Extended);
    assert_eq!(raw.put(0, 9 << 30, &[7; 8192]), 0);
    assert_eq!(raw.error_of(cmd::CACHE, 0, 0, BYTES), 0);
    assert_eq!(raw.error_of(cmd::TRIM, 0, 0, 9 << 30), 0);
    assert_eq!(raw.get(9 << 30, 8192), [7; 8192]);
    assert_eq!(raw.error_of(cmd::WRITE_ZEROES, 0, 1, BYTES - 1), 0);
    assert_eq!(raw.get(9 << 30, 8192), [0; 8192]);
    for length in [BYTES + 1, u64::MAX, 1 << 63, u64::from(u32::MAX) << 32] {
        assert_eq!(raw.error_of(cmd::TRIM, 0, 0, length), errno::EINVAL);
        assert_eq!(raw.error_of(cmd::WRITE_ZEROES, 0, 4096, length), errno::ENOSPC);
    }
    raw.assert_in_step();
}

#[test]
fn block_status_about_more_than_4_gib_is_one_extent() {
    const BYTES: u64 = 10 << 30;
    let served = Plain::start(BYTES, &[]);
    let mut raw = Raw::haggle(served.socket());
    raw.agree(Style::Extended);
    raw.ask(opt::SET_META_CONTEXT, &meta_query(NAME, &["base:allocation"]));
    raw.go(NAME);
    let request = Request::new(cmd::BLOCK_STATUS, 0, BYTES);
    let described = raw.call(request).described(&request);
    assert_eq!(described[0].extents[..], [(BYTES, 3)]);
}

#[test]
fn only_writes_have_a_payload_and_any_other_is_thrown_away() {
    let served = plain();
    let mut raw = Raw::serve(served.socket(), Style::Extended);
    // A payload that consists of requests.
    let inner = Request::new(cmd::WRITE_ZEROES, 0, 4096).header(Style::Extended, 666);
    let payload: Vec<u8> = inner.iter().copied().cycle().take(100_000).collect();
    assert_eq!(raw.put(0, 0, &[7; 4096]), 0);
    for command in [cmd::READ, cmd::FLUSH, cmd::TRIM, cmd::CACHE, cmd::WRITE_ZEROES, cmd::BLOCK_STATUS, 4242]
    {
        for length in [1, 8, 12, 100_000] {
            let cookie = raw.request(Request::new(command, 0, length as u64).flags(with::PAYLOAD_LEN));
            raw.send(&payload[..length]);
            let reply = raw.reply(0);
            assert_eq!(
                (reply.cookie, reply.error),
                (cookie, errno::EINVAL),
                "command {command}, {length} bytes"
            );
        }
    }
    raw.assert_in_step();
    assert_eq!(raw.get(0, 4096), [7; 4096]);
}

#[test]
fn a_payload_longer_than_the_largest_ends_the_connection() {
    let served = plain();
    for command in [cmd::WRITE, cmd::TRIM, cmd::BLOCK_STATUS] {
        for length in [PAYLOAD_MAX + 1, 1 << 32, u64::MAX] {
            let mut raw = Raw::serve(served.socket(), Style::Extended);
            raw.request(Request::new(command, 0, length).flags(with::PAYLOAD_LEN));
            raw.assert_closed();
        }
    }
    let mut raw = Raw::serve(served.socket(), Style::Extended);
    assert_eq!(raw.put(0, 0, &vec![7; PAYLOAD_MAX as usize]), 0, "the largest");
    raw.assert_in_step();
}

#[test]
fn compact_requests_are_no_requests_behind_extended_headers() {
    let served = plain();
    let mut raw = Raw::serve(served.socket(), Style::Extended);
    raw.send(&be(&[&Request::new(cmd::FLUSH, 0, 0).header(Style::Simple, 1), &0_u32]));
    raw.assert_closed();
}

#[test]
fn the_payload_filter_is_offered_only_where_it_has_a_use() {
    let served = plain();
    let offered = |style: Style, selects: bool| {
        let mut raw = Raw::haggle(served.socket());
        raw.agree(style);
        if selects {
            raw.ask(opt::SET_META_CONTEXT, &meta_query(NAME, &["base:allocation"]));
        }
        raw.go(NAME).flags & flag::BLOCK_STATUS_PAYLOAD != 0
    };
    assert!(!offered(Style::Simple, false));
    assert!(!offered(Style::Structured, true));
    assert!(!offered(Style::Extended, false));
    assert!(offered(Style::Extended, true));
}

#[test]
fn a_question_may_be_about_some_of_the_contexts() {
    let cluster = Cluster::primary(&Plan { size_bytes: SIZE_BYTES, ..Plan::default() });
    let name = RESOURCE.as_bytes();
    let mut raw = Raw::haggle(cluster.alpha.nbd());
    raw.agree(Style::Extended);
    let wanted = ["base:allocation", "x-lockstep:out-of-sync"];
    let replies = raw.ask(opt::SET_META_CONTEXT, &meta_query(name, &wanted));
    let ids: Vec<u32> = replies[..2]
        .iter()
        .map(|reply| u32::from_be_bytes(reply.data[..4].try_into().expect("four bytes")))
        .collect();
    assert_ne!(raw.go(name).flags & flag::BLOCK_STATUS_PAYLOAD, 0);
    let ask = |raw: &mut Raw, effect: u64, list: &[u32]| {
        let mut payload = effect.to_be_bytes().to_vec();
        list.iter().for_each(|id| payload.extend_from_slice(&id.to_be_bytes()));
        let request = Request::new(cmd::BLOCK_STATUS, 0, payload.len() as u64).flags(with::PAYLOAD_LEN);
        raw.request(request);
        raw.send(&payload);
        let reply = raw.reply(0);
        if reply.error != 0 {
            return Err(reply.error);
        }
        let described = reply.described(&Request::new(cmd::BLOCK_STATUS, 0, effect));
        Ok(described.iter().map(|one| one.context).collect::<BTreeSet<u32>>())
    };
    for list in [&ids[..1], &ids[1..], &ids[..], &[ids[1], ids[0]]] {
        assert_eq!(ask(&mut raw, SIZE_BYTES, list), Ok(list.iter().copied().collect()), "{list:?}");
    }
    let unknown = [0, 3, 77, u32::MAX].into_iter().filter(|id| !ids.contains(id));
    for id in unknown {
        assert_eq!(ask(&mut raw, SIZE_BYTES, &[ids[0], id]), Err(errno::EINVAL), "unknown number {id}");
    }
    assert_eq!(ask(&mut raw, SIZE_BYTES, &[ids[0], ids[0]]), Err(errno::EINVAL), "twice the same");
    assert_eq!(ask(&mut raw, SIZE_BYTES + 1, &ids), Err(errno::EINVAL), "past the end");
    // Without a payload it is about all of them.
    let request = Request::new(cmd::BLOCK_STATUS, 0, SIZE_BYTES);
    assert_eq!(raw.call(request).described(&request).len(), 2);
    raw.assert_in_step();
}

#[test]
fn info_and_go_agree_also_with_extended_headers_and_contexts() {
    let served = plain();
    let mut raw = Raw::haggle(served.socket());
    raw.agree(Style::Extended);
    raw.ask(opt::SET_META_CONTEXT, &meta_query(b"", &["base:allocation"]));
    let query = info_query(NAME, &[info::BLOCK_SIZE, info::NAME]);
    let told = raw.ask(opt::INFO, &query);
    assert_eq!(raw.ask(opt::GO, &query), told);
    assert_eq!(raw.error_of(cmd::BLOCK_STATUS, 0, 0, 4096), 0, "the empty name is the same export");
    raw.send(&be(&[&magic::OPTION, &opt::LIST, &0_u32, &[0; 16].as_slice()]));
    raw.assert_closed();
}

/// Zeroes on condition that they are fast: done, or refused with nothing changed.
#[test]
fn fast_zeroes_are_fast_or_refused_without_a_trace() {
    let served = plain();
    for style in [Style::Simple, Style::Structured, Style::Extended] {
        let mut raw = Raw::haggle(served.socket());
        raw.agree(style);
        let is_offered = raw.go(NAME).flags & flag::SEND_FAST_ZERO != 0;
        for (offset, length, more) in [(0, 1 << 20, 0), (100, 5000, 0), (1 << 20, 65_536, with::NO_HOLE)] {
            let data = vec![7; length as usize];
            assert_eq!(raw.put(0, offset, &data), 0);
            let error = raw.error_of(cmd::WRITE_ZEROES, with::FAST_ZERO | more, offset, length);
            let there = raw.get(offset, length);
            match (is_offered, error) {
                (true, 0) => assert!(there.iter().all(|byte| *byte == 0)),
                (true, errno::ENOTSUP) | (false, errno::EINVAL) => assert!(there == data, "nothing was done"),
                other => panic!("fast zeroes, offered or not, and their error: {other:?}"),
            }
            assert_eq!(raw.error_of(cmd::WRITE_ZEROES, more, offset, length), 0, "without the condition");
        }
        let past = raw.error_of(cmd::WRITE_ZEROES, with::FAST_ZERO, SIZE_BYTES, 4096);
        assert!([errno::ENOSPC, errno::EINVAL].contains(&past));
    }
}
