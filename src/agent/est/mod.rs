//! Enrollment and renewal over EST: the request, and what is durable before it is sent.

mod chain;
mod token;
mod used_tokens;

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use url::Url;

pub(super) use self::token::token_hint;
use self::token::{no_token, sent_again, with_token_source};
use self::used_tokens::{Standing, UsedTokens};
use super::blocking;
use super::identity::{Identity, Surroundings, client_identity};
use super::persist::save;
use super::reporting::{current_key_failure, key_failure, state_failure};
use super::trust_domain::TrustDomain;
use crate::config::{EstAuthorizationConfig, EstConfig};
use crate::issuer::{
    CertificateRequest, Discovery, EnrollmentToken, EstAuthorization, EstEndpoint, EstUrl, IssuerError,
};
use crate::keys::csr::{self, CsrContent};
use crate::keys::{ErrorKind, Key, Providers};
use crate::lifecycle::{Failure, KeyChoice, Request};
use crate::problem::{LastError, ProblemCode, Report};
use crate::state;
use miaf_spiffe::svid::{Chain, SvidError};
use miaf_spiffe::{BundleContent, MaybeNamedBundle, NameKind};

/// Limit on the characters of a path or URL in a message.
const MAX_PATH: usize = 512;

/// After so many equal errors of the server it may be the form of the request that it cannot bear.
const EQUAL_ERRORS: u32 = 3;

/// What to do then: some CAs answer an empty subject with an internal error (X46).
const EMPTY_SUBJECT: &str = "If the CA refuses a request without a name, set common_name under [identity.est]; otherwise show \
     this to the operator of the MIS";

/// What to do where the CA gives no SPIFFE ID: no EST server does by itself.
const NO_SPIFFE_ID: &str = "Have the operator of the CA register the SPIFFE ID of this identity, and have the CA put it into \
     what it issues; or, where it copies the names of the request, set request_spiffe_id under [identity.est]";

/// What to do where another SPIFFE ID was issued than the guard or the current SVID permits. Either may
/// be the wrong one.
const OTHER_SPIFFE_ID: &str = "If the issued SPIFFE ID is the right one, correct spiffe_id under the [[identity]]; otherwise have \
     the operator of the MIS authorize the right one";

/// What to do where a device was expected, and something else is issued.
const NOT_A_DEVICE: &str = "Remove allow_nonstandard under [identity.est], if the identity is that of a WFM Client; otherwise \
     have the operator of the MIS authorize the SPIFFE ID of this device";

/// What to do where a WFM Client was expected, and something else is issued.
const NOT_A_WFM_CLIENT: &str = "Have the operator of the MIS authorize the SPIFFE ID of a WFM Client; or, if the identity is that of \
     a device, set allow_nonstandard = true under [identity.est]";

/// What to do where an SVID of another trust domain was issued. All identities of a device are in one. The
/// one that is refused has nothing to be retired, perhaps, and others have.
const OTHER_TRUST_DOMAIN: &str = "Have the operator of the MIS authorize a SPIFFE ID in the trust domain of this device, in which all of its \
     identities are. To move the device to another one, correct [mis], then: systemctl reload miaf-agent; and for each \
     identity that has an SVID: miaf-agent retire --identity NAME";

/// What to do instead where nothing but the configuration says which trust domain that is.
const OTHER_THAN_CONFIGURED: &str = "If the issued SPIFFE ID is the right one, correct spiffe_id under [[identity]] or trust_domain under [mis], \
     whichever names the other trust domain; otherwise have the operator of the MIS authorize a SPIFFE ID in the trust \
     domain of this device";

/// What to add where the token of the enrollment is used up by then (X42).
const CORRECT_AT_ONCE: &str = "; correct it at once, since the MIS repeats its response for ten minutes: after that a fresh token is needed";

