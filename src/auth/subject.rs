//! Subjects: the names of users, which no two issuers share.

use std::{fmt, sync::Arc};

/// The longest subject, with its prefix.
pub const MAX_SUBJECT_BYTES: usize = 255;

/// True if a text can name a user.
pub fn is_subject(text: &str) -> bool {
    (1..=MAX_SUBJECT_BYTES).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// The subject that this prefix and the text of an issuer make. If the text cannot name a user, there is none.
pub fn subject(prefix: Option<&str>, text: &str) -> Option<Arc<str>> {
    let Some(prefix) = prefix else { return is_subject(text).then(|| text.into()) };
    let whole = [prefix, text].concat();
    (!text.is_empty() && is_subject(&whole)).then(|| whole.into())
}

/// The owner of a name space for subjects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// All `[[jwt]]` with this `iss`, or without one.
    Issuer(Option<String>),
    Hook,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Issuer(Some(iss)) => write!(f, "[[jwt]] with iss {iss:?}"),
            Self::Issuer(None) => f.write_str("[[jwt]] without iss, or --jwt-secret,"),
            Self::Hook => f.write_str("[hook]"),
        }
    }
}

/// The prefixes of all owners.
#[derive(Clone, Debug, Default)]
pub struct Prefixes(Vec<(Owner, Option<Box<str>>)>);

impl Prefixes {
    /// Adds the prefix of an owner.
    ///
    /// # Errors
    /// If two users could get the same subject, or one user two.
    pub fn add(&mut self, owner: Owner, prefix: Option<&str>) -> Result<(), String> {
        if prefix.is_some_and(|prefix| !is_prefix(prefix)) {
            return Err(
                "sub-prefix: expected text without `.`, `*`, `$` and white space, as in \"shop-\"".into()
            );
        }
        for (other, theirs) in &self.0 {
            let theirs = theirs.as_deref();
            match (*other == owner, prefix, theirs) {
                (true, ours, theirs) if ours == theirs => {}
                (true, ..) => return Err(format!("sub-prefix: every {other} needs the same one")),
                (false, None, None) => {
                    return Err(format!(
                        "its users could have the subjects of {other} too: give one of them a sub-prefix"
                    ));
                }
                (false, Some(ours), Some(theirs)) if ours.starts_with(theirs) || theirs.starts_with(ours) => {
                    return Err(format!("sub-prefix: {ours:?} and {theirs:?} of {other} begin alike"));
                }
                (false, ..) => {}
            }
        }
        self.0.push((owner, prefix.map(Into::into)));
        Ok(())
    }

    /// True if a subject without a prefix begins like those with one.
    pub fn are_forged_by(&self, text: &str) -> bool {
        self.0.iter().any(|(_, prefix)| prefix.as_deref().is_some_and(|prefix| text.starts_with(prefix)))
    }
}

fn is_prefix(text: &str) -> bool {
    let is_wrong = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '.' | '*' | '$');
    (1..=MAX_SUBJECT_BYTES).contains(&text.len()) && !text.contains(is_wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(all: &[(Owner, Option<&str>)]) -> Result<(), String> {
        let mut prefixes = Prefixes::default();
        all.iter().try_for_each(|(owner, prefix)| prefixes.add(owner.clone(), *prefix))
    }

    fn of(iss: &str) -> Owner {
        Owner::Issuer(Some(iss.to_owned()))
    }

    #[test]
    fn a_subject_has_1_to_255_bytes_and_no_control_characters() {
        assert_eq!(subject(None, "u1").as_deref(), Some("u1"));
        assert_eq!(subject(Some("shop-"), "u1").as_deref(), Some("shop-u1"));
        assert!(subject(None, &"x".repeat(255)).is_some() && subject(None, &"x".repeat(256)).is_none());
        assert!(subject(Some("shop-"), &"x".repeat(251)).is_none(), "the prefix counts");
        for wrong in ["", "a\nb", "\0", "a\u{85}"] {
            assert_eq!(subject(None, wrong), None, "{wrong:?}");
            assert_eq!(subject(Some("shop-"), wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn all_owners_but_one_need_a_prefix() {
        assert!(add(&[(of("a"), None), (of("b"), Some("b-")), (Owner::Hook, Some("h-"))]).is_ok());
        assert!(add(&[(of("a"), None), (of("a"), None)]).is_ok(), "one issuer with two keys");
        for wrong in [
            [(of("a"), None), (of("b"), None)],
            [(of("a"), None), (Owner::Issuer(None), None)],
            [(of("a"), None), (Owner::Hook, None)],
            [(of("a"), Some("x")), (of("a"), None)],
            [(of("a"), Some("x")), (of("b"), Some("x"))],
            [(of("a"), Some("x")), (of("b"), Some("xy"))],
            [(of("a"), Some("xy")), (Owner::Hook, Some("x"))],
        ] {
            assert!(add(&wrong).is_err(), "{wrong:?}");
        }
        for wrong in ["", "a.", "*", "$a", "a b", "a\n", &"x".repeat(256)] {
            assert!(add(&[(of("a"), Some(wrong))]).is_err(), "{wrong:?}");
        }
    }
}
