//! `POST /publish`: many messages in one request, each published as it arrives.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes},
    extract::Request,
    response::{IntoResponse, Response},
};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use serde::Serialize;
use tokio::time::Instant;

use super::{
    Item, Published,
    split::{List, Splitter, Value},
};
use crate::http::{
    App,
    access::Access,
    answer::raw_json,
    body, coding,
    connections::AnswerBytes,
    media, parameters,
    problem::{Code, Problem},
    query::Query,
};
use crate::message::Object;

/// How many messages one request may contain. The answers are kept until all messages have arrived.
const MAX_ITEMS: usize = 100_000;
/// How many of them may be refused by a mistake of the client. Such an answer is longer than the mistake.
const MAX_MISTAKES: usize = 1_000;
/// The largest size of these answers together.
const MAX_ANSWERS_BYTES: usize = 32 << 20;
/// The largest size of a body with a content coding, once it is decoded.
const MAX_DECODED_BYTES: usize = 64 << 20;

/// Publishes each element in turn. A failure does not stop the others, unless the request asks for `ordered`.
///
/// # Cancel safety
/// Elements that arrived before this is dropped stay published.
pub async fn publish_many(app: &Arc<App>, request: Request) -> Result<Response, Problem> {
    if *request.method() != Method::POST {
        return Err(Problem::method_not_allowed("POST"));
    }
    let access = Access::of(&app.rules, &request).await?;
    access.publish_something()?;
    let list = match media::essence(request.headers()).as_deref() {
        Some(essence) if media::is_ndjson(essence) => List::Ndjson,
        Some(media::JSON) => List::Array,
        _ => {
            let detail = "Content-Type: expected application/json (an array) or application/x-ndjson (an object on each line)";
            return Err(Problem::new(Code::UnsupportedMediaType, detail));
        }
    };
    let is_ordered = Query::of(&request, &parameters::PUBLISH_MANY)?.flag("ordered")?;
    let mut splitter = Splitter::new(list, app.config.max_command_bytes());
    let mut unparsed = app.connections.unparsed(access.payer());
    let mut answers = Answers::new(app.connections.answer_bytes());
    let coding = coding::of(request.headers())?;
    let body = request.into_body();
    let mut body = match coding {
        Some(coding) => coding.decode(body),
        None => body,
    };
    // A few bytes can be decoded to very many. Without a coding the client has to send each of them.
    let max_decoded = MAX_DECODED_BYTES.max(splitter.limit());
    let mut decoded = 0;
    let mut deadline = Instant::now() + app.config.read_timeout;
    loop {
        let mut values = Vec::new();
        let bytes = next(&mut body, deadline).await;
        if coding.is_some() {
            decoded += bytes.as_ref().map_or(0, |bytes| bytes.as_ref().map_or(0, Bytes::len));
            if decoded > max_decoded {
                let detail = format!(
                    "the decoded body has more than {max_decoded} bytes; the rest was not published, so send it in another request"
                );
                return answers.end_with(Problem::new(Code::TooLarge, detail));
            }
            // Decoding waits for nothing while it has input.
            tokio::task::coop::consume_budget().await;
        }
        let is_last = matches!(bytes, Ok(None));
        let split = match &bytes {
            Ok(Some(bytes)) => splitter.push(bytes, &mut values),
            Ok(None) => splitter.finish(&mut values),
            Err(_) => Ok(()),
        };
        if !values.is_empty() {
            deadline = Instant::now() + app.config.read_timeout;
        }
        for value in values {
            if let Some(problem) = answers.limit() {
                return answers.end_with(problem);
            }
            answers.push_value(app, &access, value).await;
            if is_ordered && answers.has_failed {
                return Ok(answers.into_response());
            }
        }
        if !unparsed.set(splitter.kept()) {
            return answers.end_with(body::too_many_bytes());
        }
        match (bytes, split) {
            (Err(problem), _) => return answers.end_with(problem),
            (_, Err(broken)) => return answers.end_with(Problem::bad_request(broken.to_string())),
            _ if is_last => return Ok(answers.into_response()),
            _ => {}
        }
    }
}

