//! One identity's effects: its keys, the request for an SVID, and the adoption of the issued chain.

use std::borrow::Cow;
use std::sync::Arc;

use rustls::sign::CertifiedKey;

use super::admin::operator_hint;
use super::blocking;
use super::est::{self, EstState, IssuedBy};
use super::operator::{ImportedKey, MISSING_ISSUER};
use super::persist::{forget, save};
use super::provisioning::Provisioning;
use super::reporting::{cause, current_key_failure, hint, key_failure, local, state_failure};
use super::trust_domain::TrustDomain;
use crate::config::{Enrollment, IdentityConfig, WfmConfig};
use crate::hint::Hint as _;
use crate::issuer::{CertificateRequest, IssuerError, Wfm};
use crate::keys::{self, ErrorKind, Key, KeyError, Providers};
use crate::lifecycle::{
    Failure, FailureKind, IdentityAction, IdentityEvent, IdentityIndex, KeyChoice, KeyUse, Lifecycle,
    NotAdopted, Request, SvidFacts,
};
use crate::platform::{clock, random};
use crate::problem::{LastError, ProblemCode, Report, remedy};
use crate::publish;
use crate::publish::files::Publisher;
use crate::state::{self, Store};
use crate::transport::ClientIdentity;
use miaf_client::api::IdentityName;
use miaf_spiffe::svid::{self, Algorithms, Chain, Expectation, SvidError, X509Svid};
use miaf_spiffe::time::Timestamp;
use miaf_spiffe::{Bundle, BundleContent, MaybeNamedBundle, NameKind, SpiffeId};

/// Keys, SVID and issued chain of one identity.
pub(super) struct Identity {
    pub(super) index: IdentityIndex,
    pub(super) name: IdentityName,
    /// What the configuration says of it.
    pub(super) config: IdentityConfig,
    /// Its records.
    pub(super) store: Store,
    /// SVID and key that local programs use.
    pub(super) current: Option<Arc<publish::SvidAndKey>>,
    /// The key before that of the current SVID, if this process has replaced it.
    pub(super) previous_key: Option<Arc<dyn Key>>,
    /// The key created for the next SVID.
    pub(super) pending_key: Option<Arc<dyn Key>>,
    /// An issued chain that is not adopted yet.
    pub(super) issued: Option<state::StoredIssuedChain>,
    /// That chain has not been validated yet: it may have come after the action in flight was
    /// decided on.
    pub(super) issued_is_new: bool,
    /// The renewal moment in the record of the current SVID.
    pub(super) stored_renew_at: Option<Timestamp>,
    /// How long the key of the current SVID has been in use.
    pub(super) key_use: KeyUse,
    /// Publishes its files.
    pub(super) publisher: Publisher,
    /// What an enrollment over EST needs.
    pub(super) est: EstState,
    /// What is wrong with the files that an operator supplies.
    pub(super) operator_problem: Option<LastError>,
    /// The key of a refused pair of files.
    pub(super) imported_key: Option<ImportedKey>,
    /// The WFM that asked for the Retry-After delay of the last request, if one did.
    pub(super) delayed_by_wfm: Option<String>,
    /// When an operator had the last request made for whose certificate is waited.
    pub(super) requested_at: Option<Timestamp>,
}

/// What the actions of an identity need of the agent.
pub(super) struct Surroundings<'a> {
    pub(super) lifecycle: &'a Lifecycle,
    pub(super) trust_domain: &'a TrustDomain,
    pub(super) keys: &'a Providers,
    /// SVID and key of the device, for an enrollment that these authenticate (miaf-v0 W3).
    pub(super) device: Option<Arc<publish::SvidAndKey>>,
    pub(super) provisioning: &'a mut Provisioning,
}

impl Identity {
    pub(super) async fn execute(
        &mut self,
        action: IdentityAction,
        surroundings: Surroundings<'_>,
    ) -> IdentityEvent {
        match action {
            IdentityAction::ProveKey => IdentityEvent::KeyProven(self.prove_key().await),
            IdentityAction::CreateKey => IdentityEvent::KeyCreated(self.create_key(surroundings.keys).await),
            IdentityAction::Request(request, key) => {
                IdentityEvent::Issued(self.request(request, key, surroundings).await)
            }
            IdentityAction::Adopt { bundle_is_fresh } => {
                IdentityEvent::Adopted(self.adopt(bundle_is_fresh, surroundings).await)
            }
        }
    }