/// What an identity that enrolls over EST has, beside its keys and its SVID.
#[derive(Debug, Default)]
pub(super) struct EstState {
    /// `mis.est_url`
    url: Option<EstUrl>,
    /// What is repeated until it has succeeded, as stored.
    request: state::StoredEstRequest,
    /// The token that may be used.
    token: Option<EnrollmentToken>,
    /// The unused one that the file or the credential had when it was last read.
    provisioned: Option<EnrollmentToken>,
    /// The one that the issued certificate was requested with, until that is adopted.
    issued_with: Option<EnrollmentToken>,
    used: UsedTokens,
    /// What is remembered of tokens is not stored yet.
    is_used_changed: bool,
    /// The last error of the server at an enrollment, `5xx`, and how often it came in a row.
    server_error: Option<(u16, u32)>,
    /// What was requested is adopted, by a renewal or not, and the request is not wiped yet.
    unwiped: Option<Wiping>,
    /// The file of a token that is used up could not be removed.
    is_file_left: bool,
    /// The endpoint that has served its CA certificates, where no request has failed since.
    proven: Option<ProvenEndpoint>,
    /// The last chain that was assembled: an SVID that cannot be stored is no reason to ask the
    /// endpoint for its issuers again.
    assembled: Option<Chain>,
}

/// An EST endpoint that no token is wasted on.
#[derive(Clone, Debug)]
struct ProvenEndpoint {
    url: EstUrl,
    /// The bundle that its CA certificates may lead to. `None`: that was not checked.
    bundle: Option<MaybeNamedBundle>,
}

impl ProvenEndpoint {
    /// Whether it proves as much as is asked for.
    fn includes(&self, url: &EstUrl, bundle: Option<&BundleContent>) -> bool {
        let anchors = self.bundle.as_ref().map(|bundle| bundle.anchors());
        self.url == *url && bundle.is_none_or(|bundle| anchors == Some(bundle.anchors()))
    }
}

/// What is left to be done after the adoption of an SVID.
#[derive(Clone, Copy, Debug)]
struct Wiping {
    is_renewal: bool,
}

impl EstState {
    /// What the process before has left. `url`: `mis.est_url`. `adopted`: whether the SVID that is
    /// current was issued at a renewal, if the record of its issue is there still.
    pub(super) fn restored(
        url: Option<&Url>,
        request: state::StoredEstRequest,
        used: state::StoredTokens,
        adopted: Option<bool>,
    ) -> Self {
        let url = url.and_then(|url| EstUrl::parse(url.clone()).ok()); // the configuration has checked it
        let mut restored = Self { url, request, used: UsedTokens::restored(used), ..Self::default() };
        restored.token = restored.stored_token();
        restored.unwiped = match adopted {
            Some(is_renewal) => Some(Wiping { is_renewal }),
            None if restored.request.token.is_some() && restored.holds_spent_token() => {
                Some(Wiping { is_renewal: false })
            }
            None => None,
        };
        if restored.unwiped.is_some() {
            restored.token = None;
        }
        restored
    }

    /// Whether there is a token that may be used.
    pub(super) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Whether the configuration names the EST endpoint.
    pub(super) fn has_configured_url(&self) -> bool {
        self.url.is_some()
    }

    /// The last refusal of that token, by what is stored of it.
    pub(super) fn token_refusal(&self) -> Option<LastError> {
        let (refused, at) = self.used.refusals(self.token.as_ref()?)?;
        let title = "The MIS has refused the enrollment token";
        let detail =
            format!("it was refused {refused} times, the last time at {at}. {}", sent_again(refused));
        let report = Report::new(ProblemCode::TokenRefused, title, &detail);
        Some(LastError { report, at, permanent: false })
    }

