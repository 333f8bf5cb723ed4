//! The publisher: messages at a steady rate, over one connection.

use std::time::Duration;

use reqwest::{Client, StatusCode, header};
use serde::Serialize;
use serde_json::Value;
use tokio::time::{Instant, sleep_until};

use super::{Bench, Topics};
use crate::cli::remote::{Problem, Remote, Trouble, ask};

/// The limits of one request in messages and in bytes, if more than one message is due.
const BATCH_MESSAGES: u64 = 1_000;
const BATCH_BYTES: u64 = 256 << 10;
/// How long the answer to a request may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Serialize)]
struct Item<'a> {
    topic: &'a str,
    data: &'a str,
    content_type: &'static str,
}

/// Publishes for the duration of the benchmark, and returns the number of messages.
pub async fn publish(
    bench: &Bench,
    remote: &Remote,
    client: &Client,
    topics: Topics,
    epoch: Instant,
) -> Result<u64, Trouble> {
    let begun = Instant::now();
    let due_at = |message: u64| begun + Duration::from_secs_f64(message as f64 / f64::from(bench.rate));
    let total = (bench.duration.as_secs_f64() * f64::from(bench.rate)).ceil() as u64;
    let batch = (BATCH_BYTES / u64::from(bench.size)).clamp(1, BATCH_MESSAGES);
    let mut sent = 0;
    while sent < total && begun.elapsed() < bench.duration {
        sleep_until(due_at(sent)).await;
        let now = Instant::now();
        let mut body = Vec::new();
        let first = sent;
        while sent < total && sent - first < batch && due_at(sent) <= now {
            let (topic, number) = topics.place(sent);
            let due = due_at(sent).duration_since(epoch);
            let item = Item {
                topic: &topics.name(topic),
                data: &payload(number, due, bench.size as usize),
                content_type: "text/plain",
            };
            serde_json::to_writer(&mut body, &item).expect("writing to memory cannot fail");
            body.push(b'\n');
            sent += 1;
        }
        send(client, remote, body).await?;
    }
    Ok(sent)
}

/// A message that contains its number and the time at which it was due.
fn payload(number: u64, due: Duration, size: usize) -> String {
    format!("{:.<size$}", format!("{number} {} ", due.as_micros()))
}

/// Reads a message that [`payload`] wrote.
pub fn parse(payload: &[u8]) -> Option<(u64, Duration)> {
    let mut words = std::str::from_utf8(payload).ok()?.split(' ');
    Some((words.next()?.parse().ok()?, Duration::from_micros(words.next()?.parse().ok()?)))
}

/// # Errors
/// If any message was not stored: the figures would mean nothing then.
async fn send(client: &Client, remote: &Remote, body: Vec<u8>) -> Result<(), Trouble> {
    let request = client
        .post(remote.at("/publish"))
        .timeout(ANSWER_TIMEOUT)
        .header(header::CONTENT_TYPE, "application/x-ndjson")
        .body(body);
    let answer = ask(request, StatusCode::OK).await?.bytes().await?;
    let answers: Vec<Value> = serde_json::from_slice(&answer)
        .map_err(|error| Trouble::Refused(format!("the server does not speak Rejoin's protocol: {error}")))?;
    let refused = answers.into_iter().find(|answer| answer.get("code").is_some());
    match refused.map(serde_json::from_value::<Problem>) {
        Some(Ok(Problem { code, detail, .. })) => {
            Err(Trouble::Refused(format!("a message was refused: {code}: {detail}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_has_its_size_and_says_what_it_is() {
        let due = Duration::from_micros(1_234_567);
        for size in [1, 20, 100] {
            let payload = payload(42, due, size);
            assert!(payload.len() == size.max("42 1234567 ".len()), "{payload}");
            assert_eq!(parse(payload.as_bytes()), Some((42, due)));
        }
        assert_eq!(parse(b"something else"), None);
    }
}