    /// Trust domain of the current SVID.
    pub(super) fn trust_domain(&self) -> Option<&miaf_spiffe::TrustDomain> {
        self.current.as_ref().map(|current| current.svid.spiffe_id().trust_domain())
    }

    /// Moves the end of the current SVID to where it lies under another bundle.
    pub(super) fn revalidate_under(&mut self, bundle: &BundleContent, now: Timestamp) {
        let Some(current) = &self.current else { return };
        let svid = current.svid.under(bundle, now);
        if svid != current.svid {
            self.current =
                Some(Arc::new(publish::SvidAndKey { svid, ..publish::SvidAndKey::clone(current) }));
        }
    }

    /// Creates the key for the next SVID, and stores it.
    pub(super) async fn create_key(&mut self, keys: &Providers) -> Result<(), Failure> {
        let (keys, provider) = (keys.clone(), self.config.key.provider);
        let current = self.current.as_ref().map(|current| current.key.clone());
        let (key, pem) = blocking(move || {
            // While a sealed key is out of reach, none under a lesser seal takes its place (miaf-v0
            // K2).
            let out_of_reach = current
                .filter(|current| current.provider() == provider)
                .map(|current| current.check_available());
            match out_of_reach {
                Some(Err(e)) if e.kind() != ErrorKind::KeyUnusable => return Err(e),
                _ => {}
            }
            let key = keys.create(provider)?;
            let pem = key.to_pem()?;
            Ok((key, pem))
        })
        .await
        .map_err(|e| key_failure(&e))?;
        let saved = save(&self.store, state::StoredPendingKey { key: pem }).await;
        saved.map_err(|e| state_failure(&e))?;
        self.pending_key = Some(key);
        Ok(())
    }

    async fn request(
        &mut self,
        request: Request,
        choice: KeyChoice,
        surroundings: Surroundings<'_>,
    ) -> Result<(), Failure> {
        if let Enrollment::Est(est) = self.config.enroll.clone() {
            return self.request_over_est(&est, request, choice, surroundings).await;
        }
        let Surroundings { lifecycle, trust_domain, keys, device, provisioning } = surroundings;
        let TrustDomain { issuer, discovery, .. } = trust_domain;
        let Some(discovery) = discovery else { return Err(IssuerError::NotDiscovered.to_failure()) };
        let document = &discovery.document;
        let credential = Credential::of(request, &self.config.enroll, self.current.clone(), device);
        let credential = credential.map_err(|e| e.to_failure())?;
        let key = self.key(choice)?;
        let csr = match blocking(move || keys::csr::certification_request(key.as_ref(), None)).await {
            Ok(csr) => CertificateRequest(csr),
            Err(e) if choice == KeyChoice::Pending && e.kind() == ErrorKind::KeyUnusable => {
                return Err(self.give_up_pending_key(&e, keys).await);
            }
            Err(e) if choice == KeyChoice::Current => return Err(current_key_failure(&e, None)),
            Err(e) => return Err(key_failure(&e)),
        };
        let view = lifecycle.identity(self.index);
        let may_rename = view.is_some_and(|view| view.may_be_renamed(clock::now()));
        let (response, credential) = match credential {
            Credential::Svid(current) => {
                let client = client_identity(&current).await?;
                let response = issuer.renew(document, current.svid.spiffe_id(), &csr, client).await;
                (response, current.credential.clone())
            }
            Credential::Device(device, wfm) => {
                let client = client_identity(&device).await.map_err(of_the_device)?;
                let bundle = trust_domain.named_bundle().cloned();
                (issuer.bind(document, &wfm, &csr, client, bundle).await, None)
            }
            Credential::Factory => {
                let client = provisioning.factory_credential(keys, lifecycle).await?;
                let sha256 = provisioning.bootstrap.facts().map(|facts| facts.sha256.clone());
                (issuer.enroll(document, &csr, client).await, sha256)
            }
        };
        self.delayed_by_wfm = match (&response, &self.config.enroll) {
            (Err(IssuerError::WfmRefused { .. }), Enrollment::WfmBinding(wfm)) => Some(wfm.url.to_string()),
            _ => None,
        };
        let issued = state::StoredIssuedChain {
            renewal: request == Request::Renew,
            for_pending_key: choice == KeyChoice::Pending,
            may_rename,
            credential,
            chain: response.map_err(|e| e.to_failure())?,
            lacks_issuers: false,
        };
        // If it cannot be stored it is lost with this process, and then requested again with the
        // same key.
        self.keep_issued(issued).await;
        Ok(())
    }

