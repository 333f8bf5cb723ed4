//! The options of a subscription, from the query and from the body of `POST /events`.

use std::time::Duration;

use axum::body::{Body, Bytes};
use http::{HeaderMap, HeaderName};
use serde::Deserialize;

use super::{
    App,
    body::{self, Declared},
    media,
    problem::{Code, Problem},
    query::{self, Query, StartFields},
};
use crate::{
    log::{Payer, Start},
    message::{Id, Object},
};

/// The largest body of `POST /events`: some ten thousand topics.
const MAX_EVENTS_BODY_BYTES: usize = 1 << 20;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The query parameters in which client libraries send their cursor, by rank. They are newer than `after`,
/// which the page wrote into the URL before it was connected.
pub const ADDED_CURSORS: [&str; 4] = ["lastEventId", "lastEventID", "Last-Event-ID", "last_event_id"];

/// The options of a subscription.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Asked {
    pub topics: Vec<String>,
    after: Option<String>,
    /// The cursor that a client library has added. It counts as the header does.
    last_event_id: Option<String>,
    last: Option<Scalar>,
    since: Option<String>,
    pub transport: Option<String>,
    pub format: Option<String>,
    wait: Option<Scalar>,
    limit: Option<Scalar>,
    mine: Option<Flag>,
    presence: Option<Flag>,
    /// Only the query of one topic has it.
    #[serde(skip)]
    before: Option<String>,
}

/// A flag: true or false, or the same as in a query.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a flag: true or false")]
enum Flag {
    Plain(bool),
    Number(serde_json::Number),
    Text(String),
}

impl Flag {
    fn is_on(&self, name: &str) -> Result<bool, Problem> {
        match self {
            Self::Plain(is_on) => Ok(*is_on),
            Self::Number(number) => query::flag(name, &number.to_string()),
            Self::Text(text) => query::flag(name, text),
        }
    }
}

/// A number, or the same as text.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Scalar {
    Number(serde_json::Number),
    Text(String),
}

impl Scalar {
    fn to_text(&self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => text.clone(),
        }
    }
}

impl Asked {
    pub fn from_query(query: &Query<'_>) -> Result<Self, Problem> {
        let text = |name| query.one(name).map(|value| value.map(str::to_owned));
        let scalar = |name| query.one(name).map(|value| value.map(|text| Scalar::Text(text.to_owned())));
        // A client that adds its cursor to a URL which has one already adds it at the end.
        let mut added = ADDED_CURSORS.iter().filter_map(|name| query.all(name).last());
        Ok(Self {
            topics: query.all("topic").map(str::to_owned).collect(),
            after: text("after")?,
            last_event_id: added.find(|cursor| !is_none(cursor)).map(str::to_owned),
            last: scalar("last")?,
            since: text("since")?,
            transport: text("transport")?,
            format: text("format")?,
            wait: scalar("wait")?,
            limit: scalar("limit")?,
            mine: text("mine")?.map(Flag::Text),
            presence: text("presence")?.map(Flag::Text),
            before: text("before")?,
        })
    }

