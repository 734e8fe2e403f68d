//! The handshake of the NBD specification, byte by byte over a socket: greeting, flags, and the options that every
//! server must know. `docs/CONFORMANCE.md` says which rule each test holds.

use lockstep_e2e::bytes::number::{flag, hello, info, magic, opt, rep};
use lockstep_e2e::bytes::{OptionReply, Raw, Style, be, info_query};
use lockstep_e2e::{Cluster, Plain, Plan, RESOURCE, SECOND};

const SIZE_BYTES: u64 = 8 << 20;
const NAME: &[u8] = b"disk.img";

fn plain() -> Plain {
    Plain::start(SIZE_BYTES, &[])
}

#[test]
fn the_greeting_offers_fixed_newstyle_and_no_zeroes_and_nothing_else() {
    let served = plain();
    let mut raw = Raw::dial(served.socket());
    let flags = (hello::FIXED | hello::NO_ZEROES) as u16;
    assert_eq!(raw.take(18), be(&[&magic::GREETING, &magic::OPTION, &flags]));
    raw.send(&hello::FIXED.to_be_bytes());
    // The next bytes are the answer to this.
    raw.assert_haggling();
}

#[test]
fn a_client_flag_that_was_not_offered_closes_the_connection() {
    let served = plain();
    for flags in (2..32).map(|bit| 1 << bit).chain([u32::MAX, 7]) {
        let mut raw = Raw::greet(served.socket(), flags);
        raw.send_or_lose(&be(&[&magic::OPTION, &opt::LIST, &0_u32]));
        raw.assert_closed();
    }
}

/// Such a client could not read the reply to any option.
#[test]
fn a_client_without_fixed_newstyle_can_only_choose_an_export() {
    let served = plain();
    for flags in [0, hello::NO_ZEROES] {
        for option in [opt::LIST, opt::INFO, opt::GO, opt::STARTTLS, opt::STRUCTURED_REPLY, opt::ABORT] {
            let mut raw = Raw::greet(served.socket(), flags);
            raw.option(option, &[]);
            raw.assert_closed();
        }
    }
}

#[test]
fn export_name_is_answered_with_zeroes_unless_both_sides_want_none() {
    let served = plain();
    for (flags, zeroes) in [(0, 124), (hello::FIXED, 124), (hello::NO_ZEROES, 0), (3, 0)] {
        let mut raw = Raw::greet(served.socket(), flags);
        raw.option(opt::EXPORT_NAME, NAME);
        assert_eq!(raw.take(8), SIZE_BYTES.to_be_bytes());
        let transmission_flags = raw.take(2);
        assert_eq!(transmission_flags[1] & flag::HAS_FLAGS as u8, flag::HAS_FLAGS as u8);
        assert_eq!(raw.take(zeroes), vec![0; zeroes]);
        raw.assert_in_step();
    }
}

#[test]
fn export_name_that_cannot_be_satisfied_closes_the_connection() {
    let served = plain();
    let long = [b'x'; 4097];
    let names: [&[u8]; 6] = [b"nobody", b"disk.img\0", b"disk.img ", b"\xff", b"disk\0img", &long];
    for name in names {
        let mut raw = Raw::haggle(served.socket());
        raw.option(opt::EXPORT_NAME, name);
        raw.assert_closed();
    }
}

#[test]
fn the_empty_name_is_the_only_export() {
    let served = plain();
    let asked = |name: &[u8]| Raw::haggle(served.socket()).ask(opt::INFO, &info_query(name, &[]));
    assert_eq!(asked(b""), asked(NAME));
    let mut raw = Raw::haggle(served.socket());
    raw.option(opt::EXPORT_NAME, b"");
    assert_eq!(raw.take(10)[..8], SIZE_BYTES.to_be_bytes());
    raw.assert_in_step();
}

#[test]
fn abort_is_acknowledged_whatever_comes_with_it_and_whether_or_not_the_client_waits() {
    let served = plain();
    for data in [&[][..], &[1], &[0; 16_384]] {
        let mut raw = Raw::haggle(served.socket());
        assert_eq!(raw.ask(opt::ABORT, data), [OptionReply { kind: rep::ACK, data: Vec::new() }]);
        raw.assert_closed();
        let mut hasty = Raw::haggle(served.socket());
        hasty.option(opt::ABORT, data);
    }
    Raw::haggle(served.socket()).assert_haggling();
}

