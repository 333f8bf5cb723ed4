//! `rejoin token`: a token for development, signed with the secret of the configuration, and the check of a token.

mod check;

use std::{
    fs,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use clap::{Args, Subcommand};
use rejoin::{
    auth::{Authority, GrantList, SigningKey, Wish, mint},
    config::Flags,
};

use self::check::Check;
use super::{Ending, grants::Granted, print, tell};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Token {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    mint: Mint,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say why a server of this configuration accepts or refuses a token or an API key.
    ///
    /// The command prints each part of the token, and what is wrong with it. It asks no server. The exit code is 0 for
    /// a token that is accepted, and 1 for one that is refused.
    #[command(after_help = "For example: rejoin token check TOKEN --config /etc/rejoin.toml")]
    Check(Check),
}

#[derive(Debug, Args)]
struct Mint {
    /// Subject of the token; replaces {sub} in patterns.
    #[arg(long)]
    sub: Option<String>,

    #[command(flatten)]
    granted: Granted,

    /// How long the token is accepted.
    #[arg(long, value_name = "DURATION", default_value = "1h", allow_hyphen_values = true, value_parser = rejoin::config::duration)]
    ttl: Duration,

    #[command(flatten)]
    accepting: Accepting,

    /// File with a private key as PEM, or with a secret. It signs instead of the configured keys.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

/// The settings that say which keys a server accepts.
#[derive(Debug, Args)]
struct Accepting {
    /// Configuration file of the server. The first [[jwt]] with a secret signs a token.
    #[arg(long, value_name = "FILE")]
    config: Option<String>,

    /// The --jwt-secret of the server. Give it in REJOIN_JWT_SECRET, because other users can see the command line.
    #[arg(long, visible_alias = "secret", value_name = "SECRET")]
    jwt_secret: Option<String>,
}

impl Token {
    /// The settings that say which keys are accepted.
    pub fn flags(&self) -> Flags {
        let Accepting { config, jwt_secret } = match &self.command {
            Some(Command::Check(check)) => check.accepting(),
            None => &self.mint.accepting,
        };
        Flags::of([("config", config.clone()), ("jwt-secret", jwt_secret.clone())])
    }

    pub fn run(self, authority: &Authority) -> Ending {
        match self.command {
            Some(Command::Check(check)) => check.run(authority),
            None => self.mint.run(authority),
        }
    }
}

impl Mint {
    fn run(self, authority: &Authority) -> Ending {
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
        let minted = match mint(authority, key.as_ref(), &wish, SystemTime::now()) {
            Ok(minted) => minted,
            Err(error) => return Ending::Failed(error.to_string()),
        };
        for unfilled in &minted.unfilled {
            tell(format_args!("warning: {unfilled}"));
        }
        print(format!("{}\n", minted.token))
    }
}