    pub async fn from_body(
        app: &App,
        payer: Option<Payer>,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Self, Problem> {
        if !media::is_json(headers) {
            return Err(Problem::new(
                Code::UnsupportedMediaType,
                "Content-Type: expected application/json, for {\"topics\":[…]}",
            ));
        }
        let (limit, time) = (MAX_EVENTS_BODY_BYTES, app.config.read_timeout);
        let mut unparsed = app.connections.unparsed(payer);
        let bytes: Bytes = body::read(Declared::of(headers)?, body, limit, time, &mut unparsed).await?;
        // A byte order mark before JSON is ignored (RFC 8259 §8.1).
        let json = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
        match serde_json::from_slice(json) {
            Ok(Object(asked)) => Ok(asked),
            Err(error) => Err(Problem::bad_request(format!("the body: {error}"))),
        }
    }

    /// Adds the options of the body. An option that is given in both is refused, except for the cursor that a
    /// client library added: that of the query is newer.
    pub fn merge(&mut self, body: Self) -> Result<(), Problem> {
        fn once<T>(name: &str, known: &mut Option<T>, given: Option<T>) -> Result<(), Problem> {
            match (&known, &given) {
                (Some(_), Some(_)) => {
                    Err(Problem::bad_request(format!("{name} is given twice; give it once")))
                }
                (None, _) => {
                    *known = given;
                    Ok(())
                }
                (Some(_), None) => Ok(()),
            }
        }
        self.topics.extend(body.topics);
        self.last_event_id = self.last_event_id.take().or(body.last_event_id);
        once("after", &mut self.after, body.after)?;
        once("last", &mut self.last, body.last)?;
        once("since", &mut self.since, body.since)?;
        once("transport", &mut self.transport, body.transport)?;
        once("format", &mut self.format, body.format)?;
        once("wait", &mut self.wait, body.wait)?;
        once("limit", &mut self.limit, body.limit)?;
        once("mine", &mut self.mine, body.mine)?;
        once("presence", &mut self.presence, body.presence)
    }

    /// The start: the cursor of the header, that of a client library, and then the others by rank.
    pub fn start(&self, headers: &HeaderMap) -> Result<Option<Start>, Problem> {
        let last = self.last.as_ref().map(Scalar::to_text);
        let fields =
            StartFields { after: self.after.as_deref(), last: last.as_deref(), since: self.since.as_deref() };
        // Checked also if another cursor wins: a client reconnects to the old URL.
        let written = fields.parse()?;
        let sent = headers.get(LAST_EVENT_ID).and_then(|value| query::last_event_id(value.as_bytes()));
        let added = || self.last_event_id.as_ref().and_then(|text| query::last_event_id(text.as_bytes()));
        Ok(sent.or_else(added).or(written))
    }

    /// The id below which a page of the history ends, if one is asked for.
    ///
    /// # Errors
    /// If a start or `wait` is given too: they would mean nothing.
    pub fn before(&self, headers: &HeaderMap) -> Result<Option<Id>, Problem> {
        let Some(before) = &self.before else { return Ok(None) };
        let others = [
            ("after", self.after.is_some()),
            ("last", self.last.is_some()),
            ("since", self.since.is_some()),
            ("wait", self.wait.is_some()),
            (
                "Last-Event-ID",
                self.last_event_id.is_some()
                    || headers
                        .get(LAST_EVENT_ID)
                        .is_some_and(|value| !value.as_bytes().trim_ascii().is_empty()),
            ),
        ];
        if let Some((name, _)) = others.into_iter().find(|(_, is_given)| *is_given) {
            return Err(Problem::bad_request(format!(
                "before: it reads backwards, so {name} means nothing; leave one of them out"
            )));
        }
        before.parse().map(Some).map_err(|_| {
            Problem::bad_request("before: expected an id, or 9007199254740991 for the newest messages")
        })
    }

    /// True if the list of the subject is read too.
    pub fn mine(&self) -> Result<bool, Problem> {
        self.mine.as_ref().map_or(Ok(false), |flag| flag.is_on("mine"))
    }

    /// True if the subject of the client is to be present in the topics.
    ///
    /// # Errors
    /// If the client does not stay for it.
    pub fn presence(&self) -> Result<bool, Problem> {
        let is_asked = self.presence.as_ref().map_or(Ok(false), |flag| flag.is_on("presence"))?;
        if is_asked && self.wait.is_some() && self.wait()?.is_zero() {
            return Err(Problem::bad_request("presence: with wait=0 the client would not stay"));
        }
        if is_asked && self.before.is_some() {
            return Err(Problem::bad_request("presence: a page of the history has no reader who stays"));
        }
        Ok(is_asked)
    }

    /// How long a poll may be held.
    pub fn wait(&self) -> Result<Duration, Problem> {
        query::wait(self.wait.as_ref().map(Scalar::to_text).as_deref())
    }

    /// How many messages one answer to a poll may contain.
    pub fn limit(&self) -> Result<usize, Problem> {
        query::limit(self.limit.as_ref().map(Scalar::to_text).as_deref())
    }
}

/// An empty cursor is none, as in the header.
fn is_none(cursor: &str) -> bool {
    cursor.trim().is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_flags_of_a_body_take_the_forms_of_a_query() {
        let read = |value: &str| {
            let json = format!(r#"{{"mine":{value},"presence":{value}}}"#);
            let asked = serde_json::from_str::<Asked>(&json).map_err(|error| error.to_string())?;
            let flags = (asked.mine(), asked.presence());
            match flags {
                (Ok(mine), Ok(presence)) if mine == presence => Ok(mine),
                (Err(mine), Err(presence)) => {
                    assert_eq!(mine.detail.strip_prefix("mine"), presence.detail.strip_prefix("presence"));
                    Err(mine.detail)
                }
                flags => panic!("{value}: {flags:?}"),
            }
        };
        for (value, is_on) in [
            ("true", true),
            ("1", true),
            (r#""1""#, true),
            (r#""true""#, true),
            (r#""""#, true),
            ("false", false),
            ("0", false),
            (r#""0""#, false),
            (r#""false""#, false),
            ("null", false),
        ] {
            assert_eq!(read(value), Ok(is_on), "{value}");
        }
        for value in ["2", "-1", "1.5", "256", r#""yes""#] {
            assert_eq!(read(value), Err("mine: expected 1 or true, or 0 or false".into()), "{value}");
        }
        for value in ["[]", "{}"] {
            let refused = read(value).expect_err(value);
            assert!(refused.starts_with("expected a flag: true or false"), "{refused}");
        }
    }
}
