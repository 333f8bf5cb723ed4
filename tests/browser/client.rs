//! The browser client, served by the server, in pages of another origin.

use std::time::Duration;

use rejoin::config::Secret;
use reqwest::header;
use serde_json::{Value, json};

use crate::{
    client,
    page::{Page, in_browser},
    proxy::Proxy,
    publish, serve_empty_page,
    support::{Server, login},
};

const MODULES: [(&str, &str); 3] = [
    ("/rejoin.js", include_str!("../../web/rejoin.js")),
    ("/rejoin-shared.js", include_str!("../../web/rejoin-shared.js")),
    ("/rejoin-presence.js", include_str!("../../web/rejoin-presence.js")),
];

#[tokio::test]
async fn the_server_serves_its_client_and_says_when_it_is_unchanged() {
    let server = Server::with(|config| {
        config.jwt_secret = Some(Secret("a secret of the tests, of 32 bytes or more".into()));
        config.allowed_origins = vec!["https://app.example".parse().expect("an origin")];
    })
    .await;
    for (path, text) in MODULES {
        is_served(&server, path, text).await;
    }
    server.stop().await;
}

async fn is_served(server: &Server, path: &str, text: &str) {
    let ask = |headers: &[(&'static str, &str)]| {
        let request = client().get(server.http(path));
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).send()
    };
    let answer = ask(&[("origin", "https://app.example")]).await.expect("an answer");
    assert_eq!(answer.status(), 200, "it needs no grant");
    assert_eq!(answer.headers()[header::CONTENT_TYPE], "text/javascript; charset=utf-8");
    assert_eq!(answer.headers()[header::ACCESS_CONTROL_ALLOW_ORIGIN], "https://app.example");
    let tag = answer.headers()[header::ETAG].to_str().expect("text").to_owned();
    assert_eq!(answer.text().await.expect("text"), text);

    for known in [tag.clone(), format!("W/{tag}"), format!("\"other\", {tag}"), "*".to_owned()] {
        let answer = ask(&[("if-none-match", &known)]).await.expect("an answer");
        assert_eq!(answer.status(), 304, "{known}");
        assert_eq!(answer.headers()[header::ETAG], *tag);
        assert_eq!(answer.text().await.expect("text"), "");
    }
    assert_eq!(ask(&[("if-none-match", "\"other\"")]).await.expect("an answer").status(), 200);
    assert_eq!(ask(&[("origin", "https://evil.example")]).await.expect("an answer").status(), 403);
}

/// Opens a page of another origin, which imports the client from the server. `told` has everything that the client and
/// its subscriptions tell.
async fn open(page: &Page, origin: &str, address: &str, options: &str, topics: &[&str]) {
    page.open(origin).await;
    let script = "
        const { connect } = await import(ADDRESS + '/rejoin.js')
        window.told = []
        window.tell = (type, event) => told.push({ ...event, type })
        window.rejoin = connect(ADDRESS, OPTIONS)
        for (const type of ['state', 'open', 'refused']) {
          rejoin.on(type, event => tell('client ' + type, { event, code: event.code }))
        }
        window.read = (topic, start) => {
          const subscription = rejoin.subscribe(topic, start)
          for (const type of ['message', 'gap', 'subscribed', 'refused']) {
            subscription.on(type, event => tell(type, { ...event, of: topic }))
          }
          return subscription
        }
        window.data = topic => told.filter(it => it.type === 'message' && it.of === topic).map(it => it.data)
        for (const topic of TOPICS) read(topic)";
    let script = script
        .replace("ADDRESS", &json!(address).to_string())
        .replace("OPTIONS", options)
        .replace("TOPICS", &json!(topics).to_string());
    page.run(&format!("return (async () => {{{script}}})()")).await;
    page.until(&format!("told.filter(it => it.type === 'subscribed').length === {}", topics.len())).await;
}

async fn told(page: &Page) -> Value {
    page.run("return told").await
}

async fn data(page: &Page, topic: &str) -> Value {
    page.run(&format!("return data({})", json!(topic))).await
}

fn open_to(port: u16) -> impl FnOnce(&mut rejoin::Config) {
    let origin = format!("http://127.0.0.1:{port}");
    move |config| config.allowed_origins = vec![origin.parse().expect("an origin")]
}

