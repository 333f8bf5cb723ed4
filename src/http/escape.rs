//! Escapes the three characters that some clients take for the end of a line, in JSON that is already written.

use memchr::{memchr2, memchr2_iter};

/// Escapes U+0085, U+2028 and U+2029. JSON allows them unescaped, but only in strings, and `splitlines()` of
/// Python cuts a line there.
///
/// In ASCII this is one search for two bytes, and in other texts without them one more look at each byte.
pub fn line_ends(json: &mut Vec<u8>) {
    let Some(first) = memchr2(LEADS[0], LEADS[1], json) else { return };
    if !has_line_end(&json[first..]) {
        return;
    }
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

/// The first bytes of the three characters.
const LEADS: [u8; 2] = [0xc2, 0xe2];

/// The places where one of the characters may begin.
fn leads(json: &[u8]) -> impl Iterator<Item = usize> {
    memchr2_iter(LEADS[0], LEADS[1], json)
}

/// How many bytes are looked at before the result is asked for.
const BLOCK_BYTES: usize = 256;

/// True if one of the characters is there. A search for the first byte alone would stop at each typographic quote,
/// which begins as U+2028 does. This has no branch for each byte, so the compiler makes it look at many at once.
fn has_line_end(json: &[u8]) -> bool {
    let Some(len) = json.len().checked_sub(2) else { return false };
    let blocks = json[..len].chunks(BLOCK_BYTES).zip(json[1..=len].chunks(BLOCK_BYTES));
    json.ends_with(&[0xc2, 0x85])
        || blocks.zip(json[2..].chunks(BLOCK_BYTES)).any(|((firsts, seconds), thirds)| {
            let threes = firsts.iter().zip(seconds).zip(thirds);
            let is = |byte: u8, expected: u8| u8::from(byte == expected);
            let found = threes.fold(0, |found, ((first, second), third)| {
                let next_line = is(*first, 0xc2) & is(*second, 0x85);
                found | next_line | (is(*first, 0xe2) & is(*second, 0x80) & is(*third | 1, 0xa9))
            });
            found != 0
        })
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
