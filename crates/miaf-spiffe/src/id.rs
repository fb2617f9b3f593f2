//! SPIFFE IDs and trust-domain names (SPIFFE-ID standard, sections 2.1 to 2.3).

use std::fmt;

use serde::{Deserialize, Serialize};

const SCHEME: &str = "spiffe://";
const MAX_ID: usize = 2048;
const MAX_TRUST_DOMAIN: usize = 255;
const DEVICE_PATH: &str = "/margo/device/";
const WFM_PATH: &str = "/margo/wfm/";
const CLIENT_PATH: &str = "/client/";

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

    /// The SPIFFE ID of a WFM, `spiffe://<trust domain>/margo/wfm/<wfm-id>` (margo-now N2).
    ///
    /// # Errors
    /// [`SpiffeIdError`] when `wfm_id` is not exactly one segment of a path.
    pub fn wfm(trust_domain: &TrustDomain, wfm_id: &str) -> Result<Self, SpiffeIdError> {
        if wfm_id.contains('/') {
            return Err(SpiffeIdError::PathCharacter);
        }
        Self::parse(&format!("{SCHEME}{trust_domain}{WFM_PATH}{wfm_id}"))
    }

    /// The SPIFFE ID of a client of this WFM, `<this>/client/<wfm-client-id>` (margo-now N2).
    ///
    /// # Errors
    /// [`SpiffeIdError`] when `client_id` is not exactly one segment of a path.
    pub fn client_of_wfm(&self, client_id: &str) -> Result<Self, SpiffeIdError> {
        if client_id.contains('/') {
            return Err(SpiffeIdError::PathCharacter);
        }
        Self::parse(&format!("{self}{CLIENT_PATH}{client_id}"))
    }

    /// The name that the path has under a Margo profile (miaf-v0 E4, margo-now N2). `None`: it has
    /// the form of none of them.
    #[must_use]
    pub fn margo_name(&self) -> Option<MargoName<'_>> {
        if let Some(uuid) = self.path.strip_prefix(DEVICE_PATH) {
            return is_lowercase_uuid(uuid).then_some(MargoName::Device { uuid });
        }
        let mut segments = self.path.strip_prefix(WFM_PATH)?.split('/');
        match (segments.next(), segments.next(), segments.next(), segments.next()) {
            (Some(wfm_id), None, None, None) => Some(MargoName::Wfm { wfm_id }),
            (Some(wfm_id), Some("client"), Some(client_id), None) => {
                Some(MargoName::WfmClient { wfm_id, client_id })
            }
            _ => None,
        }
    }

    /// The SPIFFE ID of the one WFM that the WFM Client of this name trusts: the name without
    /// `/client/…` (margo-now N10). `None`: this does not name a WFM Client.
    #[must_use]
    pub fn wfm_of_client(&self) -> Option<Self> {
        let Some(MargoName::WfmClient { client_id, .. }) = self.margo_name() else { return None };
        let path = self.path.strip_suffix(client_id)?.strip_suffix(CLIENT_PATH)?;
        Some(Self { trust_domain: self.trust_domain.clone(), path: path.to_owned() })
    }

    /// Whether this is the name of a device whose UUID is of version 4 and RFC 4122 variant, which
    /// the SUP demands of the MIS. The SUP's own example is not, so the agent only warns.
    pub fn device_uuid_is_v4(&self) -> bool {
        let Some(MargoName::Device { uuid }) = self.margo_name() else { return false };
        let uuid = uuid.as_bytes();
        uuid.get(14) == Some(&b'4') && matches!(uuid.get(19), Some(b'8' | b'9' | b'a' | b'b'))
    }
}

/// The parts of a SPIFFE ID's path under a Margo profile. Every part is one segment of a path; they
/// are compared exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MargoName<'a> {
    /// `/margo/device/<lowercase uuid>` (miaf-v0 E4).
    Device {
        /// 36 characters.
        uuid: &'a str,
    },
    /// `/margo/wfm/<wfm-id>` (margo-now N2).
    Wfm {
        /// The segment behind `wfm`.
        wfm_id: &'a str,
    },
    /// `/margo/wfm/<wfm-id>/client/<wfm-client-id>` (margo-now N2).
    WfmClient {
        /// The segment behind `wfm`.
        wfm_id: &'a str,
        /// The segment behind `client`.
        client_id: &'a str,
    },
}

/// The kind of a Margo name that an identity of this device may have: it follows from the way it is
/// enrolled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NameKind {
    /// [`MargoName::Device`].
    Device,
    /// [`MargoName::WfmClient`].
    WfmClient,
}

impl NameKind {
    /// Whether an ID is a name of this kind.
    #[must_use]
    pub fn includes(self, id: &SpiffeId) -> bool {
        match self {
            Self::Device => matches!(id.margo_name(), Some(MargoName::Device { .. })),
            Self::WfmClient => matches!(id.margo_name(), Some(MargoName::WfmClient { .. })),
        }
    }

