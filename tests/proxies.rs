//! The recipes of `docs/operations.md` for nginx, HAProxy and Caddy, in front of a real server.
//!
//! Each recipe is taken out of the document as it stands; only ports, certificates and the address of the server are
//! replaced. A browser's side is played over TLS, from an address that no proxy has.

#[path = "proxies/compressed.rs"]
mod compressed;
#[path = "proxies/front.rs"]
mod front;
mod support;
#[path = "proxies/visitor.rs"]
mod visitor;

use std::time::Duration;

use front::{Front, Way};
use futures_util::future::join_all;
use serde_json::json;
use visitor::Visitor;

/// The largest payload that a server accepts by default.
const MAX_PAYLOAD_BYTES: usize = 256 << 10;

#[tokio::test]
async fn nginx_passes_everything_on_by_its_recipe() {
    for by in [Way::Plain, Way::Unix, Way::Tls] {
        let Some(front) = Front::nginx(by, &[]).await else { return };
        drive(front).await;
    }
}

#[tokio::test]
async fn haproxy_passes_everything_on_by_its_recipe() {
    for by in [Way::Plain, Way::Unix] {
        let Some(front) = Front::haproxy(by, "", &[]).await else { return };
        drive(front).await;
    }
}

#[tokio::test]
async fn haproxy_names_its_client_by_the_proxy_protocol() {
    for version in [" send-proxy", " send-proxy-v2"] {
        let Some(front) = Front::haproxy(Way::Plain, version, &["--proxy-protocol"]).await else { return };
        drive(front).await;
    }
}

#[tokio::test]
async fn haproxy_passes_tls_through_by_its_recipe() {
    let Some(front) = Front::haproxy_tcp().await else { return };
    drive(front).await;
}

#[tokio::test]
async fn nginx_passes_tls_through_by_its_recipe() {
    let Some(front) = Front::nginx_stream().await else { return };
    drive(front).await;
}

#[tokio::test]
async fn caddy_passes_everything_on_by_its_recipe() {
    for by in [Way::Plain, Way::Unix] {
        let Some(front) = Front::caddy(by, &[]).await else { return };
        drive(front).await;
    }
}

/// A proxy must not collect the compressed bytes of several events either.
#[tokio::test]
async fn each_proxy_passes_compressed_streams_on_event_by_event() {
    let flags = ["--compress", "all"];
    for front in [
        Front::nginx(Way::Plain, &flags).await,
        Front::haproxy(Way::Plain, "", &flags).await,
        Front::caddy(Way::Plain, &flags).await,
    ] {
        let Some(front) = front else { continue };
        compressed::streams(&Visitor::of(&front)).await;
    }
}

/// A held poll sends nothing for up to a minute, and a stream for a heartbeat.
#[test]
fn the_recipes_wait_longer_than_the_longest_poll() {
    let mut found = 0;
    for recipe in ["nginx", "nginx-stream", "haproxy", "haproxy-tcp"].map(front::recipe) {
        for line in recipe.lines().filter(|line| line.contains("timeout") && !line.contains("connect")) {
            let seconds =
                line.trim_end_matches([';', 's']).rsplit(' ').next().and_then(|text| text.parse().ok());
            assert!(seconds > Some(60), "{line}");
            found += 1;
        }
    }
    assert_eq!(found, 8);
}

async fn drive(mut front: Front) {
    let visitor = Visitor::of(&front);
    publishing(&visitor, &front).await;
    for accept in ["text/event-stream", "application/x-ndjson"] {
        a_stream(&visitor, accept).await;
    }
    a_websocket(&visitor).await;
    a_held_poll(&visitor).await;
    compressed::a_websocket(&visitor).await;
    compressed::a_poll(&visitor).await;
    pages(&visitor, &front).await;
    over_http2(&visitor).await;
    addresses(&visitor, &mut front).await;
}

async fn publishing(visitor: &Visitor, front: &Front) {
    for bytes in [1, MAX_PAYLOAD_BYTES] {
        let sent = visitor.post("/topics/sizes").body("x".repeat(bytes)).send().await.expect("an answer");
        assert_eq!(sent.status(), 201, "{bytes} bytes");
    }
    for (clients, token, bytes, status, code) in [
        (5, None, 8_000_000, 413, "too_large"),
        (20, Some("guessed"), 100_000, 401, "unauthorized"),
        (20, Some("guessed"), 8_000_000, 401, "unauthorized"),
    ] {
        join_all((0..clients).map(|_| refused(front, token, bytes, (status, code)))).await;
    }
    let ready = visitor.get("/health/ready").send().await.expect("an answer");
    assert_eq!(ready.status(), 200);
    // A topic with a slash: some proxies decode it in the path, and none in the query.
    let sent = visitor.post("/publish").json(&json!([{"topic": "a/b", "data": 1}])).send().await;
    assert_eq!(sent.expect("an answer").status(), 200);
    let read = visitor.get("/events?topic=a%2Fb&after=0").send().await.expect("an answer");
    assert!(read.text().await.expect("text").contains("\"topic\":\"a/b\""));
}

