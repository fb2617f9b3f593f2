//! `[identity.est]`: how an identity enrolls over EST (RFC 7030), and when its key is replaced.

use std::ops::Range;
use std::time::Duration;

use toml::Spanned;
use url::Url;

use super::reader::{CredentialKeys, Reader};
use super::{
    BootstrapConfig, Config, ConfigError, CredentialKind, Enrollment, IdentityConfig, MisConfig,
    TrustDomainSource, raw,
};
use crate::hint::Reason;
use crate::platform::credentials::Secret;
use miaf_spiffe::text::Excerpt;
use miaf_spiffe::{NameKind, SpiffeId};

/// Limit on the bytes of a common name (RFC 5280 appendix A.1, `ub-common-name`).
const MAX_COMMON_NAME: usize = 64;
/// Limit on the renewals after which a key is replaced.
const MAX_RENEWALS: u32 = 100_000;
/// Limit on the characters of the name of a file or credential in a message.
const MAX_SOURCE: usize = 512;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// `[identity.est]`
#[derive(Clone, Debug, PartialEq)]
pub struct EstConfig {
    /// What authorizes an enrollment.
    pub authorization: EstAuthorizationConfig,
    /// Common name of the first request, for servers that refuse an empty subject (X46).
    pub common_name: Option<String>,
    /// SPIFFE ID of the first request, for servers that copy it (X46).
    pub request_spiffe_id: Option<SpiffeId>,
    /// The identity is that of a device, which Margo does not define over EST (X7).
    pub allow_nonstandard: bool,
    /// TLS 1.2 is good enough for the EST endpoint (X26).
    pub tls12: bool,
}

impl Config {
    /// Describes what is allowed and hardly meant, with what to do.
    pub fn warnings(&self) -> Vec<Reason> {
        let mut known: Vec<(&IdentityConfig, &EstConfig, &Secret)> = Vec::new();
        let mut warnings = Vec::new();
        for identity in &self.identities {
            let Enrollment::Est(est) = &identity.enroll else { continue };
            let Some(source) = est.token() else { continue };
            if let Some((first, of_first, _)) = known.iter().find(|(.., known)| *known == source) {
                // Where the request says which SPIFFE ID it is for, it may be the account of a CA.
                if of_first.request_spiffe_id.is_none() || est.request_spiffe_id.is_none() {
                    warnings.push(shared_token(first, identity, source));
                }
            } else {
                known.push((identity, est, source));
            }
        }
        warnings
    }
}

fn shared_token(first: &IdentityConfig, second: &IdentityConfig, source: &Secret) -> Reason {
    let what = format!(
        "the identities \"{}\" and \"{}\" have one enrollment token, {}. A token is for one SPIFFE ID, and as a rule for \
         one key: the second of them is refused",
        first.name,
        second.name,
        Excerpt::of(source.shown(), MAX_SOURCE)
    );
    Reason::from(what)
        .with_hint_text("Set token under [identity.est] of each to a file or credential of its own")
}

/// What authorizes an enrollment: the presence of a certificate is the choice (X27).
#[derive(Clone, Debug, PartialEq)]
pub enum EstAuthorizationConfig {
    /// An enrollment token (X31).
    Token {
        /// Where it is found. Without one it is brought by `miaf-agent enroll`.
        source: Option<Secret>,
        /// Its file is removed when it is used up.
        remove: bool,
    },
    /// A certificate that the MIS accepts, with everything that the factory credential can be.
    Certificate(BootstrapConfig),
}

impl EstConfig {
    /// The source of the token, in the token form.
    pub fn token(&self) -> Option<&Secret> {
        match &self.authorization {
            EstAuthorizationConfig::Token { source, .. } => source.as_ref(),
            EstAuthorizationConfig::Certificate(_) => None,
        }
    }