    /// What such a name is the name of, as a noun phrase.
    #[must_use]
    pub const fn in_words(self) -> &'static str {
        match self {
            Self::Device => "a device",
            Self::WfmClient => "a WFM Client",
        }
    }

    /// The form of such an ID.
    #[must_use]
    pub const fn form(self) -> &'static str {
        match self {
            Self::Device => "spiffe://<trust domain>/margo/device/<lowercase uuid>",
            Self::WfmClient => "spiffe://<trust domain>/margo/wfm/<wfm-id>/client/<client-id>",
        }
    }
}

const DEVICE_WORDS: &str = "a device (/margo/device/<lowercase uuid>)";
const WFM_CLIENT_WORDS: &str = "a WFM Client (/margo/wfm/<wfm-id>/client/<wfm-client-id>)";

impl fmt::Display for NameKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Device => DEVICE_WORDS,
            Self::WfmClient => WFM_CLIENT_WORDS,
        })
    }
}

/// What an ID names, as a noun phrase with the form of its path.
pub(crate) fn name_in_words(id: &SpiffeId) -> &'static str {
    match id.margo_name() {
        Some(MargoName::Device { .. }) => DEVICE_WORDS,
        Some(MargoName::Wfm { .. }) => "a WFM (/margo/wfm/<wfm-id>)",
        Some(MargoName::WfmClient { .. }) => WFM_CLIENT_WORDS,
        None => "of no form that Margo defines",
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}{}", self.trust_domain, self.path)
    }
}

