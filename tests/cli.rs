//! The program's own commands, as a user types them: what they print, how they end, and that `pub` and `sub`
//! work as a pipe.

#[path = "cli/beginning.rs"]
mod beginning;
#[path = "cli/credentials.rs"]
mod credentials;
#[path = "cli/operating.rs"]
mod operating;
#[path = "cli/options.rs"]
mod options;
#[path = "cli/program.rs"]
mod program;
#[path = "cli/proxy.rs"]
mod proxy;
mod support;

use std::time::Duration;

use program::{Ended, Program, rejoin};
use proxy::Proxy;
use support::{
    Server,
    program::{Folder, Program as Serving},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};

const TRANSPORTS: [&str; 4] = ["ws", "sse", "ndjson", "poll"];

/// Lines that are easily damaged on their way: all kinds of JSON, quotes, white space, carriage returns,
/// bytes that are not UTF-8, and an empty line.
const LINES: &[&[u8]] = &[
    b"hello",
    b"",
    b"{\"a\": [1, 2.50, 1e400]}",
    b"{\"a\":1}\r",
    b"[1,\r2]",
    b"  12  ",
    b"12",
    b"null",
    b"\"quoted\"",
    b"\"half",
    b"\\n \\u0041 \t \x00 \x1b[31m",
    "\u{feff}gr\u{fc}\u{df}e \u{1f980} \u{2028}".as_bytes(),
    b"\xff\xfe\x00",
    b"event: x",
    b"-",
];

#[tokio::test]
async fn every_line_comes_out_as_it_went_in_on_every_transport() {
    let server = Server::start().await;
    let input: Vec<u8> = LINES.iter().flat_map(|line| [line, &b"\n"[..]].concat()).collect();
    let published = rejoin(&server, &["pub", "lines", "-"]).run_with(&input).await;
    assert_eq!((published.code, published.stderr()), (Some(0), ""), "{published:?}");
    assert_eq!(published.stdout, b"", "a pipe prints no answer");

    for transport in TRANSPORTS {
        let arguments = ["sub", "lines", "--after", "0", "--until-idle", "1s", "--transport", transport];
        let heard = rejoin(&server, &arguments).run().await;
        assert_eq!((heard.code, heard.stderr()), (Some(0), ""), "{transport}");
        assert_eq!(heard.stdout, input, "{transport}: {:?}", String::from_utf8_lossy(&heard.stdout));
    }
    server.stop().await;
}

#[tokio::test]
async fn a_message_that_does_not_fit_on_a_line_is_printed_as_json() {
    let server = Server::start().await;
    let mut ids = Vec::new();
    for data in ["two\nlines", "{\n\"a\":1}"] {
        let published = rejoin(&server, &["pub", "t", data]).run().await;
        assert_eq!(published.code, Some(0), "{published:?}");
        ids.push(String::from_utf8(published.stdout).expect("an id").trim().to_owned());
    }
    let text =
        format!("{{\"type\":\"message\",\"topic\":\"t\",\"id\":\"{}\",\"data\":\"two\\nlines\"}}", ids[0]);
    let json =
        format!("{{\"type\":\"message\",\"topic\":\"t\",\"id\":\"{}\",\"data\":{{ \"a\":1}}}}", ids[1]);
    for transport in TRANSPORTS {
        let arguments = ["sub", "t", "--last", "5", "--until-idle", "1s", "--transport", transport];
        let heard = rejoin(&server, &arguments).run().await;
        assert_eq!(heard.lines(), [&*text, "{ \"a\":1}"], "{transport}");
        let heard = rejoin(&server, &[&arguments[..], &["--json"]].concat()).run().await;
        assert_eq!(heard.lines(), [&*text, &*json], "{transport}");
    }
    server.stop().await;
}

