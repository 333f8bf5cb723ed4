//! WebSocket: the handshake, the frames, and the protocol below them.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::{
    Error, Message,
    protocol::frame::{
        Frame,
        coding::{Data, OpCode},
    },
};

use crate::{
    ask::{
        Ask, delete_topic, get, now, post, publish, publish_as, request, retained, text, topic_path,
        until_served, within,
    },
    failing::FailingServer,
    reader::{Lines, Socket, refusal, transport_headers},
    support::{Server, client::Transport, program::Program},
};

#[tokio::test]
async fn the_subprotocol_is_echoed_only_if_it_was_offered() {
    let server = Server::start().await;
    for (offered, echoed) in [
        (&[][..], None),
        (&[("sec-websocket-protocol", "rejoin.v1")], Some("rejoin.v1")),
        (&[("sec-websocket-protocol", "bearer.x, rejoin.v1")], Some("rejoin.v1")),
        (&[("sec-websocket-protocol", "rejoin.v1,bearer.x")], Some("rejoin.v1")),
    ] {
        let mut socket = Socket::open_with(&server, "/topics/a", offered).await;
        let protocol = socket.response.headers().get("sec-websocket-protocol");
        assert_eq!(protocol.map(|value| value.to_str().expect("visible ASCII")), echoed, "{offered:?}");
        assert_eq!(socket.opening["type"], "open");
        let id = publish(&server, "a", "x").await;
        assert_eq!(socket.next().await["id"], id);
    }
}

/// A browser closes a WebSocket whose offer is not answered, and the server answers with no other subprotocol. The page
/// stayed empty, and neither it nor the log said why.
#[tokio::test]
async fn an_offer_without_the_subprotocol_is_refused_with_the_way_to_offer_both() {
    let program = Program::start(&["--jwt-secret", "secret"]).await;
    let own = program.server.http("");
    for offer in ["bearer.x", "bearer.", "bearer.x, chat", "rejoin.v2, bearer.x", "bearer, x", "Bearer"] {
        for path in ["/topics/a", "/events", "/nowhere"] {
            // A page gets a status too, since it could not get a close code.
            for headers in [
                &[("sec-websocket-protocol", offer)][..],
                &[("sec-websocket-protocol", offer), ("origin", &own)],
            ] {
                let refused = refusal(&program.server, Transport::WebSocket, path, headers).await;
                let problem = refused.problem(400, "bad_request");
                assert!(
                    text(&problem["detail"]).contains("[\"rejoin.v1\", \"bearer.\" + token]"),
                    "{problem}"
                );
            }
        }
    }
    let of_a_page = [("sec-websocket-protocol", "x, chat"), ("origin", &*own)];
    refusal(&program.server, Transport::WebSocket, "/topics/a", &of_a_page).await.problem(400, "bad_request");
    // A program may offer what it likes, since most libraries need no answer.
    let refused = refusal(&program.server, Transport::WebSocket, "/topics/a", &of_a_page[..1]).await;
    let problem = refused.problem(401, "unauthorized");
    assert!(text(&problem["detail"]).contains("[\"rejoin.v1\", \"bearer.\" + token]"), "{problem}");
    let log = program.terminate().await.log;
    let told = log.lines().filter(|line| line.contains("WARN") && line.contains("once a minute"));
    let told: Vec<_> = told.collect();
    assert!(told.len() == 1 && told[0].contains("\"client\":\"127.0.0.1\""), "{log}");
}

#[tokio::test]
async fn each_frame_is_a_text_with_one_object() {
    let server = Server::start().await;
    let mut socket = Socket::open(&server, "/topics/a").await;
    for _ in 0..100 {
        publish(&server, "a", "a\nb").await;
    }
    for _ in 0..100 {
        let Message::Text(json) = socket.next_data().await else { panic!("a text frame") };
        let frame: Value = serde_json::from_str(&json).expect("one object");
        assert_eq!(frame["data"], "a\nb");
        assert!(!json.contains('\n'), "{json:?}");
    }
}

