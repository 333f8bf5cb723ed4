//! The offer of `permessage-deflate` in a handshake, and its answer (RFC 7692 §7.1).

use http::{HeaderMap, HeaderValue, header};

/// The answer: neither side keeps anything from one message to the next.
const ACCEPTED: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
const ACCEPTED_WITH_WINDOW: &str =
    "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=15";

/// The answer to the first offer that the server can accept.
pub fn accept(headers: &HeaderMap) -> Option<HeaderValue> {
    let values =
        headers.get_all(header::SEC_WEBSOCKET_EXTENSIONS).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).find_map(answer).map(HeaderValue::from_static)
}

/// The answer to one offer. `None` if it is another extension, if it is malformed, or if it asks for a smaller window:
/// the bytes of a message are the same for all clients, and are made with the whole window.
fn answer(offer: &str) -> Option<&'static str> {
    let mut parts = offer.split(';').map(str::trim);
    if !parts.next()?.eq_ignore_ascii_case("permessage-deflate") {
        return None;
    }
    let mut seen = Vec::new();
    for part in parts {
        let (name, value) = match part.split_once('=') {
            Some((name, value)) => (name.trim_end(), Some(value.trim_start().trim_matches('"'))),
            None => (part, None),
        };
        let is_valid = match (name, value) {
            (
                "server_no_context_takeover" | "client_no_context_takeover" | "client_max_window_bits",
                None,
            ) => true,
            ("client_max_window_bits", Some(bits)) => is_window(bits),
            ("server_max_window_bits", Some(bits)) => bits == "15",
            _ => false,
        };
        if !is_valid || seen.contains(&name) {
            return None;
        }
        seen.push(name);
    }
    Some(if seen.contains(&"server_max_window_bits") { ACCEPTED_WITH_WINDOW } else { ACCEPTED })
}

/// A number from 8 to 15, without a zero before it.
fn is_window(bits: &str) -> bool {
    matches!(bits, "8" | "9" | "10" | "11" | "12" | "13" | "14" | "15")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(offer: &str) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert(header::SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_str(offer).expect("a value"));
        accept(&headers).map(|value| value.to_str().expect("ASCII").to_owned())
    }

    #[test]
    fn the_first_offer_that_can_be_kept_is_accepted_without_context() {
        for offer in [
            "permessage-deflate",
            "permessage-deflate; client_max_window_bits",
            "permessage-deflate; client_max_window_bits=\"10\"; server_no_context_takeover",
            "x-other; a=1, Permessage-Deflate;client_no_context_takeover",
            "permessage-deflate; server_max_window_bits=10, permessage-deflate",
        ] {
            assert_eq!(accepted(offer).as_deref(), Some(ACCEPTED), "{offer}");
        }
        let offer = "permessage-deflate; server_max_window_bits=15";
        assert_eq!(accepted(offer).as_deref(), Some(ACCEPTED_WITH_WINDOW));
    }

    #[test]
    fn an_offer_that_the_server_cannot_keep_or_read_is_declined() {
        for offer in [
            "",
            "x-webkit-deflate-frame",
            "permessage-deflate; server_max_window_bits=14",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; server_no_context_takeover=1",
            "permessage-deflate; client_max_window_bits=16",
            "permessage-deflate; client_max_window_bits=08",
            "permessage-deflate; client_no_context_takeover; client_no_context_takeover",
            "permessage-deflate; unknown",
        ] {
            assert_eq!(accepted(offer), None, "{offer}");
        }
    }
}
