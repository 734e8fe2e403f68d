//! What bounds a client, and what does not: options, their data, time, requests without end, bytes in any pieces.
//! `docs/CONFORMANCE.md` says which rule of the NBD specification each test holds.

use lockstep_e2e::bytes::number::{cmd, hello, magic, opt, rep};
use lockstep_e2e::bytes::{Raw, Request, Style, be, info_query};
use lockstep_e2e::{Plain, Port};
use rustix::net::sockopt::tcp_nodelay;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::collections::BTreeMap;
use std::net::SocketAddr;

const SIZE_BYTES: u64 = 8 << 20;
const OPTIONS_MAX: usize = 64;
const OPTION_BYTES_MAX: u32 = 16 << 10;

fn plain() -> Plain {
    Plain::start(SIZE_BYTES, &[])
}

#[test]
fn more_options_than_anybody_needs_close_the_connection() {
    let served = plain();
    let mut raw = Raw::haggle(served.socket());
    (0..OPTIONS_MAX).for_each(|_| raw.assert_haggling());
    raw.option(opt::GO, &info_query(b"", &[]));
    raw.assert_closed();
    let mut raw = Raw::haggle(served.socket());
    (1..OPTIONS_MAX).for_each(|_| raw.assert_haggling());
    raw.go(b"");
    raw.assert_in_step();
}

#[test]
fn an_option_that_announces_too_much_data_closes_the_connection_before_it_comes() {
    let served = plain();
    for option in [opt::EXPORT_NAME, opt::LIST, opt::GO, 4242] {
        for length in [OPTION_BYTES_MAX + 1, 64 << 20, u32::MAX] {
            let mut raw = Raw::haggle(served.socket());
            raw.send(&be(&[&magic::OPTION, &option, &length]));
            raw.assert_closed();
        }
    }
}

#[test]
fn what_is_no_option_closes_the_connection() {
    let served = plain();
    for number in [magic::GREETING, magic::OPTION_REPLY, magic::OPTION ^ 1, 0, u64::MAX] {
        let mut raw = Raw::haggle(served.socket());
        raw.send(&be(&[&number, &opt::GO, &0_u32]));
        raw.assert_closed();
    }
}

/// Whatever a client does meanwhile, short of reaching the transmission phase.
#[test]
fn a_handshake_that_does_not_end_is_ended() {
    let served = plain();
    let mut served_client = Raw::serve(served.socket(), Style::Simple);
    let mut silent = Raw::dial(served.socket());
    let mut flagged = Raw::haggle(served.socket());
    let mut asking = Raw::haggle(served.socket());
    asking.assert_haggling();
    let mut half = Raw::haggle(served.socket());
    half.send(&be(&[&magic::OPTION, &opt::GO, &100_u32]));
    half.send(&[0; 50]);
    for raw in [&mut flagged, &mut asking, &mut half] {
        raw.assert_closed();
    }
    assert_eq!(silent.wait_closed().len(), 18, "the greeting and nothing else");
    served_client.assert_in_step();
}

#[test]
fn requests_behind_go_and_options_behind_options_are_taken_in_order() {
    let served = plain();
    let mut raw = Raw::dial(served.socket());
    let query = info_query(b"", &[]);
    let mut all = be(&[&(hello::FIXED | hello::NO_ZEROES)]);
    for (option, data) in [(opt::LIST, &[][..]), (4242, &[1, 2]), (opt::INFO, &query), (opt::GO, &query)] {
        all.extend(be(&[&magic::OPTION, &option, &(data.len() as u32), &data]));
    }
    for cookie in 0..100 {
        all.extend(Request::new(cmd::READ, cookie * 512, 512).header(Style::Simple, cookie));
    }
    all.extend(be(&[&Request::new(cmd::WRITE, 4096, 4096).header(Style::Simple, 100), &vec![7; 4096]]));
    raw.send(&all);
    raw.take(18);
    let mut kinds = Vec::new();
    for (option, replies) in [(opt::LIST, 2), (4242, 1), (opt::INFO, 3), (opt::GO, 3)] {
        kinds.extend((0..replies).map(|_| raw.option_reply(option).kind));
    }
    let info = [rep::INFO, rep::INFO, rep::ACK];
    assert_eq!(kinds, [&[rep::SERVER, rep::ACK, rep::ERR_UNSUP][..], &info, &info].concat());
    let mut cookies: Vec<u64> = (0..101)
        .map(|_| {
            let header = raw.take(16);
            assert_eq!(header[..8], be(&[&magic::SIMPLE_REPLY, &0_u32]));
            let cookie = u64::from_be_bytes(header[8..].try_into().expect("eight bytes"));
            raw.take(if cookie < 100 { 512 } else { 0 });
            cookie
        })
        .collect();
    cookies.sort_unstable();
    assert_eq!(cookies, (0..101).collect::<Vec<u64>>());
}

