//! The discovery document: the two members that Margo's released specification requires
//! (docs/conformance.md, N3), and the three further ones of MIAF v0 (D3 to D6), which an MIS that
//! issues nothing over the network does not have.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;
use url::Url;

use super::est::{EstUrl, EstUrlError};
use crate::hint::Hint;
use crate::problem::{ProblemCode, Report};
use crate::transport::shown;
use crate::uri;
use miaf_spiffe::json::{self, JsonError};
use miaf_spiffe::text::Excerpt;
use miaf_spiffe::{SpiffeId, SpiffeIdError, TrustDomain};

/// URN of the bootstrap method of v0.
pub const FACTORY_CERT_MTLS: &str = "urn:margo:bootstrap:factory-cert-mtls:v1";
/// URN of the bootstrap method of a WFM Client with a binding assertion (miaf-v0 W3).
pub const WFM_CLIENT_BINDING: &str = "urn:margo:bootstrap:wfm-client-binding:v1";
/// URI of the one SVID profile of v0.
pub const X509_SVID_V1: &str = "https://margo.org/profiles/spiffe/x509-svid/v1";

const BASE_URI: &str = "margoIdentityServiceBaseUri";
const METHODS: &str = "supportedBootstrapMethods";
const PROFILES: &str = "svidProfilesSupported";
const EST_BASE_URI: &str = "estBaseUri";
const CRL_URIS: &str = "crlUris";

/// Limit on the bytes of a URI: it is part of most messages.
const MAX_URI: usize = 2048;
/// Limit on the characters of a list in a message.
const MAX_LISTED: usize = 400;
/// Limit on the characters of one of its elements.
const MAX_ELEMENT: usize = 100;
/// Limit on the URLs of CRLs. There is one for each CA that issues SVIDs (miaf-est X73).
const MAX_CRL_URIS: usize = 64;
/// Limit on the elements that a message lists as unusable.
const MAX_UNUSABLE: usize = 4;
/// Limit on the characters of a path in a message.
const MAX_PATH: usize = 512;

/// Way to enroll over the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootstrapMethod {
    /// The factory certificate, over mTLS (miaf-v0 E).
    FactoryCert,
    /// A binding assertion of the WFM (miaf-v0 W).
    WfmBinding,
}

impl BootstrapMethod {
    const ALL: [Self; 2] = [Self::FactoryCert, Self::WfmBinding];

    /// Its name in the protocol.
    pub fn urn(self) -> &'static str {
        match self {
            Self::FactoryCert => FACTORY_CERT_MTLS,
            Self::WfmBinding => WFM_CLIENT_BINDING,
        }
    }
}

/// Location of the trust bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BundleLocation {
    /// By the discovery document, or `mis.bundle_url`.
    Url(Url),
    /// `mis.bundle_file`.
    File(PathBuf),
}

impl BundleLocation {
    /// The location in full: for comparison, not for messages.
    pub fn in_full(&self) -> String {
        match self {
            Self::Url(url) => url.to_string(),
            Self::File(path) => path.display().to_string(),
        }
    }
}

/// Formats the location for messages, shortened.
impl fmt::Display for BundleLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => shown(url).fmt(f),
            Self::File(path) => Excerpt::of(path.display(), MAX_PATH).fmt(f),
        }
    }
}

/// Discovery document: a trust domain, the location of its bundle, and what its MIS offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovery {
    trust_domain: TrustDomain,
    bundle: BundleLocation,
    miaf_v0: Result<MiafV0, MissingMember>,
    est: Option<EstUrl>,
    /// Why there is none although it names one.
    refused_est: Option<DiscoveryError>,
    crl_uris: CrlUris,
    /// It is made of the configuration, and no MIS has served it.
    is_configured: bool,
}

/// What the document says of the MIS's JSON protocol (miaf-v0 D3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MiafV0 {
    base_uri: Url,
    methods: Listed,
    profiles: Listed,
}

