//! The discovery document: the two members that Margo's released specification requires
//! (docs/conformance.md, N3), and the three further ones of MIAF v0 (D3 to D6), which an MIS that
//! issues nothing over the network does not have.

mod lists;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use url::Url;

use self::lists::{CrlUris, Listed};
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
    source: Source,
    bundle: BundleLocation,
    miaf_v0: Result<MiafV0, MissingMember>,
    est: Option<EstUrl>,
    /// Why there is none although it names one.
    refused_est: Option<DiscoveryError>,
    crl_uris: CrlUris,
}

/// What a document was read from, and the trust domain that is named there.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    /// An MIS has served it.
    Mis(TrustDomain),
    /// It is made of the configuration, which need not name the trust domain (miaf-est X22).
    Configuration(Option<TrustDomain>),
}

/// Describes it for people.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mis(name) => write!(f, "the discovery document of \"{name}\""),
            Self::Configuration(Some(name)) => {
                write!(f, "the configuration, which names the trust bundle of \"{name}\" itself,")
            }
            Self::Configuration(None) => {
                f.write_str("the configuration, which names the trust bundle itself,")
            }
        }
    }
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
        let source = Source::Mis(trust_domain);
        Ok(Self { source, bundle, miaf_v0, est, refused_est: None, crl_uris })
    }

    /// Document made of a configuration that names the bundle itself (N5): nothing is said of an
    /// MIS that issues over the network. `trust_domain`: `None` where the configuration does not say
    /// which one the bundle is of.
    pub fn of_bundle(trust_domain: Option<TrustDomain>, bundle: BundleLocation) -> Self {
        Self {
            source: Source::Configuration(trust_domain),
            bundle,
            miaf_v0: Err(MissingMember(BASE_URI)),
            est: None,
            refused_est: None,
            crl_uris: CrlUris::default(),
        }
    }

    /// The trust domain that it describes. `None`: it is made of a configuration that names none.
    pub fn trust_domain(&self) -> Option<&TrustDomain> {
        match &self.source {
            Source::Mis(name) => Some(name),
            Source::Configuration(name) => name.as_ref(),
        }
    }

    /// Whether it is made of the configuration, and no MIS has served it.
    pub fn is_configured(&self) -> bool {
        matches!(self.source, Source::Configuration(_))
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
                    self.source
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

    fn lacks(&self, title: &str, identity: &str, member: &str, wanted: &str, listed: &Listed) -> Report {
        let why = format_args!(
            "the {member} of {} lists [{}] and not {wanted}, which the identity \"{identity}\" needs",
            self.source, listed.shown
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
