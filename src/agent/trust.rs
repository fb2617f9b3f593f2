//! Carrying out: the discovery document and the trust bundle.

use std::sync::Arc;

use super::device::{Device, HeldDiscovery, KeptBundle};
use super::failures::cause;
use crate::issuer::{self, Discovery, Fetched, IssuerError};
use crate::lifecycle::{BundleFacts, Discovered, Report};
use crate::platform::clock;
use crate::publish::Identity;
use crate::spiffe::{Bundle, BundleWarning, SequenceCheck, check_sequence, svid};
use crate::store;
use crate::text::Excerpt;
use crate::time::Timestamp;
use crate::transport::Validators;

impl Device {
    pub(super) async fn fetch_discovery(&mut self) -> Result<Discovered, IssuerError> {
        let Some(config) = &self.config.mis else { return Err(IssuerError::NotConfigured) };
        let url = &config.discovery_url;
        let held = self.discovery.as_ref().map(|held| (&held.document, &held.cached.validators));
        let (document, body, validators) = match (self.issuer.discover(url, held).await?, &self.discovery) {
            (Fetched::New { document, body, validators }, _) => (document, body, validators),
            (Fetched::NotModified, Some(held)) => return Ok(discovered(&held.document, false)),
            (Fetched::NotModified, None) => return Err(IssuerError::not_cached(url)),
        };
        let domains = [
            (config.trust_domain.as_ref(), "the configuration says", ""),
            (
                self.identity.as_ref().map(|i| i.svid.spiffe_id().trust_domain()),
                "this device's identity is in",
                ", which it leaves only on purpose: by the command miaf-agent reset-identity",
            ),
        ];
        for (want, because, way_out) in domains {
            if let Some(want) = want.filter(|want| *want != document.trust_domain()) {
                let (url, got, want) = (url.clone(), document.trust_domain().clone(), want.clone());
                return Err(IssuerError::OtherTrustDomain { url, got, want, because, way_out });
            }
        }
        let changed = self.discovery.as_ref().is_none_or(|held| held.document != document);
        let cached = store::CachedDiscovery { url: url.to_string(), body, validators };
        if self.discovery.as_ref().is_none_or(|held| held.cached != cached) {
            let saved = self.save(cached.clone()).await;
            saved.unwrap_or_else(|e| {
                tracing::warn!("the discovery document could not be cached: {}", cause(&e))
            });
        }
        if changed {
            tracing::info!(trust_domain = %document.trust_domain(), url = %url, "discovered");
        }
        // Only a device without an identity gets here under another trust domain: its old anchors are of no use.
        self.bundle = self.bundle.take().filter(|kept| kept.cached.trust_domain == *document.trust_domain());
        let facts = discovered(&document, changed);
        self.discovery = Some(HeldDiscovery { document, cached });
        Ok(facts)
    }

