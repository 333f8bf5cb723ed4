//! One client that takes all that there is leaves a share to each other client.

use reqwest::Method;
use serde_json::json;
use tokio::{io::AsyncWriteExt, net::TcpSocket};
use tungstenite::Message;

use crate::{
    ask::{Ask, get, post, request, text, with_query, within},
    people::{As, BACKEND, gauge, reads, tables, token, usual},
    reader::{Lines, Socket, refusal},
    support::{Server, client::Transport},
};

const MAX_CONNECTIONS: usize = 16;

async fn small() -> Server {
    let tables = tables(&usual());
    Server::with(|config| {
        config.tables = tables;
        config.max_connections = MAX_CONNECTIONS;
    })
    .await
}

#[tokio::test]
async fn a_client_that_opens_all_connections_leaves_a_share_to_others() {
    let server = small().await;
    let (greedy, modest) = (reads("greedy", &["a"]), reads("modest", &["a"]));
    let path = |token: &str| with_query("/topics/a", &[("token", token)]);
    let _first = Lines::open(&server, &path(&modest)).await;
    let mut open = Vec::new();
    for number in 0..MAX_CONNECTIONS - 5 {
        match number % 2 {
            0 => open.push(Ok(Socket::open(&server, &path(&greedy)).await)),
            _ => open.push(Err(Lines::open(&server, &path(&greedy)).await)),
        }
    }
    for transport in [Transport::WebSocket, Transport::Poll] {
        let refused = refusal(&server, transport, &path(&greedy), &[]).await;
        refused.problem(503, "overloaded");
    }
    let mut others = Vec::new();
    for _ in 0..3 {
        others.push(Socket::open(&server, &path(&modest)).await);
    }
    drop(open);
    within("places", async {
        while get(&server, &format!("{}&wait=0", path(&greedy))).answer().await.status != 200 {}
    })
    .await;
    Socket::open(&server, &path(&greedy)).await;
}

/// A stream of 10 000 topics costs as much as 10 000 streams of one.
#[tokio::test]
async fn a_client_that_reads_all_topics_leaves_a_share_to_others() {
    let server = small().await;
    let rights = json!({"subscribe": ["**"]});
    let (greedy, modest) = (token("greedy", rights.clone()), token("modest", rights));
    let body = |count: usize| {
        let topics: Vec<_> = (0..count).map(|number| format!("t{number}")).collect();
        json!({"topics": topics, "transport": "ndjson"}).to_string()
    };
    let ask =
        |count: usize| post(&server, "/events").header("content-type", "application/json").body(body(count));
    // There are 10 000 in all.
    let _large = Lines::of(crate::reader::Stream::of(ask(7_400).bearer_auth(&greedy)).await);
    let mut socket = Socket::open(&server, &with_query("/topics/x", &[("token", &modest)])).await;
    let mut own = Socket::open(&server, &with_query("/topics/x", &[("token", &greedy)])).await;
    for number in 0..200 {
        let answer = own.ask(json!({"type": "subscribe", "topic": format!("u{number}")})).await;
        if answer["type"] != "subscribed" {
            assert_eq!(
                (&answer["type"], &answer["code"]),
                (&json!("error"), &json!("overloaded")),
                "{answer}"
            );
            assert!(number > 90, "{number}");
            break;
        }
        assert!(number < 110, "it may read more than its share");
    }
    let answer = socket.ask(json!({"type": "subscribe", "topic": "b"})).await;
    assert_eq!(answer["type"], "subscribed", "{answer}");
    // It gives two back, and one of them is still free.
    for topic in ["u1", "u2"] {
        assert_eq!(own.ask(json!({"type": "unsubscribe", "topic": topic})).await["type"], "unsubscribed");
    }
    assert_eq!(own.ask(json!({"type": "subscribe", "topic": "another"})).await["type"], "subscribed");
}

