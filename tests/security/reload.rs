//! Keys, grants and origins change while connections are open.

use std::{fs::File, io::Write};

use rejoin::{App, Config};
use serde_json::{Value, json};

use crate::{
    ask::{Ask, get, post, within},
    people::{As, BACKEND, bearer, publish, reads, server, tables, token, until_served, usual},
    reader::{Lines, Socket},
    signer::{Signer, seconds_from_now},
    support::{
        Server,
        program::{Folder, Program},
    },
};

fn app(server: &Server) -> &App {
    server.app.as_ref().expect("it is served here")
}

/// Puts these tables in force.
fn reconfigure(server: &Server, toml: &str) {
    let config = Config { tables: tables(toml), ..Config::default() };
    app(server).reconfigure(&config).expect("a change that is allowed");
}

#[tokio::test]
async fn a_reload_ends_only_connections_that_are_no_longer_allowed() {
    let server = server().await;
    let header = bearer(&reads("u1", &["a"]));
    let mut by_token = Socket::open_with(&server, "/topics/a", &[("authorization", &header)]).await;
    let mut anonymous = Lines::open(&server, "/topics/public.a").await;
    let header = bearer(BACKEND);
    let mut backend = Socket::open_with(&server, "/topics/a", &[("authorization", &header)]).await;
    let mut idle = Socket::open_with(&server, "/events", &[("authorization", &header)]).await;
    let cursor = by_token.cursor.clone();
    let held = get(&server, &format!("/topics/a?after={cursor}&wait=60")).answer_to(BACKEND);
    let reload = async {
        until_served(&server, 5).await;
        reconfigure(&server, &usual().replace("subscribe = [\"**\"]", "subscribe = [\"b\"]"));
        let closing = backend.next().await;
        assert_eq!(
            (&closing["type"], &closing["code"]),
            (&json!("closing"), &json!("forbidden")),
            "{closing}"
        );
        let why = "topic \"a\": subscribe is not granted: grant it in the [[key]] of this API key";
        assert_eq!(closing["detail"], why);
        assert_eq!(backend.closed().await, (4003, "forbidden".to_owned()));
    };
    let (answer, ()) = tokio::join!(held, reload);
    assert_eq!(answer.status, 200, "a held poll is answered early: {answer:?}");
    get(&server, "/topics/a").answer_to(BACKEND).await.problem(403, "forbidden");
    assert_eq!(idle.ask(json!({"type": "subscribe", "topic": "a"})).await["code"], "forbidden");
    assert_eq!(idle.ask(json!({"type": "subscribe", "topic": "b"})).await["type"], "subscribed");

    let (id, public) = (publish(&server, "a", "x").await, publish(&server, "public.a", "x").await);
    assert_eq!(by_token.next().await["id"], json!(id));
    assert_eq!(anonymous.next().await["id"], json!(public));

    let other_key =
        usual().replace(&Signer::new("HS256").public, "another secret of more than thirty-two bytes");
    reconfigure(&server, &other_key.replace("[anonymous]\nsubscribe = [\"public.**\"]", "[anonymous]"));
    let closing = by_token.next().await;
    let why = "the credential is accepted no longer, since the operator has changed the keys; get a new one";
    assert_eq!((&closing["code"], &closing["detail"]), (&json!("forbidden"), &json!(why)));
    assert_eq!(by_token.closed().await, (4003, "forbidden".to_owned()));
    let closing = anonymous.next().await;
    assert_eq!(closing["code"], "forbidden");
    assert!(
        closing["detail"].as_str().is_some_and(|words| words.contains("send an API key or a token")),
        "{closing}"
    );
    assert_eq!(idle.ask(json!({"type": "ping"})).await["type"], "pong");
}

#[tokio::test]
async fn a_new_key_is_accepted_and_an_old_one_refused_at_once() {
    let server = server().await;
    let mine = token("u1", json!({"publish": ["a"]}));
    let publish = || post(&server, "/topics/a").body("x").answer_to(&mine);
    assert_eq!(publish().await.status, 201);
    let es = Signer::new("ES256");
    reconfigure(&server, &es.table("new"));
    publish().await.problem(401, "unauthorized");
    let new = es.sign(&json!({"exp": seconds_from_now(60), "rejoin": {"publish": ["a"]}}));
    assert_eq!(post(&server, "/topics/a").body("x").answer_to(&new).await.status, 201);
}

