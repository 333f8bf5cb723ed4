//! The first minutes: `init` and the commands that it prints, `config --check`, and `token check`.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use crate::{
    program::{Ended, Program},
    support::program::{Folder, Program as Serving},
};

async fn run(arguments: &[&str]) -> Ended {
    Program::new(arguments).run().await
}

/// The commands that `init` has printed: start, publish, page.
fn commands(printed: &Ended) -> [String; 3] {
    let lines = printed.lines();
    ["start", "publish", "page"].map(|name| {
        let found = lines.iter().find_map(|line| line.trim_start().strip_prefix(name));
        found.unwrap_or_else(|| panic!("{name}: {lines:?}")).trim_start().to_owned()
    })
}

/// Runs a printed command in a shell that finds `rejoin`, against the server at `addr`.
async fn shell(command: &str, addr: std::net::SocketAddr) -> String {
    let folder = Path::new(env!("CARGO_BIN_EXE_rejoin")).parent().expect("it lies in a folder").to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path =
        std::env::join_paths([folder].into_iter().chain(std::env::split_paths(&path))).expect("a path");
    let command = command.replace("127.0.0.1:7070", &addr.to_string());
    let output = tokio::process::Command::new("sh")
        .args(["-c", &command])
        .env("PATH", path)
        .env("NO_PROXY", "127.0.0.1")
        .output()
        .await
        .expect("it runs");
    assert!(output.status.success(), "{command}: {output:?}");
    String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
}

#[tokio::test]
async fn the_commands_that_init_prints_start_publish_and_listen() {
    let folder = Folder::new();
    // A name that a shell would take apart.
    let file = folder.path("it's mine.toml");
    let made = run(&["init", &file]).await;
    assert_eq!((made.code, made.stderr()), (Some(0), ""), "{made:?}");
    let [start, publish, page] = commands(&made);
    let quoted = format!("'{}'", file.replace('\'', r"'\''"));
    assert_eq!(start, format!("rejoin --config {quoted}"));

    let serving = Serving::start(&["--config", &file]).await;
    let addr = serving.server.addr;
    let answer = shell(&publish, addr).await;
    assert!(answer.contains("\"topic\":\"users.u1.news\""), "{answer}");
    let address = shell(&page, addr).await;
    let (place, token) = address.split_once("/#topic=users.u1.news&token=").expect(&address);
    assert_eq!(place, format!("http://{addr}"));
    let read =
        |topic: &str| format!("curl -s -H 'Authorization: Bearer {token}' '{place}/topics/{topic}?after=0'");
    let heard = shell(&read("users.u1.news"), addr).await;
    assert!(heard.contains("\"data\":\"hello\""), "{heard}");
    let heard = shell(&read("users.u2.news"), addr).await;
    assert!(heard.contains("forbidden"), "{heard}");
    let log = serving.terminate().await.log;
    // The limits of the machine that runs the test may cause warnings too.
    let warnings = log.lines().filter(|line| line.contains("WARN") && !line.contains("rejoin::limits"));
    let warnings: Vec<_> = warnings.collect();
    assert!(warnings.len() == 1 && warnings[0].contains("users.u2.news"), "{log}");
}

#[tokio::test]
async fn init_writes_a_file_for_its_owner_alone_and_replaces_none() {
    let folder = Folder::new();
    let (file, link) = (folder.path("rejoin.toml"), folder.path("link.toml"));
    std::os::unix::fs::symlink(folder.path("elsewhere.toml"), &link).expect("a link");
    let made = run(&["init", &file, "--origin", "https://app.example"]).await;
    assert_eq!(made.code, Some(0), "{made:?}");
    assert_eq!(fs::metadata(&file).expect("a file").permissions().mode() & 0o777, 0o600);
    let content = fs::read_to_string(&file).expect("a text");
    assert!(content.contains("allowed-origin = [\"https://app.example\"]"), "{content}");
    let key =
        made.lines().concat().split("Bearer ").nth(1).expect("a key").split('\'').next().map(str::to_owned);
    assert!(!content.contains(&key.expect("a key")), "the file has only the hash of the key");

    for existing in [&file, &link] {
        let again = run(&["init", existing]).await;
        assert_eq!((again.code, again.lines().len()), (Some(1), 0), "{again:?}");
        assert!(again.stderr().contains("exists already, and init never replaces a file"), "{again:?}");
    }
    assert_eq!(fs::read_to_string(&file).expect("a text"), content);
    assert!(!Path::new(&folder.path("elsewhere.toml")).exists());

    let other = folder.path("other.toml");
    let wrong = run(&["init", &other, "--origin", "app.example"]).await;
    assert!(wrong.code == Some(2) && !Path::new(&other).exists(), "{wrong:?}");
    assert_eq!(run(&["init", &other]).await.code, Some(0));
    let secret = |content: &str| content.split("\nsecret = ").nth(1).map(|rest| rest[..45].to_owned());
    assert_ne!(secret(&content), secret(&fs::read_to_string(&other).expect("a text")));
    assert_eq!(run(&["init", "/proc/nowhere/rejoin.toml"]).await.code, Some(1));
}

