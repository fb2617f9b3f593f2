//! The discovery document (miaf-v0 D3 to D6).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use serde::Deserialize;
use url::Url;

use crate::json::Object;
use crate::spiffe::{SpiffeId, SpiffeIdError, TrustDomain};
use crate::text::Excerpt;

/// The one bootstrap method of v0.
pub const FACTORY_CERT_MTLS: &str = "urn:margo:bootstrap:factory-cert-mtls:v1";
/// The one SVID profile of v0.
pub const X509_SVID_V1: &str = "https://margo.org/profiles/spiffe/x509-svid/v1";

/// Where a trust domain's MIS and bundle are, and what it offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovery {
    trust_domain: TrustDomain,
    trust_bundle_uri: Url,
    base_uri: Url,
    methods: Vec<String>,
    profiles: Vec<String>,
}

impl Discovery {
    /// Reads the JSON document. Unknown members are ignored (miaf-v0 D4).
    ///
    /// # Errors
    /// [`DiscoveryError`]: a member that D3 requires is missing, mistyped, or not what it claims to be.
    pub fn from_json(body: &str) -> Result<Self, DiscoveryError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Document {
            trust_domain: String,
            trust_bundle_uri: String,
            margo_identity_service_base_uri: String,
            supported_bootstrap_methods: Vec<String>,
            svid_profiles_supported: Vec<String>,
        }
        let Object(document): Object<Document> =
            serde_json::from_str(body).map_err(|e| DiscoveryError::Json(e.to_string()))?;
        Ok(Self {
            trust_domain: TrustDomain::parse(&document.trust_domain).map_err(DiscoveryError::TrustDomain)?,
            trust_bundle_uri: https("trustBundleUri", &document.trust_bundle_uri)?,
            base_uri: https("margoIdentityServiceBaseUri", &document.margo_identity_service_base_uri)
                .and_then(base)?,
            methods: document.supported_bootstrap_methods,
            profiles: document.svid_profiles_supported,
        })
    }

    /// The one trust domain it describes.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Where the trust bundle is.
    pub fn trust_bundle_uri(&self) -> &Url {
        &self.trust_bundle_uri
    }

    /// Whether the factory certificate is accepted as a bootstrap credential (miaf-v0 D5).
    pub fn accepts_factory_certificate(&self) -> bool {
        self.methods.iter().any(|method| method == FACTORY_CERT_MTLS)
    }

    /// Whether X.509-SVIDs are issued (miaf-v0 D5).
    pub fn issues_x509_svids(&self) -> bool {
        self.profiles.iter().any(|profile| profile == X509_SVID_V1)
    }

    /// The bootstrap methods it lists.
    pub fn methods(&self) -> &[String] {
        &self.methods
    }

    /// The SVID profiles it lists.
    pub fn profiles(&self) -> &[String] {
        &self.profiles
    }

    /// Where only a public trust store vouches for the server of the document, anybody with a public certificate for
    /// its name could send the device elsewhere, so it must not lead elsewhere (miaf-v0 D7). `url` is the document's.
    ///
    /// # Errors
    /// [`DiscoveryError::OtherOrigin`].
    pub fn stays_at_the_origin_of(&self, url: &Url) -> Result<(), DiscoveryError> {
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

    /// Where to enroll (miaf-v0 E).
    pub(super) fn identities_uri(&self) -> Url {
        self.under_base("/api/v1/identities")
    }

    /// Where to renew `id` (miaf-v0 R1).
    pub(super) fn renewal_uri(&self, id: &SpiffeId) -> Url {
        self.under_base(&format!("/api/v1/identities/{}/renewal", BASE64URL.encode(id.to_string())))
    }

    fn under_base(&self, path: &str) -> Url {
        let mut url = self.base_uri.clone();
        url.set_path(&format!("{}{path}", self.base_uri.path().trim_end_matches('/')));
        url
    }
}