    /// Stores an issued chain until it is adopted. If that fails it is kept in memory: the
    /// MIS would count another one.
    pub(super) async fn keep_issued(&mut self, issued: state::StoredIssuedChain) {
        if let Err(e) = self.store_issued(issued.clone()).await {
            let identity = self.name.as_str();
            tracing::error!(identity, hint = hint(&e), "the issued SVID could not be stored: {}", cause(&e));
            self.issued = Some(issued);
            self.issued_is_new = true;
        }
    }

    /// Stores an issued chain until it is adopted.
    ///
    /// # Errors
    /// [`StoreError`](state::StoreError). The one before it stays then.
    pub(super) async fn store_issued(
        &mut self,
        issued: state::StoredIssuedChain,
    ) -> Result<(), state::StoreError> {
        save(&self.store, issued.clone()).await?;
        self.issued = Some(issued);
        self.issued_is_new = true;
        Ok(())
    }

    async fn prove_key(&self) -> Result<(), Failure> {
        let key = self.key(KeyChoice::Current)?;
        proven(&key).await.map_err(|e| current_key_failure(&e, self.lost_key_hint()))
    }

    /// What an operator has to do when the current key is lost. `None`: the agent enrolls by itself
    /// once the SVID has expired.
    pub(super) fn lost_key_hint(&self) -> Option<String> {
        match &self.config.enroll {
            enroll if enroll.is_by_operator() => Some(operator_hint(&self.name, Some(enroll))),
            Enrollment::Est(est) if est.certificate().is_none() => {
                remedy(ProblemCode::TokenNeeded).map(str::to_owned) // it permits another key (X70)
            }
            _ => None,
        }
    }

    /// Quarantines a pending key that this TPM does not know. An SVID for it would be of no use. In its
    /// place comes one that was quarantined before, and works again, if there is one.
    pub(super) async fn quarantine_pending_key(&mut self, e: &KeyError, keys: &Providers) {
        let (store, keys, why) = (self.store.clone(), keys.clone(), e.with_hint().to_string());
        let one_before = blocking(move || {
            store.quarantine::<state::StoredPendingKey>(&why);
            // The right TPM may be back, and the MIS know the key that was created in it then (E6).
            store.recover(|record: &state::StoredPendingKey| {
                let key = keys.open(&record.key).map_err(|e| e.to_string())?;
                key.sign(PROBE).map(|_signed| key).map_err(|e| e.to_string())
            })
        });
        self.pending_key = one_before.await.map(|(key, _)| key);
    }

    pub(super) async fn give_up_pending_key(&mut self, e: &KeyError, keys: &Providers) -> Failure {
        self.quarantine_pending_key(e, keys).await;
        // No remedy: the agent continues by itself, with the key that works again or with another.
        let report = Report::new(ProblemCode::Key, "The key for the next SVID is lost", e);
        match self.pending_key {
            Some(_) => Failure { kind: FailureKind::Transient, retry_after: None, report },
            None => Failure { kind: FailureKind::PendingKeyLost, retry_after: None, report },
        }
    }

