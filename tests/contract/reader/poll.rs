//! Long-polling, which continues from the cursor of each answer.

use std::collections::VecDeque;

use serde_json::Value;

use super::Headers;
use crate::{
    ask::{Ask, client, text, within},
    support::Server,
};

/// The parameters for the start.
const STARTS: [&str; 7] =
    ["after", "lastEventId", "lastEventID", "Last-Event-ID", "last_event_id", "last", "since"];

/// A subscription, with the messages that were answered and not read yet.
pub struct Poll {
    server: String,
    query: String,
    headers: Vec<(String, String)>,
    frames: VecDeque<Value>,
    cursor: String,
}

impl Poll {
    /// Sends one request: for the current cursor if there is no start, else for what comes after the start.
    pub async fn open_with(server: &Server, path: &str, headers: Headers<'_>) -> Self {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let mut poll = Self {
            server: server.http(""),
            query: path.to_owned(),
            headers: headers.iter().map(owned).collect(),
            frames: VecDeque::new(),
            cursor: String::new(),
        };
        poll.ask(0).await;
        poll
    }

    async fn ask(&mut self, wait_s: u32) {
        let after = if self.cursor.is_empty() { String::new() } else { format!("&after={}", self.cursor) };
        // One message in each page, so that the cursor is always that of the last message read.
        let limit = if self.query.contains("&limit=") { "" } else { "&limit=1" };
        let url = format!("{}{}{after}&wait={wait_s}{limit}", self.server, self.query);
        let mut request = client().get(url);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let answer = request.answer().await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let page = answer.json();
        self.frames.extend(page["gaps"].as_array().into_iter().flatten().cloned());
        self.frames.extend(page["messages"].as_array().expect("messages").iter().cloned());
        self.cursor = text(&page["cursor"]);
        // From here on only the cursor gives the start.
        self.headers.retain(|(name, _)| name != "last-event-id");
        let (path, query) = self.query.split_once('?').expect("a query");
        let is_start = |part: &str| STARTS.contains(&part.split('=').next().unwrap_or_default());
        let rest: Vec<_> = query.split('&').filter(|part| !is_start(part)).collect();
        self.query = format!("{path}?{}", rest.join("&"));
    }

    pub fn cursor(&self) -> &str {
        let Self { frames, cursor, .. } = self;
        assert!(frames.is_empty(), "the cursor is past unread frames: {frames:?}");
        cursor
    }

    pub async fn next(&mut self) -> Value {
        within("a frame in an answer to a poll", async {
            loop {
                match self.frames.pop_front() {
                    Some(frame) => return frame,
                    None => self.ask(20).await,
                }
            }
        })
        .await
    }
}
