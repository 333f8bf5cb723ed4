//! Listens with the libraries of Rust. It reads a job from each line of standard input, and prints what the
//! library gave as JSON, one object on each line.
//!
//! Without `set` a library is used as its README shows. With it the setting of docs/libraries.md is used.

use std::{io::BufRead, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use eventsource_client::{Client, ClientBuilder, SSE};
use eventsource_stream::Eventsource;
use futures_util::{Stream, StreamExt, TryStreamExt, pin_mut};
use reqwest_eventsource::{Event, EventSource};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{self, Message, client::IntoClientRequest};

type Fault = Box<dyn std::error::Error + Send + Sync>;

const PAUSE: Duration = Duration::from_millis(100);
const FINAL: [u16; 4] = [400, 401, 403, 404];

#[derive(serde::Deserialize)]
struct Job {
    job: u64,
    library: String,
    url: String,
    after: String,
    token: String,
    set: bool,
}

fn main() -> Result<(), Fault> {
    let runtime = tokio::runtime::Runtime::new()?;
    for line in std::io::stdin().lock().lines() {
        let job: Job = serde_json::from_str(&line?)?;
        runtime.spawn(job.run());
    }
    runtime.shutdown_background();
    Ok(())
}

impl Job {
    async fn run(mut self) {
        let library = self.library.clone();
        match &*library {
            "reqwest-eventsource" => self.reqwest_eventsource().await,
            "eventsource-client" => self.eventsource_client().await,
            _ => self.again(&library).await,
        }
        self.say(json!({"type": "end"}));
    }

    /// A library that does not come back by itself. Its setting is a loop around it.
    async fn again(&mut self, library: &str) {
        loop {
            let refused = match library {
                "eventsource-stream" => self.eventsource_stream().await,
                "tokio-tungstenite" => self.tungstenite().await,
                "reqwest, line by line" => self.lines().await,
                _ => Err(format!("there is no library {library}").into()),
            };
            let is_refused = refused.unwrap_or_else(|fault| {
                self.error(&format!("{fault:?}"));
                false
            });
            if is_refused || !self.set {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn say(&self, mut what: Value) {
        what["job"] = self.job.into();
        println!("{what}");
    }

    fn error(&self, text: &str) {
        self.say(json!({"type": "error", "text": text}));
    }

    /// True if the request must not be repeated.
    fn is_refused(&self, status: u16, body: &str) -> bool {
        self.error(&format!("{status} {body}"));
        FINAL.contains(&status)
    }

    fn sse(&mut self, id: &str, event: &str, data: &str) {
        id.clone_into(&mut self.after);
        self.say(json!({"type": "sse", "id": id, "event": event, "data": data}));
    }

    fn frame(&mut self, text: &str) -> Result<(), Fault> {
        self.say(json!({"type": "frame", "frame": text}));
        self.note(&serde_json::from_str(text)?);
        Ok(())
    }

    fn note(&mut self, frame: &Value) {
        let cursor = if frame["type"] == "message" { &frame["id"] } else { &frame["cursor"] };
        if let Some(cursor) = cursor.as_str() {
            cursor.clone_into(&mut self.after);
        }
    }

    fn at_cursor(&self) -> String {
        format!("{}?after={}", self.url, self.after)
    }

    fn request(&self, url: &str) -> reqwest::RequestBuilder {
        let request = reqwest::Client::new().get(url);
        if self.token.is_empty() { request } else { request.bearer_auth(&self.token) }
    }

    async fn eventsource_stream(&mut self) -> Result<bool, Fault> {
        let mut request = self.request(&self.url).header("Accept", "text/event-stream");
        if self.after != "0" {
            request = request.header("Last-Event-ID", &self.after);
        }
        let answer = request.send().await?;
        if !answer.status().is_success() {
            return Ok(self.is_refused(answer.status().as_u16(), &answer.text().await?));
        }
        let mut events = answer.bytes_stream().eventsource();
        while let Some(event) = events.next().await {
            let event = event.map_err(|fault| fault.to_string())?;
            self.sse(&event.id, &event.event, &event.data);
        }
        Ok(false)
    }

    async fn tungstenite(&mut self) -> Result<bool, Fault> {
        let mut request = self.at_cursor().into_client_request()?;
        if !self.token.is_empty() {
            request.headers_mut().insert("Authorization", format!("Bearer {}", self.token).parse()?);
        }
        let mut socket = match tokio_tungstenite::connect_async(request).await {
            Ok((socket, _)) => socket,
            Err(tungstenite::Error::Http(answer)) => {
                let body = answer.body().clone().unwrap_or_default();
                return Ok(self.is_refused(answer.status().as_u16(), &String::from_utf8_lossy(&body)));
            }
            Err(fault) => return Err(fault.into()),
        };
        while let Some(message) = socket.next().await {
            match message? {
                Message::Text(text) => self.frame(&text)?,
                Message::Binary(bytes) => {
                    self.say(json!({"type": "bytes", "data": BASE64_STANDARD.encode(&bytes)}));
                    let head = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
                    self.note(&serde_json::from_slice(head)?);
                }
                Message::Close(Some(close)) => {
                    self.error(&format!("closed {} {}", close.code, close.reason));
                    if (4000..4100).contains(&u16::from(close.code)) {
                        return Ok(true);
                    }
                }
                _ => {}
            }
        }
        Ok(false)
    }

    async fn lines(&mut self) -> Result<bool, Fault> {
        let request = self.request(&self.at_cursor()).header("Accept", "application/x-ndjson");
        let mut answer = request.send().await?;
        if !answer.status().is_success() {
            return Ok(self.is_refused(answer.status().as_u16(), &answer.text().await?));
        }
        let mut pending = Vec::new();
        while let Some(chunk) = answer.chunk().await? {
            pending.extend_from_slice(&chunk);
            while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<_> = pending.drain(..=end).collect();
                self.frame(std::str::from_utf8(&line)?)?;
            }
        }
        Ok(false)
    }

    async fn reqwest_eventsource(&mut self) {
        let mut events = EventSource::new(self.request(&self.url)).expect("a request without a body");
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Message(message)) => self.sse(&message.id, &message.event, &message.data),
                Ok(Event::Open) => {}
                Err(reqwest_eventsource::Error::InvalidStatusCode(status, answer)) => {
                    self.is_refused(status.as_u16(), &answer.text().await.unwrap_or_default());
                }
                Err(fault) => self.error(&format!("{fault:?}")),
            }
        }
    }

    async fn eventsource_client(&mut self) {
        let mut client = ClientBuilder::for_url(&self.url).expect("a URL");
        if !self.token.is_empty() {
            client = client.header("Authorization", &format!("Bearer {}", self.token)).expect("a header");
        }
        let client = client.build_http();
        self.read(client.stream()).await;
    }

    /// The loop of the README of eventsource-client.
    async fn read(&mut self, events: impl Stream<Item = eventsource_client::Result<SSE>>) {
        pin_mut!(events);
        loop {
            match events.try_next().await {
                Ok(Some(SSE::Event(event))) => {
                    self.sse(&event.id.unwrap_or_default(), &event.event_type, &event.data)
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(eventsource_client::Error::StreamClosed) => return,
                Err(eventsource_client::Error::UnexpectedResponse(answer, _)) => {
                    let is_refused = self.is_refused(answer.status(), "");
                    if self.set && is_refused {
                        return;
                    }
                    // It asks again at once. The suite has seen that, and need not see it ten thousand times a second.
                    tokio::time::sleep(PAUSE).await;
                }
                Err(fault) => self.error(&format!("{fault:?}")),
            }
        }
    }
}
