//! Questions to the store that several callers ask at once: one of them asks, and all share its answer.
//!
//! After a restart, thousands of clients resume from the same cursor at once.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::OnceCell;

/// The questions that wait for an answer, and the callers that wait with them.
pub struct Shared<Q, A> {
    // A std mutex: no await happens while it is held.
    asked: Mutex<HashMap<Q, Weak<Asked<A>>>>,
}

/// A question, and its answer once that has come.
struct Asked<A> {
    answer: OnceCell<A>,
    is_sent: AtomicBool,
    /// Held while the question is sent and waits. The same question has one turn after the other.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// A caller that waits for an answer. The first one to get it, or to leave, closes the question.
struct Waiting<'a, Q: Eq + Hash, A> {
    shared: &'a Shared<Q, A>,
    question: &'a Q,
    asked: Arc<Asked<A>>,
}

impl<Q, A> Default for Shared<Q, A> {
    fn default() -> Self {
        Self { asked: Mutex::default() }
    }
}

impl<Q: Clone + Eq + Hash, A: Clone> Shared<Q, A> {
    /// The answer of `ask`, called here or by an earlier caller that still waits for the same answer.
    pub async fn share(&self, question: &Q, ask: impl Future<Output = A>) -> A {
        let waiting = self.wait(question, |_| true);
        waiting.asked.answer.get_or_init(|| ask).await.clone()
    }

    /// The same, but an answer is shared only by callers that came before `ask` was polled. Those that come later wait for
    /// its end, and share the next answer.
    pub async fn share_unsent(&self, question: &Q, ask: impl Future<Output = A>) -> A {
        let waiting = self.wait(question, |asked| !asked.is_sent.load(Ordering::Acquire));
        let in_turn = async {
            let _turn = waiting.asked.turn.lock().await;
            waiting.asked.is_sent.store(true, Ordering::Release);
            ask.await
        };
        waiting.asked.answer.get_or_init(|| in_turn).await.clone()
    }

    fn wait<'a>(&'a self, question: &'a Q, is_open: impl Fn(&Asked<A>) -> bool) -> Waiting<'a, Q, A> {
        let mut all = self.asked();
        let before = all.get(question).and_then(Weak::upgrade);
        let asked = before.clone().filter(|asked| is_open(asked)).unwrap_or_else(|| {
            let turn = before.map(|before| before.turn.clone()).unwrap_or_default();
            let asked = Arc::new(Asked { answer: OnceCell::new(), is_sent: AtomicBool::new(false), turn });
            all.insert(question.clone(), Arc::downgrade(&asked));
            asked
        });
        Waiting { shared: self, question, asked }
    }
}

impl<Q, A> Shared<Q, A> {
    fn asked(&self) -> MutexGuard<'_, HashMap<Q, Weak<Asked<A>>>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<Q: Eq + Hash, A> Drop for Waiting<'_, Q, A> {
    fn drop(&mut self) {
        let mut all = self.shared.asked();
        let is_this = |known: &Weak<Asked<A>>| std::ptr::eq(known.as_ptr(), Arc::as_ptr(&self.asked));
        if all.get(self.question).is_some_and(is_this) {
            all.remove(self.question);
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
    async fn callers_that_come_after_the_question_was_sent_share_the_next_answer() {
        let (shared, asked) = (Shared::default(), Cell::new(0));
        let ask = || {
            shared.share_unsent(&"a", async {
                asked.set(asked.get() + 1);
                let number = asked.get();
                yield_now().await;
                number
            })
        };
        let mut first = Box::pin(ask());
        assert!(futures_util::poll!(&mut first).is_pending());
        assert_eq!(join!(ask(), ask(), ask(), first), (2, 2, 2, 1));
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
