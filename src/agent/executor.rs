//! The agent under one configuration: the lifecycle, and what executes its actions.

use std::fs::File;
use std::sync::Arc;

use super::identity::{Identity, Surroundings};
use super::persist::Records;
use super::provisioning::Provisioning;
use super::removed::RemovedIdentity;
use super::reporting::Reporter;
use super::trust_domain::TrustDomain;
use crate::config::{Config, Enrollment};
use crate::keys::Providers;
use crate::lifecycle::{Action, Event, IdentityEvent, Lifecycle, Step, Supplied};
use crate::platform::{clock, random};
use crate::problem::LastError;
use crate::publish;
use miaf_client::api::IdentityName;
use miaf_spiffe::time::Now;

/// The lifecycle, and the effects around it: once for the trust domain, once for each identity.
pub(super) struct Executor {
    pub(super) config: Config,
    pub(super) lifecycle: Lifecycle,
    pub(super) trust_domain: TrustDomain,
    pub(super) identities: Vec<Identity>,
    /// Those that are not configured any more, and are not retired yet.
    pub(super) removed: Vec<RemovedIdentity>,
    pub(super) keys: Providers,
    pub(super) provisioning: Provisioning,
    pub(super) records: Records,
    pub(super) reporter: Reporter,
    /// Why the configuration on disk is not in use.
    pub(super) rejected: Option<LastError>,
    /// Keeps other agents from the same state.
    pub(super) _lock: Option<File>,
}

impl Executor {
    /// Has the lifecycle apply an event.
    pub(super) fn step(&mut self, event: Event) -> Step {
        let now = clock::now();
        // A bundle may come from a server that only keeps copies: its date proves nothing.
        let proven = self.trust_domain.newly_proven_time(now);
        if let Some(time) = proven.filter(|_| !matches!(event, Event::Bundle(_))) {
            let verdict = self.lifecycle.observe_time(time, now);
            self.reporter.report_time(verdict, time, now.wall);
        }
        if self.lifecycle.trusts_clock(now) {
            self.trust_domain.clock_may_be_set(now.wall);
        }
        self.lifecycle.step(event, now, &mut random::unit)
    }

    /// Executes an action, and returns its outcome, and what the lifecycle has to know in addition.
    pub(super) async fn execute(&mut self, action: Action) -> Vec<Event> {
        let device = self.device();
        let Self { trust_domain, identities, records, reporter, .. } = self;
        let event = match action {
            Action::FetchDiscovery => {
                let fetched =
                    trust_domain.fetch_discovery(self.config.mis.as_ref(), identities, records).await;
                Event::Discovery(fetched.map_err(|e| e.to_failure()))
            }
            Action::FetchBundle => {
                let fetched = trust_domain.fetch_bundle(identities, records, reporter).await;
                Event::Bundle(fetched.map_err(|e| e.to_failure()))
            }
            Action::Identity(index, action) => match identities.get_mut(index.0) {
                Some(identity) => {
                    let surroundings = Surroundings {
                        lifecycle: &self.lifecycle,
                        trust_domain,
                        keys: &self.keys,
                        device,
                        provisioning: &mut self.provisioning,
                    };
                    Event::Identity(index, identity.execute(action, surroundings).await)
                }
                None => Event::Wake, // the lifecycle knows as many identities as there are
            },
        };
        trust_domain.learn_name(identities, records).await;
        reporter.report_outcome(&event, identities);
        let mut events = Vec::new();
        if let Event::Identity(index, IdentityEvent::Adopted(Ok(_))) = &event
            && let Some(identity) = identities.get_mut(index.0)
        {
            events = identity.recheck_token().await;
        }
        self.check_tokens_in_trouble();
        events.insert(0, event); // the lifecycle forgets the used token before it hears of another
        events
    }

    /// Checks the provisioned input, if that is due: also what operators supply. Returns what the
    /// lifecycle has to know of the latter; `None` if it was not due.
    pub(super) async fn check_provisioning(&mut self, now: Now) -> Option<Vec<Event>> {
        let (transport, keys) = (self.trust_domain.issuer.transport(), &self.keys);
        let certificate = |provisioning: &Provisioning, identity: &Identity| {
            provisioning.est_credential_sha256(&identity.name)
        };
        let before: Vec<_> =
            self.identities.iter().map(|identity| certificate(&self.provisioning, identity)).collect();
        if !self.provisioning.check(transport, keys, &self.lifecycle, now).await {
            return None;
        }
        // What was refused was refused for the certificate before it.
        let is_another = |(identity, before): &(&Identity, Option<String>)| {
            let now = certificate(&self.provisioning, identity);
            now.is_some() && now != *before
        };
        let replaced = self.identities.iter().zip(before).filter(is_another);
        let mut events: Vec<_> =
            replaced.map(|(identity, _)| Event::Supplied(identity.index, Supplied::Certificate)).collect();
        events.extend(self.read_operator_files().await);
        self.check_tokens_in_trouble();
        Some(events)
    }

    /// A token that cannot be read, or of which something is left, is looked at again soon: its file
    /// may not change for that.
    fn check_tokens_in_trouble(&mut self) {
        if self.identities.iter().any(Identity::has_token_in_trouble) {
            self.provisioning.check_in_trouble();
        }
    }

    /// The names of the identities that have an SVID, valid or not.
    pub(super) fn names_of_issued(&self) -> impl Iterator<Item = &IdentityName> {
        let issued = self.identities.iter().filter(|identity| identity.current.is_some());
        issued.map(|identity| &identity.name)
    }

    /// SVID and key of the device, if it has them.
    pub(super) fn device(&self) -> Option<Arc<publish::SvidAndKey>> {
        let is_device = |identity: &&Identity| identity.config.enroll == Enrollment::FactoryCert;
        self.identities.iter().find(is_device).and_then(|device| device.current.clone())
    }

    /// The identity with this name.
    pub(super) fn identity(&self, name: &IdentityName) -> Option<&Identity> {
        self.identities.iter().find(|identity| identity.name == *name)
    }
}
