//! Tokens of an issuer of another project: `oidc-provider` of npm.

use std::{env, io::Write, path::Path, process::Stdio, time::Duration};

use reqwest::RequestBuilder;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use crate::{
    ask::{Ask, client, get, text, within},
    people::{As, bearer, server_with},
    reader::Lines as Stream,
    stub::pass,
};

/// The issuer as a process, which ends when this is dropped.
struct Provider {
    name: String,
    lines: Lines<BufReader<ChildStdout>>,
    input: ChildStdin,
    _process: Child,
}

impl Provider {
    /// Starts it. Without its packages this fails in CI, where every test must run; elsewhere it prints that the test is
    /// skipped.
    async fn start() -> Option<Self> {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/issuer"));
        if !folder.join("node_modules").exists() {
            let missing = "npm ci --prefix tests/issuer has not run";
            assert!(env::var_os("CI").is_none(), "{missing}");
            let _ = writeln!(std::io::stderr(), "SKIPPED a test of an issuer: {missing}");
            return None;
        }
        let mut process = Command::new("node")
            .arg(folder.join("issuer.mjs"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("node starts");
        let mut lines = BufReader::new(process.stdout.take().expect("a pipe")).lines();
        let input = process.stdin.take().expect("a pipe");
        let name = within("the issuer", lines.next_line()).await.expect("text").expect("its name");
        Some(Self { name, lines, input, _process: process })
    }

    async fn rotate(&mut self) {
        self.input.write_all(b"\n").await.expect("it reads");
        // It prints notices too.
        while within("a new key", self.lines.next_line()).await.expect("text").expect("it runs") != "key 2" {}
    }

    async fn token(&self) -> String {
        let request: RequestBuilder = client().post(format!("{}/token", self.name));
        let form = "grant_type=client_credentials";
        let request = request.basic_auth("u1", Some("secret")).body(form);
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        text(&request.answer().await.json()["access_token"])
    }
}

#[tokio::test]
async fn the_tokens_of_a_known_openid_provider_are_accepted_and_its_keys_rotate() {
    let Some(mut provider) = Provider::start().await else { return };
    let name = &provider.name;
    let server = server_with(&format!(
        "[[jwt]]\nname = \"id\"\nissuer = \"{name}\"\naud = \"push\"\nsubscribe = [\"users.{{sub}}\"]\n"
    ))
    .await;
    let old = provider.token().await;
    let header = bearer(&old);
    let mut living = Stream::open_with(&server, "/topics/users.u1", &[("authorization", &header)]).await;
    assert_eq!(living.opening["sub"], "u1");
    provider.rotate().await;
    let new = provider.token().await;
    get(&server, "/topics/users.u1?wait=0").answer_to(&new).await.problem(503, "unavailable");
    pass(Duration::from_secs(10)).await;
    assert_eq!(get(&server, "/topics/users.u1?wait=0").answer_to(&new).await.status, 200);
    pass(Duration::from_secs(10)).await;
    get(&server, "/topics/users.u1").answer_to(&old).await.problem(401, "unauthorized");
    assert_eq!(living.next().await["type"], "cursor", "the connection lives on");
}
