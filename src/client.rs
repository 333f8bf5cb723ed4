//! A client of a Rejoin server: it subscribes by any transport, resumes by itself, and publishes in batches.
//!
//! It uses a server only through its protocol, and knows nothing of the server's code.
//!
//! ```no_run
//! use rejoin::client::{Client, Event, Start};
//! use tokio_stream::StreamExt;
//!
//! # async fn read() -> Result<(), rejoin::client::ClientError> {
//! let client = Client::new("http://127.0.0.1:7070")?;
//! let mut subscription = client.subscribe(["orders.*"], Start::Last(10));
//! while let Some(event) = subscription.next().await {
//!     match event? {
//!         Event::Message(message) => println!("{}", String::from_utf8_lossy(&message.payload)),
//!         Event::Gap(gap) => println!("{gap}, so load again"),
//!         // Connected, or disconnected: it reconnects by itself.
//!         _ => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The futures and streams here need a tokio runtime. TLS uses the default provider of `rustls`; if the program
//! has set none, the first [`Client`] sets `aws_lc_rs`.

#![warn(missing_docs)]

mod answer;
mod connection;
mod connections;
mod credential;
mod error;
mod operate;
mod publish;
mod retry;
mod subjects;
mod subscription;

use std::{borrow::Cow, net::IpAddr, path::Path, sync::Arc, time::Duration};

use reqwest::{RequestBuilder, Response, StatusCode, Url, header, redirect};
use tokio_stream::{Stream, StreamExt};

use self::credential::{BoxError, Credential};
pub use self::{
    connection::{Gap, Message},
    connections::{AddOptions, ConnectionFilter, ConnectionState, Connections},
    error::ClientError,
    operate::{Member, Members, Ready, TopicState, Topics},
    publish::{Draft, Progress, Publishing},
    subjects::ListEntry,
    subscription::{Event, Subscription},
};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The URL of a server at a Unix socket. The server accepts such a name from every client, and no other server has it.
const UNIX_HOST: &str = "unix.localhost";
const UNIX_URL: &str = "http://unix.localhost";
/// How long a connection may be silent before the system asks the peer if it is still there.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// How to read from a server. All of them give the same messages, and have the same cursor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// WebSocket
    #[default]
    WebSocket,
    /// Server-Sent Events
    Sse,
    /// Streamed HTTP, one JSON object on each line
    Ndjson,
    /// Long-polling
    Poll,
}

/// The point at which reading begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// With the messages that are published from now on.
    #[default]
    Now,
    /// After this cursor, such as the id of a message. `0` is before everything that is retained.
    After(String),
    /// With the newest messages of each topic, as many as this.
    Last(u32),
    /// With the messages since then: a duration such as `10m`, or an RFC 3339 time.
    Since(String),
}

impl Start {
    /// The name and the value of its parameter.
    fn parameter(&self) -> Option<(&'static str, Cow<'_, str>)> {
        Some(match self {
            Self::Now => return None,
            Self::After(cursor) => ("after", cursor.into()),
            Self::Last(count) => ("last", count.to_string().into()),
            Self::Since(since) => ("since", since.into()),
        })
    }
}

/// A server, the credential for it, and how to read from it. It is cheap to clone, and all clones share their
/// connections and their credential.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    url: Url,
    credential: Arc<Credential>,
    transport: Transport,
    give_up: Option<Duration>,
}

impl Client {
    /// A client of the server at this URL, such as `http://127.0.0.1:7070`, without a credential. The server
    /// may be under a path. `unix:/path` is a server that listens on a Unix socket. It connects with the first request, through the proxy that the environment names for it
    /// (`HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`), but never through one to a loopback address.
    ///
    /// # Errors
    /// [`ClientError::Unusable`] if this is no URL of a server, or if TLS cannot be set up.
    pub fn new(url: &str) -> Result<Self, ClientError> {
        let socket = url.strip_prefix("unix:").map(parse_path).transpose().map_err(ClientError::Unusable)?;
        let url = if socket.is_some() { UNIX_URL } else { url };
        let url = parse_url(url).map_err(ClientError::Unusable)?;
        // This fails if a provider is installed already, which is just as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut builder = reqwest::Client::builder();
        if url.scheme() == "http" {
            // Plain HTTP needs no certificates, and reading all those of the system takes time.
            builder = builder.tls_certs_only([]);
        }
        if is_loopback(&url) {
            // A proxy elsewhere cannot reach a server of this machine.
            builder = builder.no_proxy();
        }
        if let Some(socket) = socket {
            builder = builder.unix_socket(socket);
        }
        let http = builder
            .http1_only()
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_keepalive(KEEPALIVE)
            .build()?;
        let credential = Arc::default();
        Ok(Self { http, url, credential, transport: Transport::default(), give_up: None })
    }

    /// Sends this token or API key with every request.
    ///
    /// # Errors
    /// [`ClientError::Unusable`] if a header cannot carry it.
    pub fn with_token(mut self, token: &str) -> Result<Self, ClientError> {
        self.credential = Arc::new(Credential::fixed(token)?);
        Ok(self)
    }