#[tokio::test]
async fn a_page_with_the_client_gets_every_message_over_cuts_on_each_transport() {
    in_browser(async |page| {
        let (_serving, port) = serve_empty_page().await;
        let server = Server::with(open_to(port)).await;
        let proxy = Proxy::before(server.addr).await;
        for transport in ["ws", "ndjson", "poll"] {
            let options = format!("{{ transports: ['{transport}'] }}");
            let (one, some) = (format!("{transport}.1"), format!("{transport}.*"));
            let origin = format!("http://127.0.0.1:{port}/");
            open(page, &origin, &proxy.http(""), &options, &[&one, &some]).await;
            publish(server.addr, &one, "1").await;
            page.until(&format!("data('{one}').length === 1")).await;
            proxy.cut();
            page.until("rejoin.state === 'waiting'").await;
            for n in 2..=5 {
                publish(server.addr, &one, &n.to_string()).await;
            }
            proxy.mend();
            page.run("read('TRANSPORT.late', { after: '0' })".replace("TRANSPORT", transport).as_str()).await;
            publish(server.addr, &format!("{transport}.late"), "6").await;
            page.until(&format!("data('{some}').length >= 6 && data('{transport}.late').length")).await;
            publish(server.addr, &one, "7").await;
            page.until(&format!("data('{one}').includes(7)")).await;
            assert_eq!(data(page, &one).await, json!([1, 2, 3, 4, 5, 7]), "{}", told(page).await);
            assert_eq!(data(page, &some).await, json!([1, 2, 3, 4, 5, 6, 7]), "{}", told(page).await);
            assert!(!told(page).await.to_string().contains("\"gap\""));
            page.run("rejoin.close()").await;
        }
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_page_that_was_offline_or_frozen_comes_back_with_everything() {
    in_browser(async |page| {
        let (_serving, port) = serve_empty_page().await;
        let server = Server::with(open_to(port)).await;
        let proxy = Proxy::before(server.addr).await;
        open(page, &format!("http://127.0.0.1:{port}/"), &proxy.http(""), "{}", &["a"]).await;

        // The network is away until the page is told that it is back. It does not wait for its next attempt.
        page.session.offline(true).await.expect("the driver does it");
        proxy.cut();
        page.until("rejoin.state === 'waiting'").await;
        for n in 1..=3 {
            publish(server.addr, "a", &n.to_string()).await;
        }
        proxy.mend();
        page.session.offline(false).await.expect("the driver does it");
        page.until("data('a').length === 3").await;

        // A frozen page runs nothing. Its connection is lost meanwhile.
        page.session
            .command("Page.setWebLifecycleState", json!({"state": "frozen"}))
            .await
            .expect("it freezes");
        proxy.cut();
        for n in 4..=6 {
            publish(server.addr, "a", &n.to_string()).await;
        }
        proxy.mend();
        page.session
            .command("Page.setWebLifecycleState", json!({"state": "active"}))
            .await
            .expect("it thaws");
        page.until("data('a').length === 6").await;

        assert_eq!(data(page, "a").await, json!([1, 2, 3, 4, 5, 6]));
        let told = told(page).await;
        assert!(!told.to_string().contains("\"gap\""), "{told}");
        let opened = told.as_array().expect("a list").iter().filter(|it| it["type"] == "client open").count();
        assert!(opened >= 3, "both faults ended a connection: {told}");
        server.stop().await;
    })
    .await;
}

/// Tokens of 5 s, from the backend of the example of a login.
#[tokio::test]
async fn a_page_renews_its_token_on_the_connection_and_hears_what_is_refused() {
    if !login::has(&["node"], false) {
        return;
    }
    in_browser(async |page| {
        let login = login::Login::start(5).await;
        let address = login.serving.server.http("");
        let options = "{ token: async () => {
            window.asked = (window.asked ?? 0) + 1
            const answer = await fetch('/token', { method: 'POST' })
            if (!answer.ok) throw new Error(answer.status)
            return (await answer.json()).token
        } }";
        open(page, &login.address, &address, options, &["users.u1.news"]).await;
        page.run("read('users.u2.news')").await;
        page.until("told.some(it => it.type === 'refused')").await;
        let asked = || async { page.run("return asked").await.as_i64().expect("a number") };
        let before = asked().await;
        let mut number = 0;
        let mut again = tokio::time::interval(Duration::from_millis(200));
        while asked().await < before + 3 {
            again.tick().await;
            number += 1;
            assert!(number < 300, "the page asks for no new token: {}", told(page).await);
            login.publish(&number.to_string()).await;
        }
        page.until(&format!("data('users.u1.news').includes({number})")).await;
        let expected: Vec<i32> = (1..=number).collect();
        assert_eq!(data(page, "users.u1.news").await, json!(expected));
        let told = told(page).await;
        let kinds =
            |kind: &str| told.as_array().expect("a list").iter().filter(|it| it["type"] == kind).count();
        assert_eq!((kinds("client open"), kinds("refused"), kinds("client refused")), (1, 1, 0), "{told}");
    })
    .await;
}