impl std::str::FromStr for SpiffeId {
    type Err = SpiffeIdError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::parse(s)
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
        assert_eq!(id.margo_name(), Some(MargoName::Device { uuid: "123e4567-e89b-42d3-a456-426614174000" }));
        assert!(id.device_uuid_is_v4());
    }

    #[test]
    fn client_of_a_wfm_is_one_segment_below_it() {
        let wfm = SpiffeId::parse("spiffe://factory.example/margo/wfm/wfm-1").unwrap();
        let client = wfm.client_of_wfm("line-7").unwrap();
        assert_eq!(client.wfm_of_client(), Some(wfm.clone()));
        for bad in ["", "a/b", "..", "a~b", "%41"] {
            assert!(wfm.client_of_wfm(bad).is_err(), "{bad}");
        }
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
            assert_eq!(id.margo_name(), Some(MargoName::Device { uuid }));
            assert_eq!(id.device_uuid_is_v4(), is_v4, "{uuid}");
        }
    }

    #[test]
    fn example_of_the_sup_is_a_device_but_not_v4() {
        let id =
            SpiffeId::parse("spiffe://northstar-ida.com/margo/device/123e4567-e89b-12d3-a456-426614174000");
        let id = id.unwrap();
        assert!(id.margo_name().is_some() && !id.device_uuid_is_v4());
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
            assert_eq!(id.margo_name(), None, "{path}");
            assert!(!id.device_uuid_is_v4(), "{path}");
        }
    }

    #[test]
    fn wfm_and_its_clients_are_named_by_whole_segments() {
        use MargoName::{Wfm, WfmClient};
        for (path, name) in [
            ("/margo/wfm/w", Some(Wfm { wfm_id: "w" })),
            ("/margo/wfm/client", Some(Wfm { wfm_id: "client" })),
            ("/margo/wfm/w/client/c", Some(WfmClient { wfm_id: "w", client_id: "c" })),
            ("/margo/wfm/W-1_a.b/client/...", Some(WfmClient { wfm_id: "W-1_a.b", client_id: "..." })),
            ("/margo/wfm/client/client/client", Some(WfmClient { wfm_id: "client", client_id: "client" })),
            ("/margo/wfm", None),
            ("/margo/wfm/w/client", None),
            ("/margo/wfm/w/c", None),
            ("/margo/wfm/w/Client/c", None),
            ("/margo/wfm/w/clients/c", None),
            ("/margo/wfm/w/client/c/d", None),
            ("/margo/wfm/w/x/client/c", None),
            ("/margo/wfms/w/client/c", None),
            ("/margo/WFM/w/client/c", None),
            ("/Margo/wfm/w/client/c", None),
            ("/wfm/w/client/c", None),
            ("/x/margo/wfm/w/client/c", None),
            ("/margo", None),
        ] {
            let id = SpiffeId::parse(&format!("spiffe://factory.example{path}")).unwrap();
            assert_eq!(id.margo_name(), name, "{path}");
            let is_client = matches!(name, Some(WfmClient { .. }));
            assert_eq!(NameKind::WfmClient.includes(&id), is_client, "{path}");
            assert!(!NameKind::Device.includes(&id), "{path}");
            let wfm = path.split("/client/").next().unwrap();
            let wfm = is_client.then(|| SpiffeId::parse(&format!("spiffe://factory.example{wfm}")).unwrap());
            if path != "/margo/wfm/client/client/client" {
                assert_eq!(id.wfm_of_client(), wfm, "{path}");
            }
        }
        let id = SpiffeId::parse("spiffe://f/margo/wfm/client/client/client").unwrap();
        assert_eq!(id.wfm_of_client(), SpiffeId::parse("spiffe://f/margo/wfm/client").ok());
        let device = "spiffe://factory.example/margo/device/123e4567-e89b-42d3-a456-426614174000";
        let device = SpiffeId::parse(device).unwrap();
        assert!(NameKind::Device.includes(&device) && !NameKind::WfmClient.includes(&device));
        assert_eq!(device.wfm_of_client(), None);
    }

    #[test]
    fn wfm_id_is_exactly_one_segment() {
        use SpiffeIdError as E;
        let domain = TrustDomain::parse("factory.example").unwrap();
        let wfm = |id: &str| SpiffeId::wfm(&domain, id).map(String::from);
        for id in ["w", "wfm-1", "W_1.a", "...", "client"] {
            assert_eq!(wfm(id), Ok(format!("spiffe://factory.example/margo/wfm/{id}")));
        }
        for (id, why) in [
            ("", E::EmptySegment),
            (".", E::DotSegment),
            ("..", E::DotSegment),
            ("/", E::PathCharacter),
            ("w/", E::PathCharacter),
            ("w/client/c", E::PathCharacter),
            ("a~b", E::PathCharacter),
            ("%41", E::PathCharacter),
            ("w 1", E::PathCharacter),
            ("w\n", E::PathCharacter),
            (&"w".repeat(2048), E::TooLong),
        ] {
            assert_eq!(wfm(id), Err(why), "{id}");
        }
    }

    #[test]
    fn names_are_described_with_the_form_of_their_path() {
        for (path, words) in [
            (
                "margo/device/123e4567-e89b-42d3-a456-426614174000",
                "a device (/margo/device/<lowercase uuid>)",
            ),
            ("margo/wfm/w", "a WFM (/margo/wfm/<wfm-id>)"),
            ("margo/wfm/w/client/c", "a WFM Client (/margo/wfm/<wfm-id>/client/<wfm-client-id>)"),
            ("margo/wfm", "of no form that Margo defines"),
        ] {
            assert_eq!(name_in_words(&SpiffeId::parse(&format!("spiffe://f/{path}")).unwrap()), words);
        }
        assert_eq!(NameKind::Device.to_string(), DEVICE_WORDS);
        assert_eq!(NameKind::WfmClient.to_string(), WFM_CLIENT_WORDS);
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
                    "spiffe://factory.example/margo/device/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
                    "spiffe://factory.example/margo/wfm(/[a-c.~%]{0,3}|/client){0,4}",
                    "spiffe://f/margo/wfm/[A-Za-z0-9._-]{1,9}(/client/[A-Za-z0-9._-]{1,9})?",
                    "[a-z/]{0,12}spiffe://[a-z]{0,3}/[a-z./]{0,8}",
                    "spiffe://a/[a-z]{2030,2060}",
                ],
            ) {
                if let Ok(id) = SpiffeId::parse(&text) {
                    prop_assert_eq!(id.to_string(), text.as_str());
                    prop_assert!(text.len() <= 2048 && text.is_ascii() && !text.ends_with('/'));
                    prop_assert!(!text.contains([':', '?', '#', '%', '@']) || text.matches(':').count() == 1);
                    let path = format!("/{}", text.splitn(4, '/').nth(3).unwrap_or_default());
                    let wfm = id.wfm_of_client().map(String::from);
                    match id.margo_name() {
                        Some(MargoName::Device { uuid }) => {
                            prop_assert_eq!(path, format!("/margo/device/{uuid}"));
                            prop_assert!(uuid.len() == 36 && wfm.is_none());
                        }
                        Some(MargoName::Wfm { wfm_id }) => {
                            prop_assert_eq!(path, format!("/margo/wfm/{wfm_id}"));
                            prop_assert_eq!(SpiffeId::wfm(id.trust_domain(), wfm_id), Ok(id.clone()));
                            prop_assert!(wfm.is_none());
                        }
                        Some(MargoName::WfmClient { wfm_id, client_id }) => {
                            prop_assert_eq!(path, format!("/margo/wfm/{wfm_id}/client/{client_id}"));
                            let expected = SpiffeId::wfm(id.trust_domain(), wfm_id).map(String::from).ok();
                            prop_assert_eq!(wfm, expected);
                        }
                        None => prop_assert!(wfm.is_none()),
                    }
                }
            }
        }
    }
}
