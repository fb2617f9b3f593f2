//! What can go wrong on a server's own side (never what a client did wrong).

use std::fmt;

/// A failure of a development server itself, in words for the person who runs it.
#[derive(Debug)]
pub struct Error(String);

/// Shorthand used throughout the crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error with these words.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

macro_rules! from {
    ($($source:ty => $what:literal),* $(,)?) => {
        $(impl From<$source> for Error {
            fn from(source: $source) -> Self {
                Self(format!("{}: {source}", $what))
            }
        })*
    };
}

from! {
    std::io::Error => "input/output",
    der::Error => "ASN.1",
    const_oid::Error => "object identifier",
    ring::error::KeyRejected => "key rejected",
    rustls::Error => "TLS",
    webpki::Error => "certificate",
    serde_json::Error => "JSON",
}

impl From<ring::error::Unspecified> for Error {
    fn from(_: ring::error::Unspecified) -> Self {
        Self::new("the cryptographic library failed without saying why")
    }
}

/// Adds the subject (most often a path) to an error.
pub trait Context<T> {
    /// The same error behind this subject and a colon.
    ///
    /// # Errors
    ///
    /// Where this is one.
    fn context(self, subject: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for std::result::Result<T, E> {
    fn context(self, subject: impl fmt::Display) -> Result<T> {
        self.map_err(|source| Error(format!("{subject}: {source}")))
    }
}
