//! HTTP/2 without TLS, by prior knowledge: many streams on one connection, and WebSocket on one of them.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use h2::{
    RecvStream, SendStream,
    client::{Builder, SendRequest},
    ext::Protocol,
};
use http::{Method, Request, Response, StatusCode, Version};
use rejoin::Drained;
use serde_json::{Value, json};
use sse_stream::{Sse, SseByteStream};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};

use crate::{
    ask::{publish, retained, until_served, within},
    support::Server,
};

/// One connection with this window for each stream, and one for all its streams together.
pub struct Connection {
    pub client: SendRequest<Bytes>,
    authority: String,
    pub driver: JoinHandle<Result<(), h2::Error>>,
}

const STREAM_WINDOW: u32 = 64 << 10;

impl Connection {
    async fn open(server: &Server) -> Self {
        Self::with_window(server, STREAM_WINDOW).await
    }

    pub async fn with_window(server: &Server, window: u32) -> Self {
        let wire = TcpStream::connect(server.addr).await.expect("a connection");
        let mut builder = Builder::new();
        builder.initial_window_size(window).initial_connection_window_size(64 << 20);
        let (client, mut connection) = within("HTTP/2", builder.handshake(wire)).await.expect("HTTP/2");
        let mut pings = connection.ping_pong().expect("the first to ask");
        let driver = tokio::spawn(connection);
        // The server has sent its settings before it answers a ping.
        within("a pong", pings.ping(h2::Ping::opaque())).await.expect("a pong");
        Self { client, authority: server.addr.to_string(), driver }
    }

    pub async fn send(
        &mut self,
        request: http::request::Builder,
        ends: bool,
    ) -> (Response<RecvStream>, SendStream<Bytes>) {
        let request = request.version(Version::HTTP_2).body(()).expect("a request");
        let mut client =
            within("room for a stream", self.client.clone().ready()).await.expect("a connection");
        let (response, body) = client.send_request(request, ends).expect("a request");
        (within("a response", response).await.expect("a response"), body)
    }

    pub async fn get(&mut self, path: &str, accept: &str) -> Response<RecvStream> {
        let uri = format!("http://{}{path}", self.authority);
        self.send(Request::get(uri).header("accept", accept), true).await.0
    }

    async fn events(&mut self, path: &str) -> Events {
        let response = self.get(path, "text/event-stream").await;
        assert_eq!(response.status(), StatusCode::OK);
        Events { body: response.into_body(), bytes: BytesMut::new() }
    }
}

/// Server-Sent Events on one stream.
struct Events {
    body: RecvStream,
    bytes: BytesMut,
}

impl Events {
    /// The next event, or the way in which the stream ended.
    async fn try_next(&mut self) -> Result<Sse, Option<h2::Error>> {
        loop {
            if let Some(end) = self.bytes.windows(2).position(|two| two == b"\n\n") {
                let block = self.bytes.split_to(end + 2).freeze();
                let block = futures_util::stream::iter([Ok::<_, std::io::Error>(block)]);
                let mut events = std::pin::pin!(SseByteStream::new(block));
                return Ok(events.next().await.expect("an event").expect("a well-formed one"));
            }
            match within("data", self.body.data()).await {
                Some(Ok(data)) => {
                    self.body.flow_control().release_capacity(data.len()).expect("the received bytes");
                    self.bytes.extend_from_slice(&data);
                }
                Some(Err(error)) => return Err(Some(error)),
                None => return Err(None),
            }
        }
    }

    async fn next(&mut self) -> Sse {
        self.try_next().await.expect("an event")
    }
}

/// Its kernel, or a proxy, acknowledges all that is sent, and a quiet stream sends little.
#[tokio::test]
async fn a_client_that_hangs_answers_no_ping_and_loses_its_place() {
    let server = Server::with(|config| {
        config.heartbeat = Duration::from_millis(100);
        config.write_timeout = Duration::from_secs(1);
    })
    .await;
    let wire = TcpStream::connect(server.addr).await.expect("a connection");
    let (mut client, connection) = h2::client::handshake(wire).await.expect("HTTP/2");
    let (hang, is_hanging) = tokio::sync::oneshot::channel::<()>();
    let client_side = tokio::spawn(async move {
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            ended = &mut connection => panic!("it ended: {ended:?}"),
            _ = is_hanging => std::future::pending::<()>().await,
        }
    });
    let uri = format!("http://{}/topics/quiet", server.addr);
    let request = Request::get(uri).version(Version::HTTP_2).header("accept", "text/event-stream");
    let (response, _) = client.send_request(request.body(()).expect("a request"), true).expect("sent");
    let _response = within("a response", response).await.expect("a response");
    // It answers several pings, and stays.
    tokio::time::sleep(Duration::from_secs(3)).await;
    until_served(&server, 1).await;
    hang.send(()).expect("it runs");
    until_served(&server, 0).await;
    client_side.abort();
}

