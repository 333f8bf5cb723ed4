//! The commands of a client on a WebSocket, and the answers.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    auth::MAX_TOKEN_BYTES,
    broker::{Present, Subscription},
    http::{
        App,
        access::Access,
        identify::Identified,
        presence,
        problem::{Code, Problem},
        publish::{Item, Published},
        query::{self, StartFields},
    },
    log::Start,
    message::{Id, Object, Pattern},
};

/// The name that a client gives a command. The answer repeats it.
pub type Reference = Option<Value>;

/// A command, and the name that the client gave it.
#[derive(Debug)]
pub struct Command {
    pub reference: Reference,
    pub action: Action,
}

#[derive(Debug)]
pub enum Action {
    Subscribe {
        pattern: Pattern,
        start: Start,
        presence: bool,
    },
    Unsubscribe {
        pattern: Pattern,
    },
    /// The command as it came. Its payload is spliced into the message.
    Publish(String),
    /// A new token.
    Auth(String),
    Ping,
    /// Not a valid command. The problem is answered in its turn.
    Refused(Problem),
}

/// The outcome of a command that took some time.
pub enum Outcome {
    /// The new subscription. It is read from now on, or first up to the connection's cursor.
    Begun(Pattern, Box<Subscription>, Option<Box<Present>>),
    /// The subject is present in a topic that was read already.
    Entered(Pattern, Start, Box<Present>),
    Published(Published),
    /// The holder of a new token.
    Identified(Box<Identified>),
}

