//! What peers send each other, decoded: headers, snapshots, generation logs; and the verdict over any two snapshots.
//!
//! Asserted: a header that is taken encodes to the very bytes it came from, so that no bit is without meaning; so
//! does a snapshot and a log; decoding takes memory in proportion to the bytes; the verdict
//! of one side is the mirror image of the other's, whatever they claim.

use crc_fast::crc32_iscsi as crc32c;
use lockstep_bitmap::{GenerationLog, NodeId};
use lockstep_core::{FRAME_BYTES, Frame, PIECE_BYTES_MAX, Snapshot, Verdict, verdict};
use lockstep_counting::measure;

use crate::input::Input;

/// The header's bytes with the checksum that belongs to them.
pub(crate) fn sealed(mut head: [u8; FRAME_BYTES]) -> [u8; FRAME_BYTES] {
    let sum = crc32c(&head[..FRAME_BYTES - 4]);
    head[FRAME_BYTES - 4..].copy_from_slice(&sum.to_le_bytes());
    head
}

/// Headers, as they are and with a checksum that fits.
pub(crate) fn headers(data: &[u8]) {
    for head in data.chunks_exact(FRAME_BYTES) {
        let head: [u8; FRAME_BYTES] = head.try_into().expect("chunks of that size");
        check_header(&head);
        check_header(&sealed(head));
        // With fields that the kind may have, so that more than the checksum is reached: no body, or one of `c` bytes.
        let mut fitting = head;
        fitting[2..8].fill(0);
        check_header(&sealed(fitting));
        fitting[26..32].fill(0);
        fitting[4..6].copy_from_slice(&head[24..26]);
        check_header(&sealed(fitting));
        fitting[8..24].fill(0);
        check_header(&sealed(fitting));
    }
}

fn check_header(head: &[u8; FRAME_BYTES]) {
    let Ok((frame, body_bytes, body_crc)) = Frame::decode(head, crc32c) else { return };
    assert_eq!(frame.encode(body_bytes, body_crc, crc32c), *head, "{frame:?} has bits without meaning");
    if let Some((offset, len)) = frame.payload() {
        assert_eq!(len, body_bytes);
        assert!(len > 0 && offset / PIECE_BYTES_MAX == (offset + u64::from(len) - 1) / PIECE_BYTES_MAX);
    }
    assert!(frame.payload().is_some() || body_bytes <= 64 << 10, "{frame:?} with {body_bytes} bytes");
    assert!(frame.payload().is_some() || frame.has_control_body() || body_bytes == 0);
    for bit in [0, 77, 200, 319] {
        let mut hurt = *head;
        hurt[bit / 8] ^= 1 << (bit % 8);
        assert!(Frame::decode(&hurt, crc32c).is_err(), "a flipped bit is not seen");
    }
}

/// Two snapshots, and a log, of any bytes.
pub(crate) fn snapshots(data: &[u8]) {
    let mut input = Input::new(data);
    let first_bytes = usize::from(input.u16()) % (data.len() + 1);
    let (first, second) = (input.bytes(first_bytes), input.rest());
    let (mine, theirs) = (read_snapshot(first), read_snapshot(second));
    read_log(first);
    if let (Some(mine), Some(mut theirs)) = (mine, theirs) {
        if theirs.node == mine.node {
            theirs.node = NodeId(mine.node.0 ^ 1);
        }
        check_verdict(&mine, &theirs);
        // Of one history: the interesting rows of the table.
        theirs.log = mine.log.clone();
        check_verdict(&mine, &theirs);
    }
}

fn read_snapshot(bytes: &[u8]) -> Option<Snapshot> {
    let (decoded, usage) = measure(|| Snapshot::decode(bytes));
    assert!(usage.peak_bytes <= 4096 + 8 * bytes.len() as u64, "{usage:?} for {} bytes", bytes.len());
    let snapshot = decoded.ok()?;
    let mut again = Vec::new();
    snapshot.encode(&mut again);
    assert_eq!(again, bytes, "a snapshot has bits without meaning");
    Some(snapshot)
}

fn read_log(bytes: &[u8]) {
    let Ok(log) = GenerationLog::decode(bytes) else { return };
    let mut again = Vec::new();
    log.encode(&mut again);
    assert_eq!(again, bytes, "a generation log has bits without meaning");
    assert_eq!(GenerationLog::from_entries(log.entries().to_vec()).as_ref(), Ok(&log));
}

fn check_verdict(mine: &Snapshot, theirs: &Snapshot) {
    let (here, there) = (verdict(mine, theirs), verdict(theirs, mine));
    assert_eq!((here.code(), here.fingerprint()), (there.code(), there.fingerprint()), "{here:?} {there:?}");
    assert_eq!(here, there);
    if let Verdict::Adopt { .. } = here {
        assert!(mine.log.current().is_none() && theirs.log.current().is_none());
    }
}