    /// The certificate, in the certificate form.
    pub fn certificate(&self) -> Option<&BootstrapConfig> {
        match &self.authorization {
            EstAuthorizationConfig::Token { .. } => None,
            EstAuthorizationConfig::Certificate(certificate) => Some(certificate),
        }
    }
}

/// `key.rotate`: when a renewal is for a new key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotate {
    /// `false`: never.
    Never,
    /// `true`: at every renewal.
    Always,
    /// A number: at the renewal after this many with the same key.
    AfterRenewals(u32),
    /// A duration: at the first renewal when the key is of this age.
    AfterAge(Duration),
}

/// The form of the SPIFFE IDs to which an enrollment over EST leads: a WFM Client's, or a device's
/// where that is allowed (X7).
pub(super) fn name_kind(allow_nonstandard: bool) -> NameKind {
    if allow_nonstandard { NameKind::Device } else { NameKind::WfmClient }
}

const KEYS: CredentialKeys = CredentialKeys {
    kind: CredentialKind::Est,
    section: "identity.est",
    cert: "identity.est.cert",
    key: "identity.est.key",
    key_auth: "identity.est.key_auth",
};

impl Reader<'_> {
    pub(super) fn est(&self, section: &Spanned<raw::Est>) -> Result<EstConfig, ConfigError> {
        let est = section.get_ref();
        let common_name = est.common_name.as_ref().map(|name| self.common_name(name)).transpose()?;
        let allow_nonstandard = est.allow_nonstandard.unwrap_or_default();
        let kind = name_kind(allow_nonstandard);
        let request_spiffe_id = est.request_spiffe_id.as_ref().map(|id| {
            let key = "identity.est.request_spiffe_id";
            let parsed = SpiffeId::parse(id.get_ref())
                .map_err(|why| self.wrong(&id.span(), key, format!("it is not a SPIFFE ID: {why}")))?;
            if kind.includes(&parsed) {
                return Ok(parsed);
            }
            let what = format!("it does not name {}, to which this identity leads", kind.in_words());
            Err(self.wrong(&id.span(), key, what).with_hint_text(format!("Write {}", kind.form())))
        });
        Ok(EstConfig {
            authorization: self.est_authorization(section)?,
            common_name,
            request_spiffe_id: request_spiffe_id.transpose()?,
            allow_nonstandard,
            tls12: est.tls12.unwrap_or_default(),
        })
    }

    fn est_authorization(&self, section: &Spanned<raw::Est>) -> Result<EstAuthorizationConfig, ConfigError> {
        let est = section.get_ref();
        let of_certificate = [
            est.cert_file.as_ref().map(|file| ("cert_file", file.span())),
            est.cert.as_ref().map(|cert| ("cert", cert.span())),
            est.key.as_ref().map(|key| ("key", key.span())),
        ];
        let of_certificate = of_certificate.into_iter().flatten().next();
        let of_token = [
            est.token.as_ref().map(|token| ("identity.est.token", token.span())),
            est.remove_token.as_ref().map(|remove| ("identity.est.remove_token", remove.span())),
        ];
        let of_token = of_token.into_iter().flatten().next();
        match (of_token, of_certificate) {
            (Some((token, token_span)), Some((certificate, span))) => {
                Err(self.either(token, &token_span, certificate, &span))
            }
            (None, Some(_)) => {
                let credential = raw::Bootstrap {
                    method: None,
                    cert_file: est.cert_file.clone(),
                    cert: est.cert.clone(),
                    intermediates_file: est.intermediates_file.clone(),
                    key: est.key.clone(),
                    key_auth: est.key_auth.clone(),
                };
                let credential = Spanned::new(section.span(), credential);
                self.credential(&credential, &KEYS).map(EstAuthorizationConfig::Certificate)
            }
            (_, None) => {
                let source = est.token.as_ref().map(|token| self.secret("identity.est.token", token));
                let source = source.transpose()?;
                let remove = est.remove_token.as_ref();
                if let (Some(remove), None | Some(Secret::Credential(_))) =
                    (remove.filter(|remove| *remove.get_ref()), &source)
                {
                    let what = "only the file of a token can be removed";
                    return Err(self
                        .wrong(&remove.span(), "identity.est.remove_token", what)
                        .with_hint_text("Set token = \"file:PATH\", or remove remove_token"));
                }
                Ok(EstAuthorizationConfig::Token {
                    source,
                    remove: remove.is_some_and(|remove| *remove.get_ref()),
                })
            }
        }
    }

    fn common_name(&self, name: &Spanned<String>) -> Result<String, ConfigError> {
        let text = name.get_ref();
        if (1..=MAX_COMMON_NAME).contains(&text.len()) && !text.chars().any(char::is_control) {
            return Ok(text.clone());
        }
        let what = "it is not 1 to 64 bytes without control characters";
        let hint = "Write a name as the CA asks for it, such as \"line-7\"";
        Err(self.wrong(&name.span(), "identity.est.common_name", what).with_hint_text(hint))
    }

    /// Validates `mis.est_url` (X16).
    pub(super) fn est_url(&self, text: &Spanned<String>) -> Result<Url, ConfigError> {
        let url = self.https_url("mis.est_url", text)?;
        if url.query().is_some() || url.fragment().is_some() {
            let what = "it has a query or a fragment";
            let hint = "Write the base URL alone, such as \"https://mis.example/.well-known/est\": /simpleenroll \
                        and its like are appended";
            return Err(self.wrong(&text.span(), "mis.est_url", what).with_hint_text(hint));
        }
        Ok(url)
    }

    /// Checks that something says where the EST endpoint is (X15, X22).
    pub(super) fn check_est_url(
        &self,
        raw: &raw::File,
        identities: &[IdentityConfig],
        mis: Option<&MisConfig>,
    ) -> Result<(), ConfigError> {
        let Some(mis) = mis else { return Ok(()) };
        if mis.est_url.is_some() || matches!(mis.source, TrustDomainSource::Discovery { .. }) {
            return Ok(());
        }
        let needs = |identity: &IdentityConfig| matches!(identity.enroll, Enrollment::Est(_));
        let Some((_, entry)) = identities.iter().zip(&raw.identity.0).find(|(identity, _)| needs(identity))
        else {
            return Ok(());
        };
        let what =
            "\"est\" needs the address of an EST endpoint, and there is no discovery document to name it";
        let hint = "Add est_url = \"https://…/.well-known/est\" under [mis]";
        Err(self.wrong(&entry.span(), "identity.enroll", what).with_hint_text(hint))
    }

    /// Validates `rotate`.
    pub(super) fn rotate(
        &self,
        key: &'static str,
        value: Option<&Spanned<raw::Rotate>>,
        default: Rotate,
    ) -> Result<Rotate, ConfigError> {
        let Some(value) = value else { return Ok(default) };
        let wrong = |span: &Range<usize>, what: String| {
            self.wrong(span, key, what)
                .with_hint_text("Write true, false, a number of renewals, or an age: \"90d\"")
        };
        match value.get_ref() {
            raw::Rotate::Switch(true) => Ok(Rotate::Always),
            raw::Rotate::Switch(false) => Ok(Rotate::Never),
            raw::Rotate::Renewals(number) => u32::try_from(*number)
                .ok()
                .filter(|number| (1..=MAX_RENEWALS).contains(number))
                .map(Rotate::AfterRenewals)
                .ok_or_else(|| {
                    wrong(&value.span(), format!("must lie between 1 and {MAX_RENEWALS} renewals"))
                }),
            raw::Rotate::Age(text) => {
                let age = humantime::parse_duration(text).ok();
                let allowed = Duration::from_secs(60)..=10_000 * DAY;
                age.filter(|age| allowed.contains(age)).map(Rotate::AfterAge).ok_or_else(|| {
                    wrong(&value.span(), "it is not an age from a minute to 10000 days".to_owned())
                })
            }
        }
    }
}
