//! Presence: who is present, who is told, and who may see it. Each test runs on both logs.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{
    ask::{get, post, request, text, within},
    people::{As, BACKEND, bearer, tables, usual},
    reader::{Lines, Reader, Socket},
    signer::{Signer, seconds_from_now},
    support::{
        Server,
        client::Transport,
        program::{Folder, Program},
        redis::Redis,
    },
};

/// So short that a member leaves at once.
const SHORT: Duration = Duration::from_millis(1);
/// So long that no member leaves.
const LONG: Duration = Duration::from_secs(3600);

/// A server over each log; over Redis only if it is installed.
async fn servers(grace: Duration) -> Vec<(Option<Redis>, Server)> {
    servers_with(grace, 1_000).await
}

async fn servers_with(grace: Duration, max_topics: usize) -> Vec<(Option<Redis>, Server)> {
    let start = async |redis: Option<&Redis>| {
        let (tables, log) = (tables(&usual()), redis.map(|redis| redis.url().parse().expect("a log")));
        Server::with(|config| {
            config.tables = tables;
            config.presence_grace = grace;
            config.max_topics = max_topics;
            config.log = log.unwrap_or(config.log.clone());
        })
        .await
    };
    let mut servers = vec![(None, start(None).await)];
    if let Some(redis) = Redis::start(&[]) {
        let server = start(Some(&redis)).await;
        servers.push((Some(redis), server));
    }
    servers
}

/// A token that may read everything, and see who is present in `seen`.
fn token(sub: Option<&str>, seen: &[&str], info: Value) -> String {
    let mut claims = json!({
        "exp": seconds_from_now(60),
        "rejoin": {"subscribe": ["**", "$sys.x", "$presence.**"], "manage": ["**"], "admin": true, "presence": seen},
    });
    if let Some(sub) = sub {
        claims["sub"] = json!(sub);
    }
    if !info.is_null() {
        claims["rejoin_info"] = info;
    }
    Signer::new("HS256").sign(&claims)
}

fn user(sub: &str) -> String {
    token(Some(sub), &[], Value::Null)
}

fn watcher() -> String {
    token(Some("watcher"), &["**"], Value::Null)
}

async fn open(server: &Server, transport: Transport, query: &str, credential: &str) -> Reader {
    let header = bearer(credential);
    Reader::open_with(server, transport, query, &[("authorization", &header)]).await
}

async fn watch(server: &Server, query: &str) -> Lines {
    let header = bearer(&watcher());
    Lines::open_with(server, &format!("/events?{query}"), &[("authorization", &header)]).await
}

async fn page(server: &Server, query: &str) -> Value {
    let answer = get(server, &format!("/topics/room/presence?{query}")).answer_to(&watcher()).await;
    assert_eq!((answer.status, answer.header("cache-control")), (200, "no-store"), "{answer:?}");
    answer.json()
}

/// The members of the topic, with their connections.
async fn members(server: &Server) -> Vec<(String, u64)> {
    let page = page(server, "limit=1000").await;
    let members = page["members"].as_array().expect("a list");
    assert_eq!(page["count"], members.len());
    members.iter().map(|one| (text(&one["sub"]), one["connections"].as_u64().expect("a count"))).collect()
}

