//! All settings, parsed and checked before the server binds anything.

mod access;
mod account;
mod certificate;
mod choices;
mod file;
mod flags;
mod layers;
mod listen;
mod origin;
mod retain;
mod shown;
mod values;

use std::{net::IpAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::Parser;
use ipnet::IpNet;
use tracing::level_filters::LevelFilter;
use url::Url;

pub use self::{
    access::authority,
    account::AccountKey,
    certificate::{Certificate, CertificateError},
    choices::{AccessLogForm, Compress, ForwardedHeader, LogFormat},
    file::File,
    flags::Flags,
    layers::{Again, Place, Setting, Settings, unknown_variables},
    listen::{Listen, UnixSocket},
    origin::{Host, Origin, ParseHostError, ParseOriginError},
    values::{Secret, duration, whole_number},
};
use self::{
    choices::{access_log, compress, forwarded_header, log_format, network},
    values::{copies, count, dns_name, https_url, level, size, yes_or_no},
};
use crate::{
    auth::{Authority, MIN_SECRET_BYTES},
    log::{Address, ParseAddressError, Retention, Rule, Rules},
};

/// The other places for a setting beside a flag, for the help.
pub const ELSEWHERE: &str = "Every setting can also come from the environment, in capitals \
     (REJOIN_RETAIN_AGE=2h), or from the file of --config (retain-age = \"2h\"). \
     Flags override the environment, which overrides the file.\n\n\
     Durations are written 90s, 10m or 2h, and sizes 512KiB or 16MiB.\n\n\
     Exit codes:\n  0  ended in order\n  1  could not serve\n  2  a setting is wrong\n  \
     3  ended, but could not save the messages in the file of --state";

/// All settings. Each is a flag, an environment variable and a name in the file, spelt the same.
///
/// [`Config::default`] has the defaults; it reads neither the environment nor a file.
#[derive(Clone, Debug, Parser)]
pub struct Config {
    /// A TOML file with any of these settings. Keys and grants have no flag and can only stand there.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Address and port to listen on: also `localhost:PORT`, `:PORT` for all IPv4 addresses, or a Unix socket,
    /// `unix:/path[?mode=0660&user=NAME&group=NAME]`. With `http://` before it an address has no TLS. Repeatable.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7070", value_delimiter = ',')]
    pub listen: Vec<Listen>,

    /// Serve everything at this address too, and at those of --listen only what is for the public.
    #[arg(long, value_name = "ADDR")]
    pub admin_listen: Option<Listen>,

    /// Speak TLS with the certificate in this PEM file: the server's own first, then those that sign it.
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// The private key of that certificate, in PEM without a password.
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// Speak TLS with a certificate of this name that an authority issues by ACME, and renew it. Repeatable.
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = dns_name)]
    pub tls_acme: Vec<String>,

    /// The authority for --tls-acme. With it you agree to its terms of service.
    #[arg(long, value_name = "URL", default_value = "https://acme-v02.api.letsencrypt.org/directory", value_parser = https_url)]
    pub tls_acme_directory: Url,

    /// Folder for the account and the certificate of --tls-acme. It must survive a restart.
    #[arg(long, value_name = "DIR")]
    pub tls_acme_state: Option<PathBuf>,

    /// A file with the id and the key of an account that the authority of --tls-acme has made elsewhere (external account
    /// binding), if it requires one.
    #[arg(long, value_name = "FILE")]
    pub tls_acme_eab: Option<PathBuf>,

    /// Store messages in `memory`, or in Redis: `redis://[user:password@]host[:port][/db][?prefix=name]`,
    /// `rediss://…`, `unix:///path`, or `redis+sentinel://host[:port][,host[:port]…]/master[?db=N]`.
    #[arg(long, value_name = "LOG", default_value = "memory")]
    pub log: LogKind,

    /// Acknowledge a message only when this many copies of Redis have confirmed it.
    #[arg(long, value_name = "N", default_value = "0", value_parser = copies)]
    pub redis_confirm: usize,

    /// Send a frame on a quiet connection this often, so that the client sees that it is alive.
    #[arg(long, value_name = "DURATION", default_value = "25s", value_parser = duration)]
    pub heartbeat: Duration,

    /// Retain at most this many messages of a topic.
    #[arg(long, value_name = "N", default_value = "1000", value_parser = count)]
    pub retain_messages: usize,

    /// Retain a message for this long.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration)]
    pub retain_age: Duration,

    /// Retain at most this many bytes of a topic. Each message counts its payload, its event, its `by` and 200 bytes.
    #[arg(long, value_name = "SIZE", default_value = "16MiB", value_parser = size)]
    pub retain_bytes: usize,

    /// Use at most this much memory for all topics together, with their idempotency keys.
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = size)]
    pub retain_total: usize,

    /// Remember at most this many topics. A publish to one more is refused.
    #[arg(long, value_name = "N", default_value = "1000000", value_parser = count)]
    pub max_topics: usize,

    /// Accept payloads of up to this size.
    #[arg(long, value_name = "SIZE", default_value = "256KiB", value_parser = size)]
    pub max_payload: usize,

    /// Serve at most this many subscriptions at once. One more is told to come back later.
    #[arg(long, value_name = "N", default_value = "100000", value_parser = count)]
    pub max_connections: usize,

    /// Accept at most this many messages a second, from all clients together; 0 is no limit.
    #[arg(long, value_name = "N", default_value = "0", value_parser = whole_number)]
    pub publish_rate: u32,

    /// Refuse a request if its head, its body, or one message of a POST /publish takes longer than this to
    /// arrive, and close a WebSocket if a command does.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub read_timeout: Duration,

    /// Close a client that has not read anything for this long.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub write_timeout: Duration,

    /// Allow pages of this origin, besides the server's own. Repeatable.
    #[arg(long = "allowed-origin", value_name = "URL", value_delimiter = ',')]
    pub allowed_origins: Vec<Origin>,

    /// Serve clients without a credential under this host name too: `push.example`. Repeatable.
    #[arg(long = "allowed-host", value_name = "NAME", value_delimiter = ',', value_parser = Host::parse_name)]
    pub allowed_hosts: Vec<Host>,

    /// Believe the proxy at this address, or in this network, which client it serves. Repeatable.
    #[arg(long = "trusted-proxy", value_name = "CIDR", value_delimiter = ',', value_parser = network)]
    pub trusted_proxies: Vec<IpNet>,

    /// The header in which trusted proxies name the client: `x-forwarded-for` or `forwarded` (RFC 7239).
    #[arg(long, value_name = "HEADER", default_value = "x-forwarded-for", value_parser = forwarded_header)]
    pub forwarded_header: ForwardedHeader,

    /// Trusted proxies begin each connection with the PROXY protocol, version 1 or 2.
    #[arg(long, value_name = "BOOL", default_value = "false", default_missing_value = "true", num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set, value_parser = yes_or_no)]
    pub proxy_protocol: bool,

    /// Accept tokens signed with this secret by HS256; for development.
    #[arg(long, value_name = "SECRET", value_parser = Secret::parse)]
    pub jwt_secret: Option<Secret>,

    /// Allow unauthenticated access on non-loopback addresses.
    #[arg(long, value_name = "BOOL", default_value = "false", default_missing_value = "true", num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set, value_parser = yes_or_no)]
    pub insecure_open: bool,

    /// Count a subject as present for this long after its last connection has ended.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    pub presence_grace: Duration,

    /// Compress messages for clients that ask for it: `off`, `auto` (WebSockets, polls and history), or `all` (also
    /// event streams and NDJSON, which some proxies and libraries then hold back).
    #[arg(long, value_name = "WHAT", default_value = "auto", value_parser = compress)]
    pub compress: Compress,

    /// When the server ends, give connections this long to leave. The state file has at least 10 s.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub drain_grace: Duration,

    /// File that preserves the in-memory log across restarts.
    #[arg(long, value_name = "FILE")]
    pub state: Option<PathBuf>,

    /// Log this level and above on standard error: `off`, `error`, `warn`, `info`, `debug` or `trace`.
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = level)]
    pub log_level: LevelFilter,

    /// Log in this form: `text`, `json`, or `auto`, which is text on a terminal and else JSON.
    #[arg(long, value_name = "FORMAT", default_value = "auto", value_parser = log_format)]
    pub log_format: LogFormat,

    /// Print a line for each request on standard output when it has ended: `json`, `combined`, or `off`.
    #[arg(long, value_name = "FORM", default_value = "off", value_parser = access_log)]
    pub access_log: AccessLogForm,

    /// Keys and grants: the tables `[[key]]`, `[[jwt]]`, `[hook]` and `[anonymous]` of the file.
    #[arg(skip)]
    pub tables: Authority,

    /// Limits of retention for some topics: the tables `[[retain]]` of the file, of which the first that matches counts.
    #[arg(skip)]
    pub retain: Vec<Rule>,

    /// The certificate and the key in the files of `tls_cert` and `tls_key`, if they are given.
    #[arg(skip)]
    pub certificate: Option<Certificate>,

    /// The content of the file of `tls_acme_eab`, if it is given.
    #[arg(skip)]
    pub acme_account: Option<AccountKey>,

    /// When readers join a group, and held polls leave the HTTP library. Only tests set it.
    #[doc(hidden)]
    #[arg(skip)]
    pub parking: Parking,
}

