//! The ways to name a Redis, as the program takes them, and that no credential is ever shown.

use std::{
    net::TcpListener,
    path::PathBuf,
    process::{Command, Stdio},
};

use crate::{deployment::until_ready, support::redis::Redis};

const PASSWORD: &str = "only-for-your-eyes";

/// Runs the program until it is ready, and returns what it said.
async fn output(url: &str, env: &[(&str, &str)], flags: &[&str]) -> String {
    let addr = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
    let mut program = Command::new(env!("CARGO_BIN_EXE_rejoin"))
        .args(["--listen", &addr.to_string(), "--log", url])
        .args(flags)
        .envs(env.iter().copied())
        .env("REJOIN_LOG_LEVEL", "debug")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the server starts");
    until_ready(addr).await;
    program.kill().expect("it can be killed");
    let output = program.wait_with_output().expect("it has ended");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).expect("UTF-8");
    assert!(!said.contains(PASSWORD), "{said}");
    said
}

fn with_user() -> Option<Redis> {
    let user = format!("me on >{PASSWORD} ~* &* +@all");
    let words: Vec<_> = user.split(' ').collect();
    let socket = socket();
    let socket = socket.to_str().expect("UTF-8");
    let settings =
        [&["--unixsocket", socket, "--maxmemory-policy", "allkeys-lru"][..], &["--user"], &words[..]];
    let redis = Redis::start(&settings.concat())?;
    redis.say(&["ACL", "SETUSER", "default", "off"]);
    Some(redis)
}

fn socket() -> PathBuf {
    std::env::temp_dir().join(format!("rejoin-{}.sock", std::process::id()))
}

#[tokio::test]
async fn a_user_a_password_a_database_a_prefix_and_a_socket_are_taken_and_no_password_is_shown() {
    let Some(redis) = with_user() else { return };
    let port = redis.port;
    let env = [("REJOIN_REDIS_USERNAME", "me"), ("REJOIN_REDIS_PASSWORD", PASSWORD)];

    let said = output(&format!("redis://me:{PASSWORD}@127.0.0.1:{port}/3?prefix=here"), &[], &[]).await;
    assert!(said.contains("set maxmemory-policy to noeviction"), "{said}");
    let said = output(&format!("redis://127.0.0.1:{port}/3?prefix=here"), &env, &[]).await;
    assert!(!said.contains("other --retain"), "{said}");
    let socket = format!("unix://{}?db=3&prefix=here", socket().display());
    let said = output(&socket, &env, &["--retain-messages", "7"]).await;
    // The store keeps what was said last, and whoever says something else is told.
    assert!(said.contains("other --retain-") && said.contains("\"1000 messages"), "{said}");

    let keys = Command::new("redis-cli")
        .args(["-p", &port.to_string(), "--user", "me", "--pass", PASSWORD, "-n", "3", "keys", "*"])
        .output()
        .expect("redis-cli runs");
    let keys = String::from_utf8(keys.stdout).expect("UTF-8");
    assert!(keys.lines().count() > 1 && keys.lines().all(|key| key.starts_with("{here}:")), "{keys}");
}

#[tokio::test]
async fn a_wrong_password_is_told_without_it() {
    let Some(redis) = with_user() else { return };
    let wrong = format!("{PASSWORD}-wrong");
    for url in [
        format!("redis://me:{wrong}@127.0.0.1:{}", redis.port),
        format!("redis://me:{wrong}@127.0.0.1:port"),
        format!("redis://me:{wrong}@127.0.0.1:{}/x", redis.port),
        format!("redis://me:{wrong}@127.0.0.1?prefix=%7B"),
    ] {
        let addr = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
        let mut program = Command::new(env!("CARGO_BIN_EXE_rejoin"))
            .args(["--listen", &addr.to_string(), "--log", &url])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut stderr = std::io::BufReader::new(program.stderr.take().expect("it is piped"));
        let mut said = String::new();
        // What is no address ends the program; what is one is tried until somebody ends it.
        while !said.contains("WRONGPASS")
            && std::io::BufRead::read_line(&mut stderr, &mut said).expect("UTF-8") > 0
        {}
        program.kill().and_then(|()| program.wait()).expect("it ends");
        assert!(!said.is_empty() && !said.contains(PASSWORD), "{said}");
    }
}