    /// Counts equal errors of the server at an enrollment, and adds a hint to the third. A hint at a name
    /// that the request lacks is replaced where it has one.
    fn with_hint_at_subject(&mut self, failure: Failure, request: Request, est: &EstConfig) -> Failure {
        let status = failure.report.response.as_ref().map(|response| response.status);
        let status = status.filter(|_| request == Request::Enroll);
        let code = failure.report.code.known();
        let hint = match (status, code, names_in_request(est)) {
            (Some(400), Some(ProblemCode::RequestRefused), Some(names)) => Some(format!(
                "Remove {names} under [identity.est], if the server wants a request without names; otherwise show this to \
                 its operator; once it is corrected: miaf-agent retry"
            )),
            (Some(500), Some(ProblemCode::ServerError), _) if est.common_name.is_some() => {
                Some("If it lasts, have the operator of the EST server look into its log".to_owned())
            }
            _ => None,
        };
        let failure = match hint {
            Some(hint) => Failure { report: failure.report.with_hint(Some(hint)), ..failure },
            None => failure,
        };
        let status = status.filter(|status| matches!(status, 500..=599));
        self.server_error = status.map(|status| match self.server_error {
            Some((before, times)) if before == status => (status, times.saturating_add(1)),
            _ => (status, 1),
        });
        match self.server_error {
            Some((_, EQUAL_ERRORS..)) if est.common_name.is_none() => {
                Failure { report: failure.report.with_hint(Some(EMPTY_SUBJECT)), ..failure }
            }
            _ => failure,
        }
    }

    /// What is remembered of tokens that were used.
    pub(super) fn used_tokens(&self) -> &state::StoredTokens {
        self.used.stored()
    }

    /// The key that the token was sent with that may be used.
    pub(super) fn token_key(&self) -> Option<KeyChoice> {
        let for_pending_key = self.request.token_for_pending_key.filter(|_| self.has_token())?;
        Some(if for_pending_key { KeyChoice::Pending } else { KeyChoice::Current })
    }

    fn holds_spent_token(&self) -> bool {
        let token =
            self.request.token.as_ref().and_then(|token| EnrollmentToken::parse(token.as_bytes()).ok());
        token.is_some_and(|token| self.used.standing(&token) == Standing::Spent)
    }

    /// The EST endpoint: the configured one, or else that of the discovery document (X15).
    pub(super) fn endpoint(&self, est: &EstConfig, document: Option<&Discovery>) -> Option<EstEndpoint> {
        let url = self.url.as_ref().or_else(|| document.and_then(Discovery::est))?;
        Some(EstEndpoint { url: url.clone(), tls12: est.tls12 })
    }

    /// The token that is stored with a request, if it may be sent.
    fn stored_token(&self) -> Option<EnrollmentToken> {
        let token = EnrollmentToken::parse(self.request.token.as_ref()?.as_bytes()).ok()?;
        (self.used.standing(&token) == Standing::Usable).then_some(token)
    }
}

impl Identity {
    /// Requests an SVID over EST. What was issued is durable when this returns, without its issuers
    /// (X58, X59).
    pub(super) async fn request_over_est(
        &mut self,
        est: &EstConfig,
        request: Request,
        choice: KeyChoice,
        surroundings: Surroundings<'_>,
    ) -> Result<(), Failure> {
        let Surroundings { lifecycle, trust_domain, keys, provisioning, .. } = surroundings;
        let issuer = &trust_domain.issuer;
        let endpoint = self.est_endpoint(est, trust_domain).map_err(|e| e.to_failure())?;
        let current = self.current.clone();
        if request == Request::Renew && self.finds_another_path(&endpoint, trust_domain).await {
            return Ok(());
        }
        let key = self.key(choice)?;
        let spki = key.public_key().spki_der();
        let csr = self.est_csr(est, request, choice, key, keys).await?;
        let (response, credential) = match (request, &est.authorization) {
            (Request::Renew, _) => {
                let current = current.ok_or_else(|| IssuerError::NothingToRenew.to_failure())?;
                let client = client_identity(&current).await?;
                self.store_est_request(&csr, None).await?;
                let rekey = choice == KeyChoice::Pending;
                let response = issuer.est_renew(&endpoint, &csr, &spki, client, rekey).await;
                (response.map_err(|e| renewal_failure(&e, est)), current.credential.clone())
            }
            (Request::Enroll, EstAuthorizationConfig::Certificate(_)) => {
                let client = provisioning.est_credential(&self.name, keys, lifecycle).await?;
                self.store_est_request(&csr, None).await?;
                let authorization = EstAuthorization::Certificate(client);
                let response = issuer.est_enroll(&endpoint, &csr, &spki, authorization).await;
                (response.map_err(|e| e.to_failure()), provisioning.est_credential_sha256(&self.name))
            }
            (Request::Enroll, EstAuthorizationConfig::Token { .. }) => {
                let token = self.est.token.clone().ok_or_else(|| no_token(&self.config.enroll))?;
                self.prove_endpoint(&endpoint, trust_domain, lifecycle).await?;
                self.store_est_request(&csr, Some((&token, choice))).await?;
                let authorization = EstAuthorization::Token(token.clone());
                let response = issuer.est_enroll(&endpoint, &csr, &spki, authorization).await;
                (self.outcome_of_token(response, &token).await, None)
            }
        };
        let leaf = response.map_err(|failure| self.est.with_hint_at_subject(failure, request, est))?;
        let chain = Chain::from_der(&[leaf]).map_err(|e| IssuerError::Svid(e).to_failure())?;
        self.keep_issued(state::StoredIssuedChain {
            renewal: request == Request::Renew,
            for_pending_key: choice == KeyChoice::Pending,
            may_rename: false, // another SPIFFE ID is another identity (X57, Y14)
            credential,
            chain,
            lacks_issuers: true,
        })
        .await;
        Ok(())
    }

