//! A subscription gets every message once, through cuts and restarts, or is told a gap.

use std::time::Duration;

use rejoin::client::{AddOptions, ClientError, ConnectionFilter, Event, Start, Transport};

use crate::{
    TRANSPORTS, client, heard, next,
    proxy::Proxy,
    publish,
    stranger::Stranger,
    support::{Server, program::Program},
    text,
};

#[tokio::test]
async fn every_message_comes_once_and_in_order_though_connections_break_at_any_byte() {
    let server = Server::with(|config| config.retain_messages = 1_000_000).await;
    let proxy = Proxy::cutting(server.addr, |number| number * 12_347 % 150_000).await;
    let direct = client(&server.http("/"));
    let readers = TRANSPORTS.map(|transport| {
        let mut subscription =
            client(&proxy.url()).with_transport(transport).subscribe(["n"], Start::After("0".into()));
        async move {
            for number in 0..5_000 {
                assert_eq!(text(&mut subscription).await, number.to_string(), "{transport:?}");
            }
        }
    });
    let publishing = publish(&direct, "n", (0..5_000).map(|number| number.to_string()));
    tokio::join!(publishing, futures_util::future::join_all(readers));
    server.stop().await;
}

#[tokio::test]
async fn a_cursor_continues_on_another_transport_without_loss() {
    let server = Server::start().await;
    let direct = client(&server.http("/"));
    publish(&direct, "a", (0..8).map(|number| number.to_string())).await;
    let mut cursor = "0".to_owned();
    for (turn, transport) in TRANSPORTS.into_iter().enumerate() {
        let client = direct.clone().with_transport(transport);
        let mut subscription = client.subscribe(["a", "b.*"], Start::After(cursor));
        for number in [2 * turn, 2 * turn + 1] {
            assert_eq!(text(&mut subscription).await, number.to_string(), "{transport:?}");
        }
        cursor = subscription.cursor().expect("a message has an id").to_owned();
    }
    server.stop().await;
}

/// A reader that begins now has no message to resume at. It must not miss those that come while it is cut off.
#[tokio::test]
async fn a_subscription_that_was_quiet_resumes_where_it_began() {
    let server = Server::start().await;
    let direct = client(&server.http("/"));
    for transport in TRANSPORTS {
        let proxy = Proxy::impatient(server.addr, Duration::from_millis(300)).await;
        let mut subscription =
            client(&proxy.url()).with_transport(transport).subscribe(["quiet"], Start::Now);
        assert!(matches!(next(&mut subscription).await, Ok(Event::Connected)), "{transport:?}");
        let cut = loop {
            if let Event::Disconnected(error) = next(&mut subscription).await.expect("no error") {
                break error;
            }
        };
        assert!(matches!(cut, ClientError::Lost { .. }), "{transport:?}: {cut:?}");
        assert!(subscription.cursor().is_some(), "{transport:?}");
        publish(&direct, "quiet", [format!("{transport:?}")]).await;
        assert_eq!(text(&mut subscription).await, format!("{transport:?}"));
    }
    server.stop().await;
}

#[tokio::test]
async fn a_gap_is_told_before_the_messages_after_it() {
    let server = Server::with(|config| config.retain_messages = 2).await;
    let direct = client(&server.http("/"));
    let ids = publish(&direct, "t", (0..5).map(|number| number.to_string())).await;
    for transport in TRANSPORTS {
        let client = direct.clone().with_transport(transport);
        let mut subscription = client.subscribe(["t"], Start::After(ids[0].clone()));
        let gap = heard(&mut subscription).await.expect_err("a gap comes first");
        assert_eq!((&*gap.topic, &gap.after, gap.next.as_ref()), ("t", &ids[0], Some(&ids[3])));
        assert_eq!(gap.reason, "retention");
        let cursor = if transport == Transport::Poll { &ids[0] } else { &gap.cursor };
        assert_eq!(subscription.cursor(), Some(&**cursor), "{transport:?}");
        assert_eq!([text(&mut subscription).await, text(&mut subscription).await], ["3", "4"]);
        assert_eq!(subscription.cursor(), Some(&*ids[4]), "{transport:?}");
    }
    server.stop().await;
}