#[tokio::test]
async fn a_payload_that_is_neither_json_nor_text_is_a_binary_frame() {
    let server = Server::start().await;
    let payload = b"\xff\n\n{\"type\":\"message\"}\n\0";
    let mut live = Socket::open(&server, "/topics/a").await;
    let request =
        post(&server, "/topics/a?event=snap").header("content-type", "image/png").body(&payload[..]);
    let id = request.answer().await.id();
    let expected = json!({
        "type": "message", "topic": "a", "id": id, "event": "snap", "content_type": "image/png",
        "encoding": "binary",
    });
    let mut late = Socket::open(&server, "/topics/a?after=0").await;
    for socket in [&mut live, &mut late] {
        assert_binary(&socket.next_data().await, &expected, payload);
    }

    let mut replayed = Socket::open(&server, "/events").await;
    replayed.send(json!({"type": "subscribe", "topic": "a", "after": "0"})).await;
    let mut expected = expected;
    expected["replay"] = json!(true);
    assert_binary(&replayed.next_data().await, &expected, payload);

    let id = publish_as(&server, "b", "application/octet-stream", "").await;
    let mut empty = Socket::open(&server, "/topics/b?after=0").await;
    let expected = json!({
        "type": "message", "topic": "b", "id": id, "content_type": "application/octet-stream",
        "encoding": "binary",
    });
    assert_binary(&empty.next_data().await, &expected, b"");
}

#[track_caller]
fn assert_binary(message: &Message, envelope: &Value, payload: &[u8]) {
    let Message::Binary(frame) = message else { panic!("a binary frame, and not {message:?}") };
    let end = frame.iter().position(|&byte| byte == b'\n').expect("a line feed");
    let found: Value = serde_json::from_slice(&frame[..end]).expect("an envelope before the line feed");
    assert_eq!(found, *envelope);
    assert_eq!(frame[end + 1..], *payload);
}

#[tokio::test]
async fn a_ping_is_answered_with_its_payload() {
    let server = Server::start().await;
    let mut socket = Socket::open(&server, "/topics/a").await;
    for payload in [&b""[..], b"x", &[7; 125]] {
        socket.send_message(Message::Ping(payload.into())).await;
        assert_eq!(socket.next_message().await, Message::Pong(payload.into()));
    }
}

/// The client may take long to end the TCP connection.
#[tokio::test]
async fn a_websocket_that_is_closed_is_no_connection_any_more() {
    let server = Server::start().await;
    for last in [Message::Close(None), Message::binary("x")] {
        let mut socket = Socket::open(&server, "/topics/a").await;
        let path = format!("/connections/{}", text(&socket.opening["connection"]));
        assert_eq!(request(&server, Method::GET, &path).answer().await.status, 200);
        socket.send_message(last).await;
        assert!(matches!(socket.next_message().await, Message::Close(_)));
        request(&server, Method::PUT, &format!("{path}/topics/b")).answer().await.problem(404, "not_found");
        request(&server, Method::GET, &path).answer().await.problem(404, "not_found");
        drop(socket);
    }
}

#[tokio::test]
async fn a_close_is_answered_and_ends_the_connection() {
    let server = Server::start().await;
    let mut socket = Socket::open(&server, "/topics/a").await;
    within("the close is sent", socket.stream.close(None)).await.expect("an open socket");
    let end = socket.ended().await;
    assert!(matches!(end, None | Some(Error::ConnectionClosed)), "{end:?}");
    drop(socket);
    until_served(&server, 0).await;
}

/// A mistake of a client, as bytes on the connection or as a message.
enum Wrong {
    Sends(Message),
    Writes(Vec<u8>),
}

fn raw(payload: Vec<u8>, opcode: OpCode) -> Wrong {
    Wrong::Sends(Message::Frame(Frame::message(payload, opcode, true)))
}

#[tokio::test]
async fn a_client_that_breaks_the_protocol_or_a_limit_closes_only_itself() {
    let server = Server::start().await;
    let mut bystander = Socket::open(&server, "/topics/a").await;
    let long = 64 << 20;
    let wrongs = [
        ("a binary frame", Wrong::Sends(Message::binary(&b"{}"[..])), 1003),
        ("a text that is not UTF-8", raw(b"\"\xff\"".to_vec(), OpCode::Data(Data::Text)), 1007),
        ("a text that is too long", Wrong::Sends(Message::text(" ".repeat(8 << 20))), 1009),
        ("a length that is too long", Wrong::Writes(masked_header(0x81, long)), 1009),
        ("a frame that is not masked", Wrong::Writes(b"\x81\x02{}".to_vec()), 1002),
        ("a reserved opcode", Wrong::Writes(b"\x83\x80\0\0\0\0".to_vec()), 1002),
        ("a reserved bit", Wrong::Writes(b"\xc1\x80\0\0\0\0".to_vec()), 1002),
        ("a continuation of nothing", Wrong::Writes(b"\x80\x80\0\0\0\0".to_vec()), 1002),
        ("a ping in pieces", Wrong::Writes(b"\x09\x80\0\0\0\0".to_vec()), 1002),
    ];
    for (what, wrong, expected) in wrongs {
        let mut socket = Socket::open(&server, "/topics/a").await;
        match wrong {
            // The server may close before it has read everything.
            Wrong::Sends(message) => _ = futures_util::SinkExt::send(&mut socket.stream, message).await,
            Wrong::Writes(bytes) => socket.wire().write_all(&bytes).await.expect("an open connection"),
        }
        let (code, reason) = socket.closed().await;
        assert_eq!(code, expected, "{what}");
        assert!(reason.contains(' '), "{what}: a developer reads no reason in {reason:?}");
        let id = publish(&server, "a", what).await;
        assert_eq!(bystander.next().await["id"], id, "{what}");
    }
}

