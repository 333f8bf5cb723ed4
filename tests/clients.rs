//! The client libraries that people use, against a real server. `tests/clients/run` listens with each of them,
//! and compares what it did with the table in docs/libraries.md.
//!
//! This test listens with the libraries of Python, Node and Rust. `tests/clients/run --all` also takes Go, Java,
//! Ruby, Perl and PHP.

use std::{
    io::Write,
    process::{Command, Stdio},
};

#[test]
fn each_client_library_does_what_the_table_says() {
    run("run");
}

#[test]
fn programs_that_set_no_content_type_publish_the_message_that_was_meant() {
    run("publish.py");
}

#[test]
fn websocket_libraries_speak_wss() {
    run("secure.py");
}

fn run(script: &str) {
    let script = Command::new("python3")
        .arg(format!("{}/tests/clients/{script}", env!("CARGO_MANIFEST_DIR")))
        .env("REJOIN", env!("CARGO_BIN_EXE_rejoin"))
        .stdin(Stdio::null())
        .output();
    let script = match script {
        Ok(script) => script,
        Err(error) => return skipped(&format!("python3 does not start: {error}")),
    };
    let said = String::from_utf8_lossy(&script.stdout);
    let complained = String::from_utf8_lossy(&script.stderr);
    assert!(script.status.success(), "{said}\n{complained}");
    complained.lines().filter_map(|line| line.strip_prefix("SKIPPED ")).for_each(skipped);
}

/// Fails in CI, where every test must run. Elsewhere it prints that the test was skipped, directly to
/// standard error, because the output of a test that passes is hidden.
fn skipped(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{why}");
    let _ = writeln!(std::io::stderr(), "SKIPPED {}: {why}", module_path!());
}
