//! The trust domain's effects: its issuer, and the cached discovery document and trust bundle.

use std::sync::Arc;

use super::blocking;
use super::identity::Identity;
use super::persist::Records;
use super::reporting::{Reporter, cause, hint};
use crate::config::{self, Enrollment, Staleness, TrustDomainSource};
use crate::hint::Hint as _;
use crate::issuer::{
    BootstrapMethod, BundleLocation, Discovery, EstUrl, Fetched, Issuer, IssuerError, NamedBy,
};
use crate::lifecycle::{BundleFacts, DiscoveryFacts, RuledOut, SvidTrust};
use crate::platform::clock;
use crate::problem::{ProblemCode, Report};
use crate::state;
use crate::transport::Validators;
use miaf_spiffe::text::Excerpt;
use miaf_spiffe::time::{Now, ProvenTime, Timestamp};
use miaf_spiffe::{
    Bundle, BundleContent, BundleWarning, MaybeNamedBundle, SequenceCheck, check_sequence, svid,
};

/// Limit on the characters of the source of a trust domain in a log event.
const MAX_SOURCE: usize = 512;
/// The stored age of the bundle is wrong by at most this part of the allowed one.
const STORED_AGES: u32 = 20;
/// What to do where the MIS issues nothing over the network.
const NOTHING_ISSUED: &str = "Set mis.discovery_url to an MIS that issues over the network; or have the operator of the MIS \
                              issue by hand: set enroll = \"manual\" for an identity, then: miaf-agent csr --identity NAME";

/// What to do where the discovery document names no EST endpoint.
const NO_EST: &str =
    "Ask the operator of the MIS for the URL of its EST endpoint, and set est_url under [mis]";

/// What to correct where a discovery document is of another trust domain than an SVID.
const OTHER_DISCOVERED: &str = "Correct the URL under [mis]";

/// What to correct where the configuration names another trust domain than that of an SVID.
const OTHER_CONFIGURED: &str =
    "Correct trust_domain and the trust bundle under [mis], or spiffe_id under [[identity]]";

/// Issuer and cached documents of the trust domain.
pub(super) struct TrustDomain {
    pub(super) issuer: Issuer,
    pub(super) discovery: Option<CachedDiscovery>,
    pub(super) bundle: Option<CachedBundle>,
    /// The operator accepts a bundle with a lower sequence (miaf-v0 B5).
    accepts_regressed_bundle: bool,
    /// When a bundle is stale.
    staleness: Staleness,
    /// When the bundle was known to be current, as of its record on the disk.
    stored_fetched_at: Option<Timestamp>,
    /// The last time that the MIS has proven, as far as the lifecycle knows it.
    observed: Option<ProvenTime>,
    /// The EST endpoint of the discovery document that was reported not to be in use.
    passed_over_est: Option<EstUrl>,
}

/// A discovery document and its record.
pub(super) struct CachedDiscovery {
    pub(super) document: Discovery,
    /// `None`: it is made of the configuration, and neither fetched nor stored.
    pub(super) record: Option<state::StoredDiscovery>,
}

impl CachedDiscovery {
    /// The document of a configuration that names the bundle itself. `None`: it names a discovery
    /// document.
    pub(super) fn configured(config: &config::MisConfig) -> Option<Self> {
        let bundle = match &config.source {
            TrustDomainSource::Discovery { .. } => return None,
            TrustDomainSource::BundleUrl(url) => BundleLocation::Url(url.clone()),
            TrustDomainSource::BundleFile(path) => BundleLocation::File(path.clone()),
        };
        Some(Self { document: Discovery::of_bundle(config.trust_domain.clone(), bundle), record: None })
    }

    /// Whether it may be used with these identities. A configuration that names another trust domain
    /// than that of an SVID is refused like a discovery document of another one.
    pub(super) fn may_be_of(&self, identities: &[Identity]) -> bool {
        let named = self.document.trust_domain().filter(|_| self.document.is_configured());
        named.is_none_or(|name| identities.iter().filter_map(Identity::trust_domain).all(|own| own == name))
    }
}

