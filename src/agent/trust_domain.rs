//! The trust domain's effects: its issuer, and the cached discovery document and trust bundle.

use std::sync::Arc;

use super::identity::Identity;
use super::persist::Records;
use super::reporting::{Reporter, cause, hint};
use crate::config::{self, Enrollment};
use crate::issuer::{self, Discovery, Fetched, Issuer, IssuerError};
use crate::lifecycle::{BundleFacts, DiscoveryFacts, RuledOut, SvidTrust};
use crate::platform::clock;
use crate::problem::{ProblemCode, Report};
use crate::state;
use crate::transport::Validators;
use miaf_spiffe::text::Excerpt;
use miaf_spiffe::time::{Now, ProvenTime, Timestamp};
use miaf_spiffe::{Bundle, BundleWarning, SequenceCheck, check_sequence, svid};

/// Issuer and cached documents of the trust domain.
pub(super) struct TrustDomain {
    pub(super) issuer: Issuer,
    pub(super) discovery: Option<CachedDiscovery>,
    pub(super) bundle: Option<CachedBundle>,
    /// The operator accepts a bundle with a lower sequence (miaf-v0 B5).
    accepts_regressed_bundle: bool,
    /// The last time that the MIS has proven, as far as the lifecycle knows it.
    observed: Option<ProvenTime>,
}

/// A discovery document and its record.
pub(super) struct CachedDiscovery {
    pub(super) document: Discovery,
    pub(super) record: state::StoredDiscovery,
}

/// A trust bundle and its record.
pub(super) struct CachedBundle {
    pub(super) bundle: Arc<Bundle>,
    pub(super) record: state::StoredBundle,
}

impl TrustDomain {
    pub(super) fn new(
        issuer: Issuer,
        discovery: Option<CachedDiscovery>,
        bundle: Option<CachedBundle>,
    ) -> Self {
        Self { issuer, discovery, bundle, accepts_regressed_bundle: false, observed: None }
    }

    /// Name of the trust domain, as discovered.
    pub(super) fn name(&self) -> Option<&miaf_spiffe::TrustDomain> {
        self.discovery.as_ref().map(|cached| cached.document.trust_domain())
    }

    /// The time that the MIS has proven since the last call.
    pub(super) fn newly_proven_time(&mut self, now: Now) -> Option<Timestamp> {
        let latest = self.issuer.transport().proven_time();
        let is_new = latest != self.observed;
        self.observed = latest;
        latest.filter(|_| is_new).map(|proof| proof.wall.after(proof.at.until(now.boot)))
    }

    /// Accepts the bundle with a lower sequence that is served now: of another that goes back later
    /// the operator has said nothing.
    pub(super) fn accept_regressed_bundle(&mut self) {
        self.accepts_regressed_bundle =
            self.bundle.as_ref().is_some_and(|cached| cached.record.regressed_since.is_some());
    }

    /// Fetches or revalidates the discovery document.
    pub(super) async fn fetch_discovery(
        &mut self,
        config: Option<&config::MisConfig>,
        identities: &[Identity],
        records: &Records,
    ) -> Result<DiscoveryFacts, IssuerError> {
        let Some(config) = config else { return Err(IssuerError::NotConfigured) };
        let url = &config.discovery_url;
        let cached = self.discovery.as_ref().map(|cached| (&cached.document, &cached.record.validators));
        let (document, body, validators) = match (self.issuer.discover(url, cached).await?, &self.discovery) {
            (Fetched::New { document, body, validators }, _) => (document, body, validators),
            (Fetched::NotModified, Some(cached)) => {
                return Ok(discovery_facts(&cached.document, identities, false));
            }
            (Fetched::NotModified, None) => return Err(IssuerError::not_cached(url)),
        };
        check_trust_domain(&document, config, identities)?;
        let changed = self.discovery.as_ref().is_none_or(|cached| cached.document != document);
        let record = state::StoredDiscovery { url: url.to_string(), body, validators };
        if self.discovery.as_ref().is_none_or(|cached| cached.record != record) {
            let saved = records.save(record.clone()).await;
            saved.unwrap_or_else(|e| {
                tracing::warn!(hint = hint(&e), "the discovery document could not be cached: {}", cause(&e))
            });
        }
        if changed {
            tracing::info!(trust_domain = %document.trust_domain(), url = %url, "discovered");
        }
        // Only a device without an SVID gets here under another trust domain: its old anchors are
        // of no use.
        let domain = document.trust_domain();
        self.bundle = self.bundle.take().filter(|cached| cached.record.trust_domain == *domain);
        let facts = discovery_facts(&document, identities, changed);
        self.discovery = Some(CachedDiscovery { document, record });
        Ok(facts)
    }

