//! Errors with a remedy: what failed is their `Display`, and what to do is apart from it.

use std::borrow::Cow;
use std::fmt::{self, Display};

/// An error whose remedy is apart from its message.
pub trait Hint: Display {
    /// What to do, as an imperative without a full stop at its end. `None`: nothing that is known
    /// helps.
    fn hint(&self) -> Option<Cow<'_, str>>;

    /// Message and remedy as one text, for places that have one field only.
    fn with_hint(&self) -> WithHint<'_, Self> {
        WithHint(self)
    }
}

/// See [`Hint::with_hint`].
#[derive(Debug)]
pub struct WithHint<'a, E: ?Sized>(&'a E);

impl<E: Hint + ?Sized> Display for WithHint<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)?;
        self.0.hint().map_or(Ok(()), |hint| write!(f, ". {hint}"))
    }
}