#[tokio::test]
async fn one_connection_carries_hundreds_of_event_streams() {
    let server = Server::start().await;
    let mut connection = Connection::open(&server).await;
    let mut streams = Vec::new();
    for number in 0..250 {
        let mut events = connection.events(&format!("/events?topic=t{}&topic=all", number % 5)).await;
        assert_eq!(events.next().await.event.as_deref(), Some("rejoin.open"), "{number}");
        streams.push(events);
    }
    until_served(&server, 250).await;
    let own = {
        let mut ids = Vec::new();
        for topic in 0..5 {
            ids.push(publish(&server, &format!("t{topic}"), "x").await);
        }
        ids
    };
    let all = publish(&server, "all", "x").await;
    for (number, events) in streams.iter_mut().enumerate() {
        assert_eq!(events.next().await.id.as_deref(), Some(own[number % 5].as_str()), "{number}");
        assert_eq!(events.next().await.id.as_deref(), Some(all.as_str()), "{number}");
    }
    drop(streams);
    until_served(&server, 0).await;
}

#[tokio::test]
async fn a_stream_that_is_not_read_stalls_and_ends_alone() {
    let server = Server::with(|config| {
        config.write_timeout = Duration::from_secs(1);
        config.retain_bytes = 64 << 20;
    })
    .await;
    let mut connection = Connection::open(&server).await;
    let mut unread = connection.events("/topics/a").await;
    let mut others = Vec::new();
    for _ in 0..3 {
        let mut events = connection.events("/topics/a").await;
        events.next().await;
        others.push(events);
    }
    // Far more than the window of the unread stream.
    for _ in 0..40 {
        let id = publish(&server, "a", "x".repeat(20_000)).await;
        for events in &mut others {
            assert_eq!(events.next().await.id.as_deref(), Some(id.as_str()));
        }
    }
    until_served(&server, 3).await;
    // The bytes in its window had arrived; then it was reset.
    let end = loop {
        if let Err(end) = unread.try_next().await {
            break end;
        }
    };
    assert!(end.is_some_and(|error| error.is_reset()), "a reset");
    let id = publish(&server, "a", "the other streams stay open").await;
    for events in &mut others {
        assert_eq!(events.next().await.id.as_deref(), Some(id.as_str()));
    }
}

#[tokio::test]
async fn a_websocket_opens_by_extended_connect() {
    let server = Server::start().await;
    let mut connection = Connection::open(&server).await;
    assert!(connection.client.is_extended_connect_protocol_enabled(), "RFC 8441 §3");
    let mut socket = connection.websocket("/topics/a", &[("sec-websocket-protocol", "rejoin.v1")]).await;
    assert_eq!(socket.response.status(), StatusCode::OK);
    assert_eq!(socket.response.headers()["sec-websocket-protocol"], "rejoin.v1");
    assert_eq!(socket.next().await["type"], "open");
    let id = publish(&server, "a", "x").await;
    let expected = json!({"type": "message", "topic": "a", "id": id, "data": "x"});
    assert_eq!(socket.next().await, expected);
    socket.send(json!({"type": "ping", "ref": 1})).await;
    assert_eq!(socket.next().await, json!({"type": "pong", "ref": 1}));
    let large = "x".repeat(200_000);
    publish(&server, "a", large.clone()).await;
    assert_eq!(socket.next().await["data"], large, "larger than the stream's window");

    // On the same connection.
    let mut events = connection.events("/topics/a").await;
    events.next().await;
    let id = publish(&server, "a", "y").await;
    assert_eq!(events.next().await.id.as_deref(), Some(id.as_str()));
    assert_eq!(socket.next().await["id"], id);
}

/// A WebSocket on one stream of the connection, spoken by `tungstenite`.
struct Socket {
    response: Response<()>,
    stream: WebSocketStream<DuplexStream>,
}

impl Connection {
    async fn websocket(&mut self, path: &str, headers: &[(&str, &str)]) -> Socket {
        let uri = format!("http://{}{path}", self.authority);
        let mut request = Request::builder().method(Method::CONNECT).uri(uri);
        request = request.extension(Protocol::from_static("websocket")).header("sec-websocket-version", "13");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (response, sending) = self.send(request, false).await;
        let (head, receiving) = response.into_parts();
        let (near, far) = tokio::io::duplex(64 << 10);
        tokio::spawn(carry(far, receiving, sending));
        let stream = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
        Socket { response: Response::from_parts(head, ()), stream }
    }
}