/// The head of a client's frame with this length and the mask 0.
fn masked_header(first: u8, length: u64) -> Vec<u8> {
    [&[first, 0xff][..], &length.to_be_bytes(), &[0; 4]].concat()
}

#[tokio::test]
async fn a_command_in_pieces_with_a_ping_between_is_understood() {
    let server = Server::start().await;
    let mut socket = Socket::open(&server, "/events").await;
    for bytes in [&b"\x01\x89\0\0\0\0{\"type\":\""[..], b"\x89\x81\0\0\0\0p", b"\x80\x86\0\0\0\0ping\"}"] {
        socket.wire().write_all(bytes).await.expect("an open connection");
    }
    assert_eq!(socket.next_message().await, Message::Pong(b"p"[..].into()));
    assert_eq!(socket.next().await, json!({"type": "pong"}));
}

#[tokio::test]
async fn a_peer_silent_for_two_heartbeats_is_pinged_and_dropped() {
    let server = Server::with(|config| config.heartbeat = Duration::from_millis(100)).await;
    let mut socket = Socket::open(&server, "/events").await;
    // Reading directly from the connection, without tungstenite, so that nothing answers the ping.
    let mut bytes = Vec::new();
    within("the end of the connection", socket.wire().read_to_end(&mut bytes)).await.ok();
    assert!(bytes.windows(2).any(|two| two == [0x89, 0]), "a ping: {bytes:?}");
    until_served(&server, 0).await;
}

#[tokio::test]
async fn a_peer_that_answers_pings_stays() {
    let server = Server::with(|config| config.heartbeat = Duration::from_millis(100)).await;
    let mut socket = Socket::open(&server, "/topics/a").await;
    let mut pings = 0;
    while pings < 8 {
        pings += u32::from(socket.next_message().await.is_ping());
    }
    let id = publish(&server, "a", "x").await;
    let mut frame = socket.next().await;
    while frame["type"] == "cursor" {
        frame = socket.next().await;
    }
    assert_eq!(frame["id"], id);
}

