//! The content codings of request bodies (RFC 9110 §8.4.1), which are decoded while a body is read.

use std::{io, pin::Pin};

use async_compression::tokio::bufread::{GzipDecoder, ZlibDecoder};
use axum::{BoxError, body::Body};
use futures_util::TryStreamExt;
use http::{HeaderMap, header};
use tokio::io::AsyncRead;
use tokio_util::io::{ReaderStream, StreamReader};

use super::{headers::Headers, problem::Problem};

/// How many decoded bytes are handed on at once.
const PIECE_BYTES: usize = 16 << 10;

/// The kind of an error of the connection. No decoder makes one of it.
const LOST: io::ErrorKind = io::ErrorKind::ConnectionAborted;

/// A coding that the server decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    Gzip,
    /// The format of zlib (RFC 1950), as RFC 9110 defines the name.
    Deflate,
}

/// The body is not in the coding that it declares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the body is cut off, or is not in its Content-Encoding; send it whole, in the coding that this header names"
)]
pub struct Undecodable;

/// The coding of a body, if it has one.
///
/// # Errors
/// `unsupported_media_type` for another coding, and for several of them: each multiplies the work that one byte
/// of the client can cause.
pub fn of(headers: &HeaderMap) -> Result<Option<Coding>, Problem> {
    let mut coding = None;
    for value in Headers::of(headers).get_all(&header::CONTENT_ENCODING) {
        for name in value.to_str().unwrap_or("?").split(',') {
            let named = match name.trim().to_ascii_lowercase().as_str() {
                "" | "identity" => continue,
                "gzip" | "x-gzip" => Coding::Gzip,
                "deflate" => Coding::Deflate,
                _ => return Err(Problem::unsupported_coding()),
            };
            if coding.replace(named).is_some() {
                return Err(Problem::unsupported_coding());
            }
        }
    }
    Ok(coding)
}

impl Coding {
    /// The body without this coding. Its errors have [`Undecodable`] as their source if the coding is broken.
    pub fn decode(self, body: Body) -> Body {
        let coded = StreamReader::new(body.into_data_stream().map_err(|error| io::Error::new(LOST, error)));
        // Another stream of the same format may follow, as gzip allows. Anything else after it is an error, and
        // is not silently left out.
        let plain: Pin<Box<dyn AsyncRead + Send>> = match self {
            Self::Gzip => {
                let mut decoder = GzipDecoder::new(coded);
                decoder.multiple_members(true);
                Box::pin(decoder)
            }
            Self::Deflate => {
                let mut decoder = ZlibDecoder::new(coded);
                decoder.multiple_members(true);
                Box::pin(decoder)
            }
        };
        let pieces = ReaderStream::with_capacity(plain, PIECE_BYTES);
        Body::from_stream(pieces.map_err(|error| match error.kind() {
            LOST => BoxError::from(error),
            _ => Undecodable.into(),
        }))
    }
}
