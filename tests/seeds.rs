//! Runs the fuzz targets with their seeds, and with the inputs that fuzzing found: see `tests/fuzz`.

use std::{fs, path::Path};

#[path = "fuzz/claims.rs"]
mod claims;
#[path = "fuzz/connections.rs"]
mod connections;
#[path = "fuzz/harness.rs"]
mod harness;
#[path = "fuzz/wire.rs"]
mod wire;

fn try_all(target: &str, claim: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds").join(target);
    let mut count = 0;
    for entry in fs::read_dir(&folder).expect("seeds") {
        let path = entry.expect("an entry").path();
        println!("{}", path.display());
        claim(&fs::read(&path).expect("a seed"));
        count += 1;
    }
    assert!(count > 3, "{} has its seeds", folder.display());
}

#[test]
fn topics_patterns_and_containment_follow_the_documentation() {
    try_all("patterns", claims::patterns);
}

#[test]
fn a_cursor_is_a_number_or_is_refused() {
    try_all("cursors", claims::cursors);
}

#[test]
fn a_start_is_parsed_or_refused() {
    try_all("starts", claims::starts);
}

#[test]
fn every_command_is_answered_and_the_connection_stays() {
    try_all("commands", claims::commands);
}

#[test]
fn every_body_is_published_or_refused_value_by_value() {
    try_all("bodies", claims::bodies);
}

#[test]
fn an_unsigned_or_expired_token_is_never_accepted() {
    try_all("tokens", claims::tokens);
}

#[test]
fn a_body_in_a_coding_is_answered_as_the_plain_one() {
    try_all("coded", claims::coded);
}

#[test]
fn a_set_gives_no_more_keys_than_it_has_public_ones() {
    try_all("keys", claims::keys);
}

#[test]
fn a_proxy_names_its_client_before_the_request_or_is_not_answered() {
    try_all("proxied", connections::proxied);
}

#[test]
fn the_client_of_a_forwarded_request_is_the_newest_that_is_no_proxy() {
    try_all("forwarded", connections::forwarded);
}

#[test]
fn every_compressed_command_is_answered_or_ends_the_connection() {
    try_all("inflated", connections::inflated);
}