    fn est_endpoint(&self, est: &EstConfig, trust_domain: &TrustDomain) -> Result<EstEndpoint, IssuerError> {
        let document = trust_domain.discovery.as_ref().map(|cached| &cached.document);
        self.est.endpoint(est, document).ok_or(IssuerError::NotDiscovered)
    }

    /// The certification request: the one that was sent before, byte for byte, as long as it is for the
    /// same key and says the same (X48, X56).
    async fn est_csr(
        &mut self,
        est: &EstConfig,
        request: Request,
        choice: KeyChoice,
        key: Arc<dyn Key>,
        keys: &Providers,
    ) -> Result<CertificateRequest, Failure> {
        let leaf = match request {
            Request::Renew => self.current.as_ref().map(|current| current.svid.chain().leaf().clone()),
            Request::Enroll => None,
        };
        let (common_name, spiffe_id) = (est.common_name.clone(), est.request_spiffe_id.clone());
        let sent = self.est.request.csr.as_ref().and_then(|csr| BASE64.decode(csr).ok());
        let made = blocking(move || {
            let content = match &leaf {
                Some(leaf) => CsrContent::Renewal(leaf),
                None if common_name.is_none() && spiffe_id.is_none() => CsrContent::Empty,
                None => {
                    CsrContent::Named { common_name: common_name.as_deref(), spiffe_id: spiffe_id.as_ref() }
                }
            };
            csr::repeat_request(key.as_ref(), &content, sent)
        });
        match made.await {
            Ok(csr) => Ok(CertificateRequest(csr)),
            Err(e) if choice == KeyChoice::Pending && e.kind() == ErrorKind::KeyUnusable => {
                Err(self.give_up_pending_key(&e, keys).await)
            }
            Err(e) if choice == KeyChoice::Current => Err(current_key_failure(&e, self.lost_key_hint())),
            Err(e) => Err(key_failure(&e)),
        }
    }

    /// Stores what a request repeats, before it is sent.
    async fn store_est_request(
        &mut self,
        csr: &CertificateRequest,
        token: Option<(&EnrollmentToken, KeyChoice)>,
    ) -> Result<(), Failure> {
        let (token, token_for_pending_key) = match token {
            Some((token, key)) => (Some(token.expose().to_owned()), Some(key == KeyChoice::Pending)),
            // A token stays until it is used up, and with it the key that it was sent for.
            None => (self.est.request.token.clone(), self.est.request.token_for_pending_key),
        };
        let csr = Some(BASE64.encode(&csr.0));
        let request = state::StoredEstRequest { csr, token, token_for_pending_key };
        if request == self.est.request {
            return Ok(());
        }
        save(&self.store, request.clone()).await.map_err(|e| state_failure(&e))?;
        self.est.request = request;
        Ok(())
    }
}