#[test]
fn list_names_every_export_as_the_other_options_know_it() {
    let served = plain();
    let mut raw = Raw::haggle(served.socket());
    let replies = raw.ask(opt::LIST, &[]);
    let named = be(&[&(NAME.len() as u32), &NAME]);
    let [server, ack] = &replies[..] else { panic!("{replies:?}") };
    assert_eq!((server.kind, &server.data), (rep::SERVER, &named));
    assert_eq!((ack.kind, ack.data.len()), (rep::ACK, 0));
    assert_eq!(raw.go(&server.data[4..]).size, SIZE_BYTES);
    raw.assert_in_step();
}

#[test]
fn options_without_data_refuse_data_and_the_handshake_goes_on() {
    let served = plain();
    let mut raw = Raw::haggle(served.socket());
    for option in [opt::LIST, opt::STRUCTURED_REPLY] {
        for data in [&[0][..], &be(&[&magic::OPTION, &opt::ABORT, &0_u32])] {
            assert_eq!(raw.outcome(option, data), rep::ERR_INVALID);
            raw.assert_haggling();
        }
    }
    let export = raw.go(NAME);
    assert_eq!(export.flags & flag::SEND_DF, 0, "a refused option has no effect");
}

#[test]
fn unknown_options_are_unsupported_and_skipped_with_their_data() {
    let served = plain();
    let mut raw = Raw::haggle(served.socket());
    for option in [0, opt::PEEK_EXPORT, 12, 4242, u32::MAX] {
        for length in [0, 1, 16, 16_384] {
            // Data that would be an option of its own, if it were taken for one.
            let abort = be(&[&magic::OPTION, &opt::ABORT, &0_u32]);
            let data: Vec<u8> = abort.iter().copied().cycle().take(length).collect();
            assert_eq!(raw.outcome(option, &data), rep::ERR_UNSUP, "option {option}");
        }
    }
    raw.assert_haggling();
}

#[test]
fn without_tls_starttls_is_refused_and_nothing_else_asks_for_it() {
    let served = plain();
    let mut raw = Raw::haggle(served.socket());
    for data in [&[][..], &[1]] {
        let kind = raw.outcome(opt::STARTTLS, data);
        assert!([rep::ERR_UNSUP, rep::ERR_POLICY, rep::ERR_INVALID].contains(&kind), "{kind:#x}");
    }
    let query = info_query(NAME, &[]);
    for option in [opt::LIST, opt::INFO, opt::STRUCTURED_REPLY, opt::LIST_META_CONTEXT, 4242, opt::GO] {
        let data = if [opt::INFO, opt::GO].contains(&option) { &query[..] } else { &[] };
        assert_ne!(raw.outcome(option, data), rep::ERR_TLS_REQD);
    }
    raw.assert_in_step();
}

#[test]
fn info_and_go_give_the_same_answer_in_the_layout_of_the_specification() {
    let served = plain();
    let wanted = [info::EXPORT, info::NAME, info::DESCRIPTION, info::BLOCK_SIZE];
    for list in [&wanted[..], &wanted[..1], &wanted[3..], &[]] {
        let query = info_query(NAME, list);
        let mut raw = Raw::haggle(served.socket());
        let told = raw.ask(opt::INFO, &query);
        assert_eq!(raw.ask(opt::GO, &query), told);
        raw.assert_in_step();
        let kinds: Vec<u16> = told[..told.len() - 1]
            .iter()
            .map(|reply| u16::from_be_bytes([reply.data[0], reply.data[1]]))
            .collect();
        let mut once = kinds.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), kinds.len(), "each kind of information comes once: {kinds:?}");
        assert!(kinds.contains(&info::EXPORT));
        assert!(list.iter().all(|item| kinds.contains(item)), "{list:?} was asked, {kinds:?} came");
        if list.contains(&info::NAME) {
            let name = told.iter().find(|reply| reply.data.starts_with(&info::NAME.to_be_bytes()));
            assert_eq!(&name.expect("a name").data[2..], NAME);
        }
    }
}

