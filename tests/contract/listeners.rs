//! Several listeners of one server: those for the public, the one for operators, and Unix sockets.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    sync::Arc,
};

use rejoin::{
    Config, Drained, Listeners, Shutdown,
    config::{AccessLogForm, Listen, Parking, Secret},
};
use reqwest::{Client, Method, RequestBuilder};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};

use crate::{
    access_log::Lines,
    ask::{Ask, get, post, request, until_served, within},
    faults::{REJOIN, rejoin},
    reader::{Events, Lines as Frames, Reader, Stream},
    support::{
        Server,
        client::Transport,
        http_client,
        program::{Folder, Program},
    },
};

/// One server with several listeners. `servers` are its TCP listeners, in the order of the settings.
pub struct Many {
    pub servers: Vec<Server>,
    shutdown: Shutdown,
    task: JoinHandle<Drained>,
}

impl Many {
    /// `listen` and `admin` are as in the settings.
    pub async fn start(listen: &[&str], admin: Option<&str>, change: impl FnOnce(&mut Config)) -> Self {
        let read = |text: &str| text.parse::<Listen>().unwrap_or_else(|error| panic!("{text}: {error}"));
        let (listen, admin_listen) = (listen.iter().map(|text| read(text)).collect(), admin.map(read));
        let mut config = Config { listen, admin_listen, ..Config::default() };
        change(&mut config);
        let listeners = Listeners::bind(&config).expect("free addresses");
        let addresses = listeners.iter().map(|listener| listener.address().expect("bound"));
        let servers = addresses.filter_map(|address| match address {
            Listen::Tcp { address, .. } => Some(Server::elsewhere(address)),
            Listen::Unix(_) => None,
        });
        let mut servers: Vec<_> = servers.collect();
        let shutdown = Shutdown::new();
        let server = rejoin::Server::start(Arc::new(config), shutdown.clone()).await.expect("it starts");
        servers.iter_mut().for_each(|one| one.app = Some(server.app().clone()));
        let task = tokio::spawn(async { server.serve(listeners).await.expect("it serves") });
        Self { servers, shutdown, task }
    }

    pub async fn stop(self) -> Drained {
        self.shutdown.drain();
        self.task.await.expect("the server does not panic")
    }
}

/// Two loopback addresses: the public one, and that of operators.
async fn public_and_operators(change: impl FnOnce(&mut Config)) -> Many {
    Many::start(&["127.0.0.1:0"], Some("127.0.0.1:0"), change).await
}

fn client_of(socket: &str) -> Client {
    http_client().unix_socket(socket).build().expect("a client")
}

/// A request over the Unix socket at this path.
pub async fn ask_over(socket: &str, method: Method, path: &str, body: &'static str) -> (u16, Value) {
    let request = client_of(socket).request(method, format!("http://localhost{path}")).body(body);
    let answer = within(path.to_owned(), request.send()).await.expect("an answer");
    let status = answer.status().as_u16();
    (status, answer.json().await.unwrap_or_default())
}

/// A path for each route of operators.
const OF_OPERATORS: [&str; 10] = [
    "/",
    "/console/main.js",
    "/metrics",
    "/stats",
    "/topics",
    "/connections",
    "/connections/c1",
    "/connections/c1/topics/a",
    "/subjects/u1",
    "/subjects/u1/topics",
];

#[tokio::test]
async fn a_public_listener_lacks_the_routes_of_operators() {
    let many = public_and_operators(|_| {}).await;
    let [public, operators] = &many.servers[..] else { panic!("two addresses") };
    for path in OF_OPERATORS {
        for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
            let problem = request(public, method, path).answer().await.problem(404, "not_found");
            let told = problem["detail"].as_str().expect("a detail");
            assert!(told.contains("--admin-listen") && !told.contains(&operators.addr.to_string()), "{told}");
        }
        assert_eq!(request(public, Method::HEAD, path).answer().await.status, 404, "{path}");
        let there = get(operators, path).answer().await;
        assert!(
            there.status != 404
                || there.json()["detail"] == "no such connection: it has ended, or it never was",
            "{path}: {there:?}"
        );
    }
    let shaken = get(public, "/stats").header("connection", "upgrade").header("upgrade", "websocket");
    let shaken =
        shaken.header("sec-websocket-version", "13").header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    assert_eq!(shaken.answer().await.status, 404);

    let refused = request(public, Method::DELETE, "/topics/a").answer().await;
    refused.problem(405, "method_not_allowed");
    assert_eq!(refused.header("allow"), "GET, HEAD, POST");
    assert_eq!(request(operators, Method::DELETE, "/topics/a").answer().await.status, 204);
    many.stop().await;
}

