//! Answers in gzip: streams whose frames can be read at once, and polls. Groups write them too.

use std::time::Duration;

use flate2::{Decompress, FlushDecompress, Status};
use futures_util::{StreamExt, future::join_all, stream::BoxStream};
use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::{
    ask::{Answer, Ask, get, post, publish, request, text, within},
    deflated::{DEFLATE, RawSocket, next_message},
    metrics::scrape,
    reader::transport_headers,
    support::{Server, client::Transport},
};

const GZIP: (&str, &str) = ("accept-encoding", "gzip");

/// A stream in gzip, of which nothing is held back.
struct Gunzip {
    chunks: BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    /// It also checks the sum at the end.
    state: Decompress,
    plain: String,
    received: usize,
    has_ended: bool,
}

impl Gunzip {
    async fn open(server: &Server, transport: Transport, path: &str) -> Self {
        let request = get(server, path).header(GZIP.0, GZIP.1);
        let request =
            transport_headers(transport).iter().fold(request, |it, (name, value)| it.header(*name, *value));
        Self::of(within("a head", request.send()).await.expect("an answer"))
    }

    fn of(response: Response) -> Self {
        assert_eq!(response.headers()["content-encoding"], "gzip");
        assert!(response.headers().get_all("vary").iter().any(|name| name == "accept-encoding"));
        let (plain, received, has_ended) = Default::default();
        let chunks = response.bytes_stream().boxed();
        Self { chunks, state: Decompress::new_gzip(15), plain, received, has_ended }
    }

    /// Reads one chunk more. False if there is none.
    async fn read(&mut self) -> bool {
        let Some(chunk) = within("a chunk", self.chunks.next()).await else { return false };
        let chunk = chunk.expect("it is not cut");
        self.received += chunk.len();
        let mut out = Vec::with_capacity(1 << 20);
        let status = self.state.decompress_vec(&chunk, &mut out, FlushDecompress::Sync).expect("gzip");
        assert!(out.len() < out.capacity(), "all of it");
        self.has_ended = status == Status::StreamEnd;
        self.plain += str::from_utf8(&out).expect("whole frames");
        true
    }

    async fn until(&mut self, needle: &str) {
        while !self.plain.contains(needle) {
            assert!(self.read().await, "{needle}: {}", self.plain);
        }
    }

    /// Reads to the end, which has the right sum.
    async fn whole(mut self) -> String {
        while self.read().await {}
        assert!(self.has_ended, "the end of gzip is missing");
        self.plain
    }
}

async fn all_compressed() -> Server {
    Server::with(|config| config.compress = rejoin::config::Compress::All).await
}

pub fn long(mark: &str) -> String {
    format!("{mark} {}", "these words come again and again; ".repeat(20))
}

async fn plain_stream(server: &Server, transport: Transport, path: &str) -> Response {
    let request = get(server, path);
    let request =
        transport_headers(transport).iter().fold(request, |it, (name, value)| it.header(*name, *value));
    within("a head", request.send()).await.expect("an answer")
}

#[tokio::test]
async fn each_frame_of_a_stream_in_gzip_can_be_read_before_the_next_one_comes() {
    let server = all_compressed().await;
    for (transport, path) in [
        (Transport::Sse, "/topics/a"),
        (Transport::Sse, "/events?topic=a"),
        (Transport::Ndjson, "/events?topic=a"),
    ] {
        let mut reader = Gunzip::open(&server, transport, path).await;
        reader.until("heartbeat_ms").await;
        for size in ["short", "long"] {
            let mark = format!("{size}-{transport}-{path}");
            publish(&server, "a", if size == "short" { mark.clone() } else { long(&mark) }).await;
            reader.until(&mark).await;
            assert!(reader.plain.ends_with('\n'), "the frame is whole");
        }
        assert!(reader.received < reader.plain.len(), "{}", reader.received);
    }
}

