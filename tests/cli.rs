//! The program's own commands, as somebody types them: what they print, how they end, and that `pub` and `sub` are a
//! pipe.

#[path = "cli/program.rs"]
mod program;
mod support;

use program::{Program, rejoin};
use support::Server;

const TRANSPORTS: [&str; 4] = ["ws", "sse", "ndjson", "poll"];

/// Lines that are easily damaged on their way: JSON of every kind, quotes, white space, carriage returns, what is not
/// UTF-8, and nothing at all.
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
    assert_eq!((published.code, published.told()), (Some(0), ""), "{published:?}");
    assert_eq!(published.stdout, b"", "what a pipe publishes has no answer");

    for transport in TRANSPORTS {
        let arguments = ["sub", "lines", "--after", "0", "--until-idle", "1s", "--transport", transport];
        let heard = rejoin(&server, &arguments).run().await;
        assert_eq!((heard.code, heard.told()), (Some(0), ""), "{transport}");
        assert_eq!(heard.stdout, input, "{transport}: {:?}", String::from_utf8_lossy(&heard.stdout));
    }
    server.stop().await;
}

#[tokio::test]
async fn what_does_not_fit_on_a_line_comes_as_json() {
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
async fn sub_begins_where_it_is_told() {
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
async fn a_gap_is_told_on_standard_error_and_by_the_exit_code() {
    let server = Server::with(|config| config.retain_messages = 2).await;
    let first = rejoin(&server, &["pub", "t", "0"]).run().await.stdout;
    let first = String::from_utf8(first).expect("an id");
    rejoin(&server, &["pub", "t"]).run_with(b"1\n2\n3\n4\n").await;
    for transport in TRANSPORTS {
        let arguments = ["sub", "t", "--after", first.trim(), "--until-idle", "1s", "--transport", transport];
        let heard = rejoin(&server, &arguments).run().await;
        assert_eq!((heard.code, heard.lines()), (Some(3), vec!["3", "4"]), "{transport}");
        let told = format!("rejoin: gap: what t had after {} and before ", first.trim());
        assert!(heard.told().starts_with(&told), "{transport}: {}", heard.told());
        assert!(heard.told().contains("is gone (retention)\n"), "{transport}: {}", heard.told());
    }
    server.stop().await;
}

#[tokio::test]
async fn what_the_server_refuses_ends_with_one_and_its_words() {
    let server = Server::start().await;
    for arguments in [
        &["pub", "no topic", "x"][..],
        &["sub", "no topic"],
        &["sub", "t", "--after", "yesterday"],
        &["sub", "t", "--transport", "sse", "--since", "yesterday"],
    ] {
        let refused = rejoin(&server, arguments).run().await;
        assert_eq!(refused.code, Some(1), "{arguments:?}: {refused:?}");
        assert!(refused.told().contains("bad_request: "), "{arguments:?}: {}", refused.told());
    }
    server.stop().await;
}

#[tokio::test]
async fn a_line_that_is_too_long_is_named_and_the_others_are_published() {
    let server = Server::with(|config| config.max_payload = 10).await;
    let published = rejoin(&server, &["pub", "t"]).run_with(b"1\n12345678901\n3\n").await;
    assert_eq!(published.code, Some(1), "{published:?}");
    assert!(published.told().contains("line 2 was refused"), "{}", published.told());
    let heard = rejoin(&server, &["sub", "t", "--after", "0", "--until-idle", "500ms"]).run().await;
    assert_eq!(heard.lines(), ["1", "3"]);
    server.stop().await;
}

#[tokio::test]
async fn a_server_that_is_not_there_ends_with_four() {
    let nobody = Server::start().await;
    let url = nobody.http("/");
    nobody.stop().await;
    for arguments in [&["pub", "t", "x"][..], &["sub", "t"]] {
        let arguments = [arguments, &["--url", &url, "--give-up", "100ms"]].concat();
        let given_up = Program::new(&arguments).run().await;
        assert_eq!(given_up.code, Some(4), "{arguments:?}: {given_up:?}");
        assert!(given_up.told().contains("cannot reach it: "), "{}", given_up.told());
    }
}

#[tokio::test]
async fn a_mistake_in_the_command_line_ends_with_two() {
    for arguments in [
        &["sub"][..],
        &["sub", "t", "--after", "0", "--last", "1"],
        &["sub", "t", "--url", "localhost:7070"],
        &["pub", "t", "x", "y"],
        &["sub", "t", "--transport", "pigeon"],
    ] {
        let mistaken = Program::new(arguments).run().await;
        assert_eq!(mistaken.code, Some(2), "{arguments:?}: {mistaken:?}");
    }
}

/// `rejoin sub … | head -1` has what it wanted with the first line, though no second one ever comes.
#[tokio::test]
async fn sub_ends_quietly_when_nobody_reads_it_any_more() {
    let server = Server::start().await;
    for transport in TRANSPORTS {
        let mut sub = rejoin(&server, &["sub", "t", "--after", "0", "--transport", transport]).start();
        rejoin(&server, &["pub", "t", "x"]).run().await;
        assert_eq!(sub.line().await, "x", "{transport}");
        let ended = sub.close_stdout().end().await;
        assert_eq!((ended.code, ended.told()), (Some(0), ""), "{transport}");
    }
    server.stop().await;
}
