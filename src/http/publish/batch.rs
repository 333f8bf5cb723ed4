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
use tokio::{task::coop, time::Instant};

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

/// How many messages one request may contain; an element with several topics is as many. The answers are kept until all
/// messages have arrived. Tests have fewer, which take less time.
const MAX_MESSAGES: usize = if cfg!(test) { 20_000 } else { 100_000 };
/// How many elements may be refused by a mistake of the client. Such an answer is longer than the mistake.
const MAX_MISTAKES: usize = 1_000;
/// The largest size of these answers together.
const MAX_ANSWERS_BYTES: usize = if cfg!(test) { 8 << 20 } else { 32 << 20 };
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
    let access = Access::of(&app.rules, &request);
    let list = match media::essence(request.headers()).as_deref() {
        Some(essence) if media::is_ndjson(essence) => Ok(List::Ndjson),
        Some(media::JSON) => Ok(List::Array),
        _ => {
            let detail = "Content-Type: expected application/json (an array) or application/x-ndjson (an object on each line)";
            Err(Problem::new(Code::UnsupportedMediaType, detail))
        }
    };
    let is_ordered = Query::of(&request, &parameters::PUBLISH_MANY).and_then(|query| query.flag("ordered"));
    let coding = coding::of(request.headers());
    // The head is not kept: it can be large, and the backend may be asked who the client is.
    let body = request.into_body();
    let access = access.await?;
    access.publish_something()?;
    let (list, is_ordered, coding) = (list?, is_ordered?, coding?);
    let mut splitter = Splitter::new(list, app.config.max_command_bytes());
    let mut unparsed = app.connections.unparsed(access.payer());
    let mut answers = Answers::new(app.connections.answer_bytes(access.payer()));
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
            coop::consume_budget().await;
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
    messages: usize,
    mistakes: usize,
    has_failed: bool,
}

impl Answers {
    fn new(bytes: AnswerBytes) -> Self {
        Self { json: Vec::new(), bytes, count: 0, messages: 0, mistakes: 0, has_failed: false }
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
            Ok(published) => {
                self.messages += published.count();
                self.push(&published);
            }
            Err(problem) => {
                self.messages += 1;
                // A mistake is refused before anything could wait.
                coop::consume_budget().await;
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
            let detail = "too many answers wait for clients to read them, or too many of yours; the rest was not published, so read them, and send it again later";
            return Some(Problem::new(Code::Overloaded, detail));
        }
        let limit = match self {
            _ if self.messages >= MAX_MESSAGES => Some(format!("{MAX_MESSAGES} messages")),
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

#[cfg(test)]
mod tests {
    use std::{fmt::Write, pin::pin, task::Poll};

    use futures_util::poll;
    use http::header;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        broker::Broker, config::Config, http::connections::MANY_BYTES, log::MemoryLog, shutdown::Shutdown,
    };

    fn app() -> Arc<App> {
        let config = Config::default();
        App::new(Broker::new(MemoryLog::start(config.retention())), Arc::new(config), Shutdown::new())
    }

    fn request(lines: String) -> Request {
        let request = Request::post("/publish").header(header::HOST, "localhost");
        let request = request.header(header::CONTENT_TYPE, "application/x-ndjson");
        request.body(Body::from(lines)).expect("a request")
    }

    /// The answers of a request, and how often other tasks had a turn meanwhile.
    async fn published(app: &Arc<App>, lines: String) -> (Vec<Value>, usize) {
        let mut publishing = pin!(publish_many(app, request(lines)));
        let mut turns = 0;
        let answer = loop {
            match poll!(&mut publishing) {
                Poll::Ready(answer) => break answer.expect("an answer"),
                Poll::Pending => turns += 1,
            }
            tokio::task::yield_now().await;
        };
        let json = answer.into_body().collect().await.expect("a body").to_bytes();
        (serde_json::from_slice(&json).expect("a list"), turns)
    }

    /// One element for each thousand topics of these. Each name takes twice its bytes in an answer.
    fn elements(topics: usize) -> String {
        let name = "\"".repeat(240);
        let mut lines = String::new();
        for first in (0..topics).step_by(1_000) {
            let topics: Vec<_> =
                (first..topics.min(first + 1_000)).map(|number| format!("{name}{number}")).collect();
            writeln!(lines, "{}", json!({"topics": topics, "data": 1, "ephemeral": true})).expect("text");
        }
        lines
    }

    /// A request with many topics, or with many mistakes, kept its thread until all was done.
    #[tokio::test]
    async fn other_tasks_have_their_turn_while_one_request_publishes_much() {
        let app = app();
        for (what, lines) in [
            ("topics", elements(1_000)),
            ("elements", "{\"topic\":\"a\",\"data\":1}\n".repeat(1_000)),
            ("mistakes", "0\n".repeat(1_000)),
        ] {
            let (_, turns) = published(&app, lines).await;
            assert!(turns >= 5, "{what}: {turns}");
        }
    }

    #[tokio::test]
    async fn each_topic_of_an_element_counts_as_a_message() {
        let lines = "{\"topics\":[\"a\",\"b\"],\"data\":1,\"ephemeral\":true}\n".repeat(MAX_MESSAGES / 2 + 1);
        let (answers, _) = published(&app(), lines).await;
        assert_eq!(answers.len(), MAX_MESSAGES / 2 + 1);
        assert_eq!(answers[MAX_MESSAGES / 2]["code"], "too_large");
    }

    #[tokio::test]
    async fn a_request_has_so_many_bytes_of_answers() {
        let (answers, _) = published(&app(), elements(MAX_MESSAGES)).await;
        let last = answers.last().expect("one");
        assert_eq!(last["code"], "too_large");
        assert!(last["detail"].as_str().expect("words").contains("bytes of answers"), "{last}");
        // The element that goes beyond the limit is answered whole.
        let bytes: usize = answers.iter().map(|answer| answer.to_string().len()).sum();
        assert!((MAX_ANSWERS_BYTES..MAX_ANSWERS_BYTES + (1 << 20)).contains(&bytes), "{bytes}");
    }

    #[tokio::test]
    async fn a_request_ends_early_while_clients_have_not_taken_many_answers() {
        let app = app();
        let mut others = app.connections.answer_bytes(None);
        others.add(MANY_BYTES);
        let (answers, _) = published(&app, elements(10_000)).await;
        assert_eq!(answers.len(), 2, "one element is longer than a short answer");
        assert!(answers[0]["ids"].is_object() && answers[1]["code"] == "overloaded", "{}", answers[1]);
        drop(others);
        let (answers, _) = published(&app, elements(10_000)).await;
        assert!(answers.iter().all(|answer| answer["ids"].is_object()) && answers.len() == 10);
    }
}