    async fn adopt(
        &mut self,
        bundle_is_fresh: bool,
        surroundings: Surroundings<'_>,
    ) -> Result<SvidFacts, NotAdopted> {
        let Some(issued) = self.issued.clone() else {
            let why = "it is requested again";
            return Err(NotAdopted::Refused(local(ProblemCode::State, "The issued SVID is gone", &why)));
        };
        // The bundle was fetched for the sake of the chain before, if an operator has brought this one
        // meanwhile.
        let bundle_is_fresh = bundle_is_fresh && !std::mem::take(&mut self.issued_is_new);
        let Some(cached) = &surroundings.trust_domain.bundle else { return Err(NotAdopted::UnknownIssuer) };
        let choice = if issued.for_pending_key { KeyChoice::Pending } else { KeyChoice::Current };
        let key = self.key(choice).map_err(NotAdopted::Kept)?;
        let is_renewal = issued.renewal;
        let credential = issued.credential.clone();
        let validated = match bundle_for(&cached.bundle, &issued.chain) {
            Ok(bundle) => {
                let issued = if !issued.lacks_issuers {
                    issued
                } else if let Some(assembled) = self.assembled_before(&issued, &key, &bundle) {
                    assembled
                } else {
                    let trust_domain = surroundings.trust_domain;
                    self.with_issuers(issued, &key, bundle.clone(), bundle_is_fresh, trust_domain).await?
                };
                self.validate(&issued, &key, &bundle)
            }
            Err(why) => Err(why),
        };
        match validated {
            Ok(svid) => {
                let identity = publish::SvidAndKey { svid, key, credential };
                self.commit(identity, choice, is_renewal, &surroundings).await
            }
            Err(SvidError::NotYetValid { not_before }) => {
                tracing::info!(identity = self.name.as_str(), %not_before, "the new SVID is kept until it becomes valid");
                Err(NotAdopted::Early(not_before))
            }
            Err(why) if why.depends_on_bundle() && !bundle_is_fresh => Err(NotAdopted::UnknownIssuer),
            // It cost its operator some work, and no issuer would issue another.
            Err(why @ (SvidError::UnknownIssuer | SvidError::IssuerExpired { .. }))
                if self.config.enroll.is_by_operator() =>
            {
                let why = format!("{why}. It is stored, and adopted once the trust bundle vouches for it");
                let title = "The issuer of the certificate chain is not trusted";
                let mut failure = slow(ProblemCode::SvidRefused, title, &why);
                failure.report = failure.report.with_hint(Some(MISSING_ISSUER));
                Err(NotAdopted::IssuerExpired(failure))
            }
            Err(why @ SvidError::IssuerExpired { .. }) => {
                let why = format!(
                    "{why}. It is kept, in case another trust bundle vouches for it, and requested again slowly"
                );
                let title = "The issuer of the SVID that the MIS issued has expired";
                Err(NotAdopted::IssuerExpired(slow(ProblemCode::IssuerExpired, title, &why)))
            }
            Err(why) => {
                self.issued = None;
                let store = self.store.clone();
                blocking(move || forget::<state::StoredIssuedChain>(&store)).await;
                // Each costs the device one of its few renewals a day (E4).
                let report = if self.config.enroll.is_by_operator() {
                    let hint = self.what_to_bring(&why);
                    Report::new(ProblemCode::SvidRefused, "The certificate chain is refused", &why)
                        .with_hint(Some(hint))
                } else {
                    let report =
                        Report::of(ProblemCode::SvidRefused, "The SVID that the MIS issued is refused", &why);
                    match self.est_hint_about(&why, is_renewal, &surroundings) {
                        Some(hint) => report.with_hint(Some(hint)),
                        None => report,
                    }
                };
                Err(NotAdopted::Refused(Failure { kind: FailureKind::Slow, retry_after: None, report }))
            }
        }
    }

