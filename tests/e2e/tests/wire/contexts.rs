//! Metadata contexts and block status, byte by byte over a socket. `docs/CONFORMANCE.md` says which rule of the NBD
//! specification each test holds.

use lockstep_e2e::bytes::number::{chunk, cmd, errno, opt, rep, with};
use lockstep_e2e::bytes::{Described, OptionReply, Raw, Request, Style, be, meta_query};
use lockstep_e2e::{Cluster, Plain, Plan, RESOURCE};
use std::collections::BTreeSet;

const SIZE_BYTES: u64 = 16 << 20;
const NAME: &[u8] = b"disk.img";
const ALLOCATION: &str = "base:allocation";
const OUT_OF_SYNC: &str = "x-lockstep:out-of-sync";
const OPTIONS: [u32; 2] = [opt::LIST_META_CONTEXT, opt::SET_META_CONTEXT];
const HOLE_AND_ZERO: u64 = 3;

fn plain() -> Plain {
    Plain::start(SIZE_BYTES, &[])
}

/// Number and name of each context of an answer that ends well.
#[track_caller]
fn contexts(replies: &[OptionReply]) -> Vec<(u32, String)> {
    let (last, before) = replies.split_last().expect("a reply");
    assert_eq!((last.kind, last.data.len()), (rep::ACK, 0), "{replies:02x?}");
    assert!(before.iter().all(|reply| reply.kind == rep::META_CONTEXT));
    let read = |reply: &OptionReply| {
        let name = std::str::from_utf8(&reply.data[4..]).expect("a name in UTF-8");
        (u32::from_be_bytes(reply.data[..4].try_into().expect("four bytes")), name.to_owned())
    };
    before.iter().map(read).collect()
}

fn names(replies: &[OptionReply]) -> Vec<String> {
    contexts(replies).into_iter().map(|(_, name)| name).collect()
}

fn structured(served: &Plain) -> Raw {
    let mut raw = Raw::haggle(served.socket());
    raw.agree(Style::Structured);
    raw
}

#[test]
fn contexts_are_selected_only_where_chunks_were_agreed() {
    let served = plain();
    let mut raw = Raw::haggle(served.socket());
    assert_eq!(raw.outcome(opt::SET_META_CONTEXT, &meta_query(NAME, &[ALLOCATION])), rep::ERR_INVALID);
    let listed = raw.outcome(opt::LIST_META_CONTEXT, &meta_query(NAME, &[]));
    assert!([rep::ACK, rep::ERR_INVALID].contains(&listed));
    raw.go(NAME);
    assert_eq!(raw.error_of(cmd::BLOCK_STATUS, 0, 0, 4096), errno::EINVAL);
    raw.assert_in_step();
}

#[test]
fn a_list_without_queries_names_every_context_with_number_0() {
    let served = plain();
    let mut raw = structured(&served);
    let listed = contexts(&raw.ask(opt::LIST_META_CONTEXT, &meta_query(NAME, &[])));
    assert!(listed.iter().any(|(_, name)| name == ALLOCATION));
    for (id, name) in listed {
        assert_eq!(id, 0, "of {name}");
        assert!(name.split_once(':').is_some_and(|(namespace, _)| !namespace.is_empty()), "{name}");
        assert!(name.len() <= 256 && !name.contains('\0'));
        let selected = names(&raw.ask(opt::SET_META_CONTEXT, &meta_query(NAME, &[&name])));
        assert_eq!(selected, [name], "what is listed can be selected");
    }
}

#[test]
fn the_base_namespace_is_a_wildcard_of_the_list_and_selects_nothing() {
    let served = plain();
    let mut raw = structured(&served);
    assert_eq!(names(&raw.ask(opt::LIST_META_CONTEXT, &meta_query(NAME, &["base:"]))), [ALLOCATION]);
    assert!(names(&raw.ask(opt::SET_META_CONTEXT, &meta_query(NAME, &["base:"]))).is_empty());
    let both = meta_query(NAME, &["base:", ALLOCATION]);
    assert_eq!(names(&raw.ask(opt::SET_META_CONTEXT, &both)), [ALLOCATION]);
}

#[test]
fn queries_of_unknown_names_are_passed_over() {
    let served = plain();
    let mut raw = structured(&served);
    let unknown =
        ["base:other", "base:allocation2", "nobody:", "qemu:dirty-bitmap:x", "x-lockstep:none", "a:b:c"];
    for option in OPTIONS {
        assert!(names(&raw.ask(option, &meta_query(NAME, &unknown))).is_empty());
        for query in unknown {
            assert!(names(&raw.ask(option, &meta_query(NAME, &[query]))).is_empty(), "{query}");
        }
        let with_a_known_one = meta_query(NAME, &[unknown[0], ALLOCATION, unknown[2], ALLOCATION]);
        assert_eq!(names(&raw.ask(option, &with_a_known_one)), [ALLOCATION], "once");
    }
}

