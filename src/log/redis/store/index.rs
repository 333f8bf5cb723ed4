//! The index of the store and its marks, read in batches.

use super::Store;
use crate::{
    log::{
        LogError,
        redis::{facts::Facts, scripts::ReadScript},
    },
    message::Id,
};

/// How many members of the index are read in one step.
const INDEX_BATCH: usize = 2000;

impl Store {
    /// Gives `take` the topics with a message after `after`, in batches, with their newest ids. A topic that
    /// gets a message meanwhile is given again.
    ///
    /// # Errors
    /// As [`read`](Self::read); also if a new generation of the store begins meanwhile.
    pub async fn index(&self, after: Id, take: impl FnMut(Vec<(String, Id)>)) -> Result<(), LogError> {
        self.members(&self.scripts.changed, format!("({after}"), take).await.map(drop)
    }

    /// Gives `take` the marks that were set after `after`, in batches: a comma and the topic, or a space and
    /// the topic if it was deleted. With each comes the time of the mark, which is no older than the lost
    /// messages. Every mark that exists when this is called is given. Returns the facts of the last
    /// answer, with the time of the newest mark at the first.
    ///
    /// # Errors
    /// As [`index`](Self::index).
    pub async fn marks(&self, after: Id, take: impl FnMut(Vec<(String, Id)>)) -> Result<Facts, LogError> {
        self.members(&self.scripts.marks, format!("(-{after}"), take).await
    }

    async fn members(
        &self,
        script: &ReadScript,
        mut from: String,
        mut take: impl FnMut(Vec<(String, Id)>),
    ) -> Result<Facts, LogError> {
        let mut first: Option<(Id, Id)> = None;
        loop {
            let limit = INDEX_BATCH.to_string();
            let args = [&*from, &*limit].map(str::as_bytes);
            let answer = self.read(script, "", &args).await?;
            let (facts, members): (Facts, Vec<(Vec<u8>, String)>) = answer;
            let (began, marked) = *first.get_or_insert((facts.began, facts.marked));
            if began != facts.began {
                return Err(LogError::Unavailable);
            }
            let is_last = members.len() < INDEX_BATCH;
            // Several members may have the same id, so the last one is read again. A batch with one id alone is not from
            // this program.
            from = match members.last() {
                Some((_, score)) if *score == from => format!("({score}"),
                Some((_, score)) => score.clone(),
                None => from,
            };
            let members = members.into_iter().filter_map(|(member, score)| {
                let score: i64 = score.parse().ok()?;
                Some((String::from_utf8(member).ok()?, Id::new(score.unsigned_abs())))
            });
            take(members.collect());
            if is_last {
                return Ok(Facts { marked, ..facts });
            }
        }
    }
}
