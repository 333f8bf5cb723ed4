//! Escapes the three characters that some clients take for the end of a line, in JSON that is already written.

use memchr::memchr2_iter;

/// Escapes U+0085, U+2028 and U+2029. JSON allows them unescaped, but only in strings, and `splitlines()` of
/// Python cuts a line there.
///
/// In a text without them this is one search for two bytes.
pub fn line_ends(json: &mut Vec<u8>) {
    let Some(first) = leads(json).find(|at| escape_of(&json[*at..]).is_some()) else { return };
    let rest = json.split_off(first);
    let mut copied = 0;
    for at in leads(&rest) {
        if let Some((escape, len)) = escape_of(&rest[at..]) {
            json.extend_from_slice(&rest[copied..at]);
            json.extend_from_slice(escape.as_bytes());
            copied = at + len;
        }
    }
    json.extend_from_slice(&rest[copied..]);
}

/// The places where one of the characters may begin.
fn leads(json: &[u8]) -> impl Iterator<Item = usize> {
    memchr2_iter(0xc2, 0xe2, json)
}

/// The escape of the character at the beginning of `json`, and its length in UTF-8.
fn escape_of(json: &[u8]) -> Option<(&'static str, usize)> {
    match json {
        [0xc2, 0x85, ..] => Some(("\\u0085", 2)),
        [0xe2, 0x80, 0xa8, ..] => Some(("\\u2028", 3)),
        [0xe2, 0x80, 0xa9, ..] => Some(("\\u2029", 3)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn escaped(text: &str) -> String {
        let mut json = text.as_bytes().to_vec();
        line_ends(&mut json);
        String::from_utf8(json).expect("UTF-8")
    }

    #[test]
    fn the_three_characters_are_escaped_and_no_others() {
        assert_eq!(
            escaped("\u{2028}é\u{85}\u{a0}«\u{2029}\u{2029}–\u{2030}\u{85}"),
            "\\u2028é\\u0085\u{a0}«\\u2029\\u2029–\u{2030}\\u0085"
        );
        for same in
            ["", "plain", "“quotes” — and … more", "«\u{a0}»", "日本語", "\u{2027}\u{202a}\u{84}\u{86}"]
        {
            assert_eq!(escaped(same), same);
        }
    }
}