#[test]
fn malformed_questions_for_contexts_are_invalid_and_the_handshake_goes_on() {
    let served = plain();
    let whole = meta_query(NAME, &[ALLOCATION, "base:"]);
    let mut wrong: Vec<Vec<u8>> = (0..whole.len()).map(|length| whole[..length].to_vec()).collect();
    wrong.push(be(&[&whole, &0_u16]));
    wrong.push(be(&[&u32::MAX, &NAME, &0_u32]));
    wrong.push(be(&[&(NAME.len() as u32), &NAME, &u32::MAX]));
    wrong.push(be(&[&(NAME.len() as u32), &NAME, &1_u32, &u32::MAX, &ALLOCATION]));
    for option in OPTIONS {
        for data in &wrong {
            // A flood of options would be closed.
            let mut raw = structured(&served);
            assert_eq!(raw.outcome(option, data), rep::ERR_INVALID, "{data:02x?}");
            raw.assert_haggling();
        }
        let mut raw = structured(&served);
        for query in ["", "base", "no colon", ":", "base\0:allocation"] {
            let replies = raw.ask(option, &meta_query(NAME, &[query]));
            let is_refused = replies.last().is_some_and(|last| last.kind == rep::ERR_INVALID);
            assert!(is_refused || names(&replies).is_empty(), "{query:?}: {replies:02x?}");
        }
        let unknown = raw.outcome(option, &meta_query(b"nobody", &[ALLOCATION]));
        assert_eq!(unknown, rep::ERR_UNKNOWN);
        raw.assert_haggling();
    }
}

#[test]
fn each_selected_context_has_a_number_of_its_own() {
    let cluster = Cluster::primary(&Plan { size_bytes: SIZE_BYTES, ..Plan::default() });
    let name = RESOURCE.as_bytes();
    let mut raw = Raw::haggle(cluster.alpha.nbd());
    raw.agree(Style::Structured);
    let listed = names(&raw.ask(opt::LIST_META_CONTEXT, &meta_query(name, &[])));
    assert!(listed.iter().any(|name| name == OUT_OF_SYNC), "{listed:?}");
    assert_eq!(names(&raw.ask(opt::LIST_META_CONTEXT, &meta_query(name, &["x-lockstep:"]))), listed[1..]);
    let all: Vec<&str> = listed.iter().map(String::as_str).collect();
    let selected = contexts(&raw.ask(opt::SET_META_CONTEXT, &meta_query(name, &all)));
    let numbers: BTreeSet<u32> = selected.iter().map(|(id, _)| *id).collect();
    assert_eq!((numbers.len(), selected.len()), (listed.len(), listed.len()));
    raw.go(name);
    let request = Request::new(cmd::BLOCK_STATUS, 0, SIZE_BYTES);
    let described = raw.call(request).described(&request);
    let answered: BTreeSet<u32> = described.iter().map(|one| one.context).collect();
    assert_eq!((answered, described.len()), (numbers, selected.len()), "one chunk for each");
    let out_of_sync = selected.iter().find(|(_, name)| name == OUT_OF_SYNC).expect("it is there").0;
    let extents = &described.iter().find(|one| one.context == out_of_sync).expect("its chunk").extents;
    assert_eq!(extents[..], [(SIZE_BYTES, 0)], "the copies are equal");
}

/// The last question counts, whether it was answered well or not, and for the export that it named.
#[test]
fn a_selection_replaces_the_one_before_also_when_it_fails() {
    let served = plain();
    let select = meta_query(NAME, &[ALLOCATION]);
    let ending = [
        meta_query(NAME, &[]),
        meta_query(NAME, &["base:other"]),
        meta_query(NAME, &["no colon"]),
        meta_query(b"nobody", &[ALLOCATION]),
        vec![0],
    ];
    for last in ending {
        let mut raw = structured(&served);
        assert_eq!(names(&raw.ask(opt::SET_META_CONTEXT, &select)), [ALLOCATION]);
        raw.ask(opt::SET_META_CONTEXT, &last);
        // A list is no selection.
        raw.ask(opt::LIST_META_CONTEXT, &select);
        raw.go(NAME);
        assert_eq!(raw.error_of(cmd::BLOCK_STATUS, 0, 0, 4096), errno::EINVAL, "after {last:02x?}");
    }
    let mut raw = structured(&served);
    raw.ask(opt::SET_META_CONTEXT, &meta_query(NAME, &[]));
    assert_eq!(names(&raw.ask(opt::SET_META_CONTEXT, &select)), [ALLOCATION]);
    raw.ask(opt::LIST_META_CONTEXT, &meta_query(NAME, &[]));
    raw.go(NAME);
    assert_eq!(raw.error_of(cmd::BLOCK_STATUS, 0, 0, 4096), 0);
}

