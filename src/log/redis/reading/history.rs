//! Reads the history of one topic backwards.

use super::say_unreadable;
use crate::{
    log::{
        LogError,
        history::{Entry, Found, History},
        redis::{
            answers::{Past, Stored},
            store::Store,
        },
    },
    message::{Id, Topic},
};

/// The newest messages of `topic` below `before`, up to `limit` and as many as fit.
pub async fn history(store: &Store, topic: &Topic, before: Id, limit: usize) -> Result<History, LogError> {
    let args = [before.to_string(), limit.to_string()];
    let args = args.each_ref().map(|arg| arg.as_bytes());
    let Past { facts, behind, has_older, found } = store.read(&store.scripts.history, topic, &args).await?;
    store.has_seen(facts.newest);
    let entry = |stored: Stored| {
        let message = stored.message(topic);
        if message.is_none() {
            say_unreadable(topic, &stored);
        }
        Entry { id: stored.id, prev: stored.prev, message }
    };
    let found = Found {
        boundaries: &facts.boundaries,
        deleted: behind.deleted,
        entries: found.into_iter().rev().map(entry).collect(),
        has_older: has_older == 1,
        complete_after: behind.complete_after(facts.forgotten),
        next: behind.next(),
    };
    Ok(found.page(before))
}