#[tokio::test]
async fn the_openapi_document_says_what_a_public_listener_lacks() {
    let many = public_and_operators(|_| {}).await;
    let [public, operators] = &many.servers[..] else { panic!("two addresses") };
    let document = get(public, "/openapi.json").answer().await.json();
    let mut lacks = 0;
    for (path, operations) in document["paths"].as_object().expect("paths") {
        let url = path
            .replace("{topic}", "a")
            .replace("{id}", "c1")
            .replace("{sub}", "u1")
            .replace("{file}", "main.js");
        for method in ["get", "post", "put", "delete"] {
            let Some(tags) = operations[method]["tags"].as_array() else { continue };
            let is_of_operators = tags.contains(&"operators".into());
            let name = Method::from_bytes(method.to_uppercase().as_bytes()).expect("a method");
            let [here, there] =
                [public, operators].map(|server| request(server, name.clone(), &format!("{url}?wait=0")));
            let (here, there) = (here.answer().await, there.answer().await);
            let is_lacking =
                here.status == 404 && here.text().contains("--admin-listen") || here.status == 405;
            assert_eq!(is_lacking, is_of_operators, "{method} {path}: {}", here.status);
            let is_there =
                there.status != 405 && (there.status != 404 || there.text().contains("no such connection"));
            assert!(is_there, "{method} {path}: {}", there.text());
            lacks += usize::from(is_lacking);
        }
    }
    assert!(lacks > 10, "{lacks}");
    many.stop().await;
}

#[tokio::test]
async fn both_listeners_publish_subscribe_and_answer_probes() {
    let many = public_and_operators(|_| {}).await;
    for (here, there) in [(0, 1), (1, 0)] {
        let (here, there) = (&many.servers[here], &many.servers[there]);
        for transport in Transport::ALL {
            let mut reader = Reader::open(here, transport, "topic=a").await;
            let id = post(there, "/topics/a").body("x").answer().await.id();
            assert_eq!(reader.next().await["id"], id, "{transport:?}");
        }
        for path in ["/health/live", "/health/ready", "/rejoin.js", "/rejoin-shared.js", "/openapi.json"] {
            assert_eq!(get(here, path).answer().await.status, 200, "{path}");
        }
        assert_eq!(get(here, "/topics/a/presence").answer().await.status, 200);
    }
    many.stop().await;
}

#[tokio::test]
async fn without_a_listener_of_operators_every_listener_serves_everything() {
    let many = Many::start(&["127.0.0.1:0", "http://127.0.0.1:0"], None, |_| {}).await;
    assert_eq!(many.servers.len(), 2);
    for server in &many.servers {
        for path in ["/", "/metrics", "/stats", "/topics", "/connections"] {
            assert_eq!(get(server, path).answer().await.status, 200, "{path}");
        }
    }
    many.stop().await;
}

/// The listener of operators is no credential: its address may be reachable by others.
#[tokio::test]
async fn grants_hold_on_each_listener() {
    let many = public_and_operators(|config| {
        config.jwt_secret = Some(Secret("s".repeat(32)));
    })
    .await;
    let [public, operators] = &many.servers[..] else { panic!("two addresses") };
    get(operators, "/stats").answer().await.problem(401, "unauthorized");
    get(operators, "/topics/a").answer().await.problem(401, "unauthorized");
    get(public, "/topics/a").answer().await.problem(401, "unauthorized");
    get(public, "/stats").answer().await.problem(404, "not_found");
    many.stop().await;
}