#[test]
fn bytes_may_come_one_by_one() {
    let served = plain();
    let mut raw = Raw::dial(served.socket());
    let mut all = be(&[&(hello::FIXED | hello::NO_ZEROES)]);
    let query = info_query(b"disk.img", &[]);
    all.extend(be(&[&magic::OPTION, &opt::STRUCTURED_REPLY, &0_u32]));
    all.extend(be(&[&magic::OPTION, &opt::GO, &(query.len() as u32), &query]));
    all.extend(be(&[&Request::new(cmd::WRITE, 511, 3).header(Style::Simple, 1), &&[1_u8, 2, 3][..]]));
    all.extend(Request::new(cmd::FLUSH, 0, 0).header(Style::Simple, 2));
    all.iter().for_each(|byte| raw.send(&[*byte]));
    raw.take(18);
    assert_eq!(raw.option_reply(opt::STRUCTURED_REPLY).kind, rep::ACK);
    while !raw.option_reply(opt::GO).is_final() {}
    raw.style = Style::Structured;
    let mut answers = [raw.reply(0), raw.reply(0)].map(|reply| (reply.cookie, reply.error));
    // Nothing was answered before the flush came: it need not wait for the write.
    answers.sort_unstable();
    assert_eq!(answers, [(1, 0), (2, 0)]);
    assert_eq!(raw.get(510, 5), [0, 1, 2, 3, 0]);
}

/// A client may send without end before it reads one reply, and name all its requests alike.
#[test]
fn thousands_of_requests_may_come_before_a_reply_is_read() {
    const REQUESTS: u64 = 4000;
    let served = plain();
    for cookie in [None, Some(u64::MAX), Some(0)] {
        let mut raw = Raw::serve(served.socket(), Style::Simple);
        assert_eq!(raw.put(0, 0, &(0..REQUESTS).map(|at| (at % 251) as u8).collect::<Vec<u8>>()), 0);
        let mut bytes = Vec::new();
        for at in 0..REQUESTS {
            let request = Request::new(cmd::READ, at, 1);
            bytes.extend(request.header(Style::Simple, cookie.unwrap_or(at)));
        }
        raw.send(&bytes);
        let mut answers: BTreeMap<(u64, u8), u64> = BTreeMap::new();
        for _ in 0..REQUESTS {
            let reply = raw.reply(1);
            *answers.entry((reply.cookie, reply.data[0])).or_default() += 1;
        }
        let mut expected = BTreeMap::new();
        for at in 0..REQUESTS {
            *expected.entry((cookie.unwrap_or(at), (at % 251) as u8)).or_default() += 1;
        }
        assert!(answers == expected, "each request has its own answer");
        raw.assert_in_step();
    }
}

/// The server's end of a connection, as the kernel has it.
#[test]
fn small_packets_are_not_held_back_on_tcp() {
    let port = Port::reserve();
    let address = SocketAddr::from(([127, 0, 0, 1], port.number()));
    let served = Plain::start(SIZE_BYTES, &["--tcp", &address.to_string()]);
    let raw = Raw::serve(address, Style::Simple);
    let client = raw.local_address().expect("a connection by TCP");
    let pid = i32::try_from(served.pid()).ok().and_then(Pid::from_raw).expect("a pid");
    let process = pidfd_open(pid, PidfdFlags::empty()).expect("the server's process");
    let sockets = std::fs::read_dir(format!("/proc/{}/fd", served.pid())).expect("open files of the server");
    let found = sockets.filter_map(|entry| {
        let number: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let socket = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).ok()?;
        let peer = rustix::net::getpeername(&socket).ok()??;
        (SocketAddr::try_from(peer).ok()? == client).then_some(socket)
    });
    let no_delay: Vec<bool> =
        found.map(|socket| tcp_nodelay(&socket).expect("an option of a socket")).collect();
    assert_eq!(no_delay, [true], "TCP_NODELAY of the server's end");
}