/// A connection that may ask about holes, and the number of that context.
fn asking(served: &Plain, style: Style) -> (Raw, u32) {
    let mut raw = Raw::haggle(served.socket());
    raw.agree(style);
    let selected = contexts(&raw.ask(opt::SET_META_CONTEXT, &meta_query(NAME, &[ALLOCATION])));
    raw.go(NAME);
    (raw, selected[0].0)
}

#[track_caller]
fn holes(raw: &mut Raw, request: Request) -> Described {
    let reply = raw.call(request);
    assert_eq!(reply.error, 0);
    let mut described = reply.described(&request);
    assert_eq!(described.len(), 1, "one context was selected");
    described.remove(0)
}

#[test]
fn block_status_tells_holes_from_data_in_extents_that_add_up() {
    let served = plain();
    for style in [Style::Structured, Style::Extended] {
        let (mut raw, id) = asking(&served, style);
        for at in [1, 3, 8] {
            assert_eq!(raw.put(0, at << 20, &[7; 65_536]), 0);
        }
        let kind = if style == Style::Extended { chunk::BLOCK_STATUS_EXT } else { chunk::BLOCK_STATUS };
        for (offset, length) in
            [(0, SIZE_BYTES), (1 << 20, 65_536), (1, 1), ((1 << 20) - 1, 2), (SIZE_BYTES - 1, 1)]
        {
            let one = holes(&mut raw, Request::new(cmd::BLOCK_STATUS, offset, length));
            assert_eq!((one.context, one.kind), (id, kind));
            // What is said to be zero reads as zero; what is said to be a hole is none that was written.
            let mut at = offset;
            for (bytes, flags) in one.extents {
                assert_eq!(flags & !HOLE_AND_ZERO, 0, "the other flags are reserved");
                let bytes = bytes.min(SIZE_BYTES - at);
                if flags != 0 {
                    assert!(raw.get(at, bytes).iter().all(|byte| *byte == 0), "{bytes} bytes at {at}");
                }
                at += bytes;
            }
        }
        let whole = holes(&mut raw, Request::new(cmd::BLOCK_STATUS, 0, SIZE_BYTES));
        assert!(whole.extents.contains(&(65_536, 0)), "data in its place: {:?}", whole.extents);
        assert!(
            whole.extents.iter().any(|(_, flags)| *flags == HOLE_AND_ZERO),
            "easily found: {:?}",
            whole.extents
        );
    }
}

#[test]
fn who_wants_one_extent_gets_one_no_longer_than_asked() {
    let served = plain();
    for style in [Style::Structured, Style::Extended] {
        let (mut raw, _) = asking(&served, style);
        assert_eq!(raw.put(0, 1 << 20, &[7; 65_536]), 0);
        for (offset, length) in [(0, SIZE_BYTES), (1 << 20, 1 << 20), (512, 512), (1, 1), (SIZE_BYTES - 1, 1)]
        {
            let request = Request::new(cmd::BLOCK_STATUS, offset, length).flags(with::REQ_ONE);
            let one = holes(&mut raw, request);
            assert_eq!(one.extents.len(), 1);
            assert!(one.extents[0].0 <= length);
        }
    }
}

#[test]
fn many_extents_are_told_in_few_answers() {
    let served = plain();
    let (mut raw, _) = asking(&served, Style::Structured);
    for at in 0..200 {
        assert_eq!(raw.put(0, at * 16_384, &[7; 4096]), 0);
    }
    let (mut at, mut told) = (0, Vec::new());
    while at < 200 * 16_384 {
        let answer = holes(&mut raw, Request::new(cmd::BLOCK_STATUS, at, 200 * 16_384 - at));
        assert!(answer.extents.len() <= 1 << 20);
        for (bytes, flags) in answer.extents {
            told.push((at, bytes, flags));
            at += bytes;
        }
    }
    let data: Vec<u64> = told.iter().filter(|(_, _, flags)| *flags == 0).map(|(at, _, _)| *at).collect();
    assert!((0..200).all(|block| data.contains(&(block * 16_384))), "{told:?}");
}

#[test]
fn questions_about_what_is_not_there_are_invalid() {
    let served = plain();
    for style in [Style::Structured, Style::Extended] {
        let (mut raw, _) = asking(&served, style);
        for (offset, length) in [(SIZE_BYTES, 1), (SIZE_BYTES - 1, 2), (0, SIZE_BYTES + 1), (u64::MAX, 1)] {
            for flags in [0, with::REQ_ONE, with::FUA] {
                let reply = raw.call(Request::new(cmd::BLOCK_STATUS, offset, length).flags(flags));
                assert_eq!((reply.error, reply.chunks.len()), (errno::EINVAL, 1), "{length} at {offset}");
            }
        }
        assert_eq!(raw.error_of(cmd::BLOCK_STATUS, with::NO_HOLE, 0, 4096), errno::EINVAL);
        // Nothing is said of an empty range, and the connection goes on.
        raw.error_of(cmd::BLOCK_STATUS, 0, 0, 0);
        raw.assert_in_step();
    }
}
