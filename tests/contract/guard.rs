//! Which pages may talk to the server: `Origin`, `Sec-Fetch-Site`, cookies, CORS and `Host`.

use rejoin::config::Host;
use reqwest::{Method, RequestBuilder};
use serde_json::Value;
use tokio_tungstenite::tungstenite::{Error, client::IntoClientRequest};

use crate::{
    ask::{Answer, Ask, delete_topic, get, post, publish, request, retained, within},
    reader::{Reader, Socket, Stream, refusal},
    support::{Server, client::Transport},
};

const LISTED: &str = "https://app.example";

async fn server() -> Server {
    Server::direct(|config| config.allowed_origins = vec![LISTED.parse().expect("an origin")]).await
}

/// Requests of every kind.
fn requests(server: &Server) -> Vec<RequestBuilder> {
    let json = |path: &str, body: &'static str| {
        post(server, path).header("content-type", "application/json").body(body)
    };
    vec![
        get(server, "/topics/a?wait=0"),
        get(server, "/topics/a").header("accept", "text/event-stream"),
        get(server, "/topics/a").header("accept", "application/x-ndjson"),
        get(server, "/events?topic=a&wait=0"),
        json("/events?wait=0", r#"{"topics":["a"]}"#),
        post(server, "/topics/a").body("x"),
        json("/publish", r#"[{"topic":"a","data":1}]"#),
        request(server, Method::DELETE, "/topics/a"),
        get(server, "/topics"),
        get(server, "/stats"),
        get(server, "/"),
        get(server, "/nowhere"),
        request(server, Method::OPTIONS, "/topics/a"),
        request(server, Method::OPTIONS, "/topics/a").header("access-control-request-method", "DELETE"),
    ]
}

/// Asserts that every kind of request is refused and changes nothing.
async fn assert_refused(server: &Server, headers: &[(&str, &str)], code: &str) {
    delete_topic(server, "a").await;
    publish(server, "a", "kept").await;
    for mut request in requests(server) {
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.answer().await;
        answer.problem(403, code);
        assert_eq!(answer.header("access-control-allow-origin"), "", "{headers:?}: {answer:?}");
    }
    for transport in Transport::ALL {
        refusal(server, transport, "/topics/a", headers).await.problem(403, code);
    }
    assert_eq!(retained(server, "a").await, ["kept"], "{headers:?}");
}

#[tokio::test]
async fn a_foreign_origin_is_refused_on_every_path() {
    let server = server().await;
    let port = server.addr.port();
    for origin in [
        "https://elsewhere.example",
        "null",
        "http://app.example",
        "https://app.example:8443",
        "https://app.example.elsewhere.example",
        "https://elsewhere.example/app.example",
        "nonsense",
        "",
        &format!("http://127.0.0.1:{}", port ^ 1),
        &format!("http://localhost:{port}"),
        "http://127.0.0.1",
    ] {
        assert_refused(&server, &[("origin", origin)], "forbidden_origin").await;
    }
}

#[tokio::test]
async fn the_servers_own_origin_and_a_listed_one_are_served() {
    let server = server().await;
    let port = server.addr.port();
    let own = server.http("");
    let by_name = format!("http://localhost:{port}");
    for (origin, host) in
        [(own.as_str(), None), (LISTED, None), (&by_name, Some(format!("localhost:{port}")))]
    {
        for site in ["cross-site", "same-site", "same-origin"] {
            let named = |answer: &Answer| {
                assert_eq!(answer.header("access-control-allow-origin"), origin, "{answer:?}");
                assert_eq!(answer.header("access-control-allow-credentials"), "true", "{answer:?}");
                let exposed = answer.header("access-control-expose-headers").to_ascii_lowercase();
                for name in ["etag", "retry-after", "idempotency-replayed"] {
                    assert!(exposed.contains(name), "{name}: {answer:?}");
                }
            };
            let with = |mut request: RequestBuilder| {
                if let Some(host) = &host {
                    request = request.header("host", host);
                }
                request.header("origin", origin).header("sec-fetch-site", site)
            };
            let answer = with(post(&server, "/topics/a").body("x")).answer().await;
            assert_eq!(answer.status, 201, "{origin} {site}: {answer:?}");
            named(&answer);
            let answer = with(get(&server, "/topics/a?after=0&wait=0")).answer().await;
            assert_eq!(answer.status, 200, "{origin} {site}: {answer:?}");
            named(&answer);
            // Without the CORS header a page could not read the reason.
            let answer = with(get(&server, "/topics/a?wait=x")).answer().await;
            answer.problem(400, "bad_request");
            named(&answer);
            let stream = Stream::of(with(get(&server, "/topics/a?transport=sse"))).await;
            assert_eq!(stream.headers["access-control-allow-origin"], origin);
        }
    }
}

#[tokio::test]
async fn without_an_origin_no_cors_header_names_one() {
    let server = server().await;
    let answer = get(&server, "/topics/a").answer().await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, ""));
}

