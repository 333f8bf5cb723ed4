//! A page of the history of one topic: one JSON answer, read backwards from an id.

use axum::response::Response;
use serde::Serialize;

use super::{
    App,
    access::Access,
    connections::AnswerBytes,
    metrics::{Permit, Transport},
    overloaded, poll,
    problem::Problem,
    wire,
};
use crate::{
    log::{History, Missing, Reason},
    message::{Id, Topic},
};

/// How often one answer asks the store. Each time it gets at least one entry, and usually all that fit in the answer.
const MAX_READS: usize = 64;

/// Answers with the newest messages of `topic` below `before`, as many as `limit` and the bound of an answer allow.
///
/// # Errors
/// If the client has its share of connections, or if the log cannot be read.
///
/// # Cancel safety
/// Dropping this loses nothing: the client still has its id.
pub async fn respond(
    app: &App,
    access: &Access,
    topic: &Topic,
    before: Id,
    limit: usize,
    is_gzip: bool,
) -> Result<Response, Problem> {
    let mut permit = app.permit(Transport::Poll, access, 1).ok_or_else(overloaded)?;
    let mut bytes = app.connections.answer_bytes(access.payer());
    let mut page = app.broker.history(topic, before, limit).await?;
    let mut is_full = keep_what_fits(&mut page, &mut bytes);
    for _ in 1..MAX_READS {
        let room = limit - page.messages.len();
        let Some(before) = page.before.filter(|_| room > 0 && !is_full) else { break };
        let mut older = app.broker.history(topic, before, room).await?;
        is_full = keep_what_fits(&mut older, &mut bytes);
        page.extend(older);
    }
    count(&mut permit, &page);
    let tail = tail(topic, &page);
    Ok(poll::answer_without_cursor(page.messages, bytes, tail, permit, is_gzip))
}

/// Leaves to the next page what is too much for this answer. True if nothing more fits.
fn keep_what_fits(page: &mut History, bytes: &mut AnswerBytes) -> bool {
    let mut kept = 0;
    for message in page.messages.iter().rev() {
        bytes.add(wire::envelope(message).len());
        kept += 1;
        if bytes.is_full() {
            break;
        }
    }
    page.keep_newest(kept);
    bytes.is_full()
}

/// The bytes are counted as they leave.
fn count(permit: &mut Permit, page: &History) {
    page.messages.iter().for_each(|message| permit.note_message(message, true));
    page.gaps.iter().for_each(|gap| permit.note_gap(gap.reason));
    permit.add_up(0);
}

/// A gap in the history.
#[derive(Serialize)]
#[serde(tag = "type", rename = "gap")]
struct Gap<'a> {
    topic: &'a Topic,
    after: Id,
    next: Option<Id>,
    reason: Reason,
}

/// The text after the messages.
fn tail(topic: &Topic, page: &History) -> Vec<u8> {
    let gap = |gap: &Missing| {
        let Missing { after, next, reason } = *gap;
        serde_json::to_string(&Gap { topic, after, next, reason }).expect("a gap serializes")
    };
    let gaps: Vec<_> = page.gaps.iter().map(gap).collect();
    let gaps = if gaps.is_empty() { String::new() } else { format!(",\"gaps\":[{}]", gaps.join(",")) };
    let end = match page.before {
        Some(before) => format!(",\"before\":\"{before}\""),
        None if page.is_beginning => ",\"beginning\":true".to_owned(),
        None => String::new(),
    };
    format!("]{gaps}{end}}}").into_bytes()
}
