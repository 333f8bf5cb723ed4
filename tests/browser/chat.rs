//! The chat of `docs/clients.md` in two browsers, with a user in each.

use std::{fs, path::Path, process::Stdio};

use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::{
    page::{Page, in_browser},
    support::{
        login,
        program::{Folder, Program},
        redis::free_port,
    },
};

struct Chat {
    serving: Program,
    address: String,
    _backend: Child,
    _folder: Folder,
}

impl Chat {
    /// Starts both commands of the document with a copy of the example, on free ports.
    async fn start() -> Self {
        let document = include_str!("../../docs/clients.md").lines();
        let commands: Vec<_> = document
            .filter_map(|line| line.strip_prefix("    "))
            .filter(|line| line.contains("examples/chat"))
            .collect();
        assert_eq!(commands, ["rejoin --config examples/chat/rejoin.toml", "node examples/chat/backend.mjs"]);
        let folder = Folder::new();
        let port = free_port();
        let copy = |name: &str, change: &dyn Fn(String) -> String| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/chat").join(name);
            fs::write(folder.path(name), change(fs::read_to_string(path).expect("a text"))).expect("a file");
        };
        let moved = |text: String| text.replace("localhost:3000", &format!("localhost:{port}"));
        copy("rejoin.toml", &moved);
        let serving = Program::start(&["--config", &folder.path("rejoin.toml")]).await;
        let rejoin = format!("localhost:{}", serving.server.addr.port());
        copy("backend.mjs", &|text| moved(text).replace("listen(3000", &format!("listen({port}")));
        copy("chat.html", &|text| text.replace("localhost:7070", &rejoin));
        copy("login.html", &|text| text);
        let mut backend = Command::new("node")
            .arg(folder.path("backend.mjs"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("node starts");
        let mut lines = BufReader::new(backend.stdout.take().expect("a pipe")).lines();
        let address = lines.next_line().await.expect("text").expect("the address of the backend");
        Self { serving, address, _backend: backend, _folder: folder }
    }

    async fn log_in(&self, page: &Page, name: &str) {
        page.open(&self.address).await;
        page.session.fill("[name=name]", name).await.expect("a field");
        page.session.click("button").await.expect("a button");
        self.open(page).await;
    }

    /// Opens the page of a user who is logged in, as the form does if the page is sent before its script runs.
    async fn open(&self, page: &Page) {
        page.open(&format!("{}?text=early", self.address)).await;
        page.until("document.querySelector('#online').textContent").await;
    }
}

async fn say(page: &Page, text: &str) {
    page.session.fill("[name=text]", text).await.expect("a field");
    page.session.click("button").await.expect("a button");
}

async fn until_online(page: &Page, names: &str) {
    page.until(&format!("document.querySelector('#online').textContent === {}", json!(names))).await;
}

async fn until_shown(page: &Page, messages: &[&str]) {
    let shown = "JSON.stringify([...document.querySelectorAll('li')].map(it => it.textContent))";
    page.until(&format!("{shown} === {}", json!(json!(messages).to_string()))).await;
}

#[tokio::test]
async fn the_example_of_a_chat_shows_messages_and_who_is_online() {
    if !login::has(&["node"], false) {
        return;
    }
    in_browser(async |ann| {
        let chat = Chat::start().await;
        chat.log_in(ann, "ann").await;
        until_online(ann, "ann").await;
        say(ann, "Is someone there?").await;
        until_shown(ann, &["ann: Is someone there?"]).await;
        in_browser(async |bob| {
            chat.log_in(bob, "bob").await;
            for page in [ann, bob] {
                until_online(page, "ann, bob").await;
            }
            say(bob, "<b>Yes</b>").await;
            for page in [ann, bob] {
                until_shown(page, &["ann: Is someone there?", "bob: <b>Yes</b>"]).await;
            }

            // A page that is left is no longer present after the grace.
            bob.open("about:blank").await;
            until_online(ann, "ann").await;
            say(ann, "Gone?").await;
            chat.open(bob).await;
            for page in [ann, bob] {
                until_online(page, "ann, bob").await;
                until_shown(page, &["ann: Is someone there?", "bob: <b>Yes</b>", "ann: Gone?"]).await;
            }
        })
        .await;
        // The whole browser is closed now.
        until_online(ann, "ann").await;
        let log = chat.serving.terminate().await.log;
        assert!(!log.contains("refused"), "{log}");
    })
    .await;
}