    /// What to do where an SVID that was issued over EST is refused, if that is known.
    fn est_hint_about(
        &self,
        why: &SvidError,
        is_renewal: bool,
        surroundings: &Surroundings<'_>,
    ) -> Option<Cow<'static, str>> {
        let Enrollment::Est(est) = &self.config.enroll else { return None };
        let Surroundings { lifecycle, trust_domain, .. } = surroundings;
        let document = trust_domain.discovery.as_ref().map(|cached| &cached.document);
        let is_named =
            document.is_some_and(|document| document.is_configured() && document.trust_domain().is_some());
        let has_svid = lifecycle.identities().any(|(_, view)| view.has_svid());
        let issued = IssuedBy {
            token: !is_renewal && est.certificate().is_none(),
            to_configured_domain: is_named && !has_svid,
        };
        est::hint_about(why, issued)
    }

    /// Validates an issued chain against every point of E4.
    pub(super) fn validate(
        &self,
        issued: &state::StoredIssuedChain,
        key: &Arc<dyn Key>,
        bundle: &Bundle,
    ) -> Result<X509Svid, SvidError> {
        let current = self.current.as_ref();
        let is_bound = |current: &&Arc<publish::SvidAndKey>| {
            !self.config.enroll.is_by_operator() && !may_rename(issued, current.credential.as_deref())
        };
        let bound = current.filter(is_bound).map(|current| current.svid.spiffe_id());
        let (wfm, client) = names_of_wfm(&self.config.enroll, bundle.trust_domain()).unzip();
        let demanded = self.config.spiffe_id.as_ref().or(client.as_ref().and_then(Option::as_ref));
        let expected = Expectation {
            trust_domain: bundle.trust_domain(),
            name: self.config.enroll.name_kind(),
            algorithms: algorithms(&self.config.enroll),
            wfm: wfm.as_ref(),
            spiffe_id: demanded.or(bound),
            spki_der: &key.public_key().spki_der(),
        };
        // An enrollment is accepted whatever its serial number: the device may have no other way
        // on.
        if let Some(current) = current.filter(|_| issued.renewal) {
            svid::check_new_serial(&issued.chain, &current.svid)?;
        }
        svid::validate(&issued.chain, &expected, bundle, clock::now().wall)
    }

    /// The moment at which the identity changes: one record with chain, key and renewal moment,
    /// written once.
    async fn commit(
        &mut self,
        identity: publish::SvidAndKey,
        choice: KeyChoice,
        is_renewal: bool,
        Surroundings { lifecycle, keys, .. }: &Surroundings<'_>,
    ) -> Result<SvidFacts, NotAdopted> {
        let (not_before, not_after) = (identity.svid.not_before(), identity.svid.until());
        let renew_at =
            lifecycle.draw_renewal(self.index, not_before, not_after, clock::now(), &mut random::unit);
        let key_fits = fits(&self.config, &identity.key);
        let is_same = self.current.as_ref().is_some_and(|current| {
            current.svid.chain().leaf() == identity.svid.chain().leaf() // with other issuers
        });
        let key_use = self.key_use_after(choice, is_renewal && !is_same);
        let facts = svid_facts(&identity.svid, Some(renew_at), choice, key_fits, key_use);
        let identity = Arc::new(identity);
        let record =
            record(&identity, Some(renew_at), key_use).map_err(|e| NotAdopted::Kept(key_failure(&e)))?;
        let saved = save(&self.store, record).await;
        saved.map_err(|e| NotAdopted::Kept(state_failure(&e)))?;
        self.forget_est_request(is_renewal).await;
        let (store, keys) = (self.store.clone(), (*keys).clone());
        let replaced = self.current.as_ref().filter(|_| choice == KeyChoice::Pending);
        let retired = key_to_retire(&mut self.previous_key, replaced.map(|current| &current.key));
        blocking(move || {
            forget::<state::StoredIssuedChain>(&store);
            if choice == KeyChoice::Pending {
                forget::<state::StoredPendingKey>(&store);
            }
            let retired = retired.map_or(Ok(()), |key| keys.retire(key.as_ref()));
            retired.unwrap_or_else(|e| {
                tracing::warn!(hint = hint(&e), "a replaced key could not be retired: {}", cause(&e));
            });
        })
        .await;
        self.issued = None;
        if choice == KeyChoice::Pending {
            self.pending_key = None;
        }
        self.log_adoption(&identity);
        (self.stored_renew_at, self.key_use) = (Some(renew_at), key_use);
        self.requested_at = None;
        self.current = Some(identity);
        Ok(facts)
    }

    /// The use of the key of an SVID that is adopted now.
    fn key_use_after(&self, choice: KeyChoice, is_renewal: bool) -> KeyUse {
        match choice {
            KeyChoice::Pending => KeyUse { renewals: 0, since: Some(clock::now().wall) },
            KeyChoice::Current => {
                let renewals = self.key_use.renewals.saturating_add(u32::from(is_renewal));
                KeyUse { renewals, ..self.key_use }
            }
        }
    }

    fn log_adoption(&self, identity: &publish::SvidAndKey) {
        let (name, svid, id) = (self.name.as_str(), &identity.svid, identity.svid.spiffe_id());
        let before = self.current.as_ref().map(|current| current.svid.spiffe_id());
        if let Some(before) = before.filter(|before| *before != id) {
            tracing::error!(
                identity = name,
                "this identity has another SPIFFE ID than it had: {id} in place of {before}"
            );
        }
        if self.config.enroll.name_kind() == NameKind::Device && !id.device_uuid_is_v4() {
            tracing::warn!(
                identity = name,
                "the UUID in the identity {id} is not of version 4, which the MIS should see to"
            );
        }
        if !svid.names_are_critical() {
            tracing::warn!(
                identity = name,
                "the new SVID has no subject, and its SAN is not critical, which RFC 5280 demands then: some programs \
                 may refuse it. The CA should issue it with one of the two"
            );
        }
        let (until, leaf_until) = (svid.until(), svid.not_after());
        tracing::info!(
            identity = name, spiffe_id = %id, serial = svid.serial(), not_before = %svid.not_before(),
            not_after = %until, key_protection = identity.key.protection().as_str(), "new SVID"
        );
        if until < leaf_until {
            tracing::warn!(
                identity = name,
                "an issuer of the new SVID ends at {until}, before the SVID itself at {leaf_until}: it cannot be used longer \
                 than that. The issuer should use a certificate that outlives what it issues"
            );
        }
    }

    pub(super) fn key(&self, choice: KeyChoice) -> Result<Arc<dyn Key>, Failure> {
        let key = match choice {
            KeyChoice::Pending => self.pending_key.clone(),
            KeyChoice::Current => self.current.as_ref().map(|current| current.key.clone()),
        };
        key.ok_or_else(|| {
            local(ProblemCode::State, "The key is gone", &"the agent's state was changed under it")
        })
    }
}

