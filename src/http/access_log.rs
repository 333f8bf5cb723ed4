//! The access log: one line for each request, once it has ended.
//!
//! It never contains a credential: the path comes after the credential was removed from the request, the query has only
//! parameters that the server knows, and no header but `User-Agent` is written.

use std::{
    borrow::Cow,
    fmt::Write,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use axum::{body::Body, extract::Request, response::Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, StatusCode, Uri, Version, header};
use http_body::{Frame, SizeHint};
use serde::Serialize;
use time::OffsetDateTime;
use tokio::time::Instant;

use super::{
    client_address::ClientAddress,
    metrics::Transport,
    parameters,
    problem::{Code, shorten},
};
use crate::config::AccessLogForm;

/// The longest path, and the longest `User-Agent`, that a line has.
const MAX_PATH_CHARS: usize = 2_000;
const MAX_AGENT_CHARS: usize = 300;
/// The status of a request whose client left before the answer, as nginx writes it.
const CLIENT_LEFT: u16 = 499;

/// Takes a line with its line end. It must not wait.
type Sink = Box<dyn Fn(&[u8]) + Send + Sync>;

/// The access log of one server. It writes nothing until it has a place to write to.
#[derive(Default)]
pub struct AccessLog(OnceLock<(AccessLogForm, Arc<Sink>)>);

impl AccessLog {
    /// Begins to write lines. It has no effect a second time.
    pub fn begin(&self, form: AccessLogForm, sink: Sink) {
        if form != AccessLogForm::Off {
            let _ = self.0.set((form, Arc::new(sink)));
        }
    }

    /// Begins the record of a request, and notes it in the request. Its credential must be removed already.
    pub fn record(&self, request: &mut Request) -> Option<Arc<Record>> {
        let (form, sink) = self.0.get()?;
        let client = request.extensions().get::<ClientAddress>().map(|address| address.ip());
        let record = Arc::new(Record {
            sink: sink.clone(),
            form: *form,
            at: OffsetDateTime::now_utc(),
            began: Instant::now(),
            client,
            method: request.method().as_str().into(),
            path: path_of(request.uri()),
            version: request.version(),
            agent: agent_of(request.headers()),
            bytes: AtomicU64::new(0),
            end: Mutex::default(),
        });
        request.extensions_mut().insert(record.clone());
        Some(record)
    }
}

/// A request, from its arrival to the end of its answer or of its WebSocket. Its line is written when the last holder
/// drops it.
pub struct Record {
    sink: Arc<Sink>,
    form: AccessLogForm,
    at: OffsetDateTime,
    began: Instant,
    client: Option<IpAddr>,
    method: Box<str>,
    path: String,
    version: Version,
    agent: Option<String>,
    bytes: AtomicU64,
    // A std mutex: no await happens while it is held.
    end: Mutex<End>,
}

/// The facts that are known later.
#[derive(Default)]
struct End {
    status: Option<StatusCode>,
    transport: Option<Transport>,
    who: Option<String>,
    reason: Option<Cow<'static, str>>,
    close: Option<u16>,
}

impl Record {
    /// Notes the answer, and counts the bytes of its body.
    pub fn answer(self: Arc<Self>, response: Response) -> Response {
        {
            let mut end = self.end();
            end.status = Some(response.status());
            end.transport = response.extensions().get().copied();
            end.reason = response.extensions().get::<Code>().map(|code| code.as_str().into());
        }
        response.map(|body| Body::new(Counted { body, record: self }))
    }

    /// The name of the API key, or the subject of the token.
    pub fn note_who(&self, who: &str) {
        self.end().who = Some(shorten(who.to_owned()));
    }

    /// Why a stream or a WebSocket has ended, and the close code of a WebSocket.
    pub fn note_end(&self, reason: String, close: Option<u16>) {
        let mut end = self.end();
        (end.reason, end.close) = (Some(reason.into()), close);
    }

    pub fn count(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn end(&self) -> std::sync::MutexGuard<'_, End> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn json(&self, end: &End) -> String {
        let line = Line {
            timestamp: rfc3339(self.at),
            client: self.client,
            method: &self.method,
            path: &self.path,
            protocol: protocol(self.version),
            status: status(end),
            bytes: self.bytes.load(Ordering::Relaxed),
            duration_ms: self.began.elapsed().as_millis() as u64,
            transport: end.transport.map(Transport::as_str),
            who: end.who.as_deref(),
            reason: end.reason.as_deref(),
            close: end.close,
            user_agent: self.agent.as_deref(),
        };
        serde_json::to_string(&line).expect("a line serializes")
    }

    fn combined(&self, end: &End) -> String {
        let client = self.client.map_or_else(|| "-".to_owned(), |ip| ip.to_string());
        // The form separates by spaces.
        let who = end.who.as_deref().map_or_else(|| "-".to_owned(), |who| escaped(&who.replace(' ', "_")));
        format!(
            "{client} - {who} [{}] \"{} {} {}\" {} {} \"-\" \"{}\"",
            common(self.at),
            escaped(&self.method),
            escaped(&self.path),
            protocol(self.version),
            status(end),
            self.bytes.load(Ordering::Relaxed),
            escaped(self.agent.as_deref().unwrap_or("-")),
        )
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let end = self.end();
        let mut line = match self.form {
            AccessLogForm::Combined => self.combined(&end),
            AccessLogForm::Json | AccessLogForm::Off => self.json(&end),
        };
        drop(end);
        line.push('\n');
        (self.sink)(line.as_bytes());
    }
}

/// A line in JSON.
#[derive(Serialize)]
struct Line<'a> {
    timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<IpAddr>,
    method: &'a str,
    path: &'a str,
    protocol: &'static str,
    status: u16,
    bytes: u64,
    duration_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    transport: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    who: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    close: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent: Option<&'a str>,
}

