//! Long-polling that asks on from the cursor of each answer.

use std::collections::VecDeque;

use serde_json::Value;

use super::Headers;
use crate::{
    ask::{Ask, client, text, within},
    support::Server,
};

/// The parameters that say where to start.
const STARTS: [&str; 4] = ["after", "last_event_id", "last", "since"];

/// A subscription, and what was answered and not looked at yet.
pub struct Poll {
    server: String,
    query: String,
    headers: Vec<(String, String)>,
    frames: VecDeque<Value>,
    cursor: String,
}

impl Poll {
    /// Asks once: for the current cursor where there is no start, else for what comes after the start.
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
        // One message a page, so that the cursor is always that of the last one looked at.
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
        // From here on only the cursor says where to go on.
        self.headers.retain(|(name, _)| name != "last-event-id");
        let (path, query) = self.query.split_once('?').expect("a query");
        let is_start = |part: &str| STARTS.contains(&part.split('=').next().unwrap_or_default());
        let rest: Vec<_> = query.split('&').filter(|part| !is_start(part)).collect();
        self.query = format!("{path}?{}", rest.join("&"));
    }

    pub fn cursor(&self) -> &str {
        let Self { frames, cursor, .. } = self;
        assert!(frames.is_empty(), "the cursor is past what was not looked at: {frames:?}");
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
