//! See `lockstep_fuzz::overlap_lock`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| lockstep_fuzz::overlap_lock(data));
