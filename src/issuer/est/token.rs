//! The enrollment token: a credential of one enrollment (X31, X43).

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use zeroize::Zeroizing;

use crate::hint::Hint;
use miaf_spiffe::digest::{Hex, sha256};

/// What is shown in place of the token.
const REMOVED: &str = "[token removed]";
/// What is shown in place of a text that has a part of the token.
const WITHHELD: &str = "(not shown: it has a part of the enrollment token)";
/// Bytes of the secret that are as good as all of it: a shorter part tells little.
const TELLING: usize = 8;

/// Enrollment token: `username:secret`, the user-pass string of HTTP Basic (RFC 7617). Its content is
/// wiped when it is dropped, and is in no message.
#[derive(Clone)]
pub struct EnrollmentToken(Zeroizing<String>);

impl EnrollmentToken {
    /// Limit on the bytes of a token.
    pub const MAX_TOKEN: usize = 1024;

    /// Parses the content of a file or credential. One line break at its end is dropped. The split is
    /// at the first colon: the user name may be empty, the secret may not.
    ///
    /// # Errors
    /// [`TokenError`], which says nothing of the content.
    pub fn parse(content: &[u8]) -> Result<Self, TokenError> {
        let content = content.strip_suffix(b"\n").unwrap_or(content);
        let content = content.strip_suffix(b"\r").unwrap_or(content);
        if content.is_empty() {
            return Err(TokenError::Empty);
        }
        if content.len() > Self::MAX_TOKEN {
            return Err(TokenError::TooLong);
        }
        let text = str::from_utf8(content).map_err(|_| TokenError::NotUtf8)?;
        if text.starts_with('\u{feff}') {
            return Err(TokenError::ByteOrderMark);
        }
        if text.chars().any(char::is_control) {
            return Err(TokenError::ControlCharacter);
        }
        match text.split_once(':') {
            None => Err(TokenError::NoColon),
            Some((_, "")) => Err(TokenError::NoSecret),
            Some(_) => Ok(Self(Zeroizing::new(text.to_owned()))),
        }
    }

    /// The token itself: for the private state, and for nothing that a person or a program reads.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Salted hash, by which a token is known again after it was wiped (X44).
    pub fn hash(&self, salt: &[u8; 16]) -> [u8; 32] {
        let mut salted = Zeroizing::new(Vec::with_capacity(salt.len() + self.0.len()));
        salted.extend_from_slice(salt);
        salted.extend_from_slice(self.0.as_bytes());
        sha256(&salted)
    }

    /// Value of the header `Authorization` (RFC 7617 section 2).
    pub(super) fn authorization(&self) -> Zeroizing<String> {
        let mut value = Zeroizing::new(String::with_capacity(8 + self.0.len().div_ceil(3) * 4));
        value.push_str("Basic ");
        BASE64.encode_string(self.0.as_bytes(), &mut value);
        value
    }

    /// A text of the server without the token, its secret, and the base64 of both: a server may echo
    /// the request. Where a part of them is left, in another form say, nothing of the text is shown.
    pub(super) fn removed_from<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let secret = self.0.split_once(':').map_or(self.0.as_str(), |(_, secret)| secret);
        let base64 = Zeroizing::new(BASE64.encode(self.0.as_bytes()));
        let base64_of_secret = Zeroizing::new(BASE64.encode(secret));
        let encodings = [base64.trim_end_matches('='), base64_of_secret.trim_end_matches('=')];
        let mut text = Cow::Borrowed(text);
        // The longest first: the secret is a part of the token.
        for sought in [&**self.0, &base64, encodings[0], &base64_of_secret, encodings[1], secret] {
            if text.contains(sought) {
                text = Cow::Owned(text.replace(sought, REMOVED));
            }
        }
        let squeezed = |text: &str| -> Zeroizing<Vec<u8>> {
            Zeroizing::new(
                text.bytes().filter(u8::is_ascii_alphanumeric).map(|b| b.to_ascii_lowercase()).collect(),
            )
        };
        let has_part = |shown: &[u8], sought: &[u8], telling: usize| {
            let parts: HashSet<&[u8]> = sought.windows(telling).collect();
            shown.windows(telling).any(|there| parts.contains(there))
        };
        let shown = squeezed(&text);
        let is_told = |sought: &str| has_part(&shown, &squeezed(sought), TELLING);
        // As numbers: a hex dump, or the escapes of JSON, URLs and HTML.
        let digits = Zeroizing::new(text.replace("\\u00", "").replace("\\x", "").replace("&#x", ""));
        let is_dumped = |sought: &str| {
            let sought = Zeroizing::new(Hex(sought.as_bytes()).to_string());
            has_part(&squeezed(&digits), sought.as_bytes(), 2 * TELLING)
        };
        let sought = [secret, encodings[0], encodings[1]];
        if sought.into_iter().any(|sought| is_told(sought) || is_dumped(sought)) {
            WITHHELD.into()
        } else {
            text
        }
    }
}

impl fmt::Debug for EnrollmentToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EnrollmentToken")
    }
}