/// The bundle that an issued chain is validated against: before the trust domain is known, as that of the
/// trust domain in the SVID itself (miaf-est X22).
///
/// # Errors
/// [`SvidError`] when no SPIFFE ID names one.
pub(super) fn bundle_for(bundle: &MaybeNamedBundle, chain: &Chain) -> Result<Arc<Bundle>, SvidError> {
    if let Some(named) = bundle.named() {
        return Ok(named.clone());
    }
    let svid = X509Svid::from_stored(chain.clone())?;
    Ok(bundle.with_name(svid.spiffe_id().trust_domain()))
}

/// What authenticates a request.
#[derive(Debug)]
enum Credential {
    /// The factory certificate.
    Factory,
    /// The SVID of the device, and an assertion of the WFM (miaf-v0 W3).
    Device(Arc<publish::SvidAndKey>, Wfm),
    /// The current SVID.
    Svid(Arc<publish::SvidAndKey>),
}

impl Credential {
    /// The credential of a request. A renewal without an SVID is an error, and no enrollment: the
    /// factory certificate is shown only where the lifecycle has decided to.
    fn of(
        request: Request,
        enroll: &Enrollment,
        current: Option<Arc<publish::SvidAndKey>>,
        device: Option<Arc<publish::SvidAndKey>>,
    ) -> Result<Self, IssuerError> {
        match (request, enroll) {
            (Request::Enroll, Enrollment::FactoryCert) => Ok(Self::Factory),
            (Request::Enroll, Enrollment::WfmBinding(wfm)) => {
                let WfmConfig { url, wfm_id, client_handle } = wfm.clone();
                let wfm = Wfm { url, wfm_id, client_handle };
                device.map(|device| Self::Device(device, wfm)).ok_or(IssuerError::NoDeviceIdentity)
            }
            (_, Enrollment::Manual { .. } | Enrollment::Installed { .. }) => Err(IssuerError::ByOperator),
            (Request::Enroll, Enrollment::Est(_)) => Err(IssuerError::NotConfigured), // see request_over_est
            (Request::Renew, _) => current.map(Self::Svid).ok_or(IssuerError::NothingToRenew),
        }
    }
}

/// Client certificate and key for mTLS with the current SVID, with its complete chain (miaf-v0 E3,
/// R1).
pub(super) async fn client_identity(current: &publish::SvidAndKey) -> Result<ClientIdentity, Failure> {
    let key = current.key.clone();
    // Within a handshake a TPM that was replaced or cleared would look like a network that is down.
    prove(key.clone()).await?;
    let key = keys::rustls::signing_key(key);
    let chain = current.svid.chain().certificates().to_vec();
    ClientIdentity::new(CertifiedKey::new(chain, key))
        .map_err(|e| local(ProblemCode::Key, "The current key is not the one of the current SVID", &e))
}

