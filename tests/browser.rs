//! A page in a real browser, which reads from the server and publishes to it.

#[path = "browser/backend.rs"]
mod backend;
#[path = "browser/chat.rs"]
mod chat;
#[path = "browser/client.rs"]
mod client;
#[path = "browser/console.rs"]
mod console;
#[path = "browser/login.rs"]
mod login;
#[path = "browser/node.rs"]
mod node;
#[path = "browser/page.rs"]
mod page;
#[path = "browser/proxy.rs"]
mod proxy;
#[path = "support/signer.rs"]
mod signer;
mod support;
#[path = "browser/tls.rs"]
mod tls;

use std::{net::SocketAddr, slice};

use page::in_browser;
use proxy::Proxy;
use rejoin::Config;
use serde_json::{Value, json};
use support::Server;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
};

#[tokio::test]
async fn an_event_source_on_the_servers_own_page_receives_what_is_posted() {
    in_browser(async |page| {
        let server = Server::start().await;
        page.open(&server.http("/")).await;

        page.run("listen('/topics/demo')").await;
        page.until("heard.some(it => it.type === 'rejoin.open')").await;
        let first = publish(server.addr, "demo", "from the backend").await;
        let second = page.run("return post('/topics/demo', 'from the page')").await;
        let heard = page.until("messages().length === 2").await;

        assert_eq!(second["status"], 201, "{second}");
        assert_eq!(
            messages(&heard),
            [
                (first, "from the backend".to_owned()),
                (text(&second["answer"]["id"]), "from the page".to_owned())
            ]
        );
        server.stop().await;
    })
    .await;
}

