//! `rejoin config` prints a file. A server that starts from it has the same settings, keys and grants, or it does not
//! start and says why.

use std::net::TcpListener;

use reqwest::Method;

use crate::{
    settings::Run,
    signer::{SECRET, Signer},
    support::{
        http_client,
        program::{Folder, Program},
    },
};

/// An API key, and its hash.
const KEY: &str = "rejoin_test";
const SHA256: &str = "07a81bb06f446b6aa4249c22d5cf2273b33d97e95c589c9c1ba25f9c941259fd";

/// The lines of a printed file without its comments.
fn values(printed: &str) -> Vec<String> {
    let lines = printed.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split("  # ").next().unwrap_or_default().trim().to_owned()).collect()
}

/// Configurations without a secret: flags, and a file.
fn without_secrets() -> Vec<(&'static [&'static str], String)> {
    let signer = Signer::new("ES256");
    let key = format!("[[key]]\nname = \"a \\\"b\\\" # c\"\nsha256 = \"{SHA256}\"\nsubscribe = [\"news\"]\n");
    vec![
        (&[], String::new()),
        (
            &[
                "--allowed-host=push.example,live.example",
                "--retain-age=5m",
                "--allowed-origin=https://a.example,http://b.example",
            ],
            String::new(),
        ),
        (&["--log=redis://h:7/3?prefix=p", "--redis-confirm=1"], String::new()),
        (&["--state=+5"], String::new()),
        (&["--state=a \"b\" \u{301}\u{7f} # c"], "insecure-open = 1\nretain-messages = 0x10\n".to_owned()),
        (&["--heartbeat=7s"], format!("{key}publish = [\"a\", \"b.**\"]\n")),
        (
            &[],
            format!(
                "{key}admin = true\n[[key]]\nname = \"b\"\nsha256 = \"{}\"\nmetrics = true\n",
                "0".repeat(64)
            ),
        ),
        (&[], format!("{key}[anonymous]\nsubscribe = [\"news\", \"a.*\"]\n")),
        (&[], "[anonymous]\n".to_owned()),
        (&[], "anonymous = {publish = ['a']}\nkey = []\n".to_owned()),
        (&[], format!("{}aud = \"push\"\nsubscribe = [\"u.{{sub}}\"]\n{key}", signer.table("k"))),
        (&[], format!("[[jwt]]\nname = \"k\"\nalgorithm = \"ES256\"\njwk = '{}'\n", signer.jwk())),
        (&[], "[[jwt]]\nname = \"k\"\nalgorithm = \"ES256\"\nfile = \"key.pem\"\n".to_owned()),
    ]
}

#[test]
fn a_printed_file_has_the_same_settings_keys_and_grants() {
    for (flags, file) in without_secrets() {
        let (folder, other) = (Folder::new(), Folder::new());
        std::fs::write(folder.path("key.pem"), Signer::new("ES256").public).expect("a file");
        folder.file(&file);
        let first = folder.run(&[&["config", "--config=r.toml"], flags].concat(), &[]);
        assert_eq!(first.code, Some(0), "{file}: {first:?}");
        // In another folder, because the file may be printed to any.
        let second = other.file(&first.out).run(&["config", "--config=r.toml"], &[]);
        assert_eq!(second.code, Some(0), "{}: {second:?}", first.out);
        assert_eq!(values(&first.out), values(&second.out), "{file}");
        assert_eq!(
            first.out.contains("\n# open: no credentials are required\n"),
            second.out.contains("\n# open: no credentials are required\n"),
            "{file}: {first:?}"
        );
    }
}

/// The statuses of some requests, without a credential and with the key.
async fn answers(config: &str) -> Vec<u16> {
    let program = Program::start(&["--config", config]).await;
    let client = http_client().build().expect("a client");
    let mut answers = Vec::new();
    for credential in [None, Some(KEY)] {
        for (method, path) in [
            (Method::POST, "/topics/a"),
            (Method::POST, "/topics/news"),
            (Method::GET, "/events?topic=news&wait=0"),
            (Method::GET, "/events?topic=a&wait=0"),
            (Method::GET, "/topics"),
            (Method::GET, "/metrics"),
        ] {
            let mut request = client.request(method, program.server.http(path)).body("x");
            if let Some(key) = credential {
                request = request.bearer_auth(key);
            }
            answers.push(request.send().await.expect("an answer").status().as_u16());
        }
    }
    answers
}

/// Keys and `[anonymous]` were once printed as comments, so a server with the printed file ran open.
#[tokio::test]
async fn a_server_with_a_printed_file_allows_the_same() {
    let of_key = |grants: &str| format!("[[key]]\nname = \"a\"\nsha256 = \"{SHA256}\"\n{grants}\n");
    let mut all = Vec::new();
    for file in [
        String::new(),
        "[anonymous]\n".to_owned(),
        "[anonymous]\nsubscribe = [\"news\"]\n".to_owned(),
        of_key("publish = [\"a\"]\nsubscribe = [\"*\"]"),
        of_key("metrics = true\n[anonymous]\npublish = [\"news\"]"),
        of_key("admin = true"),
    ] {
        let folder = Folder::new();
        let printed = folder.file(&file).run(&["config", "--config=r.toml"], &[]);
        let before = answers(&folder.path("r.toml")).await;
        folder.file(&printed.out);
        assert_eq!(answers(&folder.path("r.toml")).await, before, "{file}: {printed:?}");
        assert!(!all.contains(&before), "each of these files allows something else: {file}");
        all.push(before);
    }
}

