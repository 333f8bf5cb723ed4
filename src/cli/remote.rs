//! The server that a command uses: its address, the credential for it, and the meaning of its refusals.

use std::{error::Error, fmt, time::Duration};

use clap::Args;
use reqwest::{
    Client, RequestBuilder, Response, StatusCode, Url,
    header::{self, HeaderMap, HeaderValue},
    redirect,
};
use serde::Deserialize;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may be silent before the system asks the peer if it is still there.
const KEEPALIVE: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, Args)]
pub struct Remote {
    /// URL of the server.
    #[arg(
        long, env = "REJOIN_URL", value_name = "URL", default_value = "http://127.0.0.1:7070",
        value_parser = url
    )]
    url: Url,

    #[command(flatten)]
    credential: Credential,
}

/// The credential that is sent to the server.
#[derive(Clone, Debug, Args)]
pub struct Credential {
    /// Token or API key. Give it in the environment, because other users can see the command line.
    #[arg(long, env = "REJOIN_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<Token>,
}

/// A credential, which is sent to the server and never printed.
#[derive(Clone)]
struct Token(String);

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The same attempt would fail again.
    #[error("{0}")]
    Refused(String),
    /// The request never reached the server.
    #[error("cannot reach {0}")]
    Unreachable(String),
    /// The connection is over, or the server cannot answer now. It may have done what was asked.
    #[error("{why}")]
    Lost {
        why: String,
        /// How long the server asks the client to wait.
        pause: Option<Duration>,
    },
}

/// A refusal in the server's words (RFC 9457).
#[derive(Debug, Deserialize)]
pub struct Problem {
    pub code: String,
    #[serde(default)]
    pub detail: String,
    #[serde(default)]
    pub status: u16,
}

impl Remote {
    pub fn new(url: Url, credential: Credential) -> Self {
        Self { url, credential }
    }

    /// A client with its own connections.
    ///
    /// # Errors
    /// If the token cannot be sent in a header.
    pub fn client(&self) -> Result<Client, Trouble> {
        // This fails if a provider is installed already, which is just as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut headers = HeaderMap::new();
        if let Some(Token(token)) = &self.credential.token {
            let mut value = HeaderValue::try_from(format!("Bearer {}", token.trim())).map_err(|_| {
                Trouble::Refused("the token contains characters that a header cannot carry".into())
            })?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        let mut builder = Client::builder();
        if self.url.scheme() == "http" {
            // Plain HTTP needs no certificates, and reading all those of the system takes time.
            builder = builder.tls_certs_only([]);
        }
        builder
            .http1_only()
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_keepalive(KEEPALIVE)
            .default_headers(headers)
            .build()
            .map_err(Trouble::from)
    }

    /// The URL of a path and a query on the server. The server itself may be under a path.
    pub fn at(&self, path: &str) -> Url {
        let mut url = self.url.clone();
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        url.set_path(&format!("{}{path}", self.url.path().trim_end_matches('/')));
        url.set_query(query);
        url
    }
}

/// Sends a request, and returns the answer if it has the status `wanted`.
pub async fn ask(request: RequestBuilder, wanted: StatusCode) -> Result<Response, Trouble> {
    let response = request.send().await.map_err(Trouble::from)?;
    if response.status() == wanted { Ok(response) } else { Err(Trouble::in_answer(response).await) }
}

impl Trouble {
    pub fn lost(why: impl Into<String>) -> Self {
        Self::Lost { why: why.into(), pause: None }
    }

    async fn in_answer(response: Response) -> Self {
        let status = response.status();
        let pause = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        let body = response.bytes().await.unwrap_or_default();
        let problem = serde_json::from_slice(&body).unwrap_or_else(|_| Problem {
            code: status.to_string(),
            detail: "the answer does not come from Rejoin".into(),
            status: status.as_u16(),
        });
        Self::of_problem(Problem { status: status.as_u16(), ..problem }, pause.map(Duration::from_secs))
    }

    /// The meaning of a problem for a client that could try again.
    pub fn of_problem(problem: Problem, pause: Option<Duration>) -> Self {
        let Problem { code, detail, status } = problem;
        let why = if detail.is_empty() { code } else { format!("{code}: {detail}") };
        // A server that answers 501 will never support the request.
        if matches!(status, 408 | 429 | 500 | 502..) { Self::Lost { why, pause } } else { Self::Refused(why) }
    }
}

impl From<reqwest::Error> for Trouble {
    fn from(error: reqwest::Error) -> Self {
        let why = deepest(&error);
        if error.is_connect() {
            let server = error.url().map_or_else(String::new, |url| url.origin().ascii_serialization());
            Self::Unreachable(format!("{server}: {why}"))
        } else if error.is_builder() {
            Self::Refused(why)
        } else {
            Self::lost(format!("the connection was lost: {why}"))
        }
    }
}

/// The innermost cause, which says most to a user.
fn deepest(error: &dyn Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Reads the URL of a server.
pub fn url(text: &str) -> Result<Url, String> {
    let url: Url = text.parse().map_err(|error| format!("{error}, for example http://127.0.0.1:7070"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("expected a URL that begins with http:// or https://".into());
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
        return Err(
            "expected a URL without credentials and query; give the token with --token or REJOIN_TOKEN"
                .into(),
        );
    }
    Ok(url)
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
