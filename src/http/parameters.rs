//! The query parameters of each resource, and the names that a client probably meant for one of them.
//!
//! A parameter with an unknown name is ignored: caches and trackers add some. But `lsat=5` or `topics=a` would
//! silently read or publish something else than the client asked for.

use super::{asked::ADDED_CURSORS, problem::Problem};

/// The parameters of a resource.
pub struct Parameters {
    known: &'static [&'static [&'static str]],
    /// Names of other places in a request, which mean nothing in the query, and the right place.
    misplaced: &'static [(&'static str, &'static str)],
}

/// The parameter that any resource may have. It is removed before the query is read.
const CREDENTIAL: &[&str] = &["token"];
const READING: &[&str] = &["after", "last", "since", "transport", "format", "wait", "limit", "presence"];
const TOPICS: &str = "topic, which may be repeated";

/// `GET /topics/{topic}`.
pub const TOPIC: Parameters = Parameters {
    known: &[CREDENTIAL, READING, &ADDED_CURSORS, &["before"]],
    misplaced: &[("topics", "the path"), ("mine", "GET /events?mine"), EVENT, DATA, CONTENT_TYPE],
};

/// `GET /events` and `POST /events`.
pub const EVENTS: Parameters = Parameters {
    known: &[CREDENTIAL, READING, &ADDED_CURSORS, &["topic", "mine"]],
    misplaced: &[
        ("topics", TOPICS),
        ("before", "GET /topics/{topic}?before=, for one topic"),
        EVENT,
        DATA,
        CONTENT_TYPE,
    ],
};
// `event` looks like a filter, and without a refusal the client would read everything.
const EVENT: (&str, &str) =
    ("event", "POST /topics/{topic}?event=, to publish (no option reads the messages of one event alone)");
const DATA: (&str, &str) = ("data", "the body of POST /topics/{topic}, to publish");
const CONTENT_TYPE: (&str, &str) =
    ("content_type", "the header Content-Type of POST /topics/{topic}, to publish");

/// `POST /topics/{topic}`.
pub const PUBLISH: Parameters = Parameters {
    known: &[CREDENTIAL, &["event", "exclude", "ephemeral", "by"]],
    misplaced: &[
        ("topic", "the path"),
        ("topics", "the path"),
        ("data", "the body"),
        ("content_type", "the header Content-Type"),
        ("encoding", "the header Content-Encoding"),
        ("idempotency_key", "the header Idempotency-Key"),
        ("if_match", "the header If-Match"),
    ],
};

/// `POST /publish`.
pub const PUBLISH_MANY: Parameters = Parameters {
    known: &[CREDENTIAL, &["ordered"]],
    misplaced: &[
        ("topic", ELEMENT),
        ("topics", ELEMENT),
        ("data", ELEMENT),
        ("event", ELEMENT),
        ("content_type", ELEMENT),
        ("encoding", ELEMENT),
        ("idempotency_key", ELEMENT),
        ("if_match", ELEMENT),
        ("exclude", ELEMENT),
        ("by", ELEMENT),
        ("ephemeral", ELEMENT),
    ],
};
const ELEMENT: &str = "an element of the body";

/// `GET /topics`.
pub const LIST: Parameters = Parameters { known: &[CREDENTIAL, &["after", "limit"]], misplaced: &[] };

/// `GET /topics/{topic}/presence`.
pub const MEMBERS: Parameters =
    Parameters { known: &[CREDENTIAL, &["after", "limit"]], misplaced: &[("topic", "the path")] };

/// `GET /connections`.
pub const CONNECTIONS: Parameters = Parameters {
    known: &[CREDENTIAL, &["sub", "topic", "after", "limit"]],
    misplaced: &[("topics", "topic"), SUBJECT],
};
// A request whose guard or filter is ignored would concern the connections of all.
const SUBJECT: (&str, &str) = ("subject", "sub");

/// `PUT /connections/{id}/topics/{topic}`.
pub const ADDED: Parameters = Parameters {
    known: &[CREDENTIAL, &["after", "last", "since", "sub", "presence"]],
    misplaced: &[("topic", "the path"), ("topics", "the path"), SUBJECT],
};

/// `DELETE /connections/{id}/topics/{topic}` and `DELETE /connections/{id}`.
pub const REMOVED: Parameters = Parameters {
    known: &[CREDENTIAL, &["sub"]],
    misplaced: &[("topic", "the path"), ("topics", "the path"), SUBJECT],
};

/// `DELETE /subjects/{sub}`.
pub const END_SUBJECT: Parameters =
    Parameters { known: &[CREDENTIAL, &["refuse"]], misplaced: &[("sub", "the path")] };

/// `GET /subjects/{sub}/topics`.
pub const SUBJECT_TOPICS: Parameters = Parameters { known: &[CREDENTIAL], misplaced: &[("sub", "the path")] };

/// `PUT` and `DELETE /subjects/{sub}/topics/{topic}`. A start has another refusal.
pub const SUBJECT_TOPIC: Parameters = Parameters {
    known: &[CREDENTIAL, &["after", "last", "since"]],
    misplaced: &[("topic", "the path"), ("topics", "the path"), ("sub", "the path")],
};

/// The parameters of all resources.
const ALL: [&Parameters; 12] = [
    &TOPIC,
    &EVENTS,
    &PUBLISH,
    &PUBLISH_MANY,
    &LIST,
    &MEMBERS,
    &CONNECTIONS,
    &ADDED,
    &REMOVED,
    &END_SUBJECT,
    &SUBJECT_TOPICS,
    &SUBJECT_TOPIC,
];

/// True for a parameter that may be written in a log: one that some resource knows, and no credential.
pub fn is_harmless(name: &str) -> bool {
    let known = ALL.into_iter().flat_map(|all| all.known.iter());
    known.copied().flatten().any(|known| *known == name && !CREDENTIAL.contains(known))
}

/// How many unknown names are compared with the known ones.
const MAX_COMPARED: usize = 64;

impl Parameters {
    /// # Errors
    /// If a name was probably meant for a known one, which the error names.
    pub fn check<'a>(&self, names: impl Iterator<Item = &'a str>) -> Result<(), Problem> {
        let known = || self.known.iter().copied().flatten().copied();
        let unknown = names.filter(|name| !known().any(|known| known == *name));
        for name in unknown.take(MAX_COMPARED) {
            let plain = name.split('[').next().unwrap_or_default();
            if let Some((_, place)) =
                self.misplaced.iter().find(|(field, _)| field.eq_ignore_ascii_case(plain))
            {
                return Err(Problem::bad_request(format!("unknown parameter {name}; did you mean {place}?")));
            }
            let near = known().filter_map(|known| Some((errors(plain, known)?, known)));
            if let Some((_, meant)) = near.min_by_key(|(errors, _)| *errors) {
                return Err(Problem::bad_request(format!("unknown parameter {name}; did you mean {meant}?")));
            }
        }
        Ok(())
    }
}

