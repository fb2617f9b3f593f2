//! Enrollment and renewal over EST: the request and what is durable before it is sent, the token that
//! authorizes it, and the chain of what was issued.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use url::Url;
use zeroize::Zeroizing;

use super::blocking;
use super::executor::Executor;
use super::identity::{Identity, Surroundings, client_identity};
use super::operator::{Supply, gone};
use super::persist::{forget, save};
use super::reporting::{cause, current_key_failure, hint, key_failure, state_failure};
use super::tokens::{MOST_REFUSALS, Standing, UsedTokens};
use super::trust_domain::TrustDomain;
use crate::config::{Enrollment, EstAuthorizationConfig, EstConfig};
use crate::hint::Reason;
use crate::issuer::{
    CaCertificates, CertificateRequest, Discovery, EnrollmentToken, EstAuthorization, EstEndpoint, EstUrl,
    IssuerError,
};
use crate::keys::csr::{self, CsrContent};
use crate::keys::{ErrorKind, Key, Providers};
use crate::lifecycle::{
    Event, Failure, FailureKind, IdentityIndex, KeyChoice, NotAdopted, Request, Supplied,
};
use crate::platform::credentials::Secret;
use crate::platform::{clock, files, random};
use crate::problem::{LastError, ProblemCode, Report};
use crate::server::command_queue::Decision;
use crate::state;
use miaf_spiffe::svid::{self, Chain, SvidError, X509Svid};
use miaf_spiffe::text::Excerpt;
use miaf_spiffe::{Bundle, NameKind};

/// Limit on the characters of a path in a message.
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

