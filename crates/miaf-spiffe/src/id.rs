//! SPIFFE IDs and trust-domain names (SPIFFE-ID standard, sections 2.1 to 2.3).

use std::fmt;

use serde::{Deserialize, Serialize};

const SCHEME: &str = "spiffe://";
const MAX_ID: usize = 2048;
const MAX_TRUST_DOMAIN: usize = 255;
const DEVICE_PATH: &str = "/margo/device/";

/// A SPIFFE ID, `spiffe://<trust-domain>/<path>`, checked when made. The path has at least one
/// segment: an ID without a path names the trust domain itself, which is never a device's or a
/// program's identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    path: String,
}

impl SpiffeId {
    /// Parses the URI form.
    ///
    /// # Errors
    /// [`SpiffeIdError`] with the rule of the SPIFFE-ID standard that the text breaks.
    pub fn parse(uri: &str) -> Result<Self, SpiffeIdError> {
        if uri.len() > MAX_ID {
            return Err(SpiffeIdError::TooLong);
        }
        let rest = uri.strip_prefix(SCHEME).ok_or(SpiffeIdError::Scheme)?;
        let (name, path) = rest.split_at(rest.find('/').ok_or(SpiffeIdError::NoPath)?);
        let trust_domain = TrustDomain::parse(name)?;
        for segment in path.split('/').skip(1) {
            match segment {
                "" => return Err(SpiffeIdError::EmptySegment),
                "." | ".." => return Err(SpiffeIdError::DotSegment),
                s if !s.bytes().all(is_path_byte) => return Err(SpiffeIdError::PathCharacter),
                _ => {}
            }
        }
        Ok(Self { trust_domain, path: path.to_owned() })
    }

    /// The trust domain that issued it.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The device's UUID, when this is a logical device identity `/margo/device/<lowercase uuid>`
    /// (miaf-v0 E4).
    pub(crate) fn device_uuid(&self) -> Option<&str> {
        self.path.strip_prefix(DEVICE_PATH).filter(|uuid| is_lowercase_uuid(uuid))
    }

    /// Whether the device's UUID is of version 4 and RFC 4122 variant, which the SUP demands of the
    /// MIS. The SUP's own example is not, so the agent only warns.
    pub fn device_uuid_is_v4(&self) -> bool {
        self.device_uuid().is_some_and(|uuid| {
            let uuid = uuid.as_bytes();
            uuid.get(14) == Some(&b'4') && matches!(uuid.get(19), Some(b'8' | b'9' | b'a' | b'b'))
        })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}{}", self.trust_domain, self.path)
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = SpiffeIdError;
    fn try_from(s: String) -> Result<Self, Self::Error> {
        Self::parse(&s)
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        id.to_string()
    }
}

/// The name of a trust domain, as in `factory.example`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(String);

impl TrustDomain {
    /// Checks a bare name: lowercase letters, digits, dots, dashes and underscores, at most 255
    /// bytes.
    ///
    /// # Errors
    /// [`SpiffeIdError::TrustDomain`].
    pub fn parse(name: &str) -> Result<Self, SpiffeIdError> {
        let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if name.is_empty() || name.len() > MAX_TRUST_DOMAIN || !name.bytes().all(ok) {
            return Err(SpiffeIdError::TrustDomain);
        }
        Ok(Self(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for TrustDomain {
    type Error = SpiffeIdError;
    fn try_from(s: String) -> Result<Self, Self::Error> {
        Self::parse(&s)
    }
}

impl From<TrustDomain> for String {
    fn from(name: TrustDomain) -> Self {
        name.0
    }
}

/// Why a text is not a SPIFFE ID or trust-domain name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    /// Longer than 2,048 bytes.
    #[error("it is longer than 2048 bytes")]
    TooLong,
    /// Another scheme, or an uppercase one.
    #[error("it does not begin with \"spiffe://\"")]
    Scheme,
    /// Nothing after the trust domain.
    #[error("it has no path: it names a trust domain, not an identity in one")]
    NoPath,
    /// `//` or a trailing `/`.
    #[error("its path has an empty segment or ends in \"/\"")]
    EmptySegment,
    /// `.` or `..` as a segment.
    #[error("its path has a segment \".\" or \"..\"")]
    DotSegment,
    /// A character outside the standard's set, a percent sign included.
    #[error("its path has a character other than letters, digits, '.', '-' and '_'")]
    PathCharacter,
    /// Not a trust-domain name.
    #[error(
        "its trust domain is not a name of lowercase letters, digits, '.', '-' and '_', at most 255 bytes long"
    )]
    TrustDomain,
}

fn is_path_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')
}