    /// Sends a token that this function gives. The client asks for one before its first request, and for a new
    /// one when the server refuses the old one, for example because it has expired.
    ///
    /// If the function fails or takes more than 10 seconds, the client tries again as after a lost connection.
    /// Requests that need a token at the same time share one call. If the server refuses a new token too, that is
    /// the end.
    ///
    /// ```
    /// use rejoin::client::{Client, ClientError};
    ///
    /// # fn build() -> Result<Client, ClientError> {
    /// Client::new("http://127.0.0.1:7070").map(|client| {
    ///     client.with_tokens_from(|| async { Ok(tokio::fs::read_to_string("/run/secrets/rejoin").await?) })
    /// })
    /// # }
    /// # build().expect("a URL of a server");
    /// ```
    pub fn with_tokens_from<F>(mut self, tokens: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<String, BoxError>> + Send + 'static,
    {
        self.credential = Arc::new(Credential::renewed_by(Box::new(move || Box::pin(tokens()))));
        self
    }

    /// Reads by this transport. The default is WebSocket.
    pub fn with_transport(mut self, transport: Transport) -> Self {
        self.transport = transport;
        self
    }

    /// Gives up after failing for this long without progress. By default a client never gives up.
    pub fn with_give_up(mut self, give_up: Duration) -> Self {
        self.give_up = Some(give_up);
        self
    }

    /// Subscribes to topics and patterns. Their names go into the URL of the request, which may have 65 000 bytes.
    /// A proxy may take less. For more topics use patterns.
    ///
    /// # Errors
    /// The last item of the stream is the error with which it ended:
    /// - [`ClientError::Refused`] if the server refuses the subscription;
    /// - [`ClientError::Unusable`] if the peer is not Rejoin, or the URL is too long;
    /// - any other error if the client has [given up](Self::with_give_up).
    pub fn subscribe(
        &self,
        topics: impl IntoIterator<Item = impl Into<String>>,
        start: Start,
    ) -> Subscription {
        Subscription::new(self.clone(), topics.into_iter().map(Into::into).collect(), false, start)
    }

    /// Subscribes to the topics that the backend keeps for the subject of the token, and to `topics` too. The backend
    /// [adds](Self::add_to_list) and [removes](Self::remove_from_list) topics at any time, and the subscription tells the
    /// changes, each in its place among the messages. A poll tells the additions before the messages of its answer, and the
    /// removals after them. Changes that undo each other between two polls, or between two connections, are not told.
    ///
    /// Changes of a topic that is among `topics` are not told. If the backend removes one that it had added, a stream or a
    /// WebSocket ends, because its server may read the topic no longer: the subscription connects again and resumes.
    ///
    /// ```no_run
    /// # async fn read(client: rejoin::client::Client) -> Result<(), rejoin::client::ClientError> {
    /// use rejoin::client::{Event, Start};
    /// use tokio_stream::StreamExt;
    ///
    /// let mut subscription = client.subscribe_mine(["news"], Start::Now);
    /// while let Some(event) = subscription.next().await {
    ///     match event? {
    ///         Event::Added(topic) => println!("now also {topic}"),
    ///         Event::Removed(topic) => println!("no more {topic}"),
    ///         Event::Message(message) => println!("{}: {:?}", message.topic, message.payload),
    ///         Event::Gap(gap) => println!("{gap}, so load again"),
    ///         _ => {}
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`subscribe`](Self::subscribe). A client without a subject is refused. While the list is empty the subscription
    /// waits.
    pub fn subscribe_mine(
        &self,
        topics: impl IntoIterator<Item = impl Into<String>>,
        start: Start,
    ) -> Subscription {
        Subscription::new(self.clone(), topics.into_iter().map(Into::into).collect(), true, start)
    }

    /// Publishes one message, and returns its id.
    ///
    /// Until the outcome is known, the client sends the message again under one idempotency key. So the message
    /// is stored once.
    ///
    /// ```no_run
    /// # async fn publish(client: rejoin::client::Client) -> Result<(), rejoin::client::ClientError> {
    /// use rejoin::client::Draft;
    ///
    /// let id = client.publish(Draft::new("orders.42", r#"{"total":12}"#).with_event("paid")).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// - [`ClientError::Refused`] and [`ClientError::Unusable`]: the message was not stored. An ephemeral message
    ///   is unusable here, because it gets no id: [`publish_all`](Self::publish_all) takes it.
    /// - [`ClientError::Lost`]: the message may be stored. The outcome stayed unknown for three minutes, so the
    ///   server may soon forget the key; or the client has [given up](Self::with_give_up), or the server refused
    ///   the message, after an attempt without an answer. To publish it again may store it twice.
    /// - [`ClientError::Unavailable`]: the client has given up, and the message was not stored.
    ///
    /// # Cancel safety
    /// Dropping this before it resolves may still store the message.
    pub async fn publish(&self, draft: Draft) -> Result<String, ClientError> {
        if draft.is_ephemeral() {
            return Err(ClientError::Unusable("an ephemeral message gets no id".into()));
        }
        let mut publishing = self.publish_all(tokio_stream::once(draft));
        // The error of an attempt that may have stored the message.
        let mut lost = None;
        while let Some(progress) = publishing.next().await {
            let error = match progress {
                Ok(Progress::Stored { id }) => return Ok(id),
                Ok(Progress::Retrying(error)) => {
                    lost = lost.or(matches!(error, ClientError::Lost { .. }).then_some(error));
                    continue;
                }
                Ok(Progress::Recovered | Progress::Sent) => continue,
                Ok(Progress::Doubtful { .. }) => break,
                Ok(Progress::Refused(error)) | Err(error) => error,
            };
            return Err(lost.unwrap_or(error));
        }
        Err(lost.unwrap_or_else(|| ClientError::lost("the outcome is unknown")))
    }

