//! Finds quickly that a request has no header of some name.
//!
//! A request is asked for more than twenty headers, and has a few of them. To look one up in the map costs a hash of its
//! name each time.

use http::{HeaderMap, HeaderName, HeaderValue};

/// The headers of a request.
#[derive(Clone, Copy)]
pub struct Headers<'a> {
    all: &'a HeaderMap,
    /// A bit for each name, which other names may share.
    names: u64,
}

impl<'a> Headers<'a> {
    pub fn of(all: &'a HeaderMap) -> Self {
        Self { all, names: all.keys().fold(0, |names, name| names | bit(name)) }
    }

    /// The values of all headers of this name.
    pub fn get_all(self, name: &HeaderName) -> impl DoubleEndedIterator<Item = &'a HeaderValue> + use<'a> {
        self.may_have(name).then(|| self.all.get_all(name).into_iter()).into_iter().flatten()
    }

    /// The first of these.
    pub fn get(self, name: &HeaderName) -> Option<&'a HeaderValue> {
        if self.may_have(name) { self.all.get(name) } else { None }
    }

    pub fn contains(self, name: &HeaderName) -> bool {
        self.get(name).is_some()
    }

    fn may_have(self, name: &HeaderName) -> bool {
        self.names & bit(name) != 0
    }
}

/// Names of different lengths or first letters mostly have different bits.
fn bit(name: &HeaderName) -> u64 {
    let name = name.as_str().as_bytes();
    let hash = name.len().wrapping_mul(5).wrapping_add(name.first().copied().unwrap_or(0).into());
    1 << (hash % 64)
}

#[cfg(test)]
mod tests {
    use http::header;

    use super::*;

    /// The headers that each request of a backend is asked for, and has not, are found to be absent by their bits.
    #[test]
    fn a_header_is_found_exactly_if_the_request_has_it() {
        let mut map = HeaderMap::new();
        let sent = ["host", "user-agent", "accept", "content-type", "content-length", "authorization"];
        for name in sent {
            map.append(name, "1".parse().expect("a value"));
            map.append(name, "2".parse().expect("a value"));
        }
        let names = Headers::of(&map);
        for name in sent {
            let name = name.parse().expect("a name");
            let values: Vec<_> = names.get_all(&name).collect();
            assert_eq!(values, ["1", "2"], "{name}");
            assert!(names.contains(&name) && names.get(&name).is_some_and(|value| value == "1"), "{name}");
        }
        let asked = [
            header::COOKIE,
            header::ORIGIN,
            header::UPGRADE,
            header::IF_MATCH,
            header::FORWARDED,
            header::TRANSFER_ENCODING,
            header::CONTENT_ENCODING,
            header::SEC_WEBSOCKET_KEY,
            header::SEC_WEBSOCKET_PROTOCOL,
        ];
        let looked_up: Vec<_> = asked.iter().filter(|name| names.may_have(name)).collect();
        assert!(looked_up.is_empty(), "{looked_up:?}");
        assert!(asked.iter().all(|name| !names.contains(name) && names.get_all(name).next().is_none()));
        // It shares its bit with another.
        map.append("accept", "3".parse().expect("a value"));
        let shares = HeaderName::from_static("fccept");
        let shares = [shares, HeaderName::from_static("k")];
        assert!(shares.iter().all(|name| !Headers::of(&map).contains(name)));
    }
}