/// The failure of another identity's request, which the device's key was to authenticate: its own
/// key is not lost with that of the device.
fn of_the_device(failure: Failure) -> Failure {
    if failure.kind != FailureKind::CurrentKeyLost {
        return failure;
    }
    let why = failure.report.detail.as_deref().unwrap_or(&failure.report.title);
    let title = "The key of the device, which authenticates this enrollment, is lost";
    let report = Report::new(ProblemCode::DeviceIdentityNeeded, title, &why);
    Failure { kind: FailureKind::Transient, retry_after: None, report }
}

/// The algorithms that the chain of an identity may have: v0's for the device that enrolls by v0, the
/// released ones otherwise (K4, N7, X45).
pub(super) fn algorithms(enroll: &Enrollment) -> Algorithms {
    match enroll {
        Enrollment::FactoryCert => Algorithms::MiafV0,
        _ => Algorithms::Released,
    }
}

/// The SPIFFE IDs of the WFM that an identity is bound to, and of the one client that it may be, if
/// that is configured (miaf-v0 W4).
fn names_of_wfm(
    enroll: &Enrollment,
    trust_domain: &miaf_spiffe::TrustDomain,
) -> Option<(SpiffeId, Option<SpiffeId>)> {
    let Enrollment::WfmBinding(wfm) = enroll else { return None };
    let id = SpiffeId::wfm(trust_domain, &wfm.wfm_id).ok()?;
    let client = wfm.client_handle.as_ref().and_then(|handle| id.client_of_wfm(handle).ok());
    Some((id, client))
}

fn slow(code: ProblemCode, title: &str, why: &dyn std::fmt::Display) -> Failure {
    Failure { kind: FailureKind::Slow, retry_after: None, report: Report::new(code, title, why) }
}

/// Puts a key that is replaced in the place of the one that was replaced before it, and returns that:
/// programs may still have the previous SVID, so its key is retired when the next one comes.
fn key_to_retire(
    previous: &mut Option<Arc<dyn Key>>,
    replaced: Option<&Arc<dyn Key>>,
) -> Option<Arc<dyn Key>> {
    replaced.and_then(|key| previous.replace(key.clone()))
}

/// Whether an issued chain may name another identity than the current one (miaf-v0 E9, R3).
fn may_rename(issued: &state::StoredIssuedChain, enrolled_with: Option<&str>) -> bool {
    let other_credential = match (issued.credential.as_deref(), enrolled_with) {
        (Some(shown), Some(enrolled_with)) => shown != enrolled_with,
        _ => false,
    };
    !issued.renewal && (issued.may_rename || other_credential)
}

/// Signed to prove that a key works.
const PROBE: &[u8] = b"miaf-agent: can this key still sign?";

/// Proves that the current key works.
async fn prove(key: Arc<dyn Key>) -> Result<(), Failure> {
    proven(&key).await.map_err(|e| current_key_failure(&e, None))
}

/// Has a key sign, to prove that it can.
pub(super) async fn proven(key: &Arc<dyn Key>) -> Result<(), KeyError> {
    let key = key.clone();
    blocking(move || key.sign(PROBE)).await.map(drop)
}

/// The record of an identity, with its renewal moment.
pub(super) fn record(
    identity: &publish::SvidAndKey,
    renew_at: Option<Timestamp>,
    key_use: KeyUse,
) -> Result<state::StoredIdentity, KeyError> {
    Ok(state::StoredIdentity {
        chain: identity.svid.chain().clone(),
        key: identity.key.to_pem()?,
        renew_at,
        credential: identity.credential.clone(),
        key_since: key_use.since,
        key_renewals: key_use.renewals,
    })
}

pub(super) fn svid_facts(
    svid: &X509Svid,
    renew_at: Option<Timestamp>,
    key: KeyChoice,
    key_fits: bool,
    key_use: KeyUse,
) -> SvidFacts {
    SvidFacts { not_before: svid.not_before(), not_after: svid.until(), renew_at, key, key_fits, key_use }
}

