//! Enrollment Tokens (X31 to X39).

use crate::keys;
use crate::x509;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use development_server::{Context, Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;
use std::time::Duration;

/// The shortest secret that an operator may choose, in bytes: 128 bits (X36).
const SHORTEST_SECRET: usize = 16;
/// The longest `username:secret`, in bytes (X31).
const LONGEST: usize = 1024;

/// A token to create.
#[derive(Debug, Clone)]
pub struct TokenSpec {
    /// What it authorizes: this SPIFFE ID and no other (X34).
    pub spiffe_id: String,
    /// How long.
    pub valid: Duration,
    /// For any number of keys, where single use cannot be had (X39).
    pub reusable: bool,
    /// A random one where it is `None`; may be empty.
    pub username: Option<String>,
    /// A random one of 192 bits where it is `None`; else at least 16 bytes.
    pub secret: Option<String>,
}

impl TokenSpec {
    /// A single-use token for one hour.
    pub fn new(spiffe_id: impl Into<String>) -> Self {
        let valid = Duration::from_secs(3600);
        Self { spiffe_id: spiffe_id.into(), valid, reusable: false, username: None, secret: None }
    }
}

/// A token that was created: the one time that its secret is to be seen.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The user of HTTP Basic.
    pub username: String,
    /// The password.
    pub secret: String,
}

impl Token {
    /// `username:secret`, as an agent has it in a file.
    pub fn user_pass(&self) -> String {
        format!("{}:{}", self.username, self.secret)
    }

    /// Writes it to a file of mode 0600.
    pub fn write(&self, path: &Path) -> Result<()> {
        crate::pki::replace_with_mode(path, format!("{}\n", self.user_pass()).as_bytes(), 0o600)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token {{ username: {:?}, secret: … }}", self.username)
    }
}

/// The key that a single-use token is bound to.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Bound {
    key_sha256: String,
    /// When the first SVID was issued for it, in seconds since 1970; `None` while held for review.
    issued: Option<u64>,
}

/// A token as it is stored: its secret as a salted hash.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Stored {
    pub spiffe_id: String,
    pub username: String,
    salt: String,
    digest: String,
    expires: u64,
    reusable: bool,
    invalidated: bool,
    bound: Option<Bound>,
}

impl Stored {
    /// A new token, and what is stored of it. `now` in seconds since 1970.
    pub fn create(spec: &TokenSpec, now: u64) -> Result<(Token, Self)> {
        let username = match &spec.username {
            Some(name) => name.clone(),
            None => x509::hex(&keys::random::<6>()?),
        };
        let secret = match &spec.secret {
            Some(secret) => secret.clone(),
            None => URL_SAFE_NO_PAD.encode(keys::random::<24>()?),
        };
        if username.contains(':') || [&username, &secret].iter().any(|text| text.contains(char::is_control)) {
            return Err(Error::new("a token has no control characters, and its user no colon"));
        }
        if secret.len() < SHORTEST_SECRET || username.len() + 1 + secret.len() > LONGEST {
            return Err(Error::new(format!(
                "a secret has at least {SHORTEST_SECRET} bytes, a token at most {LONGEST}"
            )));
        }
        let salt = x509::hex(&keys::random::<16>()?);
        let expires = now.checked_add(spec.valid.as_secs()).context_or("the validity is too long")?;
        let stored = Self {
            spiffe_id: spec.spiffe_id.clone(),
            username: username.clone(),
            digest: digest(&salt, &secret),
            salt,
            expires,
            reusable: spec.reusable,
            invalidated: false,
            bound: None,
        };
        Ok((Token { username, secret }, stored))
    }

