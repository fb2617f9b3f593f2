//! The discovery document (miaf-v0 D3 to D6).

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;
use url::Url;

use crate::hint::Hint;
use crate::uri;
use miaf_spiffe::json::{self, JsonError};
use miaf_spiffe::text::Excerpt;
use miaf_spiffe::{SpiffeId, SpiffeIdError, TrustDomain};

/// URN of the one bootstrap method of v0.
pub const FACTORY_CERT_MTLS: &str = "urn:margo:bootstrap:factory-cert-mtls:v1";
/// URI of the one SVID profile of v0.
pub const X509_SVID_V1: &str = "https://margo.org/profiles/spiffe/x509-svid/v1";

/// Limit on the bytes of a URI: it is part of most messages.
const MAX_URI: usize = 2048;
/// Limit on the characters of a list in a message.
const MAX_LISTED: usize = 400;
/// Limit on the characters of one of its elements.
const MAX_ELEMENT: usize = 100;

/// Discovery document: the addresses of a trust domain's MIS and bundle, and what the MIS offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovery {
    trust_domain: TrustDomain,
    trust_bundle_uri: Url,
    base_uri: Url,
    methods: Listed,
    profiles: Listed,
}

/// List of the document in which one element matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Listed {
    holds_ours: bool,
    shown: Excerpt,
}

impl Listed {
    /// Parses an array of strings without storing all of them.
    fn read(list: &RawValue, ours: &'static str) -> Result<Self, serde_json::Error> {
        Self::seeking(ours).deserialize(&mut serde_json::Deserializer::from_str(list.get()))
    }

    fn seeking(ours: &'static str) -> SeekListed {
        SeekListed { ours, holds_ours: false, shown: String::new() }
    }
}

struct SeekListed {
    ours: &'static str,
    holds_ours: bool,
    /// The beginning of the list.
    shown: String,
}

impl<'de> DeserializeSeed<'de> for SeekListed {
    type Value = Listed;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Listed, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for SeekListed {
    type Value = Listed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of strings")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Listed, A::Error> {
        while let Some(element) = seq.next_element::<String>()? {
            self.holds_ours |= element == self.ours;
            if self.shown.len() < MAX_LISTED {
                let comma = if self.shown.is_empty() { "" } else { ", " };
                self.shown.push_str(comma);
                self.shown.push_str(&Excerpt::of(element, MAX_ELEMENT));
            }
        }
        Ok(Listed { holds_ours: self.holds_ours, shown: Excerpt::of(self.shown, MAX_LISTED) })
    }
}

impl Discovery {
    /// Parses the JSON document. Unknown members are ignored (miaf-v0 D4).
    ///
    /// # Errors
    /// [`DiscoveryError`]: a member that D3 requires is missing, mistyped, or not what it claims to
    /// be.
    pub fn from_json(body: &str) -> Result<Self, DiscoveryError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Document<'a> {
            trust_domain: String,
            trust_bundle_uri: String,
            margo_identity_service_base_uri: String,
            #[serde(borrow)]
            supported_bootstrap_methods: &'a RawValue,
            #[serde(borrow)]
            svid_profiles_supported: &'a RawValue,
        }
        let document: Document<'_> = json::read(body.as_bytes())?;
        let listed = |member: &'static str, list: &RawValue, ours| {
            Listed::read(list, ours).map_err(|e| DiscoveryError::List { member, why: e.into() })
        };
        Ok(Self {
            trust_domain: TrustDomain::parse(&document.trust_domain).map_err(DiscoveryError::TrustDomain)?,
            trust_bundle_uri: https("trustBundleUri", &document.trust_bundle_uri)?,
            base_uri: https("margoIdentityServiceBaseUri", &document.margo_identity_service_base_uri)
                .and_then(base)?,
            methods: listed(
                "supportedBootstrapMethods",
                document.supported_bootstrap_methods,
                FACTORY_CERT_MTLS,
            )?,
            profiles: listed("svidProfilesSupported", document.svid_profiles_supported, X509_SVID_V1)?,
        })
    }

    /// The trust domain that it describes.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// URL of the trust bundle.
    pub fn trust_bundle_uri(&self) -> &Url {
        &self.trust_bundle_uri
    }

    /// Whether the factory certificate is accepted as a bootstrap credential (miaf-v0 D5).
    pub fn accepts_factory_certificate(&self) -> bool {
        self.methods.holds_ours
    }

    /// Whether X.509-SVIDs are issued (miaf-v0 D5).
    pub fn issues_x509_svids(&self) -> bool {
        self.profiles.holds_ours
    }

    /// The bootstrap methods it lists, shortened.
    pub fn methods(&self) -> &Excerpt {
        &self.methods.shown
    }

    /// The SVID profiles it lists, shortened.
    pub fn profiles(&self) -> &Excerpt {
        &self.profiles.shown
    }

    /// Checks that the document leads to its own origin only. That is required where only a public
    /// trust store authenticates its server: a holder of a public certificate for its name could
    /// send the device to another one (miaf-v0 D7). `url` is the document's.
    ///
    /// # Errors
    /// [`DiscoveryError::OtherOrigin`].
    pub fn check_origin(&self, url: &Url) -> Result<(), DiscoveryError> {
        let members =
            [("margoIdentityServiceBaseUri", &self.base_uri), ("trustBundleUri", &self.trust_bundle_uri)];
        for (member, uri) in members {
            if uri.origin() != url.origin() {
                return Err(DiscoveryError::OtherOrigin {
                    member,
                    origin: uri.origin().ascii_serialization(),
                    document: url.origin().ascii_serialization(),
                });
            }
        }
        Ok(())
    }

    /// URL of an enrollment (miaf-v0 E).
    pub(super) fn identities_uri(&self) -> Url {
        self.under_base("/api/v1/identities")
    }

    /// URL of a renewal of `id` (miaf-v0 R1).
    pub(super) fn renewal_uri(&self, id: &SpiffeId) -> Url {
        self.under_base(&format!("/api/v1/identities/{}/renewal", BASE64URL.encode(id.to_string())))
    }

    fn under_base(&self, path: &str) -> Url {
        let mut url = self.base_uri.clone();
        url.set_path(&format!("{}{path}", self.base_uri.path().trim_end_matches('/')));
        url
    }
}

