//! Requests that are wrong, byte by byte over a socket: which error they get, that the connection stays in step, and
//! that nothing was done. `docs/CONFORMANCE.md` says which rule of the NBD specification each test holds.

use lockstep_e2e::Plain;
use lockstep_e2e::bytes::number::{cmd, errno, flag, with};
use lockstep_e2e::bytes::{Raw, Request, Style, be};

const SIZE_BYTES: u64 = 48 << 20;
const PAYLOAD_MAX: u64 = 32 << 20;
const STYLES: [Style; 2] = [Style::Simple, Style::Structured];
const RANGED: [u16; 4] = [cmd::READ, cmd::TRIM, cmd::CACHE, cmd::WRITE_ZEROES];

fn plain() -> Plain {
    Plain::start(SIZE_BYTES, &[])
}

/// Nobody changed anything.
fn assert_untouched(served: &Plain) {
    let bytes = std::fs::read(served.disk()).expect("the file");
    assert!(bytes.iter().all(|byte| *byte == 0), "a refused request changed data");
}

#[test]
fn unknown_commands_are_invalid_and_do_not_end_the_connection() {
    let served = plain();
    for style in STYLES {
        let mut raw = Raw::serve(served.socket(), style);
        for command in [cmd::RESIZE, 9, 255, 256, 0x0100, u16::MAX] {
            for flags in [0, with::FUA, u16::MAX] {
                assert_eq!(raw.error_of(command, flags, 0, 4096), errno::EINVAL, "command {command}");
            }
        }
        raw.assert_in_step();
    }
}

#[test]
fn block_status_without_a_selected_context_is_invalid() {
    let served = plain();
    for style in STYLES {
        let mut raw = Raw::serve(served.socket(), style);
        for flags in [0, with::REQ_ONE] {
            assert_eq!(raw.error_of(cmd::BLOCK_STATUS, flags, 0, 4096), errno::EINVAL);
        }
        raw.assert_in_step();
    }
}

#[test]
fn flags_that_a_command_does_not_know_are_invalid_and_nothing_is_done() {
    let served = plain();
    for style in STYLES {
        let mut raw = Raw::haggle(served.socket());
        raw.agree(style);
        let offered = raw.go(b"").flags;
        for command in [cmd::READ, cmd::WRITE, cmd::FLUSH, cmd::TRIM, cmd::CACHE, cmd::WRITE_ZEROES] {
            let known = match command {
                cmd::READ if style == Style::Structured => with::FUA | with::DF,
                cmd::WRITE_ZEROES if offered & flag::SEND_FAST_ZERO != 0 => {
                    with::FUA | with::NO_HOLE | with::FAST_ZERO
                }
                cmd::WRITE_ZEROES => with::FUA | with::NO_HOLE,
                _ => with::FUA,
            };
            for bit in (0..16).map(|bit| 1 << bit).filter(|bit| known & bit == 0) {
                let error = match command {
                    cmd::WRITE => raw.put(bit, 4096, &[0xee; 4096]),
                    cmd::FLUSH => raw.error_of(command, bit, 0, 0),
                    _ => raw.error_of(command, bit, 0, 4096),
                };
                assert_eq!(error, errno::EINVAL, "command {command}, flag {bit:#x}");
            }
        }
        raw.assert_in_step();
    }
    assert_untouched(&served);
}

#[test]
fn what_ends_past_the_export_is_refused_also_where_the_sum_overflows() {
    let served = plain();
    let ranges = [
        (SIZE_BYTES, 1),
        (SIZE_BYTES - 4095, 4096),
        (SIZE_BYTES - 1, 2),
        (0, SIZE_BYTES + 1),
        (SIZE_BYTES + (1 << 40), 4096),
        (u64::MAX, 1),
        (u64::MAX - 4095, 4096),
        (u64::MAX - 511, 1024),
        (1 << 63, 4096),
    ];
    for style in STYLES {
        let mut raw = Raw::serve(served.socket(), style);
        for (offset, length) in ranges {
            for command in RANGED {
                let expected = if command == cmd::WRITE_ZEROES { errno::ENOSPC } else { errno::EINVAL };
                assert_eq!(
                    raw.error_of(command, 0, offset, length),
                    expected,
                    "{command} at {offset}+{length}"
                );
            }
            if length <= 4096 {
                assert_eq!(raw.put(0, offset, &vec![0xee; length as usize]), errno::ENOSPC);
            }
        }
        // The last bytes of the export are a range like any other.
        assert_eq!(raw.put(0, SIZE_BYTES - 1, &[0]), 0);
        RANGED.iter().for_each(|command| assert_eq!(raw.error_of(*command, 0, SIZE_BYTES - 512, 512), 0));
    }
    assert_untouched(&served);
}