/// Carries bytes between one end of a pipe and the two halves of a stream.
async fn carry(pipe: DuplexStream, mut receiving: RecvStream, mut sending: SendStream<Bytes>) {
    let (mut from_pipe, mut to_pipe) = tokio::io::split(pipe);
    let receive = async {
        while let Some(Ok(data)) = receiving.data().await {
            receiving.flow_control().release_capacity(data.len()).expect("the received bytes");
            if to_pipe.write_all(&data).await.is_err() {
                return;
            }
        }
        to_pipe.shutdown().await.ok();
    };
    let send = async {
        let mut bytes = BytesMut::new();
        while let Ok(1..) = from_pipe.read_buf(&mut bytes).await {
            if sending.send_data(bytes.split().freeze(), false).is_err() {
                return;
            }
        }
        sending.send_data(Bytes::new(), true).ok();
    };
    tokio::join!(receive, send);
}

impl Socket {
    async fn send(&mut self, command: Value) {
        let message = Message::text(command.to_string());
        within("the socket takes a message", self.stream.send(message)).await.expect("an open socket");
    }

    async fn next_message(&mut self) -> Message {
        within("a WebSocket message", self.stream.next()).await.expect("no end").expect("no error")
    }

    async fn next(&mut self) -> Value {
        let message = self.next_message().await;
        let Message::Text(json) = &message else { panic!("a text frame, and not {message:?}") };
        serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}"))
    }
}

#[tokio::test]
async fn a_websocket_by_extended_connect_is_refused_like_any_other() {
    let server = Server::direct(|_| {}).await;
    let mut connection = Connection::open(&server).await;
    let origin = server.http("");
    let mut seen = connection.websocket("/topics/a..b", &[("origin", &origin)]).await;
    assert_eq!(seen.response.status(), StatusCode::OK, "a page could not see another status");
    let error = seen.next().await;
    assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!("bad_request")), "{error}");
    let Message::Close(Some(close)) = seen.next_message().await else { panic!("a close") };
    assert_eq!(u16::from(close.code), 4000);

    let real = connection.websocket("/topics/a..b", &[]).await;
    assert_eq!(real.response.status(), StatusCode::BAD_REQUEST);
    let foreign = connection.websocket("/topics/a", &[("origin", "https://elsewhere.example")]).await;
    assert_eq!(foreign.response.status(), StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn the_authority_is_checked_as_the_host_is() {
    let server = Server::start().await;
    let mut connection = Connection::open(&server).await;
    connection.authority = "rebound.example".to_owned();
    for accept in ["text/event-stream", "application/json"] {
        let response = connection.get("/topics/a", accept).await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN, "{accept}");
    }
    let socket = connection.websocket("/topics/a", &[]).await;
    assert_eq!(socket.response.status(), StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_drain_tells_every_stream_and_ends_the_connection() {
    let server = Server::start().await;
    let mut connection = Connection::open(&server).await;
    let mut events = connection.events("/topics/a").await;
    let mut socket = connection.websocket("/topics/a", &[]).await;
    events.next().await;
    socket.next().await;
    let id = publish(&server, "a", "x").await;
    server.shutdown.drain();
    assert_eq!(events.next().await.id.as_deref(), Some(id.as_str()));
    assert_eq!(events.next().await.event.as_deref(), Some("rejoin.closing"));
    assert!(matches!(events.try_next().await, Err(None)), "the end");
    assert_eq!(socket.next().await["id"], id);
    assert_eq!(socket.next().await["code"], "draining");
    let Message::Close(Some(close)) = socket.next_message().await else { panic!("a close") };
    assert_eq!(u16::from(close.code), 4200);
    // The client answers the close by reading on.
    while let Some(Ok(_)) = within("the end of the socket", socket.stream.next()).await {}
    drop(socket);
    within("the end of the connection", connection.driver).await.expect("no panic").expect("no error");
    within("the end of the server", server.stop()).await;
}

#[tokio::test]
async fn a_request_that_does_not_end_counts_as_still_open() {
    let server = Server::with(|config| config.drain_grace = Duration::from_millis(300)).await;
    let mut connection = Connection::open(&server).await;
    let uri = format!("http://{}/publish", connection.authority);
    let request = Request::post(uri).header("content-type", "application/x-ndjson").version(Version::HTTP_2);
    let (_, mut body) =
        connection.client.send_request(request.body(()).expect("a request"), false).expect("sent");
    body.send_data(Bytes::from_static(b"{\"topic\":\"a\",\"data\":1}\n"), false).expect("sent");
    // The server has begun the request.
    within("the message", async { while retained(&server, "a").await.is_empty() {} }).await;
    assert_eq!(within("the end", server.stop()).await, Drained::Partly(2), "the connection and its request");
}