#[tokio::test]
async fn sub_begins_where_its_flags_say() {
    let server = Server::start().await;
    let mut ids = Vec::new();
    for data in ["1", "2", "3"] {
        let published = rejoin(&server, &["pub", "t", data]).run().await;
        ids.push(String::from_utf8(published.stdout).expect("an id").trim().to_owned());
    }
    for transport in TRANSPORTS {
        for (start, expected) in [
            (vec!["--after", &ids[0]], &["2", "3"][..]),
            (vec!["--last", "1"], &["3"]),
            (vec!["--since", "1h"], &["1", "2", "3"]),
            (vec![], &[]),
        ] {
            let arguments =
                [&["sub", "t", "--until-idle", "500ms", "--transport", transport][..], &start].concat();
            let heard = rejoin(&server, &arguments).run().await;
            assert_eq!((heard.code, heard.lines()), (Some(0), expected.to_vec()), "{transport} {start:?}");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn sub_reports_a_gap_on_standard_error_and_by_its_exit_code() {
    let server = Server::with(|config| config.retain_messages = 2).await;
    let first = rejoin(&server, &["pub", "t", "0"]).run().await.stdout;
    let first = String::from_utf8(first).expect("an id");
    rejoin(&server, &["pub", "t"]).run_with(b"1\n2\n3\n4\n").await;
    for transport in TRANSPORTS {
        let arguments = ["sub", "t", "--after", first.trim(), "--until-idle", "1s", "--transport", transport];
        let heard = rejoin(&server, &arguments).run().await;
        assert_eq!((heard.code, heard.lines()), (Some(3), vec!["3", "4"]), "{transport}");
        let told = format!("rejoin: gap: messages of t after {} and before ", first.trim());
        assert!(heard.stderr().starts_with(&told), "{transport}: {}", heard.stderr());
        assert!(heard.stderr().contains("are gone (retention)\n"), "{transport}: {}", heard.stderr());
    }
    server.stop().await;
}

#[tokio::test]
async fn a_refusal_ends_with_code_1_and_the_servers_words() {
    let server = Server::start().await;
    for arguments in [
        &["pub", "no topic", "x"][..],
        &["sub", "no topic"],
        &["sub", "t", "--after", "yesterday"],
        &["sub", "t", "--transport", "sse", "--since", "yesterday"],
    ] {
        let refused = rejoin(&server, arguments).run().await;
        assert_eq!(refused.code, Some(1), "{arguments:?}: {refused:?}");
        assert!(refused.stderr().contains("bad_request: "), "{arguments:?}: {}", refused.stderr());
    }
    let line = rejoin(&server, &["pub", "no topic"]).run_with(b"x\n").await;
    assert!(line.stderr().starts_with("rejoin: line 1: bad_request: "), "{}", line.stderr());
    // The message came from the command line, so the error names no line.
    let data = rejoin(&server, &["pub", "no topic", "x"]).run().await;
    assert!(data.stderr().starts_with("rejoin: the message: bad_request: "), "{}", data.stderr());
    server.stop().await;
}

/// Another kind of web server answers a POST that it does not know.
#[tokio::test]
async fn another_web_server_is_recognized_and_not_asked_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("a bound address"));
    let stranger = tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let _ = client.read(&mut [0; 4096]).await;
            let answer = b"HTTP/1.1 501 Not Implemented\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            let _ = client.write_all(answer).await;
        }
    });
    for command in ["pub", "sub"] {
        let refused = Program::new(&[command, "t", "--url", &url]).run_with(b"x\n").await;
        assert_eq!(refused.code, Some(1), "{command}: {refused:?}");
        let told = "rejoin: 501 Not Implemented: the answer does not come from Rejoin\n";
        assert_eq!(refused.stderr(), told, "{command}");
    }
    stranger.abort();
}

#[tokio::test]
async fn pub_names_a_line_that_is_too_long_and_publishes_the_others() {
    let server = Server::with(|config| config.max_payload = 10).await;
    let published = rejoin(&server, &["pub", "t"]).run_with(b"1\n12345678901\n3\n").await;
    assert_eq!(published.code, Some(1), "{published:?}");
    assert!(published.stderr().contains("line 2 was refused"), "{}", published.stderr());
    let heard = rejoin(&server, &["sub", "t", "--after", "0", "--until-idle", "500ms"]).run().await;
    assert_eq!(heard.lines(), ["1", "3"]);
    server.stop().await;
}

#[tokio::test]
async fn an_unreachable_server_ends_with_code_4() {
    let nobody = Server::start().await;
    let url = nobody.http("/");
    nobody.stop().await;
    for arguments in [&["pub", "t", "x"][..], &["sub", "t"]] {
        let arguments = [arguments, &["--url", &url, "--give-up", "100ms"]].concat();
        let given_up = Program::new(&arguments).run().await;
        assert_eq!(given_up.code, Some(4), "{arguments:?}: {given_up:?}");
        assert!(given_up.stderr().contains("cannot reach http://"), "{}", given_up.stderr());
    }
}