/// A user with one grant took the whole rate of each second, and nothing was published any more but its messages.
#[tokio::test]
async fn users_that_publish_all_the_time_leave_a_part_of_each_second_to_others() {
    let rights = json!({"publish": ["a"]});
    let users: Vec<_> = (0..4).map(|number| token(&format!("u{number}"), rights.clone())).collect();
    let modest = token("modest", rights);
    for (greedy, others) in [(&users[..1], &[&*modest, BACKEND][..]), (&users, &[BACKEND])] {
        let tables = tables(&usual());
        // All users have 14 of them, and the first one takes 11. The rest is enough for both rounds, also if they are in one
        // second.
        let server = Server::with(|config| (config.tables, config.publish_rate) = (tables, 16)).await;
        let publish = || post(&server, "/topics/a").body("x");
        // The second of the server may end between the users and the others, and then these have the next one: so it
        // could not fail. One of two rounds does not meet the end of a second.
        for _ in 0..2 {
            for user in greedy {
                within("a refusal", async { while publish().answer_to(user).await.status == 201 {} }).await;
            }
            for other in others {
                let answer = publish().answer_to(other).await;
                assert_eq!(answer.status, 201, "{} of them: {answer:?}", greedy.len());
            }
        }
    }
}

/// A user with a grant for `**` made topics until no other client could.
#[tokio::test]
async fn a_user_makes_as_many_topics_as_it_leaves_free() {
    let tables = tables(&usual());
    let server = Server::with(|config| (config.tables, config.max_topics) = (tables, 18)).await;
    let rights = json!({"publish": ["**"]});
    let (greedy, modest) = (token("greedy", rights.clone()), token("modest", rights));
    let mut socket = Socket::open(&server, &with_query("/events", &[("token", &greedy)])).await;
    for number in (0..8).step_by(2) {
        let command = json!({"type": "publish", "topic": format!("w.{number}"), "data": 1});
        assert_eq!(socket.ask(command).await["type"], "published");
        let answer = post(&server, &format!("/topics/h.{number}")).body("x").answer_to(&greedy).await;
        assert_eq!(answer.status, 201, "{answer:?}");
    }
    let command = json!({"type": "publish", "topic": "w.9", "data": 1});
    assert_eq!(socket.ask(command).await["code"], "overloaded");
    let element =
        post(&server, "/publish").json(&json!([{"topic": "b", "data": 1}])).answer_to(&greedy).await;
    assert_eq!(element.json()[0]["code"], "overloaded");
    for (credential, count) in [(&*modest, 4), (BACKEND, 6)] {
        for number in 0..count {
            let path = format!("/topics/{}.{number}", &credential[..4]);
            assert_eq!(post(&server, &path).body("x").answer_to(credential).await.status, 201, "{path}");
        }
        let refused = post(&server, "/topics/one.more").body("x").answer_to(credential).await;
        refused.problem(503, "overloaded");
    }
}

/// A user that read nothing ended every `POST /publish` of the backend early, and every poll was short.
#[tokio::test]
async fn a_user_that_takes_no_answers_leaves_those_of_others_whole() {
    const MESSAGES: usize = 20;
    let tables = tables(&usual());
    let server = Server::direct(|config| (config.tables, config.retain_bytes) = (tables, 64 << 20)).await;
    for _ in 0..MESSAGES {
        let message = post(&server, "/topics/a").body("x".repeat(220_000));
        assert_eq!(message.answer_to(BACKEND).await.status, 201);
    }
    let poll = "/topics/a?after=0&wait=0&limit=1000";
    let (greedy, modest) = (reads("greedy", &["a"]), reads("modest", &["a"]));
    let ask = format!("GET {poll} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {greedy}\r\n\r\n");
    let mut held = Vec::new();
    for _ in 0..17 {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(8 << 10).expect("an option");
        let mut wire = socket.connect(server.addr).await.expect("a connection");
        wire.write_all(ask.as_bytes()).await.expect("it is taken");
        wire.readable().await.expect("its answer begins");
        held.push(wire);
    }
    let untaken = gauge(&server, "rejoin_answer_bytes").await;
    assert!((28e6..36e6).contains(&untaken), "{untaken}");
    let page = get(&server, poll).answer_to(&modest).await.json();
    assert_eq!(page["messages"].as_array().map(Vec::len), Some(MESSAGES));
    let topics: Vec<_> = (0..1_000).map(|number| format!("t{number}")).collect();
    let elements =
        json!([{"topics": topics, "data": 1}, {"topics": topics, "data": 2}, {"topic": "b", "data": 3}]);
    let answers = post(&server, "/publish").json(&elements).answer_to(BACKEND).await.json();
    assert_eq!(answers.as_array().map(Vec::len), Some(3));
    assert!(answers[2]["id"].is_string(), "{}", answers[2]);
}

