//! Pages of the store that are being read: whoever asks for the same one meanwhile is given it too.
//!
//! After a restart thousands come back to the same point at once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::sync::OnceCell;

use crate::{
    log::{LogError, Page, Position},
    message::{Id, Pattern},
};

/// Who reads more topics than these reads alone.
const MAX_PATTERNS: usize = 16;

type Answer = OnceCell<Result<Page, LogError>>;

#[derive(Default)]
pub struct UnderWay {
    // A std mutex: no await happens while it is held.
    pages: Mutex<HashMap<Asked, Weak<Answer>>>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Asked {
    patterns: Vec<Pattern>,
    cursor: Id,
    told: Id,
    limit: usize,
}

/// One of those who wait for a page. Whoever is the first to have it, or to leave, ends the sharing: the page is as
/// old as its reading.
struct Waiting<'a> {
    under_way: &'a UnderWay,
    asked: &'a Asked,
    answer: Arc<Answer>,
}

impl UnderWay {
    /// What `read` answers, to this call or to another one that is under way.
    pub async fn share(
        &self,
        patterns: &[Pattern],
        position: &Position,
        limit: usize,
        read: impl Future<Output = Result<Page, LogError>>,
    ) -> Result<Page, LogError> {
        if patterns.len() > MAX_PATTERNS || position.has_floors() {
            return read.await;
        }
        let (cursor, told) = (position.cursor, position.told);
        let asked = Asked { patterns: patterns.to_vec(), cursor, told, limit };
        let waiting = self.wait(&asked);
        waiting.answer.get_or_init(|| read).await.clone()
    }

    fn wait<'a>(&'a self, asked: &'a Asked) -> Waiting<'a> {
        let mut pages = self.pages();
        let answer = pages.get(asked).and_then(Weak::upgrade).unwrap_or_else(|| {
            let answer = Arc::default();
            pages.insert(asked.clone(), Arc::downgrade(&answer));
            answer
        });
        Waiting { under_way: self, asked, answer }
    }

    fn pages(&self) -> MutexGuard<'_, HashMap<Asked, Weak<Answer>>> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut pages = self.under_way.pages();
        let is_this = |known: &Weak<Answer>| std::ptr::eq(known.as_ptr(), Arc::as_ptr(&self.answer));
        if pages.get(self.asked).is_some_and(is_this) {
            pages.remove(self.asked);
        }
    }
}