/// The gaps of a poll come first in its answer, and their cursors can be newer than its messages.
#[tokio::test]
async fn the_cursor_of_a_poll_is_not_ahead_of_the_messages_that_were_given() {
    let stranger = Stranger::with(&[concat!(
        r#"{"messages":[{"type":"message","topic":"a","id":"10","data":1},"#,
        r#"{"type":"message","topic":"b","id":"30","data":2}],"#,
        r#""gaps":[{"type":"gap","topic":"b","after":"5","next":"30","cursor":"20","reason":"retention"}],"#,
        r#""cursor":"40"}"#
    )])
    .await;
    let client = client(&stranger.url).with_transport(Transport::Poll);
    let mut subscription = client.subscribe(["a", "b"], Start::After("5".into()));
    let mut cursors = Vec::new();
    while cursors.len() < 4 {
        next(&mut subscription).await.expect("no error");
        cursors.push(subscription.cursor().map(str::to_owned));
    }
    // Connected, the gap, and the two messages.
    assert_eq!(cursors, ["5", "5", "10", "30"].map(|cursor| Some(cursor.to_owned())));
}

#[tokio::test]
async fn a_restart_that_loses_messages_is_told_as_a_gap() {
    let serving = Program::start(&[]).await;
    let proxy = Proxy::to(serving.server.addr).await;
    let client = client(&proxy.url());
    let mut subscription = client.subscribe(["t"], Start::After("0".into()));
    publish(&client, "t", ["before".into()]).await;
    assert_eq!(text(&mut subscription).await, "before");
    serving.kill().await;
    let serving = Program::start(&[]).await;
    proxy.point_at(serving.server.addr);
    publish(&client, "t", ["after".into()]).await;
    assert_eq!(heard(&mut subscription).await.expect_err("a gap").reason, "restarted");
    assert_eq!(text(&mut subscription).await, "after");
}

#[tokio::test]
async fn a_refusal_ends_a_subscription_with_the_servers_word() {
    let server = Server::start().await;
    for transport in TRANSPORTS {
        let client = client(&server.http("/")).with_transport(transport);
        let mut subscription = client.subscribe(["no topic"], Start::Now);
        match next(&mut subscription).await {
            Err(ClientError::Refused { code, detail }) => {
                assert_eq!(code, "bad_request");
                assert!(detail.contains("topic"), "{detail}");
            }
            other => panic!("{transport:?}: {other:?}"),
        }
        assert!(tokio_stream::StreamExt::next(&mut subscription).await.is_none(), "it has ended");
    }
    server.stop().await;
}