    /// The token of this user, where the secret is right; the work is the same for all that are not
    /// good (X42).
    pub fn find<'a>(all: &'a mut [Self], username: &str, secret: &str) -> Option<&'a mut Self> {
        let found = all.iter_mut().find(|one| one.username == username);
        let none = String::new();
        let salt = found.as_ref().map_or(&none, |one| &one.salt);
        let digest = digest(salt, secret);
        found.filter(|one| equal(one.digest.as_bytes(), digest.as_bytes()))
    }

    /// Why it authorizes nothing now.
    pub fn refusal(&self, now: u64) -> Option<&'static str> {
        match self {
            Self { invalidated: true, .. } => Some("the token was invalidated"),
            Self { expires, .. } if *expires <= now => Some("the token has expired"),
            _ => None,
        }
    }

    /// Why it does not authorize this key: single use counts keys, and the same key is a retry
    /// while held, and for `window` after the first issuance (X37, X38).
    pub fn refusal_of_key(&self, key_sha256: &str, now: u64, window: Duration) -> Option<&'static str> {
        match &self.bound {
            _ if self.reusable => None,
            None => None,
            Some(bound) if bound.key_sha256 != key_sha256 => Some("the token is consumed by another key"),
            Some(Bound { issued: Some(at), .. }) if at.saturating_add(window.as_secs()) <= now => {
                Some("the token is consumed, and the time for a retry is over")
            }
            Some(_) => None,
        }
    }

    /// Binds it to a key whose enrollment is held.
    pub fn hold(&mut self, key_sha256: &str) {
        self.bound.get_or_insert_with(|| Bound { key_sha256: key_sha256.to_owned(), issued: None });
    }

    /// Consumes it: an SVID was issued.
    pub fn consume(&mut self, key_sha256: &str, now: u64) {
        self.hold(key_sha256);
        if let Some(bound) = &mut self.bound {
            bound.issued.get_or_insert(now);
        }
    }

    /// Ends it (X36).
    pub fn invalidate(&mut self) {
        self.invalidated = true;
    }
}

trait ContextOr<T> {
    fn context_or(self, what: &str) -> Result<T>;
}

impl<T> ContextOr<T> for Option<T> {
    fn context_or(self, what: &str) -> Result<T> {
        self.ok_or(what).context("token")
    }
}

fn digest(salt: &str, secret: &str) -> String {
    x509::hex(&x509::sha256(format!("{salt}\0{secret}").as_bytes()))
}

/// Compares in a time that does not depend on where they differ.
fn equal(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(600);

    fn token(reusable: bool) -> Stored {
        Stored::create(&TokenSpec { reusable, ..TokenSpec::new("spiffe://a/b") }, 1000).unwrap().1
    }

    #[test]
    fn single_use_counts_keys_and_permits_retries_for_ten_minutes() {
        let mut token = token(false);
        assert_eq!(token.refusal_of_key("k1", 1000, WINDOW), None);
        token.consume("k1", 1000);
        assert_eq!(token.refusal_of_key("k1", 1599, WINDOW), None);
        token.consume("k1", 1599); // a retry does not prolong it
        assert!(token.refusal_of_key("k1", 1600, WINDOW).is_some());
        assert!(token.refusal_of_key("k2", 1001, WINDOW).is_some());
        assert_eq!(token.refusal(4599), None);
        assert!(token.refusal(4600).is_some());
    }

    #[test]
    fn held_enrollment_keeps_its_token_for_its_key() {
        let mut token = token(false);
        token.hold("k1");
        assert_eq!(token.refusal_of_key("k1", 4000, WINDOW), None);
        assert!(token.refusal_of_key("k2", 1001, WINDOW).is_some());
        token.consume("k1", 4000);
        assert_eq!(token.refusal_of_key("k1", 4599, WINDOW), None);
        assert!(token.refusal_of_key("k1", 4600, WINDOW).is_some());
    }

    #[test]
    fn reusable_token_takes_any_key() {
        let mut token = token(true);
        token.consume("k1", 1000);
        assert_eq!(token.refusal_of_key("k2", 4000, WINDOW), None);
    }

    #[test]
    fn bad_tokens_are_not_created() {
        let spec = TokenSpec::new("spiffe://a/b");
        for (username, secret) in [
            (Some("a:b"), None),
            (Some("a\n"), None),
            (None, Some("too short")),
            (None, Some("long enough but\twith a tab")),
            (None, Some(&*"x".repeat(1024))),
        ] {
            let spec = TokenSpec {
                username: username.map(str::to_owned),
                secret: secret.map(str::to_owned),
                ..spec.clone()
            };
            assert!(Stored::create(&spec, 0).is_err(), "{username:?}");
        }
        let spec = TokenSpec {
            username: Some(String::new()),
            secret: Some("sécret:with:colons".to_owned()),
            ..spec
        };
        let (token, stored) = Stored::create(&spec, 0).unwrap();
        assert_eq!(token.user_pass(), ":sécret:with:colons");
        assert!(!format!("{token:?} {stored:?}").contains("sécret"));
        assert!(Stored::find(&mut [stored.clone()], "", "sécret:with:colons").is_some());
        assert!(Stored::find(&mut [stored], "", "sécret:with:colon").is_none());
    }
}
