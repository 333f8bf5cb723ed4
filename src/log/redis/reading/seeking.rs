//! Finds in the store where a reader begins.

use std::{cmp::Reverse, collections::HashMap};

use super::{Reading, TOPIC_BATCH};
use crate::{
    log::{
        Beginning, Gap, LogError, Position, Reason, Start,
        position::MAX_LAST_TOPICS,
        redis::{
            answers::{Begun, First, Retained},
            facts::Facts,
        },
    },
    message::{Id, Pattern, Topic},
};

/// How many messages one script steps over to find the beginning of the newest `last`.
const STEP_LIMIT: usize = 2000;

impl Reading<'_> {
    pub async fn begin(&self, start: &Start, facts: &Facts) -> Result<Beginning, LogError> {
        let newest = facts.newest;
        let position = match *start {
            Start::Now => Position::at(newest),
            Start::After(cursor) if cursor <= newest => Position::at(cursor),
            // A copy that is behind lacks ids that the primary has given.
            Start::After(_) if facts.is_frozen => return Err(LogError::Unavailable),
            Start::After(_) | Start::Unreadable(_) => {
                let position = self.begin_with(Id::ZERO, None, newest).await?;
                return Ok(Beginning { position, gaps: self.unknown_gaps().await? });
            }
            Start::Everything => self.begin_with(Id::ZERO, None, newest).await?,
            Start::Since(time) => self.begin_with(time, None, newest).await?,
            Start::Last(count) => self.begin_with(Id::ZERO, Some(count), newest).await?,
        };
        Ok(Beginning { position, gaps: Vec::new() })
    }

    /// A gap for each topic and pattern, because the store cannot say what the cursor covers.
    async fn unknown_gaps(&self) -> Result<Vec<Gap>, LogError> {
        let topics = self.topics();
        let retained = self.fetch(&[], &topics, &Position::default(), None).await?.topics;
        let firsts = retained.iter().map(Retained::next);
        let oldest = self.oldest_of_wildcards(Id::ZERO).await?;
        let wildcards = self.patterns.wildcards().iter();
        let known = topics.iter().map(Pattern::from).zip(firsts);
        let known = known.chain(wildcards.map(|pattern| (pattern.clone(), oldest.of(pattern))));
        let gap = |(topic, next)| Gap { topic, next, reason: Reason::UnknownCursor, floor: Id::ZERO };
        Ok(known.map(gap).collect())
    }

    /// Begins just before the oldest message of each topic since `since`, or before the newest `last` of each
    /// topic.
    async fn begin_with(&self, since: Id, last: Option<usize>, newest: Id) -> Result<Position, LogError> {
        let mut topics = self.matching(since).await?;
        let mut covered = topics.len();
        if last.is_some() && covered > MAX_LAST_TOPICS && self.has_wildcards() {
            // A named topic is always given, even if many other topics are newer.
            let is_named = |topic: &Topic| self.patterns.names(topic);
            let (named, others): (Vec<_>, Vec<_>) =
                topics.split_off(MAX_LAST_TOPICS).into_iter().partition(is_named);
            topics.extend(named);
            covered = topics.len();
            topics.extend(others);
        }
        let mut position = Position::at(newest);
        let mut firsts = self.firsts(&topics[..covered], since, last, &mut position.told).await?;
        firsts.extend(self.firsts(&topics[covered..], since, Some(0), &mut position.told).await?);
        for First { first, .. } in firsts.iter().filter(|it| it.first > Id::ZERO) {
            position.cursor = position.cursor.min(first.before());
        }
        for (topic, First { newest, first, prev, .. }) in topics.iter().zip(firsts) {
            position.raise_floor(topic.clone(), if first > Id::ZERO { prev } else { newest });
        }
        Ok(position)
    }

    /// Finds where to begin in each topic. Raises `began` to the beginning of the generation: the reader gave no
    /// cursor, so it can have missed nothing from before.
    async fn firsts(
        &self,
        topics: &[Topic],
        since: Id,
        last: Option<usize>,
        began: &mut Id,
    ) -> Result<Vec<First>, LogError> {
        let batch = last.map_or(TOPIC_BATCH, |count| (STEP_LIMIT / count.max(1)).clamp(1, TOPIC_BATCH));
        let mut firsts = Vec::with_capacity(topics.len());
        for topics in topics.chunks(batch) {
            let step = last.map_or("-1".to_owned(), |count| count.min(STEP_LIMIT).to_string());
            let mut args = vec![since.to_string(), step];
            args.extend(topics.iter().flat_map(|topic| [topic.to_string(), "+".to_owned()]));
            let mut begun: Begun = self.run(&self.store.scripts.begin, &args).await?;
            *began = begun.facts.began.max(*began);
            if let (Some(count), [topic], [first]) = (last, topics, &mut begun.firsts[..]) {
                self.step_back(topic, count, first).await?;
            }
            firsts.extend(begun.firsts);
        }
        Ok(firsts)
    }

    /// Steps further back if one step did not find enough messages.
    async fn step_back(&self, topic: &Topic, count: usize, first: &mut First) -> Result<(), LogError> {
        let (mut passed, mut left) = (first.passed, count.saturating_sub(first.passed));
        while passed == STEP_LIMIT && left > 0 {
            let step = left.min(STEP_LIMIT).to_string();
            let args = ["0".to_owned(), step, topic.to_string(), format!("({}-0", first.first)];
            let Begun { firsts, .. } = self.run(&self.store.scripts.begin, &args).await?;
            let Some(further) = firsts.into_iter().next().filter(|further| further.passed > 0) else {
                break;
            };
            passed = further.passed;
            left -= passed.min(left);
            *first = further;
        }
        Ok(())
    }

    /// The topics that are read, those of patterns newest first. With a pattern, topics may be left out that
    /// have nothing since `since`.
    async fn matching(&self, since: Id) -> Result<Vec<Topic>, LogError> {
        if !self.has_wildcards() {
            return Ok(self.topics());
        }
        if let Some((topics, _)) = self.few_topics().await? {
            return Ok(topics);
        }
        let mut topics = HashMap::new();
        let take = |members: Vec<(String, Id)>| {
            let matching = members.into_iter().filter(|(name, _)| self.matches(name));
            topics.extend(matching.filter_map(|(name, id)| Some((name.parse::<Topic>().ok()?, id))));
        };
        self.store.index(since.before(), take).await?;
        let mut topics: Vec<_> = topics.into_iter().collect();
        topics.sort_unstable_by_key(|(_, newest)| Reverse(*newest));
        Ok(topics.into_iter().map(|(topic, _)| topic).collect())
    }
}