/// The member without which a document says nothing of the MIS's JSON protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it has no member {0}")]
pub struct MissingMember(pub &'static str);

/// List of the document in which some elements matter here.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Listed {
    /// Those of them that it has.
    ours: Vec<&'static str>,
    shown: Excerpt,
}

impl Listed {
    /// Parses an array of strings without storing all of them. `sought`: the elements that matter.
    fn read(list: &RawValue, sought: &[&'static str]) -> Result<Self, serde_json::Error> {
        let seek = SeekListed { sought, found: Vec::new(), shown: String::new() };
        seek.deserialize(&mut serde_json::Deserializer::from_str(list.get()))
    }

    fn has(&self, element: &str) -> bool {
        self.ours.contains(&element)
    }
}

struct SeekListed<'a> {
    sought: &'a [&'static str],
    found: Vec<&'static str>,
    /// The beginning of the list.
    shown: String,
}

impl<'de> DeserializeSeed<'de> for SeekListed<'_> {
    type Value = Listed;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Listed, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for SeekListed<'_> {
    type Value = Listed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of strings")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Listed, A::Error> {
        while let Some(element) = seq.next_element::<String>()? {
            let ours = self.sought.iter().find(|sought| **sought == element);
            if let Some(ours) = ours.filter(|ours| !self.found.contains(ours)) {
                self.found.push(ours);
            }
            if self.shown.len() < MAX_LISTED {
                let comma = if self.shown.is_empty() { "" } else { ", " };
                self.shown.push_str(comma);
                self.shown.push_str(&Excerpt::of(element, MAX_ELEMENT));
            }
        }
        Ok(Listed { ours: self.found, shown: Excerpt::of(self.shown, MAX_LISTED) })
    }
}

/// The URLs of CRLs (miaf-est X14).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct CrlUris {
    urls: Vec<Url>,
    unusable: Option<Excerpt>,
}

impl CrlUris {
    /// Parses an array of strings. An element that is no absolute `http` or `https` URL, and those
    /// beyond the limit, are passed over.
    fn read(list: &RawValue) -> Result<Self, serde_json::Error> {
        serde_json::Deserializer::from_str(list.get()).deserialize_seq(SeekCrlUris)
    }
}

struct SeekCrlUris;

impl<'de> Visitor<'de> for SeekCrlUris {
    type Value = CrlUris;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of strings")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<CrlUris, A::Error> {
        let (mut urls, mut unusable, mut more) = (Vec::new(), Vec::new(), 0_usize);
        while let Some(element) = seq.next_element::<String>()? {
            match crl_uri(&element) {
                Some(url) if urls.contains(&url) => {}
                Some(url) if urls.len() < MAX_CRL_URIS => urls.push(url),
                Some(_) => more += 1,
                None if unusable.len() < MAX_UNUSABLE => unusable.push(Excerpt::of(element, MAX_ELEMENT)),
                None => {}
            }
        }
        let unusable = (!unusable.is_empty()).then(|| {
            let listed: Vec<_> = unusable.iter().map(|element| format!("\"{element}\"")).collect();
            format!("no absolute http or https URL: {}", listed.join(", "))
        });
        let more = (more > 0).then(|| format!("{more} more than the {MAX_CRL_URIS} that are read"));
        let why: Vec<String> = unusable.into_iter().chain(more).collect();
        let unusable = (!why.is_empty()).then(|| Excerpt::of(why.join("; "), MAX_LISTED));
        Ok(CrlUris { urls, unusable })
    }
}

fn crl_uri(value: &str) -> Option<Url> {
    let url = uri::parse(value).ok().filter(|url| matches!(url.scheme(), "http" | "https"))?;
    let is_plain = url.has_host() && url.username().is_empty() && url.password().is_none();
    (is_plain && url.as_str().len() <= MAX_URI).then_some(url)
}

/// An optional member that is there, whatever its value: `null` is a value of the wrong type.
fn present<'de: 'a, 'a, D: Deserializer<'de>>(member: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(member).map(Some)
}

