//! A server accepts what `key` and `token` print, and both commands explain what they cannot do.

use crate::{
    program::{Ended, Program},
    support::program::{Folder, Program as Serving},
};

const SECRET: &str = "a secret of more than thirty-two bytes";

/// Publishes with a credential.
async fn publish(serving: &Serving, topic: &str, credential: &str) -> Ended {
    let url = serving.server.http("/");
    Program::new(&["pub", topic, "x", "--url", &url, "--token", credential]).run().await
}

async fn run(arguments: &[&str]) -> Ended {
    Program::new(arguments).run().await
}

#[tokio::test]
async fn a_new_key_is_accepted_once_its_printed_table_is_configured() {
    let made = run(&["key", "new", "--name", "shop \"1\"", "--publish", "orders.*", "--publish", "a"]).await;
    assert_eq!((made.code, made.stderr()), (Some(0), ""), "{made:?}");
    let (lines, other) = (made.lines(), run(&["key", "new"]).await);
    let (key, table) = (lines[0], lines[2..].join("\n"));
    assert!(key.starts_with("rejoin_") && lines[1].is_empty(), "{lines:?}");
    assert!(!table.contains(key), "only its hash is to be kept");
    assert_ne!(other.lines()[0], key);

    let folder = Folder::new();
    std::fs::write(folder.path("rejoin.toml"), table).expect("a file");
    let serving = Serving::start(&["--config", &folder.path("rejoin.toml")]).await;
    assert_eq!(publish(&serving, "orders.1", key).await.code, Some(0));
    assert!(
        publish(&serving, "other", key).await.stderr().contains("grant it in the [[key]] of this API key")
    );
    let url = serving.server.http("/");
    let unknown = run(&["sub", "demo", "--url", &url]).await;
    assert!(unknown.stderr().ends_with("(here: --token, --token-file or REJOIN_TOKEN)\n"), "{unknown:?}");
    assert!(publish(&serving, "orders.1", other.lines()[0]).await.stderr().contains("unauthorized"));

    let scraper = run(&["key", "new", "--metrics"]).await;
    assert_eq!(scraper.lines().last().copied(), Some("metrics = true"), "{scraper:?}");

    let mistaken = run(&["key", "new", "--subscribe", "t.{claim.tenant}"]).await;
    assert!(mistaken.code == Some(1) && mistaken.stdout.is_empty(), "{mistaken:?}");
    assert!(mistaken.stderr().contains("no claims: remove the braces"), "{mistaken:?}");
}

#[tokio::test]
async fn a_server_with_the_same_configuration_accepts_the_token() {
    let folder = Folder::new();
    let (config, key) = (folder.path("rejoin.toml"), folder.path("key.pem"));
    let table =
        format!("[[jwt]]\nname = \"k\"\nalgorithm = \"HS384\"\nsecret = \"{SECRET}\"\naud = \"push\"\n");
    std::fs::write(&config, table).expect("a file");
    std::fs::write(&key, SECRET).expect("a file");
    let serving = Serving::start(&["--config", &config]).await;
    let wish = ["token", "--sub", "u1", "--publish", "users.{sub}.**", "--ttl", "10m"];
    for signs in [&["--config", &config][..], &["--config", &config, "--key", &key]] {
        let made = run(&[&wish[..], signs].concat()).await;
        assert_eq!((made.code, made.stderr(), made.lines().len()), (Some(0), "", 1), "{made:?}");
        assert_eq!(publish(&serving, "users.u1.a", made.lines()[0]).await.code, Some(0));
        assert!(publish(&serving, "users.u2.a", made.lines()[0]).await.stderr().contains("forbidden"));
    }
    let wrong = run(&[&wish[..], &["--jwt-secret", "another"]].concat()).await;
    assert!(publish(&serving, "users.u1.a", wrong.lines()[0]).await.stderr().contains("unauthorized"));
}

