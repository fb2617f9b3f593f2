//! The chain of what was issued: a leaf, and the issuers that the EST endpoint serves (X60 to X63).

use std::sync::Arc;

use super::{MAX_PATH, ProvenEndpoint};
use crate::agent::blocking;
use crate::agent::identity::Identity;
use crate::agent::trust_domain::TrustDomain;
use crate::config::Enrollment;
use crate::hint::Hint as _;
use crate::issuer::{CaCertificates, EstEndpoint};
use crate::keys::Key;
use crate::lifecycle::{Failure, FailureKind, Lifecycle, NotAdopted};
use crate::platform::clock;
use crate::problem::{ProblemCode, Report};
use crate::state;
use miaf_spiffe::Bundle;
use miaf_spiffe::svid::{self, SvidError, X509Svid};
use miaf_spiffe::text::Excerpt;

/// Limit on the characters of the location of the trust bundle.
const MAX_LOCATION: usize = 160;

/// What to do where nothing leads from what was issued to the trust bundle.
const NO_PATH: &str = "Compare the CA that issued it with the CAs in the trust bundle, which this prints: miaf-agent bundle; \
     have the bundle, or what the EST endpoint serves at /cacerts, completed by the operator of the MIS";

impl Identity {
    /// Asks for the CA certificates of an endpoint before a token is spent on it: whether it is an EST
    /// server, and whether its CA is one of the trust bundle (X59). Nothing is said of the latter by a
    /// clock that is in doubt.
    pub(super) async fn prove_endpoint(
        &mut self,
        endpoint: &EstEndpoint,
        trust_domain: &TrustDomain,
        lifecycle: &Lifecycle,
    ) -> Result<(), Failure> {
        let now = clock::now();
        let bundle = trust_domain.bundle.as_ref().map(|cached| cached.bundle.clone());
        let bundle = bundle.filter(|_| lifecycle.trusts_clock(now));
        let is_proven = |proven: &ProvenEndpoint| proven.includes(&endpoint.url, bundle.as_deref());
        if self.est.proven.as_ref().is_some_and(is_proven) {
            return Ok(());
        }
        self.est.proven = None;
        let served = trust_domain.issuer.est_ca_certificates(endpoint).await.map_err(|e| e.to_failure())?;
        if let Some(bundle) = bundle.clone() {
            let checked = blocking(move || served.check_before_issuance(&bundle, now.wall)).await;
            checked.map_err(|why| {
                let title = match why.is_known() {
                    true => "The CA of the EST server may not issue SVIDs",
                    false => "The CA of the EST server is not one of the trust bundle",
                };
                let mut detail = format!("{}: {why}", Excerpt::of(endpoint.url.as_url(), MAX_PATH));
                let location = trust_domain.discovery.as_ref().map(|cached| cached.document.bundle());
                if let Some(location) = location.filter(|_| !why.is_known()) {
                    detail +=
                        &format!(". The trust bundle is that of {}", Excerpt::of(location, MAX_LOCATION));
                }
                let report = Report::new(ProblemCode::IssuerNotTrusted, title, &detail);
                let report = report.with_hint(why.hint()).with_consequence("No token was sent");
                Failure { kind: FailureKind::OtherAuthority, retry_after: None, report }
            })?;
        }
        self.est.proven = Some(ProvenEndpoint { url: endpoint.url.clone(), bundle });
        Ok(())
    }

    /// Looks for other issuers of the current SVID, where the trust bundle does not vouch for it any
    /// more. If they lead to an anchor, it is adopted once more with them, and no renewal is needed
    /// (X63).
    pub(super) async fn finds_another_path(
        &mut self,
        endpoint: &EstEndpoint,
        trust_domain: &TrustDomain,
    ) -> bool {
        let (Some(current), Some(bundle)) = (self.current.clone(), trust_domain.named_bundle()) else {
            return false;
        };
        let now = clock::now().wall;
        if !current.is_valid(now) || svid::is_trusted(&current.svid, bundle, now) {
            return false;
        }
        let Ok(issuers) = trust_domain.issuer.est_ca_certificates(endpoint).await else { return false };
        let (leaf, bundle) = (current.svid.chain().leaf().clone(), bundle.clone());
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

    /// A chain that is the leaf alone with the issuers that were found for it, if it is as good as it
    /// was then: what failed after that was on this device.
    pub(in crate::agent) fn assembled_before(
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
    pub(in crate::agent) async fn with_issuers(
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
}