#[tokio::test]
async fn more_topics_than_a_url_takes_are_refused_in_words_that_help() {
    let server = Server::start().await;
    for transport in TRANSPORTS {
        // A URL that the server refuses together with the headers, one that the client does not send, and one that
        // it could not send.
        for count in [3_240, 3_260, 10_000] {
            let topics = (0..count).map(|number| format!("a-topic-{number:05}"));
            let client = client(&server.http("/")).with_transport(transport);
            let client = client.with_token(&"x".repeat(2_000)).expect("a header carries it");
            match next(&mut client.subscribe(topics, Start::Now)).await {
                Err(error) => {
                    assert!(error.is_final(), "{transport:?}, {count}: {error:?}");
                    assert!(error.to_string().contains("fewer topics"), "{transport:?}, {count}: {error}");
                }
                other => panic!("{transport:?}, {count}: {other:?}"),
            }
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn a_client_gives_up_when_told_to_and_says_why() {
    let gone = Server::start().await;
    let url = gone.http("/");
    gone.stop().await;
    let client = client(&url).with_give_up(Duration::from_millis(300));
    let mut subscription = client.subscribe(["t"], Start::Now);
    let mut attempts = 0;
    let error = loop {
        match next(&mut subscription).await {
            Ok(Event::Disconnected(error)) => assert!(error.to_string().contains("cannot reach"), "{error}"),
            Ok(event) => panic!("{event:?}"),
            Err(error) => break error,
        }
        attempts += 1;
    };
    assert!(attempts > 0, "it tried only once");
    assert!(matches!(error, ClientError::Unavailable { .. }), "{error:?}");
}

/// Resuming at a replayed message would read the client's own topics from long ago.
#[tokio::test]
async fn a_topic_that_the_backend_adds_moves_no_cursor_back_and_an_end_by_the_backend_is_final() {
    let server = Server::start().await;
    let direct = client(&server.http("/"));
    publish(&direct, "old", ["0", "1"].map(str::to_owned)).await;
    for transport in [Transport::WebSocket, Transport::Sse, Transport::Ndjson] {
        let mut subscription = direct.clone().with_transport(transport).subscribe(["own"], Start::Now);
        assert!(matches!(next(&mut subscription).await, Ok(Event::Connected)), "{transport:?}");
        let opened = subscription.cursor().expect("it has begun").to_owned();
        let page = direct.connections(&ConnectionFilter::default(), None).await.expect("a page");
        let [shown] = &page.connections[..] else { panic!("one connection, and not {page:?}") };
        let options = AddOptions { start: Start::After("0".into()), ..AddOptions::default() };
        direct.add_topic(&shown.connection, "old", &options).await.expect("it is added");
        for number in ["0", "1"] {
            assert_eq!(text(&mut subscription).await, number, "{transport:?}");
            assert_eq!(subscription.cursor(), Some(&*opened), "{transport:?}");
        }
        direct.end_connection(&shown.connection, None).await.expect("it is ended");
        let ended = loop {
            match next(&mut subscription).await {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(matches!(&ended, ClientError::Refused { code, .. } if code == "disconnected"), "{ended:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_subscription_ends_once_the_backend_has_removed_the_last_topic_that_it_asked_for() {
    let server = Server::start().await;
    let direct = client(&server.http("/"));
    for transport in [Transport::WebSocket, Transport::Sse, Transport::Ndjson] {
        let own = format!("own.{transport:?}");
        let mut subscription =
            direct.clone().with_transport(transport).subscribe([own.as_str(), "second"], Start::Now);
        assert!(matches!(next(&mut subscription).await, Ok(Event::Connected)), "{transport:?}");
        let filter = ConnectionFilter { topic: Some(own.clone()), ..ConnectionFilter::default() };
        let page = direct.connections(&filter, None).await.expect("a page");
        let [shown] = &page.connections[..] else { panic!("one connection, and not {page:?}") };
        // The subscription has not asked for this one.
        direct.add_topic(&shown.connection, "added", &AddOptions::default()).await.expect("it is added");
        direct.remove_topic(&shown.connection, "added", None).await.expect("it is removed");
        publish(&direct, &own, ["read".to_owned()]).await;
        assert_eq!(text(&mut subscription).await, "read", "{transport:?}");
        direct.remove_topic(&shown.connection, "second", None).await.expect("it is removed");
        let told = next(&mut subscription).await.expect("the other one is read on");
        assert!(matches!(&told, Event::Removed(topic) if topic == "second"), "{transport:?}: {told:?}");
        publish(&direct, &own, ["read on".to_owned()]).await;
        assert_eq!(text(&mut subscription).await, "read on", "{transport:?}");
        direct.remove_topic(&shown.connection, &own, None).await.expect("it is removed");
        let error = next(&mut subscription).await.expect_err("it ends");
        assert!(error.is_final() && error.to_string().contains(&own), "{error}");
        assert!(matches!(&error, ClientError::Refused { code, .. } if code == "conflict"), "{error:?}");
    }
    server.stop().await;
}