#[tokio::test]
async fn config_check_ends_with_0_or_lists_all_mistakes_and_ends_with_2() {
    let folder = Folder::new();
    let file = folder.path("rejoin.toml");
    // A server could not start with this: the address belongs to another machine, and Redis does not answer.
    let right =
        "listen = \"192.0.2.1:7070\"\nlog = \"redis://192.0.2.1\"\n[anonymous]\nsubscribe = [\"a\"]\n";
    fs::write(&file, right).expect("a file");
    let checked = run(&["config", "--check", &file]).await;
    assert_eq!((checked.code, checked.stderr()), (Some(0), ""), "{checked:?}");
    assert_eq!(checked.lines(), [format!("{file}: the settings are right")]);

    fs::write(&file, "listen = \"x\"\n[[key]]\nname = \"k\"\npublsh = []\n").expect("a file");
    let checked = run(&["config", "--check", &file]).await;
    assert_eq!((checked.code, checked.lines().len()), (Some(2), 0), "{checked:?}");
    for mistake in ["rejoin.toml:1: listen: ", "rejoin.toml:4: key: unknown field `publsh`"] {
        assert!(checked.stderr().contains(mistake), "{}", checked.stderr());
    }
    let missing = run(&["config", "--check", &folder.path("missing.toml")]).await;
    assert_eq!(missing.code, Some(2), "{missing:?}");
    assert_eq!(run(&["config", "--check", &file, "--config", &file]).await.code, Some(2));
}

const SECRET: &str = "a secret of more than thirty-two bytes";

#[tokio::test]
async fn token_check_explains_each_part_of_a_credential() {
    let folder = Folder::new();
    let (file, other) = (folder.path("rejoin.toml"), folder.path("other.toml"));
    let table = |rest: &str| {
        format!("[[jwt]]\nname = \"users\"\nalgorithm = \"HS256\"\nsecret = \"{SECRET}\"\n{rest}")
    };
    fs::write(&file, table("iss = \"id\"\naud = \"push\"\nsubscribe = [\"t.{claim.tenant}\"]\n"))
        .expect("a file");
    fs::write(&other, table("kid = \"7\"\n")).expect("a file");
    let mint = async |config: &str, more: &[&str]| {
        let made = run(&[&["token", "--sub", "u1", "--config", config], more].concat()).await;
        made.lines()[0].to_owned()
    };
    let good = mint(&file, &["--subscribe", "users.{sub}"]).await;
    let checked = run(&["token", "check", &good, "--config", &file]).await;
    assert_eq!((checked.code, checked.stderr()), (Some(0), ""), "{checked:?}");
    let lines = checked.lines();
    for expected in [
        "header     alg HS256, kid none",
        "signature  made by the key of [[jwt]] \"users\"",
        "iss        \"id\"",
        "aud        [\"push\"]",
        "sub        \"u1\"",
        "grants     subscribe [users.u1] publish [] manage [] presence [] admin false metrics false",
        "grants     warning: t.{claim.tenant} grants nothing: the token does not have this claim as a string",
        "accepted",
    ] {
        assert!(lines.contains(&expected), "{expected}: {lines:?}");
    }
    // From standard input, as it stands in a header.
    let typed = Program::new(&["token", "check", "-", "--config", &file]);
    let checked = typed.run_with(format!("Bearer {good}\n").as_bytes()).await;
    assert_eq!(checked.code, Some(0), "{checked:?}");

    let of_another_kid = mint(&other, &[]).await;
    for (token, config, expected) in [
        (
            &*format!("{good}x"),
            &*file,
            &["signature  WRONG  not by the key of [[jwt]] \"users\": another key"][..],
        ),
        (
            &of_another_kid,
            &file,
            &["signature  made by", "iss        WRONG  the [[jwt]] requires \"id\"", "aud        WRONG"],
        ),
        ("a.b.c", &file, &["header     WRONG  this is no JWT"]),
        ("rejoin_x", &file, &["key        WRONG  this is no token, since it has no dots"]),
    ] {
        let checked = run(&["token", "check", token, "--config", config]).await;
        assert_eq!(checked.code, Some(1), "{checked:?}");
        assert!(checked.stderr().starts_with("rejoin: refused: "), "{checked:?}");
        for expected in expected {
            assert!(checked.lines().iter().any(|line| line.starts_with(expected)), "{expected}: {checked:?}");
        }
    }
    // A container has settings for a server, and a command that checks a token starts none.
    let image =
        Program::new(&["token", "check", &good, "--config", &file]).with("REJOIN_LISTEN", "0.0.0.0:7070");
    assert_eq!(image.run().await.code, Some(0));
    let image = Program::new(&["token", "check", &good]).with("REJOIN_LISTEN", "0.0.0.0:7070").run().await;
    assert!(image.stderr().contains("give its --config FILE or its --jwt-secret"), "{image:?}");
    let open = run(&["token", "check", &good]).await;
    assert_eq!((open.code, open.lines().len()), (Some(2), 0), "{open:?}");
}