#[tokio::test]
async fn every_answer_varies_by_origin() {
    let server = server().await;
    for path in ["/topics/a", "/nowhere", "/topics/a..b", "/", "/stats"] {
        for headers in [&[][..], &[("origin", LISTED)]] {
            let mut request = get(&server, path);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let answer = request.answer().await;
            let varies = answer.headers.get_all("vary").iter().any(|name| name == "origin");
            assert!(varies, "{path} {headers:?}");
        }
    }
}

#[tokio::test]
async fn a_cross_site_request_without_an_origin_is_refused_unless_it_is_a_link() {
    let server = server().await;
    for site in ["cross-site", "same-site"] {
        assert_refused(&server, &[("sec-fetch-site", site)], "forbidden_origin").await;
        let no_link = [("sec-fetch-site", site), ("sec-fetch-mode", "cors")];
        assert_refused(&server, &no_link, "forbidden_origin").await;
        let link = |request: RequestBuilder| {
            request.header("sec-fetch-site", site).header("sec-fetch-mode", "navigate")
        };
        for path in ["/", "/topics/a?wait=0", "/stats"] {
            assert_eq!(link(get(&server, path)).answer().await.status, 200, "{site} {path}");
        }
        let form = link(post(&server, "/topics/a").body("x")).answer().await;
        form.problem(403, "forbidden_origin");
        let form = link(request(&server, Method::DELETE, "/topics/a")).answer().await;
        form.problem(403, "forbidden_origin");
    }
    for site in ["same-origin", "none"] {
        let answer = get(&server, "/topics/a?wait=0").header("sec-fetch-site", site).answer().await;
        assert_eq!(answer.status, 200, "{site}: {answer:?}");
    }
}

#[tokio::test]
async fn a_link_with_a_foreign_origin_is_still_foreign() {
    let server = server().await;
    let request = post(&server, "/topics/a").header("origin", "https://elsewhere.example").body("x");
    let form = request.header("sec-fetch-mode", "navigate").header("sec-fetch-site", "cross-site");
    form.answer().await.problem(403, "forbidden_origin");
}

#[tokio::test]
async fn a_write_or_a_websocket_with_a_cookie_needs_an_allowed_origin() {
    let server = server().await;
    let cookie = ("cookie", "rejoin_token=x");
    for request in [
        post(&server, "/topics/a").body("x"),
        post(&server, "/publish").header("content-type", "application/json").body("[]"),
        request(&server, Method::DELETE, "/topics/a"),
    ] {
        let copy = request.try_clone().expect("a body in memory");
        request.header(cookie.0, cookie.1).answer().await.problem(403, "forbidden_origin");
        let answer = copy.header(cookie.0, cookie.1).header("origin", LISTED).answer().await;
        assert!(answer.status < 300, "{answer:?}");
    }
    refusal(&server, Transport::WebSocket, "/topics/a", &[cookie]).await.problem(403, "forbidden_origin");
    let origin = server.http("");
    for origin in [LISTED, &origin] {
        let socket = Socket::open_with(&server, "/topics/a", &[cookie, ("origin", origin)]).await;
        assert_eq!(socket.opening["type"], "open", "{origin}");
    }
    // A same-origin EventSource sends no Origin.
    for transport in [Transport::Sse, Transport::Ndjson, Transport::Poll] {
        let reader = Reader::open_with(&server, transport, "topic=a", &[cookie]).await;
        assert!(transport == Transport::Poll || reader.opening()["type"] == "open", "{transport}");
    }
}

