//! Real input at full speed: `packages.py` publishes Debian's package records to readers that are cut off
//! again and again. This test uses a part of them; `python3 tests/packages.py --server target/release/rejoin`
//! uses all.

use std::{io::Write, process::Stdio, time::Duration};

use tokio::{process::Command, time::timeout};

const RECORDS: &str = "3000";

/// The timeout for each of the script's two modes, in seconds.
const MODE_TIMEOUT: &str = "40";

/// Longer than both modes may take, so that the script ends its server itself.
const PATIENCE: Duration = Duration::from_secs(110);

#[tokio::test]
async fn readers_that_are_cut_off_get_every_record_or_a_gap() {
    let script = Command::new("python3")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/packages.py"))
        .args(["--server", env!("CARGO_BIN_EXE_rejoin"), "--limit", RECORDS, "--timeout", MODE_TIMEOUT])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let script = match script {
        Ok(script) => script,
        Err(error) => return skipped(&format!("python3 does not start: {error}")),
    };

    let output = timeout(PATIENCE, script.wait_with_output()).await.expect("done in time").expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);

    assert!(output.status.success(), "{said}\n{complained}");
    if complained.contains("SKIPPED") {
        return skipped(complained.trim_start_matches("SKIPPED: ").trim_end());
    }
    println!("{said}");
}

/// Fails in CI, where every test must run. Elsewhere it prints that the test was skipped, directly to
/// standard error, because the output of a test that passes is hidden.
fn skipped(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{why}");
    let _ = writeln!(std::io::stderr(), "SKIPPED {}: {why}", module_path!());
}
