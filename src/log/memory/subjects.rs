//! The lists of subjects in memory: each change is one critical section, as each append is.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;

use super::{MemoryLog, state::State};
use crate::{
    log::{AddError, End, Entries, FollowedList, List, Log, LogError, Subjects, Told},
    message::{Id, Pattern},
};

impl MemoryLog {
    /// Marks the state file, if there is one, so that no crash hides the loss of a change.
    async fn reserve(&self) -> Result<(), LogError> {
        match &self.saved {
            Some(saved) => saved.reserve(self.watermark().next(self.clock.now())).await,
            None => Ok(()),
        }
    }

    /// Changes a list while no message is on its way to the tails.
    async fn change_list<T, E>(
        &self,
        mut change: impl FnMut(&mut State, Id) -> Result<(T, Option<Arc<List>>), E>,
    ) -> Result<T, E> {
        loop {
            if let Some(mut state) = self.state_to_append() {
                let (done, list) = change(&mut state, self.clock.now())?;
                // Only now: the list has the change.
                self.watermark.store(state.newest().get(), Ordering::Release);
                drop(state);
                list.iter().for_each(|list| list.wake());
                return Ok(done);
            }
            self.fanned_out().await;
        }
    }
}

#[async_trait]
impl Subjects for MemoryLog {
    async fn add(&self, subject: &str, topic: &Pattern) -> Result<Id, AddError> {
        self.reserve().await?;
        let retention = self.retention.load_full();
        self.change_list(|state, now| state.list_add(subject, topic, &retention, now)).await
    }

    async fn remove(&self, subject: &str, topic: &Pattern) -> Result<(), LogError> {
        self.reserve().await?;
        self.change_list(|state, now| Ok(((), state.list_remove(subject, topic, now)?))).await
    }

    async fn list(&self, subject: &str) -> Result<Entries, LogError> {
        Ok(self.state().list(subject))
    }

    async fn follow(&self, subject: &str) -> Result<FollowedList, LogError> {
        Ok(self.state().follow_list(subject))
    }

    async fn end(&self, subject: &str, refuse: Option<Duration>) -> Result<End, AddError> {
        let refusal = match refuse {
            Some(lasts) => {
                self.reserve().await?;
                Some(self.state().refuse(subject, lasts, &self.retention.load())?)
            }
            None => None,
        };
        Ok(End { subject: subject.into(), refusal, id: Id::ZERO })
    }

    fn tell(&self, told: Arc<dyn Told>) {
        let known: Vec<_> = {
            let state = self.state();
            state.refusals().map(|(subject, refusal)| ((&**subject).into(), *refusal)).collect()
        };
        told.refused(known);
        told.refused_all();
    }
}
