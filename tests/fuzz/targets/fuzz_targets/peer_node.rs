//! See `lockstep_fuzz::peer_node`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| lockstep_fuzz::peer_node(data));