impl Discovery {
    /// Parses the JSON document. Unknown members are ignored (miaf-v0 D4, N3). Of the members of
    /// MIAF v0 each that is there is checked.
    ///
    /// # Errors
    /// [`DiscoveryError`]: a member that N3 requires is missing, or one is mistyped, or not what it
    /// claims to be.
    pub fn from_json(body: &str) -> Result<Self, DiscoveryError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Document<'a> {
            trust_domain: String,
            trust_bundle_uri: String,
            #[serde(borrow, default, deserialize_with = "present")]
            margo_identity_service_base_uri: Option<&'a RawValue>,
            #[serde(borrow, default, deserialize_with = "present")]
            supported_bootstrap_methods: Option<&'a RawValue>,
            #[serde(borrow, default, deserialize_with = "present")]
            svid_profiles_supported: Option<&'a RawValue>,
            #[serde(borrow, default, deserialize_with = "present")]
            est_base_uri: Option<&'a RawValue>,
            #[serde(borrow, default, deserialize_with = "present")]
            crl_uris: Option<&'a RawValue>,
        }
        let document: Document<'_> = json::read(body.as_bytes())?;
        let trust_domain = TrustDomain::parse(&document.trust_domain).map_err(DiscoveryError::TrustDomain)?;
        let bundle = BundleLocation::Url(https("trustBundleUri", &document.trust_bundle_uri)?);
        let unreadable = |member, e: serde_json::Error| DiscoveryError::Member { member, why: e.into() };
        let base_uri = document.margo_identity_service_base_uri.map(|uri| {
            let uri: String = serde_json::from_str(uri.get()).map_err(|e| unreadable(BASE_URI, e))?;
            https(BASE_URI, &uri).and_then(base)
        });
        let listed = |member, list: Option<&RawValue>, sought: &[&'static str]| {
            list.map(|list| Listed::read(list, sought).map_err(|e| unreadable(member, e))).transpose()
        };
        let base_uri = base_uri.transpose()?.ok_or(MissingMember(BASE_URI));
        let methods = BootstrapMethod::ALL.map(BootstrapMethod::urn);
        let methods = listed(METHODS, document.supported_bootstrap_methods, &methods)?;
        let profiles = listed(PROFILES, document.svid_profiles_supported, &[X509_SVID_V1])?;
        let miaf_v0 = base_uri.and_then(|base_uri| {
            Ok(MiafV0 {
                base_uri,
                methods: methods.ok_or(MissingMember(METHODS))?,
                profiles: profiles.ok_or(MissingMember(PROFILES))?,
            })
        });
        let est = document.est_base_uri.map(|uri| {
            let uri: String = serde_json::from_str(uri.get()).map_err(|e| unreadable(EST_BASE_URI, e))?;
            est_url(&uri)
        });
        let crl_uris =
            document.crl_uris.map(CrlUris::read).transpose().map_err(|e| unreadable(CRL_URIS, e))?;
        let (est, crl_uris) = (est.transpose()?, crl_uris.unwrap_or_default());
        Ok(Self { trust_domain, bundle, miaf_v0, est, refused_est: None, crl_uris, is_configured: false })
    }

    /// Document made of a configuration that names the bundle itself (N5): nothing is said of an
    /// MIS that issues over the network.
    pub fn of_bundle(trust_domain: TrustDomain, bundle: BundleLocation) -> Self {
        Self {
            trust_domain,
            bundle,
            miaf_v0: Err(MissingMember(BASE_URI)),
            est: None,
            refused_est: None,
            crl_uris: CrlUris::default(),
            is_configured: true,
        }
    }

    /// The trust domain that it describes.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Location of the trust bundle.
    pub fn bundle(&self) -> &BundleLocation {
        &self.bundle
    }

    /// What it says of the MIS's JSON protocol.
    ///
    /// # Errors
    /// [`MissingMember`]: the MIS issues nothing by that protocol, as far as the document says.
    pub fn miaf_v0(&self) -> Result<&MiafV0, MissingMember> {
        self.miaf_v0.as_ref().map_err(|missing| *missing)
    }

    /// URL of the EST server of this trust domain (miaf-est X15). `None`: it serves none, as far as the
    /// document says.
    pub fn est(&self) -> Option<&EstUrl> {
        self.est.as_ref()
    }

    /// Why the EST server that the document names is not used (X18). `None`: it names none, or
    /// [`est`](Self::est) has it. A document that is read from the cache does not tell.
    pub fn refused_est(&self) -> Option<&DiscoveryError> {
        self.refused_est.as_ref()
    }

    /// URLs of the CRLs of this trust domain, each once (X14). Empty: no revocation status is offered.
    pub fn crl_uris(&self) -> &[Url] {
        &self.crl_uris.urls
    }

    /// What is wrong with the URLs of CRLs that were passed over, for the log. `None`: none was.
    pub fn unusable_crl_uris(&self) -> Option<&Excerpt> {
        self.crl_uris.unusable.as_ref()
    }

    /// Why the document rules out that `identity` is enrolled by this method (miaf-v0 D5).
    /// `otherwise`: what to do where the MIS issues nothing over the network, as the hint.
    pub fn rules_out_enrollment(
        &self,
        method: BootstrapMethod,
        identity: &str,
        otherwise: &str,
    ) -> Option<Report> {
        if let Some(report) = self.rules_out_renewal(identity, otherwise) {
            return Some(report);
        }
        let methods = &self.miaf_v0().ok()?.methods;
        let title = match method {
            BootstrapMethod::FactoryCert => "The MIS does not accept factory certificates",
            BootstrapMethod::WfmBinding => "The MIS does not accept binding assertions of a WFM",
        };
        (!methods.has(method.urn())).then(|| self.lacks(title, identity, METHODS, method.urn(), methods))
    }

    /// Why the document rules out that the SVID of `identity` is renewed over the network.
    /// `otherwise` as in [`rules_out_enrollment`](Self::rules_out_enrollment).
    pub fn rules_out_renewal(&self, identity: &str, otherwise: &str) -> Option<Report> {
        let v0 = match self.miaf_v0() {
            Ok(v0) => v0,
            Err(MissingMember(member)) => {
                let why = format_args!(
                    "the identity \"{identity}\" needs {member}, and {} does not say it",
                    self.source()
                )
                .to_string();
                let title = "The MIS issues nothing over the network";
                let report = Report::new(ProblemCode::UnsupportedByMis, title, &why);
                return Some(report.with_hint(Some(otherwise)));
            }
        };
        let title = "The MIS does not issue the kind of identity this device needs";
        (!v0.profiles.has(X509_SVID_V1))
            .then(|| self.lacks(title, identity, PROFILES, X509_SVID_V1, &v0.profiles))
    }

    /// What the document is, for people.
    fn source(&self) -> String {
        if self.is_configured {
            return format!(
                "the configuration, which names the trust bundle of \"{}\" itself,",
                self.trust_domain
            );
        }
        format!("the discovery document of \"{}\"", self.trust_domain)
    }

    fn lacks(&self, title: &str, identity: &str, member: &str, wanted: &str, listed: &Listed) -> Report {
        let why = format_args!(
            "the {member} of the discovery document of \"{}\" lists [{}] and not {wanted}, which the identity \
             \"{identity}\" needs",
            self.trust_domain, listed.shown
        );
        Report::new(ProblemCode::UnsupportedByMis, title, &why)
    }

    /// Checks that the document leads to its own origin only. That is required where only a public
    /// trust store authenticates its server: a holder of a public certificate for its name could
    /// send the device to another one (miaf-v0 D7). `url` is the document's.
    ///
    /// # Errors
    /// [`DiscoveryError::OtherOrigin`].
    pub fn check_origin(&self, url: &Url) -> Result<(), DiscoveryError> {
        let base_uri = self.miaf_v0.as_ref().ok().map(|v0| (BASE_URI, &v0.base_uri));
        let bundle = match &self.bundle {
            BundleLocation::Url(bundle) => Some(("trustBundleUri", bundle)),
            BundleLocation::File(_) => None,
        };
        base_uri.into_iter().chain(bundle).try_for_each(|(member, uri)| same_origin(member, uri, url))
    }

    /// Whether its EST server is at another origin than the document, which `url` is the URL of. That
    /// is not allowed where only a public trust store authenticates the document's server (miaf-est
    /// X18).
    pub(super) fn est_is_elsewhere(&self, url: &Url) -> bool {
        self.est.as_ref().is_some_and(|est| same_origin(EST_BASE_URI, est.as_url(), url).is_err())
    }

    /// Refuses an EST server at another origin than the document's, which `url` is the URL of: for a
    /// document that only a public trust store authenticates (X18). The rest of it stays in use: the
    /// operator may give the URL directly. Returns the text of the document without it, to be stored:
    /// `None` if there is nothing to refuse.
    pub fn refuse_est_elsewhere(&mut self, url: &Url, body: &str) -> Option<String> {
        let est = self.est.take_if(|est| same_origin(EST_BASE_URI, est.as_url(), url).is_err())?;
        self.refused_est = same_origin(EST_BASE_URI, est.as_url(), url).err();
        let mut members: BTreeMap<&str, &RawValue> = json::read(body.as_bytes()).unwrap_or_default();
        members.remove(EST_BASE_URI);
        Some(serde_json::to_string(&members).unwrap_or_default()) // it was read before
    }

    /// Checks that the bundle is at an allowed origin: one of `allowed`, or, where that is empty,
    /// the document's own. `url` is the document's.
    ///
    /// # Errors
    /// [`DiscoveryError::BundleOrigin`].
    pub fn check_bundle_origin(&self, url: &Url, allowed: &[Url]) -> Result<(), DiscoveryError> {
        let BundleLocation::Url(bundle) = &self.bundle else { return Ok(()) };
        let own = std::slice::from_ref(url);
        let allowed = if allowed.is_empty() { own } else { allowed };
        if allowed.iter().any(|allowed| allowed.origin() == bundle.origin()) {
            return Ok(());
        }
        let origins: Vec<_> = allowed.iter().map(|url| url.origin().ascii_serialization()).collect();
        Err(DiscoveryError::BundleOrigin {
            origin: bundle.origin().ascii_serialization(),
            allowed: Excerpt::of(origins.join(", "), MAX_LISTED),
        })
    }
}

