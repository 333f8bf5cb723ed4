//! Request bodies: read to a limit and within a time.

use std::{error::Error, io, pin::pin, task::Poll, time::Duration};

use axum::body::{Body, Bytes};
use bytes::BytesMut;
use futures_util::poll;
use http::{HeaderMap, header};
use http_body::Body as _;
use http_body_util::BodyExt;

use super::{
    coding::{self, Coding, Undecodable},
    problem::{Code, Problem},
    shares::Share,
};

/// The part of a head that tells how its body is read. The head itself is not kept while the body arrives.
pub struct Declared {
    coding: Option<Coding>,
    length: Option<u64>,
}

impl Declared {
    /// # Errors
    /// `unsupported_media_type` for a coding that the server does not decode.
    pub fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        Ok(Self { coding: coding::of(headers)?, length })
    }
}

/// Reads a body of up to `limit` bytes, which arrives within `time`. A body with a content coding is decoded, and
/// `limit` is that of the decoded bytes. They count in `unparsed`, unless all of them came at once.
///
/// # Errors
/// `overloaded` if `unparsed` allows no more;
/// `too_large` over the limit, `timed_out` if it does not arrive whole and in time, `bad_request` if it is not in
/// its coding.
pub async fn read(
    Declared { coding, length }: Declared,
    body: Body,
    limit: usize,
    time: Duration,
    unparsed: &mut Share,
) -> Result<Bytes, Problem> {
    let too_large = || {
        Problem::new(
            Code::TooLarge,
            format!("the body has more than {limit} bytes; name fewer topics, or patterns"),
        )
    };
    let body = match coding {
        Some(coding) => coding.decode(body),
        None if length.is_some_and(|length| length > limit as u64) => return Err(too_large()),
        None => body,
    };
    let mut collecting = pin!(collect(body, limit, unparsed));
    // Most bodies are there already, and need no timer.
    let collected = match poll!(&mut collecting) {
        Poll::Ready(collected) => collected?,
        Poll::Pending => tokio::time::timeout(time, collecting).await.unwrap_or_else(|_| Err(timed_out()))?,
    };
    collected.ok_or_else(too_large)
}

/// The whole body; `None` if it is longer than the limit. The pieces are copied, because a small one may keep the
/// whole buffer into which it was read.
async fn collect(mut body: Body, limit: usize, unparsed: &mut Share) -> Result<Option<Bytes>, Problem> {
    let mut read = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(bytes) = frame.map_err(|error| broken(&error))?.into_data() else { continue };
        if bytes.len() > limit - read.len() {
            return Ok(None);
        }
        if read.is_empty() && body.is_end_stream() {
            return Ok(Some(bytes));
        }
        read.extend_from_slice(&bytes);
        if !unparsed.set(read.len()) {
            return Err(too_many_bytes());
        }
    }
    Ok(Some(read.freeze()))
}

/// The problem with a body, or with commands, that the server has no room for.
pub fn too_many_bytes() -> Problem {
    let detail = "clients send more than the server can hold, or you more than your share of it; send this again later";
    Problem::new(Code::Overloaded, detail)
}

/// The problem with a body that could not be read to its end.
pub fn broken(error: &(dyn Error + 'static)) -> Problem {
    let mut causes = std::iter::successors(Some(error), |error| (**error).source());
    let mistake = causes.find_map(|error| match error.downcast_ref::<io::Error>() {
        Some(io) if matches!(io.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => {
            Some(format!("the body is malformed: {io}"))
        }
        _ => error.downcast_ref::<Undecodable>().map(ToString::to_string),
    });
    match mistake {
        Some(mistake) => Problem::bad_request(mistake),
        None => Problem::new(Code::TimedOut, "the body ended too early; send it again"),
    }
}

pub fn timed_out() -> Problem {
    Problem::new(Code::TimedOut, "the body did not arrive within the read timeout; send it again")
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, sync::Arc};

    use futures_util::stream;

    use super::*;
    use crate::http::shares::Shares;

    const LIMIT: usize = 100;
    const UNDECLARED: Declared = Declared { coding: None, length: None };

    async fn read_pieces(shares: &Arc<Shares>, pieces: usize) -> (Result<usize, Code>, Share) {
        let mut unparsed = shares.none(None);
        let pieces =
            stream::iter((0..pieces).map(|_| Ok::<_, Infallible>(Bytes::from_static(b"0123456789"))));
        let bytes =
            read(UNDECLARED, Body::from_stream(pieces), LIMIT, Duration::from_secs(1), &mut unparsed).await;
        (bytes.map(|bytes| bytes.len()).map_err(|problem| problem.code), unparsed)
    }

    #[tokio::test]
    async fn the_bytes_of_a_body_are_counted_until_its_request_is_done() {
        let shares = Shares::leaving_as_much(90);
        let (first, held) = read_pieces(&shares, 5).await;
        assert_eq!((first, shares.taken()), (Ok(50), 50));
        assert_eq!(read_pieces(&shares, 5).await.0, Err(Code::Overloaded));
        assert_eq!(read_pieces(&shares, 4).await.0, Ok(40));
        drop(held);
        assert_eq!(shares.taken(), 0);
        assert_eq!(read_pieces(&Shares::leaving_as_much(1_000), 11).await.0, Err(Code::TooLarge));
    }

    #[tokio::test]
    async fn a_body_that_comes_at_once_needs_no_room() {
        let mut unparsed = Shares::leaving_as_much(0).none(None);
        let time = Duration::from_secs(1);
        let read = read(UNDECLARED, Body::from("0123456789"), LIMIT, time, &mut unparsed).await;
        assert_eq!(read.ok().as_deref(), Some(&b"0123456789"[..]));
    }
}
