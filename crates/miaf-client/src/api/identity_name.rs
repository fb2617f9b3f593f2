//! Names of identities.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The name of an identity: 1 to 32 lower-case letters, digits and hyphens, the first of them a
/// letter. It is part of paths, of file names, and of labels of metrics.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdentityName(Cow<'static, str>);

/// Why a text is no [`IdentityName`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAName;

impl fmt::Display for NotAName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "the name of an identity has 1 to 32 lower-case letters, digits and hyphens, and begins with a letter",
        )
    }
}

impl std::error::Error for NotAName {}

impl IdentityName {
    /// The device's own identity.
    pub const DEVICE: Self = Self(Cow::Borrowed("device"));

    const MAX_LENGTH: usize = 32;

    /// Parses a name.
    ///
    /// # Errors
    /// [`NotAName`].
    pub fn parse(name: &str) -> Result<Self, NotAName> {
        let is_allowed = |c: u8| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'-');
        let starts_well = name.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
        let is_name = starts_well && name.len() <= Self::MAX_LENGTH && name.bytes().all(is_allowed);
        is_name.then(|| Self(Cow::Owned(name.to_owned()))).ok_or(NotAName)
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IdentityName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl std::str::FromStr for IdentityName {
    type Err = NotAName;

    fn from_str(name: &str) -> Result<Self, NotAName> {
        Self::parse(name)
    }
}

impl Serialize for IdentityName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for IdentityName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&name).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn name_fits_into_paths_and_labels() {
        for name in ["device", "a", "wfm-client", "w2", &"x".repeat(32)] {
            assert_eq!(IdentityName::parse(name).unwrap().as_str(), name);
        }
        for name in ["", ".", "..", "-a", "2a", "Device", "a/b", "a b", "ä", "a\"", "a\n", &"x".repeat(33)] {
            assert_eq!(IdentityName::parse(name), Err(NotAName), "{name:?}");
        }
        assert_eq!(IdentityName::parse("device").unwrap(), IdentityName::DEVICE);
    }
}