#[tokio::test]
async fn a_websocket_of_a_foreign_origin_is_never_opened() {
    let server = server().await;
    for path in ["/topics/a", "/events", "/topics/a..b", "/nowhere", "/topics/a?after=x"] {
        let mut request = server.ws(path).into_client_request().expect("a URL of our own making");
        let origin = "https://elsewhere.example".parse().expect("a header's value");
        request.headers_mut().insert("origin", origin);
        let error = within(path, tokio_tungstenite::connect_async(request)).await.expect_err("a refusal");
        let Error::Http(response) = error else { panic!("a response, and not {error:?}") };
        assert_eq!(response.status(), 403, "{path}");
    }
}

#[tokio::test]
async fn a_preflight_lists_what_is_allowed() {
    let server = server().await;
    let own = server.http("");
    for origin in [LISTED, &own] {
        for path in ["/topics/a", "/publish", "/events", "/stats"] {
            let preflight = request(&server, Method::OPTIONS, path)
                .header("origin", origin)
                .header("access-control-request-method", "POST")
                .header("access-control-request-headers", "content-type, idempotency-key");
            let answer = preflight.answer().await;
            assert_eq!((answer.status, answer.header("access-control-max-age")), (204, "600"), "{path}");
            assert_eq!(answer.header("access-control-allow-origin"), origin, "{path}");
            assert_eq!(answer.header("access-control-allow-credentials"), "true", "{path}");
            let methods = answer.header("access-control-allow-methods");
            assert_eq!(methods, "GET, HEAD, POST, PUT, DELETE");
            let headers = answer.header("access-control-allow-headers").to_ascii_lowercase();
            for name in [
                "authorization",
                "content-type",
                "content-encoding",
                "last-event-id",
                "idempotency-key",
                "if-match",
                "cache-control",
                "pragma",
                "x-requested-with",
                "traceparent",
                "tracestate",
                "baggage",
            ] {
                assert!(headers.split(',').any(|header| header.trim() == name), "{name}: {answer:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_name_rebound_to_this_address_is_refused() {
    let server = server().await;
    let port = server.addr.port();
    for host in [
        "rebound.example",
        &format!("rebound.example:{port}"),
        "localhost.rebound.example",
        "127.0.0.1.rebound.example",
        "[::1].rebound.example",
        "notlocalhost",
        "",
    ] {
        assert_refused(&server, &[("host", host)], "forbidden_host").await;
        // Even the origin of that name does not help: a rebound page has it.
        let origin = format!("http://{host}");
        assert_refused(&server, &[("host", host), ("origin", &origin)], "forbidden_host").await;
    }
}

#[tokio::test]
async fn an_address_a_loopback_name_and_the_host_of_an_allowed_origin_are_served() {
    let server = server().await;
    let port = server.addr.port();
    for host in [
        "localhost",
        &format!("localhost:{port}"),
        "LOCALHOST",
        "rejoin.localhost",
        "127.0.0.1",
        "127.8.9.10",
        &format!("127.0.0.1:{port}"),
        "10.0.0.1",
        "[2001:db8::1]:80",
        "[::1]",
        &format!("[::1]:{port}"),
        "app.example",
    ] {
        let answer = get(&server, "/topics/a?wait=0").header("host", host).answer().await;
        assert_eq!(answer.status, 200, "{host}: {answer:?}");
        assert_eq!(answer.json()["messages"], Value::Array(Vec::new()));
    }
}

#[tokio::test]
async fn an_open_server_looks_at_the_name_on_every_address() {
    let server = Server::with(|config| {
        config.listen = vec!["192.0.2.1:7070".parse().expect("an address")];
        config.insecure_open = true;
        config.allowed_origins = vec!["https://push.example".parse().expect("an origin")];
        config.allowed_hosts = vec![Host::parse_name("live.example").expect("a name")];
    })
    .await;
    let request = |host: &'static str| get(&server, "/topics/a?wait=0").header("host", host);
    assert_eq!(request("push.example").answer().await.status, 200);
    request("rebound.example").answer().await.problem(403, "forbidden_host");
    for known in ["192.0.2.1:7070", "live.example", "LIVE.example:80"] {
        assert_eq!(request(known).answer().await.status, 200, "{known}");
    }
    let own = request("push.example").header("origin", "https://push.example").answer().await;
    assert_eq!(own.status, 200, "the scheme is not compared, since a proxy may end TLS: {own:?}");
    let foreign = request("push.example").header("origin", "https://elsewhere.example").answer().await;
    foreign.problem(403, "forbidden_origin");
}

/// The web views of apps and the pages of browser extensions have origins with schemes of their own.
#[tokio::test]
async fn the_origin_of_an_app_and_one_wildcard_label_can_be_listed() {
    let listed = ["capacitor://localhost", "chrome-extension://abcdefgh", "https://*.example.com"];
    let server = Server::with(|config| {
        config.allowed_origins = listed.map(|text| text.parse().expect("an origin")).to_vec();
    })
    .await;
    for origin in ["capacitor://localhost", "chrome-extension://abcdefgh", "https://shop.example.com"] {
        let answer = post(&server, "/topics/a").header("origin", origin).body("x").answer().await;
        assert_eq!(
            (answer.status, answer.header("access-control-allow-origin")),
            (201, origin),
            "{answer:?}"
        );
        let socket = Socket::open_with(&server, "/topics/a", &[("origin", origin)]).await;
        assert_eq!(socket.opening["type"], "open", "{origin}");
    }
    for origin in [
        "ionic://localhost",
        "capacitor://localhost:1",
        "chrome-extension://other",
        "https://example.com",
        "https://a.shop.example.com",
        "http://shop.example.com",
        "https://*.example.com",
        "https://shop.example.com.elsewhere.example",
    ] {
        let answer = post(&server, "/topics/a").header("origin", origin).body("x").answer().await;
        answer.problem(403, "forbidden_origin");
    }
    // The scheme of the server's own origin is not compared, and that of an app is never the server's own.
    let own = Server::start().await;
    let request =
        get(&own, "/topics/a?wait=0").header("host", "localhost").header("origin", "capacitor://localhost");
    request.answer().await.problem(403, "forbidden_origin");
    let host = get(&server, "/topics/a?wait=0").header("host", "shop.example.com").answer().await;
    assert_eq!(host.status, 200, "{host:?}");
    get(&server, "/topics/a?wait=0").header("host", "abcdefgh").answer().await.problem(403, "forbidden_host");
}

/// A proxy may have checked the other one.
#[tokio::test]
async fn a_request_with_two_origins_is_malformed() {
    let server = server().await;
    for origins in [[LISTED, LISTED], [LISTED, "https://elsewhere.example"]] {
        for request in requests(&server) {
            let request = request.header("origin", origins[0]).header("origin", origins[1]);
            request.answer().await.problem(400, "bad_request");
        }
    }
}

#[tokio::test]
async fn no_browser_guesses_the_type_of_an_answer() {
    let server = server().await;
    for request in requests(&server) {
        // A stream has no end.
        let answer = within("an answer", request.send()).await.expect("an answer");
        let option = answer.headers().get("x-content-type-options").map(|value| value.as_bytes().to_vec());
        assert_eq!(option.as_deref(), Some(b"nosniff".as_slice()), "{}", answer.url());
    }
    let refused = get(&server, "/topics/a").header("origin", "null").answer().await;
    assert_eq!(refused.header("x-content-type-options"), "nosniff");
}
