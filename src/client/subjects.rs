//! The requests about subjects: the list of each one's topics, and its end.
//!
//! Each is asked once. They do not try again by themselves.

use reqwest::{Method, Url};
use serde::Deserialize;

use super::{Client, ClientError, operate::ANSWER_TIMEOUT};

/// An entry of the list of a subject.
#[derive(Clone, Debug, Deserialize)]
#[non_exhaustive]
pub struct ListEntry {
    /// The topic or pattern.
    pub topic: String,
    /// The id at which it was added.
    pub id: String,
}

#[derive(Deserialize)]
struct List {
    topics: Vec<ListEntry>,
}

impl Client {
    /// The list of a subject.
    ///
    /// # Errors
    /// If the server refuses the request, or does not answer.
    pub async fn list_of(&self, subject: &str) -> Result<Vec<ListEntry>, ClientError> {
        let url = self.below_subjects(&[subject, "topics"]);
        let list: List = self.read(self.http.get(url).timeout(ANSWER_TIMEOUT)).await?;
        Ok(list.topics)
    }

    /// Adds a topic or pattern to the list of a subject.
    ///
    /// # Errors
    /// If the server refuses the request, or does not answer. After [`ClientError::Lost`] it may be done.
    pub async fn add_to_list(&self, subject: &str, topic: &str) -> Result<(), ClientError> {
        self.change(Method::PUT, self.below_subjects(&[subject, "topics", topic])).await
    }

    /// Removes a topic or pattern from the list of a subject.
    ///
    /// # Errors
    /// As [`add_to_list`](Self::add_to_list).
    pub async fn remove_from_list(&self, subject: &str, topic: &str) -> Result<(), ClientError> {
        self.change(Method::DELETE, self.below_subjects(&[subject, "topics", topic])).await
    }

    /// Ends all connections of a subject. With a duration, such as `10m`, the tokens that it has now are refused for
    /// so long.
    ///
    /// # Errors
    /// As [`add_to_list`](Self::add_to_list).
    pub async fn end_subject(&self, subject: &str, refuse: Option<&str>) -> Result<(), ClientError> {
        let mut url = self.below_subjects(&[subject]);
        if let Some(refuse) = refuse {
            url.query_pairs_mut().append_pair("refuse", refuse);
        }
        self.change(Method::DELETE, url).await
    }

    fn below_subjects(&self, segments: &[&str]) -> Url {
        let mut url = self.at("/subjects");
        url.path_segments_mut().expect("an http URL has a path").extend(segments);
        url
    }
}
