//! Everything that can be configured, parsed and checked before anything is bound.

mod access;
mod file;
mod flags;
mod layers;
mod origin;
mod values;

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::Parser;
use tracing::level_filters::LevelFilter;

use self::values::{address, count, level, rate, size, yes_or_no};
pub use self::{
    access::authority,
    file::File,
    flags::Flags,
    layers::{Place, Setting, Settings, unknown_variables},
    origin::{Origin, ParseOriginError},
    values::{Secret, duration},
};
use crate::{
    auth::Authority,
    log::{Address, ParseAddressError, Retention},
};

/// Where settings are given but in flags, for the help.
pub const ELSEWHERE: &str = "A setting is also read from the environment, in capitals (REJOIN_RETAIN_AGE=2h), \
     and from the file of --config (retain-age = \"2h\"). \
     A flag goes before the environment, and that before the file.\n\n\
     Exit codes:\n  0  ended in order\n  1  could not serve\n  2  a setting is wrong";

/// All settings. Each is a flag, an environment variable and a name in the file, spelt the same.
///
/// [`Config::default`] has the defaults, and looks neither at the environment nor at any file.
#[derive(Clone, Debug, Parser)]
pub struct Config {
    /// A TOML file with any of these settings, and with keys and grants, which have no flag.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Where to listen.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:7070", value_parser = address)]
    pub listen: SocketAddr,

    /// Where messages are kept: `memory`, or `redis://[user:password@]host[:port][/db][?prefix=name]`,
    /// `rediss://…`, `unix:///path`, or `redis+sentinel://host[:port][,host[:port]…]/master[?db=N]`.
    #[arg(long, value_name = "LOG", default_value = "memory")]
    pub log: LogKind,

    /// Acknowledge a message only when so many copies of Redis have confirmed it.
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub redis_confirm: usize,

    /// How often a quiet connection shows that it lives.
    #[arg(long, value_name = "DURATION", default_value = "25s", value_parser = duration)]
    pub heartbeat: Duration,

    /// How many messages of a topic are retained.
    #[arg(long, value_name = "N", default_value = "1000", value_parser = count)]
    pub retain_messages: usize,

    /// How long a message is retained.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration)]
    pub retain_age: Duration,

    /// How many bytes of a topic are retained; each message counts its payload,
    /// its event and 200 bytes.
    #[arg(long, value_name = "SIZE", default_value = "16MiB", value_parser = size)]
    pub retain_bytes: usize,

    /// How many bytes of all topics are retained.
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = size)]
    pub retain_total: usize,

    /// How many topics are remembered; a publish to one more is refused.
    #[arg(long, value_name = "N", default_value = "1000000", value_parser = count)]
    pub max_topics: usize,

    /// The largest payload of a message.
    #[arg(long, value_name = "SIZE", default_value = "256KiB", value_parser = size)]
    pub max_payload: usize,

    /// How many subscriptions are served at once; more are told to come back later.
    #[arg(long, value_name = "N", default_value = "100000", value_parser = count)]
    pub max_connections: usize,

    /// How many messages may be published in a second; 0 is no limit.
    #[arg(long, value_name = "N", default_value = "0", value_parser = rate)]
    pub publish_rate: u32,

    /// How long a request's head, or one message of its body, may take to arrive.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub read_timeout: Duration,

    /// How long a client may take nothing before it is closed as too slow.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub write_timeout: Duration,

    /// An origin whose pages may use this server, besides its own. Repeatable.
    #[arg(long = "allowed-origin", value_name = "URL", value_delimiter = ',')]
    pub allowed_origins: Vec<Origin>,

    /// Accept tokens signed with this secret by HS256; for development.
    #[arg(long, value_name = "SECRET", value_parser = Secret::parse)]
    pub jwt_secret: Option<Secret>,

    /// Serve everybody who can reach an address that is not loopback, without credentials.
    #[arg(long, value_name = "BOOL", default_value = "false", default_missing_value = "true", num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set, value_parser = yes_or_no)]
    pub insecure_open: bool,

    /// How long connections have to leave when the server ends.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub drain_grace: Duration,

    /// Where the log in memory is kept from the end of one process to the start of the next.
    #[arg(long, value_name = "FILE")]
    pub state: Option<PathBuf>,

    /// What is logged on standard error: `off`, `error`, `warn`, `info`, `debug` or `trace`.
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = level)]
    pub log_level: LevelFilter,

    /// Keys and grants: the tables `[[key]]`, `[[jwt]]` and `[anonymous]` of the file.
    #[arg(skip)]
    pub tables: Authority,
}

/// Two settings or more that do not go together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contradiction {
    /// The names of the settings.
    pub between: &'static [&'static str],
    pub what: &'static str,
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
        Ok(Self::Redis(Box::new(text.parse()?)))
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::parse_from(["rejoin"])
    }
}

impl Config {
    /// What is wrong with the configuration as a whole, all of it at once.
    pub fn contradictions(&self) -> Vec<Contradiction> {
        let is_open = !self.listen.ip().is_loopback() && !self.insecure_open && self.authority().is_open();
        let is_kept_twice = self.state.is_some() && !matches!(self.log, LogKind::Memory);
        let confirms_nothing = self.redis_confirm > 0 && matches!(self.log, LogKind::Memory);
        let rules: [(bool, &[&str], &str); 5] = [
            (
                is_open,
                &["listen"],
                "without credentials only a loopback address is served; \
                 --insecure-open serves everybody who can reach it",
            ),
            (
                self.retain_bytes < self.max_payload,
                &["retain-bytes", "max-payload"],
                "--retain-bytes is less than --max-payload",
            ),
            (
                self.retain_total < self.retain_bytes,
                &["retain-total", "retain-bytes"],
                "--retain-total is less than --retain-bytes",
            ),
            (is_kept_twice, &["state", "log"], "--state is for --log memory; Redis keeps its own"),
            (
                confirms_nothing,
                &["redis-confirm", "log"],
                "--redis-confirm is for --log redis://…; memory has no copies",
            ),
        ];
        let broken = rules.into_iter().filter(|(is_broken, ..)| *is_broken);
        broken.map(|(_, between, what)| Contradiction { between, what }).collect()
    }

    /// All that is configured about who may do what.
    pub fn authority(&self) -> Authority {
        let mut authority = self.tables.clone();
        if let Some(Secret(secret)) = &self.jwt_secret {
            authority.add_development_secret(secret);
        }
        authority
    }

    pub fn retention(&self) -> Retention {
        Retention {
            messages: self.retain_messages,
            age: self.retain_age,
            bytes: self.retain_bytes,
            total_bytes: self.retain_total,
            topics: self.max_topics,
        }
    }
}