    /// Fetches or revalidates the trust bundle, and holds the current SVIDs against it.
    pub(super) async fn fetch_bundle(
        &mut self,
        identities: &mut [Identity],
        records: &Records,
        reporter: &mut Reporter,
    ) -> Result<BundleFacts, IssuerError> {
        let Some(discovery) = &self.discovery else { return Err(IssuerError::NotDiscovered) };
        let (url, domain) =
            (discovery.document.trust_bundle_uri().clone(), discovery.document.trust_domain().clone());
        let cached = self.bundle.as_mut().filter(|cached| cached.record.trust_domain == domain);
        // Validators count only at the URL that they came from; the sequence number counts
        // everywhere (B5).
        let same_url = cached.as_ref().filter(|cached| cached.record.url == url.as_str());
        let validators = same_url.map(|cached| cached.record.validators.clone());
        let fetched = self.issuer.trust_bundle(&url, &domain, validators.as_ref()).await?;
        let now = clock::now().wall;
        let (document, validators) = match (fetched, cached) {
            (Fetched::New { document, validators, .. }, _) => (document, validators),
            (Fetched::NotModified, None) => return Err(IssuerError::not_cached(&url)),
            (Fetched::NotModified, Some(cached)) => {
                cached.record.fetched_at = now;
                reporter.report_anchors(&cached.bundle, identities, now);
                let facts = bundle_facts(&cached.bundle, identities, false, now);
                self.accepts_regressed_bundle = false; // what had gone back is as it was
                if cached.record.regressed_since.take().is_some() {
                    self.cache_bundle(records).await;
                }
                return Ok(facts);
            }
        };
        // Only what counts is stored: the rest of what was served may be much, and changes by
        // itself.
        let body = serde_json::to_string(&document.to_document()).unwrap_or_default();
        // What is wrong with the rest is found out anew after a restart.
        let is_whole = !document.warnings().iter().any(BundleWarning::is_loss);
        let validators = if is_whole { validators } else { Validators::default() };
        let cached = self.bundle.as_mut().filter(|cached| cached.record.trust_domain == domain);
        let (before, since) = cached
            .as_ref()
            .map_or((None, None), |cached| (cached.bundle.sequence(), cached.record.regressed_since));
        let verdict = check_sequence(before, document.sequence(), since, now);
        if let SequenceCheck::Regressed { since: from } = verdict
            && !self.accepts_regressed_bundle
        {
            if let Some(cached) = cached {
                cached.record.regressed_since = Some(from);
            }
            if since != Some(from) {
                self.cache_bundle(records).await;
            }
            let (served, current) = (document.sequence().unwrap_or(0), before.unwrap_or(0));
            let hint = "To accept it now: miaf-agent retry";
            return Err(IssuerError::BundleRegressed { url, served, current, hint });
        }
        let is_new = cached.as_ref().is_none_or(|cached| *cached.bundle != document);
        for identity in &mut *identities {
            identity.revalidate_under(&document, now);
        }
        let facts = bundle_facts(&document, identities, is_new, now);
        let record = state::StoredBundle {
            url: url.to_string(),
            trust_domain: domain,
            body,
            validators,
            fetched_at: now,
            regressed_since: None,
        };
        let is_stored = cached.is_some_and(|cached| {
            let stored = &cached.record;
            stored.url == record.url
                && stored.body == record.body
                && stored.validators == record.validators
                && since.is_none()
        });
        self.accepts_regressed_bundle = false;
        reporter.report_anchors(&document, identities, now);
        if !is_stored {
            log_new_bundle(&document);
        }
        self.bundle = Some(CachedBundle { bundle: Arc::new(document), record });
        if !is_stored {
            self.cache_bundle(records).await;
        }
        Ok(facts)
    }