/// Why a content is no enrollment token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Nothing, or a line break alone.
    #[error("the enrollment token is empty")]
    Empty,
    /// Over the limit.
    #[error("the enrollment token is longer than {} bytes", EnrollmentToken::MAX_TOKEN)]
    TooLong,
    /// Not UTF-8.
    #[error("the enrollment token is not UTF-8 text")]
    NotUtf8,
    /// U+FEFF at the beginning.
    #[error("the enrollment token begins with a byte order mark, as some editors write it")]
    ByteOrderMark,
    /// A tab, a second line, a NUL.
    #[error("the enrollment token has a control character, such as a tab or a second line (RFC 7617)")]
    ControlCharacter,
    /// No user name.
    #[error("the enrollment token has no colon between a user name and a secret")]
    NoColon,
    /// Nothing after the first colon.
    #[error("the enrollment token has nothing after its first colon, where the secret is")]
    NoSecret,
}

impl Hint for TokenError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        Some("Write the token of the operator of the MIS, username:secret, as one line of UTF-8".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str) -> EnrollmentToken {
        EnrollmentToken::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn token_is_split_at_its_first_colon() {
        for (content, want) in [
            ("user:secret", "user:secret"),
            ("user:secret\n", "user:secret"),
            ("user:secret\r\n", "user:secret"),
            (":secret", ":secret"),
            ("u:s:e:c", "u:s:e:c"),
            ("u::", "u::"),
            ("ü ser: s ", "ü ser: s "),
            ("e\u{301}:\u{e9}", "e\u{301}:\u{e9}"), // not normalized
        ] {
            assert_eq!(token(content).expose(), want);
        }
        let longest = format!("u:{}", "s".repeat(EnrollmentToken::MAX_TOKEN - 2));
        assert_eq!(token(&format!("{longest}\n")).expose(), longest);
    }

    #[test]
    fn token_of_another_form_is_refused_without_being_shown() {
        use TokenError as E;
        let long = format!("u:{}", "s".repeat(EnrollmentToken::MAX_TOKEN - 1));
        for (content, why) in [
            (&b""[..], E::Empty),
            (b"\n", E::Empty),
            (b"secret1", E::NoColon),
            (b"secret1:", E::NoSecret),
            (b"secret1:\n", E::NoSecret),
            (b"u:secret1\n\n", E::ControlCharacter),
            (b"u:sec\tret1", E::ControlCharacter),
            (b"u:secret1\0", E::ControlCharacter),
            (b"u:secret1\x7f", E::ControlCharacter),
            (b"u:secret1\xc2\x85", E::ControlCharacter),
            (b"u:secret1\xff", E::NotUtf8),
            (b"\xff\xfeu\0:\0s\0", E::NotUtf8),
            (b"\xef\xbb\xbfu:secret1", E::ByteOrderMark),
            (long.as_bytes(), E::TooLong),
        ] {
            let error = EnrollmentToken::parse(content).unwrap_err();
            assert_eq!(error, why, "{:?}", String::from_utf8_lossy(content));
            crate::hint::assert_apart(&error);
            assert!(!error.to_string().contains("secret1"), "{error}");
        }
        assert_eq!(format!("{:?}", token("u:secret1")), "EnrollmentToken");
    }

    #[test]
    fn authorization_is_that_of_rfc_7617() {
        assert_eq!(*token("Aladdin:open sesame").authorization(), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert_eq!(*token("test:123£").authorization(), "Basic dGVzdDoxMjPCow==");
    }

    #[test]
    fn hash_of_a_token_depends_on_salt_and_token() {
        let hash = token("u:s").hash(&[1; 16]);
        assert_eq!(hash, token("u:s\n").hash(&[1; 16]));
        assert_ne!(hash, token("u:s").hash(&[2; 16]));
        assert_ne!(hash, token("u:t").hash(&[1; 16]));
    }

    #[test]
    fn token_is_removed_from_what_a_server_says() {
        let token = token("dev-7:Zx9-kQ2_vB7mNw4tYr81");
        let base64 = token.authorization().strip_prefix("Basic ").unwrap().to_owned();
        let url_encoded = base64.replace('=', "%3D");
        let escaped = |of: fn(u8) -> String| token.expose().bytes().map(of).collect::<String>();
        for (text, want) in [
            ("bad credentials for dev-7", "bad credentials for dev-7".to_owned()),
            ("got dev-7:Zx9-kQ2_vB7mNw4tYr81, no", format!("got {REMOVED}, no")),
            ("got Zx9-kQ2_vB7mNw4tYr81", format!("got {REMOVED}")),
            (&format!("Authorization: Basic {base64}"), format!("Authorization: Basic {REMOVED}")),
            (&format!("h={url_encoded}&x"), format!("h={REMOVED}%3D&x")),
            // Not as a whole, or written otherwise.
            ("got Zx9-kQ2_vB7…", WITHHELD.to_owned()),
            ("got ZX9-KQ2_VB7MNW4TYR81", WITHHELD.to_owned()),
            ("got Zx9%2DkQ2%5FvB7mNw4tYr81", WITHHELD.to_owned()),
            (&base64[..16], WITHHELD.to_owned()),
            (&escaped(|byte| format!("\\u{byte:04x}")), WITHHELD.to_owned()),
            (&escaped(|byte| format!("\\u{byte:04X}")), WITHHELD.to_owned()),
            (&escaped(|byte| format!("%{byte:02X}")), WITHHELD.to_owned()),
            (&escaped(|byte| format!("&#x{byte:x};")), WITHHELD.to_owned()),
            (&escaped(|byte| format!("{byte:02x} ")), WITHHELD.to_owned()),
            ("", String::new()),
        ] {
            let shown = token.removed_from(text);
            assert_eq!(shown, want, "{text}");
        }
    }
}