#[test]
fn information_that_the_server_does_not_know_is_ignored() {
    let served = plain();
    let mut raw = Raw::haggle(served.socket());
    let plain = raw.ask(opt::INFO, &info_query(NAME, &[]));
    let odd = [4, 5, 0x8000, u16::MAX];
    assert_eq!(raw.ask(opt::INFO, &info_query(NAME, &odd)), plain);
    let many: Vec<u16> = (4..6000).collect();
    assert_eq!(raw.ask(opt::INFO, &info_query(NAME, &many)), plain);
    assert_eq!(raw.ask(opt::GO, &info_query(NAME, &odd)), plain);
    raw.assert_in_step();
}

#[test]
fn nothing_is_sent_between_the_acknowledgement_of_go_and_the_first_reply() {
    let served = plain();
    // This client did not ask to be spared the zeroes; they belong to EXPORT_NAME alone.
    let mut raw = Raw::greet(served.socket(), hello::FIXED);
    raw.go(NAME);
    raw.assert_in_step();
}

#[test]
fn an_unknown_export_is_refused_without_information_and_the_handshake_goes_on() {
    let served = plain();
    let mut raw = Raw::haggle(served.socket());
    for option in [opt::INFO, opt::GO] {
        for name in [&b"nobody"[..], b"disk.im", b"disk.img2", b"DISK.IMG"] {
            let replies = raw.ask(option, &info_query(name, &[info::NAME, info::BLOCK_SIZE]));
            let [only] = &replies[..] else { panic!("{replies:?}") };
            assert_eq!(only.kind, rep::ERR_UNKNOWN);
            raw.assert_haggling();
        }
    }
    assert_eq!(raw.go(NAME).size, SIZE_BYTES);
}

#[test]
fn a_query_whose_lengths_do_not_add_up_is_invalid() {
    let served = plain();
    let mut raw = Raw::haggle(served.socket());
    let whole = info_query(NAME, &[info::NAME, info::BLOCK_SIZE]);
    let mut too_long_name = whole.clone();
    too_long_name[..4].copy_from_slice(&u32::MAX.to_be_bytes());
    let mut one_more = whole.clone();
    one_more.push(0);
    let cut = (0..whole.len()).map(|length| whole[..length].to_vec());
    for data in cut.chain([too_long_name, one_more]) {
        // A flood of options would be closed.
        let mut fresh = Raw::haggle(served.socket());
        assert_eq!(fresh.outcome(opt::GO, &data), rep::ERR_INVALID, "{data:02x?}");
        fresh.assert_haggling();
    }
    assert_eq!(raw.outcome(opt::GO, &whole), rep::ACK);
}

#[test]
fn names_that_are_no_strings_of_the_protocol_are_refused() {
    let served = plain();
    let mut raw = Raw::haggle(served.socket());
    let refused = [rep::ERR_INVALID, rep::ERR_TOO_BIG];
    let long = [b'x'; 4097];
    for name in [&b"disk\0img"[..], b"\0", b"\xff\xfe", b"disk\xc3", b"\xed\xa0\x80", &long] {
        for option in [opt::INFO, opt::GO] {
            let kind = raw.outcome(option, &info_query(name, &[]));
            assert!(refused.contains(&kind), "{kind:#x} for {name:02x?}");
        }
    }
    // The longest that a name may be.
    assert_eq!(raw.outcome(opt::GO, &info_query(&long[..4096], &[])), rep::ERR_UNKNOWN);
}

#[test]
fn words_of_the_server_are_strings_of_the_protocol() {
    let name = "ä".repeat(32);
    let served = Plain::start(SIZE_BYTES, &["--name", &name]);
    let mut raw = Raw::haggle(served.socket());
    let mut said: Vec<OptionReply> = Vec::new();
    said.extend(raw.ask(opt::LIST, &[1]));
    said.extend(raw.ask(opt::STRUCTURED_REPLY, &[1]));
    said.extend(raw.ask(4242, &[]));
    said.extend(raw.ask(opt::INFO, &info_query(b"nobody", &[])));
    said.extend(raw.ask(opt::INFO, &info_query(&[b'x'; 4097], &[])));
    said.extend(raw.ask(opt::INFO, &[]));
    assert!(said.iter().all(|reply| reply.kind & rep::ERROR != 0 && !reply.data.is_empty()), "{said:?}");
    for reply in raw.ask(opt::INFO, &info_query(b"", &[info::NAME, info::DESCRIPTION])) {
        if [info::NAME, info::DESCRIPTION].iter().any(|kind| reply.data.starts_with(&kind.to_be_bytes())) {
            said.push(OptionReply { kind: reply.kind, data: reply.data[2..].to_vec() });
        }
    }
    assert_eq!(said.len(), 8);
    for reply in said {
        assert!(reply.data.len() <= 256 && !reply.words().contains('\0'), "{reply:?}");
    }
}

