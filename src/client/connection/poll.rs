//! Long-polling: one request after the other, each with the cursor of the last answer.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use reqwest::{StatusCode, Url};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{MAX_FRAME_BYTES, frame::Frame};
use crate::client::{
    Client, ClientError,
    answer::{body, within},
};

/// How long the server may hold an answer, and how many messages it may contain.
const WAIT: Duration = Duration::from_secs(25);
const LIMIT: usize = 1_000;

pub struct Poll {
    client: Client,
    /// The request. Once there is a cursor, it replaces the start in the query.
    url: Url,
    cursor: Option<String>,
    /// The list of the subject, if it is read.
    mine: BTreeSet<String>,
    /// Frames of the last answer that were not yet returned.
    frames: VecDeque<Frame>,
}

#[derive(Deserialize)]
struct PollAnswer<'a> {
    #[serde(borrow)]
    messages: Vec<&'a RawValue>,
    #[serde(borrow, default)]
    gaps: Vec<&'a RawValue>,
    cursor: String,
    #[serde(default)]
    mine: BTreeSet<String>,
}

impl Poll {
    pub fn new(client: &Client, url: Url) -> Self {
        Self { client: client.clone(), url, cursor: None, mine: BTreeSet::new(), frames: VecDeque::new() }
    }

    /// The next frame. The head of an answer may take as long as `silence`.
    ///
    /// # Cancel safety
    /// Dropping this loses nothing: the next call asks for the same messages again.
    pub async fn next(&mut self, silence: Duration) -> Result<Frame, ClientError> {
        while self.frames.is_empty() {
            self.ask(silence).await?;
        }
        Ok(self.frames.pop_front().expect("it is not empty"))
    }

    async fn ask(&mut self, silence: Duration) -> Result<(), ClientError> {
        let request = self.client.http.get(self.request());
        let answer = within(silence, self.client.ask(request, StatusCode::OK)).await?;
        let answer = body(answer, MAX_FRAME_BYTES).await?;
        let PollAnswer { messages, gaps, cursor, mine } =
            serde_json::from_slice(&answer).map_err(ClientError::not_ours)?;
        if self.cursor.is_none() {
            self.frames.push_back(Frame::Open {
                cursor: None,
                heartbeat: WAIT,
                mine: mine.iter().cloned().collect(),
            });
        } else {
            let added = mine.difference(&self.mine);
            self.frames.extend(added.cloned().map(Frame::Added));
        }
        let before = std::mem::replace(&mut self.mine, mine);
        for raw in gaps.into_iter().chain(messages) {
            self.frames.extend(match Frame::parse(answer.slice_ref(raw.get().as_bytes()))? {
                // The messages of this answer come after it, and may be older than its cursor.
                Some(Frame::Gap { gap, .. }) => Some(Frame::Gap { gap, cursor: None }),
                frame => frame,
            });
        }
        // The messages of this answer may be from before the removal. Each request names its own topics, so these stay.
        let is_named =
            |topic: &String| self.url.query_pairs().any(|(name, value)| name == "topic" && value == **topic);
        let removed: Vec<_> =
            before.difference(&self.mine).filter(|topic| !is_named(topic)).cloned().collect();
        self.frames.extend(removed.into_iter().map(Frame::Removed));
        self.frames.push_back(Frame::Cursor(cursor.clone()));
        self.cursor = Some(cursor);
        Ok(())
    }

    fn request(&self) -> Url {
        let mut url = self.url.clone();
        // The first answer comes at once, so that a refusal shows at once too.
        let wait = if self.cursor.is_some() { WAIT.as_secs() } else { 0 };
        let begins = |name: &str| matches!(name, "after" | "last" | "since");
        let mut query: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        if let Some(cursor) = &self.cursor {
            query.retain(|(name, _)| !begins(name));
            query.push(("after".into(), cursor.clone()));
        }
        url.query_pairs_mut()
            .clear()
            .extend_pairs(query)
            .append_pair("wait", &wait.to_string())
            .append_pair("limit", &LIMIT.to_string());
        url
    }
}
