//! Every message is stored once, or the publisher is told that it cannot know.

use std::time::Duration;

use rejoin::client::{Client, ClientError, Draft, Progress, Start};
use tokio::time::timeout;
use tokio_stream::StreamExt;

use crate::{PATIENCE, client, heard, proxy::Proxy, publish, stranger::Stranger, support::Server, text};

/// All that a publishing tells, and the error with which it ended.
async fn told(client: &Client, drafts: Vec<Draft>) -> (Vec<String>, Option<ClientError>) {
    let mut publishing = client.publish_all(tokio_stream::iter(drafts));
    let mut told = Vec::new();
    let telling = async {
        while let Some(progress) = publishing.next().await {
            told.push(match progress {
                Ok(Progress::Stored { .. }) => "stored".to_owned(),
                Ok(Progress::Refused(ClientError::Refused { code, .. })) => format!("refused: {code}"),
                Ok(Progress::Doubtful { count }) => format!("doubtful: {count}"),
                Ok(Progress::Retrying(_)) => "retrying".to_owned(),
                Ok(Progress::Recovered) => "recovered".to_owned(),
                Ok(other) => panic!("{other:?}"),
                Err(error) => return Some(error),
            });
        }
        None
    };
    let error = timeout(PATIENCE, telling).await.expect("it ends in time");
    (told, error)
}

#[tokio::test]
async fn every_message_is_stored_once_and_in_order_though_connections_break_at_any_byte() {
    let server = Server::with(|config| config.retain_messages = 1_000_000).await;
    let proxy = Proxy::cutting(server.addr, |number| number * 12_347 % 150_000).await;
    let texts = || (0..5_000).map(|number| number.to_string());
    let ids = publish(&client(&proxy.url()), "n", texts()).await;
    let mut subscription = client(&server.http("/")).subscribe(["n"], Start::After("0".into()));
    for (number, id) in texts().zip(ids) {
        let message = heard(&mut subscription).await.expect("no gap");
        assert_eq!((message.payload, message.id), (number.into_bytes(), Some(id)));
    }
    publish(&client(&server.http("/")), "n", ["the end".into()]).await;
    assert_eq!(text(&mut subscription).await, "the end", "a message was stored twice");
    server.stop().await;
}

#[tokio::test]
async fn a_reader_gets_what_the_draft_says() {
    let server = Server::start().await;
    let client = client(&server.http("/"));
    let drafts = [
        Draft::new("t", "{\"a\": 1}").with_event("paid"),
        Draft::new("t", [0xff, 0]).with_content_type("image/png"),
        Draft::new("t", "x").with_key("one"),
    ];
    let mut ids = Vec::new();
    for draft in drafts.clone() {
        ids.push(client.publish(draft).await.expect("it is stored"));
    }
    let again = client.publish(drafts[2].clone()).await.expect("it is stored");
    assert_eq!(again, ids[2], "the same key");

    let mut subscription = client.subscribe(["t"], Start::After("0".into()));
    for (id, (payload, event, content_type)) in ids.into_iter().zip([
        (&b"{\"a\": 1}"[..], Some("paid"), None),
        (&[0xff, 0], None, Some("image/png")),
        (b"x", None, None),
    ]) {
        let message = heard(&mut subscription).await.expect("no gap");
        assert_eq!((&*message.topic, message.id, &*message.payload), ("t", Some(id), payload));
        assert_eq!((message.event.as_deref(), message.content_type.as_deref()), (event, content_type));
    }
    server.stop().await;
}

#[tokio::test]
async fn a_refused_message_does_not_stop_the_others() {
    let server = Server::with(|config| config.max_payload = 10).await;
    let client = client(&server.http("/"));
    let drafts = ["1", "12345678901", "3"].map(|text| Draft::new("t", text)).to_vec();
    let (outcomes, error) = told(&client, drafts).await;
    assert_eq!(outcomes, ["stored", "refused: too_large", "stored"]);
    assert!(error.is_none(), "{error:?}");
    let refused = client.publish(Draft::new("no topic", "x")).await;
    assert!(
        matches!(&refused, Err(ClientError::Refused { code, .. }) if code == "bad_request"),
        "{refused:?}"
    );
    server.stop().await;
}

const STORED: &str = r#"[{"topic":"t","id":"1763640000123456"}]"#;
const LIMITED: &str = r#"[{"code":"rate_limited","status":429,"detail":"wait"}]"#;

/// The first answer is lost, so the message may be stored already.
#[tokio::test]
async fn only_a_message_without_a_key_is_doubtful_after_one_lost_answer() {
    for (draft, expected) in [
        (Draft::new("t", "x"), &["retrying", "stored", "recovered"][..]),
        (Draft::new("t", "x").without_key(), &["retrying", "doubtful: 1", "stored", "recovered"]),
    ] {
        let stranger = Stranger::with(&["", STORED]).await;
        let (outcomes, error) = told(&client(&stranger.url), vec![draft]).await;
        assert_eq!((outcomes, error.is_none()), (expected.iter().map(|it| it.to_string()).collect(), true));
    }
    // A refusal is an answer: the message is not stored, so there is no doubt.
    let stranger = Stranger::with(&[LIMITED, STORED]).await;
    let (outcomes, _) = told(&client(&stranger.url), vec![Draft::new("t", "x").without_key()]).await;
    assert_eq!(outcomes, ["retrying", "stored", "recovered"]);
}