#[test]
fn structured_replies_are_agreed_on_any_number_of_times() {
    let served = plain();
    let mut raw = Raw::haggle(served.socket());
    raw.agree(Style::Structured);
    raw.agree(Style::Structured);
    assert_ne!(raw.go(NAME).flags & flag::SEND_DF, 0);
    assert_eq!(raw.get(0, 4096), vec![0; 4096]);
}

#[test]
fn the_transmission_flags_offer_what_is_there() {
    let always = flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA | flag::CAN_MULTI_CONN;
    let writes = flag::SEND_TRIM | flag::SEND_WRITE_ZEROES;
    let writable = plain();
    let read_only = Plain::start(SIZE_BYTES, &["--read-only"]);
    for (served, style) in [(&writable, Style::Simple), (&read_only, Style::Structured)] {
        let mut raw = Raw::haggle(served.socket());
        raw.agree(style);
        let flags = raw.go(NAME).flags;
        assert_eq!(flags & always, always);
        assert_eq!(flags & flag::SEND_DF != 0, style == Style::Structured, "DF needs chunks");
        let is_read_only = flags & flag::READ_ONLY != 0;
        assert_eq!(is_read_only, served.disk() == read_only.disk());
        assert_eq!(flags & writes, if is_read_only { 0 } else { writes });
        assert!(flags & flag::SEND_FAST_ZERO == 0 || flags & flag::SEND_WRITE_ZEROES != 0);
        assert_eq!(flags & flag::BLOCK_STATUS_PAYLOAD, 0, "it needs extended headers");
        assert_eq!(flags & !0x1fff, 0, "no bits that no specification knows");
    }
}

#[test]
fn the_block_sizes_are_in_bounds_and_those_of_who_asks_for_none() {
    for size_bytes in [4096, 12_800, SIZE_BYTES, (5 << 30) + 512] {
        let served = Plain::start(size_bytes, &[]);
        let mut raw = Raw::haggle(served.socket());
        let export = raw.go(NAME);
        assert_eq!(export.size, size_bytes);
        let [least, preferred, most] = export.block_sizes.expect("block sizes that were asked for");
        assert!(least.is_power_of_two() && least <= 65_536);
        assert!(preferred.is_power_of_two() && preferred >= least.max(512));
        assert!(most >= preferred && most >= 1 << 20);
        assert_eq!(size_bytes % u64::from(least), 0, "the last bytes can be reached");
        // What a client without a word about sizes may rely on.
        assert_eq!((least, preferred), (1, 4096));
        assert!(most >= 1 << 25);
    }
}

#[test]
fn an_export_that_is_not_served_here_is_refused_in_words_and_kept_from_who_cannot_hear_them() {
    let cluster = Cluster::primary(&Plan { size_bytes: SIZE_BYTES, resources: 2, ..Plan::default() });
    let [name, second] = [RESOURCE, SECOND].map(str::as_bytes);
    let mut raw = Raw::haggle(cluster.beta.nbd());
    for option in [opt::INFO, opt::GO] {
        let replies = raw.ask(option, &info_query(name, &[]));
        let [only] = &replies[..] else { panic!("{replies:?}") };
        assert_eq!(only.kind, rep::ERR_POLICY);
        assert!(only.words().contains("Secondary") && only.words().contains("lockstep promote"), "{only:?}");
    }
    let listed = raw.ask(opt::LIST, &[]);
    let expected = [name, second].map(|name| be(&[&(name.len() as u32), &name]));
    assert_eq!(listed[..2].iter().map(|reply| &reply.data[..]).collect::<Vec<_>>(), expected);
    assert_eq!(listed.len(), 3);
    raw.option(opt::EXPORT_NAME, name);
    raw.assert_closed();
    let mut raw = Raw::haggle(cluster.alpha.nbd());
    assert_eq!(raw.outcome(opt::GO, &info_query(b"", &[])), rep::ERR_UNKNOWN, "which of the two?");
    assert_eq!(raw.go(name).size, SIZE_BYTES);
}