fn is_lowercase_uuid(s: &str) -> bool {
    s.len() == 36
        && s.bytes().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_digit() || (b'a'..=b'f').contains(&b),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_id_is_read_back_as_written() {
        let uri = "spiffe://factory.example/margo/device/123e4567-e89b-42d3-a456-426614174000";
        let id = SpiffeId::parse(uri).unwrap();
        assert_eq!(id.to_string(), uri);
        assert_eq!(id.trust_domain().as_str(), "factory.example");
        assert_eq!(id.device_uuid(), Some("123e4567-e89b-42d3-a456-426614174000"));
        assert!(id.device_uuid_is_v4());
    }

    #[test]
    fn uuid_is_v4_by_version_and_variant() {
        for (uuid, is_v4) in [
            ("123e4567-e89b-42d3-8456-426614174000", true),
            ("123e4567-e89b-42d3-9456-426614174000", true),
            ("123e4567-e89b-42d3-a456-426614174000", true),
            ("123e4567-e89b-42d3-b456-426614174000", true),
            ("123e4567-e89b-42d3-7456-426614174000", false),
            ("123e4567-e89b-42d3-c456-426614174000", false),
            ("123e4567-e89b-52d3-a456-426614174000", false),
            ("00000000-0000-0000-0000-000000000000", false),
        ] {
            let id = SpiffeId::parse(&format!("spiffe://factory.example/margo/device/{uuid}")).unwrap();
            assert_eq!((id.device_uuid(), id.device_uuid_is_v4()), (Some(uuid), is_v4));
        }
    }

    #[test]
    fn example_of_the_sup_is_a_device_but_not_v4() {
        let id =
            SpiffeId::parse("spiffe://northstar-ida.com/margo/device/123e4567-e89b-12d3-a456-426614174000");
        let id = id.unwrap();
        assert!(id.device_uuid().is_some() && !id.device_uuid_is_v4());
    }

    #[test]
    fn forbidden_ids_are_refused_with_the_rule() {
        use SpiffeIdError as E;
        for (text, why) in [
            ("", E::Scheme),
            ("https://factory.example/a", E::Scheme),
            ("spiffe:/factory.example/a", E::Scheme),
            (" spiffe://factory.example/a", E::Scheme),
            ("SPIFFE://factory.example/a", E::Scheme),
            ("spiffe://factory.example", E::NoPath),
            ("spiffe://factory.example/", E::EmptySegment),
            ("spiffe://factory.example//", E::EmptySegment),
            ("spiffe://factory.example/a/", E::EmptySegment),
            ("spiffe://factory.example//a", E::EmptySegment),
            ("spiffe://factory.example/a/../b", E::DotSegment),
            ("spiffe://factory.example/./a", E::DotSegment),
            ("spiffe://factory.example/a/..", E::DotSegment),
            ("spiffe://factory.example/a%20b", E::PathCharacter),
            ("spiffe://factory.example/%61", E::PathCharacter),
            ("spiffe://factory.example/a b", E::PathCharacter),
            ("spiffe://factory.example/a\n", E::PathCharacter),
            ("spiffe://factory.example/a:b", E::PathCharacter),
            ("spiffe://factory.example/a~b", E::PathCharacter),
            ("spiffe://factory.example/a\\b", E::PathCharacter),
            ("spiffe://factory.example/a?q", E::PathCharacter),
            ("spiffe://factory.example/a#f", E::PathCharacter),
            ("spiffe://factory.example/ä", E::PathCharacter),
            ("spiffe://Factory.example/a", E::TrustDomain),
            ("spiffe:///a", E::TrustDomain),
            ("spiffe://user@factory.example/a", E::TrustDomain),
            ("spiffe://factory.example:443/a", E::TrustDomain),
            ("spiffe://factory.example:/a", E::TrustDomain),
            ("spiffe://factory.example?/a", E::TrustDomain),
            ("spiffe://factory%2eexample/a", E::TrustDomain),
            ("spiffe://f\u{e4}ctory.example/a", E::TrustDomain),
            ("spiffe://[2001:db8::1]/a", E::TrustDomain),
        ] {
            assert_eq!(SpiffeId::parse(text), Err(why), "{text}");
        }
    }

    #[test]
    fn allowed_ids_are_read_back_as_written() {
        for text in [
            "spiffe://a/b",
            "spiffe://factory.example/A/b.c/d-e/f_g/0",
            "spiffe://factory.example/...",
            "spiffe://factory.example/.a/b.",
            "spiffe://192.0.2.1/a",
            "spiffe://fac_tory-1.example/a",
        ] {
            assert_eq!(SpiffeId::parse(text).map(String::from), Ok(text.to_owned()));
            assert_eq!(SpiffeId::try_from(text.to_owned()), SpiffeId::parse(text));
        }
    }

    #[test]
    fn id_has_at_most_2048_bytes_and_a_trust_domain_255() {
        let id = |length| format!("{:a<length$}", "spiffe://factory.example/");
        assert!(SpiffeId::parse(&id(2048)).is_ok());
        assert_eq!(SpiffeId::parse(&id(2049)), Err(SpiffeIdError::TooLong));
        let domain = |length| TrustDomain::parse(&"a".repeat(length)).map(|name| name.as_str().len());
        assert_eq!(domain(0), Err(SpiffeIdError::TrustDomain));
        assert_eq!((domain(1), domain(255)), (Ok(1), Ok(255)));
        assert_eq!(domain(256), Err(SpiffeIdError::TrustDomain));
    }

    #[test]
    fn trust_domain_is_validated_when_read_back() {
        let stored = serde_json::to_string(&TrustDomain::parse("factory.example").unwrap()).unwrap();
        assert_eq!(stored, r#""factory.example""#);
        assert_eq!(serde_json::from_str::<TrustDomain>(&stored).unwrap().to_string(), "factory.example");
        assert!(serde_json::from_str::<TrustDomain>(r#""Factory.example""#).is_err());
        assert!(serde_json::from_str::<SpiffeId>(r#""spiffe://factory.example""#).is_err());
    }

    #[test]
    fn device_path_needs_a_lowercase_uuid() {
        for path in [
            "/margo/device/123E4567-e89b-42d3-a456-426614174000",
            "/margo/device/123e4567e89b42d3a456426614174000",
            "/margo/device/123e4567-e89b-42d3-a456-426614174000/x",
            "/margo/devices/123e4567-e89b-42d3-a456-426614174000",
            "/device/123e4567-e89b-42d3-a456-426614174000",
            "/margo/device/123e4567-e89b-42d3-a456-42661417400",
            "/margo/device/123e4567-e89b-42d3-a456-4266141740000",
            "/margo/device/123e4567-e89b-42d3-a456-42661417400g",
            "/margo/device/123e4567_e89b-42d3-a456-426614174000",
            "/margo/device/123e4567-e89b_42d3-a456-426614174000",
            "/margo/device/123e4567-e89b-42d3_a456-426614174000",
            "/margo/device/123e4567-e89b-42d3-a456_426614174000",
            "/margo/device/123e4567-e89-b42d3-a456-426614174000",
            "/margo/device",
            "/x/margo/device/123e4567-e89b-42d3-a456-426614174000",
        ] {
            let id = SpiffeId::parse(&format!("spiffe://factory.example{path}")).unwrap();
            assert_eq!(id.device_uuid(), None, "{path}");
        }
    }

    mod properties {
        use proptest::prelude::*;

        use super::*;

        proptest! {
            #![proptest_config(crate::testing::cases(500))]

            #[test]
            fn id_of_any_text_is_refused_or_read_back_as_written(
                text in prop_oneof![
                    ".{0,100}",
                    "spiffe://[a-zA-Z0-9._%:@/?#-]{0,40}",
                    "spiffe://factory.example/margo/device/[0-9a-fA-F-]{34,38}",
                    "[a-z/]{0,12}spiffe://[a-z]{0,3}/[a-z./]{0,8}",
                    "spiffe://a/[a-z]{2030,2060}",
                ],
            ) {
                if let Ok(id) = SpiffeId::parse(&text) {
                    prop_assert_eq!(id.to_string(), text.as_str());
                    prop_assert!(text.len() <= 2048 && text.is_ascii() && !text.ends_with('/'));
                    prop_assert!(!text.contains([':', '?', '#', '%', '@']) || text.matches(':').count() == 1);
                    prop_assert!(id.device_uuid().is_none_or(|uuid| uuid.len() == 36 && text.ends_with(uuid)));
                }
            }
        }
    }
}