fn refused(run: &Run, places: &[&str]) {
    assert!(run.code == Some(2) && run.out.is_empty(), "{run:?}");
    assert_eq!(run.err.lines().count(), places.len(), "{run:?}");
    for (line, place) in run.err.lines().zip(places) {
        assert!(
            line.contains(place) && line.contains("`rejoin config` prints it in place of"),
            "{place}: {run:?}"
        );
        assert!(line.ends_with("put the secret here"), "{run:?}");
    }
}

/// A server with the printed file once accepted tokens that were signed with `***`.
#[test]
fn a_printed_file_without_its_secret_starts_no_server() {
    let jwt = |key: &str| format!("[[jwt]]\nname = \"k\"\nalgorithm = \"HS256\"\n{key}\n");
    let jwk = format!(r#"{{"kty":"oct","k":"{}"}}"#, "hush".repeat(16));
    let secret = "hush".repeat(8);
    for (flag, file, hidden, place) in [
        (format!("--jwt-secret={secret}"), String::new(), secret.as_str(), ": jwt-secret: ***"),
        (String::new(), format!("jwt-secret = '{secret}'"), &secret, ": jwt-secret: ***"),
        ("--log=redis://me:hush@h/0".to_owned(), String::new(), "me:hush", ": log: ***"),
        ("--log=unix:///s?pass=hush".to_owned(), String::new(), "hush", ": log: ***"),
        (String::new(), jwt(&format!("secret = \"{secret}\"")), &secret, ": jwt \"k\": ***"),
        (String::new(), jwt(&format!("jwk = '{jwk}'")), &jwk, ": jwt \"k\": ***"),
    ] {
        let folder = Folder::new();
        let flag = (!flag.is_empty()).then_some(flag.as_str());
        let serve = Vec::from_iter(["--config=r.toml"].into_iter().chain(flag));
        let first = folder.file(&file).run(&[&["config"], &serve[..]].concat(), &[]);
        assert!(first.code == Some(0) && !first.out.contains("hush"), "{first:?}");
        folder.file(&first.out);
        // The address is taken, so that a server which accepts the file ends too, with another code.
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let listen = format!("--listen={}", taken.local_addr().expect("an address"));
        for arguments in [&["--config=r.toml", &listen][..], &["config", "--config=r.toml"]] {
            refused(&folder.run(arguments, &[]), &[place]);
        }
        // The secret may come from where it came from before. A table has no other place.
        if flag.is_some() {
            let again = folder.run(&[&["config"], &serve[..]].concat(), &[]);
            assert_eq!(values(&again.out), values(&first.out), "{again:?}");
        }
        let filled = first.out.replace("\"***\"", "'***'").replace("***", hidden);
        let filled = folder.file(&filled).run(&["config", "--config=r.toml"], &[]);
        assert_eq!(values(&filled.out), values(&first.out), "{filled:?}");
    }
}

#[test]
fn a_credential_of_redis_that_comes_from_a_variable_is_named() {
    let variables = [("REJOIN_REDIS_PASSWORD", "hush"), ("REJOIN_SENTINEL_USERNAME", "hush")];
    let run = Folder::new().run(&["config", "--log=redis://h"], &variables);
    assert!(!run.out.contains("hush"), "{run:?}");
    for (name, _) in variables {
        assert!(run.out.contains(&format!("\n# {name} is set, and is not in this file\n")), "{run:?}");
    }
}

#[test]
fn stars_are_no_secret_in_any_place() {
    let folder = Folder::new();
    for stars in ["*", "***", &"*".repeat(40)] {
        let place = &["--jwt-secret: ***"][..];
        refused(&folder.run(&["config", &format!("--jwt-secret={stars}")], &[]), place);
        refused(&folder.run(&["config"], &[("REJOIN_JWT_SECRET", stars)]), &["REJOIN_JWT_SECRET: ***"]);
        refused(&folder.run(&["token", "--jwt-secret", stars], &[]), place);
        std::fs::write(folder.path("key"), format!("{stars}\n")).expect("a file");
        for key in [format!("secret = \"{stars}\""), "file = \"key\"".to_owned()] {
            folder.file(&format!("[[jwt]]\nname = \"k\"\nalgorithm = \"HS512\"\n{key}\n"));
            refused(&folder.run(&["config", "--config=r.toml"], &[]), &["r.toml:1: jwt \"k\": ***"]);
        }
    }
    // A secret that has some stars in it is one.
    let run = folder.run(&["config", &format!("--jwt-secret=***{SECRET}")], &[]);
    assert_eq!(run.line("jwt-secret"), r#"jwt-secret = "***" # --jwt-secret"#);
}