async fn until_members(server: &Server, wanted: &[(&str, u64)]) {
    let wanted: Vec<_> = wanted.iter().map(|(sub, count)| ((*sub).to_owned(), *count)).collect();
    within(format!("{wanted:?}"), async {
        while members(server).await != wanted {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// The next change: its event, and its subject.
async fn change(watcher: &mut Lines) -> (String, String) {
    let frame = watcher.next().await;
    assert_eq!(frame["topic"], "$presence.room", "{frame}");
    (text(&frame["event"]), text(&frame["data"]["sub"]))
}

fn told(event: &str, sub: &str) -> (String, String) {
    (event.to_owned(), sub.to_owned())
}

#[tokio::test]
async fn a_subject_joins_with_its_first_connection_and_leaves_after_its_last() {
    for (_redis, server) in servers(SHORT).await {
        let mut watcher = watch(&server, "topic=$presence.room").await;
        for transport in [Transport::WebSocket, Transport::Sse, Transport::Ndjson] {
            let sub = transport.to_string();
            let named = token(Some(&sub), &[], json!({"name": "Ann"}));
            let query = "topic=room&topic=x.*&presence";
            let first = open(&server, transport, query, &named).await;
            let frame = watcher.next().await;
            assert_eq!((&frame["topic"], &frame["event"]), (&json!("$presence.room"), &json!("join")));
            assert_eq!(frame["data"], json!({"sub": sub, "info": {"name": "Ann"}}));
            let listed = page(&server, "").await;
            let member = json!({"sub": sub, "connections": 1, "since": frame["id"], "info": {"name": "Ann"}});
            assert_eq!((&listed["members"], &listed["count"]), (&json!([member]), &json!(1)));
            assert!(text(&listed["cursor"]) >= text(&frame["id"]) && listed["next"].is_null());
            let second = open(&server, Transport::Ndjson, query, &named).await;
            assert_eq!(members(&server).await, [(sub.clone(), 2)]);
            drop(first);
            until_members(&server, &[(&sub, 1)]).await;
            drop(second);
            // One connection ending was no leave, so this is the first.
            assert_eq!(change(&mut watcher).await, told("leave", &sub));
            assert_eq!(members(&server).await, []);
        }
        // Members, and then the changes from their cursor.
        let cursor = text(&page(&server, "").await["cursor"]);
        let _reader = open(&server, Transport::Sse, "topic=room&presence=1", &user("u9")).await;
        let mut later = watch(&server, &format!("topic=$presence.**&after={cursor}")).await;
        assert_eq!(change(&mut later).await, told("join", "u9"));
    }
}

#[tokio::test]
async fn a_client_that_comes_back_within_the_grace_neither_leaves_nor_joins() {
    for (_redis, server) in servers(LONG).await {
        let mut watcher = watch(&server, "topic=$presence.room").await;
        let mut since = None;
        for transport in Transport::ALL.into_iter().cycle().take(6) {
            if transport == Transport::Poll {
                let first = get(&server, "/topics/room?presence").answer_to(&user("u1")).await;
                assert_eq!(first.status, 200, "{first:?}");
                until_members(&server, &[("u1", 0)]).await;
                let cursor = text(&page(&server, "").await["cursor"]);
                let held = format!("/topics/room?after={cursor}&wait=60&presence");
                let held = get(&server, &held).header("authorization", bearer(&user("u1"))).send();
                let held = tokio::spawn(held);
                until_members(&server, &[("u1", 1)]).await;
                held.abort();
            } else {
                drop(open(&server, transport, "topic=room&presence", &user("u1")).await);
            }
            until_members(&server, &[("u1", 0)]).await;
            let id = text(&page(&server, "").await["members"][0]["since"]);
            assert_eq!(*since.get_or_insert(id.clone()), id, "{transport}");
        }
        let _other = open(&server, Transport::Ndjson, "topic=room&presence", &user("u2")).await;
        assert_eq!(change(&mut watcher).await, told("join", "u1"));
        assert_eq!(change(&mut watcher).await, told("join", "u2"), "nothing in between");
    }
}

#[tokio::test]
async fn commands_and_the_backend_make_a_subject_present_until_the_topic_is_removed() {
    for (_redis, server) in servers(SHORT).await {
        let mut watcher = watch(&server, "topic=$presence.room").await;
        let header = bearer(&user("u1"));
        let mut socket =
            Socket::open_with(&server, "/events?topic=room", &[("authorization", &header)]).await;
        for already_read in [true, false] {
            let answer =
                socket.ask(json!({"type": "subscribe", "topic": "room", "presence": true, "ref": 1})).await;
            assert_eq!(
                (&answer["type"], &answer["ref"]),
                (&json!("subscribed"), &json!(1)),
                "{already_read}"
            );
            assert_eq!(change(&mut watcher).await, told("join", "u1"));
            assert_eq!(members(&server).await, [("u1".to_owned(), 1)]);
            let answer = socket.ask(json!({"type": "unsubscribe", "topic": "room"})).await;
            assert_eq!(answer["type"], "unsubscribed");
            assert_eq!(change(&mut watcher).await, told("leave", "u1"));
        }
        let long = "x".repeat(246);
        let refused = socket.ask(json!({"type": "subscribe", "topic": long, "presence": true})).await;
        assert_eq!((&refused["code"], &refused["topic"]), (&json!("bad_request"), &json!(long)), "{refused}");

        let reader = open(&server, Transport::Sse, "topic=other.*", &user("u2")).await;
        let id = text(&reader.opening()["connection"]);
        let at = |topic: &str| format!("/connections/{id}/topics/{topic}");
        for query in ["", "?presence=0", "?presence", "?presence"] {
            let path = at("room") + query;
            assert_eq!(request(&server, Method::PUT, &path).answer_to(BACKEND).await.status, 204, "{query}");
        }
        assert_eq!(change(&mut watcher).await, told("join", "u2"));
        assert_eq!(members(&server).await, [("u2".to_owned(), 1)]);
        let path = at(&long) + "?presence";
        request(&server, Method::PUT, &path).answer_to(BACKEND).await.problem(400, "bad_request");
        assert_eq!(request(&server, Method::DELETE, &at("room")).answer_to(BACKEND).await.status, 204);
        assert_eq!(change(&mut watcher).await, told("leave", "u2"));
    }
}

#[tokio::test]
async fn a_subject_is_present_in_the_topics_of_its_list_as_the_list_changes() {
    for (_redis, server) in servers(SHORT).await {
        let mut watcher = watch(&server, "topic=$presence.room").await;
        let change_list = async |method: Method, topic: &str| {
            let path = format!("/subjects/u1/topics/{topic}");
            assert_eq!(request(&server, method, &path).answer_to(BACKEND).await.status, 204, "{topic}");
        };
        let u1 = |count| [("u1".to_owned(), count)];
        for topic in ["room.*", &"x".repeat(246)] {
            change_list(Method::PUT, topic).await;
        }
        for transport in [Transport::WebSocket, Transport::Sse, Transport::Ndjson] {
            change_list(Method::PUT, "room").await;
            let _unseen = open(&server, transport, "mine", &user("u1")).await;
            let reader = open(&server, transport, "mine&presence", &user("u1")).await;
            assert_eq!(change(&mut watcher).await, told("join", "u1"));
            assert_eq!(members(&server).await, u1(1), "{transport}");
            change_list(Method::DELETE, "room").await;
            assert_eq!(change(&mut watcher).await, told("leave", "u1"));
            change_list(Method::PUT, "room").await;
            assert_eq!(change(&mut watcher).await, told("join", "u1"));
            drop(reader);
            assert_eq!(change(&mut watcher).await, told("leave", "u1"));

            // Named too, it counts once, and it stays as long as one of both does.
            let mut reader = open(&server, transport, "topic=room&mine&presence", &user("u1")).await;
            assert_eq!(change(&mut watcher).await, told("join", "u1"));
            let id = text(&reader.opening()["connection"]);
            let named = format!("/connections/{id}/topics/room");
            assert_eq!(request(&server, Method::DELETE, &named).answer_to(BACKEND).await.status, 204);
            assert_eq!(members(&server).await, u1(1), "{transport}");
            let named = named + "?presence";
            assert_eq!(request(&server, Method::PUT, &named).answer_to(BACKEND).await.status, 204);
            until_members(&server, &[("u1", 1)]).await;
            change_list(Method::DELETE, "room").await;
            while reader.next().await["type"] != "unsubscribed" {}
            assert_eq!(members(&server).await, u1(1), "{transport}");
            drop(reader);
            assert_eq!(change(&mut watcher).await, told("leave", "u1"), "nothing in between");
        }
        change_list(Method::PUT, "room").await;
        let cursor = text(&page(&server, "").await["cursor"]);
        let held = get(&server, &format!("/events?mine&presence&after={cursor}&wait=60"));
        let held = tokio::spawn(held.header("authorization", bearer(&user("u1"))).send());
        until_members(&server, &[("u1", 1)]).await;
        held.abort();
    }
}

#[tokio::test]
async fn what_cannot_be_present_is_refused_and_patterns_are_passed_over() {
    for (_redis, server) in servers(LONG).await {
        let big = token(Some("u1"), &[], json!("x".repeat(1023)));
        let nameless = token(None, &[], Value::Null);
        let long = "x".repeat(246);
        for (credential, path) in [
            (&nameless, "/topics/room?presence".to_owned()),
            (&nameless, "/events?topic=x.*&presence".to_owned()),
            (&big, "/topics/room?presence".to_owned()),
            (&user("u1"), "/topics/room?presence&wait=0".to_owned()),
            (&user("u1"), "/topics/room?presence&after=0&wait=00".to_owned()),
            (&user("u1"), format!("/topics/{long}?presence")),
            (&user("u1"), "/topics/room?presence=maybe".to_owned()),
            (&user("u1"), "/topics/room?before=9&presence".to_owned()),
        ] {
            get(&server, &path).answer_to(credential).await.problem(400, "bad_request");
        }
        let fits = token(Some("u1"), &[], json!("x".repeat(1022)));
        let exact = "x".repeat(245);
        let body =
            json!({"topics": [exact, "room", "x.*", "$sys.x"], "presence": true, "after": "0", "wait": 60});
        let request = post(&server, "/events").header("content-type", "application/json");
        let held = request.header("authorization", bearer(&fits)).body(body.to_string()).send();
        let held = tokio::spawn(held);
        until_members(&server, &[("u1", 1)]).await;
        let path = format!("/topics/{exact}/presence");
        let answer = get(&server, &path).answer_to(&watcher()).await.json();
        assert_eq!(answer["count"], 1);
        held.abort();
        for topic in ["x.*", &long, "a..b"] {
            let path = format!("/topics/{topic}/presence");
            get(&server, &path).answer_to(&watcher()).await.problem(400, "bad_request");
        }
        get(&server, "/topics/$sys.x/presence").answer_to(&watcher()).await.problem(403, "forbidden");
        for query in ["limit=0", "limit=1001", "lmit=5"] {
            let path = format!("/topics/room/presence?{query}");
            get(&server, &path).answer_to(&watcher()).await.problem(400, "bad_request");
        }
        let path = "/topics/room/presence";
        crate::ask::post(&server, path).answer_to(&watcher()).await.problem(405, "method_not_allowed");
    }
}

#[tokio::test]
async fn members_are_paged_in_the_order_of_their_subjects() {
    for (_redis, server) in servers(LONG).await {
        let mut readers = Vec::new();
        for number in [3, 1, 5, 2, 4] {
            let credential = user(&format!("u{number}"));
            readers.push(open(&server, Transport::Ndjson, "topic=room&presence", &credential).await);
        }
        let (mut seen, mut after) = (Vec::new(), String::new());
        loop {
            let page = page(&server, &format!("limit=2&after={after}")).await;
            assert_eq!(page["count"], 5);
            seen.extend(page["members"].as_array().expect("a list").iter().map(|one| text(&one["sub"])));
            let Some(next) = page["next"].as_str() else { break };
            after = next.to_owned();
        }
        assert_eq!(seen, ["u1", "u2", "u3", "u4", "u5"]);
        assert_eq!(page(&server, "limit=5").await["next"], Value::Null, "this is the last page");
    }
}

/// Everything but `presence` grants nothing here.
#[tokio::test]
async fn presence_is_seen_only_with_the_grant_for_it() {
    for (_redis, server) in servers(LONG).await {
        let _present = open(&server, Transport::Ndjson, "topic=room&presence", &user("u1")).await;
        let other = token(Some("u2"), &["rooms.*"], Value::Null);
        for credential in [&user("u2"), &other, &BACKEND.to_owned()] {
            // The refusal names the grant that helps, and not `subscribe`.
            for (path, missing) in [
                ("/topics/room/presence", "topic \"room\": presence is"),
                (
                    "/topics/$presence.room?wait=0&after=0",
                    "topic \"$presence.room\": presence for \"room\" is",
                ),
                (
                    "/topics/$presence.room?before=9007199254740991",
                    "topic \"$presence.room\": presence for \"room\" is",
                ),
                (
                    "/events?topic=room&topic=$presence.**&wait=0&after=0",
                    "topic \"$presence.**\": presence for \"**\" is",
                ),
                ("/events?topic=$presence.*&wait=0&after=0", "topic \"$presence.*\": presence for \"*\" is"),
                ("/events?topic=$presence&wait=0&after=0", "topic \"$presence\": presence is"),
            ] {
                let problem = get(&server, path).answer_to(credential).await.problem(403, "forbidden");
                let detail = text(&problem["detail"]);
                assert!(detail.starts_with(&format!("{missing} not granted: grant it ")), "{detail}");
            }
        }
        let reader = open(&server, Transport::Sse, "topic=x.*", &user("u3")).await;
        let id = text(&reader.opening()["connection"]);
        for (topic, credential, status) in [
            ("$presence.room", BACKEND.to_owned(), 403),
            ("$presence.**", other.clone(), 403),
            ("$presence.rooms.1", other.clone(), 204),
            ("$presence.rooms.*", other.clone(), 204),
        ] {
            let path = format!("/connections/{id}/topics/{topic}");
            let answer = request(&server, Method::PUT, &path).answer_to(&credential).await;
            assert_eq!(answer.status, status, "{topic}: {answer:?}");
            let is_named = answer.text().contains("presence for");
            assert_eq!(is_named, status == 403, "{topic}: {answer:?}");
        }
        // A pattern without `$` never matches.
        let answer = get(&server, "/topics/**?wait=0&after=0").answer_to(&watcher()).await.json();
        assert_eq!(answer["messages"], json!([]));
        post(&server, "/topics/$presence.room")
            .body("x")
            .answer_to(BACKEND)
            .await
            .problem(400, "bad_request");
    }
}

/// Each join in a new topic makes a topic for its changes.
#[tokio::test]
async fn a_user_that_is_present_everywhere_makes_as_many_topics_as_it_leaves_free() {
    for (_redis, server) in servers_with(LONG, 22).await {
        let present = async |sub: &str, topic: usize| {
            let query = format!("/topics/{sub}{topic}?presence");
            get(&server, &query).answer_to(&user(sub)).await.status
        };
        let mut made = 0;
        while present("greedy", made).await == 200 {
            made += 1;
        }
        assert_eq!(made, 10);
        assert_eq!((present("other", 1).await, present("greedy", made).await), (200, 503));
    }
}

#[tokio::test]
async fn members_stay_over_a_restart_with_a_state_file() {
    let folder = Folder::new();
    let secret = crate::signer::SECRET;
    let state = folder.path("state");
    let arguments = ["--state", &state, "--jwt-secret", secret, "--presence-grace", "2s"];
    let program = Program::start(&arguments).await;
    let reader = open(&program.server, Transport::Ndjson, "topic=room&presence", &user("stays")).await;
    let _leaves = open(&program.server, Transport::Ndjson, "topic=room&presence", &user("leaves")).await;
    let before = page(&program.server, "").await;
    assert_eq!(program.terminate().await.code, Some(0));
    drop(reader);
    let program = Program::start(&arguments).await;
    let cursor = text(&before["cursor"]);
    let mut watcher = watch(&program.server, &format!("topic=$presence.room&after={cursor}")).await;
    let _back = open(&program.server, Transport::Ndjson, "topic=room&presence", &user("stays")).await;
    let listed = page(&program.server, "").await;
    assert_eq!(listed["members"][1]["since"], before["members"][1]["since"]);
    assert_eq!(listed["members"][1]["connections"], 1);
    assert_eq!(change(&mut watcher).await, told("leave", "leaves"));
    assert_eq!(members(&program.server).await, [("stays".to_owned(), 1)]);
}
