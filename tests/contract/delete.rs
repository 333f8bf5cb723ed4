//! `DELETE /topics/{topic}`: the server deletes what is retained, and readers that are behind get a gap.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    ask::{Ask, delete_topic, get, now, number, publish, request, retained, text},
    reader::Reader,
    support::{Server, client::Transport},
};

#[tokio::test]
async fn delete_removes_the_messages_of_this_topic_only() {
    let server = Server::start().await;
    publish(&server, "a", "1").await;
    publish(&server, "b", "2").await;
    delete_topic(&server, "a").await;
    assert_eq!(retained(&server, "a").await, [] as [Value; 0]);
    assert_eq!(retained(&server, "b").await, ["2"]);
    publish(&server, "a", "3").await;
    assert_eq!(retained(&server, "a").await, ["3"]);
    let page = get(&server, "/topics/*?after=0&wait=0").answer().await.json();
    let data: Vec<_> =
        page["messages"].as_array().expect("messages").iter().map(|it| text(&it["data"])).collect();
    assert_eq!(data, ["2", "3"], "a pattern forgets it too");
}

#[tokio::test]
async fn a_topic_without_messages_can_be_deleted() {
    let server = Server::start().await;
    for _ in 0..2 {
        let answer = request(&server, Method::DELETE, "/topics/nothing").answer().await;
        assert_eq!((answer.status, answer.text()), (204, ""));
    }
}

#[tokio::test]
async fn a_reader_that_had_everything_gets_no_notice_of_a_delete() {
    let server = Server::start().await;
    for transport in Transport::ALL {
        for filter in ["a", "*"] {
            let mut reader = Reader::open(&server, transport, &format!("topic={filter}")).await;
            publish(&server, "a", "before").await;
            assert_eq!(reader.next().await["data"], "before", "{transport} {filter}");
            delete_topic(&server, "a").await;
            publish(&server, "a", "after").await;
            assert_eq!(reader.next().await["data"], "after", "{transport} {filter}");
        }
    }
}

#[tokio::test]
async fn a_client_that_had_everything_resumes_without_a_gap() {
    let server = Server::start().await;
    for transport in Transport::ALL {
        for filter in ["a", "*"] {
            let cursor = publish(&server, "a", "before").await;
            delete_topic(&server, "a").await;
            let query = format!("topic={filter}&after={cursor}");
            let mut quiet = Reader::open(&server, transport, &query).await;
            publish(&server, "a", "after").await;
            assert_eq!(quiet.next().await["data"], "after", "{transport} {filter}");
            let mut late = Reader::open(&server, transport, &query).await;
            assert_eq!(late.next().await["data"], "after", "{transport} {filter}");
        }
    }
}

#[tokio::test]
async fn a_reader_that_is_behind_gets_a_gap_for_a_delete() {
    let server = Server::start().await;
    for transport in Transport::ALL {
        for filter in ["a", "*"] {
            let cursor = now(&server).await;
            let gone = publish(&server, "a", "gone").await;
            delete_topic(&server, "a").await;

            let mut reader =
                Reader::open(&server, transport, &format!("topic={filter}&after={cursor}")).await;
            let gap = reader.gap().await;
            let past = text(&gap["cursor"]);
            assert_eq!(
                gap,
                json!({"type": "gap", "topic": "a", "after": cursor, "next": null, "cursor": past, "reason": "deleted"}),
                "{transport} {filter}"
            );
            assert!(number(&past) >= number(&gone), "{transport} {filter}: past the gap");

            // A client that reconnects with the cursor past the gap does not get the gap again.
            let mut again = Reader::open(&server, transport, &format!("topic={filter}&after={past}")).await;
            let next = publish(&server, "a", "next").await;
            assert_eq!(reader.ids(1).await, [next.as_str()], "{transport} {filter}");
            assert_eq!(again.ids(1).await, [next.as_str()], "{transport} {filter}");
        }
    }
}

#[tokio::test]
async fn the_gap_of_a_delete_names_the_next_message() {
    let server = Server::start().await;
    for transport in Transport::ALL {
        for filter in ["a", "*"] {
            let cursor = now(&server).await;
            publish(&server, "a", "gone").await;
            delete_topic(&server, "a").await;
            let next = publish(&server, "a", "next").await;
            let mut reader =
                Reader::open(&server, transport, &format!("topic={filter}&after={cursor}")).await;
            let expected = json!({
                "type": "gap", "topic": "a", "after": cursor, "next": next, "cursor": cursor, "reason": "deleted",
            });
            assert_eq!(reader.gap().await, expected, "{transport} {filter}");
            assert_eq!(reader.ids(1).await, [next], "{transport} {filter}");
        }
    }
}

#[tokio::test]
async fn ids_do_not_go_back_after_a_delete() {
    let server = Server::start().await;
    let before = number(&publish(&server, "a", "1").await);
    delete_topic(&server, "a").await;
    assert!(number(&now(&server).await) >= before);
    assert!(number(&publish(&server, "a", "2").await) > before);
}