/// Why a discovery document is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiscoveryError {
    /// Not JSON, or a required member missing or mistyped.
    #[error("it is not a Margo discovery document: {0}")]
    Json(#[from] JsonError),
    /// A member that is no array of strings.
    #[error("it is not a Margo discovery document: its {member} cannot be read: {why}")]
    List {
        /// The member.
        member: &'static str,
        /// What is wrong with it.
        why: JsonError,
    },
    /// `trustDomain` is not a name.
    #[error("its trustDomain is not valid: {0}")]
    TrustDomain(SpiffeIdError),
    /// A URI that is not an absolute HTTPS URL.
    #[error("its {member} \"{value}\" is not an absolute https:// URL of at most {MAX_URI} bytes")]
    Uri {
        /// The member.
        member: &'static str,
        /// What was found, shortened.
        value: Excerpt,
    },
    /// It leads to another origin, and only a public trust store authenticates its server (D7).
    #[error(
        "its {member} is at {origin} and the document itself at {document}, whose server is \
         authenticated by the operating system's store only (system_roots), which is not enough to \
         lead to another origin"
    )]
    OtherOrigin {
        /// The member.
        member: &'static str,
        /// The origin that it leads to.
        origin: String,
        /// The origin of the document.
        document: String,
    },
}

impl Hint for DiscoveryError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::OtherOrigin { .. } => Some(
                "Provision the CA of the MIS in ca_file under [mis.trust], or pin it in spki_sha256".into(),
            ),
            _ => None,
        }
    }
}

fn https(member: &'static str, value: &str) -> Result<Url, DiscoveryError> {
    uri::parse(value)
        .ok()
        .filter(|url| url.scheme() == "https" && url.has_host() && url.username().is_empty())
        .filter(|url| url.password().is_none() && url.as_str().len() <= MAX_URI)
        .ok_or_else(|| DiscoveryError::Uri { member, value: Excerpt::of(value, 128) })
}

