//! See `lockstep_fuzz::control`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| lockstep_fuzz::control(data));
