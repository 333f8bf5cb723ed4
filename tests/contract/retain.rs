//! `[[retain]]`: limits of their own for the topics of a pattern.

use std::time::Duration;

use crate::{
    ask::{Ask, get, publish_all, within},
    support::{
        Server,
        program::{Folder, Program},
    },
};

async fn retained(server: &Server, topic: &str) -> usize {
    let page = get(server, &format!("/topics/{topic}?before=9007199254740991")).answer().await.json();
    page["messages"].as_array().expect("messages").len()
}

#[tokio::test]
async fn topics_are_retained_by_the_file_and_by_the_file_as_it_is_changed() {
    let folder = Folder::new();
    folder.file("retain-messages = 3\n[[retain]]\ntopics = \"chat.**\"\nmessages = 5\nage = \"2h\"\n");
    let mut program = Program::start(&["--config", &folder.path("r.toml")]).await;
    for topic in ["chat.a", "chat.a.b", "other"] {
        publish_all(&program.server, topic, 1..=10).await;
    }
    let counts = async |server: &Server| {
        [
            retained(server, "chat.a").await,
            retained(server, "chat.a.b").await,
            retained(server, "other").await,
        ]
    };
    assert_eq!(counts(&program.server).await, [5, 5, 3]);

    // Messages that a changed entry does not allow go without a publish.
    folder.file("retain-messages = 3\n[[retain]]\ntopics = \"chat.*\"\nmessages = 2\n");
    program.send_sighup();
    program.until_logged("[[retain]]").await;
    let changed = async {
        while counts(&program.server).await != [2, 3, 3] {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within("the changed entry", changed).await;
}

#[tokio::test]
async fn a_restart_retains_by_the_file_too() {
    let folder = Folder::new();
    folder.file("retain-messages = 3\n[[retain]]\ntopics = \"chat.**\"\nmessages = 5\n");
    let arguments = ["--config", &folder.path("r.toml"), "--state", &folder.path("state")];
    let program = Program::start(&arguments).await;
    for topic in ["chat.a", "other"] {
        publish_all(&program.server, topic, 1..=10).await;
    }
    program.terminate().await;
    let program = Program::start(&arguments).await;
    assert_eq!((retained(&program.server, "chat.a").await, retained(&program.server, "other").await), (5, 3));
}

#[test]
fn a_wrong_entry_is_told_with_its_line_and_a_right_one_is_shown() {
    let folder = Folder::new();
    folder.file(concat!(
        "[[retain]]\ntopics = \"a..b\"\nmessages = 0\n",
        "[[retain]]\ntopics = \"a\"\nage = \"soon\"\nbytes = \"1KiB\"\n",
        "[[retain]]\ntopics = \"a\"\n",
        "[[retain]]\ntopics = \"a\"\nage = 1.5\n",
        "[[retain]]\ntopic = \"a\"\n",
        "[[retain]]\ntopics = \"$presence.chat.*\"\nmessages = 5\n",
    ));
    let run = folder.run(&["config", "--check", "r.toml"], &[]);
    assert_eq!(run.code, Some(2), "{run:?}");
    for told in [
        "r.toml:1: retain: topics \"a..b\": ",
        "r.toml:1: retain: messages: must be at least 1",
        "r.toml:4: retain: age: expected a duration",
        "r.toml:8: retain: give messages, age or bytes",
        "r.toml:12: retain: expected a number, or text",
        "r.toml:14: retain: unknown field `topic`",
        "r.toml:15: retain: topics \"$presence.chat.*\": `$presence.T` is retained as `T` is; name `chat.*`",
    ] {
        assert!(run.err.contains(told), "{told}: {run:?}");
    }
    folder.file("[[retain]]\ntopics = \"chat.**\"\nmessages = 5\nbytes = \"1KiB\"\n");
    let run = folder.run(&["config", "--check", "r.toml"], &[]);
    assert!(run.err.contains("the bytes of a [[retain]] are less than --max-payload"), "{run:?}");
    folder.file("[[retain]]\ntopics = \"chat.**\"\nmessages = 5\nage = \"30d\"\n");
    let run = folder.run(&["config", "--config", "r.toml"], &[]);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.out.contains("[[retain]]\nage = \"30d\"\nmessages = 5\ntopics = \"chat.**\"\n"), "{run:?}");
}
