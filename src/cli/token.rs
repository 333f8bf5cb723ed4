//! `rejoin token`: a token for development, made where the secret is.

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
    /// The subject of the token, for which {sub} stands.
    #[arg(long)]
    sub: Option<String>,

    #[command(flatten)]
    granted: Granted,

    /// How long it is accepted.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
    ttl: Duration,

    /// The file of the server that is to accept it: the first [[jwt]] with a secret signs.
    #[arg(long, value_name = "FILE")]
    config: Option<String>,

    /// The --jwt-secret of that server. Give it in the environment, REJOIN_JWT_SECRET: others see the command line.
    #[arg(long, visible_alias = "secret", value_name = "SECRET")]
    jwt_secret: Option<String>,

    /// A private key as PEM, or a secret, which signs in place of what is configured.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

impl Token {
    /// Which settings say what is accepted.
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
            tell("a pattern with {sub} grants nothing here: --sub is to be one plain segment of a topic");
        }
        print(format!("{token}\n"))
    }
}