/// A link stalled in the middle of the request. The server has not seen the rest, and does not refuse it.
#[tokio::test]
async fn messages_that_did_not_arrive_in_time_are_sent_again() {
    const STALLED: &str =
        r#"[{"topic":"t","id":"1763640000123456"},{"code":"timed_out","status":408,"detail":"late"}]"#;
    let stranger = Stranger::with(&[STALLED, STORED]).await;
    let drafts = vec![Draft::new("t", "1").without_key(), Draft::new("t", "2").without_key()];
    let (outcomes, error) = told(&client(&stranger.url), drafts).await;
    assert_eq!(outcomes, ["stored", "retrying", "stored", "recovered"]);
    assert!(error.is_none(), "{error:?}");
}

/// A client that gives up must not say that nothing was stored, if one of its attempts had no answer.
#[tokio::test]
async fn an_unknown_outcome_is_told_as_unknown() {
    let give_up = Duration::from_millis(300);
    let stranger = Stranger::with(&["", LIMITED]).await;
    let (_, error) = told(&client(&stranger.url).with_give_up(give_up), vec![Draft::new("t", "x")]).await;
    assert!(matches!(error, Some(ClientError::Lost { .. })), "{error:?}");
    let stranger = Stranger::with(&["", LIMITED]).await;
    let unknown = client(&stranger.url).with_give_up(give_up).publish(Draft::new("t", "x")).await;
    assert!(matches!(unknown, Err(ClientError::Lost { .. })), "{unknown:?}");

    let stranger = Stranger::with(&[LIMITED]).await;
    let (_, error) = told(&client(&stranger.url).with_give_up(give_up), vec![Draft::new("t", "x")]).await;
    assert!(matches!(error, Some(ClientError::Unavailable { .. })), "{error:?}");
}

/// The grants may have changed after the first attempt has stored the message.
#[tokio::test]
async fn a_refusal_after_a_lost_answer_is_unknown_too() {
    const FORBIDDEN: &str = r#"[{"code":"forbidden","status":403}]"#;
    let stranger = Stranger::with(&["", FORBIDDEN]).await;
    let unknown = client(&stranger.url).publish(Draft::new("t", "x")).await;
    assert!(matches!(unknown, Err(ClientError::Lost { .. })), "{unknown:?}");
    let stranger = Stranger::with(&[FORBIDDEN]).await;
    let refused = client(&stranger.url).publish(Draft::new("t", "x")).await;
    assert!(matches!(refused, Err(ClientError::Refused { .. })), "{refused:?}");
}

/// The first answer is lost, and then the whole request is refused, or something else answers.
#[tokio::test]
async fn publishing_that_ends_after_a_lost_answer_says_that_messages_may_be_stored() {
    const FORBIDDEN: &str = concat!(
        "HTTP/1.1 403 Forbidden\r\nContent-Length: 20\r\nConnection: close\r\n\r\n",
        r#"{"code":"forbidden"}"#
    );
    for answers in [&["", FORBIDDEN], &["", "<html>\n"]] {
        for draft in [Draft::new("t", "x"), Draft::new("t", "x").without_key()] {
            let stranger = Stranger::with(answers).await;
            let (outcomes, error) = told(&client(&stranger.url), vec![draft]).await;
            assert!(matches!(error, Some(ClientError::Lost { .. })), "{answers:?}: {outcomes:?}, {error:?}");
        }
    }
    let stranger = Stranger::with(&[FORBIDDEN]).await;
    let (_, error) = told(&client(&stranger.url), vec![Draft::new("t", "x")]).await;
    assert!(matches!(error, Some(ClientError::Refused { .. })), "{error:?}");
    // To tell the doubt does not end it.
    let stranger = Stranger::with(&["", LIMITED]).await;
    let client = client(&stranger.url).with_give_up(Duration::from_millis(300));
    let (outcomes, error) = told(&client, vec![Draft::new("t", "x").without_key()]).await;
    assert!(outcomes.contains(&"doubtful: 1".to_owned()), "{outcomes:?}");
    assert!(matches!(error, Some(ClientError::Lost { .. })), "{error:?}");
}

#[tokio::test]
async fn another_web_server_is_not_asked_again() {
    let stranger = Stranger::with(&["<html>\n"]).await;
    let (outcomes, error) = told(&client(&stranger.url), vec![Draft::new("t", "x")]).await;
    assert!(
        outcomes.is_empty() && matches!(error, Some(ClientError::Unusable(_))),
        "{outcomes:?}, {error:?}"
    );
}