impl MiafV0 {
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
    /// A member of another type.
    #[error("it is not a Margo discovery document: its {member} cannot be read: {why}")]
    Member {
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
    /// `estBaseUri` is not the URL of an EST server (miaf-est X16).
    #[error("its estBaseUri \"{value}\" cannot be used: {why}")]
    EstUri {
        /// What was found, shortened.
        value: Excerpt,
        /// Why.
        why: EstUrlError,
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
    /// Its bundle is at an origin that is not allowed.
    #[error("its trustBundleUri is at {origin}, and bundles are allowed from {allowed} only")]
    BundleOrigin {
        /// The origin of the bundle.
        origin: String,
        /// The allowed ones, shortened.
        allowed: Excerpt,
    },
}

impl Hint for DiscoveryError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::OtherOrigin { member: EST_BASE_URI, .. } => Some(
                "Set mis.est_url to what the operator of the MIS says; or provision the CA of the MIS in ca_file under \
                 [mis.trust], or pin it in spki_sha256"
                    .into(),
            ),
            Self::OtherOrigin { .. } => Some(
                "Provision the CA of the MIS in ca_file under [mis.trust], or pin it in spki_sha256".into(),
            ),
            Self::EstUri { .. } => Some("Have the operator of the MIS correct estBaseUri: it ends in /.well-known/est or /.well-known/est/LABEL; or set mis.est_url".into()),
            Self::BundleOrigin { origin, .. } => {
                Some(format!("If the bundle belongs there, add \"{origin}\" to mis.bundle_origins").into())
            }
            _ => None,
        }
    }
}

