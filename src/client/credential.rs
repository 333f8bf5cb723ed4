//! The credential that goes with every request, and how a new one is got when it ends.

use std::{
    error::Error,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use reqwest::header::HeaderValue;
use tokio::time::timeout;

use super::ClientError;

/// How a function says that it has no token.
pub(super) type BoxError = Box<dyn Error + Send + Sync>;
/// How long a request waits for a token.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(10);

type Renew = Box<dyn Fn() -> BoxFuture<'static, Result<String, BoxError>> + Send + Sync>;

/// No credential, a fixed one, or one that a function gives.
#[derive(Default)]
pub(super) struct Credential {
    renew: Option<Renew>,
    /// The value of `Authorization`.
    // A std mutex: no await happens while it is held.
    current: Mutex<Option<HeaderValue>>,
    /// Held while the function is asked: the lock is the place in the queue for its answer.
    renewing: tokio::sync::Mutex<()>,
}

impl Credential {
    pub fn fixed(token: &str) -> Result<Self, ClientError> {
        Ok(Self { current: Mutex::new(Some(bearer(token)?)), ..Self::default() })
    }

    pub fn renewed_by(renew: Renew) -> Self {
        Self { renew: Some(renew), ..Self::default() }
    }

    /// The value of `Authorization` for the next request.
    ///
    /// # Errors
    /// If the function for a token fails or takes too long, or a header cannot carry its token.
    pub async fn header(&self) -> Result<Option<HeaderValue>, ClientError> {
        let current = self.current().clone();
        let (None, Some(renew)) = (&current, &self.renew) else { return Ok(current) };
        timeout(TOKEN_TIMEOUT, self.renewed(renew)).await.unwrap_or_else(|_| {
            Err(ClientError::unsent(format!("no token within {} seconds", TOKEN_TIMEOUT.as_secs())))
        })
    }

    /// Asks the function. Requests that need a token at the same time share its answer.
    async fn renewed(&self, renew: &Renew) -> Result<Option<HeaderValue>, ClientError> {
        let _turn = self.renewing.lock().await;
        let current = self.current().clone();
        if current.is_some() {
            return Ok(current);
        }
        let token = renew().await.map_err(|error| ClientError::unsent(format!("no token: {error}")))?;
        let header = bearer(&token)?;
        *self.current() = Some(header.clone());
        Ok(Some(header))
    }

    /// Forgets a credential that the server refused. True if the function can give another one.
    pub fn forget(&self, refused: Option<&HeaderValue>) -> bool {
        let mut current = self.current();
        // Another request may have got a new one already.
        if self.can_renew() && current.as_ref() == refused {
            *current = None;
        }
        self.can_renew()
    }

    pub fn can_renew(&self) -> bool {
        self.renew.is_some()
    }

    fn current(&self) -> MutexGuard<'_, Option<HeaderValue>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bearer(token: &str) -> Result<HeaderValue, ClientError> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.trim())).map_err(|_| {
        ClientError::Unusable("the token contains characters that a header cannot carry".into())
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// A credential is never printed.
impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(…)")
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        sync::{
            Arc,
            atomic::{AtomicU64, Ordering},
        },
    };

    use futures_util::future::join_all;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_token_that_does_not_come_fails_the_request_and_not_the_program() {
        let credential = Credential::renewed_by(Box::new(|| Box::pin(pending())));
        let outcomes = join_all((0..3).map(|_| credential.header()));
        for outcome in timeout(TOKEN_TIMEOUT + Duration::from_secs(1), outcomes).await.expect("in its time") {
            assert!(matches!(outcome, Err(ClientError::Unavailable { .. })), "{outcome:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_need_a_token_at_the_same_time_ask_for_one() {
        let asked = Arc::new(AtomicU64::new(0));
        let count = asked.clone();
        let credential = Credential::renewed_by(Box::new(move || {
            let number = count.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Ok(number.to_string())
            })
        }));
        for outcome in join_all((0..1_000).map(|_| credential.header())).await {
            assert_eq!(outcome.expect("a token").expect("a header"), "Bearer 0");
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }
}
