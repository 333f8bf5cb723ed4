//! The console at `/` with its files, its Content-Security-Policy, and the browser client.

use std::sync::LazyLock;

use async_compression::{Level, tokio::write::GzipEncoder};
use aws_lc_rs::digest;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use tokio::io::AsyncWriteExt;

use super::{
    gzip,
    problem::{Code, Problem},
};

/// Allows the scripts and the style of this server alone, only connections to it, and no text that becomes markup.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";
const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

/// A file of `web/`, as it stands in the repository. Only the version of the server and a link are put into the page.
struct File {
    name: &'static str,
    kind: &'static str,
    text: String,
    zipped: Vec<u8>,
    /// Changes with the text, so that a browser asks for the file again only to hear that it has the newest.
    tag: HeaderValue,
}

impl File {
    fn new(name: &'static str, kind: &'static str, text: &str) -> Self {
        let text = text.replace("{version}", env!("CARGO_PKG_VERSION"));
        let hash = digest::digest(&digest::SHA256, text.as_bytes());
        let hash: String = hash.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        let tag = HeaderValue::try_from(format!("\"{hash}\"")).expect("quoted hexadecimal digits");
        let zipped = zip(text.as_bytes());
        Self { name, kind, text, zipped, tag }
    }

    /// The tag of the compressed text: equal in meaning, and not byte for byte (RFC 9110 §8.8.1).
    fn weak_tag(&self) -> HeaderValue {
        let tag = self.tag.to_str().expect("quoted hexadecimal digits");
        HeaderValue::try_from(format!("W/{tag}")).expect("quoted hexadecimal digits")
    }

    fn answer(&'static self, request: &HeaderMap) -> Response {
        let known = request.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        let mut tags =
            known.flat_map(|value| value.split(',')).map(|tag| tag.trim().trim_start_matches("W/"));
        // A proxy that compresses the text weakens the tag.
        let is_known = tags.any(|tag| tag == "*" || tag.as_bytes() == self.tag.as_bytes());
        let is_zipped = gzip::is_asked(request);
        let mut response = match is_known {
            true => StatusCode::NOT_MODIFIED.into_response(),
            false if is_zipped => self.zipped.as_slice().into_response(),
            false => self.text.as_str().into_response(),
        };
        let headers = response.headers_mut();
        if !is_known {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.kind));
        }
        gzip::note(headers, is_zipped && !is_known);
        headers.insert(header::ETAG, if is_zipped { self.weak_tag() } else { self.tag.clone() });
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        if self.kind == HTML {
            headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
            headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        }
        response
    }
}

fn zip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzipEncoder::with_quality(Vec::new(), Level::Best);
    let done = async {
        encoder.write_all(text).await?;
        encoder.shutdown().await
    };
    done.now_or_never().and_then(Result::ok).expect("a vector takes everything at once");
    encoder.into_inner()
}

static PAGE: LazyLock<File> = LazyLock::new(|| {
    let documents = documents(env!("CARGO_PKG_REPOSITORY"));
    File::new("index.html", HTML, &include_str!("../../web/index.html").replace("{documents}", &documents))
});

/// The server has no documents but `/openapi.json`. The page links to the repository, if `Cargo.toml` names one.
fn documents(repository: &str) -> String {
    match repository {
        "" => "<span>The documents are in the folder docs of the source</span>".to_owned(),
        _ => format!("<a href=\"{repository}\">Source and documents</a>"),
    }
}

/// The browser client, and the modules that it loads.
static CLIENT: LazyLock<[File; 3]> = LazyLock::new(|| {
    [
        File::new("rejoin.js", SCRIPT, include_str!("../../web/rejoin.js")),
        File::new("rejoin-presence.js", SCRIPT, include_str!("../../web/rejoin-presence.js")),
        File::new("rejoin-shared.js", SCRIPT, include_str!("../../web/rejoin-shared.js")),
    ]
});

macro_rules! console {
    ($($name:literal $kind:ident),* $(,)?) => {
        [$(File::new($name, $kind, include_str!(concat!("../../web/console/", $name)))),*]
    };
}

/// The files that the page loads.
static CONSOLE: LazyLock<[File; 15]> = LazyLock::new(|| {
    console![
        "api.js" SCRIPT,
        "connections.js" SCRIPT,
        "console.css" STYLE,
        "dom.js" SCRIPT,
        "history.js" SCRIPT,
        "lane.js" SCRIPT,
        "ledger.js" SCRIPT,
        "main.js" SCRIPT,
        "network.js" SCRIPT,
        "numbers.js" SCRIPT,
        "presence.js" SCRIPT,
        "publish.js" SCRIPT,
        "sse.js" SCRIPT,
        "timeline.js" SCRIPT,
        "topics.js" SCRIPT,
    ]
});

/// `GET /`.
pub fn show(request: &HeaderMap) -> Response {
    PAGE.answer(request)
}

/// `GET /rejoin.js` and the modules that it loads, as they stand in the repository.
pub fn client(path: &str, request: &HeaderMap) -> Response {
    let name = path.trim_start_matches('/');
    CLIENT.iter().find(|file| file.name == name).unwrap_or(&CLIENT[0]).answer(request)
}

/// `GET /console/{file}`.
pub fn console(name: Option<&str>, request: &HeaderMap) -> Result<Response, Problem> {
    let found = CONSOLE.iter().find(|file| Some(file.name) == name);
    found
        .map(|file| file.answer(request))
        .ok_or_else(|| Problem::new(Code::NotFound, "the console has no such file"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_links_to_the_repository_or_says_where_the_documents_are() {
        assert_eq!(
            documents("https://git.example/rejoin"),
            "<a href=\"https://git.example/rejoin\">Source and documents</a>"
        );
        let page = &PAGE.text;
        assert!(page.contains(&documents(env!("CARGO_PKG_REPOSITORY"))) && !page.contains("{documents}"));
    }
}
