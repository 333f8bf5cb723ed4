//! The server that a command uses, the credential for it, and the transport, as they are given on the command
//! line.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use rejoin::client::{self, Client, ClientError};

#[derive(Clone, Debug, Args)]
pub struct Remote {
    #[command(flatten)]
    address: Address,

    #[command(flatten)]
    credential: Credential,
}

#[derive(Clone, Debug, Args)]
pub struct Address {
    /// URL of the server, or `unix:/path`.
    #[arg(
        long = "url", env = "REJOIN_URL", hide_env_values = true, value_name = "URL", default_value = "http://127.0.0.1:7070",
        value_parser = server
    )]
    server: Client,
}

/// The credential that is sent to the server.
#[derive(Clone, Debug, Args)]
pub struct Credential {
    /// Token or API key. Give it in the environment, because other users can see the command line.
    #[arg(long, env = "REJOIN_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<Token>,

    /// File with the token or API key. It is read again whenever the server refuses the last one, for example
    /// because it has expired.
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
}

/// A credential, which is sent to the server and never printed.
#[derive(Clone)]
struct Token(String);

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Transport {
    /// WebSocket
    Ws,
    /// Server-Sent Events
    Sse,
    /// Streamed HTTP, one JSON object on each line
    Ndjson,
    /// Long-polling
    Poll,
}

impl Remote {
    /// # Errors
    /// If the token cannot be read, or cannot be sent in a header.
    pub fn client(self) -> Result<Client, ClientError> {
        self.credential.give_to(self.address.client())
    }
}

impl Address {
    /// A client without a credential.
    pub fn client(self) -> Client {
        self.server
    }
}

impl Credential {
    /// # Errors
    /// If the token cannot be read, or cannot be sent in a header.
    pub fn give_to(self, client: Client) -> Result<Client, ClientError> {
        match (self.token, self.token_file) {
            (Some(Token(token)), _) => client.with_token(&token),
            (_, Some(path)) => {
                // A wrong name ends the command at once. Later the file may be missing for a moment.
                read(&path).map_err(ClientError::Unusable)?;
                Ok(client.with_tokens_from(move || {
                    let token = read(&path);
                    async { Ok(token?) }
                }))
            }
            _ => Ok(client),
        }
    }
}

fn read(path: &Path) -> Result<String, String> {
    let token =
        fs::read_to_string(path).map_err(|error| format!("--token-file {}: {error}", path.display()))?;
    if token.trim().is_empty() {
        Err(format!("--token-file {}: it is empty", path.display()))
    } else {
        Ok(token)
    }
}

/// Reads the URL of a server.
pub fn server(url: &str) -> Result<Client, String> {
    Client::new(url).map_err(|error| error.to_string())
}

impl From<Transport> for client::Transport {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Ws => Self::WebSocket,
            Transport::Sse => Self::Sse,
            Transport::Ndjson => Self::Ndjson,
            Transport::Poll => Self::Poll,
        }
    }
}

impl From<String> for Token {
    fn from(token: String) -> Self {
        Self(token)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}
