//! See `lockstep_fuzz::nbd_session`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| lockstep_fuzz::nbd_session(data));
