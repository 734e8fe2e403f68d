//! See `lockstep_fuzz::peer_frames`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| lockstep_fuzz::peer_frames(data));