    async fn cache_bundle(&self, records: &Records) {
        let Some(cached) = &self.bundle else { return };
        let saved = records.save(cached.record.clone()).await;
        saved.unwrap_or_else(|e| {
            tracing::warn!(hint = hint(&e), "the trust bundle could not be cached: {}", cause(&e))
        });
    }
}

/// Checks that the discovered trust domain is the configured one, and that of the current SVIDs.
fn check_trust_domain(
    document: &Discovery,
    config: &config::MisConfig,
    identities: &[Identity],
) -> Result<(), IssuerError> {
    let configured = config
        .trust_domain
        .iter()
        .map(|want| (want, "the configuration says", "Correct trust_domain or discovery_url under [mis]"));
    let current = identities.iter().filter_map(Identity::trust_domain).map(|want| {
        let hint = "Correct discovery_url under [mis]. To move the device to another trust domain: miaf-agent retire";
        (want, "this device's identity is in", hint)
    });
    for (want, because, hint) in configured.chain(current) {
        if want != document.trust_domain() {
            let (url, got) = (config.discovery_url.clone(), document.trust_domain().clone());
            return Err(IssuerError::OtherTrustDomain { url, got, want: want.clone(), because, hint });
        }
    }
    Ok(())
}

fn log_new_bundle(bundle: &Bundle) {
    let (anchors, sequence) = (bundle.anchors().len(), bundle.sequence());
    tracing::info!(anchors, sequence, trust_domain = %bundle.trust_domain(), "new trust bundle");
}

/// Facts of a discovery document.
pub(super) fn discovery_facts(
    document: &Discovery,
    identities: &[Identity],
    changed: bool,
) -> DiscoveryFacts {
    let ruled_out = |identity: &Identity| ruled_out(document, &identity.config.enroll);
    DiscoveryFacts { changed, identities: identities.iter().map(ruled_out).collect() }
}

/// What a discovery document rules out for an identity.
fn ruled_out(document: &Discovery, enroll: &Enrollment) -> RuledOut {
    if enroll.is_by_operator() {
        return RuledOut::default();
    }
    let lacks = |what: &str, wanted: &str, listed: &Excerpt| {
        let detail = format!(
            "the discovery document of \"{}\" lists [{listed}] and not {wanted}",
            document.trust_domain()
        );
        Report::new(ProblemCode::UnsupportedByMis, what, &detail)
    };
    let cannot_renew = (!document.issues_x509_svids()).then(|| {
        lacks(
            "The MIS does not issue the kind of identity this device needs",
            issuer::X509_SVID_V1,
            document.profiles(),
        )
    });
    let no_method = (!document.accepts_factory_certificate()).then(|| {
        lacks("The MIS does not accept factory certificates", issuer::FACTORY_CERT_MTLS, document.methods())
    });
    RuledOut { enrollment: cannot_renew.clone().or(no_method), renewal: cannot_renew }
}

fn bundle_facts(bundle: &Bundle, identities: &[Identity], is_new: bool, now: Timestamp) -> BundleFacts {
    BundleFacts {
        refresh_hint: bundle.refresh_hint(),
        is_empty: bundle.anchors().is_empty(),
        is_new,
        svids: identities.iter().map(|identity| svid_trust(bundle, identity, now)).collect(),
    }
}

/// What a bundle means for the current SVID of an identity.
fn svid_trust(bundle: &Bundle, identity: &Identity, now: Timestamp) -> SvidTrust {
    let current = identity.current.as_deref();
    let valid = current.filter(|current| current.is_valid(now) && !bundle.anchors().is_empty());
    let vouching = valid.map(|current| svid::trust_path(&current.svid, bundle, now));
    let anchor = vouching.as_ref().and_then(|vouching| Some(vouching.as_ref()?.anchor));
    SvidTrust {
        vouches: vouching.as_ref().map(Option::is_some),
        svid_ends: current.map(|current| current.svid.until()),
        anchor_changes: anchor
            .map(|anchor| if now < anchor.not_before { anchor.not_before } else { anchor.not_after }),
    }
}
