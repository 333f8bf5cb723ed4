//! Flags, environment and file, as the program reads them.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::Path,
    process::{Command, Output},
};

use crate::support::program::{Folder, Program};

impl Folder {
    pub fn file(&self, text: &str) -> &Self {
        std::fs::write(self.0.join("r.toml"), text).expect("a file");
        self
    }

    pub fn run(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Run {
        run(&self.0, arguments, variables)
    }

    fn run_with(&self, arguments: &[&str], variables: &[(&OsStr, &OsStr)]) -> Run {
        run(&self.0, arguments, variables)
    }
}

#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

fn run<V: AsRef<OsStr>>(folder: &Path, arguments: &[&str], variables: &[(V, V)]) -> Run {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_rejoin"))
        .env_clear()
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .current_dir(folder)
        .args(arguments)
        .output()
        .expect("it runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Run { code: status.code(), out: text(stdout), err: text(stderr) }
}

impl Run {
    /// The line of `rejoin config` for one setting, with single spaces.
    pub fn line(&self, name: &str) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        let line = self.out.lines().find(|line| line.starts_with(&format!("{name} = ")));
        line.unwrap_or_else(|| panic!("no {name}: {self:?}")).split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

#[test]
fn flags_override_the_environment_which_overrides_the_file() {
    let folder = Folder::new();
    folder.file(
        "# first\nretain-age = \"2h\"\nretain-messages = 7\nheartbeat = \"9s\"\ninsecure-open = true\n",
    );
    let run = folder.run(
        &["config", "--config", "r.toml", "--retain-age", "3h"],
        &[("REJOIN_RETAIN_AGE", "4h"), ("REJOIN_HEARTBEAT", "8s"), ("REJOIN_RETAIN_MESSAGES", "")],
    );
    assert_eq!(run.line("retain-age"), r#"retain-age = "3h" # --retain-age"#);
    assert_eq!(run.line("heartbeat"), r#"heartbeat = "8s" # REJOIN_HEARTBEAT"#);
    assert_eq!(run.line("retain-messages"), "retain-messages = 7 # r.toml:3");
    assert_eq!(run.line("insecure-open"), "insecure-open = true # r.toml:5");
    assert_eq!(run.line("listen"), r#"listen = "127.0.0.1:7070" # default"#);
}

/// Only some builds can order certificates. The others must say so, and not serve without TLS.
#[cfg(not(feature = "acme"))]
#[test]
fn a_program_without_acme_says_how_to_get_it() {
    let run = Folder::new().run(&["--tls-acme", "push.example", "--tls-acme-state", "."], &[]);
    assert_eq!(run.code, Some(2), "{run:?}");
    assert!(run.err.contains("cargo install --locked --profile dist --features dist --path ."), "{run:?}");
}

#[test]
fn all_mistakes_are_reported_at_once_with_their_places() {
    let folder = Folder::new();
    folder.file(
        "hartbeat = \"3s\"\nheartbeat = \"x\"\nmax-payload = \"1MiB\"\nretain-messages = 0\n\n[nothing]\na = 1\n",
    );
    let run = folder.run(
        &["--config", "r.toml", "--retain-bytes", "1KiB", "--drain-grace", "soon"],
        &[("REJOIN_LISTEN", "here"), ("REJOIN_RETAIN_MESSAGES", "12")],
    );
    assert_eq!(run.code, Some(2), "{run:?}");
    for told in [
        "r.toml:1: unknown setting `hartbeat`",
        "r.toml:2: heartbeat: expected a duration",
        // The value is overridden, but it is still wrong.
        "r.toml:4: retain-messages: must be at least 1",
        "r.toml:6: unknown setting `nothing`",
        "REJOIN_LISTEN: expected an address",
        "--drain-grace: expected a duration",
        "--retain-bytes is less than --max-payload (retain-bytes = 1KiB, --retain-bytes; max-payload = 1MiB, r.toml:3)",
    ] {
        assert!(run.err.contains(told), "{told}: {run:?}");
    }
    assert_eq!(run.err.lines().count(), 7, "{run:?}");
}

/// A `retain-age` of too many years once made the server panic at its first message.
#[test]
fn values_out_of_range_are_refused() {
    let folder = Folder::new();
    for (setting, told) in [
        ("--retain-age=500000000y", "must be at most 10 years"),
        ("--heartbeat=11y", "must be at most 10 years"),
        ("--drain-grace=18446744073709551615s", "must be at most 10 years"),
        ("--max-payload=3EiB", "must be less than 1PiB"),
        ("--retain-bytes=0", "must be more than zero"),
        ("--max-connections=18446744073709551615", "must be less than 2^50"),
        ("--retain-messages=99999999999999999999", "must be less than 2^50"),
        ("--retain-messages=-4", "expected a whole number, at least 1"),
        ("--publish-rate=-4", "expected a whole number that is not negative"),
        ("--publish-rate=4294967296", "must be less than 2^32"),
    ] {
        let run = folder.run(&["config", setting], &[]);
        assert!(run.code == Some(2) && run.err.contains(told), "{setting}: {run:?}");
    }
    // clap once took a negative number after a space for a flag.
    let run = folder.run(&["config", "--retain-messages", "-4", "--redis-confirm", "-1"], &[]);
    for told in ["--retain-messages: expected a whole number", "--redis-confirm: expected a whole number"] {
        assert!(run.code == Some(2) && run.err.contains(told), "{told}: {run:?}");
    }
    let run = folder.run(&["config", "--retain-age=10y", "--retain-total=1023TiB", "--publish-rate=0"], &[]);
    assert_eq!(run.code, Some(0), "{run:?}");
}

#[test]
fn the_configuration_file_in_the_documentation_is_valid() {
    let page = include_str!("../../docs/operations.md");
    let (_, rest) = page.split_once("```toml\n").expect("it has a file");
    let (file, _) = rest.split_once("```").expect("it ends");
    let run = Folder::new().file(file).run(&["config", "--config=r.toml"], &[]);
    assert_eq!(run.line("retain-age"), r#"retain-age = "24h" # r.toml:4"#);
}

#[test]
fn every_syntax_error_is_reported_with_its_line() {
    let folder = Folder::new();
    let run = folder
        .file("listen = \nlog = \"\nheartbeat = '1s'\nheartbeat = '2s'\n")
        .run(&["--config=r.toml"], &[]);
    assert_eq!(run.code, Some(2), "{run:?}");
    for place in ["r.toml:1: ", "r.toml:2: ", "r.toml:4: "] {
        assert!(run.err.contains(place), "{place}: {run:?}");
    }
    let run = folder.run(&[], &[("REJOIN_CONFIG", "other.toml")]);
    assert!(run.code == Some(2) && run.err.contains("other.toml: cannot read the file"), "{run:?}");
}

#[test]
fn secrets_are_hidden_in_settings_and_mistakes() {
    let folder = Folder::new();
    for log in [
        "redis://me:hush@h/0",
        "redis://:hu@hush@h?pass=hush",
        "unix:///s?pass=hush",
        "rediss://hush?@h",
        "redis+sentinel://me:hush@h,g/name?sentinel-password=hush",
    ] {
        for arguments in
            [&["config"][..], &["config", "--listen=0.0.0.0:1"], &["--log=memory", "--heartbeat=0s"]]
        {
            let run = folder.run(
                arguments,
                &[
                    ("REJOIN_LOG", log),
                    ("REJOIN_REDIS_PASSWORD", "hush"),
                    ("REJOIN_SENTINEL_PASSWORD", "hush"),
                ],
            );
            assert!(!run.out.contains("hush") && !run.err.contains("hush"), "{run:?}");
        }
    }
    let shown = folder.run(&["config", "--log=redis://me:x@h:7/3?prefix=p"], &[]).line("log");
    assert_eq!(shown, r#"log = "redis://***@h:7/3?prefix=p" # --log"#);
}

#[test]
fn an_unknown_variable_is_warned_of() {
    let variables =
        [("REJOIN_RETAIN_AEG", "2h"), ("REJOIN_TOKEN", "t"), ("REJOIN_PORT_7070_TCP", "tcp://10.0.0.1:7070")];
    let run = Folder::new().run(&["config"], &variables);
    assert_eq!(run.line("retain-age"), r#"retain-age = "1h" # default"#);
    let told = "warning: REJOIN_RETAIN_AEG: there is no setting of this name; the variable is ignored\n";
    assert_eq!(run.err, told);
}

/// Ends a server that accepts its settings, because the path of its state file is wrong.
const NOWHERE: &str = "--state=/nowhere/at/all";

#[test]
fn an_address_may_name_localhost_or_no_host() {
    let folder = Folder::new();
    for (listen, code) in [("localhost:7070", 0), ("localhost:0", 0), ("127.0.0.1:0", 0), (":7070", 2)] {
        let run = folder.run(&["config", "--listen", listen], &[]);
        assert_eq!(run.code, Some(code), "{listen}: {run:?}");
    }
    let all = folder.run(&["config", "--listen=:7070", "--insecure-open"], &[]);
    assert_eq!(all.line("listen"), r#"listen = ":7070" # --listen"#);
    for wrong in ["localhost", "localhost:x", ":", ":65536", "7070", "host:7070", "a.localhost:1", "::1:7"] {
        let run = folder.run(&["config", "--listen", wrong], &[]);
        let told =
            run.err.contains("--listen: expected an address and a port") && run.err.contains(":7070 for all");
        assert!(run.code == Some(2) && told, "{wrong}: {run:?}");
    }
}

#[test]
fn an_open_address_names_the_three_ways_to_allow_it() {
    let folder = Folder::new();
    for listen in ["0.0.0.0:0", ":0", "[::]:0"] {
        let run = folder.run(&["--listen", listen, NOWHERE], &[]);
        for told in
            ["[[key]]", "[[jwt]]", "--jwt-secret", "[anonymous]", "--insecure-open", "as :PORT is too"]
        {
            assert!(run.code == Some(2) && run.err.contains(told), "{listen}: {told}: {run:?}");
        }
        assert_eq!(run.err.lines().count(), 1, "{run:?}");
        for allows in [
            "[anonymous]\nsubscribe = [\"a\"]",
            "insecure-open = true",
            "jwt-secret = \"0123456789abcdef0123456789abcdef\"",
        ] {
            let run = folder.file(allows).run(&["config", "--config=r.toml", "--listen", listen], &[]);
            assert_eq!(run.code, Some(0), "{allows}: {run:?}");
        }
    }
    // A secret that cannot be used is one mistake, and not also a server without credentials.
    let run = folder.run(&["config", "--listen=:0", "--jwt-secret=***"], &[]);
    assert!(run.code == Some(2) && run.err.lines().count() == 1, "{run:?}");
}

#[test]
fn a_short_secret_is_for_loopback_only() {
    let folder = Folder::new();
    let (short, enough) = ("s".repeat(31), "s".repeat(32));
    for (secret, listen, code) in [(&short, ":0", 2), (&short, "[::1]:0", 0), (&enough, ":0", 0)] {
        let run = folder.run(&["config", "--listen", listen, "--jwt-secret", secret], &[]);
        assert_eq!(run.code, Some(code), "{listen} {secret}: {run:?}");
        assert_eq!(
            run.err.contains("--jwt-secret of less than 32 bytes can be guessed"),
            code == 2,
            "{run:?}"
        );
        assert!(!run.err.contains(secret.as_str()), "{run:?}");
    }
}

#[tokio::test]
async fn a_short_secret_is_warned_of_on_loopback() {
    for (bytes, is_warned) in [(31, true), (32, false)] {
        let program = Program::start(&["--jwt-secret", &"s".repeat(bytes)]).await;
        let log = program.terminate().await.log;
        assert_eq!(log.contains("--jwt-secret has less than 32 bytes"), is_warned, "{log}");
    }
}

#[test]
fn a_log_without_a_host_is_a_mistake_in_our_words() {
    let folder = Folder::new();
    for log in ["redis://", "redis:///0", "rediss://?prefix=p", "redis+sentinel:///m"] {
        let run = folder.run(&["config", "--log", log], &[]);
        assert!(run.code == Some(2) && !run.err.contains("InvalidClientConfig"), "{log}: {run:?}");
        assert!(run.err.contains("--log: the URL lacks the host"), "{log}: {run:?}");
    }
    let run = folder.run(&["config", "--log=unix:///run/redis"], &[]);
    assert_eq!(run.code, Some(0), "{run:?}");
}

#[test]
fn a_key_in_the_file_is_a_mistake_that_says_how_to_store_it() {
    let folder = Folder::new();
    folder.file("[[key]]\nname = \"a\"\nkey = \"hush\"\n\n[[key]]\nname = \"b\"\n");
    let run = folder.run(&["config", "--config=r.toml"], &[]);
    for told in ["r.toml:1: key \"a\": ", "`sha256`", "`printf %s KEY | sha256sum`", "`rejoin key new`"] {
        assert!(run.code == Some(2) && run.err.contains(told), "{told}: {run:?}");
    }
    assert!(
        run.err.contains("r.toml:5: key \"b\": sha256 is missing") && !run.err.contains("hush"),
        "{run:?}"
    );
}

/// Such a server accepted its certificate, and each client that used TLS was refused.
#[test]
fn a_certificate_needs_an_address_that_speaks_tls() {
    use crate::support::tls::PAIR;
    let folder = Folder::new();
    std::fs::write(folder.path("c"), &PAIR.certificate).expect("a file");
    std::fs::write(folder.path("k"), &PAIR.key).expect("a file");
    let (files, acme) = (["--tls-cert=c", "--tls-key=k"], ["--tls-acme=a.example", "--tls-acme-state=s"]);
    for certificate in [files, acme].iter().filter(|one| **one == files || cfg!(feature = "acme")) {
        for (listen, code) in [
            (&["--listen=unix:/s"][..], 2),
            (&["--listen=http://:0", "--insecure-open"], 2),
            (&["--listen=unix:/s", "--listen=http://127.0.0.1:0"], 2),
            (&["--listen=unix:/s", "--admin-listen=127.0.0.1:0"], 0),
            (&["--listen=http://127.0.0.1:0", "--listen=127.0.0.1:0"], 0),
        ] {
            let run = folder.run(&[&["config"], &certificate[..], listen].concat(), &[]);
            assert_eq!(run.code, Some(code), "{run:?}");
            let told = run.err.contains("TLS is configured, and every address is plain");
            assert_eq!(told, code == 2, "{run:?}");
        }
    }
    let run = folder.run(&["config", "--listen=https://:443"], &[]);
    assert!(run.code == Some(2) && run.err.contains("--listen: leave https:// out"), "{run:?}");
}

#[test]
fn settings_for_proxies_need_a_proxy_that_is_trusted() {
    let folder = Folder::new();
    for setting in ["--proxy-protocol", "--forwarded-header=forwarded"] {
        let run = folder.run(&["config", setting], &[]);
        assert!(run.code == Some(2) && run.err.contains("works only with --trusted-proxy"), "{run:?}");
        let trusted = "--trusted-proxy=10.1.2.3/8,::1";
        let run = folder.run(&["config", setting, trusted], &[("REJOIN_ACCESS_LOG", "combined")]);
        assert_eq!(run.line("trusted-proxy"), r#"trusted-proxy = "10.1.2.3/8,::1" # --trusted-proxy"#);
        assert_eq!(run.line("access-log"), r#"access-log = "combined" # REJOIN_ACCESS_LOG"#);
    }
    for (wrong, told) in [
        ("--trusted-proxy=0.0.0.0/0", "must be less than all addresses"),
        ("--trusted-proxy=proxy.example", "expected an address or a network"),
        ("--forwarded-header=x-real-ip", "expected x-forwarded-for or forwarded"),
        ("--access-log=common", "expected off, json or combined"),
        ("--log-format=xml", "expected text, json or auto"),
    ] {
        let run = folder.run(&["config", wrong], &[]);
        assert!(run.code == Some(2) && run.err.contains(told), "{wrong}: {run:?}");
    }
}

#[test]
fn there_are_few_settings() {
    let help = run(Path::new("/"), &["serve", "--help"], &[("COLUMNS", "100")]).out;
    let flags = help.lines().filter(|line| line.trim_start().starts_with("--"));
    assert!((15..=36).contains(&flags.count()), "{help}");
}

/// Such a variable once counted as not set: with a secret that was not UTF-8 the server ran open.
#[test]
fn a_variable_that_is_no_text_is_a_mistake() {
    let folder = Folder::new();
    let (settings, credentials) = (
        ["JWT_SECRET", "CONFIG", "LISTEN", "LOG", "STATE", "RETAIN_AGE", "ALLOWED_ORIGIN"],
        ["REDIS_PASSWORD", "SENTINEL_USERNAME"],
    );
    for name in settings.iter().chain(&credentials) {
        let name = format!("REJOIN_{name}");
        let value = OsStr::from_bytes(b"hush-0123456789abcdef0123456789abcde\xff");
        // A server that took the variable for not set would end with another code.
        let serve = ["--listen=127.0.0.1:0", "--state=/nowhere/at/all"];
        for arguments in [&serve[..], &["config"], &["token", "--sub=u1", "--subscribe=a"]] {
            let run = folder.run_with(arguments, &[(OsStr::new(&name), value)]);
            let told = format!("error: {name}: expected text in UTF-8\n");
            assert!(run.code == Some(2) && run.err.contains(&told), "{arguments:?}: {run:?}");
            assert!(!run.err.contains("hush") && run.out.is_empty(), "{arguments:?}: {run:?}");
        }
    }
    for name in ["REJOIN_URL", "REJOIN_TOKEN"] {
        let run =
            folder.run_with(&["pub", "a", "x"], &[(OsStr::new(name), OsStr::from_bytes(b"http://\xff"))]);
        assert!(run.code == Some(2) && run.out.is_empty(), "{run:?}");
    }
    let run = folder.run_with(&["config"], &[(OsStr::from_bytes(b"REJOIN_RETAIN_\xff"), OsStr::new("2h"))]);
    assert!(run.code == Some(0) && run.err.contains("warning: REJOIN_RETAIN_\u{fffd}: "), "{run:?}");
}