    /// Publishes messages in their order, and tells the outcome of each in that order.
    ///
    /// The messages that are ready together are sent together, up to 1 000 and 256 KiB. The next ones are taken
    /// from the stream when all of these are stored or refused.
    ///
    /// ```no_run
    /// # async fn publish(client: rejoin::client::Client) -> Result<(), rejoin::client::ClientError> {
    /// use rejoin::client::{Draft, Progress};
    /// use tokio_stream::StreamExt;
    ///
    /// let lines = (1..=1000).map(|number| Draft::new("demo", format!("line {number}")));
    /// let mut publishing = client.publish_all(tokio_stream::iter(lines));
    /// while let Some(progress) = publishing.next().await {
    ///     match progress? {
    ///         Progress::Stored { id } => println!("{id}"),
    ///         Progress::Refused(error) => eprintln!("refused: {error}"),
    ///         Progress::Doubtful { count } => eprintln!("the next {count} may be stored twice"),
    ///         // It tries again by itself.
    ///         _ => {}
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The last item of the stream is the error with which it ended, if it did not end with `drafts`:
    /// - [`ClientError::Refused`] if the server refuses the request as a whole, for example the credential;
    /// - [`ClientError::Unusable`] if the peer is not Rejoin;
    /// - [`ClientError::Unavailable`] if the client has [given up](Self::with_give_up);
    /// - [`ClientError::Lost`] in place of each of these after an attempt without an answer: the messages without
    ///   an outcome that were taken from `drafts` may be stored.
    pub fn publish_all<'a>(&self, drafts: impl Stream<Item = Draft> + Send + 'a) -> Publishing<'a> {
        Publishing::new(self.clone(), drafts)
    }

    /// Sends a request, and returns the answer if it has the status `wanted`. If the server refuses the
    /// credential and there is another one, the request is sent once more.
    async fn ask(&self, request: RequestBuilder, wanted: StatusCode) -> Result<Response, ClientError> {
        let again = request.try_clone().expect("the body is in memory");
        let used = self.credential.header().await?;
        match send(request, used.clone(), wanted).await {
            Err(error) if error.is_of_credential() && self.credential.forget(used.as_ref()) => {
                send(again, self.credential.header().await?, wanted).await
            }
            answer => answer,
        }
    }

    /// The URL of a path and a query on the server. The server itself may be under a path.
    fn at(&self, path: &str) -> Url {
        let mut url = self.url.clone();
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        url.set_path(&format!("{}{path}", self.url.path().trim_end_matches('/')));
        url.set_query(query);
        url
    }
}

async fn send(
    mut request: RequestBuilder,
    credential: Option<header::HeaderValue>,
    wanted: StatusCode,
) -> Result<Response, ClientError> {
    if let Some(credential) = credential {
        request = request.header(header::AUTHORIZATION, credential);
    }
    let response = request.send().await?;
    if response.status() == wanted { Ok(response) } else { Err(ClientError::in_answer(response).await) }
}

/// Reads the path of a Unix socket, which may have two slashes more, as in `unix:///path`.
fn parse_path(text: &str) -> Result<&Path, String> {
    let path = text.strip_prefix("//").unwrap_or(text);
    let is_path = path.starts_with('/') && !path.contains(['?', '\0']);
    is_path.then(|| Path::new(path)).ok_or("expected unix:/path, the absolute path of a Unix socket".into())
}

/// Reads the URL of a server.
fn parse_url(text: &str) -> Result<Url, String> {
    let url: Url = text.parse().map_err(|error| format!("{error}, for example http://127.0.0.1:7070"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("expected a URL that begins with http:// or https://, or unix:/path".into());
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
        return Err("expected a URL without credentials and query; a token is given apart from it".into());
    }
    Ok(url)
}

/// True if the URL names this machine.
fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let address = host.parse::<IpAddr>().map(|address| address.to_canonical());
    host == "localhost" || host.ends_with(".localhost") || address.is_ok_and(|address| address.is_loopback())
}
