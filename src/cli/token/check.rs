//! `rejoin token check`: why a server of this configuration accepts or refuses a credential.

use std::{
    io::{self, Read},
    time::SystemTime,
};

use clap::Args;
use rejoin::auth::{Authority, Check as Checked};

use super::{Accepting, Ending, print};

/// More than a token may have.
const MAX_INPUT_BYTES: u64 = 128 << 10;

#[derive(Debug, Args)]
pub struct Check {
    /// Token or API key to check; `-` reads it from standard input, where other users cannot see it.
    token: String,

    #[command(flatten)]
    accepting: Accepting,
}

impl Check {
    pub fn accepting(&self) -> &Accepting {
        &self.accepting
    }

    pub fn run(self, authority: &Authority) -> Ending {
        if authority.is_open() {
            return Ending::Mistaken(
                "a server without keys and grants ignores tokens: give its --config FILE or its --jwt-secret"
                    .into(),
            );
        }
        let credential = match self.token.as_str() {
            "-" => match typed() {
                Ok(text) => text,
                Err(error) => return Ending::Failed(format!("cannot read standard input: {error}")),
            },
            text => text.to_owned(),
        };
        let credential = credential.trim();
        let credential = credential.strip_prefix("Bearer ").unwrap_or(credential);
        let Checked { findings, verdict } = authority.check(credential, SystemTime::now());
        let mark = |is_mistake| if is_mistake { "WRONG  " } else { "" };
        let lines = findings
            .iter()
            .map(|found| format!("{:10} {}{}\n", found.part, mark(found.is_mistake), found.text));
        let verdict = verdict.map(drop).map_err(|refused| refused.to_string());
        let last = if verdict.is_ok() { "accepted\n" } else { "" };
        match (print(lines.collect::<String>() + last), verdict) {
            (Ending::Done, Err(why)) => Ending::Failed(format!("refused: {why}")),
            (ending, _) => ending,
        }
    }
}

fn typed() -> io::Result<String> {
    let mut text = String::new();
    io::stdin().take(MAX_INPUT_BYTES).read_to_string(&mut text)?;
    Ok(text)
}
