//! The requests about live connections: who reads what, adding and removing topics, ending.
//!
//! Each is asked once. They do not try again by themselves.

use reqwest::{Method, StatusCode, Url};
use serde::{Deserialize, Serialize};

use super::{Client, ClientError, Start, operate::ANSWER_TIMEOUT};

/// As many connections as the server puts into one page.
const CONNECTIONS_OF_A_PAGE: usize = 1_000;

/// Some of the live connections, in the order of their ids.
#[derive(Clone, Debug, Deserialize)]
#[non_exhaustive]
pub struct Connections {
    /// The connections of this page.
    pub connections: Vec<ConnectionState>,
    /// The connection after which the next page begins; `None` if this is the last one.
    pub next: Option<String>,
    /// The replicas that did not answer, and `unknown` if others may live that are not known yet. Their connections are not
    /// here.
    pub missing: Vec<String>,
}

/// A live connection.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[non_exhaustive]
pub struct ConnectionState {
    /// Its id.
    pub connection: String,
    /// The subject of its client.
    pub sub: Option<String>,
    /// `websocket`, `sse` or `ndjson`.
    pub transport: String,
    /// The replica that holds it.
    pub replica: String,
    /// When it began, in RFC 3339.
    pub since: String,
    /// The first 20 topics and patterns that it reads.
    pub topics: Vec<String>,
    /// How many it reads.
    pub topic_count: u64,
    /// The address of its client.
    pub address: Option<String>,
    /// How far it is behind the newest message, in milliseconds.
    pub behind: u64,
}

/// Which connections to list.
#[derive(Clone, Debug, Default)]
pub struct ConnectionFilter {
    /// Only those of this subject.
    pub sub: Option<String>,
    /// Only those that are subscribed to exactly this topic or pattern.
    pub topic: Option<String>,
}

/// How a connection reads a topic that is added to it.
#[derive(Clone, Debug, Default)]
pub struct AddOptions {
    /// The point at which reading begins.
    pub start: Start,
    /// Only if the connection is of this subject.
    pub sub: Option<String>,
    /// The subject of the connection is present in the topic.
    pub presence: bool,
}

impl Client {
    /// A page of the live connections, after the connection of that id.
    ///
    /// # Errors
    /// If the server refuses the request, or does not answer.
    pub async fn connections(
        &self,
        filter: &ConnectionFilter,
        after: Option<&str>,
    ) -> Result<Connections, ClientError> {
        let mut url = self.at("/connections");
        let limit = CONNECTIONS_OF_A_PAGE.to_string();
        let given = [("sub", filter.sub.as_deref()), ("topic", filter.topic.as_deref()), ("after", after)];
        let given = given.into_iter().filter_map(|(name, value)| Some((name, value?)));
        url.query_pairs_mut().append_pair("limit", &limit).extend_pairs(given);
        self.read(self.http.get(url).timeout(ANSWER_TIMEOUT)).await
    }

    /// Lets a live connection read a topic or pattern.
    ///
    /// # Errors
    /// If the server refuses the request, or does not answer. After [`ClientError::Lost`] it may be done.
    pub async fn add_topic(
        &self,
        connection: &str,
        topic: &str,
        options: &AddOptions,
    ) -> Result<(), ClientError> {
        let AddOptions { start, sub, presence } = options;
        let mut url = self.topic_of(connection, topic, sub.as_deref());
        if let Some(parameter) = start.parameter() {
            url.query_pairs_mut().extend_pairs([parameter]);
        }
        if *presence {
            url.query_pairs_mut().append_key_only("presence");
        }
        self.change(Method::PUT, url).await
    }

    /// Stops a live connection from reading a topic or pattern. With a subject, only if the connection is of that subject.
    ///
    /// # Errors
    /// As [`add_topic`](Self::add_topic).
    pub async fn remove_topic(
        &self,
        connection: &str,
        topic: &str,
        sub: Option<&str>,
    ) -> Result<(), ClientError> {
        let url = self.topic_of(connection, topic, sub);
        self.change(Method::DELETE, url).await
    }

    /// Ends a live connection. With a subject, only if the connection is of that subject.
    ///
    /// # Errors
    /// As [`add_topic`](Self::add_topic).
    pub async fn end_connection(&self, connection: &str, sub: Option<&str>) -> Result<(), ClientError> {
        self.change(Method::DELETE, self.below_connections(&[connection], sub)).await
    }

    fn topic_of(&self, connection: &str, topic: &str, sub: Option<&str>) -> Url {
        self.below_connections(&[connection, "topics", topic], sub)
    }

    fn below_connections(&self, segments: &[&str], sub: Option<&str>) -> Url {
        let mut url = self.at("/connections");
        url.path_segments_mut().expect("an http URL has a path").extend(segments);
        if let Some(sub) = sub {
            url.query_pairs_mut().append_pair("sub", sub);
        }
        url
    }

    pub(super) async fn change(&self, method: Method, url: Url) -> Result<(), ClientError> {
        let request = self.http.request(method, url).timeout(ANSWER_TIMEOUT);
        self.ask(request, StatusCode::NO_CONTENT).await.map(drop)
    }
}
