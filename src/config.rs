//! Everything that can be configured, parsed and checked before anything is bound.

mod origin;

use std::{net::SocketAddr, str::FromStr, time::Duration};

use clap::Parser;

pub use self::origin::{Origin, ParseOriginError};
use crate::log::{Address, ParseAddressError, Retention};

/// Realtime push over WebSocket, Server-Sent Events, NDJSON and long-polling, with one cursor that
/// resumes on any of them.
#[derive(Clone, Debug, Parser)]
#[command(name = "rejoin", version, max_term_width = 100)]
pub struct Config {
    /// Where to listen.
    #[arg(long, env = "REJOIN_LISTEN", value_name = "ADDR:PORT", default_value = "127.0.0.1:7070")]
    pub listen: SocketAddr,

    /// Where messages are kept: `memory`, or `redis://[user:password@]host[:port][/db][?prefix=name]`,
    /// `rediss://…` or `unix:///path`.
    #[arg(long, env = "REJOIN_LOG", value_name = "LOG", default_value = "memory", hide_env_values = true)]
    pub log: LogKind,

    /// How often a quiet connection shows that it lives.
    #[arg(long, env = "REJOIN_HEARTBEAT", value_name = "DURATION", default_value = "25s", value_parser = duration)]
    pub heartbeat: Duration,

    /// How many messages of a topic are retained.
    #[arg(long, env = "REJOIN_RETAIN_MESSAGES", value_name = "N", default_value = "1000", value_parser = count)]
    pub retain_messages: usize,

    /// How long a message is retained.
    #[arg(long, env = "REJOIN_RETAIN_AGE", value_name = "DURATION", default_value = "1h", value_parser = duration)]
    pub retain_age: Duration,

    /// How many bytes of a topic are retained; each message counts its payload and 200 bytes.
    #[arg(long, env = "REJOIN_RETAIN_BYTES", value_name = "SIZE", default_value = "16MiB", value_parser = size)]
    pub retain_bytes: usize,

    /// How many bytes of all topics are retained.
    #[arg(long, env = "REJOIN_RETAIN_TOTAL", value_name = "SIZE", default_value = "256MiB", value_parser = size)]
    pub retain_total: usize,

    /// The largest payload of a message.
    #[arg(long, env = "REJOIN_MAX_PAYLOAD", value_name = "SIZE", default_value = "256KiB", value_parser = size)]
    pub max_payload: usize,

    /// How many subscriptions are served at once; more are told to come back later.
    #[arg(long, env = "REJOIN_MAX_CONNECTIONS", value_name = "N", default_value = "100000", value_parser = count)]
    pub max_connections: usize,

    /// How many messages may be published in a second; 0 is no limit.
    #[arg(long, env = "REJOIN_PUBLISH_RATE", value_name = "N", default_value = "0")]
    pub publish_rate: u32,

    /// How long a request's head, or one message of its body, may take to arrive.
    #[arg(long, env = "REJOIN_READ_TIMEOUT", value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub read_timeout: Duration,

    /// How long a client may take nothing before it is closed as too slow.
    #[arg(long, env = "REJOIN_WRITE_TIMEOUT", value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub write_timeout: Duration,

    /// An origin whose pages may use this server, besides its own. Repeatable.
    #[arg(long = "allowed-origin", env = "REJOIN_ALLOWED_ORIGIN", value_name = "URL", value_delimiter = ',')]
    pub allowed_origins: Vec<Origin>,

    /// Serve everybody who can reach an address that is not loopback, without credentials.
    #[arg(long, env = "REJOIN_INSECURE_OPEN")]
    pub insecure_open: bool,

    /// How long connections have to leave when the server ends.
    #[arg(long, env = "REJOIN_DRAIN_GRACE", value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub drain_grace: Duration,
}

/// Which log keeps the messages.
#[derive(Clone, Debug)]
pub enum LogKind {
    /// The memory of this process.
    Memory,
    /// A Redis or Valkey server, shared by replicas.
    Redis(Box<Address>),
}

impl FromStr for LogKind {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, ParseAddressError> {
        if text == "memory" {
            return Ok(Self::Memory);
        }
        let credential = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let address: Address = text.parse()?;
        let (username, password) = (credential("REJOIN_REDIS_USERNAME"), credential("REJOIN_REDIS_PASSWORD"));
        Ok(Self::Redis(Box::new(address.or_credentials(username, password))))
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::parse_from(["rejoin"])
    }
}

impl Config {
    /// What is wrong with the configuration as a whole, all of it at once.
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        if !self.listen.ip().is_loopback() && !self.insecure_open {
            mistakes.push(format!(
                "--listen {}: without credentials only a loopback address is served; \
                 --insecure-open serves everybody who can reach it",
                self.listen
            ));
        }
        if self.retain_bytes < self.max_payload {
            mistakes.push("--retain-bytes is less than --max-payload".into());
        }
        if self.retain_total < self.retain_bytes {
            mistakes.push("--retain-total is less than --retain-bytes".into());
        }
        mistakes
    }

    pub fn retention(&self) -> Retention {
        Retention {
            messages: self.retain_messages,
            age: self.retain_age,
            bytes: self.retain_bytes,
            total_bytes: self.retain_total,
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration =
        humantime::parse_duration(text).map_err(|error| format!("{error}, for example 90s, 10m or 2h"))?;
    if duration.is_zero() { Err("must be more than nothing".into()) } else { Ok(duration) }
}

fn size(text: &str) -> Result<usize, String> {
    let size: bytesize::ByteSize =
        text.parse().map_err(|_| "expected a size, for example 512KiB or 16MiB")?;
    match usize::try_from(size.as_u64()) {
        Ok(0) | Err(_) => Err("out of range".into()),
        Ok(size) => Ok(size),
    }
}

fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".into()),
        Ok(count) => Ok(count),
        Err(_) => Err("expected a number".into()),
    }
}