    pub(super) async fn fetch_bundle(&mut self) -> Result<BundleFacts, IssuerError> {
        let Some(discovery) = &self.discovery else { return Err(IssuerError::NotDiscovered) };
        let (url, domain) =
            (discovery.document.trust_bundle_uri().clone(), discovery.document.trust_domain().clone());
        let held = self.bundle.as_mut().filter(|kept| kept.cached.trust_domain == domain);
        // What revalidates a document is of use only where it came from; its sequence number counts everywhere (B5).
        let same_place = held.as_ref().filter(|kept| kept.cached.url == url.as_str());
        let validators = same_place.map(|kept| kept.cached.validators.clone());
        let fetched = self.issuer.trust_bundle(&url, &domain, validators.as_ref()).await?;
        let now = clock::now().wall;
        match (fetched, held) {
            (Fetched::NotModified, Some(kept)) => {
                kept.cached.fetched_at = now;
                self.spoken.of_anchors(&kept.bundle, self.identity.as_ref().map(|i| &i.svid), now);
                let facts = bundle_facts(&kept.bundle, self.identity.as_deref(), false, now);
                self.accepts_regressed_bundle = false; // what had gone back is as it was
                if kept.cached.regressed_since.take().is_some() {
                    self.cache_bundle().await;
                }
                Ok(facts)
            }
            (Fetched::NotModified, None) => Err(IssuerError::not_cached(&url)),
            (Fetched::New { document, validators, .. }, held) => {
                // What is kept is what counts: the rest of what was served may be much, and changes by itself.
                let body = serde_json::to_string(&document.to_document()).unwrap_or_default();
                // What is wrong with the rest is found out anew after a restart.
                let is_whole = !document.warnings().iter().any(BundleWarning::is_loss);
                let validators = if is_whole { validators } else { Validators::default() };
                let (before, since) =
                    held.as_ref().map_or((None, None), |k| (k.bundle.sequence(), k.cached.regressed_since));
                let verdict = check_sequence(before, document.sequence(), since, now);
                if let SequenceCheck::Regressed { since: from } = verdict
                    && !self.accepts_regressed_bundle
                {
                    if let Some(kept) = held {
                        kept.cached.regressed_since = Some(from);
                    }
                    if since != Some(from) {
                        self.cache_bundle().await;
                    }
                    let (served, held) = (document.sequence().unwrap_or(0), before.unwrap_or(0));
                    return Err(IssuerError::BundleRegressed { url, served, held });
                }
                let is_new = held.as_ref().is_none_or(|kept| *kept.bundle != document);
                if let Some(identity) = &self.identity {
                    let svid = identity.svid.under(&document, now);
                    if svid != identity.svid {
                        self.identity = Some(Arc::new(Identity { svid, ..Identity::clone(identity) }));
                    }
                }
                let facts = bundle_facts(&document, self.identity.as_deref(), is_new, now);
                let cached = store::CachedBundle {
                    url: url.to_string(),
                    trust_domain: domain,
                    body,
                    validators,
                    fetched_at: now,
                    regressed_since: None,
                };
                let same = held.is_some_and(|kept| {
                    kept.cached.url == cached.url
                        && kept.cached.body == cached.body
                        && kept.cached.validators == cached.validators
                        && since.is_none()
                });
                self.accepts_regressed_bundle = false;
                self.spoken.of_anchors(&document, self.identity.as_ref().map(|i| &i.svid), now);
                self.take_bundle(document, cached, same).await;
                Ok(facts)
            }
        }
    }

    async fn take_bundle(&mut self, bundle: Bundle, cached: store::CachedBundle, same: bool) {
        if !same {
            let (anchors, sequence) = (bundle.anchors().len(), bundle.sequence());
            tracing::info!(anchors, sequence, trust_domain = %bundle.trust_domain(), "new trust bundle");
            if anchors == 0 {
                tracing::error!(
                    "the trust bundle holds no anchor: no SVID of the trust domain is trusted now"
                );
            }
        }
        self.bundle = Some(KeptBundle { bundle: Arc::new(bundle), cached });
        if !same {
            self.cache_bundle().await;
        }
    }

    async fn cache_bundle(&self) {
        let Some(kept) = &self.bundle else { return };
        let saved = self.save(kept.cached.clone()).await;
        saved.unwrap_or_else(|e| tracing::warn!("the trust bundle could not be cached: {}", cause(&e)));
    }
}

pub(super) fn discovered(document: &Discovery, changed: bool) -> Discovered {
    let lacks = |what: &str, wanted: &str, listed: &Excerpt| {
        let detail = format!(
            "the discovery document of \"{}\" lists [{listed}] and not {wanted}",
            document.trust_domain()
        );
        Report::of_agent("unsupported-by-mis", what, &detail)
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
    Discovered { changed, cannot_enroll: cannot_renew.clone().or(no_method), cannot_renew }
}

fn bundle_facts(bundle: &Bundle, held: Option<&Identity>, is_new: bool, now: Timestamp) -> BundleFacts {
    let valid = held.filter(|identity| identity.is_valid(now) && !bundle.anchors().is_empty());
    let vouching = valid.map(|identity| svid::trust_path(&identity.svid, bundle, now));
    let anchor = vouching.as_ref().and_then(|vouching| Some(vouching.as_ref()?.anchor));
    BundleFacts {
        refresh_hint: bundle.refresh_hint(),
        vouches: vouching.as_ref().map(Option::is_some),
        is_empty: bundle.anchors().is_empty(),
        is_new,
        svid_ends: held.map(|identity| identity.svid.until()),
        anchor_changes: anchor
            .map(|anchor| if now < anchor.not_before { anchor.not_before } else { anchor.not_after }),
    }
}
