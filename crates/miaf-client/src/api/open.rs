//! Words of the API: closed sets that a newer agent may extend.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use miaf_spiffe::text::Excerpt;

/// Characters of a word that this program does not know.
const MAX_UNKNOWN: usize = 64;

/// A closed set of words, as this version knows it.
pub trait Word: Copy + PartialEq + 'static {
    /// Every word.
    const ALL: &'static [Self];

    /// The word as it is written.
    fn as_str(self) -> &'static str;
}

/// A word of the set `T`, or one that a newer agent has added to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Open<T> {
    /// A word of the set.
    Known(T),
    /// Another one. It has a bounded length and no character that a terminal would obey.
    Unknown(Excerpt),
}

impl<T: Word> Open<T> {
    /// Finds the word in its set.
    pub fn parse(text: &str) -> Self {
        let known = T::ALL.iter().find(|known| known.as_str() == text);
        known.map_or_else(|| Self::Unknown(Excerpt::of(text, MAX_UNKNOWN)), |known| Self::Known(*known))
    }

    /// The word, if it is in the set.
    pub fn known(&self) -> Option<T> {
        match self {
            Self::Known(known) => Some(*known),
            Self::Unknown(_) => None,
        }
    }

    /// The word as it is written.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Known(known) => known.as_str(),
            Self::Unknown(word) => word,
        }
    }
}

impl<T> From<T> for Open<T> {
    fn from(known: T) -> Self {
        Self::Known(known)
    }
}

impl<T: PartialEq> PartialEq<T> for Open<T> {
    fn eq(&self, other: &T) -> bool {
        matches!(self, Self::Known(known) if known == other)
    }
}

impl<T: Word> fmt::Display for Open<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl<T: Word> Serialize for Open<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de, T: Word> Deserialize<'de> for Open<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self::parse(&text))
    }
}

/// Declares a set of words: an enum, its [`Word`] and its `Display`.
macro_rules! words {
    (
        $(#[$attribute:meta])*
        pub enum $name:ident {
            $($(#[$of_variant:meta])* $variant:ident = $word:literal,)+
        }
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$of_variant])* $variant,)+
        }

        impl $name {
            /// The word as it is written.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl $crate::api::Word for $name {
            const ALL: &'static [Self] = &[$(Self::$variant),+];

            fn as_str(self) -> &'static str {
                Self::as_str(self)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}
pub(super) use words;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn word_of_a_newer_agent_is_kept_and_harmless() {
        let state: Open<State> = serde_json::from_str(r#""active""#).unwrap();
        assert_eq!(state, State::Active);
        let text = format!("\"hibernating\\u001b[2J{}\"", "x".repeat(1000));
        let newer: Open<State> = serde_json::from_str(&text).unwrap();
        assert_eq!(newer.known(), None);
        assert_ne!(newer, State::Active);
        assert!(newer.as_str().starts_with("hibernating\u{fffd}[2J"), "{newer}");
        assert!(newer.as_str().chars().count() <= MAX_UNKNOWN + 1);
        assert_eq!(serde_json::to_string(&Open::from(State::Blocked)).unwrap(), r#""blocked""#);
    }
}