/// One user could leave a long command unfinished on each of its connections, for as long as it liked.
#[tokio::test]
async fn a_client_with_unfinished_commands_leaves_as_much_room_as_it_takes() {
    const FRAGMENT: u16 = 60 << 10;
    let tables = tables(&usual());
    let server = Server::with(|config| (config.tables, config.max_payload) = (tables, 1 << 10)).await;
    let rights = json!({"publish": ["**"]});
    let (greedy, modest) = (token("greedy", rights.clone()), token("modest", rights));
    // The first frame of a command, with a mask of zeros (RFC 6455 §5.2).
    let mut fragment = [&[0x01, 0xfe][..], &FRAGMENT.to_be_bytes(), &[0; 4]].concat();
    fragment.resize(fragment.len() + usize::from(FRAGMENT), b' ');
    let begin = async |credential: &str| {
        let mut socket = Socket::open(&server, &with_query("/events", &[("token", credential)])).await;
        socket.wire().write_all(&fragment).await.expect("it is taken");
        let mut is_kept = true;
        // The first ping may be read together with the fragment, and be answered before the close.
        for ping in ["1", "2"] {
            socket.send_message(Message::Ping(ping.into())).await;
            while is_kept {
                match socket.next_message().await {
                    Message::Pong(text) if text == ping => break,
                    Message::Text(text) => is_kept = !text.contains("closing"),
                    _ => {}
                }
            }
        }
        if !is_kept {
            assert_eq!(socket.closed().await, (4100, "overloaded".to_owned()));
        }
        (socket, is_kept)
    };
    // There is room for 40 commands of 70 KiB, and each connection has 16 KiB of its own.
    let mut held = Vec::new();
    while held.len() < 64 {
        let (socket, is_kept) = begin(&greedy).await;
        if !is_kept {
            break;
        }
        held.push(socket);
    }
    assert!((26..=29).contains(&held.len()), "{}", held.len());
    let large =
        || post(&server, "/publish").header("content-type", "application/x-ndjson").body(" ".repeat(60_000));
    large().answer_to(&greedy).await.problem(503, "overloaded");
    assert_eq!(large().answer_to(&modest).await.status, 200);
    assert!(begin(&modest).await.1, "others still have room");
    assert_eq!(post(&server, "/topics/a").body("x").answer_to(&greedy).await.status, 201, "a small one");
    let unparsed = async || gauge(&server, "rejoin_unparsed_bytes").await;
    let before = unparsed().await;
    let mut ended = held.pop().expect("one");
    let path = format!("/connections/{}", text(&ended.opening["connection"]));
    assert_eq!(request(&server, Method::DELETE, &path).answer_to(BACKEND).await.status, 204);
    while !matches!(ended.next_message().await, Message::Text(text) if text.contains("closing")) {}
    assert!(unparsed().await < before, "its client has not left, and its command is not kept");
    let mut last = held.pop().expect("one");
    drop(held);
    within("room", async { while unparsed().await > 50_000.0 {} }).await;
    // It was never cut off, and its command goes on.
    let rest = br#"{"type":"ping"}"#;
    let end = [&[0x80, 0x80 | rest.len() as u8, 0, 0, 0, 0][..], rest].concat();
    last.wire().write_all(&end).await.expect("it is taken");
    assert_eq!(last.next().await["type"], "pong");
    within("nothing", async { while unparsed().await > 0.0 {} }).await;
}
