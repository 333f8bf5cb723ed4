#![no_main]

#[path = "../claims.rs"]
mod claims;
#[path = "../harness.rs"]
mod harness;

libfuzzer_sys::fuzz_target!(|data: &[u8]| claims::coded(data));
