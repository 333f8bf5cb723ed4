//! `rejoin token`: a token for development, signed with the secret of the configuration.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use clap::Args;
use rejoin::{
    auth::{Authority, GrantList, SigningKey, Wish, mint},
    config::Flags,
};

use super::{Ending, grants::Granted, print, tell};

#[derive(Debug, Args)]
pub struct Token {
    /// Subject of the token; replaces {sub} in patterns.
    #[arg(long)]
    sub: Option<String>,

    #[command(flatten)]
    granted: Granted,

    /// How long the token is accepted.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
    ttl: Duration,

    /// Configuration file of the server that will accept the token. The first [[jwt]] with a secret signs it.
    #[arg(long, value_name = "FILE")]
    config: Option<String>,

    /// The --jwt-secret of that server. Give it in REJOIN_JWT_SECRET, because other users can see the command
    /// line.
    #[arg(long, visible_alias = "secret", value_name = "SECRET")]
    jwt_secret: Option<String>,

    /// File with a private key as PEM, or with a secret. It signs instead of the configured keys.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

impl Token {
    /// The settings that say which keys are accepted.
    pub fn flags(&self) -> Flags {
        Flags::of([("config", self.config.clone()), ("jwt-secret", self.jwt_secret.clone())])
    }

    pub fn run(self, authority: &Authority) -> Ending {
        let key = self.key.map(|path| {
            let wrong = |what: String| Ending::Failed(format!("{}: {what}", path.display()));
            let text = fs::read_to_string(&path).map_err(|error| wrong(error.to_string()))?;
            SigningKey::parse(&text).map_err(|error| wrong(error.to_string()))
        });
        let key = match key.transpose() {
            Ok(key) => key,
            Err(ending) => return ending,
        };
        let wish = Wish { sub: self.sub, rejoin: GrantList::from(self.granted), ttl: self.ttl };
        let token = match mint(authority, key.as_ref(), &wish, SystemTime::now()) {
            Ok(token) => token,
            Err(error) => return Ending::Failed(error.to_string()),
        };
        if wish.rejoin.needs_subject(wish.sub.as_deref()) {
            tell("a pattern with {sub} grants nothing here: set --sub to one plain segment of a topic");
        }
        print(format!("{token}\n"))
    }
}