#[test]
fn an_empty_range_does_not_end_the_connection() {
    let served = plain();
    for style in STYLES {
        let mut raw = Raw::serve(served.socket(), style);
        for offset in [0, 1, SIZE_BYTES] {
            for command in RANGED {
                raw.error_of(command, 0, offset, 0);
            }
            raw.put(0, offset, &[]);
        }
        raw.assert_in_step();
    }
}

#[test]
fn a_flush_with_a_range_is_invalid() {
    let served = plain();
    let mut raw = Raw::serve(served.socket(), Style::Simple);
    for (offset, length) in [(0, 1), (1, 0), (4096, 4096), (u64::MAX, 0)] {
        assert_eq!(raw.error_of(cmd::FLUSH, 0, offset, length), errno::EINVAL);
    }
    raw.assert_in_step();
}

#[test]
fn a_read_only_export_refuses_every_change_and_nothing_else() {
    let served = Plain::start(SIZE_BYTES, &["--read-only"]);
    for style in STYLES {
        let mut raw = Raw::haggle(served.socket());
        raw.agree(style);
        assert_ne!(raw.go(b"").flags & flag::READ_ONLY, 0);
        for flags in [0, with::FUA] {
            assert_eq!(raw.put(flags, 0, &[0xee; 4096]), errno::EPERM);
            assert_eq!(raw.error_of(cmd::TRIM, flags, 0, 4096), errno::EPERM);
            assert_eq!(raw.error_of(cmd::WRITE_ZEROES, flags, 0, 4096), errno::EPERM);
        }
        assert_eq!(raw.error_of(cmd::WRITE_ZEROES, with::NO_HOLE, SIZE_BYTES, 4096), errno::EPERM);
        assert_eq!(raw.put(0, SIZE_BYTES, &[0xee; 4096]), errno::EPERM, "before the range is looked at");
        assert_eq!(raw.error_of(cmd::CACHE, 0, 0, 4096), 0);
        assert_eq!(raw.get(0, 4096), [0; 4096]);
        raw.assert_in_step();
    }
    assert_untouched(&served);
}

#[test]
fn more_than_the_largest_payload_is_refused_and_thrown_away() {
    let served = plain();
    for style in STYLES {
        let mut raw = Raw::serve(served.socket(), style);
        assert_eq!(raw.error_of(cmd::READ, 0, 0, PAYLOAD_MAX), 0);
        let too_long = raw.error_of(cmd::READ, 0, 0, PAYLOAD_MAX + 1);
        assert!([errno::EINVAL, errno::EOVERFLOW].contains(&too_long), "{too_long}");
        assert_eq!(raw.put(0, 0, &vec![0; PAYLOAD_MAX as usize]), 0);
        assert_eq!(raw.put(0, 0, &vec![0xee; PAYLOAD_MAX as usize + 1]), errno::EINVAL);
        raw.assert_in_step();
    }
    let mut raw = Raw::serve(served.socket(), Style::Simple);
    raw.send(&Request::new(cmd::WRITE, 0, u64::from(u32::MAX)).header(Style::Simple, 1));
    raw.assert_closed();
    assert_untouched(&served);
}

/// What stands in the payload of a refused write is never taken for requests.
#[test]
fn the_payload_of_a_refused_write_is_thrown_away() {
    let served = plain();
    for style in STYLES {
        let mut raw = Raw::serve(served.socket(), style);
        // A payload that consists of writes.
        let inner = be(&[&Request::new(cmd::WRITE, 0, 512).header(style, 666), &vec![0xee; 512]]);
        let payload: Vec<u8> = inner.iter().copied().cycle().take(200_000).collect();
        for (flags, offset) in
            [(0x40, 0), (0, SIZE_BYTES), (0, u64::MAX - 10), (with::DF | with::NO_HOLE, 4096)]
        {
            assert_ne!(raw.put(flags, offset, &payload), 0);
        }
        raw.assert_in_step();
    }
    assert_untouched(&served);
}

/// The order of the checks is that of `docs/nbd.md`: command, flags, read-only, range, length.
#[test]
fn of_several_mistakes_the_first_is_answered() {
    let served = plain();
    let mut raw = Raw::serve(served.socket(), Style::Structured);
    let past_the_end = SIZE_BYTES;
    assert_eq!(raw.put(with::NO_HOLE, past_the_end, &[0xee; 512]), errno::EINVAL, "the flag first");
    assert_eq!(raw.error_of(cmd::WRITE_ZEROES, 0, past_the_end, 0), errno::EINVAL, "empty first");
    assert_eq!(raw.error_of(cmd::READ, 0, past_the_end, PAYLOAD_MAX + 1), errno::EINVAL, "the range first");
    assert_eq!(raw.error_of(4242, u16::MAX, past_the_end, 0), errno::EINVAL);
    raw.assert_in_step();
}