#[tokio::test]
async fn an_upgrade_that_is_not_rfc_6455_version_13_is_426() {
    let server = Server::direct(|_| {}).await;
    let without = |name: &str, instead: Option<&'static str>| {
        let kept = transport_headers(Transport::WebSocket).iter().filter(|(known, _)| *known != name);
        kept.copied().chain(instead.map(|value| ("instead", value))).collect::<Vec<_>>()
    };
    let cases = [
        ("sec-websocket-version", None),
        ("sec-websocket-version", Some("8")),
        ("sec-websocket-version", Some("14")),
        ("sec-websocket-key", None),
        ("sec-websocket-key", Some("short")),
        ("connection", None),
    ];
    for (name, instead) in cases {
        for path in ["/topics/a", "/events", "/topics/a..b", "/topics", "/publish", "/stats", "/nowhere"] {
            for origin in [None, Some(("origin", server.http("")))] {
                let mut request = get(&server, path);
                for (known, value) in without(name, instead) {
                    request = request.header(if known == "instead" { name } else { known }, value);
                }
                if let Some((name, value)) = &origin {
                    request = request.header(*name, value);
                }
                let answer = request.answer().await;
                answer.problem(426, "upgrade_required");
                assert_eq!(answer.header("upgrade"), "websocket", "{name} {instead:?}");
                assert_eq!(answer.header("sec-websocket-version"), "13", "{name} {instead:?}");
                assert_eq!(answer.header("connection").to_ascii_lowercase(), "close", "{name} {instead:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_post_that_asks_for_an_upgrade_publishes_nothing() {
    let server = Server::start().await;
    for path in ["/topics/a", "/publish", "/events"] {
        let mut request = post(&server, path).body(r#"[{"topic":"a","data":1}]"#);
        for (name, value) in transport_headers(Transport::WebSocket) {
            request = request.header(*name, *value);
        }
        request.header("content-type", "application/json").answer().await.problem(426, "upgrade_required");
    }
    assert_eq!(retained(&server, "a").await, [] as [Value; 0]);
}

#[tokio::test]
async fn the_body_of_an_ancient_handshake_is_not_read_as_a_request() {
    let server = Server::start().await;
    let mut wire = tokio::net::TcpStream::connect(server.addr).await.expect("a connection");
    let smuggled = "DELETE /topics/a HTTP/1.1\r\nHost: localhost\r\n\r\n";
    publish(&server, "a", "kept").await;
    let ancient = "GET /topics/a HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\
                   Sec-WebSocket-Key1: 18x 6]8vM;54 *(5:  {   U1]8  z [  8\r\n\r\n";
    wire.write_all(format!("{ancient}{smuggled}").as_bytes()).await.expect("an open connection");
    let mut answer = String::new();
    within("the end of the connection", wire.read_to_string(&mut answer)).await.ok();
    assert!(answer.starts_with("HTTP/1.1 426 "), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    assert_eq!(retained(&server, "a").await, ["kept"]);
}

/// Refused paths, each with its status, code and close code.
const REFUSED: [(&str, u16, &str, u16); 9] = [
    ("/topics/a..b", 400, "bad_request", 4000),
    ("/topics/a?after=nonsense", 400, "bad_request", 4000),
    ("/events?topic=a&last=-1", 400, "bad_request", 4000),
    ("/topics/%FF", 400, "bad_request", 4000),
    ("/nowhere", 404, "not_found", 4000),
    ("/", 404, "not_found", 4000),
    ("/topics", 404, "not_found", 4000),
    ("/publish", 404, "not_found", 4000),
    ("/stats", 404, "not_found", 4000),
];

#[tokio::test]
async fn a_client_without_an_origin_is_refused_with_the_real_status() {
    let server = Server::start().await;
    for (path, status, code, _) in REFUSED {
        refusal(&server, Transport::WebSocket, path, &[]).await.problem(status, code);
    }
}

#[tokio::test]
async fn a_client_with_an_origin_is_refused_with_101_an_error_and_a_close_code() {
    let server = Server::direct(|_| {}).await;
    let origin = server.http("");
    for (path, _, code, close) in REFUSED {
        let mut socket = Socket::shake_hands(&server, path, &[("origin", &origin)]).await;
        let error = socket.next().await;
        assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!(code)), "{path}: {error}");
        assert!(!text(&error["detail"]).is_empty(), "{path}: {error}");
        assert_eq!(socket.closed().await, (close, code.to_owned()), "{path}");
    }
}

#[tokio::test]
async fn a_gap_comes_before_binary_messages_too() {
    let server = Server::start().await;
    let cursor = now(&server).await;
    publish(&server, "a", "gone").await;
    delete_topic(&server, "a").await;
    let next = publish_as(&server, "a", "image/png", &b"\xff"[..]).await;
    let mut socket = Socket::open(&server, &format!("{}?after={cursor}", topic_path("a"))).await;
    let gap = socket.next().await;
    assert_eq!((&gap["type"], &gap["next"]), (&json!("gap"), &json!(next)));
    assert!(socket.next_data().await.is_binary());
}

#[tokio::test]
async fn a_peer_whose_commands_wait_is_not_silent() {
    let server = FailingServer::with(|config| config.heartbeat = Duration::from_millis(100)).await;
    let id = publish(&server, "a", "x").await;
    server.hold_reads(true);
    let mut socket = Socket::open(&server, "/events").await;
    let mut lines = Lines::open(&server, "/topics/b").await;
    socket.send(json!({"type": "subscribe", "topic": "**", "after": "0"})).await;
    for number in 0..40 {
        socket.send(json!({"type": "ping", "ref": number})).await;
    }
    server.until_read(1).await;
    for _ in 0..6 {
        assert_eq!(lines.next().await["type"], "cursor");
    }
    server.hold_reads(false);
    let mut pongs = 0;
    let mut replayed = Vec::new();
    while pongs < 40 {
        let frame = socket.next().await;
        match text(&frame["type"]).as_str() {
            "message" => replayed.push(text(&frame["id"])),
            "pong" => {
                assert_eq!(frame["ref"], pongs);
                pongs += 1;
            }
            _ => {}
        }
    }
    assert_eq!(replayed, [id]);
}

/// A proxy that does not forward `Upgrade` made a poll of the handshake, and the client saw a 200.
#[tokio::test]
async fn a_handshake_whose_upgrade_a_proxy_has_dropped_is_426_and_the_detail_says_so() {
    let server = Server::start().await;
    for path in ["/topics/a", "/events", "/stats", "/nowhere"] {
        let handshake = get(&server, path).header("sec-websocket-key", "AAECAwQFBgcICQoLDA0ODw==");
        let answer = handshake.header("sec-websocket-version", "13").answer().await;
        let problem = answer.problem(426, "upgrade_required");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("proxy")), "{problem}");
        assert_eq!(answer.header("upgrade"), "websocket", "{path}");
    }
}