/// A browser asks for compression by itself, and hands on each message before the next one comes.
#[tokio::test]
async fn a_browser_reads_compressed_messages_one_by_one() {
    in_browser(async |page| {
        let server = Server::with(|config| config.compress = rejoin::config::Compress::All).await;
        page.open(&server.http("/")).await;
        page.run("listen('/topics/demo')").await;
        page.run("connect('/topics/demo')").await;
        page.until("heard.filter(it => /open$/.test(it.type)).length === 2").await;
        let words = "these words come again and again; ".repeat(30);
        for (number, data) in ["short", &words, "and short", &words].into_iter().enumerate() {
            publish(server.addr, "demo", data).await;
            let heard = page.until(&format!("messages().length === {}", 2 * (number + 1))).await;
            let newest = messages(&heard).split_off(2 * number);
            assert!(newest.iter().all(|(_, heard)| heard == data), "{newest:?}");
        }
        let coding =
            page.run("return fetch('/topics/demo?after=0').then(it => it.headers.get('content-encoding'))");
        assert_eq!(coding.await, "gzip");
        let offer = "return new Promise(done => { \
                     const it = new WebSocket('ws://' + location.host + '/topics/demo'); \
                     it.onopen = () => done(it.extensions) })";
        assert!(text(&page.run(offer).await).starts_with("permessage-deflate"));
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn an_event_source_that_was_cut_off_reconnects_and_gets_exactly_what_it_missed() {
    in_browser(async |page| {
        let server = Server::start().await;
        let proxy = Proxy::before(server.addr).await;
        page.open(&proxy.http("/")).await;
        page.run("listen('/topics/demo')").await;
        page.until("heard.some(it => it.type === 'rejoin.open')").await;
        let mut expected = vec![published(server.addr, "before").await];
        page.until("messages().length === 1").await;

        proxy.cut();
        page.until("heard.some(it => it.type === 'error')").await;
        for n in 1..=5 {
            expected.push(published(server.addr, &format!("meanwhile {n}")).await);
        }
        proxy.mend();
        page.until("messages().length >= 6").await;
        // A duplicate would come before this message.
        expected.push(published(server.addr, "after").await);
        let heard = page.until("messages().some(it => it.data === 'after')").await;

        assert_eq!(messages(&heard), expected);
        assert!(!heard.to_string().contains("rejoin.gap"), "{heard}");
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn an_event_source_that_was_cut_off_before_its_first_message_misses_nothing() {
    in_browser(async |page| {
        let server = Server::start().await;
        let proxy = Proxy::before(server.addr).await;
        published(server.addr, "long ago").await;
        page.open(&proxy.http("/")).await;
        page.run("listen('/topics/demo')").await;
        page.until("heard.some(it => it.type === 'rejoin.open')").await;

        proxy.cut();
        page.until("heard.some(it => it.type === 'error')").await;
        let first = published(server.addr, "the first").await;
        proxy.mend();
        let heard = page.until("messages().length > 0").await;

        assert_eq!(messages(&heard), [first]);
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_websocket_that_reconnects_with_its_cursor_gets_exactly_what_it_missed() {
    in_browser(async |page| {
        let server = Server::start().await;
        let proxy = Proxy::before(server.addr).await;
        page.open(&proxy.http("/")).await;
        page.run("connect('/topics/demo')").await;
        page.until("heard.some(it => it.type === 'open')").await;
        let mut expected = vec![published(server.addr, "before").await];
        page.until("messages().length === 1").await;

        proxy.cut();
        page.until("heard.some(it => it.type === 'close')").await;
        for n in 1..=5 {
            expected.push(published(server.addr, &format!("meanwhile {n}")).await);
        }
        proxy.mend();
        page.run("connect('/topics/demo?after=' + encodeURIComponent(cursor))").await;
        page.until("messages().length >= 6").await;
        expected.push(published(server.addr, "after").await);
        let heard = page.until("messages().some(it => it.data === 'after')").await;

        assert_eq!(messages(&heard), expected);
        assert!(heard.as_array().unwrap().iter().all(|it| it["type"] != "gap"), "{heard}");
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_page_of_a_foreign_origin_can_neither_listen_nor_publish() {
    in_browser(async |page| {
        let server = Server::start().await;
        let secret = published(server.addr, "secret").await;
        let stream = server.http("/topics/demo?after=0");
        let topic = server.http("/topics/demo");
        let socket = server.ws("/topics/demo?after=0");
        let (_serving, other_port) = serve_empty_page().await;

        // A page of another site, and one of another origin of the same site.
        for foreign in [format!("http://localhost:{other_port}/"), format!("http://127.0.0.1:{other_port}/")]
        {
            page.open(&foreign).await;

            page.run(&format!("listen('{stream}')")).await;
            let heard = page.until("heard.some(it => it.type === 'error')").await;
            assert_eq!(heard, json!([{"type": "error", "state": "closed"}]), "{foreign}");

            page.run(&format!("heard.length = 0; connect('{socket}')")).await;
            let heard = page.until("heard.some(it => it.type === 'close')").await;
            assert_eq!(messages(&heard), [], "{foreign}");

            let read = page.run(&format!("return read('{topic}?after=0&wait=0')")).await;
            assert_eq!(read, "failed", "{foreign}");
            // A request that any form can send, one whose answer the page cannot see, and one with a
            // preflight.
            for options in ["{}", "{mode: 'no-cors'}", "{headers: {'Content-Type': 'application/json'}}"] {
                let posted = page.run(&format!("return post('{topic}', '\"intruder\"', {options})")).await;
                assert_ne!(posted["status"], 201, "{foreign} {options}");
            }
        }
        assert_eq!(retained(server.addr, "demo").await, slice::from_ref(&secret));

        // The same code can do all this on a page of the server's own.
        page.open(&server.http("/")).await;
        page.run(&format!("listen('{stream}')")).await;
        let heard = page.until("messages().length > 0").await;
        assert_eq!(messages(&heard), [secret]);
        page.run(&format!("heard.length = 0; connect('{socket}')")).await;
        page.until("messages().length > 0").await;
        let read = page.run(&format!("return read('{topic}?after=0&wait=0')")).await;
        assert_eq!(read, 200);
        let posted = page.run(&format!("return post('{topic}', 'welcome')")).await;
        assert_eq!(posted["status"], 201, "{posted}");
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_page_gets_a_gap_before_the_messages_after_it() {
    in_browser(async |page| {
        let server = Server::with(|config: &mut Config| config.retain_messages = 3).await;
        let proxy = Proxy::before(server.addr).await;
        page.open(&proxy.http("/")).await;
        page.run("listen('/topics/demo')").await;
        page.until("heard.some(it => it.type === 'rejoin.open')").await;
        let before = published(server.addr, "before").await;
        page.until("messages().length === 1").await;

        proxy.cut();
        page.until("heard.some(it => it.type === 'error')").await;
        let mut expected = Vec::new();
        for n in 1..=8 {
            expected.push(published(server.addr, &format!("meanwhile {n}")).await);
        }
        proxy.mend();
        let heard = page.until("messages().length >= 4").await;

        let kept = &expected[5..];
        assert_eq!(messages(&heard)[1..], *kept);
        let told = |it: &Value| it["type"] == "rejoin.gap" || it["type"] == "message";
        let told: Vec<_> = heard.as_array().unwrap().iter().filter(|it| told(it)).skip(1).collect();
        let gap = &told[0]["frame"];
        assert_eq!(told[0]["type"], "rejoin.gap", "{heard}");
        assert_eq!(
            (&gap["type"], &gap["topic"], &gap["reason"]),
            (&json!("gap"), &json!("demo"), &json!("retention"))
        );
        assert_eq!((&gap["after"], &gap["next"]), (&json!(before.0), &json!(kept[0].0)));
        assert_eq!(told.iter().filter(|it| it["type"] == "rejoin.gap").count(), 1, "{heard}");
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn the_servers_page_shows_published_text_as_text_on_all_lanes() {
    in_browser(async |page| {
        let server = Server::start().await;
        page.open(&server.http("/")).await;
        page.until("document.querySelectorAll('.lane[data-state=live]').length === 4").await;

        let markup = "<img src=x onerror='document.title = \"run\"'>";
        page.session.fill("#publish [name=data]", markup).await.unwrap();
        page.session.click("#publish button").await.unwrap();
        page.until("document.querySelectorAll('.message').length === 4").await;

        let shown = page
            .run("return [...document.querySelectorAll('.message .data')].map(it => it.textContent)")
            .await;
        assert_eq!(shown, json!([markup, markup, markup, markup]));
        assert_eq!(retained(server.addr, "demo").await[0].1, markup);
        let images = page.run("return document.querySelectorAll('.message img').length").await;
        assert_eq!(images, 0);
        server.stop().await;
    })
    .await;
}

/// The ids and the data of the messages that a page received.
fn messages(heard: &Value) -> Vec<(String, String)> {
    let heard = heard.as_array().expect("a list").iter();
    heard.filter(|it| it["type"] == "message").map(|it| (text(&it["id"]), text(&it["data"]))).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("a string, not {value}")).to_owned()
}

/// A client without a proxy: the server is on this machine, whatever proxy the machine uses.
fn client() -> reqwest::Client {
    support::http_client().build().expect("a client without options that can fail")
}

/// Publishes directly, as a backend does, and returns the id.
async fn publish(server: SocketAddr, topic: &str, data: &str) -> String {
    let request = client().post(format!("http://{server}/topics/{topic}")).body(data.to_owned());
    let response = request.send().await.expect("an answer");
    assert_eq!(response.status(), 201);
    let answer: Value = response.json().await.expect("JSON");
    text(&answer["id"])
}

/// Publishes to `demo`, and returns the message as its readers should receive it.
async fn published(server: SocketAddr, data: &str) -> (String, String) {
    (publish(server, "demo", data).await, data.to_owned())
}

async fn retained(server: SocketAddr, topic: &str) -> Vec<(String, String)> {
    let request = client().get(format!("http://{server}/topics/{topic}?after=0&wait=0"));
    let response = request.send().await.expect("an answer");
    let answer: Value = response.json().await.expect("JSON");
    messages(&answer["messages"])
}

/// Serves an empty page of a foreign origin as long as the returned set lives.
async fn serve_empty_page() -> (JoinSet<()>, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("a bound address").port();
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let mut answering = JoinSet::new();
        loop {
            let (mut client, _) = listener.accept().await.expect("a connection");
            answering.spawn(async move {
                let _ = client.read(&mut [0; 8192]).await;
                let page = "<!doctype html><title>elsewhere</title>";
                let head =
                    "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\nContent-Length: ";
                let _ = client.write_all(format!("{head}{}\r\n\r\n{page}", page.len()).as_bytes()).await;
            });
        }
    });
    (serving, port)
}