/// The same bytes for all of them, which only a group writes.
#[tokio::test]
async fn groups_write_to_readers_of_compressed_streams_and_sockets() {
    const READERS: usize = 8;
    let server = all_compressed().await;
    let by_groups = async |transport: &str| {
        scrape(&server).await[&format!("rejoin_deliveries_by_groups_total{{transport=\"{transport}\"}}")]
    };
    for transport in [Transport::Sse, Transport::Ndjson] {
        let name = transport.to_string();
        let mut readers = Vec::new();
        for _ in 0..READERS {
            let mut reader = Gunzip::open(&server, transport, "/events?topic=a").await;
            reader.until("heartbeat_ms").await;
            readers.push(reader);
        }
        for round in 0.. {
            let mark = format!("{name}-{round}");
            publish(&server, "a", long(&mark)).await;
            for reader in &mut readers {
                reader.until(&mark).await;
            }
            // Readers park when they have nothing else to do, so the first ones may be written to alone.
            if by_groups(&name).await >= READERS as f64 {
                break;
            }
            assert!(round < 100, "no group has written");
        }
    }
    let mut sockets = Vec::new();
    for _ in 0..READERS {
        sockets.push(RawSocket::open(&server, "/topics/b", DEFLATE).await.0);
    }
    for round in 0.. {
        publish(&server, "b", long(&round.to_string())).await;
        for socket in &mut sockets {
            assert!(next_message(socket).await.0, "compressed");
        }
        if by_groups("websocket").await >= READERS as f64 {
            break;
        }
        assert!(round < 100, "no group has written");
    }
}

