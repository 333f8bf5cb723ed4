//! The browser client in Node, and its npm package.

use std::{
    env,
    io::Write,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};

/// Much longer than the longest run takes. A page that hangs must not hang all tests.
const RUN_LIMIT: Duration = Duration::from_secs(300);

/// The tests of these files run in Node, beside each other. They start the program themselves.
async fn in_node(file: &'static str, needs_browser: bool) {
    run_node(&["--test"], file, &[], needs_browser, "# fail 0").await;
}

/// Runs a file in Node, which says at its end that all is well.
async fn run_node(before: &[&str], file: &'static str, after: &[&str], needs_browser: bool, end: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let missing =
        missing(root).or_else(|| (needs_browser && !has_browser()).then_some("chromium is not installed"));
    if let Some(missing) = missing {
        assert!(env::var_os("CI").is_none(), "{missing}");
        let _ = writeln!(std::io::stderr(), "SKIPPED {file}: {missing}");
        return;
    }
    let mut node = tokio::process::Command::new("node");
    node.args(before).arg(root.join("tests/browser").join(file)).args(after);
    node.env("REJOIN", env!("CARGO_BIN_EXE_rejoin")).env_remove("NODE_OPTIONS");
    node.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let node = node.spawn().expect("node starts");
    let group = node.id().and_then(|id| Pid::from_raw(id as i32)).expect("it runs");
    let output = tokio::time::timeout(RUN_LIMIT, node.wait_with_output()).await.unwrap_or_else(|_| {
        // With its servers and its browser.
        let _ = kill_process_group(group, Signal::KILL);
        panic!("{file} runs for {RUN_LIMIT:?}")
    });
    let output = output.expect("it ends");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains(end), "{said}");
}

fn has_browser() -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| {
        ["chromium", "chromium-browser", "google-chrome"].iter().any(|it| folder.join(it).is_file())
    })
}

fn missing(root: &Path) -> Option<&'static str> {
    if Command::new("node").arg("--version").output().is_err() {
        return Some("node is not installed");
    }
    let has_tools = root.join("web/node_modules").exists();
    (!has_tools).then_some("npm ci --prefix web has not run")
}

#[tokio::test]
async fn the_client_in_node_misses_nothing_on_any_transport() {
    in_node("client.test.mjs", false).await;
}

#[tokio::test]
async fn the_client_in_node_tells_each_thing_once_whatever_crosses_it() {
    in_node("client-races.test.mjs", false).await;
}

#[tokio::test]
async fn the_client_in_node_keeps_its_own_topics_apart_from_those_of_the_server() {
    in_node("client-given.test.mjs", false).await;
}

#[tokio::test]
async fn the_client_in_node_waits_as_long_as_it_says_and_sends_nothing_again_that_was_stored() {
    in_node("client-time.test.mjs", false).await;
}

#[tokio::test]
async fn the_parts_of_the_console_that_need_no_page_do_what_they_say() {
    in_node("console.test.mjs", false).await;
}

#[tokio::test]
async fn the_npm_package_is_small_and_can_be_installed() {
    in_node("package.test.mjs", false).await;
}

#[tokio::test]
async fn the_hooks_for_react_and_vue_read_as_long_as_their_component_is_there() {
    in_node("hooks.test.mjs", false).await;
}

#[tokio::test]
async fn tabs_of_one_login_share_a_connection_and_lose_nothing() {
    in_node("shared.test.mjs", true).await;
}

/// Five faults, each proven to have happened, with the token renewed all the while.
#[tokio::test]
async fn pages_in_a_browser_lose_nothing_whatever_happens_to_their_connections() {
    let flags = ["--short", "--seed", "7"];
    run_node(&[], "pages.mjs", &flags, true, "nothing lost and nothing twice").await;
}