/// The limit was that of the grants with which the connection began.
#[tokio::test]
async fn a_reload_changes_how_long_the_commands_of_a_connection_may_be() {
    let server = server().await;
    let long = json!({"type": "publish", "topic": "public.a", "data": "x".repeat(100_000)});
    let mut socket = Socket::open(&server, "/topics/public.a").await;
    reconfigure(&server, &usual().replace("[anonymous]\n", "[anonymous]\npublish = [\"public.**\"]\n"));
    assert_eq!(socket.ask(json!({"type": "ping"})).await["type"], "pong");
    assert_eq!(socket.ask(long.clone()).await["type"], "published");
    assert_eq!(socket.next().await["type"], "message");
    reconfigure(&server, &usual());
    assert_eq!(socket.ask(json!({"type": "ping"})).await["type"], "pong");
    socket.send(long).await;
    assert_eq!(socket.closed().await.0, 1009);
}

#[tokio::test]
async fn a_reload_never_opens_a_server() {
    let server = server().await;
    assert!(app(&server).reconfigure(&Config::default()).is_err());
    get(&server, "/topics/a").answer().await.problem(401, "unauthorized");
}

#[tokio::test]
async fn a_reload_closes_an_open_server() {
    let server = Server::start().await;
    let mut lines = Lines::open(&server, "/topics/a").await;
    let mut public = Lines::open(&server, "/topics/public.a").await;
    reconfigure(&server, &usual());
    assert_eq!(lines.next().await["code"], "forbidden");
    get(&server, "/topics/a").answer().await.problem(401, "unauthorized");
    let id = publish(&server, "public.a", "x").await;
    assert_eq!(public.next().await["id"], json!(id));
}

#[tokio::test]
async fn a_reload_changes_origins_too() {
    let server = server().await;
    let ask = || get(&server, "/topics/public.a").header("origin", "https://app.example").answer();
    ask().await.problem(403, "forbidden_origin");
    let allowed_origins = vec!["https://app.example".parse().expect("an origin")];
    let config = Config { tables: tables(&usual()), allowed_origins, ..Config::default() };
    app(&server).reconfigure(&config).expect("a change that is allowed");
    assert_eq!(ask().await.status, 200);

    let own = server.http("");
    let page = [("origin", "https://app.example")];
    let mut socket = Socket::open_with(&server, "/topics/public.a", &page).await;
    let mut lines = Lines::open_with(&server, "/topics/public.a", &page).await;
    let mut others = Lines::open_with(&server, "/topics/public.a", &[("origin", &own)]).await;
    reconfigure(&server, &usual());
    let closing = socket.next().await;
    let why = "pages of this origin are allowed no longer: the operator lists it with --allowed-origin";
    assert_eq!((&closing["code"], &closing["detail"]), (&json!("forbidden"), &json!(why)));
    assert_eq!(socket.closed().await, (4003, "forbidden".to_owned()));
    assert_eq!(lines.next().await["code"], "forbidden");
    let id = publish(&server, "public.a", "x").await;
    assert_eq!(others.next().await["id"], json!(id));
    ask().await.problem(403, "forbidden_origin");
}

fn may_read_a() -> Value {
    json!({"exp": seconds_from_now(60), "rejoin": {"subscribe": ["a"]}})
}

/// Replaces the file in one step, as deployments do.
fn write(folder: &Folder, text: &str) {
    let new = folder.path("new.toml");
    std::fs::write(&new, text).expect("a file");
    std::fs::rename(new, folder.path("rejoin.toml")).expect("a file");
}

#[tokio::test]
async fn the_program_reads_its_file_again_after_a_change_and_after_sighup() {
    let folder = Folder::new();
    write(&folder, &usual());
    let path = folder.path("rejoin.toml");
    let mut program = Program::start(&["--config", &path]).await;
    let mut public = Lines::open(&program.server, "/topics/public.a").await;
    let header = bearer(&reads("u1", &["a"]));
    let mut mine = Lines::open_with(&program.server, "/topics/a", &[("authorization", &header)]).await;

    write(
        &folder,
        &format!(
            "{}\n[[key]]\nname = \"other\"\nsha256 = \"beef\"\n",
            usual().replace("public.**", "other.**")
        ),
    );
    program.until_logged("rejoin.toml:").await;
    program.until_logged("the previous one stays in force").await;
    let id = publish(&program.server, "public.a", "x").await;
    assert_eq!(public.next().await["id"], json!(id), "a mistake changes nothing");

    write(&folder, "");
    program.send_sighup();
    program.until_logged("would open this server").await;
    get(&program.server, "/topics/a").answer().await.problem(401, "unauthorized");

    write(&folder, &format!("heartbeat = \"1s\"\n{}", usual().replace("public.**", "other.**")));
    assert_eq!(public.next().await["code"], "forbidden", "without being asked to");
    program.until_logged("restart the server to apply it").await;
    let id = publish(&program.server, "a", "x").await;
    assert_eq!(mine.next().await["id"], json!(id), "a connection that is still allowed stays open");
    let ended = program.terminate().await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
}

