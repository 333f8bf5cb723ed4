//! Bodies with a `Content-Encoding`.

use async_compression::tokio::bufread::{GzipEncoder, ZlibEncoder};
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::{
    ask::{Ask, get, post, retained, text},
    support::Server,
};

async fn read(mut reader: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).await.expect("bytes in memory");
    bytes
}

async fn gzip(plain: impl AsRef<[u8]>) -> Vec<u8> {
    read(GzipEncoder::new(plain.as_ref())).await
}

async fn coded(coding: &str, plain: impl AsRef<[u8]>) -> Vec<u8> {
    match coding {
        "deflate" => read(ZlibEncoder::new(plain.as_ref())).await,
        _ => gzip(plain).await,
    }
}

fn with(request: RequestBuilder, content_type: &str, coding: &str, body: Vec<u8>) -> RequestBuilder {
    request.header("content-type", content_type).header("content-encoding", coding).body(body)
}

/// The compressed bytes were stored as the payload, and the coding was forgotten.
#[tokio::test]
async fn a_payload_with_a_content_coding_is_stored_decoded() {
    let server = Server::start().await;
    for coding in ["gzip", "deflate", "GZIP", "x-gzip", "identity, gzip"] {
        let topic = format!("a.{}", coding.replace([',', ' '], "-"));
        for (content_type, payload) in [("text/plain", "héllo"), ("application/json", "{\"a\":[1]}")] {
            let body = coded(coding, payload).await;
            let answer =
                with(post(&server, &format!("/topics/{topic}")), content_type, coding, body).answer().await;
            assert_eq!(answer.status, 201, "{coding}: {answer:?}");
        }
        assert_eq!(retained(&server, &topic).await, [json!("héllo"), json!({"a": [1]})], "{coding}");
    }
    let plain = with(post(&server, "/topics/b"), "text/plain", "identity", b"plain".to_vec()).answer().await;
    assert_eq!(plain.status, 201, "{plain:?}");
    assert_eq!(retained(&server, "b").await, ["plain"]);
}

#[tokio::test]
async fn the_bodies_of_publish_and_events_are_decoded() {
    let server = Server::start().await;
    let lines: String = (0..5_000).map(|n| format!("{{\"topic\":\"a\",\"data\":{n}}}\n")).collect();
    let array = format!("[{}]", lines.trim_end().replace('\n', ","));
    for coding in ["gzip", "deflate"] {
        for (content_type, plain) in [("application/x-ndjson", &lines), ("application/json", &array)] {
            let body = coded(coding, plain).await;
            let answer = with(post(&server, "/publish"), content_type, coding, body).answer().await;
            let receipts = answer.json();
            let receipts = receipts.as_array().expect("an array");
            assert_eq!((answer.status, receipts.len()), (200, 5_000), "{coding} {content_type}");
            assert!(receipts.iter().all(|receipt| receipt["id"].is_string()));
        }
        let body = coded(coding, r#"{"topics":["a"],"last":1,"wait":0}"#).await;
        let page = with(post(&server, "/events"), "application/json", coding, body).answer().await.json();
        assert_eq!(page["messages"][0]["data"], 4_999, "{page}");
    }
}

#[tokio::test]
async fn any_other_coding_is_refused_with_those_that_are_accepted() {
    let server = Server::start().await;
    let twice = gzip(gzip("x").await).await;
    for coding in
        ["br", "zstd", "compress", "gzip, gzip", "gzip, deflate", "gzip, br", "gzip;q=1", "nonsense", "é"]
    {
        for (path, content_type) in [
            ("/topics/a", "text/plain"),
            ("/publish", "application/x-ndjson"),
            ("/events", "application/json"),
        ] {
            let answer = with(post(&server, path), content_type, coding, twice.clone()).answer().await;
            answer.problem(415, "unsupported_media_type");
            assert_eq!(answer.header("accept-encoding"), "gzip, deflate", "{coding} {path}");
        }
    }
    let both =
        with(post(&server, "/topics/a"), "text/plain", "gzip", twice).header("content-encoding", "gzip");
    both.answer().await.problem(415, "unsupported_media_type");
    assert_eq!(retained(&server, "a").await, [] as [Value; 0]);
}

#[tokio::test]
async fn a_body_that_is_not_in_its_coding_is_refused_and_nothing_is_stored() {
    let server = Server::start().await;
    let good = gzip("a payload of some length, so that it can be cut").await;
    let cut = good[..good.len() - 9].to_vec();
    let followed = [good.clone(), b"more".to_vec()].concat();
    let raw = coded("deflate", "x").await[2..].to_vec();
    for (coding, body) in [
        ("gzip", b"not gzip".to_vec()),
        ("gzip", cut),
        ("gzip", followed),
        ("deflate", good),
        ("deflate", raw),
    ] {
        for (path, content_type) in [
            ("/topics/a", "text/plain"),
            ("/publish", "application/x-ndjson"),
            ("/events", "application/json"),
        ] {
            let answer = with(post(&server, path), content_type, coding, body.clone()).answer().await;
            let detail = text(&answer.problem(400, "bad_request")["detail"]);
            assert!(detail.contains("Content-Encoding"), "{coding} {path}: {detail}");
        }
    }
    assert_eq!(retained(&server, "a").await, [] as [Value; 0]);
    let members = [gzip("one ").await, gzip("two").await].concat();
    with(post(&server, "/topics/a"), "text/plain", "gzip", members).answer().await.id();
    assert_eq!(retained(&server, "a").await, ["one two"], "gzip may have several members");
}

/// Some kilobytes can be decoded to many megabytes.
#[tokio::test]
async fn a_decoded_body_has_the_limits_of_any_other() {
    let server = Server::with(|config| config.max_payload = 1_000).await;
    for (length, status) in [(1_000, 201), (1_001, 413), (50_000_000, 413)] {
        let body = gzip("x".repeat(length)).await;
        let answer = with(post(&server, "/topics/a"), "text/plain", "gzip", body).answer().await;
        assert_eq!(answer.status, status, "{length}: {answer:?}");
    }
    let body = gzip(" ".repeat(50_000_000)).await;
    let answer = with(post(&server, "/events"), "application/json", "gzip", body).answer().await;
    answer.problem(413, "too_large");
    // Incompressible bytes are longer with a coding than without.
    let noise: Vec<u8> = (0..1_000).map(|_| rand::random()).collect();
    let body = gzip(&noise).await;
    assert!(body.len() > noise.len());
    let answer = with(post(&server, "/topics/b"), "application/octet-stream", "gzip", body).answer().await;
    assert_eq!(answer.status, 201, "{answer:?}");

    let first = b"{\"topic\":\"c\",\"data\":1}\n";
    // Empty lines are no messages, so that no other limit counts.
    let empty = format!("{}\n", " ".repeat(1_023)).repeat(80 << 10);
    let bomb = gzip([&first[..], empty.as_bytes()].concat()).await;
    assert!(bomb.len() < 1 << 20, "{}", bomb.len());
    let answer = with(post(&server, "/publish"), "application/x-ndjson", "gzip", bomb).answer().await;
    let receipts = answer.json();
    assert_eq!((receipts[0]["topic"].as_str(), receipts[1]["code"].as_str()), (Some("c"), Some("too_large")));
    assert_eq!(receipts.as_array().map(Vec::len), Some(2), "{receipts}");
    assert_eq!(get(&server, "/health/live").answer().await.status, 200);
}
