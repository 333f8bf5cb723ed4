#![no_main]

#[path = "../connections.rs"]
mod connections;
#[path = "../harness.rs"]
mod harness;
#[path = "../wire.rs"]
mod wire;

libfuzzer_sys::fuzz_target!(|data: &[u8]| connections::inflated(data));
