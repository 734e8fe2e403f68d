//! See `lockstep_fuzz::config`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| lockstep_fuzz::config(data));