/// The header of the PROXY protocol names the client, and must not lead it to more than the listener serves.
#[tokio::test]
async fn a_public_listener_stays_public_behind_the_proxy_protocol() {
    let many = public_and_operators(|config| {
        config.trusted_proxies = vec!["127.0.0.1/32".parse().expect("a network")];
        config.proxy_protocol = true;
    })
    .await;
    for (server, status) in many.servers.iter().zip(["404 Not Found", "200 OK"]) {
        let mut wire = TcpStream::connect(server.addr).await.expect("a connection");
        let asked = "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET /stats HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
        wire.write_all(asked.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        within("the answer", wire.read_to_string(&mut answer)).await.expect("text");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
    }
    many.stop().await;
}

#[tokio::test]
async fn limits_are_for_all_listeners_together_and_a_drain_ends_all() {
    let folder = Folder::new();
    let socket = folder.path("s");
    let listen = [&*format!("unix:{socket}"), "127.0.0.1:0"];
    let many = Many::start(&listen, Some("127.0.0.1:0"), |config| config.max_connections = 2).await;
    let [public, operators] = &many.servers[..] else { panic!("two addresses") };
    let mut frames = Frames::open(public, "/topics/a").await;
    let mut over_unix = stream_over(&socket, "/topics/a").await;
    assert_eq!(over_unix.next_frame().await["type"], "open");
    until_served(operators, 2).await;
    let poll = get(operators, "/topics/a?wait=1").answer().await;
    poll.problem(503, "overloaded");

    let addresses = [public.addr, operators.addr];
    assert_eq!(many.stop().await, Drained::Completely);
    assert_eq!(frames.next().await["type"], "closing");
    assert_eq!(over_unix.next_frame().await["type"], "closing");
    for address in addresses {
        assert!(TcpStream::connect(address).await.is_err(), "{address}");
    }
    assert!(!Path::new(&socket).exists(), "its file is left");
}

/// An event stream with envelopes over a Unix socket.
pub async fn stream_over(socket: &str, path: &str) -> Events {
    let request = client_of(socket).get(format!("http://localhost{path}?format=envelope"));
    Events::of(Stream::of(request.header("accept", "text/event-stream")).await)
}

/// Readers that stand level are written to as a group, which writes to the socket by itself.
#[tokio::test]
async fn a_unix_socket_serves_every_reader_and_publisher() {
    let folder = Folder::new();
    let socket = folder.path("s");
    let many = Many::start(&[&format!("unix:{socket}")], Some("127.0.0.1:0"), |config| {
        config.parking = Parking::Always;
    })
    .await;
    let mut readers = Vec::new();
    for _ in 0..3 {
        let mut reader = stream_over(&socket, "/topics/a").await;
        assert_eq!(reader.next_frame().await["type"], "open");
        readers.push(reader);
    }
    // Longer than the system holds for one socket.
    let long: &'static str = "x".repeat(250_000).leak();
    for text in ["one", long, "two"] {
        let (status, receipt) = ask_over(&socket, Method::POST, "/topics/a", text).await;
        assert_eq!(status, 201);
        for reader in &mut readers {
            let frame = reader.next_frame().await;
            assert_eq!((&frame["id"], &frame["data"]), (&receipt["id"], &Value::from(text)));
        }
    }
    assert_eq!(ask_over(&socket, Method::GET, "/stats", "").await.0, 404);
    assert_eq!(ask_over(&socket, Method::GET, "/health/ready", "").await.0, 200);
    many.stop().await;
}

#[tokio::test]
async fn the_peer_of_a_unix_socket_counts_as_loopback() {
    let folder = Folder::new();
    let socket = folder.path("s");
    let many = Many::start(&["127.0.0.1:0", &format!("unix:{socket}")], None, |config| {
        config.trusted_proxies = vec!["127.0.0.1/32".parse().expect("a network")];
        config.access_log = AccessLogForm::Json;
    })
    .await;
    let mut lines = Lines::of(&many.servers[0]);
    let asked =
        |request: RequestBuilder| async { request.send().await.expect("an answer").status().as_u16() };
    let health = || client_of(&socket).get("http://localhost/health/live");
    assert_eq!(asked(health()).await, 200);
    assert_eq!(lines.next().await["client"], "127.0.0.1");
    assert_eq!(asked(health().header("x-forwarded-for", "192.0.2.1")).await, 200);
    assert_eq!(lines.next().await["client"], "192.0.2.1");
    // A name that a browser may be led by is refused here too.
    let named = client_of(&socket).get("http://push.example/topics/a");
    assert_eq!(asked(named).await, 403);
    many.stop().await;
}

/// The words of a program that cannot listen.
async fn refused(arguments: &[&str]) -> String {
    let output = within("the end of the program", rejoin(arguments).output()).await.expect("it runs");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{told}");
    told
}

fn mode_of(path: &str) -> u32 {
    fs::metadata(path).expect("a file").permissions().mode() & 0o777
}

#[tokio::test]
async fn the_file_of_a_unix_socket_has_the_mode_and_the_group_of_the_setting() {
    let folder = Folder::new();
    let (plain, open) = (folder.path("plain"), folder.path("open"));
    // A group of this process that is not its first one, if it has any.
    let first = rustix::process::getegid().as_raw();
    let mut groups =
        rustix::process::getgroups().expect("groups").into_iter().map(rustix::process::Gid::as_raw);
    let other =
        if rustix::process::geteuid().is_root() { Some(1) } else { groups.find(|group| *group != first) };
    let group = other.unwrap_or(first);
    let listen = [format!("unix:{plain}"), format!("unix:{open}?mode=0606&group={group}")];
    let many = Many::start(&[&listen[0], &listen[1]], None, |_| {}).await;
    assert_eq!((mode_of(&plain), mode_of(&open)), (0o660, 0o606));
    assert_eq!(fs::metadata(&open).expect("a file").gid(), group);
    many.stop().await;
    let folder = Folder::new();
    let socket = folder.path("s");
    let listen = vec![format!("unix:{socket}?group=no-such-group").parse().expect("a socket")];
    let error = Listeners::bind(&Config { listen, ..Config::default() }).expect_err("no such group");
    assert!(error.to_string().ends_with("this machine has no group no-such-group"), "{error}");
    assert!(!Path::new(&socket).exists(), "a socket that cannot be used is left");
}

#[tokio::test]
async fn only_root_gives_the_file_of_a_unix_socket_to_another_user() {
    let folder = Folder::new();
    let socket = folder.path("s");
    let is_root = rustix::process::geteuid().is_root();
    let told = refused(&["--listen", &format!("unix:{socket}?user=no-such-user")]).await;
    assert!(told.contains("this machine has no user no-such-user"), "{told}");

    let given = format!("unix:{socket}?user=1");
    // Root without this right is refused as every other user is.
    let mut program = tokio::process::Command::new(if is_root { "setpriv" } else { REJOIN });
    if is_root {
        program.args(["--bounding-set", "-chown", REJOIN]);
    }
    let run = program.env_remove("REJOIN_LISTEN").args(["--listen", &given]).kill_on_drop(true).output();
    let output = within("the end of the program", run).await.expect("it runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("only root gives it to a user"), "{told}");
    assert!(!Path::new(&socket).exists(), "a socket that cannot be used is left");
    if !is_root {
        println!("SKIPPED: only root can give a socket away");
        return;
    }
    let many = Many::start(&[&given], None, |_| {}).await;
    assert_eq!(fs::metadata(&socket).expect("a file").uid(), 1);
    many.stop().await;
}

#[tokio::test]
async fn a_socket_that_was_left_behind_is_replaced_and_a_living_one_or_another_file_is_not() {
    let folder = Folder::new();
    let socket = folder.path("s");
    let unix = format!("unix:{socket}");
    let arguments = ["--listen", "127.0.0.1:0", "--listen", &unix];
    Program::start(&arguments).await.kill().await;
    assert!(Path::new(&socket).exists(), "a killed process leaves it");
    let living = Program::start(&arguments).await;
    assert_eq!(ask_over(&socket, Method::GET, "/health/live", "").await.0, 200);

    let told = refused(&arguments).await;
    let expected = format!("error: cannot listen on {unix} (--listen): another process listens there;");
    assert!(told.contains(&expected), "{told}");
    assert_eq!(
        ask_over(&socket, Method::GET, "/health/live", "").await.0,
        200,
        "the living one lost its socket"
    );
    assert_eq!(living.terminate().await.code, Some(0));
    assert!(!Path::new(&socket).exists(), "a process that ends removes it");

    fs::write(&socket, "precious").expect("a file");
    let told = refused(&arguments).await;
    assert!(told.contains("a file that is no socket has this name"), "{told}");
    assert_eq!(fs::read_to_string(&socket).expect("it is still there"), "precious");
}

/// Each would take the new socket of the other, which does not listen yet, for one that was left behind.
#[tokio::test]
async fn a_process_waits_while_another_one_makes_its_socket_in_the_folder() {
    let folder = Folder::new();
    let socket = folder.path("s");
    // Every process that may read a folder can hold its lock, so that one has no effect.
    let no_lock = fs::File::open(&folder.0).expect("a folder");
    rustix::fs::flock(&no_lock, rustix::fs::FlockOperation::LockExclusive).expect("a lock");
    Program::start(&["--listen", "127.0.0.1:0", "--listen", &format!("unix:{socket}")]).await.kill().await;
    assert_eq!(mode_of(&format!("{socket}.lock")), 0o600, "no other user may hold it");
    let left = fs::metadata(&socket).expect("a killed process leaves it").ino();
    let held = fs::File::open(format!("{socket}.lock")).expect("a lock file");
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).expect("a lock");
    let told = refused(&["--listen", &format!("unix:{socket}")]).await;
    assert!(told.contains("another process holds its lock file"), "{told}");
    assert_eq!(fs::metadata(&socket).expect("it is still there").ino(), left);
}

#[tokio::test]
async fn each_listener_is_logged_with_its_url_and_one_that_cannot_be_bound_is_named() {
    let folder = Folder::new();
    let unix = format!("unix:{}", folder.path("s"));
    let arguments = ["--listen", "127.0.0.1:0", "--listen", &unix, "--admin-listen", "localhost:0"];
    let program = Program::start(&arguments).await;
    let taken = program.server.addr.to_string();
    let log = program.terminate().await.log;
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let told: Vec<_> = lines.filter(|line| line["message"] == "listening").collect();
    let serves: Vec<_> = told.iter().map(|line| line["serves"].as_str().expect("text")).collect();
    assert_eq!(serves, ["public", "public", "everything"], "{log}");
    assert_eq!((&told[0]["url"], &told[1]["url"]), (&format!("http://{taken}").into(), &unix.clone().into()));

    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = taken.local_addr().map(|address| (taken, address.to_string())).expect("bound");
    let told = refused(&["--listen", &unix, "--admin-listen", &taken.1]).await;
    let expected = format!("error: cannot listen on {} (--admin-listen): ", taken.1);
    assert!(told.contains(&expected), "{told}");
    assert!(!folder.0.join("s").exists(), "the socket of a server that did not start is left");
}

#[test]
fn listeners_are_read_from_flags_the_environment_and_lists_in_the_file() {
    let folder = Folder::new();
    folder.file(
        "listen = [\"127.0.0.1:1\", \"unix:/run/a.sock?mode=0600\"]\nadmin-listen = \"http://[::1]:2\"\n",
    );
    let shown = folder.run(&["config", "--config=r.toml"], &[]);
    assert_eq!(shown.line("listen"), r#"listen = "127.0.0.1:1,unix:/run/a.sock?mode=0600" # r.toml:1"#);
    assert_eq!(shown.line("admin-listen"), r#"admin-listen = "http://[::1]:2" # r.toml:2"#);
    // The file that it prints has the same settings.
    let again = folder.file(&shown.out).run(&["config", "--config=r.toml"], &[]);
    assert!(again.line("listen").starts_with(r#"listen = "127.0.0.1:1,unix:/run/a.sock?mode=0600""#));
    let flags =
        folder.run(&["config", "--listen=127.0.0.1:1", "--listen=unix:/a"], &[("REJOIN_LISTEN", "x:y")]);
    assert!(flags.code == Some(2) && flags.err.contains("REJOIN_LISTEN: expected an address"), "{flags:?}");
    let variable = folder
        .run(&["config", "--admin-listen=:1", "--insecure-open"], &[("REJOIN_LISTEN", "[::1]:1,unix:/a")]);
    assert_eq!(variable.line("listen"), r#"listen = "[::1]:1,unix:/a" # REJOIN_LISTEN"#);

    let same = "two listeners have the same address";
    for (arguments, told) in [
        (&["--listen=127.0.0.1:1,localhost:1"][..], same),
        (&["--listen=127.0.0.1:1", "--admin-listen=http://127.0.0.1:1"], same),
        (&["--listen=unix:/a", "--admin-listen=unix:///a"], same),
        (&["--listen=:1", "--insecure-open", "--admin-listen=localhost:1"], same),
        (&["--admin-listen=:1"], "an address beyond loopback, as :PORT is too, requires credentials"),
        (&["--admin-listen=:1", "--jwt-secret=short"], "can be guessed"),
        (&["--listen=unix:a"], "--listen: expected a Unix socket with an absolute path"),
        (&["--listen="], "--listen: expected an address"),
        (
            &["--admin-listen=unix:/a?mode=8"],
            "--admin-listen: mode: expected the permissions as an octal number",
        ),
    ] {
        let run = folder.file("").run(&[&["config", "--config=r.toml"], arguments].concat(), &[]);
        assert!(run.code == Some(2) && run.err.contains(told), "{arguments:?}: {run:?}");
    }
}

#[tokio::test]
async fn a_listener_that_changes_in_the_file_waits_for_a_restart() {
    let folder = Folder::new();
    let path = folder.path("r.toml");
    folder.file("admin-listen = \"127.0.0.1:0\"\n");
    let mut program = Program::start(&["--config", &path]).await;
    folder.file("");
    program.send_sighup();
    program.until_logged("this setting has changed; restart the server to apply it").await;
    get(&program.server, "/stats").answer().await.problem(404, "not_found");
    let log = program.terminate().await.log;
    assert!(log.contains("\"admin-listen\""), "{log}");
}