/// When readers that only follow join a group.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Parking {
    /// If others read the same.
    #[default]
    WithCompany,
    /// As soon as they may, also alone.
    Always,
    Never,
    /// At every second chance or so, drawn with this seed.
    AtRandom(u64),
}

/// Settings that contradict each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contradiction {
    /// The names of the settings.
    pub between: &'static [&'static str],
    pub what: &'static str,
}

/// The log in which messages are stored.
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
    /// Every contradiction between settings, all of them at once.
    pub fn contradictions(&self) -> Vec<Contradiction> {
        let beyond = self.listeners().find(|(_, listen)| !listen.is_loopback()).map(|(setting, _)| setting);
        let is_open = beyond.is_some() && !self.insecure_open && self.authority().is_open();
        let is_kept_twice = self.state.is_some() && !matches!(self.log, LogKind::Memory);
        let confirms_nothing = self.redis_confirm > 0 && matches!(self.log, LogKind::Memory);
        let is_guessed = self.has_short_secret() && beyond.is_some();
        let trusts_none = self.trusted_proxies.is_empty();
        let shares_subjects = self.jwt_secret.is_some() && self.tables.needs_prefix_beside_secret();
        let retains =
            |is_wrong: &dyn Fn(usize) -> bool| self.retain.iter().filter_map(|rule| rule.bytes).any(is_wrong);
        let has_acme = !self.tls_acme.is_empty();
        let has_certificate = has_acme || self.tls_cert.is_some();
        let rules: [(bool, &[&str], &str); 18] = [
            (
                self.has_clash(),
                if self.admin_listen.is_some() { &["listen", "admin-listen"] } else { &["listen"] },
                "two listeners have the same address, or one has all addresses and the other one of them: give each \
                 its own port or path",
            ),
            (
                shares_subjects,
                &["jwt-secret"],
                "users of --jwt-secret could have the subjects of another issuer: give the other [[jwt]], or [hook], \
                 a sub-prefix, and a [[jwt]] without iss none",
            ),
            (
                self.proxy_protocol && trusts_none,
                &["proxy-protocol", "trusted-proxy"],
                "--proxy-protocol works only with --trusted-proxy: list the proxies that speak it",
            ),
            (
                self.forwarded_header == ForwardedHeader::Forwarded && trusts_none,
                &["forwarded-header", "trusted-proxy"],
                "--forwarded-header works only with --trusted-proxy: list the proxies that send it",
            ),
            (
                is_guessed,
                if beyond == Some("listen") {
                    &["jwt-secret", "listen"]
                } else {
                    &["jwt-secret", "admin-listen"]
                },
                "a --jwt-secret of less than 32 bytes can be guessed, so it is for loopback addresses only: \
                 make it longer",
            ),
            (
                is_open,
                if beyond == Some("listen") {
                    &["listen", "jwt-secret"]
                } else {
                    &["admin-listen", "jwt-secret"]
                },
                "an address beyond loopback, as :PORT is too, requires credentials: configure keys or tokens \
                 ([[key]], [[jwt]], [hook], --jwt-secret), or grant clients without a credential something ([anonymous]), \
                 or let every client do everything (--insecure-open)",
            ),
            (
                self.tls_cert.is_some() != self.tls_key.is_some(),
                &["tls-cert", "tls-key"],
                "--tls-cert and --tls-key work only together: give both",
            ),
            (
                has_acme && !cfg!(feature = "acme"),
                &["tls-acme"],
                "this program was built without --tls-acme: take a package of a release, or build it from \
                 the source with `cargo install --locked --profile dist --features dist --path .`",
            ),
            (
                has_acme && self.tls_cert.is_some(),
                &["tls-acme", "tls-cert"],
                "--tls-acme and --tls-cert exclude each other: remove one of them",
            ),
            (
                has_acme != self.tls_acme_state.is_some(),
                &["tls-acme", "tls-acme-state"],
                "--tls-acme and --tls-acme-state work only together: give both",
            ),
            (
                self.tls_acme_eab.is_some() && !has_acme,
                &["tls-acme-eab", "tls-acme"],
                "--tls-acme-eab works only with --tls-acme: give the names, or remove it",
            ),
            (
                has_certificate && self.listeners().all(|(_, listen)| listen.is_plain()),
                if has_acme { &["tls-acme", "listen"] } else { &["tls-cert", "listen"] },
                "TLS is configured, and every address is plain, as http:// and unix: are: give one without http://, \
                 or remove --tls-cert and --tls-key, or --tls-acme",
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
            (
                retains(&|bytes| bytes < self.max_payload),
                &["max-payload"],
                "the bytes of a [[retain]] are less than --max-payload",
            ),
            (
                retains(&|bytes| self.retain_total < bytes),
                &["retain-total"],
                "--retain-total is less than the bytes of a [[retain]]",
            ),
            (
                is_kept_twice,
                &["state", "log"],
                "--state works only with --log memory: remove it, Redis stores the log",
            ),
            (
                confirms_nothing,
                &["redis-confirm", "log"],
                "--redis-confirm works only with --log redis://…: remove it, memory has no copies",
            ),
        ];
        let broken = rules.into_iter().filter(|(is_broken, ..)| *is_broken);
        broken.map(|(_, between, what)| Contradiction { between, what }).collect()
    }

    /// True if the server speaks TLS.
    pub fn speaks_tls(&self) -> bool {
        self.certificate.is_some() || !self.tls_acme.is_empty()
    }

    /// Every listener, with the name of its setting.
    pub fn listeners(&self) -> impl Iterator<Item = (&'static str, &Listen)> {
        let public = self.listen.iter().map(|listen| ("listen", listen));
        public.chain(self.admin_listen.iter().map(|listen| ("admin-listen", listen)))
    }

    fn has_clash(&self) -> bool {
        let all: Vec<_> = self.listeners().map(|(_, listen)| listen).collect();
        let clashes = |(at, one): (usize, &&Listen)| all[..at].iter().any(|other| one.clashes_with(other));
        all.iter().enumerate().any(clashes)
    }

    /// True if a trusted proxy has this address.
    pub fn trusts(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.trusted_proxies.iter().any(|network| network.contains(&ip))
    }

    /// All configured keys, tokens and grants.
    pub fn authority(&self) -> Authority {
        let mut authority = self.tables.clone();
        if let Some(Secret(secret)) = &self.jwt_secret {
            authority.add_development_secret(secret);
        }
        authority
    }

    /// True if the secret for development can be guessed.
    pub fn has_short_secret(&self) -> bool {
        self.jwt_secret.as_ref().is_some_and(|Secret(secret)| secret.len() < MIN_SECRET_BYTES)
    }

    /// The longest message to publish as JSON: JSON can write one byte as six, and base64 needs four for three.
    pub(crate) fn max_command_bytes(&self) -> usize {
        6 * self.max_payload + (64 << 10)
    }

    /// The limits of retention.
    pub fn retention(&self) -> Retention {
        Retention {
            messages: self.retain_messages,
            age: self.retain_age,
            bytes: self.retain_bytes,
            total_bytes: self.retain_total,
            topics: self.max_topics,
            rules: Rules::new(self.retain.clone()),
        }
    }
}