/// The trust domain that the device is in: as discovered or configured, or else that of its SVIDs, valid
/// or not. `None`: it is learnt from the first SVID (miaf-est X22).
pub(super) fn trust_domain<'a>(
    discovery: Option<&'a CachedDiscovery>,
    identities: &'a [Identity],
) -> Option<&'a miaf_spiffe::TrustDomain> {
    let named = discovery.and_then(|cached| cached.document.trust_domain());
    named.or_else(|| identities.iter().find_map(Identity::trust_domain))
}

/// A trust bundle and its record.
pub(super) struct CachedBundle {
    pub(super) bundle: MaybeNamedBundle,
    pub(super) record: state::StoredBundle,
}

impl CachedBundle {
    /// Whether it is the bundle of this trust domain; without one, any may be.
    fn may_be_of(&self, trust_domain: Option<&miaf_spiffe::TrustDomain>) -> bool {
        trust_domain.is_none_or(|name| self.bundle.trust_domain() == Some(name))
    }
}

impl TrustDomain {
    pub(super) fn new(
        issuer: Issuer,
        discovery: Option<CachedDiscovery>,
        bundle: Option<CachedBundle>,
        staleness: Staleness,
    ) -> Self {
        let stored_fetched_at = bundle.as_ref().map(|cached| cached.record.fetched_at);
        Self {
            issuer,
            discovery,
            bundle,
            accepts_regressed_bundle: false,
            staleness,
            stored_fetched_at,
            observed: None,
            passed_over_est: None,
        }
    }

    /// Name of the trust domain. Before there is an SVID that may be what a Bundle Map says.
    pub(super) fn name<'a>(&'a self, identities: &'a [Identity]) -> Option<&'a miaf_spiffe::TrustDomain> {
        let of_bundle = || self.bundle.as_ref().and_then(|cached| cached.bundle.trust_domain());
        trust_domain(self.discovery.as_ref(), identities).or_else(of_bundle)
    }

    /// The bundle, if it is known which trust domain it is of.
    pub(super) fn named_bundle(&self) -> Option<&Arc<Bundle>> {
        self.bundle.as_ref().and_then(|cached| cached.bundle.named())
    }

    /// Learns the name of the trust domain from the first SVID: the bundle is that of this domain from
    /// now on (miaf-est X22). It is durable already, in the record of the SVID.
    pub(super) async fn learn_name(&mut self, identities: &[Identity], records: &Records) {
        let Some(cached) = self.bundle.as_mut().filter(|cached| cached.bundle.named().is_none()) else {
            return;
        };
        let Some(name) = identities.iter().find_map(Identity::trust_domain) else { return };
        tracing::info!(trust_domain = %name, "trust domain learnt from the first SVID");
        cached.bundle = MaybeNamedBundle::Named(cached.bundle.with_name(name));
        cached.record.trust_domain = Some(name.clone());
        self.cache_bundle(records).await;
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
        let discovered = match &config.source {
            TrustDomainSource::Discovery { url, bundle_origins } => {
                let cached = self.discovery.as_ref();
                let stored = cached.and_then(|cached| Some((&cached.document, cached.record.as_ref()?)));
                let validators = stored.map(|(document, record)| (document, &record.validators));
                match (self.issuer.discover(url, validators, bundle_origins).await?, stored) {
                    (Fetched::New { document, body, validators }, _) => {
                        let record = state::StoredDiscovery { url: url.to_string(), body, validators };
                        CachedDiscovery { document, record: Some(record) }
                    }
                    (Fetched::NotModified, Some((document, _))) => {
                        let facts = discovery_facts(document, identities, false);
                        self.report_passed_over_est(config, identities);
                        return Ok(facts);
                    }
                    (Fetched::NotModified, None) => return Err(IssuerError::not_cached(url)),
                }
            }
            _ => CachedDiscovery::configured(config).ok_or(IssuerError::NotConfigured)?,
        };
        let CachedDiscovery { document, record } = &discovered;
        check_trust_domain(document, config, identities)?;
        let changed = self.discovery.as_ref().is_none_or(|cached| cached.document != *document);
        let is_stored = self.discovery.as_ref().is_some_and(|cached| cached.record == *record);
        if let Some(record) = record.clone().filter(|_| !is_stored) {
            let saved = records.save(record).await;
            saved.unwrap_or_else(|e| {
                tracing::warn!(hint = hint(&e), "the discovery document could not be cached: {}", cause(&e))
            });
        }
        if changed {
            let source = Excerpt::of(&config.source, MAX_SOURCE);
            let trust_domain = document.trust_domain().map(tracing::field::display);
            tracing::info!(trust_domain, %source, "discovered");
            if let Some(why) = document.refused_est() {
                tracing::warn!(
                    hint = hint(why),
                    "the EST endpoint in the discovery document is not used: {}",
                    cause(why)
                );
            }
            if let Some(unusable) = document.unusable_crl_uris() {
                tracing::warn!("CRLs in the discovery document are passed over: {unusable}");
            }
        }
        // Only a device without an SVID gets here under another trust domain: its old anchors are
        // of no use.
        let domain = trust_domain(Some(&discovered), identities);
        self.bundle = self.bundle.take().filter(|cached| cached.may_be_of(domain));
        let facts = discovery_facts(document, identities, changed);
        self.discovery = Some(discovered);
        self.report_passed_over_est(config, identities);
        Ok(facts)
    }