/// Members of a group are given pieces that were made once, and the sum of the whole stream is each one's own.
#[tokio::test]
async fn every_reader_ends_with_the_sum_of_what_it_alone_was_given() {
    let server = Server::with(|config| {
        config.compress = rejoin::config::Compress::All;
        config.heartbeat = Duration::from_millis(50);
        config.drain_grace = Duration::from_secs(2);
    })
    .await;
    let mut readers = Vec::new();
    for round in 0..12 {
        for transport in [Transport::Sse, Transport::Ndjson] {
            let mut reader = Gunzip::open(&server, transport, "/events?topic=a").await;
            reader.until("heartbeat_ms").await;
            readers.push((reader, round));
        }
        let name = text(&json!(format!("m{round:02}")));
        publish(&server, "a", if round % 2 == 0 { long(&name) } else { name }).await;
        // Heartbeats let the readers leave their groups and join again.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let plain = plain_stream(&server, Transport::Ndjson, "/events?topic=a&after=0").await;
    let reading =
        join_all(readers.into_iter().map(|(reader, round)| async move { (reader.whole().await, round) }));
    let (all, plain, _) = tokio::join!(reading, plain.text(), server.stop());
    let plain = plain.expect("it is whole");
    for (whole, round) in all {
        for number in 0..12 {
            let mark = format!("\"m{number:02}");
            assert_eq!(whole.matches(&mark).count(), usize::from(number >= round), "{round}: {whole}");
            assert_eq!(plain.matches(&mark).count(), 1);
        }
        assert!(whole.contains("\"closing\""), "{whole}");
    }
}

#[tokio::test]
async fn a_client_that_does_not_ask_for_gzip_gets_plain_bytes_and_so_does_every_client_without_compression() {
    let server = all_compressed().await;
    for coding in [None, Some("br"), Some("gzip;q=0")] {
        let request = get(&server, "/topics/a").header("accept", "text/event-stream");
        let request = coding.into_iter().fold(request, |it, coding| it.header("accept-encoding", coding));
        let answer = within("a head", request.send()).await.expect("an answer");
        assert!(!answer.headers().contains_key("content-encoding"), "{coding:?}");
        assert!(answer.headers().get_all("vary").iter().any(|name| name == "accept-encoding"));
    }
    let auto = Server::start().await;
    let request = get(&auto, "/topics/a").header("accept", "text/event-stream").header(GZIP.0, GZIP.1);
    let answer = within("a head", request.send()).await.expect("an answer");
    assert!(!answer.headers().contains_key("content-encoding"), "a stream, and it was not asked for");
    let off = Server::with(|config| config.compress = rejoin::config::Compress::Off).await;
    publish(&off, "a", long("x")).await;
    publish(&off, "a", long("y")).await;
    for accept in ["text/event-stream", "application/json"] {
        let request = get(&off, "/topics/a?after=0").header("accept", accept).header(GZIP.0, GZIP.1);
        let answer = within("a head", request.send()).await.expect("an answer");
        assert!(!answer.headers().contains_key("content-encoding"), "{accept}");
    }
}

/// Decodes an answer that came in gzip.
fn gunzip(answer: &Answer) -> Value {
    assert_eq!(answer.header("content-encoding"), "gzip", "{answer:?}");
    let mut plain = Vec::with_capacity(4 << 20);
    let status = Decompress::new_gzip(15).decompress_vec(&answer.body, &mut plain, FlushDecompress::Finish);
    assert_eq!(status.expect("gzip"), Status::StreamEnd, "its end and its sum");
    serde_json::from_slice(&plain).expect("JSON")
}

async fn delivered_bytes(server: &Server) -> f64 {
    scrape(server).await["rejoin_delivered_bytes_total{transport=\"poll\"}"]
}

#[tokio::test]
async fn a_poll_in_gzip_has_the_same_answer_in_fewer_bytes() {
    let server = Server::start().await;
    let noise: String =
        (0_u64..3_000).map(|n| format!("{:x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 8)).collect();
    for number in 0..200 {
        let body = [format!("short {number}"), long(&number.to_string()), noise.clone()][number % 3].clone();
        publish(&server, "a", body).await;
    }
    let id = text(&get(&server, "/topics/a?after=0&limit=1").answer().await.json()["cursor"]);
    for path in [
        "/topics/a?after=0".to_owned(),
        "/topics/a?after=0&limit=1000".to_owned(),
        "/topics/a?last=2".to_owned(),
        format!("/topics/a?before={}&limit=50", 1 + id.parse::<u64>().expect("an id") + (1 << 40)),
    ] {
        let plain = get(&server, &path).answer().await;
        let answer = get(&server, &path).header(GZIP.0, GZIP.1).answer().await;
        assert_eq!(gunzip(&answer), plain.json(), "{path}");
        assert_eq!(answer.header("etag"), plain.header("etag"), "{path}");
        assert!(answer.body.len() < plain.body.len(), "{path}");
        let mut counted = delivered_bytes(&server).await;
        for answer in [&plain, &answer] {
            let coding = answer.header("content-encoding");
            get(&server, &path)
                .header(GZIP.0, if coding.is_empty() { "identity" } else { coding })
                .answer()
                .await;
            let before = std::mem::replace(&mut counted, delivered_bytes(&server).await);
            assert_eq!(
                counted - before,
                answer.body.len() as f64,
                "{path}: the bytes as they are on the wire"
            );
        }
        assert!(plain.headers.get_all("vary").iter().any(|name| name == "accept-encoding"), "{path}");
    }
    // It has too little to save.
    publish(&server, "b", "short").await;
    let short = get(&server, "/topics/b?after=0").header(GZIP.0, GZIP.1).answer().await;
    assert_eq!((short.header("content-encoding"), short.status), ("", 200), "{short:?}");
    assert_eq!(short.json()["messages"][0]["data"], "short");
}

#[tokio::test]
async fn a_poll_that_is_held_is_answered_in_gzip_too() {
    let server = Server::start().await;
    let path = "/topics/a?after=0&wait=30";
    let held = join_all((0..4).map(|_| get(&server, path).header(GZIP.0, GZIP.1).answer()));
    let body = long("x").repeat(3);
    let publishing = async {
        crate::ask::until_served(&server, 4).await;
        post(&server, "/topics/a").body(body.clone()).answer().await
    };
    let (answers, _) = tokio::join!(within("answers", held), publishing);
    for answer in answers {
        assert_eq!(gunzip(&answer)["messages"][0]["data"], body);
    }
}

#[tokio::test]
async fn head_names_the_coding_that_a_stream_would_have() {
    let server = all_compressed().await;
    let asked = request(&server, Method::HEAD, "/topics/a").header("accept", "text/event-stream");
    let answer = asked.header(GZIP.0, GZIP.1).answer().await;
    assert_eq!(answer.header("content-encoding"), "gzip", "{answer:?}");
    assert!(answer.body.is_empty());
}
