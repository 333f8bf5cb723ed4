//! The options of `rejoin pub`, as a reader sees them, and a start that cannot be.

use serde_json::Value;

use crate::{
    program::{Ended, Program, rejoin},
    support::{Server, program::Folder},
};

/// The retained messages of a topic, as the server sends them.
async fn retained(server: &Server, topic: &str) -> Vec<Value> {
    let heard =
        rejoin(server, &["sub", topic, "--after", "0", "--json", "--until-idle", "500ms"]).run().await;
    assert_eq!(heard.code, Some(0), "{heard:?}");
    heard.lines().into_iter().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

async fn published(server: &Server, arguments: &[&str], input: &[u8]) -> Ended {
    rejoin(server, &[&["pub"], arguments].concat()).run_with(input).await
}

#[tokio::test]
async fn a_message_and_every_line_have_the_event_and_the_media_type_that_were_given() {
    let server = Server::start().await;
    let options = ["--event", "paid", "--content-type", "text/css"];
    for (arguments, input) in [(&["t", "a{}"][..], &b""[..]), (&["t"], b"b{}\nc{}\n")] {
        let ended = published(&server, &[arguments, &options].concat(), input).await;
        assert_eq!((ended.code, ended.stderr()), (Some(0), ""), "{ended:?}");
    }
    let messages = retained(&server, "t").await;
    assert_eq!(messages.len(), 3);
    for (message, data) in messages.iter().zip(["a{}", "b{}", "c{}"]) {
        assert_eq!((&message["event"], &message["data"]), (&"paid".into(), &data.into()));
        assert_eq!(message["content_type"], "text/css");
    }
    let wrong = published(&server, &["t", "x", "--event", "rejoin.x"], b"").await;
    assert_eq!(wrong.code, Some(1), "{wrong:?}");
    assert!(wrong.stderr().starts_with("rejoin: the message: bad_request: "), "{}", wrong.stderr());
    server.stop().await;
}

#[tokio::test]
async fn a_message_is_stored_once_under_its_key() {
    let server = Server::start().await;
    let first = published(&server, &["t", "x", "--key", "order-7"], b"").await;
    let again = published(&server, &["t", "x", "--key", "order-7"], b"").await;
    assert_eq!((first.code, again.code), (Some(0), Some(0)), "{first:?} {again:?}");
    assert_eq!(first.lines(), again.lines());
    let other = published(&server, &["t", "y", "--key", "order-7"], b"").await;
    assert_eq!(other.code, Some(1), "{other:?}");
    assert!(other.stderr().contains("key_reused"), "{}", other.stderr());
    let lines = published(&server, &["t", "--key", "order-8"], b"a\nb\n").await;
    assert_eq!(lines.code, Some(2), "{lines:?}");
    assert!(lines.stderr().contains("--key is for one message"), "{}", lines.stderr());
    assert_eq!(retained(&server, "t").await.len(), 1);
    server.stop().await;
}

#[tokio::test]
async fn a_file_is_one_message_with_exactly_its_bytes() {
    let server = Server::start().await;
    let folder = Folder::new();
    let file = folder.path("notes.txt");
    std::fs::write(&file, "two\nlines\n").expect("a file");
    let sent = published(&server, &["t", "--file", &file], b"").await;
    assert_eq!((sent.code, sent.lines().len()), (Some(0), 1), "{sent:?}");
    let sent = published(&server, &["t", "--file", "-", "--key", "k"], b"from\nstdin").await;
    assert_eq!((sent.code, sent.lines().len()), (Some(0), 1), "{sent:?}");
    let data: Vec<_> =
        retained(&server, "t").await.into_iter().map(|message| message["data"].clone()).collect();
    assert_eq!(data, ["two\nlines\n", "from\nstdin"]);

    let missing = published(&server, &["t", "--file", "not-there.txt"], b"").await;
    assert_eq!(missing.code, Some(1), "{missing:?}");
    assert!(
        missing.stderr().starts_with("rejoin: --file not-there.txt: No such file"),
        "{}",
        missing.stderr()
    );
    server.stop().await;
}

#[tokio::test]
async fn an_ephemeral_message_reaches_a_reader_and_is_not_retained() {
    let server = Server::start().await;
    let mut reader = rejoin(&server, &["sub", "t", "--after", "0", "--json"]).start();
    published(&server, &["t", "kept"], b"").await;
    assert!(reader.line().await.contains("kept"));
    let sent = published(&server, &["t", "gone", "--ephemeral", "--event", "typing"], b"").await;
    assert_eq!((sent.code, sent.stderr(), sent.lines()), (Some(0), "", vec![]), "{sent:?}");
    let lines = published(&server, &["t", "--ephemeral"], b"1\n2\n").await;
    assert_eq!((lines.code, lines.stderr()), (Some(0), ""), "{lines:?}");
    for (data, event) in
        [(Value::from("gone"), "typing".into()), (1.into(), Value::Null), (2.into(), Value::Null)]
    {
        let heard: Value = serde_json::from_str(&reader.line().await).expect("JSON");
        assert_eq!((&heard["data"], &heard["event"], &heard["ephemeral"]), (&data, &event, &true.into()));
    }
    reader.close_stdout().end().await;
    assert_eq!(retained(&server, "t").await.len(), 1);
    server.stop().await;
}

/// An answer that never comes may mean that the message was sent. It has no key, so each attempt counts.
#[tokio::test]
async fn an_ephemeral_message_that_is_sent_again_is_doubtful() {
    let server = Server::start().await;
    let proxy =
        crate::proxy::Proxy::cutting(server.addr, |number| if number == 0 { 20 } else { u64::MAX }).await;
    let sent = Program::new(&["pub", "t", "x", "--ephemeral", "--url", &proxy.url()]).run().await;
    assert_eq!(sent.code, Some(3), "{sent:?}");
    assert!(sent.stderr().contains("the message may be sent twice\n"), "{}", sent.stderr());
    server.stop().await;
}

/// The command line took `-5m` for a flag of its own, and had no form for a number to show.
#[tokio::test]
async fn a_wrong_start_is_refused_with_the_form_that_was_expected() {
    let server = Server::start().await;
    let number = "expected a whole number that is not negative";
    let cursor = "after: not a cursor; send one that the server has given, or 0 for everything";
    let time = "since: expected a duration such as 90s, 10m or 2h, or an RFC 3339 time";
    for command in [&["sub", "t"][..], &["connections", "add", "00000000000000ab0000000000000007", "t"]] {
        for (flag, value, code, told) in [
            ("--last", "x", 2, number),
            ("--last", "-1", 2, number),
            ("--last", "4294967296", 2, "must be less than 2^32"),
            ("--after", "x", 1, cursor),
            ("--after", "-1", 1, cursor),
            ("--since", "-5m", 1, time),
        ] {
            let refused = rejoin(&server, &[command, &[flag, value]].concat()).run().await;
            assert_eq!(refused.code, Some(code), "{command:?} {flag} {value}: {refused:?}");
            assert!(refused.stderr().contains(told), "{command:?} {flag} {value}: {}", refused.stderr());
        }
    }
    server.stop().await;
}

/// `-5` was an unknown flag, with a tip that could not help.
#[tokio::test]
async fn a_negative_duration_is_refused_with_the_form_that_was_expected() {
    for command in [
        &["serve", "--heartbeat"][..],
        &["pub", "t", "x", "--give-up"],
        &["sub", "t", "--until-idle"],
        &["token", "--ttl"],
        &["bench", "--duration"],
    ] {
        let refused = Program::new(&[command, &["-5s"]].concat()).run().await;
        assert_eq!(refused.code, Some(2), "{command:?}: {refused:?}");
        let told = "expected a duration, for example 90s, 10m or 2h";
        assert!(refused.stderr().contains(told), "{command:?}: {}", refused.stderr());
    }
}