    /// Reports, once for each, an EST endpoint of the discovery document in whose place `mis.est_url`
    /// is used (X15).
    fn report_passed_over_est(&mut self, config: &config::MisConfig, identities: &[Identity]) {
        let is_used = identities.iter().any(|identity| matches!(identity.config.enroll, Enrollment::Est(_)));
        let configured = config.est_url.clone().filter(|_| is_used);
        let configured = configured.and_then(|url| EstUrl::parse(url).ok());
        let discovered = self.discovery.as_ref().and_then(|cached| cached.document.est());
        let passed_over = configured.as_ref().and(discovered).filter(|url| configured.as_ref() != Some(url));
        if self.passed_over_est.as_ref() == passed_over {
            return;
        }
        let passed_over = passed_over.cloned();
        if let (Some(in_use), Some(discovered)) = (&configured, &passed_over) {
            tracing::warn!(
                in_use = %Excerpt::of(in_use.as_url(), MAX_SOURCE),
                discovered = %Excerpt::of(discovered.as_url(), MAX_SOURCE),
                hint = "If the discovery document is right, remove est_url under [mis]",
                "mis.est_url is used, which differs from estBaseUri of the discovery document"
            );
        }
        self.passed_over_est = passed_over;
    }

    /// Fetches or revalidates the trust bundle, and holds the current SVIDs against it.
    pub(super) async fn fetch_bundle(
        &mut self,
        identities: &mut [Identity],
        records: &Records,
        reporter: &mut Reporter,
    ) -> Result<BundleFacts, IssuerError> {
        let Some(discovery) = &self.discovery else { return Err(IssuerError::NotDiscovered) };
        let location = discovery.document.bundle().clone();
        let domain = trust_domain(Some(discovery), identities).cloned();
        let cached = self.bundle.as_mut().filter(|cached| cached.may_be_of(domain.as_ref()));
        // Validators count only at the URL that they came from; the sequence number counts
        // everywhere (B5).
        let same_url = cached.as_ref().filter(|cached| cached.record.url == location.in_full());
        let validators = same_url.map(|cached| cached.record.validators.clone());
        let (fetched, changed_at) = match &location {
            BundleLocation::Url(url) => {
                (self.issuer.trust_bundle(url, domain.as_ref(), validators.as_ref()).await?, None)
            }
            BundleLocation::File(path) => {
                let path = path.clone();
                let read = blocking(move || Issuer::bundle_file(&path, domain.as_ref()));
                let (document, changed_at) = read.await?;
                let validators = Validators::default();
                (Fetched::New { document, body: String::new(), validators }, Some(changed_at))
            }
        };
        let now = clock::now().wall;
        // A file says nothing of the time after it was written.
        let fetched_at = changed_at.map_or(now, |changed_at| changed_at.min(now));
        let (document, validators) = match (fetched, cached) {
            (Fetched::New { document, validators, .. }, _) => (document, validators),
            (Fetched::NotModified, None) => return Err(not_cached(&location)),
            (Fetched::NotModified, Some(cached)) => {
                cached.record.fetched_at = now;
                reporter.report_anchors(&cached.bundle, identities, now);
                let facts = bundle_facts(&cached.bundle, identities, false, now, self.staleness);
                self.accepts_regressed_bundle = false; // what had gone back is as it was
                let had_gone_back = cached.record.regressed_since.take().is_some();
                if had_gone_back || self.age_is_to_be_stored(now) {
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
        let domain = document.trust_domain();
        // One of the two may not say which it is of.
        let is_same = |known: &miaf_spiffe::TrustDomain| domain.is_none_or(|name| name == known);
        let cached = self.bundle.as_mut().filter(|cached| cached.bundle.trust_domain().is_none_or(is_same));
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
            return Err(IssuerError::BundleRegressed { location, served, current, hint });
        }
        let is_new = cached.as_ref().is_none_or(|cached| cached.bundle != document);
        for identity in &mut *identities {
            identity.revalidate_under(&document, now);
        }
        let mut facts = bundle_facts(&document, identities, is_new, now, self.staleness);
        if changed_at.is_some() {
            facts.refresh_hint = None; // to read a file costs no server anything
        }
        let record = state::StoredBundle {
            url: location.in_full(),
            trust_domain: domain.cloned(),
            body,
            validators,
            fetched_at,
            regressed_since: None,
        };
        let is_stored = cached.is_some_and(|cached| {
            let stored = &cached.record;
            stored.url == record.url
                && stored.trust_domain == record.trust_domain
                && stored.body == record.body
                && stored.validators == record.validators
                && since.is_none()
        });
        self.accepts_regressed_bundle = false;
        reporter.report_anchors(&document, identities, now);
        if !is_stored {
            log_new_bundle(&document);
        }
        self.bundle = Some(CachedBundle { bundle: document, record });
        if !is_stored || self.age_is_to_be_stored(now) {
            self.cache_bundle(records).await;
        }
        Ok(facts)
    }

    async fn cache_bundle(&mut self, records: &Records) {
        let Some(cached) = &self.bundle else { return };
        let fetched_at = cached.record.fetched_at;
        match records.save(cached.record.clone()).await {
            Ok(()) => self.stored_fetched_at = Some(fetched_at),
            Err(e) => tracing::warn!(hint = hint(&e), "the trust bundle could not be cached: {}", cause(&e)),
        }
    }

    /// Whether the stored age of the bundle is too wrong to be judged by after a restart. A bundle
    /// that stays the same is not written at every poll: that spares the flash.
    fn age_is_to_be_stored(&self, now: Timestamp) -> bool {
        let Some(max_age) = self.staleness.max_age else { return false };
        let is_old = |stored: Timestamp| stored.until(now) >= max_age / STORED_AGES || stored > now;
        let newer = self.bundle.as_ref().map(|cached| cached.record.fetched_at);
        newer.is_some() && self.stored_fetched_at.is_none_or(|stored| newer != Some(stored) && is_old(stored))
    }

    /// Brings a moment that lies ahead, since the clock was set back, to the present: the age of
    /// the bundle counts from there.
    pub(super) fn clock_may_be_set(&mut self, now: Timestamp) {
        if let Some(cached) = &mut self.bundle {
            cached.record.fetched_at = cached.record.fetched_at.min(now);
        }
    }

    /// When the bundle becomes or became stale. `None`: never, or there is none.
    pub(super) fn stale_at(&self) -> Option<Timestamp> {
        let cached = self.bundle.as_ref()?;
        Some(cached.record.fetched_at.after(self.staleness.max_age?))
    }
}

/// Checks that the discovered trust domain is the configured one, and that of the current SVIDs.
fn check_trust_domain(
    document: &Discovery,
    config: &config::MisConfig,
    identities: &[Identity],
) -> Result<(), IssuerError> {
    let Some(got) = document.trust_domain().or_else(|| identities.iter().find_map(Identity::trust_domain))
    else {
        return Ok(());
    };
    let other = |want: &miaf_spiffe::TrustDomain, because, hint| {
        let named_by = match (document.is_configured(), document.trust_domain()) {
            (false, _) => NamedBy::Document(config.source.to_string()),
            (true, Some(_)) => NamedBy::Configuration,
            (true, None) => NamedBy::OtherIdentity,
        };
        let (got, want) = (got.clone(), want.clone());
        Err(IssuerError::OtherTrustDomain { named_by, got, want, because, hint })
    };
    if let Some(want) = config.trust_domain.as_ref().filter(|want| *want != got) {
        let hint = "Correct trust_domain or discovery_url under [mis]".into();
        return other(want, "the configuration says", hint);
    }
    for identity in identities {
        if let Some(want) = identity.trust_domain().filter(|want| *want != got) {
            let correct = if document.is_configured() { OTHER_CONFIGURED } else { OTHER_DISCOVERED };
            // The error is the device's: nothing else says which identity the command is about.
            let hint = format!(
                "{correct}. To move the device to another trust domain: miaf-agent retire --identity {}",
                identity.name
            );
            return other(want, "this device's identity is in", hint.into());
        }
    }
    Ok(())
}

fn log_new_bundle(bundle: &MaybeNamedBundle) {
    let (anchors, sequence) = (bundle.anchors().len(), bundle.sequence());
    match bundle.trust_domain() {
        Some(name) => tracing::info!(anchors, sequence, trust_domain = %name, "new trust bundle"),
        None => tracing::info!(
            anchors,
            sequence,
            "new trust bundle, of a trust domain that is not known yet: it is learnt from the first SVID"
        ),
    }
}

/// Facts of a discovery document.
pub(super) fn discovery_facts(
    document: &Discovery,
    identities: &[Identity],
    changed: bool,
) -> DiscoveryFacts {
    let ruled_out = |identity: &Identity| ruled_out(document, identity);
    DiscoveryFacts { changed, identities: identities.iter().map(ruled_out).collect() }
}

/// What a discovery document rules out for an identity.
fn ruled_out(document: &Discovery, identity: &Identity) -> RuledOut {
    let method = match identity.config.enroll {
        Enrollment::FactoryCert => BootstrapMethod::FactoryCert,
        Enrollment::WfmBinding(_) => BootstrapMethod::WfmBinding,
        Enrollment::Manual { .. } | Enrollment::Installed { .. } => return RuledOut::default(),
        Enrollment::Est(ref est) => {
            let missing = || {
                let needs = format!("which the identity \"{}\" needs (enroll = \"est\")", identity.name);
                match document.refused_est() {
                    Some(refused) => {
                        let title = "The EST endpoint of the discovery document is not used";
                        let why = format!("{refused}. It is the one {needs}");
                        Report::new(ProblemCode::UnsupportedByMis, title, &why).with_hint(refused.hint())
                    }
                    None => {
                        let title = "The MIS issues nothing over EST";
                        let why = format!("its estBaseUri is missing, {needs}");
                        Report::new(ProblemCode::UnsupportedByMis, title, &why).with_hint(Some(NO_EST))
                    }
                }
            };
            let report = identity.est.endpoint(est, Some(document)).is_none().then(missing);
            return RuledOut { enrollment: report.clone(), renewal: report };
        }
    };
    let name = identity.name.as_str();
    RuledOut {
        enrollment: document.rules_out_enrollment(method, name, NOTHING_ISSUED),
        renewal: document.rules_out_renewal(name, NOTHING_ISSUED),
    }
}

fn not_cached(location: &BundleLocation) -> IssuerError {
    match location {
        BundleLocation::Url(url) => IssuerError::not_cached(url),
        BundleLocation::File(_) => IssuerError::NotDiscovered, // a file is always read anew
    }
}

fn bundle_facts(
    bundle: &BundleContent,
    identities: &[Identity],
    is_new: bool,
    now: Timestamp,
    staleness: Staleness,
) -> BundleFacts {
    BundleFacts {
        refresh_hint: bundle.refresh_hint().map(|hint| staleness.limit_refresh(hint)),
        is_empty: bundle.anchors().is_empty(),
        is_new,
        svids: identities.iter().map(|identity| svid_trust(bundle, identity, now)).collect(),
    }
}

/// What a bundle means for the current SVID of an identity.
fn svid_trust(bundle: &BundleContent, identity: &Identity, now: Timestamp) -> SvidTrust {
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
