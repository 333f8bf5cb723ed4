//! Questions to the store that several callers ask at once: one of them asks, and all share its answer.
//!
//! After a restart, thousands of clients resume from the same cursor at once.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::sync::OnceCell;

/// The questions that wait for an answer, and the callers that wait with them.
pub struct Shared<Q, A> {
    // A std mutex: no await happens while it is held.
    asked: Mutex<HashMap<Q, Weak<OnceCell<A>>>>,
}

/// A caller that waits for an answer. The first one to get it, or to leave, closes the question.
struct Waiting<'a, Q: Eq + Hash, A> {
    shared: &'a Shared<Q, A>,
    question: &'a Q,
    answer: Arc<OnceCell<A>>,
}

impl<Q, A> Default for Shared<Q, A> {
    fn default() -> Self {
        Self { asked: Mutex::default() }
    }
}

impl<Q: Clone + Eq + Hash, A: Clone> Shared<Q, A> {
    /// The answer of `ask`, called here or by an earlier caller that still waits for the same answer.
    pub async fn share(&self, question: &Q, ask: impl Future<Output = A>) -> A {
        let waiting = self.wait(question);
        waiting.answer.get_or_init(|| ask).await.clone()
    }

    fn wait<'a>(&'a self, question: &'a Q) -> Waiting<'a, Q, A> {
        let mut asked = self.asked();
        let answer = asked.get(question).and_then(Weak::upgrade).unwrap_or_else(|| {
            let answer = Arc::default();
            asked.insert(question.clone(), Arc::downgrade(&answer));
            answer
        });
        Waiting { shared: self, question, answer }
    }
}

impl<Q, A> Shared<Q, A> {
    fn asked(&self) -> MutexGuard<'_, HashMap<Q, Weak<OnceCell<A>>>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<Q: Eq + Hash, A> Drop for Waiting<'_, Q, A> {
    fn drop(&mut self) {
        let mut asked = self.shared.asked();
        let is_this = |known: &Weak<OnceCell<A>>| std::ptr::eq(known.as_ptr(), Arc::as_ptr(&self.answer));
        if asked.get(self.question).is_some_and(is_this) {
            asked.remove(self.question);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::{join, task::yield_now};

    use super::*;

    #[tokio::test]
    async fn callers_share_an_answer_until_it_has_come() {
        let (shared, asked) = (Shared::default(), Cell::new(0));
        let ask = || {
            shared.share(&"a", async {
                asked.set(asked.get() + 1);
                yield_now().await;
                asked.get()
            })
        };
        assert_eq!(join!(ask(), ask(), ask()), (1, 1, 1));
        assert_eq!(ask().await, 2);
        assert!(shared.asked().is_empty());
    }

    #[tokio::test]
    async fn another_caller_asks_if_the_first_one_leaves() {
        let shared = Shared::default();
        let mut leaves = Box::pin(shared.share(&"a", std::future::pending()));
        assert!(futures_util::poll!(&mut leaves).is_pending());
        let stays = shared.share(&"a", async { 2 });
        tokio::pin!(stays);
        assert!(futures_util::poll!(&mut stays).is_pending());
        drop(leaves);
        assert_eq!(stays.await, 2);
    }
}
