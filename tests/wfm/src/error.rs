//! Failures of this server itself, in words for the person who runs it.

use std::fmt;

/// A failure of the development WFM itself.
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

/// Adds the subject (most often a path) to an error.
pub(crate) trait Context<T> {
    fn context(self, subject: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for std::result::Result<T, E> {
    fn context(self, subject: impl fmt::Display) -> Result<T> {
        self.map_err(|source| Error(format!("{subject}: {source}")))
    }
}
