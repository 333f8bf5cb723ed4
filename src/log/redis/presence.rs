//! Presence in Redis. The members of a topic and the messages that tell their changes are written in one step.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    RedisLog,
    answers::{MembersPage, Noted},
    codec,
    replicas::{SPANS_MS, replica_name},
};
use crate::{
    log::{
        HOLDS_STEP, Hold, HoldError, Holds, LogError, MAX_MEMBERS, Member, MemberEvent, Members, NotedHolds,
        Payer, change_data,
    },
    message::Topic,
};

impl RedisLog {
    pub(super) async fn note_holds(&self, holds: &Holds) -> Result<NotedHolds, LogError> {
        let name = self.replicas.name();
        let [gone_after, pause, _, settled_after] = SPANS_MS;
        let part = holds.part.as_ref();
        let place_of = |at: &Option<(Topic, Arc<str>)>| at.as_ref().map(place).unwrap_or_default();
        let mut args: Vec<Vec<u8>> = vec![
            replica_name(name).into(),
            holds.grace.as_millis().to_string().into(),
            MAX_MEMBERS.to_string().into(),
            u8::from(self.replicas.is_keeper()).to_string().into(),
            head_of(MemberEvent::Join),
            head_of(MemberEvent::Leave),
            u8::from(part.is_some()).to_string().into(),
            part.map(|part| place_of(&part.after)).unwrap_or_default(),
            part.map(|part| place_of(&part.to)).unwrap_or_default(),
        ];
        args.extend([gone_after, pause, settled_after].map(|ms| ms.to_string().into()));
        for Hold { topic, sub, connections, info } in &holds.holds {
            args.push(topic.as_bytes().into());
            args.push(sub.as_bytes().into());
            args.push(connections.to_string().into());
            // A member that leaves has its payload there.
            args.push(if *connections > 0 { change_data(sub, info.as_deref()).into() } else { Vec::new() });
            // A new topic counts for the subject, as one that it publishes to.
            args.push(Payer::subject(sub).number().to_string().into());
        }
        let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
        let noted: Noted = self.store.run(&self.store.scripts.presence, "", &args).await?;
        if noted.standing != "done" || noted.outcomes.len() != holds.holds.len() {
            return Err(LogError::Unavailable);
        }
        let outcome = |outcome: &String| match outcome.as_str() {
            "done" => Ok(()),
            "members" => Err(HoldError::TooManyMembers),
            _ => Err(HoldError::TooManyTopics),
        };
        Ok(NotedHolds {
            outcomes: noted.outcomes.iter().map(outcome).collect(),
            unnamed: noted.unnamed.iter().filter_map(|place| parts(place)).take(HOLDS_STEP).collect(),
            // A store that began anew knows no holds, and neither do the others know those of a former name.
            record: Some(noted.began.get() ^ name),
            joined: noted.joined,
            left: noted.left,
            is_more: noted.is_more == 1,
        })
    }

    pub(super) async fn list_members(
        &self,
        topic: &Topic,
        after: &str,
        limit: usize,
    ) -> Result<Members, LogError> {
        let limit = limit.to_string();
        let args = [after, &*limit].map(str::as_bytes);
        let MembersPage { facts, count, members } =
            self.store.read(&self.store.scripts.members, topic, &args).await?;
        let member = |(sub, since, connections, data): (String, _, _, String)| Member {
            info: info_of(&data),
            sub: sub.into(),
            connections,
            since,
        };
        Ok(Members { cursor: facts.newest, count, members: members.into_iter().map(member).collect() })
    }
}

fn head_of(change: MemberEvent) -> Vec<u8> {
    let any = "x".parse().expect("a topic");
    codec::head(&change.draft(any, String::new()))
}

/// A topic and a subject, as they stand in one member of a key. Neither has a zero.
fn place((topic, sub): &(Topic, Arc<str>)) -> Vec<u8> {
    [topic.as_bytes(), b"\0", sub.as_bytes()].concat()
}

fn parts(place: &str) -> Option<(Topic, Arc<str>)> {
    let (topic, sub) = place.split_once('\0')?;
    Some((topic.parse().ok()?, sub.into()))
}

/// The info in the payload of a change.
fn info_of(data: &str) -> Option<Arc<str>> {
    #[derive(Deserialize)]
    struct Data<'a> {
        #[serde(borrow)]
        info: Option<&'a RawValue>,
    }
    let data: Data<'_> = serde_json::from_str(data).ok()?;
    data.info.map(|info| info.get().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_info_of_a_member_is_that_of_its_join() {
        for info in [None, Some(r#"{"name": "Ann"}"#), Some("[1.0]")] {
            assert_eq!(info_of(&change_data("u1", info)).as_deref(), info);
        }
        assert_eq!(info_of("foreign"), None);
    }
}
