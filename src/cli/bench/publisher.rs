//! The publisher: messages at a steady rate, over one connection.

use std::time::Duration;

use async_stream::stream;
use rejoin::client::{Client, ClientError, Draft, Progress};
use tokio::time::{Instant, sleep_until};
use tokio_stream::StreamExt;

use super::{Bench, Topics};
use crate::cli::Ending;

/// Publishes for the duration of the benchmark, and returns the number of messages.
///
/// # Errors
/// If any message was not stored at once: the figures would mean nothing then.
pub async fn publish(bench: &Bench, client: &Client, topics: Topics, epoch: Instant) -> Result<u64, Ending> {
    let begun = Instant::now();
    let due_at = |message: u64| begun + Duration::from_secs_f64(message as f64 / f64::from(bench.rate));
    let total = (bench.duration.as_secs_f64() * f64::from(bench.rate)).ceil() as u64;
    // The messages that are due together are sent together.
    let mut publishing = client.publish_all(stream! {
        for message in 0..total {
            if begun.elapsed() >= bench.duration {
                break;
            }
            let due = due_at(message);
            if due > Instant::now() {
                sleep_until(due).await;
            }
            let (topic, number) = topics.place(message);
            let payload = payload(number, due.duration_since(epoch), bench.size as usize);
            // Keys would fill the server's memory for them, which is not measured here.
            yield Draft::new(topics.name(topic), payload).without_key();
        }
    });
    let mut stored = 0;
    while let Some(progress) = publishing.next().await {
        match progress? {
            Progress::Stored { .. } => stored += 1,
            Progress::Refused(error)
            | Progress::Retrying(error @ ClientError::Unavailable { code: Some(_), .. }) => {
                return Err(Ending::Failed(format!("a message was refused: {error}")));
            }
            Progress::Retrying(error) => return Err(error.into()),
            _ => {}
        }
    }
    Ok(stored)
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