/// The answer to a command.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Answer<'a> {
    Subscribed {
        topic: &'a Pattern,
        cursor: Id,
    },
    Unsubscribed {
        topic: &'a Pattern,
        cursor: Id,
    },
    Published(&'a Published),
    Authenticated {
        #[serde(skip_serializing_if = "Option::is_none")]
        sub: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        expires_in_ms: Option<u64>,
    },
    Pong,
    Error(&'a Problem),
    /// Some topics have stored the message, then one refused it.
    #[serde(rename = "error")]
    Partly(&'a Published),
}

/// An answer with the name of the command.
#[derive(Debug, Serialize)]
pub struct Reply<'a> {
    #[serde(flatten)]
    pub answer: Answer<'a>,
    #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
    pub reference: &'a Reference,
}

/// The longest name of a command.
const MAX_REFERENCE_BYTES: usize = 1024;

/// The types of commands.
const KINDS: &str = "subscribe, unsubscribe, publish, auth or ping";

#[derive(Deserialize)]
struct CommandHead {
    #[serde(rename = "type", default)]
    kind: Value,
    #[serde(rename = "ref")]
    reference: Reference,
}

#[derive(Deserialize)]
struct Token {
    token: String,
}

#[derive(Deserialize)]
struct Fields {
    topic: String,
    after: Option<String>,
    last: Option<Value>,
    since: Option<String>,
    #[serde(default)]
    presence: bool,
}

impl Command {
    pub fn parse(text: &str) -> Self {
        match Self::reference(text) {
            Ok((kind, reference)) => {
                let action = Action::parse(kind.as_str(), text).unwrap_or_else(Action::Refused);
                Self { reference, action }
            }
            Err(problem) => Self { reference: None, action: Action::Refused(problem) },
        }
    }

    /// The type of a command, and the name that the client gave it.
    fn reference(text: &str) -> Result<(Value, Reference), Problem> {
        let Object(CommandHead { kind, reference }) =
            serde_json::from_str(text).map_err(|error| wrong(&error))?;
        match reference {
            Some(Value::String(name)) if name.len() > MAX_REFERENCE_BYTES => {
                Err(Problem::bad_request(format!("ref: expected up to {MAX_REFERENCE_BYTES} bytes")))
            }
            None | Some(Value::String(_) | Value::Number(_)) => Ok((kind, reference)),
            Some(_) => Err(Problem::bad_request("ref: expected a string or a number")),
        }
    }
}

impl Command {
    /// How many bytes of the client this keeps.
    pub fn size(&self) -> usize {
        let name = self.reference.as_ref().and_then(Value::as_str).map_or(0, str::len);
        name + match &self.action {
            Action::Publish(text) | Action::Auth(text) => text.len(),
            Action::Subscribe { pattern, .. } | Action::Unsubscribe { pattern } => pattern.as_str().len(),
            Action::Refused(_) | Action::Ping => 0,
        }
    }
}

impl Action {
    fn parse(kind: Option<&str>, text: &str) -> Result<Self, Problem> {
        let fields = || match serde_json::from_str(text) {
            Ok(Object(fields)) => Ok::<Fields, _>(fields),
            Err(error) => Err(wrong(&error)),
        };
        match kind {
            Some("subscribe") => fields()?.subscribe(),
            Some("unsubscribe") => {
                Ok(Self::Unsubscribe { pattern: query::pattern("topic", &fields()?.topic)? })
            }
            Some("publish") => Ok(Self::Publish(text.to_owned())),
            Some("auth") => {
                let Object(Token { token }) = serde_json::from_str(text).map_err(|error| wrong(&error))?;
                match token.len() {
                    ..=MAX_TOKEN_BYTES => Ok(Self::Auth(token)),
                    _ => Err(Problem::new(
                        Code::Unauthorized,
                        "token: the credential is too long; let its issuer leave claims out",
                    )),
                }
            }
            Some("ping") => Ok(Self::Ping),
            Some(other) => Err(Problem::bad_request(format!("type {other:?}: expected {KINDS}"))),
            None => Err(Problem::bad_request(format!("type: expected {KINDS}"))),
        }
    }
}

fn wrong(error: &serde_json::Error) -> Problem {
    Problem::bad_request(format!("the command: {error}"))
}

impl Fields {
    fn subscribe(self) -> Result<Action, Problem> {
        let pattern = query::pattern("topic", &self.topic)?;
        let last = match self.last {
            None => None,
            Some(Value::Number(number)) => Some(number.to_string()),
            Some(Value::String(text)) => Some(text),
            Some(_) => return Err(Problem::bad_request("last: expected a number")),
        };
        let (after, since) = (self.after.as_deref(), self.since.as_deref());
        let start = StartFields { after, last: last.as_deref(), since }.parse()?;
        Ok(Action::Subscribe { pattern, start: start.unwrap_or(Start::Now), presence: self.presence })
    }
}

/// Begins to read `pattern` in the name of the connection.
pub fn begin(
    app: Arc<App>,
    pattern: Pattern,
    start: Start,
    connection: Arc<str>,
    mut present: Option<Present>,
) -> BoxFuture<'static, Result<Outcome, Problem>> {
    Box::pin(async move {
        let subscription = app.broker.subscribe(vec![pattern.clone()], &start, &connection).await?;
        let topics = presence::topics([&pattern]).unwrap_or_default();
        presence::enter(&mut present, topics, None).await?;
        Ok(Outcome::Begun(pattern, Box::new(subscription), present.map(Box::new)))
    })
}

/// Becomes present in a topic that is read already.
pub fn enter(
    pattern: Pattern,
    start: Start,
    mut present: Present,
) -> BoxFuture<'static, Result<Outcome, Problem>> {
    Box::pin(async move {
        present.enter(presence::topics([&pattern])?).await?;
        Ok(Outcome::Entered(pattern, start, Box::new(present)))
    })
}

/// Publishes the message in the command.
pub fn publish(app: Arc<App>, access: Access, text: String) -> BoxFuture<'static, Result<Outcome, Problem>> {
    Box::pin(async move {
        let Object::<Item<'_>>(item) = serde_json::from_str(&text).map_err(|error| wrong(&error))?;
        item.publish(&app, &access).await.map(Outcome::Published)
    })
}
