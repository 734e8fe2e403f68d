//! See `lockstep_fuzz::dirty_bitmap`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| lockstep_fuzz::dirty_bitmap(data));