/// A proxy passes most of a body on before it reads the refusal. nginx closes such a connection to its client and has said
/// nothing of it, so each client is a new one.
async fn refused(front: &Front, token: Option<&str>, bytes: usize, (status, code): (u16, &str)) {
    let mut request = Visitor::of(front).post("/topics/refused");
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let told = format!("{status} for {bytes} bytes");
    let refused = within(&told, request.body("x".repeat(bytes)).send()).await;
    let refused = refused.unwrap_or_else(|error| panic!("{told}: {error:?}"));
    assert_eq!(refused.status(), status, "{told}");
    assert!(refused.text().await.expect("text").contains(code), "{told}: the words are the server's");
}

/// Each event arrives before the next one is published: nothing on the way collects them.
async fn a_stream(visitor: &Visitor, accept: &str) {
    let request = visitor.get("/topics/live").header("accept", accept).header("accept-encoding", "gzip, br");
    let mut stream = request.send().await.expect("an answer");
    assert_eq!(stream.status(), 200);
    assert!(!stream.headers().contains_key("content-encoding"), "{:?}", stream.headers());
    let mut heard = String::new();
    for text in ["open", "first", "second", "third"] {
        if text != "open" {
            visitor.publish("live", text).await;
        }
        while !heard.contains(text) {
            let piece = within(text, stream.chunk()).await.expect("the stream goes on");
            heard += &String::from_utf8_lossy(&piece.unwrap_or_else(|| panic!("it ended: {heard}")));
        }
    }
}

async fn a_websocket(visitor: &Visitor) {
    let mut socket = visitor.socket("/events?topic=live").await;
    assert!(socket.next().await.contains("\"open\""));
    visitor.publish("live", "by post").await;
    assert!(socket.next().await.contains("by post"));
    socket.send(r#"{"type":"publish","topic":"live","data":"by command","ref":7}"#).await;
    let (one, other) = (socket.next().await, socket.next().await);
    assert!(one.contains("by command") || other.contains("by command"), "{one} {other}");
    assert!(one.contains("published") || other.contains("published"), "{one} {other}");
}

async fn a_held_poll(visitor: &Visitor) {
    let id = visitor.publish("polled", "before").await;
    let path = format!("/topics/polled?after={id}&wait=60");
    let held = visitor.get(&path).send();
    let publish = async {
        // The poll is probably held by now; if not, it is answered at once, as it should be.
        tokio::time::sleep(Duration::from_millis(300)).await;
        visitor.publish("polled", "meanwhile").await;
    };
    let (answer, ()) = within("the poll", async { tokio::join!(held, publish) }).await;
    let answer = answer.expect("an answer");
    assert_eq!(answer.status(), 200);
    assert!(answer.text().await.expect("text").contains("meanwhile"));
    let empty = visitor.get("/topics/polled?last=0&wait=1").send().await.expect("an answer");
    assert_eq!(empty.status(), 200, "a poll that is answered without a message");
}

async fn pages(visitor: &Visitor, front: &Front) {
    let ask = async |origin: &str| {
        let asked = visitor.get("/topics/a?wait=0").header("origin", origin).send().await;
        asked.expect("an answer").status().as_u16()
    };
    assert_eq!(ask(&front.origin()).await, 200, "the server's own page, on another port than 443");
    assert_eq!(ask(front::APP).await, 200, "an allowed page on another port");
    let without_tls = ask(&front.origin().replace("https", "http")).await;
    assert_eq!(without_tls, if front.names_scheme { 403 } else { 200 });
    assert_eq!(ask("https://push.example:1").await, 403, "a page on a port that is not allowed");
    assert_eq!(ask("https://elsewhere.example").await, 403);
}

/// A browser speaks HTTP/2 to each of these proxies.
async fn over_http2(visitor: &Visitor) {
    let (version, heard) = visitor.curl_http2("/topics/sizes?after=0&limit=1").await;
    assert_eq!(version, "2");
    assert!(heard.contains("\"topic\":\"sizes\""), "{heard}");
}

async fn addresses(visitor: &Visitor, front: &mut Front) {
    visitor.publish("own", "x").await;
    assert_eq!(front.client_of("/topics/own").await, visitor::ADDRESS);
    let forged = visitor
        .post("/topics/forged")
        .header("x-forwarded-for", "6.6.6.6")
        .header("forwarded", "for=6.6.6.6;host=evil.example")
        .header("x-forwarded-host", "evil.example")
        .header("x-forwarded-proto", "http")
        .header("origin", front.origin());
    assert_eq!(
        forged.body("x").send().await.expect("an answer").status(),
        201,
        "host and scheme are the proxy's"
    );
    assert_eq!(front.client_of("/topics/forged").await, visitor::ADDRESS);
    let direct = visitor.around_the_proxy(front, "/topics/direct").header("x-forwarded-for", "6.6.6.6");
    assert_eq!(direct.body("x").send().await.expect("an answer").status(), 201);
    assert_eq!(front.client_of("/topics/direct").await, visitor::ADDRESS);
    let mut socket = visitor.socket("/topics/socket").await;
    socket.next().await;
    drop(socket);
    assert_eq!(front.client_of("/topics/socket").await, visitor::ADDRESS);
}

/// Awaits the future. A proxy that holds something back becomes a failure, and not a hang.
async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(Duration::from_secs(20), future).await;
    waited.unwrap_or_else(|_| panic!("{what}: it did not come"))
}