/// Whether a key is of the configured kind. One that is not is used for the SVID that it is bound
/// to, and no longer.
pub(super) fn fits(config: &IdentityConfig, key: &Arc<dyn Key>) -> bool {
    let fits = key.provider() == config.key.provider;
    if !fits {
        let (identity, protection) = (config.name.as_str(), key.protection().as_str());
        tracing::warn!(
            identity,
            protection,
            "the current key is not of the configured provider; the next SVID replaces it"
        );
    }
    fits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_without_an_svid_never_shows_the_factory_certificate() {
        let factory = Credential::of(Request::Enroll, &Enrollment::FactoryCert, None, None);
        assert!(matches!(factory, Ok(Credential::Factory)));
        let refused = Credential::of(Request::Renew, &Enrollment::FactoryCert, None, None);
        assert!(matches!(refused, Err(IssuerError::NothingToRenew)), "{refused:?}");
        for request in [Request::Enroll, Request::Renew] {
            let refused = Credential::of(request, &Enrollment::Manual { svid_file: None }, None, None);
            assert!(matches!(refused, Err(IssuerError::ByOperator)), "{refused:?}");
        }
    }

    #[test]
    fn lost_key_of_the_device_is_not_the_identitys_own() {
        let report = Report::new(ProblemCode::KeyLost, "The key of this device is lost", &"another TPM");
        let lost = Failure { kind: FailureKind::CurrentKeyLost, retry_after: None, report };
        let failure = of_the_device(lost.clone());
        assert_eq!(failure.kind, FailureKind::Transient);
        assert_eq!(failure.report.code, ProblemCode::DeviceIdentityNeeded);
        assert!(failure.report.detail.unwrap().contains("another TPM"));
        let other = Failure { kind: FailureKind::Local, ..lost };
        assert_eq!(of_the_device(other.clone()), other);
    }

    #[test]
    fn replaced_key_is_retired_when_the_next_one_comes() {
        let directory = tempfile::tempdir().unwrap();
        let software = keys::software::Software::new(None, directory.path().join("kek"));
        let [first, second, third] =
            std::array::from_fn(|_| Arc::new(software.create_key().unwrap()) as Arc<dyn Key>);
        let mut previous = None;
        // `None`: an enrollment, or a renewal with the same key.
        let steps = [
            (None, None),
            (Some(&first), None),
            (None, None),
            (Some(&second), Some(&first)),
            (None, None),
            (Some(&third), Some(&second)),
        ];
        for (replaced, expected) in steps {
            let retired = key_to_retire(&mut previous, replaced);
            assert!(match (&retired, expected) {
                (Some(retired), Some(expected)) => Arc::ptr_eq(retired, expected),
                (None, None) => true,
                _ => false,
            });
        }
        assert!(Arc::ptr_eq(&previous.unwrap(), &third), "it still signs for the previous SVID");
    }

    /// Rules R3 and E9: the SPIFFE IDs that the MIS may give.
    #[test]
    fn renaming_is_acceptable_by_rules_r3_and_e9() {
        let one = || Some("ab12".to_owned());
        let other = || Some("cd34".to_owned());
        for (renewal, may_be_renamed, shown, enrolled_with, expected) in [
            (false, false, one(), one(), false),
            (false, true, one(), one(), true),
            (false, false, other(), one(), true),
            (false, false, other(), None, false), // what it was enrolled with is unknown
            (false, false, None, one(), false),
            (true, true, other(), one(), false),
            (true, false, one(), one(), false),
        ] {
            let pair = rcgen::KeyPair::generate().unwrap();
            let der = rcgen::CertificateParams::default().self_signed(&pair).unwrap().der().clone();
            let chain = Chain::from_pem(&[svid::certificate_pem(&der)]).unwrap();
            let issued = state::StoredIssuedChain {
                renewal,
                for_pending_key: true,
                may_rename: may_be_renamed,
                credential: shown,
                chain,
                lacks_issuers: false,
            };
            assert_eq!(
                may_rename(&issued, enrolled_with.as_deref()),
                expected,
                "{issued:?} {enrolled_with:?}"
            );
        }
    }
}
