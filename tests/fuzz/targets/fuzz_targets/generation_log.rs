//! See `lockstep_fuzz::generation_log`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| lockstep_fuzz::generation_log(data));
