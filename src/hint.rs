//! Errors with a remedy: what failed is their `Display`, and what to do is apart from it.

use std::borrow::Cow;
use std::fmt::{self, Display};

use miaf_client::ClientError;
use miaf_spiffe::pem::PemError;
use miaf_spiffe::svid::SvidError;

/// An error whose remedy is apart from its message.
///
/// The message of an error that wraps another is its own words and the other's message. Its hint is
/// the one of the two that says more: there is never a second one.
pub trait Hint: Display {
    /// What to do, as an imperative without a full stop at its end. `None`: nothing that is known
    /// helps.
    fn hint(&self) -> Option<Cow<'_, str>>;

    /// Message and remedy as one text, for places that have one field only.
    fn with_hint(&self) -> WithHint<'_>
    where
        Self: Sized,
    {
        WithHint(self)
    }
}

/// See [`Hint::with_hint`].
pub struct WithHint<'a>(&'a dyn Hint);

impl Display for WithHint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)?;
        self.0.hint().map_or(Ok(()), |hint| write!(f, ". {hint}"))
    }
}

/// Why something failed, and apart from it what to do. Displays the cause alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reason {
    pub(crate) what: String,
    pub(crate) hint: Option<String>,
}

impl Reason {
    /// Message and hint of an error.
    pub fn of(error: &dyn Hint) -> Self {
        Self { what: error.to_string(), hint: error.hint().map(Cow::into_owned) }
    }

    /// Adds what to do.
    #[must_use]
    pub fn with_hint_text(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl<T: Into<String>> From<T> for Reason {
    fn from(what: T) -> Self {
        Self { what: what.into(), hint: None }
    }
}

impl Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl Hint for Reason {
    fn hint(&self) -> Option<Cow<'_, str>> {
        self.hint.as_deref().map(Cow::Borrowed)
    }
}

impl Hint for PemError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        PemError::hint(self)
    }
}

impl Hint for SvidError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        SvidError::hint(self).map(Cow::Borrowed)
    }
}

impl Hint for ClientError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        ClientError::hint(self)
    }
}

/// Asserts that the hint is an imperative, and that the message has no part of it.
#[cfg(test)]
pub(crate) fn assert_apart(error: &dyn Hint) {
    let message = error.to_string();
    assert!(!message.ends_with('.'), "{message}");
    let Some(hint) = error.hint() else { return };
    assert!(hint.starts_with(char::is_uppercase), "{hint}");
    assert!(!hint.ends_with(['.', ' ']), "{hint}");
    assert!(!message.contains(&*hint), "{message}");
    for command in ["chmod ", "chown ", "systemctl ", "openssl ", "Try: ", "correct it"] {
        assert!(!message.contains(command), "{message}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hint_is_shown_once_after_the_message() {
        let reason = Reason::from("the file is gone").with_hint_text("Restore it");
        assert_eq!(reason.to_string(), "the file is gone");
        assert_eq!(reason.with_hint().to_string(), "the file is gone. Restore it");
        assert_eq!(Reason::of(&reason), reason);
        assert_eq!(Reason::from("x").with_hint().to_string(), "x");
    }
}