#[tokio::test]
async fn a_change_of_a_key_file_is_noticed_too() {
    let folder = Folder::new();
    let (old, new) = (Signer::new("ES256"), Signer::new("ES256"));
    std::fs::write(folder.path("key.pem"), &old.public).expect("a file");
    write(&folder, "[[jwt]]\nname = \"k\"\nalgorithm = \"ES256\"\nfile = \"key.pem\"\n");
    let program = Program::start(&["--config", &folder.path("rejoin.toml")]).await;
    let header = bearer(&old.sign(&may_read_a()));
    let mut lines = Lines::open_with(&program.server, "/topics/a", &[("authorization", &header)]).await;
    std::fs::write(folder.path("key.pem"), &new.public).expect("a file");
    assert_eq!(lines.next().await["code"], "forbidden");
    assert_eq!(get(&program.server, "/topics/a").answer_to(&new.sign(&may_read_a())).await.status, 200);
}

/// The configuration is rejected because of a key file that only it names. After the key file is corrected,
/// the configuration must be read again without a change of its own.
#[tokio::test]
async fn a_file_that_only_a_rejected_configuration_names_is_watched_too() {
    let folder = Folder::new();
    let new = Signer::new("ES256");
    write(&folder, &usual());
    let mut program = Program::start(&["--config", &folder.path("rejoin.toml")]).await;
    let table = "[[jwt]]\nname = \"new\"\nalgorithm = \"ES256\"\nfile = \"key.pem\"\n";
    write(&folder, &(usual() + table));
    program.until_logged("file key.pem").await;
    program.until_logged("the previous one stays in force").await;
    std::fs::write(folder.path("key.pem"), &new.public).expect("a file");
    program.until_logged("reloaded").await;
    assert_eq!(get(&program.server, "/topics/a").answer_to(&new.sign(&may_read_a())).await.status, 200);
}

/// A key file is replaced after the server has read it, and before the server has read the other files, both
/// at the start and at a reload. The newest content must come into force.
#[tokio::test]
async fn a_change_while_the_files_are_read_is_read_again() {
    let folder = Folder::new();
    let keys = [(); 3].map(|()| Signer::new("ES256"));
    let (path, pipe) = (folder.path("key.pem"), folder.path("pipe"));
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().expect("it runs").success());
    // The program reads the pipe last, and only when the test writes to it.
    write(
        &folder,
        "[[jwt]]\nname = \"k\"\nalgorithm = \"ES256\"\nfile = \"key.pem\"\n\
         [[jwt]]\nname = \"last\"\nalgorithm = \"EdDSA\"\nfile = \"pipe\"\n",
    );
    let last = Signer::new("EdDSA").public;
    let replace = |key: &Signer| std::fs::write(&path, &key.public).expect("a file");
    replace(&keys[0]);
    let arguments = ["--config", &folder.path("rejoin.toml")];
    let (program, ()) = tokio::join!(Program::start(&arguments), async {
        let mut pipe = open_once_read(&pipe).await;
        replace(&keys[1]);
        pipe.write_all(last.as_bytes()).expect("it is read");
    });
    for (key, next) in [(&keys[1], Some(&keys[2])), (&keys[2], None)] {
        let mut pipe = open_once_read(&pipe).await;
        // Meanwhile the server answers other requests.
        get(&program.server, "/topics/a").answer().await.problem(401, "unauthorized");
        next.into_iter().for_each(replace);
        pipe.write_all(last.as_bytes()).expect("it is read");
        drop(pipe);
        let token = key.sign(&may_read_a());
        within("the key that was written last", async {
            while get(&program.server, "/topics/a").answer_to(&token).await.status != 200 {}
        })
        .await;
    }
}

/// Opens a pipe once the program waits to read from it.
async fn open_once_read(pipe: &str) -> File {
    let (opened, opens) = tokio::sync::oneshot::channel();
    let path = pipe.to_owned();
    std::thread::spawn(move || opened.send(File::create(path)));
    within("the program reads the pipe", opens).await.expect("it is opened").expect("a pipe")
}

#[tokio::test]
async fn a_sighup_does_not_end_a_server_without_a_file() {
    let mut program = Program::start(&[]).await;
    let mut lines = Lines::open(&program.server, "/topics/a").await;
    program.send_sighup();
    program.until_logged("reloaded").await;
    let answer = post(&program.server, "/topics/a").body("x").answer().await;
    assert_eq!(lines.next().await["id"], json!(answer.id()));
}