/// What to do where nothing leads from what was issued to the trust bundle.
const NO_PATH: &str = "Compare the CA that issued it with the CAs in the trust bundle, which this prints: miaf-agent bundle; \
     have the bundle, or what the EST endpoint serves at /cacerts, completed by the operator of the MIS";

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
    /// The endpoint that has served its CA certificates, where no request has failed since: a token
    /// is not wasted on something that is no EST server.
    proven: Option<EstUrl>,
    /// The last chain that was assembled: an SVID that cannot be stored is no reason to ask the
    /// endpoint for its issuers again.
    assembled: Option<Chain>,
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

    /// Counts equal errors of the server at an enrollment, and adds a hint to the third.
    fn with_hint_at_subject(&mut self, failure: Failure, request: Request, est: &EstConfig) -> Failure {
        let status = failure.report.response.as_ref().map(|response| response.status);
        let status = status.filter(|status| request == Request::Enroll && matches!(status, 500..=599));
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
                (response.map_err(|e| e.to_failure()), current.credential.clone())
            }
            (Request::Enroll, EstAuthorizationConfig::Certificate(_)) => {
                let client = provisioning.est_credential(&self.name, keys, lifecycle).await?;
                self.store_est_request(&csr, None).await?;
                let authorization = EstAuthorization::Certificate(client);
                let response = issuer.est_enroll(&endpoint, &csr, &spki, authorization).await;
                (response.map_err(|e| e.to_failure()), provisioning.est_credential_sha256(&self.name))
            }
            (Request::Enroll, EstAuthorizationConfig::Token { .. }) => {
                let token = self.est.token.clone().ok_or_else(no_token)?;
                if self.est.proven.as_ref() != Some(&endpoint.url) {
                    issuer.est_ca_certificates(&endpoint).await.map_err(|e| e.to_failure())?;
                    self.est.proven = Some(endpoint.url.clone());
                }
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

    /// Looks for other issuers of the current SVID, where the trust bundle does not vouch for it any
    /// more. If they lead to an anchor, it is adopted once more with them, and no renewal is needed
    /// (X63).
    async fn finds_another_path(&mut self, endpoint: &EstEndpoint, trust_domain: &TrustDomain) -> bool {
        let (Some(current), Some(cached)) = (self.current.clone(), &trust_domain.bundle) else {
            return false;
        };
        let now = clock::now().wall;
        if !current.is_valid(now) || svid::is_trusted(&current.svid, &cached.bundle, now) {
            return false;
        }
        let Ok(issuers) = trust_domain.issuer.est_ca_certificates(endpoint).await else { return false };
        let (leaf, bundle) = (current.svid.chain().leaf().clone(), cached.bundle.clone());
        let Ok(chain) = blocking(move || issuers.chain(&leaf, &bundle, now)).await else { return false };
        self.keep_issued(state::StoredIssuedChain {
            renewal: true,
            for_pending_key: false,
            may_rename: false,
            credential: current.credential.clone(),
            chain,
            lacks_issuers: false,
        })
        .await;
        true
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

    /// What follows from the response to a token: how often it may be sent yet.
    async fn outcome_of_token<T>(
        &mut self,
        response: Result<T, IssuerError>,
        token: &EnrollmentToken,
    ) -> Result<T, Failure> {
        let failure = match response {
            Ok(issued) => {
                self.est.issued_with = Some(token.clone());
                return Ok(issued);
            }
            Err(e) => e.to_failure(),
        };
        if failure.kind != FailureKind::Pending {
            self.est.proven = None;
        }
        if failure.kind != FailureKind::NotAuthenticated {
            return Err(failure);
        }
        let refused = self.est.used.refused(token, random::bytes(), clock::now().wall);
        self.save_used_tokens().await;
        let (kind, consequence) = match MOST_REFUSALS.saturating_sub(refused) {
            0 => {
                self.est.token = None;
                let consequence = format!("It was refused {refused} times, and is not sent again");
                (FailureKind::NoToken, consequence)
            }
            _ => (FailureKind::TokenRefused, sent_again(refused)),
        };
        let report = Report { code: ProblemCode::TokenRefused.into(), ..failure.report };
        let report = report.with_hint(None::<&str>).with_consequence(&consequence);
        Err(Failure { kind, report, ..failure })
    }

    /// A chain that is the leaf alone with the issuers that were found for it, if it is as good as it
    /// was then: what failed after that was on this device.
    pub(super) fn assembled_before(
        &self,
        issued: &state::StoredIssuedChain,
        key: &Arc<dyn Key>,
        bundle: &Bundle,
    ) -> Option<state::StoredIssuedChain> {
        let chain = self.est.assembled.as_ref().filter(|chain| chain.leaf() == issued.chain.leaf())?;
        let assembled =
            state::StoredIssuedChain { chain: chain.clone(), lacks_issuers: false, ..issued.clone() };
        self.validate(&assembled, key, bundle).is_ok().then_some(assembled)
    }

    /// Adds the issuers to a chain that is the leaf alone (X60, X62).
    pub(super) async fn with_issuers(
        &mut self,
        issued: state::StoredIssuedChain,
        key: &Arc<dyn Key>,
        bundle: Arc<Bundle>,
        bundle_is_fresh: bool,
        trust_domain: &TrustDomain,
    ) -> Result<state::StoredIssuedChain, NotAdopted> {
        let Enrollment::Est(est) = &self.config.enroll else { return Ok(issued) };
        // What is wrong with the certificate itself no issuer puts right: it is refused without any,
        // and not kept for the day that there are some.
        match self.validate(&issued, key, &bundle) {
            Err(why) if !why.depends_on_bundle() && !matches!(why, SvidError::NotYetValid { .. }) => {
                return Ok(issued);
            }
            _ => {}
        }
        let endpoint = self.est_endpoint(est, trust_domain).map_err(|e| NotAdopted::Kept(e.to_failure()))?;
        let issuers: CaCertificates = trust_domain
            .issuer
            .est_ca_certificates(&endpoint)
            .await
            .map_err(|e| NotAdopted::Kept(e.to_failure()))?;
        let leaf = issued.chain.leaf().clone();
        // One that is only early has its chain from the moment on at which it becomes valid.
        let begins = X509Svid::from_stored(issued.chain.clone()).map(|svid| svid.not_before());
        let at = begins.map_or(clock::now().wall, |begins| begins.max(clock::now().wall));
        // A server may serve what takes a while to search.
        match blocking(move || issuers.chain(&leaf, &bundle, at)).await {
            Ok(chain) => {
                self.est.assembled = Some(chain.clone());
                Ok(state::StoredIssuedChain { chain, lacks_issuers: false, ..issued })
            }
            // No other issuers would make it good, now at least: the leaf alone shows why.
            Err(why) if !why.may_change() => Ok(issued),
            Err(_) if !bundle_is_fresh => Err(NotAdopted::UnknownIssuer),
            Err(why) => {
                let why =
                    format!("{why}. It is stored, and used once the bundle or the endpoint leads to it");
                let title = "Nothing leads from the SVID that was issued to the trust bundle";
                let report = Report::new(ProblemCode::SvidRefused, title, &why).with_hint(Some(NO_PATH));
                Err(NotAdopted::NoPath(Failure { kind: FailureKind::Slow, retry_after: None, report }))
            }
        }
    }

    /// Wipes what was requested with, if a process before could not, or this one: the SVID that it led
    /// to is current.
    pub(super) async fn finish_est_request(&mut self) {
        let Some(Wiping { is_renewal }) = self.est.unwiped.take() else { return };
        self.forget_est_request(is_renewal).await;
        if self.est.unwiped.is_none() && self.issued.is_none() {
            let store = self.store.clone();
            blocking(move || forget::<state::StoredIssuedChain>(&store)).await;
        }
    }

    /// Wipes what the request needed that has led to the current SVID (X43). The record of what was
    /// issued is removed after that: as long as it is there, a restart finishes this.
    pub(super) async fn forget_est_request(&mut self, is_renewal: bool) {
        let Enrollment::Est(est) = self.config.enroll.clone() else { return };
        // Another token may have been handed over since the certificate was issued: that one is unused.
        let was_sent = self.est.request.was_token_sent();
        let stored = self.est.request.token.take().map(Zeroizing::new).filter(|_| was_sent);
        let stored = stored.and_then(|token| EnrollmentToken::parse(token.as_bytes()).ok());
        let used = self.est.issued_with.take().or(stored);
        if let Some(token) = used.filter(|_| !is_renewal) {
            self.est.used.spent(&token, random::bytes());
            self.save_used_tokens().await;
            if let EstAuthorizationConfig::Token { source: Some(source), remove: true } = &est.authorization {
                self.remove_token_file(source, token.expose()).await;
            }
        }
        (self.est.token, self.est.request) = (None, state::StoredEstRequest::default());
        (self.est.provisioned, self.est.assembled) = (None, None);
        let store = self.store.clone();
        if let Err(e) = blocking(move || store.remove::<state::StoredEstRequest>()).await {
            self.est.unwiped = Some(Wiping { is_renewal });
            let identity = self.name.as_str();
            tracing::warn!(
                identity,
                hint = hint(&e),
                "an enrollment request that is not needed any more could not be wiped: {}",
                cause(&e)
            );
        }
    }

    /// Whether something about tokens is to be tried again.
    pub(super) fn has_token_in_trouble(&self) -> bool {
        let EstState { unwiped, is_file_left, is_used_changed, .. } = &self.est;
        let is_unreadable =
            matches!(self.config.enroll, Enrollment::Est(_)) && self.operator_problem.is_some();
        unwiped.is_some() || *is_file_left || *is_used_changed || is_unreadable
    }

    /// Removes the file of a token that is used up, unless there is another one in it by now.
    async fn remove_token_file(&mut self, source: &Secret, token: &str) {
        let (Some(path), source) = (source.file(), source.clone()) else { return };
        let used = Zeroizing::new(token.to_owned());
        let file = path.clone();
        let removed = blocking(move || {
            let content = source.read().ok().and_then(|content| EnrollmentToken::parse(&content).ok());
            match content {
                Some(content) if content.expose() == used.as_str() => files::remove_if_there(&path),
                _ => Ok(()),
            }
        });
        let removed = removed.await;
        self.est.is_file_left = removed.is_err();
        if let Err(e) = removed {
            let identity = self.name.as_str();
            tracing::warn!(
                identity, file = %file.display(), hint = "Remove it, or make its directory writable for the agent",
                "the file of the enrollment token, which is used up, could not be removed: {}", cause(&e)
            );
        }
    }

    async fn save_used_tokens(&mut self) {
        let used = self.est.used.stored().clone();
        match save(&self.store, used).await {
            Ok(()) => self.est.is_used_changed = false,
            Err(e) => {
                self.est.is_used_changed = true;
                let identity = self.name.as_str();
                tracing::error!(
                    identity,
                    hint = hint(&e),
                    "what is remembered of enrollment tokens could not be stored: {}",
                    cause(&e)
                );
            }
        }
    }

    /// Reads the token that the configuration names, if it is there. One that was handed over by
    /// command, and is under way, serves otherwise.
    pub(super) async fn read_token(&mut self, source: Option<&Secret>) -> Result<Vec<Supplied>, Report> {
        if self.est.is_used_changed {
            self.save_used_tokens().await;
        }
        let stored = self.est.stored_token();
        let Some(source) = source.cloned() else { return Ok(self.supply_token(stored)) };
        let (shown, secret) = (source.shown(), source.clone());
        let read = blocking(move || match secret.file() {
            // Where it cannot be told whether it is there, the error of reading it says why.
            Some(file) if matches!(file.try_exists(), Ok(false)) => Ok(None),
            _ => secret.read().map(Some).map_err(|e| Reason::of(&e)),
        });
        let unusable = |why: &Reason| {
            let detail = format!("{}: {}", Excerpt::of(&shown, MAX_PATH), why.what);
            let report =
                Report::new(ProblemCode::TokenUnusable, "The enrollment token cannot be used", &detail);
            report.with_hint(why.hint.as_deref())
        };
        let Some(content) = read.await.map_err(|why| unusable(&why))? else {
            return Ok(self.supply_token(stored));
        };
        let token = EnrollmentToken::parse(&content).map_err(|e| unusable(&Reason::of(&e)))?;
        let standing = self.est.used.standing(&token);
        self.est.provisioned = Some(token.clone()).filter(|_| standing != Standing::Spent);
        match standing {
            Standing::Usable => {
                let supplied = self.supply_token(Some(token));
                if !supplied.is_empty()
                    && let Some(warning) = source.warning()
                {
                    tracing::warn!(identity = self.name.as_str(), "{warning}");
                }
                Ok(supplied)
            }
            Standing::Superseded => Ok(self.supply_token(stored)), // until there is another one in its place
            _ if stored.is_some() => Ok(self.supply_token(stored)),
            Standing::Spent if self.has_valid_svid() => {
                // As it should be. The process before may have ended before it removed it.
                if let Enrollment::Est(est) = self.config.enroll.clone()
                    && let EstAuthorizationConfig::Token { source: Some(source), remove: true } =
                        &est.authorization
                {
                    self.remove_token_file(source, token.expose()).await;
                }
                Ok(Vec::new())
            }
            Standing::Spent => {
                let why = Reason::from("it is used up: an SVID was issued for it")
                    .with_hint_text("Put a fresh token there; the agent reads it by itself");
                Err(unusable(&why))
            }
            Standing::Refused => {
                let why = Reason::from(format!("the MIS has refused it {MOST_REFUSALS} times")).with_hint_text(
                    "Put a fresh token there, which the agent reads by itself; if this one is good after all: \
                     miaf-agent retry",
                );
                Err(unusable(&why))
            }
        }
    }

    fn has_valid_svid(&self) -> bool {
        self.current.as_ref().is_some_and(|current| current.is_valid(clock::now().wall))
    }

    /// Takes a token as the one that may be used. Returns what the lifecycle has to know.
    fn supply_token(&mut self, token: Option<EnrollmentToken>) -> Vec<Supplied> {
        let Some(token) = token else { return Vec::new() };
        let is_known = self.est.token.as_ref().is_some_and(|known| known.expose() == token.expose());
        if is_known {
            return Vec::new();
        }
        self.est.token = Some(token);
        vec![Supplied::Token]
    }

    /// Has tokens that were refused sent again: an operator says so.
    pub(super) fn forgive_tokens(&mut self) {
        self.est.is_used_changed |= self.est.used.forgive();
        self.est.proven = None;
    }
}

impl Executor {
    /// Stores an enrollment token that an operator hands over, to be used for the next enrollment.
    ///
    /// # Errors
    /// Why it is refused. The one before it stays.
    pub(super) async fn enroll(&mut self, index: IdentityIndex, token: &str) -> Result<Supply, Reason> {
        let Some(identity) = self.identities.get_mut(index.0) else { return Err(gone()) };
        let token = EnrollmentToken::parse(token.as_bytes()).map_err(|e| Reason::of(&e))?;
        if identity.est.used.standing(&token) == Standing::Spent {
            let why = Reason::from("this token is used up: an SVID was issued for it");
            return Err(why.with_hint_text("Have the operator of the MIS create a fresh one"));
        }
        let before = &identity.est.request;
        let is_same = before.token.as_deref() == Some(token.expose());
        let request = state::StoredEstRequest {
            csr: before.csr.clone(),
            token: Some(token.expose().to_owned()),
            token_for_pending_key: before.token_for_pending_key.filter(|_| is_same),
        };
        save(&identity.store, request.clone()).await.map_err(|e| Reason::of(&e))?;
        identity.est.request = request;
        if identity.est.used.standing(&token) == Standing::Refused {
            identity.forgive_tokens(); // it is the operator's word that it is good
        }
        // The one before it may lie in a file that is read again and again.
        let before = identity.est.provisioned.as_ref().or(identity.est.token.as_ref());
        let mut is_changed = identity.est.used.supersede(before, &token, random::bytes());
        // What the one before it was good for is there, and is adopted later, by another process even.
        let awaits_adoption = identity.issued.as_ref().is_some_and(|issued| !issued.renewal);
        let with = identity.est.issued_with.as_ref().filter(|with| with.expose() != token.expose());
        if let Some(with) = with.filter(|_| awaits_adoption) {
            identity.est.used.spent(with, random::bytes());
            is_changed = true;
        }
        if is_changed {
            identity.save_used_tokens().await;
        }
        identity.est.token = None; // so that also the same one is news
        let supplied = identity.supply_token(Some(token));
        let detail = if identity.has_valid_svid() {
            "The token is stored. The identity has a valid SVID, which is renewed without it; it is used if the MIS does not \
             renew that one."
        } else {
            "The token is stored, and the identity is requested with it now; the status shows the result."
        };
        let events = supplied.into_iter().map(|what| Event::Supplied(index, what)).collect();
        Ok(Supply { decision: Decision::Accepted(detail.to_owned()), events })
    }
}

/// What to do where an SVID that was issued over EST is refused, if that is known.
pub(super) fn hint_about(why: &SvidError) -> Option<&'static str> {
    use SvidError as E;
    match why {
        E::UriCount(0) | E::NotASpiffeId { .. } => Some(NO_SPIFFE_ID),
        E::OtherIdentity { .. } => Some(OTHER_SPIFFE_ID),
        E::OtherKindOfName { want: NameKind::Device, .. } => Some(NOT_A_DEVICE),
        E::OtherKindOfName { want: NameKind::WfmClient, .. } => Some(NOT_A_WFM_CLIENT),
        _ => None,
    }
}

