//! Text from outside, made safe to store, log and print. Whatever a peer, a file or a library's
//! error says passes through [`Excerpt`] before it becomes part of a message.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::ops::Deref;

use serde::{Deserialize, Deserializer, Serialize};

/// A beginning of a text from outside, on one line: at most as many characters as its maker chose,
/// and none that a terminal or a journal would obey.
///
/// White space is a single space, whatever it was. Control characters (Unicode `Cc`) and invisible
/// characters that reorder or hide what follows them become U+FFFD, so that they are seen. What was
/// cut off shows as `…`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Excerpt(String);

impl Excerpt {
    /// The first `limit` characters of what `text` displays. Formatting stops there: a long text
    /// costs no more than a short one.
    pub fn of(text: impl fmt::Display, limit: usize) -> Self {
        let mut writer = Writer { line: String::new(), left: limit, space: false, cut: false };
        // An error says that the limit was reached, or that `text` cannot be displayed any further.
        let _ = write!(writer, "{text}");
        if writer.cut {
            writer.line.push('…');
        }
        Self(writer.line)
    }

    /// The beginning of `bytes`, read as UTF-8; what is none becomes U+FFFD.
    pub fn of_bytes(bytes: &[u8], limit: usize) -> Self {
        // A character has four bytes at most. One more shows that something was cut off.
        let begin =
            bytes.get(..bytes.len().min(limit.saturating_add(1).saturating_mul(4))).unwrap_or_default();
        Self::of(String::from_utf8_lossy(begin), limit)
    }

    /// The text as a plain `String`.
    pub fn into_string(self) -> String {
        self.0
    }
}

impl Deref for Excerpt {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl From<Excerpt> for String {
    fn from(excerpt: Excerpt) -> Self {
        excerpt.0
    }
}

/// `text` as a terminal may have it: as [`Excerpt`], but of any length, and with its line breaks.
/// For documents that another program wrote and that are printed whole.
pub fn printable(text: &str) -> Cow<'_, str> {
    let harmful = |c| c != '\n' && is_obeyed(c);
    if text.contains(harmful) {
        Cow::Owned(text.chars().map(|c| if harmful(c) { '\u{fffd}' } else { c }).collect())
    } else {
        Cow::Borrowed(text)
    }
}

/// A JSON text that serde_json has written in its compact form, as a terminal may have it. It is
/// the same document: in that form, what a terminal would obey can only stand in a string, and is
/// escaped there. Another JSON text may have such white space outside of its strings, tabs say,
/// where an escape is no JSON.
pub fn printable_json(json: &str) -> Cow<'_, str> {
    let harmful = |c| c != '\n' && is_obeyed(c);
    if !json.contains(harmful) {
        return Cow::Borrowed(json);
    }
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if !harmful(c) {
            text.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = write!(text, "\\u{unit:04x}"); // writing to a String cannot fail
        }
    }
    Cow::Owned(text)
}

/// Reads a text from a file or a peer as an [`Excerpt`] of at most `LIMIT` characters, for a member
/// of type `String`.
///
/// # Errors
/// Errors of the deserializer.
pub fn short<'de, D: Deserializer<'de>, const LIMIT: usize>(deserializer: D) -> Result<String, D::Error> {
    String::deserialize(deserializer).map(|text| Excerpt::of(text, LIMIT).into())
}

/// Like [`short`], for a member that may be missing.
///
/// # Errors
/// Errors of the deserializer.
pub fn short_if_any<'de, D: Deserializer<'de>, const LIMIT: usize>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.map(|text| Excerpt::of(text, LIMIT).into()))
}

/// Puts a formatted text on one line and stops at the limit.
struct Writer {
    line: String,
    /// Characters.
    left: usize,
    /// White space that is written once something follows it.
    space: bool,
    cut: bool,
}

impl Write for Writer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|c| self.write_char(c))
    }

    fn write_char(&mut self, c: char) -> fmt::Result {
        if c.is_whitespace() {
            self.space = !self.line.is_empty();
            return Ok(());
        }
        if self.space {
            self.push(' ')?;
            self.space = false;
        }
        self.push(if is_obeyed(c) { '\u{fffd}' } else { c })
    }
}

impl Writer {
    fn push(&mut self, c: char) -> fmt::Result {
        self.left = self.left.checked_sub(1).ok_or_else(|| {
            self.cut = true;
            fmt::Error
        })?;
        self.line.push(c);
        Ok(())
    }
}

/// Characters that change how others are shown instead of being shown: controls, line and paragraph
/// separators, bidirectional and other invisible formatting (UAX #9, Unicode TR #36 section 2.5),
/// tags.
fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::cases;

    #[test]
    fn excerpts_are_short_and_on_one_line() {
        let noise = format!("  a\u{1b}[31m\r\n\t b{}", "x".repeat(2_000_000));
        let excerpt = Excerpt::of(&noise, 1024);
        assert!(excerpt.starts_with("a\u{fffd}[31m bx") && excerpt.ends_with("x…"), "{excerpt}");
        assert_eq!(excerpt.chars().count(), 1025);
        assert_eq!(&*Excerpt::of("not found\n", 9), "not found");
        assert_eq!(&*Excerpt::of("not found\n!", 9), "not found…");
        assert_eq!(&*Excerpt::of("", 0), "");
    }

    #[test]
    fn excerpt_never_cuts_inside_a_character() {
        assert_eq!(&*Excerpt::of_bytes("äöü".as_bytes(), 2), "äö…");
        assert_eq!(&*Excerpt::of_bytes("äöü".as_bytes(), 3), "äöü");
        assert_eq!(&*Excerpt::of_bytes(b"a\xffb", 9), "a\u{fffd}b");
    }

    #[test]
    fn formatting_stops_at_the_limit() {
        struct Endless;
        impl fmt::Display for Endless {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                loop {
                    f.write_str("x")?;
                }
            }
        }
        assert_eq!(&*Excerpt::of(Endless, 3), "xxx…");
    }

    #[test]
    fn documents_keep_their_lines() {
        assert!(matches!(printable("ä\nb\n"), Cow::Borrowed(_)));
        assert_eq!(printable("a\u{1b}]0;owned\u{7}\nb\u{202e}"), "a\u{fffd}]0;owned\u{fffd}\nb\u{fffd}");
    }

    #[test]
    fn printable_json_is_the_same_document() {
        assert!(matches!(printable_json("{\"a\":\"ä\"}\n"), Cow::Borrowed(_)));
        let text = "{\"a\":\"\u{9b}2J\u{7f}\u{202e}\u{e0041}\"}\n";
        let printed = printable_json(text);
        assert_eq!(printed, "{\"a\":\"\\u009b2J\\u007f\\u202e\\udb40\\udc41\"}\n");
        let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(read(&printed), read(text));
    }

    proptest! {
        #![proptest_config(cases(256))]

        #[test]
        fn excerpt_has_no_control_characters(text in any::<String>(), limit in 0usize..64) {
            let excerpt = Excerpt::of(&text, limit);
            prop_assert!(!excerpt.contains(is_obeyed));
            prop_assert!(excerpt.chars().count() <= limit + 1);
            prop_assert!(!printable(&text).contains(|c| c != '\n' && is_obeyed(c)));
        }
    }
}
