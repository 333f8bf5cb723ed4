//! Payers come in turn, however many questions each of them has.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync;

use crate::log::Payer;

/// The queue of new clients.
#[derive(Default)]
pub struct Turns {
    /// One question of each payer queues for this lock.
    next: sync::Mutex<()>,
    // A std mutex: no await happens while it is held.
    of: Mutex<HashMap<Option<Payer>, Arc<sync::Mutex<()>>>>,
}

/// The questions of one payer, of which the first holds the lock. Those without a payer are of one.
struct Own<'a> {
    turns: &'a Turns,
    payer: Option<Payer>,
    lock: Arc<sync::Mutex<()>>,
}

impl Turns {
    /// Waits for the turn of a question, and then for what `next` waits for.
    pub async fn wait<T>(&self, payer: Option<Payer>, next: impl Future<Output = T>) -> T {
        let own = self.own(payer);
        let _first = own.lock.lock().await;
        let _next = self.next.lock().await;
        next.await
    }

    fn own(&self, payer: Option<Payer>) -> Own<'_> {
        let lock = self.of().entry(payer).or_default().clone();
        Own { turns: self, payer, lock }
    }

    fn of(&self) -> MutexGuard<'_, HashMap<Option<Payer>, Arc<sync::Mutex<()>>>> {
        self.of.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Own<'_> {
    fn drop(&mut self) {
        let mut of = self.turns.of();
        // The map has one too.
        if Arc::strong_count(&self.lock) == 2 {
            of.remove(&self.payer);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_payer_is_forgotten_with_its_last_question() {
        let turns = Turns::default();
        let mut waiting: Vec<_> =
            (0..3).map(|_| turns.wait(None, std::future::pending::<()>()).boxed()).collect();
        assert!(waiting.iter_mut().all(|one| one.now_or_never().is_none()));
        waiting.truncate(1);
        assert_eq!(turns.of().len(), 1);
        waiting.clear();
        assert!(turns.of().is_empty());
    }
}