fn est_url(value: &str) -> Result<EstUrl, DiscoveryError> {
    let url = uri::parse(value).map_err(|_| EstUrlError::NotHttps).and_then(EstUrl::parse);
    url.map_err(|why| DiscoveryError::EstUri { value: Excerpt::of(value, 128), why })
}

/// Checks that a URI of the document is at the document's own origin.
fn same_origin(member: &'static str, uri: &Url, document: &Url) -> Result<(), DiscoveryError> {
    if uri.origin() == document.origin() {
        return Ok(());
    }
    Err(DiscoveryError::OtherOrigin {
        member,
        origin: uri.origin().ascii_serialization(),
        document: document.origin().ascii_serialization(),
    })
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
    Err(DiscoveryError::Uri { member: BASE_URI, value: Excerpt::of(url, 128) })
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

    fn rules_out(document: &Discovery, method: BootstrapMethod) -> Option<Report> {
        document.rules_out_enrollment(method, "device", "do it by hand")
    }

    #[test]
    fn discovery_example_of_the_sup_leads_to_its_addresses() {
        let mut document = document();
        document["somethingNew"] = json!({ "nested": true });
        let discovery = read(&document).unwrap();
        assert_eq!(rules_out(&discovery, BootstrapMethod::FactoryCert), None);
        let v0 = discovery.miaf_v0().unwrap();
        assert_eq!(v0.identities_uri().as_str(), "https://mis.northstar-ida.com/api/v1/identities");
        let id =
            SpiffeId::parse("spiffe://northstar-ida.com/margo/device/123e4567-e89b-12d3-a456-426614174000");
        assert_eq!(
            v0.renewal_uri(&id.unwrap()).as_str(),
            "https://mis.northstar-ida.com/api/v1/identities/c3BpZmZlOi8vbm9ydGhzdGFyLWlkYS5jb20vbWFyZ28vZGV2aWNlLzEyM2U0NTY3LWU4OWItMTJkMy1hNDU2LTQyNjYxNDE3NDAwMA/renewal"
        );
    }

    #[test]
    fn base_uri_with_a_path_keeps_it() {
        let mut document = document();
        for base in ["https://gw.example:8443/mis", "https://gw.example:8443/mis/"] {
            document["margoIdentityServiceBaseUri"] = base.into();
            let uri = read(&document).unwrap().miaf_v0().unwrap().identities_uri();
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
    fn est_server_of_the_document_is_opaque() {
        let mut document = document();
        assert_eq!(read(&document).unwrap().est(), None);
        for (uri, want) in [
            ("https://est.example/.well-known/est/a", "https://est.example/.well-known/est/a"),
            ("https://est.example:8443/x/", "https://est.example:8443/x"),
            ("https://est.margo.org", "https://est.margo.org/"),
        ] {
            document["estBaseUri"] = uri.into();
            assert_eq!(read(&document).unwrap().est().unwrap().as_url().as_str(), want);
        }
        for uri in [
            "http://e.example/est",
            "/est",
            "",
            "https://u@e.example/",
            "https://e.example/?a",
            "https://e.example/#",
        ] {
            document["estBaseUri"] = uri.into();
            let refused = read(&document).unwrap_err();
            assert!(matches!(refused, DiscoveryError::EstUri { .. }), "{uri}: {refused}");
            crate::hint::assert_apart(&refused);
        }
        for mistyped in [json!(null), json!(5), json!([]), json!({}), json!(["https://est.example"])] {
            document["estBaseUri"] = mistyped;
            assert!(matches!(read(&document), Err(DiscoveryError::Member { .. })));
        }
    }

    #[test]
    fn crl_uris_are_read_one_by_one() {
        let mut document = document();
        let crls = |document: &Value| {
            let document = read(document).unwrap();
            let urls: Vec<_> = document.crl_uris().iter().map(|url| url.as_str().to_owned()).collect();
            (urls, document.unusable_crl_uris().map(ToString::to_string))
        };
        let none = (Vec::<String>::new(), None);
        assert_eq!(crls(&document), none);
        document["crlUris"] = json!([]);
        assert_eq!(crls(&document), none);
        document["crlUris"] = json!([
            "http://c.example/a",
            "https://c.example/b",
            "http://c.example/a",
            "HTTP://C.example:80/a",
            "ldap://c/x",
            "/a",
            "https://u:p@c.example/",
            ""
        ]);
        let (urls, unusable) = crls(&document);
        assert_eq!(urls, ["http://c.example/a", "https://c.example/b"]);
        let unusable = unusable.unwrap();
        for part in ["\"ldap://c/x\"", "\"/a\"", "http or https"] {
            assert!(unusable.contains(part), "{unusable}");
        }
        let many: Vec<_> = (0..MAX_CRL_URIS + 3).map(|n| format!("http://c.example/{n}")).collect();
        document["crlUris"] = json!(many);
        let (urls, unusable) = crls(&document);
        assert_eq!((urls.len(), urls[0].as_str()), (MAX_CRL_URIS, "http://c.example/0"));
        assert!(unusable.unwrap().starts_with("3 more than the 64"));
        for mistyped in [json!(null), json!("http://c.example/"), json!({}), json!([5]), json!([null])] {
            document["crlUris"] = mistyped;
            assert!(matches!(read(&document), Err(DiscoveryError::Member { member: "crlUris", .. })));
        }
    }

    #[test]
    fn est_server_elsewhere_is_refused_and_the_document_stays() {
        let url = Url::parse("https://mis.northstar-ida.com/.well-known/margo").unwrap();
        let mut document = document();
        document["estBaseUri"] = "https://mis.northstar-ida.com:443/est".into();
        let body = document.to_string();
        let mut here = read(&document).unwrap();
        assert!(!here.est_is_elsewhere(&url) && here.refuse_est_elsewhere(&url, &body).is_none());
        assert!(here.est().is_some() && here.refused_est().is_none());
        for elsewhere in [
            "https://est.northstar-ida.com/est",
            "https://mis.northstar-ida.com:8443/est",
            "https://192.0.2.1/",
        ] {
            document["estBaseUri"] = elsewhere.into();
            let mut read = read(&document).unwrap();
            read.check_origin(&url).unwrap();
            assert!(read.est_is_elsewhere(&url));
            let stored = read.refuse_est_elsewhere(&url, &document.to_string()).unwrap();
            assert_eq!(read.est(), None);
            let why = read.refused_est().unwrap();
            crate::hint::assert_apart(why);
            assert!(why.to_string().starts_with("its estBaseUri is at https://"), "{why}");
            // The rest is as it was, also after a restart.
            let again = Discovery::from_json(&stored).unwrap();
            assert_eq!((again.est(), again.miaf_v0()), (None, read.miaf_v0()));
            assert_eq!(again.bundle(), read.bundle());
        }
    }

    #[test]
    fn required_members_are_required_and_every_one_is_typed() {
        for member in document().as_object().unwrap().keys() {
            let is_of_v0 = !["trustDomain", "trustBundleUri"].contains(&member.as_str());
            let mut missing = document();
            missing.as_object_mut().unwrap().remove(member);
            match read(&missing) {
                Ok(document) if is_of_v0 => {
                    assert_eq!(document.miaf_v0().unwrap_err().0, member);
                }
                refused => {
                    assert!(!is_of_v0 && matches!(refused, Err(DiscoveryError::Json(_))), "{member} missing");
                }
            }
            for mistyped_value in [json!(5), json!(null), json!({})] {
                let mut mistyped = document();
                mistyped[member] = mistyped_value;
                let refused = read(&mistyped);
                assert!(
                    matches!(refused, Err(DiscoveryError::Json(_) | DiscoveryError::Member { .. })),
                    "{member} mistyped: {refused:?}"
                );
            }
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
    fn released_document_rules_out_what_needs_the_network() {
        let released = json!({
            "trustBundleUri": "https://mis.margo.org:18443/.well-known/spiffe/bundle.json",
            "trustDomain": "margo.org",
            "estBaseUri": "https://est.margo.org",
        });
        let document = read(&released).unwrap();
        assert_eq!(document.trust_domain().as_str(), "margo.org");
        for method in BootstrapMethod::ALL {
            let report = document.rules_out_enrollment(method, "line-7", "do it by hand").unwrap();
            let detail = report.detail.as_deref().unwrap();
            for part in ["margoIdentityServiceBaseUri", "\"line-7\"", "\"margo.org\""] {
                assert!(detail.contains(part), "{detail}");
            }
            assert_eq!(report.hint(), Some("do it by hand"));
            assert_eq!(document.rules_out_renewal("line-7", "do it by hand"), Some(report));
        }
        let domain = TrustDomain::parse("margo.org").unwrap();
        let configured = Discovery::of_bundle(domain, BundleLocation::File("/b.json".into()));
        let report = configured.rules_out_renewal("line-7", "do it by hand").unwrap();
        assert!(report.detail.unwrap().contains("the configuration, which names the trust bundle"));
    }

    #[test]
    fn each_method_is_ruled_out_by_itself() {
        let mut document = document();
        for (listed, factory, binding) in [
            (json!([FACTORY_CERT_MTLS]), true, false),
            (json!([WFM_CLIENT_BINDING, "urn:another"]), false, true),
            (json!([WFM_CLIENT_BINDING, FACTORY_CERT_MTLS, FACTORY_CERT_MTLS]), true, true),
            (json!([]), false, false),
        ] {
            document["supportedBootstrapMethods"] = listed;
            let document = read(&document).unwrap();
            for (method, allowed) in
                [(BootstrapMethod::FactoryCert, factory), (BootstrapMethod::WfmBinding, binding)]
            {
                let report = rules_out(&document, method);
                assert_eq!(report.is_none(), allowed, "{report:?}");
                let says = report.is_none_or(|report| report.detail.unwrap().contains(method.urn()));
                assert!(says, "{method:?}");
            }
            assert_eq!(document.rules_out_renewal("device", ""), None);
        }
    }

    #[test]
    fn bundle_is_taken_from_the_documents_origin_or_an_allowed_one() {
        let url = Url::parse("https://mis.northstar-ida.com/.well-known/margo").unwrap();
        let allowed = ["https://bundles.example/", "https://other.example:8443/"];
        let allowed = allowed.map(|origin| Url::parse(origin).unwrap());
        for (bundle, by_default, by_list) in [
            ("https://mis.northstar-ida.com:443/b", true, false),
            ("https://bundles.example/any/path?x=1", false, true),
            ("https://BUNDLES.example/b", false, true),
            ("https://other.example:8443/b", false, true),
            ("https://other.example/b", false, false),
            ("https://bundles.example.evil/b", false, false),
            ("https://northstar-ida.com/b", false, false),
        ] {
            let mut document = document();
            document["trustBundleUri"] = bundle.into();
            let document = read(&document).unwrap();
            assert_eq!(document.check_bundle_origin(&url, &[]).is_ok(), by_default, "{bundle}");
            let listed = document.check_bundle_origin(&url, &allowed);
            assert_eq!(listed.is_ok(), by_list, "{bundle}");
            let Err(refused) = listed else { continue };
            crate::hint::assert_apart(&refused);
            let origin = Url::parse(bundle).unwrap().origin().ascii_serialization();
            assert!(refused.to_string().contains(&origin), "{refused}");
            assert!(refused.hint().unwrap().contains("mis.bundle_origins"), "the key");
        }
    }

    #[test]
    fn lists_are_read_completely_and_shown_shortened() {
        let mut document = document();
        let mut many = vec![json!("\u{1b}]0;x"); 10_000];
        document["supportedBootstrapMethods"] = json!(many.clone());
        let refused = read(&document).unwrap();
        assert!(rules_out(&refused, BootstrapMethod::FactoryCert).is_some());
        let shown = &refused.miaf_v0().unwrap().methods.shown;
        assert!(shown.chars().count() <= MAX_LISTED + 1 && !shown.contains('\u{1b}'));
        many.push(json!(FACTORY_CERT_MTLS));
        document["supportedBootstrapMethods"] = json!(many.clone());
        assert_eq!(rules_out(&read(&document).unwrap(), BootstrapMethod::FactoryCert), None);
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
