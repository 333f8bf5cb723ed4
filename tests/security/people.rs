//! A server that requires credentials, and its clients.

use std::path::Path;

use rejoin::{
    auth::{Authority, Digest},
    config::{self, File},
};
use reqwest::RequestBuilder;
use serde_json::{Value, json};

use crate::{
    ask::{Answer, Ask, get, post, topic_path, within},
    signer::{Signer, seconds_from_now},
    support::{Server, redis::Redis},
};

/// The API key of a backend with every right.
pub const BACKEND: &str = "rejoin_backend-key-for-tests";

/// Tokens signed with [`SECRET`](crate::signer::SECRET), the backend's key, and `public.**` for anonymous
/// clients.
pub fn usual() -> String {
    let digest = Digest::of(BACKEND.as_bytes());
    format!(
        "{}[[key]]\nname = \"backend\"\nsha256 = \"{digest}\"\nsubscribe = [\"**\"]\npublish = [\"**\"]\nadmin = true\n\
         [anonymous]\nsubscribe = [\"public.**\"]\n",
        Signer::new("HS256").table("k")
    )
}

/// # Panics
/// If the tables are wrong.
pub fn tables(toml: &str) -> Authority {
    parse(toml).unwrap_or_else(|mistakes| panic!("{mistakes:?} in {toml}"))
}

pub fn parse(toml: &str) -> Result<Authority, Vec<String>> {
    parse_at("rejoin.toml", toml)
}

/// Parses tables as if they were in a file with this path.
pub fn parse_at(path: &str, toml: &str) -> Result<Authority, Vec<String>> {
    let mut mistakes = Vec::new();
    let mut file = File::parse(path, toml, &mut mistakes);
    let authority = config::authority(
        &mut file,
        Path::new(path),
        &mut |path| std::fs::read_to_string(path),
        &mut mistakes,
    );
    if mistakes.is_empty() { Ok(authority) } else { Err(mistakes) }
}

/// The value of a metric without labels, as the backend sees it.
pub async fn gauge(server: &Server, name: &str) -> f64 {
    let metrics = get(server, "/metrics").answer_to(BACKEND).await;
    let line = metrics.text().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name}"))
}

pub async fn server_with(toml: &str) -> Server {
    let tables = tables(toml);
    Server::with(|config| config.tables = tables).await
}

/// A server over each log; over Redis only if it is installed.
pub async fn servers(toml: &str) -> Vec<(Option<Redis>, Server)> {
    let mut servers = vec![(None, server_with(toml).await)];
    if let Some(redis) = Redis::start(&[]) {
        let (tables, log) = (tables(toml), redis.url().parse().expect("a log"));
        let server = Server::with(|config| (config.tables, config.log) = (tables, log)).await;
        servers.push((Some(redis), server));
    }
    servers
}

pub async fn server() -> Server {
    server_with(&usual()).await
}

/// A token for this subject with these grants. It expires in a minute.
pub fn token(sub: &str, rejoin: Value) -> String {
    token_for(60, sub, rejoin)
}

pub fn token_for(seconds: i64, sub: &str, rejoin: Value) -> String {
    Signer::new("HS256").sign(&json!({"sub": sub, "exp": seconds_from_now(seconds), "rejoin": rejoin}))
}

/// A token that may read these patterns.
pub fn reads(sub: &str, patterns: &[&str]) -> String {
    token(sub, json!({"subscribe": patterns}))
}

/// The header in which most clients send a credential.
pub fn bearer(credential: &str) -> String {
    format!("Bearer {credential}")
}

pub trait As {
    /// Sends the request with this credential, and reads the whole answer.
    async fn answer_to(self, credential: &str) -> Answer;
}

impl As for RequestBuilder {
    async fn answer_to(self, credential: &str) -> Answer {
        self.header("authorization", bearer(credential)).answer().await
    }
}

/// Resolves once this many subscriptions and held polls are served.
pub async fn until_served(server: &Server, connections: u64) {
    within(format!("{connections} connections"), async {
        while get(server, "/stats").answer_to(BACKEND).await.json()["connections"] != connections {}
    })
    .await;
}

/// Publishes as the backend, and returns the id.
pub async fn publish(server: &Server, topic: &str, text: &str) -> String {
    let answer = post(server, &topic_path(topic)).body(text.to_owned()).answer_to(BACKEND).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.id()
}