/// What becomes of a token that was refused so often.
fn sent_again(refused: u32) -> String {
    format!("It is sent again, {} times at most", MOST_REFUSALS.saturating_sub(refused))
}

fn no_token() -> Failure {
    let title = "This identity needs an enrollment token";
    let report = Report::new(ProblemCode::TokenNeeded, title, &"the one that there was is gone");
    Failure { kind: FailureKind::NoToken, retry_after: None, report }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let id = |id: &str| SpiffeId::parse(id).unwrap();
        let client = id("spiffe://factory.example/margo/wfm/wfm-1/client/line-7");
        let other = id("spiffe://factory.example/margo/wfm/wfm-1/client/line-8");
        let guarded = SvidError::OtherIdentity { got: client.clone(), want: other };
        assert!(hint_about(&guarded).unwrap().contains("correct spiffe_id under the [[identity]]"));
        let not_a_device = SvidError::OtherKindOfName { got: client.clone(), want: NameKind::Device };
        assert!(hint_about(&not_a_device).unwrap().starts_with("Remove allow_nonstandard"));
        let not_a_client = SvidError::OtherKindOfName { got: client, want: NameKind::WfmClient };
        assert!(
            hint_about(&not_a_client).unwrap().ends_with("allow_nonstandard = true under [identity.est]")
        );
        assert!(hint_about(&SvidError::UriCount(0)).unwrap().contains("request_spiffe_id"));
        assert_eq!(hint_about(&SvidError::UriCount(2)), None);
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
}
