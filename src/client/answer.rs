//! How long the client waits for a server, and how much of an answer it reads.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::Response;
use tokio::time::timeout;

use super::ClientError;

/// How long a server that has begun an answer may be silent.
const SILENCE: Duration = Duration::from_secs(30);

/// The outcome of `future`, or the error that says that the server was silent for this long.
pub async fn within<T>(
    time: Duration,
    future: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    let silent = || ClientError::lost("the server has gone silent: no answer and no heartbeat");
    timeout(time, future).await.unwrap_or_else(|_| Err(silent()))
}

/// The body of an answer, of up to `limit` bytes. A slow link may take any time for it, as long as something
/// arrives.
pub async fn body(mut response: Response, limit: usize) -> Result<Bytes, ClientError> {
    let mut read = BytesMut::new();
    while let Some(chunk) = within(SILENCE, async { Ok(response.chunk().await?) }).await? {
        if read.len() + chunk.len() > limit {
            return Err(ClientError::not_ours(format!("an answer of more than {limit} bytes")));
        }
        read.extend_from_slice(&chunk);
    }
    Ok(read.freeze())
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt, stream};

    use super::*;

    /// An answer with one byte in every `pause`.
    fn slow(bytes: usize, pause: Duration) -> Response {
        let chunks = stream::iter(0..bytes).then(move |_| async move {
            tokio::time::sleep(pause).await;
            Ok::<_, std::io::Error>("x")
        });
        http::Response::new(reqwest::Body::wrap_stream(chunks)).into()
    }

    #[tokio::test(start_paused = true)]
    async fn only_silence_ends_a_slow_answer() {
        assert_eq!(body(slow(10, SILENCE * 2 / 3), 10).await.expect("it arrives").len(), 10);
        let silent = body(slow(10, SILENCE * 2), 10).await;
        assert!(matches!(silent, Err(ClientError::Lost { .. })), "{silent:?}");
    }

    #[tokio::test]
    async fn an_answer_without_an_end_is_not_read_for_ever() {
        let endless = body(slow(usize::MAX, Duration::ZERO), 1_000).await;
        assert!(matches!(endless, Err(ClientError::Unusable(_))), "{endless:?}");
    }
}