/// The failure of a renewal. Where the SVID is refused that a token led to, another token is the way
/// out, whatever the reason is.
fn renewal_failure(error: &IssuerError, est: &EstConfig) -> Failure {
    let failure = error.to_failure();
    let is_refused = matches!(error, IssuerError::Est(error) if error.refuses_svid());
    let is_by_token = matches!(est.authorization, EstAuthorizationConfig::Token { .. });
    let Some(hint) = failure.report.hint().filter(|_| is_refused && is_by_token) else { return failure };
    let hint =
        format!("{hint}. A fresh enrollment token repairs it at once: miaf-agent enroll --token-file FILE");
    let hint = with_token_source(&hint, est);
    Failure { report: failure.report.with_hint(Some(hint)), ..failure }
}

/// The names that a request has, where it has any.
fn names_in_request(est: &EstConfig) -> Option<&'static str> {
    match (&est.common_name, &est.request_spiffe_id) {
        (Some(_), Some(_)) => Some("common_name and request_spiffe_id"),
        (Some(_), None) => Some("common_name"),
        (None, Some(_)) => Some("request_spiffe_id"),
        (None, None) => None,
    }
}

/// How an SVID was issued that is refused.
#[derive(Clone, Copy, Debug)]
pub(super) struct IssuedBy {
    /// At an enrollment by a token.
    pub(super) token: bool,
    /// The device has no SVID, and the configuration alone names its trust domain.
    pub(super) to_configured_domain: bool,
}

