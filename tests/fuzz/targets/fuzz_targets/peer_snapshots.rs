//! See `lockstep_fuzz::peer_snapshots`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| lockstep_fuzz::peer_snapshots(data));