/// The next piece of the body, `None` at its end. One whole message must arrive before the deadline.
async fn next(body: &mut Body, deadline: Instant) -> Result<Option<Bytes>, Problem> {
    loop {
        match tokio::time::timeout_at(deadline, body.frame()).await {
            Err(_) => return Err(body::timed_out()),
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => return Err(body::broken(&error)),
            Ok(Some(Ok(frame))) => {
                if let Ok(bytes) = frame.into_data() {
                    return Ok(Some(bytes));
                }
            }
        }
    }
}

/// The answers so far, as the JSON that will be sent.
struct Answers {
    json: Vec<u8>,
    bytes: AnswerBytes,
    count: usize,
    mistakes: usize,
    has_failed: bool,
}

impl Answers {
    fn new(bytes: AnswerBytes) -> Self {
        Self { json: Vec::new(), bytes, count: 0, mistakes: 0, has_failed: false }
    }

    async fn push_value(&mut self, app: &App, access: &Access, value: Value) {
        let result = match value {
            Value::TooLong => Err(Problem::too_large(app.config.max_payload)),
            Value::Bytes(bytes) => match serde_json::from_slice::<Object<Item<'_>>>(&bytes) {
                Ok(Object(item)) => item.publish(app, access).await,
                Err(error) => Err(Problem::bad_request(error.to_string())),
            },
        };
        self.has_failed |= matches!(result, Err(_) | Ok(Published::Partly { .. }));
        match result {
            Ok(published) => self.push(&published),
            Err(problem) => {
                let is_mistake = matches!(
                    problem.code,
                    Code::BadRequest | Code::TooLarge | Code::Forbidden | Code::Unauthorized
                );
                self.mistakes += usize::from(is_mistake);
                app.refused(problem.code, &problem.detail, access.client(), "/publish");
                self.push(&problem);
            }
        }
    }

    fn push(&mut self, answer: &impl Serialize) {
        let before = self.json.len();
        self.json.push(if self.count == 0 { b'[' } else { b',' });
        serde_json::to_writer(&mut self.json, answer).expect("an answer serializes");
        self.count += 1;
        self.bytes.add(self.json.len() - before);
    }

    /// The limit that has been reached, if any.
    fn limit(&self) -> Option<Problem> {
        if self.bytes.is_short() {
            let detail =
                "clients have not taken many answers; the rest was not published, so send it again later";
            return Some(Problem::new(Code::Overloaded, detail));
        }
        let limit = match self {
            _ if self.count >= MAX_ITEMS => Some(format!("{MAX_ITEMS} messages")),
            _ if self.mistakes >= MAX_MISTAKES => {
                Some(format!("{MAX_MISTAKES} messages that are refused by a mistake"))
            }
            _ if self.json.len() >= MAX_ANSWERS_BYTES => {
                Some(format!("{MAX_ANSWERS_BYTES} bytes of answers"))
            }
            _ => None,
        };
        let detail = format!(
            "a request may contain up to {}; the rest was not published, so send it in another request",
            limit?
        );
        Some(Problem::new(Code::TooLarge, detail))
    }

    /// Ends with a problem of the request. It becomes the status if there is no answer yet, else the last
    /// answer.
    fn end_with(mut self, problem: Problem) -> Result<Response, Problem> {
        if self.count == 0 {
            return Err(problem);
        }
        self.push(&problem);
        Ok(self.into_response())
    }
}

impl IntoResponse for Answers {
    fn into_response(mut self) -> Response {
        if self.count == 0 {
            self.json.push(b'[');
        }
        self.json.push(b']');
        let mut response = raw_json(StatusCode::OK, self.json);
        response.extensions_mut().insert(Arc::new(self.bytes));
        response
    }
}
