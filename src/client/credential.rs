//! The credential that goes with every request, and how a new one is got when it ends.

use std::{
    error::Error,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use futures_util::future::BoxFuture;
use reqwest::header::HeaderValue;

use super::ClientError;

/// How a function says that it has no token.
pub(super) type BoxError = Box<dyn Error + Send + Sync>;
type Renew = Box<dyn Fn() -> BoxFuture<'static, Result<String, BoxError>> + Send + Sync>;

/// No credential, a fixed one, or one that a function gives.
#[derive(Default)]
pub(super) struct Credential {
    renew: Option<Renew>,
    /// The value of `Authorization`.
    // A std mutex: no await happens while it is held.
    current: Mutex<Option<HeaderValue>>,
}

impl Credential {
    pub fn fixed(token: &str) -> Result<Self, ClientError> {
        Ok(Self { renew: None, current: Mutex::new(Some(bearer(token)?)) })
    }

    pub fn renewed_by(renew: Renew) -> Self {
        Self { renew: Some(renew), current: Mutex::default() }
    }

    /// The value of `Authorization` for the next request.
    ///
    /// # Errors
    /// If the function for a token fails, or a header cannot carry its token.
    pub async fn header(&self) -> Result<Option<HeaderValue>, ClientError> {
        let current = self.current().clone();
        let (None, Some(renew)) = (&current, &self.renew) else { return Ok(current) };
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
