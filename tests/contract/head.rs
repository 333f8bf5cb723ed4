//! `HEAD`: the status and the headers of `GET`, at once and without a body.

use reqwest::{Method, RequestBuilder};

use crate::{
    ask::{Answer, Ask, get, publish, request, until_served},
    reader::{Stream, transport_headers},
    support::{Server, client::Transport},
};

fn head(server: &Server, path: &str) -> RequestBuilder {
    request(server, Method::HEAD, path)
}

/// The headers that do not change from one answer to the next.
fn headers(answer: &Answer) -> Vec<(String, String)> {
    let text = |value: &reqwest::header::HeaderValue| value.to_str().expect("ASCII").to_owned();
    let all = answer.headers.iter().map(|(name, value)| (name.to_string(), text(value)));
    let mut kept: Vec<_> = all.filter(|(name, _)| name != "date").collect();
    kept.sort();
    kept
}

#[tokio::test]
async fn head_has_the_status_and_headers_of_get_and_no_body() {
    let server = Server::start().await;
    publish(&server, "a", "x").await;
    for path in [
        "/",
        "/rejoin.js",
        "/console/main.js",
        "/rejoin-presence.js",
        "/rejoin-shared.js",
        "/openapi.json",
        "/health/live",
        "/health/ready",
        "/topics",
        "/events",
        "/topics/a..b",
        "/topics/a?last=x",
        "/publish",
        "/nowhere",
    ] {
        let (asked, got) = (head(&server, path).answer().await, get(&server, path).answer().await);
        assert_eq!((asked.status, asked.text()), (got.status, ""), "{path}");
        assert_eq!(headers(&asked), headers(&got), "{path}");
    }
    for path in [
        "/topics/a",
        "/topics/a?before=5",
        "/topics/a?after=0",
        "/topics/a?after=0&wait=60",
        "/events?topic=a&last=1",
    ] {
        let (asked, got) = (head(&server, path).answer().await, get(&server, path).answer().await);
        assert_eq!((asked.status, asked.text()), (got.status, ""), "{path}");
        let mut expected = headers(&got);
        // Only reading tells these.
        expected.retain(|(name, _)| name != "etag" && name != "content-length");
        assert_eq!(headers(&asked), expected, "{path}");
    }
    for path in ["/stats", "/metrics"] {
        // Their length changes with the time.
        let answer = head(&server, path).answer().await;
        assert_eq!((answer.status, answer.text()), (200, ""), "{path}");
    }
    let refused = request(&server, Method::PUT, "/topics/a").answer().await;
    assert_eq!(refused.header("allow"), "GET, HEAD, POST, DELETE");
}

#[tokio::test]
async fn head_of_a_subscription_is_answered_at_once_and_takes_no_place() {
    let server = Server::with(|config| config.max_connections = 1).await;
    let id = publish(&server, "a", "x").await;
    for path in ["/topics/a", "/events?topic=a", "/topics/a?format=envelope"] {
        for transport in [Transport::Sse, Transport::Ndjson] {
            let with = |request: RequestBuilder| {
                transport_headers(transport)
                    .iter()
                    .fold(request, |request, (name, value)| request.header(*name, *value))
            };
            let asked = with(head(&server, path)).answer().await;
            let opened = Stream::of(with(get(&server, path))).await;
            assert_eq!((asked.status, asked.text()), (200, ""), "{path}");
            for name in ["content-type", "cache-control", "x-accel-buffering", "vary", "content-length"] {
                assert_eq!(asked.headers.get(name), opened.headers.get(name), "{name} of {path}");
            }
        }
        // The streams above have left.
        until_served(&server, 0).await;
        // A poll with a start, and with nothing to answer, would be held for a minute.
        let poll = format!("{path}{}after={id}&wait=60", if path.contains('?') { '&' } else { '?' });
        let answer = head(&server, &poll).answer().await;
        assert_eq!((answer.status, answer.headers.get("etag")), (200, None), "{path}");
    }
    let metrics = get(&server, "/metrics").answer().await;
    let polled =
        metrics.text().lines().find(|line| line.starts_with("rejoin_deliveries_total{transport=\"poll\"}"));
    assert_eq!(polled, Some("rejoin_deliveries_total{transport=\"poll\"} 0"), "nothing was read");
    until_served(&server, 0).await;
}