/// Checks a base URL: paths are appended to it, so it has no query and no fragment.
fn base(url: Url) -> Result<Url, DiscoveryError> {
    if url.query().is_none() && url.fragment().is_none() {
        return Ok(url);
    }
    Err(DiscoveryError::Uri { member: "margoIdentityServiceBaseUri", value: Excerpt::of(url, 128) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn document() -> Value {
        json!({
            "trustDomain": "northstar-ida.com",
            "trustBundleUri": "https://mis.northstar-ida.com/.well-known/spiffe/bundle.json",
            "margoIdentityServiceBaseUri": "https://mis.northstar-ida.com",
            "supportedBootstrapMethods": [FACTORY_CERT_MTLS],
            "svidProfilesSupported": [X509_SVID_V1],
        })
    }

    fn read(document: &Value) -> Result<Discovery, DiscoveryError> {
        Discovery::from_json(&document.to_string())
    }

    #[test]
    fn discovery_example_of_the_sup_leads_to_its_addresses() {
        let mut document = document();
        document["somethingNew"] = json!({ "nested": true });
        let discovery = read(&document).unwrap();
        assert!(discovery.accepts_factory_certificate() && discovery.issues_x509_svids());
        assert_eq!(discovery.identities_uri().as_str(), "https://mis.northstar-ida.com/api/v1/identities");
        let id =
            SpiffeId::parse("spiffe://northstar-ida.com/margo/device/123e4567-e89b-12d3-a456-426614174000");
        assert_eq!(
            discovery.renewal_uri(&id.unwrap()).as_str(),
            "https://mis.northstar-ida.com/api/v1/identities/c3BpZmZlOi8vbm9ydGhzdGFyLWlkYS5jb20vbWFyZ28vZGV2aWNlLzEyM2U0NTY3LWU4OWItMTJkMy1hNDU2LTQyNjYxNDE3NDAwMA/renewal"
        );
    }

    #[test]
    fn base_uri_with_a_path_keeps_it() {
        let mut document = document();
        for base in ["https://gw.example:8443/mis", "https://gw.example:8443/mis/"] {
            document["margoIdentityServiceBaseUri"] = base.into();
            let uri = read(&document).unwrap().identities_uri();
            assert_eq!(uri.as_str(), "https://gw.example:8443/mis/api/v1/identities");
        }
    }

    #[test]
    fn origin_is_scheme_host_and_port() {
        let url = Url::parse("https://mis.northstar-ida.com/.well-known/margo").unwrap();
        let (base, bundle) = ("margoIdentityServiceBaseUri", "trustBundleUri");
        let at = |base_uri: &str, bundle_uri: &str| {
            let mut document = document();
            (document[base], document[bundle]) = (base_uri.into(), bundle_uri.into());
            read(&document).unwrap().check_origin(&url)
        };
        let (here, same) = ("https://mis.northstar-ida.com/api", "https://MIS.northstar-ida.com:443/b?x=1");
        at(here, same).unwrap();
        for other in
            ["https://northstar-ida.com/b", "https://mis.northstar-ida.com:8443/b", "https://192.0.2.1/"]
        {
            for (document, member) in [(at(other, here), base), (at(here, other), bundle)] {
                let why = document.unwrap_err().to_string();
                let origin = Url::parse(other).unwrap().origin().ascii_serialization();
                for part in [member, origin.as_str(), "https://mis.northstar-ida.com"] {
                    assert!(why.contains(part), "{why}");
                }
            }
        }
    }

    #[test]
    fn required_members_are_required_and_typed() {
        for member in document().as_object().unwrap().keys() {
            let mut missing = document();
            missing.as_object_mut().unwrap().remove(member);
            assert!(matches!(read(&missing), Err(DiscoveryError::Json(_))), "{member} missing");
            let mut mistyped = document();
            mistyped[member] = json!(5);
            let refused = read(&mistyped);
            assert!(
                matches!(refused, Err(DiscoveryError::Json(_) | DiscoveryError::List { .. })),
                "{member} mistyped: {refused:?}"
            );
        }
        let in_order: Vec<Value> = ["trustDomain", "trustBundleUri", "margoIdentityServiceBaseUri"]
            .into_iter()
            .chain(["supportedBootstrapMethods", "svidProfilesSupported"])
            .map(|member| document()[member].clone())
            .collect();
        for array in [json!([]), json!(in_order)] {
            assert!(matches!(read(&array), Err(DiscoveryError::Json(_))), "{array}");
        }
    }

    #[test]
    fn lists_are_read_completely_and_shown_shortened() {
        let mut document = document();
        let mut many = vec![json!("\u{1b}]0;x"); 10_000];
        document["supportedBootstrapMethods"] = json!(many.clone());
        let refused = read(&document).unwrap();
        assert!(!refused.accepts_factory_certificate());
        assert!(refused.methods().chars().count() <= MAX_LISTED + 1 && !refused.methods().contains('\u{1b}'));
        many.push(json!(FACTORY_CERT_MTLS));
        document["supportedBootstrapMethods"] = json!(many.clone());
        assert!(read(&document).unwrap().accepts_factory_certificate());
        for bad in [json!([5]), json!([null]), json!({}), json!("text"), json!(null)] {
            document["supportedBootstrapMethods"] = bad.clone();
            let why = read(&document).unwrap_err().to_string();
            assert!(why.contains("not a Margo discovery document: its supportedBootstrapMethods"), "{why}");
        }
    }

    #[test]
    fn uri_over_the_limit_is_refused() {
        for (length, is_good) in [(MAX_URI, true), (MAX_URI + 1, false)] {
            let mut document = document();
            let uri = format!("{:a<length$}", "https://mis.example/");
            document["trustBundleUri"] = uri.into();
            assert_eq!(read(&document).is_ok(), is_good, "{length}");
        }
    }

    #[test]
    fn only_absolute_https_urls_and_valid_names_are_accepted() {
        for member in ["trustBundleUri", "margoIdentityServiceBaseUri"] {
            for bad in
                ["http://mis.example/", "/relative", "https://", "https://user@mis.example/", "ftp://a/"]
            {
                let mut document = document();
                document[member] = bad.into();
                assert!(matches!(read(&document), Err(DiscoveryError::Uri { .. })), "{member} {bad}");
            }
        }
        for bad in ["", "Factory.example", "spiffe://factory.example", "a b"] {
            let mut document = document();
            document["trustDomain"] = bad.into();
            assert!(matches!(read(&document), Err(DiscoveryError::TrustDomain(_))), "{bad}");
        }
    }
}