fn status(end: &End) -> u16 {
    end.status.map_or(CLIENT_LEFT, |status| status.as_u16())
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "HTTP/2.0",
        Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    }
}

/// The path with the known parameters of the query. A parameter that is not known may be a credential with a mistake in
/// its name.
fn path_of(uri: &Uri) -> String {
    let mut path = uri.path().to_owned();
    let pairs = uri.query().unwrap_or_default().split('&');
    let known = pairs.filter(|pair| {
        let name = form_urlencoded::parse(pair.as_bytes()).next().map(|(name, _)| name);
        name.is_some_and(|name| parameters::is_harmless(&name))
    });
    for (index, pair) in known.enumerate() {
        path.push(if index == 0 { '?' } else { '&' });
        path.push_str(pair);
    }
    cut(path, MAX_PATH_CHARS)
}

fn agent_of(headers: &HeaderMap) -> Option<String> {
    const NAME: HeaderName = header::USER_AGENT;
    let agent = headers.get(NAME)?;
    Some(cut(String::from_utf8_lossy(agent.as_bytes()).into_owned(), MAX_AGENT_CHARS))
}

fn cut(mut text: String, most: usize) -> String {
    if let Some((end, _)) = text.char_indices().nth(most) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// A text in quotes of the combined form, escaped as Apache and nginx do: so no client can end a field or a line.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' | 0..0x20 | 0x7f.. => {
                write!(escaped, "\\x{byte:02X}").expect("writing to memory cannot fail");
            }
            _ => escaped.push(byte.into()),
        }
    }
    escaped
}

/// A body that counts its bytes.
struct Counted {
    body: Body,
    record: Arc<Record>,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.record.count(data.len());
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A time in UTC, as the log has it: `2026-11-03T09:05:07.000042Z`.
fn rfc3339(at: OffsetDateTime) -> String {
    let (date, (hour, minute, second, micros)) = (at.date(), at.to_hms_micro());
    format!("{date}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// A time in UTC, as web servers have written it since the first: `03/Nov/2026:09:05:07 +0000`.
fn common(at: OffsetDateTime) -> String {
    let (year, month, day) = at.to_calendar_date();
    let (hour, minute, second) = at.to_hms();
    format!("{day:02}/{:.3}/{year}:{hour:02}:{minute:02}:{second:02} +0000", month.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_the_forms_of_the_log_and_of_web_servers() {
        let at = OffsetDateTime::from_unix_timestamp_nanos(1_793_696_707_000_042_000).expect("a time");
        assert_eq!(rfc3339(at), "2026-11-03T09:05:07.000042Z");
        assert_eq!(common(at), "03/Nov/2026:09:05:07 +0000");
    }

    fn path(uri: &str) -> String {
        path_of(&uri.parse().expect("a URI"))
    }

    #[test]
    fn the_query_has_only_parameters_that_the_server_knows() {
        assert_eq!(path("/topics/a"), "/topics/a");
        for known in ["/events?topic=a&after=5&wait=0", "/connections/0?sub=u1", "/subjects/u1?refuse=10m"] {
            assert_eq!(path(known), known);
        }
        for secret in ["token", "%74oken", "tokne", "access_token", "Token", "key", "", "rejoin_token"] {
            assert_eq!(path(&format!("/events?{secret}=hush&topic=a&&x")), "/events?topic=a", "{secret}");
        }
        assert!(
            path(&format!("/{}", "é".repeat(1 << 12).replace('é', "%C3"))).chars().count()
                <= MAX_PATH_CHARS + 1
        );
    }

    #[test]
    fn no_text_of_a_client_ends_a_field_or_a_line_of_the_combined_form() {
        assert_eq!(escaped("a\"b\\c\nd\u{7f}é"), "a\\x22b\\x5Cc\\x0Ad\\x7F\\xC3\\xA9");
        assert_eq!(escaped("curl/8 (x; y)"), "curl/8 (x; y)");
    }
}