/// Behind a proxy that cuts every connection, a script waited forever, because each connection began to wait
/// anew.
#[tokio::test]
async fn sub_ends_though_every_connection_is_cut_off_before() {
    let server = Server::start().await;
    rejoin(&server, &["pub", "t", "x"]).run().await;
    let proxy = |millis| Proxy::impatient(server.addr, Duration::from_millis(millis));
    let (lasting, hasty) = (proxy(1500).await, proxy(100).await);
    let ends = TRANSPORTS.map(|transport| {
        let sub = |url: &str, arguments: &[&str]| {
            let common = ["sub", "t", "--after", "0", "--transport", transport, "--url", url];
            Program::new(&[&common[..], arguments].concat()).run()
        };
        let idle = sub(&lasting.url(), &["--until-idle", "3s"]);
        let given_up = sub(&hasty.url(), &["--until-idle", "3s", "--give-up", "2s"]);
        async move { (transport, idle.await, given_up.await) }
    });
    for (transport, idle, given_up) in futures_util::future::join_all(ends).await {
        assert_eq!((idle.code, idle.lines()), (Some(0), vec!["x"]), "{transport}: {idle:?}");
        assert_eq!((given_up.code, given_up.lines()), (Some(4), vec!["x"]), "{transport}: {given_up:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_mistake_in_the_command_line_ends_with_code_2() {
    for arguments in [
        &["sub"][..],
        &["sub", "t", "--after", "0", "--last", "1"],
        &["sub", "t", "--url", "localhost:7070"],
        &["pub", "t", "x", "y"],
        &["pub", "t", "x", "--file", "f"],
        &["pub", "t", "x", "--key", "k", "--ephemeral"],
        &["pub", "t", "--key", "k"],
        &["pub", "t", "-", "--key", "k"],
        &["pub", "t", "x", "--token", "t", "--token-file", "f"],
        &["delete"],
        &["sub", "t", "--transport", "pigeon"],
        &["sub", "t", "--until-idle", "99999999999y"],
        &["sub", "t", "--give-up", "99999999999y"],
        &["pub", "t", "--give-up", "0s"],
        &["bench", "--subscribers", "0"],
        &["bench", "--duration", "2h"],
        &["bench", "localhost:7070"],
    ] {
        let mistaken = Program::new(arguments).run().await;
        assert_eq!(mistaken.code, Some(2), "{arguments:?}: {mistaken:?}");
    }
}

#[tokio::test]
async fn shell_completions_contain_every_command() {
    let shell = Program::new(&["completions", "bash"]).run().await;
    assert_eq!(shell.code, Some(0), "{shell:?}");
    let script = shell.lines().join("\n");
    for name in [
        "serve",
        "config",
        "pub",
        "sub",
        "bench",
        "topics",
        "health",
        "completions",
        "man",
        "--until-idle",
        "--listen",
    ] {
        assert!(script.contains(name), "{name} is not completed");
    }
}

/// `rejoin sub … | head -1` should end after the first line, even if no second one ever comes.
#[tokio::test]
async fn sub_ends_quietly_when_its_output_is_closed() {
    let server = Server::start().await;
    for transport in TRANSPORTS {
        let mut sub = rejoin(&server, &["sub", "t", "--after", "0", "--transport", transport]).start();
        rejoin(&server, &["pub", "t", "x"]).run().await;
        assert_eq!(sub.line().await, "x", "{transport}");
        let ended = sub.close_stdout().end().await;
        assert_eq!((ended.code, ended.stderr()), (Some(0), ""), "{transport}");
    }
    server.stop().await;
}

/// Numbered lines, some of JSON and some of text.
fn numbered(count: usize) -> Vec<u8> {
    let line = |n| if n % 3 == 0 { format!("line {n}\n") } else { format!("{{\"n\": {n}}}\n") };
    (0..count).map(line).collect::<String>().into_bytes()
}

/// A reader on each transport, from the beginning. It ends when it has received nothing for a while.
fn readers(url: &str) -> [(&'static str, JoinHandle<Ended>); 4] {
    TRANSPORTS.map(|transport| {
        let arguments = ["sub", "lines", "--after", "0", "--url", url, "--until-idle", "5s", "--transport"];
        (transport, tokio::spawn(Program::new(&[&arguments[..], &[transport]].concat()).run()))
    })
}

async fn assert_exact(readers: [(&'static str, JoinHandle<Ended>); 4], input: &[u8]) {
    for (transport, reader) in readers {
        let heard = reader.await.expect("it does not panic");
        assert_eq!(heard.code, Some(0), "{transport}: {}", heard.stderr());
        assert!(heard.stdout == input, "{transport}: {} lines: {}", heard.lines().len(), heard.stderr());
    }
}

#[tokio::test]
async fn pub_into_sub_is_exact_through_restarts_of_the_server() {
    let folder = Folder::new();
    let arguments = ["--state", &folder.path("state"), "--retain-messages", "1000000"];
    let mut serving = Serving::start(&arguments).await;
    let proxy = Proxy::to(serving.server.addr).await;
    let mut watcher = Program::new(&["sub", "lines", "--after", "0", "--url", &proxy.url()]).start();
    let readers = readers(&proxy.url());

    let input = numbered(20_000);
    let mut publisher = Program::new(&["pub", "lines", "--url", &proxy.url()]).start();
    let restarts = async {
        for _ in 0..3 {
            // In the middle of the input.
            for _ in 0..3_000 {
                watcher.line().await;
            }
            let ended = serving.terminate().await;
            assert_eq!(ended.code, Some(0), "{ended:?}");
            serving = Serving::start(&arguments).await;
            proxy.point_at(serving.server.addr);
        }
        watcher.close_stdout().end().await;
        serving
    };
    let publish = async {
        publisher.write(&input).await;
        publisher.end().await
    };
    let (_serving, published) = tokio::join!(restarts, publish);
    assert_eq!(published.code, Some(0), "{}", published.stderr());
    assert_exact(readers, &input).await;
}

/// If `pub` is cut off in the middle of an answer, it cannot know what was stored; `sub` may hold half a
/// message.
#[tokio::test]
async fn pub_into_sub_is_exact_though_connections_break_at_any_byte() {
    let server = Server::with(|config| config.retain_messages = 1_000_000).await;
    let proxy = Proxy::cutting(server.addr, |number| number * 12_347 % 150_000).await;
    let readers = readers(&proxy.url());
    let input = numbered(10_000);
    let mut publisher = Program::new(&["pub", "lines", "--url", &proxy.url()]).start();
    publisher.write(&input).await;
    let published = publisher.end().await;
    assert_eq!(published.code, Some(0), "{}", published.stderr());
    assert!(published.stderr().contains("the connection was lost"), "{}", published.stderr());
    assert_exact(readers, &input).await;
    server.stop().await;
}

#[tokio::test]
async fn sub_reports_what_a_crash_lost_and_continues() {
    let serving = Serving::start(&[]).await;
    let proxy = Proxy::to(serving.server.addr).await;
    let mut sub =
        Program::new(&["sub", "t", "--after", "0", "--url", &proxy.url(), "--until-idle", "3s"]).start();
    Program::new(&["pub", "t", "before", "--url", &proxy.url()]).run().await;
    assert_eq!(sub.line().await, "before");
    serving.kill().await;
    let serving = Serving::start(&[]).await;
    proxy.point_at(serving.server.addr);
    Program::new(&["pub", "t", "after", "--url", &proxy.url()]).run().await;
    assert_eq!(sub.line().await, "after");
    let ended = sub.end().await;
    assert_eq!(ended.code, Some(3), "{}", ended.stderr());
    assert!(ended.stderr().contains("are gone (restarted)"), "{}", ended.stderr());
}

/// A rate limit refuses messages in the middle of a batch, and the messages after them must not overtake
/// them. As long as some messages are stored, `pub` does not give up.
#[tokio::test]
async fn a_rate_limit_slows_pub_down_and_changes_no_order() {
    let server = Server::with(|config| config.publish_rate = 200).await;
    let input = numbered(600);
    let published = rejoin(&server, &["pub", "t", "--give-up", "1s"]).run_with(&input).await;
    assert_eq!(published.code, Some(0), "{}", published.stderr());
    assert!(published.stderr().contains("rate_limited"), "{}", published.stderr());
    let heard = rejoin(&server, &["sub", "t", "--after", "0", "--until-idle", "1s"]).run().await;
    assert_eq!(heard.stdout, input);
    server.stop().await;
}

impl Ended {
    /// The first number of a row of the table that `bench` prints.
    #[track_caller]
    fn row(&self, name: &str) -> u64 {
        let number =
            |line: &str| line.strip_prefix(name)?.split_whitespace().next()?.replace(',', "").parse().ok();
        let found = self.lines().into_iter().find_map(number);
        found.unwrap_or_else(|| panic!("no {name}: {self:?}"))
    }
}

#[tokio::test]
async fn bench_counts_what_it_delivered_on_every_transport() {
    let server = Server::start().await;
    for transport in TRANSPORTS {
        let arguments =
            ["bench", "--subscribers", "5", "--topics", "2", "--rate", "200", "--duration", "500ms"];
        let bench = rejoin(&server, &[&arguments[..], &["--transport", transport]].concat()).run().await;
        assert_eq!((bench.code, bench.stderr()), (Some(0), ""), "{transport}: {bench:?}");
        let published = bench.row("published");
        assert!((1..=100).contains(&published), "{bench:?}");
        // The first topic has three readers, and the second has two.
        assert_eq!(bench.row("delivered"), 3 * published.div_ceil(2) + 2 * (published / 2), "{bench:?}");
        for nothing in ["lost", "duplicated", "reordered", "gaps told", "cut off"] {
            assert_eq!(bench.row(nothing), 0, "{transport}: {nothing}: {bench:?}");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn bench_counts_what_the_server_lost() {
    // Only one message is retained, so a reader that is one message late loses it.
    let server = Server::with(|config| config.retain_messages = 1).await;
    let arguments = ["--subscribers", "2", "--rate", "5000", "--duration", "500ms", "--transport", "poll"];
    let bench = Program::new(&[&["bench", &server.http("")][..], &arguments].concat()).run().await;
    assert_eq!(bench.code, Some(3), "{bench:?}");
    assert!(bench.stderr().contains("deliveries are missing"), "{bench:?}");
    assert!(bench.row("lost") > 0 && bench.row("gaps told") > 0, "{bench:?}");
    assert_eq!(bench.row("delivered") + bench.row("lost"), 2 * bench.row("published"), "{bench:?}");
    assert_eq!((bench.row("duplicated"), bench.row("reordered")), (0, 0), "{bench:?}");
    server.stop().await;
}

#[tokio::test]
async fn bench_ends_when_it_is_refused_or_cannot_connect() {
    let limited = Server::with(|config| config.publish_rate = 1).await;
    let bench = rejoin(&limited, &["bench", "--rate", "1000", "--duration", "1s"]).run().await;
    assert_eq!((bench.code, bench.stdout.len()), (Some(1), 0), "{bench:?}");
    assert!(bench.stderr().contains("a message was refused: rate_limited"), "{bench:?}");
    limited.stop().await;

    let full = Server::with(|config| config.max_connections = 3).await;
    let bench = rejoin(&full, &["bench", "--subscribers", "4", "--transport", "sse"]).run().await;
    assert_eq!(bench.code, Some(4), "{bench:?}");
    let url = full.http("/");
    full.stop().await;
    let bench = Program::new(&["bench", &url]).run().await;
    assert_eq!(bench.code, Some(4), "{bench:?}");
    assert!(bench.stderr().contains("cannot reach http://"), "{bench:?}");

    let secret = "x".repeat(32);
    let closed =
        Server::with(|config| config.jwt_secret = Some(rejoin::config::Secret(secret.clone()))).await;
    let bench = rejoin(&closed, &["bench"]).run().await;
    assert_eq!(bench.code, Some(1), "{bench:?}");
    assert!(bench.stderr().contains("unauthorized"), "{bench:?}");
    let granted = ["--subscribe", "bench.**", "--publish", "bench.**"];
    let token = Program::new(&[&["token", "--jwt-secret", &secret, "--sub", "b"][..], &granted].concat());
    let token = token.run().await.lines().concat();
    let bench = rejoin(&closed, &["bench", "--token", &token, "--duration", "100ms"]).run().await;
    assert_eq!((bench.code, bench.stderr()), (Some(0), ""), "{bench:?}");
    closed.stop().await;
}
