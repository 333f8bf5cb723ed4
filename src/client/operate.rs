//! The requests of an operator: the topics, the counts, the readiness, and deleting a topic.
//! `connections.rs` has those about live connections.
//!
//! Each is asked once. They do not try again by themselves.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{Client, ClientError, answer::body};

/// How long an answer may take.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the answer about readiness may take. The server itself takes at most a second for it.
const READY_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest answer that is read: far more than a page of topics takes.
const MAX_ANSWER_BYTES: usize = 4 << 20;
/// As many topics as the server puts into one page.
const TOPICS_OF_A_PAGE: usize = 1_000;

/// Some of the topics, in the order of their names.
#[derive(Clone, Debug, Deserialize)]
#[non_exhaustive]
pub struct Topics {
    /// The topics of this page.
    pub topics: Vec<TopicState>,
    /// The topic after which the next page begins; `None` if this is the last one.
    pub next: Option<String>,
    /// The replicas that did not answer, and `unknown` if others may live that are not known yet. Their subscribers are
    /// not counted.
    pub missing: Vec<String>,
}

/// The counts of one topic.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[non_exhaustive]
pub struct TopicState {
    /// Its name.
    pub topic: String,
    /// The id of its newest message, retained or not.
    pub newest: String,
    /// How many messages are retained.
    pub messages: u64,
    /// The bytes of these, as retention counts them.
    pub bytes: u64,
    /// How many subscriptions to exactly this topic all replicas have.
    pub subscribers: u64,
}

/// Some of the members of a topic, in the order of their subjects.
#[derive(Clone, Debug, Deserialize)]
#[non_exhaustive]
pub struct Members {
    /// The changes after this id are not in the page.
    pub cursor: String,
    /// How many members the topic has in all.
    pub count: u64,
    /// The members of this page.
    pub members: Vec<Member>,
    /// The subject after which the next page begins; `None` if this is the last one.
    pub next: Option<String>,
}

/// A subject that is present in a topic.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[non_exhaustive]
pub struct Member {
    /// The subject.
    pub sub: String,
    /// How many connections hold it present; 0 while its grace lasts.
    pub connections: u64,
    /// The id of the message that told the join.
    pub since: String,
    /// The JSON that the token, or the backend, tells of it.
    pub info: Value,
}

/// A server that is ready.
#[derive(Clone, Copy, Debug, Deserialize)]
#[non_exhaustive]
pub struct Ready {
    /// True if the log has no room for another message, so that publishing is refused. Reading works.
    #[serde(default, rename = "full")]
    pub is_full: bool,
}

impl Client {
    /// A page of all topics, after the topic of that name.
    ///
    /// # Errors
    /// If the server refuses the request, or does not answer.
    pub async fn topics(&self, after: Option<&str>) -> Result<Topics, ClientError> {
        let mut url = self.at("/topics");
        url.query_pairs_mut().append_pair("limit", &TOPICS_OF_A_PAGE.to_string());
        if let Some(after) = after {
            url.query_pairs_mut().append_pair("after", after);
        }
        self.read(self.http.get(url).timeout(ANSWER_TIMEOUT)).await
    }

    /// A page of the members of a topic, after the subject of that name.
    ///
    /// # Errors
    /// If the server refuses the request, or does not answer.
    pub async fn members(&self, topic: &str, after: Option<&str>) -> Result<Members, ClientError> {
        let mut url = self.at("/topics");
        url.path_segments_mut().expect("an http URL has a path").extend([topic, "presence"]);
        url.query_pairs_mut().append_pair("limit", &TOPICS_OF_A_PAGE.to_string());
        if let Some(after) = after {
            url.query_pairs_mut().append_pair("after", after);
        }
        self.read(self.http.get(url).timeout(ANSWER_TIMEOUT)).await
    }

    /// The counts of the server, under the names of the protocol.
    ///
    /// # Errors
    /// If the server refuses the request, or does not answer.
    pub async fn stats(&self) -> Result<Map<String, Value>, ClientError> {
        self.read(self.http.get(self.at("/stats")).timeout(ANSWER_TIMEOUT)).await
    }

    /// Asks if publishing and the live feed work.
    ///
    /// # Errors
    /// [`ClientError::Unavailable`] with a code if the server answers that it is not ready; another error if it
    /// refuses the request, or does not answer.
    pub async fn ready(&self) -> Result<Ready, ClientError> {
        self.read(self.http.get(self.at("/health/ready")).timeout(READY_TIMEOUT)).await
    }

    /// Deletes what is retained of a topic.
    ///
    /// # Errors
    /// If the server refuses the request, or does not answer. After [`ClientError::Lost`] the topic may be
    /// deleted.
    pub async fn delete(&self, topic: &str) -> Result<(), ClientError> {
        let mut url = self.at("/topics");
        url.path_segments_mut().expect("an http URL has a path").push(topic);
        let request = self.http.request(Method::DELETE, url).timeout(ANSWER_TIMEOUT);
        self.ask(request, StatusCode::NO_CONTENT).await.map(drop)
    }

    pub(super) async fn read<T: DeserializeOwned>(
        &self,
        request: reqwest::RequestBuilder,
    ) -> Result<T, ClientError> {
        let answer = body(self.ask(request, StatusCode::OK).await?, MAX_ANSWER_BYTES).await?;
        serde_json::from_slice(&answer).map_err(ClientError::not_ours)
    }
}