/// Why a discovery document is refused. The last good one stays in use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiscoveryError {
    /// Not JSON, or a required member missing or mistyped.
    #[error("it is not a Margo discovery document: {0}")]
    Json(String),
    /// `trustDomain` is not a name.
    #[error("its trustDomain is not valid: {0}")]
    TrustDomain(SpiffeIdError),
    /// A URI that is not an absolute HTTPS URL.
    #[error("its {member} \"{value}\" is not an absolute https:// URL")]
    Uri {
        /// The member.
        member: &'static str,
        /// What was found, shortened.
        value: String,
    },
    /// It leads to another origin, and only a public trust store vouches for the server it came from (D7).
    #[error(
        "its {member} is at {origin} and the document itself at {document}, whose server is authenticated by the \
         operating system's store only (system_roots). That is not enough to be led elsewhere: provision the CA of the \
         MIS in ca_file, or pin it"
    )]
    OtherOrigin {
        /// The member.
        member: &'static str,
        /// Where it leads.
        origin: String,
        /// Where the document is.
        document: String,
    },
}

fn https(member: &'static str, value: &str) -> Result<Url, DiscoveryError> {
    Url::parse(value)
        .ok()
        .filter(|url| url.scheme() == "https" && url.has_host() && url.username().is_empty())
        .filter(|url| url.password().is_none())
        .ok_or_else(|| DiscoveryError::Uri { member, value: Excerpt::of(value, 128).into() })
}

/// Paths are added to it, so a query or fragment has no place in it.
fn base(url: Url) -> Result<Url, DiscoveryError> {
    if url.query().is_none() && url.fragment().is_none() {
        return Ok(url);
    }
    Err(DiscoveryError::Uri { member: "margoIdentityServiceBaseUri", value: Excerpt::of(url, 128).into() })
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
    fn the_example_of_the_sup_leads_to_its_addresses() {
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
    fn a_base_with_a_path_keeps_it() {
        let mut document = document();
        for base in ["https://gw.example:8443/mis", "https://gw.example:8443/mis/"] {
            document["margoIdentityServiceBaseUri"] = base.into();
            let uri = read(&document).unwrap().identities_uri();
            assert_eq!(uri.as_str(), "https://gw.example:8443/mis/api/v1/identities");
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let url = Url::parse("https://mis.northstar-ida.com/.well-known/margo").unwrap();
        let (base, bundle) = ("margoIdentityServiceBaseUri", "trustBundleUri");
        let at = |base_uri: &str, bundle_uri: &str| {
            let mut document = document();
            (document[base], document[bundle]) = (base_uri.into(), bundle_uri.into());
            read(&document).unwrap().stays_at_the_origin_of(&url)
        };
        let (here, same) = ("https://mis.northstar-ida.com/api", "https://MIS.northstar-ida.com:443/b?x=1");
        at(here, same).unwrap();
        for elsewhere in
            ["https://northstar-ida.com/b", "https://mis.northstar-ida.com:8443/b", "https://192.0.2.1/"]
        {
            for (document, member) in [(at(elsewhere, here), base), (at(here, elsewhere), bundle)] {
                let why = document.unwrap_err().to_string();
                let origin = Url::parse(elsewhere).unwrap().origin().ascii_serialization();
                for said in [member, origin.as_str(), "https://mis.northstar-ida.com"] {
                    assert!(why.contains(said), "{why}");
                }
            }
        }
    }

    #[test]
    fn every_required_member_is_required_and_typed() {
        for member in document().as_object().unwrap().keys() {
            let mut missing = document();
            missing.as_object_mut().unwrap().remove(member);
            assert!(matches!(read(&missing), Err(DiscoveryError::Json(_))), "{member} missing");
            let mut mistyped = document();
            mistyped[member] = json!(5);
            assert!(matches!(read(&mistyped), Err(DiscoveryError::Json(_))), "{member} mistyped");
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
    fn only_absolute_https_addresses_and_valid_names_are_taken() {
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