/// How many typing errors lead from `known` to `name`, whatever the case of letters, if it is one, or two in a
/// long name. Two errors would turn `last` into `lang`, and `since` into `nonce`. One would turn `by` into any letter.
fn errors(name: &str, known: &str) -> Option<usize> {
    let most = match known.len() {
        ..3 => 0,
        3..6 => 1,
        _ => 2,
    };
    // This costs nothing for long names. No letter of a known name has more than one byte.
    if name.len() > known.len() + 4 * most {
        return None;
    }
    let errors = strsim::osa_distance(&name.to_ascii_lowercase(), &known.to_ascii_lowercase());
    (errors <= most).then_some(errors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(parameters: &Parameters, name: &str) -> Option<String> {
        parameters.check([name].into_iter()).err().map(|problem| problem.detail)
    }

    /// The access log lacked `sub` and `refuse`: two resources were not in the list.
    #[test]
    fn the_list_has_the_parameters_of_each_resource() {
        let source = include_str!("parameters.rs");
        let (source, _) = source.split_once("#[cfg(test)]").expect("tests");
        assert_eq!(source.matches(": Parameters =").count(), ALL.len());
        for name in ["sub", "refuse", "topic", "mine", "by", "ordered"] {
            assert!(is_harmless(name), "{name}");
        }
        assert!(!is_harmless("token") && !is_harmless("subject"));
    }

    #[test]
    fn a_typing_error_is_refused_with_the_name_that_was_meant() {
        for (wrong, meant) in [
            ("lsat", "last"),
            ("las", "last"),
            ("Last", "last"),
            ("afer", "after"),
            ("sicne", "since"),
            ("limits", "limit"),
            ("formta", "format"),
            ("tranpsort", "transport"),
            ("transprot_", "transport"),
            ("last-event-id", "Last-Event-ID"),
            ("lasteventid", "lastEventId"),
            ("topci", "topic"),
            ("topic[]", "topic"),
            ("topic[0]", "topic"),
            ("topics[]", "topic"),
            ("topics", "topic"),
            ("tokne", "token"),
        ] {
            let detail = refused(&EVENTS, wrong).unwrap_or_else(|| panic!("{wrong} is ignored"));
            assert!(detail.contains(wrong) && detail.contains(meant), "{wrong}: {detail}");
        }
        for (wrong, place) in
            [("data", "the body"), ("evnet", "event"), ("idempotency_key", "Idempotency-Key")]
        {
            let detail = refused(&PUBLISH, wrong).unwrap_or_else(|| panic!("{wrong} is ignored"));
            assert!(detail.contains(place), "{wrong}: {detail}");
        }
        assert!(refused(&PUBLISH_MANY, "exclude").is_some() && refused(&PUBLISH_MANY, "order").is_some());
    }

    #[test]
    fn any_other_unknown_name_is_ignored() {
        for name in [
            "_",
            "t",
            "v",
            "ts",
            "utm_source",
            "fbclid",
            "gclid",
            "nonce",
            "lang",
            "page",
            "size",
            "cache",
            "end",
            "nonsense",
            "y",
            "my",
            "",
            "[]",
            "timestamp",
            "x-amz-date",
        ] {
            assert_eq!(refused(&EVENTS, name), None, "{name}");
            assert_eq!(refused(&PUBLISH, name), None, "{name}");
        }
    }
}