/// What to do where an SVID that was issued over EST is refused, if that is known.
pub(super) fn hint_about(why: &SvidError, issued: IssuedBy) -> Option<Cow<'static, str>> {
    use SvidError as E;
    let (hint, is_of_the_configuration) = match why {
        E::UriCount(0) | E::NotASpiffeId { .. } => (NO_SPIFFE_ID, false),
        E::OtherIdentity { .. } => (OTHER_SPIFFE_ID, true),
        E::OtherTrustDomain { .. } if issued.to_configured_domain => (OTHER_THAN_CONFIGURED, true),
        E::OtherTrustDomain { .. } => (OTHER_TRUST_DOMAIN, false),
        E::OtherKindOfName { want: NameKind::Device, .. } => (NOT_A_DEVICE, false),
        E::OtherKindOfName { want: NameKind::WfmClient, .. } => (NOT_A_WFM_CLIENT, false),
        _ => return None,
    };
    Some(match issued.token && is_of_the_configuration {
        true => format!("{hint}{CORRECT_AT_ONCE}").into(),
        false => hint.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::FailureKind;
    use crate::problem::ResponseReport;
    use miaf_spiffe::SpiffeId;

    fn failure(status: u16) -> Failure {
        let report = Report::new(ProblemCode::ServerError, "The server responded with an error", &"why");
        let response = ResponseReport { status, kind: None, instance: None };
        let report = Report { response: Some(response), ..report };
        Failure { kind: FailureKind::Transient, retry_after: None, report }
    }

    #[test]
    fn hint_about_a_refused_name_says_what_to_correct() {
        let renewed = IssuedBy { token: false, to_configured_domain: false };
        let hint_about = |why: &SvidError| hint_about(why, renewed);
        let id = |id: &str| SpiffeId::parse(id).unwrap();
        let client = id("spiffe://factory.example/margo/wfm/wfm-1/client/line-7");
        let other = id("spiffe://factory.example/margo/wfm/wfm-1/client/line-8");
        let guarded = SvidError::OtherIdentity { got: client.clone(), want: other };
        assert!(hint_about(&guarded).unwrap().contains("correct spiffe_id under the [[identity]]"));
        let want = miaf_spiffe::TrustDomain::parse("other.example").unwrap();
        let elsewhere = SvidError::OtherTrustDomain { got: client.clone(), want };
        assert!(hint_about(&elsewhere).unwrap().contains("in the trust domain of this device"));
        let not_a_device = SvidError::OtherKindOfName { got: client.clone(), want: NameKind::Device };
        assert!(hint_about(&not_a_device).unwrap().starts_with("Remove allow_nonstandard"));
        let not_a_client = SvidError::OtherKindOfName { got: client, want: NameKind::WfmClient };
        assert!(
            hint_about(&not_a_client).unwrap().ends_with("allow_nonstandard = true under [identity.est]")
        );
        assert!(hint_about(&SvidError::UriCount(0)).unwrap().contains("request_spiffe_id"));
        assert_eq!(hint_about(&SvidError::UriCount(2)), None);
        // The token is used up by then, and the response repeated for a while.
        let by_token = IssuedBy { token: true, to_configured_domain: true };
        for (why, correct) in
            [(&guarded, "spiffe_id"), (&elsewhere, "spiffe_id under [[identity]] or trust_domain")]
        {
            let hint = super::hint_about(why, by_token).unwrap();
            assert!(hint.contains(&format!("correct {correct}")) && !hint.contains("retire"), "{hint}");
            assert!(hint.contains("at once") && hint.ends_with("a fresh token is needed"), "{hint}");
        }
        assert!(!hint_about(&guarded).unwrap().contains("token"));
        let learnt = IssuedBy { token: true, to_configured_domain: false };
        assert!(super::hint_about(&elsewhere, learnt).unwrap().contains("retire --identity NAME"));
    }

    #[test]
    fn third_equal_error_hints_at_the_subject() {
        let of = |common_name: Option<&str>| EstConfig {
            authorization: EstAuthorizationConfig::Token { source: None, remove: false },
            common_name: common_name.map(str::to_owned),
            request_spiffe_id: None,
            allow_nonstandard: false,
            tls12: false,
        };
        let hints = |est: &EstConfig, statuses: &[u16], request| {
            let mut state = EstState::default();
            let mut hints = statuses.iter().map(|status| {
                let shown = state.with_hint_at_subject(failure(*status), request, est);
                shown.report.hint().is_some_and(|hint| hint.contains("common_name"))
            });
            hints.by_ref().collect::<Vec<_>>()
        };
        let enroll = Request::Enroll;
        assert_eq!(hints(&of(None), &[500, 500, 500, 500], enroll), [false, false, true, true]);
        assert_eq!(hints(&of(None), &[500, 503, 500, 400, 500, 500], enroll), [false; 6]);
        assert_eq!(hints(&of(Some("line-7")), &[500; 4], enroll), [false; 4]);
        assert_eq!(hints(&of(None), &[500; 4], Request::Renew), [false; 4]);
    }

    #[test]
    fn hint_at_a_refused_request_goes_by_the_names_in_it() {
        let id = SpiffeId::parse("spiffe://factory.example/margo/wfm/wfm-1/client/line-7").unwrap();
        let of = |common_name: Option<&str>, request_spiffe_id: Option<&SpiffeId>| EstConfig {
            authorization: EstAuthorizationConfig::Token { source: None, remove: false },
            common_name: common_name.map(str::to_owned),
            request_spiffe_id: request_spiffe_id.cloned(),
            allow_nonstandard: false,
            tls12: false,
        };
        let hint = |est: &EstConfig, status: u16, code, request| {
            let mut failure = failure(status);
            failure.report.code = ProblemCode::into(code);
            failure.report = failure.report.with_hint(Some("Set common_name"));
            let shown = EstState::default().with_hint_at_subject(failure, request, est);
            shown.report.hint().unwrap().to_owned()
        };
        let (enroll, refused) = (Request::Enroll, ProblemCode::RequestRefused);
        for (est, names) in [
            (of(Some("line-7"), None), "Remove common_name under"),
            (of(None, Some(&id)), "Remove request_spiffe_id under"),
            (of(Some("line-7"), Some(&id)), "Remove common_name and request_spiffe_id under"),
        ] {
            assert!(hint(&est, 400, refused, enroll).starts_with(names), "{est:?}");
            // A front end that refuses the certificate has not looked at the names.
            assert_eq!(hint(&est, 400, ProblemCode::NotAuthenticated, enroll), "Set common_name");
            assert_eq!(hint(&est, 413, refused, enroll), "Set common_name");
            assert_eq!(hint(&est, 400, refused, Request::Renew), "Set common_name");
            let is_set = est.common_name.is_some();
            assert_ne!(hint(&est, 500, ProblemCode::ServerError, enroll).contains("common_name"), is_set);
        }
        assert_eq!(hint(&of(None, None), 400, refused, enroll), "Set common_name");
    }
}