#[tokio::test]
async fn a_key_that_cannot_sign_is_named() {
    let folder = Folder::new();
    let public = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
    let (config, key) = (folder.path("rejoin.toml"), folder.path("key.pem"));
    std::fs::write(&config, "[[jwt]]\nname = \"id\"\nalgorithm = \"EdDSA\"\nfile = \"key.pem\"\n")
        .expect("a file");
    std::fs::write(&key, public).expect("a file");
    for (arguments, code, expected) in [
        (&[][..], 1, "there is nothing to sign with: give --jwt-secret, --key FILE, or --config FILE"),
        (&["--config", &config], 1, "[[jwt]] \"id\" can only verify: give the private key"),
        (&["--key", &key], 1, "key.pem: this is a public key, which cannot sign"),
        (&["--key", "not-there.pem"], 1, "not-there.pem: No such file"),
        (&["--config", &config, "--secret", SECRET, "--key", &config], 1, "no [[jwt]] of the configuration"),
        (&["--config", "not-there.toml"], 2, "not-there.toml: cannot read the file"),
        (&["--jwt-secret", SECRET, "--subscribe", "a..b"], 2, "a topic has no empty segment"),
        (&["--jwt-secret", SECRET, "--ttl", "soon"], 2, "invalid value 'soon' for '--ttl"),
        (&["--jwt-secret", SECRET, "--ttl", "500000000000y"], 2, "must be at most 10 years"),
    ] {
        let ended = run(&[&["token", "--sub", "u1"], arguments].concat()).await;
        assert_eq!(ended.code, Some(code), "{arguments:?}: {ended:?}");
        assert!(ended.stderr().contains(expected), "{arguments:?}: {}", ended.stderr());
        assert!(ended.stdout.is_empty() && !ended.stderr().contains(SECRET), "{arguments:?}: {ended:?}");
    }
}

/// The command warned of `{claim.iss}`, which the token had, and told the user to set `--sub` whatever was missing.
#[tokio::test]
async fn token_warns_of_exactly_the_patterns_that_grant_nothing() {
    let folder = Folder::new();
    let config = folder.path("rejoin.toml");
    let table =
        format!("[[jwt]]\nname = \"k\"\nalgorithm = \"HS256\"\nsecret = \"{SECRET}\"\niss = \"id\"\n");
    std::fs::write(&config, table).expect("a file");
    let granted = ["users.{sub}", "by.{claim.iss}.{claim.sub}", "t.{claim.tenant}", "public"];
    let patterns: Vec<_> = granted.iter().flat_map(|pattern| ["--subscribe", pattern]).collect();
    let told = async |arguments: &[&str]| {
        let ended = run(&[&["token", "--config", &config], arguments, &patterns].concat()).await;
        assert_eq!((ended.code, ended.lines().len()), (Some(0), 1), "{ended:?}");
        ended.stderr().to_owned()
    };
    let missing = |pattern: &str| {
        format!("rejoin: warning: {pattern} grants nothing: the token does not have this claim as a string\n")
    };
    assert_eq!(told(&["--sub", "u1"]).await, missing("t.{claim.tenant}"));
    assert_eq!(told(&[]).await, granted[..3].iter().map(|it| missing(it)).collect::<String>());
    let wrong = told(&["--sub", "a.b"]).await;
    assert!(wrong.contains("users.{sub} grants nothing: the value of the claim is not one plain"), "{wrong}");
}

/// The command knew the limit of the configuration, and said nothing.
#[tokio::test]
async fn token_warns_of_grants_beyond_the_limit_of_the_configuration() {
    let folder = Folder::new();
    let config = folder.path("rejoin.toml");
    let table = format!(
        "[[jwt]]\nname = \"k\"\nalgorithm = \"HS256\"\nsecret = \"{SECRET}\"\n[jwt.limit]\nsubscribe = [\"a.**\"]\n"
    );
    std::fs::write(&config, table).expect("a file");
    let wish = ["token", "--config", &config, "--subscribe", "**", "--subscribe", "a.b", "--admin"];
    let made = run(&wish).await;
    let beyond = "grants nothing: the token grants itself more than the limit of its [[jwt]] allows";
    let expected = ["**", "admin"].map(|it| format!("rejoin: warning: {it} {beyond}\n")).concat();
    assert_eq!((made.code, made.lines().len(), made.stderr()), (Some(0), 1, &*expected), "{made:?}");
}

/// A URL can contain a password, and a token always is one.
#[tokio::test]
async fn no_help_shows_the_value_of_a_variable() {
    for command in
        ["", "pub", "sub", "bench", "topics", "stats", "health", "delete", "token", "config", "key new"]
    {
        let words: Vec<_> = command.split_whitespace().chain(["--help"]).collect();
        let mut program = Program::new(&words);
        for name in ["REJOIN_URL", "REJOIN_TOKEN", "REJOIN_JWT_SECRET", "REJOIN_LOG", "REJOIN_REDIS_PASSWORD"]
        {
            program = program.with(name, "http://u:hunter2@host");
        }
        let help = program.run().await;
        assert_eq!(help.code, Some(0), "{command}: {help:?}");
        assert!(!help.lines().join("\n").contains("hunter2"), "{command}: {help:?}");
    }
}
