//! The questions to the authority, by the client of all other questions: so it has the same proxies and the same trust.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use tokio::time::timeout;

use crate::http::fetch::{self, Fetcher};

/// How long one answer may take. Some authorities sign while the client waits.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest answer. A chain of certificates has a few kilobytes.
const MAX_ANSWER_BYTES: usize = 256 << 10;

/// Asks one authority.
#[derive(Clone)]
pub struct Questions(pub Arc<Fetcher>);

impl HttpClient for Questions {
    fn request(
        &self,
        request: http::Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let fetcher = self.0.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.map_or_else(|never| match never {}, |body| body.to_bytes());
            let other = |words: String| Error::Other(words.into());
            let request = reqwest::Request::try_from(http::Request::from_parts(head, body))
                .map_err(|error| other(error.to_string()))?;
            let answer = timeout(PATIENCE, fetch::whole(fetcher.request(request), MAX_ANSWER_BYTES)).await;
            let answer = answer
                .unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())))
                .map_err(other)?;
            let mut response = http::Response::new(Full::new(Bytes::from(answer.body)));
            (*response.status_mut(), *response.headers_mut()) = (answer.status, answer.headers);
            Ok(response.into())
        })
    }
}
